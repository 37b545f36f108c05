//! What a hollow node makes of a pod: a small state machine. Pure but for the clock.
//!
//! Two annotations make it misbehave: `hollow.fairlead.dev/ready: "false"`
//! keeps it from readiness, `hollow.fairlead.dev/exit-code: "N"` makes a pod
//! that is not restarted end with this code.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::HollowArgs;
use crate::controller::runtime::stamp;

const READY: &str = "hollow.fairlead.dev/ready";
const EXIT_CODE: &str = "hollow.fairlead.dev/exit-code";
/// Of a container that is stopped: it ended by SIGTERM.
const STOPPED: i32 = 128 + 15;

/// A pod on a hollow node.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) node: String,
    pub(super) slot: u8,
    started: bool,
    ended: bool,
    pub(super) stopping: bool,
}

/// What is done about a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Start,
    End,
    Stop,
}

pub(super) fn key(object: &Value) -> String {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    format!("{}/{}", text("namespace"), text("name"))
}

pub(super) fn path(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!(
        "/api/v1/namespaces/{}/pods/{}",
        text("namespace"),
        text("name")
    )
}

/// Whether the pod's phase is its last.
pub(super) fn has_ended(object: &Value) -> bool {
    matches!(
        object["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

impl Pod {
    pub(super) fn new(object: &Value, slot: u8) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            uid: text(&object["metadata"]["uid"]),
            node: text(&object["spec"]["nodeName"]),
            slot,
            started: false,
            ended: false,
            stopping: false,
        }
    }

    /// What comes next, once.
    pub(super) fn next(&mut self, object: &Value) -> Option<Step> {
        let phase = object["status"]["phase"].as_str().unwrap_or_default();
        if !object["metadata"]["deletionTimestamp"].is_null() {
            return (!std::mem::replace(&mut self.stopping, true)).then_some(Step::Stop);
        }
        match phase {
            "Pending" | "" => (!std::mem::replace(&mut self.started, true)).then_some(Step::Start),
            "Running" if object["spec"]["restartPolicy"] != "Always" => {
                (!std::mem::replace(&mut self.ended, true)).then_some(Step::End)
            }
            _ => None,
        }
    }

    /// A step failed and may be taken again.
    pub(super) fn undo(&mut self, step: Step) {
        match step {
            Step::Start => self.started = false,
            Step::End => self.ended = false,
            Step::Stop => self.stopping = false,
        }
    }
}

impl Step {
    pub(super) fn delay(self, args: &HollowArgs, object: &Value) -> Duration {
        match self {
            Self::Start => args.pod_start_delay,
            Self::End => args.pod_run_time,
            Self::Stop => {
                let grace = object["metadata"]["deletionGracePeriodSeconds"]
                    .as_u64()
                    .unwrap_or(0);
                args.pod_stop_delay.min(Duration::from_secs(grace))
            }
        }
    }

    /// The patch of the pod's status.
    pub(super) fn status(self, object: &Value, host: &str, own: &str) -> Value {
        let now = stamp(Timestamp::now());
        let annotations = &object["metadata"]["annotations"];
        let gated = object["spec"]["readinessGates"]
            .as_array()
            .is_some_and(|g| !g.is_empty());
        let running = self == Self::Start;
        let healthy = running && annotations[READY] != "false";
        let told = annotations[EXIT_CODE].as_str().and_then(|c| c.parse().ok());
        let code = match self {
            Self::Stop => STOPPED,
            Self::Start | Self::End => told.unwrap_or(0),
        };
        let phase = match (running, code) {
            (true, _) => "Running",
            (false, 0) => "Succeeded",
            (false, _) => "Failed",
        };
        let condition = |r#type: &str, holds: bool| {
            let status = if holds { "True" } else { "False" };
            let mut condition = json!({"type": r#type, "status": status, "lastProbeTime": null, "lastTransitionTime": now});
            if !running && !holds {
                condition["reason"] = "PodCompleted".into();
            }
            condition
        };
        let host_network = object["spec"]["hostNetwork"] == true;
        let address = if host_network { host } else { own };
        let (containers, inits) = containers(object, running, healthy, code, &now);
        let mut status = json!({
            "phase": phase,
            "hostIP": host,
            "hostIPs": [{"ip": host}],
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                condition("PodReadyToStartContainers", running),
                condition("Initialized", true),
                condition("ContainersReady", healthy),
                condition("Ready", healthy && !gated),
            ],
            "containerStatuses": containers,
            "initContainerStatuses": inits,
        });
        if running {
            status["startTime"] = now.into();
        }
        json!({"status": status})
    }
}

/// Statuses of the containers and of the init containers.
fn containers(
    object: &Value,
    running: bool,
    healthy: bool,
    code: i32,
    now: &str,
) -> (Vec<Value>, Vec<Value>) {
    let state = if running {
        json!({"running": {"startedAt": now}})
    } else {
        json!({"terminated": {
            "exitCode": code,
            "reason": if code == 0 { "Completed" } else { "Error" },
            "startedAt": object["status"]["startTime"],
            "finishedAt": now,
        }})
    };
    let done = json!({"terminated": {
        "exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now,
    }});
    let of = |list: &str, ready: bool, state: &Value| {
        let containers = object["spec"][list].as_array().into_iter().flatten();
        let status = |container: &Value| {
            json!({
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": ready,
                "started": ready,
                "restartCount": 0,
                "state": state,
            })
        };
        containers.map(status).collect()
    };
    (
        of("containers", healthy, &state),
        of("initContainers", true, &done),
    )
}
