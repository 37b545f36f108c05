//! Nodes, namespaces and pods.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use super::fault::Check;
use super::label::{Labels, check_labels};
use super::{Cidr, ObjectName, Protocol};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub labels: Labels,
    /// Every address of the node's status that is an IP address.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<Cidr>,
}

impl Node {
    /// The label `topology.kubernetes.io/zone`.
    pub fn zone(&self) -> Option<&str> {
        self.labels
            .get("topology.kubernetes.io/zone")
            .map(String::as_str)
    }

    pub(super) fn read(check: &mut Check, name: ObjectName, node: &api::Node) -> Self {
        let labels = read_labels(check, node.metadata.labels.as_ref());
        let mut addresses = Vec::new();
        let status = node.status.as_ref();
        for address in status
            .and_then(|s| s.addresses.as_ref())
            .into_iter()
            .flatten()
        {
            // Hostname and DNS types hold names, and sometimes an address: both are fine.
            if let Ok(ip) = address.address.parse::<IpAddr>() {
                addresses.push(ip);
            } else if address.type_.ends_with("IP") {
                check.ip("status.addresses", &address.address);
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        let spec = node.spec.as_ref();
        let listed = spec.and_then(|s| s.pod_cidrs.clone()).unwrap_or_default();
        let single = spec
            .and_then(|s| s.pod_cidr.clone())
            .filter(|_| listed.is_empty());
        let mut pod_cidrs = Vec::new();
        for text in listed.into_iter().chain(single) {
            match Cidr::parse(&text) {
                Some(cidr) => pod_cidrs.push(cidr),
                None => check.fault(
                    "spec.podCIDRs",
                    format!("\"{text}\" is not a CIDR"),
                    "write it as 10.0.0.0/24 or fd00::/64",
                ),
            }
        }
        Self {
            name: name.name,
            labels,
            addresses,
            pod_cidrs,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    /// With `kubernetes.io/metadata.name`, which the API server always sets.
    pub labels: Labels,
}

impl Namespace {
    /// A namespace with no labels but its name.
    pub fn bare(name: &str) -> Self {
        Self::with_labels(name, Labels::new())
    }

    pub fn with_labels(name: &str, mut labels: Labels) -> Self {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        Self {
            name: name.to_owned(),
            labels,
        }
    }

    pub(super) fn read(check: &mut Check, name: &ObjectName, namespace: &api::Namespace) -> Self {
        let labels = read_labels(check, namespace.metadata.labels.as_ref());
        Self::with_labels(&name.name, labels)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not stated, as in a plain manifest.
    #[default]
    Unstated,
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// The annotation by which a kubelet marks the mirrors of its static pods.
const STATIC_UID: &str = "kubernetes.io/config.mirror";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub name: ObjectName,
    pub uid: Option<String>,
    /// The UID by which its kubelet knows it, if the pod is a static one: the
    /// API server has given its mirror another.
    pub static_uid: Option<String>,
    pub labels: Labels,
    pub node: Option<String>,
    pub host_network: bool,
    /// `status.podIPs`; the node's for a host-network pod.
    pub ips: Vec<IpAddr>,
    pub phase: Phase,
    /// The Ready condition; `None` where the status has none.
    pub ready: Option<bool>,
    pub terminating: bool,
    /// Seconds since 1970; 0 where unknown.
    pub created: i64,
    /// Named container ports in the order in which names are resolved:
    /// containers first, then sidecars.
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

impl Pod {
    /// It will never run again, so its addresses may be another's.
    pub const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// May it receive traffic through a Service? A pod without status counts
    /// as running and ready.
    pub fn is_ready(&self) -> bool {
        self.ready
            .unwrap_or(matches!(self.phase, Phase::Unstated | Phase::Running))
    }

    /// The container port that `name` stands for: the first of that name and protocol.
    pub fn resolve(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.name == name && port.protocol == protocol)
            .map(|port| port.port)
    }

    pub(super) fn read(check: &mut Check, name: ObjectName, pod: &api::Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let mut ports = Vec::new();
        for (index, container) in spec.containers.iter().enumerate() {
            read_ports(
                check,
                &format!("spec.containers[{index}]"),
                container,
                &mut ports,
            );
        }
        let inits = spec.init_containers.iter().flatten().enumerate();
        for (index, container) in inits {
            let mut own = Vec::new();
            read_ports(
                check,
                &format!("spec.initContainers[{index}]"),
                container,
                &mut own,
            );
            if container.restart_policy.as_deref() == Some("Always") {
                ports.extend(own);
            }
        }
        Self {
            labels: read_labels(check, pod.metadata.labels.as_ref()),
            uid: pod.metadata.uid.clone(),
            static_uid: pod
                .metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(STATIC_UID).cloned()),
            node: spec.node_name.filter(|node| !node.is_empty()),
            host_network: spec.host_network.unwrap_or(false),
            ips: read_pod_ips(check, &status),
            phase: read_phase(check, status.phase.as_deref()),
            ready: status
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == "Ready")
                .map(|condition| condition.status == "True"),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            created: pod
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
            ports,
            name,
        }
    }
}

fn read_labels(check: &mut Check, labels: Option<&Labels>) -> Labels {
    let labels = labels.cloned().unwrap_or_default();
    check_labels(check, "metadata.labels", &labels);
    labels
}

fn read_ports(
    check: &mut Check,
    path: &str,
    container: &api::Container,
    into: &mut Vec<NamedPort>,
) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let number = check.port(&format!("{path}.containerPort"), port.container_port);
        let protocol = check.protocol(&format!("{path}.protocol"), port.protocol.as_deref());
        let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else {
            continue;
        };
        let good = check.port_name(&format!("{path}.name"), name);
        if let (true, Some(port), Some(protocol)) = (good, number, protocol) {
            into.push(NamedPort {
                name: name.to_owned(),
                protocol,
                port,
            });
        }
    }
}

fn read_pod_ips(check: &mut Check, status: &api::PodStatus) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (index, entry) in status.pod_ips.iter().flatten().enumerate() {
        ips.extend(check.ip(&format!("status.podIPs[{index}].ip"), &entry.ip));
    }
    if ips.is_empty()
        && let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty())
    {
        ips.extend(check.ip("status.podIP", ip));
    }
    ips
}

fn read_phase(check: &mut Check, phase: Option<&str>) -> Phase {
    match phase {
        None | Some("") => Phase::Unstated,
        Some("Pending") => Phase::Pending,
        // Unknown: its node cannot be reached, but it may well run.
        Some("Running" | "Unknown") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some(other) => {
            check.fault(
                "status.phase",
                format!("unknown phase \"{other}\""),
                "use Pending, Running, Succeeded or Failed",
            );
            Phase::Unstated
        }
    }
}
