//! Paths narrower than the pods' links: "fragmentation needed" and "packet too
//! big" come back to the sender, directly and through a Service, whoever is
//! isolated; TCP goes on with smaller segments.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use fairlead_tests::namespace::Namespace;
use fairlead_tests::require;
use fairlead_tests::traffic::{Transport, probe};
use fairlead_tests::wait;
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover,
    set_ipv6_mtu_discover,
};

use crate::bench::{Bench, Who, with_bench};
use crate::far::{Far, POD, address};
use crate::policy::build::{With, all, anything, policy};
use crate::service::{of, offer, vip};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const DEADLINE: Duration = Duration::from_secs(10);
const PORT: u16 = 9000;
/// Of the pods' links.
const LINK_MTU: u32 = 1500;
const BYTES: usize = 1 << 20;

/// Where packets become too large.
#[derive(Clone, Copy)]
enum Narrow {
    /// The pod's own node says so.
    Node,
    /// A router says so: the error comes in from outside.
    Router,
}

/// Lets the way to the far pod carry `mtu` from there on and forgets what pod A
/// has learnt.
fn narrow(bench: &Bench, far: &Far, where_: Narrow, mtu: u32) {
    let (wide, narrow) = (format!("mtu lock {LINK_MTU}"), format!("mtu lock {mtu}"));
    let (here, router) = match where_ {
        Narrow::Node => (&narrow, &wide),
        Narrow::Router => (&wide, &narrow),
    };
    for (block, via, next) in [
        ("10.244.9.0/24", "198.18.0.2", "198.18.1.2"),
        ("fd00:244:9::/64", "2001:db8:18::2", "2001:db8:19::2"),
    ] {
        let set = |namespace: &Namespace, via: &str, mtu: &str| {
            namespace.ip(&format!("route replace {block} via {via} {mtu}"));
        };
        set(&bench.node.namespace, via, here);
        set(&far.router, next, router);
    }
    let pod = &bench.pod(A).namespace;
    pod.ip("-4 route flush cache");
    pod.ip("-6 route flush cache");
}

fn path_mtu(v6: bool, socket: impl std::os::fd::AsFd) -> u32 {
    if v6 { ipv6_mtu(socket) } else { ip_mtu(socket) }.unwrap()
}

/// A datagram that may not be cut is refused once the error has come back, and
/// one that fits arrives.
fn datagrams_learn(pod: &Namespace, to: SocketAddr, mtu: u32) {
    let v6 = to.is_ipv6();
    let any: IpAddr = if v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
    let socket = pod.enter(|| UdpSocket::bind((any, 0)).unwrap());
    if v6 {
        set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO).unwrap();
    } else {
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO).unwrap();
    }
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(path_mtu(v6, &socket), LINK_MTU, "nothing learnt yet");
    let what = format!("too large for the path to {to}");
    wait::until(&what, DEADLINE, || {
        let refused = socket.send(&[0; 1450]).err()?;
        assert_eq!(refused.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()));
        Some(())
    });
    assert_eq!(path_mtu(v6, &socket), mtu, "{to}");
    // The error that came back is told once more, if the refusal above was not it.
    socket.take_error().unwrap();
    socket.send(&[0; 1200]).unwrap();
    let mut buffer = [0; 256];
    let answer = socket.recv(&mut buffer);
    let length = answer.unwrap_or_else(|error| panic!("from {to}, path MTU {mtu}: {error}"));
    assert_eq!(&buffer[..length], b"z/far");
}

/// A transfer of many full segments arrives; the connection's path MTU after it.
fn stream_learns(pod: &Namespace, listener: &TcpListener, to: SocketAddr) -> u32 {
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut seen = Vec::new();
            stream.read_to_end(&mut seen).unwrap();
            seen.len()
        });
        let stream = pod.enter(|| TcpStream::connect_timeout(&to, DEADLINE));
        let mut stream = stream.unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&vec![7; BYTES]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(receiver.join().unwrap(), BYTES, "to {to}");
        path_mtu(to.is_ipv6(), &stream)
    })
}

fn narrow_path(isolated: bool) {
    with_bench(|bench| {
        let far = Far::new(bench);
        if isolated {
            // Nobody may open anything to it: errors pass as part of its flows.
            let shut = policy("x", "shut", all()).ingress(vec![]);
            bench.policies(vec![shut.egress(vec![anything()])]);
        }
        offer(
            bench,
            &[[false, true].map(|v6| address(POD, v6))],
            &[80, PORT],
        );
        let pod = &bench.pod(A).namespace;
        let listener = far.pod.enter(|| TcpListener::bind(("::", PORT)).unwrap());
        let mut mtu = 1400;
        for v6 in [false, true] {
            let direct = |port| SocketAddr::new(address(POD, v6), port);
            for to in [&direct, &|port| vip(v6, port)] as [&dyn Fn(u16) -> SocketAddr; 2] {
                wait::until("the way to be there", DEADLINE, || {
                    let met = probe(pod, Transport::Tcp, to(80));
                    met.is_server().then_some(())
                });
                for where_ in [Narrow::Node, Narrow::Router] {
                    mtu -= 8;
                    narrow(bench, &far, where_, mtu);
                    datagrams_learn(pod, to(80), mtu);
                    narrow(bench, &far, where_, mtu);
                    assert_eq!(stream_learns(pod, &listener, to(PORT)), mtu);
                }
            }
        }
    });
}

#[test]
fn a_narrow_path_is_told_to_a_pod() {
    require!(Root, Bpf);
    narrow_path(false);
}

#[test]
fn a_narrow_path_is_told_to_an_isolated_pod() {
    require!(Root, Bpf);
    narrow_path(true);
}

#[test]
fn pods_with_different_mtus_understand_each_other() {
    require!(Root, Bpf);
    with_bench(|bench| {
        offer(bench, &[of(B)], &[80, PORT]);
        let server = &bench.pod(B).namespace;
        let listener = server.enter(|| TcpListener::bind(("::", PORT)).unwrap());
        server.ip("link set eth0 mtu 1300");
        for v6 in [false, true] {
            for to in [SocketAddr::new(B.ip(v6), PORT), vip(v6, PORT)] {
                wait::until("the Service", DEADLINE, || {
                    let port = SocketAddr::new(to.ip(), 80);
                    let met = probe(&bench.pod(A).namespace, Transport::Tcp, port);
                    met.is_server().then_some(())
                });
                stream_learns(&bench.pod(A).namespace, &listener, to);
            }
        }
        server.ip(&format!("link set eth0 mtu {LINK_MTU}"));
    });
}
