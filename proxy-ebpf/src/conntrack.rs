//! Flow state: pure transitions and lifetimes.
//!
//! A flow's state is a set of bits that packets only ever add to, so two CPUs
//! that race lose at worst one bit until the next packet.

use crate::abi::Tick;
use crate::addr::proto;

/// The end that did not open the flow has answered.
pub const REPLIED: u8 = 1;
/// TCP: the opener has sent FIN.
pub const FIN_OPENER: u8 = 2;
/// TCP: the other end has sent FIN.
pub const FIN_PEER: u8 = 4;
/// TCP: somebody has sent RST.
pub const RESET: u8 = 8;

/// TCP header flags.
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    /// Opens a connection: SYN without ACK.
    #[inline(always)]
    pub const fn opens(flags: u8) -> bool {
        flags & (SYN | ACK) == SYN
    }
}

/// ICMP and `ICMPv6` messages.
pub mod icmp {
    use crate::addr::proto;

    const ECHO_REPLY: u8 = 0;
    const ECHO_REPLY_V6: u8 = 129;

    /// An echo reply: `kind` is the message's type. It opens no flow.
    #[inline(always)]
    pub const fn answers(protocol: u8, kind: u8) -> bool {
        matches!(
            (protocol, kind),
            (proto::ICMP, ECHO_REPLY) | (proto::ICMPV6, ECHO_REPLY_V6)
        )
    }
}

/// The state after a packet. `from_opener`: sent by the end that opened the
/// flow. `tcp_flags` is 0 for other protocols.
#[inline(always)]
pub const fn advance(state: u8, from_opener: bool, tcp_flags: u8) -> u8 {
    let mut next = state;
    if !from_opener {
        next |= REPLIED;
    }
    if tcp_flags & tcp::FIN != 0 {
        next |= if from_opener { FIN_OPENER } else { FIN_PEER };
    }
    if tcp_flags & tcp::RST != 0 {
        next |= RESET;
    }
    next
}

/// Ticks after the last packet at which a flow may be forgotten.
///
/// A forgotten TCP flow without NAT comes back with its next packet (see
/// ARCHITECTURE.md, mid-stream packets), so these bound memory, not
/// connections. `pressed`: the table is more than three quarters full; half
/// open and closing flows then go early.
pub const fn lifetime(protocol: u8, state: u8, nat: bool, pressed: bool) -> u32 {
    let closing = state & (FIN_OPENER | FIN_PEER | RESET);
    let seconds =
        match (protocol, state & REPLIED != 0) {
            (proto::TCP, _) if state & RESET != 0 || closing == FIN_OPENER | FIN_PEER => {
                if pressed { 1 } else { 10 }
            }
            // The rest of a half-closed connection may take its time: 3600 s, as
            // kube-proxy sets for CLOSE_WAIT.
            (proto::TCP, _) if closing != 0 => 3600,
            (proto::TCP, false) => {
                if pressed {
                    3
                } else {
                    60
                }
            }
            (proto::TCP, true) if nat => 6 * 3600,
            (proto::TCP, true) => 3600,
            (_, false) => {
                if pressed {
                    5
                } else {
                    30
                }
            }
            (_, true) => {
                if pressed {
                    30
                } else {
                    180
                }
            }
        };
    Tick::in_seconds(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_opens_answers_and_closes() {
        let mut state = advance(0, true, tcp::SYN);
        assert_eq!(state, 0);
        state = advance(state, false, tcp::SYN | tcp::ACK);
        assert_eq!(state, REPLIED);
        state = advance(state, true, tcp::FIN | tcp::ACK);
        assert_eq!(
            lifetime(proto::TCP, state, false, false),
            Tick::in_seconds(3600)
        );
        state = advance(state, false, tcp::FIN | tcp::ACK);
        assert_eq!(state, REPLIED | FIN_OPENER | FIN_PEER);
        assert_eq!(
            lifetime(proto::TCP, state, false, false),
            Tick::in_seconds(10)
        );
    }

    #[test]
    fn pressure_never_shortens_an_established_tcp_flow() {
        for nat in [false, true] {
            assert_eq!(
                lifetime(proto::TCP, REPLIED, nat, true),
                lifetime(proto::TCP, REPLIED, nat, false)
            );
        }
        assert!(lifetime(proto::TCP, 0, false, true) < lifetime(proto::TCP, 0, false, false));
    }

    #[test]
    fn only_an_echo_reply_answers() {
        assert!(icmp::answers(proto::ICMP, 0));
        assert!(icmp::answers(proto::ICMPV6, 129));
        for (protocol, kind) in [
            (proto::ICMP, 8),
            (proto::ICMP, 129),
            (proto::ICMPV6, 128),
            (proto::ICMPV6, 0),
            (proto::TCP, 0),
            (proto::UDP, 0),
        ] {
            assert!(!icmp::answers(protocol, kind), "{protocol} {kind}");
        }
    }

    #[test]
    fn only_a_bare_syn_opens() {
        assert!(tcp::opens(tcp::SYN));
        assert!(!tcp::opens(tcp::SYN | tcp::ACK));
        assert!(!tcp::opens(tcp::ACK));
        assert!(!tcp::opens(0));
    }
}
