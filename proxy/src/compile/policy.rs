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
pub(super) mod atom;
pub(super) mod class;
pub(super) mod rule;
pub(super) mod set;

use adopt::{Found, first_peer, last_peer};
use atom::{AtomId, Atoms};
use class::{Classes, NameId, Signature};
pub use rule::Direction;
use rule::{Isolation, Lowered, Names, PortMatch};
use set::{Compiled, Spec};

#[derive(Clone, Debug)]
struct LiveSet {
    base: u32,
    compiled: Compiled,
}

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
pub(super) struct PolicyCompiler {
    pub(super) atoms: Atoms,
    /// Atoms that the policies in force refer to.
    current: BTreeSet<AtomId>,
    indexed: BTreeSet<AtomId>,
    pub(super) names: Names,
    /// Names that the policies in force refer to.
    current_names: BTreeSet<NameId>,
    /// Those, and those of the state before.
    names_in_use: Vec<NameId>,
    pub(super) classes: Classes,
    sets: HashMap<Arc<Spec>, LiveSet>,
    set_numbers: Ranges,
    /// By endpoint slot.
    pub(super) subjects: BTreeMap<u32, Subject>,
    /// Every number that a name in use stands for on some pod.
    universe: BTreeMap<NameId, BTreeSet<u16>>,
    nothing_labelled: Namespace,
    /// Classes that some set still lacks the bits of, for want of room.
    pending: Vec<u32>,
    found: Option<Found>,
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
        }
    }
}

