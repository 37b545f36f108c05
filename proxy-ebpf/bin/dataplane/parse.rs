//! What the headers of a packet say: IPv4, IPv6 with extension headers,
//! fragments, TCP, UDP, SCTP, ICMP and what ICMP errors quote.
#![expect(unsafe_code, reason = "header fields behind checked packet pointers")]

use aya_ebpf::programs::TcContext;
use proxy_ebpf::abi::FragmentKey;
use proxy_ebpf::addr::{Addr, BePort, Tuple, V4, V6, proto};
use proxy_ebpf::event::Counter;

use crate::packet::{ETH, at, load, load_into};

/// IPv6 extension headers that are followed before a packet is dropped as
/// [`Counter::UnsupportedHeader`].
const EXTENSION_HEADERS: u32 = 6;
/// Where the layer 4 header may start at the latest.
const L4_LIMIT: u32 = 0x1ff;

#[repr(C)]
pub(crate) struct Ipv4 {
    pub version_length: u8,
    pub tos: u8,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub src: u32,
    pub dst: u32,
}

#[repr(C)]
pub(crate) struct Ipv6 {
    pub version_class_flow: u32,
    pub payload_length: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: [u32; 4],
    pub dst: [u32; 4],
}

/// Whether a packet is part of a fragmented datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Piece {
    Whole,
    First,
    /// Has no layer 4 header.
    Later,
}

/// What the headers say.
#[derive(Clone, Copy)]
pub(crate) struct Headers<A> {
    pub tuple: Tuple<A>,
    pub piece: Piece,
    /// TCP: the flags. ICMP: the type. Otherwise 0.
    pub kind: u8,
    /// An ICMP error about another packet, which lies at `l4 + 8`.
    pub icmp_error: bool,
    /// Neighbour or router discovery.
    pub discovery: bool,
    /// Offset of the layer 4 header.
    pub l4: u32,
    /// Bytes of the datagram from there on.
    pub l4_length: u32,
    /// Identification of the datagram; for pieces.
    pub id: u32,
}

impl<A: Addr> Headers<A> {
    pub fn fragment_key(&self) -> FragmentKey<A> {
        FragmentKey {
            src: self.tuple.src,
            dst: self.tuple.dst,
            id: self.id,
            proto: u32::from(self.tuple.proto),
        }
    }
}

/// A packet quoted by an ICMP error.
#[derive(Clone, Copy)]
pub(crate) struct Quoted<A> {
    pub tuple: Tuple<A>,
    /// Offset of its layer 4 header.
    pub l4: u32,
}

/// A packet of the family's.
pub(crate) trait Parse: Addr {
    fn parse(ctx: &TcContext, headers: &mut Headers<Self>) -> Result<(), Counter>;
    /// The packet at `at` that an ICMP error quotes.
    fn parse_quoted(ctx: &TcContext, at: u32, quoted: &mut Quoted<Self>) -> Result<(), Counter>;
}

#[inline(always)]
fn be16(value: u16) -> u16 {
    u16::from_be(value)
}

