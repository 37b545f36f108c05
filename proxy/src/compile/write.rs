//! Ordered writes: what leads from one state of the maps to another, such that
//! every state on the way judges as the old or the new one does.
//!
//! The order: new policy sets and peer bits (nothing refers to them yet);
//! backends, slots, then the Services that use them; addresses and prefixes,
//! whose new classes all sets in force already know; a grace period; the flip of
//! the endpoints to their new sets; the generation, so that open flows are
//! judged again; a grace period; and last what nothing refers to any more.
//!
//! A pod's arrival waits for no grace period, which takes the kernel some ten
//! milliseconds: see [`Delta::only_arrivals`].

use std::net::IpAddr;

use proxy_ebpf::abi::{Address, PeerKey, PolicySet, PortKey, Service, kind};

use super::tables::{
    Backend, BackendKey, Changed, Decision, EndpointPolicy, RangeKey, ServiceKey, Tables,
};
use crate::model::Cidr;

/// One write to one map. `None` deletes; a missing entry is no error then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Set(u32, PolicySet),
    Peer(PeerKey, Option<u64>),
    Port(PortKey, Option<u32>),
    Range(RangeKey, Option<u32>),
    Backend(BackendKey, Backend),
    Slot(u32, u32),
    Service(ServiceKey, Option<Service>),
    Address(IpAddr, Option<Address>),
    Cidr(Cidr, Option<u32>),
    EndpointClasses {
        slot: u32,
        v4: u32,
        v6: u32,
    },
    EndpointSets {
        slot: u32,
        ingress: u32,
        egress: u32,
    },
    Decision(Decision),
    /// Wait until no program that started before still runs.
    Grace,
}

/// What changed, map by map.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    endpoints: Vec<Changed<u32, EndpointPolicy>>,
    addresses: Vec<Changed<IpAddr, Address>>,
    cidrs: Vec<Changed<Cidr, u32>>,
    sets: Vec<Changed<u32, PolicySet>>,
    peers: Vec<Changed<PeerKey, u64>>,
    ports: Vec<Changed<PortKey, u32>>,
    ranges: Vec<Changed<RangeKey, u32>>,
    services: Vec<Changed<ServiceKey, Service>>,
    slots: Vec<Changed<u32, u32>>,
    backends: Vec<Changed<BackendKey, Backend>>,
}

impl Tables {
    /// What changed since the last call.
    pub(super) fn take_delta(&mut self) -> Delta {
        Delta {
            endpoints: self.endpoints.take_changes(),
            addresses: self.addresses.take_changes(),
            cidrs: self.cidrs.take_changes(),
            sets: self.sets.take_changes(),
            peers: self.peers.take_changes(),
            ports: self.ports.take_changes(),
            ranges: self.ranges.take_changes(),
            services: self.services.take_changes(),
            slots: self.slots.take_changes(),
            backends: self.backends.take_changes(),
        }
    }

    fn delta_since(&self, old: &Self) -> Delta {
        Delta {
            endpoints: self.endpoints.since(&old.endpoints),
            addresses: self.addresses.since(&old.addresses),
            cidrs: self.cidrs.since(&old.cidrs),
            sets: self.sets.since(&old.sets),
            peers: self.peers.since(&old.peers),
            ports: self.ports.since(&old.ports),
            ranges: self.ranges.since(&old.ranges),
            services: self.services.since(&old.services),
            slots: self.slots.since(&old.slots),
            backends: self.backends.since(&old.backends),
        }
    }

    /// The writes that lead from `old`, e.g. what is found in the kernel, to these tables.
    pub fn writes_since(&self, old: &Self) -> Vec<Write> {
        self.delta_since(old)
            .order(old.decision, self.decision, &[])
    }

