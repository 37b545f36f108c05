//! Addresses and node ports of Services, given at admission.
//!
//! The Service that is stored *is* the claim; there is no second record that
//! could be lost or go stale. A map remembers who was given what; before an
//! address counts as taken, the Service that had it is looked at again. Between
//! admission and commit a promise stands for the claim. So a create is
//! transactional, a crash leaks nothing, and there is nothing to repair.
//! Bound of the map: addresses and ports that were ever given, at most the ranges.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};

use crate::{
    cache::{Cache, Query},
    controller::runtime::object::served,
    registry::{Admission, Operation, Request},
    status::{Cause, Status},
};

mod range;

pub use range::{Range, RangeError};

/// Node ports, as upstream's default.
const PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Addresses tried in a row before a range counts as full.
const PROBES_MAX: u128 = 1 << 16;

/// Who was given something, and whether that is still only promised.
#[derive(Debug)]
struct Given {
    key: String,
    promise: Weak<()>,
}

/// The admission rule.
#[derive(Debug)]
pub struct ServiceAllocator {
    ranges: Vec<Range>,
    state: Mutex<State>,
    turn: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    loaded: bool,
    addresses: HashMap<IpAddr, Given>,
    ports: HashMap<u16, Given>,
}

/// One Service's turn at the allocator.
struct Turn<'a> {
    ranges: &'a [Range],
    state: &'a mut State,
    cache: &'a Cache,
    key: String,
    promise: Arc<()>,
    seed: u128,
    causes: Vec<Cause>,
}

impl ServiceAllocator {
    /// Over one range, or one of each family.
    pub fn new(ranges: Vec<Range>) -> Self {
        Self {
            ranges,
            state: Mutex::default(),
            turn: AtomicU64::new(0),
        }
    }
}

fn stored(cache: &Cache, key: &str) -> Option<Value> {
    let entry = cache.of(served("", "services")).get(key)?;
    Some(entry.value()["spec"].take())
}

fn addresses(spec: &Value) -> impl Iterator<Item = IpAddr> {
    let all = spec["clusterIPs"].as_array().into_iter().flatten();
    all.filter_map(|text| text.as_str()?.parse().ok())
}

fn ports(spec: &Value) -> impl Iterator<Item = u16> {
    let each = spec["ports"].as_array().into_iter().flatten();
    let node_ports = each.filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok());
    let health = spec["healthCheckNodePort"].as_u64();
    node_ports
        .chain(health.and_then(|port| u16::try_from(port).ok()))
        .filter(|port| *port > 0)
}

impl State {
    /// Reads who has what, once.
    fn load(&mut self, cache: &Cache) {
        if std::mem::replace(&mut self.loaded, true) {
            return;
        }
        let page = cache.of(served("", "services")).list(&Query::default());
        for entry in page.map(|page| page.entries).unwrap_or_default() {
            let spec = entry.value()["spec"].take();
            let given = || Given {
                key: entry.key.to_string(),
                promise: Weak::new(),
            };
            for address in addresses(&spec) {
                if let Some(other) = self.addresses.insert(address, given()) {
                    tracing::error!(%address, first = other.key, second = %entry.key, "two Services have the same address; delete one");
                }
            }
            for port in ports(&spec) {
                self.ports.insert(port, given());
            }
        }
    }
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
        let same_family = |range: &&Range| range.base.is_ipv4() == address.is_ipv4();
        let Some(range) = self.ranges.iter().find(same_family) else {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
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
        let given = self.given();
        self.state.addresses.insert(address, given);
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
        let given = self.given();
        self.state.addresses.insert(address, given);
        Some(address)
    }

