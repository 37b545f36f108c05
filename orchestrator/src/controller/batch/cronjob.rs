//! Makes Jobs at the times of CronJobs, and clears those away that have ended.
//!
//! The name of a Job follows from its scheduled time, so whatever stops
//! between making it and noting it, the time gets no second Job.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use serde::Deserialize;
use serde_json::{Value, json};

use super::job;
use crate::{
    cache::Entry,
    controller::runtime::{
        Again, Clock, Context, Controller, Recorder, Source,
        object::{Meta, controlled_by, controller_key, decode, is_ending, served},
        stamp,
    },
    registry::{DeleteOptions, Propagation, Target, client::Client},
    resource::Resource,
    schedule::{self, Schedule},
    status::Status,
};

pub mod due;

use due::{Past, Policy, Step, Wanted, job_name};

const NAME: &str = "cronjob-controller";
/// Annotation of a Job with the time that it was meant for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// The controller.
#[derive(Debug)]
pub struct CronJobController {
    client: Client,
    clock: Clock,
    recorder: Recorder,
}

#[derive(Clone, Debug, Deserialize)]
struct CronJob {
    metadata: Meta,
    spec: Spec,
    #[serde(default)]
    status: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    schedule: String,
    time_zone: Option<String>,
    suspend: bool,
    concurrency_policy: String,
    starting_deadline_seconds: Option<i64>,
    successful_jobs_history_limit: Option<i64>,
    failed_jobs_history_limit: Option<i64>,
    job_template: Value,
}

/// A Job that the CronJob controls.
#[derive(Clone, Debug, Deserialize)]
struct Child {
    metadata: Meta,
    #[serde(default)]
    status: Value,
}

impl Child {
    /// The condition that ended it.
    fn end(&self) -> Option<&'static str> {
        let mut ends = ["Complete", "Failed"].into_iter();
        ends.find(|end| job::condition(&self.status, end).is_some())
    }

    fn time(&self, field: &str) -> Option<Timestamp> {
        self.status[field].as_str()?.parse().ok()
    }
}

/// A CronJob, its Jobs and the status to be.
struct View {
    cron_job: CronJob,
    children: Vec<Child>,
    status: Value,
    now: Timestamp,
}

impl View {
    fn active(&self) -> Vec<Value> {
        self.status["active"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    fn set_active(&mut self, active: Vec<Value>) {
        if active.is_empty() {
            if let Some(status) = self.status.as_object_mut() {
                status.remove("active");
            }
        } else {
            self.status["active"] = active.into();
        }
    }

    fn past(&self) -> Past {
        let last = &self.status["lastScheduleTime"];
        Past {
            born: self.cron_job.metadata.born(),
            last: last.as_str().and_then(|time| time.parse().ok()),
            active: self.active().len(),
        }
    }
}

/// The resource.
pub fn resource() -> &'static Resource {
    served("batch", "cronjobs")
}

/// How `status.active` names a Job.
fn reference(job: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "namespace": job["metadata"]["namespace"],
        "uid": job["metadata"]["uid"],
        "resourceVersion": job["metadata"]["resourceVersion"],
    })
}

/// The Job of a scheduled time.
fn job_of(cron_job: &CronJob, time: Timestamp, zone: &TimeZone) -> Value {
    let template = &cron_job.spec.job_template;
    let mut metadata = json!({
        "name": job_name(&cron_job.metadata.name, time),
        "ownerReferences": [controlled_by(resource(), &cron_job.metadata)],
    });
    for field in ["labels", "annotations"] {
        if template["metadata"][field].is_object() {
            metadata[field] = template["metadata"][field].clone();
        }
    }
    let local = time.to_zoned(zone.clone());
    let format = if local.offset().is_zero() {
        "%Y-%m-%dT%H:%M:%SZ"
    } else {
        "%Y-%m-%dT%H:%M:%S%:z"
    };
    metadata["annotations"][SCHEDULED] = local.strftime(format).to_string().into();
    json!({"metadata": metadata, "spec": template["spec"]})
}

