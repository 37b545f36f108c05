//! Mirrors Endpoints that somebody writes for a Service without a selector
//! into EndpointSlices, which is what the data path reads.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    backend::{TRIGGER, family, services},
    endpoints::ADDRESSES_MAX,
    slices::{self, Endpoints, Kind, Parent, Slices},
};
use crate::{
    controller::runtime::{
        Again, Context, Controller, Source,
        object::{self, Meta, controlled_by, is_ending},
    },
    registry::client::Client,
    resource::core::ENDPOINTS,
    status::Status,
};

const NAME: &str = "endpointslicemirroring-controller";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The controller.
#[derive(Debug)]
pub struct MirroringController {
    client: Client,
    slices: Slices,
}

/// What the slices should hold: per kind, endpoints by address. Pure.
///
/// Of each subset the first thousand addresses count, ready ones first.
fn mirrored(endpoints: &Value) -> BTreeMap<Kind, Endpoints> {
    let mut wanted: BTreeMap<Kind, Endpoints> = BTreeMap::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().into_iter().flatten();
        let ports: Vec<Value> = ports.map(port).collect();
        let ports = Value::from(ports).to_string();
        let lists = [("addresses", true), ("notReadyAddresses", false)];
        let addresses = lists.into_iter().flat_map(|(list, ready)| {
            let addresses = subset[list].as_array().into_iter().flatten();
            addresses.map(move |address| (address, ready))
        });
        for (address, ready) in addresses.take(ADDRESSES_MAX) {
            let ip = address["ip"].as_str().unwrap_or_default();
            let kind = (family(ip).to_owned(), ports.clone());
            let of_kind = wanted.entry(kind).or_default();
            of_kind
                .entry(ip.to_owned())
                .or_insert_with(|| endpoint(address, ip, ready));
        }
    }
    wanted
}

fn port(port: &Value) -> Value {
    let mut port = port.clone();
    if port["name"].is_null() {
        port["name"] = "".into();
    }
    port
}

fn endpoint(address: &Value, ip: &str, ready: bool) -> Value {
    let mut endpoint = json!({"addresses": [ip], "conditions": {"ready": ready}});
    for field in ["hostname", "nodeName", "targetRef"] {
        if !address[field].is_null() {
            endpoint[field] = address[field].clone();
        }
    }
    endpoint
}

/// Whether these Endpoints are to be mirrored at all.
fn is_mirrored(endpoints: &Value) -> bool {
    let metadata = &endpoints["metadata"];
    metadata["labels"][SKIP] != "true"
        && metadata["annotations"][LEADER].is_null()
        && metadata["deletionTimestamp"].is_null()
}

/// Whether a Service leaves its addresses to others.
fn takes_any(service: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object();
    selector.is_none_or(serde_json::Map::is_empty)
        && service["metadata"]["deletionTimestamp"].is_null()
}

impl MirroringController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            slices: Slices::new(context, MANAGER, ADDRESSES_MAX, slices::by_address),
        }
    }
}

impl Controller for MirroringController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(services()),
            Source::own(&ENDPOINTS),
            Source::new(slices::resource(), Slices::keys(MANAGER)),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let (namespace, name) = object::split(key);
        let service = self.client.cache_of(services()).get(key);
        let endpoints = self.client.cache_of(&ENDPOINTS).get(key);
        let endpoints = endpoints
            .map(|entry| entry.value())
            .filter(is_mirrored)
            .filter(|_| service.is_some_and(|entry| takes_any(&entry.value())));
        let Some(mut endpoints) = endpoints else {
            self.slices.clear(namespace, name).await?;
            return Ok(None);
        };
        let wanted = mirrored(&endpoints);
        let meta: Meta = serde_json::from_value(endpoints["metadata"].clone())
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut annotations = match endpoints["metadata"]["annotations"].take() {
            Value::Object(map) => map,
            _ => serde_json::Map::new(),
        };
        annotations.remove(LAST_APPLIED);
        annotations.remove(TRIGGER);
        let parent = Parent {
            namespace,
            service: name,
            owner: controlled_by(&ENDPOINTS, &meta),
            labels: endpoints["metadata"]["labels"].take(),
            annotations: annotations.into(),
            families: Vec::new(),
        };
        match self.slices.settle(&parent, wanted).await {
            Err(status) if is_ending(&status) => Ok(None),
            other => other.map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_and_set_of_ports_has_its_slices() {
        let endpoints = json!({"subsets": [
            {
                "addresses": [{"ip": "10.0.0.1", "nodeName": "n"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "10.0.0.2"}],
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "x", "port": 81, "protocol": "TCP"}]},
        ]});
        let wanted = mirrored(&endpoints);
        assert_eq!(wanted.len(), 3);
        let plain = r#"[{"name":"","port":80,"protocol":"TCP"}]"#.to_owned();
        let of_plain = &wanted[&("IPv4".to_owned(), plain)];
        assert_eq!(of_plain["10.0.0.1"]["nodeName"], "n");
        assert_eq!(of_plain["10.0.0.2"]["conditions"]["ready"], false);
    }

    #[test]
    fn what_is_marked_is_not_mirrored() {
        assert!(is_mirrored(&json!({"metadata": {}})));
        assert!(!is_mirrored(
            &json!({"metadata": {"labels": {SKIP: "true"}}})
        ));
        assert!(!is_mirrored(
            &json!({"metadata": {"annotations": {LEADER: "{}"}}})
        ));
    }
}
