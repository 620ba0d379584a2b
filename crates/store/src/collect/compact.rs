//! Taking segments out of the log.
//!
//! What is live is appended at the head as it is; then the segment is hidden, unless a
//! connection holds something of it, which is appended too; then, when all is durable, a record
//! 'retired' is written, and when that is durable the file is removed. A point is moved with all of
//! its deltas, in order: what the replay at opening relies on. A segment that holds something
//! live that is damaged, or a point that cannot be read, stays.

use std::collections::{BTreeSet, HashSet};

use dormouse_crypt::record;
use dormouse_format::collect::{Retired, RetiredSegment};
use dormouse_format::limits::RETIRED_MAX;
use dormouse_format::record::{HEADER_LEN, Kind, split};
use dormouse_format::seeded::seeded;
use dormouse_format::segment::Item;
use dormouse_format::{ChunkId, Seq, TimeNs, VolumeId, WriterId};

use super::survey::{Candidate, Holder, Holders, is_frame};
use super::{Pace, Round, go_on};
use crate::error::{Error, Result};
use crate::locks::{read, write};
use crate::log::gaps::Retirees;
use crate::log::{RecordRef, name, recover, walk};
use crate::state::Volume;
use crate::state::history::LOST;
use crate::vault::{Fault, VaultStore};

/// Bytes that are written again at most before segments go.
const COPIED_MAX: u64 = 64 << 20;

/// Compacts chosen segments.
pub(super) struct Compaction<'a> {
    store: &'a VaultStore,
    now: TimeNs,
    since: TimeNs,
    holders: &'a Holders,
    /// Points that were moved: what lay in other segments of them is dead there.
    moved: HashSet<(VolumeId, Seq)>,
    /// Segments out of which something was moved.
    left: BTreeSet<u64>,
    /// Segments that are hidden, and what is left of each.
    ready: Vec<(RetiredSegment, u64, u64)>,
    /// Bytes that were written again since segments went.
    copied: u64,
}

/// What became of a segment.
enum Outcome {
    Ready,
    /// It stays: what is damaged.
    Stays(Fault),
    /// It stays for this time: somebody wrote to it.
    Busy,
    /// Nothing can be hidden now.
    PutOff,
}

impl<'a> Compaction<'a> {
    pub(super) fn new(
        store: &'a VaultStore,
        now: TimeNs,
        since: TimeNs,
        holders: &'a Holders,
    ) -> Self {
        let (moved, left, ready) = (HashSet::new(), BTreeSet::new(), Vec::new());
        Self { store, now, since, holders, moved, left, ready, copied: 0 }
    }

    /// Compacts these; the segments out of which parts of points were moved. `written` is the
    /// segment that was written when the log was surveyed, if it may be looked at.
    pub(super) fn run(
        mut self,
        mut chosen: Vec<Candidate>,
        written: Option<u64>,
        round: &mut Round,
        pace: Pace<'_>,
    ) -> Result<BTreeSet<u64>> {
        // It ends before anything is appended again: so it can be looked at again, and holds
        // nothing of this round.
        if let Some(number) = written.filter(|_| !chosen.is_empty()) {
            self.store.log.end_segment(number, self.now)?;
        }
        // Those without anything live first: for them no room is needed.
        chosen.sort_by_key(|c| (c.live_bytes > 0, c.number));
        let done = self.segments(&chosen, round, pace);
        // What was copied so far need not be copied again.
        let done = match done {
            Ok(()) | Err(Error::Stopped) => self.retire(round).and(done),
            failed => failed,
        };
        self.ready.iter().for_each(|(s, ..)| self.store.log.index.show(s.number));
        done.map(|()| self.left)
    }

    fn segments(&mut self, chosen: &[Candidate], round: &mut Round, pace: Pace<'_>) -> Result<()> {
        for candidate in chosen {
            match self.segment(candidate, round, pace)? {
                Outcome::Ready => {}
                Outcome::Stays(fault) => round.damaged.push(fault),
                Outcome::Busy => round.young += 1,
                Outcome::PutOff => {
                    round.put_off = true;
                    return Ok(());
                }
            }
            if self.copied >= COPIED_MAX || self.ready.len() >= RETIRED_MAX {
                self.retire(round)?;
            }
        }
        Ok(())
    }

