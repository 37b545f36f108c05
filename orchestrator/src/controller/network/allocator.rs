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
    net::IpAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;

use crate::{
    cache::{Cache, Query},
    controller::runtime::object::served,
    registry::{Admission, Operation, Request},
    status::Status,
};

mod carry;
mod range;
mod turn;

use carry::carry_over;
pub use range::{Range, RangeError};
use turn::{Kept, Turn};

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
    /// Reads who has what, once, and says what is not as it should be.
    fn load(&mut self, cache: &Cache, ranges: &[Range]) {
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
                if !ranges.iter().any(|range| range.contains(address)) {
                    tracing::warn!(service = %entry.key, %address, "this Service's address is outside of --service-cidr; delete it and make it again to give it one of the range");
                }
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
        let mut kept = Kept::default();
        if let Some(old) = request.old {
            carry_over(&mut spec, &old["spec"]);
            kept = Kept::of(&old["spec"]);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = target.resource.object_key(target.namespace, name);
        let mut state = self.state.lock().expect("no holder panics");
        state.load(request.cache, &self.ranges);
        let seed = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut turn = Turn {
            ranges: &self.ranges,
            state: &mut state,
            cache: request.cache,
            key,
            promise: Arc::new(()),
            seed: u128::from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16),
            causes: Vec::new(),
            kept,
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
}
