//! Answers a packet to a Service without endpoints: TCP with RST (RFC 9293
//! section 3.10.7.1), the rest with ICMP port unreachable (RFC 1122, RFC 4443).
#![expect(unsafe_code, reason = "the checksum helper")]

use aya_ebpf::helpers::bpf_csum_diff;
use aya_ebpf::programs::TcContext;
use proxy_ebpf::abi::Endpoint;
use proxy_ebpf::addr::{Addr, V4, V6, proto};
use proxy_ebpf::conntrack::tcp;
use proxy_ebpf::event::Counter;

use crate::packet::{ETH, load, load_into, resize, store};
use crate::parse::{Headers, Piece};

const TTL: u8 = 64;
const TCP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;

/// The longest answer: IPv6, ICMPv6 and a quoted IPv6 header with 8 bytes.
pub(crate) const ANSWER_BYTES: usize = 40 + ICMP_HEADER + 48;

/// Builds the answers of one family.
pub(crate) trait Reject: Addr {
    /// Bytes of the IP header.
    const HEADER: usize;

    /// Replaces the packet by its refusal, addressed back to the pod. `false`:
    /// nothing may answer it (it is itself an RST, say), or it is damaged.
    #[inline(never)]
    fn reject(
        ctx: &TcContext,
        headers: &Headers<Self>,
        endpoint: &Endpoint,
        answer: &mut [u8; ANSWER_BYTES],
    ) -> bool {
        build(ctx, headers, endpoint, answer).unwrap_or(false)
    }

    /// Writes the IP header of an answer with `body` bytes of `protocol`.
    /// Returns the sum of the pseudo header that the body's checksum starts
    /// from (0 where the protocol has none).
    fn header(
        headers: &Headers<Self>,
        protocol: u8,
        body: u16,
        answer: &mut [u8; ANSWER_BYTES],
    ) -> u32;

    /// Type, code and protocol of "port unreachable".
    const UNREACHABLE: (u8, u8, u8);
    /// Copies the first `HEADER + 8` bytes of the packet.
    fn quote(ctx: &TcContext, answer: &mut [u8; ANSWER_BYTES]) -> Result<(), Counter>;
    fn send(ctx: &TcContext, is_tcp: bool, answer: &[u8; ANSWER_BYTES]) -> Result<(), Counter>;
}

/// Ones' complement sum of the 16-bit words of `answer[FROM..FROM + LENGTH]`;
/// `LENGTH` is a multiple of 4.
#[inline(always)]
fn sum<const FROM: usize, const LENGTH: usize>(start: u32, answer: &[u8; ANSWER_BYTES]) -> u32 {
    const { assert!(FROM + LENGTH <= ANSWER_BYTES && LENGTH % 4 == 0) };
    let words = answer[FROM..].as_ptr().cast_mut().cast();
    // SAFETY: reads LENGTH bytes, which the assertion above says are there.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words, LENGTH as u32, start) as u32 }
}

#[inline(always)]
fn fold(mut total: u32) -> [u8; 2] {
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    (!(total as u16)).to_ne_bytes()
}

#[inline(always)]
fn build<A: Reject>(
    ctx: &TcContext,
    headers: &Headers<A>,
    endpoint: &Endpoint,
    answer: &mut [u8; ANSWER_BYTES],
) -> Result<bool, Counter> {
    if headers.piece == Piece::Later {
        return Ok(false);
    }
    let is_tcp = headers.tuple.proto == proto::TCP;
    if is_tcp {
        if headers.kind & tcp::RST != 0 {
            return Ok(false);
        }
        let pseudo = A::header(headers, proto::TCP, TCP_HEADER as u16, answer);
        reset(ctx, headers, answer)?;
        let total = if A::V6 {
            sum::<40, 20>(pseudo, answer)
        } else {
            sum::<20, 20>(pseudo, answer)
        };
        answer[A::HEADER + 16..A::HEADER + 18].copy_from_slice(&fold(total));
    } else {
        let (kind, code, protocol) = A::UNREACHABLE;
        // With options the quoted ports would not be where the receiver looks.
        if headers.tuple.proto == protocol || headers.l4 != (ETH + A::HEADER) as u32 {
            return Ok(false);
        }
        let body = ICMP_HEADER + A::HEADER + 8;
        let pseudo = A::header(headers, protocol, body as u16, answer);
        answer[A::HEADER..A::HEADER + ICMP_HEADER].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
        A::quote(ctx, answer)?;
        let total = if A::V6 {
            sum::<40, 56>(pseudo, answer)
        } else {
            sum::<20, 36>(0, answer)
        };
        answer[A::HEADER + 2..A::HEADER + 4].copy_from_slice(&fold(total));
    }
    A::send(ctx, is_tcp, answer)?;
    store(ctx, 0, &endpoint.mac, 0)?;
    store(ctx, 6, &endpoint.gateway_mac, 0)?;
    Ok(true)
}

