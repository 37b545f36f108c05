//! Packets as values: what the tests send through the kernel programs and read
//! back. Builder and parser know nothing of Fairlead.
//!
//! Addresses are `std::net`, ports and identifiers numbers in host order.
//! [`Packet::encode`] computes every length and checksum; [`Packet::decode`]
//! refuses wrong ones, so that a rewrite is only right when it left a packet
//! that a receiver would take.

mod checksum;
mod decode;
mod encode;

pub use checksum::{crc32c, internet_checksum};
pub use decode::DecodeError;
pub use encode::fragments;

use std::net::IpAddr;

/// IANA protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// TCP header flags.
pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

pub type Mac = [u8; 6];

/// An Ethernet frame with an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub mac_src: Mac,
    pub mac_dst: Mac,
    pub ip: Ip,
}

/// An IP packet; the family is that of `src` and `dst`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// Type of service or traffic class.
    pub class: u8,
    /// Present on fragments; IPv4 also carries an id on whole packets, which is
    /// not kept.
    pub fragment: Option<Fragment>,
    /// IPv4 options, a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6 extension headers before the transport header, fragment header excluded.
    pub extensions: Vec<Extension>,
    pub body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// 16 bits for IPv4.
    pub id: u32,
    /// Bytes from the start of the whole payload, a multiple of 8.
    pub offset: u16,
    /// Not the last one.
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    pub kind: ExtensionKind,
    /// After the two header bytes; 6 bytes plus a multiple of 8.
    pub data: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionKind {
    HopByHop,
    Routing,
    Destination,
}

impl ExtensionKind {
    pub const fn number(self) -> u8 {
        match self {
            Self::HopByHop => 0,
            Self::Routing => 43,
            Self::Destination => 60,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
        seq: u32,
        payload: Vec<u8>,
    },
    Udp {
        sport: u16,
        dport: u16,
        /// Without one the field is 0 (IPv4 only).
        checksum: bool,
        payload: Vec<u8>,
    },
    Sctp {
        sport: u16,
        dport: u16,
        tag: u32,
        /// Chunks.
        payload: Vec<u8>,
    },
    Echo {
        reply: bool,
        id: u16,
        seq: u16,
        payload: Vec<u8>,
    },
    /// An ICMP error with the packet that caused it.
    Error { error: IcmpError, inner: Box<Ip> },
    /// Any other protocol, any other ICMP message, and the pieces of
    /// fragmented packets: bytes as they are.
    Raw { protocol: u8, bytes: Vec<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    PortUnreachable,
    /// "Fragmentation needed", or "packet too big".
    TooBig {
        mtu: u16,
    },
    TimeExceeded,
}

impl Ip {
    /// A packet with a body and nothing special. Panics if the families differ.
    pub fn new(src: IpAddr, dst: IpAddr, body: Body) -> Self {
        assert_eq!(src.is_ipv6(), dst.is_ipv6(), "one family per packet");
        Self {
            src,
            dst,
            hops: 64,
            class: 0,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            body,
        }
    }

    pub fn is_v6(&self) -> bool {
        self.src.is_ipv6()
    }

    pub fn protocol(&self) -> u8 {
        let icmp = if self.is_v6() {
            protocol::ICMPV6
        } else {
            protocol::ICMP
        };
        match &self.body {
            Body::Tcp { .. } => protocol::TCP,
            Body::Udp { .. } => protocol::UDP,
            Body::Sctp { .. } => protocol::SCTP,
            Body::Echo { .. } | Body::Error { .. } => icmp,
            Body::Raw { protocol, .. } => *protocol,
        }
    }

    /// Source and destination port, where the protocol has them and they are here.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match &self.body {
            Body::Tcp { sport, dport, .. }
            | Body::Udp { sport, dport, .. }
            | Body::Sctp { sport, dport, .. } => Some((*sport, *dport)),
            _ => None,
        }
    }

    /// Replaces the ports. Panics where there are none.
    pub fn set_ports(&mut self, source: u16, destination: u16) {
        match &mut self.body {
            Body::Tcp { sport, dport, .. }
            | Body::Udp { sport, dport, .. }
            | Body::Sctp { sport, dport, .. } => (*sport, *dport) = (source, destination),
            other => panic!("no ports in {other:?}"),
        }
    }

    /// TCP flags; 0 for anything else.
    pub fn tcp_flags(&self) -> u8 {
        match &self.body {
            Body::Tcp { flags, .. } => *flags,
            _ => 0,
        }
    }
}

impl Packet {
    pub fn new(mac_src: Mac, mac_dst: Mac, ip: Ip) -> Self {
        Self {
            mac_src,
            mac_dst,
            ip,
        }
    }
}

/// Bodies with a few bytes of payload.
pub mod body {
    use super::Body;

    pub fn tcp(sport: u16, dport: u16, flags: u8) -> Body {
        Body::Tcp {
            sport,
            dport,
            flags,
            seq: 0x0102_0304,
            payload: Vec::new(),
        }
    }

    pub fn udp(sport: u16, dport: u16) -> Body {
        Body::Udp {
            sport,
            dport,
            checksum: true,
            payload: b"fairlead".to_vec(),
        }
    }

    pub fn sctp(sport: u16, dport: u16) -> Body {
        // An INIT chunk's head, then zeros.
        let mut payload = vec![1, 0, 0, 20];
        payload.resize(20, 0);
        Body::Sctp {
            sport,
            dport,
            tag: 0,
            payload,
        }
    }

    pub fn echo(id: u16) -> Body {
        Body::Echo {
            reply: false,
            id,
            seq: 1,
            payload: b"fairlead".to_vec(),
        }
    }

    pub fn echo_reply(id: u16) -> Body {
        Body::Echo {
            reply: true,
            id,
            seq: 1,
            payload: b"fairlead".to_vec(),
        }
    }
}

#[cfg(test)]
mod tests;
