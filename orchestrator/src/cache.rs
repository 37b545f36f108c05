//! The watch cache: what every list, watch and controller reads.
//!
//! Per resource it keeps an ordered map from key to one encoded object and a
//! ring of recent events. An object is encoded once; lists, watches and the
//! ring share its bytes. The ring is bounded by bytes: a watcher that falls
//! out of it is told so ([`Expired`], HTTP 410) and must list again, so a slow
//! reader costs nobody memory.
//!
//! Order: the store's writer thread applies commits here one after another and
//! then publishes the revision. Whoever has read the published revision `R`
//! before looking into a ring has seen every event up to `R`.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock, RwLockReadGuard},
};

use tokio::sync::watch;

use crate::{
    resource::{self, Resource},
    store::{Committed, Observer, Revision, Store, StoreError},
};

pub mod entry;
mod list;
mod owners;
mod ring;
pub mod selector;
mod topics;
pub mod watcher;

#[cfg(test)]
mod tests;

pub use entry::Entry;
pub use list::{Page, Query};
pub use ring::{Event, EventKind};
pub use selector::Selector;
pub use watcher::{Delivery, Watcher};

/// Bytes of events kept per resource; older ones are forgotten.
pub const RING_BYTES: usize = 16 << 20;

/// The asked-for revision is older than the ring; list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {wanted} ({oldest})")]
pub struct Expired {
    /// What was asked for.
    pub wanted: Revision,
    /// The oldest revision from which a watch could start.
    pub oldest: Revision,
}

/// All resources' caches.
#[derive(Debug)]
pub struct Cache {
    by_resource: HashMap<&'static str, Arc<ResourceCache>>,
    published: watch::Sender<Revision>,
}

/// One resource's objects and recent events.
#[derive(Debug)]
pub struct ResourceCache {
    resource: &'static Resource,
    state: RwLock<State>,
    /// Revision of the last event of this resource: wakes the watchers ..
    changed: watch::Sender<Revision>,
    /// .. but for those who wait for little of it.
    topics: topics::Topics,
    published: watch::Receiver<Revision>,
}

#[derive(Debug)]
struct State {
    objects: std::collections::BTreeMap<Arc<str>, Arc<Entry>>,
    owners: owners::Owners,
    ring: ring::Ring,
}

impl Cache {
    /// An empty cache of all registered resources.
    ///
    /// `durable` is the last revision on disk, `ceiling` the one from which the
    /// counter goes on; see [`crate::store::sqlite::Start`].
    pub fn new(durable: Revision, ceiling: Revision, ring_bytes: usize) -> Self {
        let (published, receiver) = watch::channel(ceiling);
        let by_resource = resource::stored()
            .map(|resource| {
                let floor = if resource.volatile.is_some() {
                    ceiling
                } else {
                    durable
                };
                let cache = ResourceCache {
                    resource,
                    state: RwLock::new(State {
                        objects: std::collections::BTreeMap::new(),
                        owners: owners::Owners::default(),
                        ring: ring::Ring::new(floor, ring_bytes),
                    }),
                    changed: watch::channel(ceiling).0,
                    topics: topics::Topics::new(resource.fields.len()),
                    published: receiver.clone(),
                };
                (resource.key, Arc::new(cache))
            })
            .collect();
        Self {
            by_resource,
            published,
        }
    }

