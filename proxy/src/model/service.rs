//! Services and EndpointSlices, checked.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::fault::Check;
use super::label::{Labels, check_labels};
use super::{ObjectName, Protocol};

/// Seconds of `ClientIP` affinity where the Service does not say.
const AFFINITY_SECONDS: u32 = 10_800;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub name: ObjectName,
    /// No label of another proxy, not headless, not an `ExternalName`.
    pub is_proxied: bool,
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// Empty: its endpoints are someone else's business.
    pub selector: Labels,
    /// `ClientIP` affinity in seconds.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub is_internal_local: bool,
    pub publish_not_ready: bool,
    /// Seconds since 1970; 0 where unknown.
    pub created: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty: the Service's only port.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u16),
    Named(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: ObjectName,
    /// The label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// Made by the controller that derives slices from selectors.
    pub is_managed: bool,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// When what it says became so, by the controller's clock, since 1970.
    pub triggered: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
    pub hint_zones: Vec<String>,
    pub hint_nodes: Vec<String>,
}

impl Service {
    pub(super) fn read(check: &mut Check, name: ObjectName, service: &core::Service) -> Self {
        let none = Labels::new();
        let labels = service.metadata.labels.as_ref().unwrap_or(&none);
        check_labels(check, "metadata.labels", labels);
        let spec = service.spec.clone().unwrap_or_default();
        let listed = spec.cluster_ips.clone().unwrap_or_default();
        let single = spec.cluster_ip.clone().filter(|_| listed.is_empty());
        let texts: Vec<String> = listed.into_iter().chain(single).collect();
        let is_headless = texts.iter().any(|text| text == "None")
            || labels.contains_key("service.kubernetes.io/headless");
        let is_external = spec.type_.as_deref() == Some("ExternalName");
        let other_proxy = labels.contains_key("service.kubernetes.io/service-proxy-name");
        let mut cluster_ips = Vec::new();
        for text in texts.iter().filter(|t| !t.is_empty() && *t != "None") {
            cluster_ips.extend(check.ip("spec.clusterIPs", text));
        }
        read_type(check, spec.type_.as_deref());
        let selector = spec.selector.clone().unwrap_or_default();
        check_labels(check, "spec.selector", &selector);
        Self {
            is_proxied: !is_headless && !is_external && !other_proxy,
            cluster_ips,
            ports: read_ports(check, &spec),
            selector,
            affinity_seconds: read_affinity(check, &spec),
            is_internal_local: read_local(check, spec.internal_traffic_policy.as_deref()),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            created: service
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
            name,
        }
    }
}

fn read_type(check: &mut Check, name: Option<&str>) {
    let known = ["", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    if let Some(other) = name.filter(|name| !known.contains(name)) {
        check.fault(
            "spec.type",
            format!("unknown type \"{other}\""),
            "use ClusterIP, NodePort, LoadBalancer or ExternalName",
        );
    }
}

fn read_local(check: &mut Check, policy: Option<&str>) -> bool {
    match policy {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            check.fault(
                "spec.internalTrafficPolicy",
                format!("unknown policy \"{other}\""),
                "use Cluster or Local",
            );
            false
        }
    }
}

fn read_affinity(check: &mut Check, spec: &core::ServiceSpec) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref();
            let client = config.and_then(|config| config.client_ip.as_ref());
            let Some(seconds) = client.and_then(|client| client.timeout_seconds) else {
                return Some(AFFINITY_SECONDS);
            };
            let good = u32::try_from(seconds)
                .ok()
                .filter(|s| (1..=86_400).contains(s));
            if good.is_none() {
                check.fault(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!("{seconds} is out of range"),
                    "use 1 to 86400",
                );
            }
            good
        }
        Some(other) => {
            check.fault(
                "spec.sessionAffinity",
                format!("unknown affinity \"{other}\""),
                "use None or ClientIP",
            );
            None
        }
    }
}

