//! Verdicts from the compiled tables.
use std::net::IpAddr;

use proxy_ebpf::abi::kind;
use proxy_ebpf::addr::{BePort, proto};
use proxy_ebpf::policy::verdict;

use super::for_seeds;
use super::naive::{self, End};
use super::world::{self, NODE, PORTS, Random, v4, v6};
use crate::compile::{Compiler, Direction, Input, Owner, Tables, Write};
use crate::explain::{self, Judged};
use crate::model::label::{Operator, Requirement};
use crate::model::policy::{IpBlock, Peer, Port, PortNumber, Rule};
use crate::model::{Change, Cidr, NetworkPolicy, Object, ObjectName, Phase, Protocol, Selector};

const PROTOCOLS: [u8; 5] = [
    proto::TCP,
    proto::UDP,
    proto::SCTP,
    proto::ICMP,
    proto::ICMPV6,
];

/// One question to one direction of one endpoint.
#[derive(Clone, Copy, Debug)]
struct Probe {
    slot: u32,
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: u16,
}

/// `count` random questions.
fn probes(compiler: &Compiler, random: &mut Random, count: usize) -> Vec<Probe> {
    let slots: Vec<u32> = compiler.attachments().keys().copied().collect();
    if slots.is_empty() {
        return Vec::new();
    }
    let questions: Vec<_> = questions().collect();
    let probe = |_| {
        let peer = random.below(26);
        let (protocol, port) = random.pick(&questions);
        Probe {
            slot: random.pick(&slots),
            direction: random.pick(&[Direction::Ingress, Direction::Egress]),
            peer: random.pick(&[v4(peer), v6(peer)]),
            protocol,
            port,
        }
    };
    (0..count).map(probe).collect()
}

fn questions() -> impl Iterator<Item = (u8, u16)> {
    let ports = PORTS.iter().chain(&[2, 78, 442, 9001]).copied();
    ports.flat_map(|port| {
        let protocols = PROTOCOLS.into_iter();
        // A protocol without ports has only one question.
        let protocols = protocols.filter(move |p| proto::has_ports(*p) || port == PORTS[0]);
        protocols.map(move |protocol| (protocol, port))
    })
}

/// What the kernel would say; `None` if the endpoint is not there.
fn judge(tables: &Tables, probe: Probe) -> Option<bool> {
    let endpoint = tables.endpoints.get(&probe.slot)?;
    let set = match probe.direction {
        Direction::Ingress => endpoint.ingress_set,
        Direction::Egress => endpoint.egress_set,
    };
    let class = class_of(tables, probe.peer);
    let port = BePort::new(probe.port);
    Some(verdict(tables, set, class, probe.protocol, port).allowed)
}

/// As the programs look a class up: hash, then prefixes if there are any.
fn class_of(tables: &Tables, ip: IpAddr) -> u32 {
    let asks = match ip {
        IpAddr::V4(_) => tables.decision.has_cidrs_v4,
        IpAddr::V6(_) => tables.decision.has_cidrs_v6,
    };
    if tables.addresses.get(&ip).is_none() && !asks {
        return 0;
    }
    if let Some(address) = tables.addresses.get(&ip) {
        return address.class;
    }
    let containing = tables.cidrs.iter().filter(|(cidr, _)| cidr.contains(ip));
    let longest = containing.max_by_key(|(cidr, _)| cidr.length());
    longest.map_or(0, |(_, class)| class)
}

fn expected(compiler: &Compiler, probe: Probe) -> bool {
    let state = compiler.state();
    let attachment = &compiler.attachments()[&probe.slot];
    let name = attachment.pod.as_ref().unwrap();
    let Some(subject) = state.pods.get(name) else {
        return attachment.starts_open;
    };
    let pod = match compiler.owner(probe.peer) {
        Some(Owner::Endpoint(slot)) => {
            let name = compiler.attachments()[slot].pod.as_ref().unwrap();
            state.pods.get(name)
        }
        Some(Owner::Pod { name, .. }) => state.pods.get(name),
        _ => None,
    };
    let peer = End {
        ip: probe.peer,
        pod: pod.map(AsRef::as_ref),
    };
    naive::allows(
        state,
        probe.direction,
        subject,
        peer,
        probe.protocol,
        probe.port,
    )
}

