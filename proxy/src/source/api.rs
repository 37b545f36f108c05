//! A Kubernetes API server, watched.
//!
//! Objects come untyped and go through the same reader as manifests, so that
//! one bad object is rejected by name and does not stop the stream. Fields that
//! this build does not know are ignored: the server may be newer.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::client::ClientBuilder;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, ResourceExt};
use serde_json::Value;
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{Event, Fault, Sender};
use crate::model::manifest::{Document, Parsed, Unknown, parse};
use crate::model::{Change, Key, Kind, ObjectName};

mod accepted;

use accepted::Accepted;

/// Changes that are gathered into one message while a list is read.
const CHUNK: usize = 512;

/// How to reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Kubeconfig(PathBuf),
    InCluster,
}

#[derive(Debug, Error)]
pub enum AccessError {
    #[error("cannot use kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        path: PathBuf,
        source: kube::config::KubeconfigError,
    },
    #[error(
        "not in a pod with a service account: {source}\n\
         hint: outside the cluster use --kubeconfig FILE"
    )]
    InCluster {
        source: kube::config::InClusterError,
    },
    #[error("cannot make an API client: {source}")]
    Client { source: kube::Error },
}

/// A client, and word of the watches that the server accepts.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    accepted: Accepted,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// Makes a client; does not connect yet.
pub async fn connect(access: &Access) -> Result<Connection, AccessError> {
    let config = match access {
        Access::InCluster => {
            Config::incluster().map_err(|source| AccessError::InCluster { source })?
        }
        Access::Kubeconfig(path) => {
            let wrong = |source| AccessError::Kubeconfig {
                path: path.clone(),
                source,
            };
            let file = kube::config::Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                .await
                .map_err(wrong)?
        }
    };
    Connection::new(config).map_err(|source| AccessError::Client { source })
}

impl Connection {
    fn new(config: Config) -> Result<Self, kube::Error> {
        let accepted = Accepted::default();
        let client = ClientBuilder::try_from(config)?.with_layer(&accepted);
        Ok(Self {
            client: client.build(),
            accepted,
        })
    }
}

/// What the watches of all kinds share.
struct Shared {
    sender: Sender,
    unsynced: AtomicUsize,
    /// By kind: why its watch does not work at present.
    faults: Mutex<Vec<(Kind, Fault)>>,
}

/// Runs until the daemon goes.
pub async fn run(connection: Connection, sender: Sender) {
    let shared = Arc::new(Shared {
        sender,
        unsynced: AtomicUsize::new(Kind::ALL.len()),
        faults: Mutex::new(Vec::new()),
    });
    let mut watches = tokio::task::JoinSet::new();
    for kind in Kind::ALL {
        watches.spawn(watch(connection.clone(), kind, Arc::clone(&shared)));
    }
    while watches.join_next().await.is_some() {}
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = kind
        .api_version()
        .split_once('/')
        .unwrap_or(("", kind.api_version()));
    let plural = match kind {
        Kind::NetworkPolicy => "networkpolicies".to_owned(),
        kind => format!("{}s", kind.name().to_lowercase()),
    };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: kind.api_version().to_owned(),
        kind: kind.name().to_owned(),
        plural,
    }
}

async fn watch(connection: Connection, kind: Kind, shared: Arc<Shared>) {
    let Connection { client, accepted } = connection;
    let api = Api::<DynamicObject>::all_with(client, &resource(kind));
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = pin!(events);
    let mut follower = Follower::new(kind);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = accepted.next(kind) => {
                shared.came_right(kind).await;
                continue;
            }
        };
        let Some(event) = event else { return };
        let outcome = match event {
            Ok(event) => {
                shared.came_right(kind).await;
                follower.follow(event)
            }
            Err(error) => {
                warn!(%kind, error = chain(&error), "watching failed; trying again");
                shared.set_fault(kind, Some(chain(&error))).await;
                continue;
            }
        };
        if !outcome.changes.is_empty() && !shared.sender.send(Event::Changes(outcome.changes)).await
        {
            return;
        }
        if outcome.is_first_list_done
            && shared.unsynced.fetch_sub(1, Ordering::AcqRel) == 1
            && !shared.sender.send(Event::Synced).await
        {
            return;
        }
    }
}

