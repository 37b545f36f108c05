//! Address choice against a naive model.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn pools(ranges: &[&str]) -> Pools {
    Pools::new(
        ranges
            .iter()
            .map(|r| Range::parse(&json!(r)).unwrap())
            .collect(),
    )
    .unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn both_families_get_one_address() {
    let pools = pools(&["10.0.0.0/29", "fd00::/64"]);
    let ips = pools.allocate(&HashSet::new(), &[], &[]).unwrap();
    assert_eq!(ips, [ip("10.0.0.1"), ip("fd00::1")]);
    let next = pools.allocate(&HashSet::new(), &ips, &[]).unwrap();
    assert_eq!(next, [ip("10.0.0.2"), ip("fd00::2")]);
}

#[test]
fn network_and_broadcast_addresses_are_never_given() {
    let pools = pools(&["10.0.0.0/30"]);
    let mut taken = HashSet::new();
    for expected in ["10.0.0.1", "10.0.0.2"] {
        let ips = pools.allocate(&taken, &[], &[]).unwrap();
        assert_eq!(ips, [ip(expected)]);
        taken.extend(ips);
    }
    let error = pools.allocate(&taken, &[], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "all addresses of 10.0.0.1-10.0.0.2 are taken"
    );
}

#[test]
fn the_whole_of_a_point_to_point_range_is_given() {
    for (range, count) in [("10.0.0.0/31", 2), ("10.0.0.7/32", 1), ("fd00::/127", 2)] {
        let pools = pools(&[range]);
        let mut taken = HashSet::new();
        for _ in 0..count {
            taken.extend(pools.allocate(&taken, &[], &[]).unwrap());
        }
        assert_eq!(taken.len(), count);
        assert!(pools.allocate(&taken, &[], &[]).is_err());
    }
}

#[test]
fn a_requested_address_is_given_once() {
    let pools = pools(&["10.0.0.0/24", "fd00::/64"]);
    let wish = [ip("10.0.0.77")];
    let ips = pools.allocate(&HashSet::new(), &[], &wish).unwrap();
    assert_eq!(ips, [ip("10.0.0.77"), ip("fd00::1")]);
    let taken: HashSet<_> = ips.into_iter().collect();
    assert_eq!(
        pools.allocate(&taken, &[], &wish),
        Err(IpamError::Taken(wish[0]))
    );
    let foreign = ip("10.0.1.1");
    assert_eq!(
        pools.allocate(&taken, &[], &[foreign]),
        Err(IpamError::NotOurs(foreign))
    );
}

#[test]
fn bad_ranges_are_refused_with_the_reason() {
    let check = |value: Value, reason: &str| {
        let text = Range::parse(&value).unwrap_err().to_string();
        assert!(text.contains(reason), "{value}: {text}");
    };
    check(json!("10.0.0.1/24"), "host bits");
    check(json!("10.0.0.0"), "no CIDR");
    check(json!("10.0.0.0/33"), "no CIDR");
    check(json!("pods"), "no CIDR");
    check(json!("127.0.0.0/8"), "not for pods");
    check(json!("169.254.0.0/16"), "not for pods");
    check(json!("ff00::/8"), "not for pods");
    check(json!(7), "invalid type");
    check(
        json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.1"}),
        "gateway",
    );
    check(
        json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}),
        "outside",
    );
    check(
        json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}),
        "comes after",
    );
    check(json!([{"subnet": "10.0.0.0/24"}]), "invalid type");
}

#[test]
fn overlapping_ranges_are_refused() {
    let ranges = ["10.0.0.0/16", "10.0.3.0/24"];
    let ranges = ranges
        .iter()
        .map(|r| Range::parse(&json!(r)).unwrap())
        .collect();
    assert!(matches!(Pools::new(ranges), Err(IpamError::Overlap(..))));
    assert_eq!(Pools::new(Vec::new()), Err(IpamError::NoRanges));
}

/// All addresses of small ranges, in order: the naive model.
fn all(ranges: &[Range]) -> Vec<IpAddr> {
    ranges
        .iter()
        .flat_map(|r| (r.first..=r.last).map(|n| r.address(n)))
        .collect()
}

proptest! {
    #[test]
    fn allocation_is_the_next_free_one_of_the_ring(
        third in prop::collection::btree_set(0_u8..40, 1..5),
        bits in 28_u8..=32,
        v6 in any::<bool>(),
        density in 0_u8..=10,
        picks in prop::collection::vec(0_u8..10, 100),
    ) {
        let ranges: Vec<Range> = third
            .iter()
            .map(|n| {
                let cidr = if v6 {
                    format!("fd00::{n:x}00/{}", bits + 96)
                } else {
                    format!("10.0.{n}.0/{bits}")
                };
                Range::parse(&json!(cidr)).unwrap()
            })
            .collect();
        let ring = all(&ranges);
        let taken: HashSet<IpAddr> = ring
            .iter()
            .zip(picks.iter().cycle())
            .filter(|(_, pick)| **pick < density)
            .map(|(ip, _)| *ip)
            .collect();
        let pools = Pools::new(ranges).unwrap();
        for (at, last) in ring.iter().enumerate() {
            let expected = ring[at + 1..]
                .iter()
                .chain(&ring[..=at])
                .find(|ip| !taken.contains(ip))
                .copied();
            let given = pools.allocate(&taken, &[*last], &[]).ok().map(|ips| ips[0]);
            prop_assert_eq!(given, expected);
        }
        let given = pools.allocate(&taken, &[], &[]).ok().map(|ips| ips[0]);
        prop_assert_eq!(given, ring.iter().find(|ip| !taken.contains(ip)).copied());
    }
}
