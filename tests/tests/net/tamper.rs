//! Somebody else writes to the maps: `policy explain` says so, the daemon puts
//! it back.

use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use fairlead_proxy::datapath::load::Pins;
use fairlead_tests::cluster::Policy;
use fairlead_tests::require;
use fairlead_tests::traffic::{Met, Transport};
use fairlead_tests::wait;
use proxy_ebpf::abi::{Endpoint, PolicySet, SET_NONE, pin};
use serde_json::Value;

use crate::bench::{Bench, Who, with_bench};
use crate::policy::build::{With, namespaces, ns, peers, pod, policy};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const DEADLINE: Duration = Duration::from_secs(30);

fn array<V: aya::Pod>(bench: &Bench, name: &str) -> Array<MapData, V> {
    let pins = Pins::below(bench.node.bpf.path());
    let data = MapData::from_pin(pins.object(name)).unwrap();
    Array::try_from(Map::Array(data)).unwrap()
}

fn explain(bench: &Bench) -> Value {
    let from_to = ["--from", "x/a", "--to", "y/b", "--port", "80/tcp"];
    let mut answer = bench
        .node
        .ask(&[&["policy", "explain"][..], &from_to].concat());
    answer["paths"][0].take()
}

fn map_repairs(bench: &Bench) -> u64 {
    let status = bench.node.ask(&["status"]);
    status["repairs"]["map"].as_u64().unwrap_or(0)
}

/// The slot of pod y/b.
fn slot(bench: &Bench) -> u32 {
    let endpoints = bench.node.ask(&["endpoints"]);
    let endpoints = endpoints.as_array().unwrap();
    let found = endpoints.iter().find(|one| one["pod"] == "y/b").unwrap();
    u32::try_from(found["slot"].as_u64().unwrap()).unwrap()
}

#[test]
fn a_verdict_that_was_tampered_with_is_told_and_put_back() {
    require!(Root, Bpf);
    with_bench(|bench| {
        let from = peers(vec![namespaces(ns("z"))]);
        tamper_with(bench, policy("y", "only-z", pod("b")).ingress(vec![from]));
    });
}

#[test]
fn the_set_that_denies_everything_is_put_back_too() {
    require!(Root, Bpf);
    with_bench(|bench| tamper_with(bench, policy("y", "shut", pod("b")).ingress(vec![])));
}

/// Opens the set of y/b, which `closed` closes to x/a.
fn tamper_with(bench: &mut Bench, closed: Policy) {
    bench.policies(vec![closed]);
    wait::until("the policy to be in force", DEADLINE, || {
        let agrees = explain(bench)["ingress"]["kernelAgrees"] == true;
        let met = bench.probe(A, B, false, Transport::Tcp, 80);
        (agrees && met == Met::Silence).then_some(())
    });
    let agreed = explain(bench);
    assert_eq!(agreed["allowed"], false, "{agreed}");
    assert_eq!(agreed["ingress"]["kernelAgrees"], true, "{agreed}");
    let repairs = map_repairs(bench);
    let endpoints: Array<_, Endpoint> = array(bench, pin::ENDPOINTS);
    let set = endpoints.get(&slot(bench), 0).unwrap().ingress_set;
    assert_ne!(set, SET_NONE);
    // Strangers may now do everything, says the map; an audit may be quicker.
    let mut sets: Array<_, PolicySet> = array(bench, pin::POLICY_SETS);
    let open = PolicySet {
        default_bits: u64::MAX,
        ..sets.get(&set, 0).unwrap()
    };
    wait::until("the disagreement to be told", DEADLINE, || {
        sets.set(set, open, 0).unwrap();
        let met = bench.probe(A, B, false, Transport::Tcp, 80);
        let told = explain(bench);
        // Whatever the kernel does, what the policies say is what is explained.
        assert_eq!(told["allowed"], false, "{told}");
        let text = told["text"].as_str().unwrap();
        let disagrees = text.contains("DISAGREE: they say it ALLOWS");
        assert_eq!(told["ingress"]["kernelAgrees"], !disagrees, "{told}");
        assert_eq!(told["ingress"]["kernelAllows"], disagrees, "{told}");
        (met.is_server() && disagrees).then_some(())
    });
    wait::until("the set to be put back", DEADLINE, || {
        (explain(bench)["ingress"]["kernelAgrees"] == true).then_some(())
    });
    assert_ne!(sets.get(&set, 0).unwrap(), open);
    assert!(map_repairs(bench) > repairs);
    assert_eq!(bench.probe(A, B, false, Transport::Tcp, 80), Met::Silence);
}
