//! The cluster state that matters to a node, typed: what every source gives
//! and what the compilers read. Pure.
//!
//! Manifests become [`Object`]s in [`manifest`], which refuses what it does not
//! understand ([`Rejected`]); [`State`] holds the objects in force.

use std::fmt;
use std::sync::Arc;

pub mod fault;
pub mod label;
pub mod manifest;
pub mod net;
pub mod node;
pub mod policy;
pub mod service;
pub mod state;

pub use fault::{FieldError, Instead, Rejected};
pub use label::{Labels, Selector};
pub use net::{Cidr, Protocol};
pub use node::{Namespace, Node, Phase, Pod};
pub use policy::NetworkPolicy;
pub use service::{EndpointSlice, Service};
pub use state::State;

/// The kinds that the daemon reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Namespace,
    Pod,
    Service,
    EndpointSlice,
    NetworkPolicy,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Node,
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Namespace | Self::Pod | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::Namespace)
    }

    /// The kind of a manifest; `None` if the daemon has no use for it.
    pub fn of(api_version: &str, name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.api_version() == api_version && kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What names an object in the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// An object in force. Shared, so that a change costs no deep copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Node(Arc<Node>),
    Namespace(Arc<Namespace>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    NetworkPolicy(Arc<NetworkPolicy>),
}

impl Object {
    pub fn key(&self) -> Key {
        let (kind, name) = match self {
            Self::Node(o) => (Kind::Node, ObjectName::new("", &o.name)),
            Self::Namespace(o) => (Kind::Namespace, ObjectName::new("", &o.name)),
            Self::Pod(o) => (Kind::Pod, o.name.clone()),
            Self::Service(o) => (Kind::Service, o.name.clone()),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, o.name.clone()),
            Self::NetworkPolicy(o) => (Kind::NetworkPolicy, o.name.clone()),
        };
        Key { kind, name }
    }
}

/// One step of the stream that a source gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Upsert(Object),
    Remove(Key),
    /// The object could not be understood; [`Rejected::instead`] says what
    /// holds in its place.
    Reject(Rejected),
}

impl Change {
    /// The object that it is about.
    pub fn key(&self) -> Key {
        match self {
            Self::Upsert(object) => object.key(),
            Self::Remove(key) => key.clone(),
            Self::Reject(rejected) => rejected.key.clone(),
        }
    }
}
