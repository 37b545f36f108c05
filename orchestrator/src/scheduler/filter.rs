//! Why a node cannot take a pod. Pure.

use std::fmt;

use k8s_openapi::api::core::v1::Taint;

use super::{
    affinity::{node_selected, untolerated},
    node::NodeInfo,
    pod::PodInfo,
    resources::Resources,
    spread::Spread,
    topology::Topology,
    volume::Volumes,
};

/// One reason; its text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The node is cordoned.
    Unschedulable,
    /// The pod names another node.
    Name,
    /// A taint that the pod does not tolerate: key and value.
    Taint(String, String),
    /// The pod's node selector or affinity.
    Affinity,
    /// The pod names its nodes, and not this one.
    NotNamed,
    /// A host port is taken.
    Ports,
    /// Too little of a resource.
    Insufficient(String),
    /// As many pods as the node takes.
    TooManyPods,
    /// A claim that one pod only may use is in use.
    ClaimTaken,
    /// A bound volume is elsewhere.
    VolumeElsewhere,
    /// No volume to bind, and none that could be made here.
    NoVolume,
    /// The spread would be uneven.
    Spread,
    /// The node has not the label to spread by.
    SpreadLabel,
    /// Not near the pods it must be near.
    NotNear,
    /// Near pods that it must not be near.
    NotApart,
    /// A pod there must not be near it.
    Unwelcome,
}

/// What an event may change about a refusal: bits.
pub mod wake {
    /// Node labels, taints, capacity.
    pub const NODE: u8 = 1;
    /// Pods that go.
    pub const POD: u8 = 2;
    /// Volumes, claims and classes.
    pub const VOLUME: u8 = 4;
    /// Pods that come, or have other labels.
    pub const PLACED: u8 = 8;
    /// Namespaces, whose labels terms may select.
    pub const NAMESPACE: u8 = 16;
}

impl Reason {
    /// Which events may lift it.
    pub fn wakes(&self) -> u8 {
        match self {
            Self::Unschedulable
            | Self::Name
            | Self::Taint(..)
            | Self::Affinity
            | Self::NotNamed
            | Self::SpreadLabel => wake::NODE,
            Self::Ports | Self::Insufficient(_) | Self::TooManyPods | Self::ClaimTaken => {
                wake::NODE | wake::POD
            }
            Self::NotNear => wake::NODE | wake::PLACED | wake::NAMESPACE,
            Self::Spread => wake::NODE | wake::POD | wake::PLACED,
            Self::NotApart | Self::Unwelcome => {
                wake::NODE | wake::POD | wake::PLACED | wake::NAMESPACE
            }
            Self::VolumeElsewhere | Self::NoVolume => wake::NODE | wake::VOLUME,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Name => "node(s) didn't match the requested node name",
            Self::Taint(key, value) => {
                return write!(f, "node(s) had untolerated taint {{{key}: {value}}}");
            }
            Self::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Self::NotNamed => "node(s) didn't satisfy plugin(s) [NodeAffinity]",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::Insufficient(name) => return write!(f, "Insufficient {name}"),
            Self::TooManyPods => "Too many pods",
            Self::ClaimTaken => {
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
            }
            Self::VolumeElsewhere => "node(s) had volume node affinity conflict",
            Self::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::NotNear => "node(s) didn't match pod affinity rules",
            Self::NotApart => "node(s) didn't match pod anti-affinity rules",
            Self::Unwelcome => "node(s) didn't satisfy existing pods anti-affinity rules",
        };
        f.write_str(text)
    }
}

/// Taint of a cordoned node.
const CORDONED: &str = "node.kubernetes.io/unschedulable";

/// What the first filter that refuses the node says; nothing if none does.
pub fn refusals(
    pod: &PodInfo,
    node: &NodeInfo,
    spread: &Spread<'_>,
    topology: &Topology,
    volumes: &Volumes,
) -> Vec<Reason> {
    let one = |reason| vec![reason];
    if node.unschedulable && !tolerates_cordon(pod) {
        return one(Reason::Unschedulable);
    }
    if let Some(taint) = untolerated(&node.taints, &pod.tolerations, &["NoSchedule", "NoExecute"]) {
        let value = taint.value.clone().unwrap_or_default();
        return one(Reason::Taint(taint.key.clone(), value));
    }
    if !node_fits(pod, node) {
        return one(Reason::Affinity);
    }
    if !ports_free(pod, node) {
        return one(Reason::Ports);
    }
    let short = resources_short(pod, node);
    if !short.is_empty() {
        return short;
    }
    if let Some(reason) = volumes.refusal(node) {
        return one(reason);
    }
    let apart = || topology.refusal(node);
    let reason = spread.refusal(node).or_else(apart);
    reason.map(one).unwrap_or_default()
}

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: CORDONED.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    untolerated(&[taint], &pod.tolerations, &["NoSchedule"]).is_none()
}

/// Node selector and required node affinity.
pub fn node_fits(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value))
        && pod
            .required_nodes
            .as_ref()
            .is_none_or(|selector| node_selected(selector, node))
}

fn ports_free(pod: &PodInfo, node: &NodeInfo) -> bool {
    if pod.ports.is_empty() {
        return true;
    }
    let taken = || node.pods.values().flat_map(|other| &other.ports);
    pod.ports
        .iter()
        .all(|port| !taken().any(|other| port.conflicts(other)))
}

fn resources_short(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let mut short = Vec::new();
    let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
    if pods >= node.allocatable.pods {
        short.push(Reason::TooManyPods);
    }
    let (asked, used, offered) = (&pod.usage.requests, &node.used.requests, &node.allocatable);
    let mut check = |name: &str, field: fn(&Resources) -> i64| {
        let wanted = field(asked);
        if wanted > 0 && wanted > field(offered) - field(used) {
            short.push(Reason::Insufficient(name.to_owned()));
        }
    };
    check("cpu", |r| r.cpu_milli);
    check("memory", |r| r.memory);
    check("ephemeral-storage", |r| r.ephemeral_storage);
    for (name, wanted) in &asked.other {
        let of = |r: &Resources| r.other.get(name).copied().unwrap_or(0);
        if *wanted > 0 && *wanted > of(offered) - of(used) {
            short.push(Reason::Insufficient(name.clone()));
        }
    }
    short
}
