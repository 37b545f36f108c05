//! Ranges of Service addresses: pure arithmetic.

use std::net::IpAddr;

/// A range of Service addresses.
#[derive(Clone, Debug)]
pub struct Range {
    pub(super) text: String,
    pub(super) base: IpAddr,
    /// Addresses, the network's own and IPv4's broadcast included.
    pub(super) size: u128,
}

/// Why a range cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is no address range; hint: write 10.96.0.0/16 or fd00:96::/112, at least 8 addresses"
)]
pub struct RangeError {
    text: String,
}

impl Range {
    /// Reads a CIDR.
    ///
    /// # Errors
    /// [`RangeError`] quoting it.
    pub fn parse(text: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError {
            text: text.to_owned(),
        };
        let (base, bits) = text.split_once('/').ok_or_else(wrong)?;
        let base: IpAddr = base.parse().map_err(|_no_address| wrong())?;
        let bits: u32 = bits.parse().map_err(|_no_number| wrong())?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        let host = width - bits.min(width);
        if bits > width || host < 3 || number(base) & ((1 << host.min(127)) - 1) != 0 {
            return Err(wrong());
        }
        Ok(Self {
            text: text.to_owned(),
            base,
            size: 1 << host.min(64),
        })
    }

    /// `IPv4` or `IPv6`.
    pub fn family(&self) -> &'static str {
        if self.base.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    /// The first address that is given.
    pub fn first(&self) -> IpAddr {
        self.at(1)
    }

    /// The address at an offset.
    pub(super) fn at(&self, offset: u128) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                IpAddr::V4(u32::from(base).saturating_add(offset).into())
            }
            IpAddr::V6(base) => IpAddr::V6(u128::from(base).saturating_add(offset).into()),
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4()
            && number(address)
                .checked_sub(number(self.base))
                .is_some_and(|offset| offset > 0 && offset < self.last())
    }

    /// The first offset that is not given: IPv4's broadcast, or the end.
    pub(super) fn last(&self) -> u128 {
        if self.base.is_ipv4() {
            self.size - 1
        } else {
            self.size
        }
    }

    /// Offsets that are given to those who do not choose: the lower sixteenth,
    /// at most 256, is left to those who do.
    pub(super) fn dynamic(&self) -> std::ops::Range<u128> {
        let reserved = (self.size / 16).clamp(1, 256);
        reserved.min(self.last() - 1)..self.last()
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}
