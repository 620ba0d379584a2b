//! Which segments hold how much that is live.
//!
//! Owns: which segments may be looked at, comparing their tables with the marks, and choosing.
//! Invariant: a record that was appended after the survey began, or that a table does not
//! list, is live. Works on batches of segments, so that memory does not grow with the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_format::segment::{self, Item, Seal};
use dormouse_format::{RecordId, Seq, TimeNs};

use super::refs::{Refs, key};
use super::{Pace, Round, Rules, go_on};
use crate::error::Result;
use crate::locks::read;
use crate::log::{RecordRef, read_range, walk};
use crate::state::Volume;
use crate::state::history::LOST;
use crate::vault::VaultStore;
use crate::vault::pins;

/// Records of the segments that are compared at once, at most (but at least a segment's).
pub(super) const BATCH_RECORDS: u64 = 1 << 20;

/// What refers to a record that is not found by its id.
#[derive(Clone)]
pub(super) enum Holder {
    /// A point, for its own record or for one of its deltas.
    Point(Arc<Volume>, Seq),
    /// A volume's generation.
    Claim(Arc<Volume>),
    /// A small record.
    Small(Kind, RecordId),
}

/// By place, what refers to records that are not found by their ids.
pub(super) type Holders = BTreeMap<RecordRef, Holder>;

impl VaultStore {
    fn header_of(&self, number: u64) -> Result<segment::Header> {
        let file = self.log.segments.file(number)?;
        let bytes = read_range(&*file, number, 0, segment::HEADER_LEN)?;
        walk::header(&bytes, number, &self.vault)
    }

    /// What refers to records in these segments, without those that are found by id.
    pub(super) fn holders(&self, within: impl Fn(u64) -> bool, since: TimeNs) -> Holders {
        let state = read(&self.state);
        let mut out = Holders::new();
        let mut hold = |at: &RecordRef, holder: Holder| {
            if within(at.segment()) {
                out.insert(*at, holder);
            }
        };
        for ((kind, id), at) in state.places() {
            hold(at, Holder::Small(*kind, *id));
        }
        for volume in state.volumes.values() {
            let history = read(&volume.history);
            if let Some(at) = &history.claim {
                hold(at, Holder::Claim(Arc::clone(volume)));
            }
            for point in history.needed(since) {
                let parts = history.parts(point.seq - 1, point.seq);
                let lost = parts.iter().any(|(_, at)| *at == LOST);
                // Without its deltas an expired point is of no use.
                if lost && history.expired_at(point.seq).is_some() {
                    continue;
                }
                for at in parts.iter().map(|(_, at)| at).chain([&point.at]) {
                    hold(at, Holder::Point(Arc::clone(volume), point.seq));
                }
            }
        }
        out
    }
}

/// A segment that may be retired.
pub(super) struct Candidate {
    pub(super) number: u64,
    pub(super) table: Seal,
    /// Which of the table's records are live.
    pub(super) live: Vec<bool>,
    /// Which of them lie again behind it, so that this one adds nothing.
    spare: Vec<bool>,
    /// Bytes of the file.
    pub(super) len: u64,
    pub(super) live_bytes: u64,
    pub(super) dead_bytes: u64,
    /// Whether this is the segment that was written when the survey began.
    was_written: bool,
}

/// Bytes of an item's record.
pub(super) fn record_len(item: &Item) -> u64 {
    HEADER_LEN as u64 + u64::from(item.body_len)
}

/// What says nothing of the vault, and is never copied.
pub(super) const fn is_frame(kind: Kind) -> bool {
    matches!(kind, Kind::Seal | Kind::Mark)
}

impl Candidate {
    fn new(number: u64, table: Seal, len: u64, was_written: bool) -> Self {
        let (live, spare) = (vec![false; table.items.len()], vec![false; table.items.len()]);
        Self { number, table, live, spare, len, live_bytes: 0, dead_bytes: 0, was_written }
    }

    pub(super) fn place(&self, item: &Item) -> RecordRef {
        let (segment, offset) = (self.number as u32, item.offset);
        RecordRef { segment, offset, body_len: item.body_len }
    }

    fn weigh(&mut self) {
        let (mut live, mut dead) = (0, 0);
        for (i, item) in self.table.items.iter().enumerate() {
            let sum = if self.live[i] && !self.spare[i] { &mut live } else { &mut dead };
            *sum += if is_frame(item.kind) { 0 } else { record_len(item) };
        }
        (self.live_bytes, self.dead_bytes) = (live, dead);
    }

    /// Whether it is worth the copying.
    fn is_chosen(&self, rules: &Rules) -> bool {
        let all = self.live_bytes + self.dead_bytes;
        let little = self.live_bytes * 100 <= all * u64::from(rules.live_percent_max);
        // A segment without records is only in the way, unless it is the one that is written.
        little && (self.dead_bytes > 0 || (all == 0 && !self.was_written))
    }
}

/// The segment that is written, as a round finds it.
struct Written {
    number: u64,
    end: u64,
    table: Seal,
}

/// The log as a round finds it.
pub(super) struct Survey<'a> {
    store: &'a VaultStore,
    pub(super) segments: u64,
    pub(super) young: u64,
    /// Sealed segments that may be looked at, descending.
    all: Vec<u64>,
    /// Those of them that have still to be looked at.
    old: Vec<u64>,
    /// Whether they are looked at again.
    again: bool,
    /// The segment that is written as the round begins, if it may be looked at.
    written: Option<Written>,
    /// Whether it has still to be looked at.
    look_at_written: bool,
    /// While this lives, pins that are released are kept.
    _round: pins::Round,
}

