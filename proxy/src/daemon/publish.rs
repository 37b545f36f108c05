//! What the loop tells the metrics and health endpoints after each step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use proxy_ebpf::abi::pin;

use super::core::{Core, count};
use super::pods;
use crate::admin::unix_seconds;
use crate::compile::Tables;
use crate::datapath::Datapath;
use crate::metrics::Fill;

/// Counting all tables is too much work for every change.
const FILLS_EVERY: Duration = Duration::from_secs(1);

/// The tables that the kernel programs fill; the sweeper tells how full they are.
const FLOW_TABLES: [&str; 4] = [
    pin::FLOWS_V4,
    pin::FLOWS_V6,
    pin::VIP_FLOWS_V4,
    pin::VIP_FLOWS_V6,
];

impl Core {
    /// Everything that is not as it should be, one line each.
    pub(super) fn errors(&self) -> Vec<String> {
        let problems = self.compiler.problems();
        let fills = self.admin.update(|health| health.metrics.fills.clone());
        let full = FLOW_TABLES.into_iter().filter_map(|map| {
            let fill = fills.get(map).filter(|fill| fill.used >= fill.max)?;
            let max = fill.max;
            Some(format!(
                "{map} is full ({max} flows): new connections are dropped; hint: --map-size {map}=ENTRIES, before the map is first made"
            ))
        });
        self.failure
            .iter()
            .chain(&self.unattached)
            .cloned()
            .chain(problems.iter().map(ToString::to_string))
            .chain(full)
            .collect()
    }

    pub(super) fn publish(&mut self, sync: Option<(Duration, Duration)>) {
        let is_in_step = self.is_in_step() && self.is_synced();
        let programmed = is_in_step.then(|| self.latency.take(SystemTime::now()));
        let tables = self.compiler.tables();
        let unsynced = self.sources.iter().filter(|source| !source.is_synced);
        let unsynced: Vec<_> = unsynced.map(|source| source.name.clone()).collect();
        let mut rejected: BTreeMap<&'static str, u64> = BTreeMap::new();
        for key in self.compiler.state().rejected.keys() {
            *rejected.entry(key.kind.name()).or_default() += 1;
        }
        let live = self.live();
        let state = self.compiler.state();
        let unknown = live.values().filter(|stored| {
            stored.record.pod.is_some() && pods::known_pod(&stored.record, state).is_none()
        });
        let (endpoints, unknown) = (count(live.len()), count(unknown.count()));
        let problems = count(self.compiler.problems().len());
        let faults = self.sources.iter().map(|source| source.faults.len()).sum();
        let errors = self
            .failure
            .iter()
            .chain(&self.unattached)
            .cloned()
            .collect();
        self.admin.update(|health| {
            let metrics = &mut health.metrics;
            for latency in programmed.into_iter().flatten() {
                metrics.programming_duration.observe(latency);
            }
            if let Some((compiled, total)) = sync.filter(|_| self.is_in_step()) {
                metrics.compile_duration.observe(compiled);
                metrics.sync_duration.observe(total);
                metrics.last_sync = unix_seconds(SystemTime::now());
            }
            metrics.rejected = rejected;
            metrics.endpoints = endpoints;
            metrics.endpoints_pending = unknown;
            metrics.source_faults = count(faults);
            metrics.problems = problems;
            metrics.generation = tables.decision.generation;
            health.unsynced = unsynced;
            health.errors = errors;
            let waits = !self.is_in_step() && self.is_synced();
            health.dirty_since = waits.then(|| health.dirty_since.unwrap_or_else(SystemTime::now));
        });
        let is_due = |at: Instant| at.elapsed() >= FILLS_EVERY;
        if self.fills_at.is_none_or(is_due) {
            self.fills_at = Some(Instant::now());
            let fills = fills(self.compiler.tables(), &self.datapath, self.live().len());
            self.admin
                .update(|health| health.metrics.fills.extend(fills));
        }
    }
}

/// How full the maps are that the compilers fill.
pub(super) fn fills(
    tables: &Tables,
    datapath: &Datapath,
    endpoints: usize,
) -> Vec<(&'static str, Fill)> {
    let maps = &datapath.maps;
    let fill = |used: usize, max: u32| Fill {
        used: u32::try_from(used).unwrap_or(u32::MAX),
        max,
    };
    let of_family = |is_v6: bool| {
        (
            tables
                .addresses
                .iter()
                .filter(|(ip, _)| ip.is_ipv6() == is_v6)
                .count(),
            tables
                .cidrs
                .iter()
                .filter(|(cidr, _)| cidr.is_v6() == is_v6)
                .count(),
            tables
                .services
                .iter()
                .filter(|(key, _)| key.vip.is_ipv6() == is_v6)
                .count(),
            tables
                .backends
                .iter()
                .filter(|(key, b)| key.is_v6 == is_v6 && b.is_live)
                .count(),
        )
    };
    let (v4, v6) = (of_family(false), of_family(true));
    vec![
        (
            pin::ENDPOINTS,
            fill(endpoints, maps.endpoints.max_entries()),
        ),
        (
            pin::ADDRESSES_V4,
            fill(v4.0, maps.v4.addresses.max_entries()),
        ),
        (
            pin::ADDRESSES_V6,
            fill(v6.0, maps.v6.addresses.max_entries()),
        ),
        (pin::CIDRS_V4, fill(v4.1, maps.v4.cidrs.max_entries())),
        (pin::CIDRS_V6, fill(v6.1, maps.v6.cidrs.max_entries())),
        (pin::SERVICES_V4, fill(v4.2, maps.v4.services.max_entries())),
        (pin::SERVICES_V6, fill(v6.2, maps.v6.services.max_entries())),
        (pin::BACKENDS_V4, fill(v4.3, maps.v4.backends.max_entries())),
        (pin::BACKENDS_V6, fill(v6.3, maps.v6.backends.max_entries())),
        (
            pin::SLOTS,
            fill(tables.slots.len(), maps.slots.max_entries()),
        ),
        (
            pin::POLICY_SETS,
            fill(tables.sets.len(), maps.policy_sets.max_entries()),
        ),
        (
            pin::POLICY_PEERS,
            fill(tables.peers.len(), maps.policy_peers.max_entries()),
        ),
        (
            pin::POLICY_PORTS,
            fill(tables.ports.len(), maps.policy_ports.max_entries()),
        ),
        (
            pin::POLICY_RANGES,
            fill(tables.ranges.len(), maps.policy_ranges.max_entries()),
        ),
    ]
}