/// An error with those of its causes that it does not tell itself.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl Shared {
    /// The watch of a kind works.
    async fn came_right(&self, kind: Kind) {
        if self.set_fault(kind, None).await {
            info!(%kind, "watching again");
        }
    }

    /// Whether a fault was taken away.
    async fn set_fault(&self, kind: Kind, reason: Option<String>) -> bool {
        let mut faults = self.faults.lock().await;
        let before = faults.len();
        faults.retain(|(of, _)| *of != kind);
        let removed = faults.len() < before;
        let added = reason.map(|reason| Fault {
            origin: format!("watch of {}", resource(kind).plural),
            reason,
            hint: "check the server's address and the daemon's rights; it is tried again"
                .to_owned(),
        });
        let is_added = added.is_some();
        faults.extend(added.map(|fault| (kind, fault)));
        if removed || is_added {
            let list = faults.iter().map(|(_, fault)| fault.clone()).collect();
            self.sender.send(Event::Faults(list)).await;
        }
        removed && !is_added
    }
}

/// Turns the events of one kind's watch into changes. Pure.
#[derive(Debug)]
struct Follower {
    kind: Kind,
    known: BTreeSet<ObjectName>,
    /// While a list runs: what it has given so far.
    listed: Option<BTreeSet<ObjectName>>,
    pending: Vec<Change>,
    is_synced: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    changes: Vec<Change>,
    is_first_list_done: bool,
}

impl Follower {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            known: BTreeSet::new(),
            listed: None,
            pending: Vec::new(),
            is_synced: false,
        }
    }

    fn follow(&mut self, event: watcher::Event<DynamicObject>) -> Outcome {
        let mut outcome = Outcome::default();
        match event {
            watcher::Event::Init => self.listed = Some(BTreeSet::new()),
            watcher::Event::InitApply(object) => {
                let change = self.upsert(object);
                self.pending.push(change);
                if self.pending.len() >= CHUNK {
                    outcome.changes = std::mem::take(&mut self.pending);
                }
            }
            watcher::Event::InitDone => {
                outcome.changes = std::mem::take(&mut self.pending);
                // What was there before the list and is not in it has gone meanwhile.
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> = self.known.difference(&listed).cloned().collect();
                self.known = listed;
                outcome
                    .changes
                    .extend(gone.into_iter().map(|name| Change::Remove(self.key(name))));
                outcome.is_first_list_done = !std::mem::replace(&mut self.is_synced, true);
            }
            watcher::Event::Apply(object) => outcome.changes.push(self.upsert(object)),
            watcher::Event::Delete(object) => {
                let name = name_of(&object);
                self.known.remove(&name);
                outcome.changes.push(Change::Remove(self.key(name)));
            }
        }
        outcome
    }

    fn key(&self, name: ObjectName) -> Key {
        Key {
            kind: self.kind,
            name,
        }
    }

    fn upsert(&mut self, object: DynamicObject) -> Change {
        let name = name_of(&object);
        self.known.insert(name.clone());
        if let Some(listed) = &mut self.listed {
            listed.insert(name.clone());
        }
        let origin = format!("API server, {} {name}", self.kind);
        match parse(&document(self.kind, origin, object), Unknown::Ignore) {
            Parsed::Object(object) => Change::Upsert(object),
            Parsed::Rejected(rejected) => Change::Reject(rejected),
            // The server gave another kind than asked for.
            Parsed::Unsupported(_) => Change::Remove(self.key(name)),
        }
    }
}

