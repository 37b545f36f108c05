//! Nodes, namespaces, endpoints, leases, events and certificate requests.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::container::amounts;
use super::network_policy::parse_cidr;
use super::{At, pod, port_name_problem};
use crate::cache::selector::label_value_problem;
use crate::resource::{Causes, NameRule};
use crate::status::Cause;

/// Most endpoints and ports in one slice.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;

/// Node.
pub fn node(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    let mut seen = BTreeSet::new();
    for taint in spec.field("taints").items() {
        let (key, effect) = (taint.field("key"), taint.field("effect"));
        key.qualified_name(causes);
        if let Some(why) = label_value_problem(taint.field("value").text()) {
            taint.field("value").invalid(why, causes);
        }
        effect.choose(&["NoSchedule", "PreferNoSchedule", "NoExecute"], causes);
        if !seen.insert((key.text(), effect.text())) {
            taint.duplicate(causes);
        }
    }
    let cidrs = spec.field("podCIDRs");
    for cidr in cidrs.items() {
        if parse_cidr(cidr.text()).is_none() {
            cidr.invalid(
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                causes,
            );
        }
    }
    if cidrs.value.as_array().is_some_and(|list| list.len() > 2) {
        cidrs.invalid(
            "may specify no more than one CIDR for each IP family",
            causes,
        );
    }
    let status = At::root(object).field("status");
    for list in ["capacity", "allocatable"] {
        amounts(&status.field(list), causes);
    }
}

/// A change of a Node.
pub fn node_update(new: &Value, old: &Value, causes: &mut Causes) {
    let (spec, before) = (At::root(new).field("spec"), &old["spec"]);
    let provider = before["providerID"].as_str().unwrap_or_default();
    if !provider.is_empty() && spec.field("providerID").text() != provider {
        let why = "node updates may not change providerID except from \"\" to valid";
        spec.field("providerID").forbid(why, causes);
    }
    let cidrs = &before["podCIDRs"];
    if cidrs.as_array().is_some_and(|list| !list.is_empty())
        && spec.field("podCIDRs").value != cidrs
    {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        spec.field("podCIDRs").forbid(why, causes);
    }
}

/// Namespace.
pub fn namespace(object: &Value, causes: &mut Causes) {
    for finalizer in At::root(object).field("spec").field("finalizers").items() {
        finalizer.qualified_name(causes);
    }
}

fn usable_address(at: &At<'_>, causes: &mut Causes) {
    let Ok(address) = at.text().parse::<IpAddr>() else {
        pod::ip_address(at, causes);
        return;
    };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let why = if address.is_unspecified() {
        "may not be unspecified (0.0.0.0 or ::)"
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if address.is_multicast() {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return;
    };
    at.invalid(why, causes);
}

/// Endpoints.
pub fn endpoints(object: &Value, causes: &mut Causes) {
    for subset in At::root(object).field("subsets").items() {
        let lists = ["addresses", "notReadyAddresses"].map(|list| subset.field(list));
        if !lists.iter().any(At::is_set) {
            let why = "must specify `addresses` or `notReadyAddresses`";
            causes.push(Cause::required(&subset.path, why));
        }
        for address in lists.iter().flat_map(At::items) {
            usable_address(&address.field("ip"), causes);
            address
                .field("hostname")
                .name_if_set(NameRule::Label, causes);
            address
                .field("nodeName")
                .name_if_set(NameRule::Subdomain, causes);
        }
        let several = subset
            .field("ports")
            .value
            .as_array()
            .is_some_and(|ports| ports.len() > 1);
        for port in subset.field("ports").items() {
            let name = port.field("name");
            if several && !name.is_set() {
                causes.push(Cause::required(&name.path, ""));
            }
            name.name_if_set(NameRule::Label, causes);
            port.field("port").in_range(1, 65535, causes);
            port.field("protocol")
                .choose(&["SCTP", "TCP", "UDP"], causes);
        }
    }
}

/// EndpointSlice.
pub fn endpoint_slice(object: &Value, causes: &mut Causes) {
    let root = At::root(object);
    let of_type = root.field("addressType");
    of_type.choose(&["FQDN", "IPv4", "IPv6"], causes);
    let too_many = |at: &At<'_>, max: usize, causes: &mut Causes| {
        let count = at.value.as_array().map_or(0, Vec::len);
        if count > max {
            let text = format!("Too many: {count}: must have at most {max} items");
            causes.push(Cause::new("FieldValueTooMany", &at.path, text));
        }
    };
    too_many(&root.field("endpoints"), ENDPOINTS_MAX, causes);
    too_many(&root.field("ports"), PORTS_MAX, causes);
    for endpoint in root.field("endpoints").items() {
        let addresses = endpoint.field("addresses");
        if !addresses.is_set() {
            causes.push(Cause::required(
                &addresses.path,
                "must contain at least 1 address",
            ));
        }
        too_many(&addresses, ADDRESSES_MAX, causes);
        for address in addresses.items() {
            let parsed = address.text().parse::<IpAddr>();
            match (of_type.text(), parsed) {
                ("FQDN", _) => address.name(NameRule::Subdomain, causes),
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
                    usable_address(&address, causes);
                }
                ("IPv4", _) => address.invalid("must be an IPv4 address", causes),
                ("IPv6", _) => address.invalid("must be an IPv6 address", causes),
                _ => {}
            }
        }
        endpoint
            .field("hostname")
            .name_if_set(NameRule::Label, causes);
        endpoint
            .field("nodeName")
            .name_if_set(NameRule::Subdomain, causes);
    }
    let mut names = BTreeSet::new();
    for port in root.field("ports").items() {
        let name = port.field("name");
        if !names.insert(name.text()) {
            name.duplicate(causes);
        }
        if name.is_set() && name.text().len() > 63 {
            name.invalid("must be no more than 63 bytes", causes);
        } else if name.is_set() && port_name_problem(name.text()).is_some() {
            name.name(NameRule::Label, causes);
        }
        port.field("port").in_range(1, 65535, causes);
        port.field("protocol")
            .choose(&["SCTP", "TCP", "UDP"], causes);
    }
}

/// A change of an EndpointSlice.
pub fn endpoint_slice_update(new: &Value, old: &Value, causes: &mut Causes) {
    At::root(new)
        .field("addressType")
        .unchanged(&old["addressType"], causes);
}

/// Lease.
pub fn lease(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    let duration = spec.field("leaseDurationSeconds");
    if duration.int().is_some_and(|seconds| seconds <= 0) {
        duration.invalid("must be greater than 0", causes);
    }
    let transitions = spec.field("leaseTransitions");
    if transitions.int().is_some_and(|count| count < 0) {
        transitions.invalid("must be greater than or equal to 0", causes);
    }
}
