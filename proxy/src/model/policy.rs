//! NetworkPolicy v1, checked.

use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fault::Check;
use super::label::{Labels, Selector, check_labels};
use super::{Cidr, ObjectName, Protocol};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    pub name: ObjectName,
    /// Selects pods of the policy's own namespace.
    pub subject: Selector,
    /// `None`: says nothing of this direction. An empty list allows nothing.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
    /// Stands for a policy that could not be understood.
    pub is_closed_for_fault: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Empty: any peer, in the cluster or not.
    pub peers: Vec<Peer>,
    /// Empty: any port of any protocol, ICMP and all others included.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<Selector>,
        pods: Selector,
    },
    Block(IpBlock),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    pub cidr: Cidr,
    /// Sorted, unique, each strictly within `cidr`.
    pub except: Vec<Cidr>,
}

impl IpBlock {
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.cidr.contains(address) && !self.except.iter().any(|e| e.contains(address))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub protocol: Protocol,
    pub number: PortNumber,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortNumber {
    Any,
    /// From, to, both included.
    Range(u16, u16),
    /// What the destination pod calls by this name.
    Named(String),
}

impl NetworkPolicy {
    /// Isolates what `subject` selects in the given directions and allows nothing.
    pub fn closed(name: ObjectName, subject: Selector, ingress: bool, egress: bool) -> Self {
        Self {
            name,
            subject,
            ingress: ingress.then(Vec::new),
            egress: egress.then(Vec::new),
            is_closed_for_fault: true,
        }
    }

    pub(super) fn read(check: &mut Check, name: ObjectName, policy: &api::NetworkPolicy) -> Self {
        let none = Labels::new();
        let labels = policy.metadata.labels.as_ref().unwrap_or(&none);
        check_labels(check, "metadata.labels", labels);
        let Some(spec) = &policy.spec else {
            check.fault("spec", "is missing", "state a podSelector and rules");
            return Self::closed(name, Selector::default(), true, true);
        };
        let subject = match &spec.pod_selector {
            Some(selector) => Selector::read(check, "spec.podSelector", selector),
            None => Selector::default(),
        };
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let (ingress, egress) = directions(
            check,
            types,
            spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        );
        let ingress_rules = spec.ingress.iter().flatten().enumerate();
        let ingress_rules = ingress_rules.map(|(index, rule)| {
            let path = format!("spec.ingress[{index}]");
            read_rule(
                check,
                &path,
                "from",
                rule.from.as_deref(),
                rule.ports.as_deref(),
            )
        });
        let ingress_rules: Vec<_> = ingress_rules.collect();
        let egress_rules = spec.egress.iter().flatten().enumerate();
        let egress_rules = egress_rules.map(|(index, rule)| {
            let path = format!("spec.egress[{index}]");
            read_rule(
                check,
                &path,
                "to",
                rule.to.as_deref(),
                rule.ports.as_deref(),
            )
        });
        let egress_rules: Vec<_> = egress_rules.collect();
        Self {
            name,
            subject,
            ingress: ingress.then_some(ingress_rules),
            egress: egress.then_some(egress_rules),
            is_closed_for_fault: false,
        }
    }
}

/// (ingress, egress): `types` if it lists any, otherwise ingress, and egress if
/// the policy has an egress rule (an empty list is none, as upstream defaults it).
pub(super) fn directions<S: AsRef<str>>(
    check: &mut Check,
    types: &[S],
    has_egress: bool,
) -> (bool, bool) {
    if types.is_empty() {
        return (true, has_egress);
    }
    let (mut ingress, mut egress) = (false, false);
    for (index, name) in types.iter().enumerate() {
        match name.as_ref() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => check.fault(
                &format!("spec.policyTypes[{index}]"),
                format!("unknown policy type \"{other}\""),
                "use Ingress or Egress",
            ),
        }
    }
    (ingress, egress)
}

