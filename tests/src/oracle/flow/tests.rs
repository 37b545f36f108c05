//! The stream rules, one by one.

use super::*;
use crate::cluster::{
    Endpoint, LOCAL_NODE, NamedPort, Namespace, Pod, Policy, PolicyPort, PortRef, Protocol, Rule,
    Selector, Service, ServicePort, Slice, labels,
};
use crate::packet::body;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, address: &str) -> Pod {
    Pod {
        namespace: "x".into(),
        name: name.into(),
        labels: labels(&[("app", name)]),
        node: LOCAL_NODE.into(),
        ips: vec![ip(address)],
        host_network: false,
        ports: Vec::new(),
    }
}

fn cluster(policies: Vec<Policy>) -> Cluster {
    let endpoint = |address: &str| Endpoint {
        ip: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
    };
    Cluster {
        namespaces: vec![Namespace {
            name: "x".into(),
            labels: labels(&[]),
        }],
        pods: vec![pod("a", "10.0.0.1"), pod("b", "10.0.0.2")],
        policies,
        services: vec![Service {
            namespace: "x".into(),
            name: "s".into(),
            ips: vec![ip("10.96.0.1")],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Udp,
                number: 53,
            }],
            slices: vec![Slice {
                v6: false,
                ports: vec![NamedPort {
                    name: String::new(),
                    protocol: Protocol::Udp,
                    number: 5353,
                }],
                endpoints: vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")],
            }],
            internal_local: false,
            affinity: None,
        }],
        ..Cluster::default()
    }
}

/// Pod b accepts TCP 80 only.
fn only_http_to_b() -> Policy {
    let http = PolicyPort {
        port: Some(PortRef::Number(80)),
        ..PolicyPort::default()
    };
    Policy {
        namespace: "x".into(),
        name: "p".into(),
        pod_selector: Selector::of(&[("app", "b")]),
        ingress: Some(vec![Rule {
            peers: None,
            ports: Some(vec![http]),
        }]),
        ..Policy::default()
    }
}

