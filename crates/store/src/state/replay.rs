//! Puts points in order while the log is read at opening.
//!
//! A point usually follows the one before it, and its deltas stand before it. But a
//! collection may have moved it, deltas first, behind any others, and points that expired may
//! be missing. So what does not follow is put in its place at the end, and there
//! every gap must be explained: by a note that these points expired, or by a record that is
//! damaged and still there. Of two copies of a point the later place counts, if its deltas
//! are whole.

use std::collections::{BTreeMap, HashMap, HashSet};

use dormouse_crypt::hash;
use dormouse_format::collect::Expired;
use dormouse_format::delta::{self, Prefix};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::HEADER_LEN;
use dormouse_format::seeded::seeded;
use dormouse_format::vault::Generation;
use dormouse_format::{Hash, RecordId, Seq, VolumeId};

use super::State;
use super::history::{History, LOST, PointRef, running};
use crate::error::{Error, Result};
use crate::locks::write;
use crate::log::gaps::Retirees;
use crate::log::{RecordRef, Segments};

type Parts = Vec<(Prefix, RecordRef)>;

/// A place of a point that has still to be put in order, and deltas before it.
struct Loose {
    at: RecordRef,
    checkpoint: bool,
    parts: Parts,
}

/// What is known of a volume so far.
#[derive(Default)]
struct Line {
    history: History,
    loose: BTreeMap<Seq, Vec<Loose>>,
}

/// Ties deltas to points, and points to one another.
#[derive(Default)]
pub(crate) struct Replay {
    lines: HashMap<VolumeId, Line>,
    waiting: HashMap<(VolumeId, Seq), Parts>,
    generations: Vec<(Generation, RecordRef)>,
    expired: Vec<(Expired, RecordRef)>,
    pub(crate) retired: Retirees,
    /// Delta records that could not be read.
    pub(crate) damaged_deltas: bool,
    /// Point records that could not be read, less those of which there is a copy.
    missing: Vec<RecordId>,
}

impl Replay {
    pub(crate) fn delta(&mut self, prefix: Prefix, at: RecordRef) {
        self.waiting.entry((prefix.volume, prefix.seq)).or_default().push((prefix, at));
    }

    /// A point's record does not hold.
    pub(crate) fn missing_point(&mut self, id: RecordId) {
        self.missing.push(id);
    }

    pub(crate) fn generation(&mut self, body: &[u8], at: RecordRef) -> Result<()> {
        self.generations.push((Generation::decode(body)?, at));
        Ok(())
    }

    pub(crate) fn expired(&mut self, body: &[u8], at: RecordRef) -> Result<()> {
        self.expired.push((Expired::decode(body)?, at));
        Ok(())
    }

    pub(crate) fn point(
        &mut self,
        segments: &Segments,
        id: &RecordId,
        body: &[u8],
        at: RecordRef,
    ) -> Result<()> {
        let point = StoredPoint::decode(body)?;
        let p = *point.point();
        if let Some(copied) = self.missing.iter().position(|missing| missing == id) {
            self.missing.swap_remove(copied);
        }
        let parts = self.waiting.remove(&(p.volume, p.seq)).unwrap_or_default();
        let line = self.lines.entry(p.volume).or_default();
        let history = &mut line.history;
        if p.seq == history.seq() + 1 {
            if p.prev != history.prev() {
                return Err(follows_not(&at));
            }
            let before = history.running();
            let strict = self.damaged_deltas;
            let parts = tied(segments, &point, Some(before), &parts, strict)?;
            history.add(point, at, &parts.unwrap_or_else(|| vec![LOST]));
            return Ok(());
        }
        if p.seq > history.seq() {
            history.add(point, at, &[]);
        }
        let checkpoint = p.is_checkpoint();
        line.loose.entry(p.seq).or_default().push(Loose { at, checkpoint, parts });
        Ok(())
    }

