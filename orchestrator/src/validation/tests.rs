//! Rules against tables of cases, and against random objects.

#![expect(clippy::too_many_lines, reason = "tables of cases")]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::defaults;

mod cluster;
mod network;
mod pods;
mod workloads;

type Rule = fn(&Value, &mut Causes);
type Change = fn(&Value, &Value, &mut Causes);

fn texts(causes: &[Cause]) -> Vec<String> {
    causes
        .iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect()
}

fn faults(rule: Rule, object: &Value) -> Vec<String> {
    let mut causes = Vec::new();
    rule(object, &mut causes);
    texts(&causes)
}

fn changed(rule: Change, new: &Value, old: &Value) -> Vec<String> {
    let mut causes = Vec::new();
    rule(new, old, &mut causes);
    texts(&causes)
}

/// `object` with the value at a pointer replaced, or removed by null.
fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("the parent is there");
    match parent {
        Value::Object(fields) if value.is_null() => drop(fields.remove(last)),
        Value::Object(fields) => drop(fields.insert(last.to_owned(), value)),
        Value::Array(items) => items[last.parse::<usize>().expect("an index")] = value,
        _ => panic!("{pointer} leads into a scalar"),
    }
    object
}

/// Each case: where, what, and the faults that it makes. The object as it is has none.
fn check(rule: Rule, valid: &Value, cases: &[(&str, Value, &[&str])]) {
    assert_eq!(faults(rule, valid), Vec::<String>::new());
    for (pointer, value, expected) in cases {
        let found = faults(rule, &with(valid, pointer, value.clone()));
        assert_eq!(found, *expected, "{pointer} = {value}");
    }
}

const RULES: [Rule; 24] = [
    config_map,
    cron_job,
    daemon_set,
    deployment,
    endpoint_slice,
    endpoints,
    event,
    horizontal_pod_autoscaler,
    job,
    lease,
    namespace,
    network_policy,
    node,
    persistent_volume,
    persistent_volume_claim,
    pod,
    replica_set,
    replication_controller,
    scale,
    secret,
    service,
    service_account,
    stateful_set,
    storage_class,
];
const CHANGES: [Change; 14] = [
    config_map_update,
    daemon_set_update,
    deployment_update,
    endpoint_slice_update,
    ephemeral_containers_update,
    job_update,
    node_update,
    persistent_volume_claim_update,
    persistent_volume_update,
    pod_update,
    replica_set_update,
    secret_update,
    service_update,
    stateful_set_update,
];

/// Any JSON whose field names are those that rules look at.
fn any_value() -> impl Strategy<Value = Value> {
    let names = "metadata|spec|status|template|containers|initContainers|name|ports|port|endPort|\
        selector|matchLabels|matchExpressions|operator|values|volumes|env|valueFrom|fieldRef|\
        resources|limits|requests|taints|ingress|from|ipBlock|cidr|except|clusterIPs|schedule|\
        tolerations|strategy|rollingUpdate|maxSurge|maxUnavailable|data|type|livenessProbe|httpGet";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./:%* -]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 96, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_object_makes_a_rule_panic(object in any_value(), old in any_value()) {
        let (object, old) = (json!({"metadata": {}, "spec": object}), json!({"spec": old}));
        for rule in RULES {
            drop(faults(rule, &object));
            drop(faults(rule, &object["spec"]));
        }
        for rule in CHANGES {
            drop(changed(rule, &object, &old));
            assert_eq!(changed(rule, &object, &object).iter().filter(|text| text.contains("immutable")).count(), 0);
        }
    }
}
