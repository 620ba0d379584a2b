//! A set of dirty blocks, in address order.
//!
//! Invariant: leaves ascend, and none is empty. Takes 40 bytes for each leaf (1 MiB) that has a
//! dirty block.

use dormouse_format::limits::LEAF_BLOCKS;

/// Words of 64 blocks in a leaf.
pub const LEAF_WORDS: usize = LEAF_BLOCKS as usize / 64;

/// Dirty blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    leaves: Vec<(u64, [u64; LEAF_WORDS])>,
}

impl Dirty {
    /// Adds a leaf behind those that are there.
    pub(crate) fn push(&mut self, leaf: u64, words: [u64; LEAF_WORDS]) {
        self.leaves.push((leaf, words));
    }

    /// These blocks, and behind them the others, all of which have higher addresses.
    pub(crate) fn append(&mut self, mut behind: Self) {
        self.leaves.append(&mut behind.leaves);
    }

    /// The blocks that are in both.
    pub fn and(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & b)
    }

    /// The blocks that are in either.
    pub fn or(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a | b)
    }

    /// Without those of the other.
    pub fn minus(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & !b)
    }

    fn combined(&self, other: &Self, both: impl Fn(u64, u64) -> u64) -> Self {
        let (mut all, mut others) = (Self::default(), other.leaves.iter().peekable());
        let none = [0; LEAF_WORDS];
        let mut push = |leaf, a: &[u64; LEAF_WORDS], b: &[u64; LEAF_WORDS]| {
            let words = std::array::from_fn(|i| both(a[i], b[i]));
            if words != none {
                all.push(leaf, words);
            }
        };
        for (leaf, words) in &self.leaves {
            while let Some((before, other)) = others.next_if(|(l, _)| l < leaf) {
                push(*before, &none, other);
            }
            let other = others.next_if(|(l, _)| l == leaf).map_or(&none, |(_, other)| other);
            push(*leaf, words, other);
        }
        for (leaf, other) in others {
            push(*leaf, &none, other);
        }
        all
    }

    /// These blocks; what comes doubled or out of order is put right.
    pub fn of_blocks(blocks: impl IntoIterator<Item = u64>) -> Self {
        let mut leaves = std::collections::BTreeMap::<u64, [u64; LEAF_WORDS]>::new();
        for block in blocks {
            let within = (block % LEAF_BLOCKS) as usize;
            leaves.entry(block / LEAF_BLOCKS).or_default()[within / 64] |= 1 << (within % 64);
        }
        Self { leaves: leaves.into_iter().collect() }
    }

    /// All blocks of a range.
    pub fn of_range(range: core::ops::Range<u64>) -> Self {
        let mut dirty = Self::default();
        if range.is_empty() {
            return dirty;
        }
        for leaf in range.start / LEAF_BLOCKS..range.end.div_ceil(LEAF_BLOCKS) {
            let words = std::array::from_fn(|i| {
                let first = leaf * LEAF_BLOCKS + i as u64 * 64;
                below(range.end.saturating_sub(first)) & !below(range.start.saturating_sub(first))
            });
            dirty.push(leaf, words);
        }
        dirty
    }

    /// The first leaves.
    pub fn first(&self, leaves: usize) -> Self {
        Self { leaves: self.leaves.iter().take(leaves).copied().collect() }
    }

    /// Of a leaf: which of its blocks.
    pub(crate) fn words(&self, leaf: u64) -> [u64; LEAF_WORDS] {
        let found = self.leaves.binary_search_by_key(&leaf, |(index, _)| *index);
        found.map_or([0; LEAF_WORDS], |i| self.leaves[i].1)
    }

    /// How many leaves have a dirty block.
    pub const fn leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// How many blocks.
    pub fn blocks(&self) -> u64 {
        let words = self.leaves.iter().flat_map(|(_, words)| words);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// The leaves, and which of their blocks.
    pub fn iter(&self) -> impl Iterator<Item = &(u64, [u64; LEAF_WORDS])> {
        self.leaves.iter()
    }

    /// Runs of dirty blocks of a leaf: first block within it, and how many.
    pub fn runs(&self, leaf: u64) -> Vec<(u16, u16)> {
        let Ok(found) = self.leaves.binary_search_by_key(&leaf, |(index, _)| *index) else {
            return Vec::new();
        };
        let words = &self.leaves[found].1;
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for block in 0..LEAF_BLOCKS as u16 {
            if words[usize::from(block) / 64] >> (block % 64) & 1 == 0 {
                continue;
            }
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }

    /// Runs of dirty blocks, over all leaves: first block, and how many.
    pub fn all_runs(&self) -> Vec<(u64, u64)> {
        let mut all: Vec<(u64, u64)> = Vec::new();
        for (leaf, _) in &self.leaves {
            for (first, count) in self.runs(*leaf) {
                let (first, count) = (leaf * LEAF_BLOCKS + u64::from(first), u64::from(count));
                match all.last_mut() {
                    Some((start, length)) if *start + *length == first => *length += count,
                    _ => all.push((first, count)),
                }
            }
        }
        all
    }

    /// Adds a range behind all blocks that are there.
    pub fn add_behind(&mut self, range: core::ops::Range<u64>) {
        let mut more = Self::of_range(range);
        if let (Some((last, to)), Some((first, from))) =
            (self.leaves.last_mut(), more.leaves.first())
            && last == first
        {
            to.iter_mut().zip(from).for_each(|(word, bits)| *word |= bits);
            more.leaves.remove(0);
        }
        self.append(more);
    }

    /// All blocks, one by one.
    pub fn all_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.leaves.iter().flat_map(|(leaf, words)| {
            (0..LEAF_BLOCKS)
                .filter(|b| words[*b as usize / 64] >> (b % 64) & 1 == 1)
                .map(move |b| leaf * LEAF_BLOCKS + b)
        })
    }

    /// Whether a block is among them.
    pub fn has(&self, block: u64) -> bool {
        let found = self.leaves.binary_search_by_key(&(block / LEAF_BLOCKS), |(leaf, _)| *leaf);
        let within = (block % LEAF_BLOCKS) as usize;
        found.is_ok_and(|i| self.leaves[i].1[within / 64] >> (within % 64) & 1 == 1)
    }

    /// Without these blocks.
    pub fn remove(&mut self, blocks: &std::collections::BTreeSet<u64>) {
        self.leaves.retain_mut(|(leaf, words)| {
            let first = *leaf * LEAF_BLOCKS;
            for block in blocks.range(first..first + LEAF_BLOCKS) {
                let within = (block - first) as usize;
                words[within / 64] &= !(1 << (within % 64));
            }
            *words != [0; LEAF_WORDS]
        });
    }

    /// Without the blocks from `end` on: those are gone from the disk.
    pub fn truncate(&mut self, end: u64) {
        self.leaves.retain_mut(|(leaf, words)| {
            for (i, word) in words.iter_mut().enumerate() {
                let first = *leaf * LEAF_BLOCKS + i as u64 * 64;
                *word &= below(end.saturating_sub(first));
            }
            *words != [0; LEAF_WORDS]
        });
    }
}

