//! The daemon dies, comes back, is upgraded: traffic goes on, new connections
//! too, and a pod is isolated from its first packet.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fairlead_tests::namespace::Namespace;
use fairlead_tests::require;
use fairlead_tests::traffic::{Met, Server, Transport, probe};
use fairlead_tests::wait;

use crate::bench::{Bench, Who, with_bench};
use crate::policy::build::{With, all, namespaces, ns, peers, policy};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const CONNECTIONS: usize = 100;
const PORT: u16 = 7000;
const DEADLINE: Duration = Duration::from_secs(30);

/// Echoes on every connection until it ends.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            scope.spawn(move || {
                step_back();
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// Lets the daemon have its share of the processor beside two hundred busy threads.
fn step_back() {
    rustix::process::nice(15).unwrap();
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
    let stop = AtomicBool::new(false);
    let stop_server = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let opened = AtomicU64::new(0);
    let name = client.file_name().unwrap().to_string_lossy().into_owned();
    let inside = Namespace::existing(&name);
    std::thread::scope(|scope| {
        let flags = [&stop, &stop_server];
        let _ending = Ending(&flags);
        scope.spawn(|| serve(&listener, &stop_server));
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = connect(&inside, to);
            let (stop, rounds) = (&stop, &rounds);
            clients.push(scope.spawn(move || {
                step_back();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    round(&mut stream, number);
                    number += 1;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let (stop_new, opened, inside) = (&stop, &opened, &inside);
        clients.push(scope.spawn(move || {
            step_back();
            while !stop_new.load(Ordering::Relaxed) {
                round(&mut connect(inside, to), 1);
                opened.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let before = (
            rounds.load(Ordering::Relaxed),
            opened.load(Ordering::Relaxed),
        );
        disturb(bench);
        // And some time after it.
        let target = (
            rounds.load(Ordering::Relaxed) + 1000,
            opened.load(Ordering::Relaxed) + 20,
        );
        wait::until("traffic after it", DEADLINE, || {
            let broken = clients
                .iter()
                .any(std::thread::ScopedJoinHandle::is_finished);
            let enough = rounds.load(Ordering::Relaxed) > target.0
                && opened.load(Ordering::Relaxed) > target.1;
            (broken || enough).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        let broken = clients
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .filter(Result::is_err)
            .count();
        stop_server.store(true, Ordering::Relaxed);
        assert_eq!(broken, 0, "connections broken of {}", CONNECTIONS + 1);
        assert!(rounds.load(Ordering::Relaxed) > before.0);
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