    fn segment(&mut self, c: &Candidate, round: &mut Round, pace: Pace<'_>) -> Result<Outcome> {
        let log = &self.store.log;
        let file = log.segments.file(c.number)?;
        let sealed = walk::sealed(&*file, c.number, &self.store.vault)?;
        let table = walk::table(&*file, c.number, &sealed)?;
        let since = &table.items[c.live.len().min(table.items.len())..];
        if since.iter().any(|item| !item.kind.indexed() && !is_frame(item.kind)) {
            return Ok(Outcome::Busy);
        }
        let mut dead = Vec::new();
        for (i, item) in table.items.iter().enumerate() {
            // What was appended since the survey is live.
            let live = c.live.get(i).copied().unwrap_or(true);
            if let Err(e) = self.item(c, item, live, round, pace) {
                return stays(c, item, e);
            }
            if !live && item.kind == Kind::Chunk {
                dead.push(item);
            }
        }
        let records = table.items.len() as u64 + 1;
        loop {
            let ids: Vec<ChunkId> = dead.iter().map(|item| item.id).collect();
            let index = &log.index;
            let Some(pinned) = self.store.pins.hide(&ids, || index.hide(c.number)) else {
                return Ok(Outcome::PutOff);
            };
            if pinned.is_empty() {
                break;
            }
            let pinned: HashSet<ChunkId> = pinned.into_iter().collect();
            let (held, rest) = dead.into_iter().partition(|item| pinned.contains(&item.id));
            dead = rest;
            for item in held {
                if let Err(e) = self.copy(&c.place(item), round, pace) {
                    return stays(c, item, e);
                }
            }
        }
        let (before, check) = (sealed.header.before, sealed.header.check);
        let left = RetiredSegment { number: c.number, before, check, chain: sealed.chain };
        self.ready.push((left, sealed.len, records));
        Ok(Outcome::Ready)
    }

    /// Appends a record again if it is live.
    fn item(
        &mut self,
        c: &Candidate,
        item: &Item,
        live: bool,
        round: &mut Round,
        pace: Pace<'_>,
    ) -> Result<()> {
        let at = c.place(item);
        match self.holders.get(&at) {
            _ if is_frame(item.kind) => Ok(()),
            Some(Holder::Point(volume, seq)) => self.point(volume, *seq, round, pace),
            Some(Holder::Claim(volume)) => {
                let to = self.copy(&at, round, pace)?;
                let mut history = write(&volume.history);
                if history.claim == Some(at) {
                    history.claim = Some(to);
                }
                Ok(())
            }
            Some(Holder::Small(kind, id)) => {
                let to = self.copy(&at, round, pace)?;
                write(&self.store.state).place(*kind, *id, to);
                Ok(())
            }
            None if live && item.kind.indexed() => {
                if self.is_behind(&at, item)? {
                    Ok(())
                } else {
                    self.copy(&at, round, pace).map(drop)
                }
            }
            // If it cannot be read, nobody can tell which point is missing.
            None if item.kind == Kind::Point => self.store.read(&at).map(drop),
            None => Ok(()),
        }
    }

    /// Appends a record again; where it lies now.
    fn copy(&mut self, at: &RecordRef, round: &mut Round, pace: Pace<'_>) -> Result<RecordRef> {
        let record = self.store.read(at)?;
        let (to, _) = self.store.append(&record, self.now)?;
        self.copied += record.len() as u64;
        round.copied_bytes += record.len() as u64;
        go_on(pace, record.len() as u64)?;
        Ok(to)
    }

