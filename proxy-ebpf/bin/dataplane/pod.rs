//! The two programs of a pod's host interface.
#![expect(unsafe_code, reason = "redirect helpers")]

use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use proxy_ebpf::abi::{Endpoint, JUDGED_MARK, kind};
use proxy_ebpf::addr::{Addr, V6, proto};
use proxy_ebpf::event::{Counter, Hook};

use crate::icmp::{Related, related, related_to_service};
use crate::maps::{self, Family};
use crate::neighbour::{self, Answer};
use crate::packet;
use crate::parse::{Headers, Parse, Piece};
use crate::recent::{self, Sight};
use crate::reject::Reject;
use crate::report;
use crate::rewrite::{Rewrite, rewrite};
use crate::service::{self, Route};
use crate::track::{End, Passage, Trace, track, track_translated};

/// `TC_ACT_UNSPEC`, `TCX_NEXT`: the next program, or else the stack.
const PASS: i32 = -1;
const SHOT: i32 = 2;

/// Everything the programs need of an address family.
pub(crate) trait Pod: Family + Parse + Reject + Rewrite {
    /// Packets from sources other than the pod's address that a pod may send.
    fn unaddressed(ctx: &TcContext, headers: &Headers<Self>, endpoint: &Endpoint) -> Answer;

    /// Neighbour discovery from the pod's address.
    fn discovery(ctx: &TcContext, headers: &Headers<Self>, endpoint: &Endpoint) -> Answer;
}

impl Pod for proxy_ebpf::addr::V4 {
    #[inline(always)]
    fn unaddressed(_: &TcContext, _: &Headers<Self>, _: &Endpoint) -> Answer {
        Answer::Drop(Counter::SpoofedAddress)
    }

    #[inline(always)]
    fn discovery(_: &TcContext, _: &Headers<Self>, _: &Endpoint) -> Answer {
        Answer::Pass
    }
}

impl Pod for V6 {
    #[inline(always)]
    fn unaddressed(ctx: &TcContext, headers: &Headers<Self>, endpoint: &Endpoint) -> Answer {
        let src = headers.tuple.src;
        if !(src == Self::ZERO || src.is_link_local()) || headers.tuple.proto != proto::ICMPV6 {
            return Answer::Drop(Counter::SpoofedAddress);
        }
        if headers.discovery {
            return neighbour::discovery(ctx, headers, endpoint);
        }
        // Multicast listener discovery (RFC 3810) goes no further than the link.
        if matches!(headers.kind, 130..=132 | 143) && headers.tuple.dst.is_multicast() {
            return Answer::Pass;
        }
        Answer::Drop(Counter::SpoofedAddress)
    }

    #[inline(always)]
    fn discovery(ctx: &TcContext, headers: &Headers<Self>, endpoint: &Endpoint) -> Answer {
        neighbour::discovery(ctx, headers, endpoint)
    }
}

/// Runs `body` and counts and reports how it ended.
#[inline(always)]
fn run<A: Pod>(
    ctx: &TcContext,
    hook: Hook,
    body: impl FnOnce(&mut Trace<A>) -> Result<i32, Counter>,
) -> i32 {
    let Some(trace) = maps::trace::<A>() else {
        return SHOT;
    };
    trace.opened = false;
    trace.is_first_piece = false;
    match body(trace) {
        Ok(action) => {
            if trace.opened {
                report::opened(ctx, hook, trace);
            }
            action
        }
        Err(reason) => {
            report::dropped(ctx, hook, reason, trace);
            if trace.is_first_piece {
                forget_piece(trace);
            }
            if reason == Counter::Rejected {
                bounce(ctx)
            } else {
                SHOT
            }
        }
    }
}

