//! Services: rule by rule, then random histories against a naive reading.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_ebpf::abi::{self, kind};

use super::for_seeds;
use super::world::{self, NODE, Random, v4, v6};
use crate::compile::tables::{BackendKey, ServiceKey};
use crate::compile::{Compiler, Input, Problem, Tables, Write};
use crate::model::node::NamedPort;
use crate::model::service::{Endpoint, ServicePort, SlicePort, Target};
use crate::model::{
    Change, EndpointSlice, Key, Kind, Labels, Node, Object, ObjectName, Pod, Protocol, Service,
};

type Ends = BTreeSet<(IpAddr, u16)>;

fn vip(index: u8) -> IpAddr {
    [10, 96, 0, index].into()
}

fn service(name: &str) -> Service {
    Service {
        name: ObjectName::new("a", name),
        is_proxied: true,
        cluster_ips: vec![vip(1)],
        ports: vec![port(80)],
        ..Service::default()
    }
}

fn port(port: u16) -> ServicePort {
    ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port,
        target: Target::Number(port),
    }
}

/// A ready endpoint on another node.
fn endpoint(index: u64) -> Endpoint {
    Endpoint {
        address: v4(index),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("n1".to_owned()),
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
    }
}

fn local(index: u64) -> Endpoint {
    Endpoint {
        node: Some(NODE.to_owned()),
        ..endpoint(index)
    }
}

fn leaving(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        ready: false,
        terminating: true,
        ..endpoint
    }
}

fn unready(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        ready: false,
        serving: false,
        ..endpoint
    }
}

fn slice(name: &str, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("a", name),
        service: Some("web".to_owned()),
        is_managed: true,
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints,
        triggered: None,
    }
}

fn upsert(object: Object) -> Input {
    Input::Object(Change::Upsert(object))
}

fn add_service(service: Service) -> Input {
    upsert(Object::Service(service.into()))
}

fn add_slice(slice: EndpointSlice) -> Input {
    upsert(Object::EndpointSlice(slice.into()))
}

fn remove(kind: Kind, name: &str) -> Input {
    let name = ObjectName::new("a", name);
    Input::Object(Change::Remove(Key { kind, name }))
}

fn tcp(vip: IpAddr, port: u16) -> ServiceKey {
    ServiceKey {
        vip,
        port,
        proto: 6,
    }
}

/// The entry and the live backends that its slots lead to.
fn look_up(tables: &Tables, key: ServiceKey) -> Option<(abi::Service, Ends)> {
    let service = tables.services.get(&key)?;
    let slots = service.base..service.base + service.count;
    let is_v6 = key.vip.is_ipv6();
    let ends = slots.map(|index| {
        let id = tables.slots.get(&index).expect("the range is filled");
        let backend = tables.backends.get(&BackendKey { is_v6, id });
        let backend = backend.expect("the slot leads to a backend");
        assert!(backend.is_live);
        (backend.address, backend.port)
    });
    Some((service, ends.collect()))
}

/// What one Service with these endpoints in one slice leads to.
#[track_caller]
fn check(service: Service, endpoints: Vec<Endpoint>, expected: &[u64], drops: bool) {
    let mut compiler = Compiler::new(NODE);
    let mut node = Node {
        name: NODE.to_owned(),
        ..Node::default()
    };
    let zone = "topology.kubernetes.io/zone".to_owned();
    node.labels.insert(zone, "z0".to_owned());
    compiler.update([
        upsert(Object::Node(node.into())),
        add_service(service),
        add_slice(slice("s", endpoints)),
    ]);
    let (entry, ends) = look_up(compiler.tables(), tcp(vip(1), 80)).unwrap();
    let expected: Ends = expected.iter().map(|index| (v4(*index), 8080)).collect();
    assert_eq!(ends, expected);
    assert_eq!(entry.flags & abi::Service::DROP != 0, drops);
}

