//! Pods through the scheduler on hollow nodes.

use std::time::{Duration, Instant};

use fairlead_tests::process::Process;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Connection, next};
use crate::objects::namespace;
use crate::server::Server;
use crate::to_f64;

/// Clients that create pods.
pub(crate) const CLIENTS: usize = 32;
/// All pods must be bound within this.
const BOUND_MAX: Duration = Duration::from_mins(1);

/// A namespace that takes pods.
pub(crate) async fn pod_namespace(connection: &Connection, space: &str) {
    namespace(connection, space).await;
    let account = format!("/api/v1/namespaces/{space}/serviceaccounts/default");
    let end = Instant::now() + BOUND_MAX;
    while connection.call(Method::GET, &account, "").await.0 != StatusCode::OK {
        assert!(Instant::now() < end, "no default ServiceAccount in {space}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"containers": [{
            "name": "main",
            "image": "registry.example/bench:1",
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        }]},
    })
}

/// Creates `count` pods as fast as [`CLIENTS`] can.
pub(crate) async fn create(server: &Server, space: &str, count: usize) {
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let connection = server.connector.connect().await;
        let path = format!("/api/v1/namespaces/{space}/pods");
        tasks.spawn(async move {
            for index in (client..count).step_by(CLIENTS) {
                let body = pod(&format!("pod-{index:06}")).to_string();
                connection.done(Method::POST, &path, body).await;
            }
        });
    }
    tasks.join_all().await;
}

/// Watches until `count` pods of a namespace have a node; says when.
async fn bound(connection: Connection, space: String, count: usize) -> Instant {
    let path = format!(
        "/api/v1/namespaces/{space}/pods?watch=true&fieldSelector=spec.nodeName!%3D&timeoutSeconds=600"
    );
    let mut body = connection.open(&path).await;
    let (mut seen, mut line) = (0, Vec::new());
    loop {
        let chunk = next(&mut body).await.expect("the watch goes on");
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                assert!(
                    !line.starts_with(br#"{"type":"ERROR"#),
                    "the watch fell behind"
                );
                seen += usize::from(line.starts_with(br#"{"type":"ADDED"#));
                line.clear();
            }
        }
        if seen >= count {
            return Instant::now();
        }
    }
}

/// Pods a second from the first creation to the last binding: creating,
/// scheduling, binding and telling a watcher all at once.
pub(crate) async fn stream(server: &Server, space: &str, count: usize) -> f64 {
    let connection = server.connector.connect().await;
    pod_namespace(&connection, space).await;
    let bound = tokio::spawn(bound(connection, space.to_owned(), count));
    let begun = Instant::now();
    create(server, space, count).await;
    rate(begun, bound, count).await
}

/// Pods a second that wait already when the server starts, from its readiness
/// to the last binding.
pub(crate) async fn backlog(server: &Server, space: &str, count: usize) -> f64 {
    let begun = Instant::now();
    let connection = server.connector.connect().await;
    let bound = tokio::spawn(bound(connection, space.to_owned(), count));
    rate(begun, bound, count).await
}

async fn rate(begun: Instant, bound: tokio::task::JoinHandle<Instant>, count: usize) -> f64 {
    let last = tokio::time::timeout(BOUND_MAX, bound)
        .await
        .expect("all pods are bound in time")
        .unwrap();
    to_f64(count) / (last - begun).as_secs_f64()
}

/// Nodes whose pods do not start while the scheduler is measured.
pub(crate) fn quiet_nodes(server: &Server, nodes: usize) -> Process {
    server.hollow(nodes, &["--pod-start-delay", "10m"])
}
