//! The daemon's state and its steps: what happened goes to the compilers, their
//! writes to the kernel. No waiting but for grace periods; the loop around it
//! is in [`super`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use proxy_ebpf::addr::{Addr, V4, V6};
use proxy_ebpf::record::EndpointRecord;
use tracing::{debug, error, info, warn};

use super::latency::Latency;
use super::pods::{self, Live};
use crate::admin::{Admin, unix_seconds};
use crate::compile::{Compiler, Input, Owner, Update, Write};
use crate::datapath::Datapath;
use crate::datapath::read::{Extent, Found};
use crate::datapath::write::WriteError;
use crate::endpoints::Records;
use crate::model::{Change, Key, Kind, Object, ObjectName, Pod};
use crate::netlink::Node;
use crate::source::merge::Merge;
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
    node_name: String,
    pub(super) datapath: Arc<Datapath>,
    pub(super) admin: Admin,
    pub(super) sources: Vec<SourceState>,
    merge: Merge,
    pub(super) records: Records,
    record_directory: PathBuf,
    boot_id: String,
    pub(super) node: Node,
    /// The last change of each object that the compilers have not seen.
    pending: BTreeMap<Key, Change>,
    adopted: bool,
    step: Step,
    /// Why the last attempt failed.
    pub(super) failure: Option<String>,
    /// Attempts that failed since the last that did not.
    pub(super) failures: u32,
    /// Why a program is not attached.
    pub(super) unattached: Option<String>,
    /// When the maps' fill was last counted.
    pub(super) fills_at: Option<Instant>,
    /// Settings that the daemon, not the compilers, decide.
    pub(super) flags: u32,
    pub(super) latency: Latency,
}

