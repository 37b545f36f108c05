//! `flows`: what is tracked, with names.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use fairlead_tests::require;
use fairlead_tests::wait;
use serde_json::{Value, json};

use crate::bench::{Who, with_bench};
use crate::policy::build::{With, all, namespaces, peers, policy};
use crate::service::{of, offer, vip};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const DEADLINE: Duration = Duration::from_secs(30);
const PORT: u16 = 7002;

#[test]
fn tracked_connections_are_listed_with_names_and_services() {
    require!(Root, Bpf);
    with_bench(|bench| {
        let from = peers(vec![namespaces(all())]);
        bench.policies(vec![policy("y", "p", all()).ingress(vec![from])]);
        offer(bench, &[of(B)], &[PORT]);
        wait::until("both to be in force", DEADLINE, || {
            let endpoints = bench.node.ask(&["endpoints"]);
            let is_isolated = |one: &Value| one["pod"] == "y/b" && one["ingress"] != "open";
            let services = bench.node.ask(&["services"]);
            let mut services = services.as_array().unwrap().iter();
            let isolated = endpoints.as_array().unwrap().iter().any(is_isolated);
            (isolated && services.any(|one| one["port"] == PORT)).then_some(())
        });
        let server = &bench.pod(B).namespace;
        let listener = server.enter(|| TcpListener::bind(("::", PORT)).unwrap());
        for v6 in [false, true] {
            let direct = SocketAddr::new(B.ip(v6), PORT);
            for to in [direct, vip(v6, PORT)] {
                let client = &bench.pod(A).namespace;
                let stream = wait::until("a connection", DEADLINE, || {
                    client.enter(|| TcpStream::connect_timeout(&to, DEADLINE).ok())
                });
                let accepted = listener.accept().unwrap();
                let end = |name: &str, address: SocketAddr| json!({"name": name, "address": address.ip(), "port": address.port()});
                let mut wanted = json!({
                    "protocol": "TCP",
                    "state": "established",
                    "from": end("x/a", stream.local_addr().unwrap()),
                    "to": end("y/b", direct),
                    "service": null,
                });
                if to != direct {
                    wanted["service"] = end("y/front", to);
                }
                wait::until("the flow to be listed", DEADLINE, || {
                    let tracked = bench.node.ask(&["flows"]);
                    let is_it = |flow: &&Value| {
                        let fields = wanted.as_object().unwrap().iter();
                        fields.clone().all(|(name, value)| flow[name] == *value)
                    };
                    let flows = tracked["flows"].as_array().unwrap();
                    assert_eq!(tracked["count"], flows.len());
                    flows.iter().find(is_it).map(|_| ())
                });
                drop((stream, accepted));
            }
        }
        let mut table = bench.node.proxy(&["flows"]);
        table.arg("--socket").arg(bench.node.socket());
        let text = fairlead_tests::process::run(&mut table);
        assert!(text.contains("y/front (10.96.0.50:7002)"), "{text}");
    });
}