fn send(oracle: &mut Oracle, src: &str, dst: &str, body: Body) -> Vec<Verdict> {
    let packet = Ip::new(ip(src), ip(dst), body);
    let all = oracle.from_pod(&[ip(src)], true, &packet);
    if let [only] = all.as_slice() {
        oracle.saw(only, None);
    }
    all.iter().map(|expected| expected.verdict).collect()
}

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const TO_A: Verdict = Verdict::Deliver(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
const TO_B: Verdict = Verdict::Deliver(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
const DENIED: Verdict = Verdict::Drop(Drop::Ingress);

#[test]
fn replies_pass_though_nothing_allows_them() {
    let mut closed = only_http_to_b();
    closed.pod_selector = Selector::of(&[("app", "a")]);
    let mut oracle = Oracle::new(cluster(vec![closed]));
    assert_eq!(send(&mut oracle, B, A, body::udp(80, 1000)), [DENIED]);
    assert_eq!(send(&mut oracle, A, B, body::udp(1000, 80)), [TO_B]);
    assert_eq!(send(&mut oracle, B, A, body::udp(80, 1000)), [TO_A]);
    assert_eq!(send(&mut oracle, B, A, body::udp(80, 1001)), [DENIED]);
}

#[test]
fn a_bare_syn_is_new_and_other_tcp_is_picked_up_in_either_direction() {
    let mut oracle = Oracle::new(cluster(vec![only_http_to_b()]));
    assert_eq!(
        send(&mut oracle, A, B, body::tcp(80, 1000, flag::SYN)),
        [DENIED]
    );
    assert_eq!(
        send(&mut oracle, A, B, body::tcp(1000, 81, flag::ACK)),
        [TO_B]
    );
    let mut closed = only_http_to_b();
    closed.types = Some(vec![Direction::Ingress, Direction::Egress]);
    let mut oracle = Oracle::new(cluster(vec![closed]));
    assert_eq!(
        send(&mut oracle, A, B, body::tcp(1000, 81, flag::ACK)),
        [DENIED, Verdict::Drop(Drop::Egress)]
    );
    assert_eq!(
        send(&mut oracle, B, A, body::tcp(80, 1000, flag::ACK)),
        [TO_A]
    );
}

#[test]
fn a_change_of_policy_revokes() {
    let mut oracle = Oracle::new(cluster(vec![only_http_to_b()]));
    assert_eq!(
        send(&mut oracle, A, B, body::tcp(1000, 80, flag::SYN)),
        [TO_B]
    );
    let mut closed = only_http_to_b();
    closed.ingress = None;
    closed.types = Some(vec![Direction::Ingress, Direction::Egress]);
    oracle.change(cluster(vec![closed]));
    let verdicts = send(&mut oracle, A, B, body::tcp(1000, 80, flag::ACK));
    assert!(
        verdicts
            .iter()
            .all(|verdict| matches!(verdict, Verdict::Drop(_))),
        "{verdicts:?}"
    );
}

#[test]
fn a_service_gives_any_backend_then_the_same_and_answers_as_itself() {
    let mut oracle = Oracle::new(cluster(vec![]));
    let query = Ip::new(ip(A), ip("10.96.0.1"), body::udp(1000, 53));
    let choices = oracle.from_pod(&[ip(A)], true, &query);
    assert_eq!(
        choices
            .iter()
            .map(|choice| choice.verdict)
            .collect::<Vec<_>>(),
        [TO_A, TO_B]
    );
    // To itself it comes from the gateway.
    assert_eq!(choices[0].ip.as_ref().unwrap().src, MIRROR_V4);
    oracle.saw(&choices[1], None);
    assert_eq!(oracle.from_pod(&[ip(A)], true, &query).len(), 1);
    let answer = Ip::new(ip(B), ip(A), body::udp(5353, 1000));
    let back = oracle.from_pod(&[ip(B)], true, &answer);
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].verdict, TO_A);
    let seen = back[0].ip.as_ref().unwrap();
    assert_eq!(
        (seen.src, seen.ports()),
        (ip("10.96.0.1"), Some((53, 1000)))
    );
}

#[test]
fn an_error_about_a_translated_packet_is_translated_back() {
    let mut oracle = Oracle::new(cluster(vec![]));
    let query = Ip::new(ip(A), ip("10.96.0.1"), body::udp(1000, 53));
    let choice = oracle.from_pod(&[ip(A)], true, &query)[1].clone();
    oracle.saw(&choice, None);
    let error = Body::Error {
        error: crate::packet::IcmpError::PortUnreachable,
        inner: Box::new(choice.ip.unwrap()),
    };
    let back = oracle.from_pod(&[ip(B)], true, &Ip::new(ip(B), ip(A), error));
    assert_eq!(back.len(), 1);
    let Some(Ip {
        src,
        body: Body::Error { inner, .. },
        ..
    }) = &back[0].ip
    else {
        panic!("{back:?}");
    };
    assert_eq!((*src, **inner == query), (ip("10.96.0.1"), true));
}

#[test]
fn spoofed_packets_and_lost_fragments_are_dropped() {
    let oracle = Oracle::new(cluster(vec![]));
    let packet = Ip::new(ip(B), ip(A), body::udp(1, 2));
    let verdict = |mac, packet: &Ip| oracle.from_pod(&[ip(A)], mac, packet)[0].verdict;
    assert_eq!(verdict(true, &packet), Verdict::Drop(Drop::SpoofedAddress));
    assert_eq!(
        verdict(
            false,
            &Ip {
                src: ip(A),
                ..packet.clone()
            }
        ),
        Verdict::Drop(Drop::SpoofedMac)
    );
    let mut later = Ip {
        src: ip(A),
        dst: ip(B),
        ..packet
    };
    later.fragment = Some(crate::packet::Fragment {
        id: 1,
        offset: 8,
        more: false,
    });
    later.body = Body::Raw {
        protocol: 17,
        bytes: vec![0; 8],
    };
    assert_eq!(verdict(true, &later), Verdict::Drop(Drop::FragmentUnknown));
}
