//! Addresses: own and delegated ones.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::node::{Node, is_root};

#[test]
fn concurrent_adds_get_different_addresses_until_none_is_left() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.config["podCIDRs"] = json!(["10.77.0.0/28", "fd77::/64"]);
    let ids: Vec<_> = (0..20).map(|n| format!("c{n}")).collect();
    for id in &ids {
        node.netns(id);
    }
    let children: Vec<_> = ids
        .iter()
        .map(|id| node.spawn("ADD", id, &node.config))
        .collect();
    let mut addresses = HashSet::new();
    let mut refused = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        if output.status.success() {
            assert!(
                addresses.insert(answer["ips"][0]["address"].to_string()),
                "{answer}"
            );
            assert!(
                addresses.insert(answer["ips"][1]["address"].to_string()),
                "{answer}"
            );
        } else {
            assert_eq!(answer["code"], 101, "{answer}");
            refused += 1;
        }
    }
    assert_eq!((addresses.len(), refused), (28, 6));
    let children: Vec<_> = ids
        .iter()
        .map(|id| node.spawn("DEL", id, &node.config))
        .collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    node.assert_clean();
}

#[test]
fn a_released_address_rests_before_it_is_given_again() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.config["podCIDRs"] = json!(["10.77.0.0/29"]);
    node.netns("a");
    let mut given = Vec::new();
    for _ in 0..7 {
        given.push(node.call("ADD", "a").good()["ips"][0]["address"].to_string());
        node.call("DEL", "a").good();
    }
    let distinct: HashSet<_> = given.iter().collect();
    assert_eq!(distinct.len(), 6, "{given:?}");
    assert_eq!(given.first(), given.last());
}

#[test]
fn requested_addresses_and_mac_are_given() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.netns("a");
    let wish = json!({"runtimeConfig": {"ips": ["10.77.0.99/24", "fd77::99"],
                                         "mac": "02:11:22:33:44:55"}});
    let result = node.call_with("ADD", "a", &wish).good();
    assert_eq!(result["ips"][0]["address"], "10.77.0.99/32");
    assert_eq!(result["ips"][1]["address"], "fd77::99/128");
    assert_eq!(result["interfaces"][1]["mac"], "02:11:22:33:44:55");
    assert!(
        node.run_in("a", "ip link show eth0")
            .contains("02:11:22:33:44:55")
    );
    node.netns("b");
    let (code, text) = node.call_with("ADD", "b", &wish).bad();
    assert_eq!(code, 101);
    assert!(text.contains("10.77.0.99 is taken"), "{text}");
    node.variables = vec![(
        "CNI_ARGS".into(),
        "IP=10.77.0.50;MAC=02:11:22:33:44:56".into(),
    )];
    let result = node.call("ADD", "b").good();
    assert_eq!(result["ips"][0]["address"], "10.77.0.50/32");
    assert_eq!(result["interfaces"][1]["mac"], "02:11:22:33:44:56");
}

#[test]
fn one_family_alone_works() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    for (range, ping) in [("10.77.0.0/24", "10.77.0."), ("fd77::/64", "fd77::")] {
        node.config["podCIDRs"] = json!([range]);
        let result = node.add("a");
        assert_eq!(result["ips"].as_array().unwrap().len(), 1);
        assert_eq!(result["routes"].as_array().unwrap().len(), 1);
        let address = result["ips"][0]["address"]
            .as_str()
            .unwrap()
            .split('/')
            .next()
            .unwrap();
        assert!(address.starts_with(ping));
        node.run(&format!("ping -c1 -W2 {address}"));
        node.call("DEL", "a").good();
    }
    node.assert_clean();
}

