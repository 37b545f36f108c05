//! The contents of the maps that the compilers fill, and what changed in them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy_ebpf::abi::{Address, PeerKey, PolicySet, PortKey, Service};
use proxy_ebpf::addr::BePort;
use proxy_ebpf::policy::PolicyTables;

use crate::model::Cidr;

/// One map's contents, remembering what was there before the last
/// [`Table::take_changes`].
#[derive(Clone, Debug)]
pub struct Table<K, V> {
    entries: BTreeMap<K, V>,
    before: BTreeMap<K, Option<V>>,
}

/// An entry that is not what it was; `old` and `new` differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed<K, V> {
    pub key: K,
    pub old: Option<V>,
    pub new: Option<V>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            before: BTreeMap::new(),
        }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<K: Eq, V: Eq> Eq for Table<K, V> {}

impl<K: Ord + Copy, V: PartialEq + Copy> Table<K, V> {
    pub fn get(&self, key: &K) -> Option<V> {
        self.entries.get(key).copied()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, V)> {
        self.entries.iter().map(|(key, value)| (*key, *value))
    }

    /// The entries from `from` to `to`, the latter included.
    pub fn range(&self, from: K, to: K) -> impl Iterator<Item = (K, V)> {
        self.entries
            .range(from..=to)
            .map(|(key, value)| (*key, *value))
    }

    /// Sets or, with `None`, removes an entry.
    pub fn set(&mut self, key: K, value: Option<V>) {
        let old = match value {
            Some(value) => self.entries.insert(key, value),
            None => self.entries.remove(&key),
        };
        if old != value {
            self.before.entry(key).or_insert(old);
        }
    }

    /// Entries that changed since the last call.
    pub fn take_changes(&mut self) -> Vec<Changed<K, V>> {
        std::mem::take(&mut self.before)
            .into_iter()
            .map(|(key, old)| Changed {
                key,
                old,
                new: self.get(&key),
            })
            .filter(|changed| changed.old != changed.new)
            .collect()
    }

    /// What leads from `old` to this table.
    pub fn since(&self, old: &Self) -> Vec<Changed<K, V>> {
        let gone = old
            .entries
            .iter()
            .filter(|(key, _)| !self.entries.contains_key(key));
        let gone = gone.map(|(key, value)| Changed {
            key: *key,
            old: Some(*value),
            new: None,
        });
        let kept = self.entries.iter().map(|(key, value)| Changed {
            key: *key,
            old: old.get(key),
            new: Some(*value),
        });
        gone.chain(kept)
            .filter(|changed| changed.old != changed.new)
            .collect()
    }
}

/// What the daemon writes of an `Endpoint`; the rest is the CNI plugin's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicy {
    pub ingress_set: u32,
    pub egress_set: u32,
    pub class_v4: u32,
    pub class_v6: u32,
}

/// A key of `POLICY_RANGES`; `bits` of the port count, besides set and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeKey {
    pub set: u32,
    pub proto: u16,
    /// In host order; bits after the first `bits` are zero.
    pub port: u16,
    pub bits: u8,
}

/// A key of `SERVICES_V4` or `SERVICES_V6`, scope 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub vip: IpAddr,
    pub port: u16,
    pub proto: u8,
}

/// A key of `BACKENDS_V4` or `BACKENDS_V6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    pub is_v6: bool,
    pub id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
    pub is_live: bool,
    pub generation: u32,
}

/// The part of `Settings` that the compilers decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Never 0, so that no zeroed flow entry passes for judged.
    pub generation: u32,
    pub has_cidrs_v4: bool,
    pub has_cidrs_v6: bool,
}

impl Default for Decision {
    fn default() -> Self {
        Self {
            generation: 1,
            has_cidrs_v4: false,
            has_cidrs_v6: false,
        }
    }
}

/// Everything the compilers say. Array elements that are all zero are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// By endpoint slot.
    pub endpoints: Table<u32, EndpointPolicy>,
    pub addresses: Table<IpAddr, Address>,
    pub cidrs: Table<Cidr, u32>,
    pub sets: Table<u32, PolicySet>,
    pub peers: Table<PeerKey, u64>,
    pub ports: Table<PortKey, u32>,
    pub ranges: Table<RangeKey, u32>,
    pub services: Table<ServiceKey, Service>,
    /// Index -> backend id.
    pub slots: Table<u32, u32>,
    /// Backends that are gone stay, not live, to keep their generation.
    pub backends: Table<BackendKey, Backend>,
    pub decision: Decision,
}

impl Tables {
    /// The endpoints of a Service port.
    pub fn endpoints_of(&self, key: &ServiceKey) -> Option<Vec<Backend>> {
        let service = self.services.get(key)?;
        let is_v6 = key.vip.is_ipv6();
        let slots = service.base..service.base + service.count;
        let ids = slots.filter_map(|slot| self.slots.get(&slot));
        let backends = ids.filter_map(|id| self.backends.get(&BackendKey { is_v6, id }));
        Some(backends.collect())
    }

    /// The class of an address as the kernel finds it.
    pub fn class_of(&self, address: IpAddr) -> u32 {
        if let Some(known) = self.addresses.get(&address) {
            return known.class;
        }
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest)
            .rev()
            .filter_map(|length| Cidr::new(address, length))
            .find_map(|cidr| self.cidrs.get(&cidr))
            .unwrap_or(0)
    }
}

impl PolicyTables for Tables {
    fn set(&self, index: u32) -> Option<PolicySet> {
        Some(self.sets.get(&index).unwrap_or_default())
    }

    fn peer_bits(&self, word: u32, class: u32) -> Option<u64> {
        self.peers.get(&PeerKey { word, class })
    }

    fn port_class(&self, key: PortKey) -> Option<u32> {
        self.ports.get(&key)
    }

    fn range_class(&self, key: PortKey) -> Option<u32> {
        (0..=16_u8).rev().find_map(|bits| {
            self.ranges.get(&RangeKey {
                set: key.set,
                proto: key.proto,
                port: mask(key.port.host(), bits),
                bits,
            })
        })
    }
}

/// `port` with all but its first `bits` cleared.
pub(super) fn mask(port: u16, bits: u8) -> u16 {
    port & u16::MAX.checked_shl(16 - u32::from(bits)).unwrap_or(0)
}

/// The key of a single port.
pub(super) fn port_key(set: u32, proto: u8, port: u16) -> PortKey {
    PortKey {
        set,
        proto: u16::from(proto),
        port: BePort::new(port),
    }
}
