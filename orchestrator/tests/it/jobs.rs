//! Jobs in this process: the test plays the kubelet and moves the clock.

use std::time::Duration;

use fairlead::{
    controller::{batch::job::JobController, cluster::garbage::GarbageCollector},
    registry::{DeleteOptions, Propagation, Target},
};
use serde_json::{Value, json};

use crate::controllers::{Stage, found};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

fn job(spec: &Value) -> Value {
    let mut job = json!({
        "metadata": {"name": "j"},
        "spec": {"template": {"spec": {
            "nodeName": "n",
            "restartPolicy": "Never",
            "containers": [{"name": "c", "image": "x"}],
        }}},
    });
    json_patch::merge(&mut job["spec"], spec);
    job
}

async fn staged(name: &str, spec: &Value) -> Stage {
    let mut stage = Stage::new(name).await;
    stage.run("job-controller", JobController::new);
    stage
        .create(found("batch", "jobs"), "default", job(spec))
        .await;
    stage
}

fn status(stage: &Stage) -> Value {
    stage.get(found("batch", "jobs"), "default/j")["status"].clone()
}

fn has(stage: &Stage, condition: &str, reason: &str) -> bool {
    let status = status(stage);
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == condition && c["status"] == "True" && c["reason"] == reason)
}

fn pods(stage: &Stage) -> Vec<Value> {
    stage.objects(found("", "pods"))
}

/// The pod of this index that neither ended nor is going.
fn active(stage: &Stage, index: &str) -> Option<Value> {
    pods(stage).into_iter().find(|pod| {
        let over = matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        );
        pod["metadata"]["annotations"][INDEX] == index
            && !over
            && pod["metadata"]["deletionTimestamp"].is_null()
    })
}

fn waited(stage: &Stage, index: &str) -> Value {
    let mut pod = None;
    stage.wait(&format!("a pod of index {index}"), |stage| {
        pod = active(stage, index);
        pod.is_some()
    });
    pod.unwrap()
}