fn read_rule(
    check: &mut Check,
    path: &str,
    peers_field: &str,
    peers: Option<&[api::NetworkPolicyPeer]>,
    ports: Option<&[api::NetworkPolicyPort]>,
) -> Rule {
    let peers = peers.unwrap_or_default().iter().enumerate();
    let peers = peers
        .filter_map(|(index, peer)| {
            read_peer(check, &format!("{path}.{peers_field}[{index}]"), peer)
        })
        .collect();
    let ports = ports.unwrap_or_default().iter().enumerate();
    let ports = ports
        .filter_map(|(index, port)| read_port(check, &format!("{path}.ports[{index}]"), port))
        .collect();
    Rule { peers, ports }
}

fn read_peer(check: &mut Check, path: &str, peer: &api::NetworkPolicyPeer) -> Option<Peer> {
    let selectors = peer.namespace_selector.is_some() || peer.pod_selector.is_some();
    match (&peer.ip_block, selectors) {
        (Some(_), true) => {
            check.fault(
                path,
                "has an ipBlock and a selector",
                "make two list elements of them: ipBlock stands alone",
            );
            None
        }
        (None, false) => {
            check.fault(
                path,
                "names no peer",
                "give podSelector, namespaceSelector or ipBlock; {} selects all",
            );
            None
        }
        (Some(block), false) => read_block(check, &format!("{path}.ipBlock"), block),
        (None, true) => {
            let namespaces = peer.namespace_selector.as_ref().map(|selector| {
                Selector::read(check, &format!("{path}.namespaceSelector"), selector)
            });
            let pods = match &peer.pod_selector {
                Some(selector) => Selector::read(check, &format!("{path}.podSelector"), selector),
                None => Selector::default(),
            };
            Some(Peer::Pods { namespaces, pods })
        }
    }
}

fn read_cidr(check: &mut Check, path: &str, text: &str) -> Option<Cidr> {
    let cidr = Cidr::parse(text);
    if cidr.is_none() {
        let reason = format!("\"{text}\" is not a CIDR");
        check.fault(path, reason, "write it as 10.0.0.0/8 or fd00::/64");
    }
    cidr
}

fn read_block(check: &mut Check, path: &str, block: &api::IPBlock) -> Option<Peer> {
    let cidr = read_cidr(check, &format!("{path}.cidr"), &block.cidr);
    let mut except = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let path = format!("{path}.except[{index}]");
        let Some(inner) = read_cidr(check, &path, text) else {
            continue;
        };
        if cidr.is_some_and(|cidr| !cidr.strictly_contains(&inner)) {
            check.fault(
                &path,
                format!("{inner} is not within {}", block.cidr),
                "an exception must be a smaller part of the cidr",
            );
        }
        except.push(inner);
    }
    except.sort_unstable();
    except.dedup();
    Some(Peer::Block(IpBlock {
        cidr: cidr?,
        except,
    }))
}

fn read_port(check: &mut Check, path: &str, port: &api::NetworkPolicyPort) -> Option<Port> {
    let protocol = check.protocol(&format!("{path}.protocol"), port.protocol.as_deref());
    let port_path = format!("{path}.port");
    let end_path = format!("{path}.endPort");
    let number = match (&port.port, port.end_port) {
        (None, None) => Some(PortNumber::Any),
        (None, Some(_)) => {
            check.fault(&end_path, "has no port to start from", "state port too");
            None
        }
        (Some(IntOrString::String(_)), Some(_)) => {
            check.fault(
                &end_path,
                "cannot follow a named port",
                "use a number as port, or remove endPort",
            );
            None
        }
        (Some(IntOrString::String(name)), None) => check
            .port_name(&port_path, name)
            .then(|| PortNumber::Named(name.clone())),
        (Some(IntOrString::Int(from)), None) => check
            .port(&port_path, *from)
            .map(|from| PortNumber::Range(from, from)),
        (Some(IntOrString::Int(from)), Some(to)) => {
            let (from, to) = (check.port(&port_path, *from), check.port(&end_path, to));
            let range = from.zip(to);
            if let Some((from, to)) = range.filter(|(from, to)| to < from) {
                let reason = format!("{to} is below port {from}");
                check.fault(&end_path, reason, "endPort must be port or greater");
                None
            } else {
                range.map(|(from, to)| PortNumber::Range(from, to))
            }
        }
    };
    Some(Port {
        protocol: protocol?,
        number: number?,
    })
}
