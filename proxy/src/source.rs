//! Where cluster state comes from. Every source gives the same stream: changes,
//! and once, when it has told all it knew at the start, `Synced`.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use crate::model::Change;

pub mod api;
pub mod directory;
pub mod document;
pub mod merge;

/// Which source speaks: its place in the daemon's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub usize);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Changes(Vec<Change>),
    /// All that the source knew at its start has been given.
    Synced,
    /// What the source cannot read at present, in place of what it said before.
    Faults(Vec<Fault>),
    /// Kinds that the daemon has no use for: `apiVersion/kind` -> count, in place
    /// of what it said before.
    Unsupported(BTreeMap<String, usize>),
}

/// Something that is not an object: a file, a document, a connection.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// E.g. `policies.yaml, document 3`.
    pub origin: String,
    pub reason: String,
    pub hint: String,
}

/// The sending end of the daemon's source queue. Bounded: a source waits while
/// the daemon is behind.
#[derive(Clone, Debug)]
pub struct Sender {
    id: SourceId,
    queue: mpsc::Sender<(SourceId, Event)>,
}

/// Events that wait for the daemon, over all sources.
pub const QUEUE_EVENTS: usize = 256;

impl Sender {
    pub fn new(id: SourceId, queue: mpsc::Sender<(SourceId, Event)>) -> Self {
        Self { id, queue }
    }

    /// `false` once the daemon has gone: the source ends.
    pub async fn send(&self, event: Event) -> bool {
        self.queue.send((self.id, event)).await.is_ok()
    }
}