/// From a pod: tc ingress of its host interface.
#[inline(always)]
pub(crate) fn out(ctx: &TcContext) -> i32 {
    let Some((slot, endpoint)) = maps::endpoint_of(packet::ifindex(ctx)) else {
        maps::count(Counter::UnknownInterface, Hook::PodOut);
        return SHOT;
    };
    match packet::ethertype(ctx) {
        Some(packet::ETHERTYPE_V4) => out4(ctx, slot, endpoint),
        Some(packet::ETHERTYPE_V6) => out6(ctx, slot, endpoint),
        Some(packet::ETHERTYPE_ARP) => match neighbour::arp(ctx, endpoint) {
            Answer::Reply => bounce(ctx),
            Answer::Pass => PASS,
            Answer::Drop(reason) => {
                maps::count(reason, Hook::PodOut);
                SHOT
            }
        },
        Some(_) => {
            maps::count(Counter::UnsupportedProtocol, Hook::PodOut);
            SHOT
        }
        None => {
            maps::count(Counter::Malformed, Hook::PodOut);
            SHOT
        }
    }
}

#[inline(always)]
fn out4(ctx: &TcContext, slot: u32, endpoint: &Endpoint) -> i32 {
    run::<proxy_ebpf::addr::V4>(ctx, Hook::PodOut, |trace| send(ctx, slot, endpoint, trace))
}

#[inline(never)]
fn out6(ctx: &TcContext, slot: u32, endpoint: &Endpoint) -> i32 {
    run::<V6>(ctx, Hook::PodOut, |trace| send(ctx, slot, endpoint, trace))
}

/// Back into the pod the packet came from.
#[inline(always)]
fn bounce(ctx: &TcContext) -> i32 {
    // SAFETY: an interface index and flags; the packet is the kernel's from here.
    unsafe { bpf_redirect_peer(packet::ifindex(ctx), 0) as i32 }
}

#[inline(always)]
fn answered(ctx: &TcContext, answer: Answer) -> Result<i32, Counter> {
    match answer {
        Answer::Reply => Ok(bounce(ctx)),
        Answer::Pass => Ok(PASS),
        Answer::Drop(reason) => Err(reason),
    }
}

/// Into the pod in `slot`.
#[inline(always)]
fn deliver(ctx: &TcContext, slot: u32) -> Result<i32, Counter> {
    let endpoint = maps::endpoint(slot).ok_or(Counter::UnknownInterface)?;
    if endpoint.ifindex == 0 {
        return Err(Counter::UnknownInterface);
    }
    packet::set_macs(ctx, &endpoint.mac, &endpoint.gateway_mac)?;
    if endpoint.flags & Endpoint::SHAPED != 0 {
        packet::set_mark(ctx, JUDGED_MARK);
        // SAFETY: as for `bounce`.
        return Ok(unsafe { bpf_redirect(endpoint.ifindex, 0) as i32 });
    }
    // SAFETY: as for `bounce`.
    Ok(unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 })
}

/// Parses the headers; of a packet that cannot be parsed nothing is known.
#[inline(always)]
fn read<A: Pod>(ctx: &TcContext, trace: &mut Trace<A>) -> Result<(), Counter> {
    A::parse(ctx, &mut trace.headers).inspect_err(|_| {
        trace.clear();
    })
}

/// Ports of fragments: the first tells, the later ones remember.
#[inline(always)]
fn reassemble<A: Pod>(trace: &mut Trace<A>) -> Result<(), Counter> {
    if trace.headers.piece == Piece::Whole {
        Ok(())
    } else {
        ports_of_piece(trace)
    }
}

#[inline(never)]
fn ports_of_piece<A: Pod>(trace: &mut Trace<A>) -> Result<(), Counter> {
    let headers = &mut trace.headers;
    let key = headers.fragment_key();
    if headers.piece == Piece::First {
        let tuple = &headers.tuple;
        let ports = proxy_ebpf::abi::Fragment {
            sport: tuple.sport,
            dport: tuple.dport,
        };
        maps::remember_fragment(&key, &ports);
        trace.is_first_piece = true;
        return Ok(());
    }
    let ports = maps::fragment(&key).ok_or(Counter::FragmentUnknown)?;
    headers.tuple.sport = ports.sport;
    headers.tuple.dport = ports.dport;
    Ok(())
}