#[test]
fn only_a_udp_port_that_loses_a_backend_has_its_sockets_looked_for() {
    let udp = Service {
        ports: vec![
            ServicePort {
                protocol: Protocol::Udp,
                ..port(53)
            },
            port(80),
        ],
        ..service("web")
    };
    let of = |endpoints| {
        let mut slice = slice("web-1", endpoints);
        let tcp = slice.ports[0].clone();
        slice.ports.push(SlicePort {
            protocol: Protocol::Udp,
            ..tcp
        });
        slice
    };
    let mut compiler = Compiler::new(NODE);
    let mut loses = |input| {
        compiler.update([input]);
        compiler.take_lost()
    };
    assert!(!loses(add_service(udp.clone())));
    assert!(!loses(add_slice(of(vec![endpoint(1), endpoint(2)]))));
    assert!(!loses(add_slice(of(vec![
        endpoint(1),
        endpoint(2),
        endpoint(3)
    ]))));
    assert!(loses(add_slice(of(vec![endpoint(1), endpoint(2)]))));
    assert!(
        !loses(add_slice(of(vec![endpoint(2), endpoint(1)]))),
        "the same"
    );
    // The last ones serve on while they go.
    let going = vec![leaving(endpoint(1)), leaving(endpoint(2))];
    assert!(!loses(add_slice(of(going))));
    // What only TCP loses stays as it is.
    assert!(!loses(add_slice(slice("web-2", vec![endpoint(9)]))));
    assert!(!loses(remove(Kind::EndpointSlice, "web-2")));
    assert!(loses(remove(Kind::EndpointSlice, "web-1")));
    assert!(!loses(add_slice(of(vec![endpoint(1)]))));
    assert!(loses(remove(Kind::Service, "web")));
}

#[test]
fn only_ready_endpoints_serve() {
    check(
        service("web"),
        vec![endpoint(1), unready(endpoint(2)), local(3)],
        &[1, 3],
        false,
    );
    check(service("web"), vec![unready(endpoint(2))], &[], false);
    check(service("web"), vec![], &[], false);
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    check(
        service("web"),
        vec![endpoint(1), leaving(endpoint(2))],
        &[1],
        false,
    );
    check(
        service("web"),
        vec![unready(endpoint(1)), leaving(endpoint(2))],
        &[2],
        false,
    );
}

#[test]
fn a_local_policy_drops_where_only_others_have_endpoints() {
    let only_local = || Service {
        is_internal_local: true,
        ..service("web")
    };
    check(only_local(), vec![endpoint(1), local(2)], &[2], false);
    check(only_local(), vec![endpoint(1)], &[], true);
    check(only_local(), vec![leaving(endpoint(1))], &[], true);
    check(only_local(), vec![unready(local(1))], &[], false);
    check(
        only_local(),
        vec![endpoint(1), leaving(local(2))],
        &[2],
        false,
    );
}

#[test]
fn hints_count_if_every_ready_endpoint_has_one_and_one_is_for_us() {
    let zone = |index, zone: &str| Endpoint {
        hint_zones: vec![zone.to_owned()],
        ..endpoint(index)
    };
    let node = |index, node: &str| Endpoint {
        hint_nodes: vec![node.to_owned()],
        ..zone(index, "z0")
    };
    check(
        service("web"),
        vec![zone(1, "z0"), zone(2, "z1")],
        &[1],
        false,
    );
    check(
        service("web"),
        vec![zone(1, "z0"), endpoint(2)],
        &[1, 2],
        false,
    );
    check(
        service("web"),
        vec![zone(1, "z1"), zone(2, "z2")],
        &[1, 2],
        false,
    );
    check(
        service("web"),
        vec![node(1, NODE), node(2, "n1")],
        &[1],
        false,
    );
    check(
        service("web"),
        vec![node(1, "n1"), node(2, "n1")],
        &[1, 2],
        false,
    );
    check(
        service("web"),
        vec![zone(1, "z0"), unready(endpoint(2))],
        &[1],
        false,
    );
    check(
        service("web"),
        vec![leaving(zone(1, "z1")), leaving(zone(2, "z0"))],
        &[1, 2],
        false,
    );
}

#[test]
fn slices_merge_and_a_move_between_them_never_removes_an_endpoint() {
    let mut compiler = Compiler::new(NODE);
    compiler.update([
        add_service(service("web")),
        add_slice(slice("s1", vec![endpoint(1)])),
        add_slice(slice("s2", vec![endpoint(2)])),
    ]);
    let ends = || -> Ends { [(v4(1), 8080), (v4(2), 8080)].into() };
    let key = tcp(vip(1), 80);
    assert_eq!(look_up(compiler.tables(), key).unwrap().1, ends());
    for step in [
        slice("s1", vec![endpoint(1), endpoint(2)]),
        slice("s2", vec![]),
    ] {
        let update = compiler.update([add_slice(step)]);
        assert_eq!(update.writes, []);
        assert_eq!(look_up(compiler.tables(), key).unwrap().1, ends());
    }
}

