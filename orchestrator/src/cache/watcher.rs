//! Watchers: a cursor into the ring, no queue of their own.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Entry, Event, EventKind, Expired, Query, ResourceCache, Revision, Selector, topics::Topic,
};

/// Most events handed out at once, so that one reader holds the lock briefly.
const BATCH: usize = 256;

/// Follows one resource from a revision on.
///
/// It owns no buffer: the ring is the buffer, shared by all. A watcher that is
/// polled too seldom falls out of the ring and gets [`Expired`].
#[derive(Debug)]
pub struct Watcher {
    wakes: Wakes,
    cache: Arc<ResourceCache>,
    cursor: Revision,
    namespace: Option<String>,
    selector: Selector,
}

/// What wakes a watcher.
#[derive(Debug)]
struct Wakes {
    cache: Arc<ResourceCache>,
    changed: watch::Receiver<Revision>,
    /// If not everything does.
    topic: Option<Topic>,
}

impl Wakes {
    fn new(cache: &Arc<ResourceCache>, namespace: Option<&str>, selector: &Selector) -> Self {
        let resource = cache.resource;
        let topic = Topic::of(
            namespace,
            resource.namespaced,
            selector,
            resource.fields.len(),
        );
        let joined = topic.as_ref().and_then(|topic| cache.topics.join(topic));
        Self {
            cache: Arc::clone(cache),
            changed: joined.unwrap_or_else(|| cache.changed.subscribe()),
            topic,
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        if let Some(topic) = &self.topic {
            self.cache.topics.leave(topic);
        }
    }
}

/// An event as one watcher sees it through its selector.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What it means to this watcher: entering a selector is an addition,
    /// leaving it a deletion.
    pub kind: EventKind,
    /// What happened.
    pub event: Arc<Event>,
}

impl Delivery {
    /// The JSON line for the wire, newline included.
    pub fn frame(&self) -> Bytes {
        self.event.frame(self.kind)
    }

    /// The state to show: of a deletion, the last state the watcher could see.
    pub fn entry(&self) -> &Arc<Entry> {
        match (self.kind, self.event.kind, &self.event.previous) {
            (EventKind::Deleted, EventKind::Modified, Some(previous)) => previous,
            _ => &self.event.entry,
        }
    }
}

impl ResourceCache {
    /// Follows everything after `from` that `namespace` and `selector` admit.
    ///
    /// # Errors
    /// [`Expired`] if the ring does not reach back to `from`.
    pub fn watch(
        self: &Arc<Self>,
        from: Revision,
        namespace: Option<String>,
        selector: Selector,
    ) -> Result<Watcher, Expired> {
        let wakes = Wakes::new(self, namespace.as_deref(), &selector);
        drop(self.read().ring.after(from)?);
        Ok(Watcher {
            wakes,
            cache: Arc::clone(self),
            cursor: from,
            namespace,
            selector,
        })
    }

    /// The present state and a watcher that goes on from it.
    ///
    /// # Errors
    /// [`Expired`] never in practice: the ring cannot pass the newest revision.
    pub fn list_and_watch(
        self: &Arc<Self>,
        namespace: Option<String>,
        selector: Selector,
    ) -> Result<(super::Page, Watcher), Expired> {
        let query = Query {
            namespace: namespace.clone(),
            selector: selector.clone(),
            ..Query::default()
        };
        let page = self.list(&query)?;
        let watcher = self.watch(page.revision, namespace, selector)?;
        Ok((page, watcher))
    }
}

impl Watcher {
    /// Everything up to this revision has been handed out.
    pub fn revision(&self) -> Revision {
        self.cursor
    }

    /// Waits for the next events; at least one.
    ///
    /// Cancel-safe: an abandoned call loses nothing.
    ///
    /// # Errors
    /// [`Expired`] if this watcher was too slow; it must list again.
    pub async fn next(&mut self) -> Result<Vec<Delivery>, Expired> {
        loop {
            self.wakes.changed.borrow_and_update();
            let ready = self.ready()?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            // The sender is in self.cache and cannot be gone.
            drop(self.wakes.changed.changed().await);
        }
    }

    /// What has happened since the last call; may be empty. Afterwards
    /// [`Self::revision`] is fit for a bookmark.
    ///
    /// # Errors
    /// [`Expired`] as for [`Self::next`].
    pub fn ready(&mut self) -> Result<Vec<Delivery>, Expired> {
        loop {
            // Before the lock: every event up to here is in the ring.
            let published = *self.cache.published.borrow();
            let mut out = Vec::new();
            let mut cursor = self.cursor;
            let mut seen = 0;
            {
                let state = self.cache.read();
                for event in state.ring.after(self.cursor)? {
                    // A batch's changes share a revision: never stop between them.
                    if seen >= BATCH && event.revision() != cursor {
                        break;
                    }
                    // Not published yet: its own commit may not be complete in here.
                    if event.revision() > published {
                        break;
                    }
                    seen += 1;
                    cursor = event.revision();
                    if let Some(kind) = self.sees(event) {
                        out.push(Delivery {
                            kind,
                            event: Arc::clone(event),
                        });
                    }
                }
            }
            let more = seen >= BATCH;
            self.cursor = if more { cursor } else { cursor.max(published) };
            if !out.is_empty() || !more {
                return Ok(out);
            }
        }
    }

    fn sees(&self, event: &Event) -> Option<EventKind> {
        if let Some(namespace) = &self.namespace
            && event.entry.namespace() != namespace
        {
            return None;
        }
        let now = event.kind != EventKind::Deleted && self.selector.matches(&event.entry);
        let before = event
            .previous
            .as_ref()
            .is_some_and(|entry| self.selector.matches(entry));
        match (before, now) {
            (false, true) => Some(EventKind::Added),
            (true, true) => Some(EventKind::Modified),
            (true, false) => Some(EventKind::Deleted),
            (false, false) => None,
        }
    }
}
