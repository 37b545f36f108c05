//! CHECK against tampering, bandwidth, and Debian's plugins in the same chain.

use serde_json::{Value, json};

use crate::node::{Node, is_root};

#[test]
fn check_notices_whatever_is_missing_or_changed() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    for (tamper, part) in [
        (
            "pod: ip addr del 10.77.0.N/32 dev eth0",
            "does not have the address 10.77.0",
        ),
        (
            "pod: ip -6 addr del fd77::N/128 dev eth0",
            "does not have the address fd77::",
        ),
        (
            "pod: ip route del default",
            "no default route by 169.254.1.1",
        ),
        (
            "pod: ip -6 route del default",
            "no default route by fe80::1",
        ),
        (
            "pod: ip link set eth0 address 02:00:00:00:00:77",
            "does not have the address",
        ),
        ("pod: ip link set eth0 down", "eth0 is down"),
        (
            "pod: ip neigh del 169.254.1.1 dev eth0",
            "does not resolve 169.254.1.1",
        ),
        ("pod: ip link del eth0", "is gone"),
        ("node: ip route del 10.77.0.N", "no route to 10.77.0"),
        ("node: ip link set HOST down", "is down"),
        (
            "node: tc filter del dev HOST ingress",
            "pod_out is not attached",
        ),
        (
            "node: tc filter del dev HOST egress",
            "pod_in is not attached",
        ),
        (
            "node: tc qdisc del dev HOST clsact",
            "pod_out is not attached",
        ),
    ] {
        let result = node.add("a");
        node.call_with("CHECK", "a", &json!({"prevResult": result}))
            .good();
        let address = result["ips"][0]["address"].as_str().unwrap();
        let number = address.trim_end_matches("/32").rsplit('.').next().unwrap();
        // The addresses of both families count up together, the IPv6 one in hexadecimal.
        let hex = format!("{:x}", number.parse::<u32>().unwrap());
        let line = tamper
            .replace("0.N", &format!("0.{number}"))
            .replace("::N", &format!("::{hex}"))
            .replace("HOST", result["interfaces"][0]["name"].as_str().unwrap());
        match line.split_once(": ").unwrap() {
            ("pod", line) => node.run_in("a", line),
            (_, line) => node.run(line),
        };
        let (code, text) = node
            .call_with("CHECK", "a", &json!({"prevResult": result}))
            .bad();
        assert_eq!(code, 103, "{line}: {text}");
        assert!(text.contains(part), "{line}: {text}");
        node.call("DEL", "a").good();
    }
    node.assert_clean();
}

#[test]
fn check_needs_a_previous_result_that_fits() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let mut result = node.add("a");
    let (code, text) = node.call("CHECK", "a").bad();
    assert_eq!(code, 7);
    assert!(text.contains("prevResult: missing"), "{text}");
    let broken = json!({"prevResult": {"ips": 7}});
    assert_eq!(node.call_with("CHECK", "a", &broken).bad().0, 6);
    result["ips"][0]["address"] = json!("10.77.0.200/32");
    let (code, text) = node
        .call_with("CHECK", "a", &json!({"prevResult": result}))
        .bad();
    assert_eq!(code, 103);
    assert!(text.contains("10.77.0.200/32 of prevResult"), "{text}");
    node.netns("b");
    assert_eq!(
        node.call_with("CHECK", "b", &json!({"prevResult": result}))
            .bad()
            .0,
        3
    );
}

#[test]
fn bandwidth_becomes_a_token_bucket_on_either_side() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.netns("a");
    let limits = json!({"runtimeConfig": {"bandwidth": {
        "ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 80_000_000_000_u64, "egressBurst": 2_147_483_647_u64}}});
    let result = node.call_with("ADD", "a", &limits).good();
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    let text = node.run(&format!("tc qdisc show dev {host} root"));
    assert!(
        text.contains("tbf") && text.contains("rate 8Mbit burst 100000b"),
        "{text}"
    );
    let text = node.run_in("a", "tc qdisc show dev eth0 root");
    assert!(
        text.contains("tbf") && text.contains("rate 80Gbit"),
        "{text}"
    );
    node.run("ping -c1 -W2 10.77.0.1");
    node.call("DEL", "a").good();
    node.assert_clean();
}

#[test]
fn port_mappings_reach_the_record() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.netns("a");
    let ports = json!({"runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "192.168.77.1"},
        {"hostPort": 0, "containerPort": 90},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}]}});
    node.call_with("ADD", "a", &ports).good();
    let bytes = std::fs::read(node.state().join("endpoints/a-eth0.json")).unwrap();
    let record: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        record["port_mappings"],
        json!([{"host_port": 8080, "container_port": 80, "protocol": "tcp",
                "host_ip": "192.168.77.1"},
               {"host_port": 5353, "container_port": 53, "protocol": "udp"}])
    );
}

