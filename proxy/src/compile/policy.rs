//! The policy compiler: which class an address is of, which sets an endpoint
//! has, and what is in them.
//!
//! A set never changes but for the bits of classes that come and go, and a class
//! never changes its meaning: a change of policies makes new ones, moves
//! addresses and endpoints over, and gives the old ones up. Questions (atoms)
//! that only the policies of the previous state asked are kept for one more
//! update, so that the sets on their way out still judge rightly.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use proxy_ebpf::abi::{self, Address, PeerKey, bound, kind};

use super::alloc::Ranges;
use super::owner::{Owner, Owners};
use super::tables::Tables;
use super::{Attachment, Attachments, Problem};
use crate::model::{Namespace, NetworkPolicy, ObjectName, Pod, State};

mod adopt;
pub(crate) mod atom;
pub(crate) mod class;
pub(crate) mod live;
pub(crate) mod rule;
pub(crate) mod set;

use adopt::Found;

use atom::{AtomId, Atoms};
use class::{Classes, NameId, Signature};
use live::LiveSet;
pub use rule::Direction;
use rule::{Isolation, Lowered, Names, PortMatch};
use set::Spec;

/// An endpoint's policies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    /// `None`: no source knows the pod (yet).
    pub(crate) pod: Option<Arc<Pod>>,
    /// The set in both directions while the pod is not known.
    unknown_set: u32,
    pub(crate) ingress: Option<Isolation>,
    pub(crate) egress: Option<Isolation>,
}

impl Subject {
    pub(crate) fn isolation(&self, direction: Direction) -> Option<&Isolation> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct PolicyCompiler {
    atoms: Atoms,
    /// Atoms that the policies in force refer to.
    current: BTreeSet<AtomId>,
    indexed: BTreeSet<AtomId>,
    pub(crate) names: Names,
    /// Names that the policies in force refer to.
    current_names: BTreeSet<NameId>,
    /// Those, and those of the state before.
    names_in_use: Vec<NameId>,
    pub(crate) classes: Classes,
    sets: HashMap<Arc<Spec>, LiveSet>,
    set_numbers: Ranges,
    /// By endpoint slot.
    pub(crate) subjects: BTreeMap<u32, Subject>,
    /// Every number that a name in use stands for on some pod.
    universe: BTreeMap<NameId, BTreeSet<u16>>,
    nothing_labelled: Namespace,
    /// Classes that some set still lacks the bits of, for want of room.
    pending: Vec<u32>,
    found: Option<Found>,
    /// Something of what was found is kept, to be given up by the next rebuild.
    has_leftovers: bool,
    /// Prefixes that the maps hold, IPv4 and IPv6.
    pub(super) prefix_room: [u32; 2],
}

/// What the compilers read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) state: &'a State,
    pub(super) attachments: &'a Attachments,
    pub(super) owners: &'a Owners,
}

impl Default for PolicyCompiler {
    fn default() -> Self {
        Self {
            atoms: Atoms::default(),
            current: BTreeSet::new(),
            indexed: BTreeSet::new(),
            names: Names::default(),
            current_names: BTreeSet::new(),
            names_in_use: Vec::new(),
            classes: Classes::default(),
            sets: HashMap::new(),
            set_numbers: Ranges::new(abi::SET_FIRST, bound::POLICY_SETS),
            subjects: BTreeMap::new(),
            universe: BTreeMap::new(),
            nothing_labelled: Namespace::default(),
            pending: Vec::new(),
            found: None,
            has_leftovers: false,
            prefix_room: [bound::CIDRS; 2],
        }
    }
}

impl PolicyCompiler {
    /// Whether another rebuild is due for what this one has kept.
    pub(super) fn take_leftovers(&mut self) -> bool {
        std::mem::take(&mut self.has_leftovers)
    }

    /// Numbers given up by the last update may be reused.
    pub(super) fn settle(&mut self) {
        self.classes.settle();
        self.set_numbers.settle();
    }

