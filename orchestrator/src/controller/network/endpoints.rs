//! Keeps the Endpoints of Services with selectors: one object per Service,
//! one address per pod, for clients from before EndpointSlices.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use serde_json::{Value, json};

use super::backend::{self, Backend, TRIGGER, family, has_selector, services};
use crate::{
    controller::runtime::{
        Again, Clock, Context, Controller, Source,
        object::{self, is_ending, served},
        stamp,
    },
    registry::{DeleteOptions, Target, client::Client},
    resource::core::ENDPOINTS,
    status::Status,
};

const NAME: &str = "endpoint-controller";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object; what is more is left out, and an annotation says so.
pub(super) const ADDRESSES_MAX: usize = 1000;

/// The controller.
#[derive(Debug)]
pub struct EndpointsController {
    client: Client,
    clock: Clock,
}

/// A pod's address: the ready ones of a subset sort before the others.
type Address = (bool, String);

/// The subsets of a Service: addresses that have the same ports. Pure.
///
/// Each port first collects its addresses, then ports with the same addresses
/// come together. Returns whether some addresses had to be left out.
fn subsets(service: &Value, pods: &[Backend]) -> (Vec<Value>, bool) {
    let all = backend::publishes_all(service);
    let wanted = service["spec"]["ipFamilies"][0].as_str();
    let without_ports = service["spec"]["ports"]
        .as_array()
        .is_none_or(Vec::is_empty);
    let mut by_port: BTreeMap<String, BTreeMap<Address, Value>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| all || !pod.metadata.deleting()) {
        let fits = |ip: &&str| wanted.is_none_or(|wanted| wanted == family(ip));
        let mut addresses = pod.status.pod_ips.iter().map(|ip| &*ip.ip);
        let Some(ip) = addresses.find(fits) else {
            continue;
        };
        let unready = !(all || pod.is_ready());
        let mut ports: Vec<String> = pod.ports(service).iter().map(port).collect();
        if without_ports && service["spec"]["clusterIP"] == "None" {
            ports.push(String::new());
        }
        for port in ports {
            let identity = (unready, format!("{ip} {}", pod.metadata.uid));
            let address = address(service, pod, ip);
            by_port.entry(port).or_default().insert(identity, address);
        }
    }
    let mut by_addresses: BTreeMap<Vec<Address>, (Vec<String>, Vec<Value>)> = BTreeMap::new();
    for (port, addresses) in by_port {
        let (identities, values): (Vec<_>, Vec<_>) = addresses.into_iter().unzip();
        match by_addresses.entry(identities) {
            Entry::Occupied(mut subset) => subset.get_mut().0.push(port),
            Entry::Vacant(subset) => drop(subset.insert((vec![port], values))),
        }
    }
    let cut = truncated(by_addresses.keys().map(Vec::as_slice));
    let truncated = cut.is_some();
    let cut = cut.unwrap_or_else(|| vec![usize::MAX; by_addresses.len()]);
    let subsets = by_addresses.into_iter().zip(cut);
    let subsets = subsets.map(|((identities, (ports, values)), most)| {
        let addresses = identities
            .into_iter()
            .map(|(unready, _)| unready)
            .zip(values);
        subset(&ports, addresses.take(most))
    });
    (subsets.collect(), truncated)
}

/// How many addresses each subset keeps, if there are too many: ready ones
/// before others, otherwise in proportion. Pure.
fn truncated<'a>(subsets: impl Iterator<Item = &'a [Address]> + Clone) -> Option<Vec<usize>> {
    let total: usize = subsets.clone().map(<[_]>::len).sum();
    if total <= ADDRESSES_MAX {
        return None;
    }
    let ready_of = |subset: &[Address]| subset.iter().filter(|(unready, _)| !unready).count();
    let ready: usize = subsets.clone().map(ready_of).sum();
    let share = |part: usize, of: usize, room: usize| (part * room).checked_div(of).unwrap_or(0);
    let kept = subsets.map(|subset| {
        let good = ready_of(subset);
        if ready >= ADDRESSES_MAX {
            share(good, ready, ADDRESSES_MAX)
        } else {
            good + share(subset.len() - good, total - ready, ADDRESSES_MAX - ready)
        }
    });
    Some(kept.collect())
}