impl CronJobController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            recorder: context.recorder.clone(),
        }
    }

    fn children(&self, cron_job: &CronJob) -> Result<Vec<Child>, Status> {
        let uid = &*cron_job.metadata.uid;
        let owned = self.client.cache_of(job::resource()).owned_by(uid);
        let controlled = |entry: &&Arc<Entry>| entry.controller_uid() == Some(uid);
        owned.iter().filter(controlled).map(|e| decode(e)).collect()
    }

    fn warn(&self, view: &View, reason: &'static str, message: String) {
        let about = &view.cron_job.metadata;
        self.recorder
            .warning(NAME, resource(), about, reason, message);
    }

    fn tell(&self, view: &View, reason: &'static str, message: String) {
        let about = &view.cron_job.metadata;
        self.recorder
            .normal(NAME, resource(), about, reason, message);
    }

    /// Notes which Jobs have ended or gone.
    fn settle(&self, view: &mut View) {
        let mut active = view.active();
        for child in &view.children {
            let (name, uid) = (&child.metadata.name, child.metadata.uid.as_str());
            let listed = active.iter().any(|job| job["uid"] == uid);
            match child.end() {
                None if !listed => {
                    let text =
                        format!("Saw a job that the controller did not create or forgot: {name}");
                    self.warn(view, "UnexpectedJob", text);
                }
                Some(end) if listed => {
                    active.retain(|job| job["uid"] != uid);
                    let text = format!("Saw completed job: {name}, condition: {end}");
                    self.tell(view, "SawCompletedJob", text);
                }
                _ => {}
            }
        }
        let there = |job: &Value| {
            view.children
                .iter()
                .any(|child| job["uid"] == child.metadata.uid.as_str())
        };
        for gone in active.iter().filter(|job| !there(job)) {
            let name = gone["name"].as_str().unwrap_or_default();
            self.warn(
                view,
                "MissingJob",
                format!("Active job went missing: {name}"),
            );
        }
        active.retain(there);
        let good = view
            .children
            .iter()
            .filter(|child| child.end() == Some("Complete"));
        let last = good.filter_map(|child| child.time("completionTime")).max();
        let before = view.status["lastSuccessfulTime"]
            .as_str()
            .and_then(|time| time.parse().ok());
        if let Some(last) = last.filter(|last| before.is_none_or(|before| *last > before)) {
            view.status["lastSuccessfulTime"] = stamp(last).into();
        }
        view.set_active(active);
    }

    /// Deletes ended Jobs beyond the history that is kept.
    async fn forget(&self, view: &View) -> Result<(), Status> {
        let spec = &view.cron_job.spec;
        for (end, limit) in [
            ("Complete", spec.successful_jobs_history_limit),
            ("Failed", spec.failed_jobs_history_limit),
        ] {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
                continue;
            };
            let ended = view
                .children
                .iter()
                .filter(|child| child.end() == Some(end));
            let mut ended: Vec<&Child> = ended.filter(|child| !child.metadata.deleting()).collect();
            ended.sort_by_key(|child| (child.time("startTime"), &child.metadata.name));
            let surplus = ended.len().saturating_sub(limit);
            for child in ended.into_iter().take(surplus) {
                self.delete(view, &child.metadata.name, &child.metadata.uid)
                    .await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, view: &View, name: &str, uid: &str) -> Result<(), Status> {
        let namespace = &view.cron_job.metadata.namespace;
        let options = DeleteOptions::propagating(Propagation::Background).only(uid);
        let gone = self
            .client
            .delete_of(job::resource(), namespace, name, &options)
            .await;
        match gone {
            Err(status) if !status.is("NotFound") => {
                self.warn(
                    view,
                    "FailedDelete",
                    format!("Deleted job: {}", status.message),
                );
                Err(status)
            }
            _ => {
                self.tell(view, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
        }
    }

    /// What the CronJob asks for, unless it cannot be understood.
    fn wanted(&self, view: &View) -> Option<Wanted> {
        let spec = &view.cron_job.spec;
        let zone = match &spec.time_zone {
            None => Some(TimeZone::UTC),
            Some(name) => schedule::zone(name),
        };
        let Some(zone) = zone else {
            let name = spec.time_zone.as_deref().unwrap_or_default();
            let text = format!("invalid timeZone: {name:?}: unknown time zone {name}");
            self.warn(view, "UnknownTimeZone", text);
            return None;
        };
        match Schedule::parse(&spec.schedule) {
            Ok(schedule) => Some(Wanted {
                schedule,
                zone,
                deadline: spec.starting_deadline_seconds,
                policy: Policy::of(&spec.concurrency_policy),
            }),
            Err(error) => {
                let text = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                self.warn(view, "UnparseableSchedule", text);
                None
            }
        }
    }

    /// Starts what is due.
    async fn advance(&self, view: &mut View) -> Result<Again, Status> {
        let Some(wanted) = self.wanted(view) else {
            return Ok(None);
        };
        let decision = due::decide(&wanted, view.past(), view.now);
        if decision.many_missed {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn(view, "TooManyMissedTimes", text.to_owned());
        }
        match decision.step {
            Step::Wait | Step::Made => {}
            Step::Missed(time) => {
                let time = time.strftime("%a, %d %b %Y %H:%M:%S +0000");
                let text = format!("Missed scheduled time to start a job: {time}");
                self.warn(view, "MissSchedule", text);
            }
            Step::Forbidden => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(view, "JobAlreadyActive", text.to_owned());
            }
            Step::Start { time, replace } => {
                if replace {
                    self.clear(view).await?;
                }
                self.start(view, time, &wanted.zone).await?;
            }
        }
        Ok(decision.again)
    }

    /// Deletes the Jobs that run.
    async fn clear(&self, view: &mut View) -> Result<(), Status> {
        for job in view.active() {
            let text = |field: &str| job[field].as_str().unwrap_or_default();
            self.delete(view, text("name"), text("uid")).await?;
        }
        view.set_active(Vec::new());
        Ok(())
    }

    async fn start(&self, view: &mut View, time: Timestamp, zone: &TimeZone) -> Result<(), Status> {
        let namespace = view.cron_job.metadata.namespace.clone();
        let job = job_of(&view.cron_job, time, zone);
        let name = job_name(&view.cron_job.metadata.name, time);
        let made = match self
            .client
            .create_value(job::resource(), &namespace, job)
            .await
        {
            Ok(made) => {
                self.tell(view, "SuccessfulCreate", format!("Created job {name}"));
                made.value()
            }
            Err(status) if is_ending(&status) => return Ok(()),
            Err(status) if status.is("AlreadyExists") => {
                let cache = self.client.cache_of(job::resource());
                let entry = cache.get(&format!("{namespace}/{name}"));
                let own = |entry: &Arc<Entry>| {
                    entry.controller_uid() == Some(&*view.cron_job.metadata.uid)
                };
                let Some(entry) = entry.filter(own) else {
                    self.warn(
                        view,
                        "FailedCreate",
                        format!("Error creating job: {}", status.message),
                    );
                    return Err(status);
                };
                entry.value()
            }
            Err(status) => {
                self.warn(
                    view,
                    "FailedCreate",
                    format!("Error creating job: {}", status.message),
                );
                return Err(status);
            }
        };
        let mut active = view.active();
        if !active
            .iter()
            .any(|job| job["uid"] == made["metadata"]["uid"])
        {
            active.push(reference(&made));
        }
        view.set_active(active);
        view.status["lastScheduleTime"] = stamp(time).into();
        Ok(())
    }

    async fn write(&self, view: &View) -> Result<(), Status> {
        if view.status == view.cron_job.status {
            return Ok(());
        }
        let meta = &view.cron_job.metadata;
        let target = Target::status(resource(), &meta.namespace, &meta.name);
        let written = self.client.replace_status(target, &meta.uid, &view.status);
        written.await
    }
}

impl Controller for CronJobController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(resource()),
            Source::new(job::resource(), |change| {
                controller_key(change.entry, resource())
                    .into_iter()
                    .collect()
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(resource()).get(key) else {
            return Ok(None);
        };
        let cron_job: CronJob = decode(&entry)?;
        let mut view = View {
            children: self.children(&cron_job)?,
            status: cron_job.status.clone(),
            cron_job,
            now: self.clock.now(),
        };
        if !view.status.is_object() {
            view.status = json!({});
        }
        self.settle(&mut view);
        let still = view.cron_job.metadata.deleting() || view.cron_job.spec.suspend;
        let advanced = if still {
            Ok(None)
        } else {
            self.advance(&mut view).await
        };
        // What was made is noted even if something else was refused.
        self.write(&view).await?;
        self.forget(&view).await?;
        advanced
    }
}
