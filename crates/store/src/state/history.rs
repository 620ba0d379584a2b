//! A volume's points, as far as the store knows them without reading.
//!
//! Invariant: seqs ascend. Points that expired stay here as long as their records are in the
//! log, and are not found; those that a kept point needs (its checkpoint, and all from
//! there on, for their deltas) are in the log as long as it is.

use dormouse_crypt::hash;
use dormouse_format::point::StoredPoint;
use dormouse_format::seeded::seeded;
use dormouse_format::vault::Generation;
use dormouse_format::{Hash, InstanceId, Seq, TimeNs, WriterId};

use crate::log::RecordRef;

/// Stands for deltas that are damaged: no record lies in segment 0.
pub(crate) const LOST: RecordRef = RecordRef { segment: 0, offset: 0, body_len: 0 };

/// A point's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PointRef {
    pub(crate) seq: Seq,
    pub(crate) at: RecordRef,
    pub(crate) checkpoint: bool,
}

/// Points that expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    /// When, by the server's clock; of several times the first.
    pub(crate) at: TimeNs,
}

/// What is known of a volume's points.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) generation: u64,
    pub(crate) holder: Option<(WriterId, InstanceId)>,
    /// The record that says so.
    pub(crate) claim: Option<RecordRef>,
    pub(crate) points: Vec<PointRef>,
    pub(crate) head: Option<StoredPoint>,
    pub(crate) checkpoint: Option<StoredPoint>,
    /// Parts of delta points, in order.
    pub(crate) deltas: Vec<(Seq, RecordRef)>,
    /// Bytes of delta records since the checkpoint.
    pub(crate) delta_bytes: u64,
    /// Ascending, apart from one another unless their times differ.
    pub(crate) gone: Vec<Gone>,
    /// Whether the volume was dropped as a whole.
    pub(crate) dropped: bool,
}

impl History {
    /// Adds a point that follows the head, with its deltas.
    pub(crate) fn add(&mut self, point: StoredPoint, at: RecordRef, parts: &[RecordRef]) {
        let p = point.point();
        let checkpoint = p.is_checkpoint();
        self.points.push(PointRef { seq: p.seq, at, checkpoint });
        self.generation = self.generation.max(p.generation);
        if checkpoint {
            self.checkpoint = Some(point);
            self.delta_bytes = 0;
        }
        self.delta_bytes += parts.iter().map(|r| r.record_len() as u64).sum::<u64>();
        self.deltas.extend(parts.iter().map(|part| (p.seq, *part)));
        self.head = Some(point);
    }

    /// Takes in who holds the volume: the greatest generation counts, of equal ones the later.
    pub(crate) fn raise(&mut self, value: &Generation, at: RecordRef) {
        if value.generation >= self.generation {
            self.generation = value.generation;
            self.holder = Some((value.writer, value.instance));
            self.claim = Some(at);
        }
    }

    /// The running hash after the head.
    pub(crate) fn running(&self) -> Hash {
        self.head.as_ref().map_or(Hash::ZERO, running)
    }

    pub(crate) fn seq(&self) -> Seq {
        self.head.as_ref().map_or(0, |h| h.point().seq)
    }

    /// What the next point must name as the one before it.
    pub(crate) fn prev(&self) -> Hash {
        self.head.as_ref().map_or(Hash::ZERO, |h| hash::point(&h.point().encode()))
    }

    /// A point that did not expire.
    pub(crate) fn find(&self, seq: Seq) -> Option<RecordRef> {
        self.there(seq).filter(|_| self.expired_at(seq).is_none()).map(|p| p.at)
    }

    /// A point of which the record is in the log, expired or not.
    pub(crate) fn there(&self, seq: Seq) -> Option<PointRef> {
        let i = self.points.binary_search_by_key(&seq, |p| p.seq).ok()?;
        Some(self.points[i])
    }

    /// The points that did not expire, from `from` on.
    pub(crate) fn kept(&self, from: Seq) -> impl Iterator<Item = &PointRef> {
        let first = self.points.partition_point(|p| p.seq < from);
        self.points[first..].iter().filter(|p| self.expired_at(p.seq).is_none())
    }

    /// When a point expired, if it did.
    pub(crate) fn expired_at(&self, seq: Seq) -> Option<TimeNs> {
        if self.gone.is_empty() {
            return None;
        }
        let i = self.gone.partition_point(|g| g.last < seq);
        self.gone.get(i).filter(|g| g.first <= seq).map(|g| g.at)
    }

    /// These points expired, at this time or, if it is earlier, at that known.
    pub(crate) fn expire(&mut self, first: Seq, last: Seq, at: TimeNs) {
        let (mut all, mut within, mut behind) = (Vec::new(), Vec::new(), Vec::new());
        for g in self.gone.drain(..) {
            if g.first < first {
                all.push(Gone { last: g.last.min(first - 1), ..g });
            }
            if g.first <= last && g.last >= first {
                let (first, last) = (g.first.max(first), g.last.min(last));
                within.push(Gone { first, last, at: g.at.min(at) });
            }
            if g.last > last {
                behind.push(Gone { first: g.first.max(last + 1), ..g });
            }
        }
        let mut next = Some(first);
        for g in within {
            if let Some(first) = next.filter(|next| *next < g.first) {
                all.push(Gone { first, last: g.first - 1, at });
            }
            next = g.last.checked_add(1);
            all.push(g);
        }
        all.extend(next.filter(|next| *next <= last).map(|first| Gone { first, last, at }));
        all.extend(behind);
        self.gone = joined(all);
    }

