//! Counts the pods that have ended, each once.

use super::{
    BTreeMap, BTreeSet, Failure, Job, JobController, Pod, Status, TRACKING, Value, View, json,
    plan, policy, served, view::index_of,
};

impl JobController {
    /// What the Job's policy says of its failed pods, by UID.
    pub(super) fn failures(&self, job: &Job, pods: &[Pod]) -> BTreeMap<String, Failure> {
        let policy = &job.spec.pod_failure_policy;
        if !policy.is_object() {
            return BTreeMap::new();
        }
        let cache = self.client.cache_of(served("", "pods"));
        pods.iter()
            .filter(|pod| pod.metadata.has_finalizer(TRACKING) && pod.status.phase == "Failed")
            .filter_map(|pod| {
                let meta = &pod.metadata;
                let entry = cache.get(&format!("{}/{}", meta.namespace, meta.name))?;
                Some((meta.uid.clone(), policy::failure(policy, &entry.value())))
            })
            .collect()
    }

    /// Counts what has ended; the message of a rule that fails the Job.
    pub(super) async fn count_ended(&self, view: &mut View) -> Result<Option<String>, Status> {
        let mut succeeded = noted(&view.status, "succeeded");
        let mut failed = noted(&view.status, "failed");
        let mut done = view.done();
        let mut fails = None;
        let mut carrying = BTreeMap::new();
        for pod in view.uncounted() {
            carrying.insert(pod.metadata.name.clone(), pod.metadata.clone());
            let uid = pod.metadata.uid.clone();
            if pod.status.phase == "Succeeded" {
                let first = !view.wanted().indexed
                    || (view.has_place(pod)
                        && index_of(pod).is_some_and(|index| done.insert(index)));
                if first {
                    succeeded.insert(uid);
                }
                continue;
            }
            match view.failure(pod) {
                Failure::Ignored => continue,
                Failure::FailsJob(why) => fails = Some(why.clone()),
                Failure::Counts | Failure::FailsIndex => {}
            }
            if view.has_place(pod) {
                failed.insert(uid);
            }
        }
        if carrying.is_empty() && succeeded.is_empty() && failed.is_empty() {
            return Ok(fails);
        }
        if view.wanted().indexed {
            view.status["failedIndexes"] = plan::ranges(&view.lost()).into();
            view.status["completedIndexes"] = plan::ranges(&done).into();
        }
        view.status["uncountedTerminatedPods"] = json!({"succeeded": succeeded, "failed": failed});
        self.write(view).await?;
        for pod in carrying.values() {
            self.let_go(pod).await?;
        }
        let add = |status: &mut Value, field: &str, more: usize| {
            let sum = status[field].as_i64().unwrap_or(0) + i64::try_from(more).unwrap_or(0);
            status[field] = sum.into();
        };
        add(&mut view.status, "succeeded", succeeded.len());
        add(&mut view.status, "failed", failed.len());
        view.status["uncountedTerminatedPods"] = json!({});
        // The pods are not read anew here: one that has ended since is not
        // counted yet, and its index must not look free.
        for pod in &mut view.pods {
            if carrying.contains_key(&pod.metadata.name) {
                pod.metadata.finalizers.retain(|own| own != TRACKING);
            }
        }
        Ok(fails)
    }
}

/// UIDs of the pods that were noted, but not counted yet.
fn noted(status: &Value, field: &str) -> BTreeSet<String> {
    let list = status["uncountedTerminatedPods"][field].as_array();
    list.into_iter()
        .flatten()
        .filter_map(|uid| uid.as_str().map(str::to_owned))
        .collect()
}
