//! The daemon: sources -> state -> compilers -> data path, one loop. How it comes
//! to be is in `start`.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proxy_ebpf::abi::setting;
use proxy_ebpf::record::{Answer, Notice};
use tokio::sync::{broadcast, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::control::{Command, Request, Response};
use crate::netlink::{Changed, Netlink};

mod attach;
mod core;
mod explain;
mod flow;
mod latency;
mod orphan;
mod pods;
mod publish;
mod repair;
mod report;
mod start;
mod sweep;
mod tracked;
mod wait;

use core::Core;
use orphan::Orphans;
pub use start::{Config, RunError, SourceKind, run};
use start::{Queues, Watches};
use wait::Waiters;

/// A burst of changes is over when nothing came for this long,
const QUIET: Duration = Duration::from_millis(5);
/// or when it has lasted this long,
const BURST: Duration = Duration::from_millis(100);
/// or when this much has come.
const BACKLOG: usize = 20_000;
/// Netlink and link changes come in swarms when pods start.
const NETWORK_QUIET: Duration = Duration::from_millis(100);
/// How soon a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often that is doubled while it fails: all maps are read each time.
const RETRY_DOUBLINGS: u32 = 3;

struct Daemon {
    core: Core,
    netlink: Netlink,
    waiters: Waiters,
    orphans: Orphans,
    flows: broadcast::Sender<Arc<str>>,
    started: std::time::SystemTime,
    retry: Option<Instant>,
}

/// A moment that may or may not come.
fn at(deadline: Option<Instant>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    match deadline {
        Some(deadline) => Box::pin(sleep_until(deadline)),
        None => Box::pin(std::future::pending()),
    }
}

/// When a burst that began at `first` is acted upon.
#[derive(Debug, Default)]
struct Debounce {
    first: Option<Instant>,
    due: Option<Instant>,
}

impl Debounce {
    fn arm(&mut self, quiet: Duration) {
        let now = Instant::now();
        let first = *self.first.get_or_insert(now);
        self.due = Some((now + quiet).min(first + BURST.max(quiet)));
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Daemon {
    /// Takes over what is there before anything is served.
    async fn start(&mut self) {
        self.look_at_node().await;
        self.core.reload_records();
        let attached = self.attach(true).await;
        let endpoints = self.core.live().len();
        info!(endpoints, attached = attached.len(), "programs in force");
    }

    async fn serve(
        &mut self,
        mut queues: Queues,
        mut watches: Watches,
        audit: Duration,
        stop: impl Future<Output = ()> + Send,
    ) {
        let mut stop = std::pin::pin!(stop);
        let (mut sync, mut network) = (Debounce::default(), Debounce::default());
        let mut unfiltered = false;
        sync.arm(QUIET);
        let mut audit = tokio::time::interval_at(Instant::now() + audit, audit);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some((id, event)) = queues.sources.recv() => {
                    self.core.take(id, event);
                    sync.arm(QUIET);
                    if self.core.backlog() >= BACKLOG {
                        self.advance();
                        sync.clear();
                    }
                }
                Some(command) = queues.commands.recv() => self.command(command).await,
                Some(events) = queues.events.recv() => self.report_flows(&events),
                changed = watches.records.changed() => {
                    if let Err(error) = changed {
                        warn!(%error, "watching the endpoint records failed");
                        tokio::time::sleep(RETRY).await;
                    }
                    self.core.reload_records();
                    sync.arm(QUIET);
                }
                _ = watches.links.changed() => network.arm(NETWORK_QUIET),
                changed = watches.monitor.changed() => {
                    unfiltered |= matches!(changed, Ok(Changed::Unfiltered));
                    network.arm(NETWORK_QUIET);
                }
                () = at(sync.due) => {
                    sync.clear();
                    self.advance();
                }
                () = at(network.due) => {
                    network.clear();
                    if self.look_at_node().await {
                        sync.arm(QUIET);
                    }
                    self.repair_hooks(std::mem::take(&mut unfiltered)).await;
                    self.repair_paths().await;
                }
                () = at(self.waiters.deadline()) => self.waiters.expire(),
                () = at(self.retry) => self.advance(),
                _ = audit.tick() => self.audit().await,
            }
        }
    }

    fn advance(&mut self) {
        tokio::task::block_in_place(|| self.core.advance());
        let failed = self.core.is_synced() && !self.core.is_in_step();
        let doublings = self.core.failures.saturating_sub(1).min(RETRY_DOUBLINGS);
        self.retry = failed.then(|| Instant::now() + RETRY * (1 << doublings));
        self.look_for_orphans(false);
        self.waiters.answer(&self.core);
    }

    async fn audit(&mut self) {
        self.look_at_node().await;
        tokio::task::block_in_place(|| self.core.audit());
        self.look_for_orphans(true);
        self.repair_hooks(true).await;
        self.repair_paths().await;
        self.waiters.answer(&self.core);
    }

    /// Whether interfaces or addresses have changed.
    async fn look_at_node(&mut self) -> bool {
        match self.netlink.node().await {
            Ok(node) if node == self.core.node => false,
            Ok(node) => {
                self.core.node = node;
                true
            }
            Err(error) => {
                warn!(%error, "cannot look at this node's addresses");
                false
            }
        }
    }

    /// Puts back routes and neighbours of pods.
    async fn repair_paths(&mut self) {
        let wanted = self.core.wanted_paths();
        if wanted.is_empty() {
            return;
        }
        let there = match self.netlink.pod_paths().await {
            Ok(there) => there,
            Err(error) => {
                warn!(%error, "cannot look at the pods' routes");
                return;
            }
        };
        for path in wanted.difference(&there) {
            match self.netlink.add_pod_path(path).await {
                Ok(()) => {
                    warn!(address = %path.address, "a pod's route or neighbour was put back");
                    self.core.count_repair("route", 1);
                }
                Err(error) => warn!(%error, address = %path.address, "cannot repair a pod's route"),
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Notice(notice, reply) => self.notice(notice, reply).await,
            Command::Request(request, reply) => {
                let response = tokio::task::block_in_place(|| self.request(&request));
                if reply.send(response).is_err() {
                    debug!("a client did not wait for its answer");
                }
            }
            Command::FollowersChanged => {
                let follows = self.flows.receiver_count() > 0;
                self.core
                    .set_flags(if follows { setting::FLOW_EVENTS } else { 0 });
            }
        }
    }

    async fn notice(&mut self, notice: Notice, reply: oneshot::Sender<Answer>) {
        match notice {
            Notice::EndpointAdded {
                container_id,
                ifname,
                timeout_ms,
            } => {
                self.look_at_node().await;
                self.core.reload_records();
                self.advance();
                let deadline = wait::deadline(timeout_ms);
                let slot = self.core.slot_of(&container_id, &ifname);
                if let Some(slot) = slot {
                    self.core.rewrite_endpoint(slot);
                }
                self.waiters.add(container_id, ifname, deadline, reply);
                self.waiters.answer(&self.core);
            }
            Notice::EndpointRemoved { .. } => {
                self.core.reload_records();
                self.advance();
                wait::reply(reply, Answer::Done);
            }
            Notice::Status => wait::reply(reply, self.status()),
        }
    }

    fn status(&self) -> Answer {
        let errors = self.core.errors();
        match errors.first() {
            Some(error) if !self.core.is_in_step() => Answer::Failed {
                message: error.clone(),
            },
            _ => Answer::Done,
        }
    }

    fn request(&self, request: &Request) -> Response {
        let result = match request {
            Request::Report => Ok(report::status(self)),
            Request::Endpoints => Ok(report::endpoints(&self.core)),
            Request::Services => Ok(report::services(&self.core)),
            Request::Policies => Ok(report::policies(&self.core)),
            Request::Explain { from, to, port } => explain::answer(&self.core, from, to, port),
            Request::Tracked => tracked::tracked(&self.core).map_err(|error| error.to_string()),
            Request::Flows => Err("flows are followed, not asked for".to_owned()),
        };
        match result {
            Ok(value) => Response::Ok { value },
            Err(message) => Response::Failed { message },
        }
    }

    fn report_flows(&self, events: &[proxy_ebpf::event::Event]) {
        let names: BTreeMap<_, _> = flow::local_names(&self.core);
        for event in events {
            let line = flow::describe(&self.core, &names, event);
            // Nobody follows any more: the flag goes with the notice of it.
            if self.flows.send(line.into()).is_err() {
                return;
            }
        }
    }
}