#[track_caller]
fn check_verdicts(compiler: &Compiler, random: &mut Random) {
    for probe in probes(compiler, random, 1000) {
        let verdict = judge(compiler.tables(), probe);
        assert_eq!(verdict, Some(expected(compiler, probe)), "{probe:?}");
    }
}

/// An explanation says what the tables say, and names a rule that says so.
#[track_caller]
fn check_explanations(compiler: &Compiler, random: &mut Random) {
    for probe in probes(compiler, random, 300) {
        let endpoint = compiler.tables().endpoints.get(&probe.slot).unwrap();
        let judged = Judged {
            slot: probe.slot,
            direction: probe.direction,
            set: match probe.direction {
                Direction::Ingress => endpoint.ingress_set,
                Direction::Egress => endpoint.egress_set,
            },
            class: compiler.tables().class_of(probe.peer),
            protocol: probe.protocol,
            port: probe.port,
        };
        let reason = explain::reason(compiler, &judged);
        assert_eq!(
            reason.allows(),
            judge(compiler.tables(), probe),
            "{probe:?} {reason}"
        );
    }
}

fn step(compiler: &mut Compiler, inputs: Vec<Input>) -> Vec<Write> {
    let update = compiler.update(inputs);
    assert!(!update.again, "{:?}", compiler.problems());
    update.writes
}

#[test]
fn compiled_tables_judge_as_the_policies_say() {
    for_seeds(60, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        let events = (0..60).map(|_| world::event(&mut random)).collect();
        step(&mut compiler, events);
        check_verdicts(&compiler, &mut random);
        check_explanations(&compiler, &mut random);
    });
}

#[test]
fn every_state_on_the_way_judges_as_the_old_or_the_new_one() {
    for_seeds(40, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        let events = (0..40).map(|_| world::event(&mut random)).collect();
        step(&mut compiler, events);
        let mut mirror = compiler.tables().clone();
        for _ in 0..20 {
            let event = world::event(&mut random);
            let old = compiler.tables().clone();
            let writes = step(&mut compiler, vec![event.clone()]);
            let new = compiler.tables();
            let mut probes = probes(&compiler, &mut random, 200);
            // A pod to itself is always allowed, whatever its policies say.
            let to_itself =
                |probe: &Probe| compiler.owner(probe.peer) == Some(&Owner::Endpoint(probe.slot));
            probes.retain(|probe| judge(&old, *probe).is_some() && !to_itself(probe));
            let asked: Vec<_> = probes
                .into_iter()
                .map(|probe| (probe, judge(&old, probe), judge(new, probe)))
                .collect();
            for (index, write) in writes.iter().enumerate() {
                mirror.apply(*write);
                for (probe, before, after) in &asked {
                    let now = judge(&mirror, *probe);
                    assert!(
                        now == *before || now == *after,
                        "{event:#?}\n{probe:?} after write {index} of {writes:#?}: {now:?}"
                    );
                }
            }
            let detached = mirror.endpoints.iter().map(|(slot, _)| slot);
            let detached = detached.filter(|slot| !compiler.attachments().contains_key(slot));
            for slot in detached.collect::<Vec<_>>() {
                mirror.endpoints.set(slot, None);
            }
            assert!(mirror == *new, "{event:?}");
            check_verdicts(&compiler, &mut random);
        }
    });
}

