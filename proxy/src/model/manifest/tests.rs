//! What is refused, and what holds instead.
use serde_json::json;

use super::*;
use crate::model::State;

fn document(value: Value) -> Document {
    Document {
        origin: "test.yaml, document 1".into(),
        value,
    }
}

fn faults(value: &Value) -> Vec<(String, String)> {
    match parse(&document(value.clone()), Unknown::Reject) {
        Parsed::Rejected(rejected) => {
            let errors = rejected.errors.into_iter();
            errors.map(|e| (e.path, e.reason)).collect()
        }
        other => panic!("not rejected: {other:?}"),
    }
}

fn policy(spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
    })
}

/// The one fault of a policy, as "path: reason".
#[track_caller]
fn check_policy(spec: &Value, expected: &str) {
    let faults = faults(&policy(spec));
    let lines: Vec<_> = faults.iter().map(|(p, r)| format!("{p}: {r}")).collect();
    assert_eq!(lines, [expected], "{spec}");
}

fn closed(value: Value) -> NetworkPolicy {
    match parse(&document(value), Unknown::Reject) {
        Parsed::Rejected(Rejected {
            instead: Instead::Closed(policy),
            ..
        }) => (*policy).clone(),
        other => panic!("not closed: {other:?}"),
    }
}

fn with_ingress(rule: &Value) -> Value {
    json!({"podSelector": {}, "ingress": [rule]})
}

#[test]
fn faults_of_policies_name_field_and_reason() {
    check_policy(
        &json!({"podSelector": {}, "egres": []}),
        "spec.egres: unknown field",
    );
    check_policy(
        &with_ingress(&json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]})),
        "spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\" is not a CIDR",
    );
    check_policy(
        &with_ingress(
            &json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}),
        ),
        "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/16 is not within 10.0.0.0/8",
    );
    check_policy(
        &with_ingress(
            &json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}),
        ),
        "spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 is not within 10.0.0.0/8",
    );
    check_policy(
        &with_ingress(&json!({"ports": [{"port": 0}]})),
        "spec.ingress[0].ports[0].port: 0 is not a port",
    );
    check_policy(
        &with_ingress(&json!({"ports": [{"port": 65536}]})),
        "spec.ingress[0].ports[0].port: 65536 is not a port",
    );
    check_policy(
        &with_ingress(&json!({"ports": [{"port": 90, "endPort": 80}]})),
        "spec.ingress[0].ports[0].endPort: 80 is below port 90",
    );
    check_policy(
        &with_ingress(&json!({"ports": [{"port": "http", "endPort": 80}]})),
        "spec.ingress[0].ports[0].endPort: cannot follow a named port",
    );
    check_policy(
        &with_ingress(&json!({"ports": [{"endPort": 80}]})),
        "spec.ingress[0].ports[0].endPort: has no port to start from",
    );
    check_policy(
        &with_ingress(&json!({"ports": [{"port": 80, "protocol": "tcp"}]})),
        "spec.ingress[0].ports[0].protocol: unknown protocol \"tcp\"",
    );
    check_policy(
        &with_ingress(&json!({"from": [{}]})),
        "spec.ingress[0].from[0]: names no peer",
    );
    check_policy(
        &with_ingress(&json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "::/0"}}]})),
        "spec.ingress[0].from[0]: has an ipBlock and a selector",
    );
    check_policy(
        &json!({"podSelector": {}, "policyTypes": ["ingress"]}),
        "spec.policyTypes[0]: unknown policy type \"ingress\"",
    );
}

#[test]
fn faults_of_selectors_name_field_and_reason() {
    let expression = |operator: &str, values: Value| {
        json!({"podSelector": {"matchExpressions": [
            {"key": "app", "operator": operator, "values": values}]}})
    };
    check_policy(
        &expression("Is", json!(["a"])),
        "spec.podSelector.matchExpressions[0].operator: unknown operator \"Is\"",
    );
    check_policy(
        &expression("Exists", json!(["a"])),
        "spec.podSelector.matchExpressions[0].values: Exists takes no values",
    );
    check_policy(
        &expression("NotIn", json!([])),
        "spec.podSelector.matchExpressions[0].values: NotIn needs at least one value",
    );
    check_policy(
        &json!({"podSelector": {"matchLabels": {"-a": "b"}}}),
        "spec.podSelector.matchLabels: \"-a\" is not a label key",
    );
    check_policy(
        &json!({"podSelector": {"matchLabels": {"a": "b c"}}}),
        "spec.podSelector.matchLabels: \"b c\" is not a label value",
    );
    let wrong_type = faults(&policy(&json!({"podSelector": {"matchLabels": {"a": 1}}})));
    assert_eq!(wrong_type[0].0, "spec.podSelector.matchLabels.a");
}

