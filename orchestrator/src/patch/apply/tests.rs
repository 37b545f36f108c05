//! Apply against the documented examples.

use proptest::prelude::*;

use super::*;
use crate::schema::schema;

mod model;
mod updates;

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
