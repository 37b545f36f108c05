//! A pod as the scheduler sees it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, PodAffinityTerm, PreferredSchedulingTerm, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use serde::Deserialize;

use super::{
    resources::{Resources, Usage},
    spread::Constraint,
};
use crate::{cache::Entry, controller::runtime::object::Meta};

/// A pod.
#[derive(Clone, Debug, Default)]
pub struct PodInfo {
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Metadata.
    pub meta: Meta,
    /// Where it runs, empty if nowhere yet.
    pub node: String,
    /// Who places it.
    pub scheduler: String,
    /// Whether something else must happen first.
    pub gated: bool,
    /// Whether it has ended.
    pub over: bool,
    /// More is more urgent.
    pub priority: i32,
    /// What it takes of a node.
    pub usage: Usage,
    /// Ports on the node.
    pub ports: Vec<HostPort>,
    /// Taints it can live with.
    pub tolerations: Vec<Toleration>,
    /// Labels its node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Nodes it demands.
    pub required_nodes: Option<NodeSelector>,
    /// Nodes it likes.
    pub preferred_nodes: Vec<PreferredSchedulingTerm>,
    /// Pods it must be near.
    pub near: Vec<PodAffinityTerm>,
    /// Pods it must not be near.
    pub apart: Vec<PodAffinityTerm>,
    /// Pods it likes to be near.
    pub likes: Vec<WeightedPodAffinityTerm>,
    /// Pods it likes to be away from.
    pub dislikes: Vec<WeightedPodAffinityTerm>,
    /// How it wants to be spread with its likes.
    pub spread: Vec<Constraint>,
    /// Names of its claims of volumes, in its namespace.
    pub claims: Vec<String>,
    /// Images of its containers, init containers included, each with a tag.
    pub images: Vec<String>,
    /// `PodScheduled` as it is reported: status, reason, message.
    pub reported: Option<(String, String, String)>,
}

/// A port on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address, `0.0.0.0` for all.
    pub ip: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Number.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let everywhere = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || everywhere(&self.ip) || everywhere(&other.ip))
    }
}

