//! The verdict that the kernel's maps give, found as the programs find it.

use std::net::IpAddr;

use proxy_ebpf::abi::{PeerKey, PolicySet, PortKey, Prefix, RANGE_PREFIX_BASE, setting};
use proxy_ebpf::addr::{BePort, V4, V6};
use proxy_ebpf::policy::{PolicyTables, verdict};

use super::map::Maps;

/// The policy maps themselves, one system call per look-up. What cannot be read
/// counts as absent.
struct Live<'a>(&'a Maps);

impl PolicyTables for Live<'_> {
    fn set(&self, index: u32) -> Option<PolicySet> {
        self.0.policy_sets.get(&index).ok().flatten()
    }

    fn peer_bits(&self, word: u32, class: u32) -> Option<u64> {
        let key = PeerKey { word, class };
        self.0.policy_peers.get(&key).ok().flatten()
    }

    fn port_class(&self, key: PortKey) -> Option<u32> {
        self.0.policy_ports.get(&key).ok().flatten()
    }

    fn range_class(&self, key: PortKey) -> Option<u32> {
        let key = Prefix {
            bits: RANGE_PREFIX_BASE + 16,
            data: key,
        };
        self.0.policy_ranges.get(&key).ok().flatten()
    }
}

/// One direction of policy of an endpoint of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub slot: u32,
    pub is_ingress: bool,
    /// The other end.
    pub peer: IpAddr,
    pub protocol: u8,
    /// The destination's.
    pub port: u16,
}

/// May the endpoint exchange such packets with the peer, by the maps as they
/// are? `None`: the slot is empty.
pub(super) fn allowed(maps: &Maps, question: &Question) -> Option<bool> {
    let endpoint = maps.endpoints.get(&question.slot).ok().flatten()?;
    if endpoint.ifindex == 0 {
        return None;
    }
    let set = if question.is_ingress {
        endpoint.ingress_set
    } else {
        endpoint.egress_set
    };
    let class = class_of(maps, question.peer);
    let port = BePort::new(question.port);
    Some(verdict(&Live(maps), set, class, question.protocol, port).allowed)
}

fn class_of(maps: &Maps, address: IpAddr) -> u32 {
    let settings = maps.settings.get(&0).ok().flatten().unwrap_or_default();
    let asks_cidrs = |flag| settings.flags & flag != 0;
    match address {
        IpAddr::V4(ip) => {
            let data = V4::new(ip.octets());
            let known = maps.v4.addresses.get(&data).ok().flatten();
            let prefix = Prefix { bits: 32, data };
            let cidr = || maps.v4.cidrs.get(&prefix).ok().flatten();
            let cidr = || asks_cidrs(setting::CIDRS_V4).then(cidr).flatten();
            known.map(|known| known.class).or_else(cidr)
        }
        IpAddr::V6(ip) => {
            let data = V6::new(ip.octets());
            let known = maps.v6.addresses.get(&data).ok().flatten();
            let prefix = Prefix { bits: 128, data };
            let cidr = || maps.v6.cidrs.get(&prefix).ok().flatten();
            let cidr = || asks_cidrs(setting::CIDRS_V6).then(cidr).flatten();
            known.map(|known| known.class).or_else(cidr)
        }
    }
    .unwrap_or(0)
}
