//! What needs no policy and no Service: forgery, delivery, neighbours.

use std::net::IpAddr;

use fairlead_tests::generate::pod_ip;
use fairlead_tests::kernel::{Action, UPLINK_IFINDEX, macs, slot};
use fairlead_tests::packet::{Body, Ip, Packet, body, flag, fragments, internet_checksum};
use fairlead_tests::require;
use proxy_ebpf::abi::{Address, Endpoint, kind, pin};
use proxy_ebpf::addr::{V4, V6};
use proxy_ebpf::event::Counter;

use crate::node::{self, endpoint, open, sent_by};

const FAMILIES: [bool; 2] = [false, true];

fn bodies() -> Vec<Body> {
    vec![
        body::tcp(1000, 80, flag::SYN),
        body::udp(1000, 53),
        body::sctp(1000, 9),
        body::echo(7),
        Body::Raw {
            protocol: 47,
            bytes: vec![0; 8],
        },
    ]
}

#[test]
fn a_packet_to_a_pod_of_the_node_goes_straight_into_it() {
    require!(Root, Bpf);
    let mut kernel = open(2);
    for v6 in FAMILIES {
        for body in bodies() {
            let packet = sent_by(0, pod_ip(v6, true, 1), body);
            let run = kernel.from_pod(0, &packet.encode());
            assert_eq!((run.action, &*run.counted), (Action::Redirect, &[][..]));
            let (mac, gateway_mac) = macs(1);
            let expected = Packet {
                mac_src: gateway_mac,
                mac_dst: mac,
                ..packet
            };
            assert_eq!(Packet::decode(&run.frame), Ok(expected));
        }
    }
}

#[test]
fn a_pod_is_found_where_it_is_now_and_not_where_it_was() {
    require!(Root, Bpf);
    for v6 in FAMILIES {
        let mut kernel = open(3);
        let dst = pod_ip(v6, true, 1);
        let packet = sent_by(0, dst, body::tcp(1000, 80, flag::SYN));
        // By the address table, then by what that has taught.
        for _ in 0..2 {
            let run = kernel.from_pod(0, &packet.encode());
            assert_eq!(Packet::decode(&run.frame).unwrap().mac_dst, macs(1).0);
        }
        // The address moves to another endpoint.
        kernel.set_endpoint(slot(1), Endpoint::default());
        let mut moved = endpoint(1);
        (moved.ifindex, moved.mac) = (endpoint(2).ifindex, macs(2).0);
        kernel.set_endpoint(slot(2), moved);
        let address = Address {
            class: 0,
            slot: slot(2),
            kind: kind::LOCAL_POD,
        };
        if v6 {
            let mut addresses = kernel.hash(pin::ADDRESSES_V6);
            addresses.insert(node::v6(dst), address, 0).unwrap();
        } else {
            let mut addresses = kernel.hash(pin::ADDRESSES_V4);
            addresses.insert(node::v4(dst), address, 0).unwrap();
        }
        for _ in 0..2 {
            let run = kernel.from_pod(0, &packet.encode());
            assert_eq!(Packet::decode(&run.frame).unwrap().mac_dst, macs(2).0);
        }
        // Its pod goes, and with it the address.
        kernel.set_endpoint(slot(2), Endpoint::default());
        kernel.clear::<V4, Address>(pin::ADDRESSES_V4);
        kernel.clear::<V6, Address>(pin::ADDRESSES_V6);
        let run = kernel.from_pod(0, &packet.encode());
        assert_eq!((run.action, run.frame), (Action::Pass, packet.encode()));
    }
}

#[test]
fn a_packet_to_anywhere_else_is_the_hosts_unchanged() {
    require!(Root, Bpf);
    let mut kernel = open(1);
    for dst in ["198.51.100.9", "2001:db8:ffff::9"] {
        for body in bodies() {
            let frame = sent_by(0, dst.parse().unwrap(), body).encode();
            let run = kernel.from_pod(0, &frame);
            assert_eq!((run.action, &*run.counted), (Action::Pass, &[][..]));
            assert_eq!(run.frame, frame);
        }
    }
}

