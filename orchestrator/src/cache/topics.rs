//! Who is woken by an event: watchers of one object, or of one value of an
//! indexed field, sleep through all others'.
//!
//! A thousand kubelets watch the pods of their own node; without this, each pod
//! would wake a thousand. A watcher that sleeps does not move on, so all are
//! woken after each quarter of a ring: none falls out of it asleep.
//!
//! Bound: one topic per watcher at most; the last watcher takes it along.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;

use super::{Entry, Event, Revision, Selector};

/// What all objects that a watcher can see have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    /// They are this object: its key.
    Object(Box<str>),
    /// An indexed field has this value.
    Field(usize, Box<str>),
}

impl Topic {
    /// Of a watcher; `None` if it has to see everything. `fields` are those
    /// that the resource indexes.
    pub(super) fn of(
        namespace: Option<&str>,
        namespaced: bool,
        selector: &Selector,
        fields: usize,
    ) -> Option<Self> {
        match (selector.wanted_name(), namespace) {
            (Some(name), Some(namespace)) if namespaced => {
                return Some(Self::Object(format!("{namespace}/{name}").into()));
            }
            (Some(name), _) if !namespaced => return Some(Self::Object(name.into())),
            _ => {}
        }
        (0..fields).find_map(|field| {
            let value = selector.wanted_field(field)?;
            Some(Self::Field(field, value.into()))
        })
    }
}

/// The topics of one resource that somebody watches.
#[derive(Debug)]
pub(super) struct Topics {
    state: Mutex<State>,
}

type Senders = HashMap<Box<str>, watch::Sender<Revision>>;

#[derive(Debug)]
struct State {
    objects: Senders,
    /// By field, then by value.
    fields: Vec<Senders>,
    /// Bytes of events since all were woken.
    bytes: usize,
}

impl State {
    /// Where a topic is, and its name there.
    fn of<'t>(&mut self, topic: &'t Topic) -> Option<(&mut Senders, &'t str)> {
        match topic {
            Topic::Object(key) => Some((&mut self.objects, key)),
            Topic::Field(field, value) => Some((self.fields.get_mut(*field)?, value)),
        }
    }

    fn all(&self) -> impl Iterator<Item = &watch::Sender<Revision>> {
        let fields = self.fields.iter().flat_map(HashMap::values);
        self.objects.values().chain(fields)
    }

    fn wake_those_of(&self, entry: &Entry, revision: Revision) {
        let fields = self.fields.iter().zip(&entry.fields);
        let of_fields = fields.filter_map(|(topics, value)| topics.get(value));
        for topic in self.objects.get(&*entry.key).into_iter().chain(of_fields) {
            topic.send_replace(revision);
        }
    }
}

impl Topics {
    pub(super) fn new(fields: usize) -> Self {
        let state = State {
            objects: HashMap::new(),
            fields: (0..fields).map(|_| HashMap::new()).collect(),
            bytes: 0,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Wakes from now on when something happens under the topic.
    pub(super) fn join(&self, topic: &Topic) -> Option<watch::Receiver<Revision>> {
        let mut state = self.lock();
        let (topics, value) = state.of(topic)?;
        let sender = topics
            .entry(value.into())
            .or_insert_with(|| watch::channel(Revision(0)).0);
        Some(sender.subscribe())
    }

    /// A watcher, whose receiver still counts, is about to go.
    pub(super) fn leave(&self, topic: &Topic) {
        let mut state = self.lock();
        if let Some((topics, value)) = state.of(topic)
            && topics
                .get(value)
                .is_some_and(|topic| topic.receiver_count() <= 1)
        {
            topics.remove(value);
        }
    }

    /// Wakes those whom the events concern; all after `often` bytes of events.
    pub(super) fn tell(&self, events: &[Arc<Event>], revision: Revision, often: usize) {
        let mut state = self.lock();
        state.bytes += events.iter().map(|event| event.cost()).sum::<usize>();
        if state.bytes >= often {
            state.bytes = 0;
            for topic in state.all() {
                topic.send_replace(revision);
            }
            return;
        }
        for event in events {
            state.wake_those_of(&event.entry, revision);
            if let Some(previous) = &event.previous {
                state.wake_those_of(previous, revision);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().all().count()
    }
}
