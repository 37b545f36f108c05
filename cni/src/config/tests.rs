//! Configurations, good and bad. Bad ones also go through the binary, in
//! `tests/net_verbs/input.rs`.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn network(members: &Value) -> Network {
    let mut config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "fairlead-cni"});
    for (name, value) in members.as_object().unwrap() {
        config[name] = value.clone();
    }
    Network::parse(&config.to_string()).unwrap()
}

#[test]
fn the_example_is_valid_in_each_of_its_versions() {
    let text = include_str!("../../../deploy/fairlead.conflist");
    let list: Value = serde_json::from_str(text).unwrap();
    for version in list["cniVersions"].as_array().unwrap() {
        let mut plugin = list["plugins"][0].clone();
        plugin["cniVersion"] = version.clone();
        plugin["name"] = list["name"].clone();
        plugin["runtimeConfig"] = json!({"portMappings": []});
        let network = Network::parse(&plugin.to_string()).unwrap();
        network.check_fields().unwrap();
        let settings = network.settings().unwrap();
        assert_eq!(settings.default_policy, DefaultPolicy::Closed);
        assert_eq!(settings.data_path, DataPath::Required);
        assert_eq!(settings.wait_for_policy_ms, WAIT_FOR_POLICY_MS);
        assert!(matches!(network.ipam().unwrap(), Ipam::Own(_)));
        assert_eq!(network.runtime().unwrap(), Runtime::default());
        // What the example states are the defaults.
        let bare = self::network(&json!({}));
        assert_eq!(bare.state_dir, network.state_dir);
        assert_eq!(bare.bpffs, network.bpffs);
        assert_eq!(bare.socket, network.socket);
    }
}

#[test]
fn ranges_may_stand_in_any_of_the_three_places() {
    let expected = network(&json!({"podCIDRs": ["10.0.0.0/24"]}))
        .ipam()
        .unwrap();
    let Ipam::Own(expected) = expected else {
        panic!("not our own");
    };
    for members in [
        json!({"ranges": ["10.0.0.0/24"]}),
        json!({"ipam": {"type": "fairlead", "ranges": [{"subnet": "10.0.0.0/24"}]}}),
        json!({"ipam": {"ranges": ["10.0.0.0/24"]}}),
    ] {
        let Ipam::Own(pools) = network(&members).ipam().unwrap() else {
            panic!("not our own");
        };
        assert_eq!(pools, expected, "{members}");
    }
}

#[test]
fn del_reads_what_add_would_refuse() {
    let network = network(&json!({
        "defaultPolicy": "ajar", "unknown": 1, "podCIDRs": 7, "mtu": "big",
        "runtimeConfig": {"mac": 3},
    }));
    assert_eq!(network.delegate().unwrap(), None);
    assert!(network.check_fields().is_err());
    assert!(network.settings().is_err());
    assert!(network.ipam().is_err());
    assert!(network.runtime().is_err());
}

#[test]
fn bandwidth_is_bits_outside_and_bytes_inside() {
    let network = network(&json!({"runtimeConfig": {"bandwidth": {
        "ingressRate": 80_000, "ingressBurst": 160_000,
        "egressRate": 8_000_000_000_000_u64, "egressBurst": u64::MAX}}}));
    let bandwidth = network.runtime().unwrap().bandwidth;
    let shape = |bytes_per_second, burst_bytes| {
        Some(Shape {
            bytes_per_second,
            burst_bytes,
        })
    };
    assert_eq!(bandwidth.ingress, shape(10_000, 20_000));
    assert_eq!(bandwidth.egress, shape(1_000_000_000_000, u32::MAX));
}

#[test]
fn containerds_spelling_means_the_same() {
    let ours = network(&json!({"runtimeConfig": {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "::1"}],
        "bandwidth": {"ingressRate": 80_000, "ingressBurst": 160_000,
                      "egressRate": 90_000, "egressBurst": 170_000}}}));
    let theirs = network(&json!({"runtimeConfig": {
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "::1"}],
        "bandwidth": {"IngressRate": 80_000, "IngressBurst": 160_000,
                      "EgressRate": 90_000, "EgressBurst": 170_000}}}));
    assert_eq!(ours.runtime().unwrap(), theirs.runtime().unwrap());
    assert_eq!(ours.runtime().unwrap().port_mappings.len(), 1);
}

#[test]
fn garbage_collection_needs_its_list() {
    assert_eq!(network(&json!({})).valid_attachments().unwrap_err().code, 7);
    let network = network(&json!({"cni.dev/valid-attachments": [
        {"containerID": "a", "ifname": "eth0"}]}));
    let (container_id, ifname) = ("a".to_owned(), "eth0".to_owned());
    assert_eq!(
        network.valid_attachments().unwrap(),
        [Attachment {
            container_id,
            ifname
        }]
    );
}

/// Any JSON up to a small size, with our own keys more likely than others.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./:]{0,12}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        prop::sample::select(KNOWN).prop_map(str::to_owned),
        prop::sample::select(
            &[
                "ranges",
                "subnet",
                "ips",
                "portMappings",
                "bandwidth",
                "hostPort"
            ][..]
        )
        .prop_map(str::to_owned),
        "[a-z]{1,4}",
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_comes_in_is_refused_with_a_code_or_understood(value in any_json(), cut in 0_usize..200) {
        let text = value.to_string();
        let cut: String = text.chars().take(cut).collect();
        for text in [&text, &cut] {
            let failure = match Network::parse(text) {
                Err(failure) => Some(failure),
                Ok(network) => network
                    .check_fields()
                    .and_then(|()| network.settings().map(drop))
                    .and_then(|()| network.ipam().map(drop))
                    .and_then(|()| network.runtime().map(drop))
                    .and_then(|()| network.valid_attachments().map(drop))
                    .err(),
            };
            if let Some(failure) = failure {
                prop_assert!(matches!(failure.code, 1 | 2 | 6 | 7), "{failure:?}");
                prop_assert!(failure.details.contains("hint: "), "{failure:?}");
            }
        }
    }
}
