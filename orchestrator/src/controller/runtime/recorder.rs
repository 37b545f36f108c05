//! Event objects: what `kubectl describe` shows under an object.
//!
//! Events are news, not state: the line in front of the writer holds
//! [`WAITING`] of them, and when it is full new ones are dropped and counted.
//! The same news about the same object within ten minutes counts up instead
//! of being told again.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Clock, later, object::Meta, object::served, stamp};
use crate::{registry::Target, registry::client::Client, resource::Resource};

/// Events that wait to be written.
const WAITING: usize = 1024;
/// News remembered for counting; all are forgotten when there are more.
const REMEMBERED: usize = 1024;
/// Longest name of an object.
const NAME_MAX: usize = 253;
/// How long the same news count up.
const SPAN: Duration = Duration::from_mins(10);

/// Takes news; cheap to clone, never waits.
#[derive(Clone, Debug)]
pub struct Recorder {
    news: mpsc::Sender<News>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct News {
    component: &'static str,
    about: Value,
    kind: &'static str,
    reason: &'static str,
    message: String,
}

impl Recorder {
    /// A recorder and the task that writes what it takes.
    pub fn start(client: Client, clock: Clock) -> (Self, impl Future<Output = ()> + Send) {
        let (news, incoming) = mpsc::channel(WAITING);
        let dropped = Arc::default();
        let writer = Writer {
            client,
            clock,
            told: HashMap::new(),
            count: 0,
        };
        (Self { news, dropped }, writer.run(incoming))
    }

    /// Something went as it should.
    pub fn normal(
        &self,
        component: &'static str,
        resource: &Resource,
        about: &Meta,
        reason: &'static str,
        message: String,
    ) {
        self.tell(component, resource, about, ("Normal", reason), message);
    }

    /// Something did not.
    pub fn warning(
        &self,
        component: &'static str,
        resource: &Resource,
        about: &Meta,
        reason: &'static str,
        message: String,
    ) {
        self.tell(component, resource, about, ("Warning", reason), message);
    }

    fn tell(
        &self,
        component: &'static str,
        resource: &Resource,
        about: &Meta,
        (kind, reason): (&'static str, &'static str),
        message: String,
    ) {
        let about = json!({
            "apiVersion": resource.api_version(),
            "kind": resource.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        });
        let news = News {
            component,
            about,
            kind,
            reason,
            message,
        };
        if self.news.try_send(news).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// News that found the line full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Writer {
    client: Client,
    clock: Clock,
    told: HashMap<(String, &'static str, String), Told>,
    count: u64,
}

struct Told {
    namespace: String,
    name: String,
    count: u64,
    last: Timestamp,
}

impl Writer {
    async fn run(mut self, mut incoming: mpsc::Receiver<News>) {
        while let Some(news) = incoming.recv().await {
            self.write(news).await;
        }
    }

    async fn write(&mut self, news: News) {
        let now = self.clock.now();
        let uid = news.about["uid"].as_str().unwrap_or_default().to_owned();
        let identity = (uid, news.reason, news.message.clone());
        if let Some(told) = self.told.get_mut(&identity)
            && later(told.last, SPAN) > now
        {
            told.count += 1;
            told.last = now;
            let (count, time) = (told.count, stamp(now));
            let target = Target::object(served("", "events"), &told.namespace, &told.name);
            let change = |current: &Value| {
                let mut new = current.clone();
                new["count"] = count.into();
                new["lastTimestamp"] = time.clone().into();
                Ok(new)
            };
            if self.client.change(target, &change).await.is_ok() {
                return;
            }
        }
        self.create(news, identity, now).await;
    }

    async fn create(
        &mut self,
        news: News,
        identity: (String, &'static str, String),
        now: Timestamp,
    ) {
        self.count += 1;
        let namespace = match news.about["namespace"].as_str() {
            Some("") | None => "default".to_owned(),
            Some(namespace) => namespace.to_owned(),
        };
        let about = news.about["name"].as_str().unwrap_or_default();
        let unique = now.as_microsecond().unsigned_abs() << 8 | self.count & 0xff;
        let room = NAME_MAX - 17;
        let about = about.get(..room).unwrap_or(about);
        let name = format!("{}.{unique:x}", about.trim_end_matches(['-', '.']));
        let time = stamp(now);
        let event = json!({
            "metadata": {"name": name},
            "involvedObject": news.about,
            "reason": news.reason,
            "message": news.message,
            "source": {"component": news.component},
            "reportingComponent": news.component,
            "type": news.kind,
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
        });
        let events = served("", "events");
        match self.client.create_value(events, &namespace, event).await {
            Ok(_) => {
                if self.told.len() >= REMEMBERED {
                    self.told.clear();
                }
                let told = Told {
                    namespace,
                    name,
                    count: 1,
                    last: now,
                };
                self.told.insert(identity, told);
            }
            // A namespace that is going takes no news.
            Err(status) => tracing::debug!(%status, "an event was not written"),
        }
    }
}
