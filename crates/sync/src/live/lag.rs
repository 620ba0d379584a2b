//! How far the copy is behind the disk.
//!
//! Owns: both lags and the rate. A tracker tells which blocks were written, never when. What
//! is known is: every write before the cut of an acknowledged pass is on the server; when the
//! tracker was looked at and showed nothing, every write before that look is. So the age of
//! the oldest unsent write is at most the time since then, and that is what is shown.
//! Invariant: never less than the truth as last looked at, and 0 only while a look that found
//! nothing is fresh.

use std::time::Duration;

use super::Moment;

/// A look at the tracker that is older says nothing about now.
pub const LOOK_FRESH: Duration = Duration::from_secs(1);
/// What is assumed of a link before it was measured, in bytes a second.
pub const RATE_ASSUMED: u64 = 1 << 20;

/// A pass that sent less in less time tells of the round trip, not of the rate.
const MEASURED_BYTES_MIN: u64 = 256 << 10;
const MEASURED_TIME_MIN: Duration = Duration::from_secs(1);
/// Time of sending over which the rate is smoothed.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Something that had an age at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aged {
    at: Moment,
    age: Duration,
}

impl Aged {
    pub(super) const fn new(at: Moment, age: Duration) -> Self {
        Self { at, age }
    }

    pub(super) const fn at(at: Moment) -> Self {
        Self::new(at, Duration::ZERO)
    }

    pub(super) const fn age(self, now: Moment) -> Duration {
        self.age.saturating_add(now.saturating_sub(self.at))
    }

    /// When it becomes this old; long ago if it was already.
    pub(super) const fn reaches(self, age: Duration) -> Moment {
        self.at.saturating_add(age.saturating_sub(self.age))
    }
}

/// What is known of both lags.
#[derive(Debug, Clone, Default)]
pub(super) struct Lags {
    /// Every write before is on the server.
    sent: Option<Aged>,
    /// The instant that the newest consistent point shows.
    cut: Option<Aged>,
    /// The disk was as the newest consistent point shows it until then.
    point: Option<Aged>,
    looked: Option<Moment>,
    /// Bytes that are marked and not acknowledged.
    pub(super) dirty: u64,
    /// Blocks that cannot be read, and that the server lacks.
    pub(super) stale: u64,
    /// Written since the newest consistent point.
    pub(super) changed: bool,
}

impl Lags {
    /// The tracker was looked at; `whole` if its marks are all that the server can lack.
    pub(super) fn look(&mut self, now: Moment, dirty: u64, whole: bool) {
        self.dirty = dirty;
        self.looked = Some(now);
        self.changed |= dirty > 0;
        if whole && dirty == 0 && self.stale == 0 {
            self.sent = Some(Aged::at(now));
            if !self.changed && self.point.is_some() {
                self.point = self.sent;
            }
        }
    }

    /// What the server's newest points say, where nothing better is known.
    pub(super) fn seen(&mut self, sent: Option<Aged>, point: Option<Aged>) {
        self.sent = self.sent.or(sent);
        self.cut = self.cut.or(point);
        self.point = self.point.or(self.cut);
    }

    /// A point was made of the disk as it was at `cut`, or a bit later where it is not
    /// consistent; all writes before `sent` are on the server with it; `whole` if nothing else
    /// is owed.
    pub(super) fn acknowledged(
        &mut self,
        now: Moment,
        cut: Moment,
        sent: Option<Moment>,
        consistent: bool,
        whole: bool,
    ) {
        let cut = Some(Aged::at(cut));
        if let Some(sent) = sent.map(Aged::at) {
            // A look may have shown more than this.
            let better = self.sent.is_none_or(|known| sent.age(now) <= known.age(now));
            self.sent = if better { Some(sent) } else { self.sent };
        }
        if consistent {
            self.cut = cut;
            self.point = cut;
        }
        self.changed = !(whole && consistent);
    }

    /// The watch has a gap. Where it was broken, it may be older than the last look.
    pub(super) const fn gap(&mut self, watched: bool) {
        self.changed = true;
        if !watched {
            self.sent = None;
            self.point = self.cut;
        }
    }

    /// Whether the server had everything, as a fresh look has shown.
    fn clean(&self, now: Moment) -> bool {
        let fresh = self.looked.is_some_and(|at| now.saturating_sub(at) <= LOOK_FRESH);
        fresh && self.dirty == 0 && self.stale == 0
    }

    /// Age of the oldest write that the server does not have, at most.
    pub(super) fn data(&self, now: Moment, whole: bool) -> Option<Duration> {
        let age = self.sent?.age(now);
        Some(if whole && self.clean(now) { Duration::ZERO } else { age })
    }

    /// Age of the newest consistent point; 0 while the disk is still as it shows.
    pub(super) fn point(&self, now: Moment, whole: bool) -> Option<Duration> {
        let age = self.point?.age(now);
        Some(if whole && !self.changed && self.clean(now) { Duration::ZERO } else { age })
    }

    /// When the newest consistent point becomes this old; at once if there is none.
    pub(super) fn point_reaches(&self, age: Duration) -> Moment {
        self.point.map_or(Moment::ZERO, |point| point.reaches(age))
    }
}

/// Bytes a second, over the last seconds of sending.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rate {
    bytes: u64,
    time: Duration,
}

impl Rate {
    pub(super) fn add(&mut self, bytes: u64, took: Duration) {
        if bytes < MEASURED_BYTES_MIN && took < MEASURED_TIME_MIN {
            return;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.time = self.time.saturating_add(took.max(Duration::from_millis(1)));
        while self.time > RATE_WINDOW && self.time > took {
            self.bytes /= 2;
            self.time /= 2;
        }
    }

    /// What was measured.
    pub(super) fn measured(self) -> Option<u64> {
        let bytes = u128::from(self.bytes) * 1_000_000_000;
        let rate = bytes.checked_div(self.time.as_nanos())?;
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }

    /// How long so many bytes take.
    pub(super) fn time_for(self, bytes: u64) -> Duration {
        let rate = self.measured().unwrap_or(RATE_ASSUMED).max(1);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
