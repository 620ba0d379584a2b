//! When a consistent point is forced by freezing, and when a checkpoint is made.
//!
//! Owns: the approach to a freeze (passes until the rest is small), the pauses after one that
//! failed, and what speaks for a checkpoint. Invariant: no checkpoint between the first pass
//! of an approach and its point. Leaves to others: freezing itself, and its deadline.

use std::time::Duration;

use dormouse_format::geometry;
use dormouse_format::limits::DELTAS_BYTES_MAX;

use super::backoff::Backoff;
use super::lag::Lags;
use super::reason::Unfrozen;
use super::{Freeze, Moment};

/// A rest this small is read within some ten milliseconds: freeze.
pub const REST_SMALL: u64 = 4 << 20;
/// So many passes before a freeze, at most: each halves the rest at least, or it is no use.
pub const CONVERGE_MAX: u32 = 6;
/// The first pause after a freeze that failed: a point each 5 s may miss one of them.
pub const FREEZE_PAUSE_MIN: Duration = Duration::from_secs(2);
/// The longest one.
pub const FREEZE_PAUSE_MAX: Duration = Duration::from_secs(300);

/// A checkpoint is made that often, when there were deltas.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);
/// So long it waits for a consistent point: it repeats the grade of the newest point, and
/// retention keeps checkpoints only.
pub const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(600);
/// The pause after one that failed.
pub const CHECKPOINT_PAUSE: Duration = Duration::from_secs(300);
/// Bytes of the map for each block: tag, chunk, place in it.
pub const MAP_BYTES_PER_BLOCK: u64 = 33;
/// Fewer bytes of deltas are replayed in no time, however small the disk.
pub const DELTAS_SMALL: u64 = 4 << 20;
/// So many bytes of deltas do not wait for anything: the store takes twice as many.
pub const DELTAS_URGENT: u64 = DELTAS_BYTES_MAX / 2;

/// How far the approach to a freeze has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Approach {
    /// None is under way.
    None,
    /// Passes until the rest is small: how many were made, and what the last one left.
    Passes { made: u32, left: u64 },
    /// Freeze now.
    Ready,
}

#[derive(Debug, Clone)]
pub(super) struct Points {
    pub(super) freeze: Freeze,
    pub(super) rest_max: u64,
    pub(super) approach: Approach,
    pub(super) unfrozen: Option<(Unfrozen, String)>,
    pause: Backoff,
    not_before: Moment,
    settle: Backoff,
    settle_after: Moment,
}

impl Points {
    pub(super) const fn new(freeze: Freeze, rest_max: u64, seed: u64) -> Self {
        let backoff = Backoff::new(FREEZE_PAUSE_MIN, FREEZE_PAUSE_MAX, seed);
        Self {
            freeze,
            rest_max,
            approach: Approach::None,
            unfrozen: None,
            settle: backoff,
            pause: Backoff::new(FREEZE_PAUSE_MIN, FREEZE_PAUSE_MAX, !seed),
            not_before: Moment::ZERO,
            settle_after: Moment::ZERO,
        }
    }

    /// When a freeze is wanted.
    pub(super) fn freeze_at(&self, lags: &Lags) -> Option<Moment> {
        match self.freeze {
            Freeze::Auto { every } if lags.changed => {
                Some(lags.point_reaches(every).max(self.not_before))
            }
            Freeze::Auto { .. } | Freeze::Never => None,
        }
    }

    /// When a pass without anything to send may prove that the copy equals the disk.
    pub(super) fn settle_at(&self, lags: &Lags) -> Option<Moment> {
        (lags.changed || lags.stale > 0).then_some(self.settle_after)
    }

    /// The approach begins.
    pub(super) const fn begin(&mut self) {
        self.approach = Approach::Passes { made: 0, left: u64::MAX };
    }

