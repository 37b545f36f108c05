//! Watches over nodes by their Leases: marks those that are silent, taints
//! those that are not well, and evicts the pods that do not bear it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    controller::{
        pods,
        runtime::{
            Again, Clock, Context, Controller, Recorder, Source, later,
            object::{self, Meta, Pod, decode, served},
            sooner, stamp,
        },
    },
    registry::{Target, client::Client},
    resource::Resource,
    scheduler::affinity::tolerates,
    status::Status,
};

const NAME: &str = "node-controller";
/// Who tells of evictions, as upstream has it.
const EVICTOR: &str = "taint-eviction-controller";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// How long a node may be silent.
const GRACE: Duration = Duration::from_secs(50);
/// Nodes whose pods begin to be evicted: one in this time.
const EVICTION_PACE: Duration = Duration::from_secs(10);
/// Conditions that taint while they hold.
const CONDITIONS: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];
/// Conditions that a node itself keeps up to date.
const REPORTED: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

/// The controller.
#[derive(Debug)]
pub struct NodeController {
    client: Client,
    clock: Clock,
    recorder: Recorder,
    /// When each node was last heard: by this clock, as clocks differ. One per node.
    heard: Mutex<HashMap<String, (String, Timestamp)>>,
    evicted: Mutex<Option<Timestamp>>,
}

fn nodes() -> &'static Resource {
    served("", "nodes")
}

