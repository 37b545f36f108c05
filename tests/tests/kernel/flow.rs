//! Flows across packets: what is remembered, for whom, and until when.

use std::net::IpAddr;

use fairlead_tests::cluster::{
    Cluster, Direction, LOCAL_NODE, Namespace, Node, Pod, Policy, PolicyPort, PortRef, Protocol,
    Rule, Selector, labels,
};
use fairlead_tests::generate::traffic::{Entry, Step};
use fairlead_tests::generate::{LOCAL_PODS, pod_ip};
use fairlead_tests::kernel::Action;
use fairlead_tests::packet::{Body, IcmpError, Ip, body, flag, fragments};
use fairlead_tests::require;
use proxy_ebpf::abi::{Settings, pin};
use proxy_ebpf::event::Counter;

use crate::node::sent_by;
use crate::world::World;

/// Pod 1 accepts TCP and UDP 80 from everybody and sends nothing by itself.
fn only_port_80() -> Policy {
    let port = |protocol| PolicyPort {
        protocol: Some(protocol),
        port: Some(PortRef::Number(80)),
        end_port: None,
    };
    Policy {
        namespace: "x".into(),
        name: "only-80".into(),
        pod_selector: Selector::of(&[("pod", "1")]),
        types: Some(vec![Direction::Ingress, Direction::Egress]),
        ingress: Some(vec![Rule {
            peers: None,
            ports: Some(vec![port(Protocol::Tcp), port(Protocol::Udp)]),
        }]),
        egress: None,
    }
}

fn cluster(policies: Vec<Policy>) -> Cluster {
    Cluster {
        nodes: vec![Node {
            name: LOCAL_NODE.into(),
            addresses: Vec::new(),
        }],
        namespaces: vec![Namespace {
            name: "x".into(),
            labels: labels(&[]),
        }],
        pods: (0..LOCAL_PODS)
            .map(|index| Pod {
                namespace: "x".into(),
                name: format!("local-{index}"),
                labels: labels(&[("pod", &index.to_string())]),
                node: LOCAL_NODE.into(),
                ips: vec![pod_ip(false, true, index), pod_ip(true, true, index)],
                host_network: false,
                ports: Vec::new(),
            })
            .collect(),
        policies,
        services: Vec::new(),
    }
}

