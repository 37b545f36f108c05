//! Another node, with a pod, behind a router.

use std::net::IpAddr;

use fairlead_tests::cluster::{self, REMOTE_NODE, labels};
use fairlead_tests::namespace::{Namespace, join};
use fairlead_tests::traffic::{Server, Transport};

use crate::bench::Bench;

/// The other node's addresses.
pub(crate) const NODE: [&str; 2] = ["198.18.1.2", "2001:db8:19::2"];
/// Its pod z/far's. Nobody judges there.
pub(crate) const POD: [&str; 2] = ["10.244.9.9", "fd00:244:9::9"];
const GATEWAY: [&str; 2] = ["10.244.9.1", "fd00:244:9::1"];
const POD_BLOCKS: [&str; 2] = ["10.244.9.0/24", "fd00:244:9::/64"];
const OWN_BLOCKS: [&str; 2] = ["10.244.0.0/24", "fd00:244::/64"];
const ROUTER: [&str; 2] = ["198.18.0.2", "2001:db8:18::2"];
const ROUTER_FAR: [&str; 2] = ["198.18.1.1", "2001:db8:19::1"];
const UPLINK: [&str; 2] = ["198.18.0.1", "2001:db8:18::1"];
const PREFIXES: [u8; 2] = [24, 64];

pub(crate) fn address(texts: [&str; 2], v6: bool) -> IpAddr {
    texts[usize::from(v6)].parse().unwrap()
}

pub(crate) struct Far {
    pub(crate) router: Namespace,
    pub(crate) node: Namespace,
    pub(crate) pod: Namespace,
    _server: Server,
}

impl Far {
    /// Joins them to the bench's node and tells the daemon of the node and its pod.
    pub(crate) fn new(bench: &mut Bench) -> Self {
        let here = &bench.node.namespace;
        let [router, node, far_pod] = ["router", "far", "far-pod"].map(Namespace::new);
        join((here, "up0"), (&router, "near"));
        join((&router, "away"), (&node, "up0"));
        join((&node, "pod0"), (&far_pod, "eth0"));
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            router.sysctl(path, "1");
            node.sysctl(path, "1");
        }
        for (v6, prefix) in [false, true].into_iter().zip(PREFIXES) {
            here.add_address("up0", address(UPLINK, v6), prefix);
            router.add_address("near", address(ROUTER, v6), prefix);
            router.add_address("away", address(ROUTER_FAR, v6), prefix);
            node.add_address("up0", address(NODE, v6), prefix);
            node.add_address("pod0", address(GATEWAY, v6), prefix);
            far_pod.add_address("eth0", address(POD, v6), prefix);
            let family = usize::from(v6);
            let route = |from: &Namespace, to: &str, via: &str| {
                from.ip(&format!("route replace {to} via {via}"));
            };
            route(here, POD_BLOCKS[family], ROUTER[family]);
            route(&router, POD_BLOCKS[family], NODE[family]);
            route(&router, OWN_BLOCKS[family], UPLINK[family]);
            route(&node, OWN_BLOCKS[family], ROUTER_FAR[family]);
            route(&far_pod, "default", GATEWAY[family]);
            let nodes = if v6 {
                "2001:db8:19::/64"
            } else {
                "198.18.1.0/24"
            };
            route(here, nodes, ROUTER[family]);
        }
        bench.cluster.nodes.push(cluster::Node {
            name: REMOTE_NODE.into(),
            addresses: [false, true].map(|v6| address(NODE, v6)).into(),
        });
        let pod = |name: &str, ips: [&str; 2], host_network| cluster::Pod {
            namespace: "z".into(),
            name: name.into(),
            labels: labels(&[("pod", name)]),
            node: REMOTE_NODE.into(),
            ips: [false, true].map(|v6| address(ips, v6)).into(),
            host_network,
            ports: Vec::new(),
        };
        bench.cluster.pods.push(pod("far", POD, false));
        bench.cluster.pods.push(pod("host", NODE, true));
        bench.apply();
        let ports = [(Transport::Tcp, 80), (Transport::Udp, 80)];
        let server = Server::start(&far_pod, "z/far", &ports);
        Self {
            router,
            node,
            pod: far_pod,
            _server: server,
        }
    }
}
