//! Who talks to whom, may they, and is it a known flow.

use proxy_ebpf::abi::{
    Address, Endpoint, Flow, RESERVED_CLASS, SET_NONE, VipFlow, flow as flags, kind,
};
use proxy_ebpf::addr::{Addr, BePort, FlowKey, Side, Tuple, proto};
use proxy_ebpf::conntrack::{self, icmp, tcp};
use proxy_ebpf::event::Counter;
use proxy_ebpf::policy::verdict;

use crate::clock;
use crate::maps::{self, Family};
use crate::parse::{Headers, Quoted};
use crate::reject::ANSWER_BYTES;

/// Source ports tried towards a backend before [`Counter::NatExhausted`].
const PORT_ATTEMPTS: u32 = 8;
/// `-EEXIST`.
const EXISTS: i32 = -17;

/// One end of a packet's path, as policy sees it.
#[derive(Clone, Copy, Default)]
pub(crate) struct End {
    /// Endpoint slot, 0 if not on this node.
    pub slot: u32,
    /// Peer class; [`RESERVED_CLASS`] until [`judge`] has asked the CIDR map.
    pub class: u32,
    pub ingress_set: u32,
    pub egress_set: u32,
    /// Not 0: this node itself, which policy does not concern.
    pub exempt: u32,
}

impl End {
    /// Becomes the endpoint in `slot`.
    #[inline(always)]
    pub fn set_local<A: Addr>(&mut self, slot: u32, endpoint: &Endpoint) {
        self.slot = slot;
        self.class = A::class_of(endpoint);
        self.ingress_set = endpoint.ingress_set;
        self.egress_set = endpoint.egress_set;
        self.exempt = 0;
    }

    /// Becomes the endpoint that has an address, if there is a hint to it.
    #[inline(always)]
    pub fn set_hinted<A: Family>(&mut self, address: &A) -> bool {
        let Some((slot, endpoint)) = maps::hinted(address) else {
            return false;
        };
        self.set_local::<A>(slot, endpoint);
        true
    }

    /// Becomes the end that has an address of which `known` is what the map says.
    #[inline(always)]
    pub fn set_address<A: Family>(&mut self, address: &A, known: Option<&Address>) {
        if let Some(known) = known
            && known.kind == kind::LOCAL_POD
            && let Some(endpoint) = maps::endpoint(known.slot)
            && A::of(endpoint) == *address
        {
            self.set_local::<A>(known.slot, endpoint);
            maps::hint(address, known.slot);
            return;
        }
        self.slot = 0;
        self.class = known.map_or(RESERVED_CLASS, |known| known.class);
        self.ingress_set = SET_NONE;
        self.egress_set = SET_NONE;
        self.exempt = u32::from(known.is_some_and(|known| known.kind == kind::LOCAL_NODE));
    }

    #[inline(always)]
    pub fn is_isolated(&self) -> bool {
        self.ingress_set | self.egress_set != SET_NONE
    }
}

/// A packet on its way through a program: what reports tell of it.
///
/// Lies in a per-CPU map: [`maps::trace`].
pub(crate) struct Trace<A> {
    pub headers: Headers<A>,
    /// What the packet's tuple is to become.
    pub translated: Tuple<A>,
    /// What is judged, where that is not the packet's tuple.
    pub judged: Tuple<A>,
    /// To a Service: where to.
    pub vip_flow: VipFlow<A>,
    /// Of an ICMP error: what it quotes, and what that is to become.
    pub quoted: Quoted<A>,
    pub inner: Tuple<A>,
    /// The key of the flow at hand, and what is to be its value.
    pub key: FlowKey<A>,
    pub flow: Flow<A>,
    /// The answer to a rejected packet, from the IP header on.
    pub answer: [u8; ANSWER_BYTES],
    pub src: End,
    pub dst: End,
    pub egress_port_class: u32,
    pub ingress_port_class: u32,
    /// A flow was opened by this packet.
    pub opened: bool,
    /// The packet is the first piece of a datagram; its ports are remembered.
    pub is_first_piece: bool,
}

impl<A: Addr> Trace<A> {
    /// Forgets the packet before, for the report of one that cannot be read.
    /// Not on the way of others: clearing costs as much as a look-up.
    #[inline(never)]
    pub fn clear(&mut self) -> u32 {
        self.headers.tuple = Tuple {
            src: A::ZERO,
            dst: A::ZERO,
            sport: BePort::ZERO,
            dport: BePort::ZERO,
            proto: 0,
        };
        self.headers.kind = 0;
        self.src = End::default();
        self.dst = End::default();
        self.egress_port_class = 0;
        self.ingress_port_class = 0;
        0
    }
}