/// The first so many bits.
const fn below(count: u64) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_all_of_its_blocks() {
        for (start, end) in [(0, 0), (0, 1), (5, 5), (63, 65), (255, 257), (256, 1024), (1, 3000)] {
            assert_eq!(Dirty::of_range(start..end), Dirty::of_blocks(start..end), "{start}..{end}");
        }
        let some = Dirty::of_blocks([1, 300, 600]);
        assert_eq!((some.first(2), some.first(9)), (Dirty::of_blocks([1, 300]), some.clone()));
    }

    #[test]
    fn blocks_become_runs_of_leaves() {
        let dirty = Dirty::of_blocks([5, 3, 4, 63, 64, 255, 256, 1000, 5]);
        assert_eq!(dirty.runs(0), [(3, 3), (63, 2), (255, 1)]);
        assert_eq!(dirty.runs(1), [(0, 1)]);
        assert_eq!(dirty.runs(2), []);
        assert_eq!((dirty.leaves(), dirty.blocks()), (3, 8));
        assert_eq!(dirty.all_blocks().collect::<Vec<_>>(), [3, 4, 5, 63, 64, 255, 256, 1000]);
    }

    #[test]
    fn runs_of_all_leaves_make_the_set_again() {
        let dirty = Dirty::of_blocks((0..3).chain(250..520).chain([700, 1023, 1024, 5000]));
        let runs = [(0, 3), (250, 270), (700, 1), (1023, 2), (5000, 1)];
        assert_eq!(dirty.all_runs(), runs);
        let mut again = Dirty::default();
        runs.into_iter().for_each(|(first, count)| again.add_behind(first..first + count));
        assert_eq!(again, dirty);
    }

    #[test]
    fn blocks_can_be_taken_out() {
        let mut dirty = Dirty::of_blocks([1, 2, 64, 300, 5000]);
        assert!(dirty.has(64) && !dirty.has(65) && dirty.has(5000) && !dirty.has(700));
        dirty.remove(&[2, 3, 300, 5000].into());
        assert_eq!(dirty, Dirty::of_blocks([1, 64]));
    }

    #[test]
    fn sets_are_combined_as_sets() {
        let sets = [
            vec![],
            vec![1, 2, 300],
            vec![2, 255, 256, 300, 9000],
            vec![700, 9000, 9001],
            (0..1000).collect(),
        ];
        for (a, b) in sets.iter().flat_map(|a| sets.iter().map(move |b| (a, b))) {
            let of = |keep: &dyn Fn(&u64) -> bool| {
                Dirty::of_blocks(a.iter().chain(b).copied().filter(|block| keep(block)))
            };
            let (x, y) = (Dirty::of_blocks(a.clone()), Dirty::of_blocks(b.clone()));
            assert_eq!(x.and(&y), of(&|n| a.contains(n) && b.contains(n)));
            assert_eq!(x.or(&y), of(&|_| true));
            assert_eq!(x.minus(&y), of(&|n| a.contains(n) && !b.contains(n)));
        }
    }

    #[test]
    fn what_lies_behind_the_end_goes() {
        for end in [0, 1, 63, 64, 65, 255, 256, 257, 2000] {
            let mut dirty = Dirty::of_blocks(0..1500);
            dirty.truncate(end);
            assert_eq!(dirty, Dirty::of_blocks(0..end.min(1500)), "{end}");
        }
    }
}
