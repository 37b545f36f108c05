//! Tables that fill up: nothing passes that should not, what was there goes
//! on, `status` and a metric say so, and room that comes free is used.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use fairlead_proxy::OBJECT;
use fairlead_proxy::datapath::{Datapath, Place};
use fairlead_tests::cluster::{self, Cluster, LOCAL_NODE, Namespace as Ns, Peer, labels};
use fairlead_tests::namespace::{Namespace, join};
use fairlead_tests::node::{Node, Pod};
use fairlead_tests::require;
use fairlead_tests::traffic::{Server, Transport};
use fairlead_tests::wait;
use serde_json::Value;

use crate::policy::build::{With, all, block, namespaces, peers, pod, pods, policy};
use crate::service::{front, vip};

const DEADLINE: Duration = Duration::from_mins(1);
const SOON: Duration = Duration::from_millis(300);
/// Flows that the small table holds.
const ROOM: usize = 64;
/// Answered.
const PORT: u16 = 80;
/// Taken, but never answered: its flows are half-open.
const SILENT: u16 = 81;

fn ips(host: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 244, 0, host]),
        format!("fd00:244::{host:x}").parse().unwrap(),
    ]
}

/// Two pods, each isolated both ways and allowed everything: every packet needs a flow.
fn cluster() -> Cluster {
    let pod = |name: &str, host| cluster::Pod {
        namespace: "x".into(),
        name: name.into(),
        labels: labels(&[("pod", name)]),
        node: LOCAL_NODE.into(),
        ips: ips(host).into(),
        host_network: false,
        ports: Vec::new(),
    };
    let open = || vec![peers(vec![namespaces(all())])];
    Cluster {
        namespaces: vec![Ns {
            name: "x".into(),
            labels: labels(&[]),
        }],
        pods: vec![pod("a", 10), pod("b", 11)],
        policies: vec![policy("x", "p", all()).ingress(open()).egress(open())],
        services: vec![front(&[ips(11)], &[PORT, SILENT])],
        ..Cluster::default()
    }
}

struct Small {
    client: Pod,
    server_pod: Pod,
    _server: Server,
    _silent: UdpSocket,
    node: Node,
}

impl Small {
    fn new(sizes: &[&str]) -> Self {
        Self::on(Node::new(LOCAL_NODE), sizes)
    }

    fn on(mut node: Node, sizes: &[&str]) -> Self {
        node.apply(&cluster());
        node.start_daemon_with(sizes);
        let (client, server_pod) = (node.pod("x", "a", &ips(10)), node.pod("x", "b", &ips(11)));
        let server = Server::start(&server_pod.namespace, "x/b", &[(Transport::Udp, PORT)]);
        let silent = server_pod
            .namespace
            .enter(|| UdpSocket::bind(("::", SILENT)).unwrap());
        Self {
            client,
            server_pod,
            _server: server,
            _silent: silent,
            node,
        }
    }