#[derive(Deserialize)]
struct Raw {
    metadata: Meta,
    spec: RawSpec,
    #[serde(default)]
    status: crate::controller::runtime::object::PodStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    scheduler_name: String,
    #[serde(default)]
    scheduling_gates: Vec<serde::de::IgnoredAny>,
    priority: Option<i32>,
    #[serde(default)]
    containers: Vec<RawContainer>,
    #[serde(default)]
    init_containers: Vec<RawContainer>,
    #[serde(default)]
    overhead: BTreeMap<String, String>,
    #[serde(default)]
    resources: RawResources,
    #[serde(default)]
    tolerations: Vec<Toleration>,
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    affinity: Option<Affinity>,
    #[serde(default)]
    topology_spread_constraints: Vec<TopologySpreadConstraint>,
    #[serde(default)]
    volumes: Vec<RawVolume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainer {
    #[serde(default)]
    image: String,
    #[serde(default)]
    ports: Vec<RawPort>,
    #[serde(default)]
    resources: RawResources,
    restart_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawResources {
    requests: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    #[serde(default)]
    host_port: i32,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
    #[serde(default)]
    protocol: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawVolume {
    #[serde(default)]
    name: String,
    persistent_volume_claim: Option<RawClaim>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClaim {
    claim_name: String,
}

impl PodInfo {
    /// Reads a pod.
    ///
    /// # Errors
    /// If the object is no pod.
    pub fn of(entry: &Entry) -> Result<Self, serde_json::Error> {
        let raw: Raw = entry.decode()?;
        Ok(Self::from_raw(Arc::clone(&entry.key), raw))
    }

    /// Reads a pod from JSON.
    ///
    /// # Errors
    /// If the object is no pod.
    pub fn from_value(pod: &serde_json::Value) -> Result<Self, serde_json::Error> {
        let raw = Raw::deserialize(pod)?;
        let key = format!("{}/{}", raw.metadata.namespace, raw.metadata.name);
        Ok(Self::from_raw(key.into(), raw))
    }

    fn from_raw(key: Arc<str>, raw: Raw) -> Self {
        let mut spec = raw.spec;
        let reported = raw
            .status
            .conditions
            .into_iter()
            .find(|c| c.r#type == "PodScheduled");
        let affinity = spec.affinity.take().unwrap_or_default();
        let nodes = affinity.node_affinity.unwrap_or_default();
        let near = affinity.pod_affinity.unwrap_or_default();
        let apart = affinity.pod_anti_affinity.unwrap_or_default();
        let claims = spec.volumes.iter().filter_map(|volume| {
            // An ephemeral volume's claim is named after pod and volume.
            let own = || {
                volume
                    .ephemeral
                    .map(|_| format!("{}-{}", raw.metadata.name, volume.name))
            };
            volume
                .persistent_volume_claim
                .as_ref()
                .map(|c| c.claim_name.clone())
                .or_else(own)
        });
        Self {
            key,
            claims: claims.collect(),
            usage: usage(&spec),
            ports: ports(&spec.containers, &spec.init_containers),
            images: images(&spec.init_containers, &spec.containers),
            node: spec.node_name,
            scheduler: spec.scheduler_name,
            gated: !spec.scheduling_gates.is_empty(),
            over: matches!(raw.status.phase.as_str(), "Succeeded" | "Failed"),
            priority: spec.priority.unwrap_or(0),
            tolerations: spec.tolerations,
            node_selector: spec.node_selector,
            required_nodes: nodes.required_during_scheduling_ignored_during_execution,
            preferred_nodes: nodes
                .preferred_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            near: near
                .required_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            likes: near
                .preferred_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            apart: apart
                .required_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            dislikes: apart
                .preferred_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            spread: spec
                .topology_spread_constraints
                .into_iter()
                .map(|asked| Constraint::of(asked, &raw.metadata.labels))
                .collect(),
            reported: reported.map(|c| (c.status, c.reason, c.message)),
            meta: raw.metadata,
        }
    }

    /// Whether this scheduler has to place it.
    pub fn is_waiting(&self) -> bool {
        self.node.is_empty()
            && !self.over
            && !self.meta.deleting()
            && matches!(self.scheduler.as_str(), "" | "default-scheduler")
    }

    /// Birth.
    pub fn born(&self) -> Timestamp {
        self.meta.born()
    }

    /// Its claims as `namespace/name`.
    pub fn claim_keys(&self) -> impl Iterator<Item = String> + use<'_> {
        let namespace = &self.meta.namespace;
        self.claims
            .iter()
            .map(move |name| format!("{namespace}/{name}"))
    }

    /// Whether selectors count it as they count `other`.
    pub fn counts_as(&self, other: &Self) -> bool {
        self.node == other.node
            && self.meta.labels == other.meta.labels
            && self.meta.deleting() == other.meta.deleting()
    }

    /// Whether one of its terms selects namespaces.
    pub fn asks_namespaces(&self) -> bool {
        let liked = self.likes.iter().chain(&self.dislikes);
        let liked = liked.map(|weighted| &weighted.pod_affinity_term);
        let mut terms = self.near.iter().chain(&self.apart).chain(liked);
        terms.any(|term| term.namespace_selector.is_some())
    }

    /// Whether where other pods are matters to it.
    pub fn minds_pods(&self) -> bool {
        !(self.near.is_empty()
            && self.apart.is_empty()
            && self.likes.is_empty()
            && self.dislikes.is_empty())
    }
}

/// What a pod takes: the most that is ever needed at a time. Containers run
/// together; init containers one after another, beside the sidecars that
/// started before them. What the pod as a whole asks for counts before that.
fn usage(spec: &RawSpec) -> Usage {
    let mut running = Usage::default();
    for container in &spec.containers {
        running.add(&Usage::of_container(&container.resources.requests));
    }
    let mut sidecars = Usage::default();
    let mut peak = Usage::default();
    for init in &spec.init_containers {
        let own = Usage::of_container(&init.resources.requests);
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
            peak.raise_to(&sidecars);
        } else {
            let mut beside = sidecars.clone();
            beside.add(&own);
            peak.raise_to(&beside);
        }
    }
    running.add(&sidecars);
    running.raise_to(&peak);
    running.replace(&spec.resources.requests);
    running.add(&Usage::exactly(Resources::parse(&spec.overhead)));
    running
}

fn images(inits: &[RawContainer], containers: &[RawContainer]) -> Vec<String> {
    let all = inits.iter().chain(containers);
    all.map(|container| tagged(&container.image)).collect()
}

/// As nodes name it: an image without a tag is the latest.
fn tagged(image: &str) -> String {
    match (image.rfind(':'), image.rfind('/')) {
        (Some(tag), slash) if slash.is_none_or(|slash| tag > slash) => image.to_owned(),
        _ => format!("{image}:latest"),
    }
}

fn ports(containers: &[RawContainer], inits: &[RawContainer]) -> Vec<HostPort> {
    let sidecars = inits
        .iter()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let all = containers.iter().chain(sidecars).flat_map(|c| &c.ports);
    all.filter(|port| port.host_port > 0)
        .map(|port| HostPort {
            ip: if port.host_ip.is_empty() || port.host_ip == "::" {
                "0.0.0.0".to_owned()
            } else {
                port.host_ip.clone()
            },
            protocol: if port.protocol.is_empty() {
                "TCP".to_owned()
            } else {
                port.protocol.clone()
            },
            port: port.host_port,
        })
        .collect()
}
