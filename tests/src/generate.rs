//! Random clusters and packets, dense enough that rules, labels and addresses
//! meet: few keys, few values, few ports.

pub mod traffic;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::cluster::{
    Cluster, Direction, Endpoint, Expression, LOCAL_NODE, Labels, NamedPort, Namespace, Node,
    Operator, Peer, Pod, Policy, PolicyPort, PortRef, Protocol, REMOTE_NODE, Rule, Selector,
    Service, ServicePort, Slice,
};
use crate::random::Random;

/// Pods of the node under test in every generated cluster.
pub const LOCAL_PODS: usize = 6;
const REMOTE_PODS: usize = 3;
/// Services at most.
const SERVICES: usize = 3;
const NAMESPACES: [&str; 3] = ["blue", "green", "red"];
const KEYS: [&str; 3] = ["app", "tier", "kubernetes.io/metadata.name"];
const VALUES: [&str; 4] = ["a", "b", "blue", "green"];
const PORT_NAMES: [&str; 3] = ["web", "dns", "alt"];
/// Ports that rules, Services and packets share.
pub const PORTS: [u16; 8] = [53, 80, 81, 443, 1024, 8080, 9000, 65535];

pub const LOCAL_NODE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub const REMOTE_NODE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const LOCAL_NODE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const REMOTE_NODE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

/// Address of pod number `index`; local pods are in one subnet, remote ones in another.
pub fn pod_ip(v6: bool, local: bool, index: usize) -> IpAddr {
    let subnet = u8::from(!local);
    let host = u8::try_from(index + 1).expect("few pods");
    if v6 {
        IpAddr::V6(Ipv6Addr::new(
            0xfd00,
            0,
            0,
            u16::from(subnet),
            0,
            0,
            0,
            u16::from(host),
        ))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 1, subnet, host))
    }
}

/// An address outside the cluster, one of four.
pub fn world_ip(random: &mut Random, v6: bool) -> IpAddr {
    let host = u8::try_from(random.below(4)).expect("four");
    if v6 {
        IpAddr::V6(Ipv6Addr::new(
            0x2001,
            0xdb8,
            0xffff,
            0,
            0,
            0,
            0,
            u16::from(host),
        ))
    } else {
        IpAddr::V4(Ipv4Addr::new(198, 51, 100, host))
    }
}

/// A Service's address.
pub fn service_ip(v6: bool, index: usize) -> IpAddr {
    let host = u8::try_from(index + 1).expect("few services");
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xff, 0, 0, 0, 0, 0, u16::from(host)))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 96, 0, host))
    }
}

/// A whole cluster.
pub fn cluster(random: &mut Random) -> Cluster {
    let node = |name: &str, v4, v6| Node {
        name: name.into(),
        addresses: vec![v4, v6],
    };
    let mut cluster = Cluster {
        nodes: vec![
            node(LOCAL_NODE, LOCAL_NODE_V4, LOCAL_NODE_V6),
            node(REMOTE_NODE, REMOTE_NODE_V4, REMOTE_NODE_V6),
        ],
        ..Cluster::default()
    };
    for name in NAMESPACES {
        let mut labels = labels(random);
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        cluster.namespaces.push(Namespace {
            name: name.into(),
            labels,
        });
    }
    for index in 0..LOCAL_PODS {
        cluster.pods.push(pod(random, LOCAL_NODE, index));
    }
    for index in 0..REMOTE_PODS {
        cluster.pods.push(pod(random, REMOTE_NODE, index));
    }
    if random.chance(50) {
        cluster.pods.push(Pod {
            name: "host".into(),
            ips: vec![LOCAL_NODE_V4, LOCAL_NODE_V6],
            host_network: true,
            ..pod(random, LOCAL_NODE, 0)
        });
    }
    policies(random, &mut cluster);
    services(random, &mut cluster);
    cluster
}

/// Changes something that changes verdicts: policies, labels, endpoints.
pub fn change(random: &mut Random, cluster: &Cluster) -> Cluster {
    let mut changed = cluster.clone();
    match random.below(4) {
        0 => policies(random, &mut changed),
        1 => {
            let index = random.below(changed.pods.len());
            changed.pods[index].labels = labels(random);
        }
        2 if !changed.policies.is_empty() => {
            let index = random.below(changed.policies.len());
            changed.policies.remove(index);
        }
        _ => services(random, &mut changed),
    }
    changed
}

fn labels(random: &mut Random) -> Labels {
    let mut labels = Labels::new();
    for key in &KEYS[..2] {
        if random.chance(70) {
            labels.insert((*key).to_owned(), (*random.pick(&VALUES[..2])).to_owned());
        }
    }
    labels
}