    /// Gives the volumes their histories. A damaged point that nothing proves to be in the
    /// past may have been the newest: true says that there is one.
    pub(crate) fn settle(&mut self, segments: &Segments, state: &State) -> Result<bool> {
        let mut gone: HashMap<VolumeId, Vec<Expired>> = HashMap::new();
        for (expired, at) in self.expired.drain(..) {
            if !state.volumes.contains_key(&expired.volume) {
                return Err(at.damaged("points expired of a volume that is not there"));
            }
            gone.entry(expired.volume).or_default().push(expired);
        }
        for (volume, line) in &mut self.lines {
            line.place(segments, self.damaged_deltas)?;
            let at = line.history.points.first().map_or(LOST, |p| p.at);
            let unknown = || at.damaged("a point of a volume that is not there");
            let volume = state.volumes.get(volume).ok_or_else(unknown)?;
            *write(&volume.history) = std::mem::take(&mut line.history);
        }
        let mut missing = self.missing.len() as u64;
        for (id, volume) in &state.volumes {
            let mut history = write(&volume.history);
            for expired in gone.remove(id).unwrap_or_default() {
                let all = |(first, last): &(Seq, Seq)| history.expire(*first, *last, expired.at);
                expired.ranges.iter().for_each(all);
            }
            history.dropped = history.expired_at(Seq::MAX).is_some();
            missing = explained(&history, missing)?;
            let lost = |p: &&PointRef| self.retired.contains_key(&p.at.segment());
            if let Some(point) = history.kept(1).find(lost) {
                return Err(point.at.damaged("a point that is kept lies in a retired segment"));
            }
            history.forget(|at| self.retired.contains_key(&at.segment()));
        }
        for (value, at) in &self.generations {
            let volume = state.volumes.get(&value.volume);
            let volume =
                volume.ok_or_else(|| at.damaged("a generation of a volume that is not there"))?;
            write(&volume.history).raise(value, *at);
        }
        Ok(missing > 0)
    }
}

fn follows_not(at: &RecordRef) -> Error {
    at.damaged("the point does not follow the one before it")
}

/// How many damaged points are left when the gaps that nothing else explains are filled.
fn explained(history: &History, mut missing: u64) -> Result<u64> {
    let mut next = 1;
    for point in &history.points {
        if point.seq > next {
            let from = history.gone.partition_point(|g| g.last < next);
            let gone = history.gone[from..].iter().take_while(|g| g.first < point.seq);
            let expired = gone.map(|g| g.last.min(point.seq - 1) + 1 - g.first.max(next));
            let unexplained = point.seq - next - expired.sum::<u64>();
            missing = missing.checked_sub(unexplained).ok_or_else(|| follows_not(&point.at))?;
        }
        next = point.seq + 1;
    }
    Ok(missing)
}

impl Line {
    /// Puts all in order that did not come in order.
    fn place(&mut self, segments: &Segments, strict: bool) -> Result<()> {
        if self.loose.is_empty() {
            return Ok(());
        }
        let loose = std::mem::take(&mut self.loose);
        let history = &mut self.history;
        let mut settled: HashMap<Seq, Vec<RecordRef>> = HashMap::new();
        for (seq, at) in history.deltas.extract_if(.., |(seq, _)| loose.contains_key(seq)) {
            settled.entry(seq).or_default().push(at);
        }
        for (seq, places) in &loose {
            let all =
                places.iter().map(|l| PointRef { seq: *seq, at: l.at, checkpoint: l.checkpoint });
            history.points.extend(all);
        }
        // Of one number the first stays: the place that it has until a copy proves whole.
        history.points.sort_by_key(|p| p.seq);
        history.points.dedup_by_key(|p| p.seq);
        for (seq, places) in loose {
            let (at, parts) = Self::choose(history, segments, seq, &places, &settled, strict)?;
            if let Ok(i) = history.points.binary_search_by_key(&seq, |p| p.seq) {
                history.points[i].at = at;
            }
            history.deltas.extend(parts.into_iter().map(|part| (seq, part)));
        }
        history.deltas.sort_by_key(|(seq, _)| *seq);
        let newest = history.points.iter().rev().find(|p| p.checkpoint).copied();
        history.checkpoint = newest.map(|p| point_at(segments, &p.at)).transpose()?;
        let from = newest.map_or(0, |p| p.seq);
        let since = history.parts(from, Seq::MAX).iter();
        history.delta_bytes = since.map(|(_, at)| at.record_len() as u64).sum();
        Ok(())
    }

