//! Why a packet passes or not: which policies and rules decide, read from the
//! very structures that the tables are made from. Pure.

use std::fmt;
use std::net::IpAddr;

use proxy_ebpf::abi::kind;
use proxy_ebpf::addr::BePort;
use proxy_ebpf::policy::verdict;

use crate::compile::policy::Subject;
use crate::compile::policy::class::Signature;
use crate::compile::policy::rule::{Applied, Isolation};
use crate::compile::{Attachment, Compiler, Direction, Input, Owner};
use crate::model::{ObjectName, Protocol};

/// A packet as policies see it: after Service translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// The destination's; 0 for protocols without ports.
    pub port: u16,
}

/// Both directions' answers; the packet passes if both let it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub egress: Side,
    pub ingress: Side,
}

/// What one direction says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// The pod whose policies these are; `None` if that end is not a pod.
    pub pod: Option<ObjectName>,
    pub reason: Reason,
    /// What the kernel looks up, where it judges at all.
    pub lookup: Option<Lookup>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub set: u32,
    /// Of the other end.
    pub class: u32,
    pub port_class: u32,
    /// What the compiled tables say; the kernel's may have been tampered with.
    pub allowed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// That end is not a pod: policies do not apply.
    NotAPod,
    /// A pod always reaches itself.
    SamePod,
    /// A node always reaches its own pods, and they it.
    OwnNode,
    /// No source knows the pod; the attachment's default holds.
    UnknownPod { allowed: bool },
    /// No policy selects the pod in this direction.
    NotIsolated,
    /// The first policy, by name, with a rule that matches.
    Allowed {
        policy: ObjectName,
        /// Index into the policy's list of this direction.
        rule: usize,
    },
    /// Some policies isolate the pod and none has a rule that matches.
    Denied { policies: Vec<Refusal> },
    /// The packet was judged by other policies than those in force now.
    Superseded,
}

/// Why one policy does not allow a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub policy: ObjectName,
    /// It stands for a policy that could not be understood, and allows nothing.
    pub is_closed_for_fault: bool,
    /// Rule by rule; empty: the policy allows nothing.
    pub rules: Vec<Mismatch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    Peer,
    Port,
    Both,
}

impl Reason {
    /// `None` where it cannot be told.
    pub const fn allows(&self) -> Option<bool> {
        match self {
            Self::NotAPod
            | Self::SamePod
            | Self::OwnNode
            | Self::NotIsolated
            | Self::Allowed { .. } => Some(true),
            Self::UnknownPod { allowed } => Some(*allowed),
            Self::Denied { .. } => Some(false),
            Self::Superseded => None,
        }
    }
}

impl Explanation {
    pub fn allows(&self) -> bool {
        let sides = [&self.egress, &self.ingress];
        sides.iter().all(|side| side.reason.allows() == Some(true))
    }
}

/// Explains what the policies say of a packet. Ends that are pods elsewhere are
/// judged as they are there: by a copy of the compiler that has them attached.
pub fn explain(compiler: &Compiler, packet: Packet) -> Explanation {
    let ends = [packet.from, packet.to];
    let away = ends.iter().filter(|ip| {
        let owner = compiler.owner(**ip);
        matches!(owner, Some(Owner::Pod { .. }))
    });
    let away: Vec<IpAddr> = away.copied().collect();
    if away.is_empty() {
        return explain_here(compiler, packet);
    }
    let mut copy = compiler.clone();
    let first = compiler
        .attachments()
        .keys()
        .next_back()
        .map_or(1, |slot| slot + 1);
    let attach = away.into_iter().zip(first..).filter_map(|(ip, slot)| {
        let Some(Owner::Pod { name, .. }) = compiler.owner(ip) else {
            return None;
        };
        let attachment = Attachment {
            pod: Some(name.clone()),
            ips: compiler.state().pods.get(name)?.ips.clone(),
            starts_open: false,
        };
        Some(Input::Attach { slot, attachment })
    });
    copy.update(attach.collect::<Vec<_>>());
    explain_here(&copy, packet)
}

fn explain_here(compiler: &Compiler, packet: Packet) -> Explanation {
    Explanation {
        egress: side(compiler, packet, Direction::Egress),
        ingress: side(compiler, packet, Direction::Ingress),
    }
}

fn side(compiler: &Compiler, packet: Packet, direction: Direction) -> Side {
    let (own, other) = match direction {
        Direction::Egress => (packet.from, packet.to),
        Direction::Ingress => (packet.to, packet.from),
    };
    let Some(Owner::Endpoint(slot)) = compiler.owner(own) else {
        return Side {
            pod: None,
            reason: Reason::NotAPod,
            lookup: None,
        };
    };
    let attachment = compiler.attachments().get(slot);
    let pod = attachment.and_then(|attachment| attachment.pod.clone());
    let tables = compiler.tables();
    let exempt = if compiler.owner(other) == Some(&Owner::Endpoint(*slot)) {
        Some(Reason::SamePod)
    } else if tables
        .addresses
        .get(&other)
        .is_some_and(|a| a.kind == kind::LOCAL_NODE)
    {
        Some(Reason::OwnNode)
    } else {
        None
    };
    if let Some(reason) = exempt {
        return Side {
            pod,
            reason,
            lookup: None,
        };
    }
    let endpoint = tables.endpoints.get(slot).unwrap_or_default();
    let set = match direction {
        Direction::Egress => endpoint.egress_set,
        Direction::Ingress => endpoint.ingress_set,
    };
    let class = tables.class_of(other);
    let found = verdict(
        tables,
        set,
        class,
        packet.protocol,
        BePort::new(packet.port),
    );
    let judged = Judged {
        slot: *slot,
        direction,
        set,
        class,
        protocol: packet.protocol,
        port: packet.port,
    };
    Side {
        pod,
        reason: reason(compiler, &judged),
        lookup: Some(Lookup {
            set,
            class,
            port_class: found.port_class,
            allowed: found.allowed,
        }),
    }
}

