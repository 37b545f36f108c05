//! Random clusters, small enough that everything meets everything.
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::compile::{Attachment, Compiler, Input};
use crate::model::label::{Operator, Requirement};
use crate::model::node::NamedPort;
use crate::model::policy::{IpBlock, Peer, Port, PortNumber, Rule};
use crate::model::{
    Change, Cidr, Key, Kind, Labels, Namespace, NetworkPolicy, Node, Object, ObjectName, Phase,
    Pod, Protocol, Selector,
};

pub(super) const NODE: &str = "n0";
pub(super) const PODS: u64 = 12;
pub(super) const LOCAL_PODS: u64 = 5;
const NAMES: [&str; 3] = ["http", "dns", "admin"];
pub(super) const PORTS: [u16; 9] = [1, 53, 79, 80, 81, 443, 8080, 9000, 65535];

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = usize::try_from(self.below(from.len() as u64)).unwrap();
        from[index].clone()
    }

    fn several<T>(&mut self, most: u64, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| make(self)).collect()
    }
}

fn low_byte(index: u64) -> u8 {
    u8::try_from(index).unwrap()
}

pub(super) fn v4(index: u64) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, low_byte(index)).into()
}

pub(super) fn v6(index: u64) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(low_byte(index))).into()
}

pub(super) fn pod_name(index: u64) -> ObjectName {
    ObjectName::new(
        ["a", "b", "c"][usize::try_from(index % 3).unwrap()],
        &format!("p{index}"),
    )
}

fn labels(random: &mut Random) -> Labels {
    let mut labels = Labels::new();
    for key in ["app", "tier"] {
        if random.chance(70) {
            labels.insert(key.to_owned(), random.pick(&["x", "y", "z"]).to_owned());
        }
    }
    labels
}

pub(super) fn selector(random: &mut Random) -> Selector {
    Selector::new(random.several(2, |random| {
        let values = |random: &mut Random| {
            let mut values = random.several(1, |r| r.pick(&["x", "y", "z"]).to_owned());
            values.push(random.pick(&["x", "y", "z"]).to_owned());
            values
        };
        let operator = match random.below(6) {
            0 => Operator::NotIn(values(random)),
            1 => Operator::Exists,
            2 => Operator::DoesNotExist,
            _ => Operator::In(values(random)),
        };
        Requirement {
            key: random.pick(&["app", "tier"]).to_owned(),
            operator,
        }
    }))
}

/// A prefix around the addresses that pods, nodes and the world use.
fn cidr(random: &mut Random) -> Cidr {
    let index = random.below(24);
    if random.chance(70) {
        Cidr::new(v4(index), random.pick(&[0, 8, 24, 27, 28, 30, 31, 32])).unwrap()
    } else {
        Cidr::new(v6(index), random.pick(&[0, 16, 64, 123, 124, 126, 128])).unwrap()
    }
}

fn peer(random: &mut Random) -> Peer {
    if random.chance(30) {
        let outer = cidr(random);
        let mut except = random.several(3, cidr);
        except.retain(|inner| outer.strictly_contains(inner));
        except.sort_unstable();
        except.dedup();
        return Peer::Block(IpBlock {
            cidr: outer,
            except,
        });
    }
    let namespaces = random.chance(50).then(|| {
        if random.chance(30) {
            let name = random.pick(&["a", "b", "c"]).to_owned();
            let labels = Labels::from([("kubernetes.io/metadata.name".to_owned(), name)]);
            Selector::of_labels(&labels)
        } else {
            selector(random)
        }
    });
    Peer::Pods {
        namespaces,
        pods: selector(random),
    }
}

