//! Making and opening a vault's store.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};

use dormouse_crypt::record;
use dormouse_format::delta;
use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::segment::{Item, Seal};
use dormouse_format::{TimeNs, VaultId};

use super::pins::PinBoard;
use super::{Options, VaultStore};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::locks::read;
use crate::log::append::{Active, Log, begin_segment};
use crate::log::gaps::{Retirees, retirees};
use crate::log::recover::{Found, TornTail, recover};
use crate::log::{RecordRef, Segments, numbers, read_range, walk};
use crate::map::Cache;
use crate::state::replay::Replay;
use crate::state::{State, Volume};

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
        let (creating, collecting, terms) = Default::default();
        let pins = PinBoard::default();
        Self { vault, log, state, cache, creating, terms, collecting, pins }
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
        let mut opening = Opening::new(&segments);
        for sealed in &found.sealed {
            let number = sealed.header.number;
            opening.segment(number, &walk::table(&*segments.file(number)?, number, sealed)?)?;
            opening.lens.push((number, sealed.len));
        }
        let number = found.active.number;
        opening.damaged = found.damaged.iter().map(|(at, e)| (*at, e.to_string())).collect();
        opening.segment(number, found.active.table.seal())?;
        found.check_chain(&opening.replay.retired)?;
        let Opened { state, retired, recovery, records, bytes } = opening.done()?;
        segments.retire(&retired);
        let index = Index::new(index, vault, options.index_entries);
        index.retire(retired.keys().copied());
        index.load(&|n| found.chain_after(n, &retired));
        let index_rebuilt = index_segments(&segments, &index, &found)?;
        found.mend(&segments)?;
        found.remove_retired(&segments, &retired)?;
        let Found { active, torn, read_only, no_room, .. } = found;
        let recovery = Recovery { torn, read_only, index_rebuilt, ..recovery };
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

/// Indexes the segments that no run covers, from the first to the last; how many they are.
fn index_segments(segments: &Segments, index: &Index, found: &Found) -> Result<u64> {
    let mut rebuilt = 0;
    // First segment that is in memory's index and in no run.
    let mut uncovered = 1;
    let mut sealed = found.sealed.iter().peekable();
    // Runs cover retired segments, too.
    for number in 1..found.active.number {
        let here = sealed.next_if(|s| s.header.number == number);
        if index.covers(number) {
            if uncovered < number {
                index.flush_opening(segments, uncovered, number - 1, true);
            }
            uncovered = number + 1;
            continue;
        }
        let Some(sealed) = here.filter(|_| !segments.is_retired(number)) else { continue };
        rebuilt += 1;
        let table = walk::table(&*segments.file(number)?, number, sealed)?;
        index.insert_table(number, &table);
        if index.flush_opening(segments, uncovered, number, false) {
            uncovered = number + 1;
        }
    }
    let Active { number, sealed, ref table, .. } = found.active;
    if index.covers(number) {
        if uncovered < number {
            index.flush_opening(segments, uncovered, number - 1, true);
        }
        return Ok(rebuilt);
    }
    index.insert_table(number, table.seal());
    if sealed {
        index.flush_opening(segments, uncovered, number, false);
    }
    Ok(rebuilt + 1)
}

/// The log's tables, read from the first to the last.
struct Opening<'a> {
    segments: &'a Segments,
    state: State,
    replay: Replay,
    recovery: Recovery,
    /// Records that are known to be damaged, and what does not hold.
    damaged: HashMap<RecordRef, String>,
    /// Records of each segment.
    counts: Vec<(u64, u64)>,
    /// Bytes of each sealed segment.
    lens: Vec<(u64, u64)>,
}

/// What the tables came to.
struct Opened {
    state: State,
    retired: Retirees,
    recovery: Recovery,
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
    fn new(segments: &'a Segments) -> Self {
        let (state, replay, recovery) = (State::default(), Replay::default(), Recovery::default());
        let (damaged, counts, lens) = (HashMap::new(), Vec::new(), Vec::new());
        Self { segments, state, replay, recovery, damaged, counts, lens }
    }

    fn segment(&mut self, number: u64, table: &Seal) -> Result<()> {
        self.counts.push((number, table.items.len() as u64));
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
            _ => match self.segments.record(&at) {
                Ok((header, record)) if listed(item, &header) => {
                    let taken = self.small(&header, &record[HEADER_LEN..], at);
                    taken.map_err(|e| placed(&at, e))
                }
                Ok(_) => self.tolerate(item, &at, at.damaged(EXCHANGED)),
                Err(e @ Error::Damaged { .. }) => self.tolerate(item, &at, e),
                Err(e) => Err(e),
            },
        }
    }

    fn small(&mut self, header: &Header, body: &[u8], at: RecordRef) -> Result<()> {
        match header.kind {
            Kind::Point => return self.replay.point(self.segments, &header.id, body, at),
            Kind::Generation => return self.replay.generation(body, at),
            Kind::Expired => self.replay.expired(body, at)?,
            Kind::Retired => self.replay.retired.extend(retirees(body)?),
            _ => {}
        }
        self.state.apply(header, body, at)
    }

    /// Without these records the rest is still sound; others are needed.
    fn tolerate(&mut self, item: &Item, at: &RecordRef, e: Error) -> Result<()> {
        match item.kind {
            Kind::Point => self.replay.missing_point(item.id),
            Kind::DataKey | Kind::VaultKeys | Kind::Distrust | Kind::Bridge | Kind::Stale => {}
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
    fn done(mut self) -> Result<Opened> {
        if self.replay.settle(self.segments, &self.state)? && !seeded("newest-point-lost") {
            let fault = self.recovery.damaged.last();
            let (segment, offset) =
                fault.map_or((String::new(), 0), |f| (f.segment.clone(), f.offset));
            let why = "a damaged point may be the newest of its volume; restore the segment from \
                       a copy"
                .to_owned();
            return Err(Error::Damaged { segment, offset, why });
        }
        self.state.give_names();
        let retired = std::mem::take(&mut self.replay.retired);
        let here = |(number, _): &&(u64, u64)| !retired.contains_key(number);
        let sum = |all: &[(u64, u64)]| all.iter().filter(here).map(|(_, n)| n).sum::<u64>();
        let (records, bytes) = (sum(&self.counts), sum(&self.lens));
        let segments = self.counts.iter().filter(here).count() as u64;
        let recovery = Recovery { segments, ..self.recovery };
        Ok(Opened { state: self.state, retired, recovery, records, bytes })
    }
}

impl VaultStore {
    /// Number of volumes, for tests and statistics.
    pub(crate) fn volume_list(&self) -> Vec<Arc<Volume>> {
        let here = |volume: &&Arc<Volume>| !read(&volume.history).dropped;
        read(&self.state).volumes.values().filter(here).cloned().collect()
    }
}
