//! `cargo xtask bench datapath`: what a packet costs in `pod_out`, over an empty
//! program on the same CPU in the same run, and what policies cost in memory
//! and in compiling.
//!
//! All scenarios take turns in each round, so that what is compared was measured
//! at the same time. A neighbour on the same core slows everything down for
//! seconds, the empty program too: rounds in which that took notably longer than
//! it can are left out, and their number is printed.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench prints its report, and panics where it cannot measure"
)]

#[path = "../tests/kernel/apply.rs"]
mod apply;
#[path = "../tests/kernel/node.rs"]
#[expect(
    dead_code,
    reason = "shared with the kernel tests, which use more of it"
)]
mod node;

use std::time::Instant;

use fairlead_proxy::compile::{Attachment, Compiler, Input};
use fairlead_proxy::model::ObjectName;
use fairlead_proxy::model::manifest::{Batch, Document, Unknown};
use fairlead_tests::empty::Empty;
use fairlead_tests::generate::pod_ip;
use fairlead_tests::kernel::{Action, Kernel, ifindex, macs, slot};
use fairlead_tests::packet::{Ip, Packet, body, flag};
use proxy_ebpf::abi::pin;
use serde_json::{Value, json};

/// The port that every policy of a scenario admits first.
const PORT: u16 = 1000;
const NODE: &str = "here";
const ESTABLISHED: u8 = flag::ACK;
/// A FIN is not let pass by what its CPU remembers: the flow table is asked, as it
/// is for one packet of a connection in every 32 jiffies.
const BY_TABLE: u8 = flag::FIN | flag::ACK;
/// A bare SYN is always judged as a new connection, and replaces the flow: look-ups,
/// both verdicts, an insertion and a removal.
const NEW_FLOW: u8 = flag::SYN;
/// A round is quiet if the empty program took at most this much of its best tenth.
const QUIET: f64 = 1.05;

/// How many rounds, and runs of a program in a round.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    repeat: u32,
    pods_added: usize,
}

const FULL: Effort = Effort {
    rounds: 601,
    repeat: 10_000,
    pods_added: 1_000,
};
const QUICK: Effort = Effort {
    rounds: 61,
    repeat: 5_000,
    pods_added: 200,
};

/// Two pods on this node, peers elsewhere, policies for both pods.
struct Scenario {
    kernel: Kernel,
    compiler: Compiler,
}

impl Scenario {
    /// `policies` policies select both pods in both directions. Policy `i`
    /// admits port `1000 + i`, and of the `peers` pods elsewhere a random half:
    /// hardly two peers are treated alike. Both pods are peers of all.
    fn new(peers: usize, policies: usize) -> Self {
        let mut kernel = Kernel::load(fairlead_proxy::OBJECT, 2, &[]);
        for index in 0..2 {
            let mut endpoint = node::endpoint(index);
            // The frame is the same after delivery, so that it can be sent again.
            (endpoint.mac, endpoint.gateway_mac) = (macs(index).0, macs(1 - index).0);
            kernel.set_endpoint(slot(index), endpoint);
        }
        let mut compiler = Compiler::new(NODE);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut objects = vec![namespace()];
        objects.extend((0..2).map(|index| local_pod(index, policies)));
        objects.extend((0..peers).map(|index| {
            let labels = (0..policies).filter(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                random >> 63 != 0
            });
            remote_pod(index, &labels.collect::<Vec<_>>())
        }));
        objects.extend((0..policies).map(policy));
        let mut inputs = inputs(objects);
        for index in 0..2 {
            let attachment = Attachment {
                pod: Some(ObjectName::new("shop", &format!("local-{index}"))),
                ips: vec![pod_ip(false, true, index)],
                starts_open: false,
            };
            inputs.push(Input::Attach {
                slot: slot(index),
                attachment,
            });
        }
        loop {
            let update = compiler.update(inputs.drain(..));
            for write in &update.writes {
                apply::apply(&mut kernel, write);
            }
            if !update.again {
                break;
            }
        }
        assert!(compiler.problems().is_empty(), "{:?}", compiler.problems());
        Self { kernel, compiler }
    }

    /// A TCP segment with `flags`, of a connection of its own, on its way from
    /// one pod to the other.
    fn segment(&mut self, sport: u16, flags: u8) -> Vec<u8> {
        let mut frame = Vec::new();
        for flags in [flag::ACK, flags] {
            let segment = body::tcp(sport, PORT, flags);
            let ip = Ip::new(pod_ip(false, true, 0), pod_ip(false, true, 1), segment);
            frame = Packet::new(macs(0).0, macs(1).0, ip).encode();
            let run = self.kernel.from_pod(0, &frame);
            assert_eq!(run.action, Action::Redirect, "{run:?}");
        }
        frame
    }

    /// Bytes of the maps that hold policy.
    fn policy_bytes(&mut self) -> u64 {
        let maps = [
            pin::POLICY_SETS,
            pin::POLICY_PEERS,
            pin::POLICY_PORTS,
            pin::POLICY_RANGES,
        ];
        maps.iter().map(|map| self.kernel.map_bytes(map)).sum()
    }

    /// Median microseconds to compile one more pod elsewhere under labels
    /// already seen, and the most writes that one took.
    fn pod_added(&mut self, peers: usize, effort: Effort) -> (f64, usize) {
        let mut most = 0;
        let samples = (0..effort.pods_added).map(|index| {
            let mut inputs = inputs(vec![remote_pod(peers + index, &[0])]);
            if index == 0 {
                // The first of its kind makes the class.
                self.compiler.update(inputs.drain(..));
                return None;
            }
            let start = Instant::now();
            let update = self.compiler.update(inputs);
            let micros = start.elapsed().as_secs_f64() * 1e6;
            most = most.max(update.writes.len());
            Some(micros)
        });
        let samples = samples.flatten().collect();
        (median(samples), most)
    }
}

