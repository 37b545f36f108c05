//! Rules against tables of cases, and against random objects.

#![expect(clippy::too_many_lines, reason = "tables of cases")]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::defaults;

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

fn a_pod() -> Value {
    let mut pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
            "env": [{"name": "A"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}},
            "livenessProbe": {"httpGet": {"port": "http"}}}],
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}]}});
    defaults::pod(&mut pod);
    pod
}

#[test]
fn pods_are_refused_in_upstreams_words() {
    let second = json!({"name": "c", "image": "x", "imagePullPolicy": "Always",
        "terminationMessagePolicy": "File"});
    let mut both = a_pod()["spec"]["containers"].clone();
    both.as_array_mut().expect("a list").push(second);
    check(
        pod,
        &a_pod(),
        &[
            (
                "/spec/containers",
                Value::Null,
                &["spec.containers: Required value"],
            ),
            (
                "/spec/containers/0/name",
                Value::Null,
                &["spec.containers[0].name: Required value"],
            ),
            (
                "/spec/containers",
                both,
                &["spec.containers[1].name: Duplicate value: \"c\""],
            ),
            (
                "/spec/containers/0/image",
                json!(""),
                &["spec.containers[0].image: Required value"],
            ),
            (
                "/spec/containers/0/imagePullPolicy",
                json!("Sometimes"),
                &[
                    "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": \
                   supported values: \"Always\", \"IfNotPresent\", \"Never\"",
                ],
            ),
            (
                "/spec/containers/0/ports/0/containerPort",
                json!(70_000),
                &[
                    "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be \
                   between 1 and 65535, inclusive",
                ],
            ),
            (
                "/spec/containers/0/ports/0/name",
                json!("way-too-long-a-name"),
                &[
                    "spec.containers[0].ports[0].name: Invalid value: \"way-too-long-a-name\": \
                   must be no more than 15 characters",
                ],
            ),
            (
                "/spec/containers/0/volumeMounts/0/name",
                json!("w"),
                &["spec.containers[0].volumeMounts[0].name: Not found: \"w\""],
            ),
            (
                "/spec/containers/0/resources/requests",
                json!({"cpu": "2"}),
                &[
                    "spec.containers[0].resources.requests[cpu]: Invalid value: \"2\": must be less \
                   than or equal to cpu limit of 1",
                ],
            ),
            (
                "/spec/containers/0/env/0/valueFrom",
                json!({}),
                &[
                    "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: \
                   `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
                ],
            ),
            (
                "/spec/containers/0/livenessProbe",
                json!({}),
                &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
            ),
            (
                "/spec/restartPolicy",
                json!("Perhaps"),
                &[
                    "spec.restartPolicy: Unsupported value: \"Perhaps\": supported values: \
                   \"Always\", \"OnFailure\", \"Never\"",
                ],
            ),
            (
                "/spec/volumes/0",
                json!({"name": "v"}),
                &["spec.volumes[0]: Required value: must specify a volume type"],
            ),
            (
                "/spec/tolerations/0",
                json!({"operator": "Equal"}),
                &[
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists \
                   when `key` is empty, which means \"match all values and all keys\"",
                ],
            ),
            (
                "/spec/terminationGracePeriodSeconds",
                json!(-1),
                &[
                    "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or \
                   equal to 0",
                ],
            ),
        ],
    );
}

#[test]
fn ephemeral_containers_come_later() {
    let pod = with(
        &a_pod(),
        "/spec/ephemeralContainers",
        json!([{"name": "e"}]),
    );
    assert_eq!(
        faults(pod_create, &pod),
        ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
    );
}

