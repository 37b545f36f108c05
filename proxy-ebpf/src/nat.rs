//! Checksum arithmetic for rewrites (RFC 1624, RFC 9260 appendix A).

/// The `CRC32c` (Castagnoli) polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `a * b` modulo the polynomial, all reflected (bit 31 is x^0).
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        if a & (1 << (31 - bit)) != 0 {
            product ^= b;
        }
        b = if b & 1 != 0 {
            (b >> 1) ^ POLYNOMIAL
        } else {
            b >> 1
        };
        bit += 1;
    }
    product
}

/// x^(8 * 2^i) for i = 0..16: what `2^i` zero bytes multiply a CRC by.
const ZEROS: [u32; 16] = {
    let mut table = [0; 16];
    // x^8, reflected.
    let mut power = 1 << (31 - 8);
    let mut i = 0;
    while i < 16 {
        table[i] = power;
        power = multiply(power, power);
        i += 1;
    }
    table
};

/// What to xor into an SCTP checksum (as read in little-endian order) when the
/// first four bytes of the packet, the ports, change from `old` to `new` (both
/// as four wire bytes) and `following` bytes come after them.
///
/// A CRC is linear: the change is the CRC of the difference, moved past the
/// following bytes. Port changes cost some 16 multiplications at the worst,
/// not a pass over the packet, which an eBPF program could not make.
#[inline(always)]
pub fn crc32c_delta(old: [u8; 4], new: [u8; 4], following: u16) -> u32 {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // The CRC register after the four bytes of difference: x^32 * difference.
    let mut crc = multiply(difference, ZEROS[2]);
    let mut i = 0;
    while i < 16 {
        if following & (1 << i) != 0 {
            crc = multiply(crc, ZEROS[i]);
        }
        i += 1;
    }
    crc
}

/// RFC 1624, equation 3: the checksum `check` (wire order) after a 16-bit word
/// changed from `old` to `new` (both in wire order).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
pub const fn checksum_update(check: u16, old: u16, new: u16) -> u16 {
    let mut sum = !check as u32 & 0xffff;
    sum += !old as u32 & 0xffff;
    sum += new as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 != 0 {
                    (crc >> 1) ^ POLYNOMIAL
                } else {
                    crc >> 1
                };
            }
        }
        !crc
    }

    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    fn checksum(bytes: &[u8]) -> u16 {
        let mut sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
            .sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_reference_value_is_right() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn crc_delta_equals_recomputing(
            bytes in proptest::collection::vec(any::<u8>(), 4..3000),
            new in any::<[u8; 4]>(),
        ) {
            let old: [u8; 4] = bytes[..4].try_into().unwrap();
            let mut changed = bytes.clone();
            changed[..4].copy_from_slice(&new);
            let following = u16::try_from(bytes.len() - 4).unwrap();
            prop_assert_eq!(crc32c(&bytes) ^ crc32c_delta(old, new, following), crc32c(&changed));
        }

        #[test]
        fn checksum_update_equals_recomputing(
            words in proptest::collection::vec(any::<u16>(), 1..40),
            at in any::<prop::sample::Index>(),
            new in 1..u16::MAX,
        ) {
            // A sum of all zero words has two representations; real headers are never all zero.
            prop_assume!(words.iter().any(|w| *w != 0));
            let at = at.index(words.len());
            let bytes = |w: &[u16]| w.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>();
            let mut changed = words.clone();
            changed[at] = new;
            prop_assert_eq!(
                checksum_update(checksum(&bytes(&words)), words[at], new),
                checksum(&bytes(&changed))
            );
        }
    }
}
