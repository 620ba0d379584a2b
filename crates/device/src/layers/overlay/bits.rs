//! Which blocks are in the file of an overlay, and which pages of that bitmap the file lacks.
//!
//! Invariant: whoever sees a bit and then takes the pages that are stale gets the page of that
//! bit, or it was taken before with the bit in it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::layout::BLOCK;

/// Words of a page of the bitmap.
const PAGE_WORDS: usize = BLOCK as usize / 8;

/// The bitmap.
#[derive(Debug)]
pub struct Bits {
    words: Vec<AtomicU64>,
    /// Pages with bits that the file does not have.
    stale: Mutex<BTreeSet<usize>>,
}

impl Bits {
    /// With these words.
    pub fn new(words: Vec<u64>) -> Self {
        Self { words: words.into_iter().map(AtomicU64::new).collect(), stale: Mutex::default() }
    }

    /// Whether a block is in the file.
    pub fn has(&self, block: u64) -> bool {
        let word = self.words.get(block as usize / 64);
        word.is_some_and(|w| w.load(Ordering::Acquire) & (1 << (block % 64)) != 0)
    }

    /// How many are.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// These blocks are in the file now.
    pub fn set(&self, blocks: Range<u64>) {
        if blocks.clone().all(|b| self.has(b)) {
            return;
        }
        // Under the lock: nobody may see a bit whose page is neither stale nor taken.
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            let at = block as usize / 64;
            if let Some(word) = self.words.get(at) {
                word.fetch_or(1 << (block % 64), Ordering::AcqRel);
                stale.insert(at / PAGE_WORDS);
            }
        }
    }

    /// Takes the stale pages: offset in the bitmap, and content.
    pub fn take_stale(&self) -> Vec<(u64, Vec<u8>)> {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let page = |page: usize| {
            let words = self.words.iter().skip(page * PAGE_WORDS).take(PAGE_WORDS);
            let bytes = words.flat_map(|w| w.load(Ordering::Acquire).to_le_bytes()).collect();
            (page as u64 * BLOCK, bytes)
        };
        std::mem::take(&mut *stale).into_iter().map(page).collect()
    }

    /// Runs of bytes, and whether they are in the file.
    pub fn runs(&self, at: u64, len: u64) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let end = at + len;
        let mut from = at;
        std::iter::from_fn(move || {
            if from >= end {
                return None;
            }
            let here = self.has(from / BLOCK);
            let mut next = from / BLOCK + 1;
            while next * BLOCK < end && self.has(next) == here {
                next += 1;
            }
            let run = from..(next * BLOCK).min(end);
            from = run.end;
            Some((run, here))
        })
    }
}