/// Writes the TCP header of an RST that answers a segment, without checksum.
#[inline(always)]
fn reset<A: Reject>(
    ctx: &TcContext,
    headers: &Headers<A>,
    answer: &mut [u8; ANSWER_BYTES],
) -> Result<(), Counter> {
    let segment: [u8; 20] = load(ctx, headers.l4).ok_or(Counter::Malformed)?;
    let at = A::HEADER;
    answer[at..at + TCP_HEADER].fill(0);
    answer[at..at + 2].copy_from_slice(&headers.tuple.dport.wire().to_ne_bytes());
    answer[at + 2..at + 4].copy_from_slice(&headers.tuple.sport.wire().to_ne_bytes());
    answer[at + 12] = 5 << 4;
    if headers.kind & tcp::ACK != 0 {
        // <SEQ=SEG.ACK><CTL=RST>
        answer[at + 4..at + 8].copy_from_slice(&segment[8..12]);
        answer[at + 13] = tcp::RST;
    } else {
        // <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        let data_offset = u32::from(segment[12] >> 4) * 4;
        let controls =
            u32::from(headers.kind & tcp::SYN != 0) + u32::from(headers.kind & tcp::FIN != 0);
        let length = headers.l4_length.saturating_sub(data_offset) + controls;
        answer[at + 8..at + 12].copy_from_slice(&sequence.wrapping_add(length).to_be_bytes());
        answer[at + 13] = tcp::RST | tcp::ACK;
    }
    Ok(())
}

/// `answer[FROM..FROM + LENGTH]` from the packet's IP header on.
#[inline(always)]
fn copy_in<const LENGTH: usize>(
    ctx: &TcContext,
    answer: &mut [u8; ANSWER_BYTES],
    from: usize,
) -> Result<(), Counter> {
    match answer[from..].first_chunk_mut::<LENGTH>() {
        Some(quoted) => load_into(ctx, ETH as u32, quoted),
        None => Err(Counter::Malformed),
    }
}

/// Makes the packet an Ethernet frame with `answer[..LENGTH]`.
#[inline(always)]
fn copy_out<const LENGTH: usize>(
    ctx: &TcContext,
    answer: &[u8; ANSWER_BYTES],
) -> Result<(), Counter> {
    resize(ctx, (ETH + LENGTH) as u32)?;
    let Some(start) = answer.first_chunk::<LENGTH>() else {
        return Err(Counter::RewriteFailed);
    };
    store(ctx, ETH as u32, start, 0)
}

impl Reject for V4 {
    const HEADER: usize = 20;
    const UNREACHABLE: (u8, u8, u8) = (3, 3, proto::ICMP);

    #[inline(always)]
    fn header(
        headers: &Headers<Self>,
        protocol: u8,
        body: u16,
        answer: &mut [u8; ANSWER_BYTES],
    ) -> u32 {
        answer[..20].fill(0);
        answer[0] = 0x45;
        answer[2..4].copy_from_slice(&(20 + body).to_be_bytes());
        // Don't fragment.
        answer[6] = 0x40;
        answer[8] = TTL;
        answer[9] = protocol;
        answer[12..16].copy_from_slice(&headers.tuple.dst.octets());
        answer[16..20].copy_from_slice(&headers.tuple.src.octets());
        let checksum = fold(sum::<0, 20>(0, answer));
        answer[10..12].copy_from_slice(&checksum);
        let lengths = u32::from(body.to_be()) + u32::from(u16::from_ne_bytes([0, protocol]));
        sum::<12, 8>(lengths, answer)
    }

    #[inline(always)]
    fn quote(ctx: &TcContext, answer: &mut [u8; ANSWER_BYTES]) -> Result<(), Counter> {
        copy_in::<28>(ctx, answer, 20 + ICMP_HEADER)
    }

    #[inline(always)]
    fn send(ctx: &TcContext, is_tcp: bool, answer: &[u8; ANSWER_BYTES]) -> Result<(), Counter> {
        if is_tcp {
            copy_out::<40>(ctx, answer)
        } else {
            copy_out::<56>(ctx, answer)
        }
    }
}

impl Reject for V6 {
    const HEADER: usize = 40;
    const UNREACHABLE: (u8, u8, u8) = (1, 4, proto::ICMPV6);

    #[inline(always)]
    fn header(
        headers: &Headers<Self>,
        protocol: u8,
        body: u16,
        answer: &mut [u8; ANSWER_BYTES],
    ) -> u32 {
        answer[..8].fill(0);
        answer[0] = 0x60;
        answer[4..6].copy_from_slice(&body.to_be_bytes());
        answer[6] = protocol;
        answer[7] = TTL;
        let mut i = 0;
        while i < 4 {
            let (src, dst) = (headers.tuple.dst.wire()[i], headers.tuple.src.wire()[i]);
            answer[8 + 4 * i..12 + 4 * i].copy_from_slice(&src.to_ne_bytes());
            answer[24 + 4 * i..28 + 4 * i].copy_from_slice(&dst.to_ne_bytes());
            i += 1;
        }
        let lengths = u32::from(body.to_be()) + u32::from(u16::from_ne_bytes([0, protocol]));
        sum::<8, 32>(lengths, answer)
    }

    #[inline(always)]
    fn quote(ctx: &TcContext, answer: &mut [u8; ANSWER_BYTES]) -> Result<(), Counter> {
        copy_in::<48>(ctx, answer, 40 + ICMP_HEADER)
    }

    #[inline(always)]
    fn send(ctx: &TcContext, is_tcp: bool, answer: &[u8; ANSWER_BYTES]) -> Result<(), Counter> {
        if is_tcp {
            copy_out::<60>(ctx, answer)
        } else {
            copy_out::<96>(ctx, answer)
        }
    }
}
