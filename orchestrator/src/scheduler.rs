//! The scheduler: every waiting pod gets the best node that can take it.
//!
//! Decisions ([`decide`]) are pure functions of a pod and the [`node`] state.
//! One task follows pods and nodes, decides, *assumes* that the pod is on its
//! node and goes on; binding happens beside it. A binding that fails takes the
//! assumption back. Nothing polls: a pod that nothing can take waits for an
//! event that may help it.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    cache::{Delivery, Entry, EventKind, Selector, Watcher},
    controller::runtime::{
        Clock, Context, Recorder,
        object::{self, Head, served},
        stamp,
    },
    registry::{Target, client::Client},
    resource::core::NAMESPACE,
    status::Status,
};

pub mod affinity;
mod binding;
pub mod decide;
pub mod filter;
mod likes;
mod measure;
pub mod node;
pub mod pod;
pub mod queue;
pub mod resources;
pub mod score;
pub mod spread;
pub mod tally;
pub mod topology;
pub mod volume;

use self::{
    decide::{Around, Decision, decide},
    filter::wake,
    likes::{Services, likes},
    measure::{Ended, Watch},
    node::{NodeInfo, Nodes},
    pod::PodInfo,
    queue::Queue,
    topology::Namespaces,
    volume::Volumes,
};

pub use self::measure::Measures;

/// Annotation with which a claim is told its pod's node.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NAME: &str = "default-scheduler";
/// Bindings and reports under way; when there are more, decisions wait.
const WIDTH: usize = 256;
/// Decisions between two looks at events.
const TURNS: usize = 64;

/// The scheduler.
#[derive(Debug)]
struct Scheduler {
    client: Client,
    clock: Clock,
    recorder: Recorder,
    nodes: Nodes,
    services: Services,
    queue: Queue,
    /// Decided, not seen bound yet: key to node.
    assumed: HashMap<Arc<str>, String>,
    writes: JoinSet<Outcome>,
    turn: usize,
    watch: Watch,
    /// Where cache entries have a pod's node.
    node_field: usize,
}

/// What became of a write beside the loop.
#[derive(Debug)]
enum Outcome {
    Bound(Arc<PodInfo>, Result<(), Status>),
    Reported,
}

/// Schedules until it is dropped.
pub async fn run(context: Context, measures: Measures) {
    let mut scheduler = Scheduler {
        client: context.client,
        clock: context.clock,
        recorder: context.recorder,
        nodes: Nodes::default(),
        services: Services::default(),
        queue: Queue::default(),
        assumed: HashMap::new(),
        writes: JoinSet::new(),
        turn: 0,
        watch: Watch::new(measures),
        node_field: node_field(),
    };
    loop {
        scheduler.follow_all().await;
        tracing::info!("the scheduler fell behind and goes through all objects");
    }
}

fn node_field() -> usize {
    let mut fields = served("", "pods").fields.iter();
    let place = fields.position(|field| field.name == "spec.nodeName");
    place.expect("pods are selected by their node")
}

/// The watches.
struct Watches {
    pods: Watcher,
    nodes: Watcher,
    services: Watcher,
    namespaces: Watcher,
    volumes: Watcher,
    claims: Watcher,
    classes: Watcher,
}

impl Scheduler {
    /// Reads everything and follows it until a watch falls behind.
    async fn follow_all(&mut self) {
        self.nodes = Nodes::default();
        self.services = Services::default();
        self.queue = Queue::default();
        let Ok(mut watches) = self.open() else {
            return;
        };
        loop {
            self.decide_some();
            self.watch.look(|| self.queue.depths());
            let due = self.queue.next_due();
            let ready = !self.queue.is_idle() && self.writes.len() < WIDTH;
            let clock = self.clock.clone();
            let expired = tokio::select! {
                biased;
                Some(outcome) = self.writes.join_next() => {
                    if let Ok(outcome) = outcome { self.ended(outcome); }
                    Ok(())
                }
                seen = watches.nodes.next() => seen.map(|d| self.nodes_changed(&d)),
                seen = watches.pods.next() => seen.map(|d| self.pods_changed(&d)),
                seen = watches.services.next() => seen.map(|d| self.services_changed(&d)),
                seen = watches.namespaces.next() => seen.map(|_| self.wake(wake::NAMESPACE)),
                seen = watches.volumes.next() => seen.map(|_| self.wake(wake::VOLUME)),
                seen = watches.claims.next() => seen.map(|_| self.wake(wake::VOLUME)),
                seen = watches.classes.next() => seen.map(|_| self.wake(wake::VOLUME)),
                () = clock.sleep_until(due.unwrap_or_default()), if due.is_some() => Ok(()),
                () = tokio::task::yield_now(), if ready => Ok(()),
                () = tokio::time::sleep(measure::LOOK), if self.watch.is_stale() => Ok(()),
            };
            if expired.is_err() {
                return;
            }
        }
    }

