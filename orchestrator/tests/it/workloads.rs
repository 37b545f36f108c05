//! What happens around pods, in this process: refusals, namesakes, lost nodes.

use std::time::Duration;

use fairlead::{
    controller::{
        apps::{
            daemonset::DaemonSetController, deployment::DeploymentController,
            replicaset::ReplicaSetController, statefulset::StatefulSetController,
        },
        batch::job::JobController,
        cluster::{garbage::GarbageCollector, node::NodeController},
    },
    registry::{DeleteOptions, Propagation, Target},
    resource::Resource,
};
use serde_json::{Value, json};

use crate::controllers::{Stage, found};

fn workload(name: &str, spec: &Value) -> Value {
    let labels = json!({"app": name});
    let mut workload = json!({
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "x"}]},
            },
        },
    });
    json_patch::merge(&mut workload["spec"], spec);
    workload
}

async fn change(stage: &Stage, target: Target<'_>, edit: impl Fn(&mut Value) + Send + Sync) {
    let change = |current: &Value| {
        let mut new = current.clone();
        edit(&mut new);
        Ok(new)
    };
    stage.client.change(target, &change).await.unwrap();
}

/// Makes the default namespace refuse ordinary pods.
async fn harden(stage: &Stage) {
    let target = Target::object(found("", "namespaces"), "", "default");
    change(stage, target, |namespace| {
        namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted".into();
    })
    .await;
}

/// Makes a namespace that takes any pod.
async fn open(stage: &Stage, name: &str) {
    let namespace = json!({"metadata": {"name": name}});
    stage.create(found("", "namespaces"), "", namespace).await;
    let account = json!({"metadata": {"name": "default"}});
    let accounts = found("", "serviceaccounts");
    stage.create(accounts, name, account).await;
}

fn node(name: &str, ready: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_pods_are_tried_again_with_patience_and_told() {
    let mut stage = Stage::new("refused").await;
    stage.run("replicaset-controller", ReplicaSetController::new);
    stage.run("statefulset-controller", StatefulSetController::new);
    stage.run("daemonset-controller", DaemonSetController::new);
    stage.run("job-controller", JobController::new);
    harden(&stage).await;
    stage
        .create(found("", "nodes"), "", node("n", "True"))
        .await;
    open(&stage, "free").await;
    let sets = found("apps", "replicasets");
    stage
        .create(sets, "default", workload("a", &json!({})))
        .await;
    let (stateful, daemons) = (found("apps", "statefulsets"), found("apps", "daemonsets"));
    stage
        .create(
            stateful,
            "default",
            workload("s", &json!({"serviceName": "s"})),
        )
        .await;
    stage
        .create(daemons, "default", workload("d", &json!({})))
        .await;
    let mut job = workload(
        "j",
        &json!({"template": {"spec": {"restartPolicy": "Never"}}}),
    );
    job["spec"].as_object_mut().unwrap().remove("selector");
    stage.create(found("batch", "jobs"), "default", job).await;
    stage.wait("the condition", |stage| {
        stage.get(sets, "default/a")["status"]["conditions"][0]["type"] == "ReplicaFailure"
    });
    // Whatever the refusal, what there is is reported.
    stage.wait("all reports", |stage| {
        stage.get(stateful, "default/s")["status"]["observedGeneration"] == 1
            && stage.get(daemons, "default/d")["status"]["desiredNumberScheduled"] == 1
            && stage.get(found("batch", "jobs"), "default/j")["status"]["startTime"].is_string()
    });
    for kind in ["ReplicaSet", "DaemonSet", "Job"] {
        stage.wait("the news", |stage| {
            let told = stage.told(kind, "FailedCreate");
            told.is_some_and(|text| text.starts_with("Error creating: pods "))
        });
    }
    stage.wait("the StatefulSet's news", |stage| {
        let told = stage.told("StatefulSet", "FailedCreate");
        let text = "create Pod s-0 in StatefulSet s failed error: pods ";
        told.is_some_and(|told| told.starts_with(text))
    });
    // The clock stands still, so nothing is tried again meanwhile.
    let before = stage.get(sets, "default/a");
    for name in ["b", "c"] {
        stage
            .create(sets, "free", workload(name, &json!({"replicas": 3})))
            .await;
        stage.wait("the others' pods", |stage| {
            stage.get(sets, &format!("free/{name}"))["status"]["replicas"] == 3
        });
    }
    assert_eq!(stage.get(sets, "default/a"), before);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_that_cannot_be_made_is_told_on_its_deployment() {
    let mut stage = Stage::new("no-replicaset").await;
    stage.run("deployment-controller", DeploymentController::new);
    // With the hash behind it, it is too long for a name.
    let name = "d".repeat(250);
    let deployments = found("apps", "deployments");
    let labels = json!({"app": "d"});
    let spec = json!({
        "progressDeadlineSeconds": 60,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}},
    });
    stage
        .create(deployments, "default", workload(&name, &spec))
        .await;
    stage.wait("the condition", |stage| {
        let status = &stage.get(deployments, &format!("default/{name}"))["status"];
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.any(|c| {
            c["type"] == "Progressing"
                && c["reason"] == "ReplicaSetCreateError"
                && c["message"]
                    .as_str()
                    .unwrap()
                    .starts_with("Failed to create new replica set \"d")
        })
    });
    stage.wait("the news", |stage| {
        stage.told("Deployment", "ReplicaSetCreateError").is_some()
    });
    stage.stop().await;
}