#[test]
fn packets_with_options_and_extension_headers_are_understood() {
    require!(Root, Bpf);
    let mut kernel = open(2);
    let mut packet = sent_by(0, pod_ip(false, true, 1), body::tcp(1, 2, flag::SYN));
    packet.ip.options = vec![1; 40];
    assert_eq!(
        kernel.from_pod(0, &packet.encode()).action,
        Action::Redirect
    );
    let mut packet = sent_by(0, pod_ip(true, true, 1), body::udp(1, 2));
    for count in 1..8 {
        packet
            .ip
            .extensions
            .push(fairlead_tests::packet::Extension {
                kind: fairlead_tests::packet::ExtensionKind::Destination,
                data: vec![1, 4, 0, 0, 0, 0],
            });
        let run = kernel.from_pod(0, &packet.encode());
        let dropped = (Action::Drop, vec![Counter::UnsupportedHeader]);
        assert!(
            run.action == Action::Redirect || (run.action, run.counted.clone()) == dropped,
            "{count} headers: {run:?}"
        );
        assert!(
            count > 4 || run.action == Action::Redirect,
            "{count} headers: {run:?}"
        );
    }
}

#[test]
fn a_forged_source_is_dropped() {
    require!(Root, Bpf);
    let mut kernel = open(2);
    for v6 in FAMILIES {
        let honest = sent_by(0, pod_ip(v6, true, 1), body::udp(1, 2));
        let mut wrong = honest.clone();
        wrong.mac_src = macs(1).0;
        let run = kernel.from_pod(0, &wrong.encode());
        assert_eq!(
            (run.action, &*run.counted),
            (Action::Drop, &[Counter::SpoofedMac][..])
        );
        for source in [pod_ip(v6, true, 1), unspecified(v6), loopback(v6)] {
            let mut wrong = honest.clone();
            wrong.ip.src = source;
            let run = kernel.from_pod(0, &wrong.encode());
            assert_eq!(
                (run.action, &*run.counted),
                (Action::Drop, &[Counter::SpoofedAddress][..])
            );
        }
    }
}

fn unspecified(v6: bool) -> IpAddr {
    if v6 {
        "::".parse().unwrap()
    } else {
        "0.0.0.0".parse().unwrap()
    }
}

fn loopback(v6: bool) -> IpAddr {
    if v6 {
        "::1".parse().unwrap()
    } else {
        "127.0.0.1".parse().unwrap()
    }
}

#[test]
fn a_pod_without_an_address_of_the_family_may_not_send() {
    require!(Root, Bpf);
    let mut kernel = open(1);
    kernel.set_endpoint(
        slot(0),
        Endpoint {
            v4: Endpoint::default().v4,
            ..endpoint(0)
        },
    );
    let mut packet = sent_by(0, pod_ip(false, true, 1), body::udp(1, 2));
    packet.ip.src = unspecified(false);
    let run = kernel.from_pod(0, &packet.encode());
    assert_eq!(
        (run.action, &*run.counted),
        (Action::Drop, &[Counter::SpoofedAddress][..])
    );
}

#[test]
fn an_interface_without_endpoint_carries_nothing() {
    require!(Root, Bpf);
    let mut kernel = open(1);
    kernel.set_endpoint(slot(0), Endpoint::default());
    let frame = sent_by(0, pod_ip(false, true, 0), body::udp(1, 2)).encode();
    for run in [
        kernel.from_pod(0, &frame),
        kernel.to_pod(0, &frame, UPLINK_IFINDEX),
    ] {
        assert_eq!(
            (run.action, &*run.counted),
            (Action::Drop, &[Counter::UnknownInterface][..])
        );
    }
}

#[test]
fn what_is_neither_ip_nor_arp_is_dropped() {
    require!(Root, Bpf);
    let mut kernel = open(1);
    let mut frame = sent_by(0, pod_ip(false, true, 0), body::udp(1, 2)).encode();
    frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    for run in [
        kernel.from_pod(0, &frame),
        kernel.to_pod(0, &frame, UPLINK_IFINDEX),
    ] {
        assert_eq!(
            (run.action, &*run.counted),
            (Action::Drop, &[Counter::UnsupportedProtocol][..])
        );
    }
}

#[test]
fn later_fragments_follow_the_first_and_lost_ones_are_dropped() {
    require!(Root, Bpf);
    let mut kernel = open(2);
    for v6 in FAMILIES {
        let mut whole = sent_by(0, pod_ip(v6, true, 1), body::udp(1, 2));
        if let Body::Udp { payload, .. } = &mut whole.ip.body {
            payload.resize(300, 1);
        }
        let pieces = fragments(&whole, 4242, 104);
        let lost = kernel.from_pod(0, &pieces[1].encode());
        assert_eq!(
            (lost.action, &*lost.counted),
            (Action::Drop, &[Counter::FragmentUnknown][..])
        );
        let received: Vec<Packet> = pieces
            .iter()
            .map(|piece| {
                let run = kernel.from_pod(0, &piece.encode());
                assert_eq!(run.action, Action::Redirect, "{run:?}");
                Packet::decode(&run.frame).unwrap()
            })
            .collect();
        assert_eq!(Packet::reassemble(&received).unwrap().ip, whole.ip);
        let mut other = pieces[2].clone();
        other.ip.fragment.as_mut().unwrap().id = 4243;
        assert_eq!(
            kernel.from_pod(0, &other.encode()).counted,
            [Counter::FragmentUnknown]
        );
    }
}

