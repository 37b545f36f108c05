//! Values to bytes.

use std::net::IpAddr;

use super::checksum::{crc32c, internet_checksum, with_pseudo_header};
use super::{Body, Fragment, IcmpError, Ip, Packet, protocol};

const FRAGMENT_HEADER: u8 = 44;

impl Packet {
    /// The frame, all lengths and checksums right.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(self.mac_dst);
        bytes.extend(self.mac_src);
        bytes.extend(if self.ip.is_v6() {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        });
        bytes.extend(self.ip.encode());
        bytes
    }
}

impl Ip {
    /// The IP packet.
    pub fn encode(&self) -> Vec<u8> {
        let payload = self.encode_body();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                assert!(self.extensions.is_empty(), "IPv4 has no extension headers");
                assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
                let words = 5 + self.options.len() / 4;
                let mut header = vec![0x40 | low(words), self.class];
                header.extend(be16(words * 4 + payload.len()));
                let (id, flags) = match self.fragment {
                    // "Do not fragment", as the kernel's own TCP.
                    None => (0, 0x4000),
                    Some(Fragment { id, offset, more }) => {
                        (id, (offset / 8) | if more { 0x2000 } else { 0 })
                    }
                };
                header.extend(be16(usize::try_from(id).expect("16 bits for IPv4")));
                header.extend(flags.to_be_bytes());
                header.extend([self.hops, self.protocol(), 0, 0]);
                header.extend(src.octets());
                header.extend(dst.octets());
                header.extend(&self.options);
                let check = internet_checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&check);
                header.extend(payload);
                header
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                assert!(self.options.is_empty(), "IPv6 has no options");
                let (first, chain) = self.encode_extensions();
                let mut header = vec![0x60 | (self.class >> 4), self.class << 4, 0, 0];
                header.extend(be16(chain.len() + payload.len()));
                header.extend([first, self.hops]);
                header.extend(src.octets());
                header.extend(dst.octets());
                header.extend(chain);
                header.extend(payload);
                header
            }
            _ => panic!("one family per packet"),
        }
    }

    /// The first header's number and the chain up to the transport header. A
    /// fragment header comes last.
    fn encode_extensions(&self) -> (u8, Vec<u8>) {
        let mut numbers: Vec<u8> = self.extensions.iter().map(|e| e.kind.number()).collect();
        numbers.extend(self.fragment.map(|_| FRAGMENT_HEADER));
        numbers.push(self.protocol());
        let mut chain = Vec::new();
        for (extension, next) in self.extensions.iter().zip(&numbers[1..]) {
            let length = extension.data.len() + 2;
            assert!(
                length.is_multiple_of(8),
                "extension headers are multiples of 8"
            );
            chain.extend([*next, low(length / 8 - 1)]);
            chain.extend(&extension.data);
        }
        if let Some(Fragment { id, offset, more }) = self.fragment {
            chain.extend([self.protocol(), 0]);
            chain.extend((offset | u16::from(more)).to_be_bytes());
            chain.extend(id.to_be_bytes());
        }
        (numbers[0], chain)
    }

    /// The transport header and payload, checksum included.
    pub(super) fn encode_body(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match &self.body {
            Body::Tcp {
                sport,
                dport,
                flags,
                seq,
                payload,
            } => {
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                bytes.extend(seq.to_be_bytes());
                bytes.extend([0, 0, 0, 0, 0x50, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(payload);
                self.sum_at(&mut bytes, 16);
            }
            Body::Udp {
                sport,
                dport,
                checksum,
                payload,
            } => {
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                bytes.extend(be16(8 + payload.len()));
                bytes.extend([0, 0]);
                bytes.extend(payload);
                if *checksum {
                    self.sum_at(&mut bytes, 6);
                    if bytes[6..8] == [0, 0] {
                        bytes[6..8].copy_from_slice(&[0xff, 0xff]);
                    }
                }
            }
            Body::Sctp {
                sport,
                dport,
                tag,
                payload,
            } => {
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(payload);
                let crc = crc32c(&bytes).to_le_bytes();
                bytes[8..12].copy_from_slice(&crc);
            }
            Body::Echo { .. } | Body::Error { .. } => return self.encode_icmp(),
            Body::Raw { bytes: raw, .. } => bytes.extend(raw),
        }
        bytes
    }

    fn encode_icmp(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match &self.body {
            Body::Echo {
                reply,
                id,
                seq,
                payload,
            } => {
                let kind = match (self.is_v6(), reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                bytes.extend([kind, 0, 0, 0]);
                bytes.extend(id.to_be_bytes());
                bytes.extend(seq.to_be_bytes());
                bytes.extend(payload);
            }
            Body::Error { error, inner } => {
                let (kind, code, rest) = error.head(self.is_v6());
                bytes.extend([kind, code, 0, 0]);
                bytes.extend(rest.to_be_bytes());
                bytes.extend(inner.encode());
            }
            other => panic!("not an ICMP message that is built here: {other:?}"),
        }
        self.sum_icmp(&mut bytes);
        bytes
    }

    /// Fills in the checksum at `at`, zero so far, pseudo header included.
    fn sum_at(&self, bytes: &mut [u8], at: usize) {
        let check = with_pseudo_header(self.src, self.dst, self.protocol(), bytes);
        bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }

    fn sum_icmp(&self, bytes: &mut [u8]) {
        if self.protocol() == protocol::ICMPV6 {
            self.sum_at(bytes, 2);
        } else {
            let check = internet_checksum(bytes).to_be_bytes();
            bytes[2..4].copy_from_slice(&check);
        }
    }
}

impl IcmpError {
    /// Type, code and the four bytes that follow the checksum.
    pub(super) fn head(self, v6: bool) -> (u8, u8, u32) {
        match (self, v6) {
            (Self::PortUnreachable, false) => (3, 3, 0),
            (Self::PortUnreachable, true) => (1, 4, 0),
            (Self::TooBig { mtu }, false) => (3, 4, u32::from(mtu)),
            (Self::TooBig { mtu }, true) => (2, 0, u32::from(mtu)),
            (Self::TimeExceeded, false) => (11, 0, 0),
            (Self::TimeExceeded, true) => (3, 0, 0),
        }
    }
}

/// Cuts a packet into fragments of at most `size` payload bytes (rounded down to 8).
pub fn fragments(whole: &Packet, id: u32, size: usize) -> Vec<Packet> {
    let bytes = whole.ip.encode_body();
    let size = (size / 8).max(1) * 8;
    let count = bytes.len().div_ceil(size);
    bytes
        .chunks(size)
        .enumerate()
        .map(|(index, piece)| {
            let mut fragment = whole.clone();
            fragment.ip.fragment = Some(Fragment {
                id,
                offset: u16::try_from(index * size).expect("packets are small"),
                more: index + 1 < count,
            });
            fragment.ip.body = Body::Raw {
                protocol: whole.ip.protocol(),
                bytes: piece.to_vec(),
            };
            fragment
        })
        .collect()
}

fn be16(number: usize) -> [u8; 2] {
    u16::try_from(number)
        .expect("packets are small")
        .to_be_bytes()
}

fn low(number: usize) -> u8 {
    u8::try_from(number).expect("headers are small")
}