fn pod(random: &mut Random, node: &str, index: usize) -> Pod {
    let local = node == LOCAL_NODE;
    let mut ports: Vec<NamedPort> = Vec::new();
    for name in PORT_NAMES {
        let port = NamedPort {
            name: name.into(),
            protocol: *random.pick(&Protocol::ALL),
            number: *random.pick(&PORTS),
        };
        if random.chance(60) {
            ports.push(port);
        }
    }
    Pod {
        namespace: (*random.pick(&NAMESPACES)).to_owned(),
        name: format!("{}-{index}", if local { "local" } else { "remote" }),
        labels: labels(random),
        node: node.into(),
        ips: vec![pod_ip(false, local, index), pod_ip(true, local, index)],
        host_network: false,
        ports,
    }
}

fn policies(random: &mut Random, cluster: &mut Cluster) {
    let count = *random.pick(&[0, 1, 2, 3, 5, 8]);
    cluster.policies = (0..count).map(|index| policy(random, index)).collect();
}

fn policy(random: &mut Random, index: usize) -> Policy {
    let types = match random.below(5) {
        0 => None,
        1 => Some(vec![Direction::Ingress]),
        2 => Some(vec![Direction::Egress]),
        3 => Some(Vec::new()),
        _ => Some(vec![Direction::Ingress, Direction::Egress]),
    };
    Policy {
        namespace: (*random.pick(&NAMESPACES)).to_owned(),
        name: format!("policy-{index}"),
        pod_selector: selector(random),
        types,
        ingress: rules(random),
        egress: rules(random),
    }
}

fn rules(random: &mut Random) -> Option<Vec<Rule>> {
    match random.below(6) {
        0 => None,
        1 => Some(Vec::new()),
        _ => {
            let count = 1 + random.below(3);
            Some((0..count).map(|_| rule(random)).collect())
        }
    }
}

fn rule(random: &mut Random) -> Rule {
    let peers = match random.below(6) {
        0 => None,
        1 => Some(Vec::new()),
        _ => Some((0..=random.below(3)).map(|_| peer(random)).collect()),
    };
    let ports = match random.below(5) {
        0 => None,
        1 => Some(Vec::new()),
        _ => Some((0..=random.below(3)).map(|_| policy_port(random)).collect()),
    };
    Rule { peers, ports }
}

fn peer(random: &mut Random) -> Peer {
    match random.below(4) {
        0 => block(random),
        1 => Peer::Selectors {
            namespaces: None,
            pods: Some(selector(random)),
        },
        2 => Peer::Selectors {
            namespaces: Some(selector(random)),
            pods: None,
        },
        _ => Peer::Selectors {
            namespaces: Some(selector(random)),
            pods: Some(selector(random)),
        },
    }
}

/// A block of some width around an address that occurs; its holes are narrower
/// blocks around others inside it.
fn block(random: &mut Random) -> Peer {
    let v6 = random.chance(40);
    let widths: &[u8] = if v6 {
        &[0, 32, 64, 126, 127, 128]
    } else {
        &[0, 8, 16, 24, 30, 31, 32]
    };
    let width = *random.pick(widths);
    let cidr = network(occurring(random, v6), width);
    let mut except = Vec::new();
    for _ in 0..random.below(3) {
        let narrower: Vec<u8> = widths
            .iter()
            .copied()
            .filter(|other| *other > width)
            .collect();
        let address = occurring(random, v6);
        if !narrower.is_empty() && cidr.contains(address) {
            except.push(network(address, *random.pick(&narrower)));
        }
    }
    Peer::Block { cidr, except }
}

/// The block with its host bits cleared.
fn network(address: IpAddr, width: u8) -> IpNetwork {
    let whole = IpNetwork::new(address, width).expect("width fits the family");
    IpNetwork::new(whole.network(), width).expect("width fits the family")
}

/// An address that packets carry.
fn occurring(random: &mut Random, v6: bool) -> IpAddr {
    match random.below(4) {
        0 => world_ip(random, v6),
        1 => pod_ip(v6, false, random.below(REMOTE_PODS)),
        2 if v6 => REMOTE_NODE_V6,
        2 => REMOTE_NODE_V4,
        _ => pod_ip(v6, true, random.below(LOCAL_PODS)),
    }
}

fn policy_port(random: &mut Random) -> PolicyPort {
    let protocol = match random.below(5) {
        0 => None,
        1 => Some(Protocol::Udp),
        2 => Some(Protocol::Sctp),
        _ => Some(Protocol::Tcp),
    };
    let (port, end_port) = match random.below(5) {
        0 => (None, None),
        1 => (
            Some(PortRef::Name((*random.pick(&PORT_NAMES)).to_owned())),
            None,
        ),
        2 => {
            let (one, other) = (*random.pick(&PORTS), *random.pick(&PORTS));
            (Some(PortRef::Number(one.min(other))), Some(one.max(other)))
        }
        _ => (Some(PortRef::Number(*random.pick(&PORTS))), None),
    };
    PolicyPort {
        protocol,
        port,
        end_port,
    }
}

