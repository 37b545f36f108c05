//! What holds the programs on a pod's host interface, and what the kernel does
//! there besides.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use fairlead_proxy::datapath::load::Pins;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::node::Node;
use fairlead_tests::traffic::{Met, Server, Transport, probe};
use fairlead_tests::{process, require, wait};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
const PORT: u16 = 80;

/// A pod that is none of Kubernetes': no policy selects it.
struct Plain {
    namespace: Namespace,
    host: String,
    ip: std::net::IpAddr,
}

fn add(node: &Node, id: &str, members: &Value) -> Plain {
    let namespace = Namespace::new("pod");
    namespace.ip("link set lo down");
    let mut conf = node.network();
    conf["defaultPolicy"] = json!("open");
    for (name, value) in members.as_object().unwrap() {
        conf[name] = value.clone();
    }
    let output = node.cni("ADD", &namespace, id, "", &conf);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let result: Value = serde_json::from_str(&text).unwrap();
    let address = result["ips"][0]["address"].as_str().unwrap();
    Plain {
        namespace,
        host: result["interfaces"][0]["name"].as_str().unwrap().to_owned(),
        ip: address.split('/').next().unwrap().parse().unwrap(),
    }
}

fn tc(node: &Node, words: &str) -> String {
    let mut command = node.namespace.command("tc");
    process::run(command.args(words.split_whitespace()))
}

#[test]
fn programs_that_somebody_took_off_an_interface_come_back() {
    require!(Root, Bpf, Program("tc"));
    let mut node = Node::new("hooks");
    node.start_daemon_with(&["--audit=1"]);
    let one = add(&node, "one", &json!({}));
    let other = add(&node, "other", &json!({}));
    let server = Server::start(&one.namespace, "one", &[(Transport::Tcp, PORT)]);
    let address = SocketAddr::new(one.ip, PORT);
    let before = node.filters();
    assert_eq!(before.len(), 4, "{before:?}");
    for tampering in [
        format!("filter del dev {} ingress", one.host),
        format!("filter del dev {} egress", one.host),
        format!("qdisc del dev {} clsact", other.host),
    ] {
        tc(&node, &tampering);
        assert!(node.filters().len() < 4, "{tampering}");
        wait::until(&tampering, DEADLINE, || {
            (node.filters() == before).then_some(())
        });
    }
    assert!(probe(&other.namespace, Transport::Tcp, address).is_server());
    let status = node.ask(&["status"]);
    assert!(status["repairs"]["link"].as_u64() >= Some(4), "{status}");
    drop(server);
}

#[test]
fn cleanup_takes_the_programs_off_and_leaves_other_filters() {
    require!(Root, Bpf, Program("tc"));
    let mut node = Node::new("hooks");
    node.start_daemon();
    let one = add(&node, "one", &json!({}));
    let other = add(&node, "other", &json!({}));
    let theirs = format!("dev {} ingress", one.host);
    let program = Pins::below(node.bpf.path()).object("pod_out");
    let program = program.display();
    tc(
        &node,
        &format!("filter add {theirs} pref 7 bpf da object-pinned {program}"),
    );
    node.daemon.as_mut().unwrap().stop();
    let mut command = node.proxy(&["cleanup", "--bpffs"]);
    command
        .arg(node.bpf.path())
        .arg("--socket")
        .arg(node.socket());
    let said = process::run(&mut command);
    assert!(said.contains(&format!("{}-pod_out", one.host)), "{said}");
    let left = tc(&node, &format!("filter show {theirs}"));
    assert!(
        left.contains("pref 7 ") && !left.contains("pref 1 "),
        "{left}"
    );
    let left = tc(&node, &format!("filter show dev {} egress", one.host));
    assert!(!left.contains("pref 1 "), "{left}");
    let qdiscs = tc(&node, &format!("qdisc show dev {}", other.host));
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    let again = process::run(&mut command);
    assert!(again.contains("nothing to remove"), "{again}");
    // The pods are plainly routed now, and can still be removed.
    for (id, pod) in [("one", one), ("other", other)] {
        let output = node.cni("DEL", &pod.namespace, id, "", &node.network());
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn the_loopback_interface_of_a_pod_is_up() {
    require!(Root, Bpf);
    let mut node = Node::new("hooks");
    node.start_daemon();
    let pod = add(&node, "one", &json!({}));
    let server = Server::start(&pod.namespace, "one", &[(Transport::Tcp, PORT)]);
    for address in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(address.parse().unwrap(), PORT);
        assert_ne!(
            probe(&pod.namespace, Transport::Tcp, address),
            Met::Unreachable
        );
        assert!(probe(&pod.namespace, Transport::Tcp, address).is_server());
    }
    drop(server);
}

/// Seconds until a pod has received so many bytes from another.
fn transfer(from: &Namespace, to: &Plain, bytes: usize) -> f64 {
    let address = SocketAddr::new(to.ip, PORT);
    let listener = to.namespace.enter(|| TcpListener::bind(address).unwrap());
    let start = Instant::now();
    let mut sender =
        from.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap());
    let (mut receiver, _) = listener.accept().unwrap();
    sender.set_write_timeout(Some(DEADLINE)).unwrap();
    receiver.set_read_timeout(Some(DEADLINE)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&vec![1; bytes]).unwrap());
        receiver.read_exact(&mut vec![0; bytes]).unwrap();
    });
    start.elapsed().as_secs_f64()
}

/// Deliveries within the node go past the host interface and its qdisc, except
/// to a pod that is shaped.
#[test]
fn a_pod_with_a_bandwidth_receives_and_sends_no_faster() {
    const RATE: usize = 10_000_000;
    const BYTES: usize = 2_500_000;
    require!(Root, Bpf);
    let mut node = Node::new("hooks");
    node.start_daemon();
    let free = add(&node, "free", &json!({}));
    let burst = 400_000;
    let slow = add(
        &node,
        "slow",
        &json!({"runtimeConfig": {"bandwidth": {
            "ingressRate": RATE, "ingressBurst": burst, "egressRate": RATE, "egressBurst": burst}}}),
    );
    // Two seconds at the rate; the burst and what waits in the queue come sooner.
    let shaped = 2.0;
    for (from, to) in [(&free, &slow), (&slow, &free)] {
        let took = transfer(&from.namespace, to, BYTES);
        assert!(took > shaped * 0.7, "{} to {}: {took} s", from.ip, to.ip);
        assert!(took < shaped * 5.0, "{} to {}: {took} s", from.ip, to.ip);
    }
    let third = add(&node, "third", &json!({}));
    let took = transfer(&free.namespace, &third, BYTES);
    assert!(took < shaped * 0.7, "unshaped: {took} s");
}
