//! Short words for policies.

use fairlead_tests::cluster::{
    Direction, Expression, Operator, Peer, Policy, PolicyPort, PortRef, Protocol, Rule, Selector,
};

/// A policy for the pods that `pods` selects, with neither rules nor types.
pub(crate) fn policy(namespace: &str, name: &str, pods: Selector) -> Policy {
    Policy {
        namespace: namespace.into(),
        name: name.into(),
        pod_selector: pods,
        types: Some(Vec::new()),
        ..Policy::default()
    }
}

/// Adds to a policy, in the order a person writes it.
pub(crate) trait With: Sized {
    /// Isolates ingress and allows by these rules.
    fn ingress(self, rules: Vec<Rule>) -> Self;
    /// Isolates egress and allows by these rules.
    fn egress(self, rules: Vec<Rule>) -> Self;
}

impl With for Policy {
    fn ingress(mut self, rules: Vec<Rule>) -> Self {
        self.types.get_or_insert_default().push(Direction::Ingress);
        self.ingress = Some(rules);
        self
    }

    fn egress(mut self, rules: Vec<Rule>) -> Self {
        self.types.get_or_insert_default().push(Direction::Egress);
        self.egress = Some(rules);
        self
    }
}

pub(crate) fn all() -> Selector {
    Selector::all()
}

/// `pod=<name>`.
pub(crate) fn pod(name: &str) -> Selector {
    Selector::of(&[("pod", name)])
}

/// `ns=<name>`.
pub(crate) fn ns(name: &str) -> Selector {
    Selector::of(&[("ns", name)])
}

/// A label in, or not in, a list.
pub(crate) fn listed(key: &str, operator: Operator, values: &[&str]) -> Selector {
    Selector {
        expressions: vec![Expression {
            key: key.into(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        }],
        ..Selector::default()
    }
}

pub(crate) fn pods(selector: Selector) -> Peer {
    Peer::Selectors {
        namespaces: None,
        pods: Some(selector),
    }
}

pub(crate) fn namespaces(selector: Selector) -> Peer {
    Peer::Selectors {
        namespaces: Some(selector),
        pods: None,
    }
}

pub(crate) fn both(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Selectors {
        namespaces: Some(namespaces),
        pods: Some(pods),
    }
}

pub(crate) fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|hole| hole.parse().unwrap()).collect(),
    }
}

/// Everybody, any port.
pub(crate) fn anything() -> Rule {
    Rule::default()
}

pub(crate) fn peers(peers: Vec<Peer>) -> Rule {
    Rule {
        peers: Some(peers),
        ports: None,
    }
}

pub(crate) fn ports(ports: Vec<PolicyPort>) -> Rule {
    Rule {
        peers: None,
        ports: Some(ports),
    }
}

pub(crate) fn rule(peers: Vec<Peer>, ports: Vec<PolicyPort>) -> Rule {
    Rule {
        peers: Some(peers),
        ports: Some(ports),
    }
}

pub(crate) fn number(protocol: Protocol, number: u16) -> PolicyPort {
    PolicyPort {
        protocol: Some(protocol),
        port: Some(PortRef::Number(number)),
        end_port: None,
    }
}

pub(crate) fn tcp(port: u16) -> PolicyPort {
    number(Protocol::Tcp, port)
}

pub(crate) fn named(protocol: Protocol, name: &str) -> PolicyPort {
    PolicyPort {
        protocol: Some(protocol),
        port: Some(PortRef::Name(name.to_owned())),
        end_port: None,
    }
}

/// All ports of a protocol.
pub(crate) fn any_of(protocol: Protocol) -> PolicyPort {
    PolicyPort {
        protocol: Some(protocol),
        port: None,
        end_port: None,
    }
}

pub(crate) fn range(first: u16, last: u16) -> PolicyPort {
    PolicyPort {
        protocol: None,
        port: Some(PortRef::Number(first)),
        end_port: Some(last),
    }
}
