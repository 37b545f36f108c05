//! The daemon's state and its steps: what happened goes to the compilers, their
//! writes to the kernel. No waiting but for grace periods; the loop around it
//! is in [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use proxy_ebpf::abi::{Endpoint, pin};
use proxy_ebpf::addr::{Addr, V4, V6};
use proxy_ebpf::record::EndpointRecord;
use tracing::{debug, error, info, warn};

use super::pods::{self, Live};
use crate::admin::{Admin, unix_seconds};
use crate::compile::{Compiler, Input, Tables, Update, Write};
use crate::datapath::Datapath;
use crate::datapath::read::{Extent, Found};
use crate::datapath::write::WriteError;
use crate::endpoints::Records;
use crate::metrics::Fill;
use crate::model::Change;
use crate::netlink::{Node, PodPath};
use crate::source::{Event, Fault, SourceId};

/// Updates that a full map may need to free room for one another.
const ROUNDS: usize = 4;

/// What the loop knows of a source.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceState {
    pub(super) name: String,
    pub(super) is_synced: bool,
    pub(super) faults: Vec<Fault>,
    pub(super) unsupported: BTreeMap<String, usize>,
}

/// Is the kernel what the compilers say?
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Not yet, or a write failed: what is there must be read first.
    Out,
    In,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) compiler: Compiler,
    pub(super) datapath: Arc<Datapath>,
    pub(super) admin: Admin,
    pub(super) sources: Vec<SourceState>,
    pub(super) records: Records,
    record_directory: PathBuf,
    boot_id: String,
    pub(super) node: Node,
    pending: Vec<Input>,
    step: Step,
    /// Why the last attempt failed.
    failure: Option<String>,
    /// Settings that the daemon, not the compilers, decide.
    pub(super) flags: u32,
}

impl Core {
    pub(super) fn new(
        compiler: Compiler,
        admin: Admin,
        sources: Vec<String>,
        record_directory: PathBuf,
        boot_id: String,
    ) -> Self {
        let named = |name| SourceState {
            name,
            ..SourceState::default()
        };
        Self {
            compiler,
            datapath: Arc::clone(&admin.datapath),
            admin,
            sources: sources.into_iter().map(named).collect(),
            records: Records::default(),
            record_directory,
            boot_id,
            node: Node::default(),
            pending: Vec::new(),
            step: Step::Out,
            failure: None,
            flags: 0,
        }
    }

    /// Begins with what is pinned: nothing of it is changed, and its numbers are
    /// not given to anything else.
    pub(super) fn adopt(&mut self) {
        match self.datapath.read(Extent::ALL) {
            Ok(found) => {
                let (addresses, services) =
                    (found.tables.addresses.len(), found.tables.services.len());
                info!(
                    endpoints = found.endpoints.len(),
                    addresses, services, "maps adopted"
                );
            }
            Err(error) => self.failure = Some(format!("cannot read the pinned maps: {error}")),
        }
    }

    /// The endpoint slot of an attachment.
    pub(super) fn slot_of(&self, container_id: &str, ifname: &str) -> Option<u32> {
        let is_it = |record: &EndpointRecord| {
            record.container_id == container_id && record.ifname == ifname
        };
        let live = self.live();
        let found = live.iter().find(|(_, stored)| is_it(&stored.record));
        found.map(|(slot, _)| *slot)
    }

    /// Who has an address: `namespace/pod`, or what else owns it.
    pub(super) fn name_of(&self, address: IpAddr) -> Option<String> {
        self.compiler.owner(address).map(ToString::to_string)
    }

    /// Takes up what a source says; [`Core::advance`] acts on it.
    pub(super) fn take(&mut self, SourceId(id): SourceId, event: Event) {
        let Some(source) = self.sources.get_mut(id) else {
            return;
        };
        match event {
            Event::Changes(changes) => {
                self.admin.update(|health| {
                    health.metrics.last_queued = unix_seconds(SystemTime::now());
                    for change in &changes {
                        *health.metrics.changes.entry(kind(change)).or_default() += 1;
                    }
                });
                self.pending.extend(changes.into_iter().map(Input::Object));
            }
            Event::Synced => {
                info!(source = %source.name, "source synced");
                source.is_synced = true;
            }
            Event::Faults(faults) => {
                for fault in faults.iter().filter(|fault| !source.faults.contains(fault)) {
                    warn!(source = %source.name, origin = %fault.origin, reason = %fault.reason, hint = %fault.hint, "cannot be read");
                }
                source.faults = faults;
            }
            Event::Unsupported(unsupported) => source.unsupported = unsupported,
        }
    }

