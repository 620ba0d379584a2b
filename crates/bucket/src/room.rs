//! Segments that are kept here though the bucket has them: which go first.
//!
//! Invariant: those of all vaults together are no more than the bound, but for what is being
//! removed. The oldest go first.

use std::collections::VecDeque;
use std::sync::{Mutex, Weak};

use crate::shared::lock;
use crate::vault::Vault;

struct Kept {
    vault: Weak<Vault>,
    segment: u64,
    bytes: u64,
}

#[derive(Default)]
struct Line {
    kept: VecDeque<Kept>,
    bytes: u64,
}

/// The segments, in the order in which they came.
pub(crate) struct Room {
    max: u64,
    line: Mutex<Line>,
}

impl Room {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, line: Mutex::default() }
    }

    /// Takes in a segment, and lets others go where there is no room.
    pub(crate) fn add(&self, vault: Weak<Vault>, segment: u64, bytes: u64) {
        let mut line = lock(&self.line);
        line.kept.push_back(Kept { vault, segment, bytes });
        line.bytes += bytes;
        while line.bytes > self.max {
            let Some(oldest) = line.kept.pop_front() else { return };
            line.bytes -= oldest.bytes;
            drop(line);
            if let Some(vault) = oldest.vault.upgrade() {
                vault.evict(oldest.segment);
            }
            line = lock(&self.line);
        }
    }
}
