//! Nodes and host-network pods as peers: they are addresses, not pods; a node
//! and its own pods always reach one another.

use std::net::SocketAddr;

use fairlead_tests::namespace::Namespace;
use fairlead_tests::traffic::{Met, Transport, probe};
use fairlead_tests::wait;

use super::build::{With, all, block, namespaces, peers, pod, pods, policy};
use super::scenario;
use crate::bench::{Bench, DEADLINE, Who};
use crate::far::{self, Far};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
/// Addresses of the node that the pods are on.
const HERE: [&str; 2] = ["203.0.113.1", "2001:db8:77::1"];

/// A TCP connection from `from` to port 80 of y/b succeeds, or is dropped, in both families.
fn expect(bench: &Bench, from: &Namespace, text: &str, allowed: bool) {
    for v6 in [false, true] {
        let to = SocketAddr::new(bench.pod(B).ip(v6), 80);
        let what = format!("{text} to y/b (IPv6: {v6}) to be {allowed}");
        wait::until(&what, DEADLINE, || {
            (probe(from, Transport::Tcp, to).is_server() == allowed).then_some(())
        });
    }
}

scenario!(a_node_and_its_own_pods_always_reach_one_another, |bench| {
    let shut = policy("y", "shut", all()).ingress(vec![]).egress(vec![]);
    bench.policies(vec![shut]);
    expect(bench, &bench.pod(A).namespace, "x/a", false);
    expect(bench, &bench.node.namespace, "the node", true);
    let server = fairlead_tests::traffic::Server::start(
        &bench.node.namespace,
        "node",
        &[(Transport::Tcp, 8080), (Transport::Udp, 8080)],
    );
    for (v6, here) in [false, true].into_iter().zip(HERE) {
        let node = SocketAddr::new(here.parse().unwrap(), 8080);
        let away = SocketAddr::new(A.ip(v6), 80);
        for transport in [Transport::Tcp, Transport::Udp] {
            let met = probe(&bench.pod(B).namespace, transport, node);
            assert_eq!(met, Met::Server("node".into()));
            let met = probe(&bench.pod(B).namespace, transport, away);
            assert_eq!(met, Met::Silence);
        }
    }
    drop(server);
});

scenario!(another_node_is_an_address_like_any_other, |bench| {
    let far = Far::new(bench);
    expect(bench, &far.node, "the other node", true);
    bench.policies(vec![policy("y", "shut", pod("b")).ingress(vec![])]);
    expect(bench, &far.node, "the other node", false);
    let nodes = far::NODE.map(|ip| {
        let length = if ip.contains(':') { 128 } else { 32 };
        block(&format!("{ip}/{length}"), &[])
    });
    let from = peers(nodes.into());
    bench.policies(vec![policy("y", "nodes", pod("b")).ingress(vec![from])]);
    expect(bench, &far.node, "the other node", true);
    expect(bench, &bench.pod(A).namespace, "x/a", false);
});

scenario!(selectors_do_not_match_a_host_network_pod, |bench| {
    let far = Far::new(bench);
    // z/host has the labels and the other node's addresses.
    let by_selector = vec![namespaces(all()), pods(pod("host"))];
    let from = peers(by_selector);
    bench.policies(vec![policy("y", "p", pod("b")).ingress(vec![from])]);
    expect(bench, &bench.pod(A).namespace, "x/a", true);
    expect(bench, &far.node, "the host-network pod", false);
});
