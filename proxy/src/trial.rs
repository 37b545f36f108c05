//! Policy tests without a cluster: manifests and expectations in, a compiled
//! node with every pod attached to it out; each expectation is a packet that
//! something behind [`Kernel`] sends through the real programs.
//!
//! Expectations stand in documents of their own, beside the manifests:
//!
//! ```yaml
//! apiVersion: fairlead.io/v1
//! kind: PolicyTest
//! metadata: { name: shop }
//! spec:
//!   cases:
//!   - { from: shop/web, to: shop/db, port: 5432/tcp, expect: allow }
//!   - { from: 203.0.113.7, to: shop/web, port: 443/tcp, expect: deny }
//! ```
//!
//! A Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob stands for
//! one pod of its name, made from its template.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_ebpf::addr::proto;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::compile::tables::ServiceKey;
use crate::compile::{Attachment, Compiler, Input, Owner, Problem};
use crate::explain::{self, Explanation, Packet};
use crate::model::manifest::{Batch, Document, Unknown};
use crate::model::{Change, Object, ObjectName, Pod, Rejected};

pub mod report;
#[cfg(test)]
mod tests;

pub const API_VERSION: &str = "fairlead.io/v1";
pub const KIND: &str = "PolicyTest";
/// Pods of one trial: endpoint slots are 1 to this.
pub const PODS_MAX: usize = 2000;

/// The real programs with maps of their own.
pub trait Kernel {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes the maps hold the compiler's tables, and an endpoint for each of
    /// its attachments. Called once, before any packet.
    fn load(&mut self, compiler: &Compiler) -> Result<(), Self::Error>;

    /// Sends the first packet of a connection as `packet` says. `from_slot`: the
    /// pod that sends it; `None`: it comes from outside the node, for the pod at
    /// `to_slot`. Whether the programs let it pass.
    fn send(
        &mut self,
        packet: Packet,
        from_slot: Option<u32>,
        to_slot: Option<u32>,
    ) -> Result<bool, Self::Error>;
}

/// What keeps a trial from running. Lists name every fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrialError {
    #[error("{}", join(.0))]
    Rejected(Vec<Rejected>),
    #[error("{origin}: {reason}; hint: {hint}")]
    Case {
        origin: String,
        reason: String,
        hint: String,
    },
    #[error("{0} pods; a trial has at most {PODS_MAX}")]
    TooManyPods(usize),
    #[error("{}", join(.0))]
    Problems(Vec<Problem>),
}

