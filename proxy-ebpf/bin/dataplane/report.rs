//! Counts and reports what became of a packet.

use aya_ebpf::programs::TcContext;
use proxy_ebpf::abi::{SET_NONE, setting};
use proxy_ebpf::addr::Addr;
use proxy_ebpf::event::{Counter, EVENTS_PER_TICK, Event, Hook};

use crate::clock;
use crate::maps;
use crate::track::Trace;

/// Counts a drop and reports it, within this CPU's budget.
#[inline(never)]
pub(crate) fn dropped<A: Addr>(
    ctx: &TcContext,
    hook: Hook,
    reason: Counter,
    trace: &Trace<A>,
) -> u32 {
    maps::count(reason, hook);
    emit(ctx, hook, reason, trace);
    #[cfg(feature = "log")]
    say(ctx, hook, reason, trace);
    0
}

/// Tells a drop in words, in debug builds.
#[cfg(feature = "log")]
#[inline(always)]
fn say<A: Addr>(ctx: &TcContext, hook: Hook, reason: Counter, trace: &Trace<A>) {
    let tuple = &trace.headers.tuple;
    aya_log_ebpf::debug!(
        ctx,
        "hook {} drops {} bytes: {}; slots {} to {}, protocol {}, ports {} to {}, sets {} and {}, classes {} and {}",
        hook as u8,
        ctx.len(),
        reason.name(),
        trace.src.slot,
        trace.dst.slot,
        tuple.proto,
        tuple.sport.host(),
        tuple.dport.host(),
        trace.src.egress_set,
        trace.dst.ingress_set,
        trace.src.class,
        trace.dst.class,
    );
}

/// Counts a new flow and, if somebody follows, reports it.
#[inline(always)]
pub(crate) fn opened<A: Addr>(ctx: &TcContext, hook: Hook, trace: &Trace<A>) {
    maps::count(Counter::FlowsOpened, hook);
    if maps::settings().flags & setting::FLOW_EVENTS != 0 {
        followed(ctx, hook, trace);
    }
}

#[inline(never)]
fn followed<A: Addr>(ctx: &TcContext, hook: Hook, trace: &Trace<A>) -> u32 {
    emit(ctx, hook, Counter::FlowsOpened, trace);
    0
}

#[inline(always)]
fn emit<A: Addr>(ctx: &TcContext, hook: Hook, reason: Counter, trace: &Trace<A>) {
    let length = ctx.len();
    let reported = maps::spend_event(clock::now(), EVENTS_PER_TICK)
        && maps::submit_event(|event| {
            let tuple = &trace.headers.tuple;
            let judged = reason != Counter::PolicyEgress;
            *event = Event {
                nanos: clock::nanos(),
                reason: reason as u8,
                hook: hook as u8,
                proto: tuple.proto,
                tcp_flags: trace.headers.kind,
                length,
                src: tuple.src.wide(),
                dst: tuple.dst.wide(),
                sport: tuple.sport,
                dport: tuple.dport,
                src_slot: trace.src.slot,
                dst_slot: trace.dst.slot,
                egress_set: trace.src.egress_set,
                egress_class: trace.dst.class,
                egress_port_class: trace.egress_port_class,
                ingress_set: if judged {
                    trace.dst.ingress_set
                } else {
                    SET_NONE
                },
                ingress_class: trace.src.class,
                ingress_port_class: trace.ingress_port_class,
                generation: maps::settings().generation,
                _pad: [0; 2],
            };
        });
    if !reported {
        maps::count(Counter::EventsLost, hook);
    }
}
