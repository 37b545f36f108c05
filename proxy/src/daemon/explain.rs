//! `policy explain`: the compilers' reasons, and whether the kernel's maps say
//! the same.

use std::fmt::Write;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::core::Core;
use super::flow::protocol_name;
use crate::compile::{Direction, Owner};
use crate::datapath::verdict::Question;
use crate::explain::{Packet, Reason, Side, explain, parse_port};
use crate::model::ObjectName;

/// Backends of a Service that are explained one by one.
const BACKENDS_SHOWN: usize = 16;

/// One end of a question.
struct End {
    name: String,
    addresses: Vec<IpAddr>,
}

pub(super) fn answer(core: &Core, from: &str, to: &str, port: &str) -> Result<Value, String> {
    let (protocol, port) = parse_port(port).ok_or_else(|| {
        format!("\"{port}\" is not a port\nhint: write it as 80/tcp, 53/udp, 9/sctp or icmp")
    })?;
    let source = end(core, from)?;
    let destination = end(core, to)?;
    let mut paths = Vec::new();
    for from in &source.addresses {
        for to in &destination.addresses {
            if from.is_ipv4() != to.is_ipv4() {
                continue;
            }
            for (to, port, via) in translate(core, *to, protocol, port)? {
                let packet = Packet {
                    from: *from,
                    to,
                    protocol,
                    port,
                };
                paths.push(path(
                    core,
                    &source.name,
                    &destination.name,
                    packet,
                    via.as_deref(),
                ));
            }
        }
    }
    if paths.is_empty() {
        return Err(format!(
            "{from} and {to} have no address of the same family"
        ));
    }
    let text: String = paths
        .iter()
        .filter_map(|path| path["text"].as_str())
        .collect();
    let allowed = paths.iter().all(|path| path["allowed"] == true);
    Ok(json!({ "allowed": allowed, "paths": paths, "text": text }))
}

/// A pod of `namespace/name`, or an address.
fn end(core: &Core, text: &str) -> Result<End, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let name = core
            .name_of(address)
            .unwrap_or_else(|| "an address outside the cluster".into());
        return Ok(End {
            name,
            addresses: vec![address],
        });
    }
    let (namespace, name) = text.split_once('/').ok_or_else(|| {
        format!("\"{text}\" is neither a pod nor an address\nhint: write it as NAMESPACE/POD or 10.0.0.1")
    })?;
    let wanted = ObjectName::new(namespace, name);
    let attached = core.compiler.attachments().values();
    let attached = attached.filter(|attachment| attachment.pod.as_ref() == Some(&wanted));
    let mut addresses: Vec<IpAddr> = attached.flat_map(|a| a.ips.iter().copied()).collect();
    let Some(pod) = core.compiler.state().pods.get(&wanted) else {
        return Err(format!(
            "no source knows pod {wanted}\nhint: `fairlead-proxy endpoints` lists this node's pods"
        ));
    };
    if addresses.is_empty() {
        addresses.clone_from(&pod.ips);
    }
    if addresses.is_empty() {
        return Err(format!("pod {wanted} has no address (yet)"));
    }
    Ok(End {
        name: wanted.to_string(),
        addresses,
    })
}

/// Where packets to an address end up: (address, port, Service), itself if it
/// is no Service's.
fn translate(
    core: &Core,
    to: IpAddr,
    protocol: u8,
    port: u16,
) -> Result<Vec<(IpAddr, u16, Option<String>)>, String> {
    if core.compiler.owner(to) != Some(&Owner::Service) {
        return Ok(vec![(to, port, None)]);
    }
    let tables = core.compiler.tables();
    let key = crate::compile::tables::ServiceKey {
        vip: to,
        port,
        proto: protocol,
    };
    let name = super::report::service_name(core, to).unwrap_or_else(|| to.to_string());
    let backends = tables.endpoints_of(&key).ok_or_else(|| {
        format!(
            "Service {name} has no port {port}/{}",
            protocol_name(protocol)
        )
    })?;
    if backends.is_empty() {
        return Err(format!(
            "Service {name} has no endpoint: connections are rejected"
        ));
    }
    let shown = backends.into_iter().take(BACKENDS_SHOWN);
    Ok(shown
        .map(|backend| (backend.address, backend.port, Some(name.clone())))
        .collect())
}

fn path(core: &Core, from: &str, to: &str, packet: Packet, via: Option<&str>) -> Value {
    let explanation = explain(&core.compiler, packet);
    let egress = side(core, Direction::Egress, packet, &explanation.egress);
    let ingress = side(core, Direction::Ingress, packet, &explanation.ingress);
    let allowed = explanation.allows();
    let port = match packet.port {
        0 => protocol_name(packet.protocol),
        port => format!("{port}/{}", protocol_name(packet.protocol)),
    };
    let to = match via {
        Some(service) => {
            let backend = core.name_of(packet.to).unwrap_or_default();
            format!("Service {service}, backend {backend}")
        }
        None => to.to_owned(),
    };
    let verdict = if allowed { "ALLOWED" } else { "DENIED" };
    let mut text = format!(
        "{from} ({}) -> {to} ({}) {port}: {verdict}\n",
        packet.from, packet.to
    );
    for (direction, side) in [("egress", &egress), ("ingress", &ingress)] {
        let pod = side["pod"].as_str().unwrap_or("-");
        let reason = side["reason"].as_str().unwrap_or_default();
        writeln!(text, "  {direction:<8} {pod}: {reason}")
            .expect("writing to a String cannot fail");
        if let Some(false) = side["kernelAgrees"].as_bool() {
            let says = if side["kernelAllows"] == true {
                "ALLOWS"
            } else {
                "DENIES"
            };
            writeln!(
                text,
                "  {direction:<8} the kernel's maps DISAGREE: they say it {says}; hint: the next audit puts them right"
            )
            .expect("writing to a String cannot fail");
        }
    }
    json!({
        "from": { "name": from, "address": packet.from },
        "to": { "name": to, "address": packet.to },
        "service": via,
        "protocol": protocol_name(packet.protocol),
        "port": packet.port,
        "allowed": allowed,
        "egress": egress,
        "ingress": ingress,
        "text": text,
    })
}

fn side(core: &Core, direction: Direction, packet: Packet, side: &Side) -> Value {
    let is_ingress = direction == Direction::Ingress;
    let (own, peer) = if is_ingress {
        (packet.to, packet.from)
    } else {
        (packet.from, packet.to)
    };
    let slot = match core.compiler.owner(own) {
        Some(Owner::Endpoint(slot)) => Some(*slot),
        _ => None,
    };
    // Only where the kernel is asked at all, and is this node's.
    let kernel = slot.filter(|_| side.lookup.is_some()).map(|slot| {
        core.datapath.verdict(&Question {
            slot,
            is_ingress,
            peer,
            protocol: packet.protocol,
            port: packet.port,
        })
    });
    let compiled = side.lookup.map(|lookup| lookup.allowed);
    let agrees = kernel.map(|kernel| kernel == compiled);
    let (policy, rule) = match &side.reason {
        Reason::Allowed { policy, rule } => (Some(policy.to_string()), Some(*rule)),
        _ => (None, None),
    };
    json!({
        "pod": side.pod.as_ref().map(ToString::to_string),
        "allowed": side.reason.allows(),
        "reason": side.reason.to_string(),
        "policy": policy,
        "rule": rule,
        "kernelAllows": kernel.flatten(),
        "kernelAgrees": agrees,
    })
}
