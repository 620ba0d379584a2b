//! Blocks that the disk does not give: what the copy has of them is old, or zero if they were never
//! read.
//!
//! Invariant: they stay marked, also those that a scan has met, so a daemon that comes back tries them
//! again; each point says that there are some, and a record which ([`crate::unread`]). A point that has
//! only just met one is fuzzy. They are left out of passes but now and then, because a disk that fails
//! takes seconds for each.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_track::dirty::Dirty;

use crate::source::Source;

/// How often they are tried again while there is other work.
const AGAIN: Duration = Duration::from_secs(60);
/// How many runs of them are told of, one by one.
const TOLD: usize = 8;
/// So many are remembered, 256 MiB of the disk: one that gives less is no disk to be mirrored.
const BLOCKS_MAX: usize = 64 << 10;

/// The blocks, from pass to pass.
#[derive(Debug, Default)]
pub(super) struct Stale {
    blocks: BTreeSet<u64>,
    tried: Option<Instant>,
    /// The last pass met some: the next one earns its grade without them.
    met: bool,
    /// How often they have become others.
    changes: u64,
}

/// So much cannot be read that there is no use in going on.
#[derive(Debug, thiserror::Error)]
#[error(
    "more than {BLOCKS_MAX} blocks cannot be read: the disk, or what lies below it, has failed"
)]
pub(super) struct TooMany;

impl Stale {
    pub(super) fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Leaves them out of what is read while nothing may wait.
    pub(super) fn spare(&self, dirty: &mut Dirty) {
        if !self.blocks.is_empty() {
            dirty.remove(&self.blocks);
        }
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().copied()
    }

    /// Of marked bytes, those that can be read as far as is known.
    pub(super) fn without(&self, dirty: u64) -> u64 {
        dirty.saturating_sub(self.len() * BLOCK_SIZE as u64)
    }

    /// Leaves them out of a pass, unless it is time to try, or there is nothing else to do. What
    /// lies behind the end of the disk is not waited for any more.
    pub(super) fn leave_out(&mut self, dirty: &mut Dirty, end: u64) {
        self.keep(|block| block < end);
        if self.blocks.is_empty() {
            return;
        }
        let others = dirty.blocks() > self.len();
        let lately = self.tried.is_some_and(|tried| tried.elapsed() < AGAIN);
        if std::mem::take(&mut self.met) || (others && lately) {
            dirty.remove(&self.blocks);
        } else {
            self.tried = Some(Instant::now());
        }
    }

    fn keep(&mut self, which: impl Fn(u64) -> bool) {
        let known = self.blocks.len();
        self.blocks.retain(|block| which(*block));
        self.changes += u64::from(self.blocks.len() != known);
    }

    /// What a pass found: of what it carried these could not be read. They are no part of it any
    /// more. How many are new, and what is told of them.
    pub(super) fn found(&mut self, failed: &Failed, dirty: &mut Dirty) -> (u64, Vec<String>) {
        let failed = failed.all();
        dirty.remove(&failed.iter().map(|(block, _)| *block).collect());
        self.keep(|block| !dirty.has(block));
        let mut new: Vec<_> = failed.iter().filter(|(b, _)| !self.blocks.contains(b)).collect();
        new.sort();
        let runs: Vec<_> = new.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 == b.1).collect();
        let mut lines: Vec<String> = runs.iter().take(TOLD).map(|run| told(run)).collect();
        let more: usize = runs.iter().skip(TOLD).map(|run| run.len()).sum();
        if more > 0 {
            lines.push(format!("and {more} more blocks cannot be read"));
        }
        let new = new.len();
        self.met = !failed.is_empty();
        if self.met {
            self.tried = Some(Instant::now());
        }
        // What is not remembered stays marked all the same, and is tried in each pass.
        let room = BLOCKS_MAX.saturating_sub(self.blocks.len());
        let known = self.blocks.len();
        self.blocks.extend(failed.iter().map(|(block, _)| *block).take(room));
        self.changes += u64::from(self.blocks.len() != known);
        (new as u64, lines)
    }
}

/// Blocks that follow one another, and why they cannot be read.
fn told(run: &[&(u64, String)]) -> String {
    let Some((first, why)) = run.first() else { return String::new() };
    let at = first * BLOCK_SIZE as u64;
    match run.len() {
        1 => format!("cannot read the block at byte {at}: {why}"),
        n => format!("cannot read {n} blocks from byte {at} on: {why}"),
    }
}

/// Blocks that could not be read in a pass or a scan, and why.
#[derive(Debug, Default)]
pub(super) struct Failed(Mutex<Vec<(u64, String)>>);

impl Failed {
    pub(super) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Which.
    pub(super) fn blocks(&self) -> Vec<u64> {
        self.all().iter().map(|(block, _)| *block).collect()
    }

    fn all(&self) -> MutexGuard<'_, Vec<(u64, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a run of blocks of a leaf into `out`, block by block if need be. The runs that were
    /// read; what was read lies at the beginning of `out`, without gaps.
    pub(super) fn read(
        &self,
        source: &Source,
        leaf: u64,
        (first, count): (u16, u16),
        out: &mut [u8],
    ) -> Result<Vec<(u16, u16)>> {
        let block_of = |within: u16| leaf * LEAF_BLOCKS + u64::from(within);
        let at = |within: u16| block_of(within) * BLOCK_SIZE as u64;
        match source.try_read(at(first), out) {
            Ok(()) => return Ok(vec![(first, count)]),
            Err(e) if e.is_local() => {}
            Err(e) => return Err(source.told(&e)),
        }
        let (mut runs, mut filled) = (Vec::<(u16, u16)>::new(), 0);
        for within in first..first + count {
            match source.try_read(at(within), &mut out[filled..filled + BLOCK_SIZE]) {
                Ok(()) => {
                    filled += BLOCK_SIZE;
                    match runs.last_mut() {
                        Some((start, n)) if *start + *n == within => *n += 1,
                        _ => runs.push((within, 1)),
                    }
                }
                Err(e) if e.is_local() => {
                    let mut failed = self.all();
                    if failed.len() >= BLOCKS_MAX {
                        return Err(TooMany.into());
                    }
                    failed.push((block_of(within), e.text()));
                }
                Err(e) => return Err(source.told(&e)),
            }
        }
        Ok(runs)
    }
}
