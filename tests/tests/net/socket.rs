//! Services at the socket: programs inside the cgroup, in a pod's namespace.
//!
//! Each test runs twice: outside it prepares the bench and starts itself again
//! inside the cgroup, where `$INSIDE` is set, to do what a pod's process does.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use fairlead_tests::namespace::Namespace;
use fairlead_tests::process::{self, Process};
use fairlead_tests::require;
use fairlead_tests::wait;
use serde_json::Value;

use crate::bench::{Bench, Who, with_bench};
use crate::service::{of, offer, vip};

const INSIDE: &str = "FAIRLEAD_TEST_INSIDE";
const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const C: Who = Who { ns: "y", pod: "c" };
const DEADLINE: Duration = Duration::from_secs(30);
const ECHO: u16 = 7001;

/// What the pod's process does; whether this is it.
fn inside(work: impl FnOnce()) -> bool {
    let is_inside = std::env::var_os(INSIDE).is_some();
    if is_inside {
        work();
    }
    is_inside
}

/// This test again, as a process of pod `who`.
fn again(bench: &Bench, who: Who) -> Command {
    again_in(bench, &bench.pod(who).namespace)
}

/// This test again, as a process in that namespace.
fn again_in(bench: &Bench, namespace: &Namespace) -> Command {
    let test = std::thread::current().name().unwrap().to_owned();
    let program = std::env::current_exe().unwrap();
    let mut command = namespace.command(program);
    command.args(["--exact", &test, "--nocapture"]);
    let mut command = bench.node.cgroup.command(&command);
    command.env(INSIDE, "1");
    command
}

/// Makes the Service and waits until it is in force.
fn offered(bench: &mut Bench, backends: &[Who], ports: &[u16]) {
    let ips: Vec<_> = backends.iter().map(|who| of(*who)).collect();
    offer(bench, &ips, ports);
    wait::until("the Service", DEADLINE, || {
        let services = bench.node.ask(&["services"]);
        let services = services.as_array().unwrap();
        let is_right = |port: &Value| {
            let found = port["backends"].as_array().unwrap();
            let names = found
                .iter()
                .map(|backend| backend["name"].as_str().unwrap());
            names.eq(backends.iter().map(|who| format!("{}/{}", who.ns, who.pod)))
        };
        // Of each family and transport.
        let complete = services.len() == ports.len() * 2 * 3;
        (complete && services.iter().all(is_right)).then_some(())
    });
}

/// The Service's addresses as a program may write them: IPv4, IPv6, and IPv4 of
/// an IPv6 socket.
fn ways(port: u16) -> [SocketAddr; 3] {
    let (v4, v6) = (vip(false, port), vip(true, port));
    let IpAddr::V4(ip) = v4.ip() else {
        panic!("{v4} is not IPv4")
    };
    [v4, v6, SocketAddr::new(ip.to_ipv6_mapped().into(), port)]
}

/// A UDP socket of the family that `to` is written in.
fn udp_for(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket
}

fn tcp(to: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap();
    let mut name = String::new();
    stream.read_to_string(&mut name).unwrap();
    (stream, name)
}

fn ask(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    let mut buffer = [0; 64];
    socket.send_to(b"who", to)?;
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    ))
}

/// The peer of the TCP socket with this local port, as the kernel knows it:
/// `/proc/net/tcp` and `tcp6`, `<address>:<port>` with addresses as words of host order.
fn kernel_peer(port: u16) -> IpAddr {
    let ending = format!(":{port:04X}");
    for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        for line in std::fs::read_to_string(file).unwrap().lines().skip(1) {
            let mut words = line.split_whitespace().skip(1);
            let (own, peer) = (words.next().unwrap(), words.next().unwrap());
            if !own.ends_with(&ending) {
                continue;
            }
            let hex = peer.split(':').next().unwrap();
            let words = hex.as_bytes().chunks(8).map(|word| {
                let word = std::str::from_utf8(word).unwrap();
                u32::from_str_radix(word, 16).unwrap().to_ne_bytes()
            });
            let bytes: Vec<u8> = words.flatten().collect();
            return match <[u8; 4]>::try_from(&bytes[..]) {
                Ok(v4) => IpAddr::from(v4),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).unwrap()).to_canonical(),
            };
        }
    }
    panic!("no socket with port {port}");
}

