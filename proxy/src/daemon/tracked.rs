//! `flows`: the connections that are tracked now, as the kernel has them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use proxy_ebpf::abi::{Flow, Plain, Tick, flow as flags};
use proxy_ebpf::addr::{Addr, BePort, FlowKey, Side, proto};
use proxy_ebpf::conntrack::{FIN_OPENER, FIN_PEER, REPLIED, RESET};
use serde_json::{Value, json};

use super::core::Core;
use super::flow::{address, local_names, protocol_name};
use super::report::service_name;
use crate::datapath::bpf::Table;
use crate::datapath::sweep;

/// Flows told at once: a terminal's worth, and a bounded answer.
const FLOWS_MAX: usize = 10_000;

/// At most [`FLOWS_MAX`] flows, and how many there are.
pub(super) fn tracked(core: &Core) -> io::Result<Value> {
    let maps = &core.datapath.maps;
    let names = local_names(core);
    let mut list = List {
        core,
        names: &names,
        now: sweep::now(),
        flows: Vec::new(),
        count: 0,
    };
    list.add(&maps.v4.flows)?;
    list.add(&maps.v6.flows)?;
    Ok(json!({ "flows": list.flows, "count": list.count }))
}

struct List<'a> {
    core: &'a Core,
    names: &'a BTreeMap<IpAddr, String>,
    now: Tick,
    flows: Vec<Value>,
    count: usize,
}

impl List<'_> {
    fn add<A: Addr>(&mut self, table: &Table<FlowKey<A>, Flow<A>>) -> io::Result<()>
    where
        FlowKey<A>: Plain,
        Flow<A>: Plain,
    {
        let entries = table.entries()?;
        self.count += entries.len();
        let room = FLOWS_MAX - self.flows.len();
        for (key, flow) in entries.iter().take(room) {
            let told = self.describe(key, flow);
            self.flows.push(told);
        }
        Ok(())
    }

    fn describe<A: Addr>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Value {
        let opener = if flow.flags & flags::OPENED_BY_HIGH != 0 {
            Side::High
        } else {
            Side::Low
        };
        let sent = key.tuple_from(opener);
        let translated = flow.flags & flags::NAT != 0;
        let hairpin = flow.flags & flags::HAIRPIN != 0;
        let from = if hairpin { sent.dst } else { sent.src };
        let service = translated.then(|| {
            let ip = address(flow.service.wide());
            json!({
                "address": ip,
                "port": flow.service_port.host(),
                "name": service_name(self.core, ip),
            })
        });
        json!({
            "protocol": protocol_name(sent.proto),
            "state": state(sent.proto, flow.state),
            "from": self.end(from, if translated { flow.client_port } else { sent.sport }),
            "to": self.end(sent.dst, sent.dport),
            "service": service,
            "idleSeconds": sweep::seconds(self.now.since(flow.seen)),
            "generation": flow.generation,
        })
    }

    fn end<A: Addr>(&self, ip: A, port: BePort) -> Value {
        let ip = address(ip.wide());
        let name = self.names.get(&ip).cloned();
        let name = name.or_else(|| self.core.name_of(ip));
        json!({ "address": ip, "port": port.host(), "name": name })
    }
}

/// What the packets so far have made of a flow.
const fn state(protocol: u8, bits: u8) -> &'static str {
    let tcp = protocol == proto::TCP;
    if tcp && (bits & RESET != 0 || bits & (FIN_OPENER | FIN_PEER) == FIN_OPENER | FIN_PEER) {
        "closed"
    } else if tcp && bits & (FIN_OPENER | FIN_PEER) != 0 {
        "half-closed"
    } else if bits & REPLIED == 0 {
        "unanswered"
    } else if tcp {
        "established"
    } else {
        "answered"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_what_both_ends_have_sent() {
        assert_eq!(state(proto::TCP, 0), "unanswered");
        assert_eq!(state(proto::TCP, REPLIED), "established");
        assert_eq!(state(proto::UDP, REPLIED), "answered");
        assert_eq!(state(proto::TCP, REPLIED | FIN_PEER), "half-closed");
        assert_eq!(state(proto::TCP, FIN_OPENER | FIN_PEER), "closed");
        assert_eq!(state(proto::TCP, REPLIED | RESET), "closed");
    }
}