#[test]
fn the_mtu_is_the_configured_one_or_the_uplinks() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.netns("a");
    let result = node.call_with("ADD", "a", &json!({"mtu": 9000})).good();
    assert_eq!(result["interfaces"][1]["mtu"], 9000);
    node.call("DEL", "a").good();
    assert_eq!(node.add("a")["interfaces"][1]["mtu"], 1500);
    node.call("DEL", "a").good();
    // A default route into nowhere, which nothing is ever sent along.
    node.run("ip link add up0 mtu 1420 type veth peer name up1");
    node.run("ip link set up0 up");
    node.run("ip route add default dev up0");
    assert_eq!(node.add("a")["interfaces"][1]["mtu"], 1420);
    assert!(node.run_in("a", "ip link show eth0").contains("mtu 1420"));
}

#[test]
fn debians_chained_plugins_take_the_result() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let first = json!({"cniVersion": "1.0.0"});
    node.netns("a");
    let result = node.call_with("ADD", "a", &first).good();
    let base = json!({"cniVersion": "1.0.0", "name": "pods", "prevResult": result});
    let chained = |verb: &str, name: &str, members: Value| {
        let mut config = base.clone();
        for (key, value) in members.as_object().unwrap() {
            config[key] = value.clone();
        }
        config["type"] = json!(name);
        node.raw(
            verb,
            "a",
            &format!("/usr/lib/cni/{name}"),
            &config.to_string(),
        )
    };
    let tuning = json!({"sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}, "mtu": 1400});
    let bandwidth = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000});
    for (name, members) in [("tuning", &tuning), ("bandwidth", &bandwidth)] {
        let after = chained("ADD", name, members.clone()).good();
        assert_eq!(after["ips"], result["ips"], "{name}");
        chained("CHECK", name, members.clone()).good();
    }
    assert!(node.run_in("a", "ip link show eth0").contains("mtu 1400"));
    for (name, members) in [("bandwidth", bandwidth), ("tuning", tuning)] {
        chained("DEL", name, members).good();
    }
    node.call_with("DEL", "a", &first).good();
    node.assert_clean();
}

#[test]
fn behind_ptp_the_pod_is_put_into_the_data_path() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.netns("a");
    let ptp = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "ptp",
        "ipam": {"type": "host-local", "dataDir": node.directory.join("hl"),
                 "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
                 "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let first = node
        .raw("ADD", "a", "/usr/lib/cni/ptp", &ptp.to_string())
        .good();
    node.config["cniVersion"] = json!("1.0.0");
    node.config.as_object_mut().unwrap().remove("podCIDRs");
    let previous = json!({"prevResult": first});
    let mut result = node.call_with("ADD", "a", &previous).good();
    // Empty and absent are the same.
    result["dns"] = json!({});
    assert_eq!(result, first);
    node.call_with("CHECK", "a", &previous).good();
    // The qdiscs of ptp's interface are not ours: the programs are linked.
    let host = first["interfaces"][0]["name"].as_str().unwrap();
    let pins = proxy_ebpf::record::path::pins(&node.bpffs()).join("links");
    let pin = pins.join(format!("{host}-pod_in")).display().to_string();
    node.run(&format!("mv {pin} {pin}-away"));
    let (code, text) = node.call_with("CHECK", "a", &previous).bad();
    assert_eq!(code, 103);
    assert!(text.contains("pod_in is not attached"), "{text}");
    node.run(&format!("mv {pin}-away {pin}"));
    // Record, two pins, ptp's link, slot, two addresses.
    assert_eq!(node.leftovers().len(), 7, "{:?}", node.leftovers());
    node.run("ping -c1 -W2 10.88.0.2");
    assert_eq!(node.call_with("ADD", "a", &previous).bad().0, 102);

    node.call_with("DEL", "a", &previous).good();
    assert!(
        node.run_in("a", "ip -o link").contains("eth0"),
        "the interface is ptp's"
    );
    assert_eq!(node.leftovers().len(), 1, "{:?}", node.leftovers());
    node.run("ping -c1 -W2 10.88.0.2");

    // A result that does not fit the container.
    let mut other = first.clone();
    other["interfaces"][0]["name"] = json!("lo");
    let (code, text) = node
        .call_with("ADD", "a", &json!({"prevResult": other}))
        .bad();
    assert_eq!(code, 7);
    assert!(text.contains("no other side on the node"), "{text}");
    assert_eq!(node.leftovers().len(), 1, "{:?}", node.leftovers());
    node.raw("DEL", "a", "/usr/lib/cni/ptp", &ptp.to_string())
        .good();
    node.assert_clean();
}
