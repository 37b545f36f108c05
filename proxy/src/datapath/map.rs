//! The maps by name and type.

use std::os::fd::OwnedFd;

use proxy_ebpf::abi::{
    Address, Backend, Endpoint, Flow, PeerKey, Plain, PolicySet, PortKey, Prefix, Service,
    ServiceKey, Settings, VipFlow, pin,
};
use proxy_ebpf::addr::{Addr, FlowKey, V4, V6};

use super::bpf::{PerCpuCounters, Table};
use super::load::{LoadError, Loaded};

/// The maps of one address family.
#[derive(Debug)]
pub struct FamilyMaps<A> {
    pub addresses: Table<A, Address>,
    pub cidrs: Table<Prefix<A>, u32>,
    pub flows: Table<FlowKey<A>, Flow<A>>,
    pub vip_flows: Table<FlowKey<A>, VipFlow<A>>,
    pub services: Table<ServiceKey<A>, Service>,
    pub backends: Table<u32, Backend<A>>,
}

/// Every map that the daemon reads or writes.
#[derive(Debug)]
pub struct Maps {
    pub endpoints: Table<u32, Endpoint>,
    pub nat_clients: Table<u32, u32>,
    pub v4: FamilyMaps<V4>,
    pub v6: FamilyMaps<V6>,
    pub slots: Table<u32, u32>,
    pub policy_sets: Table<u32, PolicySet>,
    pub policy_peers: Table<PeerKey, u64>,
    pub policy_ports: Table<PortKey, u32>,
    pub policy_ranges: Table<Prefix<PortKey>, u32>,
    pub settings: Table<u32, Settings>,
    pub counters: PerCpuCounters,
    pub events: OwnedFd,
    /// Of [`proxy_ebpf::abi::Origins`], by socket.
    pub socket_origins: OwnedFd,
}

/// Names of a family's maps.
struct Names {
    addresses: &'static str,
    cidrs: &'static str,
    flows: &'static str,
    vip_flows: &'static str,
    services: &'static str,
    backends: &'static str,
}

impl<A: Addr> FamilyMaps<A>
where
    A: Plain,
    Prefix<A>: Plain,
    FlowKey<A>: Plain,
    Flow<A>: Plain,
    VipFlow<A>: Plain,
    ServiceKey<A>: Plain,
    Backend<A>: Plain,
{
    fn open(loaded: &Loaded, names: &Names) -> Result<Self, LoadError> {
        Ok(Self {
            addresses: table(loaded, names.addresses)?,
            cidrs: table(loaded, names.cidrs)?,
            flows: table(loaded, names.flows)?,
            vip_flows: table(loaded, names.vip_flows)?,
            services: table(loaded, names.services)?,
            backends: table(loaded, names.backends)?,
        })
    }
}

impl Maps {
    pub(super) fn open(loaded: &Loaded) -> Result<Self, LoadError> {
        Ok(Self {
            endpoints: table(loaded, pin::ENDPOINTS)?,
            nat_clients: table(loaded, pin::NAT_CLIENTS)?,
            v4: FamilyMaps::open(
                loaded,
                &Names {
                    addresses: pin::ADDRESSES_V4,
                    cidrs: pin::CIDRS_V4,
                    flows: pin::FLOWS_V4,
                    vip_flows: pin::VIP_FLOWS_V4,
                    services: pin::SERVICES_V4,
                    backends: pin::BACKENDS_V4,
                },
            )?,
            v6: FamilyMaps::open(
                loaded,
                &Names {
                    addresses: pin::ADDRESSES_V6,
                    cidrs: pin::CIDRS_V6,
                    flows: pin::FLOWS_V6,
                    vip_flows: pin::VIP_FLOWS_V6,
                    services: pin::SERVICES_V6,
                    backends: pin::BACKENDS_V6,
                },
            )?,
            slots: table(loaded, pin::SLOTS)?,
            policy_sets: table(loaded, pin::POLICY_SETS)?,
            policy_peers: table(loaded, pin::POLICY_PEERS)?,
            policy_ports: table(loaded, pin::POLICY_PORTS)?,
            policy_ranges: table(loaded, pin::POLICY_RANGES)?,
            settings: table(loaded, pin::SETTINGS)?,
            counters: counters(loaded)?,
            events: loaded.map(pin::EVENTS)?,
            socket_origins: loaded.map(pin::SOCKET_ORIGINS)?,
        })
    }
}

fn table<K: Plain, V: Plain>(
    loaded: &Loaded,
    name: &'static str,
) -> Result<Table<K, V>, LoadError> {
    Table::open(loaded.map(name)?)
        .map_err(|source| LoadError::MapRead { name, source })?
        .ok_or(LoadError::MapLayout { name })
}

fn counters(loaded: &Loaded) -> Result<PerCpuCounters, LoadError> {
    let name = pin::COUNTERS;
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| LoadError::MapRead { name, source })?;
    PerCpuCounters::open(loaded.map(name)?, cpus)
        .map_err(|source| LoadError::MapRead { name, source })?
        .ok_or(LoadError::MapLayout { name })
}
