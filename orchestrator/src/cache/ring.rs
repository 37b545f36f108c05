//! The last events of one resource, bounded by bytes.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{Entry, Expired, Revision, entry::relabel};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It exists now.
    Added,
    /// It has changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The new state; of a deletion the last state, at the deletion's revision.
    pub entry: Arc<Entry>,
    /// The state before, `None` for an addition.
    pub previous: Option<Arc<Entry>>,
    frame: Bytes,
}

impl Event {
    pub(super) fn written(entry: Arc<Entry>, previous: Option<Arc<Entry>>, frame: Bytes) -> Self {
        let kind = if previous.is_some() {
            EventKind::Modified
        } else {
            EventKind::Added
        };
        Self {
            kind,
            entry,
            previous,
            frame,
        }
    }

    pub(super) fn deleted(previous: Arc<Entry>, revision: Revision) -> Self {
        let (entry, frame) = previous.deleted_at(revision);
        Self {
            kind: EventKind::Deleted,
            entry: Arc::new(entry),
            previous: Some(previous),
            frame,
        }
    }

    /// The event's revision.
    pub fn revision(&self) -> Revision {
        self.entry.revision
    }

    /// The line that says `kind` about this event's object.
    pub(super) fn frame(&self, kind: EventKind) -> Bytes {
        if kind == self.kind {
            return self.frame.clone();
        }
        match (kind, &self.previous) {
            (EventKind::Added, _) => relabel(&self.entry.bytes, "ADDED"),
            (EventKind::Modified, _) => relabel(&self.entry.bytes, "MODIFIED"),
            // Left the selector: upstream shows the last matching state at the new revision.
            (EventKind::Deleted, Some(previous)) => previous.deleted_at(self.revision()).1,
            (EventKind::Deleted, None) => relabel(&self.entry.bytes, "DELETED"),
        }
    }

    /// Bytes that it takes in a ring.
    pub(super) fn cost(&self) -> usize {
        self.frame.len() + 128
    }
}

#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    bytes_max: usize,
    /// Every event after this revision is in the ring.
    floor: Revision,
}

impl Ring {
    pub(super) fn new(floor: Revision, bytes_max: usize) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            bytes_max,
            floor,
        }
    }

    /// Appends; forgets the oldest events while the ring is over its bound.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.cost();
        self.events.push_back(event);
        while self.bytes > self.bytes_max && self.events.len() > 1 {
            let Some(oldest) = self.events.pop_front() else {
                break;
            };
            self.bytes -= oldest.cost();
            self.floor = oldest.revision();
        }
    }

    /// Events after `from`, oldest first.
    ///
    /// # Errors
    /// [`Expired`] if some of them are forgotten.
    pub(super) fn after(
        &self,
        from: Revision,
    ) -> Result<impl DoubleEndedIterator<Item = &Arc<Event>>, Expired> {
        if from < self.floor {
            return Err(Expired {
                wanted: from,
                oldest: self.floor,
            });
        }
        let start = self
            .events
            .partition_point(|event| event.revision() <= from);
        Ok(self.events.range(start..))
    }

    /// Revision of the newest event, or the floor.
    pub(super) fn newest(&self) -> Revision {
        self.events
            .back()
            .map_or(self.floor, |event| event.revision())
    }

    /// Bytes that it holds at most.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
