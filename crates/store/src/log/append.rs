//! Appending to the log, and making it durable.
//!
//! Invariant: a segment is begun only after the one before is sealed and durable,
//! and nothing in it is acknowledged before its name is. After a failed write or
//! sync nothing is written again: what the system keeps in memory may differ
//! from what the disk has, and a second sync would not tell.
//!
//! Locks, in this order: `syncing` (held through every sync, so that no failed
//! sync is missed), `active` (held while bytes are written, never through a sync
//! but for the short one that ends a segment). Readers take neither.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_crypt::{hash, record};
use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::segment::{self, Item, RECORDS_MAX, Seal, TRAILER_LEN, Tail, Trailer};
use dormouse_format::{TimeNs, VaultId, WriterId};

use super::{RecordRef, Segments, name};
use crate::dir::File;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::locks::lock;

/// What the seal of a segment will list.
#[derive(Debug, Default)]
pub(crate) struct Table {
    seal: Seal,
    writers: HashMap<WriterId, u16>,
}

impl Table {
    pub(crate) fn push(&mut self, header: &Header, offset: u32) {
        let seal = &mut self.seal;
        let writer = *self.writers.entry(header.writer).or_insert_with(|| {
            seal.writers.push(header.writer);
            (seal.writers.len() - 1) as u16
        });
        let (id, body_len) = (header.id, header.body_len);
        let (kind, count) = (header.kind, header.count);
        seal.items.push(Item { id, offset, body_len, kind, count, writer });
    }

    pub(crate) const fn seal(&self) -> &Seal {
        &self.seal
    }

    fn is_full(&self) -> bool {
        self.seal.items.len() + 1 >= RECORDS_MAX
    }
}

/// The segment that is written.
pub(crate) struct Active {
    pub(crate) number: u64,
    /// Version of the segment: which kinds of records it may hold.
    pub(crate) version: u32,
    pub(crate) file: Arc<dyn File>,
    /// Bytes written.
    pub(crate) end: u64,
    pub(crate) chain: [u8; 16],
    /// Check of the segment's header.
    pub(crate) segment_check: [u8; 16],
    /// Bytes known to be durable.
    pub(crate) durable: u64,
    /// The largest `durable` that stands in an entry.
    pub(crate) noted: u64,
    pub(crate) table: Table,
    /// Whether it is sealed: the next record begins another.
    pub(crate) sealed: bool,
}

/// A position in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    segment: u64,
    end: u64,
}

/// The log's writing end.
pub(crate) struct Log {
    vault: VaultId,
    segment_size: u64,
    pub(crate) segments: Segments,
    pub(crate) index: Index,
    syncing: Mutex<()>,
    active: Mutex<Active>,
    poisoned: AtomicBool,
    /// Whether it could only be opened for reading, because there was no room.
    pub(crate) no_room: AtomicBool,
    attempts: AtomicU64,
    /// Number of the last segment known to be sealed.
    pub(crate) sealed_to: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// When the last record was appended; 0 if none was since the log was opened.
    pub(crate) newest: AtomicU64,
}

/// Makes the file of a new segment; durable on return.
pub(crate) fn begin_segment(
    segments: &Segments,
    vault: VaultId,
    number: u64,
    before: [u8; 16],
    created: TimeNs,
) -> Result<Active> {
    let name = name(number);
    let failed = |e| Error::io(format!("beginning {name}"), e);
    let version = segment::VERSION;
    let mut header = segment::Header { version, vault, number, created, before, check: [0; 16] };
    header.check = hash::header_check(&header.encode()[..segment::CHECKED_LEN]);
    let file = segments.dir.create(&name).map_err(failed)?;
    file.write_at(&header.encode(), 0).map_err(failed)?;
    if !seeded("segment-header-unsynced") {
        file.sync().map_err(failed)?;
    }
    if !seeded("segment-name-unsynced") {
        segments.dir.sync().map_err(failed)?;
    }
    segments.remember(number, Arc::clone(&file));
    let end = segment::HEADER_LEN as u64;
    Ok(Active {
        number,
        version,
        file,
        end,
        chain: header.check,
        segment_check: header.check,
        durable: end,
        noted: end,
        table: Table::default(),
        sealed: false,
    })
}

