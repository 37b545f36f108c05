//! The kernel programs of Fairlead: entry points only.
//!
//! `pod_out` and `pod_in` run on the host side of each pod's veth pair (tc
//! ingress and egress), `sock_*` on sockets below a cgroup, `survey` when the
//! daemon asks. All state is in [`maps`], all arithmetic and flow logic in the library.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    unreachable_pub,
    reason = "link sections and exported programs"
)]
#![expect(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "one verified program per hook, without calls where the stack is short; \
              kernel types are what they are"
)]

mod clock;
mod icmp;
mod maps;
mod neighbour;
mod packet;
mod parse;
mod pod;
mod recent;
mod reject;
mod report;
mod rewrite;
mod service;
mod socket;
mod survey;
mod track;

use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

#[classifier]
pub fn pod_out(ctx: TcContext) -> i32 {
    pod::out(&ctx)
}

#[classifier]
pub fn pod_in(ctx: TcContext) -> i32 {
    pod::inward(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(ctx: SockAddrContext) -> i32 {
    socket::connect4(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(ctx: SockAddrContext) -> i32 {
    socket::connect6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::connect4(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::connect6(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::peer4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::peer6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeername4(ctx: SockAddrContext) -> i32 {
    socket::peer4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeername6(ctx: SockAddrContext) -> i32 {
    socket::peer6(&ctx)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn survey(element: *const survey::Element) -> i32 {
    survey::tell(element)
}

/// GPL-compatible: so that GPL-only helpers load.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
