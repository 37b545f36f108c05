//! MAC addresses, and what is derived from an attachment's name: its MAC
//! addresses and the name of the host side of its veth pair. Pure.

use std::fmt;

use crate::env::Attachment;

/// A unicast Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac([u8; 6]);

impl Mac {
    pub(crate) const RULE: &str = "six hexadecimal bytes separated by ':', unicast, not all zero";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            *octet = u8::from_str_radix(part, 16).ok()?;
        }
        let multicast = octets.first().is_some_and(|first| first & 1 != 0);
        (parts.next().is_none() && !multicast && octets != [0; 6]).then_some(Self(octets))
    }

    pub(crate) fn from_octets(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    pub(crate) fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Locally administered, unicast.
    fn from_hash(hash: u64) -> Self {
        let [_, _, octets @ ..] = hash.to_be_bytes();
        let mut mac = Self(octets);
        mac.0[0] = mac.0[0] & 0xfc | 0x02;
        mac
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl Attachment {
    /// `fl` and 13 characters of a 64-bit hash: always the same for the same
    /// attachment, so that DEL finds it without any state.
    pub(crate) fn host_ifname(&self) -> String {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
        let hash = self.hash(b"host interface");
        let mut name = String::from("fl");
        for digit in 0..13 {
            let index = (hash >> (5 * digit)) & 31;
            name.extend(
                DIGITS
                    .get(usize::from(index as u8))
                    .map(|byte| char::from(*byte)),
            );
        }
        name
    }

    pub(crate) fn pod_mac(&self) -> Mac {
        Mac::from_hash(self.hash(b"pod address"))
    }

    pub(crate) fn host_mac(&self) -> Mac {
        Mac::from_hash(self.hash(b"host address"))
    }

    /// FNV-1a with a final mix, so that every bit of the output depends on all input.
    fn hash(&self, salt: &[u8]) -> u64 {
        let parts = [
            salt,
            b"/",
            self.container_id.as_bytes(),
            b"/",
            self.ifname.as_bytes(),
        ];
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in parts.into_iter().flatten() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^ (hash >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn text_and_octets_are_the_same_address() {
        let mac = Mac::parse("02:0a:ff:00:00:10").unwrap();
        assert_eq!(mac.octets(), [2, 10, 255, 0, 0, 16]);
        assert_eq!(mac.to_string(), "02:0a:ff:00:00:10");
    }

    #[test]
    fn what_no_interface_can_have_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "zz:00:00:00:00:01",
        ] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_short_stable_and_differ() {
        let attachment = |id: usize, ifname: &str| Attachment {
            container_id: format!("{id:064x}"),
            ifname: ifname.into(),
        };
        let mut names = HashSet::new();
        let mut macs = HashSet::new();
        for id in 0..20_000 {
            for ifname in ["eth0", "eth1"] {
                let one = attachment(id, ifname);
                let name = one.host_ifname();
                assert_eq!(name.len(), 15);
                assert_eq!(name, attachment(id, ifname).host_ifname());
                assert!(names.insert(name));
                assert!(macs.insert(one.pod_mac().octets()));
                assert!(macs.insert(one.host_mac().octets()));
                assert!(Mac::parse(&one.pod_mac().to_string()).is_some());
            }
        }
    }
}
