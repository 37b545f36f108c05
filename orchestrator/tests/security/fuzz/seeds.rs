//! One valid object of every kind that a client writes.

use serde_json::{Value, json};

/// Where objects of a kind are made, and one of them.
pub(super) struct Seed {
    pub(super) collection: &'static str,
    pub(super) object: Value,
}

impl Seed {
    /// Where the object is.
    pub(super) fn path(&self) -> String {
        let name = self.object["metadata"]["name"].as_str().unwrap();
        format!("{}/{name}", self.collection)
    }
}

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "initContainers": [{"name": "first", "image": "busybox", "command": ["true"]}],
            "containers": [{
                "name": "c", "image": "nginx:1",
                "ports": [
                    {"name": "http", "containerPort": 80},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                ],
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": 1}},
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            }],
            "volumes": [
                {"name": "v", "emptyDir": {}},
                {"name": "s", "secret": {"secretName": "s", "items": [{"key": "a", "path": "b"}]}},
            ],
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}],
            }}},
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}},
            }],
        },
    })
}

fn named(mut object: Value) -> Value {
    object["metadata"] = json!({
        "name": "seed",
        "labels": {"app": "web"},
        "annotations": {"a.b/c": "d"},
        "finalizers": [],
    });
    object
}

fn workloads() -> Vec<(&'static str, Value)> {
    let selector = json!({"matchLabels": {"app": "web"}});
    let mut batch = template();
    batch["spec"]["restartPolicy"] = json!("Never");
    vec![
        (
            "/api/v1/namespaces/default/pods",
            json!({"spec": template()["spec"]}),
        ),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"spec": {
                "replicas": 2, "selector": selector, "template": template(),
                "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            }}),
        ),
        (
            "/apis/apps/v1/namespaces/default/replicasets",
            json!({"spec": {"selector": selector, "template": template()}}),
        ),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            json!({"spec": {
                "serviceName": "web", "selector": selector, "template": template(),
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
                }],
            }}),
        ),
        (
            "/apis/apps/v1/namespaces/default/daemonsets",
            json!({"spec": {"selector": selector, "template": template()}}),
        ),
        (
            "/apis/apps/v1/namespaces/default/controllerrevisions",
            json!({"revision": 1, "data": {"spec": {"template": {"a": [1]}}}}),
        ),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            json!({"spec": {
                "completions": 2, "parallelism": 1, "completionMode": "Indexed", "template": batch,
                "podFailurePolicy": {"rules": [{
                    "action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]},
                }]},
            }}),
        ),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            json!({"spec": {
                "schedule": "*/5 1-3 * JAN MON-FRI", "timeZone": "Europe/Berlin",
                "jobTemplate": {"spec": {"template": batch}},
            }}),
        ),
    ]
}

fn network() -> Vec<(&'static str, Value)> {
    vec![
        (
            "/api/v1/namespaces/default/services",
            json!({"spec": {
                "type": "NodePort", "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "x", "port": 81}],
            }}),
        ),
        (
            "/api/v1/namespaces/default/endpoints",
            json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}),
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [{"name": "", "port": 80}]}),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            json!({"spec": {
                "podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
                "ingress": [{
                    "from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.0/25"]}}],
                    "ports": [{"port": 80, "endPort": 90}],
                }],
            }}),
        ),
    ]
}

fn cluster() -> Vec<(&'static str, Value)> {
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    let subjects = json!([{"kind": "User", "name": "eve"}]);
    let role =
        json!({"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"});
    vec![
        ("/api/v1/namespaces", json!({})),
        (
            "/api/v1/nodes",
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        ),
        (
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"secrets": [{"name": "s"}]}),
        ),
        (
            "/api/v1/namespaces/default/configmaps",
            json!({"data": {"a": "b"}, "binaryData": {"c": "aGk="}}),
        ),
        (
            "/api/v1/namespaces/default/secrets",
            json!({"stringData": {"a": "b"}, "type": "Opaque"}),
        ),
        (
            "/api/v1/namespaces/default/persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "/api/v1/persistentvolumes",
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/v"}}}),
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"provisioner": "a.b/c"}),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            json!({"spec": {"holderIdentity": "a", "leaseDurationSeconds": 3, "renewTime": "2026-01-02T03:04:05.000001Z"}}),
        ),
        (
            "/api/v1/namespaces/default/events",
            json!({"involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"}, "reason": "R", "type": "Normal", "count": 1}),
        ),
        (
            "/apis/events.k8s.io/v1/namespaces/default/events",
            json!({
                "eventTime": "2026-01-02T03:04:05.000001Z", "reportingController": "a.b/c",
                "reportingInstance": "i", "action": "A", "reason": "R", "type": "Normal",
                "regarding": {"kind": "Pod", "name": "a", "namespace": "default"},
            }),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
            json!({"rules": rules}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            json!({"rules": rules}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            json!({"roleRef": role, "subjects": subjects}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json!({"roleRef": role, "subjects": subjects}),
        ),
    ]
}

/// All of them; each is accepted by a cluster that has nothing else.
pub(super) fn all() -> Vec<Seed> {
    let all = workloads().into_iter().chain(network()).chain(cluster());
    all.map(|(collection, object)| {
        let mut object = named(object);
        // Both versions of events are stored as one.
        if collection.contains("events.k8s.io") {
            object["metadata"]["name"] = json!("other-event");
        }
        Seed { collection, object }
    })
    .collect()
}

/// What is posted and answered but not stored, or posted below an object.
pub(super) fn posts() -> Vec<Seed> {
    let pod = "/api/v1/namespaces/default/pods/seed";
    let path = |rest: &str| -> &'static str { Box::leak(format!("{pod}{rest}").into_boxed_str()) };
    [
        (path("/binding"), json!({"metadata": {"name": "seed"}, "target": {"kind": "Node", "name": "seed"}})),
        (path("/eviction"), json!({"metadata": {"name": "seed"}, "deleteOptions": {"dryRun": ["All"]}})),
        (
            "/api/v1/namespaces/default/serviceaccounts/seed/token",
            json!({"spec": {"audiences": ["a"], "expirationSeconds": 3600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "seed"}}}),
        ),
        (
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "a"}}}),
        ),
        (
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json!({"spec": {"user": "u", "groups": ["g"], "extra": {"a": ["b"]}, "nonResourceAttributes": {"path": "/x", "verb": "get"}}}),
        ),
        (
            "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews",
            json!({"spec": {"user": "u", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}}}),
        ),
        ("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", json!({"spec": {"namespace": "default"}})),
        ("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": "a.b.c", "audiences": ["d"]}})),
        ("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})),
    ]
    .into_iter()
    .map(|(collection, object)| Seed { collection, object })
    .collect()
}