    /// Everything anew but the numbers, which stay where they can. Returns the
    /// bits that sets on their way out need for new classes.
    pub(super) fn rebuild(
        &mut self,
        inputs: Inputs<'_>,
        tables: &mut Tables,
        problems: &mut Vec<Problem>,
    ) -> Vec<(PeerKey, u64)> {
        self.isolate(inputs);
        self.adopt_classes(inputs);
        let used_classes = self.classify_all(inputs, tables, problems);
        let fresh = self.take_fresh();
        if let Some(found) = &mut self.found {
            found.fresh = fresh.iter().copied().collect();
        }
        self.add_fresh(&fresh, tables, problems);
        let retired = self.build_sets(tables, problems);
        let mut bridge = self.retire(&retired, &fresh, tables);
        bridge.extend(self.sweep(&fresh, tables));
        for class in self.classes.retain(&used_classes) {
            for live in self.sets.values() {
                for word in live.base..live.base + live.compiled.words() {
                    tables.peers.set(PeerKey { word, class }, None);
                }
            }
        }
        bridge
    }

    /// Which policies isolate which endpoint, and the atoms and names they use.
    fn isolate(&mut self, inputs: Inputs<'_>) {
        let mut subjects = BTreeMap::new();
        for (slot, attachment) in inputs.attachments {
            subjects.insert(*slot, self.subject(inputs.state, attachment));
        }
        self.subjects = subjects;
        let isolations = self.subjects.values();
        let isolations = isolations.flat_map(|s| s.ingress.iter().chain(&s.egress));
        let rules: Vec<&Lowered> = isolations
            .flat_map(|i| i.rules.iter().map(|rule| &rule.lowered))
            .collect();
        let atoms = rules
            .iter()
            .flat_map(|rule| rule.peers.iter().flatten().copied());
        let atoms: BTreeSet<AtomId> = atoms.collect();
        let ports = rules.iter().flat_map(|rule| rule.ports.iter().flatten());
        let names = ports.filter_map(|port| match port {
            PortMatch::Peer(name) => Some(*name),
            PortMatch::Range(..) => None,
        });
        let names: BTreeSet<NameId> = names.collect();
        self.names_in_use = names.union(&self.current_names).copied().collect();
        self.current_names = names;
        let kept: BTreeSet<AtomId> = atoms.union(&self.current).copied().collect();
        if kept != self.indexed || self.atoms.len() != kept.len() {
            self.atoms.retain(&kept);
            self.indexed = kept;
        } else {
            self.atoms.forget_matches();
        }
        self.current = atoms;
    }

    fn subject(&mut self, state: &State, attachment: &Attachment) -> Subject {
        let pod = attachment
            .pod
            .as_ref()
            .and_then(|name| state.pods.get(name));
        let unknown_set = if attachment.starts_open {
            abi::SET_NONE
        } else {
            abi::SET_CLOSED
        };
        let Some(pod) = pod else {
            return Subject {
                unknown_set,
                ..Subject::default()
            };
        };
        let policies = policies_of(state, pod);
        let mut isolation = |direction| {
            let (atoms, names) = (&mut self.atoms, &mut self.names);
            Isolation::of_pod(&policies, direction, pod, atoms, names)
        };
        Subject {
            ingress: isolation(Direction::Ingress),
            egress: isolation(Direction::Egress),
            pod: Some(Arc::clone(pod)),
            unknown_set,
        }
    }

    /// Puts every address and prefix into the tables; returns the classes used.
    fn classify_all(
        &mut self,
        inputs: Inputs<'_>,
        tables: &mut Tables,
        problems: &mut Vec<Problem>,
    ) -> BTreeSet<u32> {
        self.universe.clear();
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        let mut used = BTreeSet::new();
        let mut lost = 0_usize;
        for (owner, ip) in inputs.owners.by_precedence() {
            let keys = if ip.is_ipv4() { &mut v4 } else { &mut v6 };
            if keys.len() >= size(bound::ADDRESSES) {
                lost += 1;
                continue;
            }
            let address = self.address(inputs, ip, owner);
            used.insert(address.class);
            keys.insert(ip);
            tables.addresses.set(ip, Some(address));
        }
        if lost > 0 {
            problems.push(Problem::AddressesFull { left_out: lost });
        }
        let known = tables.addresses.iter().map(|(ip, _)| ip);
        let gone = known.filter(|ip| !v4.contains(ip) && !v6.contains(ip));
        for ip in gone.collect::<Vec<_>>() {
            tables.addresses.set(ip, None);
        }
        self.classify_prefixes(tables, &mut used, problems);
        for (slot, attachment) in inputs.attachments {
            let mut endpoint = tables.endpoints.get(slot).unwrap_or_default();
            let class = |ip: Option<IpAddr>| ip.map_or(0, |ip| tables.class_of(ip));
            endpoint.class_v4 = class(attachment.ips.iter().copied().find(IpAddr::is_ipv4));
            endpoint.class_v6 = class(attachment.ips.iter().copied().find(IpAddr::is_ipv6));
            used.extend([endpoint.class_v4, endpoint.class_v6]);
            tables.endpoints.set(*slot, Some(endpoint));
        }
        let detached = tables.endpoints.iter().map(|(slot, _)| slot);
        let detached = detached.filter(|slot| !inputs.attachments.contains_key(slot));
        for slot in detached.collect::<Vec<_>>() {
            tables.endpoints.set(slot, None);
        }
        used
    }