    /// What a write does, to keep a copy of the maps.
    pub fn apply(&mut self, write: Write) {
        match write {
            Write::Set(index, set) => {
                let value = Some(set).filter(|set| *set != PolicySet::default());
                self.sets.set(index, value);
            }
            Write::Peer(key, bits) => self.peers.set(key, bits),
            Write::Port(key, class) => self.ports.set(key, class),
            Write::Range(key, class) => self.ranges.set(key, class),
            Write::Backend(key, backend) => self.backends.set(key, Some(backend)),
            Write::Slot(index, id) => self.slots.set(index, Some(id).filter(|id| *id != 0)),
            Write::Service(key, service) => self.services.set(key, service),
            Write::Address(ip, address) => self.addresses.set(ip, address),
            Write::Cidr(cidr, class) => self.cidrs.set(cidr, class),
            Write::EndpointClasses { slot, v4, v6 } => {
                let endpoint = self.endpoints.get(&slot).unwrap_or_default();
                let endpoint = EndpointPolicy {
                    class_v4: v4,
                    class_v6: v6,
                    ..endpoint
                };
                self.endpoints.set(slot, Some(endpoint));
            }
            Write::EndpointSets {
                slot,
                ingress,
                egress,
            } => {
                let endpoint = self.endpoints.get(&slot).unwrap_or_default();
                let endpoint = EndpointPolicy {
                    ingress_set: ingress,
                    egress_set: egress,
                    ..endpoint
                };
                self.endpoints.set(slot, Some(endpoint));
            }
            Write::Decision(decision) => self.decision = decision,
            Write::Grace => {}
        }
    }
}

fn is_service(address: Option<Address>) -> bool {
    address.is_some_and(|address| address.kind == kind::SERVICE)
}

impl Delta {
    /// In the order of the module's documentation. `bridge`: bits that sets on
    /// their way out need for classes on their way in; they go with the sets.
    pub(super) fn order(
        &self,
        old: Decision,
        new: Decision,
        bridge: &[(PeerKey, u64)],
    ) -> Vec<Write> {
        let mut writes = self.additions(bridge);
        let flips = self.flips();
        let moves = self.moves(old, new);
        let has_moves = !moves.is_empty();
        writes.extend(moves);
        if has_moves && !flips.is_empty() && !self.only_arrivals() {
            writes.push(Write::Grace);
        }
        writes.extend(flips);
        if old != new {
            writes.push(Write::Decision(new));
        }
        let frees = self.frees(bridge);
        if !frees.is_empty() {
            writes.push(Write::Grace);
        }
        writes.extend(frees);
        writes
    }

    /// Whether endpoints and addresses come and no other changes or goes. A
    /// program that runs meanwhile may see an endpoint's new sets and its address
    /// without a class. It then misses rules that match the class, but rules only
    /// allow: what it judges is what the old state, in which the endpoint had
    /// its default, or the new one does.
    fn only_arrivals(&self) -> bool {
        self.endpoints.iter().all(|c| c.old.is_none())
            && self.addresses.iter().all(|c| c.old.is_none())
            && self.cidrs.is_empty()
            && self.services.iter().all(|c| c.new.is_some())
    }

    fn additions(&self, bridge: &[(PeerKey, u64)]) -> Vec<Write> {
        let mut writes = Vec::new();
        let new = self.peers.iter().filter(|c| c.new.is_some());
        writes.extend(new.map(|c| Write::Peer(c.key, c.new)));
        writes.extend(
            bridge
                .iter()
                .map(|(key, bits)| Write::Peer(*key, Some(*bits))),
        );
        let new = self.ports.iter().filter(|c| c.new.is_some());
        writes.extend(new.map(|c| Write::Port(c.key, c.new)));
        let new = self.ranges.iter().filter(|c| c.new.is_some());
        writes.extend(new.map(|c| Write::Range(c.key, c.new)));
        let new = self.sets.iter().filter_map(|c| Some((c.key, c.new?)));
        writes.extend(new.map(|(index, set)| Write::Set(index, set)));
        let new = self.backends.iter().filter_map(|c| Some((c.key, c.new?)));
        let live = new.filter(|(_, backend)| backend.is_live);
        writes.extend(live.map(|(key, backend)| Write::Backend(key, backend)));
        let new = self.slots.iter().filter_map(|c| Some((c.key, c.new?)));
        writes.extend(new.map(|(index, id)| Write::Slot(index, id)));
        let new = self.services.iter().filter(|c| c.new.is_some());
        writes.extend(new.map(|c| Write::Service(c.key, c.new)));
        writes
    }

