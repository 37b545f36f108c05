//! Bad input: the code of the specification, the field and the fix.

use serde_json::{Value, json};

use crate::node::{Node, PLUGIN, is_root};

#[test]
fn malformed_stdin_has_code_6_or_7() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    for (stdin, code, part) in [
        ("", 6, "cannot be decoded"),
        ("{", 6, "cannot be decoded"),
        ("[]", 6, "not an object"),
        ("\u{0}\u{1}", 6, "cannot be decoded"),
        ("{\"cniVersion\": 7}", 7, "cniVersion"),
        ("{\"cniVersion\": \"9.9.9\"}", 1, "0.4.0, 1.0.0, 1.1.0"),
        ("{\"cniVersion\": \"1.0.0\"}", 7, "name"),
        ("{\"cniVersion\": \"1.0.0\", \"name\": \"../x\"}", 7, "name"),
    ] {
        let (found, text) = node.raw("ADD", "a", PLUGIN, stdin).bad();
        assert_eq!(found, code, "{stdin}: {text}");
        assert!(text.contains(part), "{stdin}: {text}");
    }
}

/// Each is refused with the code, naming the part, and leaves nothing.
fn refused(cases: &[(Value, u64, &str)]) {
    let node = Node::new();
    node.netns("a");
    for (members, code, part) in cases {
        let (found, text) = node.call_with("ADD", "a", members).bad();
        assert_eq!(found, *code, "{members}: {text}");
        assert!(
            text.contains(part) && text.contains("hint: "),
            "{members}: {text}"
        );
    }
    node.assert_clean();
}

#[test]
fn malformed_configurations_name_the_field() {
    if !is_root() {
        return;
    }
    refused(&[
        (json!({"defaultPolcy": "open"}), 2, "defaultPolcy"),
        (json!({"defaultPolicy": "ajar"}), 7, "defaultPolicy"),
        (json!({"mtu": "big"}), 7, "mtu"),
        (json!({"mtu": 500}), 7, "1280"),
        (json!({"stateDir": "var"}), 7, "stateDir"),
        (json!({"waitForPolicy": -1}), 7, "waitForPolicy"),
        (json!({"waitForPolicy": 600_000}), 7, "at most 60000"),
    ]);
}

#[test]
fn malformed_sources_of_addresses_name_the_field() {
    if !is_root() {
        return;
    }
    refused(&[
        (json!({"podCIDRs": []}), 7, "podCIDRs"),
        (json!({"podCIDRs": ["10.0.0.0/99"]}), 7, "podCIDRs[0]"),
        (json!({"podCIDRs": "10.0.0.0/24"}), 7, "podCIDRs"),
        (json!({"ipam": {"type": "../sh"}}), 7, "ipam.type"),
        (json!({"ipam": {"type": "no-such-plugin"}}), 7, "CNI_PATH"),
        (json!({"ipam": 3}), 7, "ipam"),
        (json!({"dataPath": "optional"}), 7, "defaultPolicy"),
        (
            json!({"runtimeConfig": {"mac": "nope"}}),
            7,
            "runtimeConfig.mac",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.77.0.900"]}}),
            7,
            "runtimeConfig.ips[0]",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.77.0.9", "10.77.0.8"]}}),
            7,
            "one per family",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.99.0.9"]}}),
            101,
            "in no range",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 70_000, "containerPort": 80}]}}),
            7,
            "portMappings[0].hostPort",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 0}]}}),
            7,
            "portMappings[0].containerPort",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [
                {"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}}),
            7,
            "tcp, udp or sctp",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [
                {"hostPort": 80, "containerPort": 80}, {"hostPort": 80, "containerPort": 81}]}}),
            7,
            "mapped twice",
        ),
        (
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1_000_000}}}),
            7,
            "bandwidth.ingressBurst",
        ),
        (
            json!({"runtimeConfig": {"bandwidth": {"egressRate": 10, "egressBurst": 99_999}}}),
            7,
            "bandwidth.egressRate",
        ),
    ]);
}

#[test]
fn bad_environments_have_code_4_and_bad_namespaces_3_or_8() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    let mut fail = |variables: &[(&str, &str)]| {
        let owned = |pair: &(&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
        node.variables = variables.iter().map(owned).collect();
        node.call("ADD", "a").bad()
    };
    let (code, text) = fail(&[("CNI_IFNAME", ""), ("CNI_PATH", "")]);
    assert_eq!(code, 4);
    assert!(text.contains("not set: CNI_IFNAME, CNI_PATH"), "{text}");
    assert_eq!(fail(&[("CNI_IFNAME", "a/b")]).0, 4);
    assert_eq!(fail(&[("CNI_CONTAINERID", "$(reboot)")]).0, 4);
    assert_eq!(fail(&[("CNI_ARGS", "FOO=1")]).0, 4);
    assert_eq!(fail(&[("CNI_COMMAND", "JUMP")]).0, 4);
    assert_eq!(fail(&[("CNI_NETNS", "/run/netns/none")]).0, 3);
    assert_eq!(fail(&[("CNI_NETNS", "/etc/passwd")]).0, 8);
    let own = "/proc/self/ns/net";
    let (code, text) = fail(&[("CNI_NETNS", own)]);
    assert_eq!(code, 8);
    assert!(text.contains("the node's own"), "{text}");
    node.variables.clear();
    node.assert_clean();
}

