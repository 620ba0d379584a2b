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

/// Bytes of opened blocks in memory: a part of what the machine has, within these.
const MEMORY: std::ops::RangeInclusive<u64> = 64 << 20..=512 << 20;
const MEMORY_PART: u64 = 64;
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

    /// Whether nothing is.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first run that begins at `from` or behind it.
    pub(super) fn run(&self, from: usize) -> Option<core::ops::Range<usize>> {
        let start = self.find(from, 0)?;
        Some(start..self.find(start, u64::MAX).unwrap_or(PIECE))
    }

    /// The first bit from `from` on that differs from those of `mask`.
    fn find(&self, from: usize, mask: u64) -> Option<usize> {
        let mut keep = u64::MAX << (from % 64);
        for (i, word) in self.0.iter().enumerate().skip(from / 64) {
            let found = (word ^ mask) & keep;
            if found != 0 {
                return Some(i * 64 + found.trailing_zeros() as usize);
            }
            keep = u64::MAX;
        }
        None
    }
}

/// Bytes of opened blocks that are kept in memory.
fn memory_size() -> u64 {
    let info = rustix::system::sysinfo();
    let all = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    (all / MEMORY_PART).clamp(*MEMORY.start(), *MEMORY.end())
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
        Self { memory: Memory::new(memory_size()), zeros: Zeros::new(), file, secrets, volume }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_a_plain_search() {
        let mut seed = 1u64;
        for n in [0, 1, 63, 64, 65, 500, PIECE] {
            let mut missing = Missing::all(n);
            for _ in 0..n / 3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                missing.remove((seed >> 33) as usize % n);
            }
            let mut from = 0;
            while from <= PIECE {
                let start = (from..PIECE).find(|i| missing.has(*i));
                let end = |s| (s..PIECE).find(|i| !missing.has(*i)).unwrap_or(PIECE);
                assert_eq!(missing.run(from), start.map(|s| s..end(s)), "{n} from {from}");
                from += 1;
            }
            assert_eq!(missing.is_empty(), missing.run(0).is_none());
        }
    }
}
