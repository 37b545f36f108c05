//! Large sets, full maps, and what explanations say.
use std::collections::BTreeSet;
use std::net::IpAddr;

use proxy_ebpf::abi;
use proxy_ebpf::addr::{BePort, proto};
use proxy_ebpf::policy::verdict;

use super::world::{self, NODE, v4};
use crate::compile::sample::{self, Size};
use crate::compile::{Compiler, Input, Problem, Tables, Write};
use crate::explain::{self, Mismatch, Packet, Reason};
use crate::model::policy::{IpBlock, Peer, Port, PortNumber, Rule};
use crate::model::{
    Change, Cidr, Key, Kind, Labels, NetworkPolicy, Object, ObjectName, Pod, Protocol, Selector,
};

fn upsert(object: Object) -> Input {
    Input::Object(Change::Upsert(object))
}

#[test]
fn a_set_of_many_port_classes_takes_several_words() {
    let size = Size {
        peers: 300,
        ports: 300,
        policies: 7,
    };
    let mut compiler = Compiler::new(NODE);
    compiler.update(sample::cluster(size));
    let tables = compiler.tables();
    let endpoint = tables.endpoints.get(&sample::SLOT).unwrap();
    assert!(
        tables
            .peers
            .iter()
            .any(|(key, _)| key.word > endpoint.ingress_set + 3)
    );
    for peer in 0..size.peers {
        let class = tables.class_of(sample::peer_address(peer));
        for asked in 0..size.peers {
            let port = BePort::new(sample::peer_port(size, asked));
            for set in [endpoint.ingress_set, endpoint.egress_set] {
                let allowed = verdict(tables, set, class, proto::TCP, port).allowed;
                assert_eq!(allowed, peer == asked);
            }
        }
    }
    let set = endpoint.ingress_set;
    let port = BePort::new(sample::peer_port(size, 0));
    assert!(!verdict(tables, set, 0, proto::TCP, port).allowed);
}

/// Pod `index` on this node, and a policy that opens these ports to anybody.
fn pod_with_ports(index: u64, ports: impl Iterator<Item = u16>) -> [Input; 3] {
    let app = Labels::from([("app".to_owned(), format!("app{index}"))]);
    let pod = Pod {
        name: world::pod_name(index),
        labels: app.clone(),
        ..Pod::default()
    };
    let port = |number| Port {
        protocol: Protocol::Tcp,
        number: PortNumber::Range(number, number),
    };
    let policy = NetworkPolicy {
        name: policy_name(index),
        subject: Selector::of_labels(&app),
        ingress: Some(vec![Rule {
            peers: vec![],
            ports: ports.map(port).collect(),
        }]),
        ..NetworkPolicy::default()
    };
    [
        upsert(Object::Pod(pod.into())),
        upsert(Object::NetworkPolicy(policy.into())),
        world::attach(index, false),
    ]
}

fn policy_name(index: u64) -> ObjectName {
    let namespace = world::pod_name(index).namespace;
    ObjectName::new(&namespace, &format!("policy{index}"))
}

#[test]
fn a_pod_whose_policies_do_not_fit_is_closed_until_they_do() {
    let mut compiler = Compiler::new(NODE);
    let odd = (0..abi::bound::POLICY_PORTS / 2).map(|i| u16::try_from(2 * i + 1).unwrap());
    let even = (1..abi::bound::POLICY_PORTS / 2).map(|i| u16::try_from(2 * i).unwrap());
    let update = compiler.update(pod_with_ports(0, odd));
    assert!(!update.again && compiler.problems().is_empty());
    compiler.update(pod_with_ports(1, even));
    assert!(compiler.problems().is_empty());
    let update = compiler.update(pod_with_ports(2, [80, 90].into_iter()));
    assert!(update.again);
    let full = Problem::SetFull {
        pod: world::pod_name(2),
        direction: crate::compile::Direction::Ingress,
        full: abi::pin::POLICY_PORTS,
    };
    assert_eq!(compiler.problems(), [full]);
    let set_of = |compiler: &Compiler, slot| {
        let endpoint = compiler.tables().endpoints.get(&slot).unwrap();
        endpoint.ingress_set
    };
    assert_eq!(set_of(&compiler, 3), abi::SET_CLOSED);
    let allows = |compiler: &Compiler, slot, port| {
        let set = set_of(compiler, slot);
        verdict(compiler.tables(), set, 0, proto::TCP, BePort::new(port)).allowed
    };
    assert!(allows(&compiler, 1, 81) && !allows(&compiler, 1, 80));
    assert!(allows(&compiler, 2, 80) && !allows(&compiler, 2, 81));
    // Nothing to write, nothing to try again for, until room is made.
    assert!(!compiler.update([]).again);
    let gone = Key {
        kind: Kind::NetworkPolicy,
        name: policy_name(0),
    };
    let mut update = compiler.update([Input::Object(Change::Remove(gone))]);
    while update.again {
        update = compiler.update([]);
    }
    assert!(compiler.problems().is_empty());
    assert!(allows(&compiler, 3, 80) && !allows(&compiler, 3, 81));
}

