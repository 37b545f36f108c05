//! Addresses, ports and tuples in network byte order: byte order is a type.
//!
//! IPv4 and IPv6 are one generic implementation over [`Addr`], monomorphised.

use crate::abi::Endpoint;

/// A TCP, UDP or SCTP port (or ICMP echo identifier) as it lies in the packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BePort(u16);

impl BePort {
    pub const ZERO: Self = Self(0);

    /// From host order, e.g. `BePort::new(80)`.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From the 16 bits as loaded from the packet.
    #[inline(always)]
    pub const fn from_wire(wire: u16) -> Self {
        Self(wire)
    }

    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    /// In host order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An IPv4 address as it lies in the packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V4(u32);

/// An IPv6 address as it lies in the packet, in four words.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V6([u32; 4]);

impl V4 {
    #[inline(always)]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// From the 32 bits as loaded from the packet.
    #[inline(always)]
    pub const fn from_wire(wire: u32) -> Self {
        Self(wire)
    }

    #[inline(always)]
    pub const fn wire(self) -> u32 {
        self.0
    }

    /// The IPv4-mapped IPv6 form `::ffff:a.b.c.d`.
    #[inline(always)]
    pub const fn mapped(self) -> V6 {
        V6([0, 0, 0xffff_u32.to_be(), self.0])
    }
}

impl V6 {
    pub const fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    pub fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }

    #[inline(always)]
    pub const fn from_wire(wire: [u32; 4]) -> Self {
        Self(wire)
    }

    #[inline(always)]
    pub const fn wire(self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 address inside `::ffff:a.b.c.d`, if this is one.
    #[inline(always)]
    pub const fn unmapped(self) -> Option<V4> {
        let [a, b, c, d] = self.0;
        if a == 0 && b == 0 && c == 0xffff_u32.to_be() {
            Some(V4(d))
        } else {
            None
        }
    }

    /// `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        let [a, ..] = self.0;
        a & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// `ff00::/8`.
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        let [a, ..] = self.0;
        a & 0xff00_0000_u32.to_be() == 0xff00_0000_u32.to_be()
    }
}

/// One address family.
pub trait Addr: Copy + Eq + Default + 'static {
    /// `false` for IPv4, `true` for IPv6.
    const V6: bool;
    /// The all-zero address, which stands for "none".
    const ZERO: Self;
    /// The gateway every pod has: link-local, the same on each node.
    const GATEWAY: Self;
    /// What a pod that reaches itself through a Service sees as the client.
    /// For IPv6 not the gateway: to a link-local address a pod would answer
    /// from one of its own, not from the address it was asked at.
    const MIRROR: Self;

    /// A total order over addresses; which one does not matter.
    fn before(&self, other: &Self) -> bool;
    /// The last 32 bits in host order: what differs between neighbours.
    fn low(&self) -> u32;
    /// This family's address of an endpoint.
    fn of(endpoint: &Endpoint) -> Self;
    /// This family's peer class of an endpoint.
    fn class_of(endpoint: &Endpoint) -> u32;
    /// The 16-byte form that events carry (IPv4 is mapped).
    fn wide(&self) -> V6;
}

impl Addr for V4 {
    const V6: bool = false;
    const ZERO: Self = Self(0);
    const GATEWAY: Self = Self::new([169, 254, 1, 1]);
    const MIRROR: Self = Self::GATEWAY;

    #[inline(always)]
    fn before(&self, other: &Self) -> bool {
        self.0 < other.0
    }

    #[inline(always)]
    fn low(&self) -> u32 {
        u32::from_be(self.0)
    }

    #[inline(always)]
    fn of(endpoint: &Endpoint) -> Self {
        endpoint.v4
    }

    #[inline(always)]
    fn class_of(endpoint: &Endpoint) -> u32 {
        endpoint.class_v4
    }

    #[inline(always)]
    fn wide(&self) -> V6 {
        self.mapped()
    }
}

