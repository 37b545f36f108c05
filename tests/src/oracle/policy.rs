//! NetworkPolicy v1 by its definition: every policy, every rule, every peer.

use std::net::IpAddr;

use crate::cluster::{
    Cluster, Direction, Expression, Labels, Operator, Peer, Pod, Policy, PolicyPort, PortRef,
    Protocol, Rule, Selector,
};

/// What one direction says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// No policy selects the pod in this direction.
    Open,
    Allowed,
    Denied,
}

/// Traffic as policies see it: real addresses, after Service translation. The
/// protocol is an IANA number; `port` is the destination's, 0 without ports.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

/// What the sender's egress policies say, then what the receiver's ingress
/// policies say. Ends that are no pods of the node under test are open here:
/// their own nodes judge them.
pub fn sides(cluster: &Cluster, traffic: &Traffic) -> (Side, Side) {
    let local = |ip| cluster.pod_at(ip).filter(|pod| pod.is_local());
    let (source, destination) = (local(traffic.src), local(traffic.dst));
    let same = traffic.src == traffic.dst;
    let exempt = |peer| same || cluster.is_local_node(peer);
    let egress = match source {
        Some(pod) if !exempt(traffic.dst) => {
            judge(cluster, pod, Direction::Egress, traffic.dst, traffic)
        }
        _ => Side::Open,
    };
    let ingress = match destination {
        Some(pod) if !exempt(traffic.src) => {
            judge(cluster, pod, Direction::Ingress, traffic.src, traffic)
        }
        _ => Side::Open,
    };
    (egress, ingress)
}

/// Whether policies keep anything from the pod in this direction: one isolates
/// it, and none has a rule for every peer and every port.
pub fn is_restricted(cluster: &Cluster, pod: &Pod, direction: Direction) -> bool {
    let of_pod = || {
        cluster
            .policies
            .iter()
            .filter(|policy| selects(policy, pod, direction))
    };
    let mut rules = of_pod().flat_map(|policy| rules(policy, direction));
    let empty = |rule: &Rule| {
        rule.peers.as_deref().unwrap_or_default().is_empty()
            && rule.ports.as_deref().unwrap_or_default().is_empty()
    };
    of_pod().next().is_some() && !rules.any(empty)
}

fn rules(policy: &Policy, direction: Direction) -> &[Rule] {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    rules.as_deref().unwrap_or_default()
}

/// Union of all policies that select the pod.
fn judge(
    cluster: &Cluster,
    pod: &Pod,
    direction: Direction,
    peer: IpAddr,
    traffic: &Traffic,
) -> Side {
    let mut side = Side::Open;
    for policy in &cluster.policies {
        if !selects(policy, pod, direction) {
            continue;
        }
        let allows = rules(policy, direction).iter().any(|rule| {
            peer_matches(cluster, policy, rule, peer) && port_matches(cluster, rule, traffic)
        });
        if allows {
            return Side::Allowed;
        }
        side = Side::Denied;
    }
    side
}

/// Whether the policy isolates the pod in this direction.
fn selects(policy: &Policy, pod: &Pod, direction: Direction) -> bool {
    policy.namespace == pod.namespace
        && matches(&policy.pod_selector, &pod.labels)
        && types(policy).contains(&direction)
}

/// The policy types, defaulted: ingress always, egress if there is an egress rule.
fn types(policy: &Policy) -> Vec<Direction> {
    match &policy.types {
        Some(types) if !types.is_empty() => types.clone(),
        _ if policy
            .egress
            .as_ref()
            .is_some_and(|rules| !rules.is_empty()) =>
        {
            vec![Direction::Ingress, Direction::Egress]
        }
        _ => vec![Direction::Ingress],
    }
}

fn peer_matches(cluster: &Cluster, policy: &Policy, rule: &Rule, address: IpAddr) -> bool {
    let peers = rule.peers.as_deref().unwrap_or_default();
    peers.is_empty()
        || peers.iter().any(|peer| match peer {
            Peer::Block { cidr, except } => {
                cidr.contains(address) && !except.iter().any(|hole| hole.contains(address))
            }
            Peer::Selectors { namespaces, pods } => {
                // Anything but a pod with an address of its own matches no selector.
                let Some(pod) = cluster.pod_at(address) else {
                    return false;
                };
                let namespace_matches = match namespaces {
                    None => pod.namespace == policy.namespace,
                    Some(selector) => cluster
                        .namespace(&pod.namespace)
                        .is_some_and(|namespace| matches(selector, &namespace.labels)),
                };
                let pod_matches = pods
                    .as_ref()
                    .is_none_or(|selector| matches(selector, &pod.labels));
                namespace_matches && pod_matches
            }
        })
}

fn port_matches(cluster: &Cluster, rule: &Rule, traffic: &Traffic) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    ports.is_empty()
        || ports
            .iter()
            .any(|port| one_port_matches(cluster, port, traffic))
}

fn one_port_matches(cluster: &Cluster, port: &PolicyPort, traffic: &Traffic) -> bool {
    let protocol = port.protocol.unwrap_or(Protocol::Tcp);
    if protocol.number() != traffic.protocol {
        return false;
    }
    match &port.port {
        None => true,
        Some(PortRef::Number(first)) => {
            let last = port.end_port.unwrap_or(*first);
            (*first..=last).contains(&traffic.port)
        }
        // The name stands for what the destination pod calls so.
        Some(PortRef::Name(name)) => cluster.pod_at(traffic.dst).is_some_and(|pod| {
            pod.ports.iter().any(|named| {
                named.name == *name && named.protocol == protocol && named.number == traffic.port
            })
        }),
    }
}

/// All labels and all expressions.
pub fn matches(selector: &Selector, labels: &Labels) -> bool {
    selector
        .labels
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && selector
            .expressions
            .iter()
            .all(|expression| expression_matches(expression, labels))
}

fn expression_matches(expression: &Expression, labels: &Labels) -> bool {
    let value = labels.get(&expression.key);
    let listed = value.is_some_and(|value| expression.values.contains(value));
    match expression.operator {
        Operator::In => listed,
        Operator::NotIn => !listed,
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
    }
}

#[cfg(test)]
mod tests;
