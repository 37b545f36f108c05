//! The plugin under a client that is not ours: Debian's containerd, asked by
//! CRI calls as a kubelet asks it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test panics, and that is its result"
)]

mod containerd;
mod grpc;

use std::net::IpAddr;

use containerd::Containerd;
use fairlead_tests::node::Node;
use fairlead_tests::{process, require};
use grpc::{Message, fields, text};
use serde_json::{Value, json};

/// A `PodSandboxConfig`.
fn sandbox(name: &str) -> Message {
    let metadata = Message::default()
        .text(1, name)
        .text(2, &format!("uid-of-{name}"))
        .text(3, "shop");
    let port = Message::default().number(2, 80).number(3, 8080);
    let linux = Message::default().message(2, &Message::default());
    Message::default()
        .message(1, &metadata)
        .text(2, name)
        .message(5, &port)
        .message(8, &linux)
}

/// Runs a pod's sandbox; its id.
fn run(containerd: &Containerd, name: &str) -> String {
    let request = Message::default().message(1, &sandbox(name));
    let response = containerd.server.call("RunPodSandbox", &request);
    text(
        &response.unwrap_or_else(|error| panic!("{name}: {error}")),
        1,
    )
}

/// The addresses that containerd reports of a sandbox.
fn addresses(containerd: &Containerd, id: &str) -> Vec<IpAddr> {
    let request = Message::default().text(1, id);
    let response = containerd
        .server
        .call("PodSandboxStatus", &request)
        .unwrap();
    let status = fields(&response, 1)[0];
    let network = fields(status, 5)[0];
    let mut ips = vec![text(network, 1)];
    ips.extend(fields(network, 2).iter().map(|ip| text(ip, 1)));
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn end(containerd: &Containerd, id: &str) {
    let request = Message::default().text(1, id);
    for method in ["StopPodSandbox", "RemovePodSandbox"] {
        containerd.server.call(method, &request).unwrap();
    }
}

/// The pods as the API would tell the daemon of them.
fn manifests(pods: &[&str]) -> Value {
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})];
    for name in pods {
        items.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"nodeName": "node-1",
                     "containers": [{"name": "main", "image": "fairlead.test/pause:1"}]}}));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn records(node: &Node) -> Vec<Value> {
    let files = std::fs::read_dir(node.state_dir().join("endpoints")).unwrap();
    files
        .map(|file| serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap())
        .collect()
}

#[test]
fn containerd_runs_and_removes_sandboxes_with_the_plugin() {
    require!(
        Root,
        Bpf,
        Program("containerd"),
        Program("runc"),
        Program("busybox")
    );
    let mut node = Node::new("node-1");
    node.namespace.ip("address add 192.168.77.1/32 dev lo");
    node.namespace.ip("address add fd78::1/128 dev lo");
    let pods = ["web", "db"];
    node.apply_text("shop.json", &manifests(&pods).to_string());
    node.start_daemon();
    let containerd = Containerd::start(&node);
    let ids: Vec<_> = ["web", "db"]
        .iter()
        .map(|name| run(&containerd, name))
        .collect();
    for id in &ids {
        for ip in addresses(&containerd, id) {
            process::run(
                node.namespace
                    .command("ping")
                    .args(["-c1", "-W2", &ip.to_string()]),
            );
        }
    }
    let all: Vec<_> = ids
        .iter()
        .flat_map(|id| addresses(&containerd, id))
        .collect();
    assert_eq!(all.len(), 4, "{all:?}");
    let records = records(&node);
    let of = |name: &str| {
        records
            .iter()
            .find(|record| record["pod"]["name"] == name)
            .unwrap()
    };
    for (name, id) in pods.iter().zip(&ids) {
        let record = of(name);
        assert_eq!(record["container_id"], **id);
        let uid = format!("uid-of-{name}");
        assert_eq!(
            record["pod"],
            json!({"namespace": "shop", "name": name, "uid": uid})
        );
        assert_eq!(record["port_mappings"][0]["host_port"], 8080);
    }
    for id in &ids {
        end(&containerd, id);
    }
    assert_eq!(self::records(&node), Vec::<Value>::new());
    assert!(!node.namespace.ip("-o link show").contains("veth"));
    assert_eq!(
        std::fs::read_dir(node.state_dir().join("addresses"))
            .unwrap()
            .count(),
        0
    );
}
