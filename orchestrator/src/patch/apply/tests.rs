//! Apply against the documented examples and a naive model of ownership.

use proptest::prelude::*;

use super::*;
use crate::schema::schema;

fn writer<'a>(kind: (&'a str, &str), manager: &'a str, now: &'a str) -> Writer<'a> {
    let object = schema().api_kind(kind.0, kind.1).expect("a known kind");
    Writer {
        object,
        api_version: kind.0,
        manager,
        subresource: "",
        reset: &[&["status"]],
        now,
    }
}

const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");
const CONFIG_MAP: (&str, &str) = ("v1", "ConfigMap");
const POD: (&str, &str) = ("v1", "Pod");

fn applied(
    kind: (&str, &str),
    manager: &str,
    live: Option<&Value>,
    config: Value,
    force: bool,
) -> Result<Value, ApplyError> {
    apply(
        &writer(kind, manager, "2026-01-01T00:00:00Z"),
        live,
        config,
        force,
    )
}

fn fields(object: &Value, manager: &str, operation: &str) -> Value {
    let list = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.into_iter()
        .find(|entry| entry["manager"] == manager && entry["operation"] == operation)
        .map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    managed::strip(&mut object);
    object
}

#[test]
fn an_applier_owns_exactly_what_it_applies() {
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "test-cm", "namespace": "default", "labels": {"test-label": "test"}},
        "data": {"key": "some value"},
    });
    let object = applied(CONFIG_MAP, "kubectl", None, config, false).expect("applies");
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "kubectl", "operation": "Apply", "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:test-label": {}}},
                "f:data": {"f:key": {}},
            },
        }])
    );
}

fn deployment(replicas: Option<i64>, image: &str) -> Value {
    let mut config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "nginx"},
        "spec": {"selector": {"matchLabels": {"app": "nginx"}}, "template": {
            "metadata": {"labels": {"app": "nginx"}},
            "spec": {"containers": [{"name": "nginx", "image": image,
                "ports": [{"containerPort": 80}]}]}}},
    });
    if let Some(replicas) = replicas {
        config["spec"]["replicas"] = replicas.into();
    }
    config
}

#[test]
fn list_items_and_atomic_parts_are_owned_in_upstreams_form() {
    let object = applied(
        DEPLOYMENT,
        "kubectl",
        None,
        deployment(Some(3), "nginx:1"),
        false,
    )
    .expect("ok");
    assert_eq!(
        fields(&object, "kubectl", "Apply"),
        json!({"f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"nginx\"}": {
                ".": {}, "f:name": {}, "f:image": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                    ".": {}, "f:containerPort": {}}},
            }}},
        }}})
    );
}

#[test]
fn a_field_of_another_manager_conflicts_until_forced() {
    let live = applied(
        DEPLOYMENT,
        "kubectl",
        None,
        deployment(Some(3), "nginx:1"),
        false,
    )
    .expect("ok");
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "nginx"}, "spec": {"replicas": 2}});
    let error = applied(DEPLOYMENT, "scaler", Some(&live), config.clone(), false)
        .expect_err("kubectl owns it");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl\": .spec.replicas"
    );
    let causes = error.causes();
    assert_eq!(causes.len(), 1);
    assert_eq!(
        (&*causes[0].reason, &*causes[0].message, &*causes[0].field),
        (
            "FieldManagerConflict",
            "conflict with \"kubectl\"",
            ".spec.replicas"
        )
    );

    let object = applied(DEPLOYMENT, "scaler", Some(&live), config, true).expect("forced");
    assert_eq!(object["spec"]["replicas"], json!(2));
    assert_eq!(
        fields(&object, "scaler", "Apply"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    assert_eq!(
        fields(&object, "kubectl", "Apply")["f:spec"].get("f:replicas"),
        None
    );
}

#[test]
fn the_same_value_is_shared_and_ownership_can_be_handed_over() {
    // The documented hand-over of replicas to an autoscaler.
    let live = applied(
        DEPLOYMENT,
        "kubectl",
        None,
        deployment(Some(3), "nginx:1"),
        false,
    )
    .expect("ok");
    let handover = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "nginx"}, "spec": {"replicas": 3}});
    let shared =
        applied(DEPLOYMENT, "handover", Some(&live), handover, false).expect("no conflict");
    let given = applied(
        DEPLOYMENT,
        "kubectl",
        Some(&shared),
        deployment(None, "nginx:1"),
        false,
    )
    .expect("ok");
    assert_eq!(
        given["spec"]["replicas"],
        json!(3),
        "the other applier keeps it"
    );
    assert_eq!(
        fields(&given, "kubectl", "Apply")["f:spec"].get("f:replicas"),
        None
    );
}

