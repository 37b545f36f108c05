//! What all controllers share: watches that turn into keys, workers that take
//! keys, a clock, and a recorder of events.
//!
//! A controller keeps no copy of objects. It is told *which* key may need
//! work and reads the present state from the watch cache, which holds every
//! write of this process before the writer is told. So nothing has to be
//! expected or remembered between two looks, and a lost notice is repaired by
//! going through all objects again.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::{
    auth::User,
    cache::{Delivery, Entry, EventKind, Selector, Watcher},
    registry::{Registry, client::Client},
    resource::Resource,
    status::Status,
};

pub mod clock;
pub mod measure;
pub mod object;
pub mod queue;
pub mod recorder;

pub use clock::{Clock, later, stamp};
pub use measure::Measures;
pub use queue::{Key, Queue};
pub use recorder::Recorder;

/// What a controller is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// The API, in the controller's name.
    pub client: Client,
    /// Its queue, for keys that it finds by itself.
    pub queue: Arc<Queue>,
    /// The time.
    pub clock: Clock,
    /// For Event objects.
    pub recorder: Recorder,
}

/// A change of an object, as the mapping to keys sees it.
#[derive(Debug)]
pub struct Change<'a> {
    /// The new state; of a deletion the last one.
    pub entry: &'a Entry,
    /// The state before; `None` for an addition and when going through all.
    pub previous: Option<&'a Entry>,
    /// Whether it is gone.
    pub deleted: bool,
}

