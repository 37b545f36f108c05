//! Clusters of a given size for benchmarks: one pod here, many elsewhere, each
//! of which some rule singles out in both directions. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Attachment, Input};
use crate::model::policy::{Peer, Port, PortNumber, Rule};
use crate::model::{
    Change, Labels, Namespace, NetworkPolicy, Object, ObjectName, Phase, Pod, Protocol, Selector,
};

/// The slot of the pod that all policies select.
pub const SLOT: u32 = 1;
const NAMESPACE: &str = "shop";
const PEER_NAMESPACE: &str = "peers";
const FIRST_PORT: u16 = 1000;

/// How big.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pods elsewhere, each with a rule of its own. At most 60,000.
    pub peers: u32,
    /// Different ports among the rules. At most 60,000.
    pub ports: u16,
    /// The rules are spread over so many policies.
    pub policies: u32,
}

/// The address of the pod here, and of the peer of this index.
pub fn subject_address() -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 1).into()
}

/// See [`subject_address`].
pub fn peer_address(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + index).into()
}

/// The port that the rule for this peer opens.
pub fn peer_port(size: Size, index: u32) -> u16 {
    let offset = index % u32::from(size.ports.max(1));
    FIRST_PORT + u16::try_from(offset).expect("below a u16")
}

fn upsert(object: Object) -> Input {
    Input::Object(Change::Upsert(object))
}

fn label(value: &str) -> Labels {
    Labels::from([("app".to_owned(), value.to_owned())])
}

/// The peer of this index; beyond [`Size::peers`] no rule is for it.
pub fn peer(index: u32) -> Input {
    peer_like(index, index)
}

/// A pod of its own name and address with the labels of the peer `like`, as a
/// replica has.
pub fn peer_like(index: u32, like: u32) -> Input {
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0).to_bits() + u128::from(index) + 2;
    let pod = Pod {
        name: ObjectName::new(PEER_NAMESPACE, &format!("peer{index}")),
        labels: label(&format!("peer{like}")),
        ips: vec![peer_address(index), Ipv6Addr::from_bits(v6).into()],
        phase: Phase::Running,
        ..Pod::default()
    };
    upsert(Object::Pod(pod.into()))
}

/// The peer with its IPv4 address only.
pub fn single_stack_peer(index: u32, like: u32) -> Input {
    match peer_like(index, like) {
        Input::Object(Change::Upsert(Object::Pod(pod))) => {
            let mut pod = (*pod).clone();
            pod.ips.truncate(1);
            upsert(Object::Pod(pod.into()))
        }
        other => other,
    }
}

/// Everything that a compiler is told at the start.
pub fn cluster(size: Size) -> Vec<Input> {
    let subject = Pod {
        name: ObjectName::new(NAMESPACE, "subject"),
        labels: label("subject"),
        phase: Phase::Running,
        ..Pod::default()
    };
    let attachment = Attachment {
        pod: Some(subject.name.clone()),
        ips: vec![subject_address()],
        starts_open: false,
    };
    let mut inputs = vec![
        upsert(Object::Namespace(Namespace::bare(NAMESPACE).into())),
        upsert(Object::Namespace(Namespace::bare(PEER_NAMESPACE).into())),
        upsert(Object::Pod(subject.into())),
        Input::Attach {
            slot: SLOT,
            attachment,
        },
    ];
    inputs.extend((0..size.peers).map(peer));
    let policies = size.policies.max(1);
    inputs.extend((0..policies).map(|index| {
        let own = (index..size.peers).step_by(usize::try_from(policies).unwrap_or(usize::MAX));
        let rules: Vec<Rule> = own.map(|peer| rule(size, peer)).collect();
        let policy = NetworkPolicy {
            name: ObjectName::new(NAMESPACE, &format!("policy{index}")),
            subject: Selector::default(),
            ingress: Some(rules.clone()),
            egress: Some(rules),
            is_closed_for_fault: false,
        };
        upsert(Object::NetworkPolicy(policy.into()))
    }));
    inputs
}

fn rule(size: Size, index: u32) -> Rule {
    let namespace = Namespace::bare(PEER_NAMESPACE).labels;
    let port = peer_port(size, index);
    Rule {
        peers: vec![Peer::Pods {
            namespaces: Some(Selector::of_labels(&namespace)),
            pods: Selector::of_labels(&label(&format!("peer{index}"))),
        }],
        ports: vec![Port {
            protocol: Protocol::Tcp,
            number: PortNumber::Range(port, port),
        }],
    }
}