#[test]
fn a_rejected_policy_isolates_what_it_selects_in_the_directions_it_names() {
    let bad_port = json!({"ports": [{"port": 0}]});
    let policy_of = |spec: Value| closed(policy(&spec));
    let one = policy_of(json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "ingress": [bad_port]}));
    assert_eq!(one.subject.to_string(), "app=web");
    assert_eq!((one.ingress, one.egress), (Some(vec![]), None));

    let two = policy_of(json!({"podSelector": {}, "egress": [bad_port]}));
    assert_eq!((two.ingress, two.egress), (Some(vec![]), Some(vec![])));

    let three = policy_of(json!({
        "podSelector": {}, "policyTypes": ["Egress"], "egress": [bad_port]}));
    assert_eq!((three.ingress, three.egress), (None, Some(vec![])));
}

#[test]
fn where_a_rejected_policy_is_unclear_it_isolates_more() {
    let policy_of = |spec: Value| closed(policy(&spec));
    let both = (Some(vec![]), Some(vec![]));
    let bad_selector = policy_of(json!({"podSelector": {"matchLabels": {"app": 1}}}));
    assert!(bad_selector.subject.selects_everything());
    assert_eq!(bad_selector.ingress, Some(vec![]));
    let misspelt_selector = policy_of(json!({"podSelector": {"matchLabel": {"app": "a"}}}));
    assert!(misspelt_selector.subject.selects_everything());
    let misspelt = policy_of(json!({"podSelector": {}, "egres": []}));
    assert_eq!((misspelt.ingress, misspelt.egress), both);
    let bad_types = policy_of(json!({"podSelector": {}, "policyTypes": ["Egres"]}));
    assert_eq!((bad_types.ingress, bad_types.egress), both);
    let no_spec = closed(policy(&json!("nonsense")));
    assert_eq!((no_spec.ingress, no_spec.egress), both);
}

#[test]
fn nameless_policies_do_not_hide_one_another() {
    let nameless = |origin: &str| Document {
        origin: origin.into(),
        value: json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "spec": {"podSelector": {}}}),
    };
    let batch = Batch::read([nameless("a.yaml"), nameless("b.yaml")], Unknown::Reject);
    let mut state = State::default();
    for change in batch.since(&Batch::default()) {
        state.apply(change);
    }
    assert_eq!((state.policies.len(), state.rejected.len()), (2, 2));
}

fn namespace(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"team": value}}})
}

#[test]
fn lists_are_flattened_and_other_kinds_counted() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        namespace("a", "x"), namespace("b", "y"),
        {"apiVersion": "apps/v1", "kind": "Deployment"}]});
    let batch = Batch::read([document(list)], Unknown::Reject);
    assert_eq!(batch.objects.len(), 2);
    assert_eq!(batch.unsupported.get("apps/v1/Deployment"), Some(&1));
}

#[test]
fn a_rejected_namespace_keeps_the_labels_that_can_be_read() {
    let bad = json!({"apiVersion": "v1", "kind": "Namespace", "typo": 1,
        "metadata": {"name": "a", "labels": {"restricted": "yes", "bad": "no good", "n": 1}}});
    let mut state = State::default();
    for change in Batch::read([document(bad)], Unknown::Reject).since(&Batch::default()) {
        state.apply(change);
    }
    let labels: Vec<_> = state.namespaces["a"]
        .labels
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(labels, ["kubernetes.io/metadata.name", "restricted"]);
    assert_eq!(state.rejected.len(), 1);
}