    fn free_port(&mut self) -> Option<u16> {
        let width = u128::try_from(PORTS.len()).unwrap_or(1);
        let start = *PORTS.start();
        let mut ports =
            (0..width).map(|step| start + u16::try_from((self.seed + step) % width).unwrap_or(0));
        let port = ports.find(|port| !self.port_taken(*port) && !self.port_given(*port))?;
        let given = self.given();
        self.state.ports.insert(port, given);
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
            let asked =
                addresses(spec).map(|a| if a.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned());
            families = asked.collect();
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
            if !self.ranges.iter().any(|range| range.family() == family) {
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

    fn give_addresses(&mut self, spec: &mut Value) {
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
        let in_range = u16::try_from(port).ok().filter(|port| PORTS.contains(port));
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
        let given = self.given();
        self.state.ports.insert(number, given);
    }

    fn give_ports(&mut self, spec: &mut Value) {
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

/// What an update need not say again: addresses and ports that it already has.
/// Pure.
fn carry_over(spec: &mut Value, old: &Value) {
    let external = |spec: &Value| spec["type"] == "ExternalName";
    if external(spec) {
        if let Some(spec) = spec.as_object_mut() {
            for field in [
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "healthCheckNodePort",
            ] {
                if spec.get(field) == old.get(field) {
                    spec.remove(field);
                }
            }
        }
    } else if !external(old) {
        let unset = spec["clusterIP"].as_str().unwrap_or_default().is_empty();
        if unset {
            spec["clusterIP"] = old["clusterIP"].clone();
            spec["clusterIPs"] = old["clusterIPs"].clone();
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if spec[field].is_null() {
                spec[field] = old[field].clone();
            }
        }
    }
    let exposed = |spec: &Value| spec["type"] == "NodePort" || spec["type"] == "LoadBalancer";
    let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    let now_exposed = exposed(spec);
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let before = old["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|b| same(b, port));
        let Some(before) = before else { continue };
        let unset = port["nodePort"].as_u64().unwrap_or(0) == 0;
        if now_exposed && exposed(old) && unset && !before["nodePort"].is_null() {
            port["nodePort"] = before["nodePort"].clone();
        } else if !now_exposed && exposed(old) && port["nodePort"] == before["nodePort"] {
            drop(
                port.as_object_mut()
                    .and_then(|port| port.remove("nodePort")),
            );
        }
    }
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

impl Admission for ServiceAllocator {
    fn admit(&self, request: &mut Request<'_>, object: &mut Value) -> Result<(), Status> {
        let target = request.target;
        if target.resource.key != "services"
            || !target.subresource.is_empty()
            || request.operation == Operation::Delete
        {
            return Ok(());
        }
        let mut spec = object["spec"].take();
        if !spec.is_object() {
            object["spec"] = spec;
            return Ok(());
        }
        if let Some(old) = request.old {
            carry_over(&mut spec, &old["spec"]);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = target.resource.object_key(target.namespace, name);
        let mut state = self.state.lock().expect("no holder panics");
        state.load(request.cache);
        let seed = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut turn = Turn {
            ranges: &self.ranges,
            state: &mut state,
            cache: request.cache,
            key,
            promise: Arc::new(()),
            seed: u128::from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16),
            causes: Vec::new(),
        };
        if spec["type"] != "ExternalName" {
            turn.give_addresses(&mut spec);
            turn.give_ports(&mut spec);
        }
        let (promise, causes) = (turn.promise, turn.causes);
        if let Some(map) = spec.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        object["spec"] = spec;
        if causes.is_empty() {
            request.holds.push(Box::new(promise));
            return Ok(());
        }
        Err(Status::invalid("", "Service", name_of(object), causes))
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_know_their_addresses() {
        let range = Range::parse("10.96.0.0/16").unwrap();
        assert!(range.contains("10.96.0.1".parse().unwrap()));
        assert!(!range.contains("10.96.0.0".parse().unwrap()));
        assert!(!range.contains("10.96.255.255".parse().unwrap()));
        assert_eq!(range.dynamic(), 256..65535);
        assert_eq!(
            Range::parse("fd00::/112").unwrap().at(5).to_string(),
            "fd00::5"
        );
        for wrong in [
            "10.96.0.1/16",
            "10.96.0.0",
            "10.0.0.0/33",
            "10.0.0.0/31",
            "x/8",
        ] {
            assert!(Range::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_update_keeps_what_it_does_not_say() {
        let old = json!({
            "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
        });
        let mut new = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]});
        carry_over(&mut new, &old);
        assert_eq!(
            (&new["clusterIP"], &new["ports"][0]["nodePort"]),
            (&json!("10.96.1.1"), &json!(30080))
        );
        let mut new = json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
        carry_over(&mut new, &old);
        assert!(new["ports"][0].get("nodePort").is_none());
        let mut new = json!({"type": "ExternalName", "clusterIP": "10.96.1.1"});
        carry_over(&mut new, &old);
        assert!(new.get("clusterIP").is_none());
    }
}
