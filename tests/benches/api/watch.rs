//! Many watchers of one resource: from a write to its last delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Connector, next};
use crate::objects::{Maker, collection, namespace};

/// Between two writes.
const PAUSE: Duration = Duration::from_millis(10);
/// A delivery that takes longer is lost.
const LOST: Duration = Duration::from_secs(10);

/// Milliseconds from sending a write to the moment when the last of `watchers`
/// has its event, for each of `writes`. Watchers share `connections`.
pub(crate) async fn deliveries(
    connector: &Connector,
    space: &str,
    (watchers, connections): (usize, usize),
    writes: usize,
) -> Vec<f64> {
    let writer = connector.connect().await;
    namespace(&writer, space).await;
    let maker = Maker::learn(&writer, space).await;
    let path = collection(space);
    writer
        .done(Method::POST, &path, maker.body("watched", 0))
        .await;
    let list = writer.done(Method::GET, &path, "").await;
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!("{path}?watch=true&resourceVersion={version}");

    let (all, mut delivered) = mpsc::channel(4);
    let seen = Arc::new(AtomicUsize::new(0));
    let shared = connector.connections(connections).await;
    let mut tasks = JoinSet::new();
    for watcher in 0..watchers {
        let mut body = shared[watcher % connections].open(&watch).await;
        let (seen, all) = (Arc::clone(&seen), all.clone());
        tasks.spawn(async move {
            while let Some(chunk) = next(&mut body).await {
                let lines = chunk.split(|byte| *byte == b'\n').count() - 1;
                // One event is under way at a time: the last watcher's line ends it.
                let before = seen.fetch_add(lines, Ordering::Relaxed);
                if before / watchers != (before + lines) / watchers {
                    all.send(Instant::now()).await.unwrap();
                }
            }
        });
    }
    let mut took = Vec::with_capacity(writes);
    for version in 1..=writes {
        let (path, body) = (format!("{path}/watched"), maker.body("watched", version));
        let begun = Instant::now();
        let (_, last) = tokio::join!(
            writer.done(Method::PUT, &path, body),
            tokio::time::timeout(LOST, delivered.recv())
        );
        let last = last.expect("every watcher gets every event").unwrap();
        took.push((last - begun).as_secs_f64() * 1000.0);
        tokio::time::sleep(PAUSE).await;
    }
    assert_eq!(seen.load(Ordering::Relaxed), writes * watchers);
    tasks.shutdown().await;
    took
}