    /// A point of a pass, or of a frozen disk.
    pub(super) fn point(&mut self, now: Moment, lags: &Lags, consistent: bool, frozen: bool) {
        if lags.dirty == 0 && (lags.changed || lags.stale > 0) {
            self.settle_after = now + self.settle.next();
        } else {
            self.settle.reset();
            self.settle_after = now;
        }
        if consistent {
            self.approach = Approach::None;
            self.pause.reset();
            self.unfrozen = None;
        } else if frozen {
            self.failed(now, Unfrozen::Unproved, String::new());
        } else if let Approach::Passes { made, left } = self.approach {
            self.approach_by(now, made + 1, left, lags.dirty);
        }
    }

    fn approach_by(&mut self, now: Moment, made: u32, before: u64, left: u64) {
        let worth_another = made < CONVERGE_MAX && left < before / 2;
        self.approach = if left > REST_SMALL && worth_another {
            Approach::Passes { made, left }
        } else if left <= self.rest_max {
            Approach::Ready
        } else {
            let detail = format!("{left} bytes, more than the {} allowed", self.rest_max);
            return self.failed(now, Unfrozen::TooLarge, detail);
        };
    }

    /// There is no frozen point.
    pub(super) fn failed(&mut self, now: Moment, why: Unfrozen, detail: String) {
        self.approach = Approach::None;
        let pause = match why {
            Unfrozen::Impossible => self.pause.longest(),
            _ => self.pause.next(),
        };
        self.not_before = now + pause;
        self.unfrozen = Some((why, detail));
    }

    /// Something else comes first.
    pub(super) const fn abandon(&mut self) {
        self.approach = Approach::None;
    }
}

/// What speaks for a checkpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Checkpoints {
    /// Bytes of deltas since the last one.
    pub(super) deltas: u64,
    last: Option<Moment>,
    /// Since when there are too many deltas for the size of the map.
    many: Option<Moment>,
    not_before: Moment,
}

impl Checkpoints {
    /// The server was reached, and has so many bytes of deltas.
    pub(super) fn connected(&mut self, now: Moment, deltas: u64, size: u64) {
        self.last = self.last.or(Some(now));
        self.added(now, deltas.saturating_sub(self.deltas), size);
    }

    /// Deltas were added to a volume of `size` bytes.
    pub(super) fn added(&mut self, now: Moment, bytes: u64, size: u64) {
        self.deltas = self.deltas.saturating_add(bytes);
        let map = geometry::blocks(size).saturating_mul(MAP_BYTES_PER_BLOCK);
        if self.deltas > DELTAS_SMALL.max(map / 4) {
            self.many = self.many.or(Some(now));
        }
    }

    /// One was made.
    pub(super) const fn made(&mut self, now: Moment) {
        *self = Self { deltas: 0, last: Some(now), many: None, not_before: Moment::ZERO };
    }

    /// One failed.
    pub(super) fn failed(&mut self, now: Moment) {
        self.not_before = now + CHECKPOINT_PAUSE;
    }

    /// Whether it is the next thing to do, whatever else there is.
    pub(super) const fn urgent(&self) -> bool {
        self.deltas >= DELTAS_URGENT
    }

    /// When one is wanted, given whether the newest point is consistent.
    pub(super) fn at(&self, consistent: bool) -> Option<Moment> {
        if self.deltas == 0 {
            return None;
        }
        let hourly = self.last.map_or(Moment::ZERO, |last| last + CHECKPOINT_EVERY);
        let wanted = self.many.map_or(hourly, |many| many.min(hourly));
        let patience = if consistent { Duration::ZERO } else { CHECKPOINT_PATIENCE };
        let at = if self.urgent() { Moment::ZERO } else { wanted + patience };
        Some(at.max(self.not_before))
    }

    /// Bytes of deltas that one pass may still add.
    pub(super) const fn room(&self) -> u64 {
        DELTAS_BYTES_MAX.saturating_sub(self.deltas)
    }
}
