//! Damaged packets: cut short, bits flipped, random bytes. Nothing of it may
//! reach a pod that a receiver's own parser would read differently.

use fairlead_tests::generate::pod_ip;
use fairlead_tests::kernel::{Action, Run, UPLINK_IFINDEX, macs};
use fairlead_tests::packet::{Body, Extension, ExtensionKind, Packet, body, flag};
use fairlead_tests::random::{Random, cases, seed};
use fairlead_tests::require;
use proxy_ebpf::event::Counter;

use crate::node::{open, sent_by};

fn samples() -> Vec<Packet> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for body in [
            body::tcp(1000, 80, flag::SYN),
            body::udp(1000, 53),
            body::sctp(1000, 9),
            body::echo(7),
            Body::Raw {
                protocol: 47,
                bytes: vec![0; 8],
            },
        ] {
            let plain = sent_by(0, pod_ip(v6, true, 1), body);
            let mut decorated = plain.clone();
            if v6 {
                let data = vec![1, 4, 0, 0, 0, 0];
                decorated.ip.extensions = vec![Extension {
                    kind: ExtensionKind::HopByHop,
                    data,
                }];
            } else {
                decorated.ip.options = vec![1; 8];
            }
            all.extend([plain, decorated]);
        }
    }
    all
}

#[test]
fn a_truncated_packet_is_dropped_as_malformed() {
    require!(Root, Bpf);
    let mut kernel = open(2);
    for packet in samples() {
        let frame = packet.encode();
        // BPF_PROG_TEST_RUN takes no IP frame without a whole IP header.
        for length in ip_header_end(&packet)..frame.len() {
            let run = kernel.from_pod(0, &frame[..length]);
            assert_eq!(
                (run.action, &*run.counted),
                (Action::Drop, &[Counter::Malformed][..]),
                "{length} bytes of {packet:?}"
            );
        }
    }
}

fn ip_header_end(packet: &Packet) -> usize {
    14 + if packet.ip.is_v6() { 40 } else { 20 }
}

#[test]
fn flipped_bits_never_deliver_what_was_not_sent_to_that_pod() {
    require!(Root, Bpf);
    let mut kernel = open(2);
    for packet in samples() {
        let frame = packet.encode();
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let run = kernel.from_pod(0, &damaged);
            delivered_rightly(&run.frame, &damaged, run.action);
            drop(kernel.to_pod(0, &damaged, UPLINK_IFINDEX));
        }
    }
}

/// Redirected frames are IP packets of pod 0 to pod 0 or 1, with nothing but
/// the MAC addresses changed; or answers to pod 0 itself.
fn delivered_rightly(out: &[u8], sent: &[u8], action: Action) {
    if action != Action::Redirect {
        return;
    }
    let receiver = (0..2).find(|pod| out[..6] == macs(*pod).0);
    let receiver = receiver.unwrap_or_else(|| panic!("to nobody: {out:02x?}"));
    assert_eq!(out[6..12], macs(receiver).1, "from its own gateway");
    if out.len() != sent.len() || out[14..] != sent[14..] {
        assert_eq!(receiver, 0, "an answer goes to the sender: {out:02x?}");
        return;
    }
    let v6 = out[12..14] == [0x86, 0xdd];
    let (src, dst): (&[u8], &[u8]) = if v6 {
        (&out[22..38], &out[38..54])
    } else {
        (&out[26..30], &out[30..34])
    };
    let octets = |pod| match pod_ip(v6, true, pod) {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    assert_eq!(src, octets(0));
    assert_eq!(dst, octets(receiver));
}

#[test]
fn random_bytes_are_survived() {
    require!(Root, Bpf);
    let (seed, cases) = (seed(), cases(10_000));
    eprintln!("seed {seed}");
    let mut kernel = open(2);
    let samples = samples();
    for case in 0..cases {
        let mut random = Random::for_case(seed, case);
        let mut frame = random.pick(&samples).encode();
        // Some headers stay as they were, so that the deeper parsers are reached.
        let from = *random.pick(&[0, 12, 14, 20, 34, 54]);
        let length = 54 + random.below(200);
        frame.resize(length, 0);
        for byte in frame.iter_mut().skip(from) {
            if random.chance(30) {
                *byte = random.byte();
            }
        }
        let run = kernel.from_pod(0, &frame);
        assert!(
            !matches!(run.action, Action::Other(_)),
            "seed {seed}, case {case}: {run:?}"
        );
        dropped_with_a_reason(&run, &format!("seed {seed}, case {case}"));
        delivered_rightly(&run.frame, &frame, run.action);
        let run = kernel.to_pod(0, &frame, UPLINK_IFINDEX);
        dropped_with_a_reason(&run, &format!("seed {seed}, case {case}"));
    }
}

/// A drop says why, once; anything else counts no drop.
fn dropped_with_a_reason(run: &Run, context: &str) {
    let reasons = run
        .counted
        .iter()
        .filter(|counter| counter.is_drop())
        .count();
    assert_eq!(
        reasons,
        usize::from(run.action == Action::Drop),
        "{context}: {run:?}"
    );
}
