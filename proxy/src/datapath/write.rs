//! The compilers' ordered writes, carried out.
//!
//! Runs of writes to one map go in batches. An element that finds its map full
//! is left out where that closes, and the others are written: a change that
//! takes something away is in force even so. Any other failure ends it: what has
//! been written by then is what nothing refers to yet, or is right by itself
//! (see [`crate::compile::write`]), so what was in force stays.

use std::io;
use std::mem;
use std::net::IpAddr;

use proxy_ebpf::abi::{
    self, Address, BACKEND_LIVE, Endpoint, Plain, PolicySet, Prefix, Settings, pin, setting,
};
use proxy_ebpf::addr::{BePort, V4, V6};
use thiserror::Error;

use super::bpf::{self, Table};
use super::map::Maps;
use crate::compile::tables::{Backend, BackendKey, Decision, RangeKey, ServiceKey};
use crate::compile::write::Write;
use crate::model::Cidr;

/// Elements written per system call.
const BATCH: usize = 1024;

#[derive(Debug, Error)]
pub enum WriteError {
    #[error(
        "map {map} is full ({max} entries): {left_out} are left out, and what they allow is closed\n\
         hint: fewer objects, or a build with a larger bound"
    )]
    Short {
        map: &'static str,
        max: u32,
        left_out: u32,
    },
    #[error(
        "map {map} is full ({max} entries): what is in force is older than what is asked for\n\
         hint: fewer objects, or a build with a larger bound"
    )]
    Full { map: &'static str, max: u32 },
    #[error("cannot write map {map}")]
    Map {
        map: &'static str,
        #[source]
        source: io::Error,
    },
}

impl WriteError {
    pub const fn map(&self) -> &'static str {
        match self {
            Self::Short { map, .. } | Self::Full { map, .. } | Self::Map { map, .. } => map,
        }
    }
}

type Result<T> = std::result::Result<T, WriteError>;

fn failed<K: Plain, V: Plain>(
    map: &'static str,
    table: &Table<K, V>,
    source: io::Error,
) -> WriteError {
    match source.raw_os_error() {
        // Hashes say the one, tries the other.
        Some(libc::E2BIG | libc::ENOSPC) => WriteError::Full {
            map,
            max: table.max_entries(),
        },
        _ => WriteError::Map { map, source },
    }
}

/// Elements of one map that wait to be written together.
struct Run<'a, K, V> {
    name: &'static str,
    table: &'a Table<K, V>,
    keys: Vec<K>,
    values: Vec<V>,
    /// An element that is missing allows nothing that it would not.
    may_lack: bool,
    left_out: u32,
}

impl<'a, K: Plain, V: Plain> Run<'a, K, V> {
    fn new(name: &'static str, table: &'a Table<K, V>) -> Self {
        Self {
            name,
            table,
            keys: Vec::new(),
            values: Vec::new(),
            may_lack: false,
            left_out: 0,
        }
    }

    fn may_lack(mut self) -> Self {
        self.may_lack = true;
        self
    }

    fn put(&mut self, key: K, value: Option<V>) -> Result<()> {
        if let Some(value) = value {
            self.keys.push(key);
            self.values.push(value);
            if self.keys.len() >= BATCH {
                self.flush()?;
            }
            return Ok(());
        }
        self.flush()?;
        match self.table.remove(&key) {
            Ok(_) => Ok(()),
            Err(source) => Err(failed(self.name, self.table, source)),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let (keys, values) = (mem::take(&mut self.keys), mem::take(&mut self.values));
        let (mut keys, mut values) = (&keys[..], &values[..]);
        loop {
            let (done, result) = self.table.set_all(keys, values);
            let Err(source) = result else {
                return Ok(());
            };
            match failed(self.name, self.table, source) {
                // One that is there already needs no room: the rest is tried.
                WriteError::Full { .. } if self.may_lack => self.left_out += 1,
                error => return Err(error),
            }
            keys = keys.get(done + 1..).unwrap_or_default();
            values = values.get(done + 1..).unwrap_or_default();
        }
    }

    /// Fails if something was left out.
    fn complete(&self) -> Result<()> {
        if self.left_out == 0 {
            return Ok(());
        }
        Err(WriteError::Short {
            map: self.name,
            max: self.table.max_entries(),
            left_out: self.left_out,
        })
    }
}

/// Everything that waits; at most one run is not empty.
struct Writer<'a> {
    maps: &'a Maps,
    sets: Run<'a, u32, PolicySet>,
    peers: Run<'a, abi::PeerKey, u64>,
    ports: Run<'a, abi::PortKey, u32>,
    ranges: Run<'a, Prefix<abi::PortKey>, u32>,
    backends_v4: Run<'a, u32, abi::Backend<V4>>,
    backends_v6: Run<'a, u32, abi::Backend<V6>>,
    slots: Run<'a, u32, u32>,
    services_v4: Run<'a, abi::ServiceKey<V4>, abi::Service>,
    services_v6: Run<'a, abi::ServiceKey<V6>, abi::Service>,
    addresses_v4: Run<'a, V4, Address>,
    addresses_v6: Run<'a, V6, Address>,
    cidrs_v4: Run<'a, Prefix<V4>, u32>,
    cidrs_v6: Run<'a, Prefix<V6>, u32>,
}