fn join<T: ToString>(items: &[T]) -> String {
    let lines: Vec<String> = items.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// One end of a case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Pod(ObjectName),
    Address(IpAddr),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// One expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub from: End,
    pub to: End,
    pub protocol: u8,
    pub port: u16,
    /// The port as written, for reports.
    pub port_text: String,
    pub expect_allowed: bool,
    /// Of the `PolicyTest`.
    pub test: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TestDocument {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: TestMetadata,
    spec: TestSpec,
}

#[derive(Debug, Deserialize)]
struct TestMetadata {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestSpec {
    cases: Vec<CaseText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseText {
    from: String,
    to: String,
    #[serde(deserialize_with = "port_as_text")]
    port: String,
    expect: Expectation,
}

/// `port: 80` is a number to YAML.
fn port_as_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(D::Error::custom("expected 80/tcp, 53/udp, 9/sctp or icmp")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expectation {
    Allow,
    Deny,
}

/// A node with all pods of the manifests on it.
#[derive(Clone, Debug)]
pub struct Trial {
    pub compiler: Compiler,
    pub cases: Vec<Case>,
    /// Every pod's endpoint slot.
    pub slots: BTreeMap<ObjectName, u32>,
}

impl Trial {
    /// Reads manifests and tests and compiles them.
    pub fn read(documents: impl IntoIterator<Item = Document>) -> Result<Self, TrialError> {
        let (tests, manifests): (Vec<Document>, Vec<Document>) =
            documents.into_iter().partition(is_test);
        let manifests = manifests.into_iter().map(pod_of_workload);
        let batch = Batch::read(manifests, Unknown::Reject);
        if !batch.rejected.is_empty() {
            return Err(TrialError::Rejected(batch.rejected));
        }
        let mut trial = Self::compile(batch)?;
        for document in tests {
            let cases = trial.cases_of(&document)?;
            trial.cases.extend(cases);
        }
        Ok(trial)
    }

    fn compile(batch: Batch) -> Result<Self, TrialError> {
        let mut inputs = Vec::new();
        let mut pods = Vec::new();
        for object in batch.objects.into_values() {
            if let Object::Pod(pod) = &object
                && !pod.host_network
                && !pod.is_over()
            {
                pods.push((**pod).clone());
            }
            inputs.push(Input::Object(Change::Upsert(object)));
        }
        if pods.len() > PODS_MAX {
            return Err(TrialError::TooManyPods(pods.len()));
        }
        let mut slots = BTreeMap::new();
        for (slot, pod) in (1..).zip(pods) {
            slots.insert(pod.name.clone(), slot);
            let attachment = Attachment {
                pod: Some(pod.name.clone()),
                ips: addresses(&pod, slot),
                starts_open: false,
            };
            inputs.push(Input::Attach { slot, attachment });
        }
        let mut compiler = Compiler::new("node");
        compiler.update(inputs);
        let problems = compiler.problems();
        if !problems.is_empty() {
            return Err(TrialError::Problems(problems));
        }
        Ok(Self {
            compiler,
            cases: Vec::new(),
            slots,
        })
    }

    fn cases_of(&self, document: &Document) -> Result<Vec<Case>, TrialError> {
        let fault = |reason: String, hint: &str| TrialError::Case {
            origin: document.origin.to_string(),
            reason,
            hint: hint.to_owned(),
        };
        if document.value.get("apiVersion").and_then(Value::as_str) != Some(API_VERSION) {
            let reason = format!("apiVersion: a {KIND} is of {API_VERSION}");
            return Err(fault(reason, "see the example in the README"));
        }
        let test: TestDocument =
            serde_path_to_error::deserialize(&document.value).map_err(|error| {
                let path = error.path().to_string();
                let reason = format!("{path}: {}", error.into_inner());
                fault(reason, "see the example in the README")
            })?;
        let mut cases = Vec::new();
        for (index, case) in test.spec.cases.iter().enumerate() {
            let path = |field: &str| format!("spec.cases[{index}].{field}");
            let end = |field: &str, text: &str| {
                self.end(text).ok_or_else(|| {
                    let (what, hint) = self.no_end(text);
                    fault(format!("{}: \"{text}\" {what}", path(field)), hint)
                })
            };
            let Some((protocol, port)) = explain::parse_port(&case.port) else {
                let reason = format!("{}: \"{}\" is not a port", path("port"), case.port);
                return Err(fault(reason, "write 80/tcp, 53/udp, 9/sctp or icmp"));
            };
            let case = Case {
                from: end("from", &case.from)?,
                to: end("to", &case.to)?,
                protocol,
                port,
                port_text: case.port.clone(),
                expect_allowed: case.expect == Expectation::Allow,
                test: test.metadata.name.clone(),
            };
            if let Some((reason, hint)) = self.pointless(&case) {
                return Err(fault(format!("spec.cases[{index}]: {reason}"), hint));
            }
            cases.push(case);
        }
        Ok(cases)
    }

    /// Why a case would test nothing, and what to do about it.
    fn pointless(&self, case: &Case) -> Option<(String, &'static str)> {
        let (from, to, port) = (&case.from, &case.to, &case.port_text);
        let packets = self.packets(case);
        if packets.is_empty() {
            let reason = format!("{from} and {to} have no address of the same family");
            return Some((reason, "write an address of the other's family"));
        }
        let of_nobody = |packet: &Packet| {
            let ends = [packet.from, packet.to];
            ends.iter().all(|end| self.slot_of(*end).is_none())
        };
        if packets.iter().any(of_nobody) {
            let reason = format!("neither {from} nor {to} is a pod of these files");
            return Some((reason, "give at least one of the ends as NAMESPACE/POD"));
        }
        let is_dead = |packet: &Packet| {
            let is_service = self.compiler.owner(packet.to) == Some(&Owner::Service);
            is_service && self.behind(*packet).is_empty()
        };
        packets.iter().any(is_dead).then(|| {
            let reason = format!("the Service at {to} has no endpoint for {port}");
            (reason, "add its pods to the files, or correct the port")
        })
    }

    /// What policies see of a packet to a Service: one to each of its endpoints.
    fn behind(&self, packet: Packet) -> Vec<Packet> {
        let key = ServiceKey {
            vip: packet.to,
            port: packet.port,
            proto: packet.protocol,
        };
        let endpoints = self.compiler.tables().endpoints_of(&key);
        let endpoints = endpoints.into_iter().flatten();
        let to = endpoints.map(|endpoint| Packet {
            to: endpoint.address,
            port: endpoint.port,
            ..packet
        });
        to.collect()
    }

    fn end(&self, text: &str) -> Option<End> {
        if let Ok(address) = text.parse() {
            return Some(End::Address(address));
        }
        let (namespace, name) = text.split_once('/')?;
        let name = ObjectName::new(namespace, name);
        self.slots.contains_key(&name).then_some(End::Pod(name))
    }

    /// Why a text names no end of a packet, and what to do about it.
    fn no_end(&self, text: &str) -> (&'static str, &'static str) {
        let name = text.split_once('/');
        let name = name.map(|(namespace, name)| ObjectName::new(namespace, name));
        match name.and_then(|name| self.compiler.state().pods.get(&name)) {
            Some(pod) if pod.host_network => (
                "is on the network of its node",
                "write the node's address: policies see no more of it",
            ),
            Some(_) => ("is over", "give its manifest another status.phase, or none"),
            None => (
                "is no pod of these files",
                "write NAMESPACE/POD of a manifest given, or an address",
            ),
        }
    }

    /// The packets of a case, one for each family that both ends have.
    pub fn packets(&self, case: &Case) -> Vec<Packet> {
        let (from, to) = (self.addresses_of(&case.from), self.addresses_of(&case.to));
        let pairs = from
            .iter()
            .flat_map(|from| to.iter().map(move |to| (*from, *to)));
        pairs
            .filter(|(from, to)| from.is_ipv6() == to.is_ipv6())
            .map(|(from, to)| Packet {
                from,
                to,
                protocol: match case.protocol {
                    // Each family has its own.
                    proto::ICMP | proto::ICMPV6 if to.is_ipv6() => proto::ICMPV6,
                    proto::ICMP | proto::ICMPV6 => proto::ICMP,
                    other => other,
                },
                port: case.port,
            })
            .collect()
    }

    fn addresses_of(&self, end: &End) -> Vec<IpAddr> {
        match end {
            End::Address(address) => vec![*address],
            End::Pod(name) => {
                let slot = self.slots.get(name);
                let attachment = slot.and_then(|slot| self.compiler.attachments().get(slot));
                attachment.map_or_else(Vec::new, |attachment| attachment.ips.clone())
            }
        }
    }

    fn slot_of(&self, address: IpAddr) -> Option<u32> {
        match self.compiler.owner(address) {
            Some(Owner::Endpoint(slot)) => Some(*slot),
            _ => None,
        }
    }

    /// Sends one packet and explains what the policies say of it.
    pub fn send<K: Kernel>(
        &self,
        kernel: &mut K,
        packet: Packet,
    ) -> Result<(bool, Explanation), K::Error> {
        let (from, to) = (self.slot_of(packet.from), self.slot_of(packet.to));
        let passed = kernel.send(packet, from, to)?;
        let judged = match self.compiler.owner(packet.to) {
            Some(Owner::Service) => self.behind(packet),
            _ => vec![packet],
        };
        let judged = judged.into_iter();
        let mut explanations: Vec<_> = judged
            .map(|packet| explain::explain(&self.compiler, packet))
            .collect();
        // One of a Service's endpoints was chosen: it said what was seen.
        let fits = explanations.iter().position(|e| e.allows() == passed);
        Ok((passed, explanations.swap_remove(fits.unwrap_or(0))))
    }

    /// Runs all cases; [`Kernel::load`] must have been called.
    pub fn run<K: Kernel>(&self, kernel: &mut K) -> Result<Vec<report::Outcome>, K::Error> {
        let mut outcomes = Vec::new();
        for case in &self.cases {
            for packet in self.packets(case) {
                let (allowed, explanation) = self.send(kernel, packet)?;
                outcomes.push(report::Outcome {
                    case: case.clone(),
                    packet,
                    allowed,
                    explanation,
                });
            }
        }
        Ok(outcomes)
    }

    /// Who reaches whom on one port, pod by pod, over the first family that both have.
    pub fn matrix<K: Kernel>(
        &self,
        kernel: &mut K,
        (protocol, port): (u8, u16),
    ) -> Result<report::Matrix, K::Error> {
        let pods: Vec<ObjectName> = self.slots.keys().cloned().collect();
        let mut rows = Vec::new();
        for from in &pods {
            let mut row = Vec::new();
            for to in &pods {
                let case = Case {
                    from: End::Pod(from.clone()),
                    to: End::Pod(to.clone()),
                    protocol,
                    port,
                    port_text: String::new(),
                    expect_allowed: true,
                    test: String::new(),
                };
                row.push(match self.packets(&case).first() {
                    Some(packet) => Some(self.send(kernel, *packet)?.0),
                    None => None,
                });
            }
            rows.push(row);
        }
        Ok(report::Matrix { pods, rows })
    }
}

fn is_test(document: &Document) -> bool {
    document.value.get("kind").and_then(Value::as_str) == Some(KIND)
}

/// The addresses of a pod's manifest, or made-up ones of its slot.
fn addresses(pod: &Pod, slot: u32) -> Vec<IpAddr> {
    if !pod.ips.is_empty() {
        return pod.ips.clone();
    }
    let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 0, 0).to_bits() + slot);
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0).to_bits() + u128::from(slot);
    vec![v4.into(), Ipv6Addr::from_bits(v6).into()]
}

/// A workload becomes one pod of its name; anything else stays as it is.
fn pod_of_workload(document: Document) -> Document {
    let kind = document.value.get("kind").and_then(Value::as_str);
    let template = match kind {
        Some("Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job") => "/spec/template",
        Some("CronJob") => "/spec/jobTemplate/spec/template",
        _ => return document,
    };
    let Some(Value::Object(mut pod)) = document.value.pointer(template).cloned() else {
        return document;
    };
    let mut metadata = match pod.remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        _ => serde_json::Map::new(),
    };
    for field in ["name", "namespace"] {
        if let Some(value) = document.value.pointer(&format!("/metadata/{field}")) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    pod.insert("apiVersion".to_owned(), Value::from("v1"));
    pod.insert("kind".to_owned(), Value::from("Pod"));
    pod.insert("metadata".to_owned(), Value::Object(metadata));
    Document {
        value: Value::Object(pod),
        ..document
    }
}
