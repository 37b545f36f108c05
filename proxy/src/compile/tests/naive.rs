//! NetworkPolicy v1, read word for word.
use std::net::IpAddr;

use crate::compile::Direction;
use crate::model::policy::{Peer, Port, PortNumber, Rule};
use crate::model::{Labels, NetworkPolicy, Pod, Protocol, State};

/// One end of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    pub(super) ip: IpAddr,
    /// The pod that has the address as its own; none for host-network pods.
    pub(super) pod: Option<&'a Pod>,
}

/// Whether the policies of `subject` in `direction` let the packet pass.
pub(super) fn allows(
    state: &State,
    direction: Direction,
    subject: &Pod,
    peer: End<'_>,
    protocol: u8,
    port: u16,
) -> bool {
    let destination = match direction {
        Direction::Ingress => Some(subject),
        Direction::Egress => peer.pod,
    };
    let mut isolated = false;
    for policy in state.policies.values() {
        if policy.name.namespace != subject.name.namespace
            || !policy.subject.matches(&subject.labels)
        {
            continue;
        }
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(rules) = rules else { continue };
        isolated = true;
        for rule in rules {
            if peers_match(state, policy, rule, peer)
                && ports_match(rule, destination, protocol, port)
            {
                return true;
            }
        }
    }
    !isolated
}

fn peers_match(state: &State, policy: &NetworkPolicy, rule: &Rule, peer: End<'_>) -> bool {
    rule.peers.is_empty()
        || rule.peers.iter().any(|candidate| match candidate {
            Peer::Block(block) => {
                block.cidr.contains(peer.ip)
                    && block.except.iter().all(|except| !except.contains(peer.ip))
            }
            Peer::Pods { namespaces, pods } => peer.pod.is_some_and(|pod| {
                let namespace = &pod.name.namespace;
                let in_namespace = match namespaces {
                    None => *namespace == policy.name.namespace,
                    Some(selector) => selector.matches(&labels_of(state, namespace)),
                };
                in_namespace && pods.matches(&pod.labels)
            }),
        })
}

fn labels_of(state: &State, namespace: &str) -> Labels {
    match state.namespaces.get(namespace) {
        Some(found) => found.labels.clone(),
        None => Labels::from([(
            "kubernetes.io/metadata.name".to_owned(),
            namespace.to_owned(),
        )]),
    }
}

fn ports_match(rule: &Rule, destination: Option<&Pod>, protocol: u8, port: u16) -> bool {
    rule.ports.is_empty()
        || Protocol::from_number(protocol).is_some_and(|protocol| {
            rule.ports
                .iter()
                .any(|candidate| port_matches(candidate, destination, protocol, port))
        })
}

fn port_matches(rule: &Port, destination: Option<&Pod>, protocol: Protocol, port: u16) -> bool {
    rule.protocol == protocol
        && match &rule.number {
            PortNumber::Any => true,
            PortNumber::Range(from, to) => (*from..=*to).contains(&port),
            PortNumber::Named(name) => destination.is_some_and(|pod| {
                let named = pod.ports.iter();
                let mut named = named.filter(|p| p.name == *name && p.protocol == protocol);
                named.next().is_some_and(|first| first.port == port)
            }),
        }
}
