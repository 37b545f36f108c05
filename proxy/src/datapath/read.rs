//! What the kernel's maps say, in the compilers' terms: to adopt it at the
//! start, and to find what was tampered with.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_ebpf::abi::{self, BACKEND_LIVE, Endpoint, PolicySet, RANGE_PREFIX_BASE, setting};
use proxy_ebpf::addr::{V4, V6};

use super::map::Maps;
use crate::compile::tables::{
    Backend, BackendKey, Decision, EndpointPolicy, RangeKey, ServiceKey, Tables,
};
use crate::model::Cidr;

/// How much of each array to read: elements after that are not in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub sets: usize,
    pub slots: usize,
    pub backends_v4: usize,
    pub backends_v6: usize,
}

impl Extent {
    pub const ALL: Self = Self {
        sets: usize::MAX,
        slots: usize::MAX,
        backends_v4: usize::MAX,
        backends_v6: usize::MAX,
    };

    /// What `tables` uses. Of sets every one: those that deny everything are
    /// all zero, and so in no table.
    pub fn of(tables: &Tables) -> Self {
        let end = |last: Option<u32>| last.map_or(0, |last| last as usize + 1);
        let backends = |is_v6| {
            let of_family = tables.backends.iter().filter(|(key, _)| key.is_v6 == is_v6);
            end(of_family.map(|(key, _)| key.id).last())
        };
        Self {
            sets: usize::MAX,
            slots: end(tables.slots.iter().map(|(index, _)| index).last()),
            backends_v4: backends(false),
            backends_v6: backends(true),
        }
    }
}

/// What was found: the compilers' tables, and the endpoints themselves.
#[derive(Debug, Default)]
pub struct Found {
    pub tables: Tables,
    /// Slot -> endpoint, where an interface is set.
    pub endpoints: Vec<(u32, Endpoint)>,
    /// Bits of [`setting`] that the compilers do not decide.
    pub flags: u32,
}

/// Reads all maps that the daemon fills.
pub(super) fn read(maps: &Maps, extent: Extent) -> io::Result<Found> {
    let mut found = Found::default();
    let tables = &mut found.tables;
    for (slot, endpoint) in maps.endpoints.entries()? {
        if endpoint.ifindex != 0 {
            tables.endpoints.set(slot, Some(policy_of(&endpoint)));
            found.endpoints.push((slot, endpoint));
        }
    }
    for (address, value) in maps.v4.addresses.entries()? {
        tables.addresses.set(ip4(address), Some(value));
    }
    for (address, value) in maps.v6.addresses.entries()? {
        tables.addresses.set(ip6(address), Some(value));
    }
    let v4 = maps.v4.cidrs.entries()?.into_iter();
    let v4 = v4.map(|(key, class)| (ip4(key.data), key.bits, class));
    let v6 = maps.v6.cidrs.entries()?.into_iter();
    let v6 = v6.map(|(key, class)| (ip6(key.data), key.bits, class));
    for (address, bits, class) in v4.chain(v6) {
        if let Some(cidr) = u8::try_from(bits)
            .ok()
            .and_then(|bits| Cidr::new(address, bits))
        {
            tables.cidrs.set(cidr, Some(class));
        }
    }
    read_policies(maps, extent, tables)?;
    read_services(maps, extent, tables)?;
    let settings = maps.settings.get(&0)?.unwrap_or_default();
    tables.decision = Decision {
        generation: settings.generation,
        has_cidrs_v4: settings.flags & setting::CIDRS_V4 != 0,
        has_cidrs_v6: settings.flags & setting::CIDRS_V6 != 0,
    };
    found.flags = settings.flags & !(setting::CIDRS_V4 | setting::CIDRS_V6);
    Ok(found)
}

fn read_policies(maps: &Maps, extent: Extent, tables: &mut Tables) -> io::Result<()> {
    for (index, set) in maps.policy_sets.first(extent.sets)? {
        if set != PolicySet::default() {
            tables.sets.set(index, Some(set));
        }
    }
    for (key, bits) in maps.policy_peers.entries()? {
        tables.peers.set(key, Some(bits));
    }
    for (key, class) in maps.policy_ports.entries()? {
        tables.ports.set(key, Some(class));
    }
    for (key, class) in maps.policy_ranges.entries()? {
        let bits = key.bits.saturating_sub(RANGE_PREFIX_BASE);
        let range = RangeKey {
            set: key.data.set,
            proto: key.data.proto,
            port: key.data.port.host(),
            bits: u8::try_from(bits).unwrap_or(16),
        };
        tables.ranges.set(range, Some(class));
    }
    Ok(())
}

fn read_services(maps: &Maps, extent: Extent, tables: &mut Tables) -> io::Result<()> {
    let v4 = maps.v4.services.entries()?.into_iter();
    let v4 = v4.map(|(key, service)| (ip4(key.vip), key.port, key.proto, service));
    let v6 = maps.v6.services.entries()?.into_iter();
    let v6 = v6.map(|(key, service)| (ip6(key.vip), key.port, key.proto, service));
    for (vip, port, proto, service) in v4.chain(v6) {
        let key = ServiceKey {
            vip,
            port: port.host(),
            proto,
        };
        tables.services.set(key, Some(service));
    }
    for (index, id) in maps.slots.first(extent.slots)? {
        tables.slots.set(index, Some(id).filter(|id| *id != 0));
    }
    for (id, found) in maps.v4.backends.first(extent.backends_v4)? {
        if found != abi::Backend::default() {
            let backend = Backend {
                address: ip4(found.address),
                port: found.port.host(),
                is_live: found.flags & BACKEND_LIVE != 0,
                generation: found.generation,
            };
            tables
                .backends
                .set(BackendKey { is_v6: false, id }, Some(backend));
        }
    }
    for (id, found) in maps.v6.backends.first(extent.backends_v6)? {
        if found != abi::Backend::default() {
            let backend = Backend {
                address: ip6(found.address),
                port: found.port.host(),
                is_live: found.flags & BACKEND_LIVE != 0,
                generation: found.generation,
            };
            tables
                .backends
                .set(BackendKey { is_v6: true, id }, Some(backend));
        }
    }
    Ok(())
}

fn policy_of(endpoint: &Endpoint) -> EndpointPolicy {
    EndpointPolicy {
        ingress_set: endpoint.ingress_set,
        egress_set: endpoint.egress_set,
        class_v4: endpoint.class_v4,
        class_v6: endpoint.class_v6,
    }
}

pub(super) fn ip4(address: V4) -> IpAddr {
    Ipv4Addr::from(address.octets()).into()
}

pub(super) fn ip6(address: V6) -> IpAddr {
    Ipv6Addr::from(address.octets()).into()
}