/// Which map a write goes to, for telling runs apart.
fn place(write: &Write) -> (mem::Discriminant<Write>, bool) {
    let is_v6 = match write {
        Write::Backend(key, _) => key.is_v6,
        Write::Service(key, _) => key.vip.is_ipv6(),
        Write::Address(ip, _) => ip.is_ipv6(),
        Write::Cidr(cidr, _) => cidr.is_v6(),
        _ => false,
    };
    (mem::discriminant(write), is_v6)
}

/// Carries out `writes` in order; blocks for grace periods. `flags`: bits of
/// [`setting`] that the daemon decides.
pub(super) fn apply(maps: &Maps, writes: &[Write], flags: u32) -> Result<()> {
    let mut writer = Writer::new(maps);
    let mut last = None;
    for write in writes {
        let place = place(write);
        if last.replace(place).is_some_and(|last| last != place) {
            writer.flush()?;
        }
        writer.put(write, flags)?;
    }
    writer.flush()?;
    writer.complete()
}

impl<'a> Writer<'a> {
    fn new(maps: &'a Maps) -> Self {
        Self {
            maps,
            // Ranges and prefixes are not among those that may lack one: a
            // narrower one takes something from a wider one.
            sets: Run::new(pin::POLICY_SETS, &maps.policy_sets),
            peers: Run::new(pin::POLICY_PEERS, &maps.policy_peers).may_lack(),
            ports: Run::new(pin::POLICY_PORTS, &maps.policy_ports).may_lack(),
            ranges: Run::new(pin::POLICY_RANGES, &maps.policy_ranges),
            backends_v4: Run::new(pin::BACKENDS_V4, &maps.v4.backends),
            backends_v6: Run::new(pin::BACKENDS_V6, &maps.v6.backends),
            slots: Run::new(pin::SLOTS, &maps.slots),
            services_v4: Run::new(pin::SERVICES_V4, &maps.v4.services).may_lack(),
            services_v6: Run::new(pin::SERVICES_V6, &maps.v6.services).may_lack(),
            addresses_v4: Run::new(pin::ADDRESSES_V4, &maps.v4.addresses).may_lack(),
            addresses_v6: Run::new(pin::ADDRESSES_V6, &maps.v6.addresses).may_lack(),
            cidrs_v4: Run::new(pin::CIDRS_V4, &maps.v4.cidrs),
            cidrs_v6: Run::new(pin::CIDRS_V6, &maps.v6.cidrs),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.sets.flush()?;
        self.peers.flush()?;
        self.ports.flush()?;
        self.ranges.flush()?;
        self.backends_v4.flush()?;
        self.backends_v6.flush()?;
        self.slots.flush()?;
        self.services_v4.flush()?;
        self.services_v6.flush()?;
        self.addresses_v4.flush()?;
        self.addresses_v6.flush()?;
        self.cidrs_v4.flush()?;
        self.cidrs_v6.flush()
    }

    fn complete(&self) -> Result<()> {
        self.peers.complete()?;
        self.ports.complete()?;
        self.services_v4.complete()?;
        self.services_v6.complete()?;
        self.addresses_v4.complete()?;
        self.addresses_v6.complete()
    }

    fn put(&mut self, write: &Write, flags: u32) -> Result<()> {
        match *write {
            Write::Set(index, set) => self.sets.put(index, Some(set)),
            Write::Peer(key, bits) => self.peers.put(key, bits),
            Write::Port(key, class) => self.ports.put(key, class),
            Write::Range(key, class) => self.ranges.put(range_key(key), class),
            Write::Backend(key, backend) => self.backend(key, backend),
            Write::Slot(index, id) => self.slots.put(index, Some(id)),
            Write::Service(key, service) => self.service(key, service),
            Write::Address(IpAddr::V4(ip), address) => {
                self.addresses_v4.put(V4::new(ip.octets()), address)
            }
            Write::Address(IpAddr::V6(ip), address) => {
                self.addresses_v6.put(V6::new(ip.octets()), address)
            }
            Write::Cidr(cidr, class) => self.cidr(cidr, class),
            Write::EndpointClasses { slot, v4, v6 } => {
                change_endpoint(self.maps, slot, |endpoint| {
                    endpoint.class_v4 = v4;
                    endpoint.class_v6 = v6;
                })
            }
            Write::EndpointSets {
                slot,
                ingress,
                egress,
            } => change_endpoint(self.maps, slot, |endpoint| {
                endpoint.ingress_set = ingress;
                endpoint.egress_set = egress;
            }),
            Write::Decision(decision) => set_decision(self.maps, decision, flags),
            Write::Grace => {
                bpf::wait_for_programs();
                Ok(())
            }
        }
    }

    fn backend(&mut self, key: BackendKey, backend: Backend) -> Result<()> {
        let flags = if backend.is_live { BACKEND_LIVE } else { 0 };
        let (port, generation) = (BePort::new(backend.port), backend.generation);
        match backend.address {
            IpAddr::V4(ip) => self.backends_v4.put(
                key.id,
                Some(abi::Backend {
                    address: V4::new(ip.octets()),
                    port,
                    flags,
                    generation,
                }),
            ),
            IpAddr::V6(ip) => self.backends_v6.put(
                key.id,
                Some(abi::Backend {
                    address: V6::new(ip.octets()),
                    port,
                    flags,
                    generation,
                }),
            ),
        }
    }

    fn service(&mut self, key: ServiceKey, service: Option<abi::Service>) -> Result<()> {
        let (port, proto) = (BePort::new(key.port), key.proto);
        match key.vip {
            IpAddr::V4(ip) => self.services_v4.put(
                abi::ServiceKey {
                    vip: V4::new(ip.octets()),
                    port,
                    proto,
                    scope: 0,
                },
                service,
            ),
            IpAddr::V6(ip) => self.services_v6.put(
                abi::ServiceKey {
                    vip: V6::new(ip.octets()),
                    port,
                    proto,
                    scope: 0,
                },
                service,
            ),
        }
    }

    fn cidr(&mut self, cidr: Cidr, class: Option<u32>) -> Result<()> {
        let bits = u32::from(cidr.length());
        match cidr.address() {
            IpAddr::V4(ip) => {
                let data = V4::new(ip.octets());
                self.cidrs_v4.put(Prefix { bits, data }, class)
            }
            IpAddr::V6(ip) => {
                let data = V6::new(ip.octets());
                self.cidrs_v6.put(Prefix { bits, data }, class)
            }
        }
    }
}

pub(super) fn range_key(key: RangeKey) -> Prefix<abi::PortKey> {
    Prefix {
        bits: abi::RANGE_PREFIX_BASE + u32::from(key.bits),
        data: abi::PortKey {
            set: key.set,
            proto: key.proto,
            port: BePort::new(key.port),
        },
    }
}

/// Changes an endpoint that exists; a slot that the plugin has emptied stays
/// empty. The two writers never change the same field of a slot in use.
fn change_endpoint(maps: &Maps, slot: u32, change: impl FnOnce(&mut Endpoint)) -> Result<()> {
    let wrong = |source| failed(pin::ENDPOINTS, &maps.endpoints, source);
    let found = maps.endpoints.get(&slot).map_err(wrong)?;
    let Some(mut endpoint) = found.filter(|endpoint| endpoint.ifindex != 0) else {
        return Ok(());
    };
    let before = endpoint;
    change(&mut endpoint);
    if endpoint == before {
        return Ok(());
    }
    maps.endpoints.set(&slot, &endpoint).map_err(wrong)
}

fn set_decision(maps: &Maps, decision: Decision, flags: u32) -> Result<()> {
    let v4 = if decision.has_cidrs_v4 {
        setting::CIDRS_V4
    } else {
        0
    };
    let v6 = if decision.has_cidrs_v6 {
        setting::CIDRS_V6
    } else {
        0
    };
    let settings = Settings {
        generation: decision.generation,
        flags: flags | v4 | v6,
    };
    maps.settings
        .set(&0, &settings)
        .map_err(|source| failed(pin::SETTINGS, &maps.settings, source))
}
