//! Bytes to values, strictly: a wrong length or checksum is an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{crc32c, internet_checksum, with_pseudo_header};
use super::{Body, Extension, ExtensionKind, Fragment, IcmpError, Ip, Packet, protocol};

/// Why bytes are not a packet that a receiver would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    Truncated(&'static str),
    Checksum(&'static str),
    Length(&'static str),
    EtherType(u16),
}

use DecodeError::{Checksum, Length, Truncated};

type Result<T> = std::result::Result<T, DecodeError>;

impl Packet {
    pub fn decode(frame: &[u8]) -> Result<Self> {
        let (head, rest) = frame.split_at_checked(14).ok_or(Truncated("ethernet"))?;
        let ip = match be16(head, 12) {
            0x0800 => Ip::decode_v4(rest, true)?,
            0x86dd => Ip::decode_v6(rest, true)?,
            other => return Err(DecodeError::EtherType(other)),
        };
        let mac = |at: usize| head[at..at + 6].try_into().expect("6 bytes");
        Ok(Self {
            mac_src: mac(6),
            mac_dst: mac(0),
            ip,
        })
    }

    /// Puts fragments together again; they may be in any order.
    pub fn reassemble(pieces: &[Self]) -> Result<Self> {
        let mut sorted: Vec<&Self> = pieces.iter().collect();
        sorted.sort_by_key(|piece| piece.ip.fragment.map_or(0, |fragment| fragment.offset));
        let mut bytes = Vec::new();
        for piece in &sorted {
            let Body::Raw { bytes: part, .. } = &piece.ip.body else {
                return Err(Length("not a fragment"));
            };
            if piece
                .ip
                .fragment
                .map(|fragment| usize::from(fragment.offset))
                != Some(bytes.len())
            {
                return Err(Length("a hole between fragments"));
            }
            bytes.extend(part);
        }
        let mut whole = (*sorted.first().ok_or(Truncated("no fragments"))?).clone();
        let number = whole.ip.protocol();
        whole.ip.fragment = None;
        whole.ip.body = decode_body(&whole.ip, number, &bytes, true)?;
        Ok(whole)
    }
}

impl Ip {
    /// `whole`: nothing is cut off; false inside ICMP errors, where neither
    /// length nor transport checksum is looked at.
    fn decode(bytes: &[u8], whole: bool) -> Result<Self> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::decode_v4(bytes, whole),
            Some(6) => Self::decode_v6(bytes, whole),
            _ => Err(Truncated("inner packet")),
        }
    }

    fn decode_v4(bytes: &[u8], whole: bool) -> Result<Self> {
        let length = usize::from(bytes.first().ok_or(Truncated("IPv4"))? & 15) * 4;
        if length < 20 {
            return Err(Length("IPv4 header"));
        }
        let header = bytes.get(..length).ok_or(Truncated("IPv4"))?;
        if internet_checksum(header) != 0 {
            return Err(Checksum("IPv4 header"));
        }
        let total = usize::from(be16(header, 2));
        if whole && total != bytes.len() {
            return Err(Length("IPv4 total length"));
        }
        let address = |at: usize| {
            let octets: [u8; 4] = header[at..at + 4].try_into().expect("4 bytes");
            IpAddr::V4(Ipv4Addr::from(octets))
        };
        let bits = be16(header, 6);
        let (offset, more) = ((bits & 0x1fff) * 8, bits & 0x2000 != 0);
        let fragment = (offset != 0 || more).then(|| Fragment {
            id: u32::from(be16(header, 4)),
            offset,
            more,
        });
        let mut ip = Self {
            src: address(12),
            dst: address(16),
            hops: header[8],
            class: header[1],
            fragment,
            options: header[20..].to_vec(),
            extensions: Vec::new(),
            body: Body::Raw {
                protocol: header[9],
                bytes: Vec::new(),
            },
        };
        let body = &bytes[length..total.clamp(length, bytes.len())];
        ip.body = decode_body(&ip, header[9], body, whole)?;
        Ok(ip)
    }

    fn decode_v6(bytes: &[u8], whole: bool) -> Result<Self> {
        let (header, mut rest) = bytes.split_at_checked(40).ok_or(Truncated("IPv6"))?;
        if whole && usize::from(be16(header, 4)) != rest.len() {
            return Err(Length("IPv6 payload length"));
        }
        let address = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().expect("16 bytes");
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let mut next = header[6];
        let mut extensions = Vec::new();
        let mut fragment = None;
        loop {
            let kind = match next {
                0 => ExtensionKind::HopByHop,
                43 => ExtensionKind::Routing,
                60 => ExtensionKind::Destination,
                44 => {
                    let (head, after) = rest.split_at_checked(8).ok_or(Truncated("fragment"))?;
                    let bits = be16(head, 2);
                    let id = u32::from_be_bytes(head[4..8].try_into().expect("4 bytes"));
                    fragment = Some(Fragment {
                        id,
                        offset: bits & !7,
                        more: bits & 1 != 0,
                    });
                    next = head[0];
                    rest = after;
                    // What follows is a piece; only the first one starts with a header.
                    break;
                }
                _ => break,
            };
            let length = 8 + usize::from(*rest.get(1).ok_or(Truncated("extension"))?) * 8;
            let (head, after) = rest
                .split_at_checked(length)
                .ok_or(Truncated("extension"))?;
            extensions.push(Extension {
                kind,
                data: head[2..].to_vec(),
            });
            next = head[0];
            rest = after;
        }
        let mut ip = Self {
            src: address(8),
            dst: address(24),
            hops: header[7],
            class: (header[0] << 4) | (header[1] >> 4),
            fragment,
            options: Vec::new(),
            extensions,
            body: Body::Raw {
                protocol: next,
                bytes: Vec::new(),
            },
        };
        ip.body = decode_body(&ip, next, rest, whole)?;
        Ok(ip)
    }
}

