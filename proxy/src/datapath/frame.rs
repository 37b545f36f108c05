//! Building the packet that opens a connection, as a pod's kernel would. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_ebpf::addr::proto;
use proxy_ebpf::conntrack::tcp;

/// The opening packet: TCP SYN, SCTP INIT, ICMP echo request, anything else as
/// a bare datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    pub from: IpAddr,
    pub to: IpAddr,
    /// IANA number.
    pub protocol: u8,
    pub source_port: u16,
    /// 0 for protocols without ports.
    pub port: u16,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
}

const HOPS: u8 = 64;

/// The frame from the Ethernet header on. `None`: the families differ.
pub fn build(opening: &Opening) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(opening.destination_mac);
    frame.extend(opening.source_mac);
    let mut body = transport(opening);
    match (opening.from, opening.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(0x0800_u16.to_be_bytes());
            fill_checksum(
                opening.protocol,
                &mut body,
                &v4_pseudo(from, to, opening.protocol),
            );
            frame.extend(v4_header(from, to, opening.protocol, body.len()));
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend(0x86dd_u16.to_be_bytes());
            let pseudo = v6_pseudo(from, to, opening.protocol);
            fill_checksum(opening.protocol, &mut body, &pseudo);
            frame.extend(v6_header(from, to, opening.protocol, body.len()));
        }
        _ => return None,
    }
    frame.extend(body);
    Some(frame)
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes)
        .expect("opening packets are short")
        .to_be_bytes()
}

fn v4_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(length(20 + body));
    // No identification, don't fragment.
    header.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]);
    header.splice(10..12, sum);
    header
}

fn v6_header(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, body: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length(body));
    header.extend([protocol, HOPS]);
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

fn v4_pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Vec<u8> {
    // The length goes with the body: `fill_checksum` adds it.
    [&from.octets()[..], &to.octets(), &[0, protocol]].concat()
}

fn v6_pseudo(from: Ipv6Addr, to: Ipv6Addr, protocol: u8) -> Vec<u8> {
    [&from.octets()[..], &to.octets(), &[0, protocol]].concat()
}

fn transport(opening: &Opening) -> Vec<u8> {
    let ports = [
        opening.source_port.to_be_bytes(),
        opening.port.to_be_bytes(),
    ]
    .concat();
    match opening.protocol {
        proto::TCP => {
            // Sequence 1, no acknowledgement, 20 bytes of header, a window.
            let rest = [
                0,
                0,
                0,
                1,
                0,
                0,
                0,
                0,
                0x50,
                tcp::SYN,
                0xff,
                0xff,
                0,
                0,
                0,
                0,
            ];
            [&ports[..], &rest].concat()
        }
        proto::UDP => [&ports[..], &length(12), &[0, 0], b"ping"].concat(),
        proto::SCTP => {
            // Tag 0; INIT chunk of 20 bytes: tag, window, streams, sequence.
            let init = [1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
            let mut packet = [&ports[..], &[0; 8], &init].concat();
            let sum = crc32c(&packet).to_le_bytes();
            packet.splice(8..12, sum);
            packet
        }
        proto::ICMP => echo(8, opening.source_port),
        proto::ICMPV6 => echo(128, opening.source_port),
        _ => b"ping".to_vec(),
    }
}

fn echo(kind: u8, identifier: u16) -> Vec<u8> {
    [
        &[kind, 0, 0, 0][..],
        &identifier.to_be_bytes(),
        &[0, 1],
        b"ping",
    ]
    .concat()
}

/// Puts the Internet checksum where the protocol has one.
fn fill_checksum(protocol: u8, body: &mut Vec<u8>, pseudo: &[u8]) {
    let pseudo = [pseudo, &length(body.len())].concat();
    let (at, sum) = match protocol {
        proto::TCP => (16, checksum(&[&pseudo, body])),
        proto::UDP => (6, checksum(&[&pseudo, body])),
        proto::ICMPV6 => (2, checksum(&[&pseudo, body])),
        proto::ICMP => (2, checksum(&[body])),
        _ => return,
    };
    body.splice(at..at + 2, sum);
}

/// RFC 1071 over parts of even length (but the last), in wire order.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let pairs = parts.iter().flat_map(|part| part.chunks(2));
    let words = pairs.map(|pair| match pair {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).expect("folded to 16 bits");
    sum.to_be_bytes()
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc = (crc >> 1) ^ if low == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(protocol: u8, v6: bool) -> Opening {
        let ip = |last: u8| -> IpAddr {
            if v6 {
                [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last].into()
            } else {
                [10, 0, 0, last].into()
            }
        };
        Opening {
            from: ip(1),
            to: ip(2),
            protocol,
            source_port: 40_000,
            port: 80,
            source_mac: [2; 6],
            destination_mac: [4; 6],
        }
    }

    #[test]
    fn checksums_add_up_to_nothing() {
        for (protocol, v6) in [
            (proto::TCP, false),
            (proto::TCP, true),
            (proto::UDP, false),
            (proto::UDP, true),
            (proto::ICMPV6, true),
        ] {
            let frame = build(&opening(protocol, v6)).unwrap();
            let (addresses, body) = if v6 { (22..54, 54) } else { (26..34, 34) };
            let length = length(frame.len() - body);
            let pseudo = [&frame[addresses], &length, &[0, protocol]].concat();
            assert_eq!(
                checksum(&[&pseudo, &frame[body..]]),
                [0, 0],
                "{protocol} {v6}"
            );
        }
        let frame = build(&opening(proto::ICMP, false)).unwrap();
        assert_eq!(checksum(&[&frame[34..]]), [0, 0]);
        assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
    }

    #[test]
    fn sctp_has_the_castagnoli_checksum() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let frame = build(&opening(proto::SCTP, false)).unwrap();
        let mut packet = frame[34..].to_vec();
        let sum = u32::from_le_bytes(packet[8..12].try_into().unwrap());
        packet[8..12].fill(0);
        assert_eq!(sum, crc32c(&packet));
    }

    #[test]
    fn ends_of_two_families_make_no_packet() {
        let mut mixed = opening(proto::TCP, false);
        mixed.to = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(build(&mixed), None);
    }
}
