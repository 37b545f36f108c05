//! Backend choice.

/// The slot of a range of `count` slots that the 32 random bits `random`
/// choose: every slot equally often to within `count / 2^32`. 0 if `count` is 0.
#[inline(always)]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_stay_in_range_and_reach_every_slot() {
        for count in 1..100_u32 {
            let step = u32::MAX / (count * 4);
            let mut seen = vec![false; count as usize];
            for i in 0..=count * 4 {
                seen[pick(i.saturating_mul(step), count) as usize] = true;
            }
            assert!(seen.iter().all(|s| *s), "{count}");
        }
        assert_eq!(pick(u32::MAX, 0), 0);
    }
}
