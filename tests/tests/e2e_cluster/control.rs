//! `fairlead server` in the node's namespace, and an admin's calls to it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fairlead_tests::files::Directory;
use fairlead_tests::node::{Node, Pod, SOON};
use fairlead_tests::process::{Process, program};
use fairlead_tests::wait;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 16443);
/// Between two signs of life of the node: well below the 50 s after which its pods
/// count as not ready.
const HEARTBEAT: Duration = Duration::from_secs(5);
const APPLY: &str = "?fieldManager=test&force=true";

pub(crate) struct ControlPlane {
    server: Process,
    pub(crate) directory: Directory,
    /// Its threads are in the node's namespace.
    runtime: Runtime,
    client: kube::Client,
}

/// Starts the server over what is in `directory`.
fn start(node: &Node, directory: &Directory) -> Process {
    let mut command = node.namespace.command(program("fairlead"));
    command
        .args(["server", "--listen", &ADDRESS.to_string()])
        .args(["--service-cidr", "10.96.0.0/16,fd00:96::/112"])
        .arg("--data-dir")
        .arg(directory.path().join("data"));
    let mut server = Process::start("fairlead server", &mut command);
    server.wait_for_output("ready in", SOON);
    server
}

impl ControlPlane {
    pub(crate) fn start(node: &Node) -> Self {
        let directory = Directory::new("control");
        let server = start(node, &directory);
        let runtime = node.namespace.enter(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        });
        let path = directory.path().join("data/admin.kubeconfig");
        let client = runtime.block_on(async {
            let file = Kubeconfig::read_from(path).unwrap();
            let config =
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            kube::Client::try_from(config.unwrap()).unwrap()
        });
        Self {
            server,
            directory,
            runtime,
            client,
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    pub(crate) fn start_again(&mut self, node: &Node) {
        self.server = start(node, &self.directory);
    }

    /// One call, on a thread of the node's namespace; tried again while the server
    /// does not answer.
    fn call(&self, method: &str, path: &str, kind: &str, body: &str) -> Value {
        wait::until(&format!("{method} {path}"), SOON, || {
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .header("Content-Type", kind)
                .body(body.as_bytes().to_vec())
                .unwrap();
            let client = self.client.clone();
            let call = self
                .runtime
                .spawn(async move { client.request::<Value>(request).await });
            match self.runtime.block_on(call).unwrap() {
                Ok(value) => Some(value),
                Err(kube::Error::Api(status)) => panic!("{method} {path}: {status:?}"),
                Err(_) => None,
            }
        })
    }

    /// Server-side apply of one object at `path`.
    pub(crate) fn apply(&self, path: &str, object: &str) -> Value {
        let path = format!("{path}{APPLY}");
        self.call("PATCH", &path, "application/apply-patch+yaml", object)
    }

    /// What a kubelet says of an object.
    fn report(&self, path: &str, status: &Value) {
        let patch = json!({"status": status}).to_string();
        let path = format!("{path}/status");
        self.call("PATCH", &path, "application/merge-patch+json", &patch);
    }

    pub(crate) fn delete(&self, path: &str) {
        self.call("DELETE", path, "application/json", "{}");
    }

    /// A token of a ServiceAccount.
    pub(crate) fn token(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600}});
        let answer = self.call("POST", &path, "application/json", &request.to_string());
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// The admin's kubeconfig with `token` instead of the admin's certificate.
    pub(crate) fn kubeconfig(&self, token: &str) -> PathBuf {
        let file = self.directory.path().join("data/admin.kubeconfig");
        let admin = Kubeconfig::read_from(file).unwrap();
        let cluster = admin.clusters[0].cluster.as_ref().unwrap();
        let authority = cluster.certificate_authority_data.as_ref().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {
                "server": format!("https://{ADDRESS}"),
                "certificate-authority-data": authority}}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        });
        self.directory
            .write("proxy.kubeconfig", &config.to_string())
    }

    /// What a kubelet says of its node, from now on.
    pub(crate) fn node_lives(&self, node: &Node, addresses: &[IpAddr]) {
        let name = node.name.clone();
        let path = format!("/api/v1/nodes/{name}");
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.apply(&path, &object.to_string());
        let addresses = addresses
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}));
        let status = json!({
            "addresses": addresses.collect::<Vec<_>>(),
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        self.report(&path, &status);
        let client = self.client.clone();
        self.runtime.spawn(async move {
            let path =
                format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
            for beat in 0_u64.. {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": name, "namespace": "kube-node-lease"},
                    "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
                             "renewTime": format!("2026-01-01T00:00:00.{:06}Z", beat % 1_000_000)},
                });
                let request = http::Request::patch(format!("{path}{APPLY}"))
                    .header("Content-Type", "application/apply-patch+yaml")
                    .body(lease.to_string().into_bytes());
                // The server may be down: the next beat tells.
                drop(client.request::<Value>(request.unwrap()).await);
                tokio::time::sleep(HEARTBEAT).await;
            }
        });
    }

    /// A pod as scheduler, runtime and kubelet make one: bound to the node, given its
    /// network by the plugin, told to the API.
    pub(crate) fn run_pod(&self, node: &Node, namespace: &str, name: &str) -> Pod {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"nodeName": node.name, "containers": [{"name": "main", "image": "fairlead.test/main:1"}]},
        });
        let made = self.apply(&path, &object.to_string());
        let uid = made["metadata"]["uid"].as_str().unwrap();
        let pod = node.pod_of(namespace, name, uid, &[]);
        let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({
            "phase": "Running", "podIP": pod.ips[0], "podIPs": ips,
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        self.report(&path, &status);
        pod
    }
}
