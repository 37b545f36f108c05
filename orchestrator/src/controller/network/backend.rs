//! Pods as the backends of a Service: what EndpointSlices and Endpoints are
//! both made of. Pure, but for [`selecting`] and [`of_service`], which read
//! the watch cache.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cache::Entry,
    controller::runtime::{
        Change, Key,
        object::{self, Meta, PodStatus, decode, served},
    },
    registry::client::Client,
    resource::Resource,
    status::Status,
};

/// Says since when a Service's addresses are as they are.
pub(super) const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// On what belongs to a Service without an address of its own.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A pod, as far as endpoints go.
#[derive(Debug, Deserialize)]
pub(super) struct Backend {
    /// Metadata.
    pub(super) metadata: Meta,
    /// Where it runs and what it listens on.
    #[serde(default)]
    pub(super) spec: BackendSpec,
    /// Its addresses and conditions.
    #[serde(default)]
    pub(super) status: PodStatus,
}

/// Of a pod's desired state.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct BackendSpec {
    pub(super) node_name: String,
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

impl Backend {
    /// Whether it has run to its end.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether it says that it can serve.
    pub(super) fn is_ready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.any(|c| c.r#type == "Ready" && c.status == "True")
    }

    /// The name it has below its Service's name.
    pub(super) fn hostname(&self, service: &Value) -> Option<&str> {
        let named =
            !self.spec.hostname.is_empty() && service["metadata"]["name"] == *self.spec.subdomain;
        named.then_some(&*self.spec.hostname)
    }

    /// How endpoints refer to it.
    pub(super) fn reference(&self) -> Value {
        json!({
            "kind": "Pod",
            "namespace": self.metadata.namespace,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
        })
    }

    /// The ports of a Service on this pod, with its named ones looked up.
    pub(super) fn ports(&self, service: &Value) -> Vec<Value> {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        ports.filter_map(|port| self.port(port)).collect()
    }

    fn port(&self, port: &Value) -> Option<Value> {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(name) => self.named_port(name, protocol),
            Value::Number(number) if number.as_i64() != Some(0) => number.as_i64(),
            _ => port["port"].as_i64(),
        };
        let name = port["name"].as_str().unwrap_or_default();
        let mut resolved = json!({"name": name, "port": number?, "protocol": protocol});
        if !port["appProtocol"].is_null() {
            resolved["appProtocol"] = port["appProtocol"].clone();
        }
        Some(resolved)
    }

    fn named_port(&self, name: &str, protocol: &str) -> Option<i64> {
        let sidecars = self.spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|c| c.restart_policy == "Always");
        let containers = self.spec.containers.iter().chain(sidecars);
        let mut fitting = containers.flat_map(|c| &c.ports).filter(|p| {
            p.name == name
                && (p.protocol == protocol || (p.protocol.is_empty() && protocol == "TCP"))
        });
        fitting.next().map(|port| port.number)
    }
}

/// `IPv4` or `IPv6`.
pub(super) fn family(address: &str) -> &'static str {
    if address.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    }
}

/// Whether a Service's addresses are found by a selector, and are to be there.
pub(super) fn has_selector(service: &Value) -> bool {
    let spec = &service["spec"];
    let selector = spec["selector"].as_object();
    selector.is_some_and(|s| !s.is_empty())
        && spec["type"] != "ExternalName"
        && service["metadata"]["deletionTimestamp"].is_null()
}

/// Whether not-ready pods count as ready ones.
pub(super) fn publishes_all(service: &Value) -> bool {
    service["spec"]["publishNotReadyAddresses"] == json!(true)
}

/// Labels of what belongs to a Service: its own, and whether it is headless.
pub(super) fn labels(service: &Value) -> Value {
    let mut labels = match &service["metadata"]["labels"] {
        Value::Null => json!({}),
        labels => labels.clone(),
    };
    if service["spec"]["clusterIP"] == "None" {
        labels[HEADLESS] = "".into();
    }
    labels
}

/// The described Service.
pub(super) fn services() -> &'static Resource {
    served("", "services")
}

/// The unfinished pods that a Service selects.
pub(super) fn of_service(client: &Client, service: &Value) -> Result<Vec<Backend>, Status> {
    let namespace = service["metadata"]["namespace"]
        .as_str()
        .unwrap_or_default();
    let selector = service["spec"]["selector"].as_object();
    let mut backends = Vec::new();
    for entry in object::list(client, served("", "pods"), namespace)? {
        let fits = |(key, value): (&String, &Value)| entry.label(key) == value.as_str();
        if !selector.into_iter().flatten().all(fits) {
            continue;
        }
        let pod: Backend = decode(&entry)?;
        if !pod.is_finished() {
            backends.push(pod);
        }
    }
    Ok(backends)
}

/// Services whose selectors take a pod's labels, now or before.
pub(super) fn selecting(client: &Client, change: &Change<'_>) -> Vec<Key> {
    let Ok(all) = object::list(client, services(), change.entry.namespace()) else {
        return Vec::new();
    };
    let takes = |service: &Arc<Entry>| {
        let Ok(Selecting { spec }) = service.decode() else {
            return false;
        };
        let Some(selector) = spec.selector.filter(|selector| !selector.is_empty()) else {
            return false;
        };
        let fits = |entry: &Entry| {
            let mut labels = selector.iter();
            labels.all(|(key, value)| entry.label(key) == Some(&**value))
        };
        fits(change.entry) || change.previous.is_some_and(fits)
    };
    let taking = all.iter().filter(|service| takes(service));
    taking.map(|service| Arc::clone(&service.key)).collect()
}

#[derive(Deserialize)]
struct Selecting<'a> {
    #[serde(borrow)]
    spec: SelectingSpec<'a>,
}

#[derive(Deserialize)]
struct SelectingSpec<'a> {
    #[serde(borrow, default)]
    selector: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}
