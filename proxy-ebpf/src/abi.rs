//! Map keys and values, pin names and bounds: what is on both sides of the
//! kernel boundary.
//!
//! Rules: `repr(C)`, explicit padding, sizes asserted and multiples of 4,
//! host-order numbers, network-order addresses and ports ([`crate::addr`]).
//! Any change to this file that alters a layout bumps [`ABI_VERSION`], which is
//! part of the pin path: two versions never share a map.

use core::mem::size_of;

use crate::addr::{BePort, FlowKey, V4, V6};
use crate::event::{Event, EventBudget};

/// Part of the pin path: `<bpffs>/fairlead/v<ABI_VERSION>/<MAP NAME>`.
pub const ABI_VERSION: u32 = 1;

/// Types that may be copied to and from the kernel byte by byte.
///
/// # Safety
/// `repr(C)` or `repr(transparent)`, no padding, no pointers, every bit pattern valid.
#[expect(unsafe_code, reason = "the marker for raw copies")]
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty: $size:expr;)*) => {$(
        const _: () = assert!(size_of::<$type>() == $size);
        #[expect(unsafe_code, reason = "checked by the size assertion above: no padding")]
        // SAFETY: repr(C) or transparent, integers only; the size equals the sum of the fields.
        unsafe impl Plain for $type {}
        #[cfg(feature = "aya")]
        #[expect(unsafe_code, reason = "as for Plain")]
        // SAFETY: as for Plain.
        unsafe impl aya::Pod for $type {}
    )*};
}

/// Bounds of the maps, as built into the object. User space may give other
/// sizes when it creates the maps; the kernel programs read none of these but
/// [`ENDPOINT_SLOTS`].
pub mod bound {
    /// Endpoint slots; a power of two: a slot is found from the interface index.
    pub const ENDPOINT_SLOTS: u32 = 4096;
    /// Slots looked at from `ifindex % ENDPOINT_SLOTS` on, see [`super::slot_probe`].
    pub const SLOT_PROBES: u32 = 8;
    pub const ADDRESSES: u32 = 65_536;
    pub const CIDRS: u32 = 65_536;
    pub const FLOWS: u32 = 131_072;
    pub const VIP_FLOWS: u32 = 65_536;
    pub const FRAGMENTS: u32 = 4096;
    pub const SERVICES: u32 = 65_536;
    pub const SLOTS: u32 = 131_072;
    pub const BACKENDS: u32 = 65_536;
    pub const AFFINITY: u32 = 65_536;
    pub const POLICY_SETS: u32 = 16_384;
    pub const POLICY_PEERS: u32 = 65_536;
    pub const POLICY_PORTS: u32 = 32_768;
    pub const POLICY_RANGES: u32 = 65_536;
    /// Bytes of the event ring.
    pub const EVENT_BYTES: u32 = 1 << 20;
}

/// Where endpoint slot search starts and how it goes on: the `probe`-th
/// candidate (0..[`bound::SLOT_PROBES`]) for an interface. Slot 0 means "none"
/// and is never used.
#[inline(always)]
pub const fn slot_probe(ifindex: u32, probe: u32) -> u32 {
    ifindex.wrapping_add(probe) & (bound::ENDPOINT_SLOTS - 1)
}

/// A pod attached to this node. `ENDPOINTS`: array, slot -> `Endpoint`.
///
/// Written by the CNI plugin (all of it), then by the daemon (sets, classes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Host side of the veth pair, in the node's namespace; 0: the slot is free.
    pub ifindex: u32,
    /// Policy set for traffic to the pod: [`SET_NONE`], [`SET_CLOSED`] or an index.
    pub ingress_set: u32,
    /// Policy set for traffic from the pod.
    pub egress_set: u32,
    pub class_v4: u32,
    pub class_v6: u32,
    /// [`Endpoint::SHAPED`].
    pub flags: u32,
    /// All zero: the pod has none.
    pub v4: V4,
    pub v6: V6,
    /// The pod's own MAC address.
    pub mac: [u8; 6],
    /// The MAC address of the host side, the gateway's as the pod sees it.
    pub gateway_mac: [u8; 6],
}

impl Endpoint {
    /// Traffic to the pod is shaped by a queueing discipline on the host
    /// interface: it must leave through that, not past it.
    pub const SHAPED: u32 = 1;
}

