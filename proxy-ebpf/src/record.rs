//! What the CNI plugin leaves on disk for the daemon, and what the two say to
//! each other over the daemon's unix socket.
//!
//! One JSON file per attachment, `<state dir>/endpoints/<container id>-<ifname>.json`,
//! written before the kernel objects are made and removed after they are gone:
//! the files are the list of this node's endpoints.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Default places; every program takes flags or configuration for others.
pub mod path {
    pub const STATE_DIR: &str = "/var/lib/fairlead";
    pub const BPFFS: &str = "/sys/fs/bpf";
    pub const SOCKET: &str = "/run/fairlead/fairlead.sock";
    /// Below the state directory.
    pub const ENDPOINTS: &str = "endpoints";
    /// Below the state directory: by whom an address is taken.
    pub const ADDRESSES: &str = "addresses";
    /// Below the state directory: the plugins' lock.
    pub const LOCK: &str = "lock";
    /// Below the state directory: the boot that the records are of.
    pub const BOOT_ID: &str = "boot_id";
    /// Below the state directory: the addresses given last.
    pub const LAST: &str = "last";
    /// All that the plugin keeps in the state directory.
    pub const STATE: [&str; 5] = [ENDPOINTS, ADDRESSES, LAST, BOOT_ID, LOCK];

    /// The directory that holds pinned maps and programs: `<bpffs>/fairlead/v<ABI>`.
    pub fn pins(bpffs: &std::path::Path) -> std::path::PathBuf {
        bpffs
            .join("fairlead")
            .join(format!("v{}", crate::abi::ABI_VERSION))
    }
}

/// One attachment of a container to the pod network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// 1.
    pub version: u32,
    /// The name of the network in the CNI configuration.
    pub network: String,
    pub container_id: String,
    /// Inside the container.
    pub ifname: String,
    /// Path of the container's network namespace.
    pub netns: String,
    pub slot: u32,
    pub host_ifname: String,
    /// 0 while the interface has not been made yet.
    pub host_ifindex: u32,
    /// `aa:bb:cc:dd:ee:ff`
    pub mac: String,
    pub host_mac: String,
    pub ips: Vec<IpAddr>,
    /// From `CNI_ARGS`, where the runtime is a Kubernetes one.
    pub pod: Option<PodRef>,
    /// A bandwidth towards the pod was asked for ([`crate::abi::Endpoint::SHAPED`]).
    #[serde(default)]
    pub shaped: bool,
    pub default_policy: DefaultPolicy,
    #[serde(default)]
    pub hooks: Hooks,
    /// Host ports that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// `/proc/sys/kernel/random/boot_id` when made: another one means that
    /// the kernel objects are gone.
    pub boot_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    /// None: every address of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// What holds the programs on the host interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hooks {
    /// Pinned TCX links: beside whatever the interface's maker has on its qdiscs.
    /// Each costs a grace period of the kernel, some ten milliseconds.
    #[default]
    Links,
    /// [`filter`]s, which live and die with the interface.
    Filters,
}

/// The programs as direct-action filters for all protocols on the host
/// interface's `clsact` qdisc; named like the programs.
pub mod filter {
    pub const PRIORITY: u16 = 1;
    pub const HANDLE: u32 = 1;
}

/// What holds for a pod until the daemon has computed its policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultPolicy {
    #[default]
    Closed,
    Open,
}

/// One line of JSON from the plugin to the daemon; answered by one [`Answer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Notice {
    /// The record has been written and the programs are attached. Answered
    /// when the pod's policy is in force, or after `timeout_ms`.
    EndpointAdded {
        container_id: String,
        ifname: String,
        timeout_ms: u64,
    },
    /// The record and the kernel objects are gone.
    EndpointRemoved {
        container_id: String,
        ifname: String,
    },
    /// Is the daemon able to serve ADD?
    Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Answer {
    /// The policy is in force.
    Done,
    /// No source knows the pod (yet): the record's default policy holds.
    PodUnknown,
    /// It could not be done; `message` says why and what to do.
    Failed { message: String },
}
