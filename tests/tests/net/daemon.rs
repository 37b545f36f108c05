//! The daemon dies, comes back, is upgraded: traffic goes on, new connections
//! too, and a pod is isolated from its first packet.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use fairlead_proxy::datapath::bpf;
use fairlead_proxy::datapath::link::{POD_PROGRAMS, SOCKET_PROGRAMS};
use fairlead_proxy::datapath::load::{MAPS, Pins};
use fairlead_tests::cluster::LOCAL_NODE;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::node::Node;
use fairlead_tests::process;
use fairlead_tests::require;
use fairlead_tests::traffic::{Met, Server, Transport, probe};
use fairlead_tests::wait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use serde_json::json;

use crate::bench::{Bench, Who, with_bench};
use crate::policy::build::{With, all, namespaces, ns, peers, policy};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const CONNECTIONS: usize = 100;
const PORT: u16 = 7000;
const DEADLINE: Duration = Duration::from_secs(30);
/// How often threads look whether they are to end.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Waits until some of `sockets` can be read: one bool for each.
fn readable<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> = sockets
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    poll(&mut fds, Some(&LOOK)).unwrap();
    fds.iter().map(|fd| !fd.revents().is_empty()).collect()
}

/// Echoes on every connection until it ends. One thread for all: as many as
/// there are connections would keep the daemon, and the machine, from working.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    step_back();
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let sockets = std::iter::once(listener.as_fd());
        let ready = readable(sockets.chain(streams.iter().map(AsFd::as_fd)));
        let mut of_stream = ready[1..].iter();
        streams.retain_mut(|stream| {
            if !of_stream.next().unwrap() {
                return true;
            }
            let count = stream.read(&mut buffer).unwrap_or(0);
            count > 0 && stream.write_all(&buffer[..count]).is_ok()
        });
        if ready[0] {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.set_nodelay(true).unwrap();
            streams.push(stream);
        }
    }
}

/// Keeps every connection busy: the next request goes when the echo is there.
/// `rounds`: echoes of each. Panics when a connection breaks.
fn ask(mut streams: Vec<TcpStream>, rounds: &[AtomicU64], stop: &AtomicBool) {
    step_back();
    for stream in &mut streams {
        stream.write_all(&0_u64.to_le_bytes()).unwrap();
    }
    while !stop.load(Ordering::Relaxed) {
        let ready = readable(streams.iter().map(AsFd::as_fd));
        let of_ready = streams.iter_mut().zip(rounds).zip(ready);
        for ((stream, round), _) in of_ready.filter(|(_, ready)| *ready) {
            let number = round.load(Ordering::Relaxed);
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(u64::from_le_bytes(answer), number);
            stream.write_all(&(number + 1).to_le_bytes()).unwrap();
            round.store(number + 1, Ordering::Relaxed);
        }
    }
}

/// Lets the daemon have its share of the processor.
fn step_back() {
    rustix::process::nice(5).unwrap();
}

/// One request and its echo; panics when the connection breaks.
fn round(stream: &mut TcpStream, number: u64) {
    let request = number.to_le_bytes();
    stream.write_all(&request).unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, request);
}

