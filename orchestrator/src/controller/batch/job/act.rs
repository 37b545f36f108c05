//! What the Job controller does to pods and Jobs: starts, ends, lets go.

use super::{
    Again, BURST, DeleteOptions, Duration, FAILURES, IGNORED, INDEX, Job, JobController, Keeper,
    Meta, NAME, Pod, Propagation, Status, TRACKING, Target, Timestamp, Value, View, condition,
    json, pods, resource, served, set_condition, stamp, view::Attempt,
};

impl JobController {
    pub(super) async fn write(&self, view: &mut View) -> Result<(), Status> {
        if let Some(status) = view.status.as_object_mut() {
            let told = |field: &str| matches!(field, "ready" | "terminating");
            status.retain(|field, value| {
                let nothing = value.is_null() || *value == json!("") || *value == json!(0);
                !nothing || (told(field) && value.is_number())
            });
        }
        if view.status == view.job.status {
            return Ok(());
        }
        let meta = &view.job.metadata;
        let target = Target::status(resource(), &meta.namespace, &meta.name);
        let written = self.client.replace_status(target, &meta.uid, &view.status);
        written.await?;
        view.job.status = view.status.clone();
        Ok(())
    }

    /// Gives a pod free that is counted, or counts for nothing.
    pub(super) async fn let_go(&self, pod: &Meta) -> Result<(), Status> {
        let target = Target::object(served("", "pods"), &pod.namespace, &pod.name);
        self.client
            .remove_finalizer(target, &pod.uid, TRACKING)
            .await
    }

    fn keeper<'a>(&'a self, job: &'a Job) -> Keeper<'a> {
        Keeper {
            client: &self.client,
            recorder: &self.recorder,
            reporter: NAME,
            resource: resource(),
            owner: &job.metadata,
        }
    }

    /// Deletes active pods that are surplus: their end counts for nothing.
    pub(super) async fn discard(&self, job: &Job, surplus: &[Pod]) -> Result<(), Status> {
        for pod in surplus {
            self.let_go(&pod.metadata).await?;
        }
        self.keeper(job).remove(surplus.iter()).await
    }

    pub(super) async fn start(
        &self,
        view: &View,
        number: usize,
        indexes: &[i64],
    ) -> Result<(), Status> {
        let (job, attempts) = (&view.job, view.attempts());
        let pod = |turn: usize| {
            let index = indexes.get(turn).copied();
            let mut pod = pod_of(job, index);
            if job.spec.backoff_limit_per_index.is_some() {
                remember(&mut pod, index.and_then(|index| attempts.get(&index)));
            }
            pod
        };
        self.keeper(job).make(number.min(BURST), pod).await
    }

    pub(super) async fn finish(
        &self,
        view: &mut View,
        good: bool,
        reason: &str,
        message: &str,
    ) -> Result<(), Status> {
        let now = stamp(view.now);
        let early = if good {
            "SuccessCriteriaMet"
        } else {
            "FailureTarget"
        };
        set_condition(&mut view.status, early, true, reason, message, &now);
        self.keeper(&view.job).remove(view.active()).await?;
        // The end is told when the last pod has ended, too.
        let mut left = self.pods(&view.job).await?;
        left.retain(|pod| !pod.is_over() || pod.metadata.has_finalizer(TRACKING));
        view.status["active"] = 0.into();
        view.status["ready"] = 0.into();
        view.status["terminating"] = left.iter().filter(|pod| !pod.is_over()).count().into();
        if left.is_empty() {
            let last = if good { "Complete" } else { "Failed" };
            set_condition(&mut view.status, last, true, reason, message, &now);
            if good {
                view.status["completionTime"] = now.into();
                let text = "Job completed".to_owned();
                self.recorder
                    .normal(NAME, resource(), &view.job.metadata, "Completed", text);
            } else {
                let known = [
                    "DeadlineExceeded",
                    "PodFailurePolicy",
                    "MaxFailedIndexesExceeded",
                    "FailedIndexes",
                ];
                let reason = known.into_iter().find(|known| *known == reason);
                let reason = reason.unwrap_or("BackoffLimitExceeded");
                self.recorder.warning(
                    NAME,
                    resource(),
                    &view.job.metadata,
                    reason,
                    message.to_owned(),
                );
            }
        }
        self.write(view).await
    }

    /// Deletes a finished Job when its time has come.
    pub(super) async fn outlive(&self, view: &View) -> Result<Again, Status> {
        let Some(seconds) = view.job.spec.ttl_seconds_after_finished else {
            return Ok(None);
        };
        let end = condition(&view.job.status, "Complete").or(condition(&view.job.status, "Failed"));
        let end = end.and_then(|c| c["lastTransitionTime"].as_str()?.parse::<Timestamp>().ok());
        let left = end.unwrap_or(view.now).as_second() + seconds - view.now.as_second();
        if let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) {
            return Ok(Some(Duration::from_secs(left)));
        }
        let meta = &view.job.metadata;
        let options = DeleteOptions::propagating(Propagation::Background).only(&meta.uid);
        let gone = self
            .client
            .delete_of(resource(), &meta.namespace, &meta.name, &options)
            .await;
        match gone {
            Err(status) if !status.is("NotFound") => Err(status),
            _ => Ok(None),
        }
    }
}

/// Notes on a new pod how often its index has failed before.
fn remember(pod: &mut Value, attempt: Option<&Attempt>) {
    let (failures, ignored) = attempt.map_or((0, 0), |a| (a.failures, a.ignored));
    pod["metadata"]["annotations"][FAILURES] = failures.to_string().into();
    if ignored > 0 {
        pod["metadata"]["annotations"][IGNORED] = ignored.to_string().into();
    }
}

/// A pod of a Job.
fn pod_of(job: &Job, index: Option<i64>) -> Value {
    let mut pod = pods::from_template(&job.spec.template, resource(), &job.metadata);
    let mut finalizers = pod["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    finalizers.push(TRACKING.into());
    pod["metadata"]["finalizers"] = finalizers.into();
    let name = &job.metadata.name;
    let Some(index) = index else {
        pod["metadata"]["generateName"] = pods::name_prefix(name).into();
        return pod;
    };
    pod["metadata"]["generateName"] = format!("{name}-{index}-").into();
    pod["metadata"]["annotations"][INDEX] = index.to_string().into();
    pod["metadata"]["labels"][INDEX] = index.to_string().into();
    if pod["spec"]["hostname"].is_null() {
        pod["spec"]["hostname"] = format!("{name}-{index}").into();
    }
    let path = format!("metadata.labels['{INDEX}']");
    let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    for list in ["containers", "initContainers"] {
        for container in pod["spec"]
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let mut variables = container["env"].as_array().cloned().unwrap_or_default();
            if !variables
                .iter()
                .any(|v| v["name"] == "JOB_COMPLETION_INDEX")
            {
                variables.push(variable.clone());
            }
            container["env"] = variables.into();
        }
    }
    pod
}
