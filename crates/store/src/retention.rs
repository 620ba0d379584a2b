//! Which points of a volume are kept: policies, and what they come to.
//!
//! Owns: the language of policies ([`policy`]), and the choice. Pure: points, policy and time
//! come in. Invariants: only the server's time of receipt counts, never the writer's clock and
//! never a number of points; what is younger than the floor stays; the newest point and the
//! newest consistent one stay, and points that forks begin with; whatever stays can be read:
//! its checkpoint stays, and all deltas from there to it.
//! Choosing now and again later comes to the same as choosing later alone.
//! Leaves to others: whether the clock is to be believed ([`clock`]), deletions ([`delete`]),
//! and what 'expired' means for readers and records.

pub mod clock;
pub mod delete;
pub mod policy;

use std::ops::RangeInclusive;

use dormouse_format::point::StoredPoint;
use dormouse_format::seeded::seeded;
use dormouse_format::{Seq, TimeNs};

pub use policy::Policy;
use policy::{CLASSES, Class};

/// What counts of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub seq: Seq,
    /// The checkpoint that it builds on; its own number if it is one.
    pub checkpoint: Seq,
    /// Whether its grade is better than fuzzy.
    pub consistent: bool,
    /// When the server received it.
    pub receipt: TimeNs,
}

impl Seen {
    /// Of a point.
    pub const fn of(point: &StoredPoint) -> Self {
        let p = point.point();
        let consistent = p.grade.consistent();
        Self { seq: p.seq, checkpoint: p.checkpoint, consistent, receipt: point.receipt }
    }

    /// Whether it is a checkpoint.
    pub const fn is_checkpoint(&self) -> bool {
        self.seq == self.checkpoint
    }
}

/// Which points stay: one flag for each. `points` ascend; `pinned` are points that forks begin
/// with.
pub fn keep(points: &[Seen], policy: &Policy, pinned: &[Seq], now: TimeNs) -> Vec<bool> {
    let mut kept: Vec<bool> = points.iter().map(|p| policy.is_young(p.receipt, now)).collect();
    for class in CLASSES {
        newest_of_spans(points, policy, class, now, &mut kept);
    }
    let newest = points.len().checked_sub(1);
    let consistent = points.iter().rposition(|p| p.consistent);
    for at in newest.into_iter().chain(consistent) {
        kept[at] = true;
    }
    for pin in pinned {
        if let Ok(at) = points.binary_search_by_key(pin, |p| p.seq) {
            kept[at] |= !seeded("pins-expire");
        }
    }
    with_what_they_need(points, &mut kept);
    kept
}

/// Of each span of the class that it still covers, the newest consistent checkpoint.
fn newest_of_spans(points: &[Seen], policy: &Policy, class: Class, now: TimeNs, kept: &mut [bool]) {
    let mut last = None;
    for (point, kept) in points.iter().zip(kept).rev() {
        if !point.consistent || !point.is_checkpoint() {
            continue;
        }
        if !policy.covers(class, point.receipt, now) {
            // Receipts do not go back: what is before is older.
            return;
        }
        let span = Some(class.span(point.receipt));
        *kept |= span != last;
        last = span;
    }
}

/// A point between checkpoints is read with its checkpoint and all deltas up to it: they stay
/// together, and so what expires always ends before a checkpoint.
fn with_what_they_need(points: &[Seen], kept: &mut [bool]) {
    if seeded("deltas-expire-alone") {
        return;
    }
    let mut down_to = Seq::MAX;
    for (point, kept) in points.iter().zip(kept).rev() {
        if *kept {
            down_to = down_to.min(point.checkpoint);
        }
        *kept |= point.seq >= down_to;
    }
}

/// The points that do not stay, as ranges. A range may reach over points that have gone before.
pub fn gone(points: &[Seen], kept: &[bool]) -> Vec<RangeInclusive<Seq>> {
    let mut ranges: Vec<RangeInclusive<Seq>> = Vec::new();
    let mut open = false;
    for (point, kept) in points.iter().zip(kept) {
        match ranges.last_mut() {
            _ if *kept => {}
            Some(last) if open => *last = *last.start()..=point.seq,
            _ => ranges.push(point.seq..=point.seq),
        }
        open = !*kept;
    }
    ranges
}

#[cfg(test)]
mod tests;
