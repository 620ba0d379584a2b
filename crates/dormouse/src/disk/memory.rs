//! Opened blocks in memory.
//!
//! Invariant: what is here was proved, for the address where it stands; memory is bounded, and
//! taken only as it is filled. One lock is held for one copy of one block.

use core::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormouse_format::Block;
use dormouse_format::limits::BLOCK_SIZE;

use super::ways::{WAYS, Ways};

const SHARDS: usize = 64;
/// Blocks next to each other that lie in one shard.
const STRIPE: u64 = 16;

/// The cache.
pub(super) struct Memory {
    shards: Vec<Mutex<Shard>>,
    /// Sets of a shard.
    sets: u64,
}

struct Shard {
    ways: Ways,
    data: Vec<u8>,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        let sets = (bytes / BLOCK_SIZE as u64 / (SHARDS * WAYS) as u64).max(1);
        let shard = || Shard {
            ways: Ways::new(sets as usize),
            data: vec![0; sets as usize * WAYS * BLOCK_SIZE],
        };
        Self { shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(), sets }
    }

    fn shard(&self, block: Block) -> (MutexGuard<'_, Shard>, usize) {
        let stripe = block / STRIPE;
        let local = stripe / SHARDS as u64 * STRIPE + block % STRIPE;
        let shard = &self.shards[(stripe % SHARDS as u64) as usize];
        (shard.lock().unwrap_or_else(PoisonError::into_inner), (local % self.sets) as usize)
    }

    /// Copies a block out, if it is here.
    pub(super) fn get(&self, block: Block, out: &mut [u8]) -> bool {
        let (mut shard, set) = self.shard(block);
        let Some(place) = shard.ways.find(set, block) else { return false };
        out.copy_from_slice(&shard.data[place * BLOCK_SIZE..][..BLOCK_SIZE]);
        true
    }

    pub(super) fn holds(&self, block: Block) -> bool {
        let (shard, set) = self.shard(block);
        shard.ways.place(set, block).is_some()
    }

    pub(super) fn put(&self, block: Block, bytes: &[u8]) {
        let (mut shard, set) = self.shard(block);
        let place = shard.ways.choose(set, block);
        shard.ways.put(place, block);
        shard.data[place * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(bytes);
    }

    /// What the map had here is no more.
    pub(super) fn forget(&self, range: Range<Block>) {
        if range.end - range.start > (self.sets as usize * SHARDS * WAYS) as u64 {
            for shard in &self.shards {
                shard.lock().unwrap_or_else(PoisonError::into_inner).ways.forget(&range);
            }
            return;
        }
        for block in range {
            let (mut shard, set) = self.shard(block);
            if let Some(place) = shard.ways.place(set, block) {
                shard.ways.clear(place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_and_nothing_else() {
        let memory = Memory::new(4 << 20);
        let mut out = [0; BLOCK_SIZE];
        for round in 0..3u64 {
            for block in 0..1024 {
                memory.put(block, &[(block + round) as u8; BLOCK_SIZE]);
            }
            for block in 0..1024 {
                assert!(memory.get(block, &mut out), "all fit: {block}");
                assert_eq!(out, [(block + round) as u8; BLOCK_SIZE]);
            }
        }
        (1024..9000).for_each(|block| memory.put(block, &[block as u8; BLOCK_SIZE]));
        let left: Vec<Block> = (0..1 << 20).filter(|b| memory.get(*b, &mut out)).collect();
        assert_eq!(left.len(), 1024);
        memory.forget(left[7]..left[7] + 1);
        assert!(!memory.holds(left[7]) && memory.holds(left[8]));
        memory.forget(left[8]..left[500]);
        memory.forget(left[600]..1 << 30);
        let still = |block: &&Block| memory.holds(**block);
        let held: Vec<_> = left.iter().filter(still).copied().collect();
        assert_eq!(held, [&left[..7], &left[500..600]].concat());
    }
}
