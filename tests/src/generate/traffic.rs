//! Random packets: to pods, Services, nodes and the world; answers to and
//! errors about earlier ones; fragments; forgeries.

use std::net::IpAddr;

use super::{PORTS, SERVICES, pod_ip, service_ip, world_ip};
use crate::cluster::Cluster;
use crate::generate::LOCAL_PODS;
use crate::packet::{Body, Extension, ExtensionKind, IcmpError, Ip, body, flag};
use crate::random::Random;

/// A packet and where it enters.
#[derive(Clone, Debug)]
pub struct Step {
    pub entry: Entry,
    pub ip: Ip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Sent by local pod number `.0`.
    Pod(usize),
    /// As from a pod, with a MAC address that is not its own.
    WrongMac(usize),
    /// To local pod number `to`, from another machine.
    Outside { to: usize },
    /// To local pod number `.0`, from the node itself.
    Host(usize),
}

/// A packet that went on, as it went on.
#[derive(Clone, Debug)]
pub struct Sent {
    pub ip: Ip,
}

/// The next packet, given those before.
pub fn step(random: &mut Random, cluster: &Cluster, before: &[Sent]) -> Step {
    if !before.is_empty() {
        let earlier = random.pick(before).clone();
        match random.below(10) {
            0..=3 => {
                if let Some(step) = answer(random, cluster, &earlier.ip) {
                    return step;
                }
            }
            4 => {
                if let Some(step) = error(random, cluster, &earlier.ip) {
                    return step;
                }
            }
            _ => {}
        }
    }
    fresh(random, cluster)
}

fn fresh(random: &mut Random, cluster: &Cluster) -> Step {
    let v6 = random.chance(50);
    let pod = random.below(LOCAL_PODS);
    let own = pod_ip(v6, true, pod);
    if random.chance(10) {
        let src = match random.below(3) {
            0 => world_ip(random, v6),
            1 => pod_ip(v6, false, random.below(3)),
            _ => *random.pick(&node_ips(cluster, v6)),
        };
        let local = cluster.is_local_node(src);
        let ip = Ip::new(src, own, some_body(random));
        let entry = if local {
            Entry::Host(pod)
        } else {
            Entry::Outside { to: pod }
        };
        return Step { entry, ip };
    }
    let dst = destination(random, cluster, v6);
    let mut ip = Ip::new(own, dst, some_body(random));
    let mut entry = Entry::Pod(pod);
    match random.below(40) {
        0 => entry = Entry::WrongMac(pod),
        1 => ip.src = pod_ip(v6, true, random.below(LOCAL_PODS)),
        2 => ip.src = world_ip(random, v6),
        3 | 4 => decorate(random, &mut ip),
        _ => {}
    }
    Step { entry, ip }
}

fn node_ips(cluster: &Cluster, v6: bool) -> Vec<IpAddr> {
    let all = cluster.nodes.iter().flat_map(|node| node.addresses.clone());
    all.filter(|ip| ip.is_ipv6() == v6).collect()
}

fn destination(random: &mut Random, cluster: &Cluster, v6: bool) -> IpAddr {
    match random.below(20) {
        0 => *random.pick(&node_ips(cluster, v6)),
        1 | 2 => world_ip(random, v6),
        3 | 4 => pod_ip(v6, false, random.below(3)),
        5..=10 => {
            let index = random.below(cluster.services.len().max(1));
            service_ip(v6, index)
        }
        _ => pod_ip(v6, true, random.below(LOCAL_PODS)),
    }
}

