//! From a Service address to a backend.

use proxy_ebpf::abi::{
    Affinity, AffinityKey, BACKEND_LIVE, Backend, Service, ServiceKey, Tick, VipFlow, flow as flags,
};
use proxy_ebpf::addr::proto;
use proxy_ebpf::conntrack::tcp;
use proxy_ebpf::event::Counter;
use proxy_ebpf::select::pick;

use crate::clock;
use crate::maps::{self, Family};
use crate::track::Trace;

/// What a Service says to a new connection.
pub(crate) enum Choice {
    /// No such Service.
    None,
    /// No endpoint anywhere.
    Reject,
    /// Endpoints, but none that a Local traffic policy admits.
    Drop,
    /// This backend id.
    Backend(u32),
}

/// Chooses a backend for a new connection of `client` to `key`.
#[inline(always)]
pub(crate) fn choose<A: Family>(key: &ServiceKey<A>, client: A) -> Choice {
    let Some(service) = maps::service(key) else {
        return Choice::None;
    };
    if service.count == 0 {
        return if service.flags & Service::DROP != 0 {
            Choice::Drop
        } else {
            Choice::Reject
        };
    }
    let affinity_key = AffinityKey {
        client,
        service: service.id,
    };
    if service.affinity_seconds != 0
        && let Some(kept) = maps::affinity(&affinity_key)
        && clock::now().since(kept.seen) <= Tick::in_seconds(service.affinity_seconds)
        && let Some(backend) = maps::backend::<A>(kept.backend)
        && is_live(backend, kept.generation)
    {
        maps::remember_affinity(
            &affinity_key,
            &Affinity {
                seen: clock::now(),
                ..kept
            },
        );
        return Choice::Backend(kept.backend);
    }
    let index = service
        .base
        .wrapping_add(pick(maps::random(), service.count));
    let Some(id) = maps::slot(index) else {
        return Choice::Reject;
    };
    if service.affinity_seconds != 0
        && let Some(backend) = maps::backend::<A>(id)
    {
        let kept = Affinity {
            backend: id,
            generation: backend.generation,
            seen: clock::now(),
        };
        maps::remember_affinity(&affinity_key, &kept);
    }
    Choice::Backend(id)
}

#[inline(always)]
pub(crate) fn is_live<A>(backend: &Backend<A>, generation: u32) -> bool {
    backend.flags & BACKEND_LIVE != 0 && backend.generation == generation
}

/// What becomes of a packet to a Service address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// The flow is known.
    Known,
    /// The backend was chosen for this packet.
    New,
    Reject,
    Dropped(Counter),
}

/// Finds where a pod's packet to a Service address goes: `trace.vip_flow`.
///
/// A backend that is gone keeps its TCP connections (they end by themselves);
/// anything else chooses again.
#[inline(never)]
pub(crate) fn route<A: Family>(trace: &mut Trace<A>) -> Route {
    let tuple = &trace.headers.tuple;
    tuple.canonical_into(&mut trace.key);
    if let Some(flow) = maps::vip_flow(&trace.key) {
        let middle = tuple.proto == proto::TCP && !tcp::opens(trace.headers.kind);
        let live = maps::backend::<A>(flow.backend).is_some_and(|b| is_live(b, flow.generation));
        if middle || live {
            let now = clock::now();
            if flow.seen != now {
                flow.seen = now;
            }
            let kept = &mut trace.vip_flow;
            kept.seen = now;
            kept.backend = flow.backend;
            kept.generation = flow.generation;
            kept.address = flow.address;
            kept.port = flow.port;
            kept.source_port = flow.source_port;
            kept.flags = flow.flags;
            return Route::Known;
        }
    }
    let key = ServiceKey {
        vip: tuple.dst,
        port: tuple.dport,
        proto: tuple.proto,
        scope: 0,
    };
    let id = match choose(&key, tuple.src) {
        Choice::None | Choice::Reject => return Route::Reject,
        Choice::Drop => return Route::Dropped(Counter::ServiceWithoutLocalEndpoint),
        Choice::Backend(id) => id,
    };
    let Some(backend) = maps::backend::<A>(id) else {
        return Route::Reject;
    };
    trace.vip_flow = VipFlow {
        seen: clock::now(),
        backend: id,
        generation: backend.generation,
        address: backend.address,
        port: backend.port,
        source_port: tuple.sport,
        flags: if backend.address == tuple.src {
            u32::from(flags::HAIRPIN)
        } else {
            0
        },
    };
    Route::New
}

/// Where an ICMP error about a packet from a Service address goes: `trace.quoted` is
/// that packet as the client received it, `trace.inner` becomes the packet as
/// the backend sent it. `false`: no such flow.
#[inline(always)]
pub(crate) fn route_quoted<A: Family>(trace: &mut Trace<A>) -> bool {
    let quoted = &trace.quoted.tuple;
    quoted.canonical_into(&mut trace.key);
    let Some(flow) = maps::vip_flow(&trace.key) else {
        return false;
    };
    let hairpin = flow.flags & u32::from(flags::HAIRPIN) != 0;
    let inner = &mut trace.inner;
    inner.src = flow.address;
    inner.sport = flow.port;
    inner.dst = if hairpin { A::MIRROR } else { quoted.dst };
    inner.dport = flow.source_port;
    inner.proto = quoted.proto;
    true
}