/// Keys that a change concerns.
pub type KeysOf = Box<dyn Fn(&Change<'_>) -> Vec<Key> + Send + Sync>;

/// One watch of a controller.
pub struct Source {
    resource: &'static Resource,
    keys: KeysOf,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("resource", &self.resource.key)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// Every change of `resource`, under the keys that `keys` finds.
    pub fn new(
        resource: &'static Resource,
        keys: impl Fn(&Change<'_>) -> Vec<Key> + Send + Sync + 'static,
    ) -> Self {
        Self {
            resource,
            keys: Box::new(keys),
        }
    }

    /// Every change of `resource`, under the object's own key.
    pub fn own(resource: &'static Resource) -> Self {
        Self::new(resource, |change| vec![Arc::clone(&change.entry.key)])
    }
}

/// Whether, and when, a key wants another look without a change.
pub type Again = Option<Duration>;

/// The earlier of two looks.
pub fn sooner(a: Again, b: Again) -> Again {
    [a, b].into_iter().flatten().min()
}

/// One controller: where its keys come from and what it does about one.
pub trait Controller: Send + Sync + 'static {
    /// Name, also that of its ServiceAccount.
    fn name(&self) -> &'static str;

    /// Workers: keys handled at a time.
    fn workers(&self) -> usize {
        4
    }

    /// The watches.
    fn sources(&self) -> Vec<Source>;

    /// Makes the world fit one object, as far as that goes now.
    ///
    /// # Errors
    /// A refusal of the API; the key is tried again with backoff.
    fn reconcile(&self, key: &str) -> impl Future<Output = Result<Again, Status>> + Send;
}

/// The tasks of running controllers; stops them when dropped, so that a lost
/// leadership ends them all at once.
#[derive(Debug)]
pub struct Runtime {
    registry: Arc<Registry>,
    clock: Clock,
    recorder: Recorder,
    measures: Arc<Measures>,
    tasks: JoinSet<()>,
    /// Controllers that were started.
    count: usize,
}

impl Runtime {
    /// Nothing runs yet but the recorder; nobody looks at the measures.
    pub fn new(registry: Arc<Registry>, clock: Clock) -> Self {
        Self::measured(registry, clock, Arc::default())
    }

    /// As [`Self::new`], with these measures.
    pub fn measured(registry: Arc<Registry>, clock: Clock, measures: Arc<Measures>) -> Self {
        let mut tasks = JoinSet::new();
        let user = User::component("system:kube-controller-manager", &[]);
        let client = Client::new(Arc::clone(&registry), user, "fairlead");
        let (recorder, writing) = Recorder::start(client, clock.clone());
        tasks.spawn(writing);
        Self {
            registry,
            clock,
            recorder,
            measures,
            tasks,
            count: 0,
        }
    }

    /// What a controller of this name works with.
    pub fn context(&self, name: &'static str) -> Context {
        let client = Client::new(Arc::clone(&self.registry), User::controller(name), name);
        let measure = self.measures.of(name);
        Context {
            client,
            queue: Arc::new(Queue::measured(self.clock.clone(), measure)),
            clock: self.clock.clone(),
            recorder: self.recorder.clone(),
        }
    }

    /// Starts a controller over its context.
    pub fn run<C: Controller>(&mut self, context: &Context, controller: C) {
        let controller = Arc::new(controller);
        let resync = Arc::new(watch::channel(0_u64).0);
        self.count += 1;
        self.measures.follow(controller.name(), &context.queue);
        for source in controller.sources() {
            let informer = Informer {
                client: context.client.clone(),
                queue: Arc::clone(&context.queue),
                resync: Arc::clone(&resync),
                source,
            };
            self.tasks.spawn(informer.run());
        }
        for _ in 0..controller.workers() {
            let (controller, queue) = (Arc::clone(&controller), Arc::clone(&context.queue));
            self.tasks.spawn(work(controller, queue));
        }
    }

    /// Starts a task that ends with the others.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// How many controllers were started.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Ends everything and waits for it.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn work<C: Controller>(controller: Arc<C>, queue: Arc<Queue>) {
    loop {
        let key = queue.next().await;
        match controller.reconcile(&key).await {
            Ok(again) => queue.done(&key, again),
            Err(status) => {
                // A lost race is repaired by the next look, no need to tell.
                if status.is("Conflict") || status.is("NotFound") {
                    tracing::debug!(controller = controller.name(), %key, %status, "again");
                } else {
                    tracing::warn!(controller = controller.name(), %key, %status, "failed, will retry");
                }
                queue.failed(&key);
            }
        }
    }
}

/// Follows one source and fills the queue.
struct Informer {
    client: Client,
    queue: Arc<Queue>,
    /// Counts the times that some watch of this controller fell behind.
    resync: Arc<watch::Sender<u64>>,
    source: Source,
}

impl Informer {
    async fn run(self) {
        let mut resynced = self.resync.subscribe();
        loop {
            let opened = self
                .client
                .informer_of(self.source.resource, Selector::default());
            let Ok((entries, mut watcher)) = opened else {
                continue;
            };
            for entry in entries {
                self.admit(&Change {
                    entry: &entry,
                    previous: None,
                    deleted: false,
                })
                .await;
            }
            tokio::select! {
                () = self.follow(&mut watcher) => {
                    tracing::info!(resource = self.source.resource.key, "a controller fell behind and goes through all objects");
                    self.resync.send_modify(|count| *count += 1);
                    resynced.mark_unchanged();
                }
                // The sender lives in self.
                _ = resynced.changed() => {}
            }
        }
    }

    /// Ends when the watcher has fallen out of the ring.
    async fn follow(&self, watcher: &mut Watcher) {
        while let Ok(deliveries) = watcher.next().await {
            for delivery in deliveries {
                self.admit(&change(&delivery)).await;
            }
        }
    }

    async fn admit(&self, change: &Change<'_>) {
        for key in (self.source.keys)(change) {
            self.queue.admit(key).await;
        }
    }
}

fn change(delivery: &Delivery) -> Change<'_> {
    Change {
        entry: delivery.entry(),
        previous: delivery.event.previous.as_deref(),
        deleted: delivery.kind == EventKind::Deleted,
    }
}

/// Ends a task when dropped.
#[derive(Debug)]
pub struct Guard(pub JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}