fn subset(ports: &[String], addresses: impl Iterator<Item = (bool, Value)>) -> Value {
    let (mut ready, mut unready) = (Vec::new(), Vec::new());
    for (is_unready, address) in addresses {
        if is_unready { &mut unready } else { &mut ready }.push(address);
    }
    let mut subset = json!({});
    for (field, list) in [("addresses", ready), ("notReadyAddresses", unready)] {
        if !list.is_empty() {
            subset[field] = list.into();
        }
    }
    let ports = ports.iter().filter(|port| !port.is_empty());
    let ports: Vec<Value> = ports
        .filter_map(|port| serde_json::from_str(port).ok())
        .collect();
    if !ports.is_empty() {
        subset["ports"] = ports.into();
    }
    subset
}

/// A port as Endpoints have it: without a name where it is empty.
fn port(port: &Value) -> String {
    let mut port = port.clone();
    if port["name"] == "" {
        drop(port.as_object_mut().and_then(|map| map.remove("name")));
    }
    port.to_string()
}

fn address(service: &Value, pod: &Backend, ip: &str) -> Value {
    let mut address = json!({"ip": ip, "targetRef": pod.reference()});
    if !pod.spec.node_name.is_empty() {
        address["nodeName"] = pod.spec.node_name.clone().into();
    }
    if let Some(hostname) = pod.hostname(service) {
        address["hostname"] = hostname.into();
    }
    address
}

impl EndpointsController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
        }
    }

    /// Makes the object say this, if it does not say so already.
    async fn write(
        &self,
        (namespace, name): (&str, &str),
        labels: &Value,
        subsets: Vec<Value>,
        truncated: bool,
    ) -> Result<(), Status> {
        let subsets = Value::from(subsets);
        let now = stamp(self.clock.now());
        let fill = |object: &mut Value| {
            object["metadata"]["labels"] = labels.clone();
            object["metadata"]["annotations"][TRIGGER] = now.clone().into();
            if truncated {
                object["metadata"]["annotations"][OVER_CAPACITY] = "truncated".into();
            } else if let Some(map) = object["metadata"]["annotations"].as_object_mut() {
                map.remove(OVER_CAPACITY);
            }
            object["subsets"] = subsets.clone();
        };
        let key = ENDPOINTS.object_key(namespace, name);
        let Some(entry) = self.client.cache_of(&ENDPOINTS).get(&key) else {
            let mut object = json!({"metadata": {"name": name}});
            fill(&mut object);
            let made = self.client.create_value(&ENDPOINTS, namespace, object);
            return made.await.map(drop);
        };
        let is_right = |object: &Value| {
            let marked = object["metadata"]["annotations"][OVER_CAPACITY] == "truncated";
            let present = match &object["subsets"] {
                Value::Null => &json!([]),
                present => present,
            };
            *present == subsets && object["metadata"]["labels"] == *labels && marked == truncated
        };
        if is_right(&entry.value()) {
            return Ok(());
        }
        let change = |current: &Value| {
            let mut new = current.clone();
            fill(&mut new);
            Ok(new)
        };
        let target = Target::object(&ENDPOINTS, namespace, name);
        self.client.change(target, &change).await.map(drop)
    }

    /// A Service takes its Endpoints with it, whoever wrote them.
    async fn remove(&self, namespace: &str, name: &str) -> Result<(), Status> {
        let options = DeleteOptions::default();
        let gone = self.client.delete_of(&ENDPOINTS, namespace, name, &options);
        match gone.await {
            Err(status) if !status.is("NotFound") => Err(status),
            _ => Ok(()),
        }
    }
}

impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        vec![
            Source::own(services()),
            Source::new(served("", "pods"), move |change| {
                backend::selecting(&client, change)
            }),
            // Others' may come before their Service.
            Source::new(&ENDPOINTS, |change| {
                let ours = change.entry.label(MANAGED_BY) == Some(NAME);
                let of_ours = |of: &crate::cache::Entry| of.label(MANAGED_BY) == Some(NAME);
                let touched = ours || change.previous.is_some_and(of_ours);
                let key = touched.then(|| Arc::clone(&change.entry.key));
                key.into_iter().collect()
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let (namespace, name) = object::split(key);
        let Some(entry) = self.client.cache_of(services()).get(key) else {
            self.remove(namespace, name).await?;
            return Ok(None);
        };
        let service = entry.value();
        // Without a selector, they are somebody else's business.
        if !has_selector(&service) {
            return Ok(None);
        }
        let pods = backend::of_service(&self.client, &service)?;
        let (subsets, truncated) = subsets(&service, &pods);
        let mut labels = backend::labels(&service);
        labels[MANAGED_BY] = NAME.into();
        let written = self.write((namespace, name), &labels, subsets, truncated);
        match written.await {
            Err(status) if is_ending(&status) => Ok(None),
            other => other.map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: usize, ready: bool, port: i64) -> Backend {
        let ready = if ready { "True" } else { "False" };
        let ip = format!("10.0.{}.{}", number / 250, number % 250 + 1);
        serde_json::from_value(json!({
            "metadata": {"name": format!("p{number}"), "namespace": "d", "uid": format!("u{number}")},
            "spec": {"containers": [{"ports": [
                {"name": "http", "containerPort": port}, {"name": "metrics", "containerPort": 9100},
            ]}]},
            "status": {"podIPs": [{"ip": "fd00::1"}, {"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn service() -> Value {
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ports": [
            {"name": "web", "port": 80, "targetPort": "http", "protocol": "TCP"},
            {"name": "metrics", "port": 91, "targetPort": "metrics", "protocol": "TCP"},
        ]}})
    }

    fn count(subsets: &[Value], list: &str) -> usize {
        let lists = subsets.iter().filter_map(|subset| subset[list].as_array());
        lists.map(Vec::len).sum()
    }

    #[test]
    fn pods_with_the_same_ports_share_a_subset() {
        let pods = [pod(1, true, 80), pod(2, false, 80)];
        let (subsets, truncated) = subsets(&service(), &pods);
        assert!(!truncated);
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0]["addresses"][0]["ip"], "10.0.0.2");
        assert_eq!(subsets[0]["notReadyAddresses"][0]["ip"], "10.0.0.3");
        assert_eq!(subsets[0]["ports"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_named_port_with_two_numbers_makes_subsets_of_its_own() {
        let pods = [pod(1, true, 80), pod(2, true, 8080)];
        let (subsets, _) = subsets(&service(), &pods);
        let both = subsets
            .iter()
            .find(|s| s["addresses"].as_array().unwrap().len() == 2);
        assert_eq!(subsets.len(), 3);
        assert_eq!(both.unwrap()["ports"][0]["port"], 9100);
    }

    #[test]
    fn a_headless_service_without_ports_has_addresses_all_the_same() {
        let headless = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "None"}});
        let (subsets, _) = subsets(&headless, &[pod(1, true, 80)]);
        assert_eq!(subsets[0]["addresses"].as_array().unwrap().len(), 1);
        assert!(subsets[0]["ports"].is_null());
    }

    #[test]
    fn of_too_many_addresses_the_ready_ones_stay() {
        let pods: Vec<_> = (0..1200).map(|n| pod(n, n % 2 == 0, 80)).collect();
        let (few, truncated) = subsets(&service(), &pods);
        assert!(truncated);
        assert_eq!(count(&few, "addresses"), 600);
        assert_eq!(count(&few, "notReadyAddresses"), 400);
        let pods: Vec<_> = (0..1200).map(|n| pod(n, n % 12 != 0, 80)).collect();
        let (few, _) = subsets(&service(), &pods);
        assert_eq!(count(&few, "addresses"), 1000);
        assert_eq!(count(&few, "notReadyAddresses"), 0);
    }
}