async fn end(stage: &Stage, pod: &Value, code: i64) {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let ended = json!({"name": "c", "state": {"terminated": {"exitCode": code}}});
    let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": stage.clock.now().to_string()});
    let status = json!({"phase": phase, "containerStatuses": [ended], "conditions": [ready]});
    let name = pod["metadata"]["name"].as_str().unwrap();
    stage
        .set_status(found("", "pods"), "default", name, status)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_index_fails_by_its_own_limit_and_the_job_at_its_end() {
    let stage = staged(
        "job-indexes",
        &json!({
            "completionMode": "Indexed",
            "completions": 3,
            "parallelism": 3,
            "backoffLimitPerIndex": 1,
            "podFailurePolicy": {"rules": [
                {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}},
            ]},
        }),
    )
    .await;
    end(&stage, &waited(&stage, "1"), 42).await;
    stage.wait("a lost index", |stage| {
        status(stage)["failedIndexes"] == "1"
    });
    let first = waited(&stage, "0");
    assert_eq!(first["metadata"]["annotations"][FAILURES], "0");
    end(&stage, &first, 1).await;
    // The index rests ten seconds, the others do not.
    end(&stage, &waited(&stage, "2"), 0).await;
    stage.wait("a success", |stage| {
        status(stage)["completedIndexes"] == "2"
    });
    assert!(active(&stage, "0").is_none());
    assert!(!has(&stage, "FailureTarget", "FailedIndexes"));
    stage.clock.advance(Duration::from_secs(11));
    let second = waited(&stage, "0");
    assert_eq!(second["metadata"]["annotations"][FAILURES], "1");
    end(&stage, &second, 1).await;
    stage.wait("the end", |stage| has(stage, "Failed", "FailedIndexes"));
    let status = status(&stage);
    assert_eq!(
        (&status["failedIndexes"], &status["completedIndexes"]),
        (&json!("0,1"), &json!("2"))
    );
    assert_eq!(
        (&status["failed"], &status["succeeded"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    stage.wait("free pods", |stage| {
        pods(stage)
            .iter()
            .all(|pod| pod["metadata"]["finalizers"].is_null())
    });
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enough_successes_end_the_job_and_stop_the_rest() {
    let stage = staged(
        "job-success",
        &json!({
            "completionMode": "Indexed",
            "completions": 4,
            "parallelism": 4,
            "successPolicy": {"rules": [{"succeededIndexes": "0-2", "succeededCount": 2}]},
        }),
    )
    .await;
    let last = waited(&stage, "3");
    for index in ["0", "2"] {
        end(&stage, &waited(&stage, index), 0).await;
    }
    stage.wait("the decision", |stage| {
        has(stage, "SuccessCriteriaMet", "SuccessPolicy")
    });
    // The end is told when the last pod has ended.
    for pod in pods(&stage) {
        if pod["status"]["phase"] != "Succeeded" {
            end(&stage, &pod, 143).await;
        }
    }
    stage.wait("the end", |stage| has(stage, "Complete", "SuccessPolicy"));
    assert_eq!(status(&stage)["completedIndexes"], "0,2");
    assert_eq!(status(&stage)["succeeded"], 2);
    assert!(
        last["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("j-3-")
    );
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_its_way_out_is_replaced_as_the_policy_says() {
    for policy in ["Failed", "TerminatingOrFailed"] {
        let stage = staged("job-replace", &json!({"podReplacementPolicy": policy})).await;
        stage.wait("a pod", |stage| pods(stage).len() == 1);
        let pod = pods(&stage).remove(0);
        let name = pod["metadata"]["name"].as_str().unwrap();
        stage.delete(found("", "pods"), "default", name).await;
        stage.wait("its mention", |stage| status(stage)["terminating"] == 1);
        if policy == "Failed" {
            assert_eq!(pods(&stage).len(), 1);
            assert_eq!(status(&stage)["failed"], Value::Null);
            end(&stage, &pod, 143).await;
        }
        stage.wait("its count", |stage| status(stage)["failed"] == 1);
        stage.clock.advance(Duration::from_secs(11));
        stage.wait("another pod", |stage| status(stage)["active"] == 1);
        stage.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn surplus_pods_are_no_failures() {
    let stage = staged(
        "job-surplus",
        &json!({"parallelism": 3, "completions": 3, "backoffLimit": 0}),
    )
    .await;
    stage.wait("pods", |stage| status(stage)["active"] == 3);
    let target = Target::object(found("batch", "jobs"), "default", "j");
    let fewer = |current: &Value| {
        let mut new = current.clone();
        new["spec"]["parallelism"] = 1.into();
        Ok(new)
    };
    stage.client.change(target, &fewer).await.unwrap();
    stage.wait("fewer pods", |stage| status(stage)["active"] == 1);
    for pod in pods(&stage) {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            end(&stage, &pod, 143).await;
        }
    }
    stage.clock.advance(Duration::from_secs(11));
    for _ in 0..3 {
        stage.wait("a pod", |stage| status(stage)["active"] == 1);
        let over = |pod: &&Value| {
            pod["status"]["phase"] == "Pending" && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let pod = pods(&stage).iter().find(over).cloned().unwrap();
        let before = status(&stage)["succeeded"].as_i64().unwrap_or(0);
        end(&stage, &pod, 0).await;
        stage.wait("its count", |stage| {
            status(stage)["succeeded"] == before + 1
        });
    }
    stage.wait("the end", |stage| {
        has(stage, "Complete", "CompletionsReached")
    });
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gets_one_pod_however_fast_pods_end() {
    let spec = json!({"completionMode": "Indexed", "completions": 24, "parallelism": 8});
    let stage = staged("job-fast", &spec).await;
    for _ in 0..2000 {
        for pod in pods(&stage) {
            if pod["status"]["phase"] == "Pending" {
                end(&stage, &pod, 0).await;
            }
        }
        if has(&stage, "Complete", "CompletionsReached") {
            break;
        }
        tokio::task::yield_now().await;
    }
    stage.wait("the end", |stage| {
        has(stage, "Complete", "CompletionsReached")
    });
    assert_eq!(pods(&stage).len(), 24);
    assert_eq!(status(&stage)["succeeded"], 24);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_goes_leaves_no_pod_held() {
    for policy in [Propagation::Background, Propagation::Orphan] {
        let mut stage = staged("job-gone", &json!({"parallelism": 2, "completions": 2})).await;
        stage.run("generic-garbage-collector", GarbageCollector::new);
        stage.wait("pods", |stage| status(stage)["active"] == 2);
        let options = DeleteOptions::propagating(policy);
        let jobs = found("batch", "jobs");
        let gone = stage.client.delete_of(jobs, "default", "j", &options);
        gone.await.unwrap();
        stage.wait("free pods", |stage| {
            stage.names(jobs).is_empty()
                && pods(stage)
                    .iter()
                    .all(|pod| pod["metadata"]["finalizers"].is_null())
        });
        for pod in pods(&stage) {
            let orphaned = pod["metadata"]["ownerReferences"].is_null();
            assert_eq!(orphaned, policy == Propagation::Orphan, "{pod}");
        }
        stage.stop().await;
    }
}