fn world(sizes: &[(&'static str, u32)]) -> World {
    let mut world = World::new(sizes);
    world.restart(cluster(vec![only_port_80()]));
    world
}

fn ip(v6: bool, pod: usize) -> IpAddr {
    pod_ip(v6, true, pod)
}

/// Sends from one pod to another; whether it arrived. The evaluator has its say too.
fn send(world: &mut World, v6: bool, from: usize, to: usize, body: Body) -> bool {
    let step = Step {
        entry: Entry::Pod(from),
        ip: Ip::new(ip(v6, from), ip(v6, to), body),
    };
    world
        .step(&step)
        .unwrap_or_else(|difference| panic!("{difference}"))
        .is_some()
}

#[test]
fn a_connection_opens_talks_closes_and_opens_again() {
    require!(Root, Bpf);
    let mut world = world(&[]);
    for v6 in [false, true] {
        let (ack, fin) = (flag::ACK, flag::FIN | flag::ACK);
        for _ in 0..2 {
            assert!(send(&mut world, v6, 0, 1, body::tcp(1000, 80, flag::SYN)));
            assert!(send(
                &mut world,
                v6,
                1,
                0,
                body::tcp(80, 1000, flag::SYN | flag::ACK)
            ));
            assert!(send(&mut world, v6, 0, 1, body::tcp(1000, 80, ack)));
            assert!(send(&mut world, v6, 0, 1, body::tcp(1000, 80, fin)));
            assert!(send(&mut world, v6, 1, 0, body::tcp(80, 1000, fin)));
            assert!(send(&mut world, v6, 0, 1, body::tcp(1000, 80, ack)));
        }
        // The other way round it is another connection, which nothing allows.
        assert!(!send(&mut world, v6, 1, 0, body::tcp(80, 1000, flag::SYN)));
    }
}

#[test]
fn a_half_open_connection_gives_the_other_side_no_more_than_its_answer() {
    require!(Root, Bpf);
    let mut world = world(&[]);
    for v6 in [false, true] {
        assert!(send(&mut world, v6, 0, 1, body::tcp(1000, 80, flag::SYN)));
        assert!(send(
            &mut world,
            v6,
            1,
            0,
            body::tcp(80, 1000, flag::SYN | flag::ACK)
        ));
        assert!(!send(
            &mut world,
            v6,
            1,
            0,
            body::tcp(81, 1000, flag::SYN | flag::ACK)
        ));
        assert!(!send(&mut world, v6, 1, 2, body::tcp(80, 1000, flag::SYN)));
    }
}

#[test]
fn udp_answers_pass_and_other_datagrams_do_not() {
    require!(Root, Bpf);
    let mut world = world(&[]);
    for v6 in [false, true] {
        assert!(!send(&mut world, v6, 1, 0, body::udp(80, 1000)));
        assert!(send(&mut world, v6, 0, 1, body::udp(1000, 80)));
        assert!(send(&mut world, v6, 1, 0, body::udp(80, 1000)));
        assert!(!send(&mut world, v6, 1, 0, body::udp(80, 1001)));
    }
}

/// Pod 1 may be pinged by everybody and pings nobody.
#[test]
fn an_echo_reply_that_nobody_asked_for_lets_no_request_back() {
    require!(Root, Bpf);
    let mut world = World::new(&[]);
    let anything = Rule {
        peers: None,
        ports: None,
    };
    world.restart(cluster(vec![Policy {
        ingress: Some(vec![anything]),
        ..only_port_80()
    }]));
    for v6 in [false, true] {
        // Twice: by the policy, and by whatever is remembered.
        for _ in 0..2 {
            assert!(send(&mut world, v6, 0, 1, body::echo_reply(7)));
            assert!(!send(&mut world, v6, 1, 0, body::echo(7)));
        }
        // An answer to a request passes, and goes on to.
        for _ in 0..2 {
            assert!(send(&mut world, v6, 0, 1, body::echo(8)));
            assert!(send(&mut world, v6, 1, 0, body::echo_reply(8)));
            assert!(!send(&mut world, v6, 1, 0, body::echo(8)));
        }
        assert!(!send(&mut world, v6, 1, 0, body::echo_reply(9)));
    }
}

#[test]
fn icmp_errors_pass_with_their_flow_only() {
    require!(Root, Bpf);
    let mut world = world(&[]);
    for v6 in [false, true] {
        let error = |about: Ip| Body::Error {
            error: IcmpError::PortUnreachable,
            inner: Box::new(about),
        };
        let request = Ip::new(ip(v6, 0), ip(v6, 1), body::udp(2000, 80));
        assert!(!send(&mut world, v6, 1, 0, error(request.clone())));
        assert!(send(&mut world, v6, 0, 1, request.body.clone()));
        assert!(send(&mut world, v6, 1, 0, error(request)));
        let other = Ip::new(ip(v6, 0), ip(v6, 1), body::udp(2001, 80));
        assert!(!send(&mut world, v6, 1, 0, error(other)));
    }
}

#[test]
fn a_policy_change_revokes_and_restores() {
    require!(Root, Bpf);
    let mut world = world(&[]);
    for v6 in [false, true] {
        // By the policy, by the flow, and by what the CPU remembers of it.
        for _ in 0..3 {
            assert!(send(&mut world, v6, 0, 1, body::udp(3000, 80)));
            assert!(send(&mut world, v6, 1, 0, body::udp(80, 3000)));
        }
        world.change(cluster(vec![Policy {
            ingress: None,
            ..only_port_80()
        }]));
        assert!(!send(&mut world, v6, 0, 1, body::udp(3000, 80)));
        assert!(!send(&mut world, v6, 1, 0, body::udp(80, 3000)));
        world.change(cluster(vec![only_port_80()]));
        assert!(send(&mut world, v6, 0, 1, body::udp(3000, 80)));
        assert!(send(&mut world, v6, 1, 0, body::udp(80, 3000)));
    }
}

#[test]
fn the_policy_generation_may_wrap() {
    require!(Root, Bpf);
    let mut world = world(&[]);
    for generation in [u32::MAX - 1, u32::MAX, 1, 2] {
        let settings = Settings {
            generation,
            flags: 0,
        };
        world.kernel.set_array(pin::SETTINGS, 0, settings);
        for v6 in [false, true] {
            assert!(send(&mut world, v6, 0, 1, body::udp(4000, 80)));
            assert!(send(&mut world, v6, 1, 0, body::udp(80, 4000)));
            assert!(!send(&mut world, v6, 1, 0, body::udp(80, 4001)));
        }
    }
}

/// Flows that the small table holds.
const ROOM: u32 = 64;

#[test]
fn a_full_table_drops_new_flows_with_a_reason_and_keeps_the_old_ones() {
    require!(Root, Bpf);
    let mut world = world(&[(pin::FLOWS_V4, ROOM), (pin::FLOWS_V6, ROOM)]);
    for v6 in [false, true] {
        let mut refused = 0;
        let run = |world: &mut World, port: u16| {
            let frame = sent_by(0, ip(v6, 1), body::udp(port, 80)).encode();
            world.kernel.from_pod(0, &frame)
        };
        for port in 1..=500 {
            let run = run(&mut world, port);
            if run.action == Action::Drop {
                assert_eq!(run.counted, [Counter::FlowTableFull]);
                refused += 1;
            }
        }
        // A preallocated map has a few elements more for each processor.
        assert!(
            (300..=500 - ROOM).contains(&refused),
            "{refused} of 500 refused"
        );
        assert_eq!(
            run(&mut world, 1).action,
            Action::Redirect,
            "the first flow is still known"
        );
        let answer = sent_by(1, ip(v6, 0), body::udp(80, 1)).encode();
        assert_eq!(world.kernel.from_pod(1, &answer).action, Action::Redirect);
    }
}

/// Or they might go on to another backend of a Service, which admits them.
#[test]
fn the_later_pieces_of_a_dropped_first_one_are_dropped_unseen() {
    require!(Root, Bpf);
    let mut world = world(&[]);
    for v6 in [false, true] {
        let mut whole = sent_by(0, ip(v6, 1), body::udp(1000, 81));
        if let Body::Udp { payload, .. } = &mut whole.ip.body {
            payload.resize(300, 1);
        }
        let counted: Vec<_> = fragments(&whole, 77, 104)
            .iter()
            .flat_map(|piece| world.kernel.from_pod(0, &piece.encode()).counted)
            .collect();
        assert_eq!(
            counted,
            [
                Counter::PolicyIngress,
                Counter::FragmentUnknown,
                Counter::FragmentUnknown
            ]
        );
    }
}