/// How a packet goes on. One byte, so that a kernel function can return it:
/// larger results go through memory and leave a stack pointer in r0, which the
/// verifier refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    AsIs,
    /// A reply under NAT, to be rewritten.
    Translated,
    Dropped(Counter),
}

/// How a packet relates to the opener of its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orientation {
    Forward,
    Backward,
}

/// Both directions of policy for `trace.judged`, a flow opened by `src`, or by `dst` if
/// `backward`. Returns 0, or the [`Counter`] that says which direction refused.
#[inline(never)]
fn judge<A: Family>(trace: &mut Trace<A>, backward: u32) -> u32 {
    judge_here(trace, backward)
}

/// [`judge`] without the call: on the way of new flows.
#[inline(always)]
fn judge_here<A: Family>(trace: &mut Trace<A>, backward: u32) -> u32 {
    let tuple = &trace.judged;
    let flags = maps::settings().flags;
    if trace.src.exempt | trace.dst.exempt != 0 || tuple.src == tuple.dst {
        return 0;
    }
    if trace.src.class == RESERVED_CLASS {
        trace.src.class = maps::cidr_class(tuple.src, flags);
    }
    if trace.dst.class == RESERVED_CLASS {
        trace.dst.class = maps::cidr_class(tuple.dst, flags);
    }
    let (opener, peer, port) = if backward == 0 {
        (&trace.src, &trace.dst, tuple.dport)
    } else {
        (&trace.dst, &trace.src, tuple.sport)
    };
    let (egress_set, egress_class) = (opener.egress_set, peer.class);
    let (ingress_set, ingress_class) = (peer.ingress_set, opener.class);
    let egress = verdict(&maps::Policy, egress_set, egress_class, tuple.proto, port);
    trace.egress_port_class = egress.port_class;
    if !egress.allowed {
        return Counter::PolicyEgress as u32;
    }
    let ingress = verdict(&maps::Policy, ingress_set, ingress_class, tuple.proto, port);
    trace.ingress_port_class = ingress.port_class;
    if !ingress.allowed {
        return Counter::PolicyIngress as u32;
    }
    0
}

#[inline(always)]
fn refuse(reason: u32) -> Counter {
    if reason == Counter::PolicyEgress as u32 {
        Counter::PolicyEgress
    } else {
        Counter::PolicyIngress
    }
}

/// The slots of the low and the high end, if `side` sends.
#[inline(always)]
fn slots<A>(trace: &Trace<A>, side: Side) -> (u32, u32) {
    match side {
        Side::Low => (trace.src.slot, trace.dst.slot),
        Side::High => (trace.dst.slot, trace.src.slot),
    }
}

#[inline(always)]
pub(crate) fn opens<A>(headers: &Headers<A>) -> bool {
    headers.tuple.proto == proto::TCP && tcp::opens(headers.kind)
}

/// Answers an echo request; it belongs to that one's flow, or to none.
#[inline(always)]
fn answers<A>(headers: &Headers<A>) -> bool {
    icmp::answers(headers.tuple.proto, headers.kind)
}

#[inline(always)]
fn tcp_flags<A>(headers: &Headers<A>) -> u8 {
    if headers.tuple.proto == proto::TCP {
        headers.kind
    } else {
        0
    }
}

#[inline(always)]
pub(crate) fn orientation(flow_flags: u8, side: Side) -> Orientation {
    if (flow_flags & flags::OPENED_BY_HIGH != 0) == (side == Side::High) {
        Orientation::Forward
    } else {
        Orientation::Backward
    }
}

/// A known flow: judged again if the policy has changed since, and stamped.
#[inline(always)]
fn refresh<A: Family>(
    trace: &mut Trace<A>,
    flow: &mut Flow<A>,
    orientation: Orientation,
) -> Result<(), Counter> {
    let generation = maps::settings().generation;
    let backward = orientation == Orientation::Backward;
    if flow.generation != generation {
        // A pod with itself is not judged, though its answers go to the mirror address.
        if flow.flags & flags::HAIRPIN == 0 {
            let refused = judge(trace, u32::from(backward));
            if refused != 0 {
                return Err(refuse(refused));
            }
        }
        flow.generation = generation;
    }
    touch(&trace.headers, flow, orientation);
    Ok(())
}

