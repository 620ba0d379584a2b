//! What would be gained if what is due went: counted in the log, and nothing is changed.
//!
//! One walk marks what those points refer to that stay, then what the others do; then the tables of
//! all segments tell how many bytes of records only the others refer to. Invariants: no keys, and
//! no more memory than a round of collection; two ids that are alike in 63 bits count as one that
//! stays, so it is never too much; a record that lies in the log twice counts twice, as it goes twice.
//! Exact for the moment at which it is asked. Collection frees it after its grace, but for
//! what lies in segments that are still worth keeping.

use std::collections::HashSet;

use dormouse_format::{Seq, TimeNs, VolumeId};

use super::mark::Marker;
use super::refs::{Refs, key};
use super::survey::{BATCH_RECORDS, record_len};
use super::{Pace, go_on};
use crate::error::{Error, Result};
use crate::locks::read;
use crate::log::walk;
use crate::state::history::PointRef;
use crate::vault::{Due, VaultStore};

/// The lowest bit of a key: whether only what goes refers to it.
const GOES: u64 = 1;

/// What would be gained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gain {
    /// Points that would go.
    pub points: u64,
    /// Bytes of records that nothing would refer to any more.
    pub bytes: u64,
}

impl VaultStore {
    /// What would be gained if what is due in these volumes went, all of it.
    pub fn gain(&self, volumes: &[VolumeId], now: TimeNs, pace: Pace<'_>) -> Result<Gain> {
        let _one = self.one_round()?;
        let due = |id: &VolumeId| Ok((*id, self.due(id, now)?));
        let due: Vec<(VolumeId, Due)> = volumes.iter().map(due).collect::<Result<_>>()?;
        let mut gain = Gain { points: due.iter().map(|(_, due)| due.gone).sum(), bytes: 0 };
        if gain.points == 0 {
            return Ok(gain);
        }
        let goes = |volume: &VolumeId, seq: Seq| {
            let of = |d: &Due| d.volume || d.ranges.iter().any(|range| range.contains(&seq));
            due.iter().any(|(id, d)| id == volume && of(d))
        };
        let all: Vec<_> = read(&self.state).volumes.values().cloned().collect();
        let mut marker = Marker::new(self, Some(0));
        let mut stay = HashSet::new();
        for volume in &all {
            let id = volume.value.id;
            let needed =
                read(&volume.history).needed_by(|p, gone| gone.is_none() && !goes(&id, p.seq));
            for point in needed {
                stay.insert((id, point.seq));
                marker.point(volume, &point, pace)?;
            }
        }
        marker.refs.class = Some(GOES);
        for volume in &all {
            let needed = read(&volume.history).needed(TimeNs::MAX);
            for point in needed.iter().filter(|p| !stay.contains(&(volume.value.id, p.seq))) {
                gain.bytes += self.own_bytes(&read(&volume.history), point);
                match marker.point(volume, point, pace) {
                    // What cannot be read is not counted.
                    Err(Error::Damaged { .. } | Error::Format(_)) => {}
                    done => done?,
                }
            }
        }
        gain.bytes += self.only_marked(&marker.refs.finish(), pace)?;
        Ok(gain)
    }

    /// Bytes of a point's record, and of its deltas.
    fn own_bytes(&self, history: &crate::state::history::History, point: &PointRef) -> u64 {
        let parts = history.parts(point.seq - 1, point.seq).iter().map(|(_, at)| at);
        let here = parts.filter(|at| at.segment != 0).chain([&point.at]);
        here.map(|at| at.record_len() as u64).sum()
    }

    /// Bytes of all records to which only what goes refers.
    fn only_marked(&self, marks: &Refs<'_>, pace: Pace<'_>) -> Result<u64> {
        let (active, _, table) = self.log.listed();
        let mut numbers = self.log.segments.present()?;
        numbers.retain(|number| *number < active);
        let (mut bytes, mut batch) = (0, Vec::new());
        let take = |table: &dormouse_format::segment::Seal, batch: &mut Vec<(u64, u32)>| {
            let indexed = table.items.iter().filter(|item| item.kind.indexed());
            batch.extend(indexed.map(|item| (key(&item.id) & !GOES, record_len(item) as u32)));
            if batch.len() as u64 >= BATCH_RECORDS { weigh(batch, marks) } else { Ok(0) }
        };
        for number in numbers {
            let file = self.log.segments.file(number)?;
            let sealed = walk::sealed(&*file, number, &self.vault)?;
            let table = walk::table(&*file, number, &sealed)?;
            go_on(pace, 28 * table.items.len() as u64)?;
            bytes += take(&table, &mut batch)?;
        }
        bytes += take(&table, &mut batch)?;
        Ok(bytes + weigh(&mut batch, marks)?)
    }
}

/// Empties a batch: the bytes of those that go.
fn weigh(batch: &mut Vec<(u64, u32)>, marks: &Refs<'_>) -> Result<u64> {
    batch.sort_unstable();
    let mut marked = marks.cursor()?;
    let mut mark = marked.next()?;
    let mut bytes = 0;
    for (key, len) in batch.drain(..) {
        while mark.is_some_and(|mark| mark & !GOES < key) {
            mark = marked.next()?;
        }
        // If anything that stays refers to it, that comes first.
        if mark == Some(key | GOES) {
            bytes += u64::from(len);
        }
    }
    Ok(bytes)
}