    /// If a family's prefixes do not fit, none of them is put in: an ipBlock
    /// without its exceptions would allow too much. Those of the state before
    /// count too, and are gone in the update after this one.
    fn classify_prefixes(
        &mut self,
        tables: &mut Tables,
        used: &mut BTreeSet<u32>,
        problems: &mut Vec<Problem>,
    ) {
        let prefixes = self.atoms.prefixes();
        let mut prefixes: BTreeMap<_, _> = prefixes
            .map(|(cidr, atoms)| (cidr, atoms.to_vec()))
            .collect();
        let room = self.prefix_room.map(size);
        let mut count = [0, 0];
        for cidr in prefixes.keys() {
            count[usize::from(cidr.is_v6())] += 1;
        }
        let fits = [count[0] <= room[0], count[1] <= room[1]];
        for cidr in self.found.iter().flat_map(Found::prefixes) {
            let family = usize::from(cidr.is_v6());
            if !prefixes.contains_key(&cidr) && count[family] < room[family] {
                prefixes.insert(cidr, self.atoms.of_prefix(cidr).to_vec());
                count[family] += 1;
            }
        }
        let known: Vec<_> = tables.cidrs.iter().map(|(cidr, _)| cidr).collect();
        for cidr in known {
            if !fits[usize::from(cidr.is_v6())] || !prefixes.contains_key(&cidr) {
                tables.cidrs.set(cidr, None);
            }
        }
        for (cidr, atoms) in prefixes {
            if fits[usize::from(cidr.is_v6())] {
                let signature = Signature {
                    atoms,
                    ports: Vec::new(),
                };
                let signature = self.told_apart(signature, |found| found.cidrs.get(&cidr));
                let class = self.classes.number(signature);
                used.insert(class);
                tables.cidrs.set(cidr, Some(class));
            }
        }
        for (is_v6, fits) in [false, true].into_iter().zip(fits) {
            if !fits {
                problems.push(Problem::CidrsFull { is_v6 });
            }
        }
        tables.decision.has_cidrs_v4 = tables.cidrs.iter().any(|(cidr, _)| !cidr.is_v6());
        tables.decision.has_cidrs_v6 = tables.cidrs.iter().any(|(cidr, _)| cidr.is_v6());
    }

    /// What the map says of an address that `owner` owns.
    fn address(&mut self, inputs: Inputs<'_>, ip: IpAddr, owner: &Owner) -> Address {
        let (kind, slot) = match owner {
            Owner::Endpoint(slot) => (kind::LOCAL_POD, *slot),
            Owner::Node { is_remote: false } => (kind::LOCAL_NODE, 0),
            Owner::Node { is_remote: true } => (kind::REMOTE_NODE, 0),
            Owner::Pod { .. } => (kind::REMOTE_POD, 0),
            Owner::Service => {
                return Address {
                    class: 0,
                    slot: 0,
                    kind: kind::SERVICE,
                };
            }
        };
        let pod = self.pod_of(inputs, owner);
        let signature = self.signature(inputs.state, ip, pod.as_deref());
        let class_of = |found: &Tables| found.addresses.get(&ip).map(|address| address.class);
        let signature = self.told_apart(signature, class_of);
        let class = self.classes.number(signature);
        Address { class, slot, kind }
    }