/// A first piece was dropped: so are the later ones, which might otherwise be
/// let pass on their way to another backend.
#[inline(never)]
fn forget_piece<A: Pod>(trace: &Trace<A>) -> u32 {
    maps::forget_fragment(&trace.headers.fragment_key());
    0
}

#[inline(always)]
fn send<A: Pod>(
    ctx: &TcContext,
    slot: u32,
    endpoint: &Endpoint,
    trace: &mut Trace<A>,
) -> Result<i32, Counter> {
    read(ctx, trace)?;
    trace.src.set_local::<A>(slot, endpoint);
    trace.dst.slot = 0;
    if packet::source_mac(ctx) != Some(endpoint.mac) {
        return Err(Counter::SpoofedMac);
    }
    let src = &trace.headers.tuple.src;
    if *src != A::of(endpoint) || *src == A::ZERO {
        return answered(ctx, A::unaddressed(ctx, &trace.headers, endpoint));
    }
    if trace.headers.discovery {
        return answered(ctx, A::discovery(ctx, &trace.headers, endpoint));
    }
    reassemble(trace)?;
    let is_hinted = trace.dst.set_hinted(&trace.headers.tuple.dst);
    let mut sight = Sight::Other;
    let isolated = trace.src.is_isolated() || (is_hinted && trace.dst.is_isolated());
    if isolated && !trace.headers.icmp_error {
        sight = recent::sight(trace, is_hinted);
        if let Sight::Established(to) = sight {
            return forward(ctx, to);
        }
    }
    if !is_hinted {
        let dst = &trace.headers.tuple.dst;
        let known = maps::address(dst);
        if known.is_some_and(|known| known.kind == kind::SERVICE) {
            translate(ctx, endpoint, trace)?;
            return forward(ctx, trace.dst.slot);
        }
        trace.dst.set_address(dst, known);
    }
    let involved = trace.src.is_isolated()
        || trace.dst.is_isolated()
        || (trace.dst.slot != 0 && maps::is_nat_client(trace.dst.slot))
        || (trace.headers.tuple.dst == A::MIRROR && maps::is_nat_client(slot));
    if involved {
        judged(ctx, trace, sight)?;
    }
    // A reply through a Service to the pod itself changes its destination.
    if trace.headers.tuple.dst == A::of(endpoint) {
        return deliver(ctx, slot);
    }
    forward(ctx, trace.dst.slot)
}

#[inline(always)]
fn forward(ctx: &TcContext, slot: u32) -> Result<i32, Counter> {
    if slot != 0 {
        deliver(ctx, slot)
    } else {
        Ok(PASS)
    }
}

/// Policy and flows of a packet that is not addressed to a Service; translates
/// replies and errors under NAT. On return the tuple is the packet's.
#[inline(always)]
fn judged<A: Pod>(ctx: &TcContext, trace: &mut Trace<A>, sight: Sight) -> Result<(), Counter> {
    if trace.headers.icmp_error {
        match related(ctx, trace) {
            Related::Yes => return Ok(()),
            Related::No => {}
            Related::Failed(reason) => return Err(reason),
        }
    }
    follow(ctx, track(trace, u32::from(sight == Sight::New)), trace)
}

/// Does what tracking said. On return the tuple is the packet's.
#[inline(always)]
fn follow<A: Pod>(ctx: &TcContext, passage: Passage, trace: &mut Trace<A>) -> Result<(), Counter> {
    match passage {
        Passage::AsIs => Ok(()),
        Passage::Translated => {
            rewrite(ctx, &trace.headers, &trace.translated)?;
            trace.headers.tuple.copy_from(&trace.translated);
            Ok(())
        }
        Passage::Dropped(reason) => Err(reason),
    }
}