/// The mark of packets that `pod_out` has judged and translated and that go to a
/// shaped pod by its host interface: `pod_in` lets them pass. Marks do not
/// survive the way out of a pod, so no pod can set it.
pub const JUDGED_MARK: u32 = 0xf1ea_d000;

/// What an address is. Stored in [`Address::kind`].
pub mod kind {
    /// A pod on this node; `Address::slot` is its endpoint.
    pub const LOCAL_POD: u32 = 1;
    /// A pod elsewhere in the cluster.
    pub const REMOTE_POD: u32 = 2;
    /// An address of this node (host-network pods included).
    pub const LOCAL_NODE: u32 = 3;
    /// An address of another node.
    pub const REMOTE_NODE: u32 = 4;
    /// A Service address (ClusterIP): never a peer, looked up in `SERVICES`.
    pub const SERVICE: u32 = 5;
}

/// `ADDRESSES_V4`, `ADDRESSES_V6`: hash, address -> `Address`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Peer class; 0 is an address that no selector and no ipBlock matches.
    pub class: u32,
    /// Endpoint slot, for [`kind::LOCAL_POD`] only; otherwise 0.
    pub slot: u32,
    pub kind: u32,
}

/// The key of an LPM trie: the first `bits` bits of `data`, in wire order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix<T> {
    pub bits: u32,
    pub data: T,
}

// `CIDRS_V4`, `CIDRS_V6`: LPM trie, `Prefix` of the address -> peer class (`u32`) of
// addresses that are not in `ADDRESSES_*`. Only asked when
// `setting::CIDRS_V4` or `setting::CIDRS_V6` is set.

/// Never a peer class: stands for "not looked up yet" in the kernel programs.
pub const RESERVED_CLASS: u32 = u32::MAX;

/// No policy selects the endpoint in this direction: everything passes.
pub const SET_NONE: u32 = 0;
/// A set that denies everything; its (all-zero) element needs no writing.
pub const SET_CLOSED: u32 = 1;
/// The first index the policy compiler may hand out.
pub const SET_FIRST: u32 = 2;

/// `POLICY_SETS`: array, index -> `PolicySet`. See [`crate::policy`].
///
/// A set with more than 64 port classes takes consecutive elements ("words");
/// of those after the first only `default_bits` counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// Bit j: a peer without an entry in `POLICY_PEERS` may use port class `64*word + j`.
    pub default_bits: u64,
    /// Port class of a port that has no entry: TCP, UDP, SCTP; then of every
    /// protocol without ports (ICMP included). See [`PolicySet::default_class`].
    pub default_class: [u16; 4],
    /// [`PolicySet::PORTS`], [`PolicySet::RANGES`].
    pub flags: u32,
    pub _pad: u32,
}

impl PolicySet {
    /// `POLICY_PORTS` has entries of this set.
    pub const PORTS: u32 = 1;
    /// `POLICY_RANGES` has entries of this set; then it holds the single ports
    /// too, and `POLICY_PORTS` is not asked.
    pub const RANGES: u32 = 2;
}

/// `POLICY_PEERS`: hash -> `u64`, bit j: the peer class may use port class
/// `64*w + j`, where `word` = set index + w.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey {
    pub word: u32,
    pub class: u32,
}

/// `POLICY_PORTS`: hash -> port class (`u32`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub set: u32,
    pub proto: u16,
    pub port: BePort,
}

/// `POLICY_RANGES`: LPM trie, [`Prefix`] of [`PortKey`] -> port class (`u32`). The first
/// 48 bits (set, protocol) always count: prefix length = 48 + bits of the port.
pub const RANGE_PREFIX_BASE: u32 = 48;

/// `SERVICES_V4`, `SERVICES_V6`: hash, -> [`Service`]; one entry per Service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey<A> {
    pub vip: A,
    pub port: BePort,
    pub proto: u8,
    /// 0: traffic from inside the cluster. Others are reserved.
    pub scope: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// First index into `SLOTS`.
    pub base: u32,
    /// Slots in the range. 0: no endpoint anywhere, reject (or, with
    /// [`Service::DROP`], drop).
    pub count: u32,
    /// Stable for the life of the Service port; for affinity and events.
    pub id: u32,
    pub flags: u32,
    /// `ClientIP` affinity in seconds; 0: none.
    pub affinity_seconds: u32,
}

