//! Bounds-checked access to packet bytes.
#![expect(
    unsafe_code,
    reason = "packet pointers, checked against the packet's end"
)]

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use proxy_ebpf::event::Counter;

pub(crate) const ETH: usize = 14;
pub(crate) const ETHERTYPE_V4: u16 = 0x0800_u16.to_be();
pub(crate) const ETHERTYPE_V6: u16 = 0x86dd_u16.to_be();
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806_u16.to_be();

#[repr(C)]
pub(crate) struct Ethernet {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub ethertype: u16,
}

/// A pointer to a `T` at a constant offset, if the packet's linear part has it.
#[inline(always)]
pub(crate) fn at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data();
    if start + offset + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some((start + offset) as *mut T)
}

/// Copies a `T` (integers and arrays of them) from any offset.
#[inline(always)]
pub(crate) fn load<T: Copy>(ctx: &TcContext, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the kernel fills exactly `size_of::<T>()` bytes or fails, and
    // any bytes make a `T`.
    unsafe {
        let failed = bpf_skb_load_bytes(
            skb(ctx).cast(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
        );
        (failed == 0).then(|| value.assume_init())
    }
}

/// Copies packet bytes over `out` (integers and arrays of them).
#[inline(always)]
pub(crate) fn load_into<T: Copy>(ctx: &TcContext, offset: u32, out: &mut T) -> Result<(), Counter> {
    // SAFETY: the kernel fills exactly `size_of::<T>()` bytes or fails, and
    // any bytes make a `T`.
    let failed = unsafe {
        bpf_skb_load_bytes(
            skb(ctx).cast(),
            offset,
            (&raw mut *out).cast(),
            size_of::<T>() as u32,
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(Counter::Malformed)
    }
}

#[inline(always)]
pub(crate) fn store<T: Copy>(
    ctx: &TcContext,
    offset: u32,
    value: &T,
    flags: u64,
) -> Result<(), Counter> {
    // SAFETY: the kernel copies exactly `size_of::<T>()` bytes or fails.
    let failed = unsafe {
        bpf_skb_store_bytes(
            skb(ctx).cast(),
            offset,
            (&raw const *value).cast(),
            size_of::<T>() as u32,
            flags,
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(Counter::RewriteFailed)
    }
}

/// Cuts or extends the packet.
#[inline(always)]
pub(crate) fn resize(ctx: &TcContext, length: u32) -> Result<(), Counter> {
    // SAFETY: packet pointers are not kept across this call.
    let failed = unsafe { bpf_skb_change_tail(skb(ctx), length, 0) };
    if failed == 0 {
        Ok(())
    } else {
        Err(Counter::RewriteFailed)
    }
}

#[inline(always)]
pub(crate) fn skb(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}

#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: a context field.
    unsafe { (*skb(ctx)).ifindex }
}

#[inline(always)]
pub(crate) fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: a context field.
    unsafe { (*skb(ctx)).mark }
}

#[inline(always)]
pub(crate) fn set_mark(ctx: &TcContext, mark: u32) {
    ctx.skb.set_mark(mark);
}

/// The interface the packet came in by; 0 if the host itself sent it.
#[inline(always)]
pub(crate) fn ingress_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: a context field.
    unsafe { (*skb(ctx)).ingress_ifindex }
}

/// The ethertype, after making sure that the usual headers are linear.
#[inline(always)]
pub(crate) fn ethertype(ctx: &TcContext) -> Option<u16> {
    const USUAL: usize = ETH + 40 + 20;
    let linear = ctx.data_end().wrapping_sub(ctx.data());
    // A short packet is linear as a whole: a pull would be three calls for nothing.
    if linear < USUAL && linear < ctx.len() as usize {
        let wanted = ctx.len().min(USUAL as u32);
        // SAFETY: no packet pointers are held.
        unsafe { bpf_skb_pull_data(skb(ctx), wanted) };
    }
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: checked by `at`.
    Some(unsafe { (*ethernet).ethertype })
}

/// The source MAC address.
#[inline(always)]
pub(crate) fn source_mac(ctx: &TcContext) -> Option<[u8; 6]> {
    let ethernet = at::<Ethernet>(ctx, 0)?;
    // SAFETY: checked by `at`.
    Some(unsafe { (*ethernet).src })
}

#[inline(always)]
pub(crate) fn set_macs(ctx: &TcContext, dst: &[u8; 6], src: &[u8; 6]) -> Result<(), Counter> {
    let ethernet = at::<Ethernet>(ctx, 0).ok_or(Counter::RewriteFailed)?;
    // SAFETY: checked by `at`.
    unsafe {
        (*ethernet).dst = *dst;
        (*ethernet).src = *src;
    }
    Ok(())
}
