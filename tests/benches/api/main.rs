//! `cargo xtask bench api`: the real server on loopback, asked over TLS.
//!
//! Client, hollow nodes and server share the machine's cores, so every figure
//! pays for both ends. A word on the command line that is no flag measures
//! only the part of that name.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints its report, and panics where it cannot measure"
)]

mod client;
mod objects;
mod schedule;
mod server;
mod watch;

use std::time::Duration;

use fairlead_tests::files::Directory;
use serde_json::{Value, json};

use server::Server;

/// How much is done of everything.
#[derive(Clone, Copy)]
struct Effort {
    starts: usize,
    idle: Duration,
    writing: Duration,
    events: usize,
    /// Namespaces of [`OBJECTS`] objects each.
    namespaces: usize,
    lists: usize,
    pods: usize,
}

const FULL: Effort = Effort {
    starts: 9,
    idle: Duration::from_secs(10),
    writing: Duration::from_secs(4),
    events: 500,
    namespaces: 10,
    lists: 9,
    pods: 10_000,
};
const QUICK: Effort = Effort {
    starts: 3,
    idle: Duration::from_secs(3),
    writing: Duration::from_secs(2),
    events: 150,
    namespaces: 1,
    lists: 5,
    pods: 4_000,
};

/// Objects of one namespace; a short list.
const OBJECTS: usize = 10_000;
const WATCHERS: usize = 1000;
/// The server takes 250 streams a connection.
const CONNECTIONS: usize = 8;
const CLIENTS: usize = 32;
const NODES: usize = 1000;
/// What a fresh server does once is done after this.
const SETTLED: Duration = Duration::from_secs(2);

/// The figures so far.
#[derive(Default)]
struct Report(Vec<Value>);

impl Report {
    fn info(&mut self, name: &str, value: f64, unit: &str) {
        self.0
            .push(json!({"name": name, "value": value, "unit": unit}));
    }

    fn at_most(&mut self, name: &str, value: f64, unit: &str, limit: f64) {
        self.0
            .push(json!({"name": name, "value": value, "unit": unit, "at_most": limit}));
    }

    fn at_least(&mut self, name: &str, value: f64, unit: &str, limit: f64) {
        self.0
            .push(json!({"name": name, "value": value, "unit": unit, "at_least": limit}));
    }
}

/// The value that `share` of the samples do not exceed.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into at most hundreds of samples"
)]
fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted[index.clamp(1, sorted.len()) - 1]
}

fn to_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

async fn start(report: &mut Report, effort: Effort) {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..effort.starts {
        let directory = Directory::new("api-start");
        for times in [&mut first, &mut again] {
            let server = Server::start(directory.path(), &[]).await;
            times.push(millis(server.ready_after));
            server.stop();
        }
    }
    let name = "start to /readyz, empty directory";
    report.at_most(name, quantile(&first, 0.5), "ms", 300.0);
    let name = "start to /readyz, again";
    report.at_most(name, quantile(&again, 0.5), "ms", 300.0);
}

async fn idle(report: &mut Report, effort: Effort) {
    let directory = Directory::new("api-idle");
    let server = Server::start(directory.path(), &[]).await;
    tokio::time::sleep(SETTLED).await;
    let busy = server.busy(effort.idle).await;
    report.at_most("idle: resident memory", server.memory().0, "MB", 40.0);
    report.at_most("idle: share of a core", busy, "%", 0.5);
}

async fn writes(report: &mut Report, effort: Effort) {
    let directory = Directory::new("api-writes");
    let server = Server::start(directory.path(), &[]).await;
    let both = objects::writes(&server, CLIENTS, "writes", effort.writing).await;
    for (what, writes) in ["creates", "replacements"].iter().zip(both) {
        let name = format!("durable {what} by {CLIENTS} clients");
        report.at_least(&name, writes.rate, "/s", 3000.0);
        report.info(&format!("{name}: server's CPU, each"), writes.cost, "us");
    }
}

async fn watch(report: &mut Report, effort: Effort) {
    let directory = Directory::new("api-watch");
    let server = Server::start(directory.path(), &[]).await;
    let watchers = (WATCHERS, CONNECTIONS);
    let took = watch::deliveries(&server.connector, "few", watchers, effort.events);
    let (took, seconds) = server.cost(took).await;
    let events = took.len();
    let name = format!("{WATCHERS} watchers, {CONNECTIONS} connections: write to last delivery");
    report.info(&format!("{name}, median"), quantile(&took, 0.5), "ms");
    report.at_most(&format!("{name}, p99"), quantile(&took, 0.99), "ms", 25.0);
    report.info(
        &format!("{name}: server's CPU, each write"),
        seconds * 1e6 / to_f64(events),
        "us",
    );
    let watchers = (WATCHERS, WATCHERS);
    let took = watch::deliveries(&server.connector, "many", watchers, effort.events).await;
    let name = format!("{WATCHERS} watchers, each its own connection");
    report.info(&format!("{name}, median"), quantile(&took, 0.5), "ms");
    report.info(&format!("{name}, p99"), quantile(&took, 0.99), "ms");
}

