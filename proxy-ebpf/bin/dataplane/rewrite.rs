//! NAT: writes other addresses and ports into a packet, checksums kept right.
#![expect(unsafe_code, reason = "checksum helpers")]

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace};
use aya_ebpf::programs::TcContext;
use proxy_ebpf::addr::{Addr, BePort, Tuple, V4, V6, proto};
use proxy_ebpf::event::Counter;
use proxy_ebpf::nat::{checksum_update, crc32c_delta};

use crate::packet::{ETH, load, skb, store};
use crate::parse::{Headers, Piece, Quoted};

/// The address change needs IPv6 treatment of complete checksums (kernel 6.16,
/// `bpf_l4_csum_replace`; older kernels refuse the flag).
const BPF_F_IPV6: u64 = 1 << 7;
const ICMP_CHECKSUM: u32 = 2;

/// What differs between the families.
pub(crate) trait Rewrite: Addr {
    /// Offsets of the addresses in the IP header.
    const SRC: u32;
    const DST: u32;

    /// Writes an address at `offset`; of the IP header at `ip`, that header's
    /// own checksum follows. `l4_checksum`: where the checksum that covers the
    /// address lies, if there is one; `cover`: as pseudo header (an outer
    /// address) or as payload (a quoted one).
    fn set_address(
        ctx: &TcContext,
        ip: u32,
        offset: u32,
        old: &Self,
        new: &Self,
        l4_checksum: Option<u32>,
        cover: u64,
    ) -> Result<(), Counter>;

    /// The 16-bit words of an address, one by one into `fold`.
    fn fold_words(&self, start: u16, other: &Self, fold: fn(u16, u16, u16) -> u16) -> u16;
}

impl Rewrite for V4 {
    const SRC: u32 = 12;
    const DST: u32 = 16;

    #[inline(always)]
    fn set_address(
        ctx: &TcContext,
        ip: u32,
        offset: u32,
        old: &Self,
        new: &Self,
        l4_checksum: Option<u32>,
        cover: u64,
    ) -> Result<(), Counter> {
        let (from, to) = (u64::from(old.wire()), u64::from(new.wire()));
        // SAFETY: the helper checks its offsets; no packet pointers are held.
        let failed = unsafe { bpf_l3_csum_replace(skb(ctx), ip + 10, from, to, 4) };
        if failed != 0 {
            return Err(Counter::RewriteFailed);
        }
        // A quoted IPv4 header keeps its sum: its own checksum makes up for it.
        if cover & u64::from(BPF_F_PSEUDO_HDR) != 0
            && let Some(at) = l4_checksum
        {
            // SAFETY: as above.
            let failed = unsafe { bpf_l4_csum_replace(skb(ctx), at, from, to, cover | 4) };
            if failed != 0 {
                return Err(Counter::RewriteFailed);
            }
        }
        store(ctx, ip + offset, new, 0)
    }

    #[inline(always)]
    fn fold_words(&self, start: u16, other: &Self, fold: fn(u16, u16, u16) -> u16) -> u16 {
        let (old, new) = (self.octets(), other.octets());
        let word = |octets: [u8; 4], i: usize| u16::from_ne_bytes([octets[i], octets[i + 1]]);
        fold(
            fold(start, word(old, 0), word(new, 0)),
            word(old, 2),
            word(new, 2),
        )
    }
}

impl Rewrite for V6 {
    const SRC: u32 = 8;
    const DST: u32 = 24;

