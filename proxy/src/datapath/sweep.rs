//! Forgetting flows that have ended, in bounded batches.
//!
//! What has expired is decided by pure functions over (entry, now); the walk
//! costs one system call per [`BATCH`] entries.

use std::collections::HashSet;
use std::hash::Hash;
use std::io;
use std::time::Duration;

use proxy_ebpf::abi::{Flow, Plain, Tick, VipFlow, flow};
use proxy_ebpf::addr::{Addr, FlowKey, Side, Tuple};
use proxy_ebpf::conntrack;

use super::bpf::{Cursor, Table};
use super::map::FamilyMaps;

/// Entries read per system call.
const BATCH: usize = 4096;

/// A Service flow whose translated flow is gone is an orphan after this: the
/// kernel makes the two one after the other.
const ORPHAN_SECONDS: u32 = 30;

/// What a pass over one family's flow tables saw and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries when it began.
    pub found_flows: u32,
    pub found_vip_flows: u32,
    /// Entries left.
    pub flows: u32,
    pub vip_flows: u32,
    pub removed: u32,
    /// Ticks until the next entry may expire; `None` if nothing is left.
    pub next: Option<u32>,
}

/// Is the table so full that half-open and closing flows should go early?
pub const fn is_pressed(used: u32, capacity: u32) -> bool {
    used > capacity / 4 * 3
}

/// Ticks that the flow may still live; 0: expired.
fn remaining<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>, now: Tick, pressed: bool) -> u32 {
    let proto = u8::try_from(key.proto).unwrap_or(0);
    let nat = flow.flags & flow::NAT != 0;
    let lifetime = conntrack::lifetime(proto, flow.state, nat, pressed);
    lifetime.saturating_sub(now.since(flow.seen))
}

/// The key in `VIP_FLOWS` that belongs to a flow under NAT.
fn vip_key<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>) -> FlowKey<A> {
    let opener = if flow.flags & flow::OPENED_BY_HIGH != 0 {
        Side::High
    } else {
        Side::Low
    };
    let sent = key.tuple_from(opener);
    let hairpin = flow.flags & flow::HAIRPIN != 0;
    let original = Tuple {
        src: if hairpin { sent.dst } else { sent.src },
        dst: flow.service,
        sport: flow.client_port,
        dport: flow.service_port,
        proto: sent.proto,
    };
    original.canonical().0
}

/// One pass over both tables of a family.
pub fn sweep<A>(maps: &FamilyMaps<A>, now: Tick, pressed: bool) -> io::Result<Swept>
where
    A: Addr + Hash,
    FlowKey<A>: Plain,
    Flow<A>: Plain,
    VipFlow<A>: Plain,
{
    let mut swept = Swept::default();
    let mut next = u32::MAX;
    // Service flows whose translated flow lives.
    let mut kept = HashSet::new();
    let mut expired_vip = Vec::new();
    each_batch(&maps.flows, |keys, flows| {
        swept.found_flows += count(keys);
        let mut expired = Vec::new();
        for (key, flow) in keys.iter().zip(flows) {
            let nat = flow.flags & flow::NAT != 0;
            match remaining(key, flow, now, pressed) {
                0 => {
                    expired.push(*key);
                    if nat {
                        expired_vip.push(vip_key(key, flow));
                    }
                }
                ticks => {
                    next = next.min(ticks);
                    swept.flows += 1;
                    if nat {
                        kept.insert(vip_key(key, flow));
                    }
                }
            }
        }
        expired
    })
    .map(|removed| swept.removed += removed)?;
    expired_vip.retain(|key| !kept.contains(key));
    let ended = remove(&maps.vip_flows, &expired_vip)?;
    swept.found_vip_flows += ended;
    swept.removed += ended;
    let orphan_ticks = Tick::in_seconds(ORPHAN_SECONDS);
    each_batch(&maps.vip_flows, |keys, flows| {
        swept.found_vip_flows += count(keys);
        let mut orphans = Vec::new();
        for (key, flow) in keys.iter().zip(flows) {
            if !kept.contains(key) && now.since(flow.seen) > orphan_ticks {
                orphans.push(*key);
            } else {
                swept.vip_flows += 1;
            }
        }
        orphans
    })
    .map(|removed| swept.removed += removed)?;
    if swept.vip_flows > 0 {
        next = next.min(orphan_ticks);
    }
    swept.next = (next != u32::MAX).then_some(next);
    Ok(swept)
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

/// Walks a table; removes what `expired` names of each batch. How many went.
fn each_batch<K: Plain, V: Plain>(
    table: &Table<K, V>,
    mut expired: impl FnMut(&[K], &[V]) -> Vec<K>,
) -> io::Result<u32> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::START;
    let mut removed = 0;
    loop {
        keys.clear();
        values.clear();
        let more = table.walk(&mut cursor, BATCH, &mut keys, &mut values)?;
        removed += remove(table, &expired(&keys, &values))?;
        if !more {
            return Ok(removed);
        }
    }
}