async fn lists(report: &mut Report, effort: Effort) {
    let directory = Directory::new("api-lists");
    let server = Server::start(directory.path(), &[]).await;
    let connections = server.connector.connections(CONNECTIONS).await;
    let one = &connections[0];
    let count = effort.namespaces * OBJECTS;
    let spaces: Vec<String> = (0..effort.namespaces)
        .map(|n| format!("lists-{n}"))
        .collect();
    let mut maker = None;
    for space in &spaces {
        objects::namespace(one, space).await;
        let maker = match maker {
            Some(maker) => maker,
            None => *maker.insert(objects::Maker::learn(one, space).await),
        };
        objects::fill(&connections, 64, space, maker, OBJECTS).await;
    }
    tokio::time::sleep(SETTLED).await;
    let (held, _) = server.memory();
    let mut short = Vec::new();
    let mut long = Vec::new();
    for round in 0..effort.lists {
        let path = objects::collection(&spaces[round % spaces.len()]);
        short.push(objects::list(one, &path, OBJECTS).await);
        if effort.namespaces > 1 {
            long.push(objects::list(one, "/api/v1/configmaps", count).await);
        }
    }
    let (after, most) = server.memory();
    server.stop();
    let server = Server::start(directory.path(), &[]).await;
    tokio::time::sleep(SETTLED).await;
    let name = "LIST of 10k objects of 2 KB";
    report.at_most(name, quantile(&short, 0.5), "ms", 60.0);
    if effort.namespaces > 1 {
        let name = "LIST of 100k objects of 2 KB";
        report.at_most(name, quantile(&long, 0.5), "ms", 600.0);
    }
    let thousands = count / 1000;
    let name = format!("{thousands}k objects held");
    report.at_most(&name, held, "MB", 350.0);
    report.at_most(&format!("{name}, after the LISTs"), after, "MB", 350.0);
    report.info(&format!("{name}, most so far"), most, "MB");
    report.at_most(
        &format!("{name}, started again"),
        server.memory().0,
        "MB",
        350.0,
    );
    let name = format!("start to /readyz with {thousands}k objects");
    report.info(&name, millis(server.ready_after), "ms");
}

async fn schedule(report: &mut Report, effort: Effort) {
    let directory = Directory::new("api-schedule");
    let server = Server::start(directory.path(), &[]).await;
    let nodes = schedule::quiet_nodes(&server, NODES);
    let streamed = schedule::stream(&server, "stream", effort.pods);
    let (streamed, seconds) = server.cost(streamed).await;
    drop(nodes);
    server.stop();
    let directory = Directory::new("api-backlog");
    let flags = ["--disable-controllers", "default-scheduler"];
    let server = Server::start(directory.path(), &flags).await;
    drop(schedule::quiet_nodes(&server, NODES));
    schedule::pod_namespace(&server.connector.connect().await, "backlog").await;
    schedule::create(&server, "backlog", effort.pods).await;
    server.stop();
    let server = Server::start(directory.path(), &[]).await;
    let waiting = schedule::backlog(&server, "backlog", effort.pods).await;
    // Two readings of one promise: pods that all wait when the scheduler starts,
    // and pods that clients create meanwhile, where creating them counts too.
    let name = format!("{NODES} nodes: pods scheduled and bound, of a backlog");
    report.at_least(&name, waiting, "/s", 2000.0);
    let name = format!(
        "{NODES} nodes: pods created by {} clients, scheduled and bound",
        schedule::CLIENTS
    );
    report.at_least(&name, streamed, "/s", 2000.0);
    let each = seconds * 1e6 / to_f64(effort.pods);
    report.info(&format!("{name}: server's CPU, each"), each, "us");
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let effort = if words.iter().any(|word| word == "--quick") {
        QUICK
    } else {
        FULL
    };
    let only = words.iter().find(|word| !word.starts_with('-'));
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut report = Report::default();
    let figures = &mut report;
    runtime.block_on(async {
        if wanted("start") {
            start(figures, effort).await;
        }
        if wanted("idle") {
            idle(figures, effort).await;
        }
        if wanted("writes") {
            writes(figures, effort).await;
        }
        if wanted("watch") {
            watch(figures, effort).await;
        }
        if wanted("lists") {
            lists(figures, effort).await;
        }
        if wanted("schedule") {
            schedule(figures, effort).await;
        }
    });
    println!("{}", json!({"suite": "api", "figures": report.0}));
}
