//! Endpoint choice by the published rules.

use super::*;
use crate::cluster::{NamedPort, Protocol, REMOTE_NODE, Slice};

fn endpoint(ip: &str, ready: bool, serving: bool, terminating: bool, node: &str) -> Endpoint {
    Endpoint {
        ip: ip.parse().unwrap(),
        ready,
        serving,
        terminating,
        node: Some(node.into()),
    }
}

fn cluster(endpoints: Vec<Endpoint>, internal_local: bool) -> Cluster {
    let http = |number| NamedPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        number,
    };
    let service = Service {
        namespace: "x".into(),
        name: "s".into(),
        ips: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            number: 80,
        }],
        slices: vec![Slice {
            v6: false,
            ports: vec![http(8080)],
            endpoints,
        }],
        internal_local,
        affinity: None,
    };
    Cluster {
        services: vec![service],
        ..Cluster::default()
    }
}

fn found(cluster: &Cluster) -> Target {
    target(cluster, "10.96.0.1".parse().unwrap(), 80, 6)
}

fn backends(ips: &[&str]) -> Target {
    Target::Backends(ips.iter().map(|ip| (ip.parse().unwrap(), 8080)).collect())
}

#[test]
fn ready_endpoints_win_over_terminating_ones() {
    let both = vec![
        endpoint("10.0.0.1", true, true, false, LOCAL_NODE),
        endpoint("10.0.0.2", false, true, true, LOCAL_NODE),
        endpoint("10.0.0.3", false, false, true, LOCAL_NODE),
    ];
    assert_eq!(
        found(&cluster(both.clone(), false)),
        backends(&["10.0.0.1"])
    );
    assert_eq!(
        found(&cluster(both[1..].to_vec(), false)),
        backends(&["10.0.0.2"])
    );
    assert_eq!(
        found(&cluster(both[2..].to_vec(), false)),
        Target::NoEndpoint
    );
}

#[test]
fn a_local_policy_drops_where_only_others_have_endpoints() {
    let remote = vec![endpoint("10.0.1.1", true, true, false, REMOTE_NODE)];
    assert_eq!(
        found(&cluster(remote.clone(), true)),
        Target::NoLocalEndpoint
    );
    assert_eq!(
        found(&cluster(remote.clone(), false)),
        backends(&["10.0.1.1"])
    );
    assert_eq!(found(&cluster(Vec::new(), true)), Target::NoEndpoint);
    let mut both = remote;
    both.push(endpoint("10.0.0.2", false, true, true, LOCAL_NODE));
    assert_eq!(found(&cluster(both, true)), backends(&["10.0.0.2"]));
}

#[test]
fn address_port_and_protocol_must_fit() {
    let state = cluster(
        vec![endpoint("10.0.0.1", true, true, false, LOCAL_NODE)],
        false,
    );
    let at = |ip: &str, port, protocol| target(&state, ip.parse().unwrap(), port, protocol);
    assert_eq!(at("10.96.0.1", 81, 6), Target::UnknownPort);
    assert_eq!(at("10.96.0.1", 80, 17), Target::UnknownPort);
    assert_eq!(at("10.96.0.2", 80, 6), Target::Plain);
}
