//! A cluster as plain values, and as the manifests a person would write.
//!
//! The oracle reads the values, the code under test reads the manifests.

mod manifest;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub type Labels = BTreeMap<String, String>;

/// The node whose data path is under test.
pub const LOCAL_NODE: &str = "node-a";
pub const REMOTE_NODE: &str = "node-b";

#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    pub policies: Vec<Policy>,
    pub services: Vec<Service>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

/// Its labels include `kubernetes.io/metadata.name`.
#[derive(Clone, Debug)]
pub struct Namespace {
    pub name: String,
    pub labels: Labels,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub node: String,
    /// At most one of each family; a host-network pod has its node's.
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub number: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// A `NetworkPolicy`; `None` is a field that is absent.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    pub pod_selector: Selector,
    pub types: Option<Vec<Direction>>,
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// `peers` is `from` or `to`.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub peers: Option<Vec<Peer>>,
    pub ports: Option<Vec<PolicyPort>>,
}

#[derive(Clone, Debug)]
pub enum Peer {
    /// At least one of the two is there.
    Selectors {
        namespaces: Option<Selector>,
        pods: Option<Selector>,
    },
    Block {
        cidr: IpNetwork,
        except: Vec<IpNetwork>,
    },
}

#[derive(Clone, Debug, Default)]
pub struct PolicyPort {
    pub protocol: Option<Protocol>,
    pub port: Option<PortRef>,
    pub end_port: Option<u16>,
}

#[derive(Clone, Debug)]
pub enum PortRef {
    Number(u16),
    Name(String),
}

#[derive(Clone, Debug, Default)]
pub struct Selector {
    pub labels: Labels,
    pub expressions: Vec<Expression>,
}

#[derive(Clone, Debug)]
pub struct Expression {
    pub key: String,
    pub operator: Operator,
    /// Empty for `Exists` and `DoesNotExist`, else not.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// At most one of each family.
    pub ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub slices: Vec<Slice>,
    pub internal_local: bool,
    /// Seconds of `ClientIP` affinity.
    pub affinity: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub number: u16,
}

/// An EndpointSlice: one family.
#[derive(Clone, Debug)]
pub struct Slice {
    pub v6: bool,
    pub ports: Vec<NamedPort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
}

impl Pod {
    /// Attached to the data path under test.
    pub fn is_local(&self) -> bool {
        self.node == LOCAL_NODE && !self.host_network
    }

    /// Its address of a family.
    pub fn ip(&self, v6: bool) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv6() == v6)
    }
}

impl Cluster {
    /// The pod that has this address for itself; host-network pods have none.
    pub fn pod_at(&self, ip: IpAddr) -> Option<&Pod> {
        self.pods
            .iter()
            .find(|pod| !pod.host_network && pod.ips.contains(&ip))
    }

    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces
            .iter()
            .find(|namespace| namespace.name == name)
    }

    /// Whether this is an address of the node under test.
    pub fn is_local_node(&self, ip: IpAddr) -> bool {
        self.nodes
            .iter()
            .any(|node| node.name == LOCAL_NODE && node.addresses.contains(&ip))
    }
}

/// Labels from pairs.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

impl Selector {
    /// Selects everything.
    pub fn all() -> Self {
        Self::default()
    }

    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self {
            labels: labels(pairs),
            expressions: Vec::new(),
        }
    }
}
