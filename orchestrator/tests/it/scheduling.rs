//! The scheduler on the real API, against what it finds there besides pods and nodes.

use serde_json::{Value, json};

use crate::controllers::{Stage, found};

fn node(name: &str, zone: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone},
        },
        "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "110"}},
    })
}

fn pod(name: &str, app: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    })
}

fn nodes_of(stage: &Stage, names: &[String]) -> Vec<String> {
    let place = |name: &String| {
        let pod = stage.get(found("", "pods"), &format!("default/{name}"));
        pod["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let mut nodes: Vec<String> = names.iter().map(place).collect();
    nodes.sort();
    nodes
}

/// Pods of one kind on node b, then four of another kind, which something makes
/// alike or not: where are those?
async fn places_of_four(stage: &mut Stage, prefix: &str, owner: Option<Value>) -> Vec<String> {
    let pods = found("", "pods");
    let mut names = Vec::new();
    for index in 0..4 {
        let name = format!("{prefix}-{index}");
        let mut pod = pod(&name, prefix);
        if let Some(owner) = &owner {
            pod["metadata"]["ownerReferences"] = json!([owner]);
        }
        stage.create(pods, "default", pod).await;
        names.push(name);
    }
    stage.wait("four pods to be placed", |stage| {
        nodes_of(stage, &names).iter().all(|node| !node.is_empty())
    });
    nodes_of(stage, &names)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_service_or_a_set_are_spread_though_a_node_has_more_room() {
    let mut stage = Stage::new("likes").await;
    let pods = found("", "pods");
    for (name, zone) in [("a", "x"), ("b", "y")] {
        stage.create(found("", "nodes"), "", node(name, zone)).await;
    }
    for index in 0..20 {
        let mut other = pod(&format!("other-{index}"), "other");
        other["spec"]["nodeName"] = json!("b");
        stage.create(pods, "default", other).await;
    }
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    });
    stage
        .create(found("", "services"), "default", service)
        .await;
    let template = json!({
        "metadata": {"labels": {"app": "set"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let set = json!({
        "metadata": {"name": "set"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "set"}}, "template": template},
    });
    let sets = found("apps", "replicasets");
    stage.create(sets, "default", set).await;
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "controller": true,
        "uid": stage.get(sets, "default/set")["metadata"]["uid"],
    });
    stage.schedule();
    let even = ["a", "a", "b", "b"];
    assert_eq!(places_of_four(&mut stage, "web", None).await, even);
    assert_eq!(places_of_four(&mut stage, "set", Some(owner)).await, even);
    assert_eq!(places_of_four(&mut stage, "bare", None).await, ["a"; 4]);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_claim_and_says_on_how_many_nodes() {
    let mut stage = Stage::new("no-claim").await;
    let pods = found("", "pods");
    stage.create(found("", "nodes"), "", node("a", "x")).await;
    let mut claiming = pod("p", "p");
    claiming["spec"]["volumes"] =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "gone"}}]);
    stage.create(pods, "default", claiming).await;
    stage.schedule();
    let expected = "0/1 nodes are available: persistentvolumeclaim \"gone\" not found.";
    stage.wait("a refusal", |stage| {
        let pod = stage.get(pods, "default/p");
        pod["status"]["conditions"][0]["message"] == expected
    });
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_for_one_pod_is_free_when_that_pod_is_gone() {
    let mut stage = Stage::new("one-pod").await;
    let (pods, claims) = (found("", "pods"), found("", "persistentvolumeclaims"));
    stage.create(found("", "nodes"), "", node("a", "x")).await;
    let volume = json!({
        "metadata": {"name": "v"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"],
            "hostPath": {"path": "/v"}, "storageClassName": "by-hand",
            "claimRef": {"namespace": "default", "name": "c"},
        },
    });
    stage
        .create(found("", "persistentvolumes"), "", volume)
        .await;
    let claim = json!({
        "metadata": {"name": "c"},
        "spec": {
            "accessModes": ["ReadWriteOncePod"], "volumeName": "v", "storageClassName": "by-hand",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    stage.create(claims, "default", claim).await;
    stage.run(
        "persistent-volume-binder",
        fairlead::controller::storage::binder::VolumeBinder::new,
    );
    stage.wait("a bound claim", |stage| {
        stage.get(claims, "default/c")["status"]["phase"] == "Bound"
    });
    for name in ["first", "second"] {
        let mut claiming = pod(name, "p");
        claiming["spec"]["volumes"] =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        claiming["spec"]["terminationGracePeriodSeconds"] = json!(0);
        stage.create(pods, "default", claiming).await;
    }
    stage.schedule();
    let placed = |stage: &Stage, name: &str| {
        stage.get(pods, &format!("default/{name}"))["spec"]["nodeName"] == "a"
    };
    stage.wait("one of them to be placed", |stage| {
        placed(stage, "first") != placed(stage, "second")
    });
    let (first, second) = if placed(&stage, "first") {
        ("first", "second")
    } else {
        ("second", "first")
    };
    stage.wait("the other to be refused", |stage| {
        let other = stage.get(pods, &format!("default/{second}"));
        let message = other["status"]["conditions"][0]["message"].as_str();
        message.is_some_and(|text| text.contains("ReadWriteOncePod access mode"))
    });
    stage.delete(pods, "default", first).await;
    stage.clock.advance(std::time::Duration::from_secs(20));
    stage.wait("the other to be placed", |stage| placed(stage, second));
    stage.stop().await;
}
