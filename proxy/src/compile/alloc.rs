//! Stable numbers: ranges of ids that are handed out lowest first and come back
//! only in the update after the one that gave them up, when no program can
//! still hold them.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
pub(super) struct Ranges {
    /// Base -> length, neither empty nor adjoining.
    free: BTreeMap<u32, u32>,
    given_up: BTreeSet<(u32, u32)>,
}

impl Ranges {
    /// Hands out `from..to`.
    pub(super) fn new(from: u32, to: u32) -> Self {
        Self {
            free: BTreeMap::from([(from, to - from)]),
            given_up: BTreeSet::new(),
        }
    }

    /// The lowest range of `length` ids, if there is one.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        let (&base, &free) = self.free.iter().find(|(_, free)| **free >= length)?;
        self.free.remove(&base);
        if free > length {
            self.free.insert(base + length, free - length);
        }
        Some(base)
    }

    /// Takes exactly this range; `false` if part of it is taken.
    fn claim(&mut self, base: u32, length: u32) -> bool {
        let Some((&start, &free)) = self.free.range(..=base).next_back() else {
            return false;
        };
        let (end, wanted) = (start + free, base.saturating_add(length));
        if wanted > end {
            return false;
        }
        self.free.remove(&start);
        if base > start {
            self.free.insert(start, base - start);
        }
        if wanted < end {
            self.free.insert(wanted, end - wanted);
        }
        true
    }

    /// Numbers found in use: taken until the next [`Ranges::settle`], unless adopted.
    pub(super) fn reserve(&mut self, base: u32, length: u32) {
        for number in base..base.saturating_add(length) {
            if self.claim(number, 1) {
                self.given_up.insert((number, 1));
            }
        }
    }

    /// Takes over a reserved range; `false`, and nothing is taken, if part of it
    /// was not reserved or is adopted already.
    pub(super) fn adopt(&mut self, base: u32, length: u32) -> bool {
        let numbers = || base..base.saturating_add(length);
        let reserved = numbers().all(|number| self.given_up.contains(&(number, 1)));
        if reserved {
            for number in numbers() {
                self.given_up.remove(&(number, 1));
            }
        }
        reserved
    }

    /// The range is no longer used; it is free from the next [`Ranges::settle`] on.
    pub(super) fn give_up(&mut self, base: u32, length: u32) {
        self.given_up.insert((base, length));
    }

    /// A new update begins: what the last one gave up is free.
    pub(super) fn settle(&mut self) {
        for (base, length) in std::mem::take(&mut self.given_up) {
            self.release(base, length);
        }
    }

    fn release(&mut self, mut base: u32, mut length: u32) {
        if let Some((&before, &free)) = self.free.range(..base).next_back()
            && before + free == base
        {
            base = before;
            length += free;
            self.free.remove(&before);
        }
        if let Some(after) = self.free.remove(&(base + length)) {
            length += after;
        }
        self.free.insert(base, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_given_up_is_reused_one_update_later() {
        let mut ranges = Ranges::new(2, 10);
        assert_eq!(ranges.take(4), Some(2));
        assert_eq!(ranges.take(4), Some(6));
        assert_eq!(ranges.take(1), None);
        ranges.give_up(2, 4);
        assert_eq!(ranges.take(1), None);
        ranges.settle();
        ranges.give_up(6, 4);
        ranges.settle();
        assert_eq!(ranges.take(8), Some(2));
    }

    #[test]
    fn a_reserved_number_is_adopted_or_free_one_update_later() {
        let mut ranges = Ranges::new(1, 5);
        ranges.reserve(0, 4);
        assert_eq!((ranges.take(1), ranges.take(1)), (Some(4), None));
        assert!(ranges.adopt(2, 2));
        assert!(!ranges.adopt(2, 1) && !ranges.adopt(1, 2));
        ranges.settle();
        assert_eq!((ranges.take(1), ranges.take(1)), (Some(1), None));
    }

    #[test]
    fn a_claimed_range_is_not_handed_out() {
        let mut ranges = Ranges::new(1, 10);
        assert!(ranges.claim(4, 2));
        assert!(!ranges.claim(5, 1));
        assert!(!ranges.claim(9, 2));
        assert_eq!(ranges.take(4), Some(6));
        assert_eq!(ranges.take(3), Some(1));
    }
}
