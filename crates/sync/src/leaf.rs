//! The data of one leaf on its way through the client, and the budget that bounds it.
//!
//! Invariant: the budget counts a leaf's bytes from when they are asked for
//! until the last chunk that holds a part of them is sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_crypt::VaultSecrets;
use dormouse_crypt::digest::Leaf as Hashes;
use dormouse_format::limits::{BLOCK_SIZE, FANOUT, LEAF_BLOCKS};
use dormouse_format::{Digest, Hash, Tag, VolumeId};

/// Bytes that a leaf costs besides its data.
const OVERHEAD: u64 = 12 << 10;

/// Buffers that are kept for the next leaves.
const POOL: usize = 72;
/// Bytes of a pooled buffer: a leaf, and room to align it.
pub const BUFFER: usize = LEAF_BLOCKS as usize * BLOCK_SIZE + 4096;

/// Bytes in flight, counted; and their buffers, which are used again and again
/// (fresh memory costs more than reading into it).
#[derive(Debug, Clone, Default)]
pub struct Budget(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    used: AtomicU64,
    pool: Mutex<Vec<Vec<u8>>>,
}

impl Budget {
    /// Bytes counted now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Counts `bytes` until the claim is dropped.
    pub fn claim(&self, bytes: u64) -> Claim {
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
        Claim { budget: self.clone(), bytes }
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are counted while this lives.
#[derive(Debug)]
pub struct Claim {
    budget: Budget,
    bytes: u64,
}

impl Claim {
    /// What a leaf is counted as before its data is known: a whole one.
    pub const WHOLE: u64 = LEAF_BLOCKS * BLOCK_SIZE as u64 + OVERHEAD;

    /// Counts what `data` bytes of a leaf really cost.
    pub fn shrink(&mut self, data: u64) {
        let cost = (data + OVERHEAD).min(self.bytes);
        self.budget.0.used.fetch_sub(self.bytes - cost, Ordering::Relaxed);
        self.bytes = cost;
    }

    /// A buffer of [`BUFFER`] bytes for this leaf, with anything in it. It goes back to
    /// the pool with the leaf.
    pub fn buffer(&self) -> Vec<u8> {
        let pooled = self.budget.pool().pop();
        pooled.unwrap_or_else(|| vec![0; BUFFER])
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The parts of a leaf that were read.
#[derive(Debug)]
pub struct LeafData {
    /// Runs of blocks that were read: first block within the leaf, and how many, ascending.
    pub runs: Vec<(u16, u16)>,
    /// The data of the runs, one after the other, whole blocks, from `skip` on. What
    /// follows them has no meaning.
    pub bytes: Vec<u8>,
    /// Where the data begins: a reader that needs aligned memory may leave a gap.
    pub skip: usize,
    /// Blocks that could not be read, a bit each: a scan leaves them as the server has them.
    pub unread: Unread,
    /// What it counts for.
    pub claim: Claim,
}

/// Some blocks of a leaf, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unread([u64; LEAF_BLOCKS as usize / 64]);

impl Unread {
    /// Adds the runs of `asked` without those of `got`; both ascend, and `got` is a part.
    pub fn without(asked: &[(u16, u16)], got: &[(u16, u16)]) -> Self {
        let mut left = Self::default();
        let bits = |runs: &[(u16, u16)], set: &mut dyn FnMut(usize, u64)| {
            let blocks = runs.iter().flat_map(|&(first, n)| first..first + n);
            blocks.for_each(|b| set(usize::from(b) / 64, 1 << (b % 64)));
        };
        bits(asked, &mut |word, bit| left.0[word] |= bit);
        bits(got, &mut |word, bit| left.0[word] &= !bit);
        left
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether a block is one of them.
    pub const fn has(&self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }
}

impl Drop for LeafData {
    fn drop(&mut self) {
        let bytes = core::mem::take(&mut self.bytes);
        if bytes.len() == BUFFER {
            let mut pool = self.claim.budget.pool();
            if pool.len() < POOL {
                pool.push(bytes);
            }
        }
    }
}

impl LeafData {
    /// Bytes that were read.
    pub fn data_len(&self) -> u64 {
        self.runs.iter().map(|&(_, n)| u64::from(n) * BLOCK_SIZE as u64).sum()
    }

    /// The blocks that were read: index within the leaf, and offset in `bytes`.
    pub fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let indices = self.runs.iter().flat_map(|&(first, n)| first..first + n);
        indices.enumerate().map(|(i, block)| (usize::from(block), self.skip + i * BLOCK_SIZE))
    }

    /// Digests, tags and hash of the leaf; blocks that were not read are zero.
    pub fn hash(&self, secrets: &VaultSecrets, volume: &VolumeId, index: u64) -> Box<Hashes> {
        let mut leaf = Box::new(Hashes {
            digests: [Digest::ZERO; LEAF_BLOCKS as usize],
            tags: [Tag::ZERO; LEAF_BLOCKS as usize],
            hash: Hash::ZERO,
        });
        // The runs lie one after the other: all of them are hashed as one.
        let mut digests = [Digest::ZERO; LEAF_BLOCKS as usize];
        let content = &self.bytes[self.skip..self.skip + self.data_len() as usize];
        secrets.digests(content, &mut |i, digest| digests[i] = digest);
        for ((block, _), digest) in self.blocks().zip(digests) {
            leaf.tags[block] = secrets.tag(volume, index * LEAF_BLOCKS + block as u64, &digest);
            leaf.digests[block] = digest;
        }
        leaf.hash = dormouse_crypt::hash::leaf(index, &leaf.tags);
        leaf
    }
}

/// Pages in one group of a [`LeafSet`]: 32 GiB.
const GROUP: u64 = 512;

/// A set of leaves, one bit each (128 KiB for 1 TiB that is full); where there is none, it
/// takes nothing, however large the volume.
#[derive(Debug, Clone, Default)]
pub struct LeafSet {
    /// Groups of pages that have a leaf, by number.
    groups: BTreeMap<u64, Box<[u64; GROUP as usize]>>,
    /// Leaves of the volume.
    end: u64,
}

impl LeafSet {
    /// No leaf of a volume of `size` bytes.
    pub fn new(size: u64) -> Self {
        let end = dormouse_format::geometry::blocks(size).div_ceil(LEAF_BLOCKS);
        Self { groups: BTreeMap::new(), end }
    }

    /// All leaves of a volume of `size` bytes.
    pub fn all(size: u64) -> Self {
        let mut set = Self::new(size);
        set.add_bytes(0, size);
        set
    }

    /// Adds the leaves that the bytes from `start` to `end` touch.
    pub fn add_bytes(&mut self, start: u64, end: u64) {
        let leaf = LEAF_BLOCKS * BLOCK_SIZE as u64;
        for index in start / leaf..end.div_ceil(leaf) {
            self.add(index);
        }
    }

    /// Adds a leaf; one beyond the end is left out.
    pub fn add(&mut self, leaf: u64) {
        if leaf < self.end {
            let page = leaf / FANOUT;
            let group = self.groups.entry(page / GROUP).or_insert_with(|| Box::new([0; _]));
            group[(page % GROUP) as usize] |= 1 << (leaf % FANOUT);
        }
    }

    /// The leaves of a page, bit by bit.
    pub fn page(&self, page: u64) -> u64 {
        self.groups.get(&(page / GROUP)).map_or(0, |group| group[(page % GROUP) as usize])
    }

    /// The first page from `page` on that has a leaf.
    pub fn next_page(&self, page: u64) -> Option<u64> {
        self.groups.range(page / GROUP..).find_map(|(number, group)| {
            let first = number * GROUP;
            let skip = page.saturating_sub(first) as usize;
            let found = group.iter().skip(skip).position(|leaves| *leaves != 0)?;
            Some(first + (skip + found) as u64)
        })
    }

    /// The first leaf from `leaf` on.
    pub fn next(&self, leaf: u64) -> Option<u64> {
        let rest = self.page(leaf / FANOUT) >> (leaf % FANOUT);
        if rest != 0 {
            return Some(leaf + u64::from(rest.trailing_zeros()));
        }
        let page = self.next_page(leaf / FANOUT + 1)?;
        Some(page * FANOUT + u64::from(self.page(page).trailing_zeros()))
    }

    /// How many leaves.
    pub fn count(&self) -> u64 {
        let pages = self.groups.values().flat_map(|group| group.iter());
        pages.map(|leaves| u64::from(leaves.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_finds_its_leaves() {
        let mut set = LeafSet::new(1 << 40);
        for leaf in [0, 63, 64, 1000, (1 << 20) - 1] {
            set.add(leaf);
        }
        set.add(1 << 20);
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(leaf) = set.next(at) {
            found.push(leaf);
            at = leaf + 1;
        }
        assert_eq!(found, [0, 63, 64, 1000, (1 << 20) - 1]);
        assert_eq!(set.next_page(2), Some(1000 / 64));
        assert_eq!(set.next_page(1 << 20), None);
        let mut huge = LeafSet::new(1 << 60);
        huge.add(0);
        huge.add((1 << 40) - 1);
        assert_eq!((huge.next(1), huge.count()), (Some((1 << 40) - 1), 2));
        assert_eq!(LeafSet::all(3 << 20).count(), 3);
        assert_eq!(LeafSet::all((3 << 20) + 1).count(), 4);
        assert_eq!(LeafSet::new(0).next(0), None);
    }

    #[test]
    fn claims_are_given_back() {
        let budget = Budget::default();
        let mut claim = budget.claim(Claim::WHOLE);
        claim.shrink(4096);
        assert_eq!(budget.used(), 4096 + OVERHEAD);
        drop(claim);
        assert_eq!(budget.used(), 0);
    }
}