impl PolicyCompiler {
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
    /// without its exceptions would allow too much.
    fn classify_prefixes(
        &mut self,
        tables: &mut Tables,
        used: &mut BTreeSet<u32>,
        problems: &mut Vec<Problem>,
    ) {
        let prefixes = self.atoms.prefixes();
        let prefixes: BTreeMap<_, _> = prefixes
            .map(|(cidr, atoms)| (cidr, atoms.to_vec()))
            .collect();
        let count = |is_v6| prefixes.keys().filter(|cidr| cidr.is_v6() == is_v6).count();
        let fits = [false, true].map(|is_v6| count(is_v6) <= size(bound::CIDRS));
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
        let class = self.classes.number(signature);
        Address { class, slot, kind }
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

    /// Gives classes that are new their bits in the sets that stay.
    /// A class without its bits is judged by the set's default, which never
    /// allows more.
    fn add_fresh(&mut self, fresh: &[u32], tables: &mut Tables, problems: &mut Vec<Problem>) {
        for (index, class) in fresh.iter().enumerate() {
            let Some(signature) = self.classes.signature(*class) else {
                continue;
            };
            for live in self.sets.values() {
                for (key, bits) in live.compiled.peer_entries(live.base, *class, signature) {
                    if tables.peers.len() >= size(bound::POLICY_PEERS) {
                        self.pending = fresh[index..].to_vec();
                        let left_out = self.pending.len();
                        problems.push(Problem::PeersFull { left_out });
                        return;
                    }
                    tables.peers.set(key, Some(bits));
                }
            }
        }
    }

    /// Gives every endpoint its sets; returns the sets that none has any more.
    fn build_sets(&mut self, tables: &mut Tables, problems: &mut Vec<Problem>) -> Vec<LiveSet> {
        let mut used: BTreeSet<u32> = BTreeSet::new();
        let mut wanted = Vec::new();
        for (slot, subject) in &self.subjects {
            for direction in [Direction::Ingress, Direction::Egress] {
                wanted.push((*slot, direction, self.spec(subject, direction)));
            }
        }
        for (slot, direction, wanted) in wanted {
            let set = match wanted {
                Wanted::Ready(set) => set,
                Wanted::Set(spec) => {
                    self.set(spec, (slot, direction), tables)
                        .unwrap_or_else(|full| {
                            let pod = self.subjects.get(&slot).and_then(|s| s.pod.as_ref());
                            problems.push(Problem::SetFull {
                                pod: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
                                direction,
                                full,
                            });
                            abi::SET_CLOSED
                        })
                }
            };
            used.insert(set);
            let mut endpoint = tables.endpoints.get(&slot).unwrap_or_default();
            match direction {
                Direction::Ingress => endpoint.ingress_set = set,
                Direction::Egress => endpoint.egress_set = set,
            }
            tables.endpoints.set(slot, Some(endpoint));
        }
        let dead = self
            .sets
            .iter()
            .filter(|(_, live)| !used.contains(&live.base));
        let dead: Vec<Arc<Spec>> = dead.map(|(spec, _)| Arc::clone(spec)).collect();
        dead.iter()
            .filter_map(|spec| self.sets.remove(spec))
            .collect()
    }

    fn spec(&self, subject: &Subject, direction: Direction) -> Wanted {
        if subject.pod.is_none() {
            return Wanted::Ready(subject.unknown_set);
        }
        let Some(isolation) = subject.isolation(direction) else {
            return Wanted::Ready(abi::SET_NONE);
        };
        let rules = isolation.rules.iter().map(|rule| &rule.lowered);
        let mut rules: Vec<Lowered> = rules.filter(|rule| rule.is_alive()).cloned().collect();
        rules.sort_unstable();
        rules.dedup();
        if rules.is_empty() {
            return Wanted::Ready(abi::SET_CLOSED);
        }
        if rules.iter().any(Lowered::allows_everything) {
            return Wanted::Ready(abi::SET_NONE);
        }
        let ports = rules.iter().flat_map(|rule| rule.ports.iter().flatten());
        let names: BTreeSet<NameId> = ports
            .filter_map(|port| match port {
                PortMatch::Peer(name) => Some(*name),
                PortMatch::Range(..) => None,
            })
            .collect();
        let names = names.into_iter().filter_map(|id| {
            let protocol = self.names.get(id)?.protocol.number();
            let ports = self.universe.get(&id).into_iter().flatten().copied();
            Some((id, protocol, ports.collect()))
        });
        let names = names.collect();
        Wanted::Set(Spec { rules, names })
    }

    /// The index of the set of this specification, made if there is none.
    fn set(
        &mut self,
        spec: Spec,
        wanted_by: (u32, Direction),
        tables: &mut Tables,
    ) -> Result<u32, &'static str> {
        if let Some(live) = self.sets.get(&spec) {
            return Ok(live.base);
        }
        let compiled = Compiled::new(&spec).ok_or("port classes")?;
        let adopted = self.found_set(wanted_by);
        let adopted = adopted.filter(|base| self.adopt_set(&compiled, *base));
        let (ports, ranges) = compiled.port_entries();
        if adopted.is_none() && tables.ports.len() + ports > size(bound::POLICY_PORTS) {
            return Err(abi::pin::POLICY_PORTS);
        }
        if adopted.is_none() && tables.ranges.len() + ranges > size(bound::POLICY_RANGES) {
            return Err(abi::pin::POLICY_RANGES);
        }
        let base = adopted.or_else(|| self.set_numbers.take(compiled.words()));
        let base = base.ok_or(abi::pin::POLICY_SETS)?;
        let classes = self.classes.iter();
        let entries: Vec<_> = classes
            .flat_map(|(class, signature)| compiled.peer_entries(base, class, signature))
            .collect();
        if adopted.is_none() && tables.peers.len() + entries.len() > size(bound::POLICY_PEERS) {
            self.set_numbers.give_up(base, compiled.words());
            return Err(abi::pin::POLICY_PEERS);
        }
        for (key, bits) in entries {
            tables.peers.set(key, Some(bits));
        }
        compiled.write(tables, base, true);
        self.sets.insert(Arc::new(spec), LiveSet { base, compiled });
        Ok(base)
    }

    fn found_set(&self, (slot, direction): (u32, Direction)) -> Option<u32> {
        let endpoint = self.found.as_ref()?.tables.endpoints.get(&slot)?;
        Some(match direction {
            Direction::Ingress => endpoint.ingress_set,
            Direction::Egress => endpoint.egress_set,
        })
    }

    fn retire(
        &mut self,
        retired: &[LiveSet],
        fresh: &[u32],
        tables: &mut Tables,
    ) -> Vec<(PeerKey, u64)> {
        let mut bridge = Vec::new();
        for set in retired {
            let words = set.compiled.words();
            for class in fresh {
                for word in set.base..set.base + words {
                    // Written by `add_fresh`, which did not know that the set goes.
                    let key = PeerKey {
                        word,
                        class: *class,
                    };
                    if let Some(bits) = tables.peers.get(&key) {
                        bridge.push((key, bits));
                    }
                }
            }
            for word in set.base..set.base + words {
                let entries = tables.peers.range(first_peer(word), last_peer(word));
                let keys: Vec<_> = entries.map(|(key, _)| key).collect();
                for key in keys {
                    tables.peers.set(key, None);
                }
            }
            set.compiled.write(tables, set.base, false);
            self.set_numbers.give_up(set.base, words);
        }
        bridge
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

enum Wanted {
    Ready(u32),
    Set(Spec),
}

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
