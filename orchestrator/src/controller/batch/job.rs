//! Runs the pods of Jobs to their end and counts each ended pod once.
//!
//! A pod carries a finalizer until it is counted: first its UID is noted in
//! `status.uncountedTerminatedPods`, then the finalizer goes, then the count
//! takes its place. Whatever stops in between, no pod is counted twice or lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::plan::{self, Step};
use crate::{
    cache::Selector,
    controller::{
        apps::replicaset::owners_of_pod,
        pods::{self, BURST, Claimer, Keeper},
        runtime::{
            Again, Change, Clock, Context, Controller, Key, Recorder, Source,
            object::{Head, Meta, Pod, decode, served},
            stamp,
        },
    },
    registry::{DeleteOptions, Propagation, Target, client::Client},
    resource::Resource,
    status::Status,
};

mod act;
mod count;
mod orphan;
mod policy;
mod view;

use policy::Failure;
use view::View;

const NAME: &str = "job-controller";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// On a pod: failures of its index before it, those that do not count apart.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

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
    success_policy: Value,
    pod_replacement_policy: String,
    backoff_limit_per_index: Option<i64>,
    max_failed_indexes: Option<i64>,
}

/// The resource.
pub fn resource() -> &'static Resource {
    served("batch", "jobs")
}

pub(super) fn condition<'a>(status: &'a Value, r#type: &str) -> Option<&'a Value> {
    let mut conditions = status["conditions"].as_array()?.iter();
    conditions.find(|c| c["type"] == r#type && c["status"] == "True")
}

/// Whether that is news.
fn set_condition(
    status: &mut Value,
    r#type: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: &str,
) -> bool {
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
        Some(old) if old["status"] == new["status"] => return false,
        Some(old) => *old = new,
        None => list.push(new),
    }
    status["conditions"] = list.into();
    true
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

    /// Why a Job that is under way must end now: whether well, reason, message.
    fn verdict(view: &View, rule: Option<String>) -> Option<(bool, String, String)> {
        let early = condition(&view.status, "SuccessCriteriaMet")
            .or(condition(&view.status, "FailureTarget"));
        if let Some(early) = early {
            let text = |field: &str| early[field].as_str().unwrap_or_default().to_owned();
            let good = early["type"] == "SuccessCriteriaMet";
            return Some((good, text("reason"), text("message")));
        }
        if let Some(why) = rule {
            return Some((false, "PodFailurePolicy".to_owned(), why));
        }
        if view.deadline_left().is_some_and(|left| left <= 0) {
            let text = "Job was active longer than specified deadline".to_owned();
            return Some((false, "DeadlineExceeded".to_owned(), text));
        }
        None
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
        let left = view
            .deadline_left()
            .and_then(|left| u64::try_from(left).ok());
        let deadline = left.map(Duration::from_secs);
        let misplaced = view.misplaced();
        if !misplaced.is_empty() {
            self.discard(&view.job, &misplaced).await?;
            self.note(view).await?;
            return Ok(deadline);
        }
        let step = plan::next(view.wanted(), &view.progress());
        let completions = view.job.spec.completions.unwrap_or(0);
        let enough = policy::success(&view.job.spec.success_policy, &view.done(), completions);
        let mut rest = view.rests().into_values().min();
        let mut started = Ok(());
        match (step, enough) {
            (Step::Fail(why), _) => {
                let (reason, text) = why.told();
                self.finish(view, false, reason, text).await?;
                return Ok(None);
            }
            (_, Some(text)) => {
                self.finish(view, true, "SuccessPolicy", &text).await?;
                return Ok(None);
            }
            (Step::Complete, None) => {
                let text = "Reached expected number of succeeded pods";
                self.finish(view, true, "CompletionsReached", text).await?;
                return Ok(None);
            }
            (Step::Start(number, indexes), None) => match view.rest() {
                Some(wait) => rest = Some(wait),
                None => started = self.start(view, number, &indexes).await,
            },
            (Step::Stop(number), None) => {
                let mut surplus: Vec<Pod> = view.active().cloned().collect();
                pods::sort_for_deletion(&mut surplus, &pods::Crowd::new());
                surplus.truncate(number);
                self.discard(&view.job, &surplus).await?;
                if view.job.spec.suspend {
                    view.status["startTime"] = Value::Null;
                }
            }
            (Step::Wait, None) => {}
        }
        // What there is is noted even if a pod was refused.
        self.note(view).await?;
        started.map(|()| [deadline, rest].into_iter().flatten().min())
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
            let status = &mut view.status;
            if set_condition(status, "Suspended", suspended, reason, message, &now) {
                let reason = if suspended { "Suspended" } else { "Resumed" };
                let about = &view.job.metadata;
                self.recorder
                    .normal(NAME, resource(), about, reason, message.to_owned());
            }
        }
        view.pods = self.pods(&view.job).await?;
        let ready = view.active().filter(|pod| pod.is_ready()).count();
        let leaving = view.leaving().count();
        view.status["active"] = view.active().count().into();
        view.status["ready"] = ready.into();
        view.status["terminating"] = leaving.into();
        self.write(view).await
    }
}

impl Controller for JobController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let (jobs, pods) = (self.client.clone(), self.client.clone());
        vec![
            Source::new(resource(), move |change| orphan::left_by(&jobs, change)),
            Source::new(served("", "pods"), move |change| {
                let mut keys = owners_of_pod(&pods, resource(), change);
                keys.extend(orphan::key_of(&pods, change));
                keys
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        if let Some(pod) = key.strip_prefix(orphan::PREFIX) {
            return self.let_orphan_go(pod).await.map(|()| None);
        }
        let Some(entry) = self.client.cache_of(resource()).get(key) else {
            return Ok(None);
        };
        let job: Job = decode(&entry)?;
        let pods = self.pods(&job).await?;
        let failures = self.failures(&job, &pods);
        let mut view = View {
            status: job.status.clone(),
            job,
            pods,
            now: self.clock.now(),
            failures,
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
            for pod in held {
                self.let_go(&pod.metadata).await?;
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
