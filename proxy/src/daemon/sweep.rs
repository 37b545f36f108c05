//! When the flow tables are swept.

use std::io;
use std::time::Duration;

use proxy_ebpf::abi::{Flow, Plain, VipFlow, pin};
use proxy_ebpf::addr::{Addr, FlowKey};
use proxy_ebpf::event::{Counter, Hook};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::admin::Admin;
use crate::datapath::Datapath;
use crate::datapath::map::FamilyMaps;
use crate::datapath::sweep::{self, Swept, is_pressed};
use crate::metrics::Fill;

/// How often the count of opened flows is looked at: one system call.
const LOOK: Duration = Duration::from_secs(5);

/// Sweeps until the daemon goes.
pub(super) async fn run(admin: Admin) {
    let mut used = [0, 0];
    loop {
        let swept = tokio::task::block_in_place(|| sweep_all(&admin.datapath, used));
        let (interval, left) = match swept {
            Ok(swept) => {
                publish(&admin, &swept);
                used = swept.map(|family| family.flows);
                let capacity = admin.datapath.maps.v4.flows.max_entries();
                let intervals = swept
                    .iter()
                    .map(|family| sweep::interval(family, is_pressed(family.flows, capacity)));
                let shortest = intervals.min().unwrap_or(LOOK);
                (
                    shortest,
                    capacity.saturating_sub(used.into_iter().max().unwrap_or(0)),
                )
            }
            Err(error) => {
                warn!(%error, "cannot sweep the flow tables");
                (LOOK, u32::MAX)
            }
        };
        wait(&admin.datapath, interval, left).await;
    }
}

/// Waits for the interval, but not while the tables fill up.
async fn wait(datapath: &Datapath, interval: Duration, left: u32) {
    let due = Instant::now() + interval;
    let opened_before = opened(datapath);
    while Instant::now() < due {
        tokio::time::sleep_until(due.min(Instant::now() + LOOK)).await;
        let opened = opened(datapath).saturating_sub(opened_before);
        if opened > u64::from(left / 4) {
            debug!(opened, "many flows were opened");
            return;
        }
    }
}

fn opened(datapath: &Datapath) -> u64 {
    let hooks = [Hook::PodOut, Hook::PodIn];
    let counts = hooks.map(|hook| datapath.counter(Counter::FlowsOpened, hook));
    counts.into_iter().flatten().sum()
}

/// `used`: flows left by the last pass, by family.
fn sweep_all(datapath: &Datapath, [v4, v6]: [u32; 2]) -> io::Result<[Swept; 2]> {
    Ok([
        sweep_family(&datapath.maps.v4, v4)?,
        sweep_family(&datapath.maps.v6, v6)?,
    ])
}

fn sweep_family<A>(maps: &FamilyMaps<A>, used: u32) -> io::Result<Swept>
where
    A: Addr + std::hash::Hash,
    FlowKey<A>: Plain,
    Flow<A>: Plain,
    VipFlow<A>: Plain,
{
    let (now, capacity) = (sweep::now(), maps.flows.max_entries());
    let swept = sweep::sweep(maps, now, is_pressed(used, capacity))?;
    if is_pressed(swept.flows, capacity) && !is_pressed(used, capacity) {
        // It filled up since the last pass: half-open flows go at once.
        let again = sweep::sweep(maps, now, true)?;
        return Ok(Swept {
            removed: swept.removed + again.removed,
            ..again
        });
    }
    Ok(swept)
}

fn publish(admin: &Admin, [v4, v6]: &[Swept; 2]) {
    let maps = &admin.datapath.maps;
    let fills = [
        (pin::FLOWS_V4, v4.flows, maps.v4.flows.max_entries()),
        (pin::FLOWS_V6, v6.flows, maps.v6.flows.max_entries()),
        (
            pin::VIP_FLOWS_V4,
            v4.vip_flows,
            maps.v4.vip_flows.max_entries(),
        ),
        (
            pin::VIP_FLOWS_V6,
            v6.vip_flows,
            maps.v6.vip_flows.max_entries(),
        ),
    ];
    let fills = fills.map(|(map, used, max)| (map, Fill { used, max }));
    admin.update(|health| {
        health.metrics.fills.extend(fills);
        health.metrics.swept += u64::from(v4.removed) + u64::from(v6.removed);
    });
}