fn connect(namespace: &Namespace, to: SocketAddr) -> TcpStream {
    let stream = namespace.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    let stream = stream.unwrap_or_else(|error| panic!("refused: {error}"));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sets the flags on drop: threads that watch them end when the test panics too.
struct Ending<'a>(&'a [&'a AtomicBool]);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        for flag in self.0 {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

/// Policies on both sides, so that every packet is judged and every flow tracked.
fn judge_everything(bench: &mut Bench) {
    let open = || vec![peers(vec![namespaces(all())])];
    bench.policies(vec![
        policy("x", "both", all()).ingress(open()).egress(open()),
        policy("y", "both", all()).ingress(open()).egress(open()),
    ]);
    bench.expect(Transport::Tcp, 80, |_, _| true);
}

/// Runs `disturb` while 100 connections from a policed pod to another go at
/// full speed and new ones open all the time.
fn under_load(bench: &mut Bench, disturb: impl FnOnce(&mut Bench)) {
    judge_everything(bench);
    let listener = bench
        .pod(B)
        .namespace
        .enter(|| TcpListener::bind(("::", PORT)).unwrap());
    let to = SocketAddr::new(bench.pod(B).ip(false), PORT);
    let client = bench.pod(A).namespace.path();
    let (stop, stop_server) = (AtomicBool::new(false), AtomicBool::new(false));
    let rounds: Vec<AtomicU64> = (0..CONNECTIONS).map(|_| AtomicU64::new(0)).collect();
    let opened = AtomicU64::new(0);
    let name = client.file_name().unwrap().to_string_lossy().into_owned();
    let inside = Namespace::existing(&name);
    std::thread::scope(|scope| {
        let flags = [&stop, &stop_server];
        let _ending = Ending(&flags);
        scope.spawn(|| serve(&listener, &stop_server));
        let streams = rounds.iter().map(|_| connect(&inside, to)).collect();
        let old = scope.spawn(|| ask(streams, &rounds, &stop));
        let new = scope.spawn(|| {
            step_back();
            while !stop.load(Ordering::Relaxed) {
                round(&mut connect(&inside, to), 1);
                opened.fetch_add(1, Ordering::Relaxed);
            }
        });
        let go_on = |what: &str| {
            let count = || rounds.iter().map(|round| round.load(Ordering::Relaxed));
            let (before, opened_before) =
                (count().collect::<Vec<_>>(), opened.load(Ordering::Relaxed));
            wait::until(what, DEADLINE, || {
                let all = count().zip(&before).all(|(now, before)| now > before + 10);
                let enough = all && opened.load(Ordering::Relaxed) > opened_before + 20;
                (old.is_finished() || new.is_finished() || enough).then_some(())
            });
        };
        go_on("traffic on every connection");
        disturb(bench);
        go_on("traffic on every connection after it");
        stop.store(true, Ordering::Relaxed);
        assert!(old.join().is_ok(), "a connection broke");
        assert!(new.join().is_ok(), "a new connection was refused");
    });
}

#[test]
fn killing_and_restarting_the_daemon_breaks_and_refuses_no_connection() {
    require!(Root, Bpf);
    with_bench(|bench| {
        under_load(bench, |bench| {
            for _ in 0..3 {
                bench.node.daemon.as_mut().unwrap().kill();
                bench.node.daemon = None;
                bench.node.start_daemon();
            }
        });
    });
}

/// Kernel ids below the pin directory.
#[derive(Debug, Default)]
struct Ids {
    /// Pinned map -> its id.
    maps: BTreeMap<String, u32>,
    /// Pinned program -> its id and the hash of its instructions.
    programs: BTreeMap<String, (u32, u64)>,
    /// Pinned link, or filter of a pod -> the id of the program that it runs.
    links: BTreeMap<String, u32>,
}

impl Ids {
    fn read(bench: &Bench) -> Self {
        let mut ids = Self::default();
        let pins = Pins::below(bench.node.bpf.path());
        for name in MAPS {
            let info = MapInfo::from_pin(pins.object(name)).unwrap();
            ids.maps.insert((*name).to_owned(), info.id());
        }
        let pods = POD_PROGRAMS.map(|(name, _)| name);
        let sockets = SOCKET_PROGRAMS.map(|(name, _)| name);
        for name in pods.into_iter().chain(sockets) {
            let info = ProgramInfo::from_pin(pins.object(name)).unwrap();
            let identity = (info.id(), info.tag());
            ids.programs.insert(name.to_owned(), identity);
        }
        for entry in std::fs::read_dir(pins.links()).unwrap() {
            let path = entry.unwrap().path();
            let link = bpf::object_get(&path).unwrap();
            let program = bpf::link_info(link.as_fd()).unwrap().program;
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            ids.links.insert(name, program);
        }
        ids.links.extend(bench.node.filters());
        ids
    }

    /// As soon as every link runs the pinned program of its name. An audit sees
    /// to the links of pods that were still being made when the daemon started.
    fn when_consistent(bench: &Bench) -> Self {
        wait::until("every link to run the pinned program", DEADLINE, || {
            let ids = Self::read(bench);
            let pods = POD_PROGRAMS.len() * bench.pods.len();
            assert_eq!(ids.links.len(), SOCKET_PROGRAMS.len() + pods, "{ids:?}");
            let runs_pinned = |(link, program): (&String, &u32)| {
                let name = link.rsplit('-').next().unwrap();
                ids.programs[name].0 == *program
            };
            ids.links.iter().all(runs_pinned).then_some(ids)
        })
    }
}

/// Why connections live: their state is in the maps, which the next daemon
/// adopts because their layout is the same; a link or filter is updated in
/// place, so no packet misses a program; and every packet is seen by one whole program, the
/// old or the new, which read the same maps.
#[cfg(debug_assertions)]
#[test]
fn an_upgrade_to_changed_programs_breaks_and_refuses_no_connection() {
    require!(Root, Bpf);
    with_bench(|bench| {
        under_load(bench, |bench| {
            let mut before = Ids::when_consistent(bench);
            for programs in [&["--audit=1", "--logging-programs"][..], &["--audit=1"]] {
                let daemon = bench.node.daemon.as_mut().unwrap();
                daemon.signal(Signal::TERM);
                // Closing its watches takes the kernel seconds under this load.
                daemon.wait(Duration::from_mins(2));
                bench.node.start_daemon_with(programs);
                let after = Ids::when_consistent(bench);
                assert_eq!(after.maps, before.maps);
                assert!(after.links.keys().eq(before.links.keys()));
                for (name, (id, tag)) in &after.programs {
                    let (old_id, old_tag) = before.programs[name];
                    assert_ne!(*id, old_id, "{name}");
                    // Those at sockets drop nothing and so have nothing to tell.
                    let is_changed = POD_PROGRAMS.iter().any(|(pod, _)| name == pod);
                    assert_eq!(*tag != old_tag, is_changed, "{name}");
                }
                before = after;
            }
        });
    });
}

#[cfg(debug_assertions)]
#[test]
fn a_debug_builds_logging_programs_tell_a_drop_in_words() {
    require!(Root, Bpf);
    with_bench(|bench| {
        bench.policies(vec![policy("y", "deny", all()).ingress(vec![])]);
        bench.node.daemon.as_mut().unwrap().stop();
        let arguments = [
            "--audit=1",
            "--logging-programs",
            "--log=dataplane=debug,info",
        ];
        bench.node.start_daemon_with(&arguments);
        Ids::when_consistent(bench);
        for v6 in [false, true] {
            assert_eq!(bench.probe(A, B, v6, Transport::Tcp, 80), Met::Silence);
        }
        let daemon = bench.node.daemon.as_mut().unwrap();
        daemon.wait_for_output("drops", DEADLINE);
        daemon.wait_for_output("policy_ingress", DEADLINE);
        daemon.stop();
        bench.node.start_daemon();
    });
}

#[test]
fn the_object_of_a_release_logs_nothing() {
    let said = |text: &[u8]| {
        fairlead_proxy::OBJECT
            .windows(text.len())
            .any(|w| w == text)
    };
    assert!(said(b"EVENTS"), "names of maps are found this way");
    assert!(!said(b"AYA_LOG"));
}

#[test]
fn policies_stay_in_force_while_the_daemon_is_dead() {
    require!(Root, Bpf);
    with_bench(|bench| {
        bench.policies(vec![policy("x", "deny", all()).ingress(vec![])]);
        bench.expect(Transport::Tcp, 80, |from, to| to.ns != "x" || from == to);
        bench.node.daemon.as_mut().unwrap().kill();
        bench.expect(Transport::Tcp, 80, |from, to| to.ns != "x" || from == to);
        // What changed meanwhile is in force after the start.
        let from_y = peers(vec![namespaces(ns("y"))]);
        bench.policies(vec![policy("x", "some", all()).ingress(vec![from_y])]);
        bench.node.start_daemon();
        bench.expect(Transport::Tcp, 80, |from, to| {
            to.ns != "x" || from == to || from.ns == "y"
        });
    });
}

#[test]
fn an_established_connection_is_cut_when_a_policy_comes_to_deny_it() {
    require!(Root, Bpf);
    with_bench(|bench| {
        bench.policies(vec![]);
        bench.expect(Transport::Tcp, 80, |_, _| true);
        let listener = bench
            .pod(B)
            .namespace
            .enter(|| TcpListener::bind(("::", PORT)).unwrap());
        let to = SocketAddr::new(bench.pod(B).ip(false), PORT);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let flags = [&stop];
            let _ending = Ending(&flags);
            scope.spawn(|| serve(&listener, &stop));
            let mut stream = connect(&bench.pod(A).namespace, to);
            round(&mut stream, 1);
            let deny = policy("y", "deny", all()).ingress(vec![]).egress(vec![]);
            bench.policies(vec![deny]);
            stream
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            let mut number = 2_u64;
            wait::until("the connection to be cut", DEADLINE, || {
                number += 1;
                let sent = stream.write_all(&number.to_le_bytes());
                let mut answer = [0; 8];
                (sent.is_err() || stream.read_exact(&mut answer).is_err()).then_some(())
            });
            // Allowed again, it goes on: nothing was reset.
            bench.policies(vec![]);
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn a_pod_is_isolated_from_its_first_packet() {
    require!(Root, Bpf);
    with_bench(|bench| {
        let late = bench.cluster.pods[0].clone();
        let ips = [
            "10.244.0.60".parse().unwrap(),
            "fd00:244::60".parse().unwrap(),
        ];
        bench.cluster.pods.push(fairlead_tests::cluster::Pod {
            name: "late".into(),
            ips: ips.to_vec(),
            ..late
        });
        bench.policies(vec![
            policy("x", "deny", all()).ingress(vec![]).egress(vec![]),
        ]);
        bench.expect(Transport::Tcp, 80, |from, to| {
            from == to || (from.ns != "x" && to.ns != "x")
        });
        let pod = bench.node.pod("x", "late", &ips);
        let server = Server::start(&pod.namespace, "x/late", &[(Transport::Tcp, 80)]);
        let inward = SocketAddr::new(ips[0], 80);
        let outward = SocketAddr::new(bench.pod(B).ip(false), 80);
        for _ in 0..5 {
            assert_eq!(
                probe(&bench.pod(B).namespace, Transport::Tcp, inward),
                Met::Silence
            );
            assert_eq!(probe(&pod.namespace, Transport::Tcp, outward), Met::Silence);
        }
        // The node reaches its own pods whatever the policies.
        assert!(probe(&bench.node.namespace, Transport::Tcp, inward).is_server());
        drop(server);
        bench.node.remove(pod);
    });
}

#[test]
fn a_pod_that_no_source_knows_starts_closed() {
    require!(Root, Bpf);
    with_bench(|bench| {
        bench.policies(vec![]);
        bench.expect(Transport::Tcp, 80, |_, _| true);
        let ips = [
            "10.244.0.61".parse().unwrap(),
            "fd00:244::61".parse().unwrap(),
        ];
        let pod = bench.node.pod("x", "stranger", &ips);
        let server = Server::start(&pod.namespace, "x/stranger", &[(Transport::Tcp, 80)]);
        let inward = SocketAddr::new(ips[0], 80);
        assert_eq!(
            probe(&bench.pod(B).namespace, Transport::Tcp, inward),
            Met::Silence
        );
        let known = bench.cluster.pods[0].clone();
        bench.cluster.pods.push(fairlead_tests::cluster::Pod {
            name: "stranger".into(),
            ips: ips.to_vec(),
            ..known
        });
        bench.apply();
        wait::until("the pod to be known", DEADLINE, || {
            probe(&bench.pod(B).namespace, Transport::Tcp, inward)
                .is_server()
                .then_some(())
        });
        drop(server);
        bench.node.remove(pod);
    });
}

#[test]
fn the_time_from_a_change_of_endpoints_to_the_maps_is_measured() {
    const COUNT: &str = "kubeproxy_network_programming_duration_seconds_count";
    require!(Root, Bpf);
    let mut node = Node::new(LOCAL_NODE);
    node.start_daemon();
    assert!(node.metrics().contains(&format!("{COUNT} 0\n")));
    let now = process::run(Command::new("date").args(["-u", "+%FT%T.%NZ"]));
    let slice = |address: &str| {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "x",
                "name": "front-1",
                "labels": { "kubernetes.io/service-name": "front" },
                "annotations": {
                    "endpoints.kubernetes.io/last-change-trigger-time": now.trim(),
                },
            },
            "addressType": "IPv4",
            "ports": [],
            "endpoints": [{ "addresses": [address] }],
        });
        serde_json::to_string(&slice).unwrap()
    };
    // The second change was triggered by nothing.
    for address in ["10.244.0.7", "10.244.0.8"] {
        node.apply_text("slice.json", &slice(address));
        wait::until("the slice to be taken up", DEADLINE, || {
            let last = if address.ends_with('7') { 1 } else { 2 };
            let taken = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
            let text = node.metrics();
            let both = [format!("{taken} {last}\n"), format!("{COUNT} 1\n")];
            both.iter().all(|line| text.contains(line)).then_some(())
        });
    }
}