impl Log {
    pub(crate) fn new(
        vault: VaultId,
        segment_size: u64,
        segments: Segments,
        index: Index,
        active: Active,
    ) -> Self {
        let sealed_to = if active.sealed { active.number } else { active.number - 1 };
        let attempts = (active.number << 32) + active.end;
        let bytes = active.end;
        Self {
            vault,
            segment_size: segment_size.clamp(1 << 10, 1 << 30),
            segments,
            index,
            syncing: Mutex::default(),
            active: Mutex::new(active),
            poisoned: AtomicBool::new(false),
            no_room: AtomicBool::new(false),
            attempts: AtomicU64::new(attempts),
            sealed_to: AtomicU64::new(sealed_to),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(bytes),
            newest: AtomicU64::new(0),
        }
    }

    /// A number that no earlier try at a point has. Each try that leaves a trace
    /// moves the log's end by more than one, so a reopened log begins above.
    pub(crate) fn attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    pub(crate) fn usable(&self) -> Result<()> {
        match (self.is_poisoned(), self.no_room.load(Ordering::Acquire)) {
            (false, _) => Ok(()),
            (true, true) => Err(Error::Full),
            (true, false) => Err(Error::Poisoned),
        }
    }

    fn fail(&self, what: &str, number: u64, e: std::io::Error) -> Error {
        if !seeded("not-poisoned") {
            self.poison();
        }
        Error::io(format!("{what} {}", name(number)), e)
    }

    /// Appends a record that was checked. It is durable after [`Self::sync_to`].
    pub(crate) fn append(
        &self,
        header: &Header,
        record: &[u8],
        now: TimeNs,
    ) -> Result<(RecordRef, Position)> {
        let trailer = if seeded("roll-bound") { 0 } else { TRAILER_LEN };
        let len = (record.len() + trailer) as u64;
        let mut active = lock(&self.active);
        loop {
            self.usable()?;
            if self.fits(&active, header.kind, len) {
                break;
            }
            drop(active);
            let syncing = lock(&self.syncing);
            active = self.roll(&syncing, header.kind, len, now)?;
        }
        let at = self.write(&mut active, header, record)?;
        self.newest.fetch_max(now, Ordering::Relaxed);
        self.index.insert(header, &at);
        Ok((at, Position { segment: active.number, end: active.end }))
    }

    fn fits(&self, active: &Active, kind: Kind, len: u64) -> bool {
        let empty = active.end == segment::HEADER_LEN as u64;
        !active.sealed
            && kind.version() <= active.version
            && (empty || (active.end + len <= self.segment_size && !active.table.is_full()))
    }

    fn write(&self, active: &mut Active, header: &Header, record: &[u8]) -> Result<RecordRef> {
        let (number, at) = (active.number, active.end);
        let durable = if seeded("durable-ahead") { at } else { active.durable };
        let chain = hash::chain(&active.chain, &header.check, durable);
        let check = hash::trailer_check(&active.segment_check, at, durable, &chain);
        let trailer = Trailer { durable, chain, check };
        let end = at + record.len() as u64;
        active.file.write_at(record, at).map_err(|e| self.fail("writing", number, e))?;
        active
            .file
            .write_at(&trailer.encode(), end)
            .map_err(|e| self.fail("writing", number, e))?;
        active.end = end + TRAILER_LEN as u64;
        active.chain = trailer.chain;
        active.noted = trailer.durable;
        if header.kind != Kind::Seal {
            active.table.push(header, at as u32);
        }
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(active.end - at, Ordering::Relaxed);
        Ok(RecordRef { segment: number as u32, offset: at as u32, body_len: header.body_len })
    }