impl Addr for V6 {
    const V6: bool = true;
    const ZERO: Self = Self([0; 4]);
    const GATEWAY: Self = Self::new([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    const MIRROR: Self = Self::new([0xfd, 0xfa, 0x1e, 0xad, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    #[inline(always)]
    fn before(&self, other: &Self) -> bool {
        let ([a, b, c, d], [w, x, y, z]) = (self.0, other.0);
        if d != z {
            return d < z;
        }
        if c != y {
            return c < y;
        }
        if b != x {
            return b < x;
        }
        a < w
    }

    #[inline(always)]
    fn low(&self) -> u32 {
        let [.., last] = self.0;
        u32::from_be(last)
    }

    #[inline(always)]
    fn of(endpoint: &Endpoint) -> Self {
        endpoint.v6
    }

    #[inline(always)]
    fn class_of(endpoint: &Endpoint) -> u32 {
        endpoint.class_v6
    }

    #[inline(always)]
    fn wide(&self) -> V6 {
        *self
    }
}

/// Layer 4 protocols that have ports here (IANA protocol numbers).
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;

    /// Whether NetworkPolicy ports and Services apply to it.
    #[inline(always)]
    pub const fn has_ports(proto: u8) -> bool {
        matches!(proto, TCP | UDP | SCTP)
    }
}

/// A packet's addresses and ports, as sent.
///
/// ICMP echo: a request has the identifier as source port and 0 as destination
/// port, a reply the other way round, so that one flow holds both and requests
/// from both ends are two flows. Anything without ports has zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub sport: BePort,
    pub dport: BePort,
    pub proto: u8,
}

impl<A: Addr> Tuple<A> {
    /// The tuple of a packet that answers this one.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
        }
    }

    /// Becomes `other`, field by field. An assignment between two places of one
    /// map value is a byte-wise `memmove` in a kernel program.
    #[inline(always)]
    pub fn copy_from(&mut self, other: &Self) {
        self.src = other.src;
        self.dst = other.dst;
        self.sport = other.sport;
        self.dport = other.dport;
        self.proto = other.proto;
    }

    /// The end of the key that sends this packet.
    #[inline(always)]
    pub fn side(&self) -> Side {
        let low = if self.src == self.dst {
            self.sport.wire() <= self.dport.wire()
        } else {
            self.src.before(&self.dst)
        };
        if low { Side::Low } else { Side::High }
    }

    /// The key both directions share, and which end of it sent this packet.
    #[inline(always)]
    pub fn canonical(&self) -> (FlowKey<A>, Side) {
        let mut key = FlowKey::default();
        let side = self.canonical_into(&mut key);
        (key, side)
    }

    /// As [`Tuple::canonical`], without a copy.
    #[inline(always)]
    pub fn canonical_into(&self, key: &mut FlowKey<A>) -> Side {
        let side = self.side();
        key.proto = u32::from(self.proto);
        match side {
            Side::Low => {
                key.low = self.src;
                key.high = self.dst;
                key.low_port = self.sport;
                key.high_port = self.dport;
            }
            Side::High => {
                key.low = self.dst;
                key.high = self.src;
                key.low_port = self.dport;
                key.high_port = self.sport;
            }
        }
        side
    }
}

/// Which end of a [`FlowKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Low,
    High,
}

/// The key of a flow, the same for both directions: 16 bytes for IPv4, 40 for
/// IPv6, no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey<A> {
    pub low: A,
    pub high: A,
    pub low_port: BePort,
    pub high_port: BePort,
    pub proto: u32,
}

impl<A: Copy> FlowKey<A> {
    /// The tuple of a packet sent by `side`.
    pub fn tuple_from(&self, side: Side) -> Tuple<A> {
        #[expect(clippy::cast_possible_truncation, reason = "filled from a u8")]
        let proto = self.proto as u8;
        match side {
            Side::Low => Tuple {
                src: self.low,
                dst: self.high,
                sport: self.low_port,
                dport: self.high_port,
                proto,
            },
            Side::High => Tuple {
                src: self.high,
                dst: self.low,
                sport: self.high_port,
                dport: self.low_port,
                proto,
            },
        }
    }
}
