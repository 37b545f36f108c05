//! What the CLI is told, as JSON values.

use std::net::IpAddr;

use proxy_ebpf::event::Counter;
use serde_json::{Value, json};

use super::core::Core;
use super::publish::fills;
use super::{Daemon, pods};
use crate::admin::{packets, unix_seconds};
use crate::compile::tables::EndpointPolicy;
use crate::datapath::Datapath;

/// `status`: is all well, and if not, what.
pub(super) fn status(daemon: &Daemon) -> Value {
    let core = &daemon.core;
    let state = core.compiler.state();
    let sources: Vec<Value> = core
        .sources
        .iter()
        .map(|source| {
            json!({
                "name": source.name,
                "synced": source.is_synced,
                "faults": source.faults,
                "unsupported": source.unsupported,
            })
        })
        .collect();
    let rejected: Vec<Value> = state
        .rejected
        .values()
        .map(|rejected| {
            let errors = rejected.errors.iter().map(
                |error| json!({ "path": error.path, "reason": error.reason, "hint": error.hint }),
            );
            json!({
                "object": rejected.key.to_string(),
                "origin": &*rejected.origin,
                "errors": errors.collect::<Vec<_>>(),
            })
        })
        .collect();
    let records: Vec<String> = core
        .records
        .rejected
        .values()
        .map(ToString::to_string)
        .collect();
    let now = fills(core.compiler.tables(), &core.datapath, core.live().len());
    let (maps, repairs) = core.admin.update(|health| {
        health.metrics.fills.extend(now);
        (health.metrics.fills.clone(), health.metrics.repairs.clone())
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi": proxy_ebpf::abi::ABI_VERSION,
        "started": unix_seconds(daemon.started),
        "pins": core.datapath.pins().root(),
        "inStep": core.is_in_step(),
        "synced": core.is_synced(),
        "errors": core.errors(),
        "generation": core.compiler.tables().decision.generation,
        "sources": sources,
        "rejected": rejected,
        "rejectedRecords": records,
        "objects": {
            "nodes": state.nodes.len(),
            "namespaces": state.namespaces.len(),
            "pods": state.pods.len(),
            "services": state.services.len(),
            "endpointSlices": state.slices.len(),
            "networkPolicies": state.policies.len(),
        },
        "endpoints": core.live().len(),
        "maps": maps,
        "repairs": repairs,
        "drops": drops(&core.datapath),
    })
}

/// What was dropped so far, and why.
fn drops(datapath: &Datapath) -> Vec<Value> {
    let counted = packets(datapath).into_iter();
    let drops = counted.filter(|(_, _, is_drop, count)| *is_drop && *count > 0);
    let drops = drops.map(|(hook, reason, _, count)| {
        let counter = Counter::ALL.iter().find(|counter| counter.name() == reason);
        let help = counter.map(|counter| counter.help());
        json!({ "hook": hook, "reason": reason, "packets": count, "help": help })
    });
    drops.collect()
}

/// `endpoints`: the pods attached to this node.
pub(super) fn endpoints(core: &Core) -> Value {
    let state = core.compiler.state();
    let tables = core.compiler.tables();
    let live = core.live();
    let endpoints = live.iter().map(|(slot, stored)| {
        let record = &stored.record;
        let policy = tables.endpoints.get(slot).unwrap_or_default();
        let kernel = core.datapath.maps.endpoints.get(slot).ok().flatten();
        let agrees = kernel.is_some_and(|kernel| kernel == pods::endpoint(record, Some(policy)));
        json!({
            "slot": slot,
            "pod": record.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            "known": record.pod.is_none() || pods::known_pod(record, state).is_some(),
            "container": record.container_id,
            "interface": record.host_ifname,
            "ifindex": record.host_ifindex,
            "mac": record.mac,
            "ips": record.ips,
            "ingress": set_name(policy.ingress_set),
            "egress": set_name(policy.egress_set),
            "classes": classes(policy),
            "inKernel": agrees,
        })
    });
    endpoints.collect()
}

fn classes(policy: EndpointPolicy) -> Value {
    json!({ "v4": policy.class_v4, "v6": policy.class_v6 })
}

fn set_name(set: u32) -> String {
    match set {
        proxy_ebpf::abi::SET_NONE => "open".to_owned(),
        proxy_ebpf::abi::SET_CLOSED => "closed".to_owned(),
        set => format!("set {set}"),
    }
}

/// `services`: Service ports and their endpoints.
pub(super) fn services(core: &Core) -> Value {
    let tables = core.compiler.tables();
    let services = tables.services.iter().map(|(key, service)| {
        let backends = tables.endpoints_of(&key).into_iter().flatten();
        let backends = backends.map(|backend| {
            json!({
                "address": backend.address,
                "port": backend.port,
                "name": core.name_of(backend.address),
            })
        });
        let backends: Vec<Value> = backends.collect();
        json!({
            "service": service_name(core, key.vip),
            "address": key.vip,
            "port": key.port,
            "protocol": super::flow::protocol_name(key.proto),
            "affinitySeconds": service.affinity_seconds,
            "backends": backends,
        })
    });
    services.collect()
}

/// The Service that has an address.
pub(super) fn service_name(core: &Core, vip: IpAddr) -> Option<String> {
    let mut services = core.compiler.state().services.values();
    let owner = services.find(|service| service.cluster_ips.contains(&vip))?;
    Some(owner.name.to_string())
}

/// `policies`: every NetworkPolicy and the local pods it isolates.
pub(super) fn policies(core: &Core) -> Value {
    let state = core.compiler.state();
    let live = core.live();
    let policies = state.policies.values().map(|policy| {
        let pods = live
            .values()
            .filter_map(|stored| pods::known_pod(&stored.record, state));
        let selected = pods.filter(|pod| {
            !pod.host_network
                && pod.name.namespace == policy.name.namespace
                && policy.subject.matches(&pod.labels)
        });
        json!({
            "policy": policy.name.to_string(),
            "ingressRules": policy.ingress.as_ref().map(Vec::len),
            "egressRules": policy.egress.as_ref().map(Vec::len),
            "closedForFault": policy.is_closed_for_fault,
            "localPods": selected.map(|pod| pod.name.to_string()).collect::<Vec<_>>(),
        })
    });
    policies.collect()
}