impl Service {
    /// Endpoints exist but none that a Local traffic policy admits: drop
    /// instead of reject.
    pub const DROP: u32 = 1;
}

/// `BACKENDS_V4`, `BACKENDS_V6`: array, id -> `Backend`; `SLOTS`: array, index -> id.
/// Id 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend<A> {
    pub address: A,
    pub port: BePort,
    /// [`BACKEND_LIVE`] while the backend may serve.
    pub flags: u16,
    /// Changes whenever the id stands for another backend or its end: UDP
    /// flows and sockets that remember another generation choose again.
    pub generation: u32,
}

pub const BACKEND_LIVE: u16 = 1;

/// `AFFINITY_V4`, `AFFINITY_V6`: LRU hash -> [`Affinity`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey<A> {
    pub client: A,
    pub service: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    pub backend: u32,
    pub generation: u32,
    /// When it was last used.
    pub seen: Tick,
}

/// Coarse monotonic time in units of 2^27 ns (134 ms); wraps after 18 years.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u32);

impl Tick {
    /// From `CLOCK_MONOTONIC_COARSE` (`bpf_ktime_get_coarse_ns`).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "wraps, as documented")]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> 27) as u32)
    }

    /// Ticks from `earlier` to `self`; an `earlier` that is later counts as 0
    /// (another CPU may have stamped it since).
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        let ticks = self.0.wrapping_sub(earlier.0);
        if ticks > u32::MAX / 2 { 0 } else { ticks }
    }

    /// Whole ticks in `seconds`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "lifetimes are hours, the type holds 18 years"
    )]
    pub const fn in_seconds(seconds: u32) -> u32 {
        ((seconds as u64 * 1_000_000_000) >> 27) as u32
    }
}

/// A tracked connection. `FLOWS_V4`, `FLOWS_V6`: hash, [`FlowKey`] -> `Flow`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow<A> {
    pub seen: Tick,
    /// The policy generation that admitted it; judged again on mismatch.
    pub generation: u32,
    /// Endpoint slots of the two ends, 0 where not local. Hints: they hold
    /// while the endpoint in the slot has the end's address.
    pub low_slot: u32,
    pub high_slot: u32,
    /// Bits of [`crate::conntrack`].
    pub state: u8,
    /// [`flow`].
    pub flags: u8,
    /// The opener's own source port; under NAT it may not be the key's.
    pub client_port: BePort,
    /// The port the opener sent to: under NAT the Service's.
    pub service_port: BePort,
    pub _pad: u16,
    /// The address the opener sent to: under NAT the Service's.
    pub service: A,
}

/// Flags of [`Flow`].
pub mod flow {
    /// The high end of the key opened the flow (else the low end).
    pub const OPENED_BY_HIGH: u8 = 1;
    /// Packets to the opener leave with `service:service_port` as source.
    pub const NAT: u8 = 2;
    /// The pod reaches itself: its own address was replaced by [`crate::addr::Addr::MIRROR`].
    pub const HAIRPIN: u8 = 4;
}

/// Where a client's packets to a Service go. `VIP_FLOWS_V4`, `VIP_FLOWS_V6`:
/// hash, [`FlowKey`] of (client, Service address) -> `VipFlow`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipFlow<A> {
    pub seen: Tick,
    pub backend: u32,
    /// [`Backend::generation`] when it was chosen.
    pub generation: u32,
    pub address: A,
    pub port: BePort,
    /// Source port towards the backend (differs from the client's on collision).
    pub source_port: BePort,
    /// [`flow::HAIRPIN`].
    pub flags: u32,
}

/// `FRAGMENTS_V4`, `FRAGMENTS_V6`: LRU hash -> [`Fragment`]; written by the
/// first fragment, which alone has the ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    /// IPv4: 16 bits; network order.
    pub id: u32,
    pub proto: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    pub sport: BePort,
    pub dport: BePort,
}

/// `SETTINGS`: array of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Policy generation; any change but the mere addition of an address moves it.
    pub generation: u32,
    /// [`setting`].
    pub flags: u32,
}