/// A packet under measurement.
struct Probe {
    /// Of [`Scenario`]s.
    scenario: usize,
    frame: Vec<u8>,
    /// Nanoseconds of `pod_out`, one of each round.
    samples: Vec<f64>,
}

impl Probe {
    fn new(scenarios: &mut [Scenario], scenario: usize, sport: u16, flags: u8) -> Self {
        Self {
            scenario,
            frame: scenarios[scenario].segment(sport, flags),
            samples: Vec::new(),
        }
    }
}

/// Median nanoseconds of each probe over the empty program, in the quiet rounds
/// (at least one tenth of all is quiet), and how many those were.
fn measure(scenarios: &mut [Scenario], probes: &mut [Probe], effort: Effort) -> (Vec<f64>, usize) {
    let empty = Empty::load();
    let mut floors = Vec::new();
    for _ in 0..effort.rounds {
        let mut floor: f64 = 0.0;
        for probe in &mut *probes {
            floor = floor.max(empty.time(&probe.frame, effort.repeat));
            probe.samples.push(scenarios[probe.scenario].kernel.time(
                pin::POD_OUT,
                &probe.frame,
                ifindex(0),
                effort.repeat,
            ));
        }
        floors.push(floor);
    }
    let mut sorted = floors.clone();
    sorted.sort_by(f64::total_cmp);
    let limit = sorted[sorted.len() / 10] * QUIET;
    let over = |probe: &Probe| {
        let rounds = floors.iter().zip(&probe.samples);
        let quiet = rounds.filter(|(floor, _)| **floor <= limit);
        median(quiet.map(|(floor, sample)| sample - floor).collect())
    };
    let quiet = floors.iter().filter(|floor| **floor <= limit).count();
    (probes.iter().map(over).collect(), quiet)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn inputs(objects: Vec<Value>) -> Vec<Input> {
    let documents = objects.into_iter().map(|value| Document {
        origin: "bench".into(),
        value,
    });
    let batch = Batch::read(documents, Unknown::Reject);
    assert!(batch.rejected.is_empty(), "{:?}", batch.rejected);
    batch
        .since(&Batch::default())
        .into_iter()
        .map(Input::Object)
        .collect()
}

fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
}