impl Core {
    pub(super) fn new(
        node_name: &str,
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
            compiler: Compiler::new(node_name),
            node_name: node_name.to_owned(),
            datapath: Arc::clone(&admin.datapath),
            admin,
            merge: Merge::new(sources.len()),
            sources: sources.into_iter().map(named).collect(),
            records: Records::default(),
            record_directory,
            boot_id,
            node: Node::default(),
            pending: BTreeMap::new(),
            adopted: false,
            step: Step::Out,
            failure: None,
            failures: 0,
            unattached: None,
            fills_at: None,
            flags: 0,
            latency: Latency::since(SystemTime::now()),
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
        let owner = self.compiler.owner(address)?;
        let attachment = match owner {
            Owner::Endpoint(slot) => self.compiler.attachments().get(slot),
            _ => None,
        };
        let pod = attachment.and_then(|attachment| attachment.pod.as_ref());
        Some(pod.map_or_else(|| owner.to_string(), ToString::to_string))
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
                        *health
                            .metrics
                            .changes
                            .entry(label(change.key().kind))
                            .or_default() += 1;
                    }
                });
                for change in changes {
                    let change = self.merge.take(SourceId(id), change);
                    self.pending.insert(change.key(), change);
                }
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
        self.records.read(&self.record_directory);
        for (name, error) in &self.records.rejected {
            if !rejected.contains(name) {
                warn!(%error, "an endpoint record cannot be used");
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
        if !self.is_synced() {
            self.publish(None);
            return;
        }
        let mut compiled = Duration::ZERO;
        let result = match (self.adopted, &self.step) {
            (false, _) => self.adopt(),
            (true, Step::In) => {
                let update = self.compile();
                compiled = begin.elapsed();
                self.follow(update)
            }
            (true, Step::Out) => self.catch_up(),
        };
        self.settle(result);
        self.publish(Some((compiled, begin.elapsed())));
    }

    /// One update of the compilers with all that has happened.
    pub(super) fn compile(&mut self) -> Update {
        let attached = self.compiler.attachments();
        let attach = pods::changes(attached, &self.live(), |name| self.pod(name));
        let slices = &self.compiler.state().slices;
        self.latency.note(self.pending.values(), slices);
        let pending = std::mem::take(&mut self.pending).into_values();
        let mut inputs: Vec<_> = pending.map(Input::Object).collect();
        inputs.push(Input::NodeAddresses(node_addresses(&self.node)));
        inputs.extend(attach);
        self.compiler.update(inputs)
    }

    /// A pod as the sources have last described it.
    pub(super) fn pod(&self, name: &ObjectName) -> Option<Arc<Pod>> {
        let key = Key {
            kind: Kind::Pod,
            name: name.clone(),
        };
        match self.pending.get(&key) {
            Some(Change::Upsert(Object::Pod(pod))) => Some(Arc::clone(pod)),
            Some(_) => None,
            None => self.compiler.state().pods.get(name).cloned(),
        }
    }

    /// Begins with what is pinned: what still means the same stays.
    fn adopt(&mut self) -> Result<(), StepError> {
        let found = self.datapath.read(Extent::ALL)?;
        // Read after the kernel: a slot in use had its record before.
        self.reload_records();
        info!(
            endpoints = found.endpoints.len(),
            addresses = found.tables.addresses.len(),
            services = found.tables.services.len(),
            "maps adopted"
        );
        let maps = &self.datapath.maps;
        let room = [maps.v4.cidrs.max_entries(), maps.v6.cidrs.max_entries()];
        let compiler = Compiler::adopt(&self.node_name, found.tables.clone());
        self.compiler = compiler.with_prefixes(room);
        let update = self.compile();
        self.adopted = true;
        self.repair_endpoints(&found)?;
        self.follow(update)?;
        self.restore_flags(&found)
    }

    /// Applies an update, and those that it needs after itself.
    pub(super) fn follow(&mut self, mut update: Update) -> Result<(), StepError> {
        for _ in 0..ROUNDS {
            self.write(&update.writes)?;
            if !update.again {
                break;
            }
            update = self.compiler.update([]);
        }
        Ok(())
    }

    pub(super) fn write(&self, writes: &[Write]) -> Result<(), StepError> {
        if writes.is_empty() {
            return Ok(());
        }
        self.datapath.apply(writes, self.flags)?;
        debug!(writes = writes.len(), "maps written");
        let count = u64::try_from(writes.len()).unwrap_or(u64::MAX);
        self.admin.update(|health| health.metrics.writes += count);
        Ok(())
    }

    /// Reads what the kernel has and writes what differs, after a write failed.
    fn catch_up(&mut self) -> Result<(), StepError> {
        let found = self.datapath.read(Extent::ALL)?;
        self.reload_records();
        let mut update = self.compile();
        self.repair_endpoints(&found)?;
        self.write(&self.compiler.tables().writes_since(&found.tables))?;
        if update.again {
            update = self.compiler.update([]);
            self.follow(update)?;
        }
        self.restore_flags(&found)
    }

    fn restore_flags(&self, found: &Found) -> Result<(), StepError> {
        if found.flags == self.flags {
            return Ok(());
        }
        self.write(&[Write::Decision(self.compiler.tables().decision)])
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

    pub(super) fn settle(&mut self, result: Result<(), StepError>) {
        match result {
            Ok(()) => {
                self.step = Step::In;
                self.failure = None;
                self.failures = 0;
            }
            Err(error) => {
                error!(%error, "the data path is not in step; it is tried again");
                self.step = Step::Out;
                self.failure = Some(error.to_string());
                self.failures += 1;
                self.admin.update(|health| {
                    health.metrics.write_failures += 1;
                    if let StepError::Write(
                        WriteError::Full { map, .. } | WriteError::Short { map, .. },
                    ) = error
                    {
                        *health.metrics.full.entry(map).or_default() += 1;
                    }
                });
            }
        }
    }
}

pub(super) fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error("cannot read the maps: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The metric label of a kind.
const fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "node",
        Kind::Namespace => "namespace",
        Kind::Pod => "pod",
        Kind::Service => "service",
        Kind::EndpointSlice => "endpointslice",
        Kind::NetworkPolicy => "networkpolicy",
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
