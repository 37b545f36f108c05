//! ICMP errors: part of the flow of the packet they quote, and under NAT
//! translated inside and out (RFC 5508).

use aya_ebpf::programs::TcContext;
use proxy_ebpf::abi::flow as flags;
use proxy_ebpf::addr::Side;
use proxy_ebpf::event::Counter;

use crate::maps;
use crate::pod::Pod;
use crate::rewrite::rewrite_quoted;
use crate::service;
use crate::track::Trace;

/// Whether an ICMP error is about a known flow.
pub(crate) enum Related {
    Yes,
    No,
    Failed(Counter),
}

impl Related {
    #[inline(always)]
    fn from_result(result: Result<bool, Counter>) -> Self {
        match result {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            Err(reason) => Self::Failed(reason),
        }
    }
}

/// Reads what an ICMP error quotes into `trace.quoted`.
#[inline(never)]
fn quote<A: Pod>(ctx: &TcContext, trace: &mut Trace<A>) -> Result<(), Counter> {
    A::parse_quoted(ctx, trace.headers.l4 + 8, &mut trace.quoted)
}

/// An ICMP error about a packet of a known flow passes, translated like the flow.
#[inline(never)]
pub(crate) fn related<A: Pod>(ctx: &TcContext, trace: &mut Trace<A>) -> Related {
    Related::from_result(translate_error(ctx, trace))
}

#[inline(always)]
fn translate_error<A: Pod>(ctx: &TcContext, trace: &mut Trace<A>) -> Result<bool, Counter> {
    quote(ctx, trace)?;
    let old = &trace.quoted.tuple;
    let side = old.canonical_into(&mut trace.key);
    let Some(flow) = maps::flow(&trace.key) else {
        return Ok(false);
    };
    let by_opener = (flow.flags & flags::OPENED_BY_HIGH != 0) == (side == Side::High);
    if flow.flags & flags::NAT == 0 || !by_opener {
        return Ok(true);
    }
    // The opener sent it to the Service: that is what it must read.
    let hairpin = flow.flags & flags::HAIRPIN != 0;
    let inner = &mut trace.inner;
    inner.src = if hairpin { old.dst } else { old.src };
    inner.sport = flow.client_port;
    inner.dst = flow.service;
    inner.dport = flow.service_port;
    inner.proto = old.proto;
    trace.translated.copy_from(&trace.headers.tuple);
    if trace.translated.src == old.dst {
        trace.translated.src = flow.service;
    }
    trace.translated.dst = inner.src;
    rewrite_quoted(
        ctx,
        &trace.headers,
        &trace.translated,
        &trace.quoted,
        &trace.inner,
    )?;
    trace.headers.tuple.copy_from(&trace.translated);
    Ok(true)
}

/// An ICMP error from a client about a packet that it believes to come from a
/// Service address: goes to the backend.
#[inline(never)]
pub(crate) fn related_to_service<A: Pod>(ctx: &TcContext, trace: &mut Trace<A>) -> Related {
    Related::from_result(translate_error_to_service(ctx, trace))
}

#[inline(always)]
fn translate_error_to_service<A: Pod>(
    ctx: &TcContext,
    trace: &mut Trace<A>,
) -> Result<bool, Counter> {
    quote(ctx, trace)?;
    if !service::route_quoted(trace) {
        return Ok(false);
    }
    trace.translated.copy_from(&trace.headers.tuple);
    if trace.translated.dst == trace.quoted.tuple.src {
        trace.translated.dst = trace.inner.src;
    }
    if trace.inner.dst == A::MIRROR {
        trace.translated.src = A::MIRROR;
    }
    rewrite_quoted(
        ctx,
        &trace.headers,
        &trace.translated,
        &trace.quoted,
        &trace.inner,
    )?;
    trace.headers.tuple.copy_from(&trace.translated);
    Ok(true)
}