    fn open(&mut self) -> Result<Watches, Status> {
        let all = Selector::default;
        let (nodes, node_watch) = self.client.informer_of(served("", "nodes"), all())?;
        for entry in nodes {
            self.node_written(&entry);
        }
        let (services, service_watch) = self.client.informer_of(served("", "services"), all())?;
        for entry in services {
            self.services.set(&entry);
        }
        let (pods, pod_watch) = self.client.informer_of(served("", "pods"), all())?;
        for entry in pods {
            self.pod_written(&entry);
        }
        let watch = |group, plural| {
            let informer = self.client.informer_of(served(group, plural), all());
            informer.map(|(_, watcher)| watcher)
        };
        Ok(Watches {
            namespaces: watch("", "namespaces")?,
            volumes: watch("", "persistentvolumes")?,
            claims: watch("", "persistentvolumeclaims")?,
            classes: watch("storage.k8s.io", "storageclasses")?,
            pods: pod_watch,
            nodes: node_watch,
            services: service_watch,
        })
    }

    fn wake(&mut self, events: u8) {
        self.queue.wake(events, self.clock.now());
    }

    fn nodes_changed(&mut self, deliveries: &[Delivery]) {
        let mut helps = false;
        for delivery in deliveries {
            if delivery.kind == EventKind::Deleted {
                self.nodes.remove(delivery.entry().name());
            } else {
                helps |= self.node_written(delivery.entry());
            }
        }
        if helps {
            self.wake(wake::NODE);
        }
    }

    fn services_changed(&mut self, deliveries: &[Delivery]) {
        for delivery in deliveries {
            if delivery.kind == EventKind::Deleted {
                self.services.remove(delivery.entry());
            } else {
                self.services.set(delivery.entry());
            }
        }
    }

    fn node_written(&mut self, entry: &Entry) -> bool {
        match NodeInfo::of(entry) {
            Ok(node) => self.nodes.set(node),
            Err(error) => {
                tracing::error!(node = entry.name(), %error, "a node cannot be read");
                false
            }
        }
    }

    fn pods_changed(&mut self, deliveries: &[Delivery]) {
        let mut wakes = 0;
        for delivery in deliveries {
            let entry = delivery.entry();
            if delivery.kind == EventKind::Deleted {
                wakes |= self.pod_left(&entry.key);
            } else {
                wakes |= self.pod_written(entry);
            }
        }
        if wakes != 0 && self.queue.has_refused() {
            self.wake(wakes);
        }
    }

    /// The pod takes no place any more; which events that is.
    fn pod_left(&mut self, key: &str) -> u8 {
        self.watch.leave(key);
        self.queue.remove(key);
        self.assumed.remove(key);
        match self.nodes.take(key) {
            Some(_) => wake::POD,
            None => 0,
        }
    }