/// A program that runs while a pod is put into force without a grace period may
/// have read the addresses before and read the sets after.
#[test]
fn a_pod_that_comes_alone_needs_no_grace_period() {
    let without = std::cell::Cell::new(0);
    for_seeds(60, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        let mut events: Vec<_> = (0..60).map(|_| world::event(&mut random)).collect();
        let slot = random.below(world::LOCAL_PODS);
        let (came, went) = match world::attach(slot, false) {
            Input::Attach { slot, attachment } => {
                (Input::Attach { slot, attachment }, Input::Detach { slot })
            }
            other => panic!("{other:?}"),
        };
        events.push(went);
        step(&mut compiler, events);
        let old = compiler.tables().clone();
        let writes = step(&mut compiler, vec![came]);
        if writes.contains(&Write::Grace) {
            return;
        }
        without.set(without.get() + 1);
        let mut between = compiler.tables().clone();
        between.addresses = old.addresses.clone();
        for probe in probes(&compiler, &mut random, 400) {
            // Before, the pod was closed.
            let before = judge(&old, probe).or(Some(false));
            let after = judge(compiler.tables(), probe);
            let now = judge(&between, probe);
            assert!(
                now == before || now == after,
                "{probe:?} {writes:#?}: {now:?}"
            );
        }
    });
    let without = without.get();
    assert!(
        without > 10,
        "only {without} of 60 arrivals came without one"
    );
}

#[test]
fn a_diff_of_tables_leads_from_one_to_the_other() {
    for_seeds(40, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        for slot in 0..world::LOCAL_PODS {
            step(&mut compiler, vec![world::attach(slot, false)]);
        }
        let mut old = compiler.tables().clone();
        for _ in 0..10 {
            let mut events: Vec<_> = (0..5).map(|_| world::event(&mut random)).collect();
            events.retain(|event| !matches!(event, Input::Detach { .. }));
            step(&mut compiler, events);
            for write in compiler.tables().writes_since(&old) {
                old.apply(write);
            }
            assert!(old == *compiler.tables());
            assert!(old.writes_since(&old.clone()).is_empty());
        }
    });
}

#[test]
fn an_incremental_update_is_what_a_rebuild_makes() {
    for_seeds(60, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        let events = (0..60).map(|_| world::event(&mut random)).collect();
        step(&mut compiler, events);
        for _ in 0..20 {
            // Twice, so that nothing is left of former policies.
            for _ in 0..2 {
                compiler.stale = true;
                step(&mut compiler, vec![]);
            }
            let index = world::LOCAL_PODS + random.below(world::PODS - world::LOCAL_PODS);
            let pod = world::pod(&mut random, index);
            let change = Change::Upsert(Object::Pod(pod.into()));
            step(&mut compiler, vec![Input::Object(change)]);
            let mut rebuilt = compiler.clone();
            rebuilt.stale = true;
            let writes = step(&mut rebuilt, vec![]);
            let forgets = |write: &Write| matches!(write, Write::Peer(_, None) | Write::Grace);
            // A port name may stand for fewer numbers now: sets are made anew for it.
            let addresses = |t: &Tables| -> Vec<_> { t.addresses.iter().collect() };
            if !writes.iter().all(forgets) {
                assert!(
                    writes.iter().any(|w| matches!(w, Write::Set(..))),
                    "{writes:?}"
                );
            }
            assert_eq!(addresses(compiler.tables()), addresses(rebuilt.tables()));
            check_verdicts(&rebuilt, &mut random);
        }
    });
}

#[test]
fn a_pod_elsewhere_is_one_hash_write() {
    let mut random = Random(1);
    let mut compiler = Compiler::new(NODE);
    let mut events: Vec<_> = (0..80).map(|_| world::event(&mut random)).collect();
    events.extend((0..world::LOCAL_PODS).map(|slot| world::attach(slot, false)));
    step(&mut compiler, events);
    let pod = |name: &str, ip| {
        let mut pod = world::pod(&mut Random(5), 11);
        pod.name.name = name.to_owned();
        pod.ips = vec![ip];
        pod.host_network = false;
        pod.phase = Phase::Running;
        Input::Object(Change::Upsert(Object::Pod(pod.into())))
    };
    step(&mut compiler, vec![pod("first", v4(100))]);
    let writes = step(&mut compiler, vec![pod("second", v4(101))]);
    assert!(
        matches!(writes.as_slice(), [Write::Address(ip, Some(a))]
            if *ip == v4(101) && a.kind == kind::REMOTE_POD),
        "{writes:?}"
    );
}

