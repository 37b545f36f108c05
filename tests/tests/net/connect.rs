//! Plain connectivity, with nothing in the way: every protocol, both families,
//! large transfers, Services, path MTU.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use fairlead_tests::process::{self, Process};
use fairlead_tests::require;
use fairlead_tests::traffic::{Met, Transport, probe};
use fairlead_tests::wait;

use crate::bench::{Bench, Who, with_bench};
use crate::service::{VIPS, of, offer, vip};

const A: Who = Who { ns: "x", pod: "a" };
const B: Who = Who { ns: "y", pod: "b" };
const DEADLINE: Duration = Duration::from_secs(20);

fn address(bench: &Bench, who: Who, v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(bench.pod(who).ip(v6), port)
}

#[test]
fn tcp_udp_and_sctp_pass_in_both_families() {
    require!(Root, Bpf);
    with_bench(|bench| {
        bench.apply();
        for v6 in [false, true] {
            for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
                wait::until("a pod to reach a pod", DEADLINE, || {
                    let met = bench.probe(A, B, v6, transport, 80);
                    (met == Met::Server("y/b".into())).then_some(())
                });
            }
        }
    });
}

#[test]
fn a_closed_port_refuses_at_once() {
    require!(Root, Bpf);
    with_bench(|bench| {
        bench.apply();
        for v6 in [false, true] {
            wait::until("a refusal", DEADLINE, || {
                (bench.probe(A, B, v6, Transport::Tcp, 4444) == Met::Refused).then_some(())
            });
            // The error comes back through the programs: ICMP port unreachable.
            wait::until("a port unreachable", DEADLINE, || {
                (bench.probe(A, B, v6, Transport::Udp, 4444) == Met::Refused).then_some(())
            });
        }
    });
}

#[test]
fn pods_ping_each_other_and_the_node_pings_them() {
    require!(Root, Bpf, Program("ping"));
    with_bench(|bench| {
        bench.apply();
        let ping = |command: &mut Command, ip: IpAddr| {
            command.args(["-c", "1", "-W", "2", &ip.to_string()]);
            process::output(command).status.success()
        };
        for v6 in [false, true] {
            let ip = bench.pod(B).ip(v6);
            wait::until("an echo", DEADLINE, || {
                ping(&mut bench.pod(A).namespace.command("ping"), ip).then_some(())
            });
            wait::until("an echo to the node", DEADLINE, || {
                ping(&mut bench.node.namespace.command("ping"), ip).then_some(())
            });
        }
    });
}

#[test]
fn a_service_leads_to_its_pod_and_a_pod_to_itself() {
    require!(Root, Bpf);
    with_bench(|bench| {
        offer(bench, &[of(B)], &[80]);
        for vip in VIPS {
            let vip = SocketAddr::new(vip.parse().unwrap(), 80);
            for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
                for client in [A, B] {
                    let what = format!("{transport:?} from {client:?} through {vip}");
                    wait::until(&what, DEADLINE, || {
                        let met = probe(&bench.pod(client).namespace, transport, vip);
                        (met == Met::Server("y/b".into())).then_some(())
                    });
                }
            }
        }
    });
}

#[test]
fn a_service_without_endpoints_and_an_unknown_port_refuse_at_once() {
    require!(Root, Bpf);
    with_bench(|bench| {
        offer(bench, &[of(B)], &[80]);
        for slice in &mut bench.cluster.services[0].slices {
            slice.endpoints.clear();
        }
        bench.apply();
        for vip in VIPS {
            for (transport, port) in [
                (Transport::Tcp, 80),
                (Transport::Udp, 80),
                (Transport::Tcp, 81),
                (Transport::Udp, 81),
            ] {
                let vip = SocketAddr::new(vip.parse().unwrap(), port);
                wait::until("a refusal", DEADLINE, || {
                    let met = probe(&bench.pod(A).namespace, transport, vip);
                    (met == Met::Refused).then_some(())
                });
            }
        }
    });
}

const BYTES: usize = 64 << 20;

