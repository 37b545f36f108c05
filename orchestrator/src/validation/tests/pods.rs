//! Pods.

use super::*;

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
