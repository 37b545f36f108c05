//! Address choice: which address comes next, given the taken ones. Pure; the
//! taken ones are kept on disk by [`crate::state`].

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

/// Ranges in one configuration; more are a mistake.
const RANGES_MAX: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum IpamError {
    #[error("{0}")]
    NotARange(String),
    #[error("{0:?} is no CIDR")]
    NotACidr(String),
    #[error("{0} has host bits set")]
    HostBits(IpNetwork),
    #[error("{0} is not for pods: loopback, link-local, multicast or unspecified")]
    Unusable(IpNetwork),
    #[error("{0} lies outside of {1}")]
    Outside(IpAddr, IpNetwork),
    #[error("rangeStart {0} comes after rangeEnd {1}")]
    Reversed(IpAddr, IpAddr),
    #[error("{0} and {1} overlap")]
    Overlap(Range, Range),
    #[error("none is given")]
    NoRanges,
    #[error("{0} ranges are too many")]
    TooMany(usize),
    #[error("all addresses of {0} are taken")]
    Exhausted(String),
    #[error("{0} is taken")]
    Taken(IpAddr),
    #[error("{0} is in no range of this network")]
    NotOurs(IpAddr),
}

impl IpamError {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::NotARange(_) | Self::NotACidr(_) => {
                "\"10.244.1.0/24\" or {\"subnet\": \"10.244.1.0/24\", \"rangeStart\", \"rangeEnd\"}"
            }
            Self::HostBits(_) => "give the network's address, as in 10.244.1.0/24",
            Self::Unusable(_) => "take a private or global range",
            Self::Outside(..) | Self::Reversed(..) => "rangeStart..=rangeEnd lies in the subnet",
            Self::Overlap(..) => "leave one out",
            Self::NoRanges => "set podCIDRs: [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]",
            Self::TooMany(_) => "at most 64",
            Self::Exhausted(_) => {
                "remove pods, run GC for those that vanished, or add a range to the configuration"
            }
            Self::Taken(_) | Self::NotOurs(_) => "ask for another address, or for none",
        }
    }
}

/// Addresses from `first` to `last` of one family, as numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    v6: bool,
    first: u128,
    last: u128,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}",
            self.address(self.first),
            self.address(self.last)
        )
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

impl Range {
    /// A CIDR, or an object of `subnet` and optionally `rangeStart` and `rangeEnd`.
    pub(crate) fn parse(value: &Value) -> Result<Self, IpamError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Object {
            subnet: String,
            range_start: Option<IpAddr>,
            range_end: Option<IpAddr>,
        }
        let object = match value {
            Value::String(subnet) => Object {
                subnet: subnet.clone(),
                range_start: None,
                range_end: None,
            },
            other => Object::deserialize(other)
                .map_err(|error| IpamError::NotARange(error.to_string()))?,
        };
        let subnet: IpNetwork = match object.subnet.parse() {
            Ok(subnet) if object.subnet.contains('/') => subnet,
            _ => return Err(IpamError::NotACidr(object.subnet)),
        };
        Self::new(subnet, object.range_start, object.range_end)
    }

    fn new(
        subnet: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
    ) -> Result<Self, IpamError> {
        if subnet.ip() != subnet.network() {
            return Err(IpamError::HostBits(subnet));
        }
        let ip = subnet.ip();
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
            return Err(IpamError::Unusable(subnet));
        }
        for bound in [start, end].into_iter().flatten() {
            if !subnet.contains(bound) {
                return Err(IpamError::Outside(bound, subnet));
            }
        }
        let v6 = subnet.is_ipv6();
        let host_bits = if v6 { 128 } else { 32 } - u32::from(subnet.prefix());
        let hosts = u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
        let mut first = number(ip);
        let mut last = first | hosts;
        // Of two addresses or one, none is special (RFC 3021, RFC 6164).
        if host_bits > 1 {
            // IPv4: the network's own address. IPv6: the subnet-router anycast address.
            first += 1;
            last -= u128::from(!v6);
        }
        first = start.map_or(first, |ip| number(ip).max(first));
        last = end.map_or(last, |ip| number(ip).min(last));
        let range = Self { v6, first, last };
        if first > last {
            return Err(IpamError::Reversed(
                range.address(first),
                range.address(last),
            ));
        }
        Ok(range)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv6() == self.v6 && (self.first..=self.last).contains(&number(ip))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "an IPv4 range comes from 32 bits"
    )]
    fn address(&self, number: u128) -> IpAddr {
        if self.v6 {
            Ipv6Addr::from(number).into()
        } else {
            Ipv4Addr::from(number as u32).into()
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.last && other.first <= self.last
    }

    /// The first address from `from` to `to` that is not taken. At most
    /// `taken.len() + 1` look-ups.
    fn first_free(&self, from: u128, to: u128, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
        (from..=to)
            .map(|number| self.address(number))
            .find(|ip| !taken.contains(ip))
    }
}