/// The taints of this controller that a node should have: key and effect. Pure.
fn wanted(node: &Value) -> Vec<(&'static str, &'static str)> {
    let mut taints = Vec::new();
    let unwell = match condition(node, "Ready") {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    if let Some(key) = unwell {
        taints.extend([(key, "NoSchedule"), (key, "NoExecute")]);
    }
    let pressing = CONDITIONS
        .iter()
        .filter(|(r#type, _)| condition(node, r#type) == Some("True"));
    taints.extend(pressing.map(|(_, key)| (*key, "NoSchedule")));
    if node["spec"]["unschedulable"] == true {
        taints.push(("node.kubernetes.io/unschedulable", "NoSchedule"));
    }
    taints
}

/// The status of one of a node's conditions. Pure.
fn condition<'n>(node: &'n Value, r#type: &str) -> Option<&'n str> {
    let mut all = node["status"]["conditions"].as_array()?.iter();
    all.find(|c| c["type"] == r#type)?["status"].as_str()
}

/// Makes what a node says of itself unknown. Pure.
fn silenced(node: &mut Value, now: &str) {
    let born = node["metadata"]["creationTimestamp"].clone();
    let conditions = node["status"]["conditions"].as_array();
    let mut conditions = conditions.cloned().unwrap_or_default();
    for r#type in REPORTED {
        let unknown = |reason: &str, message: &str, beat: &Value| {
            json!({
                "type": r#type,
                "status": "Unknown",
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": beat,
                "lastTransitionTime": now,
            })
        };
        match conditions.iter_mut().find(|c| c["type"] == r#type) {
            Some(old) if old["status"] == "Unknown" => {}
            Some(old) => {
                let text = "Kubelet stopped posting node status.";
                *old = unknown("NodeStatusUnknown", text, &old["lastHeartbeatTime"]);
            }
            None => {
                let text = "Kubelet never posted node status.";
                conditions.push(unknown("NodeStatusNeverUpdated", text, &born));
            }
        }
    }
    node["status"]["conditions"] = conditions.into();
}

fn is_ours(key: &str) -> bool {
    [NOT_READY, UNREACHABLE, "node.kubernetes.io/unschedulable"].contains(&key)
        || CONDITIONS.iter().any(|(_, ours)| *ours == key)
}

/// The taint list with ours made right; `None` if it is right. Pure.
fn retainted(node: &Value, wanted: &[(&str, &str)], now: &str) -> Option<Vec<Value>> {
    let have = node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let is = |taint: &Value, (key, effect): &(&str, &str)| {
        taint["key"] == *key && taint["effect"] == *effect
    };
    let mut list: Vec<Value> = have
        .iter()
        .filter(|taint| {
            !is_ours(taint["key"].as_str().unwrap_or_default())
                || wanted.iter().any(|w| is(taint, w))
        })
        .cloned()
        .collect();
    for want in wanted {
        if !list.iter().any(|taint| is(taint, want)) {
            list.push(json!({"key": want.0, "effect": want.1, "timeAdded": now}));
        }
    }
    (list != have).then_some(list)
}

/// When a pod has to leave: the earliest moment that a taint allows it no
/// longer; `None` if it may stay. Pure.
fn leaves_at(tolerations: &[Toleration], taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let executing = taints.iter().filter(|taint| taint.effect == "NoExecute");
    let ends = executing.filter_map(|taint| {
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let mut bearing = tolerations
            .iter()
            .filter(|t| tolerates(t, taint))
            .peekable();
        if bearing.peek().is_none() {
            return Some(now);
        }
        let limits = bearing.filter_map(|t| t.toleration_seconds);
        let seconds = limits.min()?;
        Some(later(
            since,
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        ))
    });
    ends.min()
}

#[derive(Deserialize)]
struct Tolerating {
    #[serde(default)]
    spec: Tolerations,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Tolerations {
    tolerations: Vec<Toleration>,
}

impl NodeController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            recorder: context.recorder.clone(),
            heard: Mutex::default(),
            evicted: Mutex::default(),
        }
    }

    /// How long the node may still be silent; zero if it has been for too long.
    fn patience(&self, name: &str, node: &Value, now: Timestamp) -> Duration {
        let lease = self
            .client
            .cache_of(served("coordination.k8s.io", "leases"));
        let lease = lease
            .get(&format!("kube-node-lease/{name}"))
            .map(|entry| entry.value());
        let renewed = lease.map_or(String::new(), |lease| {
            lease["spec"]["renewTime"].to_string()
        });
        let mut conditions = node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten();
        let beat = conditions
            .find(|c| c["type"] == "Ready")
            .map_or(&Value::Null, |c| &c["lastHeartbeatTime"]);
        let sign = format!("{renewed} {beat}");
        let mut heard = self.heard.lock().expect("no holder panics");
        let last = heard
            .entry(name.to_owned())
            .or_insert_with(|| (sign.clone(), now));
        if last.0 != sign {
            *last = (sign, now);
        }
        let left = later(last.1, GRACE).duration_since(now);
        Duration::try_from(left).unwrap_or_default()
    }

    /// Says of a silent node that nothing is known; whether it was ready before.
    async fn silence(&self, name: &str, node: &Value) -> Result<bool, Status> {
        let now = stamp(self.clock.now());
        let was_ready = condition(node, "Ready") == Some("True");
        let uid = node["metadata"]["uid"].as_str().unwrap_or_default();
        let target = Target::status(nodes(), "", name);
        let edit = |new: &mut Value| silenced(new, &now);
        self.client.amend(target, uid, edit).await?;
        Ok(was_ready)
    }

    /// Tells that a node is not ready any more.
    fn tell_unready(&self, node: &Value) -> Result<(), Status> {
        let meta: Meta = serde_json::from_value(node["metadata"].clone())
            .map_err(|error| Status::internal(error.to_string()))?;
        let text = format!("Node {} status is now: NodeNotReady", meta.name);
        self.recorder
            .normal(NAME, nodes(), &meta, "NodeNotReady", text);
        Ok(())
    }

    /// Whether every node is silent: then it is rather us who cannot hear.
    fn all_silent(&self) -> Result<bool, Status> {
        let all = object::list(&self.client, nodes(), "")?;
        Ok(all.iter().all(|entry| {
            wanted(&entry.value())
                .iter()
                .any(|(_, effect)| *effect == "NoExecute")
        }))
    }

    /// Whether one more node may begin to be evicted, or when.
    fn pace(&self, now: Timestamp) -> Result<(), Duration> {
        let mut last = self.evicted.lock().expect("no holder panics");
        let next = last.map_or(now, |last| later(last, EVICTION_PACE));
        if next > now {
            return Err(Duration::try_from(next.duration_since(now)).unwrap_or_default());
        }
        *last = Some(now);
        Ok(())
    }

    async fn taint(&self, name: &str, node: &Value, now: Timestamp) -> Result<Again, Status> {
        let mut taints = wanted(node);
        let mut again = None;
        let has = |key: &str| {
            let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
            taints.any(|t| t["key"] == key && t["effect"] == "NoExecute")
        };
        let fresh = taints
            .iter()
            .any(|(key, effect)| *effect == "NoExecute" && !has(key));
        let known = has(NOT_READY) || has(UNREACHABLE);
        if fresh && !known {
            let refused = if self.all_silent()? {
                Err(EVICTION_PACE)
            } else {
                self.pace(now)
            };
            if let Err(wait) = refused {
                taints.retain(|(_, effect)| *effect != "NoExecute");
                again = Some(wait);
            }
        }
        if let Some(list) = retainted(node, &taints, &stamp(now)) {
            let change = |current: &Value| {
                let mut new = current.clone();
                let list = retainted(current, &taints, &stamp(now)).unwrap_or_else(|| list.clone());
                new["spec"]["taints"] = list.into();
                Ok(new)
            };
            self.client
                .change(Target::object(nodes(), "", name), &change)
                .await?;
        }
        Ok(again)
    }

    fn pods_on(&self, name: &str) -> Result<Vec<Arc<crate::cache::Entry>>, Status> {
        let all = object::list(&self.client, served("", "pods"), "")?;
        let on = |entry: &Arc<crate::cache::Entry>| {
            entry.fields.first().is_some_and(|node| &**node == name)
        };
        Ok(all.into_iter().filter(on).collect())
    }

    /// Pods of a node that is not ready are not ready either.
    async fn unready(&self, name: &str) -> Result<(), Status> {
        let now = stamp(self.clock.now());
        for entry in self.pods_on(name)? {
            let pod = decode::<Pod>(&entry)?;
            if !pod.is_ready() {
                continue;
            }
            let edit = |new: &mut Value| {
                let conditions = new["status"]["conditions"].as_array_mut();
                for condition in conditions.into_iter().flatten() {
                    if condition["type"] == "Ready" {
                        condition["status"] = "False".into();
                        condition["lastTransitionTime"] = now.clone().into();
                    }
                }
            };
            let target = Target::status(served("", "pods"), entry.namespace(), entry.name());
            self.client.amend(target, &entry.uid, edit).await?;
            let (about, text) = (&pod.metadata, "Node is not ready".to_owned());
            self.recorder
                .warning(NAME, served("", "pods"), about, "NodeNotReady", text);
        }
        Ok(())
    }

    /// Says on pods why they go: a Job may not hold it against them.
    async fn disrupt(&self, going: &[Pod], now: Timestamp) -> Result<(), Status> {
        let now = stamp(now);
        let attempts = going.iter().map(|pod| {
            let (client, meta, now) = (self.client.clone(), pod.metadata.clone(), now.clone());
            async move {
                let target = Target::status(served("", "pods"), &meta.namespace, &meta.name);
                let text = "Taint manager: deleting due to NoExecute taint";
                let edit =
                    |pod: &mut Value| pods::disrupt(pod, "DeletionByTaintManager", text, &now);
                client.amend(target, &meta.uid, edit).await
            }
        });
        pods::at_once(attempts).await.into_iter().collect()
    }

    /// Deletes the pods whose time on a tainted node is over; when the next is due.
    async fn evict(&self, name: &str, now: Timestamp) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(nodes()).get(name) else {
            return Ok(None);
        };
        let taints: Vec<Taint> =
            serde_json::from_value(entry.value()["spec"]["taints"].take()).unwrap_or_default();
        if !taints.iter().any(|taint| taint.effect == "NoExecute") {
            return Ok(None);
        }
        let mut next: Option<Timestamp> = None;
        let mut going = Vec::new();
        for entry in self.pods_on(name)? {
            let pod: Pod = decode(&entry)?;
            let bearing: Tolerating = decode(&entry)?;
            let Some(at) = leaves_at(&bearing.spec.tolerations, &taints, now) else {
                continue;
            };
            if at > now {
                next = Some(next.map_or(at, |next| next.min(at)));
            } else if pod.is_active() {
                let text = format!("Marking for deletion Pod {}", entry.key);
                self.recorder.normal(
                    EVICTOR,
                    served("", "pods"),
                    &pod.metadata,
                    "TaintManagerEviction",
                    text,
                );
                going.push(pod);
            }
        }
        self.disrupt(&going, now).await?;
        pods::delete(&self.client, going.iter()).await?;
        Ok(next.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default()))
    }
}

