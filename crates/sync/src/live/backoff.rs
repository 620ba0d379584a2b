//! Waiting before the next try.
//!
//! Owns: how long, and that clients which lost their server at the same moment do not come
//! back at the same moment. Invariant: a wait lies between the shortest and the longest one.
//! Leaves to others: what is tried.

use std::time::Duration;

use super::Moment;
use super::reason::Again;

/// The first wait before the server is tried again.
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest one: a server that comes back waits a minute at most for its clients.
pub const RETRY_MAX: Duration = Duration::from_secs(60);
/// Between two tries, however often routes change.
pub const ROUTE_MIN: Duration = Duration::from_secs(1);
/// A connection that lasted this long was a good one.
pub const STAYED: Duration = Duration::from_secs(60);

/// Waits that double, each somewhere in the upper half of its range.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
    random: u64,
}

impl Backoff {
    pub(super) const fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, tries: 0, random: seed }
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let range = self.min.saturating_mul(2u32.saturating_pow(self.tries.saturating_add(1)));
        self.tries = self.tries.saturating_add(1);
        self.within(range)
    }

    /// As long a wait as there is.
    pub(super) fn longest(&mut self) -> Duration {
        self.within(self.max)
    }

    /// What went wrong is over.
    pub(super) const fn reset(&mut self) {
        self.tries = 0;
    }

    fn within(&mut self, range: Duration) -> Duration {
        let half = range.min(self.max) / 2;
        let part = (self.draw() >> 32) as u32;
        let extra = half.as_nanos() * u128::from(part) / u128::from(u32::MAX);
        let wait = half + Duration::from_nanos(u64::try_from(extra).unwrap_or(u64::MAX));
        wait.clamp(self.min, self.max)
    }

    /// SplitMix64: no secret depends on it.
    const fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// When the server is tried again.
#[derive(Debug, Clone)]
pub struct Retry {
    backoff: Backoff,
    next: Option<Moment>,
    tried: Option<Moment>,
    route_changed: bool,
}

impl Retry {
    /// At once, the first time.
    pub const fn new(seed: u64) -> Self {
        Self {
            backoff: Backoff::new(RETRY_MIN, RETRY_MAX, seed),
            next: Some(Moment::ZERO),
            tried: None,
            route_changed: false,
        }
    }

    /// When; nothing if the user has to ask.
    pub const fn next(&self) -> Option<Moment> {
        self.next
    }

    /// A try begins.
    pub const fn begin(&mut self, now: Moment) {
        self.tried = Some(now);
        self.route_changed = false;
    }

    /// There is no server any more; `good` if there was one for a while.
    pub fn lost(&mut self, now: Moment, again: Again, good: bool) {
        if good {
            self.backoff.reset();
        }
        self.next = match again {
            Again::Soon => Some(now + self.backoff.next()),
            Again::Seldom => Some(now + self.backoff.longest()),
            Again::Asked => None,
        };
        if self.route_changed && again != Again::Asked {
            self.soonest(now);
        }
    }

    /// A route changed: what kept the server away may be over.
    pub(super) fn route(&mut self, now: Moment, trying: bool) {
        if trying {
            self.route_changed = true;
        } else if self.next.is_some() {
            self.soonest(now);
        }
    }

    /// The user asks.
    pub(super) fn asked(&mut self, now: Moment) {
        self.soonest(now);
    }

    fn soonest(&mut self, now: Moment) {
        self.backoff.reset();
        let earliest = self.tried.map_or(now, |tried| now.max(tried + ROUTE_MIN));
        self.next = Some(self.next.map_or(earliest, |next| next.min(earliest)));
    }
}
