//! One Service's turn: what it asks for is checked, what it lacks is given.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc};

use serde_json::{Value, json};

use super::{Given, PORTS, PROBES_MAX, Range, State, addresses, ports, stored};
use crate::{cache::Cache, status::Cause};

/// What a Service has had before.
#[derive(Debug, Default)]
pub(super) struct Kept {
    families: Value,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Kept {
    /// By its former state.
    pub(super) fn of(spec: &Value) -> Self {
        Self {
            families: spec["ipFamilies"].clone(),
            addresses: addresses(spec).collect(),
            ports: ports(spec).collect(),
        }
    }
}

fn family_of(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// One Service's turn at the allocator.
pub(super) struct Turn<'a> {
    pub(super) ranges: &'a [Range],
    pub(super) state: &'a mut State,
    pub(super) cache: &'a Cache,
    pub(super) key: String,
    pub(super) promise: Arc<()>,
    pub(super) seed: u128,
    pub(super) causes: Vec<Cause>,
    pub(super) kept: Kept,
}

/// Whether a given thing is taken from the view of `key`.
fn taken<T: Eq + Hash>(
    given: &HashMap<T, Given>,
    thing: &T,
    key: &str,
    still: impl Fn(&str) -> bool,
) -> bool {
    given.get(thing).is_some_and(|holder| {
        holder.key != key && (holder.promise.strong_count() > 0 || still(&holder.key))
    })
}

impl Turn<'_> {
    fn address_taken(&self, address: IpAddr) -> bool {
        let has = |key: &str| {
            stored(self.cache, key).is_some_and(|spec| addresses(&spec).any(|a| a == address))
        };
        taken(&self.state.addresses, &address, &self.key, has)
    }

    fn port_taken(&self, port: u16) -> bool {
        let has =
            |key: &str| stored(self.cache, key).is_some_and(|spec| ports(&spec).any(|p| p == port));
        taken(&self.state.ports, &port, &self.key, has)
    }

    /// Whether another port of this very request has got it.
    fn port_given(&self, port: u16) -> bool {
        let own = Arc::downgrade(&self.promise);
        let holder = self.state.ports.get(&port);
        holder.is_some_and(|holder| holder.promise.ptr_eq(&own))
    }

    fn given(&self) -> Given {
        Given {
            key: self.key.clone(),
            promise: Arc::downgrade(&self.promise),
        }
    }

    fn wanted_address(&mut self, index: usize, text: &str) {
        let field = format!("spec.clusterIPs[{index}]");
        let wrong = |why: String| Cause::invalid(field.clone(), &json!([text]), why);
        let Ok(address) = text.parse::<IpAddr>() else {
            return;
        };
        // What it has had is its own, even if the ranges have changed since.
        if self.kept.addresses.contains(&address) {
            return self.take_address(address);
        }
        let same_family = |range: &&Range| range.base.is_ipv4() == address.is_ipv4();
        let Some(range) = self.ranges.iter().find(same_family) else {
            let family = family_of(&address);
            let why =
                format!("failed to allocate IP {text}: {family} is not configured on this cluster");
            return self.causes.push(wrong(why));
        };
        if !range.contains(address) {
            let why = format!(
                "failed to allocate IP {text}: the provided IP ({text}) is not in the valid range. The range of valid IPs is {}",
                range.text
            );
            return self.causes.push(wrong(why));
        }
        if self.address_taken(address) {
            let why = format!("failed to allocate IP {text}: provided IP is already allocated");
            return self.causes.push(wrong(why));
        }
        self.take_address(address);
    }

    fn take_address(&mut self, address: IpAddr) {
        let given = self.given();
        self.state.addresses.insert(address, given);
    }

    fn take_port(&mut self, port: u16) {
        let given = self.given();
        self.state.ports.insert(port, given);
    }

    fn free_address(&mut self, family: &str) -> Option<IpAddr> {
        let range = self.ranges.iter().find(|range| range.family() == family)?;
        let dynamic = range.dynamic();
        let width = dynamic.end - dynamic.start;
        let upper =
            (0..width.min(PROBES_MAX)).map(|step| dynamic.start + (self.seed + step) % width);
        let mut offsets = upper.chain(1..dynamic.start);
        let address = offsets.find_map(|offset| {
            let address = range.at(offset);
            (!self.address_taken(address)).then_some(address)
        })?;
        self.take_address(address);
        Some(address)
    }

    fn free_port(&mut self) -> Option<u16> {
        let width = u128::try_from(PORTS.len()).unwrap_or(1);
        let start = *PORTS.start();
        let mut ports =
            (0..width).map(|step| start + u16::try_from((self.seed + step) % width).unwrap_or(0));
        let port = ports.find(|port| !self.port_taken(*port) && !self.port_given(*port))?;
        self.take_port(port);
        Some(port)
    }