/// A pod on another node, number `index`, in the namespace of [`world::pod_name`] 0.
fn pod_elsewhere(index: u32) -> Pod {
    Pod {
        name: ObjectName::new(&world::pod_name(0).namespace, &format!("far{index}")),
        node: Some("elsewhere".into()),
        ips: vec![std::net::Ipv4Addr::from_bits(0x0b00_0000 + index).into()],
        ..Pod::default()
    }
}

#[test]
fn pods_whose_addresses_do_not_fit_are_strangers_until_they_do() {
    let mut compiler = Compiler::new(NODE);
    // Pod 0 lets in pods of its namespace, whatever they are.
    let [pod, _, attach] = pod_with_ports(0, std::iter::empty());
    let policy = NetworkPolicy {
        name: policy_name(0),
        subject: Selector::default(),
        ingress: Some(vec![Rule {
            peers: vec![Peer::Pods {
                namespaces: None,
                pods: Selector::default(),
            }],
            ports: vec![],
        }]),
        ..NetworkPolicy::default()
    };
    let far = (0..abi::bound::ADDRESSES).map(pod_elsewhere);
    let far = far.map(|pod| upsert(Object::Pod(pod.into())));
    let inputs = [pod, upsert(Object::NetworkPolicy(policy.into())), attach];
    compiler.update(inputs.into_iter().chain(far));
    let [Problem::AddressesFull { left_out }] = compiler.problems()[..] else {
        panic!("{:?}", compiler.problems());
    };
    assert!(left_out > 0);
    let allowed = |compiler: &Compiler, index| {
        let tables = compiler.tables();
        let set = tables.endpoints.get(&1).unwrap().ingress_set;
        let class = tables.class_of(pod_elsewhere(index).ips[0]);
        verdict(tables, set, class, proto::TCP, BePort::new(80)).allowed
    };
    let count = |compiler: &Compiler| {
        let all = 0..abi::bound::ADDRESSES;
        all.filter(|index| !allowed(compiler, *index)).count()
    };
    assert_eq!(
        count(&compiler),
        left_out,
        "closed to what was left out, open to the rest"
    );
    // As many others go: there is room.
    let gone = (0..u32::try_from(left_out).unwrap()).map(|index| Key {
        kind: Kind::Pod,
        name: pod_elsewhere(index).name,
    });
    let addresses = compiler.tables().addresses.iter();
    let mut held: BTreeSet<IpAddr> = addresses.map(|(ip, _)| ip).collect();
    let mut update = compiler.update(gone.map(|key| Input::Object(Change::Remove(key))));
    for write in &update.writes {
        if let Write::Address(ip, value) = write {
            match value {
                Some(_) => held.insert(*ip),
                None => held.remove(ip),
            };
            let of_family = held.iter().filter(|held| held.is_ipv6() == ip.is_ipv6());
            assert!(of_family.count() <= abi::bound::ADDRESSES as usize);
        }
    }
    while update.again {
        update = compiler.update([]);
    }
    assert!(compiler.problems().is_empty());
    assert_eq!(count(&compiler), left_out, "closed to those that have gone");
    assert!(allowed(&compiler, abi::bound::ADDRESSES - 1));
}

/// Pod 0 lets in these blocks: (address, length, exceptions).
fn lets_in(blocks: &[(&str, u8, &[&str])]) -> Input {
    let cidr = |ip: &str, length| Cidr::new(ip.parse().unwrap(), length).unwrap();
    let block = |(ip, length, except): &(&str, u8, &[&str])| {
        Peer::Block(IpBlock {
            cidr: cidr(ip, *length),
            except: except.iter().map(|ip| cidr(ip, 24)).collect(),
        })
    };
    let policy = NetworkPolicy {
        name: policy_name(0),
        subject: Selector::default(),
        ingress: Some(vec![Rule {
            peers: blocks.iter().map(block).collect(),
            ports: vec![],
        }]),
        ..NetworkPolicy::default()
    };
    upsert(Object::NetworkPolicy(policy.into()))
}

/// Which of some addresses outside the cluster pod 0 lets in.
fn let_in(tables: &Tables) -> Vec<bool> {
    let set = tables.endpoints.get(&1).unwrap().ingress_set;
    let asks_prefixes = tables.decision.has_cidrs_v4;
    let allowed = |ip: &str| {
        let class = tables.class_of(ip.parse().unwrap());
        let class = if asks_prefixes { class } else { 0 };
        verdict(tables, set, class, proto::TCP, BePort::new(80)).allowed
    };
    [
        "10.1.1.1", "10.1.2.1", "10.2.0.1", "10.3.1.1", "10.3.2.1", "10.4.0.1",
    ]
    .map(allowed)
    .into()
}

