//! ICMP under policies: rules without ports match it, rules with ports do not;
//! answers and errors of what is allowed pass.

use std::process::Command;

use fairlead_tests::cluster::Protocol;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::process;
use fairlead_tests::traffic::{Met, Transport};
use fairlead_tests::wait;

use super::build::{With, all, any_of, anything, namespaces, ns, number, peers, pod, policy, rule};
use super::scenario;
use crate::bench::{Bench, DEADLINE, Who};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const C: Who = Who { ns: "z", pod: "c" };

fn ping(command: &mut Command, who: Who, v6: bool) -> bool {
    command.args(["-c", "1", "-W", "1", &who.ip(v6).to_string()]);
    process::output(command).status.success()
}

/// `from` can, or cannot, ping `to`, in both families.
fn expect(bench: &Bench, from: Who, to: Who, allowed: bool) {
    let namespace = &bench.pod(from).namespace;
    expect_from(namespace, &format!("{from:?}"), to, allowed);
}

fn expect_from(namespace: &Namespace, from: &str, to: Who, allowed: bool) {
    for v6 in [false, true] {
        let what = format!("ping from {from} to {to:?} (IPv6: {v6}) to be {allowed}");
        wait::until(&what, DEADLINE, || {
            (ping(&mut namespace.command("ping"), to, v6) == allowed).then_some(())
        });
    }
}

scenario!(rules_with_ports_do_not_match_a_ping, |bench| {
    let from = vec![namespaces(all())];
    let every_port = Protocol::ALL.map(any_of).into();
    bench.policies(vec![
        policy("y", "p", pod("b")).ingress(vec![rule(from, every_port)]),
    ]);
    expect(bench, A, B, false);
    // The policy is about pod b alone, and about what comes to it: answers pass.
    expect(bench, B, A, true);
    expect(bench, A, C, true);
    for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
        assert!(bench.probe(A, B, false, transport, 80).is_server());
    }
    expect_from(&bench.node.namespace, "the node", B, true);
});

scenario!(rules_without_ports_match_a_ping_of_their_peers, |bench| {
    let from = peers(vec![namespaces(ns("x"))]);
    bench.policies(vec![policy("y", "p", pod("b")).ingress(vec![from])]);
    expect(bench, C, B, false);
    expect(bench, A, B, true);
});

scenario!(a_ping_needs_the_senders_rules_too, |bench| {
    let udp = rule(vec![namespaces(all())], vec![number(Protocol::Udp, 80)]);
    let to_y = peers(vec![namespaces(ns("y"))]);
    bench.policies(vec![
        policy("x", "p", pod("a")).egress(vec![udp, to_y]),
        policy("y", "p", pod("b")).ingress(vec![anything()]),
    ]);
    expect(bench, A, C, false);
    expect(bench, A, B, true);
    expect(bench, C, A, true);
});

scenario!(
    an_error_about_an_allowed_packet_passes_a_closed_door,
    |bench| {
        // Port 4444 is closed at y/b: its ICMP error goes to x/a, which accepts nothing.
        bench.policies(vec![policy("x", "shut", pod("a")).ingress(vec![])]);
        expect(bench, B, A, false);
        for v6 in [false, true] {
            let met = bench.probe(A, B, v6, Transport::Udp, 4444);
            assert_eq!(met, Met::Refused);
        }
    }
);
