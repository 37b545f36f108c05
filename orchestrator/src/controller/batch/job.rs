//! Runs the pods of Jobs to their end and counts each ended pod once.
//!
//! A pod carries a finalizer until it is counted: first its UID is noted in
//! `status.uncountedTerminatedPods`, then the finalizer goes, then the count
//! takes its place. Whatever stops in between, no pod is counted twice or lost.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::plan::{self, Progress, Step, Wanted};
use crate::{
    cache::Selector,
    controller::{
        apps::replicaset::{is_ending, owners_of_pod},
        pods::{self, BURST, Claimer},
        runtime::{
            Again, Clock, Context, Controller, Recorder, Source,
            object::{Meta, Pod, decode, served},
            stamp,
        },
    },
    registry::{DeleteOptions, Propagation, Target, client::Client},
    resource::Resource,
    status::Status,
};

mod act;

const NAME: &str = "job-controller";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The controller.
#[derive(Debug)]
pub struct JobController {
    client: Client,
    clock: Clock,
    recorder: Recorder,
}

#[derive(Clone, Debug, Deserialize)]
struct Job {
    metadata: Meta,
    spec: Spec,
    #[serde(default)]
    status: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    parallelism: Option<i64>,
    completions: Option<i64>,
    backoff_limit: Option<i64>,
    active_deadline_seconds: Option<i64>,
    ttl_seconds_after_finished: Option<i64>,
    completion_mode: String,
    suspend: bool,
    selector: Value,
    template: Value,
    pod_failure_policy: Value,
}

/// The resource.
pub fn resource() -> &'static Resource {
    served("batch", "jobs")
}

pub(super) fn condition<'a>(status: &'a Value, r#type: &str) -> Option<&'a Value> {
    let mut conditions = status["conditions"].as_array()?.iter();
    conditions.find(|c| c["type"] == r#type && c["status"] == "True")
}

fn set_condition(
    status: &mut Value,
    r#type: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: &str,
) {
    let new = json!({
        "type": r#type,
        "status": if holds { "True" } else { "False" },
        "reason": reason,
        "message": message,
        "lastProbeTime": now,
        "lastTransitionTime": now,
    });
    let mut list = status["conditions"].as_array().cloned().unwrap_or_default();
    match list.iter_mut().find(|c| c["type"] == r#type) {
        Some(old) if old["status"] == new["status"] => return,
        Some(old) => *old = new,
        None => list.push(new),
    }
    status["conditions"] = list.into();
}

fn index_of(pod: &Pod) -> Option<i64> {
    pod.metadata.number(INDEX)
}

/// A Job, its pods and the status to be.
struct View {
    job: Job,
    pods: Vec<Pod>,
    status: Value,
    now: Timestamp,
}

/// What a failed pod means under the Job's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    Counts,
    Ignored,
    FailsJob(String),
}

impl View {
    fn wanted(&self) -> Wanted {
        let indexed = self.job.spec.completion_mode == "Indexed";
        Wanted {
            parallelism: self.job.spec.parallelism.unwrap_or(1),
            completions: self.job.spec.completions,
            backoff_limit: self.job.spec.backoff_limit.unwrap_or(6),
            indexed,
            suspended: self.job.spec.suspend,
        }
    }

    fn count(&self, field: &str) -> i64 {
        self.status[field].as_i64().unwrap_or(0)
    }

    fn done(&self) -> BTreeSet<i64> {
        let text = self.status["completedIndexes"].as_str().unwrap_or_default();
        plan::parse_ranges(text, self.job.spec.completions.unwrap_or(0))
    }

    /// Ended pods that still carry the finalizer.
    fn uncounted(&self) -> impl Iterator<Item = &Pod> {
        self.pods
            .iter()
            .filter(|pod| pod.metadata.has_finalizer(TRACKING))
            .filter(|pod| {
                pod.is_over() || (pod.metadata.deleting() && pod.spec.node_name.is_empty())
            })
    }

    fn active(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| pod.is_active())
    }

    fn progress(&self) -> Progress {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let leaving = self
            .pods
            .iter()
            .filter(|pod| pod.metadata.deleting() && !pod.is_over());
        let restarts: i64 = self.active().map(Pod::restarts).sum();
        let restarting = self.job.spec.template["spec"]["restartPolicy"] == "OnFailure";
        Progress {
            active: number(self.active().count()),
            leaving: number(leaving.count()),
            succeeded: self.count("succeeded"),
            failed: self.count("failed") + if restarting { restarts } else { 0 },
            done: self.done(),
            running: self.active().filter_map(index_of).collect(),
        }
    }

    /// What the pod's failure means.
    fn failure(&self, pod: &Value) -> Failure {
        let rules = self.job.spec.pod_failure_policy["rules"].as_array();
        for (index, rule) in rules.into_iter().flatten().enumerate() {
            if !matches_rule(rule, pod) {
                continue;
            }
            return match rule["action"].as_str().unwrap_or_default() {
                "Ignore" => Failure::Ignored,
                "FailJob" => {
                    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
                    let (namespace, name) = (text("namespace"), text("name"));
                    Failure::FailsJob(format!(
                        "Pod {namespace}/{name} matching FailJob rule at index {index}"
                    ))
                }
                _ => Failure::Counts,
            };
        }
        Failure::Counts
    }
}

