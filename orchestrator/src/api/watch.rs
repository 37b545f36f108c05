//! Watches: between the ring and the client.
//!
//! A watch has no task of its own: its response body, when the connection asks
//! it for the next frame, drives what makes the frames.

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use hyper::{Response, StatusCode, body::Frame, http::request::Parts};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Interval, MissedTickBehavior},
};

use super::{
    Api,
    accept::{self, Shape},
    options,
    path::Place,
    respond,
    shape::{self, Include},
};
use crate::{
    cache::{Delivery, Entry, EventKind, Expired, Watcher},
    registry::Clock,
    resource::Resource,
    status::Status,
    store::Revision,
};

/// Bytes of events put into one frame at most, beyond the first.
const FRAME_BYTES: usize = 32 << 10;
/// Time between bookmarks.
const BOOKMARK: Duration = Duration::from_mins(1);
/// Shortest watch if the client does not say; the longest is twice this.
const LIFE: Duration = Duration::from_mins(30);

/// Longest watch that a client may ask for: a time that can be reckoned with.
const LIFE_MAX: Duration = Duration::from_hours(24 * 365);

/// How one client wants its events.
struct Style {
    resource: &'static Resource,
    shape: Shape,
    include: Include,
    clock: Clock,
    /// Tables say their columns once.
    columns_sent: bool,
}

impl Api {
    /// Starts a watch.
    pub(super) async fn watch(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        parts: &Parts,
    ) -> Result<Response<Body>, Status> {
        if !resource.verbs.contains(&"watch") {
            return Err(Status::method_not_allowed());
        }
        let shape = accept::shape(&parts.headers)?;
        let permit = Arc::clone(&self.watches)
            .try_acquire_owned()
            .map_err(|_full| {
                Status::too_many_requests("too many watches are open, please try again later", 5)
            })?;
        let mut selector = options::selector(place.query, resource)?;
        if !place.name.is_empty() {
            selector = selector.named(place.name);
        }
        let namespace = (!place.namespace.is_empty()).then(|| place.namespace.to_owned());
        let from = options::revision(place.query)?.unwrap_or_default();
        let initial = initial_events(place.query, from)?;
        if from > Revision(0) {
            self.wait_for(from).await?;
        }
        let cache = self.registry.cache().of(resource);
        let begun = if initial == Initial::None {
            cache
                .watch(from, namespace, selector)
                .map(|watcher| (Vec::new(), watcher))
        } else {
            cache
                .list_and_watch(namespace, selector)
                .map(|(page, watcher)| (page.entries, watcher))
        };
        let style = Style {
            resource,
            shape,
            include: Include::parse(place.query),
            clock: self.registry.clock(),
            columns_sent: false,
        };
        let bookmarks = options::flag(place.query, "allowWatchBookmarks");
        let life = life(place.query)?;
        let slot = Slot::default();
        let task = Task {
            frames: slot.clone(),
            sent: self.metrics.watch_events(resource),
            style,
            bookmarks,
            initial,
            _permit: permit,
        };
        let gauge = self.metrics.watching(resource);
        let run = Box::pin(async move {
            let _gauge = gauge;
            task.run(begun, life).await;
        });
        let mut response = respond::json(StatusCode::OK, Bytes::new());
        *response.body_mut() = Body::new(Frames {
            run: Some(run),
            ready: slot,
        });
        Ok(response)
    }
}

/// Whether the present state comes before the changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Initial {
    None,
    /// As additions.
    Events,
    /// As additions, with a bookmark behind them that says so.
    Marked,
}