fn decode_body(ip: &Ip, number: u8, bytes: &[u8], whole: bool) -> Result<Body> {
    let raw = || Body::Raw {
        protocol: number,
        bytes: bytes.to_vec(),
    };
    if ip.fragment.is_some() {
        return Ok(raw());
    }
    let sum = |what| {
        let wrong = with_pseudo_header(ip.src, ip.dst, number, bytes) != 0;
        if whole && wrong {
            Err(Checksum(what))
        } else {
            Ok(())
        }
    };
    let icmp = if ip.is_v6() {
        protocol::ICMPV6
    } else {
        protocol::ICMP
    };
    match number {
        protocol::TCP if bytes.len() >= 20 => {
            sum("TCP")?;
            let length = usize::from(bytes[12] >> 4) * 4;
            Ok(Body::Tcp {
                sport: be16(bytes, 0),
                dport: be16(bytes, 2),
                flags: bytes[13],
                seq: u32::from_be_bytes(bytes[4..8].try_into().expect("4 bytes")),
                payload: bytes.get(length..).ok_or(Length("TCP header"))?.to_vec(),
            })
        }
        protocol::UDP if bytes.len() >= 8 => {
            let checksum = be16(bytes, 6) != 0;
            if checksum {
                sum("UDP")?;
            }
            decode_udp(ip, bytes, whole, checksum)
        }
        protocol::SCTP if bytes.len() >= 12 => {
            let mut zeroed = bytes.to_vec();
            zeroed[8..12].fill(0);
            if whole && crc32c(&zeroed).to_le_bytes() != bytes[8..12] {
                return Err(Checksum("SCTP"));
            }
            Ok(Body::Sctp {
                sport: be16(bytes, 0),
                dport: be16(bytes, 2),
                tag: u32::from_be_bytes(bytes[4..8].try_into().expect("4 bytes")),
                payload: bytes[12..].to_vec(),
            })
        }
        // The stub of a transport header that an ICMP error must quote: 8 bytes.
        protocol::TCP if !whole && bytes.len() >= 8 => Ok(Body::Tcp {
            sport: be16(bytes, 0),
            dport: be16(bytes, 2),
            flags: 0,
            seq: u32::from_be_bytes(bytes[4..8].try_into().expect("4 bytes")),
            payload: Vec::new(),
        }),
        number if number == icmp && bytes.len() >= 8 => decode_icmp(ip, bytes, whole),
        _ if whole && matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP) => {
            Err(Truncated("transport header"))
        }
        _ => Ok(raw()),
    }
}

fn decode_udp(ip: &Ip, bytes: &[u8], whole: bool, checksum: bool) -> Result<Body> {
    if !checksum && ip.is_v6() && whole {
        return Err(Checksum("UDP over IPv6 has none"));
    }
    if whole && usize::from(be16(bytes, 4)) != bytes.len() {
        return Err(Length("UDP"));
    }
    Ok(Body::Udp {
        sport: be16(bytes, 0),
        dport: be16(bytes, 2),
        checksum,
        payload: bytes[8..].to_vec(),
    })
}

fn decode_icmp(ip: &Ip, bytes: &[u8], whole: bool) -> Result<Body> {
    let v6 = ip.is_v6();
    let sum = if v6 {
        with_pseudo_header(ip.src, ip.dst, protocol::ICMPV6, bytes)
    } else {
        internet_checksum(bytes)
    };
    if whole && sum != 0 {
        return Err(Checksum("ICMP"));
    }
    let (kind, code) = (bytes[0], bytes[1]);
    if let Some(reply) = match (v6, kind) {
        (false, 8) | (true, 128) => Some(false),
        (false, 0) | (true, 129) => Some(true),
        _ => None,
    } {
        return Ok(Body::Echo {
            reply,
            id: be16(bytes, 4),
            seq: be16(bytes, 6),
            payload: bytes[8..].to_vec(),
        });
    }
    let mtu = be16(bytes, 6);
    let known = [
        IcmpError::PortUnreachable,
        IcmpError::TooBig { mtu },
        IcmpError::TimeExceeded,
    ];
    for error in known {
        let (error_kind, error_code, _) = error.head(v6);
        if (kind, code) == (error_kind, error_code) {
            let inner = Box::new(Ip::decode(&bytes[8..], false)?);
            return Ok(Body::Error { error, inner });
        }
    }
    let number = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
    Ok(Body::Raw {
        protocol: number,
        bytes: bytes.to_vec(),
    })
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