/// Whether a rule of a pod failure policy takes a failed pod. Pure.
fn matches_rule(rule: &Value, pod: &Value) -> bool {
    let codes = &rule["onExitCodes"];
    if codes.is_object() {
        let wanted: Vec<i64> = codes["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_i64)
            .collect();
        let container = codes["containerName"].as_str();
        let lists = ["containerStatuses", "initContainerStatuses"];
        let statuses = lists
            .iter()
            .flat_map(|list| pod["status"][*list].as_array().into_iter().flatten());
        return statuses
            .filter(|status| container.is_none_or(|name| status["name"] == name))
            .filter_map(|status| status["state"]["terminated"]["exitCode"].as_i64())
            .any(|code| code != 0 && (wanted.contains(&code) == (codes["operator"] == "In")));
    }
    let wanted = rule["onPodConditions"].as_array().into_iter().flatten();
    let have = pod["status"]["conditions"].as_array();
    wanted.into_iter().any(|pattern| {
        let status = pattern["status"].as_str().unwrap_or("True");
        have.into_iter()
            .flatten()
            .any(|c| c["type"] == pattern["type"] && c["status"] == status)
    })
}

impl JobController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            recorder: context.recorder.clone(),
        }
    }

    async fn pods(&self, job: &Job) -> Result<Vec<Pod>, Status> {
        let selector = Selector::from_object(&job.spec.selector);
        let claimer = Claimer {
            client: &self.client,
            resource: resource(),
            owner: &job.metadata,
            selector: &selector,
        };
        pods::decode_all(&claimer.claim(served("", "pods")).await?)
    }

    /// Counts what has ended; the message of a rule that fails the Job.
    async fn count_ended(&self, view: &mut View) -> Result<Option<String>, Status> {
        let noted = |status: &Value, field: &str| -> BTreeSet<String> {
            let list = status["uncountedTerminatedPods"][field]
                .as_array()
                .cloned()
                .unwrap_or_default();
            list.iter()
                .filter_map(|uid| uid.as_str().map(str::to_owned))
                .collect()
        };
        let mut succeeded = noted(&view.status, "succeeded");
        let mut failed = noted(&view.status, "failed");
        let mut done = view.done();
        let mut fails = None;
        let mut carrying = BTreeSet::new();
        for pod in view.uncounted() {
            carrying.insert(pod.metadata.name.clone());
            let uid = pod.metadata.uid.clone();
            if pod.status.phase == "Succeeded" {
                let first = index_of(pod).is_none_or(|index| done.insert(index));
                if first {
                    succeeded.insert(uid);
                }
                continue;
            }
            let key = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
            let entry = self.client.cache_of(served("", "pods")).get(&key);
            match entry.map_or(Failure::Counts, |entry| view.failure(&entry.value())) {
                Failure::Counts => drop(failed.insert(uid)),
                Failure::Ignored => {}
                Failure::FailsJob(why) => {
                    failed.insert(uid);
                    fails = Some(why);
                }
            }
        }
        if carrying.is_empty() && succeeded.is_empty() && failed.is_empty() {
            return Ok(fails);
        }
        if view.wanted().indexed {
            view.status["completedIndexes"] = plan::ranges(&done).into();
        }
        view.status["uncountedTerminatedPods"] = json!({"succeeded": succeeded, "failed": failed});
        self.write(view).await?;
        for name in &carrying {
            self.let_go(&view.job.metadata.namespace, name).await?;
        }
        let add = |status: &mut Value, field: &str, more: usize| {
            let sum = status[field].as_i64().unwrap_or(0) + i64::try_from(more).unwrap_or(0);
            status[field] = sum.into();
        };
        add(&mut view.status, "succeeded", succeeded.len());
        add(&mut view.status, "failed", failed.len());
        view.status["uncountedTerminatedPods"] = json!({});
        Ok(fails)
    }

    /// Why a Job that is under way must end now: whether well, reason, message.
    fn verdict(view: &View, rule: Option<String>) -> Option<(bool, String, String)> {
        if let Some(why) = rule {
            return Some((false, "PodFailurePolicy".to_owned(), why));
        }
        if deadline_left(view).is_some_and(|left| left <= 0) {
            let text = "Job was active longer than specified deadline".to_owned();
            return Some((false, "DeadlineExceeded".to_owned(), text));
        }
        let early = condition(&view.status, "SuccessCriteriaMet")
            .or(condition(&view.status, "FailureTarget"))?;
        let text = |field: &str| early[field].as_str().unwrap_or_default().to_owned();
        Some((
            early["type"] == "SuccessCriteriaMet",
            text("reason"),
            text("message"),
        ))
    }

    /// A Job that is under way.
    async fn advance(&self, view: &mut View, rule: Option<String>) -> Result<Again, Status> {
        if view.status["startTime"].is_null() && !view.job.spec.suspend {
            view.status["startTime"] = stamp(view.now).into();
        }
        if let Some((good, reason, message)) = Self::verdict(view, rule) {
            return self
                .finish(view, good, &reason, &message)
                .await
                .map(|()| None);
        }
        let left = deadline_left(view).and_then(|left| u64::try_from(left).ok());
        let mut again = left.map(Duration::from_secs);
        match plan::next(view.wanted(), &view.progress()) {
            Step::Complete => {
                let text = "Reached expected number of succeeded pods";
                self.finish(view, true, "CompletionsReached", text).await?;
                return Ok(None);
            }
            Step::TooManyFailures => {
                let text = "Job has reached the specified backoff limit";
                self.finish(view, false, "BackoffLimitExceeded", text)
                    .await?;
                return Ok(None);
            }
            Step::Start(number, indexes) => match Self::rest(view) {
                Some(wait) => again = Some(again.map_or(wait, |a| a.min(wait))),
                None => self.start(view, number, indexes).await?,
            },
            Step::Stop(number) => {
                let mut surplus: Vec<Pod> = view.active().cloned().collect();
                pods::sort_for_deletion(&mut surplus, &pods::Crowd::new());
                pods::delete(&self.client, surplus.iter().take(number)).await?;
                if view.job.spec.suspend {
                    view.status["startTime"] = Value::Null;
                }
            }
            Step::Wait => {}
        }
        self.note(view).await?;
        Ok(again)
    }

    /// Writes how many pods there are now.
    async fn note(&self, view: &mut View) -> Result<(), Status> {
        let suspended = view.job.spec.suspend;
        let (reason, message) = if suspended {
            ("JobSuspended", "Job suspended")
        } else {
            ("JobResumed", "Job resumed")
        };
        if suspended || condition(&view.status, "Suspended").is_some() {
            let now = stamp(view.now);
            set_condition(
                &mut view.status,
                "Suspended",
                suspended,
                reason,
                message,
                &now,
            );
        }
        view.pods = self.pods(&view.job).await?;
        let ready = view.active().filter(|pod| pod.is_ready()).count();
        let leaving = view
            .pods
            .iter()
            .filter(|pod| pod.metadata.deleting() && !pod.is_over());
        let leaving = leaving.count();
        view.status["active"] = view.active().count().into();
        view.status["ready"] = ready.into();
        view.status["terminating"] = leaving.into();
        self.write(view).await
    }

    /// How long new pods wait after failures.
    fn rest(view: &View) -> Again {
        let ended = |phase: &'static str| {
            let pods = view
                .pods
                .iter()
                .filter(move |pod| pod.status.phase == phase);
            pods.map(|pod| {
                let ready = pod
                    .condition("Ready")
                    .and_then(|c| c.last_transition_time.as_ref());
                ready.map_or(pod.metadata.born(), |time| time.0)
            })
        };
        let good = ended("Succeeded").max();
        let bad: Vec<Timestamp> = ended("Failed")
            .filter(|t| good.is_none_or(|g| *t > g))
            .collect();
        let last = bad.iter().max().copied()?;
        plan::backoff(i64::try_from(bad.len()).unwrap_or(i64::MAX), last, view.now)
    }
}

