//! Keeps EndpointSlices of Services with selectors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::packing::{Packed, Plan, pack};
use crate::{
    cache::Entry,
    controller::{
        apps::replicaset::is_ending,
        runtime::{
            Again, Change, Clock, Context, Controller, Key, Source,
            object::{self, Meta, PodStatus, controlled_by, decode, served},
            stamp,
        },
    },
    registry::{DeleteOptions, Target, client::Client},
    resource::Resource,
    status::Status,
};

const NAME: &str = "endpointslice-controller";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const SERVICE: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints in one slice.
const PER_SLICE: usize = 100;

/// The controller.
#[derive(Debug)]
pub struct EndpointSliceController {
    client: Client,
    clock: Clock,
}

/// A pod, as far as endpoints go.
#[derive(Debug, Deserialize)]
struct Backend {
    metadata: Meta,
    #[serde(default)]
    spec: BackendSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BackendSpec {
    node_name: String,
    hostname: String,
    subdomain: String,
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Vec<Port>,
    restart_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: String,
    #[serde(rename = "containerPort")]
    number: i64,
    protocol: String,
}

/// A slice's kind: address family and ports. Slices of different kinds hold
/// different endpoints of one Service.
type Kind = (String, String);

fn slices() -> &'static Resource {
    served("discovery.k8s.io", "endpointslices")
}

fn services() -> &'static Resource {
    served("", "services")
}

/// The ports of a Service on one pod. Pure.
fn ports_on(service: &Value, pod: &Backend) -> Vec<Value> {
    let named = |name: &str, protocol: &str| {
        let sidecars = pod.spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|c| c.restart_policy == "Always");
        let all = pod
            .spec
            .containers
            .iter()
            .chain(sidecars)
            .flat_map(|c| &c.ports);
        let mut fitting = all.filter(|p| {
            p.name == name
                && (p.protocol == protocol || (p.protocol.is_empty() && protocol == "TCP"))
        });
        fitting.next().map(|port| port.number)
    };
    let mut ports = Vec::new();
    for port in service["spec"]["ports"].as_array().into_iter().flatten() {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(name) => named(name, protocol),
            Value::Number(number) if number.as_i64() != Some(0) => number.as_i64(),
            _ => port["port"].as_i64(),
        };
        let Some(number) = number else { continue };
        let name = port["name"].as_str().unwrap_or_default();
        let mut resolved = json!({"name": name, "port": number, "protocol": protocol});
        if !port["appProtocol"].is_null() {
            resolved["appProtocol"] = port["appProtocol"].clone();
        }
        ports.push(resolved);
    }
    ports
}