fn initial_events(query: &str, from: Revision) -> Result<Initial, Status> {
    let asked = options::value(query, "sendInitialEvents").filter(|text| !text.is_empty());
    let rule = options::value(query, "resourceVersionMatch").unwrap_or_default();
    let refuse = |why: &str| {
        let cause = crate::status::Cause::forbidden("sendInitialEvents", why);
        Err(Status::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            vec![cause],
        ))
    };
    match asked.as_deref() {
        None if !rule.is_empty() => refuse(
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        None if from == Revision(0) => Ok(Initial::Events),
        None => Ok(Initial::None),
        Some(_) if rule != "NotOlderThan" => {
            refuse("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        }
        Some("false" | "0") => Ok(if from == Revision(0) {
            Initial::Events
        } else {
            Initial::None
        }),
        Some(_) => Ok(Initial::Marked),
    }
}

fn life(query: &str) -> Result<Duration, Status> {
    let seconds = options::number(query, "timeoutSeconds")?.unwrap_or(0);
    if let Ok(seconds @ 1..) = u64::try_from(seconds) {
        return Ok(Duration::from_secs(seconds).min(LIFE_MAX));
    }
    // Spread, so that a restart's watches do not all end together.
    let mut byte = [0];
    let spread = SystemRandom::new()
        .fill(&mut byte)
        .map_or(0, |()| u32::from(byte[0]));
    Ok(LIFE + LIFE / 256 * spread)
}

/// One frame on its way from a watch to its response. Both are polled by the
/// connection, one after the other, so nobody has to be woken.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Bytes>>>);

impl Slot {
    /// Puts a frame in as soon as the one before is out.
    async fn send(&self, frame: Bytes) {
        let mut frame = Some(frame);
        std::future::poll_fn(|_| {
            let mut slot = self.0.lock().expect("no holder panics");
            if slot.is_some() {
                return Poll::Pending;
            }
            *slot = frame.take();
            Poll::Ready(())
        })
        .await;
    }

    fn take(&self) -> Option<Bytes> {
        self.0.lock().expect("no holder panics").take()
    }
}

struct Task {
    frames: Slot,
    sent: Counter,
    style: Style,
    bookmarks: bool,
    initial: Initial,
    _permit: OwnedSemaphorePermit,
}

impl Task {
    async fn run(mut self, begun: Result<(Vec<Arc<Entry>>, Watcher), Expired>, life: Duration) {
        let end = Instant::now() + life;
        match begun {
            Ok((entries, watcher)) => self.follow(entries, watcher, end).await,
            Err(error) => self.refuse(error).await,
        }
    }

    async fn follow(&mut self, entries: Vec<Arc<Entry>>, mut watcher: Watcher, end: Instant) {
        let mut batch = BytesMut::new();
        for entry in entries {
            self.push(&mut batch, EventKind::Added, &entry, None).await;
        }
        self.flush(&mut batch).await;
        if self.initial == Initial::Marked {
            self.bookmark(watcher.revision(), true).await;
        }
        let mut ticks = ticks();
        let mut end = pin!(tokio::time::sleep_until(end));
        loop {
            tokio::select! {
                events = watcher.next() => match events {
                    Ok(events) => self.deliver(&events).await,
                    Err(error) => return self.refuse(error).await,
                },
                _ = ticks.tick(), if self.bookmarks => self.catch_up(&mut watcher).await,
                () = &mut end => {
                    if self.bookmarks {
                        self.catch_up(&mut watcher).await;
                    }
                    return;
                }
            }
        }
    }

    async fn deliver(&mut self, events: &[Delivery]) {
        self.sent.inc_by(events.len() as u64);
        // One plain event goes out as the bytes that everyone shares.
        if let ([one], true) = (events, self.style.is_shared()) {
            return self.frames.send(one.frame()).await;
        }
        let mut batch = BytesMut::new();
        for event in events {
            self.push(&mut batch, event.kind, event.entry(), Some(event))
                .await;
        }
        self.flush(&mut batch).await;
    }

    async fn push(
        &mut self,
        batch: &mut BytesMut,
        kind: EventKind,
        entry: &Entry,
        delivery: Option<&Delivery>,
    ) {
        match (self.style.is_shared(), delivery) {
            (true, Some(delivery)) => batch.extend_from_slice(&delivery.frame()),
            (true, None) => line(batch, label(kind), &entry.bytes),
            _ => {
                let object = self.style.show(entry, delivery);
                line(batch, label(kind), &object);
            }
        }
        if batch.len() >= FRAME_BYTES {
            self.flush(batch).await;
        }
    }

    async fn flush(&mut self, batch: &mut BytesMut) {
        if !batch.is_empty() {
            self.frames.send(batch.split().freeze()).await;
        }
    }

    /// What is still to come, and a bookmark behind it.
    async fn catch_up(&mut self, watcher: &mut Watcher) {
        match watcher.ready() {
            Ok(events) => {
                self.deliver(&events).await;
                self.bookmark(watcher.revision(), false).await;
            }
            Err(error) => self.refuse(error).await,
        }
    }

    async fn bookmark(&mut self, revision: Revision, initial: bool) {
        let resource = self.style.resource;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.style.shape {
            Shape::Plain => json!({
                "kind": resource.kind,
                "apiVersion": resource.api_version(),
                "metadata": metadata,
            }),
            Shape::Metadata => shape::partial(&metadata),
            Shape::Table => {
                let mut table = shape::table(
                    resource,
                    &[],
                    self.style.include,
                    !self.style.columns_sent,
                    self.style.now(),
                    &json!({}),
                );
                table["rows"] = json!([{"cells": [], "object": shape::partial(&metadata)}]);
                table
            }
        };
        self.send("BOOKMARK", &object).await;
    }

    /// Cuts the watcher off: it has to list again.
    async fn refuse(&mut self, error: Expired) {
        let status = Status::expired(error.to_string());
        self.send("ERROR", &status.to_value()).await;
    }

    async fn send(&mut self, label: &str, object: &Value) {
        let mut bytes = BytesMut::new();
        line(&mut bytes, label, &shape::bytes_of(object));
        self.frames.send(bytes.freeze()).await;
    }
}

impl Style {
    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Whether this client takes the bytes that everyone shares.
    fn is_shared(&self) -> bool {
        self.shape == Shape::Plain && self.resource.view.is_none()
    }

    /// An object in the client's shape.
    fn show(&mut self, entry: &Entry, delivery: Option<&Delivery>) -> Bytes {
        // A deletion shows an older state at the event's own revision.
        let revision = delivery.map_or(entry.revision, |d| d.event.revision());
        match self.shape {
            Shape::Plain => {
                let mut object = entry.value();
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                self.resource.show(&mut object);
                shape::bytes_of(&object)
            }
            Shape::Metadata => {
                let mut metadata = entry.value()["metadata"].take();
                metadata["resourceVersion"] = revision.to_string().into();
                shape::bytes_of(&shape::partial(&metadata))
            }
            Shape::Table => {
                let metadata = json!({"resourceVersion": revision.to_string()});
                let first = !std::mem::replace(&mut self.columns_sent, true);
                let now = self.now();
                let table =
                    shape::table(self.resource, &[entry], self.include, first, now, &metadata);
                shape::bytes_of(&table)
            }
        }
    }
}

fn ticks() -> Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + BOOKMARK, BOOKMARK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn label(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Added => "ADDED",
        EventKind::Modified => "MODIFIED",
        EventKind::Deleted => "DELETED",
    }
}

fn line(batch: &mut BytesMut, label: &str, object: &[u8]) {
    batch.extend_from_slice(br#"{"type":""#);
    batch.extend_from_slice(label.as_bytes());
    batch.extend_from_slice(br#"","object":"#);
    batch.extend_from_slice(object);
    batch.extend_from_slice(b"}\n");
}

/// A watch's response body. Dropping it ends the watch.
struct Frames {
    /// What makes the frames; `None` when it is done.
    run: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ready: Slot,
}

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // What is ready goes first: only an empty slot lets the future go on.
        let mut next = self.ready.take();
        if next.is_none() {
            if let Some(run) = &mut self.run
                && run.as_mut().poll(context).is_ready()
            {
                self.run = None;
            }
            next = self.ready.take();
        }
        match (next, &self.run) {
            (Some(bytes), _) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            (None, Some(_)) => Poll::Pending,
            (None, None) => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_longest_watch_can_be_reckoned() {
        for (query, least, most) in [
            ("timeoutSeconds=7", 7, 7),
            ("timeoutSeconds=9223372036854775807", 86400, u64::MAX),
            ("timeoutSeconds=-1", 1800, 3600),
            ("timeoutSeconds=0", 1800, 3600),
            ("", 1800, 3600),
        ] {
            let life = life(query).unwrap();
            assert!(
                (least..=most).contains(&life.as_secs()),
                "{query}: {life:?}"
            );
            assert!(Instant::now().checked_add(life).is_some(), "{query}");
        }
    }
}