#[test]
fn another_ipam_plugin_is_called_for_every_verb() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    let data = node.directory.join("host-local");
    // The newest version that Debian's plugin knows.
    node.config["cniVersion"] = json!("1.0.0");
    node.config.as_object_mut().unwrap().remove("podCIDRs");
    node.config["ipam"] = json!({
        "type": "host-local",
        "dataDir": data,
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
    });
    let result = node.add("a");
    assert_eq!(result["ips"][0]["address"], "10.88.0.2/32");
    assert_eq!(result["ips"][1]["address"], "fd88::2/128");
    node.run("ping -c1 -W2 10.88.0.2");
    node.call_with("CHECK", "a", &json!({"prevResult": result}))
        .good();
    assert!(data.join("pods/10.88.0.2").exists());
    // An ADD that fails after the delegate's gives the address back.
    node.netns("b");
    node.run_in("b", "ip link add eth0 type veth peer name other");
    assert_eq!(node.call("ADD", "b").bad().0, 100);
    assert!(!data.join("pods/10.88.0.3").exists());
    node.call("DEL", "a").good();
    assert!(!data.join("pods/10.88.0.2").exists());
    node.call("DEL", "a").good();
    node.assert_clean();
    // Its own error comes through.
    node.config["ipam"]["ranges"] = json!([[{"subnet": "10.88.0.0/33"}]]);
    let (_, text) = node.call("ADD", "a").bad();
    assert!(text.contains("IPAM plugin host-local: "), "{text}");
    node.assert_clean();
}

/// Debian's `host-local` behind a shell, which adds what CNI 1.1 asks of a
/// plugin that gives addresses: it answers STATUS, and at GC gives back what
/// belongs to no valid attachment. Writes down what it is asked.
fn newer_host_local(node: &Node) {
    let at = node.directory.display();
    let script = format!(
        r#"#!/bin/sh
conf=$(cat)
echo "$CNI_COMMAND $conf" >> {at}/asked
if [ -e {at}/broken ] && [ "$CNI_COMMAND" != DEL ]; then
    echo '{{"cniVersion":"1.1.0","code":50,"msg":"no lease can be had"}}'
    exit 1
fi
case $CNI_COMMAND in
STATUS) exit 0 ;;
GC)
    for lease in {at}/leases/pods/10.* {at}/leases/pods/fd*; do
        id=$(head -n1 "$lease" | tr -d '\r')
        echo "$conf" | grep -q "\"containerID\":\"$id\"" || rm "$lease"
    done
    exit 0 ;;
esac
echo "$conf" | sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/' | /usr/lib/cni/host-local
"#
    );
    let path = node.directory.join("newer-host-local");
    std::fs::write(&path, script).unwrap();
    node.run(&format!("chmod 755 {}", path.display()));
}

#[test]
fn gc_and_status_reach_the_ipam_plugin() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    newer_host_local(&node);
    let at = node.directory.clone();
    node.variables = vec![("CNI_PATH".into(), at.display().to_string())];
    node.config.as_object_mut().unwrap().remove("podCIDRs");
    node.config["ipam"] = json!({
        "type": "newer-host-local",
        "dataDir": at.join("leases"),
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
    });
    let leases = || {
        let names = std::fs::read_dir(at.join("leases/pods")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.contains("88")).collect();
        names.sort();
        names
    };
    node.call("STATUS", "").good();
    let kept = node.add("kept");
    node.add("stale");
    assert_eq!(leases(), ["10.88.0.2", "10.88.0.3", "fd88::2", "fd88::3"]);
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    node.call_with("GC", "", &valid).good();
    assert_eq!(leases(), ["10.88.0.2", "fd88::2"]);
    node.call_with("CHECK", "kept", &json!({"prevResult": kept}))
        .good();
    let asked = std::fs::read_to_string(at.join("asked")).unwrap();
    let verbs: Vec<_> = asked
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(verbs, ["STATUS", "ADD", "ADD", "GC", "CHECK"], "{asked}");

    // What it says against it is said on; the own part is done all the same.
    node.run(&format!("touch {}", at.join("broken").display()));
    let (code, text) = node.call("STATUS", "").bad();
    assert_eq!(code, 50);
    assert!(text.contains("no lease can be had"), "{text}");
    let none = json!({"cni.dev/valid-attachments": []});
    let (code, text) = node.call_with("GC", "", &none).bad();
    assert_eq!(code, 50);
    assert!(text.contains("no lease can be had"), "{text}");
    node.assert_clean();
    assert_eq!(leases(), ["10.88.0.2", "fd88::2"]);
    node.netns("new");
    let (_, text) = node.call("ADD", "new").bad();
    assert!(text.contains("no lease can be had"), "{text}");
    node.assert_clean();
}