#[test]
fn the_successor_elsewhere_of_an_attached_pod_has_its_own_address() {
    let mut random = Random(1);
    let mut compiler = Compiler::new(NODE);
    let mut pod = world::pod(&mut random, 0);
    pod.phase = Phase::Running;
    pod.ips = vec![v4(100), v4(0)];
    let pod = Object::Pod(pod.into());
    let inputs = [world::attach(0, false), Input::Object(Change::Upsert(pod))];
    compiler.update(inputs);
    let kind_of = |ip| compiler.tables().addresses.get(&ip).map(|a| a.kind);
    assert_eq!(kind_of(v4(0)), Some(kind::LOCAL_POD));
    assert_eq!(kind_of(v4(100)), Some(kind::REMOTE_POD));
    assert_eq!(compiler.problems(), []);
}

/// A compiler that starts with what the maps of `old` hold, and its first writes.
fn restarted(old: &Compiler, extra: Vec<Input>) -> (Compiler, Vec<Write>) {
    let mut compiler = Compiler::adopt(NODE, old.tables().clone());
    let mut inputs = world::inputs_of(old);
    inputs.extend(extra);
    let writes = step(&mut compiler, inputs);
    (compiler, writes)
}

#[test]
fn a_restart_writes_nothing_where_nothing_changed() {
    for_seeds(60, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        for _ in 0..6 {
            let events = (0..10).map(|_| world::event(&mut random)).collect();
            step(&mut compiler, events);
        }
        for _ in 0..2 {
            compiler.stale = true;
            step(&mut compiler, vec![]);
        }
        let (mut again, writes) = restarted(&compiler, vec![]);
        assert_eq!(writes, []);
        check_verdicts(&again, &mut random);
        // And it goes on from there.
        let events = (0..10).map(|_| world::event(&mut random)).collect();
        step(&mut again, events);
        check_verdicts(&again, &mut random);
    });
}

#[test]
fn a_change_during_a_restart_judges_as_the_old_or_the_new_state() {
    for_seeds(120, |seed| {
        let mut random = Random(seed);
        let mut compiler = Compiler::new(NODE);
        for _ in 0..3 {
            let events = (0..15).map(|_| world::event(&mut random)).collect();
            step(&mut compiler, events);
        }
        let old = compiler.tables().clone();
        let mut mirror = old.clone();
        let (new, writes) = restarted(&compiler, vec![world::event(&mut random)]);
        let to_itself = |probe: &Probe| new.owner(probe.peer) == Some(&Owner::Endpoint(probe.slot));
        let mut probes = probes(&new, &mut random, 300);
        probes.retain(|probe| judge(&old, *probe).is_some() && !to_itself(probe));
        for write in &writes {
            mirror.apply(*write);
            for probe in &probes {
                let now = judge(&mirror, *probe);
                let (before, after) = (judge(&old, *probe), judge(new.tables(), *probe));
                // Found classes that became one may be denied for a moment.
                let closed = now == Some(false);
                assert!(
                    now == before || now == after || closed,
                    "{probe:?} {writes:#?}"
                );
            }
        }
        for write in new.tables().writes_since(&mirror) {
            assert!(matches!(write, Write::EndpointSets { .. }), "{write:?}");
        }
        check_verdicts(&new, &mut random);
    });
}

/// A pod by its labels, and a policy for the first by the label of its peers.
fn labelled(index: u64, value: &str) -> Input {
    let mut pod = world::pod(&mut Random(index), index);
    pod.labels = [("app".to_owned(), value.to_owned())].into();
    (pod.ips, pod.ports) = (vec![v4(index)], Vec::new());
    (pod.phase, pod.terminating, pod.host_network) = (Phase::Running, false, false);
    Input::Object(Change::Upsert(Object::Pod(pod.into())))
}