impl Controller for NodeController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(nodes()),
            Source::new(served("coordination.k8s.io", "leases"), |change| {
                let ours = change.entry.namespace() == "kube-node-lease";
                ours.then(|| change.entry.name().into())
                    .into_iter()
                    .collect()
            }),
        ]
    }

    async fn reconcile(&self, name: &str) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(nodes()).get(name) else {
            self.heard.lock().expect("no holder panics").remove(name);
            return Ok(None);
        };
        let now = self.clock.now();
        let mut node = entry.value();
        let patience = self.patience(name, &node, now);
        if patience.is_zero() {
            if self.silence(name, &node).await? {
                self.tell_unready(&node)?;
            }
            if let Some(entry) = self.client.cache_of(nodes()).get(name) {
                node = entry.value();
            }
        }
        let again = self.taint(name, &node, now).await?;
        if wanted(&node)
            .iter()
            .any(|(_, effect)| *effect == "NoExecute")
        {
            self.unready(name).await?;
        }
        let next = self.evict(name, now).await?;
        let listen = (!patience.is_zero()).then_some(patience);
        Ok(sooner(sooner(again, next), listen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_node_is_tainted_by_what_it_says_and_cleared_when_it_is_well() {
        let node = |status: &str| {
            json!({
                "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
                "status": {"conditions": [{"type": "Ready", "status": status}, {"type": "DiskPressure", "status": "True"}]},
            })
        };
        let unknown = node("Unknown");
        let list = retainted(&unknown, &wanted(&unknown), "now").unwrap();
        let keys: Vec<_> = list
            .iter()
            .map(|t| (t["key"].as_str().unwrap(), t["effect"].as_str().unwrap()))
            .collect();
        assert_eq!(
            keys,
            [
                ("mine", "NoSchedule"),
                (UNREACHABLE, "NoSchedule"),
                (UNREACHABLE, "NoExecute"),
                ("node.kubernetes.io/disk-pressure", "NoSchedule"),
            ]
        );
        let mut well = node("True");
        well["spec"]["taints"] = list.into();
        well["status"]["conditions"][1]["status"] = json!("False");
        let list = retainted(&well, &wanted(&well), "now").unwrap();
        assert_eq!(list.len(), 1);
        well["spec"]["taints"] = list.into();
        assert_eq!(retainted(&well, &wanted(&well), "now"), None);
    }

    #[test]
    fn pods_bear_taints_as_long_as_they_say() {
        let taint: Taint = serde_json::from_value(
            json!({"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": stamp(at(100))}),
        )
        .unwrap();
        let bears = |seconds: Option<i64>| {
            let mut toleration =
                json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"});
            if let Some(seconds) = seconds {
                toleration["tolerationSeconds"] = json!(seconds);
            }
            serde_json::from_value::<Toleration>(toleration).unwrap()
        };
        let taints = std::slice::from_ref(&taint);
        assert_eq!(leaves_at(&[], taints, at(120)), Some(at(120)));
        assert_eq!(leaves_at(&[bears(None)], taints, at(120)), None);
        assert_eq!(
            leaves_at(&[bears(Some(300))], taints, at(120)),
            Some(at(400))
        );
        assert_eq!(
            leaves_at(&[bears(Some(300)), bears(Some(5))], taints, at(120)),
            Some(at(105))
        );
        assert_eq!(leaves_at(&[], &[], at(120)), None);
    }
}
