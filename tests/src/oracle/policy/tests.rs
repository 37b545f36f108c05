//! The evaluator against examples out of the published rules.

use super::*;
use crate::cluster::{LOCAL_NODE, NamedPort, Namespace, Node, labels};

fn pod(namespace: &str, name: &str, ip: &str, pairs: &[(&str, &str)]) -> Pod {
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        labels: labels(pairs),
        node: LOCAL_NODE.into(),
        ips: vec![ip.parse().unwrap()],
        host_network: false,
        ports: vec![NamedPort {
            name: "web".into(),
            protocol: Protocol::Tcp,
            number: 8080,
        }],
    }
}

fn cluster(policies: Vec<Policy>) -> Cluster {
    let namespace = |name: &str| Namespace {
        name: name.into(),
        labels: labels(&[("kubernetes.io/metadata.name", name), ("team", name)]),
    };
    Cluster {
        nodes: vec![Node {
            name: LOCAL_NODE.into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
        }],
        namespaces: vec![namespace("x"), namespace("y")],
        pods: vec![
            pod("x", "a", "10.0.0.1", &[("app", "a")]),
            pod("x", "b", "10.0.0.2", &[("app", "b")]),
            pod("y", "a", "10.0.0.3", &[("app", "a")]),
        ],
        policies,
        services: Vec::new(),
    }
}

fn traffic(src: &str, dst: &str, port: u16) -> Traffic {
    Traffic {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: 6,
        port,
    }
}

fn ingress(rules: Option<Vec<Rule>>) -> Policy {
    Policy {
        namespace: "x".into(),
        name: "p".into(),
        pod_selector: Selector::of(&[("app", "a")]),
        ingress: rules,
        ..Policy::default()
    }
}

fn pods(pairs: &[(&str, &str)]) -> Peer {
    Peer::Selectors {
        namespaces: None,
        pods: Some(Selector::of(pairs)),
    }
}

fn from(peers: Vec<Peer>) -> Rule {
    Rule {
        peers: Some(peers),
        ports: None,
    }
}

/// x/b to x/a, port 80.
fn inbound(policy: Policy) -> Side {
    sides(&cluster(vec![policy]), &traffic("10.0.0.2", "10.0.0.1", 80)).1
}

#[test]
fn an_absent_or_empty_rule_list_isolates_and_an_empty_rule_allows() {
    assert_eq!(inbound(ingress(None)), Side::Denied);
    assert_eq!(inbound(ingress(Some(vec![]))), Side::Denied);
    assert_eq!(inbound(ingress(Some(vec![Rule::default()]))), Side::Allowed);
    assert_eq!(inbound(ingress(Some(vec![from(vec![])]))), Side::Allowed);
}

#[test]
fn a_policy_of_another_namespace_or_other_pods_does_not_isolate() {
    let elsewhere = Policy {
        namespace: "y".into(),
        ..ingress(None)
    };
    assert_eq!(inbound(elsewhere), Side::Open);
    let others = Policy {
        pod_selector: Selector::of(&[("app", "b")]),
        ..ingress(None)
    };
    assert_eq!(inbound(others), Side::Open);
}

#[test]
fn egress_is_isolated_by_type_or_by_an_egress_rule_only() {
    let out = |policy| sides(&cluster(vec![policy]), &traffic("10.0.0.1", "10.0.0.2", 80)).0;
    assert_eq!(out(ingress(None)), Side::Open);
    assert_eq!(
        out(Policy {
            egress: Some(vec![]),
            ..ingress(None)
        }),
        Side::Open
    );
    let typed = Policy {
        types: Some(vec![Direction::Egress]),
        ..ingress(None)
    };
    assert_eq!(out(typed.clone()), Side::Denied);
    assert_eq!(inbound(typed), Side::Open);
    let ruled = Policy {
        egress: Some(vec![Rule::default()]),
        ..ingress(None)
    };
    assert_eq!(out(ruled), Side::Allowed);
}

#[test]
fn a_pod_selector_alone_means_the_own_namespace() {
    let policy = || ingress(Some(vec![from(vec![pods(&[("app", "a")])])]));
    let state = cluster(vec![policy()]);
    assert_eq!(
        sides(&state, &traffic("10.0.0.3", "10.0.0.1", 80)).1,
        Side::Denied
    );
    let both = Peer::Selectors {
        namespaces: Some(Selector::of(&[("team", "y")])),
        pods: Some(Selector::of(&[("app", "a")])),
    };
    let state = cluster(vec![ingress(Some(vec![from(vec![both])]))]);
    assert_eq!(
        sides(&state, &traffic("10.0.0.3", "10.0.0.1", 80)).1,
        Side::Allowed
    );
    assert_eq!(
        sides(&state, &traffic("10.0.0.2", "10.0.0.1", 80)).1,
        Side::Denied
    );
}

