//! The Service compiler: per Service port and ClusterIP one entry, a contiguous
//! range of slots, and backends.
//!
//! A range never changes: other endpoints make a new range, the entry flips to
//! it, and the old one is given up. Only Services that something happened to are
//! looked at. More kinds of addresses (NodePort, external, load balancer) are
//! more [`Frontend`]s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use proxy_ebpf::abi::{self, bound};

use super::alloc::Ranges;
use super::policy::size;
use super::tables::{ServiceKey, Tables};
use super::{Attachments, Problem};
use crate::model::{EndpointSlice, ObjectName, Protocol, Service, State};

mod adopt;
mod backend;
mod endpoint;

use backend::{Backends, Identity};
use endpoint::{Choice, Place};

/// What the compiler reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) node: &'a str,
    pub(super) state: &'a State,
    pub(super) attachments: &'a Attachments,
}

/// An address and port that clients use, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Frontend {
    key: ServiceKey,
    port_name: String,
    protocol: Protocol,
    choice: Choice,
    affinity_seconds: u32,
}

/// A frontend as it is in the tables.
#[derive(Clone, Debug)]
struct Programmed {
    frontend: Frontend,
    id: u32,
    base: u32,
    backends: Vec<Identity>,
    /// All of it fitted.
    is_whole: bool,
}

/// What a Service has claimed, won or not, and what is in the tables for it.
#[derive(Clone, Debug, Default)]
struct Known {
    vips: BTreeSet<IpAddr>,
    keys: BTreeSet<ServiceKey>,
    programmed: Vec<Programmed>,
}

type PortName = (ObjectName, String, Protocol);

#[derive(Clone, Debug)]
pub(crate) struct ServiceCompiler {
    known: BTreeMap<ObjectName, Known>,
    /// Who wants an entry: the oldest Service has it.
    claims: BTreeMap<ServiceKey, BTreeSet<(i64, ObjectName)>>,
    vips: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    slices: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    managed_slices: usize,
    ids: HashMap<PortName, (u32, usize)>,
    id_numbers: Ranges,
    slot_numbers: Ranges,
    backends: Backends,
    problems: BTreeMap<ObjectName, Vec<Problem>>,
    dirty: BTreeSet<ObjectName>,
    /// Found in the kernel, until the first update is done.
    found: Option<Tables>,
    /// A UDP port has lost a backend since [`ServiceCompiler::take_lost`].
    lost: bool,
}

impl Default for ServiceCompiler {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            claims: BTreeMap::new(),
            vips: BTreeMap::new(),
            slices: BTreeMap::new(),
            managed_slices: 0,
            ids: HashMap::new(),
            id_numbers: Ranges::new(1, u32::MAX),
            slot_numbers: Ranges::new(0, bound::SLOTS),
            backends: Backends::default(),
            problems: BTreeMap::new(),
            dirty: BTreeSet::new(),
            found: None,
            lost: false,
        }
    }
}

impl ServiceCompiler {
    pub(super) fn settle(&mut self) {
        self.id_numbers.settle();
        self.slot_numbers.settle();
        self.backends.settle();
        // What did not fit may fit now.
        let short = self
            .problems
            .iter()
            .filter(|(_, problems)| problems.iter().any(is_short));
        self.dirty.extend(short.map(|(name, _)| name.clone()));
    }

    /// Whether something did not fit.
    pub(super) fn is_short(&self) -> bool {
        self.problems().any(is_short)
    }