#[test]
fn a_running_pod_changes_in_few_ways() {
    let old = a_pod();
    let image = with(&old, "/spec/containers/0/image", json!("nginx:2"));
    assert_eq!(changed(pod_update, &image, &old), Vec::<String>::new());
    let more = json!([{"key": "k", "operator": "Exists"}, {"key": "l", "operator": "Exists"}]);
    let tolerations = with(&old, "/spec/tolerations", more);
    assert_eq!(
        changed(pod_update, &tolerations, &old),
        Vec::<String>::new()
    );

    let host = with(&old, "/spec/nodeName", json!("n"));
    let found = changed(pod_update, &host, &old);
    assert!(found.len() == 1 && found[0].starts_with("spec: Forbidden: pod updates may not"));
    let none = with(&old, "/spec/containers", json!([]));
    assert_eq!(
        changed(pod_update, &none, &old),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    let fewer = with(&old, "/spec/tolerations", json!([]));
    assert_eq!(
        changed(pod_update, &fewer, &old),
        [
            "spec.tolerations: Forbidden: existing toleration can not be modified except its \
          tolerationSeconds"
        ]
    );
}

fn a_workload(default: fn(&mut Value)) -> Value {
    let mut object = json!({"metadata": {"name": "w"}, "spec": {
        "selector": {"matchLabels": {"app": "w"}},
        "template": {"metadata": {"labels": {"app": "w"}},
            "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
    default(&mut object);
    object
}

#[test]
fn deployments_are_refused_in_upstreams_words() {
    check(
        deployment,
        &a_workload(defaults::deployment),
        &[
            (
                "/spec/selector",
                Value::Null,
                &["spec.selector: Required value"],
            ),
            (
                "/spec/replicas",
                json!(-1),
                &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                "/spec/template/metadata/labels",
                json!({"app": "x"}),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does \
                   not match template `labels`",
                ],
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                &[
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported \
                   values: \"Always\"",
                ],
            ),
            (
                "/spec/strategy/rollingUpdate",
                json!({"maxSurge": 0, "maxUnavailable": "0%"}),
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 \
                   when `maxSurge` is 0",
                ],
            ),
            (
                "/spec/strategy/type",
                json!("Recreate"),
                &[
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy \
                   `type` is 'Recreate'",
                ],
            ),
            (
                "/spec/progressDeadlineSeconds",
                json!(0),
                &[
                    "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than \
                   minReadySeconds",
                ],
            ),
        ],
    );
    let old = a_workload(defaults::deployment);
    let new = with(&old, "/spec/selector", json!({"matchLabels": {"app": "x"}}));
    assert_eq!(
        changed(deployment_update, &new, &old),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"]
    );
}

#[test]
fn stateful_and_daemon_sets_are_refused_in_upstreams_words() {
    let mut set = a_workload(defaults::stateful_set);
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/d"}]);
    check(
        stateful_set,
        &set,
        &[(
            "/spec/podManagementPolicy",
            json!("x"),
            &[
                "spec.podManagementPolicy: Unsupported value: \"x\": supported values: \
               \"OrderedReady\", \"Parallel\"",
            ],
        )],
    );
    let scaled = with(&set, "/spec/replicas", json!(3));
    assert_eq!(
        changed(stateful_set_update, &scaled, &set),
        Vec::<String>::new()
    );
    let renamed = with(&set, "/spec/serviceName", json!("s"));
    assert_eq!(
        changed(stateful_set_update, &renamed, &set),
        [
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', \
          'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
          'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
        ]
    );
    check(
        daemon_set,
        &a_workload(defaults::daemon_set),
        &[(
            "/spec/updateStrategy/rollingUpdate",
            json!({"maxUnavailable": 0, "maxSurge": 0}),
            &[
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0 \
               when maxSurge is 0",
            ],
        )],
    );
    check(replica_set, &a_workload(defaults::replica_set), &[]);
}

#[test]
fn jobs_and_cron_jobs_are_refused_in_upstreams_words() {
    let mut job_ = json!({"spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "x"}]}}}});
    defaults::job(&mut job_);
    check(
        job,
        &job_,
        &[
            (
                "/spec/template/spec/restartPolicy",
                json!("Always"),
                &[
                    "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \
                   \"Never\"",
                ],
            ),
            (
                "/spec/completions",
                json!(-1),
                &["spec.completions: Invalid value: -1: must be greater than or equal to 0"],
            ),
        ],
    );
    let mut indexed = job_.clone();
    indexed["spec"]["completionMode"] = json!("Indexed");
    indexed["spec"]["completions"] = json!(4);
    check(
        job,
        &indexed,
        &[
            (
                "/spec/maxFailedIndexes",
                json!(1),
                &["spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"],
            ),
            (
                "/spec/successPolicy",
                json!({"rules": [{"succeededIndexes": "0-1,3", "succeededCount": 4}]}),
                &[
                    "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 \
                   (the number of indexes in the specified succeededIndexes field)",
                ],
            ),
            (
                "/spec/successPolicy",
                json!({"rules": [{"succeededIndexes": "2-4"}]}),
                &[
                    "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"2-4\": error parsing \
                   succeededIndexes: too large index: \"2-4\"",
                ],
            ),
            (
                "/spec/podFailurePolicy",
                json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [0]}}]}),
                &[
                    "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the \
                     backoffLimitPerIndex to be set",
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
                    "spec.podReplacementPolicy: Unsupported value: \"TerminatingOrFailed\": supported values: \"Failed\"",
                ],
            ),
        ],
    );
    let grown = with(&job_, "/spec/completions", json!(2));
    assert_eq!(
        changed(job_update, &grown, &job_),
        ["spec.completions: Invalid value: 2: field is immutable"]
    );
    let wider = with(&job_, "/spec/parallelism", json!(2));
    assert_eq!(changed(job_update, &wider, &job_), Vec::<String>::new());

    let mut cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "*/5 * * * *",
        "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "OnFailure",
            "containers": [{"name": "c", "image": "x"}]}}}}}});
    defaults::cron_job(&mut cron);
    check(
        cron_job,
        &cron,
        &[
            (
                "/spec/schedule",
                json!("often"),
                &[
                    "spec.schedule: Invalid value: \"often\": expected exactly 5 fields, found 1: [often]",
                ],
            ),
            (
                "/spec/timeZone",
                json!("Europe/Atlantis"),
                &[
                    "spec.timeZone: Invalid value: \"Europe/Atlantis\": unknown time zone Europe/Atlantis",
                ],
            ),
            ("/spec/timeZone", json!("Europe/Berlin"), &[]),
            (
                "/spec/jobTemplate/spec/template/spec/containers",
                json!([]),
                &["spec.jobTemplate.spec.template.spec.containers: Required value"],
            ),
        ],
    );
}