    /// How much waits for [`Core::advance`].
    pub(super) fn backlog(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn is_synced(&self) -> bool {
        self.sources.iter().all(|source| source.is_synced)
    }

    pub(super) fn is_in_step(&self) -> bool {
        self.step == Step::In
    }

    /// Reads the plugin's records again.
    pub(super) fn reload_records(&mut self) {
        let rejected: BTreeSet<String> = self.records.rejected.keys().cloned().collect();
        if let Err(error) = self.records.read(&self.record_directory) {
            error!(%error, "cannot read the endpoint records");
        }
        for (name, error) in &self.records.rejected {
            if !rejected.contains(name) {
                warn!(%error, "an endpoint record is not usable");
            }
        }
    }

    pub(super) fn live(&self) -> Live<'_> {
        let (records, interfaces) = (&self.records.records, &self.node.interfaces);
        pods::live(records, interfaces, &self.boot_id, SystemTime::now())
    }

    /// Gives the compilers all that has happened and the kernel what follows
    /// from it. Before every source has spoken, the kernel is left as it is.
    pub(super) fn advance(&mut self) {
        let begin = Instant::now();
        let mut inputs = std::mem::take(&mut self.pending);
        inputs.push(Input::NodeAddresses(node_addresses(&self.node)));
        let mut update = self.compiler.update(inputs);
        // Only now, with the pods known: records may wait for their very pod.
        let live = self.live();
        let attach = pods::changes(self.compiler.attachments(), &live, self.compiler.state());
        if !attach.is_empty() {
            let second = self.compiler.update(attach);
            update.writes.extend(second.writes);
            update.again = second.again;
        }
        let compiled = begin.elapsed();
        if !self.is_synced() {
            self.publish(None);
            return;
        }
        let result = match self.step {
            Step::In => self.follow(update),
            Step::Out => self.catch_up().map(drop),
        };
        self.settle(result);
        self.publish(Some((compiled, begin.elapsed())));
    }

    /// Applies an update, and those that it needs after itself.
    fn follow(&mut self, mut update: Update) -> Result<(), StepError> {
        for _ in 0..ROUNDS {
            self.write(&update.writes)?;
            if !update.again {
                break;
            }
            update = self.compiler.update([]);
        }
        Ok(())
    }

    fn write(&self, writes: &[Write]) -> Result<(), StepError> {
        if writes.is_empty() {
            return Ok(());
        }
        self.datapath.apply(writes, self.flags)?;
        debug!(writes = writes.len(), "maps written");
        let count = u64::try_from(writes.len()).unwrap_or(u64::MAX);
        self.admin.update(|health| health.metrics.writes += count);
        Ok(())
    }

    /// Compares the kernel with the compilers' tables and writes the difference;
    /// also clears slots that no record owns. What was different.
    fn catch_up(&mut self) -> Result<Vec<Write>, StepError> {
        let found = self.datapath.read(Extent::ALL)?;
        // Read after the kernel: a slot in use had its record before.
        self.reload_records();
        let live = self.live();
        let attach = pods::changes(self.compiler.attachments(), &live, self.compiler.state());
        drop(self.compiler.update(attach));
        self.reconcile(&found)
    }

    fn reconcile(&mut self, found: &Found) -> Result<Vec<Write>, StepError> {
        self.repair_endpoints(found)?;
        let writes = self.compiler.tables().writes_since(&found.tables);
        self.write(&writes)?;
        if found.flags != self.flags {
            self.write(&[Write::Decision(self.compiler.tables().decision)])?;
        }
        Ok(writes)
    }