/// Bytes and packets that a pod has received. What the sender's segmentation
/// offload has left whole counts as one packet.
fn received(bench: &Bench, who: Who) -> (u64, u64) {
    let text = bench.pod(who).namespace.ip("-s -j link show dev eth0");
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    let count = |what: &str| links[0]["stats64"]["rx"][what].as_u64().unwrap();
    (count("bytes"), count("packets"))
}

#[test]
fn sixty_four_megabytes_arrive_whole_in_large_segments() {
    require!(Root, Bpf);
    with_bench(|bench| {
        // Tests are outside of the cgroup: the Service is served packet by packet.
        offer(bench, &[of(B)], &[80, 4080]);
        for v6 in [false, true] {
            let listener = bench
                .pod(B)
                .namespace
                .enter(|| TcpListener::bind(("::", 4080)).unwrap());
            wait::until("the Service", DEADLINE, || {
                probe(&bench.pod(A).namespace, Transport::Tcp, vip(v6, 80))
                    .is_server()
                    .then_some(())
            });
            for to in [address(bench, B, v6, 4080), vip(v6, 4080)] {
                let before = received(bench, B);
                transfer(bench, &listener, to, BYTES);
                let after = received(bench, B);
                let mean = (after.0 - before.0) / (after.1 - before.1);
                assert!(mean > 8 * 1500, "{mean} bytes in a packet to {to}");
            }
        }
    });
}

/// Sends `bytes` from pod A to the listener; every byte must be what was sent.
fn transfer(bench: &Bench, listener: &TcpListener, to: SocketAddr, bytes: usize) {
    let pattern = |at: usize| u8::try_from(at % 251).unwrap();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut buffer = vec![0; 1 << 16];
            let mut seen = 0;
            loop {
                let count = stream.read(&mut buffer).unwrap();
                if count == 0 {
                    return seen;
                }
                for (offset, byte) in buffer[..count].iter().enumerate() {
                    assert_eq!(*byte, pattern(seen + offset), "byte {}", seen + offset);
                }
                seen += count;
            }
        });
        let mut stream = bench
            .pod(A)
            .namespace
            .enter(|| TcpStream::connect_timeout(&to, DEADLINE).unwrap());
        let chunk = 251 * 256;
        let data: Vec<u8> = (0..chunk).map(pattern).collect();
        let mut sent = 0;
        while sent < bytes {
            stream.write_all(&data).unwrap();
            sent += chunk;
        }
        drop(stream);
        assert_eq!(receiver.join().unwrap(), sent);
    });
}

#[test]
fn throughput_shows_that_segmentation_offload_is_intact() {
    require!(Root, Bpf, Program("iperf3"));
    with_bench(|bench| {
        bench.apply();
        let mut server = bench.pod(B).namespace.command("iperf3");
        server.args(["--server", "--one-off", "--forceflush", "--port", "5201"]);
        let mut server = Process::start("iperf3", &mut server);
        server.wait_for_output("listening", DEADLINE);
        let to = bench.pod(B).ip(false).to_string();
        let mut client = bench.pod(A).namespace.command("iperf3");
        client.args(["--client", &to, "--time", "2", "--json"]);
        let text = process::run(&mut client);
        let result: serde_json::Value = serde_json::from_str(&text).unwrap();
        let bits = result["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .unwrap();
        // Packets of one MTU each come nowhere near it on two cores.
        assert!(bits > 3e9, "{bits} bits/s");
    });
}

#[test]
fn datagrams_larger_than_the_mtu_arrive_in_fragments() {
    require!(Root, Bpf);
    with_bench(|bench| {
        offer(bench, &[of(B)], &[80]);
        for v6 in [false, true] {
            let server = bench
                .pod(B)
                .namespace
                .enter(|| UdpSocket::bind(("::", 0)).unwrap());
            server.set_read_timeout(Some(DEADLINE)).unwrap();
            let to = address(bench, B, v6, server.local_addr().unwrap().port());
            let client = bench
                .pod(A)
                .namespace
                .enter(|| UdpSocket::bind(("::", 0)).unwrap());
            let data: Vec<u8> = (0..8000_u32).map(|i| i.to_le_bytes()[0]).collect();
            client.send_to(&data, to).unwrap();
            let mut buffer = vec![0; 9000];
            let (length, _) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], data);
        }
    });
}
