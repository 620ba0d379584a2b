//! What must stay although nothing refers to it yet: pins of connections and pending points.
//!
//! A pin is a chunk that was promised ('have' answered yes, or extents took it), or the
//! segment in which something was written that is not committed. Invariant: between the look
//! that found a chunk and its pin no segment is hidden; a pin that ends while a collection
//! runs holds until that collection's end, since what was marked may be older than the point
//! that the pin made way for. Memory is bounded: above [`PINS_MAX`] a connection pins all.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};

use dormouse_format::ChunkId;
use dormouse_format::seeded::seeded;

use super::VaultStore;
use crate::error::Result;
use crate::index::Entry;
use crate::locks::{lock, read, write};
use crate::log::append::Log;

/// Chunks that one connection, or one collection, remembers; above it, all are pinned.
const PINS_MAX: usize = 256 << 10;

/// A chunk's id, shortened: a collision pins one chunk too many.
fn short(id: &ChunkId) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&id.0[..8]);
    u64::from_be_bytes(out)
}

#[derive(Debug, Default)]
struct Held {
    chunks: HashSet<u64>,
    all: bool,
    /// Segments from here on hold what it wrote.
    from: Option<u64>,
}

impl Held {
    fn chunk(&mut self, id: u64) {
        if self.all || seeded("pins-ignored") {
            return;
        }
        self.chunks.insert(id);
        if self.chunks.len() > PINS_MAX {
            (self.all, self.chunks) = (true, HashSet::new());
        }
    }

    fn take(&mut self, other: Self) {
        self.all |= other.all;
        other.chunks.into_iter().for_each(|id| self.chunk(id));
    }
}

/// All pins of a vault.
#[derive(Default)]
pub(crate) struct PinBoard {
    /// Held for reading from the look for a chunk to its pin; for writing while a
    /// segment is hidden.
    gate: RwLock<()>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    held: Vec<Weak<Mutex<Held>>>,
    /// What was released since the collection that runs began.
    round: Option<Held>,
}

impl Open {
    /// The sets that are in use.
    fn all(&mut self) -> Vec<Arc<Mutex<Held>>> {
        self.held.retain(|held| held.strong_count() > 0);
        self.held.iter().filter_map(Weak::upgrade).collect()
    }
}

/// What a connection, or a pending point, holds; until it is released or dropped.
#[derive(Debug)]
pub struct Pins {
    held: Arc<Mutex<Held>>,
    open: Arc<Mutex<Open>>,
}

impl Pins {
    /// What is written from now on stays.
    pub(super) fn begin(&self, log: &Log) {
        let mut held = lock(&self.held);
        if held.from.is_none() {
            held.from = Some(log.number());
        }
    }

    pub(super) fn pin(&self, id: &ChunkId) {
        lock(&self.held).chunk(short(id));
    }

    /// Lets go of all.
    pub fn release(&self) {
        let mut open = lock(&self.open);
        let held = std::mem::take(&mut *lock(&self.held));
        if let Some(round) = open.round.as_mut().filter(|_| !seeded("pins-end-early")) {
            round.take(held);
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.release();
    }
}

/// A collection that runs: pins that are released meanwhile are kept. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Round {
    open: Arc<Mutex<Open>>,
    /// Segments from here on hold what is not committed.
    pub(crate) from: u64,
}

impl Drop for Round {
    fn drop(&mut self) {
        lock(&self.open).round = None;
    }
}

impl PinBoard {
    /// Begins a collection. `behind` is the number behind the last segment.
    pub(crate) fn round(&self, behind: u64) -> Round {
        let mut open = lock(&self.open);
        open.round = Some(Held::default());
        let all = open.all();
        let from = all.iter().filter_map(|held| lock(held).from).min().unwrap_or(behind);
        let from = if seeded("pending-ignored") { behind } else { from.min(behind) };
        Round { open: Arc::clone(&self.open), from }
    }

    /// Hides a segment, by `hide`, unless any of these chunks is pinned: then those are told
    /// (`None`: all are).
    pub(crate) fn hide(&self, chunks: &[ChunkId], hide: impl FnOnce()) -> Option<Vec<ChunkId>> {
        let _gate = write(&self.gate);
        let mut open = lock(&self.open);
        let all = open.all();
        let mut sets: Vec<MutexGuard<'_, Held>> = all.iter().map(|held| lock(held)).collect();
        let mut held: Vec<&Held> = sets.iter_mut().map(|set| &**set).collect();
        held.extend(open.round.as_ref());
        if held.iter().any(|set| set.all) {
            return None;
        }
        let pinned = |id: &&ChunkId| held.iter().any(|set| set.chunks.contains(&short(id)));
        let pinned: Vec<ChunkId> = chunks.iter().filter(pinned).copied().collect();
        if pinned.is_empty() {
            hide();
        }
        Some(pinned)
    }
}

impl VaultStore {
    /// An empty set of pins, for one connection.
    pub fn pins(&self) -> Pins {
        let held = Arc::new(Mutex::new(Held::default()));
        lock(&self.pins.open).held.push(Arc::downgrade(&held));
        Pins { held, open: Arc::clone(&self.pins.open) }
    }

    /// Whether there is a record of this chunk for which `fits` holds, and with `whole` one that
    /// can be read; if so, the chunk is pinned in the same breath.
    pub(super) fn find_pinned(
        &self,
        id: &ChunkId,
        whole: bool,
        pins: Option<&Pins>,
        fits: &dyn Fn(&Entry) -> Result<bool>,
    ) -> Result<bool> {
        let _gate = read(&self.pins.gate);
        let mut fitting = Vec::new();
        let mut failed = None;
        self.find(id, &mut |entry| match fits(entry) {
            Ok(true) => {
                fitting.push(*entry);
                !whole
            }
            Ok(false) => false,
            Err(e) => {
                failed = Some(e);
                true
            }
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        let mut there = !whole && !fitting.is_empty();
        for entry in fitting.iter().filter(|_| whole) {
            there = there || self.is_whole(entry)?;
        }
        if let Some(pins) = pins.filter(|_| there) {
            pins.pin(id);
        }
        Ok(there)
    }
}
