//! NetworkPolicies.

use std::net::IpAddr;

use serde_json::Value;

use super::{At, PORT, port_name_problem};
use crate::resource::Causes;
use crate::status::Cause;

const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// NetworkPolicy. Nothing is refused on change that is not refused on creation.
pub fn network_policy(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    spec.field("podSelector").selector(causes);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.field(rules).items() {
            for port in rule.field("ports").items() {
                self::port(&port, causes);
            }
            for peer in rule.field(peers).items() {
                self::peer(&peer, causes);
            }
        }
    }
    let types = spec.field("policyTypes");
    if types.value.as_array().is_some_and(|types| types.len() > 2) {
        types.invalid("may not specify more than two policyTypes", causes);
        return;
    }
    for of in types.items() {
        of.choose(&["Egress", "Ingress"], causes);
    }
}

fn port(at: &At<'_>, causes: &mut Causes) {
    at.field("protocol")
        .choose_if_set(&["SCTP", "TCP", "UDP"], causes);
    let (port, end) = (at.field("port"), at.field("endPort"));
    match port.value {
        Value::Number(_) => {
            let number = port.int().unwrap_or(0);
            if !(1..=65535).contains(&number) {
                port.invalid(PORT, causes);
            }
            if let Some(last) = end.int() {
                if last < number {
                    end.invalid("must be greater than or equal to `port`", causes);
                }
                if !(1..=65535).contains(&last) {
                    end.invalid(PORT, causes);
                }
            }
        }
        Value::String(name) => {
            if end.value.is_number() {
                end.invalid("may not be specified when `port` is non-numeric", causes);
            }
            if let Some(why) = port_name_problem(name) {
                port.invalid(why, causes);
            }
        }
        _ => {
            if end.value.is_number() {
                end.invalid("may not be specified when `port` is not specified", causes);
            }
        }
    }
}

fn peer(at: &At<'_>, causes: &mut Causes) {
    let selectors = ["podSelector", "namespaceSelector"].map(|selector| at.field(selector));
    let given = selectors
        .iter()
        .filter(|selector| selector.value.is_object())
        .count();
    for selector in &selectors {
        selector.selector(causes);
    }
    let block = at.field("ipBlock");
    if block.value.is_object() {
        ip_block(&block, causes);
        if given > 0 {
            at.forbid("may not specify both ipBlock and another peer", causes);
        }
    } else if given == 0 {
        causes.push(Cause::required(&at.path, "must specify a peer"));
    }
}

fn ip_block(at: &At<'_>, causes: &mut Causes) {
    let cidr = at.field("cidr");
    if !cidr.require(causes) {
        return;
    }
    let Some(whole) = parse_cidr(cidr.text()) else {
        cidr.invalid(CIDR, causes);
        return;
    };
    for except in at.field("except").items() {
        match parse_cidr(except.text()) {
            None => except.invalid(CIDR, causes),
            Some(part) if !is_within(part, whole) => {
                except.invalid("must be a strict subset of `cidr`", causes);
            }
            Some(_) => {}
        }
    }
}

/// Network bits of an address, left-aligned, with how many bits a whole address has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

/// An address and a prefix length.
pub(super) fn parse_cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let digits = length.bytes().all(|b| b.is_ascii_digit()) && !length.starts_with("00");
    let length: u32 = length.parse().ok().filter(|_| digits)?;
    (length <= bits(address).1).then_some((address, length))
}

/// Whether `part` lies in `whole` and is smaller.
fn is_within(part: (IpAddr, u32), whole: (IpAddr, u32)) -> bool {
    let ((inner, family), (outer, outer_family)) = (bits(part.0), bits(whole.0));
    let same = (inner ^ outer).checked_shr(128 - whole.1).unwrap_or(0) == 0;
    family == outer_family && same && part.1 > whole.1
}
