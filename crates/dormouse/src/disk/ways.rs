//! Which place of a cache holds which block: sets of eight places, in which a block's address
//! leaves it no other choice.
//!
//! Invariant: a block is in one place of its set at most. Of a full set the place goes that was
//! not used for longest, about (CLOCK). Leaves to others: what the places hold.

use dormouse_format::Block;

/// Places of a set.
pub(super) const WAYS: usize = 8;
/// How often a place is passed over, at most, since it was used last.
const SPARED: u8 = 2;

/// The blocks of some sets.
#[derive(Debug)]
pub(super) struct Ways {
    /// The block and one; zero where there is none.
    keys: Vec<u64>,
    used: Vec<u8>,
    hand: usize,
}

impl Ways {
    pub(super) fn new(sets: usize) -> Self {
        Self { keys: vec![0; sets * WAYS], used: vec![0; sets * WAYS], hand: 0 }
    }

    /// The place that holds a block, which is used now.
    pub(super) fn find(&mut self, set: usize, block: Block) -> Option<usize> {
        let place = self.place(set, block)?;
        self.used[place] = SPARED;
        Some(place)
    }

    /// The place that holds a block.
    pub(super) fn place(&self, set: usize, block: Block) -> Option<usize> {
        let keys = &self.keys[set * WAYS..][..WAYS];
        keys.iter().position(|key| *key == block + 1).map(|way| set * WAYS + way)
    }

    /// The place where a block is to be put: where it is, an empty one, or that of another.
    pub(super) fn choose(&mut self, set: usize, block: Block) -> usize {
        let first = set * WAYS;
        let there = |key: u64| self.keys[first..][..WAYS].iter().position(|k| *k == key);
        if let Some(way) = there(block + 1).or_else(|| there(0)) {
            return first + way;
        }
        loop {
            self.hand = (self.hand + 1) % WAYS;
            let place = first + self.hand;
            if self.used[place] == 0 {
                return place;
            }
            self.used[place] -= 1;
        }
    }

    /// The place holds this block now.
    pub(super) fn put(&mut self, place: usize, block: Block) {
        self.keys[place] = block + 1;
        self.used[place] = SPARED - 1;
    }

    /// The block that a place holds.
    pub(super) fn block(&self, place: usize) -> Option<Block> {
        self.keys[place].checked_sub(1)
    }

    /// Takes all blocks of a range out.
    pub(super) fn forget(&mut self, range: &core::ops::Range<Block>) {
        for place in 0..self.keys.len() {
            if self.block(place).is_some_and(|block| range.contains(&block)) {
                self.clear(place);
            }
        }
    }

    pub(super) fn clear(&mut self, place: usize) {
        self.keys[place] = 0;
        self.used[place] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_longer_than_what_is_not() {
        let mut ways = Ways::new(2);
        for block in 0..1000u64 {
            let place = ways.choose(1, block);
            assert!((WAYS..2 * WAYS).contains(&place));
            ways.put(place, block);
            assert!(ways.find(1, 0).is_some(), "after {block}");
            assert!(ways.place(1, block).is_some());
        }
        assert_eq!(ways.keys[..WAYS], [0; WAYS]);
        let distinct: std::collections::BTreeSet<_> = ways.keys[WAYS..].iter().collect();
        assert_eq!(distinct.len(), WAYS);
        let place = ways.place(1, 0).unwrap();
        ways.clear(place);
        assert_eq!((ways.place(1, 0), ways.choose(1, 5000)), (None, place));
    }
}
