//! Which blocks are known to be zeros.
//!
//! Invariant: only what the map proved; bounded, however large the volume.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormouse_format::Block;
use dormouse_format::limits::LEAF_BLOCKS;

const SHARDS: u64 = 16;
/// Leaves of a shard, at most.
const LEAVES: usize = 4096;

/// A bit for each block of a leaf.
pub(super) type Bits = [u64; 4];

/// Zeros by leaf.
pub(super) struct Zeros {
    shards: Vec<Mutex<HashMap<u64, Bits>>>,
}

impl Zeros {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, leaf: u64) -> MutexGuard<'_, HashMap<u64, Bits>> {
        self.shards[(leaf % SHARDS) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, leaf: u64, zero: Bits) {
        let mut shard = self.shard(leaf);
        if zero == [0; 4] {
            shard.remove(&leaf);
            return;
        }
        if shard.len() >= LEAVES && !shard.contains_key(&leaf) {
            shard.clear();
        }
        shard.insert(leaf, zero);
    }

    pub(super) fn holds(&self, block: Block) -> bool {
        let i = block % LEAF_BLOCKS;
        let shard = self.shard(block / LEAF_BLOCKS);
        shard.get(&(block / LEAF_BLOCKS)).is_some_and(|z| z[i as usize / 64] >> (i % 64) & 1 == 1)
    }

    /// What the map had here is no more.
    pub(super) fn forget(&self, range: core::ops::Range<Block>) {
        let leaves = range.start / LEAF_BLOCKS..range.end.div_ceil(LEAF_BLOCKS);
        if leaves.end - leaves.start > LEAVES as u64 {
            for shard in &self.shards {
                let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                shard.retain(|leaf, _| !leaves.contains(leaf));
            }
            return;
        }
        for leaf in leaves {
            self.shard(leaf).remove(&leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_it_was_told_and_is_bounded() {
        let zeros = Zeros::new();
        zeros.put(3, [1, 0, 0, 1 << 63]);
        let known: Vec<Block> = (0..5 * LEAF_BLOCKS).filter(|b| zeros.holds(*b)).collect();
        assert_eq!(known, [3 * LEAF_BLOCKS, 4 * LEAF_BLOCKS - 1]);
        zeros.put(3, [0; 4]);
        assert!(!zeros.holds(3 * LEAF_BLOCKS));
        zeros.put(4, [1; 4]);
        zeros.put(6, [1; 4]);
        zeros.forget(5 * LEAF_BLOCKS - 1..6 * LEAF_BLOCKS);
        assert!(!zeros.holds(4 * LEAF_BLOCKS) && zeros.holds(6 * LEAF_BLOCKS));
        zeros.forget(0..1 << 40);
        assert!(!zeros.holds(6 * LEAF_BLOCKS));
        (0..1_000_000).for_each(|leaf| zeros.put(leaf, [u64::MAX; 4]));
        let total: usize = (0..SHARDS).map(|s| zeros.shard(s).len()).sum();
        assert!(total <= LEAVES * SHARDS as usize);
        assert!(zeros.holds(999_999 * LEAF_BLOCKS));
    }
}