#[inline(always)]
pub(crate) fn touch<A: Family>(headers: &Headers<A>, flow: &mut Flow<A>, orientation: Orientation) {
    let from_opener = orientation == Orientation::Forward;
    let state = conntrack::advance(flow.state, from_opener, tcp_flags(headers));
    // Unchanged words are not written: cache lines stay shared between CPUs.
    if state != flow.state {
        flow.state = state;
    }
    let now = clock::now();
    if flow.seen != now {
        flow.seen = now;
    }
}

/// Where a reply under NAT goes: what its receiver believes to talk to.
#[inline(always)]
fn untranslated<A: Family>(tuple: &Tuple<A>, flow: &Flow<A>, out: &mut Tuple<A>) {
    let hairpin = flow.flags & flags::HAIRPIN != 0;
    out.src = flow.service;
    out.sport = flow.service_port;
    out.dst = if hairpin { tuple.src } else { tuple.dst };
    out.dport = flow.client_port;
    out.proto = tuple.proto;
}

/// Judges a packet that is not addressed to a Service and keeps its flow, if
/// policy or NAT need one. [`Passage::Translated`]: into `trace.translated`.
///
/// Without a flow, a TCP packet other than SYN is the middle of a connection
/// older than the flow table's memory: it passes if either end may have opened
/// it. An echo reply that nobody asked for is judged by itself and opens none.
/// `is_new` is not 0 if [`recent::sight`](crate::recent::sight) has found that there is none.
#[inline(never)]
pub(crate) fn track<A: Family>(trace: &mut Trace<A>, is_new: u32) -> Passage {
    trace.judged.copy_from(&trace.headers.tuple);
    let side = trace.headers.tuple.canonical_into(&mut trace.key);
    let opens = opens(&trace.headers);
    if is_new == 0
        && let Some(flow) = maps::flow(&trace.key)
    {
        let orientation = orientation(flow.flags, side);
        let nat = flow.flags & flags::NAT != 0;
        if !opens || nat {
            if let Err(reason) = refresh(trace, flow, orientation) {
                return Passage::Dropped(reason);
            }
            if nat && orientation == Orientation::Backward {
                untranslated(&trace.headers.tuple, flow, &mut trace.translated);
                return Passage::Translated;
            }
            return Passage::AsIs;
        }
    }
    // Read before judging: a flow must not be stamped with a policy that it was
    // not judged by.
    let generation = maps::settings().generation;
    let mut opened_by = side;
    let mut state = 0;
    let refused = judge_here(trace, 0);
    if refused != 0 {
        if opens || trace.judged.proto != proto::TCP || judge(trace, 1) != 0 {
            // The classes of the forward direction are what a report tells.
            judge(trace, 0);
            return Passage::Dropped(refuse(refused));
        }
        opened_by = if side == Side::Low {
            Side::High
        } else {
            Side::Low
        };
        state = conntrack::REPLIED;
    }
    let exempt = trace.src.exempt | trace.dst.exempt != 0;
    let isolated = trace.src.is_isolated() || trace.dst.is_isolated();
    // A flow that an answer opened would let requests pass the other way.
    if exempt || !isolated || answers(&trace.headers) {
        return Passage::AsIs;
    }
    let (low_slot, high_slot) = slots(trace, side);
    let tcp_flags = tcp_flags(&trace.headers);
    let flow = &mut trace.flow;
    flow.seen = clock::now_here();
    flow.generation = generation;
    flow.low_slot = low_slot;
    flow.high_slot = high_slot;
    flow.state = conntrack::advance(state, opened_by == side, tcp_flags);
    flow.flags = if opened_by == Side::High {
        flags::OPENED_BY_HIGH
    } else {
        0
    };
    flow.client_port = trace.judged.sport;
    flow.service_port = trace.judged.dport;
    flow.service = trace.judged.dst;
    if maps::replace_flow(&trace.key, &trace.flow).is_err() {
        return Passage::Dropped(Counter::FlowTableFull);
    }
    trace.opened = true;
    Passage::AsIs
}