    /// The place of a point that counts, and its deltas.
    fn choose(
        history: &History,
        segments: &Segments,
        seq: Seq,
        places: &[Loose],
        settled: &HashMap<Seq, Vec<RecordRef>>,
        strict: bool,
    ) -> Result<(RecordRef, Vec<RecordRef>)> {
        let first = history.there(seq).map_or(LOST, |p| p.at);
        let point = point_at(segments, &first)?;
        let before = history.there(seq - 1).map(|p| point_at(segments, &p.at)).transpose()?;
        if let Some(before) = &before {
            if hash::point(&before.point().encode()) != point.point().prev {
                return Err(follows_not(&first));
            }
        } else if seq == 1 && !point.point().prev.is_zero() {
            return Err(follows_not(&first));
        }
        for place in places.iter().rev() {
            if place.at != first && point_at(segments, &place.at)? != point {
                return Err(place.at.damaged("another point with this number stands before it"));
            }
            let before = before.as_ref().map(running);
            if let Some(parts) = tied(segments, &point, before, &place.parts, strict)? {
                return Ok((place.at, parts));
            }
        }
        // A copy that is not whole: the original still stands where it was.
        let original = settled.get(&seq).filter(|parts| !parts.contains(&LOST));
        Ok((first, original.cloned().unwrap_or_else(|| vec![LOST])))
    }
}

fn point_at(segments: &Segments, at: &RecordRef) -> Result<StoredPoint> {
    let (_, record) = segments.record(at)?;
    StoredPoint::decode(&record[HEADER_LEN..]).map_err(|e| at.damaged(e.to_string()))
}

/// The deltas of a point: the parts of the last try whose running hash fits. `before` is the
/// running hash before it, if the point before it is there.
fn tied(
    segments: &Segments,
    point: &StoredPoint,
    before: Option<Hash>,
    waiting: &[(Prefix, RecordRef)],
    strict: bool,
) -> Result<Option<Vec<RecordRef>>> {
    let p = point.point();
    if p.is_checkpoint() || before == Some(p.deltas) {
        return Ok(Some(Vec::new()));
    }
    let fits = |(q, _): &&(Prefix, RecordRef)| q.after == delta::short(&p.deltas);
    let Some((last, _)) = waiting.iter().rev().find(fits) else { return Ok(None) };
    let all = seeded("deltas-of-all-tries");
    // A part of which there are copies counts where it lies last: the last copies are whole.
    let mut seen = HashSet::new();
    let of_try = waiting.iter().rev().filter(|(q, _)| all || q.attempt == last.attempt);
    let last_of = of_try.filter(|(q, _)| seen.insert((q.attempt, q.after)));
    let mut parts: Vec<_> = last_of.map(|(_, at)| *at).collect();
    parts.reverse();
    // Only where a record was lost can a part be missing in the middle.
    if strict && !whole(segments, before, &parts, &p.deltas)? {
        return Ok(None);
    }
    Ok(Some(parts))
}

/// Whether these parts lead from one running hash to the other.
fn whole(
    segments: &Segments,
    before: Option<Hash>,
    parts: &[RecordRef],
    after: &Hash,
) -> Result<bool> {
    let Some(mut running) = before else { return Ok(false) };
    for at in parts {
        let record = match segments.record(at) {
            Ok((_, record)) => record,
            Err(e @ Error::Io { .. }) => return Err(e),
            Err(_) => return Ok(false),
        };
        let Ok((prefix, runs)) = delta::decode(&record[HEADER_LEN..]) else { return Ok(false) };
        running = hash::delta(&running, prefix.size, runs);
    }
    Ok(running == *after)
}