#[test]
fn a_connection_goes_to_a_backend_and_believes_in_the_service() {
    if inside(|| {
        for to in ways(80) {
            let (stream, name) = tcp(to);
            assert_eq!(name, "y/b", "{to}");
            assert_eq!(stream.peer_addr().unwrap(), to, "getpeername");
            // Not by packets: the socket itself has the backend's address.
            let v6 = to.ip().to_canonical().is_ipv6();
            let port = stream.local_addr().unwrap().port();
            assert_eq!(kernel_peer(port), B.ip(v6));
            let socket = udp_for(to);
            socket.connect(to).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), to, "getpeername");
            socket.send(b"who").unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"y/b");
        }
    }) {
        return;
    }
    require!(Root, Bpf);
    with_bench(|bench| {
        offered(bench, &[B], &[80]);
        process::run(&mut again(bench, A));
    });
}

#[test]
fn an_unconnected_socket_hears_the_service_answer() {
    if inside(|| {
        for to in ways(80) {
            let socket = udp_for(to);
            for _ in 0..3 {
                assert_eq!(ask(&socket, to).unwrap(), ("y/b".into(), to));
            }
            // A backend that is asked by its own name answers by it.
            let v6 = to.ip().to_canonical().is_ipv6();
            let direct = SocketAddr::new(C.ip(v6), 80);
            if direct.is_ipv6() == to.is_ipv6() {
                assert_eq!(ask(&socket, direct).unwrap(), ("y/c".into(), direct));
            }
        }
    }) {
        return;
    }
    require!(Root, Bpf);
    with_bench(|bench| {
        offered(bench, &[B], &[80]);
        process::run(&mut again(bench, A));
    });
}

