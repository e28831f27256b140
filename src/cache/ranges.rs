//! Sets of byte ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes, kept as sorted ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range; an empty one adds nothing.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&before, &until)) = self.ranges.range(..=end).next_back() {
            if until < start {
                break;
            }
            start = start.min(before);
            end = end.max(until);
            self.ranges.remove(&before);
        }
        self.ranges.insert(start, end);
    }

    /// Whether every byte of the range is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.ranges.range(..=range.start).next_back().is_some_and(|(_, &until)| until >= range.end)
    }

    /// The parts of a range that are not in the set, in order.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = match self.ranges.range(..=range.start).next_back() {
            Some((_, &until)) => range.start.max(until),
            None => range.start,
        };
        for (&start, &end) in self.ranges.range(range.start..) {
            if start >= range.end {
                break;
            }
            if at < start {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // The same cases every time.
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            rng_seed: proptest::test_runner::RngSeed::Fixed(1),
            ..ProptestConfig::default()
        })]

        #[test]
        fn agrees_with_a_set_of_bytes(
            inserts in proptest::collection::vec((0_u64..64, 0_u64..16), 0..12),
            (from, length) in (0_u64..64, 0_u64..40),
        ) {
            let mut set = RangeSet::default();
            let mut bytes = [false; 128];
            for (start, length) in inserts {
                set.insert(start..start + length);
                (start..start + length).for_each(|at| bytes[at as usize] = true);
            }
            let asked = from..from + length;
            let missing: Vec<u64> = set.missing(asked.clone()).into_iter().flatten().collect();
            let expected: Vec<u64> = asked.clone().filter(|&at| !bytes[at as usize]).collect();
            prop_assert_eq!(set.contains(&asked), expected.is_empty());
            prop_assert_eq!(missing, expected);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