/// Removes keys in batches; one that the kernel has removed meanwhile is skipped.
fn remove<K: Plain, V: Plain>(table: &Table<K, V>, keys: &[K]) -> io::Result<u32> {
    let mut rest = keys;
    let mut removed = 0;
    while !rest.is_empty() {
        let (done, result) = table.remove_all(rest);
        removed += u32::try_from(done).unwrap_or(u32::MAX);
        rest = rest.get(done..).unwrap_or_default();
        if let Err(error) = result {
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
            rest = rest.get(1..).unwrap_or_default();
        }
    }
    Ok(removed)
}

/// When to sweep next. `opened`: flows opened since the last pass; an idle node
/// waits, as long as nothing can expire, up to a minute.
pub fn interval(swept: &Swept, pressed: bool) -> Duration {
    const SHORTEST: Duration = Duration::from_secs(1);
    const USUAL: Duration = Duration::from_secs(5);
    const LONGEST: Duration = Duration::from_mins(1);
    if pressed {
        return SHORTEST;
    }
    match swept.next {
        None => LONGEST,
        Some(ticks) => {
            let wait = Duration::from_secs(seconds(ticks));
            wait.clamp(USUAL, LONGEST)
        }
    }
}

/// Whole seconds in ticks.
pub const fn seconds(ticks: u32) -> u64 {
    Duration::from_nanos((ticks as u64) << 27).as_secs()
}

/// The clock that flows are stamped with.
pub fn now() -> Tick {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Tick::from_nanos(seconds * 1_000_000_000 + nanos)
}

#[cfg(test)]
mod tests {
    use proxy_ebpf::addr::{BePort, V4, proto};

    use super::*;

    fn tick(seconds: u64) -> Tick {
        Tick::from_nanos(seconds * 1_000_000_000)
    }

    fn tuple(src: u8, dst: u8, sport: u16, dport: u16) -> Tuple<V4> {
        Tuple {
            src: V4::new([10, 0, 0, src]),
            dst: V4::new([10, 0, 0, dst]),
            sport: BePort::new(sport),
            dport: BePort::new(dport),
            proto: proto::TCP,
        }
    }

    fn nat_flow(opened_by: Side, hairpin: bool) -> Flow<V4> {
        Flow {
            seen: tick(100),
            flags: flow::NAT
                | if opened_by == Side::High {
                    flow::OPENED_BY_HIGH
                } else {
                    0
                }
                | if hairpin { flow::HAIRPIN } else { 0 },
            state: conntrack::REPLIED,
            service: V4::new([10, 96, 0, 1]),
            service_port: BePort::new(80),
            client_port: BePort::new(4000),
            ..Flow::default()
        }
    }

    fn vip_tuple(client: u8) -> Tuple<V4> {
        Tuple {
            dst: V4::new([10, 96, 0, 1]),
            ..tuple(client, 0, 4000, 80)
        }
    }

    #[test]
    fn the_service_flow_of_a_translated_flow_is_found_from_both_orders() {
        for (client, backend) in [(1, 9), (9, 1)] {
            // The source port differs from the client's: it was taken.
            let (key, side) = tuple(client, backend, 40_000, 8080).canonical();
            let flow = nat_flow(side, false);
            assert_eq!(vip_key(&key, &flow), vip_tuple(client).canonical().0);
        }
    }

    #[test]
    fn the_service_flow_of_a_hairpin_belongs_to_the_backend_itself() {
        let sent = Tuple {
            src: V4::GATEWAY,
            ..tuple(0, 9, 40_000, 8080)
        };
        let (key, side) = sent.canonical();
        let flow = nat_flow(side, true);
        assert_eq!(vip_key(&key, &flow), vip_tuple(9).canonical().0);
    }

    #[test]
    fn a_flow_expires_when_its_lifetime_is_over_and_not_before() {
        let (key, _) = tuple(1, 2, 4000, 80).canonical();
        let half_open = Flow {
            seen: tick(100),
            ..Flow::default()
        };
        assert!(remaining(&key, &half_open, tick(159), false) > 0);
        assert_eq!(remaining(&key, &half_open, tick(161), false), 0);
        assert_eq!(remaining(&key, &half_open, tick(104), true), 0);
        // Stamped by another CPU after `now` was read.
        assert!(remaining(&key, &half_open, tick(99), false) > 0);
    }

    #[test]
    fn an_idle_table_is_left_alone_and_a_pressed_one_is_not() {
        let swept = |next| Swept {
            next,
            ..Swept::default()
        };
        assert_eq!(interval(&swept(None), false), Duration::from_mins(1));
        assert_eq!(interval(&swept(Some(1)), false), Duration::from_secs(5));
        assert_eq!(
            interval(&swept(Some(u32::MAX)), false),
            Duration::from_mins(1)
        );
        assert_eq!(
            interval(&swept(Some(u32::MAX)), true),
            Duration::from_secs(1)
        );
        assert!(is_pressed(76, 100) && !is_pressed(75, 100));
    }
}
