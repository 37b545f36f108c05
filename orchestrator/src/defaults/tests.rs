//! Defaults against examples; every default is a field of its type.

#![expect(clippy::too_many_lines, reason = "tables of cases")]

use super::*;
use crate::defaults;
use crate::schema::{convert, schema};

fn defaulted(rule: fn(&mut Value), mut object: Value) -> Value {
    rule(&mut object);
    let once = object.clone();
    rule(&mut object);
    assert_eq!(object, once, "defaulting twice changes nothing");
    object
}

#[test]
fn a_bare_pod_gets_upstreams_defaults() {
    let pod = json!({"spec": {"containers": [{"name": "c", "image": "nginx",
        "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}},
        "resources": {"limits": {"cpu": "1"}},
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
        "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}});
    let spec = defaulted(defaults::pod, pod)["spec"].clone();
    assert_eq!(
        spec,
        json!({
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
            "securityContext": {}, "enableServiceLinks": true,
            "containers": [{
                "name": "c", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "livenessProbe": {
                    "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                },
                "env": [{"name": "A", "valueFrom": {"fieldRef": {
                    "apiVersion": "v1", "fieldPath": "metadata.name"}}}],
            }],
            "volumes": [{"name": "v", "emptyDir": {}},
                {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
        })
    );
}

#[test]
fn the_pull_policy_follows_the_tag() {
    for (image, policy) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("registry:5000/nginx", "Always"),
        ("registry:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:0123", "IfNotPresent"),
        ("nginx:latest@sha256:0123", "IfNotPresent"),
    ] {
        let pod = json!({"spec": {"containers": [{"name": "c", "image": image}]}});
        let pod = defaulted(defaults::pod, pod);
        assert_eq!(
            pod["spec"]["containers"][0]["imagePullPolicy"], policy,
            "{image}"
        );
    }
}

#[test]
fn on_the_hosts_network_container_ports_are_host_ports() {
    let pod = json!({"spec": {"hostNetwork": true, "containers": [
        {"name": "c", "ports": [{"containerPort": 80}]}]}});
    let pod = defaulted(defaults::pod, pod);
    assert_eq!(
        pod["spec"]["containers"][0]["ports"][0]["hostPort"],
        json!(80)
    );
}

#[test]
fn workloads_get_their_strategies() {
    let spec = |rule, object| defaulted(rule, object)["spec"].clone();
    let deployment = spec(deployment, json!({"spec": {}}));
    assert_eq!(deployment["replicas"], json!(1));
    assert_eq!(
        deployment["strategy"],
        json!({"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(
        deployment["template"]["spec"]["restartPolicy"],
        json!("Always")
    );
    let recreate = spec(
        defaults::deployment,
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
    assert_eq!(recreate["strategy"], json!({"type": "Recreate"}));
    let daemons = spec(daemon_set, json!({}));
    assert_eq!(
        daemons["updateStrategy"]["rollingUpdate"],
        json!({"maxUnavailable": 1, "maxSurge": 0})
    );
    let stateful = spec(
        stateful_set,
        json!({"spec": {"volumeClaimTemplates": [{}]}}),
    );
    assert_eq!(stateful["podManagementPolicy"], json!("OrderedReady"));
    assert_eq!(
        stateful["volumeClaimTemplates"][0]["spec"]["volumeMode"],
        json!("Filesystem")
    );
}

#[test]
fn jobs_complete_once_unless_only_parallelism_is_given() {
    let spec_of = |spec: Value| defaulted(job, json!({"spec": spec}))["spec"].clone();
    let plain = spec_of(json!({}));
    assert_eq!(
        (&plain["completions"], &plain["parallelism"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(plain["backoffLimit"], json!(6));
    let queue = spec_of(json!({"parallelism": 3}));
    assert_eq!(queue.get("completions"), None);
    assert_eq!(spec_of(json!({"completions": 5}))["parallelism"], json!(1));
    let labelled = json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
    assert_eq!(
        defaulted(job, labelled)["metadata"]["labels"],
        json!({"a": "b"})
    );
}

#[test]
fn services_aim_at_the_port_itself() {
    let service = json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP",
        "ports": [{"port": 80}, {"port": 81, "targetPort": "http"}]}});
    assert_eq!(
        defaulted(defaults::service, service)["spec"],
        json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
            "allocateLoadBalancerNodePorts": true,
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"},
                {"port": 81, "targetPort": "http", "protocol": "TCP"}]})
    );
}

#[test]
fn a_service_of_another_type_drops_what_the_old_type_gave_it() {
    let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
        "clusterIPs": ["10.0.0.1"], "externalTrafficPolicy": "Cluster",
        "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "nodePort": 30000}]}});
    let changed = |of_type: &str| {
        let mut new = old.clone();
        new["spec"]["type"] = of_type.into();
        service_type_change(&mut new, &old);
        new["spec"].clone()
    };
    assert_eq!(
        changed("ClusterIP"),
        json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "internalTrafficPolicy": "Cluster", "ports": [{"port": 80}]})
    );
    assert_eq!(
        changed("ExternalName"),
        json!({"type": "ExternalName", "ports": [{"port": 80}]})
    );
    assert_eq!(changed("NodePort"), old["spec"]);
}

#[test]
fn policies_say_what_they_are_about() {
    let types = |spec: Value| {
        defaulted(network_policy, json!({"spec": spec}))["spec"]["policyTypes"].clone()
    };
    assert_eq!(types(json!({"podSelector": {}})), json!(["Ingress"]));
    assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
    assert_eq!(
        types(json!({"egress": [{}], "policyTypes": ["Egress"]})),
        json!(["Egress"])
    );
}

#[test]
fn plain_secret_data_is_encoded_and_wins() {
    let object = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
    assert_eq!(
        defaulted(secret, object),
        json!({"type": "Opaque", "data": {"a": "eQ==", "b": "eg=="}})
    );
}

/// API version, kind, rule and an object.
type Case = (&'static str, &'static str, fn(&mut Value), Value);

#[test]
fn defaults_are_fields_of_their_types() {
    let rules: [Case; 16] = [
        (
            "v1",
            "Pod",
            pod,
            json!({"spec": {"containers": [{}], "volumes": [{}]}}),
        ),
        (
            "v1",
            "Service",
            service,
            json!({"spec": {"ports": [{"port": 1}]}}),
        ),
        ("v1", "Secret", secret, json!({})),
        (
            "v1",
            "PersistentVolume",
            persistent_volume,
            json!({"spec": {"hostPath": {}}}),
        ),
        (
            "v1",
            "PersistentVolumeClaim",
            persistent_volume_claim,
            json!({}),
        ),
        (
            "v1",
            "Node",
            node,
            json!({"status": {"capacity": {"cpu": "1"}}}),
        ),
        (
            "v1",
            "ReplicationController",
            replication_controller,
            json!({}),
        ),
        ("apps/v1", "Deployment", deployment, json!({})),
        ("apps/v1", "ReplicaSet", replica_set, json!({})),
        (
            "apps/v1",
            "StatefulSet",
            stateful_set,
            json!({"spec": {"volumeClaimTemplates": [{}]}}),
        ),
        ("apps/v1", "DaemonSet", daemon_set, json!({})),
        ("batch/v1", "Job", job, json!({})),
        ("batch/v1", "CronJob", cron_job, json!({})),
        (
            "networking.k8s.io/v1",
            "NetworkPolicy",
            network_policy,
            json!({}),
        ),
        (
            "storage.k8s.io/v1",
            "StorageClass",
            storage_class,
            json!({}),
        ),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            endpoint_slice,
            json!({"ports": [{}]}),
        ),
    ];
    for (api_version, kind, rule, object) in rules {
        let mut object = defaulted(rule, object);
        let of = schema().api_kind(api_version, kind).expect("a known kind");
        let outcome = convert(of, &mut object).expect("the types fit");
        assert_eq!(outcome.unknown, Vec::<String>::new(), "{kind}");
    }
}
