//! Whole state in, map contents out: the compilers of policies and Services.
//! Pure; [`Compiler::update`] gives the writes, in order, that bring the maps up
//! to date, and [`Compiler::tables`] all of their contents.
//!
//! Bounds: those of the maps ([`proxy_ebpf::abi::bound`]). What does not fit is a
//! [`Problem`]; the rest stays in force and nothing is allowed for want of room.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Change, Key, Kind, Object, ObjectName, Pod, State};

mod alloc;
mod owner;
pub(crate) mod policy;
pub mod sample;
mod service;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod write;

pub use owner::Owner;
use owner::Owners;
pub use policy::Direction;
use policy::{Inputs, PolicyCompiler};
use service::ServiceCompiler;
pub use tables::Tables;
pub use write::Write;

/// A pod interface of this node, as the CNI plugin recorded it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// `None`: not made for a Kubernetes pod.
    pub pod: Option<ObjectName>,
    pub ips: Vec<IpAddr>,
    /// While no source knows the pod: everything passes instead of nothing.
    pub starts_open: bool,
}

/// By endpoint slot.
pub type Attachments = BTreeMap<u32, Attachment>;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Object(Change),
    Attach {
        slot: u32,
        attachment: Attachment,
    },
    Detach {
        slot: u32,
    },
    /// All addresses of this node's own interfaces, besides those of its Node object.
    NodeAddresses(BTreeSet<IpAddr>),
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// To be applied in order.
    pub writes: Vec<Write>,
    /// Something did not fit while old and new stood side by side: once the
    /// writes are applied, update again, if only with no input.
    pub again: bool,
}

/// What could not be done as asked, and what holds instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error(
        "{pod} is closed in {} because {full} is full; hint: fewer different ports or peers in its policies",
        direction.name()
    )]
    SetFull {
        pod: ObjectName,
        direction: Direction,
        /// The map.
        full: &'static str,
    },
    #[error("POLICY_PEERS is full: {left_out} peer classes are treated as strangers")]
    PeersFull { left_out: usize },
    #[error("ADDRESSES is full: {left_out} addresses are treated as outside the cluster")]
    AddressesFull { left_out: usize },
    #[error("the ipBlocks of IPv{} do not fit into CIDRS and match no address outside the cluster", if *.is_v6 { 6 } else { 4 })]
    CidrsFull { is_v6: bool },
    #[error("Service {service}: {full} is full: {effect}")]
    ServiceFull {
        service: ObjectName,
        full: &'static str,
        effect: &'static str,
    },
    #[error("Service {service} shares an address and port with the older {winner}, which has them")]
    ServiceContested {
        service: ObjectName,
        winner: ObjectName,
    },
    #[error("{address} is claimed by {} owners; {winner} has it", .claims)]
    Contested {
        address: IpAddr,
        winner: String,
        claims: usize,
    },
}

/// The compilers with what they remember: numbers, so that a change moves little,
/// and matches, so that it costs little.
#[derive(Clone, Debug)]
pub struct Compiler {
    node: String,
    state: State,
    attachments: Attachments,
    node_addresses: BTreeSet<IpAddr>,
    owners: Owners,
    policy: PolicyCompiler,
    services: ServiceCompiler,
    tables: Tables,
    problems: Vec<Problem>,
    /// The next update rebuilds everything.
    stale: bool,
    /// No update yet since [`Compiler::adopt`].
    adopting: bool,
}

/// What an update has to look at again.
#[derive(Debug, Default)]
struct Work {
    rebuild: bool,
    owners: bool,
    touched: BTreeSet<IpAddr>,
}

