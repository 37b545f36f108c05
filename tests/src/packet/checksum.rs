//! The Internet checksum and `CRC32c`, bit by bit as their documents say.

use std::net::IpAddr;

/// RFC 1071 over `bytes`, an odd last byte padded with zero.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8;
        sum += pair.get(1).copied().map_or(0, u64::from);
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// The pseudo header of TCP, UDP and `ICMPv6` (RFC 9293, RFC 8200), then the segment.
pub(super) fn with_pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(segment.len() + 40);
    let length = u32::try_from(segment.len()).expect("packets are small");
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend([0, protocol]);
            bytes.extend(&length.to_be_bytes()[2..]);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend(length.to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
        }
        _ => panic!("one family per packet"),
    }
    bytes.extend(segment);
    internet_checksum(&bytes)
}

/// `CRC32c` (RFC 9260, appendix A). SCTP carries it in little-endian order.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc >>= 1;
            if carry == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}