    #[inline(always)]
    fn set_address(
        ctx: &TcContext,
        ip: u32,
        offset: u32,
        old: &Self,
        new: &Self,
        l4_checksum: Option<u32>,
        cover: u64,
    ) -> Result<(), Counter> {
        if let Some(at) = l4_checksum {
            let (from, to) = (core::ptr::from_ref(old), core::ptr::from_ref(new));
            // SAFETY: two addresses of 16 bytes, only read; then as for IPv4.
            unsafe {
                let difference =
                    bpf_csum_diff(from.cast_mut().cast(), 16, to.cast_mut().cast(), 16, 0) as u64;
                let mut failed =
                    bpf_l4_csum_replace(skb(ctx), at, 0, difference, cover | BPF_F_IPV6);
                if failed != 0 {
                    failed = bpf_l4_csum_replace(skb(ctx), at, 0, difference, cover);
                }
                if failed != 0 {
                    return Err(Counter::RewriteFailed);
                }
            }
        }
        store(ctx, ip + offset, new, 0)
    }

    #[inline(always)]
    fn fold_words(&self, start: u16, other: &Self, fold: fn(u16, u16, u16) -> u16) -> u16 {
        let (old, new) = (self.wire(), other.wire());
        let mut sum = start;
        let mut i = 0;
        while i < 4 {
            let (a, b) = (old[i].to_ne_bytes(), new[i].to_ne_bytes());
            sum = fold(
                sum,
                u16::from_ne_bytes([a[0], a[1]]),
                u16::from_ne_bytes([b[0], b[1]]),
            );
            sum = fold(
                sum,
                u16::from_ne_bytes([a[2], a[3]]),
                u16::from_ne_bytes([b[2], b[3]]),
            );
            i += 1;
        }
        sum
    }
}

/// Offset of the checksum in a layer 4 header, and how the kernel is to treat it.
#[inline(always)]
const fn checksum_of(protocol: u8) -> Option<(u32, u64)> {
    match protocol {
        proto::TCP => Some((16, 0)),
        // A UDP checksum of 0 means "none" and stays so.
        proto::UDP => Some((6, BPF_F_MARK_MANGLED_0 as u64)),
        _ => None,
    }
}

/// Turns a packet with `headers` into one with the tuple `new`.
#[inline(never)]
pub(crate) fn rewrite<A: Rewrite>(
    ctx: &TcContext,
    headers: &Headers<A>,
    new: &Tuple<A>,
) -> Result<(), Counter> {
    let old = &headers.tuple;
    let has_l4 = headers.piece != Piece::Later;
    let checksum = if has_l4 { checksum_of(old.proto) } else { None };
    let at = checksum.map(|(offset, _)| headers.l4 + offset);
    let mangled = checksum.map_or(0, |(_, flags)| flags);
    let cover = u64::from(BPF_F_PSEUDO_HDR) | mangled;
    let ip = ETH as u32;
    if old.src != new.src {
        A::set_address(ctx, ip, A::SRC, &old.src, &new.src, at, cover)?;
    }
    if old.dst != new.dst {
        A::set_address(ctx, ip, A::DST, &old.dst, &new.dst, at, cover)?;
    }
    if !has_l4 || (old.sport == new.sport && old.dport == new.dport) {
        return Ok(());
    }
    if old.proto == proto::SCTP {
        return rewrite_sctp(ctx, headers, new);
    }
    set_port(ctx, headers.l4, old.sport, new.sport, at, mangled)?;
    set_port(ctx, headers.l4 + 2, old.dport, new.dport, at, mangled)
}

#[inline(always)]
fn set_port(
    ctx: &TcContext,
    offset: u32,
    old: BePort,
    new: BePort,
    checksum: Option<u32>,
    flags: u64,
) -> Result<(), Counter> {
    if old == new {
        return Ok(());
    }
    if let Some(at) = checksum {
        replace_word(ctx, at, old.wire(), new.wire(), flags)?;
    }
    store(ctx, offset, &new, 0)
}

#[inline(always)]
fn replace_word(ctx: &TcContext, at: u32, old: u16, new: u16, flags: u64) -> Result<(), Counter> {
    // SAFETY: the helper checks its offset; no packet pointers are held.
    let failed =
        unsafe { bpf_l4_csum_replace(skb(ctx), at, u64::from(old), u64::from(new), flags | 2) };
    if failed == 0 {
        Ok(())
    } else {
        Err(Counter::RewriteFailed)
    }
}