impl<'a> Survey<'a> {
    pub(super) fn begin(store: &'a VaultStore, now: TimeNs, since: TimeNs) -> Result<Self> {
        let active = store.log.listed();
        let round = store.pins.round(active.0 + 1);
        let mut numbers = store.log.segments.present()?;
        numbers.retain(|number| *number < active.0);
        let segments = numbers.len() as u64 + 1;
        // Nothing in a segment was received after the next one was begun.
        let mut newest = store.log.newest.load(Ordering::Relaxed);
        if newest == 0 {
            let _ = store.log.newest.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            newest = now;
        }
        let is_active_old = newest <= since && active.0 < round.from;
        let mut next = store.header_of(active.0)?.created;
        let mut old = Vec::new();
        for number in numbers.iter().rev() {
            let file = store.log.segments.file(*number)?;
            let sealed = walk::sealed(&*file, *number, &store.vault)?;
            let received = next.max(sealed.header.created);
            if received <= since && *number < round.from {
                old.push(*number);
            }
            next = sealed.header.created;
        }
        let (number, end, table) = active;
        let written = is_active_old.then_some(Written { number, end, table });
        let look_at_written = written.is_some();
        let young = segments - old.len() as u64 - u64::from(look_at_written);
        let (all, again) = (old.clone(), false);
        let _round = round;
        Ok(Self { store, segments, young, all, old, again, written, look_at_written, _round })
    }

    /// The segment that was written as the round began, if it may be looked at.
    pub(super) fn written(&self) -> Option<u64> {
        self.written.as_ref().map(|written| written.number)
    }

    /// Has those of these segments that may be looked at, and are still there, looked at
    /// again; whether there are any. What was appended since is never looked at.
    pub(super) fn again(&mut self, numbers: &BTreeSet<u64>) -> bool {
        let here = |n: &u64| numbers.contains(n) && !self.store.log.segments.is_retired(*n);
        self.old = self.all.iter().copied().filter(here).collect();
        self.look_at_written = self.written().is_some_and(|number| here(&number));
        self.again = true;
        !self.old.is_empty() || self.look_at_written
    }

    /// The next segments whose tables are compared at once; none at the end.
    pub(super) fn batch(&mut self, pace: Pace<'_>) -> Result<Vec<Candidate>> {
        let (mut batch, mut records) = (Vec::new(), 0);
        while records < BATCH_RECORDS {
            let Some(number) = self.old.pop() else { break };
            let file = self.store.log.segments.file(number)?;
            let sealed = walk::sealed(&*file, number, &self.store.vault)?;
            let table = walk::table(&*file, number, &sealed)?;
            go_on(pace, 28 * table.items.len() as u64)?;
            records += table.items.len() as u64;
            batch.push(Candidate::new(number, table, sealed.len, false));
        }
        if records < BATCH_RECORDS
            && self.look_at_written
            && let Some(Written { number, end, table }) = &self.written
        {
            self.look_at_written = false;
            batch.push(Candidate::new(*number, table.clone(), *end, true));
        }
        Ok(batch)
    }

    /// Finds out what is live in these segments, and leaves those that are worth retiring.
    pub(super) fn choose(
        &self,
        mut batch: Vec<Candidate>,
        marks: &Refs<'_>,
        holders: &Holders,
        rules: &Rules,
        round: &mut Round,
    ) -> Result<Vec<Candidate>> {
        self.join(&mut batch, marks)?;
        for candidate in &mut batch {
            for i in 0..candidate.table.items.len() {
                let at = candidate.place(&candidate.table.items[i]);
                candidate.live[i] |= holders.contains_key(&at);
            }
            candidate.weigh();
            round.dead_bytes += if self.again { 0 } else { candidate.dead_bytes };
        }
        batch.retain(|candidate| candidate.is_chosen(rules));
        Ok(batch)
    }

    /// Marks what is found by id and referred to as live, and what lies again behind it.
    fn join(&self, batch: &mut [Candidate], marks: &Refs<'_>) -> Result<()> {
        let mut records: Vec<(u64, u32, u32)> = Vec::new();
        for (c, candidate) in batch.iter().enumerate() {
            let indexed = candidate.table.items.iter().enumerate();
            let indexed = indexed.filter(|(_, i)| i.kind.indexed());
            records.extend(indexed.map(|(i, item)| (key(&item.id), c as u32, i as u32)));
        }
        records.sort_unstable();
        for pair in records.windows(2) {
            let [one, next] = [&pair[0], &pair[1]].map(|(_, c, i)| {
                let candidate = &batch[*c as usize];
                (candidate, &candidate.table.items[*i as usize])
            });
            let spare = self.is_same(one, next);
            let (_, c, i) = pair[0];
            batch[c as usize].spare[i as usize] = spare;
        }
        let mut marked = marks.cursor()?;
        let mut mark = marked.next()?;
        for (key, c, i) in records {
            while mark.is_some_and(|mark| mark < key) {
                mark = marked.next()?;
            }
            if mark == Some(key) {
                batch[c as usize].live[i as usize] = true;
            }
        }
        Ok(())
    }

    /// Whether two records that are found by id are one: of the map those of one id, and of
    /// chunks copies only. (One chunk may have been sealed twice, and none of them hides the other.)
    fn is_same(&self, one: (&Candidate, &Item), next: (&Candidate, &Item)) -> bool {
        if (one.1.kind, one.1.id) != (next.1.kind, next.1.id) {
            return false;
        }
        if one.1.kind != Kind::Chunk {
            return true;
        }
        let check = |(candidate, item): (&Candidate, &Item)| {
            self.store.log.segments.header(&candidate.place(item)).map(|header| header.check)
        };
        one.1.body_len == next.1.body_len
            && matches!((check(one), check(next)), (Ok(one), Ok(next)) if one == next)
    }
}
