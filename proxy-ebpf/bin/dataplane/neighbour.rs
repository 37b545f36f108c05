//! ARP and neighbour discovery of pods: the gateway is answered for here (no
//! interface of the node has its address), the rest is the stack's.

use aya_ebpf::programs::TcContext;
use proxy_ebpf::abi::Endpoint;
use proxy_ebpf::addr::{Addr, V4, V6, proto};
use proxy_ebpf::event::Counter;

use crate::packet::{ETH, load, store};
use crate::parse::Headers;

/// What to do with a packet after looking at it.
pub(crate) enum Answer {
    /// It has been turned into the answer: back to the pod.
    Reply,
    /// The network stack's.
    Pass,
    Drop(Counter),
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Arp {
    hardware: u16,
    protocol: u16,
    lengths: u16,
    operation: u16,
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
}

/// ARP from a pod (RFC 826): only with its own addresses as sender.
#[inline(never)]
pub(crate) fn arp(ctx: &TcContext, endpoint: &Endpoint) -> Answer {
    answer_arp(ctx, endpoint).unwrap_or_else(Answer::Drop)
}

#[inline(always)]
fn answer_arp(ctx: &TcContext, endpoint: &Endpoint) -> Result<Answer, Counter> {
    const REQUEST: u16 = 1_u16.to_be();
    const REPLY: u16 = 2_u16.to_be();
    let arp: Arp = load(ctx, ETH as u32).ok_or(Counter::Malformed)?;
    if arp.sender_mac != endpoint.mac {
        return Err(Counter::SpoofedMac);
    }
    // A probe (RFC 5227) has no sender address.
    if arp.sender != endpoint.v4.octets() && arp.sender != [0; 4] {
        return Err(Counter::SpoofedAddress);
    }
    if arp.operation != REQUEST || arp.target != V4::GATEWAY.octets() {
        return Ok(Answer::Pass);
    }
    let reply = Arp {
        operation: REPLY,
        sender_mac: endpoint.gateway_mac,
        sender: arp.target,
        target_mac: arp.sender_mac,
        target: arp.sender,
        ..arp
    };
    store(ctx, ETH as u32, &reply, 0)?;
    store(ctx, 0, &endpoint.mac, 0)?;
    store(ctx, 6, &endpoint.gateway_mac, 0)?;
    Ok(Answer::Reply)
}

/// Neighbour and router discovery from a pod (RFC 4861).
#[inline(never)]
pub(crate) fn discovery(ctx: &TcContext, headers: &Headers<V6>, endpoint: &Endpoint) -> Answer {
    answer_solicitation(ctx, headers, endpoint).unwrap_or_else(Answer::Drop)
}

#[inline(always)]
fn answer_solicitation(
    ctx: &TcContext,
    headers: &Headers<V6>,
    endpoint: &Endpoint,
) -> Result<Answer, Counter> {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    const LENGTH: u32 = 32;
    const HOP_LIMIT: u8 = 255;
    if headers.kind != SOLICITATION || headers.tuple.src == V6::ZERO {
        return Ok(Answer::Pass);
    }
    let l4 = headers.l4;
    let target: [u8; 16] = load(ctx, l4 + 8).ok_or(Counter::Malformed)?;
    // Without the source's link layer option there is no room for ours: a
    // unicast probe, which the permanent neighbour entry makes needless.
    if target != V6::GATEWAY.octets() || headers.l4_length != LENGTH || l4 != (ETH + 40) as u32 {
        return Ok(Answer::Pass);
    }
    let mut body = [0_u8; 32];
    body[0] = ADVERTISEMENT;
    // Router, solicited, override.
    body[4] = 0xe0;
    body[8..24].copy_from_slice(&target);
    // Target link layer address.
    body[24] = 2;
    body[25] = 1;
    body[26..32].copy_from_slice(&endpoint.gateway_mac);
    let to = headers.tuple.src.octets();
    let mut total = LENGTH.to_be() >> 16;
    total += u32::from(u16::from_ne_bytes([0, proto::ICMPV6]));
    let mut i = 0;
    while i < 16 {
        total += u32::from(u16::from_ne_bytes([to[i], to[i + 1]]));
        total += u32::from(u16::from_ne_bytes([target[i], target[i + 1]]));
        i += 2;
    }
    i = 0;
    while i < 32 {
        total += u32::from(u16::from_ne_bytes([body[i], body[i + 1]]));
        i += 2;
    }
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    body[2..4].copy_from_slice(&(!(total as u16)).to_ne_bytes());
    store(ctx, ETH as u32 + 7, &HOP_LIMIT, 0)?;
    store(ctx, ETH as u32 + 8, &target, 0)?;
    store(ctx, ETH as u32 + 24, &to, 0)?;
    store(ctx, l4, &body, 0)?;
    store(ctx, 0, &endpoint.mac, 0)?;
    store(ctx, 6, &endpoint.gateway_mac, 0)?;
    Ok(Answer::Reply)
}
