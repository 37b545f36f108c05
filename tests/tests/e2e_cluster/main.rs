//! All three programs together: `fairlead server` keeps the cluster,
//! `fairlead-proxy` reads it with no more than `deploy/rbac.yaml` allows, and pods
//! that `fairlead-cni` made reach one another as the cluster says. The test itself
//! plays kubelet.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod control;

use std::net::{IpAddr, SocketAddr};

use control::ControlPlane;
use fairlead_tests::node::{Node, Pod, SOON};
use fairlead_tests::traffic::{Met, Server, Transport, probe};
use fairlead_tests::{require, wait};
use serde_json::{Value, json};

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies";
const RIGHTS: &str = include_str!("../../../deploy/rbac.yaml");

/// Applies the documents of `deploy/rbac.yaml`.
fn grant(control: &ControlPlane) {
    let group = "/apis/rbac.authorization.k8s.io/v1";
    for document in RIGHTS.split("\n---\n") {
        let kind = document
            .lines()
            .find_map(|line| line.strip_prefix("kind: "));
        let path = match kind.unwrap() {
            "ServiceAccount" => "/api/v1/namespaces/kube-system/serviceaccounts".to_owned(),
            "ClusterRole" => format!("{group}/clusterroles"),
            "ClusterRoleBinding" => format!("{group}/clusterrolebindings"),
            other => panic!("{other} is new here"),
        };
        control.apply(&format!("{path}/fairlead-proxy"), document);
    }
}

/// The Service shop/web, on both families; its addresses.
fn offer(control: &ControlPlane) -> Vec<SocketAddr> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack",
                 "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let made = control.apply("/api/v1/namespaces/shop/services/web", &service.to_string());
    let ips = made["spec"]["clusterIPs"].as_array().unwrap();
    let address = |ip: &Value| SocketAddr::new(ip.as_str().unwrap().parse().unwrap(), 80);
    ips.iter().map(address).collect()
}

/// A policy for shop/web: with these `ingress` rules.
fn policy(control: &ControlPlane, ingress: &Value) {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": ingress},
    });
    control.apply(&format!("{POLICIES}/web"), &policy.to_string());
}

/// Waits until `client` meets this at the Service, on each family.
fn expect(what: &str, client: &Pod, service: &[SocketAddr], met: &Met) {
    for address in service {
        wait::until(&format!("{what} at {address}"), SOON, || {
            (probe(&client.namespace, Transport::Tcp, *address) == *met).then_some(())
        });
    }
}

/// Starts the daemon as in a pod: the files of its service account are where a
/// kubelet mounts them, in a mount namespace of its own.
fn start_in_cluster(node: &mut Node, control: &ControlPlane, token: &str) {
    let directory = control.directory.path();
    control.directory.write("account/token", token);
    std::fs::copy(
        directory.join("data/pki/ca.crt"),
        directory.join("account/ca.crt"),
    )
    .unwrap();
    control.directory.write("account/namespace", "kube-system");
    std::fs::create_dir_all(directory.join("netns")).unwrap();
    let mounts = r#"set -e
        mount --bind /run/netns "$0/netns"
        mount -t tmpfs none /run
        mkdir -p /run/netns /run/secrets/kubernetes.io/serviceaccount
        mount --bind "$0/netns" /run/netns
        mount --bind "$0/account" /run/secrets/kubernetes.io/serviceaccount
        exec env KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT=16443 "$@""#;
    let directory = directory.display().to_string();
    let around = ["unshare", "--mount", "sh", "-c", mounts, &directory];
    node.start_daemon_from(&around, &["--in-cluster"]);
}

#[test]
fn a_cluster_of_our_own_runs_on_our_data_path() {
    require!(Root, Bpf);
    let mut node = Node::new("node-1");
    let addresses: [IpAddr; 2] = ["192.168.77.1", "fd78::1"].map(|ip| ip.parse().unwrap());
    for ip in addresses {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        node.namespace.add_address("lo", ip, prefix);
    }
    let mut control = ControlPlane::start(&node);
    grant(&control);
    control.node_lives(&node, &addresses);
    let token = control.token("kube-system", "fairlead-proxy");
    let kubeconfig = control.kubeconfig(&token).display().to_string();
    node.start_daemon_from(&[], &["--kubeconfig", &kubeconfig]);

    let shop = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#;
    control.apply("/api/v1/namespaces/shop", shop);
    let service = offer(&control);
    assert_eq!(service.len(), 2);
    let client = control.run_pod(&node, "shop", "client");
    expect("no endpoint", &client, &service, &Met::Refused);
    let web = control.run_pod(&node, "shop", "web");
    let _server = Server::start(&web.namespace, "web", &[(Transport::Tcp, 8080)]);
    let answer = Met::Server("web".into());
    expect("an endpoint", &client, &service, &answer);

    policy(&control, &json!([]));
    expect("isolation", &client, &service, &Met::Silence);
    let rule = json!([{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                       "ports": [{"port": 8080}]}]);
    policy(&control, &rule);
    expect("a rule", &client, &service, &answer);

    // Without API server, and with a daemon that starts meanwhile, all stays as it is.
    control.kill();
    expect("no API server", &client, &service, &answer);
    node.daemon.as_mut().unwrap().kill();
    expect("no daemon either", &client, &service, &answer);
    control.start_again(&node);
    start_in_cluster(&mut node, &control, &token);
    expect("all is back", &client, &service, &answer);
    policy(&control, &json!([]));
    expect("isolation again", &client, &service, &Met::Silence);
    control.delete(&format!("{POLICIES}/web"));
    expect("no policy", &client, &service, &answer);
    control.delete("/api/v1/namespaces/shop/pods/web?gracePeriodSeconds=0");
    expect("the pod gone", &client, &service, &Met::Refused);
}
