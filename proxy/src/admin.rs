//! Health and metrics over HTTP.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use proxy_ebpf::event::{Counter, Hook};
use serde_json::{Value, json};

use crate::datapath::Datapath;
use crate::metrics::Metrics;

pub mod limit;

/// Changes that wait longer than this mean that the daemon is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// What the daemon's loop tells the outside.
#[derive(Debug, Default)]
pub struct Health {
    pub metrics: Metrics,
    /// Sources that have not told all they know, by name.
    pub unsynced: Vec<String>,
    /// Why the data path is not in step; empty if it is.
    pub errors: Vec<String>,
    /// Changes have been taken up and are not in the data path yet.
    pub dirty_since: Option<SystemTime>,
    pub is_stopping: bool,
}

/// Shared by the loop and the HTTP server.
#[derive(Clone, Debug)]
pub struct Admin {
    pub health: Arc<Mutex<Health>>,
    pub datapath: Arc<Datapath>,
}

impl Admin {
    /// Changes the published health. Never held across an await.
    pub fn update<T>(&self, change: impl FnOnce(&mut Health) -> T) -> T {
        let mut health = match self.health.lock() {
            Ok(health) => health,
            // A panic elsewhere left a whole value behind: fields are independent.
            Err(poisoned) => poisoned.into_inner(),
        };
        change(&mut health)
    }
}

/// Every counter that is not zero, and all drops: (hook, name, is a drop, packets).
pub fn packets(datapath: &Datapath) -> Vec<(&'static str, &'static str, bool, u64)> {
    let mut packets = Vec::new();
    for counter in Counter::ALL {
        for (hook, name) in [
            (Hook::PodOut, "pod_out"),
            (Hook::PodIn, "pod_in"),
            (Hook::Socket, "socket"),
        ] {
            let count = datapath.counter(*counter, hook).unwrap_or_default();
            if count > 0 || (counter.is_drop() && hook == Hook::PodOut) {
                packets.push((name, counter.name(), counter.is_drop(), count));
            }
        }
    }
    packets
}

pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

/// Seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn answer(is_good: bool, body: Value) -> (StatusCode, Json<Value>) {
    let status = if is_good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(body))
}

/// Is the loop alive? Not whether every source is reachable: a restart would
/// not help there.
async fn livez(State(admin): State<Admin>) -> impl IntoResponse {
    let waited = admin.update(|health| health.dirty_since.map(|since| since.elapsed()));
    let waited = waited.and_then(Result::ok).unwrap_or_default();
    answer(
        waited < STUCK,
        json!({ "pendingSeconds": waited.as_secs_f64() }),
    )
}

/// As kube-proxy's: in step with what is known.
async fn healthz(State(admin): State<Admin>) -> impl IntoResponse {
    admin.update(|health| {
        let waited = health.dirty_since.and_then(|since| since.elapsed().ok());
        let in_step = waited.is_none_or(|waited| waited < STUCK);
        answer(
            in_step && health.errors.is_empty() && !health.is_stopping,
            json!({
                "lastUpdated": health.metrics.last_sync,
                "currentTime": unix_seconds(SystemTime::now()),
                "errors": health.errors,
            }),
        )
    })
}

/// May pods rely on this node? All sources have spoken and the data path follows.
async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    admin.update(|health| {
        let is_ready = health.unsynced.is_empty()
            && health.metrics.last_sync > 0.0
            && health.errors.is_empty()
            && !health.is_stopping;
        answer(
            is_ready,
            json!({ "waitingFor": health.unsynced, "errors": health.errors }),
        )
    })
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let packets = packets(&admin.datapath);
    let text = admin.update(|health| health.metrics.render(&packets));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