    /// Which events that is to other pods.
    fn pod_written(&mut self, entry: &Entry) -> u8 {
        if self.is_as_decided(entry) {
            self.queue.remove(&entry.key);
            self.assumed.remove(&entry.key);
            return wake::PLACED;
        }
        let pod = match PodInfo::of(entry) {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                tracing::error!(pod = &*entry.key, %error, "a pod cannot be read");
                return 0;
            }
        };
        if pod.over {
            return self.pod_left(&pod.key);
        }
        if !pod.node.is_empty() {
            self.queue.remove(&pod.key);
            let decided = self.assumed.remove(&pod.key).is_some();
            let wakes = match self.nodes.pod(&pod.key) {
                Some(before) if !before.counts_as(&pod) => wake::POD | wake::PLACED,
                Some(_) if !decided => 0,
                _ => wake::PLACED,
            };
            self.nodes.put(pod);
            return wakes;
        }
        self.unplaced(pod);
        0
    }

    /// Whether the pod is now bound just as it was decided.
    fn is_as_decided(&self, entry: &Entry) -> bool {
        let node = entry.fields.get(self.node_field).map_or("", |node| node);
        let decided = self.assumed.get(&entry.key);
        let assumed = self.nodes.pod(&entry.key);
        decided.is_some_and(|decided| decided == node)
            && assumed.is_some_and(|pod| {
                let labels = entry.labels.iter().map(|(key, value)| (&**key, &**value));
                let known = pod.meta.labels.iter();
                let known = known.map(|(key, value)| (key.as_str(), value.as_str()));
                *pod.meta.uid == *entry.uid && labels.eq(known)
            })
    }

    /// A pod without a node.
    fn unplaced(&mut self, pod: Arc<PodInfo>) {
        if !pod.is_waiting() || self.assumed.contains_key(&pod.key) {
            if !pod.is_waiting() {
                self.queue.remove(&pod.key);
            }
            return;
        }
        if pod.gated {
            self.queue.remove(&pod.key);
            let text = "Scheduling is blocked due to non-empty scheduling gates";
            self.report(&pod, "SchedulingGated", text);
            return;
        }
        // Its own status is written here; that is no reason for another attempt.
        if !self.queue.is_same(&pod) {
            self.watch.enter(&pod.key);
            self.queue.add(pod);
        }
    }

    fn decide_some(&mut self) {
        for _ in 0..TURNS {
            if self.writes.len() >= WIDTH {
                return;
            }
            let Some(pod) = self.queue.next(self.clock.now()) else {
                return;
            };
            self.place(pod);
        }
    }

    fn place(&mut self, pod: Arc<PodInfo>) {
        self.watch.attempt(&pod.key);
        let volumes = match binding::volumes(&self.client, &pod, &self.nodes) {
            Ok(volumes) => volumes,
            // Without nodes there is more to say than this.
            Err(_) if self.nodes.count() == 0 => Volumes::default(),
            Err(why) => {
                let nodes = self.nodes.count();
                let message = format!("0/{nodes} nodes are available: {why}.");
                return self.refuse(&pod, &message, wake::VOLUME);
            }
        };
        let around = Around {
            namespaces: self.namespaces(&pod),
            volumes,
            likes: likes(&self.client, &self.services, &pod),
        };
        match decide(&pod, &mut self.nodes, &around, &mut self.turn) {
            Decision::Refused { message, wakes } => self.refuse(&pod, &message, wakes),
            Decision::Node(node) => {
                let mut placed = (*pod).clone();
                placed.node.clone_from(&node);
                self.nodes.put(Arc::new(placed));
                self.assumed.insert(Arc::clone(&pod.key), node.clone());
                let bind = binding::Bind {
                    client: self.client.clone(),
                    clock: self.clock.clone(),
                    claims: around.volumes.waiting().cloned().collect(),
                };
                self.writes.spawn(async move {
                    let result = bind.run(&pod, &node).await;
                    Outcome::Bound(pod, result)
                });
            }
        }
    }

    /// Labels of all namespaces, where a term asks for them.
    fn namespaces(&self, pod: &PodInfo) -> Namespaces {
        if !pod.asks_namespaces() && !self.nodes.has_asking() {
            return Namespaces::new();
        }
        let all = object::list(&self.client, &NAMESPACE, "").unwrap_or_default();
        let labels =
            |entry: &Arc<Entry>| entry.decode::<Head>().ok().map(|head| head.metadata.labels);
        all.iter()
            .filter_map(|entry| Some((entry.name().to_owned(), labels(entry)?)))
            .collect()
    }

    fn refuse(&mut self, pod: &Arc<PodInfo>, message: &str, wakes: u8) {
        self.queue.refused(&pod.key, wakes, self.clock.now());
        self.watch.ended(&pod.key, Ended::Unschedulable);
        let text = message.to_owned();
        self.recorder.warning(
            NAME,
            served("", "pods"),
            &pod.meta,
            "FailedScheduling",
            text,
        );
        self.report(pod, "Unschedulable", message);
    }

    /// Writes `PodScheduled=False`, if it does not say so yet.
    fn report(&mut self, pod: &Arc<PodInfo>, reason: &'static str, message: &str) {
        let said = |(status, why, text): &(String, String, String)| {
            status == "False" && why == reason && text == message
        };
        if pod.reported.as_ref().is_some_and(said) {
            return;
        }
        let (client, pod) = (self.client.clone(), Arc::clone(pod));
        let (message, now) = (message.to_owned(), stamp(self.clock.now()));
        self.writes.spawn(async move {
            let condition = json!({
                "type": "PodScheduled",
                "status": "False",
                "reason": reason,
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": now,
            });
            let meta = &pod.meta;
            let target = Target::status(served("", "pods"), &meta.namespace, &meta.name);
            let set = |pod: &mut Value| {
                binding::set_condition(&mut pod["status"]["conditions"], &condition);
            };
            if let Err(status) = client.amend(target, &meta.uid, set).await {
                tracing::debug!(pod = &*pod.key, %status, "a refusal was not reported");
            }
            Outcome::Reported
        });
    }

    fn ended(&mut self, outcome: Outcome) {
        let Outcome::Bound(pod, result) = outcome else {
            return;
        };
        match result {
            Ok(()) => {
                self.watch.ended(&pod.key, Ended::Scheduled);
                let node = self.assumed.get(&pod.key).cloned();
                let node = node.or_else(|| self.nodes.place_of(&pod.key));
                let text = format!(
                    "Successfully assigned {} to {}",
                    pod.key,
                    node.unwrap_or_default()
                );
                self.recorder
                    .normal(NAME, served("", "pods"), &pod.meta, "Scheduled", text);
            }
            Err(status) => {
                tracing::debug!(pod = &*pod.key, %status, "not bound, will retry");
                self.watch.ended(&pod.key, Ended::Error);
                // Only what was assumed is taken back, not what has happened since.
                let placed = self.nodes.pod(&pod.key);
                let same = placed.is_some_and(|placed| placed.meta.uid == pod.meta.uid);
                if same && self.assumed.remove(&pod.key).is_some() {
                    self.nodes.take(&pod.key);
                    self.queue.failed(&pod.key, self.clock.now());
                    self.wake(wake::POD);
                }
            }
        }
    }
}