    fn socket(&self) -> UdpSocket {
        let any = IpAddr::from([0, 0, 0, 0]);
        let socket = self
            .client
            .namespace
            .enter(|| UdpSocket::bind((any, 0)).unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    /// Drops with a reason, from all hooks.
    fn drops(&self, reason: &str) -> u64 {
        let status = self.status();
        let drops = status["drops"].as_array().unwrap();
        let ours = drops.iter().filter(|drop| drop["reason"] == reason);
        ours.map(|drop| drop["packets"].as_u64().unwrap()).sum()
    }

    /// `status -o json`, well or not.
    fn status(&self) -> Value {
        let mut command = self.node.proxy(&["status", "-o", "json"]);
        command.arg("--socket").arg(self.node.socket());
        let output = fairlead_tests::process::output(&mut command);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn remove(self) {
        self.node.remove(self.client);
        self.node.remove(self.server_pod);
    }
}

/// Whether an answer comes through `socket` from the server.
fn answered(socket: &UdpSocket, to: SocketAddr) -> bool {
    socket.send_to(b"who", to).unwrap();
    let mut buffer = [0; 16];
    socket.recv_from(&mut buffer).is_ok_and(|(_, from)| {
        assert_eq!(from, to);
        true
    })
}

/// Fills `map` with flows to `to`, looks at what must hold, waits for recovery.
fn fill(small: &Small, to: SocketAddr, map: &str) {
    let first = small.socket();
    wait::until("the first flow", DEADLINE, || {
        answered(&first, to).then_some(())
    });
    let silent = SocketAddr::new(to.ip(), SILENT);
    for _ in 0..2 * ROOM {
        small.socket().send_to(b"who", silent).unwrap();
    }
    assert!(small.drops("flow_table_full") >= 32, "{}", small.status());
    // A flow that is known goes on, whatever the table; a new one does not.
    assert!(answered(&first, to), "the first flow is still known");
    let new = small.socket();
    assert!(!answered(&new, to), "dropped, not let through unjudged");
    wait::until("the full table to be told", DEADLINE, || {
        let status = small.status();
        let errors = status["errors"].as_array().unwrap();
        let told = errors
            .iter()
            .any(|error| error.as_str().unwrap().contains(map));
        answered(&first, to);
        let metrics = small.node.metrics();
        assert!(metrics.contains(&format!("fairlead_map_max_entries{{map=\"{map}\"}} 64\n")));
        let is_full = metrics.contains(&format!("fairlead_map_entries{{map=\"{map}\"}} 64\n"));
        (told && is_full && metrics.contains("reason=\"flow_table_full\"")).then_some(())
    });
    // Half-open flows go early under pressure, and the room is used.
    wait::until("room for a new flow", DEADLINE, || {
        answered(&new, to).then_some(())
    });
    wait::until("the error to be gone", DEADLINE, || {
        let errors = &small.status()["errors"];
        errors.as_array().unwrap().is_empty().then_some(())
    });
}

#[test]
fn a_full_flow_table_drops_new_flows_and_recovers() {
    require!(Root, Bpf);
    let small = Small::new(&["--map-size=FLOWS_V4=64"]);
    fill(&small, SocketAddr::new(ips(11)[0], PORT), "FLOWS_V4");
    small.remove();
}

#[test]
fn a_full_table_of_service_flows_drops_new_flows_and_recovers() {
    require!(Root, Bpf);
    let small = Small::new(&["--map-size=VIP_FLOWS_V4=64"]);
    fill(&small, vip(false, PORT), "VIP_FLOWS_V4");
    small.remove();
}

/// A build with smaller bounds has left its maps behind.
fn pin_small(node: &Node, map: &str, entries: u32) {
    let place = Place {
        bpffs: node.bpf.path().to_owned(),
        cgroup: None,
        sizes: BTreeMap::from([(map.to_owned(), entries)]),
    };
    drop(Datapath::open(OBJECT, &place).unwrap());
}

/// As [`cluster`], but only pods that have a label each of their own may reach b.
fn closed_to_a() -> Cluster {
    let mut cluster = cluster();
    let strangers = ["c", "d", "e", "f", "g", "h"];
    for (host, name) in (20..).zip(strangers) {
        cluster.pods.push(cluster::Pod {
            namespace: "x".into(),
            name: name.into(),
            labels: labels(&[("pod", name)]),
            node: "elsewhere".into(),
            ips: ips(host).into(),
            host_network: false,
            ports: Vec::new(),
        });
    }
    let rules = strangers.map(|name| peers(vec![pods(pod(name))]));
    cluster.policies = vec![policy("x", "p", pod("b")).ingress(rules.into())];
    cluster
}

#[test]
fn a_policy_takes_away_what_it_should_though_a_map_is_full() {
    const MAP: &str = "POLICY_PEERS";
    require!(Root, Bpf);
    let node = Node::new(LOCAL_NODE);
    pin_small(&node, MAP, 4);
    let small = Small::on(node, &[]);
    let (socket, to) = (small.socket(), SocketAddr::new(ips(11)[0], PORT));
    wait::until("the first answer", DEADLINE, || {
        answered(&socket, to).then_some(())
    });
    small.node.apply(&closed_to_a());
    wait::until("the connection to be cut", DEADLINE, || {
        (!answered(&socket, to)).then_some(())
    });
    let status = small.status();
    let error = status["errors"][0].as_str().unwrap();
    assert!(
        error.contains("map POLICY_PEERS is full (4 entries)"),
        "{status}"
    );
    assert!(error.contains("left out"), "{status}");
    assert!(
        small
            .node
            .metrics()
            .contains("fairlead_map_full_total{map=\"POLICY_PEERS\"}")
    );
    // With fewer of them it is in step again.
    small.node.apply(&cluster());
    wait::until("the answer to be back", DEADLINE, || {
        (answered(&socket, to) && small.node.is_well()).then_some(())
    });
    small.remove();
}

/// A machine that is no node and no pod, behind the node.
fn world(node: &Node) -> (Namespace, SocketAddr) {
    let world = Namespace::new("world");
    join((&node.namespace, "up0"), (&world, "eth0"));
    node.namespace.add_address("up0", [192, 0, 2, 1].into(), 24);
    let address = IpAddr::from([192, 0, 2, 2]);
    world.add_address("eth0", address, 24);
    world.ip("route add 10.244.0.0/24 via 192.0.2.1");
    (world, SocketAddr::new(address, PORT))
}

/// As [`cluster`], but a may send to these blocks only.
fn blocks(blocks: Vec<Peer>) -> Cluster {
    let mut cluster = cluster();
    cluster.policies = vec![policy("x", "p", pod("a")).egress(vec![peers(blocks)])];
    cluster
}

#[test]
fn blocks_that_do_not_fit_are_closed_and_those_that_do_come_in_after_others() {
    const MAP: &str = "CIDRS_V4";
    require!(Root, Bpf);
    let node = Node::new(LOCAL_NODE);
    pin_small(&node, MAP, 4);
    let small = Small::on(node, &[]);
    let (world, to) = world(&small.node);
    let _server = Server::start(&world, "world", &[(Transport::Udp, PORT)]);
    let socket = small.socket();
    // Waits for a change to bite and for what `status` says.
    let becomes = |open: bool, told: bool| {
        wait::until("the policy", DEADLINE, || {
            let status = small.status();
            let errors = status["errors"].as_array().unwrap();
            let of_map = |error: &Value| error.as_str().unwrap().contains("CIDRS");
            let tells = errors.len() == 1 && errors.iter().all(of_map);
            let is_told = if told { tells } else { errors.is_empty() };
            (answered(&socket, to) == open && is_told).then_some(())
        });
    };
    small.node.apply(&blocks(vec![block("192.0.2.0/24", &[])]));
    becomes(true, false);
    // Five prefixes, and the old one: all are left out, though they would allow it.
    let hosts = [8, 9, 10, 11].map(|host| format!("192.0.2.{host}/32"));
    let holes = hosts.each_ref().map(String::as_str);
    small
        .node
        .apply(&blocks(vec![block("192.0.2.0/24", &holes)]));
    becomes(false, true);
    assert!(small.node.metrics().contains("fairlead_problems 1\n"));
    // Three, which fit.
    let three = |first: &str| {
        let others = ["198.51.100.0/25", "203.0.113.0/24"].map(|cidr| block(cidr, &[]));
        [vec![block(first, &[])], others.into()].concat()
    };
    small.node.apply(&blocks(three("192.0.2.2/32")));
    becomes(true, false);
    // Three others, which do not fit beside those: it is closed in the end, too.
    let others = ["198.51.100.128/25", "198.18.0.0/16", "203.0.113.0/25"];
    let others = || others.map(|cidr| block(cidr, &[])).into();
    small.node.apply(&blocks(others()));
    becomes(false, false);
    small.node.apply(&blocks(three("192.0.2.0/24")));
    becomes(true, false);
    assert!(small.node.metrics().contains("fairlead_problems 0\n"));
    small.remove();
}