/// An ARP packet from pod 0.
fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let (mac, _) = macs(0);
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

#[test]
fn arp_for_the_gateway_is_answered_and_forged_arp_is_dropped() {
    require!(Root, Bpf);
    let mut kernel = open(1);
    let (mac, gateway_mac) = macs(0);
    let run = kernel.from_pod(0, &arp(1, [10, 1, 0, 1], [169, 254, 1, 1]));
    assert_eq!(run.action, Action::Redirect, "{run:?}");
    assert_eq!(run.frame[..6], mac);
    assert_eq!(run.frame[6..12], gateway_mac);
    let mut answer = vec![0, 1, 8, 0, 6, 4, 0, 2];
    answer.extend(gateway_mac);
    answer.extend([169, 254, 1, 1]);
    answer.extend(mac);
    answer.extend([10, 1, 0, 1]);
    assert_eq!(run.frame[14..42], answer);
    let run = kernel.from_pod(0, &arp(1, [10, 1, 0, 2], [169, 254, 1, 1]));
    assert_eq!(
        (run.action, &*run.counted),
        (Action::Drop, &[Counter::SpoofedAddress][..])
    );
    let mut forged = arp(2, [10, 1, 0, 1], [10, 1, 0, 2]);
    forged[22..28].copy_from_slice(&macs(3).0);
    assert_eq!(kernel.from_pod(0, &forged).counted, [Counter::SpoofedMac]);
}

#[test]
fn neighbour_solicitation_for_the_gateway_is_answered() {
    require!(Root, Bpf);
    let mut kernel = open(1);
    let (mac, gateway_mac) = macs(0);
    let gateway: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(gateway);
    message.extend([1, 1]);
    message.extend(mac);
    let src: IpAddr = pod_ip(true, true, 0);
    let dst: IpAddr = "ff02::1:ff00:1".parse().unwrap();
    let mut ip = Ip::new(
        src,
        dst,
        Body::Raw {
            protocol: 58,
            bytes: message,
        },
    );
    ip.hops = 255;
    let mut frame = Packet::new(mac, [0x33, 0x33, 0xff, 0, 0, 1], ip).encode();
    let check = icmp_v6_checksum(&frame);
    frame[56..58].copy_from_slice(&check);
    let run = kernel.from_pod(0, &frame);
    assert_eq!(run.action, Action::Redirect, "{run:?}");
    let answer = Packet::decode(&run.frame).unwrap();
    assert_eq!((answer.mac_src, answer.mac_dst), (gateway_mac, mac));
    assert_eq!((answer.ip.src, answer.ip.dst), (IpAddr::from(gateway), src));
    assert_eq!(answer.ip.hops, 255);
    let Body::Raw { bytes, .. } = answer.ip.body else {
        panic!("{answer:?}")
    };
    assert_eq!(bytes[0], 136);
    assert_eq!(bytes[4] & 0x60, 0x60, "solicited, override");
    assert_eq!(bytes[8..24], gateway);
    assert_eq!(bytes[24..26], [2, 1]);
    assert_eq!(bytes[26..32], gateway_mac);
}

/// The checksum that the message at offset 54 of a plain IPv6 frame should have,
/// its own field being zero.
fn icmp_v6_checksum(frame: &[u8]) -> [u8; 2] {
    let mut covered = frame[22..54].to_vec();
    let length = u32::try_from(frame.len() - 54).unwrap();
    covered.extend(length.to_be_bytes());
    covered.extend([0, 0, 0, 58]);
    covered.extend(&frame[54..]);
    internet_checksum(&covered).to_be_bytes()
}

#[test]
fn the_host_reaches_its_pods_and_so_do_others_where_nothing_isolates() {
    require!(Root, Bpf);
    let mut kernel = open(1);
    for (src, v6) in [("192.0.2.1", false), ("2001:db8::1", true)] {
        let (mac, gateway_mac) = macs(0);
        let ip = Ip::new(
            src.parse().unwrap(),
            pod_ip(v6, true, 0),
            body::tcp(1, 2, flag::SYN),
        );
        let frame = Packet::new(gateway_mac, mac, ip).encode();
        for from in [0, UPLINK_IFINDEX] {
            let run = kernel.to_pod(0, &frame, from);
            assert_eq!((run.action, &*run.counted), (Action::Pass, &[][..]));
            assert_eq!(run.frame, frame);
        }
    }
}
