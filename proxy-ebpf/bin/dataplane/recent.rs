//! Connections that this CPU has let pass a moment ago: their next packets are
//! let pass without a look at the flow table.
//!
//! Each CPU has its own table, one entry per hash, the last connection wins.
//! An entry is of one direction of a connection and holds for one moment (32
//! jiffies) and one policy generation, so the flow is stamped once a moment and
//! a change of policy bites as it does on the flow.

use proxy_ebpf::abi::flow as flags;
use proxy_ebpf::addr::{Addr, BePort, Side, Tuple, proto};
use proxy_ebpf::conntrack::tcp;

use crate::clock;
use crate::maps::{self, Family};
use crate::parse::Headers;
use crate::track::{Trace, opens, orientation, touch};

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
    (clock::jiffies() >> MOMENT_SHIFT) as u32
}

/// What the flow table says of a packet at first sight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Part of a flow without NAT that the present policy admits: goes to this
    /// slot, 0 for the stack.
    Established(u32),
    /// There is no flow, or one that this packet replaces.
    New,
    /// To be looked at by [`track`](crate::track::track).
    Other,
}

/// The short way of established connections, past address and policy.
/// `is_hinted`: `trace.dst` is the endpoint that the packet goes to.
#[inline(always)]
pub(crate) fn sight<A: Family>(trace: &mut Trace<A>, is_hinted: bool) -> Sight {
    let opens = opens(&trace.headers);
    // A flow under NAT is one of a NAT client; any other is replaced.
    if opens
        && is_hinted
        && !maps::is_nat_client(trace.src.slot)
        && !maps::is_nat_client(trace.dst.slot)
    {
        return Sight::New;
    }
    let generation = maps::settings().generation;
    if let Some(slot) = find(&trace.headers, generation) {
        return Sight::Established(slot);
    }
    let side = trace.headers.tuple.canonical_into(&mut trace.key);
    let Some(flow) = maps::flow(&trace.key) else {
        return Sight::New;
    };
    if flow.flags & flags::NAT != 0 {
        return Sight::Other;
    }
    if opens {
        return Sight::New;
    }
    let slot = match side {
        Side::Low => flow.high_slot,
        Side::High => flow.low_slot,
    };
    if flow.generation != generation || !leads_to(slot, &trace.headers.tuple.dst) {
        return Sight::Other;
    }
    touch(&trace.headers, flow, orientation(flow.flags, side));
    remember(&trace.headers.tuple, generation, slot);
    Sight::Established(slot)
}

/// The slot that a packet goes to, 0 for the stack, if its connection has just
/// been let pass. Packets that change the state of a connection are not known.
#[inline(always)]
fn find<A: Family>(headers: &Headers<A>, generation: u32) -> Option<u32> {
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
fn leads_to<A: Addr>(slot: u32, address: &A) -> bool {
    slot == 0 || maps::endpoint(slot).is_some_and(|endpoint| A::of(endpoint) == *address)
}

/// Remembers that a connection was let pass under the policy of `generation`.
#[inline(always)]
fn remember<A: Family>(tuple: &Tuple<A>, generation: u32, slot: u32) {
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