fn a_service(spec: impl Into<Value>) -> Value {
    let mut service = json!({"metadata": {"name": "s"}, "spec": spec.into()});
    defaults::service(&mut service);
    service
}

#[test]
fn services_are_refused_in_upstreams_words() {
    let plain = a_service(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
        "selector": {"app": "w"}, "ports": [{"port": 80}]}));
    check(
        service,
        &plain,
        &[
            ("/spec/ports", Value::Null, &["spec.ports: Required value"]),
            (
                "/spec/ports/0/port",
                json!(0),
                &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
            (
                "/spec/ports/0/nodePort",
                json!(30_000),
                &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                "/spec/type",
                json!("Magic"),
                &[
                    "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \
                   \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                "/spec/clusterIPs",
                json!(["10.0.0.2"]),
                &[
                    "spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`",
                ],
            ),
            (
                "/spec/externalTrafficPolicy",
                json!("Local"),
                &[
                    "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for \
                   externally-accessible services",
                ],
            ),
            (
                "/spec/ports",
                json!([{"name": "a", "port": 80, "protocol": "TCP", "targetPort": 80},
                    {"name": "a", "port": 80, "protocol": "TCP", "targetPort": 81}]),
                &[
                    "spec.ports[1].name: Duplicate value: \"a\"",
                    "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
                ],
            ),
        ],
    );
    let named = a_service(json!({"type": "ExternalName", "externalName": "example.com"}));
    check(
        service,
        &named,
        &[(
            "/spec/externalName",
            json!(""),
            &["spec.externalName: Required value"],
        )],
    );
    check(service, &a_service(json!({"clusterIP": "None"})), &[]);
    let moved = with(&plain, "/spec/clusterIP", json!("10.0.0.2"));
    assert_eq!(
        changed(service_update, &moved, &plain),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.1\"]: may not change once set"]
    );
}

#[test]
fn network_policies_are_refused_in_upstreams_words() {
    let policy = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{
        "ports": [{"protocol": "TCP", "port": 80, "endPort": 90}],
        "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}});
    let (port, peer) = ("/spec/ingress/0/ports/0", "/spec/ingress/0/from/0");
    let block = |cidr: &str, except: &str| json!({"ipBlock": {"cidr": cidr, "except": [except]}});
    check(
        network_policy,
        &policy,
        &[
            (
                port,
                json!({"port": 80, "endPort": 79}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or \
                   equal to `port`",
                ],
            ),
            (
                port,
                json!({"port": "http", "endPort": 79}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when \
                   `port` is non-numeric",
                ],
            ),
            (
                port,
                json!({"endPort": 79}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when \
                   `port` is not specified",
                ],
            ),
            (
                port,
                json!({"protocol": "ICMP"}),
                &[
                    "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported \
                   values: \"SCTP\", \"TCP\", \"UDP\"",
                ],
            ),
            (
                peer,
                json!({}),
                &["spec.ingress[0].from[0]: Required value: must specify a peer"],
            ),
            (
                peer,
                json!({"podSelector": {}, "ipBlock": {"cidr": "::/0"}}),
                &[
                    "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
                ],
            ),
            (
                peer,
                block("10.0.0.0/33", "10.0.0.0/34"),
                &[
                    "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0/33\": must be a \
                   valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                peer,
                block("10.0.0.0/8", "11.0.0.0/16"),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must \
                   be a strict subset of `cidr`",
                ],
            ),
            (
                peer,
                block("10.0.0.0/8", "10.0.0.0/8"),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must \
                   be a strict subset of `cidr`",
                ],
            ),
            (
                peer,
                block("0.0.0.0/0", "2001:db8::/64"),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"2001:db8::/64\": \
                   must be a strict subset of `cidr`",
                ],
            ),
            (
                "/spec/policyTypes",
                json!(["Sideways"]),
                &[
                    "spec.policyTypes[0]: Unsupported value: \"Sideways\": supported values: \
                   \"Egress\", \"Ingress\"",
                ],
            ),
        ],
    );
    let all = block("::/0", "fe80::/10");
    assert_eq!(
        faults(network_policy, &with(&policy, peer, all)),
        Vec::<String>::new()
    );
}

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
