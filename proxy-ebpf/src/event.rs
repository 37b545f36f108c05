//! Why packets are dropped, what is counted, and what the event ring carries.

use crate::addr::{BePort, V6};

/// Which program saw the packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    PodOut = 0,
    PodIn = 1,
    Socket = 2,
}

/// Number of [`Hook`]s.
pub const HOOKS: u32 = 3;

macro_rules! counters {
    ($($variant:ident = $value:literal, $name:literal, $help:literal;)*) => {
        /// What is counted, per CPU and hook. Anything below
        /// [`Counter::FIRST_DROP`] is not a drop. `COUNTERS`: per-CPU array,
        /// `counter * HOOKS + hook` -> `u64` packets.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Counter { $(#[doc = $help] $variant = $value,)* }

        impl Counter {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The metric label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means and, for a drop, what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }

            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

counters! {
    Translated = 0, "translated", "sockets given a backend of a Service";
    Rejected = 2, "rejected", "answered with RST or ICMP: the Service has no such port, or no endpoint for it";
    EventsLost = 3, "events_lost", "events not reported: rate limit or full ring";
    FlowsOpened = 4, "flows_opened", "flow entries made";
    PolicyEgress = 16, "policy_egress", "the sender's egress policies do not allow it";
    PolicyIngress = 17, "policy_ingress", "the receiver's ingress policies do not allow it";
    SpoofedMac = 18, "spoofed_mac", "the source MAC address is not the pod's";
    SpoofedAddress = 19, "spoofed_address", "the source address is not the pod's";
    UnknownInterface = 20, "unknown_interface", "the interface belongs to no endpoint";
    Malformed = 21, "malformed", "truncated or contradictory headers";
    UnsupportedHeader = 22, "unsupported_header", "more IPv6 extension headers than are followed";
    FragmentUnknown = 23, "fragment_unknown", "a later fragment came before the first";
    FlowTableFull = 24, "flow_table_full", "no room for a new flow; raise the flow table's size";
    NatExhausted = 25, "nat_exhausted", "no free source port towards the backend";
    ServiceWithoutLocalEndpoint = 26, "service_without_local_endpoint", "a Local traffic policy and no endpoint on this node";
    RewriteFailed = 27, "rewrite_failed", "the kernel refused to rewrite the packet";
    UnrelatedError = 29, "unrelated_error", "an ICMP error to a Service address about no known flow";
    NotRejectable = 30, "not_rejectable", "no such Service port, and the packet may not be answered";
    UnsupportedProtocol = 28, "unsupported_protocol", "neither IPv4, IPv6 nor ARP";
}

impl Counter {
    pub const FIRST_DROP: u8 = 16;
    /// Elements of `COUNTERS`.
    pub const SLOTS: u32 = 32 * HOOKS;

    #[inline(always)]
    pub const fn slot(self, hook: Hook) -> u32 {
        self as u32 * HOOKS + hook as u32
    }

    pub const fn is_drop(self) -> bool {
        self as u8 >= Self::FIRST_DROP
    }
}

/// One record of the `EVENTS` ring: a drop, or a new flow. 96 bytes.
///
/// `*_class`, `*_set` and `*_port_class` are what the verdict was made from:
/// user space names the deciding policy and rule from them. Of a direction
/// that was not judged the set is `SET_NONE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC_COARSE`, nanoseconds.
    pub nanos: u64,
    /// [`Counter`]: the drop's reason, or [`Counter::FlowsOpened`].
    pub reason: u8,
    /// [`Hook`].
    pub hook: u8,
    pub proto: u8,
    /// TCP flags; ICMP type otherwise.
    pub tcp_flags: u8,
    pub length: u32,
    /// After Service translation; IPv4 is mapped.
    pub src: V6,
    pub dst: V6,
    pub sport: BePort,
    pub dport: BePort,
    /// Endpoint slots, 0 where not local.
    pub src_slot: u32,
    pub dst_slot: u32,
    pub egress_set: u32,
    /// The destination's class, as the source's egress policies see it.
    pub egress_class: u32,
    pub egress_port_class: u32,
    pub ingress_set: u32,
    /// The source's class, as the destination's ingress policies see it.
    pub ingress_class: u32,
    pub ingress_port_class: u32,
    /// Policy generation of the verdict.
    pub generation: u32,
    pub _pad: [u32; 2],
}

/// Events a CPU may report per [`crate::abi::Tick`]; the rest is counted as
/// [`Counter::EventsLost`].
pub const EVENTS_PER_TICK: u32 = 1024;

/// `EVENT_BUDGET`: per-CPU array of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventBudget {
    pub tick: crate::abi::Tick,
    pub spent: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_fit_their_array_and_names_are_unique() {
        let mut names: Vec<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        for counter in Counter::ALL {
            assert!(counter.slot(Hook::Socket) < Counter::SLOTS);
            assert_eq!(Counter::from_number(*counter as u8), Some(*counter));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::ALL.len());
    }
}
