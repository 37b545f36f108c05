//! `cargo xtask bench cni`: the plugin beside Debian's `ptp` with `host-local`,
//! taking turns in one namespace. What is measured is what a runtime sees: from
//! the start of the process to its end. The `ptp` that the plugin is compared
//! with gives IPv4 only, the plugin both families: with IPv6 `ptp` waits seconds
//! for duplicate address detection, which a few rounds show.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints its report, and panics where it cannot measure"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use fairlead_tests::namespace::Namespace;
use fairlead_tests::node::Node;
use fairlead_tests::process;
use serde_json::{Value, json};

const ROUNDS: usize = 60;
const ROUNDS_QUICK: usize = 15;
/// Of `ptp` with both families.
const ROUNDS_DUAL: usize = 3;
/// What ADD may take of the time of `ptp`.
const ADD_AT_MOST: f64 = 0.5;

/// A plugin under measurement.
struct Plugin {
    name: &'static str,
    program: PathBuf,
    config: String,
    add: Vec<f64>,
    del: Vec<f64>,
}

impl Plugin {
    fn new(name: &'static str, program: PathBuf, config: &Value) -> Self {
        let config = config.to_string();
        Self {
            name,
            program,
            config,
            add: Vec::new(),
            del: Vec::new(),
        }
    }

    /// One ADD and one DEL of a container of its own.
    fn round(&mut self, number: usize) {
        let pod = Namespace::new("pod");
        let id = format!("bench-{number}");
        self.add
            .push(call(&self.program, "ADD", &pod, &id, &self.config));
        self.del
            .push(call(&self.program, "DEL", &pod, &id, &self.config));
    }
}

/// Milliseconds that a call takes. This thread is in the node's namespace.
fn call(program: &Path, verb: &str, pod: &Namespace, id: &str, config: &str) -> f64 {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(config.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let took = start.elapsed();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{} {verb}: {answer}",
        program.display()
    );
    took.as_secs_f64() * 1000.0
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn figure(name: &str, value: f64, unit: &str, at_most: Option<f64>) -> Value {
    let mut figure = json!({"name": name, "value": value, "unit": unit});
    if let Some(limit) = at_most {
        figure["at_most"] = json!(limit);
    }
    figure
}

/// The release build that `cargo xtask bench` names, or the one beside this.
fn plugin() -> PathBuf {
    let named = std::env::var_os("FAIRLEAD_CNI_BIN").map(PathBuf::from);
    named.unwrap_or_else(|| process::program("fairlead-cni"))
}

/// `plugins`: `ptp`, then ours.
fn figures(plugins: &[Plugin; 3], dual: &Plugin) -> Vec<Value> {
    let size = std::fs::metadata(plugin()).unwrap().len();
    let [ptp, ours @ ..] = plugins;
    let mut figures = Vec::new();
    for plugin in plugins.iter().chain([dual]) {
        figures.push(figure(
            &format!("{}: ADD", plugin.name),
            median(&plugin.add),
            "ms",
            None,
        ));
        figures.push(figure(
            &format!("{}: DEL", plugin.name),
            median(&plugin.del),
            "ms",
            None,
        ));
    }
    for plugin in ours {
        for (verb, time, peer, limit) in [
            ("ADD", &plugin.add, &ptp.add, Some(ADD_AT_MOST)),
            ("DEL", &plugin.del, &ptp.del, None),
        ] {
            let ratio = median(time) / median(peer);
            figures.push(figure(
                &format!("{}: {verb} of ptp's", plugin.name),
                ratio,
                "x",
                limit,
            ));
        }
    }
    figures.push(figure(
        "size of the plugin",
        f64::from(u32::try_from(size / 1024).unwrap()),
        "KiB",
        None,
    ));
    figures
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = if quick { ROUNDS_QUICK } else { ROUNDS };
    let mut node = Node::new("bench");
    node.start_daemon();
    let ours = node.network();
    let mut alone = ours.clone();
    alone["socket"] = json!(node.state_dir().join("no-daemon.sock"));
    let data = node.state_dir().join("host-local");
    let ptp = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "ptp",
        "ipam": {"type": "host-local", "dataDir": data,
                 "ranges": [[{"subnet": "10.99.0.0/24"}]],
                 "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let mut dual = ptp.clone();
    dual["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/24"}], [{"subnet": "fd98::/64"}]]);
    dual["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    dual["name"] = json!("dual");
    let mut dual = Plugin::new("ptp with both families", "/usr/lib/cni/ptp".into(), &dual);
    let mut plugins = [
        Plugin::new("ptp", "/usr/lib/cni/ptp".into(), &ptp),
        Plugin::new("fairlead-cni", plugin(), &ours),
        Plugin::new("fairlead-cni without daemon", plugin(), &alone),
    ];
    node.namespace.enter(|| {
        for number in 0..rounds {
            for plugin in &mut plugins {
                plugin.round(number);
            }
        }
        for number in 0..ROUNDS_DUAL {
            dual.round(number);
        }
    });
    let figures = figures(&plugins, &dual);
    println!("{}", json!({"suite": "cni", "figures": figures}));
}
