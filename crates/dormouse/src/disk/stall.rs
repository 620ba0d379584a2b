//! When a link that stands is taken for a dead one.
//!
//! Invariant: a link on which something is asked and nothing moves is given up, at first soon:
//! what was asked is asked again on the next one, and a disk should not hang on a link whose
//! other end has vanished. If nothing comes there either, the next wait is longer: a server may
//! be slow to wake its disks. Leaves to others: a link on which next to nothing comes
//! ([`crate::patience`]).

use std::time::{Duration, Instant};

/// The first wait, and the longest.
const LEAST: Duration = Duration::from_secs(15);
const MOST: Duration = Duration::from_secs(300);

/// What was seen of a link.
#[derive(Debug)]
pub(super) struct Stall {
    /// Bytes that had crossed it.
    moved: u64,
    since: Instant,
    wait: Duration,
}

impl Stall {
    pub(super) const fn new(now: Instant) -> Self {
        Self { moved: 0, since: now, wait: LEAST }
    }

    /// A new link stands.
    pub(super) const fn begin(&mut self, now: Instant) {
        (self.moved, self.since) = (0, now);
    }

    /// Whether it is dead: so many bytes have crossed it, so many questions are open.
    pub(super) fn look(&mut self, now: Instant, moved: u64, open: usize) -> bool {
        if moved != self.moved && self.moved != 0 {
            self.wait = LEAST;
        }
        if moved != self.moved || open == 0 {
            (self.moved, self.since) = (moved, now);
        }
        let dead = now.saturating_duration_since(self.since) >= self.wait;
        if dead {
            self.wait = (self.wait * 2).min(MOST);
        }
        dead
    }

    /// How long nothing has moved.
    pub(super) fn length(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_move_is_given_up_and_each_time_later() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut stall = Stall::new(begun);
        // Nothing is asked.
        assert!(!stall.look(at(100), 50, 0));
        assert!(!stall.look(at(200), 50, 0));
        // Something is, and moves.
        assert!(!stall.look(at(210), 60, 1));
        assert!(!stall.look(at(224), 60, 1));
        assert!(stall.look(at(225), 60, 1));
        stall.begin(at(230));
        assert!(!stall.look(at(231), 10, 1));
        assert!(!stall.look(at(260), 10, 1));
        assert!(stall.look(at(261), 10, 1));
        stall.begin(at(300));
        assert!(!stall.look(at(301), 10, 1));
        assert!(!stall.look(at(302), 20, 1));
        assert!(stall.look(at(317), 20, 1));
    }
}