/// Flags of [`Settings`].
pub mod setting {
    pub const CIDRS_V4: u32 = 1;
    pub const CIDRS_V6: u32 = 2;
    /// Somebody follows: report new flows too, not only drops.
    pub const FLOW_EVENTS: u32 = 4;
}

/// `SOCKET_ORIGINS`: socket storage. The last [`ORIGINS`] Service addresses a
/// socket was sent elsewhere from; IPv4 is mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    pub service: V6,
    pub backend_address: V6,
    pub service_port: BePort,
    pub backend_port: BePort,
    pub backend: u32,
    pub generation: u32,
}

/// Origins kept per socket; the oldest goes first.
pub const ORIGINS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    pub entries: [Origin; ORIGINS],
    /// Index of the entry to replace next.
    pub next: u32,
}

/// Pin names: the maps' static names in the object.
pub mod pin {
    pub const ENDPOINTS: &str = "ENDPOINTS";
    pub const NAT_CLIENTS: &str = "NAT_CLIENTS";
    pub const ADDRESSES_V4: &str = "ADDRESSES_V4";
    pub const ADDRESSES_V6: &str = "ADDRESSES_V6";
    pub const CIDRS_V4: &str = "CIDRS_V4";
    pub const CIDRS_V6: &str = "CIDRS_V6";
    pub const FLOWS_V4: &str = "FLOWS_V4";
    pub const FLOWS_V6: &str = "FLOWS_V6";
    pub const VIP_FLOWS_V4: &str = "VIP_FLOWS_V4";
    pub const VIP_FLOWS_V6: &str = "VIP_FLOWS_V6";
    pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
    pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
    pub const SERVICES_V4: &str = "SERVICES_V4";
    pub const SERVICES_V6: &str = "SERVICES_V6";
    pub const SLOTS: &str = "SLOTS";
    pub const BACKENDS_V4: &str = "BACKENDS_V4";
    pub const BACKENDS_V6: &str = "BACKENDS_V6";
    pub const AFFINITY_V4: &str = "AFFINITY_V4";
    pub const AFFINITY_V6: &str = "AFFINITY_V6";
    pub const POLICY_SETS: &str = "POLICY_SETS";
    pub const POLICY_PEERS: &str = "POLICY_PEERS";
    pub const POLICY_PORTS: &str = "POLICY_PORTS";
    pub const POLICY_RANGES: &str = "POLICY_RANGES";
    pub const SETTINGS: &str = "SETTINGS";
    pub const COUNTERS: &str = "COUNTERS";
    pub const EVENTS: &str = "EVENTS";
    pub const SOCKET_ORIGINS: &str = "SOCKET_ORIGINS";
    /// Programs, pinned beside the maps: tc ingress and egress of a pod's host veth.
    pub const POD_OUT: &str = "pod_out";
    pub const POD_IN: &str = "pod_in";
    /// Not pinned: an iterator that gives of every socket in `SOCKET_ORIGINS`, TCP's
    /// apart, the cookie (`u64`) and its [`Origins`](super::Origins).
    pub const SURVEY: &str = "survey";
}

plain! {
    BePort: 2;
    V4: 4;
    V6: 16;
    Endpoint: 56;
    Address: 12;
    PolicySet: 24;
    PeerKey: 8;
    PortKey: 8;
    ServiceKey<V4>: 8;
    ServiceKey<V6>: 20;
    Service: 20;
    Backend<V4>: 12;
    Backend<V6>: 24;
    AffinityKey<V4>: 8;
    AffinityKey<V6>: 20;
    Affinity: 12;
    Tick: 4;
    FlowKey<V4>: 16;
    FlowKey<V6>: 40;
    Flow<V4>: 28;
    Flow<V6>: 40;
    VipFlow<V4>: 24;
    VipFlow<V6>: 36;
    FragmentKey<V4>: 16;
    FragmentKey<V6>: 40;
    Fragment: 4;
    Settings: 8;
    Origin: 44;
    Origins: 180;
    Event: 96;
    EventBudget: 8;
    Prefix<V4>: 8;
    Prefix<V6>: 20;
    Prefix<PortKey>: 12;
}

#[expect(unsafe_code, reason = "integers")]
// SAFETY: no padding, every bit pattern valid.
unsafe impl Plain for u32 {}
#[expect(unsafe_code, reason = "integers")]
// SAFETY: as for u32.
unsafe impl Plain for u64 {}
