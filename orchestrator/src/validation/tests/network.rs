//! Services and network policies.

use super::*;

fn a_service(spec: impl Into<Value>) -> Value {
    let mut service = json!({"metadata": {"name": "s"}, "spec": spec.into()});
    defaults::service(&mut service);
    service
}

#[test]
fn services_are_refused_in_upstreams_words() {
    let plain = a_service(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
        "selector": {"app": "w"}, "ports": [{"port": 80}]}));
    check(
        service,
        &plain,
        &[
            ("/spec/ports", Value::Null, &["spec.ports: Required value"]),
            (
                "/spec/ports/0/port",
                json!(0),
                &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
            (
                "/spec/ports/0/nodePort",
                json!(30_000),
                &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                "/spec/type",
                json!("Magic"),
                &[
                    "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \
                   \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (
                "/spec/clusterIPs",
                json!(["10.0.0.2"]),
                &[
                    "spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`",
                ],
            ),
            (
                "/spec/externalTrafficPolicy",
                json!("Local"),
                &[
                    "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for \
                   externally-accessible services",
                ],
            ),
            (
                "/spec/ports",
                json!([{"name": "a", "port": 80, "protocol": "TCP", "targetPort": 80},
                    {"name": "a", "port": 80, "protocol": "TCP", "targetPort": 81}]),
                &[
                    "spec.ports[1].name: Duplicate value: \"a\"",
                    "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
                ],
            ),
        ],
    );
    let named = a_service(json!({"type": "ExternalName", "externalName": "example.com"}));
    check(
        service,
        &named,
        &[(
            "/spec/externalName",
            json!(""),
            &["spec.externalName: Required value"],
        )],
    );
    check(service, &a_service(json!({"clusterIP": "None"})), &[]);
    let moved = with(&plain, "/spec/clusterIP", json!("10.0.0.2"));
    assert_eq!(
        changed(service_update, &moved, &plain),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.1\"]: may not change once set"]
    );
}

#[test]
fn network_policies_are_refused_in_upstreams_words() {
    let policy = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{
        "ports": [{"protocol": "TCP", "port": 80, "endPort": 90}],
        "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}});
    let (port, peer) = ("/spec/ingress/0/ports/0", "/spec/ingress/0/from/0");
    let block = |cidr: &str, except: &str| json!({"ipBlock": {"cidr": cidr, "except": [except]}});
    check(
        network_policy,
        &policy,
        &[
            (
                port,
                json!({"port": 80, "endPort": 79}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or \
                   equal to `port`",
                ],
            ),
            (
                port,
                json!({"port": "http", "endPort": 79}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when \
                   `port` is non-numeric",
                ],
            ),
            (
                port,
                json!({"endPort": 79}),
                &[
                    "spec.ingress[0].ports[0].endPort: Invalid value: 79: may not be specified when \
                   `port` is not specified",
                ],
            ),
            (
                port,
                json!({"protocol": "ICMP"}),
                &[
                    "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported \
                   values: \"SCTP\", \"TCP\", \"UDP\"",
                ],
            ),
            (
                peer,
                json!({}),
                &["spec.ingress[0].from[0]: Required value: must specify a peer"],
            ),
            (
                peer,
                json!({"podSelector": {}, "ipBlock": {"cidr": "::/0"}}),
                &[
                    "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
                ],
            ),
            (
                peer,
                block("10.0.0.0/33", "10.0.0.0/34"),
                &[
                    "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0/33\": must be a \
                   valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                peer,
                block("10.0.0.0/8", "11.0.0.0/16"),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must \
                   be a strict subset of `cidr`",
                ],
            ),
            (
                peer,
                block("10.0.0.0/8", "10.0.0.0/8"),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must \
                   be a strict subset of `cidr`",
                ],
            ),
            (
                peer,
                block("0.0.0.0/0", "2001:db8::/64"),
                &[
                    "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"2001:db8::/64\": \
                   must be a strict subset of `cidr`",
                ],
            ),
            (
                "/spec/policyTypes",
                json!(["Sideways"]),
                &[
                    "spec.policyTypes[0]: Unsupported value: \"Sideways\": supported values: \
                   \"Egress\", \"Ingress\"",
                ],
            ),
        ],
    );
    let all = block("::/0", "fe80::/10");
    assert_eq!(
        faults(network_policy, &with(&policy, peer, all)),
        Vec::<String>::new()
    );
}
