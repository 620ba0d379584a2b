//! Blocks that the disk does not give: what the copy has of them is old.
//!
//! Invariant: they stay marked, so a daemon that comes back tries them again; as long as there is
//! one, no point is better than fuzzy. They are left out of passes but now and then, because a
//! disk that fails takes seconds for each.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_track::dirty::Dirty;

use crate::source::Source;

/// How often they are tried again while there is other work.
const AGAIN: Duration = Duration::from_secs(60);
/// How many are told of, one by one.
const TOLD: usize = 8;

/// The blocks, from pass to pass.
#[derive(Debug, Default)]
pub(super) struct Stale {
    blocks: BTreeSet<u64>,
    tried: Option<Instant>,
}

impl Stale {
    pub(super) fn len(&self) -> u64 {
        self.blocks.len() as u64
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
        self.blocks.retain(|block| *block < end);
        if self.blocks.is_empty() {
            return;
        }
        let others = dirty.blocks() > self.len();
        if others && self.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
            dirty.remove(&self.blocks);
        } else {
            self.tried = Some(Instant::now());
        }
    }

    /// What a pass found: of what it carried these could not be read. They are no part of it any
    /// more. New ones are told of.
    pub(super) fn found(&mut self, failed: &Failed, dirty: &mut Dirty) -> Vec<String> {
        let failed = failed.0.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.remove(&failed.iter().map(|(block, _)| *block).collect());
        self.blocks.retain(|block| !dirty.has(*block));
        let new = failed.iter().filter(|(block, _)| !self.blocks.contains(block));
        let told = new.clone().take(TOLD).map(|(block, why)| {
            format!("cannot read the block at byte {}: {why}", block * BLOCK_SIZE as u64)
        });
        let mut lines: Vec<String> = told.collect();
        let more = new.count().saturating_sub(TOLD);
        if more > 0 {
            lines.push(format!("and {more} more blocks cannot be read"));
        }
        if !failed.is_empty() {
            self.tried = Some(Instant::now());
        }
        self.blocks.extend(failed.iter().map(|(block, _)| *block));
        lines
    }
}

/// Blocks that could not be read in a pass, and why.
#[derive(Debug, Default)]
pub(super) struct Failed(Mutex<Vec<(u64, String)>>);

impl Failed {
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
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
                    let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.push((block_of(within), e.text()));
                }
                Err(e) => return Err(source.told(&e)),
            }
        }
        Ok(runs)
    }
}
