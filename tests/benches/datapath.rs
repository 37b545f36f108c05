//! `cargo xtask bench datapath`: what a packet costs in `pod_out`, over an empty
//! program on the same CPU in the same run, and what policies cost in memory
//! and in compiling.
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
use fairlead_tests::kernel::{Kernel, ifindex, macs, slot};
use fairlead_tests::packet::{Ip, Packet, body, flag};
use proxy_ebpf::abi::pin;
use serde_json::{Value, json};

/// The port that every policy of a scenario admits first.
const PORT: u16 = 1000;
const NODE: &str = "here";

/// How many rounds, and runs of a program in a round.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    repeat: u32,
    pods_added: usize,
}

const FULL: Effort = Effort {
    rounds: 201,
    repeat: 10_000,
    pods_added: 1_000,
};
const QUICK: Effort = Effort {
    rounds: 31,
    repeat: 5_000,
    pods_added: 200,
};

/// Two pods on this node, peers elsewhere, policies for both pods.
struct Scenario {
    kernel: Kernel,
    compiler: Compiler,
    empty: Empty,
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
        Self {
            kernel,
            compiler,
            empty: Empty::load(),
        }
    }

    /// Median nanoseconds of `pod_out` over an empty program, for a TCP segment
    /// with `flags`.
    fn cost(&mut self, flags: u8, effort: Effort) -> f64 {
        let segment = body::tcp(40_000, PORT, flags);
        let ip = Ip::new(pod_ip(false, true, 0), pod_ip(false, true, 1), segment);
        let frame = Packet::new(macs(0).0, macs(1).0, ip).encode();
        let before = self.kernel.from_pod(0, &frame);
        assert_eq!(
            before.action,
            fairlead_tests::kernel::Action::Redirect,
            "{before:?}"
        );
        let samples = (0..effort.rounds).map(|_| {
            let empty = self.empty.time(&frame, effort.repeat);
            self.kernel
                .time(pin::POD_OUT, &frame, ifindex(0), effort.repeat)
                - empty
        });
        median(samples.collect())
    }

    fn established(&mut self, effort: Effort) -> f64 {
        self.cost(flag::ACK, effort)
    }

    /// A FIN is not let pass by what its CPU remembers: the flow table is asked,
    /// as it is for the first packet of a connection in every 32 jiffies.
    fn by_table(&mut self, effort: Effort) -> f64 {
        self.cost(flag::FIN | flag::ACK, effort)
    }

    /// A bare SYN is always judged as a new connection, and replaces the flow:
    /// look-ups, both verdicts, an insertion and a removal.
    fn new_flow(&mut self, effort: Effort) -> f64 {
        self.cost(flag::SYN, effort)
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

fn main() {
    let effort = if std::env::args().any(|word| word == "--quick") {
        QUICK
    } else {
        FULL
    };
    let mut figures = Vec::new();
    let mut note = |name: &str, value: f64, unit: &str, at_most: Option<f64>| {
        figures.push(figure(name, value, unit, at_most));
    };

    let open = Scenario::new(0, 0).established(effort);
    note("pod to pod, no policy", open, "ns", Some(40.0));

    let mut large = Scenario::new(10_000, 100);
    note(
        "established, 100 policies, 10k peers, both sides",
        large.established(effort),
        "ns",
        Some(50.0),
    );
    let by_table = large.by_table(effort);
    note("established, once in 32 jiffies", by_table, "ns", None);
    let new_flow = large.new_flow(effort);
    note("new flow, the same", new_flow, "ns", Some(250.0));
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let megabytes = large.policy_bytes() as f64 / f64::from(1 << 20);
    note(
        "kernel memory of policy, 10k peers x 100 ports",
        megabytes,
        "MB",
        Some(4.0),
    );
    let (micros, writes) = large.pod_added(10_000, effort);
    note(
        "a pod added to 10k others, compile",
        micros,
        "us",
        Some(50.0),
    );
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    note(
        "a pod added to 10k others, writes",
        writes as f64,
        "",
        Some(1.0),
    );
    drop(large);

    let few_peers = Scenario::new(10, 100).new_flow(effort);
    note("new flow, 10 peers", few_peers, "ns", None);
    note(
        "new flow, 10k peers over 10",
        new_flow / few_peers,
        "x",
        Some(1.2),
    );
    let one_policy = Scenario::new(100, 1).new_flow(effort);
    let many_policies = Scenario::new(100, 1_000).new_flow(effort);
    note("new flow, 1 policy", one_policy, "ns", None);
    note(
        "new flow, 1000 policies over 1",
        many_policies / one_policy,
        "x",
        Some(1.2),
    );

    println!("{}", json!({"suite": "datapath", "figures": figures}));
}
