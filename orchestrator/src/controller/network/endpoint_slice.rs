//! Keeps EndpointSlices of Services with selectors.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    backend::{self, Backend, family, has_selector, services},
    slices::{self, Endpoints, Kind, Parent, Slices},
};
use crate::{
    controller::runtime::{
        Again, Context, Controller, Key, Source,
        object::{self, Meta, controlled_by, is_ending, served},
    },
    registry::client::Client,
    status::Status,
};

const NAME: &str = "endpointslice-controller";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints in one slice.
const PER_SLICE: usize = 100;

/// The controller.
#[derive(Debug)]
pub struct EndpointSliceController {
    client: Client,
    slices: Slices,
}

/// The endpoint of one pod. Pure.
fn endpoint(service: &Value, pod: &Backend, address: &str, zone: Option<&str>) -> Value {
    let ready = pod.is_ready();
    let terminating = pod.metadata.deleting();
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": backend::publishes_all(service) || (ready && !terminating),
            "serving": ready,
            "terminating": terminating,
        },
        "targetRef": pod.reference(),
    });
    if !pod.spec.node_name.is_empty() {
        endpoint["nodeName"] = pod.spec.node_name.clone().into();
    }
    if let Some(hostname) = pod.hostname(service) {
        endpoint["hostname"] = hostname.into();
    }
    let wish = service["spec"]["trafficDistribution"]
        .as_str()
        .unwrap_or_default();
    if let Some(zone) = zone {
        endpoint["zone"] = zone.into();
        if matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode") {
            endpoint["hints"]["forZones"] = json!([{"name": zone}]);
        }
    }
    if wish == "PreferSameNode" && !pod.spec.node_name.is_empty() {
        endpoint["hints"]["forNodes"] = json!([{"name": pod.spec.node_name}]);
    }
    endpoint
}

/// The families that a Service wants; all if it does not say.
fn families(service: &Value) -> Vec<String> {
    let families = service["spec"]["ipFamilies"].as_array();
    let names = families.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

impl EndpointSliceController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            slices: Slices::new(context, MANAGER, PER_SLICE, slices::by_pod),
        }
    }

    fn zone(&self, node: &str) -> Option<String> {
        let entry = self.client.cache_of(served("", "nodes")).get(node)?;
        entry.label(ZONE).map(str::to_owned)
    }

    /// What the slices should hold: per kind, endpoints by pod.
    fn wanted(
        &self,
        service: &Value,
        families: &[String],
    ) -> Result<BTreeMap<Kind, Endpoints>, Status> {
        let mut wanted: BTreeMap<Kind, Endpoints> = BTreeMap::new();
        for pod in backend::of_service(&self.client, service)? {
            let ports = Value::from(pod.ports(service)).to_string();
            let zone = self.zone(&pod.spec.node_name);
            for ip in &pod.status.pod_ips {
                let family = family(&ip.ip);
                if !families.is_empty() && !families.iter().any(|f| f == family) {
                    continue;
                }
                let endpoint = endpoint(service, &pod, &ip.ip, zone.as_deref());
                let kind = (family.to_owned(), ports.clone());
                wanted
                    .entry(kind)
                    .or_default()
                    .insert(pod.metadata.uid.clone(), endpoint);
            }
        }
        Ok(wanted)
    }
}

impl Controller for EndpointSliceController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let (pods, nodes) = (self.client.clone(), self.client.clone());
        vec![
            Source::own(services()),
            Source::new(served("", "pods"), move |change| {
                backend::selecting(&pods, change)
            }),
            // Endpoints are in the zones of their nodes.
            Source::new(served("", "nodes"), move |change| {
                let zone = change.entry.label(ZONE);
                let moved = change.previous.is_some_and(|old| old.label(ZONE) != zone);
                let all = moved.then(|| object::list(&nodes, services(), "").unwrap_or_default());
                let all = all.into_iter().flatten();
                all.map(|service| Key::clone(&service.key)).collect()
            }),
            Source::new(slices::resource(), Slices::keys(MANAGER)),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let (namespace, name) = object::split(key);
        let entry = self.client.cache_of(services()).get(key);
        let service = entry.map(|entry| entry.value()).filter(has_selector);
        let Some(service) = service else {
            self.slices.clear(namespace, name).await?;
            return Ok(None);
        };
        let meta: Meta = serde_json::from_value(service["metadata"].clone())
            .map_err(|error| Status::internal(error.to_string()))?;
        let families = families(&service);
        let wanted = self.wanted(&service, &families)?;
        let parent = Parent {
            namespace,
            service: name,
            owner: controlled_by(services(), &meta),
            labels: backend::labels(&service),
            annotations: json!({}),
            families,
        };
        match self.slices.settle(&parent, wanted).await {
            Err(status) if is_ending(&status) => Ok(None),
            other => other.map(|()| None),
        }
    }
}
