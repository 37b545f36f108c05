//! From the policies that select a pod to the rules of one policy set: peers as
//! atoms, an ingress rule's named ports as the subject's numbers.

use std::sync::Arc;

use super::atom::{Atom, AtomId, Atoms, Scope};
use super::class::{NameId, PortName, Signature};
use crate::model::policy::{Peer, Port, PortNumber, Rule};
use crate::model::{NetworkPolicy, Pod};

/// Which policies of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The policy's rules for this direction; `None`: it does not isolate in it.
    pub fn rules(self, policy: &NetworkPolicy) -> Option<&[Rule]> {
        match self {
            Self::Ingress => policy.ingress.as_deref(),
            Self::Egress => policy.egress.as_deref(),
        }
    }
}

/// A rule as the kernel's tables are made from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lowered {
    /// `None`: any peer. Otherwise sorted, unique.
    pub(crate) peers: Option<Vec<AtomId>>,
    /// `None`: any port of any protocol. Otherwise sorted, unique.
    pub(crate) ports: Option<Vec<PortMatch>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum PortMatch {
    /// Protocol, from, to, both included; 0..=65535 is the whole protocol.
    Range(u8, u16, u16),
    /// Whatever number the peer's name stands for.
    Peer(NameId),
}

/// A rule of a policy, by index, as it is for one pod.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// Index into [`Isolation::policies`].
    pub(crate) policy: usize,
    /// Index into the policy's list of rules.
    pub(crate) rule: usize,
    pub(crate) lowered: Lowered,
}

/// The policies that isolate a pod in one direction, and their rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Isolation {
    pub(crate) policies: Vec<Arc<NetworkPolicy>>,
    pub(crate) rules: Vec<Applied>,
}

/// The names of ports in egress rules, numbered for the life of the compiler.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) names: Vec<PortName>,
}

impl Names {
    fn intern(&mut self, name: PortName) -> NameId {
        let known = self.names.iter().position(|known| *known == name);
        let index = known.unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        });
        NameId::try_from(index).expect("fewer names than policies in memory")
    }

    pub(crate) fn get(&self, id: NameId) -> Option<&PortName> {
        self.names.get(usize::try_from(id).ok()?)
    }
}

impl Isolation {
    /// Lowers the policies that isolate `pod` in `direction`; `None` if none does.
    pub(crate) fn of_pod(
        policies: &[Arc<NetworkPolicy>],
        direction: Direction,
        pod: &Pod,
        atoms: &mut Atoms,
        names: &mut Names,
    ) -> Option<Self> {
        let isolating = policies.iter().filter(|p| direction.rules(p).is_some());
        let policies: Vec<_> = isolating.cloned().collect();
        if policies.is_empty() {
            return None;
        }
        let mut rules = Vec::new();
        for (policy_index, policy) in policies.iter().enumerate() {
            let listed = direction.rules(policy).unwrap_or_default();
            for (rule_index, rule) in listed.iter().enumerate() {
                let namespace = &policy.name.namespace;
                let lowered = Lowered {
                    peers: lower_peers(rule, namespace, atoms),
                    ports: lower_ports(rule, direction, pod, names),
                };
                rules.push(Applied {
                    policy: policy_index,
                    rule: rule_index,
                    lowered,
                });
            }
        }
        Some(Self { policies, rules })
    }
}

fn lower_peers(rule: &Rule, namespace: &str, atoms: &mut Atoms) -> Option<Vec<AtomId>> {
    if rule.peers.is_empty() {
        return None;
    }
    let lowered = rule.peers.iter().map(|peer| {
        atoms.intern(match peer {
            Peer::Block(block) => Atom::Block(block.clone()),
            Peer::Pods { namespaces, pods } => Atom::Pods {
                scope: match namespaces {
                    Some(selector) => Scope::Matching(selector.clone()),
                    None => Scope::Own(namespace.to_owned()),
                },
                pods: pods.clone(),
            },
        })
    });
    let mut lowered: Vec<AtomId> = lowered.collect();
    lowered.sort_unstable();
    lowered.dedup();
    Some(lowered)
}

fn lower_ports(
    rule: &Rule,
    direction: Direction,
    pod: &Pod,
    names: &mut Names,
) -> Option<Vec<PortMatch>> {
    if rule.ports.is_empty() {
        return None;
    }
    let lower = |port: &Port| -> Option<PortMatch> {
        let protocol = port.protocol;
        let range = |from, to| Some(PortMatch::Range(protocol.number(), from, to));
        match &port.number {
            PortNumber::Any => range(0, u16::MAX),
            PortNumber::Range(from, to) => range(*from, *to),
            PortNumber::Named(name) if direction == Direction::Ingress => {
                let port = pod.resolve(name, protocol)?;
                range(port, port)
            }
            PortNumber::Named(name) => Some(PortMatch::Peer(names.intern(PortName {
                protocol,
                name: name.clone(),
            }))),
        }
    };
    let mut lowered: Vec<PortMatch> = rule.ports.iter().filter_map(lower).collect();
    lowered.sort_unstable();
    lowered.dedup();
    Some(lowered)
}

impl Lowered {
    /// It can match something.
    pub(crate) fn is_alive(&self) -> bool {
        self.ports.as_ref().is_none_or(|ports| !ports.is_empty())
    }

    pub(crate) fn allows_everything(&self) -> bool {
        self.peers.is_none() && self.ports.is_none()
    }

    pub(crate) fn matches_peer(&self, signature: &Signature) -> bool {
        self.peers.as_ref().is_none_or(|peers| {
            signature
                .atoms
                .iter()
                .any(|atom| peers.binary_search(atom).is_ok())
        })
    }

    /// `names`: what [`PortMatch::Peer`] refers to.
    pub(crate) fn matches_port(
        &self,
        signature: &Signature,
        names: &Names,
        protocol: u8,
        port: u16,
    ) -> bool {
        let Some(ports) = &self.ports else {
            return true;
        };
        ports.iter().any(|entry| match entry {
            PortMatch::Range(proto, from, to) => {
                *proto == protocol && (*from..=*to).contains(&port)
            }
            PortMatch::Peer(name) => {
                let same = names
                    .get(*name)
                    .is_some_and(|n| n.protocol.number() == protocol);
                same && signature.ports.contains(&(*name, port))
            }
        })
    }
}