fn some_body(random: &mut Random) -> Body {
    // Few client ports, so that flows meet and collide.
    let client = 40_000 + u16::try_from(random.below(4)).expect("four");
    let server = if random.chance(90) {
        *random.pick(&PORTS)
    } else {
        random.port()
    };
    let (sport, dport) = if random.chance(85) {
        (client, server)
    } else {
        (server, client)
    };
    match random.below(20) {
        0..=8 => {
            let flags = *random.pick(&[
                flag::SYN,
                flag::SYN,
                flag::SYN,
                flag::ACK,
                flag::SYN | flag::ACK,
                flag::FIN | flag::ACK,
                flag::RST,
                flag::PSH | flag::ACK,
            ]);
            body::tcp(sport, dport, flags)
        }
        9..=13 => body::udp(sport, dport),
        14 | 15 => body::sctp(sport, dport),
        16 | 17 => body::echo(client),
        18 => body::echo_reply(client),
        // GRE.
        _ => Body::Raw {
            protocol: 47,
            bytes: vec![0; 8],
        },
    }
}

/// Options or extension headers.
fn decorate(random: &mut Random, ip: &mut Ip) {
    if ip.is_v6() {
        let kinds = [
            ExtensionKind::HopByHop,
            ExtensionKind::Routing,
            ExtensionKind::Destination,
        ];
        for kind in &kinds[random.below(3)..] {
            // One padding option; of a routing header: type 0, no segments left.
            let data = if *kind == ExtensionKind::Routing {
                vec![0; 6]
            } else {
                vec![1, 4, 0, 0, 0, 0]
            };
            ip.extensions.push(Extension { kind: *kind, data });
        }
    } else {
        ip.options = vec![1; 4 * (1 + random.below(10))];
    }
}

/// Where a packet from this address enters, if it can be made to.
fn entry_of(cluster: &Cluster, src: IpAddr, dst: IpAddr) -> Option<Entry> {
    let number = |ip: IpAddr| (0..LOCAL_PODS).find(|pod| pod_ip(ip.is_ipv6(), true, *pod) == ip);
    // No machine has a Service's address.
    if (0..SERVICES).any(|index| service_ip(src.is_ipv6(), index) == src) {
        return None;
    }
    match (number(src), number(dst)) {
        (Some(pod), _) => Some(Entry::Pod(pod)),
        (None, Some(pod)) if cluster.is_local_node(src) => Some(Entry::Host(pod)),
        (None, Some(pod)) => Some(Entry::Outside { to: pod }),
        (None, None) => None,
    }
}

/// What the receiver of a packet answers.
fn answer(random: &mut Random, cluster: &Cluster, earlier: &Ip) -> Option<Step> {
    let mut ip = earlier.clone();
    (ip.src, ip.dst) = (earlier.dst, earlier.src);
    ip.fragment = None;
    match &mut ip.body {
        Body::Tcp {
            sport,
            dport,
            flags,
            ..
        } => {
            std::mem::swap(sport, dport);
            *flags = match *flags {
                flag::SYN => flag::SYN | flag::ACK,
                _ => *random.pick(&[flag::ACK, flag::ACK, flag::FIN | flag::ACK, flag::RST]),
            };
        }
        Body::Udp { sport, dport, .. } | Body::Sctp { sport, dport, .. } => {
            std::mem::swap(sport, dport);
        }
        Body::Echo { reply, .. } => *reply = !*reply,
        Body::Error { .. } => return None,
        Body::Raw { .. } => {}
    }
    let entry = entry_of(cluster, ip.src, ip.dst)?;
    Some(Step { entry, ip })
}

/// An error that the receiver of a packet sends about it.
fn error(random: &mut Random, cluster: &Cluster, earlier: &Ip) -> Option<Step> {
    if matches!(earlier.body, Body::Error { .. }) || earlier.fragment.is_some() {
        return None;
    }
    let error = *random.pick(&[
        IcmpError::PortUnreachable,
        IcmpError::TooBig { mtu: 1280 },
        IcmpError::TimeExceeded,
    ]);
    let body = Body::Error {
        error,
        inner: Box::new(earlier.clone()),
    };
    let ip = Ip::new(earlier.dst, earlier.src, body);
    let entry = entry_of(cluster, ip.src, ip.dst)?;
    Some(Step { entry, ip })
}