fn for_peers_like(values: &[&str], ports: Vec<Port>) -> Input {
    let requirement = Requirement {
        key: "app".to_owned(),
        operator: Operator::In(values.iter().map(|v| (*v).to_owned()).collect()),
    };
    let peer = Peer::Pods {
        namespaces: Some(Selector::default()),
        pods: Selector::new(vec![requirement]),
    };
    for_peers(vec![peer], ports)
}

/// A policy for the first pod's ingress.
fn for_peers(peers: Vec<Peer>, ports: Vec<Port>) -> Input {
    let policy = NetworkPolicy {
        name: ObjectName::new("a", "p"),
        ingress: Some(vec![Rule { peers, ports }]),
        ..NetworkPolicy::default()
    };
    Input::Object(Change::Upsert(Object::NetworkPolicy(policy.into())))
}

#[test]
fn a_peer_that_comes_during_a_restart_closes_no_other() {
    let mut compiler = Compiler::new(NODE);
    let pods = [labelled(0, "own"), labelled(6, "x"), labelled(7, "y")];
    let inputs = pods
        .into_iter()
        .chain([world::attach(0, false), for_peers_like(&["x"], Vec::new())]);
    step(&mut compiler, inputs.collect());
    let mut mirror = compiler.tables().clone();
    // Of two classes, one of which may pass, it makes one that may.
    let port = Port {
        protocol: Protocol::Tcp,
        number: PortNumber::Range(80, 80),
    };
    let change = for_peers_like(&["x", "y"], vec![port]);
    let (mut new, writes) = restarted(&compiler, vec![change]);
    let passes = |tables: &Tables, peer| {
        let (slot, direction) = (1, Direction::Ingress);
        let (protocol, port) = (proto::TCP, 80);
        judge(
            tables,
            Probe {
                slot,
                direction,
                peer: v4(peer),
                protocol,
                port,
            },
        )
    };
    assert_eq!(passes(&mirror, 6), Some(true));
    for write in writes {
        mirror.apply(write);
        assert_eq!(passes(&mirror, 6), Some(true), "{write:?}");
    }
    assert_eq!(passes(&mirror, 7), Some(true));
    // Then they are one.
    for write in step(&mut new, vec![]) {
        mirror.apply(write);
        assert_eq!(
            (passes(&mirror, 6), passes(&mirror, 7)),
            (Some(true), Some(true))
        );
    }
    assert_eq!(new.tables().class_of(v4(6)), new.tables().class_of(v4(7)));
}

#[test]
fn a_block_that_goes_during_a_restart_closes_nobody_outside() {
    let block = Peer::Block(IpBlock {
        cidr: Cidr::parse("192.0.2.0/24").unwrap(),
        except: Vec::new(),
    });
    let mut compiler = Compiler::new(NODE);
    let own = [labelled(0, "own"), world::attach(0, false)];
    let inputs = own.into_iter().chain([for_peers(vec![block], Vec::new())]);
    step(&mut compiler, inputs.collect());
    let mut mirror = compiler.tables().clone();
    // From those of the block to everybody.
    let (mut new, writes) = restarted(&compiler, vec![for_peers(Vec::new(), Vec::new())]);
    let passes = |tables: &Tables| {
        let probe = Probe {
            slot: 1,
            direction: Direction::Ingress,
            peer: [192, 0, 2, 7].into(),
            protocol: proto::TCP,
            port: 80,
        };
        judge(tables, probe)
    };
    for write in writes {
        mirror.apply(write);
        assert_eq!(passes(&mirror), Some(true), "{write:?}");
    }
    // The next update gives the block up.
    for write in step(&mut new, vec![]) {
        mirror.apply(write);
        assert_eq!(passes(&mirror), Some(true), "{write:?}");
    }
    assert!(new.tables().cidrs.is_empty());
}
