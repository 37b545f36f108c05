//! The builder against the parser, and both against packets from documents.

use super::*;

fn addresses(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
    } else {
        ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
    }
}

fn packet(v6: bool, body: Body) -> Packet {
    let (src, dst) = addresses(v6);
    Packet::new(
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 2],
        Ip::new(src, dst, body),
    )
}

fn bodies(v6: bool) -> Vec<Body> {
    let (src, dst) = addresses(v6);
    let inner = Ip::new(dst, src, body::udp(80, 4000));
    vec![
        body::tcp(4000, 80, flag::SYN),
        body::udp(4000, 53),
        body::sctp(4000, 9),
        body::echo(7),
        body::echo_reply(7),
        Body::Error {
            error: IcmpError::TooBig { mtu: 1400 },
            inner: Box::new(inner.clone()),
        },
        Body::Error {
            error: IcmpError::PortUnreachable,
            inner: Box::new(inner),
        },
        Body::Raw {
            protocol: 47,
            bytes: vec![1, 2, 3],
        },
    ]
}

#[test]
fn what_is_encoded_decodes_to_the_same() {
    for v6 in [false, true] {
        for body in bodies(v6) {
            let packet = packet(v6, body);
            assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }
    }
}

#[test]
fn options_and_extension_headers_survive() {
    let mut with_options = packet(false, body::udp(1, 2));
    with_options.ip.options = vec![1, 1, 1, 0];
    assert_eq!(Packet::decode(&with_options.encode()), Ok(with_options));
    let mut with_extensions = packet(true, body::tcp(1, 2, flag::ACK));
    for kind in [ExtensionKind::HopByHop, ExtensionKind::Destination] {
        with_extensions.ip.extensions.push(Extension {
            kind,
            data: vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        });
    }
    assert_eq!(
        Packet::decode(&with_extensions.encode()),
        Ok(with_extensions)
    );
}

#[test]
fn fragments_go_together_again() {
    for v6 in [false, true] {
        let mut whole = packet(v6, body::udp(1, 2));
        if let Body::Udp { payload, .. } = &mut whole.ip.body {
            payload.resize(100, 9);
        }
        let pieces = fragments(&whole, 77, 32);
        assert_eq!(pieces.len(), 4);
        let seen: Vec<Packet> = pieces
            .iter()
            .rev()
            .map(|piece| Packet::decode(&piece.encode()).unwrap())
            .collect();
        assert_eq!(Packet::reassemble(&seen), Ok(whole));
        assert!(Packet::reassemble(&seen[..3]).is_err());
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_a_checksum_covers_it() {
    for v6 in [false, true] {
        for body in bodies(v6).into_iter().take(5) {
            let good = packet(v6, body);
            let bytes = good.encode();
            let start = if v6 { 14 + 40 } else { 14 };
            for bit in start * 8..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(
                    Packet::decode(&bad),
                    Ok(good.clone()),
                    "bit {bit} of {good:?}"
                );
            }
        }
    }
}

#[test]
fn reference_checksums_are_right() {
    // RFC 1071, section 3.
    assert_eq!(
        internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
        !0xddf2
    );
    // RFC 3720, appendix B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
