//! Connections that this CPU has let pass a moment ago: their next packets are
//! let pass without a look at the flow table.
//!
//! Each CPU has its own table, one entry per hash, the last connection wins.
//! An entry is of one direction of a connection and holds for one moment (32
//! jiffies) and one policy generation, so the flow is stamped once a moment and
//! a change of policy bites as it does on the flow.

use proxy_ebpf::addr::{Addr, BePort, Tuple, proto};
use proxy_ebpf::conntrack::tcp;

use crate::maps::{self, Family};
use crate::parse::Headers;

/// A moment is 2^5 jiffies: 32 to 320 ms.
const MOMENT_SHIFT: u64 = 5;

pub(crate) struct Recent<A> {
    src: A,
    dst: A,
    sport: BePort,
    dport: BePort,
    proto: u32,
    generation: u32,
    moment: u32,
    /// The endpoint it goes to, 0 for the stack.
    slot: u32,
}

impl<A: Family> Recent<A> {
    const BITS: u32 = 10;
    /// Entries per CPU.
    pub const COUNT: u32 = 1 << Self::BITS;

    /// The entry for a connection.
    #[inline(always)]
    fn of(tuple: &Tuple<A>) -> Option<&'static mut Self> {
        // Multiplicative hashing: the upper bits depend on all lower ones.
        const FACTOR: u32 = 0x9e37_79b1;
        let ports = u32::from(tuple.sport.wire()) << 16 | u32::from(tuple.dport.wire());
        let mixed = (ports ^ tuple.src.low()).wrapping_mul(FACTOR) ^ tuple.dst.low();
        maps::recent(mixed.wrapping_mul(FACTOR) >> (u32::BITS - Self::BITS))
    }
}

#[inline(always)]
fn moment() -> u32 {
    (maps::jiffies() >> MOMENT_SHIFT) as u32
}

/// The slot that a packet goes to, 0 for the stack, if its connection has just
/// been let pass. Packets that change the state of a connection are not known.
#[inline(always)]
pub(crate) fn find<A: Family>(headers: &Headers<A>, generation: u32) -> Option<u32> {
    let tuple = &headers.tuple;
    if tuple.proto == proto::TCP && headers.kind & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
        return None;
    }
    let recent = Recent::of(tuple)?;
    let known = recent.src == tuple.src
        && recent.dst == tuple.dst
        && recent.sport == tuple.sport
        && recent.dport == tuple.dport
        && recent.proto == u32::from(tuple.proto)
        && recent.generation == generation
        && recent.moment == moment();
    if !known || !leads_to(recent.slot, &tuple.dst) {
        return None;
    }
    Some(recent.slot)
}

/// Whether `slot` is where packets to `address` go, as far as an endpoint tells.
#[inline(always)]
pub(crate) fn leads_to<A: Addr>(slot: u32, address: &A) -> bool {
    slot == 0 || maps::endpoint(slot).is_some_and(|endpoint| A::of(endpoint) == *address)
}

/// Remembers that a connection was let pass under the policy of `generation`.
#[inline(always)]
pub(crate) fn remember<A: Family>(tuple: &Tuple<A>, generation: u32, slot: u32) {
    if let Some(recent) = Recent::of(tuple) {
        // Field by field: not by way of the stack.
        recent.src = tuple.src;
        recent.dst = tuple.dst;
        recent.sport = tuple.sport;
        recent.dport = tuple.dport;
        recent.proto = u32::from(tuple.proto);
        recent.generation = generation;
        recent.moment = moment();
        recent.slot = slot;
    }
}
