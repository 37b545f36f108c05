//! The time, mostly without asking for it.
#![expect(unsafe_code, reason = "clock helpers and a map value of this CPU")]

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use proxy_ebpf::abi::Tick;

#[map]
static CLOCK: PerCpuArray<Clock> = PerCpuArray::with_max_entries(1, 0);

/// The time of the last look at the clock, and the jiffy it was in.
struct Clock {
    jiffies: u64,
    tick: Tick,
}

/// The coarse clock moves with the jiffies, which the JIT reads without a call:
/// the clock itself is asked once a jiffy.
#[inline(never)]
pub(crate) fn now() -> Tick {
    now_here()
}

/// [`now`] without the call: on the way of new flows.
#[inline(always)]
pub(crate) fn now_here() -> Tick {
    let jiffies = jiffies();
    let Some(clock) = CLOCK.get_ptr_mut(0) else {
        return Tick::from_nanos(nanos());
    };
    // SAFETY: per CPU. A program that interrupts another one here leaves the
    // time of the same jiffy or a later one.
    let clock = unsafe { &mut *clock };
    if clock.jiffies != jiffies {
        clock.tick = Tick::from_nanos(nanos());
        clock.jiffies = jiffies;
    }
    clock.tick
}

#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: no arguments, no side effects.
    unsafe { bpf_jiffies64() }
}

#[inline(always)]
pub(crate) fn nanos() -> u64 {
    // SAFETY: no arguments, no side effects.
    unsafe { bpf_ktime_get_coarse_ns() }
}