/// Judges a packet from `trace.src` to a Service, which goes to a backend as
/// `trace.vip_flow` says, and keeps both flows. `trace.translated` is the
/// tuple it is to have (with another source port, if the wanted one is taken).
#[inline(never)]
pub(crate) fn track_translated<A: Family>(trace: &mut Trace<A>, chosen_now: u32) -> Passage {
    let hairpin = trace.vip_flow.flags & u32::from(flags::HAIRPIN) != 0;
    trace.translated.src = if hairpin {
        A::MIRROR
    } else {
        trace.headers.tuple.src
    };
    trace.translated.sport = trace.vip_flow.source_port;
    trace.translated.dst = trace.vip_flow.address;
    trace.translated.dport = trace.vip_flow.port;
    trace.translated.proto = trace.headers.tuple.proto;
    // A pod's way to itself is judged as one from its own address.
    trace.judged.copy_from(&trace.translated);
    trace.judged.src = trace.headers.tuple.src;
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        attempt += 1;
        let side = trace.translated.canonical_into(&mut trace.key);
        if let Some(flow) = maps::flow(&trace.key) {
            if is_same(flow, &trace.headers.tuple, side) {
                if opens(&trace.headers) {
                    flow.state = 0;
                }
                return match refresh(trace, flow, Orientation::Forward) {
                    Ok(()) => remember(trace, chosen_now),
                    Err(reason) => Passage::Dropped(reason),
                };
            }
        } else {
            match open_translated(trace, side, hairpin) {
                Opened::Yes => {
                    let kept = remember(trace, 1);
                    if matches!(kept, Passage::Dropped(_)) {
                        trace.translated.canonical_into(&mut trace.key);
                        maps::forget_flow(&trace.key);
                    }
                    return kept;
                }
                Opened::Taken => {}
                Opened::No(reason) => return Passage::Dropped(reason),
            }
        }
        // The port is another connection's: take one of the upper half.
        let port = 0x8000 | (maps::random() as u16 & 0x7fff);
        trace.translated.sport = BePort::new(port);
    }
    Passage::Dropped(Counter::NatExhausted)
}

enum Opened {
    Yes,
    /// Another connection has the tuple.
    Taken,
    No(Counter),
}

/// Makes the flow between client and backend. That the insertion must be of a
/// new key is what allocates the source port.
#[inline(always)]
fn open_translated<A: Family>(trace: &mut Trace<A>, side: Side, hairpin: bool) -> Opened {
    let generation = maps::settings().generation;
    let refused = judge(trace, 0);
    if refused != 0 {
        return Opened::No(refuse(refused));
    }
    let tcp_flags = tcp_flags(&trace.headers);
    let (low_slot, high_slot) = slots(trace, side);
    let mut flow_flags = flags::NAT;
    if hairpin {
        flow_flags |= flags::HAIRPIN;
    }
    if side == Side::High {
        flow_flags |= flags::OPENED_BY_HIGH;
    }
    let flow = &mut trace.flow;
    flow.seen = clock::now();
    flow.generation = generation;
    flow.low_slot = low_slot;
    flow.high_slot = high_slot;
    flow.state = conntrack::advance(0, true, tcp_flags);
    flow.flags = flow_flags;
    flow.client_port = trace.headers.tuple.sport;
    flow.service_port = trace.headers.tuple.dport;
    flow.service = trace.headers.tuple.dst;
    match maps::open_flow(&trace.key, &trace.flow) {
        Ok(()) => {
            trace.opened = true;
            maps::mark_nat_client(trace.src.slot);
            Opened::Yes
        }
        Err(EXISTS) => Opened::Taken,
        Err(_) => Opened::No(Counter::FlowTableFull),
    }
}

/// Whether a flow is the one of `original`, from a client to a Service.
#[inline(always)]
fn is_same<A: Family>(flow: &Flow<A>, original: &Tuple<A>, side: Side) -> bool {
    flow.flags & flags::NAT != 0
        && flow.service == original.dst
        && flow.service_port == original.dport
        && flow.client_port == original.sport
        && orientation(flow.flags, side) == Orientation::Forward
}

#[inline(always)]
fn remember<A: Family>(trace: &mut Trace<A>, write: u32) -> Passage {
    if write != 0 || trace.vip_flow.source_port != trace.translated.sport {
        trace.vip_flow.source_port = trace.translated.sport;
        trace.headers.tuple.canonical_into(&mut trace.key);
        if maps::replace_vip_flow(&trace.key, &trace.vip_flow).is_err() {
            return Passage::Dropped(Counter::FlowTableFull);
        }
    }
    Passage::Translated
}