#[test]
fn prefixes_that_fit_once_the_old_ones_are_gone_come_in_then_and_nothing_opens() {
    let mut compiler = Compiler::new(NODE).with_prefixes([4, 4]);
    let [pod, _, attach] = pod_with_ports(0, std::iter::empty());
    let old = lets_in(&[("10.1.0.0", 16, &["10.1.1.0"]), ("10.2.0.0", 16, &[])]);
    let new = lets_in(&[("10.1.1.0", 24, &[]), ("10.3.0.0", 16, &["10.3.1.0"])]);
    compiler.update([pod, attach, old.clone()]);
    assert!(compiler.problems().is_empty());
    let mut mirror = compiler.tables().clone();
    let olds = [false, true, true, false, false, false];
    let news = [true, false, false, false, true, false];
    assert_eq!(let_in(&mirror), olds);
    for (input, before, after) in [(new, olds, news), (old, news, olds)] {
        let mut update = compiler.update([input]);
        assert!(update.again, "both do not fit");
        loop {
            for write in &update.writes {
                mirror.apply(*write);
                assert!(mirror.cidrs.len() <= 4, "{write:?}");
                for (index, now) in let_in(&mirror).into_iter().enumerate() {
                    assert!(
                        !now || before[index] || after[index],
                        "{index} at {write:?}"
                    );
                }
            }
            if !update.again {
                break;
            }
            update = compiler.update([]);
        }
        assert_eq!(let_in(&mirror), after);
        assert!(compiler.problems().is_empty());
    }
    // Alone too many: closed, and said.
    let many = [(
        "10.1.0.0",
        16,
        &["10.1.1.0", "10.1.2.0", "10.1.3.0", "10.1.4.0"][..],
    )];
    let mut update = compiler.update([lets_in(&many)]);
    while update.again {
        update = compiler.update([]);
    }
    assert_eq!(compiler.problems(), [Problem::CidrsFull { is_v6: false }]);
    assert_eq!(let_in(compiler.tables()), [false; 6]);
}

#[test]
fn explanations_name_policy_and_rule() {
    let mut compiler = Compiler::new(NODE);
    compiler.update(pod_with_ports(0, [80].into_iter()));
    compiler.update(pod_with_ports(1, [443].into_iter()));
    let packet = |to, port| Packet {
        from: v4(1),
        to: v4(to),
        protocol: proto::TCP,
        port,
    };
    let good = explain::explain(&compiler, packet(0, 80));
    assert!(good.allows());
    assert_eq!(good.egress.reason, Reason::NotIsolated);
    let allowed = Reason::Allowed {
        policy: policy_name(0),
        rule: 0,
    };
    assert_eq!(good.ingress.reason, allowed);
    let bad = explain::explain(&compiler, packet(0, 81));
    let Reason::Denied { policies } = &bad.ingress.reason else {
        panic!("{bad:?}");
    };
    assert_eq!(policies[0].rules, [Mismatch::Port]);
    assert!(!bad.allows() && bad.ingress.lookup.is_some_and(|lookup| !lookup.allowed));
    let same = explain::explain(&compiler, packet(1, 81));
    assert_eq!(same.ingress.reason, Reason::SamePod);
    assert_eq!(
        bad.ingress.reason.to_string(),
        "denied: isolated by a/policy0 (rule 0: other ports)"
    );
}

#[test]
fn a_pod_elsewhere_is_explained_as_it_is_there() {
    let mut compiler = Compiler::new(NODE);
    let [pod, policy, _] = pod_with_ports(0, [80].into_iter());
    let Input::Object(Change::Upsert(Object::Pod(pod))) = pod else {
        panic!("not a pod");
    };
    let mut pod = (*pod).clone();
    pod.ips = vec![v4(50)];
    compiler.update([upsert(Object::Pod(pod.into())), policy]);
    let packet = |port| Packet {
        from: v4(99),
        to: v4(50),
        protocol: proto::TCP,
        port,
    };
    assert!(explain::explain(&compiler, packet(80)).allows());
    assert!(!explain::explain(&compiler, packet(81)).allows());
    assert!(compiler.attachments().is_empty());
}

#[test]
fn ports_are_written_as_number_and_protocol() {
    assert_eq!(explain::parse_port("80/tcp"), Some((proto::TCP, 80)));
    assert_eq!(explain::parse_port("53/UDP"), Some((proto::UDP, 53)));
    assert_eq!(explain::parse_port("443"), Some((proto::TCP, 443)));
    assert_eq!(explain::parse_port("icmp"), Some((proto::ICMP, 0)));
    for bad in ["", "0/tcp", "70000", "80/http", "tcp/80"] {
        assert_eq!(explain::parse_port(bad), None, "{bad}");
    }
}