    fn families(&mut self, spec: &mut Value) -> Vec<String> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut families: Vec<String> = spec["ipFamilies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(text)
            .collect();
        if families.is_empty() {
            families = addresses(spec).map(|a| family_of(&a).to_owned()).collect();
        }
        if families.is_empty() {
            families.extend(self.ranges.first().map(|range| range.family().to_owned()));
        }
        let policy = text(&spec["ipFamilyPolicy"]).unwrap_or_else(|| {
            if families.len() > 1 {
                "RequireDualStack"
            } else {
                "SingleStack"
            }
            .to_owned()
        });
        for (index, family) in families.iter().enumerate() {
            let kept = self.kept.families[index] == family.as_str();
            if !kept && !self.ranges.iter().any(|range| range.family() == family) {
                let why = "not configured on this cluster";
                self.causes.push(Cause::invalid(
                    format!("spec.ipFamilies[{index}]"),
                    &json!(family),
                    why,
                ));
            }
        }
        if policy != "SingleStack" && families.len() == 1 {
            let other = self
                .ranges
                .iter()
                .find(|range| range.family() != families[0]);
            match other {
                Some(other) => families.push(other.family().to_owned()),
                None if policy == "RequireDualStack" => {
                    let why = "this cluster is not configured for dual-stack services";
                    self.causes
                        .push(Cause::invalid("spec.ipFamilyPolicy", &json!(policy), why));
                }
                None => {}
            }
        }
        spec["ipFamilyPolicy"] = policy.into();
        spec["ipFamilies"] = json!(families);
        families
    }

    pub(super) fn give_addresses(&mut self, spec: &mut Value) {
        let families = self.families(spec);
        if spec["clusterIP"] == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return;
        }
        let mut list: Vec<Value> = spec["clusterIPs"].as_array().cloned().unwrap_or_default();
        if list.is_empty() && spec["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty()) {
            list.push(spec["clusterIP"].clone());
        }
        for (index, text) in list.iter().enumerate() {
            self.wanted_address(index, text.as_str().unwrap_or_default());
        }
        for family in families.iter().skip(list.len()) {
            if let Some(address) = self.free_address(family) {
                list.push(address.to_string().into());
            } else {
                let why = "failed to allocate IP: range is full";
                self.causes
                    .push(Cause::invalid("spec.clusterIPs", &json!(list), why));
            }
        }
        if self.causes.is_empty() {
            spec["clusterIP"] = list.first().cloned().unwrap_or_default();
            spec["clusterIPs"] = list.into();
        }
    }

    fn wanted_port(&mut self, field: String, port: u64) {
        let number = u16::try_from(port).ok();
        if let Some(number) = number.filter(|number| self.kept.ports.contains(number)) {
            return self.take_port(number);
        }
        let in_range = number.filter(|port| PORTS.contains(port));
        let Some(number) = in_range else {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                PORTS.start(),
                PORTS.end()
            );
            return self.causes.push(Cause::invalid(field, &json!(port), why));
        };
        if self.port_taken(number) {
            let why = "provided port is already allocated";
            return self.causes.push(Cause::invalid(field, &json!(port), why));
        }
        self.take_port(number);
    }

    pub(super) fn give_ports(&mut self, spec: &mut Value) {
        let balancer = spec["type"] == "LoadBalancer";
        let wanted = spec["type"] == "NodePort"
            || (balancer && spec["allocateLoadBalancerNodePorts"] != json!(false));
        // Those that are asked for come before those that take what is free.
        for (index, port) in spec["ports"].as_array().into_iter().flatten().enumerate() {
            if let Some(number) = port["nodePort"].as_u64().filter(|n| *n > 0) {
                self.wanted_port(format!("spec.ports[{index}].nodePort"), number);
            }
        }
        let missing = |port: &Value| port["nodePort"].as_u64().unwrap_or(0) == 0;
        let mut by_number: HashMap<(u64, String), u64> = HashMap::new();
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            let number = port["port"].as_u64().unwrap_or(0);
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            if wanted && missing(port) {
                // TCP and UDP of one port may share a node port.
                let shared = by_number
                    .iter()
                    .find(|((n, p), _)| *n == number && *p != protocol);
                let shared = shared.map(|(_, node_port)| *node_port);
                match shared.or_else(|| self.free_port().map(u64::from)) {
                    Some(free) => port["nodePort"] = free.into(),
                    None => self.causes.push(Cause::invalid(
                        "spec.ports",
                        &Value::Null,
                        "failed to allocate a nodePort: range is full",
                    )),
                }
            }
            if let Some(node_port) = port["nodePort"].as_u64().filter(|n| *n > 0) {
                by_number.insert((number, protocol), node_port);
            }
        }
        let checked = balancer && spec["externalTrafficPolicy"] == "Local";
        if checked {
            match spec["healthCheckNodePort"].as_u64().filter(|n| *n > 0) {
                Some(port) => self.wanted_port("spec.healthCheckNodePort".to_owned(), port),
                None => {
                    if let Some(port) = self.free_port() {
                        spec["healthCheckNodePort"] = port.into();
                    }
                }
            }
        }
    }
}