/// A packet to a Service address: translated to a backend, judged as one to it.
#[inline(never)]
fn translate<A: Pod>(
    ctx: &TcContext,
    endpoint: &Endpoint,
    trace: &mut Trace<A>,
) -> Result<(), Counter> {
    if trace.headers.icmp_error {
        match related_to_service(ctx, trace) {
            Related::Yes => {}
            Related::No => return Err(Counter::UnrelatedError),
            Related::Failed(reason) => return Err(reason),
        }
    } else {
        let route = if proto::has_ports(trace.headers.tuple.proto) {
            service::route(trace)
        } else {
            Route::Reject
        };
        match route {
            Route::Known | Route::New => {}
            Route::Reject if A::reject(ctx, &trace.headers, endpoint, &mut trace.answer) => {
                return Err(Counter::Rejected);
            }
            Route::Reject => return Err(Counter::NotRejectable),
            Route::Dropped(reason) => return Err(reason),
        }
        let backend = &trace.vip_flow.address;
        trace.dst.set_address(backend, maps::address(backend));
        let passage = track_translated(trace, u32::from(route == Route::New));
        return follow(ctx, passage, trace);
    }
    let dst = &trace.headers.tuple.dst;
    trace.dst.set_address(dst, maps::address(dst));
    Ok(())
}

/// To a pod from the host's stack: tc egress of its host interface.
#[inline(always)]
pub(crate) fn inward(ctx: &TcContext) -> i32 {
    if packet::mark(ctx) == JUDGED_MARK {
        packet::set_mark(ctx, 0);
        return PASS;
    }
    let Some((slot, endpoint)) = maps::endpoint_of(packet::ifindex(ctx)) else {
        maps::count(Counter::UnknownInterface, Hook::PodIn);
        return SHOT;
    };
    match packet::ethertype(ctx) {
        Some(packet::ETHERTYPE_V4) => in4(ctx, slot, endpoint),
        Some(packet::ETHERTYPE_V6) => in6(ctx, slot, endpoint),
        Some(packet::ETHERTYPE_ARP) => PASS,
        _ => {
            maps::count(Counter::UnsupportedProtocol, Hook::PodIn);
            SHOT
        }
    }
}

#[inline(always)]
fn in4(ctx: &TcContext, slot: u32, endpoint: &Endpoint) -> i32 {
    run::<proxy_ebpf::addr::V4>(ctx, Hook::PodIn, |trace| {
        receive(ctx, slot, endpoint, trace)
    })
}

#[inline(never)]
fn in6(ctx: &TcContext, slot: u32, endpoint: &Endpoint) -> i32 {
    run::<V6>(ctx, Hook::PodIn, |trace| {
        receive(ctx, slot, endpoint, trace)
    })
}

#[inline(always)]
fn receive<A: Pod>(
    ctx: &TcContext,
    slot: u32,
    endpoint: &Endpoint,
    trace: &mut Trace<A>,
) -> Result<i32, Counter> {
    trace.dst.set_local::<A>(slot, endpoint);
    let from_host = packet::ingress_ifindex(ctx) == 0;
    let translates = maps::is_nat_client(slot);
    // The host itself may always reach its pods, neighbour discovery included.
    if from_host && !translates {
        return Ok(PASS);
    }
    read(ctx, trace)?;
    let src = trace.headers.tuple.src;
    if from_host {
        trace.src = End {
            exempt: 1,
            ..End::default()
        };
    } else {
        trace.src.set_address(&src, maps::address(&src));
        // An address of this node that came in from outside is not the host.
        trace.src.exempt = 0;
    }
    if !(trace.dst.is_isolated() || trace.src.is_isolated() || translates) {
        return Ok(PASS);
    }
    if trace.headers.discovery {
        return Ok(PASS);
    }
    reassemble(trace)?;
    judged(ctx, trace, Sight::Other)?;
    Ok(PASS)
}