    /// Whether a UDP port has lost a backend since the last call: its sockets
    /// may still have that.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Every address of a Service.
    pub(super) fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.keys().copied()
    }

    pub(super) fn has_vip(&self, address: IpAddr) -> bool {
        self.vips.contains_key(&address)
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    pub(super) fn service_changed(&mut self, name: &ObjectName) {
        self.dirty.insert(name.clone());
    }

    pub(super) fn all_changed(&mut self, state: &State) {
        self.dirty.extend(state.services.keys().cloned());
    }

    pub(super) fn slice_changed(
        &mut self,
        state: &State,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
    ) {
        let was_deriving = self.managed_slices == 0;
        for (slice, present) in [(old, false), (new, true)] {
            let Some(slice) = slice else { continue };
            if slice.is_managed && present {
                self.managed_slices += 1;
            } else if slice.is_managed {
                self.managed_slices -= 1;
            }
            let Some(service) = &slice.service else {
                continue;
            };
            let service = ObjectName::new(&slice.name.namespace, service);
            self.dirty.insert(service.clone());
            let slices = self.slices.entry(service).or_default();
            if present {
                slices.insert(slice.name.clone());
            } else {
                slices.remove(&slice.name);
            }
        }
        self.slices.retain(|_, slices| !slices.is_empty());
        if was_deriving != (self.managed_slices == 0) {
            self.all_changed(state);
        }
    }

    /// Where endpoints follow from selectors, pods matter.
    pub(super) fn pods_changed(&mut self, state: &State, namespace: &str) {
        if self.managed_slices > 0 {
            return;
        }
        let first = ObjectName::new(namespace, "");
        let own = state.services.range(first..).map(|(_, service)| service);
        let own = own.take_while(|service| service.name.namespace == namespace);
        let selecting = own.filter(|service| !service.selector.is_empty());
        self.dirty
            .extend(selecting.map(|service| service.name.clone()));
    }

    /// Brings what has changed up to date; returns the addresses that became a
    /// Service's or ceased to be.
    pub(super) fn update(&mut self, inputs: Inputs<'_>, tables: &mut Tables) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        while !self.dirty.is_empty() {
            // All claims before any entry: nobody takes what another is to have.
            let mut claimed = Vec::new();
            for name in std::mem::take(&mut self.dirty) {
                let service = inputs.state.services.get(&name);
                let service = service.map(AsRef::as_ref).filter(|s| s.is_proxied);
                self.claim_vips(&name, service, &mut touched);
                let wanted = service.map_or_else(Vec::new, |s| self.frontends(inputs, s));
                let created = service.map_or(0, |service| service.created);
                self.claim_keys(&name, created, &wanted);
                claimed.push((name, wanted));
            }
            for (name, mut wanted) in claimed {
                self.problems.remove(&name);
                wanted.retain(|frontend| self.wins(&name, frontend.key));
                self.program(&name, wanted, tables);
            }
        }
        if let Some(found) = self.found.take() {
            self.sweep(&found, tables);
        }
        touched
    }

    /// Whether the Service has the entry; it is a problem if not.
    fn wins(&mut self, name: &ObjectName, key: ServiceKey) -> bool {
        let winner = self.claims.get(&key).and_then(BTreeSet::first);
        let Some((_, winner)) = winner.filter(|(_, winner)| winner != name) else {
            return true;
        };
        let problem = Problem::ServiceContested {
            service: name.clone(),
            winner: winner.clone(),
        };
        self.problems.entry(name.clone()).or_default().push(problem);
        false
    }

    fn claim_vips(
        &mut self,
        name: &ObjectName,
        service: Option<&Service>,
        touched: &mut BTreeSet<IpAddr>,
    ) {
        let wanted = service.map_or(&[][..], |service| &service.cluster_ips);
        let wanted: BTreeSet<IpAddr> = wanted.iter().copied().collect();
        let known = self.known.entry(name.clone()).or_default();
        let earlier = std::mem::replace(&mut known.vips, wanted.clone());
        for vip in wanted.difference(&earlier) {
            self.vips.entry(*vip).or_default().insert(name.clone());
            touched.insert(*vip);
        }
        for vip in earlier.difference(&wanted) {
            if let Some(names) = self.vips.get_mut(vip) {
                names.remove(name);
                if names.is_empty() {
                    self.vips.remove(vip);
                }
            }
            touched.insert(*vip);
        }
    }

    /// Claims the entries of `wanted` only; a Service that gets or loses one by
    /// this is looked at again.
    fn claim_keys(&mut self, name: &ObjectName, created: i64, wanted: &[Frontend]) {
        let wanted: BTreeSet<ServiceKey> = wanted.iter().map(|frontend| frontend.key).collect();
        let known = self.known.entry(name.clone()).or_default();
        let earlier = std::mem::replace(&mut known.keys, wanted.clone());
        for key in earlier.union(&wanted) {
            let claims = self.claims.entry(*key).or_default();
            let before = claims.first().cloned();
            claims.retain(|(_, claimant)| claimant != name);
            if wanted.contains(key) {
                claims.insert((created, name.clone()));
            }
            let after = claims.first().cloned();
            if claims.is_empty() {
                self.claims.remove(key);
            }
            if before != after {
                let others = [before, after]
                    .into_iter()
                    .flatten()
                    .map(|(_, other)| other);
                self.dirty.extend(others.filter(|other| other != name));
            }
        }
    }

    /// What the Service asks for, ClusterIP by ClusterIP and port by port.
    fn frontends(&self, inputs: Inputs<'_>, service: &Service) -> Vec<Frontend> {
        let node = inputs.state.nodes.get(inputs.node);
        let place = Place {
            node: inputs.node,
            zone: node.and_then(|node| node.zone()),
        };
        let listed = self.slices.get(&service.name);
        let derives = self.managed_slices == 0 && listed.is_none() && !service.selector.is_empty();
        let mut frontends = Vec::new();
        for vip in &service.cluster_ips {
            for port in &service.ports {
                let (state, is_v6) = (inputs.state, vip.is_ipv6());
                let candidates = if derives {
                    let attachments = inputs.attachments;
                    endpoint::from_selector(state, attachments, service, port, is_v6, place)
                } else {
                    let slices = listed.into_iter().flatten();
                    let slices = slices.filter_map(|name| state.slices.get(name));
                    endpoint::from_slices(slices.map(AsRef::as_ref), port, is_v6, place)
                };
                frontends.push(Frontend {
                    key: ServiceKey {
                        vip: *vip,
                        port: port.port,
                        proto: port.protocol.number(),
                    },
                    port_name: port.name.clone(),
                    protocol: port.protocol,
                    choice: endpoint::choose(&candidates, service.is_internal_local, place),
                    affinity_seconds: service.affinity_seconds.unwrap_or(0),
                });
            }
        }
        frontends
    }

    /// Makes the tables hold `wanted` and nothing else of this Service. What is
    /// new takes its numbers before what is old gives up its own.
    fn program(&mut self, name: &ObjectName, wanted: Vec<Frontend>, tables: &mut Tables) {
        let known = self.known.get_mut(name);
        let mut old = known.map_or_else(Vec::new, |known| std::mem::take(&mut known.programmed));
        let mut new = Vec::new();
        for frontend in wanted {
            let known = old
                .iter()
                .position(|p| p.is_whole && p.frontend == frontend);
            if let Some(index) = known {
                new.push(old.swap_remove(index));
            } else {
                new.extend(self.add(name, frontend, tables));
            }
        }
        for gone in old {
            let key = gone.frontend.key;
            if !new.iter().any(|p| p.frontend.key == key) {
                // Unless the Service that it lost the entry to has it already.
                let entry = tables.services.get(&key);
                if entry.is_some_and(|entry| entry.id == gone.id) {
                    tables.services.set(key, None);
                }
            }
            self.give_up(name, gone, tables);
        }
        if let Some(known) = self.known.get_mut(name) {
            known.programmed = new;
            if known.keys.is_empty() && known.vips.is_empty() {
                self.known.remove(name);
            }
        }
    }

    fn add(
        &mut self,
        name: &ObjectName,
        frontend: Frontend,
        tables: &mut Tables,
    ) -> Option<Programmed> {
        let key = frontend.key;
        let same_family = |(other, _): &(ServiceKey, _)| other.vip.is_ipv6() == key.vip.is_ipv6();
        if tables.services.get(&key).is_none()
            && tables.services.len() >= size(bound::SERVICES)
            && tables.services.iter().filter(same_family).count() >= size(bound::SERVICES)
        {
            self.problem(name, abi::pin::SERVICES_V4, "it is not reachable");
            return None;
        }
        let id = self.take_id(name, &frontend)?;
        let remembers = frontend.protocol == Protocol::Udp || frontend.affinity_seconds > 0;
        let identities = frontend
            .choice
            .endpoints
            .iter()
            .map(|(address, port)| Identity {
                address: *address,
                port: *port,
                service: if remembers { id } else { 0 },
            });
        let identities: Vec<Identity> = identities.collect();
        let adopted = self.adopt_range(key, &identities);
        let mut backends = Vec::new();
        let mut slots = Vec::new();
        for identity in identities {
            if let Some(backend) = self.backends.take(identity, tables) {
                backends.push(identity);
                slots.push(backend);
            }
        }
        let mut is_whole = backends.len() == frontend.choice.endpoints.len();
        if !is_whole {
            self.problem(name, abi::pin::BACKENDS_V4, "some endpoints get no traffic");
        }
        let mut count = u32::try_from(slots.len()).expect("fewer than backend ids");
        let base = match adopted {
            Some(base) => Some(base),
            None if count == 0 => Some(0),
            None => self.slot_numbers.take(count),
        };
        if base.is_none() {
            self.problem(name, abi::pin::SLOTS, "it refuses connections");
            for identity in backends.drain(..) {
                self.backends.give_up(identity, tables);
            }
            (count, is_whole) = (0, false);
        }
        let base = base.unwrap_or(0);
        for (index, backend) in (base..base + count).zip(slots) {
            tables.slots.set(index, Some(backend));
        }
        let drops = frontend.choice.drops;
        let service = abi::Service {
            base,
            count,
            id,
            flags: if drops { abi::Service::DROP } else { 0 },
            affinity_seconds: frontend.affinity_seconds,
        };
        tables.services.set(key, Some(service));
        Some(Programmed {
            frontend,
            id,
            base,
            backends,
            is_whole,
        })
    }

    fn problem(&mut self, name: &ObjectName, full: &'static str, effect: &'static str) {
        let problem = Problem::ServiceFull {
            service: name.clone(),
            full,
            effect,
        };
        self.problems.entry(name.clone()).or_default().push(problem);
    }

    fn give_up(&mut self, name: &ObjectName, gone: Programmed, tables: &mut Tables) {
        let count = u32::try_from(gone.backends.len()).expect("fewer than backend ids");
        if count > 0 {
            for index in gone.base..gone.base + count {
                tables.slots.set(index, None);
            }
            self.slot_numbers.give_up(gone.base, count);
        }
        for identity in gone.backends {
            let ended = self.backends.give_up(identity, tables);
            self.lost |= ended && gone.frontend.protocol == Protocol::Udp;
        }
        let port = (
            name.clone(),
            gone.frontend.port_name,
            gone.frontend.protocol,
        );
        if let Some((id, uses)) = self.ids.get_mut(&port) {
            *uses -= 1;
            if *uses == 0 {
                self.id_numbers.give_up(*id, 1);
                self.ids.remove(&port);
            }
        }
    }

    /// The id of a Service port, the same for all its addresses.
    fn take_id(&mut self, name: &ObjectName, frontend: &Frontend) -> Option<u32> {
        let port = (name.clone(), frontend.port_name.clone(), frontend.protocol);
        if let Some((id, uses)) = self.ids.get_mut(&port) {
            *uses += 1;
            return Some(*id);
        }
        let found = self
            .found
            .as_ref()
            .and_then(|found| found.services.get(&frontend.key));
        let adopted = found.map(|service| service.id);
        let adopted = adopted.filter(|id| self.id_numbers.adopt(*id, 1));
        let id = adopted.or_else(|| self.id_numbers.take(1))?;
        self.ids.insert(port, (id, 1));
        Some(id)
    }
}

const fn is_short(problem: &Problem) -> bool {
    matches!(problem, Problem::ServiceFull { .. })
}
