//! The NetworkPolicy verdict: three look-ups, whatever the number of rules.
//!
//! The compiler sorts what can differ into classes: addresses into *peer
//! classes* (all selectors and ipBlocks treat two addresses of a class alike)
//! and, per policy set, ports into *port classes* (all rules of the set treat
//! two ports of a class alike). The verdict is then one bit: may this peer
//! class use this port class. Priorities, tiers and deny rules are resolved
//! when the bit is computed, so the kernel side knows nothing of them.
//!
//! Memory grows with peers + ports: one `u64` per peer class, per 64 port classes.

use crate::abi::{PolicySet, PortKey, SET_NONE};
use crate::addr::{BePort, proto};

/// The policy maps, or a copy of them.
pub trait PolicyTables {
    /// `POLICY_SETS[index]`.
    fn set(&self, index: u32) -> Option<PolicySet>;
    /// `POLICY_PEERS[{word, class}]`.
    fn peer_bits(&self, word: u32, class: u32) -> Option<u64>;
    /// `POLICY_PORTS[key]`.
    fn port_class(&self, key: PortKey) -> Option<u32>;
    /// `POLICY_RANGES`, longest prefix match.
    fn range_class(&self, key: PortKey) -> Option<u32>;
}

/// What one direction of policy says of a packet, and by which classes: user
/// space names the deciding policy and rule from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    pub port_class: u32,
}

impl Verdict {
    const OPEN: Self = Self {
        allowed: true,
        port_class: 0,
    };
    const CLOSED: Self = Self {
        allowed: false,
        port_class: 0,
    };
}

impl PolicySet {
    /// The class of a port without an entry of its own, or of a protocol without ports.
    #[inline(always)]
    pub fn default_class(&self, protocol: u8) -> u32 {
        let [tcp, udp, sctp, other] = self.default_class;
        u32::from(match protocol {
            proto::TCP => tcp,
            proto::UDP => udp,
            proto::SCTP => sctp,
            _ => other,
        })
    }
}

/// Judges one direction: may `class` exchange `protocol`/`port` with an
/// endpoint whose policy set is `set`? `port` is the destination's.
#[inline(always)]
pub fn verdict<T: PolicyTables>(
    tables: &T,
    set: u32,
    class: u32,
    protocol: u8,
    port: BePort,
) -> Verdict {
    if set == SET_NONE {
        return Verdict::OPEN;
    }
    let Some(header) = tables.set(set) else {
        return Verdict::CLOSED;
    };
    let mut port_class = header.default_class(protocol);
    if header.flags != 0 && proto::has_ports(protocol) {
        let key = PortKey {
            set,
            proto: u16::from(protocol),
            port,
        };
        let found = if header.flags & PolicySet::RANGES != 0 {
            tables.range_class(key)
        } else {
            tables.port_class(key)
        };
        if let Some(found) = found {
            port_class = found;
        }
    }
    let word = set.wrapping_add(port_class >> 6);
    let bits = match tables.peer_bits(word, class) {
        Some(bits) => bits,
        None if word == set => header.default_bits,
        None => match tables.set(word) {
            Some(continued) => continued.default_bits,
            None => {
                return Verdict {
                    allowed: false,
                    port_class,
                };
            }
        },
    };
    Verdict {
        allowed: (bits >> (port_class & 63)) & 1 != 0,
        port_class,
    }
}
