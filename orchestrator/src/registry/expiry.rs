//! Events end by themselves, a while after they were last written.
//!
//! Since all live equally long, the order of writes is the order of ends: a
//! line, not a heap. An object that is written again stands in the line again,
//! and its earlier places are passed over. Bound: places that are passed over
//! never outnumber twice the objects. An end is an ordinary deletion, so watchers see it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use tokio::task::JoinSet;

use super::{DeleteOptions, client::Client};
use crate::{
    cache::{Entry, EventKind, Selector},
    controller::runtime::{Clock, later},
    resource::event::EVENT,
    store::Revision,
};

/// Deletions at a time: they share the disk's flush.
const BATCH: usize = 64;
/// Length from which the line is looked through for places to pass over.
const LOOK: usize = 1024;

/// One write and when it counts no more.
#[derive(Debug)]
struct Place {
    end: Timestamp,
    key: Arc<str>,
    revision: Revision,
}

/// When an event was last told, which is its age after a restart.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    metadata: Metadata,
    event_time: Option<Timestamp>,
    last_timestamp: Option<Timestamp>,
    series: Option<Series>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    creation_timestamp: Option<Timestamp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Series {
    last_observed_time: Option<Timestamp>,
}

impl Told {
    fn last(&self) -> Timestamp {
        let times = [
            self.metadata.creation_timestamp,
            self.event_time,
            self.last_timestamp,
            self.series.as_ref().and_then(|s| s.last_observed_time),
        ];
        times.into_iter().flatten().max().unwrap_or_default()
    }
}

/// Deletes Events `life` after their last write, for ever; run it as a task.
pub async fn run(client: Client, clock: Clock, life: Duration) {
    loop {
        let Ok((entries, mut watcher)) = client.informer_of(&EVENT, Selector::default()) else {
            continue;
        };
        let mut line = first_line(&entries, clock.now(), life);
        drop(entries);
        loop {
            let end = line.front().map_or(Timestamp::MAX, |place| place.end);
            tokio::select! {
                () = clock.sleep_until(end) => expire(&client, &clock, &mut line).await,
                events = watcher.next() => match events {
                    Ok(events) => {
                        let end = later(clock.now(), life);
                        let written = events.iter().filter(|e| e.kind != EventKind::Deleted);
                        line.extend(written.map(|e| place(e.entry(), end)));
                    }
                    // Fell behind: begin again with what is there.
                    Err(_expired) => break,
                },
            }
            tidy(&client, &mut line);
        }
    }
}

fn place(entry: &Entry, end: Timestamp) -> Place {
    Place {
        end,
        key: Arc::clone(&entry.key),
        revision: entry.revision,
    }
}

fn first_line(entries: &[Arc<Entry>], now: Timestamp, life: Duration) -> VecDeque<Place> {
    let places = entries.iter().map(|entry| {
        // What cannot be read is as young as can be.
        let told = entry.decode::<Told>().map_or(now, |told| told.last());
        place(entry, later(told.min(now), life))
    });
    let mut places: Vec<Place> = places.collect();
    places.sort_by_key(|place| place.end);
    places.into()
}

/// Deletes what has come to its end, a batch at most.
async fn expire(client: &Client, clock: &Clock, line: &mut VecDeque<Place>) {
    let now = clock.now();
    let mut deletions = JoinSet::new();
    while deletions.len() < BATCH
        && let Some(place) = line.pop_front_if(|place| place.end <= now)
    {
        if is_current(client, &place) {
            let client = client.clone();
            deletions.spawn(async move { delete(&client, &place).await });
        }
    }
    while deletions.join_next().await.is_some() {}
}

async fn delete(client: &Client, place: &Place) {
    let (namespace, name) = place.key.split_once('/').unwrap_or(("", &place.key));
    let options = DeleteOptions {
        resource_version: Some(place.revision.to_string()),
        ..DeleteOptions::default()
    };
    match client.delete_of(&EVENT, namespace, name, &options).await {
        Ok(_) => {}
        // Gone already, or written again, and so further back in the line.
        Err(status) if status.is("NotFound") || status.is("Conflict") => {}
        Err(status) => tracing::warn!(key = %place.key, %status, "an event did not expire"),
    }
}

fn is_current(client: &Client, place: &Place) -> bool {
    let entry = client.cache_of(&EVENT).get(&place.key);
    entry.is_some_and(|entry| entry.revision == place.revision)
}

/// Throws out the places to be passed over when they may be most of the line.
fn tidy(client: &Client, line: &mut VecDeque<Place>) {
    if line.len() >= LOOK && line.len() > 3 * client.cache_of(&EVENT).len() {
        line.retain(|place| is_current(client, place));
    }
}
