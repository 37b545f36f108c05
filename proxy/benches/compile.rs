//! What compiling costs: the whole state, a pod added, a policy changed, a restart.
//! Prints one JSON document.

use std::time::{Duration, Instant};

use fairlead_proxy::compile::sample::{self, Size};
use fairlead_proxy::compile::{Compiler, Input, Write};

#[expect(clippy::print_stdout, reason = "the figures are its output")]
fn main() {
    let mut figures = Vec::new();
    for (peers, ports, policies) in [
        (10, 10, 1),
        (10_000, 100, 1),
        (10_000, 100, 100),
        (10_000, 100, 1000),
    ] {
        let size = Size {
            peers,
            ports,
            policies,
        };
        figures.push(measure(size));
    }
    println!(
        "{}",
        serde_json::json!({"suite": "compile", "figures": figures})
    );
}

fn measure(size: Size) -> serde_json::Value {
    let inputs = sample::cluster(size);
    let mut compiler = Compiler::new("node");
    let (whole, writes) = time(&mut compiler, inputs.clone());
    let tables = compiler.tables().clone();
    let replicas = median(&mut compiler, |i| {
        sample::single_stack_peer(size.peers + i, i % 10)
    });
    let strangers = median(&mut compiler, |i| {
        sample::single_stack_peer(size.peers + 2000 + i, u32::MAX - i)
    });
    let (rebuild, _) = time(
        &mut compiler,
        vec![Input::Detach { slot: 99 }, policy_gone()],
    );
    let mut restarted = Compiler::adopt("node", tables.clone());
    let (restart, restart_writes) = time(&mut restarted, inputs);
    serde_json::json!({
        "peers": size.peers, "ports": size.ports, "policies": size.policies,
        "whole_ms": whole.as_secs_f64() * 1e3, "writes": writes.len(),
        "pod_added_replica_us": replicas.0.as_secs_f64() * 1e6,
        "pod_added_stranger_us": strangers.0.as_secs_f64() * 1e6,
        "pod_added_writes": replicas.1.max(strangers.1),
        "policy_removed_ms": rebuild.as_secs_f64() * 1e3,
        "restart_ms": restart.as_secs_f64() * 1e3, "restart_writes": restart_writes.len(),
        "policy_sets": tables.sets.len(), "policy_peers": tables.peers.len(),
        "policy_ports": tables.ports.len(), "addresses": tables.addresses.len(),
    })
}

fn policy_gone() -> Input {
    use fairlead_proxy::model::{Change, Key, Kind, ObjectName};
    Input::Object(Change::Remove(Key {
        kind: Kind::NetworkPolicy,
        name: ObjectName::new("shop", "policy0"),
    }))
}

fn time(compiler: &mut Compiler, inputs: Vec<Input>) -> (Duration, Vec<Write>) {
    let start = Instant::now();
    let update = compiler.update(inputs);
    (start.elapsed(), update.writes)
}

/// The median of 1000 additions, and the most writes that one made.
fn median(compiler: &mut Compiler, pod: impl Fn(u32) -> Input) -> (Duration, usize) {
    let mut times = Vec::new();
    let mut most = 0;
    for index in 0..1000 {
        let (time, writes) = time(compiler, vec![pod(index)]);
        times.push(time);
        most = most.max(writes.len());
    }
    times.sort_unstable();
    (times[times.len() / 2], most)
}
