//! Making and opening a vault's store.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, RwLock};

use dormouse_crypt::record;
use dormouse_format::delta;
use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::segment::{Item, Seal};
use dormouse_format::{TimeNs, VaultId};

use super::{Options, VaultStore};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::locks::read;
use crate::log::append::{Log, begin_segment};
use crate::log::recover::{Found, TornTail, recover};
use crate::log::{RecordRef, Segments, numbers, read_range, walk};
use crate::map::Cache;
use crate::state::{Replay, State};

/// A damaged record that opening came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Name of the segment's file.
    pub segment: String,
    /// Where in it.
    pub offset: u64,
    /// What does not hold.
    pub why: String,
}

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Unfinished writes that were set aside.
    pub torn: Vec<TornTail>,
    /// Damaged records that do not keep the store from being used.
    pub damaged: Vec<Fault>,
    /// Segments found.
    pub segments: u64,
    /// Segments whose index was made anew from their tables (the last always is).
    pub index_rebuilt: u64,
    /// Nothing can be written, for the files are read-only.
    pub read_only: bool,
}

impl VaultStore {
    /// Makes a new, empty vault.
    pub fn create(
        segments: Box<dyn Dir>,
        index: Box<dyn Dir>,
        vault: VaultId,
        now: TimeNs,
        options: Options,
    ) -> Result<Self> {
        let segments = Segments::new(Arc::from(segments));
        if !numbers(&*segments.dir)?.is_empty() {
            return Err(Error::Exists { name: format!("vault {vault}") });
        }
        let index = Index::new(index, vault, options.index_entries);
        index.load(&|_| None);
        let active = begin_segment(&segments, vault, 1, [0; 16], now)?;
        let log = Log::new(vault, options.segment_size, segments, index, active);
        Ok(Self::with(vault, log, State::default()))
    }

    fn with(vault: VaultId, log: Log, state: State) -> Self {
        let (state, cache) = (RwLock::new(state), Cache::default());
        Self { vault, log, state, cache, creating: Mutex::default() }
    }

    /// Opens a vault and recovers what a crash left: see [`Recovery`].
    pub fn open(
        segments: Box<dyn Dir>,
        index: Box<dyn Dir>,
        vault: VaultId,
        options: Options,
    ) -> Result<(Self, Recovery)> {
        let segments = Segments::new(Arc::from(segments));
        let mut found = recover(&segments, &vault)?;
        let index = Index::new(index, vault, options.index_entries);
        index.load(&|n| chain_after(&found, n));
        let mut opening = Opening::new(&segments, &index);
        for (number, sealed) in (1..).zip(&found.sealed) {
            let table = walk::table(&*segments.file(number)?, number, sealed)?;
            opening.segment(number, &table, true)?;
            opening.bytes += sealed.len;
        }
        let number = found.active.number;
        opening.damaged = found.damaged.iter().map(|(at, e)| (*at, e.to_string())).collect();
        opening.segment(number, found.active.table.seal(), found.active.sealed)?;
        let Opening { state, recovery, records, bytes, .. } = opening.done()?;
        found.mend(&segments)?;
        let Found { active, torn, read_only, no_room, .. } = found;
        let recovery = Recovery { torn, segments: number, read_only, ..recovery };
        let log = Log::new(vault, options.segment_size, segments, index, active);
        log.records.fetch_add(records, Ordering::Relaxed);
        log.bytes.fetch_add(bytes, Ordering::Relaxed);
        if read_only {
            log.no_room.store(no_room, Ordering::Release);
            log.poison();
        }
        Ok((Self::with(vault, log, state), recovery))
    }
}

fn chain_after(found: &Found, number: u64) -> Option<[u8; 16]> {
    if number == 0 {
        return Some([0; 16]);
    }
    if number == found.active.number {
        return found.active.sealed.then_some(found.active.chain);
    }
    found.sealed.get(usize::try_from(number - 1).ok()?).map(|s| s.chain)
}

/// The log's tables, read from the first to the last.
struct Opening<'a> {
    segments: &'a Segments,
    index: &'a Index,
    state: State,
    replay: Replay,
    recovery: Recovery,
    /// Records that are known to be damaged, and what does not hold.
    damaged: HashMap<RecordRef, String>,
    /// First segment that is in memory's index and in no run.
    uncovered: u64,
    records: u64,
    bytes: u64,
}

const EXCHANGED: &str = "another record lies here than the segment's table says";

/// Whether a record is the one that the table lists.
fn listed(item: &Item, header: &Header) -> bool {
    (item.kind, item.id, item.body_len) == (header.kind, header.id, header.body_len)
}

/// An error about a record's content, with its place.
fn placed(at: &RecordRef, error: Error) -> Error {
    match error {
        Error::Format(_) | Error::Crypt(_) | Error::NotFound { .. } => {
            at.damaged(error.to_string())
        }
        error => error,
    }
}