impl Compiler {
    /// For the node of this name, with empty maps.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            state: State::default(),
            attachments: Attachments::new(),
            node_addresses: BTreeSet::new(),
            owners: Owners::default(),
            policy: PolicyCompiler::default(),
            services: ServiceCompiler::default(),
            tables: Tables::default(),
            problems: Vec::new(),
            stale: true,
            adopting: false,
        }
    }

    /// For the node of this name, whose maps hold `found`: all entries, and all
    /// array elements that are not zero. The first update must have everything
    /// that the sources say: what still means the same keeps its numbers and is
    /// not written, the rest is moved over in order or removed.
    pub fn adopt(node: &str, mut found: Tables) -> Self {
        let mut compiler = Self::new(node);
        found.take_delta();
        compiler.policy.adopt(&found);
        compiler.services.adopt(&found);
        compiler.tables = found;
        compiler.adopting = true;
        compiler
    }

    /// For prefix maps that hold this many, IPv4 and IPv6; as built they hold
    /// [`bound::CIDRS`](proxy_ebpf::abi::bound::CIDRS), but another build may have made them.
    #[must_use]
    pub fn with_prefixes(mut self, room: [u32; 2]) -> Self {
        self.policy.prefix_room = room;
        self
    }

    /// What the maps hold once all writes so far are applied.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    pub(crate) fn policy(&self) -> &PolicyCompiler {
        &self.policy
    }

    /// Whether a UDP Service may have lost a backend since the last call.
    pub fn take_lost(&mut self) -> bool {
        self.services.take_lost()
    }

    /// Who has an address, of all that claim it.
    pub fn owner(&self, address: IpAddr) -> Option<&Owner> {
        self.owners.winner(address)
    }

    /// Everything that does not fit or is claimed twice.
    pub fn problems(&self) -> Vec<Problem> {
        let contested = self.owners.contested().filter_map(|(address, claims)| {
            Some(Problem::Contested {
                address,
                winner: claims.first()?.to_string(),
                claims: claims.len(),
            })
        });
        let known = self.problems.iter().chain(self.services.problems());
        known.cloned().chain(contested).collect()
    }

    /// Takes in what happened; the writes that follow from it.
    pub fn update(&mut self, inputs: impl IntoIterator<Item = Input>) -> Update {
        if !std::mem::take(&mut self.adopting) {
            self.policy.settle();
            self.services.settle();
        }
        let mut work = Work::default();
        if std::mem::take(&mut self.stale) {
            work.rebuild = true;
            work.owners = true;
        }
        for input in inputs {
            self.take(input, &mut work);
        }
        let old = self.tables.decision;
        let mut bridge = Vec::new();
        let services = service::Inputs {
            node: &self.node,
            state: &self.state,
            attachments: &self.attachments,
        };
        for vip in self.services.update(services, &mut self.tables) {
            if self.services.has_vip(vip) {
                self.owners.claim(vip, Owner::Service);
            } else {
                self.owners.disclaim(vip, &Owner::Service);
            }
            work.touched.insert(vip);
        }
        if work.owners {
            self.owners = self.claim_all();
        }
        if !work.rebuild {
            let mut problems = std::mem::take(&mut self.problems);
            let (inputs, policy, tables) = self.parts();
            work.rebuild = !policy.touch(inputs, &work.touched, tables, &mut problems);
            self.problems = problems;
        }
        if work.rebuild {
            let mut problems = Vec::new();
            let (inputs, policy, tables) = self.parts();
            bridge = policy.rebuild(inputs, tables, &mut problems);
            self.problems = problems;
        }
        let delta = self.tables.take_delta();
        if delta.changes_verdicts() {
            let next = self.tables.decision.generation.wrapping_add(1);
            self.tables.decision.generation = next.max(1);
        }
        let writes = delta.order(old, self.tables.decision, &bridge);
        let full = |problem: &Problem| {
            matches!(
                problem,
                Problem::SetFull { .. } | Problem::PeersFull { .. } | Problem::CidrsFull { .. }
            )
        };
        let policy_full = self.problems.iter().any(full);
        let again = !writes.is_empty() && (policy_full || self.services.is_short());
        self.stale |= (again && policy_full) || self.policy.take_leftovers();
        Update { writes, again }
    }

    fn parts(&mut self) -> (Inputs<'_>, &mut PolicyCompiler, &mut Tables) {
        let inputs = Inputs {
            state: &self.state,
            attachments: &self.attachments,
            owners: &self.owners,
        };
        (inputs, &mut self.policy, &mut self.tables)
    }

    fn take(&mut self, input: Input, work: &mut Work) {
        match input {
            Input::Object(change) => self.take_change(change, work),
            Input::Attach { slot, attachment } => self.attach(slot, Some(attachment), work),
            Input::Detach { slot } => self.attach(slot, None, work),
            Input::NodeAddresses(addresses) => {
                if self.node_addresses != addresses {
                    self.node_addresses = addresses;
                    (work.rebuild, work.owners) = (true, true);
                }
            }
        }
    }

    fn attach(&mut self, slot: u32, attachment: Option<Attachment>, work: &mut Work) {
        if self.attachments.get(&slot) == attachment.as_ref() {
            return;
        }
        let new = attachment.clone();
        let old = match attachment {
            Some(attachment) => self.attachments.insert(slot, attachment),
            None => self.attachments.remove(&slot),
        };
        (work.rebuild, work.owners) = (true, true);
        for pod in old.iter().chain(&new).filter_map(|a| a.pod.as_ref()) {
            self.services.pods_changed(&self.state, &pod.namespace);
        }
    }

    fn take_change(&mut self, change: Change, work: &mut Work) {
        let key = change.key();
        let old = self.state.get(&key);
        self.state.apply(change);
        let new = self.state.get(&key);
        if old == new {
            return;
        }
        match key.kind {
            Kind::Pod => self.pod_changed(&key, old, new, work),
            Kind::Namespace => work.rebuild = true,
            Kind::Node => {
                (work.rebuild, work.owners) = (true, true);
                if key.name.name == self.node {
                    // Its zone decides which endpoints are near.
                    self.services.all_changed(&self.state);
                }
            }
            Kind::NetworkPolicy => {
                let namespace = &key.name.namespace;
                let mut pods = self.attachments.values().filter_map(|a| a.pod.as_ref());
                work.rebuild |= pods.any(|pod| pod.namespace == *namespace);
            }
            Kind::Service => self.services.service_changed(&key.name),
            Kind::EndpointSlice => {
                let of = |object: &Option<Object>| match object {
                    Some(Object::EndpointSlice(slice)) => Some(Arc::clone(slice)),
                    _ => None,
                };
                let (old, new) = (of(&old), of(&new));
                self.services
                    .slice_changed(&self.state, old.as_deref(), new.as_deref());
            }
        }
    }

    fn pod_changed(
        &mut self,
        key: &Key,
        old: Option<Object>,
        new: Option<Object>,
        work: &mut Work,
    ) {
        let of = |object: Option<Object>| match object {
            Some(Object::Pod(pod)) => Some(pod),
            _ => None,
        };
        self.services.pods_changed(&self.state, &key.name.namespace);
        let (old, new) = (of(old), of(new));
        let both = || old.iter().chain(&new);
        if self.is_attached(&key.name) || both().any(|pod| pod.host_network) {
            (work.rebuild, work.owners) = (true, true);
            return;
        }
        for pod in old.iter().filter(|pod| !pod.is_over()) {
            for ip in &pod.ips {
                self.owners.disclaim(*ip, &Owner::pod(pod));
            }
        }
        for pod in new.iter().filter(|pod| !pod.is_over()) {
            for ip in &pod.ips {
                self.owners.claim(*ip, Owner::pod(pod));
            }
        }
        work.touched
            .extend(both().flat_map(|pod| pod.ips.iter().copied()));
    }

    fn is_attached(&self, pod: &ObjectName) -> bool {
        self.attachments
            .values()
            .any(|a| a.pod.as_ref() == Some(pod))
    }

    fn claim_all(&self) -> Owners {
        let mut owners = Owners::default();
        let mut attached = BTreeSet::new();
        for (slot, attachment) in &self.attachments {
            for ip in &attachment.ips {
                attached.extend(attachment.pod.iter().map(|pod| (pod, *ip)));
                owners.claim(*ip, Owner::Endpoint(*slot));
            }
        }
        for ip in &self.node_addresses {
            owners.claim(*ip, Owner::Node { is_remote: false });
        }
        for node in self.state.nodes.values() {
            let is_remote = node.name != self.node;
            for ip in &node.addresses {
                owners.claim(*ip, Owner::Node { is_remote });
            }
        }
        let live = self.state.pods.values().filter(|pod| !pod.is_over());
        for pod in live {
            let owner = self.owner_of(pod);
            // A pod of an attachment's name may be its successor, elsewhere.
            let others = |ip: &&IpAddr| !attached.contains(&(&pod.name, **ip));
            for ip in pod.ips.iter().filter(others) {
                owners.claim(*ip, owner.clone());
            }
        }
        for vip in self.services.vips() {
            owners.claim(vip, Owner::Service);
        }
        owners
    }

    fn owner_of(&self, pod: &Pod) -> Owner {
        if pod.host_network {
            Owner::Node {
                is_remote: pod.node.as_deref() != Some(&self.node),
            }
        } else {
            Owner::pod(pod)
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(slot) => write!(f, "the pod at endpoint slot {slot}"),
            Self::Node { is_remote: false } => f.write_str("this node"),
            Self::Node { is_remote: true } => f.write_str("another node"),
            Self::Pod { name, .. } => write!(f, "pod {name}"),
            Self::Service => f.write_str("a Service"),
        }
    }
}