/// The ranges of a network, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pools(Vec<Range>);

impl Pools {
    pub(crate) fn new(ranges: Vec<Range>) -> Result<Self, IpamError> {
        if ranges.is_empty() {
            return Err(IpamError::NoRanges);
        }
        if ranges.len() > RANGES_MAX {
            return Err(IpamError::TooMany(ranges.len()));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().skip(index + 1).find(|o| range.overlaps(o)) {
                return Err(IpamError::Overlap(*range, *other));
            }
        }
        Ok(Self(ranges))
    }

    /// One address per family that has a range, IPv4 first. `requested` ones
    /// are given or refused; the others are the next free after `last`, the
    /// addresses given last, so that an address rests as long as possible.
    pub(crate) fn allocate(
        &self,
        taken: &HashSet<IpAddr>,
        last: &[IpAddr],
        requested: &[IpAddr],
    ) -> Result<Vec<IpAddr>, IpamError> {
        for ip in requested {
            if !self.0.iter().any(|range| range.contains(*ip)) {
                return Err(IpamError::NotOurs(*ip));
            }
            if taken.contains(ip) {
                return Err(IpamError::Taken(*ip));
            }
        }
        let mut ips = Vec::new();
        for v6 in [false, true] {
            let ranges: Vec<_> = self.0.iter().filter(|range| range.v6 == v6).collect();
            if ranges.is_empty() {
                continue;
            }
            let of_family = |ips: &[IpAddr]| ips.iter().copied().find(|ip| ip.is_ipv6() == v6);
            let chosen = of_family(requested)
                .or_else(|| next(&ranges, taken, of_family(last)))
                .ok_or_else(|| {
                    let names: Vec<_> = ranges.iter().map(ToString::to_string).collect();
                    IpamError::Exhausted(names.join(", "))
                })?;
            ips.push(chosen);
        }
        Ok(ips)
    }
}

/// The next free address after `last`, in its range, then in the others, then
/// from the beginning.
fn next(ranges: &[&Range], taken: &HashSet<IpAddr>, last: Option<IpAddr>) -> Option<IpAddr> {
    let start = last.and_then(|ip| Some((ranges.iter().position(|r| r.contains(ip))?, number(ip))));
    let Some((at, last)) = start else {
        return ranges
            .iter()
            .find_map(|r| r.first_free(r.first, r.last, taken));
    };
    let (before, rest) = ranges.split_at(at);
    let (current, after) = rest.split_first()?;
    let whole = |range: &&Range| range.first_free(range.first, range.last, taken);
    last.checked_add(1)
        .and_then(|from| current.first_free(from, current.last, taken))
        .or_else(|| after.iter().find_map(whole))
        .or_else(|| before.iter().find_map(whole))
        .or_else(|| current.first_free(current.first, last, taken))
}

#[cfg(test)]
mod tests;