fn read_ports(check: &mut Check, spec: &core::ServiceSpec) -> Vec<ServicePort> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in listed.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let number = check.port(&format!("{path}.port"), port.port);
        let protocol = check.protocol(&format!("{path}.protocol"), port.protocol.as_deref());
        let name = port.name.clone().unwrap_or_default();
        if name.is_empty() && listed.len() > 1 {
            let hint = "a Service with several ports needs a name for each";
            check.fault(&format!("{path}.name"), "is missing", hint);
        }
        let target_path = format!("{path}.targetPort");
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => number.map(Target::Number),
            Some(IntOrString::Int(target)) => check.port(&target_path, *target).map(Target::Number),
            Some(IntOrString::String(text)) if text.is_empty() => number.map(Target::Number),
            Some(IntOrString::String(text)) => check
                .port_name(&target_path, text)
                .then(|| Target::Named(text.clone())),
        };
        let (Some(port), Some(protocol), Some(target)) = (number, protocol, target) else {
            continue;
        };
        if ports.iter().any(|p| p.name == name) {
            let reason = format!("\"{name}\" is used twice");
            check.fault(
                &format!("{path}.name"),
                reason,
                "give each port its own name",
            );
        }
        if ports
            .iter()
            .any(|p| (p.port, p.protocol) == (port, protocol))
        {
            let reason = format!("{port}/{protocol} is listed twice");
            check.fault(&path, reason, "remove one of the two");
        }
        ports.push(ServicePort {
            name,
            protocol,
            port,
            target,
        });
    }
    ports
}

impl EndpointSlice {
    pub(super) fn read(
        check: &mut Check,
        name: ObjectName,
        slice: &discovery::EndpointSlice,
    ) -> Self {
        let none = Labels::new();
        let labels = slice.metadata.labels.as_ref().unwrap_or(&none);
        check_labels(check, "metadata.labels", labels);
        let family = match slice.address_type.as_str() {
            "IPv4" => Some(false),
            "IPv6" => Some(true),
            "FQDN" => None,
            other => {
                check.fault(
                    "addressType",
                    format!("unknown address type \"{other}\""),
                    "use IPv4, IPv6 or FQDN",
                );
                None
            }
        };
        let mut endpoints = Vec::new();
        if let Some(is_v6) = family {
            for (index, endpoint) in slice.endpoints.iter().enumerate() {
                let path = format!("endpoints[{index}]");
                endpoints.extend(read_endpoint(check, &path, endpoint, is_v6));
            }
        }
        Self {
            service: labels.get("kubernetes.io/service-name").cloned(),
            is_managed: labels
                .get("endpointslice.kubernetes.io/managed-by")
                .is_some_and(|by| by == "endpointslice-controller.k8s.io"),
            ports: read_slice_ports(check, slice.ports.as_deref().unwrap_or_default()),
            endpoints,
            triggered: triggered(&slice.metadata),
            name,
        }
    }
}

/// Only measured, never acted upon: what cannot be read counts as absent.
fn triggered(metadata: &ObjectMeta) -> Option<Duration> {
    let annotations = metadata.annotations.as_ref()?;
    let text = annotations.get("endpoints.kubernetes.io/last-change-trigger-time")?;
    let time: Timestamp = text.parse().ok()?;
    time.as_duration().try_into().ok()
}

/// Ports that are absent or 0 are left out, as kube-proxy does.
fn read_slice_ports(check: &mut Check, listed: &[discovery::EndpointPort]) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (index, port) in listed.iter().enumerate() {
        let path = format!("ports[{index}]");
        let protocol = check.protocol(&format!("{path}.protocol"), port.protocol.as_deref());
        let Some(number) = port.port.filter(|number| *number != 0) else {
            continue;
        };
        let number = check.port(&format!("{path}.port"), number);
        if let (Some(port_number), Some(protocol)) = (number, protocol) {
            ports.push(SlicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol,
                port: port_number,
            });
        }
    }
    ports
}

fn read_endpoint(
    check: &mut Check,
    path: &str,
    endpoint: &discovery::Endpoint,
    is_v6: bool,
) -> Option<Endpoint> {
    let path = format!("{path}.addresses");
    let Some(text) = endpoint.addresses.first() else {
        check.fault(&path, "is empty", "list the endpoint's address");
        return None;
    };
    let address = check.ip(&path, text)?;
    if address.is_ipv6() != is_v6 {
        let reason = format!("{address} is not of the slice's address type");
        check.fault(&path, reason, "use one slice per family");
        return None;
    }
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.clone().unwrap_or_default();
    Some(Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.clone(),
        hint_zones: hints
            .for_zones
            .into_iter()
            .flatten()
            .map(|z| z.name)
            .collect(),
        hint_nodes: hints
            .for_nodes
            .into_iter()
            .flatten()
            .map(|n| n.name)
            .collect(),
    })
}
