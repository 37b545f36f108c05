//! What the StatefulSet controller does to pods, and what it tells of that.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Act, HASH, NAME, Pod, StatefulSet, StatefulSetController, Status, is_ending, pods, resource,
    served,
};

/// What an event is about.
#[derive(Clone, Copy, Debug)]
enum Did {
    Create,
    Delete,
}

impl StatefulSetController {
    async fn create(
        &self,
        set: &StatefulSet,
        ordinal: i64,
        template: &Value,
        hash: &str,
    ) -> Result<(), Status> {
        self.ensure_claims(set, ordinal).await?;
        let pod = set.pod(ordinal, template, hash);
        let made = self
            .client
            .create_value(served("", "pods"), &set.metadata.namespace, pod);
        match made.await {
            Err(status) if is_ending(&status) => Err(status),
            made => self.told(set, Did::Create, ordinal, made.map(drop)),
        }
    }

    async fn delete(
        &self,
        set: &StatefulSet,
        ordinal: i64,
        pod: Option<&Pod>,
    ) -> Result<(), Status> {
        let gone = pods::delete(&self.client, pod.into_iter()).await;
        self.told(set, Did::Delete, ordinal, gone)
    }

    /// Tells how an act on a pod has ended.
    fn told(
        &self,
        set: &StatefulSet,
        did: Did,
        ordinal: i64,
        result: Result<(), Status>,
    ) -> Result<(), Status> {
        let (verb, good, bad) = match did {
            Did::Create => ("create", "SuccessfulCreate", "FailedCreate"),
            Did::Delete => ("delete", "SuccessfulDelete", "FailedDelete"),
        };
        let name = &set.metadata.name;
        let what = format!("{verb} Pod {name}-{ordinal} in StatefulSet {name}");
        self.tell(set, (good, bad), &result, |result| match result {
            Ok(()) => format!("{what} successful"),
            Err(status) => format!("{what} failed error: {status}"),
        });
        result
    }

    /// Tells of a success or a failure.
    pub(super) fn tell(
        &self,
        set: &StatefulSet,
        (good, bad): (&'static str, &'static str),
        result: &Result<(), Status>,
        text: impl Fn(&Result<(), Status>) -> String,
    ) {
        let (about, text) = (&set.metadata, text(result));
        if result.is_ok() {
            self.recorder.normal(NAME, resource(), about, good, text);
        } else {
            self.recorder.warning(NAME, resource(), about, bad, text);
        }
    }

    /// The template of a revision that is not the present one.
    fn old_template(&self, set: &StatefulSet, revision: &str) -> Option<(Value, String)> {
        let key = format!("{}/{revision}", set.metadata.namespace);
        let entry = self
            .client
            .cache_of(served("apps", "controllerrevisions"))
            .get(&key)?;
        let mut template = entry.value()["data"]["spec"]["template"].take();
        template.as_object_mut()?.remove("$patch");
        Some((template, entry.label(HASH)?.to_owned()))
    }

    /// Does what the order asks for.
    pub(super) async fn act(
        &self,
        set: &StatefulSet,
        pods: &BTreeMap<i64, Pod>,
        acts: &[Act],
        hash: &str,
    ) -> Result<(), Status> {
        let current = set.status["currentRevision"].as_str().unwrap_or_default();
        let partition = set.order().partition.unwrap_or(0);
        for act in acts {
            match act {
                Act::Create(ordinal) => {
                    // Below the partition the old revision stays in force.
                    let old = (*ordinal < partition)
                        .then(|| self.old_template(set, current))
                        .flatten();
                    let (template, hash) =
                        old.unwrap_or_else(|| (set.spec.template.clone(), hash.to_owned()));
                    self.create(set, *ordinal, &template, &hash).await?;
                }
                Act::Delete(ordinal) => self.delete(set, *ordinal, pods.get(ordinal)).await?,
            }
        }
        Ok(())
    }
}
