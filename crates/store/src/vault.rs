//! The store of one vault: what the program calls.
//!
//! Owns: the rules of what may be written and what is seen. Invariant: a point,
//! a volume and a generation are seen only after the sync that makes them
//! durable. Opening is in [`open`], records and chunks in [`records`], points and
//! volumes in [`points`], pending points in [`pending`], maps in [`maps`], expiry in
//! [`expire`], what is to expire in [`retaining`], what a connection holds in [`pins`].
//!
//! Locks, in this order: `collecting`; `creating`; a volume's `writing`; the pins' gate; the
//! log's (see `log::append`); `state`; a volume's `history`. None but the first three is
//! held through a sync.

mod expire;
mod look;
mod maps;
mod open;
mod pending;
pub(crate) mod pins;
mod points;
mod records;
mod retaining;
mod terms;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, RwLock};

use dormouse_crypt::record;
use dormouse_format::limits;
use dormouse_format::point::StoredPoint;
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::{ChunkId, RecordId, TimeNs, VaultId, WriterId};

use crate::error::{Error, Result};
use crate::index::Entry;
use crate::locks::read;
use crate::log::RecordRef;
use crate::log::append::{Log, Position};
use crate::map::{Cache, MapCache};
use crate::state::State;
pub use look::{Look, Unfinished, look};
pub use open::{Fault, Recovery};
pub use pending::Pending;
pub use pins::Pins;
pub use retaining::{By, Due, GRACE};

/// How often a record that is being moved is looked for.
const LOOKS_MAX: usize = 64;

/// How a store is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A segment is sealed when the next record would take it beyond this.
    pub segment_size: u64,
    /// Index entries kept in memory before they go to a run file.
    pub index_entries: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_size: limits::SEGMENT_SIZE, index_entries: 256 << 10 }
    }
}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments, the one that is written included.
    pub segments: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Records in all segments.
    pub records: u64,
    /// Index entries in memory.
    pub index_in_memory: u64,
    /// Index runs.
    pub index_runs: u64,
    /// Index entries in runs.
    pub index_in_runs: u64,
    /// Volumes.
    pub volumes: u64,
    /// Points of all volumes.
    pub points: u64,
    /// Whether a write failed, so that nothing more is written.
    pub poisoned: bool,
}

/// What a commit came to.
#[expect(clippy::large_enum_variant, reason = "made once a commit and taken apart at once")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// The point is durable and visible.
    Done(StoredPoint),
    /// These chunks are not here; nothing became visible.
    Missing(Vec<ChunkId>),
}

/// A vault's store. Used from many threads at once.
pub struct VaultStore {
    pub(crate) vault: VaultId,
    pub(crate) log: Log,
    pub(crate) state: RwLock<State>,
    cache: Cache,
    /// Held while a volume is created, so that a name is given once; and while points are let
    /// go, so that no fork begins with one that goes.
    creating: Mutex<()>,
    terms: terms::Terms,
    /// Held while a collection runs.
    pub(crate) collecting: Mutex<()>,
    pub(crate) pins: pins::PinBoard,
}

impl core::fmt::Debug for VaultStore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "VaultStore({})", self.vault)
    }
}

impl VaultStore {
    /// The vault's id.
    pub const fn vault(&self) -> &VaultId {
        &self.vault
    }

    /// Keeps what it lately read of maps in what is shared with other vaults, from now on.
    pub fn share_maps(&mut self, kept: &MapCache) {
        self.cache = Cache::of(kept, self.vault);
    }

    /// Keeps at most so many entries of the index in memory from now on, those of the segment that
    /// is written apart; what there is more goes to a run file at once. Takes the place of
    /// [`Options::index_entries`].
    pub fn keep_index(&self, entries: usize) {
        self.log.index.set_limit(entries);
        self.maintain_index();
    }

    fn maintain_index(&self) {
        let sealed_to = self.log.sealed_to.load(Ordering::Acquire);
        self.log.index.maintain(&self.log.segments, sealed_to);
    }

    /// Looks again, as long as what is found is moved before it is read.
    pub(crate) fn settled<T>(&self, mut look: impl FnMut() -> Result<T>) -> Result<T> {
        for _ in 0..LOOKS_MAX {
            match look() {
                Err(Error::Moved) if !seeded("moved-unsought") => {}
                done => return done,
            }
        }
        Err(Error::Moved)
    }

    /// Appends a record that was checked.
    pub(crate) fn append(&self, record: &[u8], now: TimeNs) -> Result<(RecordRef, Position)> {
        let (header, _) = dormouse_format::record::split(record)?;
        let done = self.log.append(&header, record, now)?;
        self.maintain_index();
        Ok(done)
    }

    /// Appends a record of the store itself.
    pub(crate) fn append_plain(
        &self,
        kind: Kind,
        writer: WriterId,
        body: &[u8],
        now: TimeNs,
    ) -> Result<(RecordRef, Position)> {
        self.append(&record::plain(kind, writer, body), now)
    }

    /// Calls `stop` with each index entry of this id, newest first, until it says true.
    pub(crate) fn find(&self, id: &RecordId, stop: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        while let Err(bad) = self.log.index.find(id, stop) {
            self.log.index.heal(&self.log.segments, bad)?;
        }
        Ok(())
    }

    /// All put so far is durable on return.
    pub fn barrier(&self) -> Result<()> {
        if seeded("barrier-unsynced") {
            return Ok(());
        }
        self.log.sync_to(self.log.end())
    }

    /// Puts on record that what is durable is durable, if no later record does:
    /// for quiet times. Nothing is synced.
    pub fn note(&self) -> Result<()> {
        self.log.note()
    }

    /// Syncs everything, and puts that on record.
    pub fn close(&self) -> Result<()> {
        self.barrier()?;
        self.log.note()?;
        self.barrier()
    }

    /// What the store holds.
    pub fn stats(&self) -> Stats {
        let (index_in_memory, index_runs, index_in_runs) = self.log.index.sizes();
        let state = read(&self.state);
        let points = state.volumes.values().map(|v| read(&v.history).kept(0).count() as u64);
        Stats {
            segments: self.log.number() - self.log.segments.retired_count(),
            bytes: self.log.bytes.load(Ordering::Relaxed),
            records: self.log.records.load(Ordering::Relaxed),
            index_in_memory,
            index_runs,
            index_in_runs,
            volumes: state.volumes.len() as u64,
            points: points.sum(),
            poisoned: self.log.is_poisoned(),
        }
    }
}