/// The endpoint of one pod. Pure.
fn endpoint(service: &Value, pod: &Backend, address: &str, zone: Option<&str>) -> Value {
    let ready = pod
        .status
        .conditions
        .iter()
        .any(|c| c.r#type == "Ready" && c.status == "True");
    let terminating = pod.metadata.deleting();
    let all = service["spec"]["publishNotReadyAddresses"] == json!(true);
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": all || (ready && !terminating),
            "serving": ready,
            "terminating": terminating,
        },
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
    });
    if !pod.spec.node_name.is_empty() {
        endpoint["nodeName"] = pod.spec.node_name.clone().into();
    }
    if !pod.spec.hostname.is_empty() && service["metadata"]["name"] == pod.spec.subdomain.as_str() {
        endpoint["hostname"] = pod.spec.hostname.clone().into();
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

impl EndpointSliceController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
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
        namespace: &str,
    ) -> Result<BTreeMap<Kind, BTreeMap<String, Value>>, Status> {
        let mut wanted: BTreeMap<Kind, BTreeMap<String, Value>> = BTreeMap::new();
        let selector = service["spec"]["selector"].as_object();
        let families: BTreeSet<&str> = service["spec"]["ipFamilies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for entry in object::list(&self.client, served("", "pods"), namespace)? {
            let fits = |(key, value): (&String, &Value)| entry.label(key) == value.as_str();
            if !selector.into_iter().flatten().all(fits) {
                continue;
            }
            let pod: Backend = decode(&entry)?;
            if matches!(pod.status.phase.as_str(), "Succeeded" | "Failed") {
                continue;
            }
            let ports = ports_on(service, &pod);
            let ports = Value::from(ports).to_string();
            let zone = self.zone(&pod.spec.node_name);
            for ip in &pod.status.pod_ips {
                let family = if ip.ip.contains(':') { "IPv6" } else { "IPv4" };
                if !families.is_empty() && !families.contains(family) {
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

    /// The Service's slices, by kind.
    fn existing(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<BTreeMap<Kind, Vec<Packed<Value>>>, Status> {
        let mut existing: BTreeMap<Kind, Vec<Packed<Value>>> = BTreeMap::new();
        for entry in object::list(&self.client, slices(), namespace)? {
            if !is_ours(&entry, name) {
                continue;
            }
            let slice = entry.value();
            if !slice["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            let family = slice["addressType"].as_str().unwrap_or_default().to_owned();
            let ports = if slice["ports"].is_null() {
                json!([])
            } else {
                slice["ports"].clone()
            };
            let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
            let identity = |(index, endpoint): (usize, Value)| {
                let uid = endpoint["targetRef"]["uid"].as_str();
                let identity = uid.map_or_else(|| format!("#{index}"), str::to_owned);
                (identity, endpoint)
            };
            existing
                .entry((family, ports.to_string()))
                .or_default()
                .push(Packed {
                    name: Some(entry.name().to_owned()),
                    endpoints: endpoints.into_iter().enumerate().map(identity).collect(),
                });
        }
        Ok(existing)
    }

    async fn write(&self, service: &Value, kind: &Kind, plan: Plan<Value>) -> Result<(), Status> {
        let meta: Meta = serde_json::from_value(service["metadata"].clone())
            .map_err(|error| Status::internal(error.to_string()))?;
        let now = stamp(self.clock.now());
        let list = |slice: &Packed<Value>| -> Value {
            slice.endpoints.values().cloned().collect::<Vec<_>>().into()
        };
        let ports: Value = serde_json::from_str(&kind.1).unwrap_or_default();
        for slice in &plan.create {
            let object = json!({
                "metadata": {
                    "generateName": format!("{}-", meta.name),
                    "labels": labels(service),
                    "annotations": {TRIGGER: now},
                    "ownerReferences": [controlled_by(services(), &meta)],
                },
                "addressType": kind.0,
                "ports": ports,
                "endpoints": list(slice),
            });
            self.client
                .create_value(slices(), &meta.namespace, object)
                .await?;
        }
        for slice in &plan.update {
            let name = slice.name.as_deref().unwrap_or_default();
            let change = |current: &Value| {
                let mut new = current.clone();
                new["endpoints"] = list(slice);
                new["metadata"]["labels"] = labels(service);
                new["metadata"]["annotations"][TRIGGER] = now.clone().into();
                Ok(new)
            };
            let target = Target::object(slices(), &meta.namespace, name);
            self.client.change(target, &change).await?;
        }
        self.remove(&meta.namespace, &plan.delete).await
    }

    async fn remove(&self, namespace: &str, names: &[String]) -> Result<(), Status> {
        for name in names {
            let options = DeleteOptions::default();
            match self
                .client
                .delete_of(slices(), namespace, name, &options)
                .await
            {
                Err(status) if !status.is("NotFound") => return Err(status),
                _ => {}
            }
        }
        Ok(())
    }
}

fn labels(service: &Value) -> Value {
    let mut labels = service["metadata"]["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels[SERVICE] = service["metadata"]["name"].clone();
    labels[MANAGED_BY] = MANAGER.into();
    if service["spec"]["clusterIP"] == "None" {
        labels[HEADLESS] = "".into();
    }
    labels
}

fn is_ours(entry: &Entry, service: &str) -> bool {
    entry.label(MANAGED_BY) == Some(MANAGER) && entry.label(SERVICE) == Some(service)
}

/// Services whose selectors take an entry's labels, now or before.
fn selecting(client: &Client, change: &Change<'_>) -> Vec<Key> {
    let Ok(all) = object::list(client, services(), change.entry.namespace()) else {
        return Vec::new();
    };
    let takes = |service: &Arc<Entry>| {
        let spec = service.value();
        let Some(selector) = spec["spec"]["selector"]
            .as_object()
            .filter(|s| !s.is_empty())
        else {
            return false;
        };
        let fits = |entry: &Entry| {
            selector
                .iter()
                .all(|(key, value)| entry.label(key) == value.as_str())
        };
        fits(change.entry) || change.previous.is_some_and(fits)
    };
    let taking = all.iter().filter(|service| takes(service));
    taking.map(|service| Arc::clone(&service.key)).collect()
}

impl Controller for EndpointSliceController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        vec![
            Source::own(services()),
            Source::new(served("", "pods"), move |change| selecting(&client, change)),
            Source::new(slices(), |change| {
                let entry = change.entry;
                let ours = entry.label(MANAGED_BY) == Some(MANAGER);
                let service = entry.label(SERVICE).filter(|_| ours);
                service
                    .map(|name| format!("{}/{name}", entry.namespace()).into())
                    .into_iter()
                    .collect()
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let (namespace, name) = object::split(key);
        let mut existing = self.existing(namespace, name)?;
        let service = self
            .client
            .cache_of(services())
            .get(key)
            .map(|entry| entry.value());
        let selected = service.as_ref().filter(|service| {
            service["spec"]["selector"]
                .as_object()
                .is_some_and(|s| !s.is_empty())
                && service["spec"]["type"] != "ExternalName"
                && service["metadata"]["deletionTimestamp"].is_null()
        });
        let Some(service) = selected else {
            let names: Vec<String> = existing
                .into_values()
                .flatten()
                .filter_map(|s| s.name)
                .collect();
            self.remove(namespace, &names).await?;
            return Ok(None);
        };
        let mut wanted = self.wanted(service, namespace)?;
        let kinds: BTreeSet<Kind> = existing.keys().chain(wanted.keys()).cloned().collect();
        for kind in kinds {
            let plan = pack(
                existing.remove(&kind).unwrap_or_default(),
                wanted.remove(&kind).unwrap_or_default(),
                PER_SLICE,
            );
            match self.write(service, &kind, plan).await {
                Err(status) if is_ending(&status) => return Ok(None),
                other => other?,
            }
        }
        Ok(None)
    }
}