fn pod(name: &str, node: &str, ip: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn labels(of: impl IntoIterator<Item = usize>, app: &str) -> Value {
    let mut labels = json!({"app": app});
    for policy in of {
        labels[format!("peer-{policy}")] = json!("yes");
    }
    labels
}

fn local_pod(index: usize, policies: usize) -> Value {
    let ip = pod_ip(false, true, index).to_string();
    pod(
        &format!("local-{index}"),
        NODE,
        &ip,
        &labels(0..policies, "target"),
    )
}

fn remote_pod(index: usize, peer_of: &[usize]) -> Value {
    let ip = format!("10.77.{}.{}", index / 250, index % 250 + 1);
    pod(
        &format!("remote-{index}"),
        "there",
        &ip,
        &labels(peer_of.iter().copied(), "peer"),
    )
}

fn policy(index: usize) -> Value {
    let peers = json!([{"podSelector": {"matchLabels": {format!("peer-{index}"): "yes"}}}]);
    let ports = json!([{"protocol": "TCP", "port": usize::from(PORT) + index}]);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": format!("policy-{index}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": "target"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}],
            "egress": [{"to": peers, "ports": ports}],
        },
    })
}

fn figure(name: &str, value: f64, unit: &str, at_most: Option<f64>) -> Value {
    match at_most {
        Some(limit) => json!({"name": name, "value": value, "unit": unit, "at_most": limit}),
        None => json!({"name": name, "value": value, "unit": unit}),
    }
}

/// The report: of `large`, of the probes' medians, and of how many rounds were quiet.
fn figures(large: &mut Scenario, medians: &[f64], quiet: usize, effort: Effort) -> Vec<Value> {
    let [
        open,
        established,
        by_table,
        new_flow,
        few_peers,
        one_policy,
        many_policies,
    ] = medians[..]
    else {
        panic!("one median for each probe: {medians:?}")
    };
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let megabytes = large.policy_bytes() as f64 / f64::from(1 << 20);
    let (compile, writes) = large.pod_added(10_000, effort);
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    let (writes, quiet) = (writes as f64, 100.0 * quiet as f64 / effort.rounds as f64);
    let figures = [
        ("pod to pod, no policy", open, "ns", Some(40.0)),
        (
            "established, 100 policies, 10k peers, both sides",
            established,
            "ns",
            Some(50.0),
        ),
        ("established, once in 32 jiffies", by_table, "ns", None),
        ("new flow, the same", new_flow, "ns", Some(250.0)),
        (
            "kernel memory of policy, 10k peers x 100 ports",
            megabytes,
            "MB",
            Some(4.0),
        ),
        (
            "a pod added to 10k others, compile",
            compile,
            "us",
            Some(50.0),
        ),
        ("a pod added to 10k others, writes", writes, "", Some(1.0)),
        ("new flow, 10 peers", few_peers, "ns", None),
        (
            "new flow, 10k peers over 10",
            new_flow / few_peers,
            "x",
            Some(1.2),
        ),
        ("new flow, 1 policy", one_policy, "ns", None),
        (
            "new flow, 1000 policies over 1",
            many_policies / one_policy,
            "x",
            Some(1.2),
        ),
        ("rounds on a quiet machine", quiet, "%", None),
    ];
    figures
        .map(|(name, value, unit, at_most)| figure(name, value, unit, at_most))
        .into()
}

fn main() {
    let effort = if std::env::args().any(|word| word == "--quick") {
        QUICK
    } else {
        FULL
    };
    // Peers and policies; all but the first two have one of the second's cut or raised.
    let sizes = [(0, 0), (10_000, 100), (10, 100), (100, 1), (100, 1_000)];
    let mut scenarios = sizes.map(|(peers, policies)| Scenario::new(peers, policies));
    let probes = [
        (0, ESTABLISHED),
        (1, ESTABLISHED),
        (1, BY_TABLE),
        (1, NEW_FLOW),
        (2, NEW_FLOW),
        (3, NEW_FLOW),
        (4, NEW_FLOW),
    ];
    let mut probes = (40_000..)
        .zip(probes)
        .map(|(sport, (scenario, flags))| Probe::new(&mut scenarios, scenario, sport, flags))
        .collect::<Vec<_>>();
    let (medians, quiet) = measure(&mut scenarios, &mut probes, effort);
    let figures = figures(&mut scenarios[1], &medians, quiet, effort);
    println!("{}", json!({"suite": "datapath", "figures": figures}));
}