#[test]
fn without_pins_add_says_try_again_and_status_says_unavailable() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.call("STATUS", "").good();
    node.netns("a");
    node.config["bpffs"] = json!(node.directory.join("nowhere"));
    let (code, text) = node.call("ADD", "a").bad();
    assert_eq!(code, 11);
    assert!(text.contains("start fairlead-proxy"), "{text}");
    assert_eq!(node.call("STATUS", "").bad().0, 50);
    // Where the node may do without, the kernel routes.
    node.config["dataPath"] = json!("optional");
    node.config["defaultPolicy"] = json!("open");
    node.call("STATUS", "").good();
    node.call("ADD", "a").good();
    node.run("ping -c1 -W2 10.77.0.1");
    node.call("DEL", "a").good();
}

#[test]
fn status_says_when_no_address_is_left() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    node.config["podCIDRs"] = json!(["10.77.0.1/32"]);
    node.call("STATUS", "").good();
    node.add("a");
    let (code, text) = node.call("STATUS", "").bad();
    assert_eq!(code, 50);
    assert!(text.contains("are taken"), "{text}");
}

#[test]
fn verbs_exist_only_in_versions_that_have_them() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    for (verb, version, ok) in [
        ("GC", "1.0.0", false),
        ("STATUS", "1.0.0", false),
        ("STATUS", "1.1.0", true),
        ("CHECK", "0.3.1", false),
    ] {
        let reply = node.call_with(verb, "a", &json!({"cniVersion": version}));
        if ok {
            reply.good();
        } else {
            assert_eq!(reply.bad().0, 1, "{verb} {version}");
        }
    }
}

#[test]
fn version_lists_all_versions_whatever_is_asked() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let reply = node
        .raw("VERSION", "", PLUGIN, "{\"cniVersion\": \"0.4.0\"}")
        .good();
    assert_eq!(reply["cniVersion"], "0.4.0");
    let all = json!([
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"
    ]);
    assert_eq!(reply["supportedVersions"], all);
    assert_eq!(
        node.raw("VERSION", "", PLUGIN, "").good()["supportedVersions"],
        all
    );
    assert_eq!(node.raw("VERSION", "", PLUGIN, "x").bad().0, 6);
}

#[test]
fn the_result_has_the_form_of_the_configured_version() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.netns("a");
    for (version, _) in [
        ("0.1.0", 0),
        ("0.2.0", 0),
        ("0.3.0", 0),
        ("0.3.1", 0),
        ("0.4.0", 0),
    ]
    .into_iter()
    .chain([("1.0.0", 1), ("1.1.0", 1)])
    {
        let config = json!({"cniVersion": version});
        let result = node.call_with("ADD", "a", &config).good();
        assert_eq!(result["cniVersion"], version);
        let modern = !matches!(version, "0.1.0" | "0.2.0");
        assert_eq!(result.get("ip4").is_some(), !modern, "{result}");
        assert_eq!(result.get("interfaces").is_some(), modern, "{result}");
        assert_eq!(
            result["interfaces"][0].get("mtu").is_some(),
            version == "1.1.0",
            "{result}"
        );
        let family = result["ips"][1].get("version").and_then(Value::as_str);
        assert_eq!(
            family,
            (modern && version.starts_with('0')).then_some("6"),
            "{result}"
        );
        node.call_with("DEL", "a", &config).good();
    }
    node.assert_clean();
}

#[test]
fn an_error_has_the_configured_version() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let reply = node.call_with("ADD", "a", &json!({"cniVersion": "0.4.0"}));
    assert_eq!(reply.json["cniVersion"], "0.4.0");
    assert_eq!(reply.bad().0, 3);
}

#[test]
fn an_existing_interface_or_attachment_is_an_error_and_stays() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let result = node.add("a");
    let (code, text) = node.call("ADD", "a").bad();
    assert_eq!(code, 102);
    assert!(text.contains("call DEL first"), "{text}");
    node.call_with("CHECK", "a", &json!({"prevResult": result}))
        .good();
    node.call("DEL", "a").good();

    node.netns("b");
    node.run_in("b", "ip link add eth0 type veth peer name other");
    let (code, text) = node.call("ADD", "b").bad();
    assert_eq!(code, 100);
    assert!(
        text.contains("is there an interface eth0 already?"),
        "{text}"
    );
    node.assert_clean();
    assert!(node.run_in("b", "ip -o link").contains("eth0"));
}
