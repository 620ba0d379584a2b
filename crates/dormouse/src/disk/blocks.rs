//! What is on this machine of a disk: in memory, in the cache's files, and known zeros.
//!
//! Invariant: what is given out was proved under the attached point's root, just now or when it
//! was put here. Leaves to others: to get what is missing ([`super::pilot`]).

use std::sync::Arc;

use dormouse_crypt::VaultSecrets;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::{Block, Tag, VolumeId};

use super::file::CacheFile;
use super::memory::Memory;
use super::zeros::{Bits, Zeros};

/// Bytes of opened blocks in memory.
const MEMORY: u64 = 64 << 20;
/// Blocks that are asked for at once, at most (4 MiB).
pub(super) const PIECE: usize = 1024;

/// A bit for each block of a piece: which are missing.
#[derive(Debug, Clone)]
pub(super) struct Missing([u64; PIECE / 64]);

impl Missing {
    /// All of the first `n`.
    pub(super) fn all(n: usize) -> Self {
        let mut missing = Self([0; PIECE / 64]);
        (0..n).for_each(|i| missing.add(i));
        missing
    }

    pub(super) const fn has(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    pub(super) const fn add(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    pub(super) const fn remove(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }

    /// The first run that begins at `from` or behind it.
    pub(super) fn run(&self, from: usize) -> Option<core::ops::Range<usize>> {
        let start = (from..PIECE).find(|i| self.has(*i))?;
        Some(start..(start..PIECE).find(|i| !self.has(*i)).unwrap_or(PIECE))
    }
}

/// The blocks.
pub(super) struct Blocks {
    memory: Memory,
    zeros: Zeros,
    pub(super) file: Option<CacheFile>,
    pub(super) secrets: Arc<VaultSecrets>,
    pub(super) volume: VolumeId,
}

impl Blocks {
    pub(super) fn new(
        secrets: Arc<VaultSecrets>,
        volume: VolumeId,
        file: Option<CacheFile>,
    ) -> Self {
        Self { memory: Memory::new(MEMORY), zeros: Zeros::new(), file, secrets, volume }
    }

    /// Copies out what is here of the missing blocks; the first has the address `first`.
    pub(super) fn get(&self, first: Block, out: &mut [u8], missing: &mut Missing) {
        for (i, out) in out.chunks_mut(BLOCK_SIZE).enumerate() {
            if missing.has(i) && self.memory.get(first + i as u64, out) {
                missing.remove(i);
            }
        }
        let mut from = 0;
        while let Some(run) = missing.run(from) {
            from = run.end;
            self.get_run(first, out, run, missing);
        }
    }

    /// The same for a run that is not in memory.
    fn get_run(
        &self,
        first: Block,
        out: &mut [u8],
        run: core::ops::Range<usize>,
        missing: &mut Missing,
    ) {
        let mut often = Missing::all(0);
        if let Some(file) = &self.file {
            let bytes = &mut out[run.start * BLOCK_SIZE..run.end * BLOCK_SIZE];
            file.read(first + run.start as u64, bytes, &mut |i, keep| {
                missing.remove(run.start + i);
                if keep {
                    often.add(run.start + i);
                }
            });
        }
        for i in run {
            let (block, out) = (first + i as u64, &mut out[i * BLOCK_SIZE..][..BLOCK_SIZE]);
            if missing.has(i) && self.zeros.holds(block) {
                out.fill(0);
                missing.remove(i);
            } else if often.has(i) {
                self.memory.put(block, out);
            }
        }
    }

    /// Whether a block can be given out now.
    pub(super) fn holds(&self, block: Block) -> bool {
        self.memory.holds(block)
            || self.file.as_ref().is_some_and(|file| file.holds(block))
            || self.zeros.holds(block)
    }

    /// Whether this machine has a block for which the map has this tag.
    pub(super) fn prove(&self, block: Block, tag: &Tag) -> bool {
        let on_file = self.file.as_ref().is_some_and(|file| file.prove(block, tag));
        on_file || self.memory.holds(block)
    }

    /// Keeps blocks that were proved just now.
    pub(super) fn put(&self, first: Block, tags: &[Tag], bytes: &[u8]) {
        for (bytes, block) in bytes.chunks_exact(BLOCK_SIZE).zip(first..) {
            self.memory.put(block, bytes);
        }
        if let Some(file) = &self.file {
            file.put(first, tags, bytes);
        }
    }

    /// The map has other content here from now on.
    pub(super) fn forget(&self, range: core::ops::Range<Block>) {
        self.memory.forget(range.clone());
        self.zeros.forget(range.clone());
        if let Some(file) = &self.file {
            file.forget(range);
        }
    }

    /// Keeps blocks that will be in the map: they count when it has their tags.
    pub(super) fn offer(&self, first: Block, bytes: &[u8]) {
        let Some(file) = &self.file else { return };
        let mut tags = vec![Tag::ZERO; bytes.len() / BLOCK_SIZE];
        self.secrets.digests(bytes, &mut |i, digest| {
            tags[i] = self.secrets.tag(&self.volume, first + i as u64, &digest);
        });
        file.put(first, &tags, bytes);
    }

    /// The zeros of a leaf, as the map proves them.
    pub(super) fn put_zeros(&self, leaf: u64, zero: Bits) {
        self.zeros.put(leaf, zero);
    }
}