    fn moves(&self, old: Decision, new: Decision) -> Vec<Write> {
        let mut writes = Vec::new();
        let added = self.cidrs.iter().filter(|c| c.new.is_some());
        writes.extend(added.map(|c| Write::Cidr(c.key, c.new)));
        // Prefixes are asked before any set relies on them, and as long as one does.
        let during = Decision {
            generation: old.generation,
            has_cidrs_v4: old.has_cidrs_v4 || new.has_cidrs_v4,
            has_cidrs_v6: old.has_cidrs_v6 || new.has_cidrs_v6,
        };
        if during != old {
            writes.push(Write::Decision(during));
        }
        // First, to make room for those that come.
        let gone = self.addresses.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Address(c.key, None)));
        let added = self.addresses.iter().filter(|c| c.new.is_some());
        writes.extend(added.map(|c| Write::Address(c.key, c.new)));
        for changed in &self.endpoints {
            let classes = |e: EndpointPolicy| (e.class_v4, e.class_v6);
            if let Some(endpoint) = changed.new
                && changed.old.map(classes) != Some(classes(endpoint))
            {
                let (v4, v6) = classes(endpoint);
                let slot = changed.key;
                writes.push(Write::EndpointClasses { slot, v4, v6 });
            }
        }
        let gone = self.cidrs.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Cidr(c.key, None)));
        let gone = self.services.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Service(c.key, None)));
        writes
    }

    fn flips(&self) -> Vec<Write> {
        let sets = |e: EndpointPolicy| (e.ingress_set, e.egress_set);
        let changed = self.endpoints.iter().filter_map(|c| Some((c, c.new?)));
        let flipped = changed.filter(|(c, new)| c.old.map(sets) != Some(sets(*new)));
        flipped
            .map(|(c, new)| Write::EndpointSets {
                slot: c.key,
                ingress: new.ingress_set,
                egress: new.egress_set,
            })
            .collect()
    }

    fn frees(&self, bridge: &[(PeerKey, u64)]) -> Vec<Write> {
        let mut writes = Vec::new();
        let gone = self.sets.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Set(c.key, PolicySet::default())));
        let gone = self.ports.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Port(c.key, None)));
        let gone = self.ranges.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Range(c.key, None)));
        let gone = self.peers.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Peer(c.key, None)));
        writes.extend(bridge.iter().map(|(key, _)| Write::Peer(*key, None)));
        let gone = self.slots.iter().filter(|c| c.new.is_none());
        writes.extend(gone.map(|c| Write::Slot(c.key, 0)));
        for changed in &self.backends {
            match (changed.old, changed.new) {
                (_, Some(backend)) if !backend.is_live => {
                    writes.push(Write::Backend(changed.key, backend));
                }
                // Found in the kernel, unknown to us.
                (Some(old), None) => writes.push(Write::Backend(
                    changed.key,
                    Backend {
                        is_live: false,
                        generation: old.generation.wrapping_add(1),
                        ..old
                    },
                )),
                _ => {}
            }
        }
        writes
    }

    /// Whether open flows must be judged again: anything but the mere addition
    /// of addresses and changes that concern Services only.
    pub(super) fn changes_verdicts(&self) -> bool {
        let addresses = self.addresses.iter().any(|changed| {
            changed.old.is_some() && !(is_service(changed.old) && is_service(changed.new))
        });
        addresses || !self.cidrs.is_empty() || self.endpoints.iter().any(|c| c.new.is_some())
    }
}
