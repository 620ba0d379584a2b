//! Runs of blocks.
//!
//! Invariant: they ascend, and between two of them is at least one block that is in neither. Takes 16
//! bytes for each, however long it is.

use core::ops::Range;

use dormouse_format::limits::LEAF_BLOCKS;

use crate::dirty::Dirty;

/// Blocks, as runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(Vec<Range<u64>>);

impl Runs {
    /// Of ranges in any order, which may overlap.
    pub fn of(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_unstable_by_key(|range| range.start);
        let mut runs = Self::default();
        ranges.into_iter().for_each(|range| runs.add_behind(range));
        runs
    }

    /// The same blocks.
    pub fn of_dirty(dirty: &Dirty) -> Self {
        let runs = dirty.all_runs().into_iter().map(|(first, count)| first..first + count);
        Self(runs.collect())
    }

    /// The same blocks.
    pub fn to_dirty(&self) -> Dirty {
        let mut dirty = Dirty::default();
        self.0.iter().for_each(|run| dirty.add_behind(run.clone()));
        dirty
    }

    /// Adds a range that begins no earlier than the last run.
    pub(crate) fn add_behind(&mut self, range: Range<u64>) {
        match self.0.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.0.push(range),
        }
    }

    /// The blocks that are in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        Self::of([&self.0[..], &other.0[..]].concat())
    }

    /// Without those of the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let (mut left, mut others) = (Self::default(), other.0.iter().peekable());
        for run in &self.0 {
            let mut start = run.start;
            while let Some(other) = others.peek() {
                if other.start >= run.end {
                    break;
                }
                left.add_behind(start..other.start.max(start));
                start = start.max(other.end);
                if other.end > run.end {
                    break;
                }
                others.next();
            }
            left.add_behind(start..run.end.max(start));
        }
        left
    }

    /// Without the blocks from `end` on.
    pub fn truncate(&mut self, end: u64) {
        self.0.retain_mut(|run| {
            run.end = run.end.min(end);
            !run.is_empty()
        });
    }

    /// The first so many blocks, taken out.
    #[must_use]
    pub fn take_first(&mut self, mut blocks: u64) -> Self {
        let mut first = Self::default();
        while let Some(run) = self.0.get(first.len()).filter(|_| blocks > 0) {
            let end = run.end.min(run.start.saturating_add(blocks));
            blocks -= end - run.start;
            first.0.push(run.start..end);
        }
        *self = self.minus(&first);
        first
    }

    /// Those of the first so many leaves that have any.
    #[must_use]
    pub fn first_leaves(&self, mut leaves: u64) -> Self {
        let (mut first, mut seen) = (Self::default(), None);
        for run in &self.0 {
            let begun = run.start / LEAF_BLOCKS;
            let new = u64::from(seen != Some(begun));
            if leaves < new {
                break;
            }
            // The first leaf of this run may have been counted before.
            let end = (begun + (leaves + 1 - new)) * LEAF_BLOCKS;
            let end = run.end.min(end);
            let last = (end - 1) / LEAF_BLOCKS;
            leaves -= last - begun + new;
            seen = Some(last);
            first.0.push(run.start..end);
            if end < run.end {
                break;
            }
        }
        first
    }

    /// The last run, taken out.
    pub(crate) fn pop(&mut self) -> Option<Range<u64>> {
        self.0.pop()
    }

    /// The runs.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// How many runs.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many blocks.
    pub fn blocks(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// How many leaves have one of the blocks.
    pub fn leaves(&self) -> u64 {
        let mut seen = None;
        let each = self.0.iter().map(|run| {
            let (first, last) = (run.start / LEAF_BLOCKS, (run.end - 1) / LEAF_BLOCKS);
            let again = u64::from(seen == Some(first));
            seen = Some(last);
            last + 1 - first - again
        });
        each.sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn set(runs: &Runs) -> BTreeSet<u64> {
        runs.iter().flat_map(Clone::clone).collect()
    }

    /// They ascend, none is empty, and none touches the next.
    fn is_sound(runs: &Runs) -> bool {
        runs.iter().all(|run| !run.is_empty()) && runs.0.is_sorted_by(|a, b| a.end < b.start)
    }

    #[test]
    fn runs_are_sets_of_blocks() {
        let mut state = 5u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for _ in 0..3000 {
            let mut some = || {
                let n = below(12);
                let ranges = (0..n).map(|_| {
                    let first = below(3000);
                    first..first + below(400)
                });
                Runs::of(ranges.collect())
            };
            let (a, b) = (some(), some());
            let (x, y) = (set(&a), set(&b));
            let (either, rest) = (a.or(&b), a.minus(&b));
            assert!([&a, &either, &rest].into_iter().all(is_sound));
            assert_eq!(set(&either), &x | &y);
            assert_eq!(set(&rest), &x - &y, "{a:?} {b:?}");
            assert_eq!((Runs::of_dirty(&a.to_dirty()), a.blocks()), (a.clone(), x.len() as u64));
            let leaves = |set: &BTreeSet<u64>| -> BTreeSet<u64> {
                set.iter().map(|block| block / LEAF_BLOCKS).collect()
            };
            assert_eq!(a.leaves(), leaves(&x).len() as u64);
            let n = below(14);
            let first: BTreeSet<u64> = leaves(&x).into_iter().take(n as usize).collect();
            let of_first = x.iter().copied().filter(|b| first.contains(&(b / LEAF_BLOCKS)));
            assert_eq!(set(&a.first_leaves(n)), of_first.collect(), "{n} of {a:?}");
            let (mut left, n) = (a.clone(), below(900));
            let taken = left.take_first(n);
            assert_eq!(set(&taken), x.iter().copied().take(n as usize).collect());
            assert_eq!((set(&left), is_sound(&left)), (&x - &set(&taken), true));
            let mut short = a.clone();
            short.truncate(n);
            assert_eq!((set(&short), is_sound(&short)), (x.range(..n).copied().collect(), true));
        }
    }
}