#[test]
fn a_service_that_is_another_proxys_is_forgotten() {
    let mut compiler = Compiler::new(NODE);
    compiler.update([add_service(service("web"))]);
    assert_eq!(
        compiler.tables().addresses.get(&vip(1)).unwrap().kind,
        kind::SERVICE
    );
    let other = Service {
        is_proxied: false,
        ..service("web")
    };
    compiler.update([add_service(other)]);
    assert!(compiler.tables().services.is_empty());
    assert!(compiler.tables().addresses.is_empty());
}

#[test]
fn affinity_is_set_and_taken_back() {
    let mut compiler = Compiler::new(NODE);
    for affinity in [None, Some(10_800), None] {
        compiler.update([add_service(Service {
            affinity_seconds: affinity,
            ..service("web")
        })]);
        let entry = compiler.tables().services.get(&tcp(vip(1), 80)).unwrap();
        assert_eq!(entry.affinity_seconds, affinity.unwrap_or(0));
    }
}

#[test]
fn a_backend_that_goes_moves_its_generation_and_its_id_waits() {
    let mut compiler = Compiler::new(NODE);
    compiler.update([
        add_service(service("web")),
        add_slice(slice("s", vec![endpoint(1)])),
    ]);
    let key = BackendKey {
        is_v6: false,
        id: 1,
    };
    let first = compiler.tables().backends.get(&key).unwrap();
    let writes = compiler
        .update([add_slice(slice("s", vec![endpoint(2)]))])
        .writes;
    let gone = compiler.tables().backends.get(&key).unwrap();
    assert!(!gone.is_live && gone.generation != first.generation);
    let (new, grace, end) = (
        writes
            .iter()
            .position(|w| matches!(w, Write::Service(..)))
            .unwrap(),
        writes
            .iter()
            .position(|w| matches!(w, Write::Grace))
            .unwrap(),
        writes
            .iter()
            .position(|w| matches!(w, Write::Backend(k, _) if *k == key))
            .unwrap(),
    );
    assert!(new < grace && grace < end, "{writes:?}");
    compiler.update([add_slice(slice("s", vec![endpoint(3)]))]);
    let reused = compiler.tables().backends.get(&key).unwrap();
    assert!(reused.is_live && reused.generation != gone.generation);
    assert_eq!(reused.address, v4(3));
}

#[test]
fn udp_backends_end_with_their_own_service() {
    let udp = |name: &str, index| Service {
        cluster_ips: vec![vip(index)],
        ports: vec![ServicePort {
            protocol: Protocol::Udp,
            ..port(53)
        }],
        ..service(name)
    };
    let slice_of = |name: &str, endpoints| EndpointSlice {
        service: Some(name.to_owned()),
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Udp,
            port: 53,
        }],
        ..slice(name, endpoints)
    };
    let mut compiler = Compiler::new(NODE);
    compiler.update([
        add_service(udp("one", 1)),
        add_service(udp("two", 2)),
        add_slice(slice_of("one", vec![endpoint(1)])),
        add_slice(slice_of("two", vec![endpoint(1)])),
    ]);
    let live = |compiler: &Compiler| {
        let backends = compiler.tables().backends.iter();
        backends.filter(|(_, backend)| backend.is_live).count()
    };
    assert_eq!(live(&compiler), 2);
    compiler.update([add_slice(slice_of("one", vec![]))]);
    assert_eq!(live(&compiler), 1);
}

#[test]
fn the_older_of_two_services_has_a_shared_entry_until_it_goes() {
    let aged = |name: &str, created| Service {
        created,
        ..service(name)
    };
    let mut compiler = Compiler::new(NODE);
    compiler.update([add_service(aged("young", 9))]);
    let young = compiler.tables().services.get(&tcp(vip(1), 80)).unwrap().id;
    compiler.update([add_service(aged("old", 1))]);
    let old = compiler.tables().services.get(&tcp(vip(1), 80)).unwrap().id;
    assert_ne!(young, old);
    let contested = |p: &Problem| matches!(p, Problem::ServiceContested { .. });
    assert!(compiler.problems().iter().any(contested));
    compiler.update([remove(Kind::Service, "old")]);
    assert!(compiler.tables().services.get(&tcp(vip(1), 80)).is_some());
    assert!(compiler.problems().is_empty());
}

