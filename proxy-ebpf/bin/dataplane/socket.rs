//! Services at the socket: a connection to a Service address becomes one to a
//! backend before the first packet, so that no packet needs translating. TCP and
//! UDP only: SCTP has calls of its own, which the kernel runs no such programs in.
#![expect(unsafe_code, reason = "context fields")]

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::programs::SockAddrContext;
use proxy_ebpf::abi::{ORIGINS, Origin, ServiceKey, kind};
use proxy_ebpf::addr::{BePort, V4, V6, proto};
use proxy_ebpf::event::{Counter, Hook};

use crate::maps::{self, Family};
use crate::service::{Choice, choose, is_live};

/// Goes on; the address as it is now.
const PROCEED: i32 = 1;
/// Fails with the return value set.
const REFUSE: i32 = 0;
/// `-ECONNREFUSED`.
const CONNECTION_REFUSED: i32 = -111;

/// A family's address in a `bpf_sock_addr`.
trait SocketAddress: Family {
    fn get(ctx: &SockAddrContext) -> Self;
    fn set(self, ctx: &SockAddrContext);
    fn narrow(wide: V6) -> Option<Self>;
}

impl SocketAddress for V4 {
    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> Self {
        // SAFETY: a context field.
        Self::from_wire(unsafe { (*raw(ctx)).user_ip4 })
    }

    #[inline(always)]
    fn set(self, ctx: &SockAddrContext) {
        // SAFETY: a writable context field.
        unsafe { (*raw(ctx)).user_ip4 = self.wire() };
    }

    #[inline(always)]
    fn narrow(wide: V6) -> Option<Self> {
        wide.unmapped()
    }
}

impl SocketAddress for V6 {
    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> Self {
        // SAFETY: context fields, read word by word as the verifier wants it.
        unsafe {
            let ip = &raw const (*raw(ctx)).user_ip6;
            Self::from_wire([
                core::ptr::read_volatile(ip.cast::<u32>()),
                core::ptr::read_volatile(ip.cast::<u32>().add(1)),
                core::ptr::read_volatile(ip.cast::<u32>().add(2)),
                core::ptr::read_volatile(ip.cast::<u32>().add(3)),
            ])
        }
    }

    #[inline(always)]
    fn set(self, ctx: &SockAddrContext) {
        let [a, b, c, d] = self.wire();
        // SAFETY: writable context fields, written word by word.
        unsafe {
            let ip = &raw mut (*raw(ctx)).user_ip6;
            core::ptr::write_volatile(ip.cast::<u32>(), a);
            core::ptr::write_volatile(ip.cast::<u32>().add(1), b);
            core::ptr::write_volatile(ip.cast::<u32>().add(2), c);
            core::ptr::write_volatile(ip.cast::<u32>().add(3), d);
        }
    }

    #[inline(always)]
    fn narrow(wide: V6) -> Option<Self> {
        Some(wide)
    }
}

#[inline(always)]
fn raw(ctx: &SockAddrContext) -> *mut bpf_sock_addr {
    ctx.sock_addr
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> BePort {
    // SAFETY: a context field; the port is in its low half, in wire order.
    BePort::from_wire(unsafe { (*raw(ctx)).user_port } as u16)
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: BePort) {
    // SAFETY: a writable context field.
    unsafe { (*raw(ctx)).user_port = u32::from(port.wire()) };
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: a context field.
    unsafe { (*raw(ctx)).protocol as u8 }
}

/// `connect` and `sendmsg` of IPv4 sockets.
#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    translate(ctx, V4::get(ctx), |backend| backend.set(ctx))
}

/// `connect` and `sendmsg` of IPv6 sockets, which may mean an IPv4 address.
#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    let address = V6::get(ctx);
    match address.unmapped() {
        Some(inner) => translate(ctx, inner, |backend| backend.mapped().set(ctx)),
        None => translate(ctx, address, |backend| backend.set(ctx)),
    }
}

