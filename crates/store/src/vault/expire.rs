//! Expiry of points: from then on they are not listed, not read, and nothing builds on them.
//!
//! Owns: what may expire. Invariant: the newest point of a volume, the checkpoint that a kept
//! point builds on, and the state that a fork without points begins with never do, but
//! with the whole volume. Leaves to others: which points should (retention), and taking
//! their records out of the log (`collect`).

use std::ops::RangeInclusive;

use dormouse_format::collect::Expired;
use dormouse_format::limits::EXPIRED_RANGES_MAX;
use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::{Seq, TimeNs, VolumeId, WriterId};

use super::VaultStore;
use crate::error::{Error, Result};
use crate::locks::{lock, read, write};
use crate::state::Volume;
use crate::state::history::History;

impl VaultStore {
    /// Has these points expire; durable on return. Refused, before anything is done, if
    /// one of them is still needed. Points that are not there, or expired before, are left
    /// as they are. How many expired is returned.
    pub fn expire(
        &self,
        volume: &VolumeId,
        ranges: &[RangeInclusive<Seq>],
        now: TimeNs,
    ) -> Result<u64> {
        self.log.usable()?;
        // No fork begins meanwhile, and no point is added.
        let _creating = lock(&self.creating);
        let volume = self.volume(volume)?;
        let _writing = lock(&volume.writing);
        let forks = self.empty_forks(&volume);
        let (seqs, spans) = {
            let history = read(&volume.history);
            let of = |range: &RangeInclusive<Seq>| {
                let from = history.kept(*range.start()).map(|p| p.seq);
                from.take_while(|seq| range.contains(seq)).collect::<Vec<_>>()
            };
            let mut seqs: Vec<Seq> = ranges.iter().flat_map(of).collect();
            seqs.sort_unstable();
            seqs.dedup();
            Self::check_unneeded(&volume, &history, &seqs, &forks)?;
            let spans = spans(&history, &seqs);
            (seqs, spans)
        };
        self.note_expired(&volume, &spans, now)?;
        Ok(seqs.len() as u64)
    }

    /// Has a whole volume expire; durable on return. It is as if it was never there, and its
    /// name is free. Refused if a fork without points of its own begins with it.
    pub fn drop_volume(&self, volume: &VolumeId, now: TimeNs) -> Result<()> {
        self.log.usable()?;
        let _creating = lock(&self.creating);
        let volume = self.volume(volume)?;
        let _writing = lock(&volume.writing);
        if let Some((fork, seq)) = self.empty_forks(&volume).first() {
            let why = format!("volume {fork}, a fork of it, has no point yet");
            return Err(needed(&volume, *seq, &why));
        }
        self.note_expired(&volume, &[(1, Seq::MAX)], now)?;
        write(&volume.history).dropped = true;
        write(&self.state).names.retain(|_, id| *id != volume.value.id);
        Ok(())
    }

    fn note_expired(&self, volume: &Volume, spans: &[(Seq, Seq)], now: TimeNs) -> Result<()> {
        let mut noted = Vec::new();
        for ranges in spans.chunks(EXPIRED_RANGES_MAX) {
            let ranges = ranges.to_vec();
            let body = Expired { volume: volume.value.id, at: now, ranges }.encode();
            let record = dormouse_crypt::record::plain(Kind::Expired, WriterId::ZERO, &body);
            let (at, end) = self.append(&record, now)?;
            noted.push((record, at, end));
        }
        if let Some((.., end)) = noted.last().filter(|_| !seeded("expiry-unsynced")) {
            self.log.sync_to(*end)?;
        }
        let mut history = write(&volume.history);
        spans.iter().for_each(|(first, last)| history.expire(*first, *last, now));
        drop(history);
        for (record, at, _) in noted {
            let (header, _) = dormouse_format::record::split(&record)?;
            write(&self.state).apply(&header, &record[HEADER_LEN..], at)?;
        }
        Ok(())
    }

    /// That no point which is kept needs any of these.
    fn check_unneeded(
        volume: &Volume,
        history: &History,
        seqs: &[Seq],
        forks: &[(String, Seq)],
    ) -> Result<()> {
        let goes = |seq: Seq| seqs.binary_search(&seq).is_ok();
        if goes(history.seq()) {
            return Err(needed(volume, history.seq(), "it is the newest"));
        }
        let mut base = 0;
        for point in &history.points {
            if point.checkpoint {
                base = point.seq;
            }
            let kept = history.expired_at(point.seq).is_none() && !goes(point.seq);
            if kept && goes(base) {
                return Err(needed(volume, base, &format!("point {} builds on it", point.seq)));
            }
            let fork = forks.iter().find(|(_, seq)| *seq == point.seq);
            if let Some((fork, seq)) = fork.filter(|_| goes(point.seq)) {
                let why = format!("volume {fork}, a fork of it, has no point yet");
                return Err(needed(volume, *seq, &why));
            }
        }
        Ok(())
    }

    /// Forks of this volume that have no points of their own, and where they begin.
    fn empty_forks(&self, volume: &Volume) -> Vec<(String, Seq)> {
        let state = read(&self.state);
        let forks = state.volumes.values().filter_map(|fork| {
            let origin = fork.value.origin.filter(|o| o.volume == volume.value.id)?;
            let history = read(&fork.history);
            let empty = history.head.is_none() && !history.dropped;
            empty.then(|| (fork.value.name.clone(), origin.seq))
        });
        forks.collect()
    }
}

fn needed(volume: &Volume, seq: Seq, why: &str) -> Error {
    Error::conflict(format!("{}@{seq} cannot expire: {why}", volume.value.name))
}

/// Ranges that hold these points, and no others of the log that are kept or that may be there,
/// damaged.
fn spans(history: &History, seqs: &[Seq]) -> Vec<(Seq, Seq)> {
    let gone = |seq: Seq| history.expired_at(seq).is_some();
    let mut out: Vec<(Seq, Seq)> = Vec::new();
    for seq in seqs {
        match out.last_mut() {
            Some((_, last)) if (*last + 1..*seq).all(gone) => *last = *seq,
            _ => out.push((*seq, *seq)),
        }
    }
    out
}
