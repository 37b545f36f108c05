//! The cluster as Kubernetes manifests.

use serde_json::{Map, Value, json};

use super::{
    Cluster, Direction, Operator, Peer, Policy, PolicyPort, PortRef, Rule, Selector, Service, Slice,
};

impl Cluster {
    /// Every object, as JSON documents.
    pub fn manifests(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for node in &self.nodes {
            let addresses: Vec<_> = node
                .addresses
                .iter()
                .map(|ip| json!({"type": "InternalIP", "address": ip}))
                .collect();
            all.push(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
                "status": {"addresses": addresses},
            }));
        }
        for namespace in &self.namespaces {
            all.push(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": namespace.name, "labels": namespace.labels},
            }));
        }
        for pod in &self.pods {
            let ports: Vec<_> = pod
                .ports
                .iter()
                .map(|port| {
                    json!({
                        "name": port.name, "containerPort": port.number,
                        "protocol": port.protocol.name(),
                    })
                })
                .collect();
            let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
            let mut spec = json!({
                "nodeName": pod.node,
                "containers": [{"name": "main", "image": "none", "ports": ports}],
            });
            if pod.host_network {
                spec["hostNetwork"] = json!(true);
            }
            all.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
                "spec": spec,
                "status": {"phase": "Running", "podIP": pod.ips.first(), "podIPs": ips},
            }));
        }
        all.extend(self.policies.iter().map(Policy::manifest));
        for service in &self.services {
            all.push(service.manifest());
            let slices = service.slices.iter().enumerate();
            all.extend(slices.map(|(index, slice)| service.slice_manifest(index, slice)));
        }
        all
    }
}

impl Policy {
    pub fn manifest(&self) -> Value {
        let mut spec = Map::new();
        spec.insert("podSelector".into(), self.pod_selector.manifest());
        if let Some(types) = &self.types {
            let names: Vec<_> = types
                .iter()
                .map(|direction| match direction {
                    Direction::Ingress => "Ingress",
                    Direction::Egress => "Egress",
                })
                .collect();
            spec.insert("policyTypes".into(), json!(names));
        }
        for (field, peers, rules) in [
            ("ingress", "from", &self.ingress),
            ("egress", "to", &self.egress),
        ] {
            if let Some(rules) = rules {
                let rules: Vec<_> = rules.iter().map(|rule| rule.manifest(peers)).collect();
                spec.insert(field.into(), json!(rules));
            }
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        })
    }
}

impl Rule {
    fn manifest(&self, field: &str) -> Value {
        let mut rule = Map::new();
        if let Some(peers) = &self.peers {
            let peers: Vec<_> = peers.iter().map(Peer::manifest).collect();
            rule.insert(field.into(), json!(peers));
        }
        if let Some(ports) = &self.ports {
            let ports: Vec<_> = ports.iter().map(PolicyPort::manifest).collect();
            rule.insert("ports".into(), json!(ports));
        }
        Value::Object(rule)
    }
}

impl Peer {
    fn manifest(&self) -> Value {
        let mut peer = Map::new();
        match self {
            Self::Selectors { namespaces, pods } => {
                if let Some(selector) = namespaces {
                    peer.insert("namespaceSelector".into(), selector.manifest());
                }
                if let Some(selector) = pods {
                    peer.insert("podSelector".into(), selector.manifest());
                }
            }
            Self::Block { cidr, except } => {
                let mut block = Map::new();
                block.insert("cidr".into(), json!(cidr.to_string()));
                if !except.is_empty() {
                    let except: Vec<_> = except.iter().map(ToString::to_string).collect();
                    block.insert("except".into(), json!(except));
                }
                peer.insert("ipBlock".into(), Value::Object(block));
            }
        }
        Value::Object(peer)
    }
}

impl PolicyPort {
    fn manifest(&self) -> Value {
        let mut port = Map::new();
        if let Some(protocol) = self.protocol {
            port.insert("protocol".into(), json!(protocol.name()));
        }
        match &self.port {
            Some(PortRef::Number(number)) => {
                port.insert("port".into(), json!(number));
            }
            Some(PortRef::Name(name)) => {
                port.insert("port".into(), json!(name));
            }
            None => {}
        }
        if let Some(end) = self.end_port {
            port.insert("endPort".into(), json!(end));
        }
        Value::Object(port)
    }
}

impl Selector {
    pub fn manifest(&self) -> Value {
        let mut selector = Map::new();
        if !self.labels.is_empty() {
            selector.insert("matchLabels".into(), json!(self.labels));
        }
        if !self.expressions.is_empty() {
            let expressions: Vec<_> = self
                .expressions
                .iter()
                .map(|expression| {
                    let operator = match expression.operator {
                        Operator::In => "In",
                        Operator::NotIn => "NotIn",
                        Operator::Exists => "Exists",
                        Operator::DoesNotExist => "DoesNotExist",
                    };
                    let mut value = json!({"key": expression.key, "operator": operator});
                    if !expression.values.is_empty() {
                        value["values"] = json!(expression.values);
                    }
                    value
                })
                .collect();
            selector.insert("matchExpressions".into(), json!(expressions));
        }
        Value::Object(selector)
    }
}

impl Service {
    fn manifest(&self) -> Value {
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|port| {
                json!({
                    "name": port.name, "port": port.number, "protocol": port.protocol.name(),
                })
            })
            .collect();
        let families: Vec<_> = self
            .ips
            .iter()
            .map(|ip| if ip.is_ipv6() { "IPv6" } else { "IPv4" })
            .collect();
        let mut spec = json!({
            "type": "ClusterIP",
            "clusterIP": self.ips.first(),
            "clusterIPs": self.ips,
            "ipFamilies": families,
            "ports": ports,
        });
        if self.internal_local {
            spec["internalTrafficPolicy"] = json!("Local");
        }
        if let Some(seconds) = self.affinity {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        })
    }

    fn slice_manifest(&self, index: usize, slice: &Slice) -> Value {
        let endpoints: Vec<_> = slice
            .endpoints
            .iter()
            .map(|endpoint| {
                let mut value = json!({
                    "addresses": [endpoint.ip],
                    "conditions": {
                        "ready": endpoint.ready, "serving": endpoint.serving,
                        "terminating": endpoint.terminating,
                    },
                });
                if let Some(node) = &endpoint.node {
                    value["nodeName"] = json!(node);
                }
                value
            })
            .collect();
        let ports: Vec<_> = slice
            .ports
            .iter()
            .map(|port| {
                json!({
                    "name": port.name, "port": port.number, "protocol": port.protocol.name(),
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{index}", self.name), "namespace": self.namespace,
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": if slice.v6 { "IPv6" } else { "IPv4" },
            "endpoints": endpoints,
            "ports": ports,
        })
    }
}
