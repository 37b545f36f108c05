//! Events of the kernel's ring as lines for `flows --follow`: with pod names
//! and the policy that decided.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proxy_ebpf::abi::SET_NONE;
use proxy_ebpf::addr::{V6, proto};
use proxy_ebpf::event::{Counter, Event, Hook};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use tracing::warn;

use super::core::Core;
use crate::admin::unix_seconds;
use crate::compile::Direction;
use crate::datapath::event::Events;
use crate::explain::{self, Judged, Reason};

/// Reads the ring until the daemon goes. What nobody follows is thrown away at
/// once; while the loop is behind, batches wait in the bounded queue and then in
/// the ring, whose losses the kernel counts.
pub(super) async fn pump(
    mut ring: Events,
    batches: mpsc::Sender<Vec<Event>>,
    flows: broadcast::Sender<Arc<str>>,
) {
    loop {
        match ring.next().await {
            Ok(_) if flows.receiver_count() == 0 => {}
            Ok(events) => {
                if batches.send(events).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(%error, "reading events failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Address -> `namespace/pod` of the endpoints of this node.
pub(super) fn local_names(core: &Core) -> BTreeMap<IpAddr, String> {
    let mut names = BTreeMap::new();
    for stored in core.live().values() {
        if let Some(pod) = &stored.record.pod {
            for ip in &stored.record.ips {
                names.insert(*ip, format!("{}/{}", pod.namespace, pod.name));
            }
        }
    }
    names
}

pub(super) fn address(wide: V6) -> IpAddr {
    match wide.unmapped() {
        Some(v4) => v4.octets().into(),
        None => wide.octets().into(),
    }
}

/// Wall-clock time of a `CLOCK_MONOTONIC_COARSE` stamp.
fn wall(nanos: u64) -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let now = seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    let age = Duration::from_nanos(now.saturating_sub(nanos));
    unix_seconds(SystemTime::now() - age)
}

pub(super) fn protocol_name(protocol: u8) -> String {
    match protocol {
        proto::TCP => "TCP".to_owned(),
        proto::UDP => "UDP".to_owned(),
        proto::SCTP => "SCTP".to_owned(),
        proto::ICMP => "ICMP".to_owned(),
        proto::ICMPV6 => "ICMPv6".to_owned(),
        other => format!("protocol {other}"),
    }
}

/// One event as a line of JSON.
pub(super) fn describe(core: &Core, names: &BTreeMap<IpAddr, String>, event: &Event) -> String {
    let counter = Counter::from_number(event.reason);
    let reason = counter.map_or("unknown", Counter::name);
    let is_drop = counter.is_none_or(Counter::is_drop);
    let verdict = match counter {
        Some(Counter::Rejected) => "rejected",
        _ if is_drop => "dropped",
        _ => "allowed",
    };
    let hook = match event.hook {
        hook if hook == Hook::PodOut as u8 => "pod_out",
        hook if hook == Hook::PodIn as u8 => "pod_in",
        _ => "socket",
    };
    let end = |wide: V6, port: u16| {
        let ip = address(wide);
        let pod = names.get(&ip).cloned().or_else(|| core.name_of(ip));
        json!({ "address": ip, "port": port, "name": pod })
    };
    let mut line = json!({
        "time": wall(event.nanos),
        "verdict": verdict,
        "reason": reason,
        "hook": hook,
        "protocol": protocol_name(event.proto),
        "from": end(event.src, event.sport.host()),
        "to": end(event.dst, event.dport.host()),
        "length": event.length,
        "generation": event.generation,
    });
    let is_refused = |counter: &Counter| is_drop || *counter == Counter::Rejected;
    if let Some(help) = counter.filter(is_refused).map(Counter::help) {
        line["help"] = Value::from(help);
    }
    for (direction, reason) in reasons(core, event) {
        line[direction] = Value::from(reason.to_string());
    }
    line.to_string()
}

/// Why each direction that was judged said what it did.
fn reasons(core: &Core, event: &Event) -> Vec<(&'static str, Reason)> {
    let egress = Judged {
        slot: event.src_slot,
        direction: Direction::Egress,
        set: event.egress_set,
        class: event.egress_class,
        protocol: event.proto,
        port: event.dport.host(),
    };
    let ingress = Judged {
        slot: event.dst_slot,
        direction: Direction::Ingress,
        set: event.ingress_set,
        class: event.ingress_class,
        ..egress
    };
    let refused = |counter: Counter| event.reason == counter as u8;
    let is_judged = |judged: &Judged| match judged.direction {
        Direction::Egress => !refused(Counter::PolicyIngress) && judged.set != SET_NONE,
        Direction::Ingress => !refused(Counter::PolicyEgress) && judged.set != SET_NONE,
    };
    let is_verdict = refused(Counter::FlowsOpened)
        || refused(Counter::PolicyEgress)
        || refused(Counter::PolicyIngress);
    [("egress", egress), ("ingress", ingress)]
        .into_iter()
        .filter(|(_, judged)| is_verdict && is_judged(judged))
        .map(|(name, judged)| (name, explain::reason(&core.compiler, &judged)))
        .collect()
}