fn selector(random: &mut Random) -> Selector {
    let mut selector = Selector::default();
    if random.chance(20) {
        return selector;
    }
    if random.chance(60) {
        let key = (*random.pick(&KEYS)).to_owned();
        selector
            .labels
            .insert(key, (*random.pick(&VALUES)).to_owned());
    }
    for _ in 0..random.below(3) {
        let operator = *random.pick(&[
            Operator::In,
            Operator::NotIn,
            Operator::Exists,
            Operator::DoesNotExist,
        ]);
        let listed = matches!(operator, Operator::In | Operator::NotIn);
        let count = if listed { 1 + random.below(3) } else { 0 };
        selector.expressions.push(Expression {
            key: (*random.pick(&KEYS)).to_owned(),
            operator,
            values: (0..count)
                .map(|_| (*random.pick(&VALUES)).to_owned())
                .collect(),
        });
    }
    selector
}

fn services(random: &mut Random, cluster: &mut Cluster) {
    let count = random.below(SERVICES + 1);
    cluster.services = (0..count).map(|index| service(random, index)).collect();
}

fn service(random: &mut Random, index: usize) -> Service {
    let ips = match random.below(4) {
        0 => vec![service_ip(false, index)],
        1 => vec![service_ip(true, index)],
        _ => vec![service_ip(false, index), service_ip(true, index)],
    };
    let mut ports: Vec<ServicePort> = Vec::new();
    for name in &PORT_NAMES[..=random.below(PORT_NAMES.len())] {
        let port = ServicePort {
            name: (*name).to_owned(),
            protocol: *random.pick(&Protocol::ALL),
            number: *random.pick(&PORTS),
        };
        let taken = ports
            .iter()
            .any(|other| (other.number, other.protocol) == (port.number, port.protocol));
        if !taken {
            ports.push(port);
        }
    }
    let slices = ips
        .iter()
        .flat_map(|ip| {
            let count = random.below(3);
            // Each endpoint is in one slice only, as its controller keeps it.
            (0..count)
                .map(|part| slice(random, ip.is_ipv6(), &ports, part, count))
                .collect::<Vec<_>>()
        })
        .collect();
    Service {
        namespace: (*random.pick(&NAMESPACES)).to_owned(),
        name: format!("service-{index}"),
        ips,
        ports,
        slices,
        internal_local: random.chance(20),
        affinity: random.chance(20).then_some(10_800),
    }
}

fn slice(random: &mut Random, v6: bool, ports: &[ServicePort], part: usize, of: usize) -> Slice {
    let slice_ports = ports
        .iter()
        .map(|port| NamedPort {
            name: port.name.clone(),
            protocol: port.protocol,
            number: *random.pick(&PORTS),
        })
        .collect();
    let mut endpoints = Vec::new();
    for index in 0..LOCAL_PODS + REMOTE_PODS {
        if index % of != part || !random.chance(40) {
            continue;
        }
        let local = index < LOCAL_PODS;
        let host = if local { index } else { index - LOCAL_PODS };
        let (ready, serving, terminating) = *random.pick(&[
            (true, true, false),
            (true, true, false),
            (true, true, false),
            (false, true, true),
            (false, false, true),
            (false, false, false),
        ]);
        endpoints.push(Endpoint {
            ip: pod_ip(v6, local, host),
            ready,
            serving,
            terminating,
            node: Some(if local { LOCAL_NODE } else { REMOTE_NODE }.to_owned()),
        });
    }
    Slice {
        v6,
        ports: slice_ports,
        endpoints,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_clusters_keep_the_rules_of_their_objects() {
        for case in 0..1000 {
            let cluster = cluster(&mut Random::for_case(1, case));
            let rules = cluster.policies.iter().flat_map(|policy| {
                policy
                    .ingress
                    .iter()
                    .flatten()
                    .chain(policy.egress.iter().flatten())
            });
            for rule in rules {
                for peer in rule.peers.iter().flatten() {
                    if let Peer::Block { cidr, except } = peer {
                        assert_eq!(cidr.ip(), cidr.network());
                        for hole in except {
                            assert!(cidr.contains(hole.network()) && hole.prefix() > cidr.prefix());
                        }
                    }
                }
                for port in rule.ports.iter().flatten() {
                    if let (Some(end), Some(PortRef::Number(first))) = (port.end_port, &port.port) {
                        assert!(end >= *first);
                    }
                }
            }
        }
    }
}