fn name_of(object: &DynamicObject) -> ObjectName {
    ObjectName::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

/// Items of a list come without apiVersion and kind.
fn document(kind: Kind, origin: String, object: DynamicObject) -> Document {
    let DynamicObject { metadata, data, .. } = object;
    let mut value = match data {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    value.insert("apiVersion".to_owned(), kind.api_version().into());
    value.insert("kind".to_owned(), kind.name().into());
    if let Ok(metadata) = serde_json::to_value(&metadata) {
        value.insert("metadata".to_owned(), metadata);
    }
    Document {
        origin: origin.into(),
        value: Value::Object(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::State;

    fn object(text: &str) -> DynamicObject {
        serde_json::from_str(text).unwrap()
    }

    fn policy(name: &str, spec: &str) -> DynamicObject {
        object(&format!(
            r#"{{"metadata": {{"name": "{name}", "namespace": "a"}}, "spec": {spec}}}"#
        ))
    }

    fn run(
        follower: &mut Follower,
        state: &mut State,
        events: Vec<watcher::Event<DynamicObject>>,
    ) -> usize {
        let mut synced = 0;
        for event in events {
            let outcome = follower.follow(event);
            outcome
                .changes
                .into_iter()
                .for_each(|change| state.apply(change));
            synced += usize::from(outcome.is_first_list_done);
        }
        synced
    }

    #[test]
    fn a_bad_object_closes_and_the_stream_goes_on() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let (mut follower, mut state) = (Follower::new(Kind::NetworkPolicy), State::default());
        let events = vec![
            Init,
            InitApply(policy("good", r#"{"podSelector": {}}"#)),
            InitApply(policy(
                "bad",
                r#"{"podSelector": {}, "ingress": [{"ports": [{"port": 0}]}]}"#,
            )),
            InitDone,
            Apply(policy("late", r#"{"podSelector": {}, "aNewField": 1}"#)),
            Delete(policy("good", "{}")),
        ];
        assert_eq!(run(&mut follower, &mut state, events), 1);
        let names: Vec<_> = state.policies.keys().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["bad", "late"]);
        assert_eq!(state.rejected.len(), 1);
    }

    #[test]
    fn what_a_second_list_lacks_is_removed() {
        use watcher::Event::{Init, InitApply, InitDone};
        let (mut follower, mut state) = (Follower::new(Kind::Namespace), State::default());
        let namespace = |name: &str| object(&format!(r#"{{"metadata": {{"name": "{name}"}}}}"#));
        let first = vec![
            Init,
            InitApply(namespace("a")),
            InitApply(namespace("b")),
            InitDone,
        ];
        assert_eq!(run(&mut follower, &mut state, first), 1);
        let second = vec![Init, InitApply(namespace("b")), InitDone];
        assert_eq!(run(&mut follower, &mut state, second), 0);
        assert_eq!(state.namespaces.keys().collect::<Vec<_>>(), ["b"]);
    }

    /// A server without objects, for as long as it is kept.
    struct Empty(Option<tokio::runtime::Runtime>);

    impl Empty {
        fn start(address: std::net::SocketAddr) -> (Self, std::net::SocketAddr) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let listener = runtime.block_on(tokio::net::TcpListener::bind(address));
            let listener = listener.unwrap();
            let address = listener.local_addr().unwrap();
            let answer = |uri: axum::http::Uri| async move {
                use axum::body::Body;
                if uri.query().unwrap_or_default().contains("watch=true") {
                    let silence = futures_util::stream::pending::<Result<String, std::io::Error>>();
                    return Body::from_stream(silence);
                }
                Body::from(
                    r#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#,
                )
            };
            let router = axum::Router::new().fallback(answer);
            runtime.spawn(async move { axum::serve(listener, router).await });
            (Self(Some(runtime)), address)
        }
    }

    impl Drop for Empty {
        fn drop(&mut self) {
            if let Some(runtime) = self.0.take() {
                runtime.shutdown_background();
            }
        }
    }

    #[test]
    fn the_fault_of_an_outage_goes_with_it_though_nothing_changed() {
        let (server, address) = Empty::start(([127, 0, 0, 1], 0).into());
        let (sender, mut events) = tokio::sync::mpsc::channel(64);
        let own = tokio::runtime::Runtime::new().unwrap();
        let config = Config::new(format!("http://{address}").parse().unwrap());
        own.spawn(async move {
            let connection = Connection::new(config).unwrap();
            super::run(connection, Sender::new(super::super::SourceId(0), sender)).await;
        });
        let mut until = |met: fn(&Event) -> bool| {
            let wait = std::time::Duration::from_mins(1);
            own.block_on(async {
                let found = async { while !met(&events.recv().await.unwrap().1) {} };
                tokio::time::timeout(wait, found)
                    .await
                    .expect("an event in time");
            });
        };
        until(|event| *event == Event::Synced);
        drop(server);
        until(|event| {
            matches!(event, Event::Faults(faults)
            if faults.len() == Kind::ALL.len() && faults.iter().all(|f| f.reason.contains("refused")))
        });
        let (server, _) = Empty::start(address);
        until(|event| matches!(event, Event::Faults(faults) if faults.is_empty()));
        drop(server);
    }

    #[test]
    fn resources_have_the_servers_plural_names() {
        let plurals: Vec<_> = Kind::ALL.into_iter().map(|k| resource(k).plural).collect();
        assert_eq!(
            plurals,
            [
                "nodes",
                "namespaces",
                "pods",
                "services",
                "endpointslices",
                "networkpolicies"
            ]
        );
        assert_eq!(resource(Kind::NetworkPolicy).group, "networking.k8s.io");
        assert_eq!(resource(Kind::Pod).group, "");
    }
}
