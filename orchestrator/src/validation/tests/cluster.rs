//! What pods stand on: settings, storage, nodes and the like.

use super::*;

#[test]
fn settings_are_refused_in_upstreams_words() {
    let key = faults(config_map, &json!({"data": {"a/b": "x"}}));
    assert!(
        key[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key"),
        "{key:?}"
    );
    let big = "x".repeat((1 << 20) + 1);
    assert_eq!(
        faults(config_map, &json!({"data": {"a": big}})),
        [": Too long: may not be more than 1048576 bytes"]
    );
    let (old, new) = (
        json!({"immutable": true, "data": {"a": "1"}}),
        json!({"data": {"a": "2"}}),
    );
    assert_eq!(
        changed(config_map_update, &new, &old),
        [
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set"
        ]
    );
    assert_eq!(
        faults(
            secret,
            &json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})
        ),
        ["data[tls.key]: Required value"]
    );
    let shown = faults(
        secret,
        &json!({"type": "kubernetes.io/dockercfg", "data": {".dockercfg": "eA=="}}),
    );
    assert!(shown[0].contains("redacted"), "{shown:?}");
    let typed = |of: &str| json!({"type": of});
    assert_eq!(
        changed(secret_update, &typed("a"), &typed("b")),
        ["type: Invalid value: \"a\": field is immutable"]
    );
}

#[test]
fn storage_is_refused_in_upstreams_words() {
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "1Gi"}}}});
    check(
        persistent_volume_claim,
        &claim,
        &[
            (
                "/spec/accessModes",
                json!([]),
                &["spec.accessModes: Required value: at least 1 access mode is required"],
            ),
            (
                "/spec/resources/requests",
                json!({}),
                &["spec.resources.requests[storage]: Required value"],
            ),
        ],
    );
    let bound = with(&claim, "/spec/volumeName", json!("pv"));
    assert_eq!(
        changed(persistent_volume_claim_update, &bound, &claim),
        Vec::<String>::new()
    );
    let larger = with(
        &bound,
        "/spec/resources/requests",
        json!({"storage": "2Gi"}),
    );
    assert_eq!(
        changed(persistent_volume_claim_update, &larger, &bound),
        Vec::<String>::new()
    );
    assert_eq!(
        changed(persistent_volume_claim_update, &bound, &larger),
        ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
    );
    let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "hostPath": {"path": "/data"}}});
    check(
        persistent_volume,
        &volume,
        &[
            (
                "/spec/hostPath",
                Value::Null,
                &["spec: Required value: must specify a volume type"],
            ),
            (
                "/spec/hostPath/path",
                json!("/a/../b"),
                &["spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
            ),
        ],
    );
    let mut class = json!({"provisioner": "example.com/Disk"});
    defaults::storage_class(&mut class);
    check(
        storage_class,
        &class,
        &[("/provisioner", json!(""), &["provisioner: Required value"])],
    );
}

#[test]
fn cluster_objects_are_refused_in_upstreams_words() {
    let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}],
        "ports": [{"name": "", "port": 80, "protocol": "TCP"}]});
    check(
        endpoint_slice,
        &slice,
        &[
            (
                "/endpoints/0/addresses",
                json!(["::1"]),
                &["endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address"],
            ),
            (
                "/endpoints/0/addresses",
                json!(["127.0.0.1"]),
                &[
                    "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the \
                   loopback range (127.0.0.0/8, ::1/128)",
                ],
            ),
        ],
    );
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    check(
        node,
        &taint,
        &[(
            "/spec/taints/0/effect",
            json!("Nope"),
            &[
                "spec.taints[0].effect: Unsupported value: \"Nope\": supported values: \
               \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            ],
        )],
    );
    let event_ = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}});
    check(
        event,
        &event_,
        &[(
            "/involvedObject/namespace",
            json!("b"),
            &["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"],
        )],
    );
    let lease_ = json!({"spec": {"leaseDurationSeconds": 40, "holderIdentity": "n"}});
    check(
        lease,
        &lease_,
        &[(
            "/spec/leaseDurationSeconds",
            json!(0),
            &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
        )],
    );
}
