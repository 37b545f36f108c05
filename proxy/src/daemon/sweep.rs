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
    let mut pressed = [false, false];
    loop {
        let swept = tokio::task::block_in_place(|| sweep_all(&admin.datapath, pressed));
        let (interval, left) = match swept {
            Ok(passes) => {
                publish(&admin, &passes);
                pressed = passes.map(|pass| pass.is_pressed);
                let intervals = passes.map(|pass| sweep::interval(&pass.swept, pass.is_pressed));
                let [v4, v6] = passes.map(|pass| pass.left);
                (intervals[0].min(intervals[1]), v4.min(v6))
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

/// One family's pass, and how its tables are then.
#[derive(Clone, Copy, Debug)]
struct Pass {
    swept: Swept,
    /// Entries of the two tables when it began.
    found: [u32; 2],
    is_pressed: bool,
    /// Flows that still fit.
    left: u32,
}

/// `pressed`: the tables' state after the last pass, by family.
fn sweep_all(datapath: &Datapath, [v4, v6]: [bool; 2]) -> io::Result<[Pass; 2]> {
    Ok([
        sweep_family(&datapath.maps.v4, v4)?,
        sweep_family(&datapath.maps.v6, v6)?,
    ])
}

fn sweep_family<A>(maps: &FamilyMaps<A>, was_pressed: bool) -> io::Result<Pass>
where
    A: Addr + std::hash::Hash,
    FlowKey<A>: Plain,
    Flow<A>: Plain,
    VipFlow<A>: Plain,
{
    let now = sweep::now();
    let (flows, vip_flows) = (maps.flows.max_entries(), maps.vip_flows.max_entries());
    let pressed = |s: &Swept| is_pressed(s.flows, flows) || is_pressed(s.vip_flows, vip_flows);
    let mut swept = sweep::sweep(maps, now, was_pressed)?;
    let found = [swept.found_flows, swept.found_vip_flows];
    if pressed(&swept) && !was_pressed {
        // They filled up since the last pass: half-open flows go at once.
        let again = sweep::sweep(maps, now, true)?;
        swept = Swept {
            removed: swept.removed + again.removed,
            ..again
        };
    }
    let left = flows.saturating_sub(swept.flows);
    Ok(Pass {
        swept,
        found,
        is_pressed: pressed(&swept),
        left: left.min(vip_flows.saturating_sub(swept.vip_flows)),
    })
}

fn publish(admin: &Admin, [v4, v6]: &[Pass; 2]) {
    let maps = &admin.datapath.maps;
    let sizes = [
        (pin::FLOWS_V4, v4.found[0], maps.v4.flows.max_entries()),
        (pin::FLOWS_V6, v6.found[0], maps.v6.flows.max_entries()),
        (
            pin::VIP_FLOWS_V4,
            v4.found[1],
            maps.v4.vip_flows.max_entries(),
        ),
        (
            pin::VIP_FLOWS_V6,
            v6.found[1],
            maps.v6.vip_flows.max_entries(),
        ),
    ];
    let fills = sizes.map(|(map, used, max)| (map, Fill { used, max }));
    admin.update(|health| {
        health.metrics.fills.extend(fills);
        health.metrics.swept += u64::from(v4.swept.removed) + u64::from(v6.swept.removed);
    });
}
