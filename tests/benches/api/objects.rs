//! ConfigMaps of a set size: made, replaced and listed over TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::client::{Connection, next};
use crate::server::Server;

/// Bytes of one object as a client sees it, managedFields included.
const OBJECT_BYTES: usize = 2048;

/// Makes bodies whose stored objects have [`OBJECT_BYTES`].
#[derive(Clone, Copy)]
pub(crate) struct Maker {
    payload: usize,
}

impl Maker {
    /// Learns from one object what the server adds.
    pub(crate) async fn learn(connection: &Connection, namespace: &str) -> Self {
        let bare = Self { payload: 0 };
        let path = collection(namespace);
        let shown = connection
            .done(Method::POST, &path, bare.body("object-000000", 0))
            .await;
        connection
            .done(Method::DELETE, &format!("{path}/object-000000"), "")
            .await;
        Self {
            payload: OBJECT_BYTES - shown.len(),
        }
    }

    /// `version` makes the object another one of the same size.
    pub(crate) fn body(self, name: &str, version: usize) -> String {
        let payload = format!("{version:0width$}", width = self.payload);
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"payload": payload.get(..self.payload).unwrap_or_default()},
        })
        .to_string()
    }
}

pub(crate) fn collection(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

pub(crate) async fn namespace(connection: &Connection, name: &str) {
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    connection
        .done(Method::POST, "/api/v1/namespaces", body.to_string())
        .await;
}

/// Creates `count` objects in a namespace, `clients` at a time.
pub(crate) async fn fill(
    connections: &[Connection],
    clients: usize,
    namespace: &str,
    maker: Maker,
    count: usize,
) {
    let number = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let connection = connections[client % connections.len()].clone();
        let (number, path) = (Arc::clone(&number), collection(namespace));
        tasks.spawn(async move {
            loop {
                let index = number.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return;
                }
                let body = maker.body(&format!("object-{index:06}"), index);
                connection.done(Method::POST, &path, body).await;
            }
        });
    }
    tasks.join_all().await;
}

/// Durable writes by `clients`, each on a connection of its own and with one
/// write under way: creates, and replacements of one object each.
pub(crate) async fn writes(
    server: &Server,
    clients: usize,
    space: &str,
    period: Duration,
) -> [Writes; 2] {
    let connections = server.connector.connections(clients).await;
    namespace(&connections[0], space).await;
    let maker = Maker::learn(&connections[0], space).await;
    let creates = rate(&connections, period, async |connection, client, round| {
        let body = maker.body(&format!("client-{client}-{round:06}"), round);
        connection
            .done(Method::POST, &collection(space), body)
            .await;
    });
    let creates = Writes::of(server.cost(creates).await);
    let replaces = rate(&connections, period, async |connection, client, round| {
        let name = format!("client-{client}-000000");
        let path = format!("{}/{name}", collection(space));
        let body = maker.body(&name, round + 1);
        connection.done(Method::PUT, &path, body).await;
    });
    let replaces = Writes::of(server.cost(replaces).await);
    [creates, replaces]
}

/// Writes a second, and what one costs the server.
pub(crate) struct Writes {
    pub(crate) rate: f64,
    /// Microseconds of CPU.
    pub(crate) cost: f64,
}

impl Writes {
    fn of(((count, passed), seconds): ((f64, Duration), f64)) -> Self {
        Self {
            rate: count / passed.as_secs_f64(),
            cost: seconds * 1e6 / count,
        }
    }
}

/// How often `write` was called, one call after another on each connection,
/// and in which time.
async fn rate(
    connections: &[Connection],
    period: Duration,
    write: impl AsyncFn(&Connection, usize, usize),
) -> (f64, Duration) {
    let begun = Instant::now();
    let write = &write;
    let clients = connections
        .iter()
        .enumerate()
        .map(|(client, connection)| async move {
            let mut round = 0_u32;
            while begun.elapsed() < period {
                write(connection, client, round as usize).await;
                round += 1;
            }
            f64::from(round)
        });
    let rounds = futures_util::future::join_all(clients).await;
    (rounds.iter().sum(), begun.elapsed())
}

/// Milliseconds from asking for a list to its last byte. It must be a whole
/// list of `count` objects of the set size.
pub(crate) async fn list(connection: &Connection, path: &str, count: usize) -> f64 {
    let begun = Instant::now();
    let mut body = connection.open(path).await;
    let (mut bytes, mut end) = (0, Vec::new());
    while let Some(chunk) = next(&mut body).await {
        bytes += chunk.len();
        if let Some(last) = chunk.last_chunk::<3>() {
            end = last.to_vec();
        }
    }
    let took = begun.elapsed();
    assert!(bytes >= count * OBJECT_BYTES, "{path}: {bytes} bytes");
    assert!(
        bytes < (count + 1000) * (OBJECT_BYTES + 64),
        "{path}: {bytes}"
    );
    assert_eq!(end, b"]}\n", "{path} ends");
    took.as_secs_f64() * 1000.0
}
