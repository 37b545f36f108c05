//! What writes by other means than apply do to ownership.

use super::*;

#[test]
fn an_update_takes_ownership_of_what_it_changes() {
    let live = applied(
        DEPLOYMENT,
        "kubectl",
        None,
        deployment(Some(3), "nginx:1"),
        false,
    )
    .expect("ok");
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(5);
    new["status"] = json!({"replicas": 1});
    track_update(
        &writer(DEPLOYMENT, "edit", "2026-01-02T00:00:00Z"),
        Some(&live),
        &mut new,
    );
    assert_eq!(
        fields(&new, "edit", "Update"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    assert_eq!(
        fields(&new, "kubectl", "Apply")["f:spec"].get("f:replicas"),
        None
    );

    let error = applied(
        DEPLOYMENT,
        "kubectl",
        Some(&new),
        deployment(Some(3), "nginx:1"),
        false,
    )
    .expect_err("edit owns it");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"edit\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn a_create_owns_all_that_it_sets() {
    let mut new = deployment(Some(1), "nginx");
    new["metadata"]["uid"] = json!("u");
    track_update(
        &writer(DEPLOYMENT, "", "2026-01-01T00:00:00Z"),
        None,
        &mut new,
    );
    assert_eq!(
        fields(&new, "unknown", "Update"),
        json!({"f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:containers": {".": {}, "k:{\"name\":\"nginx\"}": {
                ".": {}, "f:name": {}, "f:image": {},
                "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                    ".": {}, "f:containerPort": {}}},
            }}},
        }}})
    );
}

#[test]
fn a_status_write_is_tracked_by_its_subresource() {
    let live = applied(
        DEPLOYMENT,
        "kubectl",
        None,
        deployment(Some(3), "nginx:1"),
        false,
    )
    .expect("ok");
    let mut new = live.clone();
    new["status"] = json!({"conditions": [{"type": "Available", "status": "True"}]});
    let status = Writer {
        subresource: "status",
        reset: &[&["spec"], &["metadata"]],
        ..writer(DEPLOYMENT, "controller", "2026-01-02T00:00:00Z")
    };
    track_update(&status, Some(&live), &mut new);
    let entry = new["metadata"]["managedFields"]
        .as_array()
        .and_then(|list| {
            list.iter()
                .find(|entry| entry["manager"] == "controller")
                .cloned()
        })
        .expect("an entry");
    assert_eq!(entry["subresource"], json!("status"));
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:status": {"f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {
            ".": {}, "f:type": {}, "f:status": {}}}}})
    );
    assert_ne!(fields(&new, "kubectl", "Apply"), Value::Null);
}

#[test]
fn nothing_changed_means_nothing_changed() {
    let config = deployment(Some(3), "nginx:1");
    let live = applied(DEPLOYMENT, "kubectl", None, config.clone(), false).expect("ok");
    let later = writer(DEPLOYMENT, "kubectl", "2027-01-01T00:00:00Z");
    assert_eq!(apply(&later, Some(&live), config, false).expect("ok"), live);
    let mut new = live.clone();
    track_update(
        &Writer {
            manager: "x",
            ..later
        },
        Some(&live),
        &mut new,
    );
    assert_eq!(new, live);
}

#[test]
fn managed_fields_are_kept_from_clients_that_drop_them_and_reset_on_demand() {
    let live = applied(CONFIG_MAP, "a", None, json!({"data": {"k": "v"}}), false).expect("ok");
    let later = writer(CONFIG_MAP, "b", "2026-01-02T00:00:00Z");
    let mut new = json!({"data": {"k": "v"}, "metadata": {}});
    track_update(&later, Some(&live), &mut new);
    assert_eq!(
        new["metadata"]["managedFields"],
        live["metadata"]["managedFields"]
    );
    let mut new = json!({"data": {"k": "v"}, "metadata": {"managedFields": [{}]}});
    track_update(&later, Some(&live), &mut new);
    assert_eq!(new["metadata"].get("managedFields"), None);
}

#[test]
fn an_untracked_object_is_adopted_before_its_first_apply() {
    let live = json!({"metadata": {"name": "c", "uid": "u"}, "data": {"k": "old"}});
    let config = json!({"metadata": {"name": "c"}, "data": {"k": "new"}});
    let error = applied(CONFIG_MAP, "me", Some(&live), config.clone(), false).expect_err("owned");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.k"
    );
    let object = applied(CONFIG_MAP, "me", Some(&live), config, true).expect("forced");
    assert_eq!(
        fields(&object, "before-first-apply", "Update"),
        json!({"f:data": {}})
    );
}

#[test]
fn kubectl_moves_from_client_side_to_server_side_apply_without_conflicts() {
    let mut config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
        "data": {"k": "1"}});
    let mut live = config.clone();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: format!("{config}\n")});
    let created = writer(
        CONFIG_MAP,
        "kubectl-client-side-apply",
        "2026-01-01T00:00:00Z",
    );
    track_update(&created, None, &mut live);
    config["data"]["k"] = json!("2");
    let object = applied(CONFIG_MAP, "kubectl", Some(&live), config.clone(), false).expect("ok");
    assert_eq!(object["data"]["k"], json!("2"));
    let kept = object["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .expect("kept");
    assert_eq!(serde_json::from_str::<Value>(kept).expect("JSON"), config);
    assert!(applied(CONFIG_MAP, "other", Some(&live), config, false).is_err());
}

#[test]
fn at_most_ten_updaters_are_kept_apart() {
    let mut live = json!({"metadata": {"name": "c"}, "data": {}});
    track_update(
        &writer(CONFIG_MAP, "m", "2026-01-01T00:00:00Z"),
        None,
        &mut live,
    );
    for at in 0..15 {
        let mut new = live.clone();
        new["data"][format!("k{at:02}")] = json!("v");
        let (name, now) = (format!("m{at:02}"), format!("2026-01-01T00:00:{at:02}Z"));
        track_update(&writer(CONFIG_MAP, &name, &now), Some(&live), &mut new);
        live = new;
    }
    let list = live["metadata"]["managedFields"]
        .as_array()
        .expect("a list");
    assert_eq!(list.len(), 10);
    assert_eq!(
        fields(&live, "m14", "Update"),
        json!({"f:data": {"f:k14": {}}})
    );
    assert!(
        fields(&live, ANCIENT_NAME, "Update")["f:data"]
            .get("f:k00")
            .is_some()
    );
}

const ANCIENT_NAME: &str = "ancient-changes";