/// Seconds until the Job's deadline, if it has one that runs.
fn deadline_left(view: &View) -> Option<i64> {
    let seconds = view.job.spec.active_deadline_seconds?;
    let started: Timestamp = view.status["startTime"].as_str()?.parse().ok()?;
    let left = started.as_second() + seconds - view.now.as_second();
    (!view.job.spec.suspend).then_some(left)
}

impl Controller for JobController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        vec![
            Source::own(resource()),
            Source::new(served("", "pods"), move |change| {
                owners_of_pod(&client, resource(), change)
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(resource()).get(key) else {
            return Ok(None);
        };
        let job: Job = decode(&entry)?;
        let pods = self.pods(&job).await?;
        let mut view = View {
            status: job.status.clone(),
            job,
            pods,
            now: self.clock.now(),
        };
        if !view.status.is_object() {
            view.status = json!({});
        }
        if job_is_over(&view) || view.job.metadata.deleting() {
            // Nothing is counted any more; nothing may hold the pods.
            let held = view
                .pods
                .iter()
                .filter(|pod| pod.metadata.has_finalizer(TRACKING));
            let names: Vec<String> = held.map(|pod| pod.metadata.name.clone()).collect();
            for name in names {
                self.let_go(&view.job.metadata.namespace, &name).await?;
            }
            return if view.job.metadata.deleting() {
                Ok(None)
            } else {
                self.outlive(&view).await
            };
        }
        let rule = self.count_ended(&mut view).await?;
        self.advance(&mut view, rule).await
    }
}

fn job_is_over(view: &View) -> bool {
    condition(&view.job.status, "Complete").is_some()
        || condition(&view.job.status, "Failed").is_some()
}