    /// Seals the active segment, unless somebody did, and begins the next.
    fn roll(
        &self,
        syncing: &MutexGuard<'_, ()>,
        kind: Kind,
        len: u64,
        now: TimeNs,
    ) -> Result<MutexGuard<'_, Active>> {
        self.sync_active(syncing)?;
        let mut active = lock(&self.active);
        self.usable()?;
        if !self.fits(&active, kind, len) {
            self.next(&mut active, now)?;
        }
        Ok(active)
    }

    /// Seals segment `number`, if it is still the one that is written, and begins the next.
    pub(crate) fn end_segment(&self, number: u64, now: TimeNs) -> Result<()> {
        let syncing = lock(&self.syncing);
        self.sync_active(&syncing)?;
        let mut active = lock(&self.active);
        self.usable()?;
        if active.number == number { self.next(&mut active, now) } else { Ok(()) }
    }

    fn next(&self, active: &mut Active, now: TimeNs) -> Result<()> {
        if !active.sealed {
            self.seal(active)?;
        }
        let number = active.number + 1;
        if number > u64::from(u32::MAX) {
            return Err(Error::Full);
        }
        let begun = begin_segment(&self.segments, self.vault, number, active.chain, now);
        *active = begun.inspect_err(|_| self.poison())?;
        self.bytes.fetch_add(active.end, Ordering::Relaxed);
        self.sealed_to.store(number - 1, Ordering::Release);
        Ok(())
    }

    fn seal(&self, active: &mut Active) -> Result<()> {
        let number = active.number;
        let at = active.end;
        if seeded("seal-table-short") {
            active.table.seal.items.pop();
        }
        let seal = record::plain(Kind::Seal, WriterId::ZERO, &active.table.seal.encode());
        let (header, _) = dormouse_format::record::split(&seal)?;
        self.write(active, &header, &seal)?;
        let tail = Tail { seal: at, check: hash::tail_check(at, &active.chain) };
        let tail = tail.encode();
        active.file.write_at(&tail, active.end).map_err(|e| self.fail("sealing", number, e))?;
        active.end += tail.len() as u64;
        if !seeded("seal-unsynced") {
            active.file.sync().map_err(|e| self.fail("syncing", number, e))?;
        }
        active.durable = active.end;
        active.sealed = true;
        Ok(())
    }

    fn sync_active(&self, _syncing: &MutexGuard<'_, ()>) -> Result<()> {
        let (number, file, end) = {
            let active = lock(&self.active);
            self.usable()?;
            if active.durable == active.end {
                return Ok(());
            }
            (active.number, Arc::clone(&active.file), active.end)
        };
        let synced =
            file.sync().or_else(|e| if seeded("sync-retried") { file.sync() } else { Err(e) });
        synced.map_err(|e| self.fail("syncing", number, e))?;
        // Only who holds `syncing` begins a segment: it is still the same one.
        let mut active = lock(&self.active);
        active.durable = if seeded("durable-late") { active.end } else { end };
        Ok(())
    }

    /// Where the log ends now.
    pub(crate) fn end(&self) -> Position {
        let active = lock(&self.active);
        Position { segment: active.number, end: active.end }
    }

    /// Returns when everything up to `to` is durable. Who waits for another's
    /// sync finds its own bytes in the next, so commits share syncs.
    pub(crate) fn sync_to(&self, to: Position) -> Result<()> {
        let syncing = lock(&self.syncing);
        {
            let active = lock(&self.active);
            if active.number > to.segment || (active.durable >= to.end) {
                return Ok(());
            }
        }
        self.sync_active(&syncing)
    }

    /// Puts on record that all is durable that is, if no entry says so yet.
    pub(crate) fn note(&self) -> Result<()> {
        self.usable()?;
        let mut active = lock(&self.active);
        let least = segment::HEADER_LEN + HEADER_LEN;
        if active.sealed || active.noted >= active.durable || active.end < least as u64 {
            return Ok(());
        }
        // A mark that says so of all before it needs no mark of its own.
        let last = active.table.seal.items.last();
        if last.is_some_and(|i| i.kind == Kind::Mark && active.noted >= u64::from(i.offset)) {
            return Ok(());
        }
        let mark = record::plain(Kind::Mark, WriterId::ZERO, &active.durable.to_le_bytes());
        let (header, _) = dormouse_format::record::split(&mark)?;
        self.write(&mut active, &header, &mark).map(drop)
    }

    /// So much is in no segment any more.
    pub(crate) fn removed(&self, bytes: u64, records: u64) {
        self.bytes.fetch_sub(bytes.min(self.bytes.load(Ordering::Relaxed)), Ordering::Relaxed);
        self.records
            .fetch_sub(records.min(self.records.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// The segment that is written: its number, where it ends, what it holds.
    pub(crate) fn listed(&self) -> (u64, u64, Seal) {
        let active = lock(&self.active);
        (active.number, active.end, active.table.seal.clone())
    }

    /// Number of the segment that is written.
    pub(crate) fn number(&self) -> u64 {
        lock(&self.active).number
    }
}