impl Parse for V4 {
    #[inline(always)]
    fn parse(ctx: &TcContext, headers: &mut Headers<Self>) -> Result<(), Counter> {
        let ip = at::<Ipv4>(ctx, ETH).ok_or(Counter::Malformed)?;
        // SAFETY: checked by `at`.
        let ip = unsafe { &*ip };
        let length = u32::from(ip.version_length & 0xf) * 4;
        let total = u32::from(be16(ip.total_length));
        if ip.version_length >> 4 != 4
            || length < 20
            || total < length
            || total + ETH as u32 > ctx.len()
        {
            return Err(Counter::Malformed);
        }
        let offset = be16(ip.fragment);
        let piece = piece(offset & 0x1fff != 0, offset & 0x2000 != 0);
        *headers = Headers {
            tuple: Tuple {
                src: Self::from_wire(ip.src),
                dst: Self::from_wire(ip.dst),
                sport: BePort::ZERO,
                dport: BePort::ZERO,
                proto: ip.protocol,
            },
            piece,
            kind: 0,
            icmp_error: false,
            discovery: false,
            l4: ETH as u32 + length,
            l4_length: total - length,
            id: u32::from(ip.id),
        };
        if piece != Piece::Later {
            parse_l4(ctx, headers, length == 20)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn parse_quoted(ctx: &TcContext, at: u32, out: &mut Quoted<Self>) -> Result<(), Counter> {
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct Start {
            version_length: u8,
            rest: [u8; 5],
            fragment: u16,
            ttl: u8,
            protocol: u8,
            checksum: u16,
            src: u32,
            dst: u32,
        }
        let ip: Start = load(ctx, at).ok_or(Counter::Malformed)?;
        let length = u32::from(ip.version_length & 0xf) * 4;
        if ip.version_length >> 4 != 4 || length < 20 {
            return Err(Counter::Malformed);
        }
        out.l4 = at + length;
        out.tuple.src = Self::from_wire(ip.src);
        out.tuple.dst = Self::from_wire(ip.dst);
        out.tuple.proto = ip.protocol;
        quoted_ports(ctx, out, be16(ip.fragment) & 0x1fff != 0)
    }
}

impl Parse for V6 {
    #[inline(never)]
    fn parse(ctx: &TcContext, headers: &mut Headers<Self>) -> Result<(), Counter> {
        let ip = at::<Ipv6>(ctx, ETH).ok_or(Counter::Malformed)?;
        // SAFETY: checked by `at`.
        let ip = unsafe { &*ip };
        let payload = u32::from(be16(ip.payload_length));
        if ip.version_class_flow.to_ne_bytes()[0] >> 4 != 6 || payload + 40 + ETH as u32 > ctx.len()
        {
            return Err(Counter::Malformed);
        }
        *headers = Headers {
            tuple: Tuple {
                src: Self::from_wire(ip.src),
                dst: Self::from_wire(ip.dst),
                sport: BePort::ZERO,
                dport: BePort::ZERO,
                proto: ip.next_header,
            },
            piece: Piece::Whole,
            kind: 0,
            icmp_error: false,
            discovery: false,
            l4: ETH as u32 + 40,
            l4_length: payload,
            id: 0,
        };
        let plain = matches!(
            ip.next_header,
            proto::TCP | proto::UDP | proto::SCTP | proto::ICMPV6
        );
        if !plain {
            let mut walked = Walked::start(headers.l4, headers.tuple.proto);
            walk(ctx, &mut walked)?;
            headers.tuple.proto = walked.protocol;
            headers.l4 = walked.l4;
            headers.id = walked.id;
            headers.piece = walked.piece;
        }
        if headers.piece != Piece::Later {
            // A payload length of 0 is a jumbogram of segmentation offload.
            let end = if payload == 0 {
                ctx.len()
            } else {
                payload + 40 + ETH as u32
            };
            if headers.l4 > end {
                return Err(Counter::Malformed);
            }
            headers.l4_length = end - headers.l4;
            parse_l4(ctx, headers, plain)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn parse_quoted(ctx: &TcContext, at: u32, out: &mut Quoted<Self>) -> Result<(), Counter> {
        let start: [u8; 8] = load(ctx, at).ok_or(Counter::Malformed)?;
        if start[0] >> 4 != 6 {
            return Err(Counter::Malformed);
        }
        let mut walked = Walked::start(at + 40, start[6]);
        walk(ctx, &mut walked)?;
        out.l4 = walked.l4;
        out.tuple.proto = walked.protocol;
        load_into(ctx, at + 8, &mut out.tuple.src)?;
        load_into(ctx, at + 24, &mut out.tuple.dst)?;
        quoted_ports(ctx, out, walked.piece == Piece::Later)
    }
}

const fn piece(later: bool, more: bool) -> Piece {
    match (later, more) {
        (true, _) => Piece::Later,
        (false, true) => Piece::First,
        (false, false) => Piece::Whole,
    }
}

/// A walk along extension headers.
struct Walked {
    /// What the next header is.
    protocol: u8,
    piece: Piece,
    /// Where the next header is.
    l4: u32,
    id: u32,
}

impl Walked {
    #[inline(always)]
    const fn start(l4: u32, protocol: u8) -> Self {
        Self {
            protocol,
            piece: Piece::Whole,
            l4,
            id: 0,
        }
    }
}

/// Follows IPv6 extension headers (RFC 8200 section 4).
#[inline(never)]
fn walk(ctx: &TcContext, walked: &mut Walked) -> Result<(), Counter> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    const AUTHENTICATION: u8 = 51;
    let mut step = 0;
    while step < EXTENSION_HEADERS {
        step += 1;
        let kind = walked.protocol;
        if !matches!(
            kind,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION | AUTHENTICATION
        ) {
            return Ok(());
        }
        let header: [u8; 8] = load(ctx, walked.l4).ok_or(Counter::Malformed)?;
        let length = match kind {
            FRAGMENT => {
                let offset = u16::from_be_bytes([header[2], header[3]]);
                walked.id = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
                walked.piece = piece(offset & 0xfff8 != 0, offset & 1 != 0);
                8
            }
            AUTHENTICATION => (u32::from(header[1]) + 2) * 4,
            _ => (u32::from(header[1]) + 1) * 8,
        };
        walked.protocol = header[0];
        walked.l4 += length;
        if walked.l4 > L4_LIMIT {
            return Err(Counter::UnsupportedHeader);
        }
        if walked.piece == Piece::Later {
            return Ok(());
        }
    }
    Err(Counter::UnsupportedHeader)
}

/// Ports and flags. `plain`: the header is where it is without options.
#[inline(always)]
fn parse_l4<A: Parse>(
    ctx: &TcContext,
    headers: &mut Headers<A>,
    plain: bool,
) -> Result<(), Counter> {
    let protocol = headers.tuple.proto;
    let needed = match protocol {
        proto::TCP => 20,
        proto::SCTP => 12,
        proto::UDP | proto::ICMP | proto::ICMPV6 => 8,
        _ => return Ok(()),
    };
    if headers.l4_length < needed {
        return Err(Counter::Malformed);
    }
    let plain_at = ETH + if A::V6 { 40 } else { 20 };
    let (first, second, third) = if plain && let Some(l4) = at::<[u16; 4]>(ctx, plain_at) {
        // SAFETY: checked by `at`.
        let l4 = unsafe { *l4 };
        (l4[0], l4[1], l4[2])
    } else {
        let l4: [u16; 4] = load(ctx, headers.l4).ok_or(Counter::Malformed)?;
        (l4[0], l4[1], l4[2])
    };
    match protocol {
        proto::TCP => {
            headers.kind = if plain && let Some(flags) = at::<[u8; 2]>(ctx, plain_at + 12) {
                // SAFETY: checked by `at`.
                unsafe { (*flags)[1] }
            } else {
                let flags: [u8; 2] = load(ctx, headers.l4 + 12).ok_or(Counter::Malformed)?;
                flags[1]
            };
            headers.tuple.sport = BePort::from_wire(first);
            headers.tuple.dport = BePort::from_wire(second);
        }
        proto::UDP | proto::SCTP => {
            headers.tuple.sport = BePort::from_wire(first);
            headers.tuple.dport = BePort::from_wire(second);
        }
        _ => {
            headers.kind = first.to_ne_bytes()[0];
            let icmp = classify_icmp(A::V6, protocol, headers.kind);
            headers.icmp_error = icmp == Icmp::Error;
            headers.discovery = icmp == Icmp::Discovery;
            match icmp {
                Icmp::EchoRequest => headers.tuple.sport = BePort::from_wire(third),
                Icmp::EchoReply => headers.tuple.dport = BePort::from_wire(third),
                _ => {}
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Icmp {
    EchoRequest,
    EchoReply,
    Error,
    Discovery,
    Other,
}

#[inline(always)]
fn classify_icmp(v6: bool, protocol: u8, kind: u8) -> Icmp {
    match (v6, protocol, kind) {
        (false, proto::ICMP, 8) | (true, proto::ICMPV6, 128) => Icmp::EchoRequest,
        (false, proto::ICMP, 0) | (true, proto::ICMPV6, 129) => Icmp::EchoReply,
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        (false, proto::ICMP, 3 | 4 | 5 | 11 | 12) | (true, proto::ICMPV6, 1..=4) => Icmp::Error,
        (true, proto::ICMPV6, 133..=137) => Icmp::Discovery,
        _ => Icmp::Other,
    }
}

/// The ports of a quoted packet, of which only 8 bytes of layer 4 are certain.
#[inline(always)]
fn quoted_ports<A: Addr>(
    ctx: &TcContext,
    quoted: &mut Quoted<A>,
    later: bool,
) -> Result<(), Counter> {
    let tuple = &mut quoted.tuple;
    tuple.sport = BePort::ZERO;
    tuple.dport = BePort::ZERO;
    let icmp = matches!(tuple.proto, proto::ICMP | proto::ICMPV6);
    if later || !(icmp || proto::has_ports(tuple.proto)) {
        return Ok(());
    }
    let start: [u16; 4] = load(ctx, quoted.l4).ok_or(Counter::Malformed)?;
    if !icmp {
        tuple.sport = BePort::from_wire(start[0]);
        tuple.dport = BePort::from_wire(start[1]);
        return Ok(());
    }
    match classify_icmp(A::V6, tuple.proto, start[0].to_ne_bytes()[0]) {
        Icmp::EchoRequest => tuple.sport = BePort::from_wire(start[2]),
        Icmp::EchoReply => tuple.dport = BePort::from_wire(start[2]),
        _ => {}
    }
    Ok(())
}
