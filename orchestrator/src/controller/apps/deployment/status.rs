//! What a Deployment reports: counts, availability and progress.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Deployment, DeploymentController, View, resource};
use crate::{controller::runtime::stamp, registry::Target, status::Status};

const AVAILABLE_REASON: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// Of the condition and the event that a ReplicaSet could not be made.
pub(super) const REFUSED: &str = "ReplicaSetCreateError";

/// Pods by state, over all ReplicaSets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    replicas: i64,
    updated: i64,
    ready: i64,
    available: i64,
    unavailable: i64,
}

impl Counts {
    fn of(view: &View) -> Self {
        let sum = |field: fn(&super::ReplicaSet) -> i64| view.sets.iter().map(field).sum::<i64>();
        let available = sum(|set| set.status.available_replicas);
        Self {
            replicas: sum(|set| set.status.replicas),
            updated: view.new_set().map_or(0, |set| set.status.replicas),
            ready: sum(|set| set.status.ready_replicas),
            available,
            unavailable: (view.total() - available).max(0),
        }
    }

    fn reported(status: &Value) -> Self {
        let count = |field: &str| status[field].as_i64().unwrap_or(0);
        Self {
            replicas: count("replicas"),
            updated: count("updatedReplicas"),
            ready: count("readyReplicas"),
            available: count("availableReplicas"),
            unavailable: count("unavailableReplicas"),
        }
    }

    fn better_than(&self, old: &Self) -> bool {
        self.updated > old.updated
            || self.replicas - self.updated < old.replicas - old.updated
            || self.ready > old.ready
            || self.available > old.available
    }

    fn complete(&self, replicas: i64) -> bool {
        self.updated == replicas && self.replicas == replicas && self.available == replicas
    }
}

/// Whether the rollout has nothing left to do.
pub(super) fn is_complete(view: &View) -> bool {
    Counts::of(view).complete(view.deployment.spec.replicas)
}

/// One condition to be set.
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
    /// Whether it counts as news although status and reason are as before.
    renew: bool,
}

/// The condition `Progressing`; `None` leaves what is there.
fn progress(view: &View, counts: &Counts, now: Timestamp) -> Option<Verdict> {
    let deployment = &view.deployment;
    let old = condition(&deployment.status, "Progressing");
    let reason = old.map_or("", |c| c["reason"].as_str().unwrap_or_default());
    let verdict = |status, reason, message: &str| Verdict {
        status,
        reason,
        message: message.to_owned(),
        renew: false,
    };
    if deployment.spec.paused {
        let paused = verdict("Unknown", "DeploymentPaused", "Deployment is paused");
        return (reason != "DeploymentPaused").then_some(paused);
    }
    let subject = view.new_set().map_or_else(
        || format!("Deployment {:?}", deployment.metadata.name),
        |set| format!("ReplicaSet {:?}", set.metadata.name),
    );
    let before = Counts::reported(&deployment.status);
    if counts.complete(deployment.spec.replicas) {
        let text = format!("{subject} has successfully progressed.");
        return Some(verdict("True", AVAILABLE_REASON, &text));
    }
    if reason == "DeploymentPaused" {
        return Some(verdict(
            "Unknown",
            "DeploymentResumed",
            "Deployment is resumed",
        ));
    }
    let settled = reason == AVAILABLE_REASON && counts.replicas == counts.updated;
    if settled && !counts.better_than(&before) && !is_news(deployment) {
        return None;
    }
    if counts.better_than(&before) || (reason == AVAILABLE_REASON && is_news(deployment)) {
        let text = format!("{subject} is progressing.");
        return Some(Verdict {
            renew: true,
            ..verdict("True", "ReplicaSetUpdated", &text)
        });
    }
    // What was refused before has been made by now.
    let made = |_: &&Value| reason != REFUSED || view.new_set().is_none();
    let Some(old) = old.filter(made) else {
        let text = view.new_set().map_or_else(
            || "Deployment has begun".to_owned(),
            |set| format!("Created new replica set {:?}", set.metadata.name),
        );
        return Some(verdict("True", "NewReplicaSetCreated", &text));
    };
    if !settled && reason != TIMED_OUT && time_left(deployment, old, now) == Some(0) {
        let text = format!("{subject} has timed out progressing.");
        return Some(verdict("False", TIMED_OUT, &text));
    }
    None
}

/// Whether the desired state has changed since the last report.
fn is_news(deployment: &Deployment) -> bool {
    deployment.status["observedGeneration"]
        .as_i64()
        .unwrap_or(0)
        < deployment.metadata.generation
}

/// Seconds until the deadline for progress, 0 if it has passed.
fn time_left(deployment: &Deployment, progressing: &Value, now: Timestamp) -> Option<i64> {
    // Upstream's "no deadline".
    let deadline = deployment
        .spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds < i64::from(i32::MAX))?;
    let since: Timestamp = progressing["lastUpdateTime"].as_str()?.parse().ok()?;
    Some((since.as_second() + deadline - now.as_second()).max(0))
}