impl<'a> Opening<'a> {
    fn new(segments: &'a Segments, index: &'a Index) -> Self {
        let (state, replay, recovery) = (State::default(), Replay::default(), Recovery::default());
        let damaged = HashMap::new();
        let (uncovered, records, bytes) = (1, 0, 0);
        Self { segments, index, state, replay, recovery, damaged, uncovered, records, bytes }
    }

    fn segment(&mut self, number: u64, table: &Seal, sealed: bool) -> Result<()> {
        self.records += table.items.len() as u64;
        if self.index.covers(number) {
            if self.uncovered < number {
                let (first, last) = (self.uncovered, number - 1);
                self.index.flush_opening(self.segments, first, last, true);
            }
            self.uncovered = number + 1;
        } else {
            self.recovery.index_rebuilt += 1;
            self.index.insert_table(number, table);
            let (first, segments) = (self.uncovered, self.segments);
            if sealed && self.index.flush_opening(segments, first, number, false) {
                self.uncovered = number + 1;
            }
        }
        table.items.iter().try_for_each(|item| self.item(number, item))
    }

    fn item(&mut self, number: u64, item: &Item) -> Result<()> {
        let (segment, offset, body_len) = (number as u32, item.offset, item.body_len);
        let at = RecordRef { segment, offset, body_len };
        match item.kind {
            Kind::Chunk | Kind::Page | Kind::Node | Kind::Seal | Kind::Mark => {
                if let Some(why) = self.damaged.remove(&at) {
                    self.fault(&at, why);
                }
                Ok(())
            }
            Kind::Delta => {
                let known = self.damaged.remove(&at);
                let why = match known
                    .map_or_else(|| self.delta(item, &at).map(|()| None), |why| Ok(Some(why)))
                {
                    Ok(None) => return Ok(()),
                    Ok(Some(why)) => why,
                    // A disk that does not answer now may do so later: nothing is damaged.
                    Err(e @ Error::Io { .. }) => return Err(e),
                    Err(e) => e.to_string(),
                };
                self.replay.damaged_deltas = true;
                self.fault(&at, why);
                Ok(())
            }
            kind => match self.segments.record(&at) {
                Ok((header, record)) if listed(item, &header) => {
                    let body = &record[HEADER_LEN..];
                    let taken = if kind == Kind::Point {
                        self.replay.point(self.segments, &self.state, body, at)
                    } else {
                        self.state.apply(&header, body, at)
                    };
                    taken.map_err(|e| placed(&at, e))
                }
                Ok(_) => self.tolerate(kind, &at, at.damaged(EXCHANGED)),
                Err(e @ Error::Damaged { .. }) => self.tolerate(kind, &at, e),
                Err(e) => Err(e),
            },
        }
    }

    /// Without these records the rest is still sound; others are needed.
    fn tolerate(&mut self, kind: Kind, at: &RecordRef, e: Error) -> Result<()> {
        match kind {
            Kind::Point => self.replay.missing_points += 1,
            Kind::DataKey | Kind::VaultKeys | Kind::Distrust | Kind::Stale => {}
            _ => return Err(e),
        }
        self.fault(at, e.to_string());
        Ok(())
    }

    fn fault(&mut self, at: &RecordRef, why: String) {
        let (segment, offset) = (crate::log::name(at.segment()), at.offset());
        self.recovery.damaged.push(Fault { segment, offset, why });
    }

    fn delta(&mut self, item: &Item, at: &RecordRef) -> Result<()> {
        let len = HEADER_LEN + delta::PREFIX_LEN.min(at.body_len as usize);
        let file = self.segments.file(at.segment())?;
        let bytes = read_range(&*file, at.segment(), at.offset(), len)?;
        let head = bytes.first_chunk().ok_or_else(|| at.damaged("too short"))?;
        let header = record::check_header(head).map_err(|e| at.damaged(e.to_string()))?;
        if !listed(item, &header) {
            return Err(at.damaged(EXCHANGED));
        }
        let (prefix, _) = delta::decode(&bytes[HEADER_LEN..])?;
        self.replay.delta(prefix, *at);
        Ok(())
    }

    /// A damaged point that no later point proves to be in the past may have been
    /// the newest: going on would write it over.
    fn done(self) -> Result<Self> {
        if self.replay.missing_points == 0 || seeded("newest-point-lost") {
            return Ok(self);
        }
        let fault = self.recovery.damaged.last();
        let (segment, offset) = fault.map_or((String::new(), 0), |f| (f.segment.clone(), f.offset));
        let why = "a damaged point may be the newest of its volume; restore the segment from a \
                   copy"
            .to_owned();
        Err(Error::Damaged { segment, offset, why })
    }
}

impl VaultStore {
    /// Number of volumes, for tests and statistics.
    pub(crate) fn volume_list(&self) -> Vec<Arc<crate::state::Volume>> {
        read(&self.state).volumes.values().cloned().collect()
    }
}