#[test]
fn items_of_a_list_of_a_kind_need_not_name_it() {
    let list = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": [
        {"metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {}}}]});
    let batch = Batch::read([document(list)], Unknown::Reject);
    assert_eq!((batch.objects.len(), batch.unsupported.len()), (1, 0));
}

#[test]
fn a_policy_of_no_known_version_or_kind_isolates_and_is_named() {
    let of = |api_version: Value, kind: Value| {
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": []}})
    };
    for (value, path) in [
        (
            of(json!("networking.k8s.io/v1beta1"), json!("NetworkPolicy")),
            "apiVersion",
        ),
        (
            of(json!("extensions/v1beta1"), json!("NetworkPolicy")),
            "apiVersion",
        ),
        (of(Value::Null, json!("NetworkPolicy")), "apiVersion"),
        (
            of(json!("networking.k8s.io/v1"), json!("Networkpolicy")),
            "kind",
        ),
        (
            of(json!("networking.k8s.io/v1"), json!("NetworkPolcy")),
            "kind",
        ),
        (of(json!("networking.k8s.io/v1"), Value::Null), "kind"),
    ] {
        let paths: Vec<_> = faults(&value).into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, [path], "{value}");
        let policy = closed(value);
        assert_eq!(policy.name, ObjectName::new("shop", "p"));
        assert_eq!(policy.subject.to_string(), "app=web");
        assert_eq!(policy.ingress, Some(vec![]));
    }
    for (api_version, kind) in [
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("crd.antrea.io/v1beta1", "NetworkPolicy"),
        ("networking.k8s.io/v1", "Ingress"),
    ] {
        let mut other = of(json!(api_version), json!(kind));
        if kind == "Ingress" {
            other["spec"] = json!({"rules": []});
        }
        let parsed = parse(&document(other), Unknown::Reject);
        assert_eq!(parsed, Parsed::Unsupported(format!("{api_version}/{kind}")));
    }
}

#[test]
fn names_may_have_parts_longer_than_a_dns_label() {
    let mut long = policy(&json!({"podSelector": {}}));
    long["metadata"]["name"] = json!("a".repeat(200));
    let parsed = parse(&document(long.clone()), Unknown::Reject);
    assert!(matches!(parsed, Parsed::Object(_)), "{parsed:?}");
    long["metadata"]["name"] = json!("a".repeat(254));
    assert_eq!(faults(&long)[0].0, "metadata.name");
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a".repeat(64)}});
    assert_eq!(faults(&service)[0].0, "metadata.name");
}

#[test]
fn the_last_of_two_objects_of_a_name_wins_and_the_first_is_reported() {
    let both = [namespace("a", "x"), namespace("a", "y")].map(document);
    let batch = Batch::read(both, Unknown::Reject);
    let Some(Object::Namespace(winner)) = batch.objects.values().next() else {
        panic!("no namespace");
    };
    assert_eq!(winner.labels["team"], "y");
    assert_eq!(batch.rejected[0].instead, Instead::Later);
}

#[test]
fn a_batch_leads_to_the_next_by_its_changes() {
    let bad = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "c", "labels": {"team": "not good"}}});
    let good = namespace("c", "good");
    let read = |documents: &[&Value]| {
        let documents = documents.iter().map(|v| document((*v).clone()));
        Batch::read(documents, Unknown::Reject)
    };
    let (a, b) = (namespace("a", "x"), namespace("b", "x"));
    let batches = [
        read(&[&a, &good]),
        read(&[&b, &bad]),
        read(&[&a, &good]),
        read(&[]),
    ];
    let mut state = State::default();
    let mut earlier = Batch::default();
    for batch in batches {
        for change in batch.since(&earlier) {
            state.apply(change);
        }
        assert_eq!(state.namespaces.len(), batch.objects.len());
        assert_eq!(state.rejected.len(), batch.rejected.len());
        assert!(batch.since(&batch).is_empty());
        earlier = batch;
    }
}

#[test]
fn usual_pods_are_understood() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "creationTimestamp": null,
            "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i",
            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
            "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}]}});
    let Parsed::Object(Object::Pod(pod)) = parse(&document(pod), Unknown::Reject) else {
        panic!("not a pod");
    };
    assert_eq!(pod.ips.len(), 2);
    assert_eq!(pod.resolve("http", super::super::Protocol::Tcp), Some(8080));
    assert_eq!(pod.resolve("http", super::super::Protocol::Udp), None);
    assert!(pod.is_ready());
}

#[test]
fn an_api_server_may_know_more_fields_than_we() {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "spec": {"fieldOfTheFuture": 1}});
    assert!(matches!(
        parse(&document(node.clone()), Unknown::Ignore),
        Parsed::Object(_)
    ));
    assert_eq!(faults(&node)[0].0, "spec.fieldOfTheFuture");
}