    /// Loads everything from the store. Objects of unknown resources stay on disk.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub fn load(&self, store: &dyn Store) -> Result<usize, StoreError> {
        let mut loaded = 0;
        for cache in self.by_resource.values() {
            let prefix = format!("{}/", cache.resource.key);
            let mut state = cache.state.write().expect("no writer panics");
            store.range(&prefix, &mut |row| {
                let Some(key) = row.key.strip_prefix(&prefix) else {
                    return;
                };
                match Entry::load(cache.resource, key, row.revision, &row.value) {
                    Ok(entry) => {
                        state.owners.add(&entry);
                        state.objects.insert(Arc::clone(&entry.key), entry);
                        loaded += 1;
                    }
                    Err(error) => {
                        tracing::error!(key = row.key, %error, "an object cannot be read and is left out");
                    }
                }
            })?;
        }
        Ok(loaded)
    }

    /// The newest published revision.
    pub fn revision(&self) -> Revision {
        *self.published.borrow()
    }

    /// Resolves when `revision` has been published.
    pub async fn reached(&self, revision: Revision) {
        let mut published = self.published.subscribe();
        // The sender lives in self, so waiting cannot fail.
        drop(published.wait_for(|now| *now >= revision).await);
    }

    /// The cache of one stored resource.
    pub fn of(&self, resource: &Resource) -> &Arc<ResourceCache> {
        self.by_resource
            .get(resource.key)
            .expect("every stored resource has a cache")
    }

    /// Bytes and events of all rings, objects and their bytes: for the metrics.
    pub fn fill(&self) -> impl Iterator<Item = (&'static Resource, Fill)> {
        self.by_resource.values().map(|cache| {
            let state = cache.read();
            let fill = Fill {
                objects: state.objects.len(),
                ring_events: state.ring.len(),
                ring_bytes: state.ring.bytes(),
            };
            (cache.resource, fill)
        })
    }

    fn apply(&self, changes: Vec<Committed>) {
        let Some(last) = changes.last().map(|c| c.revision) else {
            return;
        };
        let mut touched: Vec<(&ResourceCache, Vec<Arc<Event>>)> = Vec::new();
        for change in changes {
            let Some((prefix, key)) = change.key.split_once('/') else {
                continue;
            };
            if let Some(cache) = self.by_resource.get(prefix)
                && let Some(event) = cache.apply(key, &change)
            {
                let same = |(other, _): &&mut (&ResourceCache, _)| {
                    std::ptr::eq(*other, &raw const **cache)
                };
                match touched.iter_mut().find(same) {
                    Some((_, events)) => events.push(event),
                    None => touched.push((cache, vec![event])),
                }
            }
        }
        self.published.send_replace(last);
        for (cache, events) in touched {
            cache.tell(&events, last);
        }
    }
}

/// How full one resource's cache is.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Objects held.
    pub objects: usize,
    /// Events held.
    pub ring_events: usize,
    /// Bytes of those events; at most the ring's bound plus one event.
    pub ring_bytes: usize,
}

/// Feeds the cache from the store's writer thread.
#[derive(Debug)]
pub struct Feed(pub Arc<Cache>);

impl Observer for Feed {
    fn committed(&mut self, changes: Vec<Committed>) {
        self.0.apply(changes);
    }
}

impl ResourceCache {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no writer panics")
    }

    /// The object under `key` (`namespace/name`, or `name`).
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.read().objects.get(key).cloned()
    }

    /// Objects held.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The described resource.
    pub fn resource(&self) -> &'static Resource {
        self.resource
    }

    /// Wakes whom these events concern; they are published.
    fn tell(&self, events: &[Arc<Event>], last: Revision) {
        self.changed.send_replace(last);
        let often = self.read().ring.bytes_max() / 4;
        self.topics.tell(events, last, often);
    }

    fn apply(&self, key: &str, change: &Committed) -> Option<Arc<Event>> {
        let mut guard = self.state.write().expect("no writer panics");
        let state = &mut *guard;
        let previous = state.objects.get(key).cloned();
        let event = match (&change.value, previous) {
            (Some(value), previous) => {
                let label = if previous.is_some() {
                    "MODIFIED"
                } else {
                    "ADDED"
                };
                match Entry::parse(self.resource, key, change.revision, value, label) {
                    Ok((entry, frame)) => {
                        state.owners.replace(previous.as_deref(), &entry);
                        state
                            .objects
                            .insert(Arc::clone(&entry.key), Arc::clone(&entry));
                        Event::written(entry, previous, frame)
                    }
                    Err(error) => {
                        tracing::error!(key = %change.key, %error, "a committed object cannot be read");
                        return None;
                    }
                }
            }
            (None, Some(previous)) => {
                state.objects.remove(key);
                state.owners.remove(&previous);
                Event::deleted(previous, change.revision)
            }
            (None, None) => return None,
        };
        let event = Arc::new(event);
        state.ring.push(Arc::clone(&event));
        Some(event)
    }
}