#[test]
fn named_ports_belong_to_the_destination_pod_and_protocol() {
    let rule = Rule {
        peers: None,
        ports: Some(vec![PolicyPort {
            port: Some(PortRef::Name("web".into())),
            ..Default::default()
        }]),
    };
    let state = cluster(vec![ingress(Some(vec![rule]))]);
    assert_eq!(
        sides(&state, &traffic("10.0.0.2", "10.0.0.1", 8080)).1,
        Side::Allowed
    );
    assert_eq!(
        sides(&state, &traffic("10.0.0.2", "10.0.0.1", 80)).1,
        Side::Denied
    );
    let udp = Traffic {
        protocol: 17,
        ..traffic("10.0.0.2", "10.0.0.1", 8080)
    };
    assert_eq!(sides(&state, &udp).1, Side::Denied);
}

#[test]
fn port_ranges_hold_both_ends_and_no_port_means_all_of_the_protocol() {
    let ranged = |end_port| {
        let port = PolicyPort {
            port: Some(PortRef::Number(80)),
            end_port,
            protocol: None,
        };
        cluster(vec![ingress(Some(vec![Rule {
            peers: None,
            ports: Some(vec![port]),
        }]))])
    };
    let side = |state: &Cluster, port| sides(state, &traffic("10.0.0.2", "10.0.0.1", port)).1;
    assert_eq!(
        [79, 80, 90, 91].map(|port| side(&ranged(Some(90)), port)),
        [Side::Denied, Side::Allowed, Side::Allowed, Side::Denied]
    );
    let any = Rule {
        peers: None,
        ports: Some(vec![PolicyPort::default()]),
    };
    let state = cluster(vec![ingress(Some(vec![any]))]);
    assert_eq!(side(&state, 1234), Side::Allowed);
    let icmp = Traffic {
        protocol: 1,
        ..traffic("10.0.0.2", "10.0.0.1", 0)
    };
    assert_eq!(sides(&state, &icmp).1, Side::Denied);
}

#[test]
fn blocks_match_pods_too_and_their_holes_do_not() {
    let block = Peer::Block {
        cidr: "10.0.0.0/24".parse().unwrap(),
        except: vec!["10.0.0.2/32".parse().unwrap()],
    };
    let state = cluster(vec![ingress(Some(vec![from(vec![block])]))]);
    assert_eq!(
        sides(&state, &traffic("10.0.0.3", "10.0.0.1", 80)).1,
        Side::Allowed
    );
    assert_eq!(
        sides(&state, &traffic("10.0.0.2", "10.0.0.1", 80)).1,
        Side::Denied
    );
    assert_eq!(
        sides(&state, &traffic("10.0.1.2", "10.0.0.1", 80)).1,
        Side::Denied
    );
}

#[test]
fn the_own_node_and_the_pod_itself_always_pass() {
    let closed = Policy {
        types: Some(vec![Direction::Ingress, Direction::Egress]),
        ..ingress(None)
    };
    let state = cluster(vec![closed]);
    for (src, dst) in [
        ("192.0.2.1", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1"),
        ("10.0.0.1", "10.0.0.1"),
    ] {
        assert_eq!(
            sides(&state, &traffic(src, dst, 80)),
            (Side::Open, Side::Open),
            "{src} {dst}"
        );
    }
}

#[test]
fn expressions_follow_their_operators() {
    let check = |operator, values: &[&str], pairs: &[(&str, &str)]| {
        let expression = Expression {
            key: "k".into(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        matches(
            &Selector {
                expressions: vec![expression],
                ..Default::default()
            },
            &labels(pairs),
        )
    };
    assert!(check(Operator::In, &["1", "2"], &[("k", "2")]));
    assert!(!check(Operator::In, &["1"], &[]));
    assert!(
        check(Operator::NotIn, &["1"], &[]),
        "an absent label is not in"
    );
    assert!(!check(Operator::NotIn, &["1"], &[("k", "1")]));
    assert!(check(Operator::Exists, &[], &[("k", "")]));
    assert!(check(Operator::DoesNotExist, &[], &[("j", "")]));
}