/// SCTP's checksum is a CRC over the packet without pseudo header: it is moved
/// by the difference in the ports. A checksum of 0 is one that the network
/// device computes later (`CHECKSUM_PARTIAL`): it must stay 0. In fragments the
/// CRC covers what cannot be seen: the datagram's length, and so the change, is
/// unknown.
#[inline(always)]
fn rewrite_sctp<A: Rewrite>(
    ctx: &TcContext,
    headers: &Headers<A>,
    new: &Tuple<A>,
) -> Result<(), Counter> {
    if headers.piece != Piece::Whole {
        return Err(Counter::RewriteFailed);
    }
    let l4 = headers.l4;
    let old: [u8; 4] = load(ctx, l4).ok_or(Counter::Malformed)?;
    let [a, b] = new.sport.wire().to_ne_bytes();
    let [c, d] = new.dport.wire().to_ne_bytes();
    let ports = [a, b, c, d];
    let crc: [u8; 4] = load(ctx, l4 + 8).ok_or(Counter::Malformed)?;
    let crc = u32::from_le_bytes(crc);
    if crc != 0 {
        let following = (headers.l4_length.wrapping_sub(4) & 0xffff) as u16;
        let moved = crc ^ crc32c_delta(old, ports, following);
        store(ctx, l4 + 8, &moved.to_le_bytes(), 0)?;
    }
    store(ctx, l4, &ports, 0)
}

/// Turns an ICMP error with `headers` about a packet `quoted` into one with the outer addresses of `outer` about `inner`.
#[inline(never)]
pub(crate) fn rewrite_quoted<A: Rewrite>(
    ctx: &TcContext,
    headers: &Headers<A>,
    outer: &Tuple<A>,
    quoted: &Quoted<A>,
    inner: &Tuple<A>,
) -> Result<(), Counter> {
    let (old, l4) = (&quoted.tuple, quoted.l4);
    let icmp = headers.l4 + ICMP_CHECKSUM;
    let ip = headers.l4 + 8;
    if let Some((offset, _)) = checksum_of(old.proto)
        && let Some(was) = load::<u16>(ctx, l4 + offset)
        && (was != 0 || old.proto == proto::TCP)
    {
        let mut sum = old.src.fold_words(was, &inner.src, checksum_update);
        sum = old.dst.fold_words(sum, &inner.dst, checksum_update);
        sum = checksum_update(sum, old.sport.wire(), inner.sport.wire());
        sum = checksum_update(sum, old.dport.wire(), inner.dport.wire());
        replace_word(ctx, icmp, was, sum, 0)?;
        store(ctx, l4 + offset, &sum, 0)?;
    }
    if old.src != inner.src {
        A::set_address(ctx, ip, A::SRC, &old.src, &inner.src, Some(icmp), 0)?;
    }
    if old.dst != inner.dst {
        A::set_address(ctx, ip, A::DST, &old.dst, &inner.dst, Some(icmp), 0)?;
    }
    if proto::has_ports(old.proto) {
        set_port(ctx, l4, old.sport, inner.sport, Some(icmp), 0)?;
        set_port(ctx, l4 + 2, old.dport, inner.dport, Some(icmp), 0)?;
    }
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    // ICMPv4 has no pseudo header.
    let at = if A::V6 { Some(icmp) } else { None };
    if headers.tuple.src != outer.src {
        A::set_address(
            ctx,
            ETH as u32,
            A::SRC,
            &headers.tuple.src,
            &outer.src,
            at,
            pseudo,
        )?;
    }
    if headers.tuple.dst != outer.dst {
        A::set_address(
            ctx,
            ETH as u32,
            A::DST,
            &headers.tuple.dst,
            &outer.dst,
            at,
            pseudo,
        )?;
    }
    Ok(())
}