    /// In the update that adopts what was found, see [`Found::told_apart`].
    fn told_apart(
        &self,
        signature: Signature,
        class: impl FnOnce(&Tables) -> Option<u32>,
    ) -> Signature {
        match &self.found {
            Some(found) => found.told_apart(signature, class(&found.tables)),
            None => signature,
        }
    }

    /// The pod that selectors look at.
    fn pod_of(&self, inputs: Inputs<'_>, owner: &Owner) -> Option<Arc<Pod>> {
        match owner {
            Owner::Endpoint(slot) => self.subjects.get(slot)?.pod.clone(),
            Owner::Pod { name, .. } => inputs.state.pods.get(name).cloned(),
            Owner::Node { .. } | Owner::Service => None,
        }
    }

    /// What the questions in use say of an address, and of the pod that has it.
    pub(super) fn signature(&mut self, state: &State, ip: IpAddr, pod: Option<&Pod>) -> Signature {
        let Some(pod) = pod else {
            return Signature {
                atoms: self.atoms.of_address(ip).to_vec(),
                ports: Vec::new(),
            };
        };
        let namespace_name = &pod.name.namespace;
        let namespace = if let Some(namespace) = state.namespaces.get(namespace_name) {
            namespace
        } else {
            if self.nothing_labelled.name != *namespace_name {
                self.nothing_labelled = Namespace::bare(namespace_name);
            }
            &self.nothing_labelled
        };
        let mut atoms = self.atoms.of_pod(namespace, &pod.labels).to_vec();
        atoms.extend_from_slice(self.atoms.of_address(ip));
        atoms.sort_unstable();
        let names = self.names_in_use.iter();
        let ports = names.filter_map(|id| {
            let name = self.names.get(*id)?;
            Some((*id, pod.resolve(&name.name, name.protocol)?))
        });
        let ports: Vec<_> = ports.collect();
        for (name, port) in &ports {
            self.universe.entry(*name).or_default().insert(*port);
        }
        Signature { atoms, ports }
    }

    fn take_fresh(&mut self) -> Vec<u32> {
        let mut fresh = std::mem::take(&mut self.pending);
        fresh.extend(self.classes.take_fresh());
        fresh
    }

    /// Brings single addresses up to date, all else being as it was; `false`
    /// if that is not enough and all must be rebuilt.
    pub(super) fn touch(
        &mut self,
        inputs: Inputs<'_>,
        addresses: &BTreeSet<IpAddr>,
        tables: &mut Tables,
        problems: &mut Vec<Problem>,
    ) -> bool {
        let numbers_known: usize = self.universe.values().map(BTreeSet::len).sum();
        if inputs.owners.len() > size(bound::ADDRESSES)
            || self.classes.len() > 2 * inputs.owners.len() + SPARE_CLASSES
        {
            return false;
        }
        let mut changed = Vec::new();
        for ip in addresses {
            let owner = inputs.owners.winner(*ip).cloned();
            changed.push((*ip, owner.map(|owner| self.address(inputs, *ip, &owner))));
        }
        if self.universe.values().map(BTreeSet::len).sum::<usize>() != numbers_known {
            return false;
        }
        let fresh = self.take_fresh();
        self.add_fresh(&fresh, tables, problems);
        for (ip, address) in changed {
            tables.addresses.set(ip, address);
        }
        true
    }
}

/// Classes without addresses that may pile up between two rebuilds.
const SPARE_CLASSES: usize = 1024;

/// The policies that select a pod, in order of name.
pub(crate) fn policies_of(state: &State, pod: &Pod) -> Vec<Arc<NetworkPolicy>> {
    if pod.host_network {
        return Vec::new();
    }
    let namespace = &pod.name.namespace;
    let first = ObjectName::new(namespace, "");
    let own = state.policies.range(first..);
    let own = own.take_while(|(name, _)| name.namespace == *namespace);
    let selecting = own.filter(|(_, policy)| policy.subject.matches(&pod.labels));
    selecting.map(|(_, policy)| Arc::clone(policy)).collect()
}

/// A bound as a count.
pub(super) fn size(bound: u32) -> usize {
    usize::try_from(bound).expect("32 bits fit")
}