#[inline(always)]
fn refuse() -> i32 {
    maps::count(Counter::Rejected, Hook::Socket);
    // SAFETY: sets the result of the system call.
    unsafe { bpf_set_retval(CONNECTION_REFUSED) };
    REFUSE
}

/// Gives the socket a backend if `address` is a Service's (but not if its
/// packets are to be dropped, which `pod_out` does).
#[inline(always)]
fn translate<A: SocketAddress>(ctx: &SockAddrContext, address: A, set_address: impl Fn(A)) -> i32 {
    if !maps::address(&address).is_some_and(|known| known.kind == kind::SERVICE) {
        return PROCEED;
    }
    let protocol = protocol(ctx);
    let service_port = port(ctx);
    if !proto::has_ports(protocol) {
        return PROCEED;
    }
    let wide = address.wide();
    // A socket without connection keeps its backend as long as that lives.
    if let Some((backend, port)) = kept_backend::<A>(ctx, wide, service_port) {
        set_address(backend);
        set_port(ctx, port);
        return PROCEED;
    }
    let key = ServiceKey {
        vip: address,
        port: service_port,
        proto: protocol,
        scope: 0,
    };
    // Affinity is to the client's address, which a socket need not have yet:
    // the pods of a node that use Services through sockets share it.
    let id = match choose(&key, A::ZERO) {
        Choice::None | Choice::Reject => return refuse(),
        Choice::Drop => return PROCEED,
        Choice::Backend(id) => id,
    };
    let Some(backend) = maps::backend::<A>(id) else {
        return refuse();
    };
    let (to, to_port, generation) = (backend.address, backend.port, backend.generation);
    if let Some(origins) = maps::origins(ctx, true) {
        let index = (origins.next as usize) & (ORIGINS - 1);
        origins.entries[index] = Origin {
            service: wide,
            backend_address: to.wide(),
            service_port,
            backend_port: to_port,
            backend: id,
            generation,
        };
        origins.next = origins.next.wrapping_add(1);
    }
    maps::count(Counter::Translated, Hook::Socket);
    set_address(to);
    set_port(ctx, to_port);
    PROCEED
}

#[inline(always)]
fn kept_backend<A: SocketAddress>(
    ctx: &SockAddrContext,
    wide: V6,
    service_port: BePort,
) -> Option<(A, BePort)> {
    if protocol(ctx) == proto::TCP {
        return None;
    }
    let origins = maps::origins(ctx, false)?;
    let mut i = 0;
    while i < ORIGINS {
        let origin = &origins.entries[i];
        if origin.service == wide
            && origin.service_port == service_port
            && let Some(backend) = maps::backend::<A>(origin.backend)
            && is_live(backend, origin.generation)
        {
            return Some((A::narrow(origin.backend_address)?, origin.backend_port));
        }
        i += 1;
    }
    None
}

/// `recvmsg` and `getpeername` of IPv4 sockets: the Service, not the backend.
#[inline(always)]
pub(crate) fn peer4(ctx: &SockAddrContext) -> i32 {
    if let Some((service, port)) = service_of(ctx, V4::get(ctx).mapped())
        && let Some(service) = service.unmapped()
    {
        service.set(ctx);
        set_port(ctx, port);
    }
    PROCEED
}

#[inline(always)]
pub(crate) fn peer6(ctx: &SockAddrContext) -> i32 {
    if let Some((service, port)) = service_of(ctx, V6::get(ctx)) {
        service.set(ctx);
        set_port(ctx, port);
    }
    PROCEED
}

#[inline(always)]
fn service_of(ctx: &SockAddrContext, peer: V6) -> Option<(V6, BePort)> {
    let peer_port = port(ctx);
    let origins = maps::origins(ctx, false)?;
    let mut i = 0;
    while i < ORIGINS {
        let origin = &origins.entries[i];
        if origin.backend_address == peer && origin.backend_port == peer_port && origin.backend != 0
        {
            return Some((origin.service, origin.service_port));
        }
        i += 1;
    }
    None
}