    /// Whether a whole copy of this very record lies behind it: a crash cut an earlier round.
    fn is_behind(&self, at: &RecordRef, item: &Item) -> Result<bool> {
        let mut behind = Vec::new();
        self.store.find(&item.id, &mut |e| {
            if e.at > *at && (e.kind, e.at.body_len) == (item.kind, item.body_len) {
                behind.push(e.at);
            }
            e.at <= *at
        })?;
        if behind.is_empty() {
            return Ok(false);
        }
        let check = self.store.log.segments.header(at)?.check;
        let same = |at: &RecordRef| {
            self.store.log.segments.record(at).is_ok_and(|(header, _)| header.check == check)
        };
        Ok(behind.iter().any(same))
    }

    /// Appends a point again, behind its deltas.
    fn point(
        &mut self,
        volume: &Volume,
        seq: Seq,
        round: &mut Round,
        pace: Pace<'_>,
    ) -> Result<()> {
        if !self.moved.insert((volume.value.id, seq)) {
            return Ok(());
        }
        let (at, parts) = {
            let history = read(&volume.history);
            let parts: Vec<_> = history.parts(seq - 1, seq).iter().map(|p| p.1).collect();
            (history.there(seq).map(|p| p.at), parts)
        };
        let Some(at) = at else { return Ok(()) };
        let from: Vec<u64> = parts.iter().chain([&at]).map(RecordRef::segment).collect();
        if parts.contains(&LOST) {
            return Err(at.damaged("its deltas are damaged"));
        }
        let copied =
            parts.iter().map(|part| self.copy(part, round, pace)).collect::<Result<Vec<_>>>();
        let to = copied.and_then(|parts| Ok((self.copy(&at, round, pace)?, parts)));
        let (to, parts) = to.inspect_err(|_| {
            self.moved.remove(&(volume.value.id, seq));
        })?;
        write(&volume.history).moved(seq, to, &parts);
        self.left.extend(from);
        Ok(())
    }

    /// Notes that the hidden segments are retired, durably, and removes them.
    fn retire(&mut self, round: &mut Round) -> Result<()> {
        if self.ready.is_empty() {
            return Ok(());
        }
        let (store, log) = (self.store, &self.store.log);
        let gone: Retirees = self.ready.iter().map(|(s, ..)| (s.number, *s)).collect();
        let left = store.holders(|number| gone.contains_key(&number), self.since);
        if let Some((at, _)) = left.first_key_value() {
            return Err(Error::conflict(format!(
                "{} is not retired: it holds something that is needed at byte {}",
                name(at.segment()),
                at.offset()
            )));
        }
        log.sync_to(log.end())?;
        let body = Retired { segments: gone.values().copied().collect() }.encode();
        let note = record::plain(Kind::Retired, WriterId::ZERO, &body);
        let (at, end) = store.append(&note, self.now)?;
        if !seeded("retired-unsynced") {
            log.sync_to(end)?;
        }
        let (header, _) = split(&note)?;
        let here = |at: &RecordRef| gone.contains_key(&at.segment());
        {
            let mut state = write(&store.state);
            state.apply(&header, &note[HEADER_LEN..], at)?;
            state.volumes.values().for_each(|volume| write(&volume.history).forget(here));
        }
        log.segments.retire(&gone);
        log.index.retire(gone.keys().copied());
        let ready = std::mem::take(&mut self.ready);
        let numbers: Vec<u64> = ready.iter().map(|(s, ..)| s.number).collect();
        recover::remove(&log.segments, &numbers)?;
        let bytes = ready.iter().map(|(_, len, _)| len).sum();
        log.removed(bytes, ready.iter().map(|(.., records)| records).sum());
        round.retired += ready.len() as u64;
        round.retired_bytes += bytes;
        self.copied = 0;
        Ok(())
    }
}

/// A segment stays if something in it is damaged; other errors end the round.
fn stays(c: &Candidate, item: &Item, e: Error) -> Result<Outcome> {
    match e {
        Error::Damaged { .. } => {
            let (segment, offset) = (name(c.number), u64::from(item.offset));
            Ok(Outcome::Stays(Fault { segment, offset, why: e.to_string() }))
        }
        e => Err(e),
    }
}