    /// Clears slots without a record and writes whole endpoints that differ in
    /// what the plugin wrote.
    fn repair_endpoints(&self, found: &Found) -> Result<u64, StepError> {
        let mut repaired = 0;
        let live = self.live();
        let now = SystemTime::now();
        for (slot, _) in found
            .endpoints
            .iter()
            .filter(|(slot, _)| !live.contains_key(slot))
        {
            self.datapath
                .maps
                .endpoints
                .set(slot, &Endpoint::default())?;
            info!(slot, "an endpoint without a record was cleared");
            repaired += 1;
        }
        let there: BTreeMap<u32, Endpoint> = found.endpoints.iter().copied().collect();
        for (slot, stored) in live.iter().filter(|(_, stored)| stored.is_settled(now)) {
            let policy = self.compiler.tables().endpoints.get(slot);
            let wanted = pods::endpoint(&stored.record, policy);
            let is = there.get(slot).copied().unwrap_or_default();
            if without_policy(is) != without_policy(wanted) {
                self.datapath.maps.endpoints.set(slot, &wanted)?;
                warn!(slot, pod = ?stored.record.pod, "an endpoint that differed was put back");
                repaired += 1;
            }
        }
        Ok(repaired)
    }

    /// Looks for what others changed in the maps and puts it back.
    pub(super) fn audit(&mut self) {
        if !self.is_synced() || !self.is_in_step() {
            self.advance();
            return;
        }
        let result = self.audit_maps();
        let result = result.map(|repaired| {
            if repaired > 0 {
                warn!(
                    elements = repaired,
                    "map contents that differed were put back"
                );
                self.count_repair("map", repaired);
            }
        });
        self.settle(result);
        self.publish(None);
    }

    fn audit_maps(&mut self) -> Result<u64, StepError> {
        let found = self.datapath.read(Extent::of(self.compiler.tables()))?;
        self.reload_records();
        let live = self.live();
        let attach = pods::changes(self.compiler.attachments(), &live, self.compiler.state());
        // What is news to the compilers is no tampering: apply it first.
        let mut expected = found;
        let update = self.compiler.update(attach);
        self.write(&update.writes)?;
        for write in &update.writes {
            expected.tables.apply(*write);
        }
        let endpoints = self.repair_endpoints(&expected)?;
        let writes = self.compiler.tables().writes_since(&expected.tables);
        self.write(&writes)?;
        let mut repaired = writes
            .iter()
            .filter(|write| **write != Write::Grace)
            .count();
        if expected.flags != self.flags {
            self.write(&[Write::Decision(self.compiler.tables().decision)])?;
            repaired += 1;
        }
        Ok(endpoints + u64::try_from(repaired).unwrap_or(u64::MAX))
    }

    /// Writes one endpoint's sets, classes and addresses whatever the kernel
    /// has: the plugin has just written its defaults over them.
    pub(super) fn rewrite_endpoint(&mut self, slot: u32) {
        if !self.is_synced() || !self.is_in_step() {
            return;
        }
        let tables = self.compiler.tables();
        let Some(policy) = tables.endpoints.get(&slot) else {
            return;
        };
        let ips = self
            .compiler
            .attachments()
            .get(&slot)
            .map(|attachment| &attachment.ips);
        let mut writes: Vec<Write> = ips
            .into_iter()
            .flatten()
            .map(|ip| Write::Address(*ip, tables.addresses.get(ip)))
            .collect();
        writes.push(Write::EndpointClasses {
            slot,
            v4: policy.class_v4,
            v6: policy.class_v6,
        });
        writes.push(Write::EndpointSets {
            slot,
            ingress: policy.ingress_set,
            egress: policy.egress_set,
        });
        let result = self.write(&writes);
        self.settle(result);
    }

    /// Sets the flags that the daemon decides.
    pub(super) fn set_flags(&mut self, flags: u32) {
        if self.flags == flags {
            return;
        }
        self.flags = flags;
        if self.is_in_step() {
            let decision = self.compiler.tables().decision;
            let result = self.write(&[Write::Decision(decision)]);
            self.settle(result);
        }
    }

    /// Attaches what should be attached and is not.
    pub(super) fn repair_links(&mut self) {
        let mut result = self.datapath.ensure_socket_links();
        let now = SystemTime::now();
        let mut made = Vec::new();
        for stored in self.live().values().filter(|stored| stored.is_settled(now)) {
            let record = &stored.record;
            match self
                .datapath
                .ensure_pod_links(&record.host_ifname, record.host_ifindex)
            {
                Ok(links) => made.extend(links),
                Err(error) => {
                    result = Err(error);
                }
            }
        }
        match result {
            Ok(links) => made.extend(links),
            Err(error) => {
                error!(%error, "cannot attach a program");
                self.failure = Some(format!("cannot attach a program: {error}"));
            }
        }
        if !made.is_empty() {
            info!(links = ?made, "programs attached");
            self.count_repair("link", u64::try_from(made.len()).unwrap_or(u64::MAX));
        }
        match self.datapath.remove_dead_links() {
            Ok(links) if !links.is_empty() => debug!(?links, "links of gone interfaces removed"),
            Ok(_) => {}
            Err(error) => warn!(%error, "cannot look through the pinned links"),
        }
    }