#[test]
fn a_port_that_nobody_serves_is_refused_at_the_socket() {
    if inside(|| {
        // First no port of the Service, then one without endpoints.
        for to in ways(81) {
            let error = TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            let socket = udp_for(to);
            let error = socket.send_to(b"who", to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            let error = socket.connect(to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        }
    }) {
        return;
    }
    require!(Root, Bpf);
    with_bench(|bench| {
        offered(bench, &[B], &[80]);
        process::run(&mut again(bench, A));
        // Now it has that port, and no endpoints.
        offered(bench, &[], &[80, 81]);
        process::run(&mut again(bench, A));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service_by_socket() {
    if inside(|| {
        for to in ways(80) {
            let (stream, name) = tcp(to);
            assert_eq!((name.as_str(), stream.peer_addr().unwrap()), ("y/b", to));
            assert_eq!(ask(&udp_for(to), to).unwrap(), ("y/b".into(), to));
        }
    }) {
        return;
    }
    require!(Root, Bpf);
    with_bench(|bench| {
        offered(bench, &[B], &[80]);
        process::run(&mut again(bench, B));
    });
}

#[test]
fn affinity_keeps_a_client_with_its_backend() {
    if inside(|| {
        let sticky = std::env::var(INSIDE).unwrap() == "sticky";
        for v6 in [false, true] {
            let mut met: Vec<String> = (0..40).map(|_| tcp(vip(v6, 80)).1).collect();
            met.sort();
            met.dedup();
            assert_eq!(met.len(), if sticky { 1 } else { 2 }, "{met:?}");
        }
    }) {
        return;
    }
    require!(Root, Bpf);
    with_bench(|bench| {
        offered(bench, &[B, C], &[80]);
        process::run(&mut again(bench, A));
        bench.cluster.services[0].affinity = Some(60);
        bench.apply();
        wait::until("the affinity to be known", DEADLINE, || {
            let services = bench.node.ask(&["services"]);
            let mut services = services.as_array().unwrap().iter();
            services
                .all(|port| port["affinitySeconds"] == 60)
                .then_some(())
        });
        process::run(again(bench, A).env(INSIDE, "sticky"));
    });
}

/// Echoes what comes on one connection.
fn echo(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let accepted = wait::until("a connection", DEADLINE, || listener.accept().ok());
    let mut stream = accepted.0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut byte = [0; 1];
    while stream.read(&mut byte).unwrap_or(0) == 1 && stream.write_all(&byte).is_ok() {}
}

#[test]
fn sockets_follow_the_backends_and_connections_stay() {
    if inside(|| {
        let sockets = ways(80).map(|to| (udp_for(to), to));
        let streams = ways(ECHO).map(|to| TcpStream::connect(to).unwrap());
        let round = |mut stream: &TcpStream| {
            stream.write_all(b"x").unwrap();
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).unwrap();
        };
        for (socket, to) in &sockets {
            assert_eq!(ask(socket, *to).unwrap(), ("y/b".into(), *to));
        }
        streams.iter().for_each(round);
        println!("with b");
        // The Service moves from b to c: the same sockets ask the other backend.
        for (socket, to) in &sockets {
            wait::until("the other backend", DEADLINE, || {
                let (name, from) = ask(socket, *to).ok()?;
                assert_eq!(from, *to);
                (name == "y/c").then_some(())
            });
        }
        streams.iter().for_each(round);
        println!("with c");
    }) {
        return;
    }
    require!(Root, Bpf);
    with_bench(|bench| {
        let listener = bench
            .pod(B)
            .namespace
            .enter(|| TcpListener::bind(("::", ECHO)).unwrap());
        offered(bench, &[B], &[80, ECHO]);
        std::thread::scope(|scope| {
            for _ in ways(ECHO) {
                scope.spawn(|| echo(&listener));
            }
            let mut child = Process::start("the pod's process", &mut again(bench, A));
            child.wait_for_output("with b", DEADLINE);
            offered(bench, &[C], &[80, ECHO]);
            child.wait_for_output("with c", DEADLINE);
            assert!(child.wait(DEADLINE).success(), "{}", child.output());
        });
    });
}

/// What the server that a connected socket has says.
fn says(socket: &UdpSocket) -> std::io::Result<String> {
    let mut buffer = [0; 64];
    socket.send(b"who")?;
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A socket connected to the Service, with the backend of that name.
fn connected(to: SocketAddr, name: &str) -> UdpSocket {
    wait::until("a socket with the backend", DEADLINE, || {
        let socket = udp_for(to);
        socket.connect(to).unwrap();
        (says(&socket).unwrap() == name).then_some(socket)
    })
}

/// Waits until the socket's owner is told that the connection is over: it reads
/// why, once, and has nowhere to send to.
fn aborted(socket: &UdpSocket) {
    let mut error = wait::until("the end of the connection", DEADLINE, || says(socket).err());
    if error.kind() != ErrorKind::ConnectionAborted {
        // It came between two rounds.
        error = socket.recv(&mut [0; 64]).unwrap_err();
    }
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    let error = socket.send(b"who").unwrap_err();
    let nowhere = rustix::io::Errno::DESTADDRREQ.raw_os_error();
    assert_eq!(error.raw_os_error(), Some(nowhere), "{error}");
}

#[test]
fn connected_udp_sockets_hear_that_their_backend_has_gone() {
    if inside(|| {
        let of_b = ways(80).map(|to| (connected(to, "y/b"), to));
        let of_c = ways(80).map(|to| connected(to, "y/c"));
        // Nobody gave this one its address.
        let direct = udp_for(vip(false, 80));
        direct.connect((B.ip(false), 80)).unwrap();
        // Only b listens there.
        let streams = ways(ECHO).map(|to| {
            let stream = wait::until("b", DEADLINE, || TcpStream::connect(to).ok());
            let v6 = to.ip().to_canonical().is_ipv6();
            assert_eq!(
                kernel_peer(stream.local_addr().unwrap().port()),
                B.ip(v6),
                "{to}"
            );
            stream
        });
        println!("with both");
        for (socket, to) in &of_b {
            aborted(socket);
            assert!(socket.peer_addr().is_err(), "{to}");
            socket.connect(*to).unwrap();
            assert_eq!(says(socket).unwrap(), "y/c", "{to}");
            assert_eq!(socket.peer_addr().unwrap(), *to);
        }
        for socket in &of_c {
            assert_eq!(says(socket).unwrap(), "y/c");
        }
        assert_eq!(says(&direct).unwrap(), "y/b");
        for mut stream in &streams {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
        }
        println!("with c");
    }) {
        return;
    }
    require!(Root, Bpf);
    with_bench(|bench| {
        let listener = bench
            .pod(B)
            .namespace
            .enter(|| TcpListener::bind(("::", ECHO)).unwrap());
        offered(bench, &[B, C], &[80, ECHO]);
        let mut places = [
            again(bench, A),
            // One of the node's own, as of a pod with `hostNetwork`.
            again_in(bench, &bench.node.namespace),
        ];
        std::thread::scope(|scope| {
            for _ in places.iter().flat_map(|_| ways(ECHO)) {
                scope.spawn(|| echo(&listener));
            }
            let mut children = places
                .each_mut()
                .map(|place| Process::start("a client", place));
            for child in &mut children {
                child.wait_for_output("with both", DEADLINE);
            }
            offered(bench, &[C], &[80, ECHO]);
            for child in &mut children {
                child.wait_for_output("with c", DEADLINE);
                assert!(child.wait(DEADLINE).success(), "{}", child.output());
            }
        });
    });
}