#[test]
fn what_is_no_longer_applied_goes_unless_owned() {
    let first = json!({"metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}});
    let live = applied(CONFIG_MAP, "one", None, first, false).expect("ok");
    let second = json!({"metadata": {"name": "c"}, "data": {"b": "2", "c": "3"}});
    let live = applied(CONFIG_MAP, "two", Some(&live), second, false).expect("ok");
    let less = json!({"metadata": {"name": "c"}});
    let live = applied(CONFIG_MAP, "one", Some(&live), less, false).expect("ok");
    assert_eq!(bare(&live)["data"], json!({"b": "2", "c": "3"}));
    assert_eq!(fields(&live, "one", "Apply"), Value::Null);
}

#[test]
fn each_applier_owns_its_own_list_items() {
    let pod = |name: &str, image: &str| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": name, "image": image}]}});
    let live = applied(POD, "one", None, pod("a", "1"), false).expect("ok");
    let live = applied(POD, "two", Some(&live), pod("b", "2"), false).expect("ok");
    let names = |object: &Value| -> Vec<String> {
        let list = object["spec"]["containers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        list.iter()
            .map(|item| item["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(names(&live), ["a", "b"]);
    let live = applied(POD, "one", Some(&live), pod("c", "3"), false).expect("ok");
    assert_eq!(names(&live), ["b", "c"]);
}

#[test]
fn merged_items_come_in_the_applied_order_and_others_stay_in_place() {
    let items = |names: &str| -> Value {
        let item = |name: char| json!({"name": name.to_string(), "image": "i"});
        json!({"spec": {"containers": names.chars().map(item).collect::<Vec<_>>()}})
    };
    for (live, config, expected) in [
        ("abcd", "db", "acdb"),
        ("ab", "ca", "cab"),
        ("", "ba", "ba"),
        ("ab", "cd", "abcd"),
    ] {
        let object = applied(POD, "m", Some(&items(live)), items(config), true).expect("ok");
        let names: String = object["spec"]["containers"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|item| item["name"].as_str())
            .collect();
        assert_eq!(names, expected, "{live} + {config}");
    }
}

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

#[test]
fn what_cannot_be_applied_is_refused_by_path() {
    let refused = |config: Value| {
        applied(POD, "m", None, config, false)
            .expect_err("no")
            .to_string()
    };
    assert_eq!(
        refused(json!({"metadata": {"managedFields": []}})),
        "metadata.managedFields must be nil"
    );
    assert_eq!(
        refused(json!({"spec": {"foo": 1}})),
        "failed to create typed patch object: .spec.foo: field not declared in schema"
    );
    assert_eq!(
        refused(json!({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}})),
        "failed to create typed patch object: .spec.containers: duplicate entries for key [name=\"a\"]"
    );
    assert!(refused(json!({"spec": {"containers": [{"image": "a"}]}})).contains("omits key field"));
    assert!(refused(json!({"spec": {"nodeName": 1}})).contains("cannot unmarshal number"));
}

type Data = std::collections::BTreeMap<String, String>;

fn any_data() -> impl Strategy<Value = Data> {
    prop::collection::btree_map("[a-e]", "[x-z]", 0..4)
}

/// Who applied what last: the model of a ConfigMap's life.
#[derive(Default)]
struct Model {
    data: Data,
    owned: std::collections::BTreeMap<usize, Data>,
}

impl Model {
    /// None: refused.
    fn apply(&mut self, manager: usize, config: &Data, force: bool) -> Option<()> {
        let changes = |key: &String| self.data.get(key) != config.get(key);
        let others = |key: &String| {
            self.owned
                .iter()
                .any(|(other, keys)| *other != manager && keys.contains_key(key))
        };
        if !force && config.keys().any(|key| changes(key) && others(key)) {
            return None;
        }
        let taken: Vec<String> = config.keys().filter(|key| changes(key)).cloned().collect();
        for (other, keys) in &mut self.owned {
            if *other != manager {
                keys.retain(|key, _| !taken.contains(key));
            }
        }
        let last = self
            .owned
            .insert(manager, config.clone())
            .unwrap_or_default();
        for key in last.keys().filter(|key| !config.contains_key(*key)) {
            if !self.owned.values().any(|keys| keys.contains_key(key)) {
                self.data.remove(key);
            }
        }
        self.data.extend(config.clone());
        Some(())
    }
}

fn data_of(object: Option<&Value>) -> Data {
    let map = object
        .and_then(|object| object.get("data"))
        .and_then(Value::as_object);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), text(value)))
        .collect()
}

proptest! {
    #[test]
    fn appliers_live_together_as_a_naive_model_says(
        steps in prop::collection::vec((0_usize..3, any_data(), any::<bool>()), 1..12),
    ) {
        let managers = ["one", "two", "three"];
        let mut model = Model::default();
        let mut live: Option<Value> = None;
        for (manager, config, force) in steps {
            let mut object = json!({"metadata": {"name": "c"}});
            if !config.is_empty() {
                object["data"] = json!(config);
            }
            let result = applied(CONFIG_MAP, managers[manager], live.as_ref(), object, force);
            prop_assert_eq!(model.apply(manager, &config, force).is_some(), result.is_ok());
            if let Ok(object) = result {
                for (key, value) in &config {
                    prop_assert_eq!(object["data"][key].as_str(), Some(&**value));
                }
                live = Some(object);
            }
            prop_assert_eq!(data_of(live.as_ref()), model.data.clone());
        }
    }

    #[test]
    fn random_field_sets_never_panic_and_come_back(
        text in "[{}\":,fk.v0-9a]{0,60}",
    ) {
        if let Ok(value) = serde_json::from_str::<Value>(&text)
            && let Some(set) = FieldSet::from_json(&value)
        {
            let again = FieldSet::from_json(&set.to_json());
            prop_assert_eq!(again.map(|set| set.to_json()), Some(set.to_json()));
        }
    }

    #[test]
    fn any_configuration_is_applied_or_refused_without_a_panic(
        live in prop_oneof![Just(json!({})), Just(json!({"spec": {"containers": [{"name": "a"}, {"name": "a"}, {}]}}))],
        config in prop_oneof![Just(json!({"spec": null})), Just(json!({"spec": {"containers": null}})),
            Just(json!({"spec": {"containers": []}})), Just(json!({"metadata": {"labels": {}}})),
            Just(json!([])), Just(json!({"spec": {"containers": [{"name": null}]}})),
            Just(json!({"metadata": {"finalizers": ["a", "b"]}}))],
        force: bool,
    ) {
        if let Ok(object) = applied(POD, "m", Some(&live), config.clone(), force) {
            drop(applied(POD, "m", Some(&object), config.clone(), force));
        }
        let mut new = config;
        track_update(&writer(POD, "m", "2026-01-01T00:00:00Z"), Some(&live), &mut new);
    }
}