    /// The ways through the host's stack that settled endpoints must have.
    pub(super) fn wanted_paths(&self) -> BTreeSet<PodPath> {
        let now = SystemTime::now();
        let live = self.live();
        let settled = live.values().filter(|stored| stored.is_settled(now));
        settled
            .flat_map(|stored| pods::paths(&stored.record))
            .collect()
    }

    pub(super) fn count_repair(&self, what: &'static str, count: u64) {
        self.admin
            .update(|health| *health.metrics.repairs.entry(what).or_default() += count);
    }

    fn settle(&mut self, result: Result<(), StepError>) {
        match result {
            Ok(()) => {
                self.step = Step::In;
                self.failure = None;
            }
            Err(error) => {
                error!(%error, "the data path is not in step; it is tried again");
                self.step = Step::Out;
                self.failure = Some(error.to_string());
                self.admin.update(|health| {
                    health.metrics.write_failures += 1;
                    if let StepError::Write(WriteError::Full { map, .. }) = error {
                        *health.metrics.full.entry(map).or_default() += 1;
                    }
                });
            }
        }
    }

    /// Everything that is not as it should be, one line each.
    pub(super) fn errors(&self) -> Vec<String> {
        let problems = self.compiler.problems();
        self.failure
            .iter()
            .cloned()
            .chain(problems.iter().map(ToString::to_string))
            .collect()
    }

    fn publish(&self, sync: Option<(std::time::Duration, std::time::Duration)>) {
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
        let faults = self.sources.iter().map(|source| source.faults.len()).sum();
        let fills = fills(tables, &self.datapath, live.len());
        let errors = self.failure.clone().into_iter().collect();
        self.admin.update(|health| {
            let metrics = &mut health.metrics;
            if let Some((compiled, total)) = sync.filter(|_| self.is_in_step()) {
                metrics.compile_duration.observe(compiled);
                metrics.sync_duration.observe(total);
                metrics.last_sync = unix_seconds(SystemTime::now());
            }
            metrics.rejected = rejected;
            metrics.endpoints = endpoints;
            metrics.endpoints_pending = unknown;
            metrics.source_faults = count(faults);
            metrics.generation = tables.decision.generation;
            metrics.fills.extend(fills);
            health.unsynced = unsynced;
            health.errors = errors;
            let waits = !self.is_in_step() && self.is_synced();
            health.dirty_since = waits.then(|| health.dirty_since.unwrap_or_else(SystemTime::now));
        });
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("cannot read the maps: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
}

fn kind(change: &Change) -> &'static str {
    let kind = match change {
        Change::Upsert(object) => object.key().kind,
        Change::Remove(key) => key.kind,
        Change::Reject(rejected) => rejected.key.kind,
    };
    match kind {
        crate::model::Kind::Node => "node",
        crate::model::Kind::Namespace => "namespace",
        crate::model::Kind::Pod => "pod",
        crate::model::Kind::Service => "service",
        crate::model::Kind::EndpointSlice => "endpointslice",
        crate::model::Kind::NetworkPolicy => "networkpolicy",
    }
}

/// The interfaces' own addresses, and the gateway that every pod has.
fn node_addresses(node: &Node) -> BTreeSet<IpAddr> {
    let gateways = [
        IpAddr::from(V4::GATEWAY.octets()),
        IpAddr::from(V6::GATEWAY.octets()),
    ];
    node.addresses.iter().copied().chain(gateways).collect()
}

/// The part of an endpoint that the plugin alone writes.
fn without_policy(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        ingress_set: 0,
        egress_set: 0,
        class_v4: 0,
        class_v6: 0,
        ..endpoint
    }
}

/// How full the maps are that the compilers fill.
fn fills(tables: &Tables, datapath: &Datapath, endpoints: usize) -> Vec<(&'static str, Fill)> {
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