/// What an event of the kernel says of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The endpoint whose policies judged.
    pub slot: u32,
    pub direction: Direction,
    pub set: u32,
    /// Of the other end.
    pub class: u32,
    pub protocol: u8,
    pub port: u16,
}

/// The policies and rules behind one direction's verdict.
pub fn reason(compiler: &Compiler, judged: &Judged) -> Reason {
    let endpoint = compiler.tables().endpoints.get(&judged.slot);
    let set = endpoint.map(|endpoint| match judged.direction {
        Direction::Egress => endpoint.egress_set,
        Direction::Ingress => endpoint.ingress_set,
    });
    let signature = compiler.policy().classes.signature(judged.class);
    let subject = compiler.policy().subjects.get(&judged.slot);
    let (Some(signature), Some(subject)) = (signature, subject) else {
        return Reason::Superseded;
    };
    if set != Some(judged.set) {
        return Reason::Superseded;
    }
    if subject.pod.is_none() {
        let attachment = compiler.attachments().get(&judged.slot);
        let allowed = attachment.is_some_and(|attachment| attachment.starts_open);
        return Reason::UnknownPod { allowed };
    }
    decide(compiler, subject, signature, judged)
}

fn decide(
    compiler: &Compiler,
    subject: &Subject,
    signature: &Signature,
    judged: &Judged,
) -> Reason {
    let Some(isolation) = subject.isolation(judged.direction) else {
        return Reason::NotIsolated;
    };
    let names = &compiler.policy().names;
    let matches = |rule: &Applied| {
        let lowered = &rule.lowered;
        let port = lowered.matches_port(signature, names, judged.protocol, judged.port);
        (lowered.matches_peer(signature), port)
    };
    let first = isolation
        .rules
        .iter()
        .find(|rule| matches(rule) == (true, true));
    if let Some(rule) = first
        && let Some(policy) = isolation.policies.get(rule.policy)
    {
        return Reason::Allowed {
            policy: policy.name.clone(),
            rule: rule.rule,
        };
    }
    Reason::Denied {
        policies: refusals(isolation, matches),
    }
}

fn refusals(isolation: &Isolation, matches: impl Fn(&Applied) -> (bool, bool)) -> Vec<Refusal> {
    let policies = isolation.policies.iter().enumerate();
    let refusal = policies.map(|(index, policy)| {
        let own = isolation.rules.iter().filter(|rule| rule.policy == index);
        let rules = own.map(|rule| match matches(rule) {
            (false, false) => Mismatch::Both,
            (false, true) => Mismatch::Peer,
            (true, _) => Mismatch::Port,
        });
        Refusal {
            policy: policy.name.clone(),
            is_closed_for_fault: policy.is_closed_for_fault,
            rules: rules.collect(),
        }
    });
    refusal.collect()
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPod => f.write_str("not a pod: policies do not apply"),
            Self::SamePod => f.write_str("a pod always reaches itself"),
            Self::OwnNode => f.write_str("a node and its own pods always reach one another"),
            Self::UnknownPod { allowed: true } => f.write_str("the pod is not known yet; open"),
            Self::UnknownPod { allowed: false } => f.write_str("the pod is not known yet; closed"),
            Self::NotIsolated => f.write_str("no policy selects the pod"),
            Self::Allowed { policy, rule } => write!(f, "allowed by {policy}, rule {rule}"),
            Self::Superseded => f.write_str("judged by policies that are no longer in force"),
            Self::Denied { policies } => {
                f.write_str("denied: isolated by ")?;
                for (index, refusal) in policies.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "; " };
                    write!(f, "{comma}{refusal}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        if self.is_closed_for_fault {
            return f.write_str(" (not understood, allows nothing)");
        }
        if self.rules.is_empty() {
            return f.write_str(" (allows nothing)");
        }
        for (index, mismatch) in self.rules.iter().enumerate() {
            let open = if index == 0 { " (" } else { ", " };
            let what = match mismatch {
                Mismatch::Peer => "other peers",
                Mismatch::Port => "other ports",
                Mismatch::Both => "other peers and ports",
            };
            write!(f, "{open}rule {index}: {what}")?;
        }
        f.write_str(")")
    }
}

/// A port as people write it: `80/tcp`; ICMP as `icmp`.
pub fn parse_port(text: &str) -> Option<(u8, u16)> {
    use proxy_ebpf::addr::proto;
    match text {
        "icmp" => return Some((proto::ICMP, 0)),
        "icmpv6" => return Some((proto::ICMPV6, 0)),
        _ => {}
    }
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = Protocol::parse(&protocol.to_ascii_uppercase())?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some((protocol.number(), port))
}