fn owner(object: &Value) -> &Value {
    &object["metadata"]["ownerReferences"][0]["uid"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_takes_over_what_one_of_its_name_has_left() {
    let mut stage = Stage::new("left-behind").await;
    stage.run("statefulset-controller", StatefulSetController::new);
    stage.run("daemonset-controller", DaemonSetController::new);
    stage.run("generic-garbage-collector", GarbageCollector::new);
    stage
        .create(found("", "nodes"), "", node("n", "True"))
        .await;
    let kinds = [found("apps", "statefulsets"), found("apps", "daemonsets")];
    let (pods, revisions) = (found("", "pods"), found("apps", "controllerrevisions"));
    let spec = |kind: &Resource| match kind.kind {
        "StatefulSet" => json!({"serviceName": "w"}),
        _ => json!({}),
    };
    for kind in kinds {
        stage
            .create(kind, "default", workload("w", &spec(kind)))
            .await;
        stage.wait("a pod and a revision", |stage| {
            stage.names(pods).len() == 1 && stage.names(revisions).len() == 1
        });
        let options = DeleteOptions::propagating(Propagation::Orphan);
        stage
            .client
            .delete_of(kind, "default", "w", &options)
            .await
            .unwrap();
        let all_of = |stage: &Stage, uid: &Value| {
            let of = |object: &Value| owner(object) == uid;
            stage.objects(pods).iter().all(of) && stage.objects(revisions).iter().all(of)
        };
        stage.wait("orphans", |stage| {
            stage.names(kind).is_empty() && all_of(stage, &Value::Null)
        });
        stage
            .create(kind, "default", workload("w", &spec(kind)))
            .await;
        let uid = stage.get(kind, "default/w")["metadata"]["uid"].clone();
        stage.wait("an heir", |stage| all_of(stage, &uid));
        assert_eq!(
            (stage.names(pods).len(), stage.names(revisions).len()),
            (1, 1)
        );
        let options = DeleteOptions::propagating(Propagation::Background);
        stage
            .client
            .delete_of(kind, "default", "w", &options)
            .await
            .unwrap();
        stage.wait("nothing", |stage| {
            stage.names(pods).is_empty() && stage.names(revisions).is_empty()
        });
    }
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_sets_claims_are_as_their_template_and_strangers_stay_strangers() {
    let mut stage = Stage::new("claims").await;
    stage.run("statefulset-controller", StatefulSetController::new);
    let stranger = json!({
        "metadata": {"name": "stranger", "labels": {"app": "db"}},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    });
    let (pods, claims) = (found("", "pods"), found("", "persistentvolumeclaims"));
    stage.create(pods, "default", stranger).await;
    let template = json!({
        "metadata": {"name": "data", "labels": {"tier": "fast"}, "annotations": {"note": "kept"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let spec = json!({"serviceName": "db", "volumeClaimTemplates": [template]});
    stage
        .create(
            found("apps", "statefulsets"),
            "default",
            workload("db", &spec),
        )
        .await;
    stage.wait("a pod", |stage| {
        stage.names(pods).contains(&"db-0".to_owned())
    });
    let claim = stage.get(claims, "default/data-db-0");
    assert_eq!(
        claim["metadata"]["labels"],
        json!({"app": "db", "tier": "fast"})
    );
    assert_eq!(claim["metadata"]["annotations"], json!({"note": "kept"}));
    stage.wait("the news", |stage| {
        let text = "create Claim data-db-0 Pod db-0 in StatefulSet db success";
        let events = stage.objects(found("", "events"));
        events
            .iter()
            .any(|e| e["reason"] == "SuccessfulCreate" && e["message"] == text)
    });
    assert!(owner(&stage.get(pods, "default/stranger")).is_null());
    // A claim that goes before it is in use comes back for the pod that waits.
    let target = Target::object(claims, "default", "data-db-0");
    change(&stage, target, |claim| {
        claim["metadata"]["finalizers"] = json!([]);
    })
    .await;
    stage.delete(claims, "default", "data-db-0").await;
    let waits =
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]});
    stage.set_status(pods, "default", "db-0", waits).await;
    stage.wait("the claim", |stage| {
        !stage.get(claims, "default/data-db-0").is_null()
    });
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_fails_again_and_again_is_replaced_ever_later() {
    let mut stage = Stage::new("failing").await;
    stage.run("daemonset-controller", DaemonSetController::new);
    let (pods, daemons) = (found("", "pods"), found("apps", "daemonsets"));
    stage
        .create(found("", "nodes"), "", node("n", "True"))
        .await;
    stage
        .create(daemons, "default", workload("d", &json!({})))
        .await;
    let of = |stage: &Stage, name: &str| {
        let mut names = stage.names(pods);
        names.retain(|pod| pod.starts_with(&format!("{name}-")));
        names
    };
    let fail = async |stage: &Stage, before: &[String]| {
        stage.wait("a daemon", |stage| {
            let now = of(stage, "d");
            now.len() == 1 && now != before
        });
        let names = of(stage, "d");
        stage
            .set_status(pods, "default", &names[0], json!({"phase": "Failed"}))
            .await;
        names
    };
    let first = fail(&stage, &[]).await;
    let second = fail(&stage, &first).await;
    stage.wait("the news", |stage| {
        stage.told("DaemonSet", "FailedDaemonPod").is_some()
    });
    stage.wait("the deletion's news", |stage| {
        stage.told("DaemonSet", "SuccessfulDelete").is_some()
    });
    // Another one shows that the controller has looked.
    stage
        .create(daemons, "default", workload("e", &json!({})))
        .await;
    stage.wait("the other's daemon", |stage| of(stage, "e").len() == 1);
    assert_eq!(of(&stage, "d"), second);
    stage.clock.advance(Duration::from_secs(1));
    fail(&stage, &second).await;
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_says_that_its_node_made_it_go() {
    let mut stage = Stage::new("evicted").await;
    let (pods, nodes) = (found("", "pods"), found("", "nodes"));
    for name in ["a", "b"] {
        stage.create(nodes, "", node(name, "True")).await;
    }
    stage.run("node-controller", NodeController::new);
    let tolerance = json!({
        "key": "node.kubernetes.io/not-ready", "operator": "Exists",
        "effect": "NoExecute", "tolerationSeconds": 0,
    });
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": "a",
            "containers": [{"name": "c", "image": "x"}],
            "tolerations": [tolerance],
        },
    });
    stage.create(pods, "default", pod).await;
    let ready = json!([{"type": "Ready", "status": "True"}]);
    stage
        .set_status(
            pods,
            "default",
            "p",
            json!({"phase": "Running", "conditions": ready}),
        )
        .await;
    let unready = json!({"conditions": [
        {"type": "Ready", "status": "False"}, {"type": "NetworkUnavailable", "status": "True"},
    ]});
    stage.set_status(nodes, "", "a", unready).await;
    stage.wait("the eviction", |stage| {
        let pod = stage.get(pods, "default/p");
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let said = conditions.any(|c| {
            c["type"] == "DisruptionTarget"
                && c["reason"] == "DeletionByTaintManager"
                && c["message"] == "Taint manager: deleting due to NoExecute taint"
        });
        said && pod["metadata"]["deletionTimestamp"].is_string()
    });
    assert_eq!(
        stage.told("Pod", "NodeNotReady").as_deref(),
        Some("Node is not ready")
    );
    let taints = stage.get(nodes, "a")["spec"]["taints"].clone();
    let mut taints = taints.as_array().unwrap().iter();
    assert!(taints.any(|t| t["key"] == "node.kubernetes.io/network-unavailable"));
    stage.clock.advance(Duration::from_secs(51));
    stage.wait("the news", |stage| {
        stage.told("Node", "NodeNotReady").as_deref() == Some("Node b status is now: NodeNotReady")
    });
    let conditions = stage.get(nodes, "b")["status"]["conditions"].clone();
    let reason = |of: &str| {
        let mut all = conditions.as_array().unwrap().iter();
        all.find(|c| c["type"] == of).unwrap()["reason"].clone()
    };
    assert_eq!(reason("Ready"), "NodeStatusUnknown");
    assert_eq!(reason("DiskPressure"), "NodeStatusNeverUpdated");
    stage.stop().await;
}