fn condition<'a>(status: &'a Value, r#type: &str) -> Option<&'a Value> {
    let mut conditions = status["conditions"].as_array()?.iter();
    conditions.find(|c| c["type"] == r#type)
}

fn set_condition(conditions: &mut Vec<Value>, r#type: &str, verdict: &Verdict, now: &str) {
    let old = conditions.iter().position(|c| c["type"] == r#type);
    let before = old.map(|index| conditions.remove(index));
    let same = |field: &str, value: &str| before.as_ref().is_some_and(|c| c[field] == value);
    if same("status", verdict.status)
        && same("reason", verdict.reason)
        && same("message", &verdict.message)
        && !verdict.renew
    {
        conditions.extend(before);
        return;
    }
    let since = match &before {
        Some(before) if same("status", verdict.status) => before["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    conditions.push(json!({
        "type": r#type,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": verdict.message,
        "lastUpdateTime": now,
        "lastTransitionTime": since,
    }));
}

/// The new status. Pure.
fn status_of(view: &View, now: Timestamp) -> Value {
    let deployment = &view.deployment;
    let counts = Counts::of(view);
    let text = stamp(now);
    let mut conditions = deployment.status["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let bounds = deployment.bounds();
    let available = if counts.available >= bounds.least() {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    let verdict = Verdict {
        status: available.0,
        reason: available.1,
        message: available.2.to_owned(),
        renew: false,
    };
    set_condition(&mut conditions, "Available", &verdict, &text);
    if let Some(message) = &view.refused {
        let verdict = Verdict {
            status: "False",
            reason: REFUSED,
            message: message.clone(),
            renew: false,
        };
        set_condition(&mut conditions, "Progressing", &verdict, &text);
    } else if let Some(verdict) = progress(view, &counts, now) {
        set_condition(&mut conditions, "Progressing", &verdict, &text);
    }
    let mut status = json!({
        "observedGeneration": deployment.metadata.generation,
        "conditions": conditions,
    });
    for (field, count) in [
        ("replicas", counts.replicas),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", counts.unavailable),
    ] {
        if count > 0 {
            status[field] = count.into();
        }
    }
    if let Some(collisions) = deployment.status.get("collisionCount") {
        status["collisionCount"] = collisions.clone();
    }
    status
}

impl DeploymentController {
    /// Writes the status if it has changed; seconds until the next deadline.
    pub(super) async fn report(&self, view: &View) -> Result<Option<u64>, Status> {
        let deployment = &view.deployment;
        let now = self.clock.now();
        let status = status_of(view, now);
        if status != deployment.status {
            let meta = &deployment.metadata;
            let target = Target::status(resource(), &meta.namespace, &meta.name);
            let edit = |new: &mut Value| {
                let collisions = new["status"].get("collisionCount").cloned();
                new["status"] = status.clone();
                if let Some(collisions) = collisions {
                    new["status"]["collisionCount"] = collisions;
                }
            };
            self.client.amend(target, &meta.uid, edit).await?;
        }
        let progressing = condition(&status, "Progressing");
        let waiting = progressing.filter(|c| {
            c["reason"] != AVAILABLE_REASON && c["reason"] != TIMED_OUT && !deployment.spec.paused
        });
        let left = waiting.and_then(|c| time_left(deployment, c, now));
        Ok(left.and_then(|left| u64::try_from(left.max(1)).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_set_that_was_refused_and_is_made_then_is_progress() {
        let metadata = json!({"name": "d", "uid": "u", "generation": 1});
        let refused = json!({
            "observedGeneration": 1,
            "conditions": [{
                "type": "Progressing", "status": "False", "reason": REFUSED,
                "lastUpdateTime": "2026-01-01T00:00:00Z",
            }],
        });
        let mut view = View {
            deployment: serde_json::from_value(
                json!({"metadata": metadata, "spec": {"progressDeadlineSeconds": 60}, "status": refused}),
            )
            .unwrap(),
            sets: Vec::new(),
            new: None,
            refused: Some("no".to_owned()),
        };
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let said = |view: &View| {
            let status = status_of(view, now);
            let progressing = condition(&status, "Progressing").unwrap();
            (progressing["status"].clone(), progressing["reason"].clone())
        };
        assert_eq!(said(&view), (json!("False"), json!(REFUSED)));
        let set = json!({"metadata": {"name": "d-1"}, "spec": {"replicas": 1}});
        view.sets.push(serde_json::from_value(set).unwrap());
        (view.new, view.refused) = (Some(0), None);
        assert_eq!(said(&view), (json!("True"), json!("NewReplicaSetCreated")));
    }
}
