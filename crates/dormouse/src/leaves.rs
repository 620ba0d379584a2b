//! Files and devices as leaves: what the engine reads, compares and writes.
//!
//! Invariant: of a leaf, holes are not read; what is read is whole blocks, zero
//! behind the end.

use anyhow::Result;
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_sync::leaf::{Claim, LeafData, LeafSet, Unread};

use crate::dest::Dest;
use crate::engine::{Leaves, Target};
use crate::source::{ALIGN, Source};

const LEAF: u64 = LEAF_BLOCKS * BLOCK_SIZE as u64;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// Runs of blocks of a leaf: first block within it, and how many.
pub type Runs = Vec<(u16, u16)>;

/// The runs of a leaf that may hold data, by a function that gives the next range of data from a
/// byte on.
pub fn runs_of(
    index: u64,
    size: u64,
    next: impl Fn(u64) -> Result<Option<(u64, u64)>>,
) -> Result<Runs> {
    let base = index.saturating_mul(LEAF);
    let end = base.saturating_add(LEAF).min(size);
    let mut runs = Runs::new();
    let mut at = base;
    while at < end {
        let Some((start, stop)) = next(at)? else { break };
        let start = start - start % BLOCK;
        if start >= end {
            break;
        }
        let stop = stop.min(end).next_multiple_of(BLOCK);
        runs.push((((start - base) / BLOCK) as u16, ((stop - start) / BLOCK) as u16));
        at = stop;
    }
    Ok(runs)
}

/// Reads runs of a leaf, one after the other into one buffer. `read` gives what it could read of a
/// run: what it gives lies at the beginning of the place that it is given, without gaps.
pub fn read_runs(
    mut claim: Claim,
    asked: Runs,
    mut read: impl FnMut((u16, u16), &mut [u8]) -> Result<Runs>,
) -> Result<LeafData> {
    let len = |runs: &Runs| runs.iter().map(|r| usize::from(r.1)).sum::<usize>() * BLOCK_SIZE;
    let total = len(&asked);
    // A leaf that is mostly holes must not hold a whole buffer for what it counts.
    let mut bytes = if total > LEAF as usize / 2 { claim.buffer() } else { vec![0; total + ALIGN] };
    let skip = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
    let (mut got, mut filled) = (Runs::with_capacity(asked.len()), 0);
    for &run in &asked {
        let place = filled + skip..filled + skip + usize::from(run.1) * BLOCK_SIZE;
        let runs = read(run, &mut bytes[place])?;
        filled += len(&runs);
        got.extend(runs);
    }
    claim.shrink(filled as u64);
    let unread = Unread::without(&asked, &got);
    Ok(LeafData { runs: got, bytes, skip, unread, claim })
}

/// Reads a leaf by two functions: the next range of data from a byte on, and a read.
fn read_leaf(
    index: u64,
    claim: Claim,
    size: u64,
    next: impl Fn(u64) -> Result<Option<(u64, u64)>>,
    read: impl Fn(u64, &mut [u8]) -> Result<()>,
) -> Result<LeafData> {
    read_runs(claim, runs_of(index, size, next)?, |run, out| {
        read(index * LEAF + u64::from(run.0) * BLOCK, out)?;
        Ok(vec![run])
    })
}

fn leaf_set(size: u64, next: impl Fn(u64) -> Result<Option<(u64, u64)>>) -> Result<LeafSet> {
    let mut set = LeafSet::new(size);
    let mut at = 0;
    while at < size {
        let Some((start, stop)) = next(at)? else { break };
        set.add_bytes(start, stop);
        at = stop;
    }
    Ok(set)
}

impl Source {
    /// The leaves that may hold data.
    pub fn leaf_set(&self) -> Result<LeafSet> {
        leaf_set(self.size(), |from| self.next_range(from))
    }
}

impl Leaves for Source {
    fn read_leaf(&self, index: u64, claim: Claim) -> Result<LeafData> {
        let next = |from| self.next_range(from);
        read_leaf(index, claim, self.size(), next, |at, out| self.read_at(at, out))
    }
}

impl Dest {
    /// The leaves that may hold data now.
    pub fn leaf_set(&self) -> Result<LeafSet> {
        leaf_set(self.size(), |from| self.next_data(from))
    }
}

impl Leaves for Dest {
    fn read_leaf(&self, index: u64, claim: Claim) -> Result<LeafData> {
        let next = |from| self.next_data(from);
        read_leaf(index, claim, self.size(), next, |at, out| self.read_at(at, out))
    }
}

impl Target for Dest {
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.write_at(at, bytes)
    }

    fn zero(&self, at: u64, len: u64) -> Result<()> {
        self.zero_range(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_sync::leaf::Budget;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_not_read_and_the_end_is_padded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(5 * LEAF + 10).unwrap();
        file.write_all_at(&[1; 4096], LEAF + 64 * BLOCK).unwrap();
        file.write_all_at(&[2; 10], 5 * LEAF).unwrap();
        drop(file);
        let source = Source::open(&path).unwrap();
        let set = source.leaf_set().unwrap();
        assert_eq!((set.next(0), set.next(2), set.count()), (Some(1), Some(5), 2));
        let budget = Budget::default();
        let leaf = |i| source.read_leaf(i, budget.claim(Claim::WHOLE)).unwrap();
        assert!(leaf(0).runs.is_empty());
        let one = leaf(1);
        assert_eq!(one.skip % ALIGN, one.skip);
        assert_eq!((one.bytes.as_ptr() as usize + one.skip) % ALIGN, 0);
        let (block, at) = one.blocks().find(|(b, _)| *b == 64).unwrap();
        assert_eq!((block, one.bytes[at]), (64, 1));
        let last = leaf(5);
        assert_eq!(last.runs, [(0, 1)]);
        assert_eq!(
            &last.bytes[last.skip..last.skip + 11],
            b"\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\0"
        );
    }
}
