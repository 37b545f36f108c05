//! Conversion against examples and random values.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn converted(api_version: &str, kind: &str, mut value: Value) -> (Value, Vec<String>) {
    let object = schema().api_kind(api_version, kind).expect("a known kind");
    let outcome = convert(object, &mut value).expect("the types fit");
    (value, outcome.complaints(&[]))
}

fn refused(api_version: &str, kind: &str, mut value: Value) -> String {
    let object = schema().api_kind(api_version, kind).expect("a known kind");
    convert(object, &mut value)
        .expect_err("a wrong type")
        .to_string()
}

#[test]
fn unknown_fields_are_named_with_upstreams_paths_and_dropped() {
    let (value, complaints) = converted(
        "apps/v1",
        "Deployment",
        json!({"foo": 1, "spec": {"replicas": 2, "bar": {}, "template": {"spec": {"containers": [
            {"name": "a"}, {"name": "b", "imagePullPolice": "x"}]}}}}),
    );
    assert_eq!(
        value,
        json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [
            {"name": "a"}, {"name": "b"}]}}}})
    );
    assert_eq!(
        strict_error(&complaints),
        "strict decoding error: unknown field \"foo\", unknown field \"spec.bar\", \
         unknown field \"spec.template.spec.containers[1].imagePullPolice\""
    );
}

#[test]
fn wrong_types_are_refused_in_gos_words() {
    assert_eq!(
        refused("apps/v1", "Deployment", json!({"spec": {"replicas": "3"}})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let env = json!([{"name": "A", "value": 1}]);
    assert_eq!(
        refused("v1", "Pod", json!({"spec": {"containers": [{"env": env}]}})),
        "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string"
    );
    assert_eq!(
        refused("v1", "Service", json!({"spec": {"ports": {"port": 1}}})),
        "json: cannot unmarshal object into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort"
    );
    assert_eq!(
        refused("v1", "Pod", json!([])),
        "json: cannot unmarshal array into Go value of type v1.Pod"
    );
    assert_eq!(
        refused(
            "v1",
            "Service",
            json!({"spec": {"healthCheckNodePort": 1.5}})
        ),
        "json: cannot unmarshal number 1.5 into Go struct field \
         ServiceSpec.spec.healthCheckNodePort of type int32"
    );
    assert!(refused("v1", "Secret", json!({"data": {"k": "***"}})).contains("illegal base64 data"));
}

#[test]
fn values_take_the_form_upstream_stores() {
    let (value, complaints) = converted(
        "v1",
        "Pod",
        json!({
            "metadata": {"name": "p", "labels": {}, "creationTimestamp": null, "generation": 0},
            "spec": {
                "hostNetwork": false,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "nodeName": "",
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1024Mi"}}],
                "containers": [{"name": "c", "args": [null], "resources": {
                    "limits": {"cpu": 2, "memory": "1.5Gi"}, "requests": {"cpu": "1000m"}}}],
            },
            "status": {"startTime": "2024-02-29T12:00:00+02:00"},
        }),
    );
    assert_eq!(complaints, Vec::<String>::new());
    assert_eq!(
        value,
        json!({
            "metadata": {"name": "p"},
            "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
                "containers": [{"name": "c", "args": [""], "resources": {
                    "limits": {"cpu": "2", "memory": "1536Mi"}, "requests": {"cpu": "1"}}}],
            },
            "status": {"startTime": "2024-02-29T10:00:00Z"},
        })
    );
}

#[test]
fn empty_objects_that_mean_something_stay() {
    let policy = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {}}]}]}});
    assert_eq!(
        converted("networking.k8s.io/v1", "NetworkPolicy", policy.clone()).0,
        policy
    );
}

/// Any JSON, as deep as a few levels.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9]{0,6}".prop_map(Value::from),
    ];
    let names = "metadata|spec|status|containers|name|ports|template|data|x";
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names, inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn converting_never_panics_and_a_second_time_changes_nothing(
        mut value in any_value(),
        kind in 0_usize..500,
    ) {
        let kinds: Vec<_> = schema().kinds().collect();
        let object = kinds[kind % kinds.len()].1;
        if convert(object, &mut value).is_ok() {
            let mut again = value.clone();
            let outcome = convert(object, &mut again).expect("what came out goes in");
            prop_assert_eq!(outcome.unknown, Vec::<String>::new());
            prop_assert_eq!(again, value);
        }
    }
}