fn protocol(random: &mut Random) -> Protocol {
    random.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn policy_port(random: &mut Random) -> Port {
    let number = match random.below(8) {
        0 => PortNumber::Any,
        1 | 2 => {
            let (a, b) = (random.pick(&PORTS), random.pick(&PORTS));
            PortNumber::Range(a.min(b), a.max(b))
        }
        3 | 4 => PortNumber::Named(random.pick(&NAMES).to_owned()),
        _ => {
            let port = random.pick(&PORTS);
            PortNumber::Range(port, port)
        }
    };
    Port {
        protocol: protocol(random),
        number,
    }
}

fn rule(random: &mut Random) -> Rule {
    Rule {
        peers: random.several(2, peer),
        ports: random.several(3, policy_port),
    }
}

pub(super) fn policy(random: &mut Random, index: u64) -> NetworkPolicy {
    let namespace = random.pick(&["a", "b", "c"]);
    NetworkPolicy {
        name: ObjectName::new(namespace, &format!("policy{index}")),
        subject: selector(random),
        ingress: random.chance(70).then(|| random.several(3, rule)),
        egress: random.chance(60).then(|| random.several(3, rule)),
        is_closed_for_fault: false,
    }
}

pub(super) fn pod(random: &mut Random, index: u64) -> Pod {
    let mut pod = Pod {
        name: pod_name(index),
        labels: labels(random),
        node: Some(random.pick(&["n0", "n1"]).to_owned()),
        phase: Phase::Running,
        created: i64::try_from(random.below(4)).unwrap(),
        terminating: random.chance(10),
        ..Pod::default()
    };
    // Now and then an address that another pod has.
    let address = if random.chance(10) {
        random.below(PODS)
    } else {
        index
    };
    pod.ips.push(v4(address));
    if random.chance(70) {
        pod.ips.push(v6(address));
    }
    if index >= LOCAL_PODS && random.chance(15) {
        pod.host_network = true;
        pod.ips = vec![v4(20)];
        pod.node = Some("n1".to_owned());
    }
    if random.chance(10) {
        pod.phase = Phase::Succeeded;
    }
    pod.ports = random.several(3, |random| NamedPort {
        name: random.pick(&NAMES).to_owned(),
        protocol: protocol(random),
        port: random.pick(&PORTS),
    });
    pod
}

fn upsert(object: Object) -> Input {
    Input::Object(Change::Upsert(object))
}

fn remove(kind: Kind, name: ObjectName) -> Input {
    Input::Object(Change::Remove(Key { kind, name }))
}

/// One random event.
pub(super) fn event(random: &mut Random) -> Input {
    match random.below(20) {
        0 => {
            let name = random.pick(&["a", "b", "c"]);
            if random.chance(30) {
                return remove(Kind::Namespace, ObjectName::new("", name));
            }
            let namespace = Namespace::with_labels(name, labels(random));
            upsert(Object::Namespace(namespace.into()))
        }
        1 => {
            let index = random.below(2);
            let node = Node {
                name: format!("n{index}"),
                addresses: [v4(20 + index), v6(20 + index)][..=usize::from(random.chance(50))]
                    .to_vec(),
                ..Node::default()
            };
            upsert(Object::Node(node.into()))
        }
        2 => {
            let slot = 1 + random.below(LOCAL_PODS);
            Input::Detach {
                slot: u32::try_from(slot).unwrap(),
            }
        }
        3..=5 => attach(random.below(LOCAL_PODS), random.chance(30)),
        6..=11 => {
            let index = random.below(PODS);
            if random.chance(20) {
                return remove(Kind::Pod, pod_name(index));
            }
            upsert(Object::Pod(pod(random, index).into()))
        }
        12 => {
            let addresses = random.several(2, |r| v4(22 + r.below(2)));
            Input::NodeAddresses(BTreeSet::from_iter(addresses))
        }
        _ => {
            let policy = policy(random, 0);
            let name = ObjectName::new(&policy.name.namespace, &format!("p{}", random.below(3)));
            if random.chance(30) {
                return remove(Kind::NetworkPolicy, name);
            }
            upsert(Object::NetworkPolicy(
                NetworkPolicy { name, ..policy }.into(),
            ))
        }
    }
}

pub(super) fn attach(index: u64, starts_open: bool) -> Input {
    Input::Attach {
        slot: u32::try_from(index + 1).unwrap(),
        attachment: Attachment {
            pod: Some(pod_name(index)),
            ips: vec![v4(index), v6(index)],
            starts_open,
        },
    }
}

/// Everything that a compiler has been told, as a fresh start would hear it.
pub(super) fn inputs_of(compiler: &Compiler) -> Vec<Input> {
    let state = compiler.state();
    let nodes = state.nodes.values().cloned().map(Object::Node);
    let namespaces = state.namespaces.values().cloned().map(Object::Namespace);
    let pods = state.pods.values().cloned().map(Object::Pod);
    let services = state.services.values().cloned().map(Object::Service);
    let slices = state.slices.values().cloned().map(Object::EndpointSlice);
    let policies = state.policies.values().cloned().map(Object::NetworkPolicy);
    let objects = nodes.chain(namespaces).chain(pods);
    let objects = objects.chain(services).chain(slices).chain(policies);
    let mut inputs: Vec<Input> = objects.map(upsert).collect();
    inputs.push(Input::NodeAddresses(compiler.node_addresses.clone()));
    let attachments = compiler.attachments().iter();
    inputs.extend(attachments.map(|(slot, attachment)| Input::Attach {
        slot: *slot,
        attachment: attachment.clone(),
    }));
    inputs
}