fn running_pod(index: u64, labels: &Labels) -> Pod {
    Pod {
        name: ObjectName::new("a", &format!("pod{index}")),
        labels: labels.clone(),
        ips: vec![v4(index), v6(index)],
        ports: vec![NamedPort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 8000 + u16::try_from(index).unwrap(),
        }],
        ..Pod::default()
    }
}

#[test]
fn without_controllers_endpoints_follow_from_the_selector() {
    let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
    let selecting = Service {
        selector: labels.clone(),
        ports: vec![ServicePort {
            target: Target::Named("http".to_owned()),
            ..port(80)
        }],
        ..service("web")
    };
    let pod = |index| running_pod(index, &labels);
    let put = |pod: Pod| upsert(Object::Pod(pod.into()));
    let mut compiler = Compiler::new(NODE);
    compiler.update([
        add_service(selecting),
        put(pod(1)),
        put(pod(2)),
        put(Pod {
            ready: Some(false),
            ..pod(3)
        }),
        put(Pod {
            labels: Labels::new(),
            ..pod(4)
        }),
    ]);
    let ends = |compiler: &Compiler| look_up(compiler.tables(), tcp(vip(1), 80)).unwrap().1;
    assert_eq!(ends(&compiler), [(v4(1), 8001), (v4(2), 8002)].into());
    compiler.update([put(Pod {
        phase: crate::model::Phase::Succeeded,
        ..pod(1)
    })]);
    assert_eq!(ends(&compiler), [(v4(2), 8002)].into());
    // A controller's slice anywhere ends this.
    compiler.update([add_slice(slice("s", vec![endpoint(9)]))]);
    assert_eq!(ends(&compiler), [(v4(9), 8080)].into());
}

/// The rules once more, in other words: endpoints, and whether to drop.
fn naive(compiler: &Compiler, service: &Service, port: &ServicePort, is_v6: bool) -> (Ends, bool) {
    let mut all: BTreeMap<(IpAddr, u16), Vec<&Endpoint>> = BTreeMap::new();
    for slice in compiler.state().slices.values() {
        let ours = slice.service.as_ref() == Some(&service.name.name)
            && slice.name.namespace == service.name.namespace;
        for slice_port in slice.ports.iter().filter(|_| ours) {
            if (&slice_port.name, slice_port.protocol) == (&port.name, port.protocol) {
                for endpoint in &slice.endpoints {
                    if endpoint.address.is_ipv6() == is_v6 {
                        let at = (endpoint.address, slice_port.port);
                        all.entry(at).or_default().push(endpoint);
                    }
                }
            }
        }
    }
    let here = |e: &Endpoint| e.node.as_deref() == Some(NODE);
    // Of duplicates the local one, then the one in the best state, counts.
    let best = all.into_iter().map(|(at, listed)| {
        let best = listed
            .into_iter()
            .max_by_key(|e| (here(e), e.ready, e.serving));
        (at, best.unwrap())
    });
    let best: Vec<((IpAddr, u16), &Endpoint)> = best.collect();
    let with = |test: &dyn Fn(&Endpoint) -> bool| -> Ends {
        let passing = best.iter().filter(|(_, endpoint)| test(endpoint));
        passing.map(|(at, _)| *at).collect()
    };
    let (ready, dying) = (with(&|e| e.ready), with(&|e| e.serving && e.terminating));
    if service.is_internal_local {
        let mut chosen = with(&|e| e.ready && here(e));
        if chosen.is_empty() {
            chosen = with(&|e| e.serving && e.terminating && here(e));
        }
        let drops = chosen.is_empty() && !(ready.is_empty() && dying.is_empty());
        return (chosen, drops);
    }
    (if ready.is_empty() { dying } else { ready }, false)
}

fn random_service(random: &mut Random) -> Service {
    let index = random.below(4);
    let mut ports = vec![port(random.pick(&[80, 443]))];
    if random.chance(40) {
        ports.push(ServicePort {
            name: "dns".to_owned(),
            protocol: Protocol::Udp,
            ..port(53)
        });
    }
    let address = u8::try_from(random.below(4)).unwrap();
    let mut cluster_ips = vec![vip(address)];
    if random.chance(50) {
        cluster_ips.push(v6(100 + u64::from(address)));
    }
    Service {
        name: ObjectName::new("a", &format!("s{index}")),
        is_proxied: random.chance(90),
        cluster_ips,
        ports,
        affinity_seconds: random.chance(20).then_some(60),
        is_internal_local: random.chance(30),
        created: i64::try_from(random.below(3)).unwrap(),
        ..Service::default()
    }
}