    /// Deltas of the points after `from`, up to `to`.
    pub(crate) fn parts(&self, from: Seq, to: Seq) -> &[(Seq, RecordRef)] {
        let first = self.deltas.partition_point(|(s, _)| *s <= from);
        let end = self.deltas.partition_point(|(s, _)| *s <= to);
        &self.deltas[first..end]
    }

    /// The points that must stay in the log: those that did not expire, or after `since`
    /// only, and what they need: the checkpoint that each builds on, and all in between.
    pub(crate) fn needed(&self, since: TimeNs) -> Vec<PointRef> {
        self.needed_by(|_, gone| gone.is_none_or(|at| at > since && !seeded("grace-ignored")))
    }

    /// The same for those that `root` wants, of which it is told when they expired.
    pub(crate) fn needed_by(
        &self,
        root: impl Fn(&PointRef, Option<TimeNs>) -> bool,
    ) -> Vec<PointRef> {
        let mut out = Vec::new();
        let (mut base, mut taken) = (0, 0);
        for (i, point) in self.points.iter().enumerate() {
            if point.checkpoint {
                base = i;
            }
            if root(point, self.expired_at(point.seq)) {
                let from = if seeded("base-forgotten") { i } else { base };
                out.extend_from_slice(&self.points[from.max(taken)..=i]);
                taken = i + 1;
            }
        }
        out
    }

    /// The records of a point and of its deltas lie elsewhere now.
    pub(crate) fn moved(&mut self, seq: Seq, at: RecordRef, parts: &[RecordRef]) {
        if let Ok(i) = self.points.binary_search_by_key(&seq, |p| p.seq) {
            self.points[i].at = at;
        }
        let first = self.deltas.partition_point(|(s, _)| *s < seq);
        for ((_, place), part) in self.deltas[first..].iter_mut().zip(parts) {
            *place = *part;
        }
    }

    /// Forgets points and deltas of which the records are gone.
    pub(crate) fn forget(&mut self, gone: impl Fn(&RecordRef) -> bool) {
        self.points.retain(|p| !gone(&p.at));
        self.deltas.retain(|(_, at)| !gone(at));
    }
}

/// Neighbours with the same time become one.
fn joined(all: Vec<Gone>) -> Vec<Gone> {
    let mut out: Vec<Gone> = Vec::with_capacity(all.len());
    for g in all {
        match out.last_mut() {
            Some(last) if last.at == g.at && last.last.saturating_add(1) == g.first => {
                last.last = g.last;
            }
            _ => out.push(g),
        }
    }
    out
}

/// The running hash after a point.
pub(crate) fn running(point: &StoredPoint) -> Hash {
    let p = point.point();
    if p.is_checkpoint() { p.root } else { p.deltas }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(ranges: &[(Seq, Seq, TimeNs)]) -> History {
        let mut history = History::default();
        ranges.iter().for_each(|(first, last, at)| history.expire(*first, *last, *at));
        history
    }

    /// Whatever the order in which ranges come, each point has the first time.
    #[test]
    fn ranges_may_overlap_and_come_in_any_order() {
        let cases: [&[(Seq, Seq, TimeNs)]; 6] = [
            &[(3, 5, 1), (7, 9, 1), (1, 20, 2)],
            &[(3, 5, 2), (7, 9, 2), (1, 20, 1)],
            &[(1, 4, 1), (3, 6, 2), (5, 9, 3)],
            &[(2, 2, 9), (1, 1, 9), (3, 3, 9)],
            &[(1, Seq::MAX, 4), (5, Seq::MAX, 5), (8, 9, 6)],
            &[(4, 8, 1), (4, 8, 1), (5, 6, 3)],
        ];
        for ranges in cases {
            let backwards: Vec<_> = ranges.iter().rev().copied().collect();
            for history in [expired(ranges), expired(&backwards)] {
                for seq in 1..30 {
                    let of = |(first, last, at): &(Seq, Seq, TimeNs)| {
                        (*first..=*last).contains(&seq).then_some(*at)
                    };
                    let wanted = ranges.iter().filter_map(of).min();
                    assert_eq!(history.expired_at(seq), wanted, "{seq} of {ranges:?}");
                }
                let apart = |w: &[Gone]| w[0].last < w[1].first;
                assert!(history.gone.windows(2).all(apart), "{:?}", history.gone);
            }
        }
        let one = Gone { first: 1, last: 3, at: 9 };
        assert_eq!(expired(cases[3]).gone, [one]);
    }

    #[test]
    fn a_kept_point_needs_its_checkpoint_and_what_lies_between() {
        let mut history = expired(&[(1, 3, 50), (5, 6, 60), (8, 8, 70)]);
        let of = |seq| PointRef { seq, at: LOST, checkpoint: [1, 4, 8].contains(&seq) };
        history.points = (1..=9).map(of).collect();
        let needed = |since| history.needed(since).iter().map(|p| p.seq).collect::<Vec<_>>();
        assert_eq!(needed(80), [4, 5, 6, 7, 8, 9]);
        assert_eq!(needed(49), [1, 2, 3, 4, 5, 6, 7, 8, 9], "grace");
        assert_eq!(history.kept(1).map(|p| p.seq).collect::<Vec<_>>(), [4, 7, 9]);
        assert_eq!((history.find(5), history.there(5).map(|p| p.seq)), (None, Some(5)));
    }
}
