//! ADD, CHECK and DEL where nothing goes wrong.

use std::net::Ipv4Addr;

use proxy_ebpf::abi::{Address, Endpoint, SET_CLOSED, kind, pin};
use proxy_ebpf::addr::{V4, V6};
use serde_json::json;

use crate::node::{Node, is_root};
use crate::pins;

#[test]
fn add_connects_and_del_leaves_nothing() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let result = node.add("a");
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["ips"][0]["address"], "10.77.0.1/32");
    assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
    assert_eq!(result["ips"][1]["address"], "fd77::1/128");
    assert_eq!(result["ips"][1]["interface"], 1);
    let pod = &result["interfaces"][1];
    assert_eq!(pod["name"], "eth0");
    assert_eq!(pod["sandbox"], format!("/run/netns/{}-a", node.name));
    let text = node.run_in("a", "ip addr show eth0");
    assert!(text.contains(pod["mac"].as_str().unwrap()), "{text}");
    assert!(
        text.contains("inet 10.77.0.1/32") && text.contains("inet6 fd77::1/128"),
        "{text}"
    );
    let global = text.lines().find(|line| line.contains("fd77::1")).unwrap();
    assert!(!global.contains("tentative"), "{text}");

    node.add("b");
    node.run_in("a", "ping -c1 -W2 10.77.0.2");
    node.run_in("a", "ping -c1 -W2 fd77::2");
    node.run("ping -c1 -W2 10.77.0.1");

    node.call_with("CHECK", "a", &json!({"prevResult": result}))
        .good();
    for id in ["a", "b"] {
        node.call("DEL", id).good();
        node.call("DEL", id).good();
    }
    node.assert_clean();
    assert!(!node.run_in("a", "ip -o link").contains("eth0"));
}

#[test]
fn the_maps_hold_a_closed_endpoint_before_the_daemon_knows_it() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let result = node.add("a");
    let bpffs = node.bpffs();
    let ip = Ipv4Addr::new(10, 77, 0, 1);
    let address: Address =
        pins::read(&bpffs, pin::ADDRESSES_V4, &V4::new(ip.octets())).expect("the address is there");
    assert_eq!((address.class, address.kind), (0, kind::LOCAL_POD));
    let endpoint: Endpoint =
        pins::read(&bpffs, pin::ENDPOINTS, &address.slot).expect("the slot is there");
    assert_eq!(
        (endpoint.ingress_set, endpoint.egress_set),
        (SET_CLOSED, SET_CLOSED)
    );
    assert_eq!(endpoint.v4, V4::new(ip.octets()));
    let ip6: std::net::Ipv6Addr = "fd77::1".parse().unwrap();
    assert_eq!(endpoint.v6, V6::new(ip6.octets()));
    let mac = endpoint.mac.map(|byte| format!("{byte:02x}")).join(":");
    assert_eq!(result["interfaces"][1]["mac"], mac);
    let mac = endpoint
        .gateway_mac
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    assert_eq!(result["interfaces"][0]["mac"], mac);
    let name = result["interfaces"][0]["name"].as_str().unwrap();
    let link = node.run(&format!("ip -o link show dev {name}"));
    assert!(
        link.starts_with(&format!("{}:", endpoint.ifindex)),
        "{link}"
    );
}