fn random_slice(random: &mut Random) -> EndpointSlice {
    let is_v6 = random.chance(40);
    let endpoints = (0..random.below(5)).map(|_| {
        let index = random.below(8);
        Endpoint {
            address: if is_v6 { v6(index) } else { v4(index) },
            ready: random.chance(60),
            serving: random.chance(80),
            terminating: random.chance(30),
            node: random.chance(40).then(|| NODE.to_owned()),
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
        }
    });
    let endpoints = endpoints.collect();
    let named = |name: &str, protocol| SlicePort {
        name: name.to_owned(),
        protocol,
        port: 8080,
    };
    EndpointSlice {
        service: Some(format!("s{}", random.below(4))),
        ports: vec![named("", Protocol::Tcp), named("dns", Protocol::Udp)],
        ..slice(&format!("slice{}", random.below(6)), endpoints)
    }
}

fn random_event(random: &mut Random) -> Input {
    match random.below(10) {
        0 => remove(Kind::Service, &format!("s{}", random.below(4))),
        1 => remove(Kind::EndpointSlice, &format!("slice{}", random.below(6))),
        2..=4 => add_service(random_service(random)),
        _ => add_slice(random_slice(random)),
    }
}

/// Every entry that some Service asks for is the winner's, and no other exists.
#[track_caller]
fn check_services(compiler: &Compiler) {
    let mut wanted: BTreeMap<ServiceKey, (i64, ObjectName, (Ends, bool))> = BTreeMap::new();
    for service in compiler.state().services.values().filter(|s| s.is_proxied) {
        for vip in &service.cluster_ips {
            for port in &service.ports {
                let key = ServiceKey {
                    vip: *vip,
                    port: port.port,
                    proto: port.protocol.number(),
                };
                let ours = naive(compiler, service, port, vip.is_ipv6());
                let claim = (service.created, service.name.clone(), ours);
                let known = wanted.get(&key);
                if known.is_none_or(|k| (k.0, &k.1) > (claim.0, &claim.1)) {
                    wanted.insert(key, claim);
                }
            }
        }
    }
    let tables = compiler.tables();
    let programmed: BTreeMap<ServiceKey, (Ends, bool)> = tables
        .services
        .iter()
        .map(|(key, _)| {
            let (entry, ends) = look_up(tables, key).unwrap();
            (key, (ends, entry.flags & abi::Service::DROP != 0))
        })
        .collect();
    let wanted: BTreeMap<_, _> = wanted
        .into_iter()
        .map(|(key, (.., what))| (key, what))
        .collect();
    assert_eq!(programmed, wanted);
    let mut taken = BTreeSet::new();
    for (_, service) in tables.services.iter() {
        for index in service.base..service.base + service.count {
            assert!(taken.insert(index), "ranges overlap");
        }
    }
    assert_eq!(tables.slots.len(), taken.len());
}

#[test]
fn every_entry_leads_to_its_old_or_new_endpoints_at_any_time() {
    for_seeds(150, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        // Ends the derivation of endpoints from selectors for good.
        compiler.update([add_slice(EndpointSlice {
            service: None,
            ..slice("managed", vec![])
        })]);
        let mut mirror = compiler.tables().clone();
        for _ in 0..40 {
            let old = compiler.tables().clone();
            let writes = compiler.update([random_event(&mut random)]).writes;
            let new = compiler.tables();
            for write in writes {
                mirror.apply(write);
                for (key, _) in mirror.services.iter() {
                    let now = look_up(&mirror, key);
                    assert!(
                        now == look_up(&old, key) || now == look_up(new, key),
                        "{key:?}"
                    );
                }
            }
            assert!(mirror == *new);
            check_services(&compiler);
            if random.chance(5) {
                let mut again = Compiler::adopt(NODE, compiler.tables().clone());
                assert_eq!(again.update(world::inputs_of(&compiler)).writes, []);
                check_services(&again);
            }
        }
    });
}
