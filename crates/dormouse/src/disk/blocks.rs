//! What is on this machine of a disk: in memory, in the cache's files, and known zeros.
//!
//! Invariant: what is given out was proved under the attached point's root, just now or when it
//! was put here. Leaves to others: to get what is missing ([`super::pilot`]).

use core::ops::Range;
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
/// Blocks of a long read.
const LONG: usize = 16;

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
    pub(super) fn run(&self, from: usize) -> Option<Range<usize>> {
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
    ///
    /// A long read takes runs from the file, where a call reads many blocks; memory is for short
    /// ones, and would break those runs.
    pub(super) fn get(&self, first: Block, out: &mut [u8], missing: &mut Missing) {
        let long = out.len() >= LONG * BLOCK_SIZE;
        if long {
            self.get_runs(first, out, missing, false);
        }
        for (i, out) in out.chunks_mut(BLOCK_SIZE).enumerate() {
            if missing.has(i) && self.memory.get(first + i as u64, out) {
                missing.remove(i);
            }
        }
        if !long {
            self.get_runs(first, out, missing, true);
        }
        for (i, out) in out.chunks_mut(BLOCK_SIZE).enumerate() {
            if missing.has(i) && self.zeros.holds(first + i as u64) {
                out.fill(0);
                missing.remove(i);
            }
        }
    }

    /// Copies out what the file has of the missing blocks; some of it is kept in memory too.
    fn get_runs(&self, first: Block, out: &mut [u8], missing: &mut Missing, keep: bool) {
        let Some(file) = &self.file else { return };
        let mut from = 0;
        while let Some(run) = missing.run(from) {
            from = run.end;
            let bytes = &mut out[run.start * BLOCK_SIZE..run.end * BLOCK_SIZE];
            let mut often = Missing::all(0);
            file.read(first + run.start as u64, bytes, &mut |i, looks| {
                missing.remove(run.start + i);
                if keep && looks {
                    often.add(i);
                }
            });
            for (i, bytes) in bytes.chunks(BLOCK_SIZE).enumerate().filter(|(i, _)| often.has(*i)) {
                self.memory.put(first + (run.start + i) as u64, bytes);
            }
        }
    }

    /// Whether a block can be given out now.
    pub(super) fn holds(&self, block: Block) -> bool {
        self.content_until(&(block..block + 1)) > block || self.zeros.holds(block)
    }

    /// Whether all of a range can be given out now.
    pub(super) fn holds_all(&self, mut range: Range<Block>) -> bool {
        while !range.is_empty() {
            range.start = self.content_until(&range);
            if !range.is_empty() && !self.zeros.holds(range.start) {
                return false;
            }
            range.start += 1;
        }
        true
    }

    /// The first block of a range of which no content is here, or its end.
    fn content_until(&self, range: &Range<Block>) -> Block {
        let mut block = range.start;
        loop {
            if let Some(file) = &self.file {
                block = file.held_until(&(block..range.end));
            }
            if block >= range.end || !self.memory.holds(block) {
                return block;
            }
            block += 1;
        }
    }

    /// Which blocks of a range are zeros, in runs, if that is known here of all of them.
    pub(super) fn runs(&self, range: Range<Block>) -> Option<Vec<(u64, bool)>> {
        let (mut runs, mut block) = (Vec::new(), range.start);
        while block < range.end {
            let content = self.content_until(&(block..range.end));
            let zeros = (content..range.end).take_while(|block| self.zeros.holds(*block)).count();
            let next = content + zeros as u64;
            let both = [(content - block, false), (next - content, true)];
            runs.extend(both.into_iter().filter(|(count, _)| *count > 0));
            if next == block {
                return None;
            }
            block = next;
        }
        Some(runs)
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
    pub(super) fn forget(&self, range: Range<Block>) {
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

    /// Blocks of a volume of 200 blocks: some in the file, some in memory, some zeros.
    fn some(dir: &std::path::Path, seed: &mut u64) -> (Blocks, Vec<Option<bool>>) {
        let secrets = Arc::new(VaultSecrets::generate(&mut dormouse_crypt::OsRandom));
        let volume = VolumeId([3; 16]);
        let file = CacheFile::open(dir, 1 << 20, Arc::clone(&secrets), volume).unwrap();
        let blocks = Blocks::new(secrets, volume, Some(file));
        let mut known = vec![None; 200];
        let mut zero = [0; 4];
        for (block, known) in (0..).zip(&mut known) {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let bytes = [(block + 1) as u8; BLOCK_SIZE];
            *known = Some(false);
            match *seed >> 59 {
                0..20 => {
                    let tag = blocks.secrets.tag(&volume, block, &blocks.secrets.digest(&bytes));
                    blocks.file.as_ref().unwrap().put(block, &[tag], &bytes);
                }
                20..25 => blocks.memory.put(block, &bytes),
                25..31 => {
                    zero[block as usize / 64] |= 1 << (block % 64);
                    *known = Some(true);
                }
                _ => *known = None,
            }
        }
        blocks.put_zeros(0, zero);
        (blocks, known)
    }

    #[test]
    fn what_is_here_is_found_as_block_by_block() {
        let mut seed = 7;
        for _ in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            let (blocks, known) = some(dir.path(), &mut seed);
            for (start, end) in (0..200).flat_map(|s| (s..=200).step_by(7).map(move |e| (s, e))) {
                let range = start as u64..end as u64;
                let here = known[start..end].iter().all(Option::is_some);
                assert_eq!(blocks.holds_all(range.clone()), here, "{range:?}");
                let runs = blocks.runs(range.clone());
                assert_eq!(runs.is_some(), here, "{range:?}");
                let each = |(count, zero): (u64, bool)| vec![Some(zero); count as usize];
                let all: Vec<_> = runs.into_iter().flatten().flat_map(each).collect();
                assert!(!here || all == known[start..end], "{range:?}");
            }
            // Short reads and long ones give the same.
            for count in [1, 15, 16, 60] {
                for first in (0..200 - count).step_by(3) {
                    let mut out = vec![0xff; count * BLOCK_SIZE];
                    let mut missing = Missing::all(count);
                    blocks.get(first as u64, &mut out, &mut missing);
                    for (i, bytes) in out.chunks(BLOCK_SIZE).enumerate() {
                        let content = known[first + i].map(|z| if z { 0 } else { first + i + 1 });
                        assert_eq!(missing.has(i), content.is_none());
                        let byte = content.map_or(0xff, |c| c as u8);
                        assert!(bytes.iter().all(|b| *b == byte), "block {}", first + i);
                    }
                }
            }
        }
    }
}
