//! How often a client may come back.
//!
//! Invariant: over any time, the greetings of one key that are answered are at most [`BURST`] and
//! [`PER_SECOND`] for each second of it; who comes more often waits for its turn in the place of a
//! stranger, and is sent away if it would have to wait longer than [`WAIT_MAX`]. Only keys of
//! clients are kept, so there are no more than clients.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_format::PublicKey;

/// Greetings that may come together, as when all mirrors of a machine come back.
const BURST: u32 = 64;
/// Greetings a second, for good.
const PER_SECOND: u32 = 8;
/// How long one waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(5);
const EACH: Duration = Duration::from_millis(1000 / PER_SECOND as u64);

/// Who came when.
#[derive(Debug, Default)]
pub(super) struct Returns(Mutex<HashMap<PublicKey, Instant>>);

impl Returns {
    /// Takes a turn of this key: how long to wait for it; `None` if that is too long.
    pub(super) fn turn(&self, key: &PublicKey, now: Instant) -> Option<Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The time until which its turns are used up; below that of a burst it has some left.
        let used = all.get(key).copied().unwrap_or(now).max(now) + EACH;
        let wait = used.saturating_duration_since(now).saturating_sub(EACH * BURST);
        if wait > WAIT_MAX {
            return None;
        }
        if all.len() >= 1024 {
            all.retain(|_, used| *used > now);
        }
        all.insert(*key, used);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_then_turns_come_at_their_rate_and_then_none() {
        let (all, now, key) = (Returns::default(), Instant::now(), PublicKey([1; 32]));
        for _ in 0..BURST {
            assert_eq!(all.turn(&key, now), Some(Duration::ZERO));
        }
        assert_eq!(all.turn(&key, now), Some(EACH));
        let mut turns = 1;
        while all.turn(&key, now).is_some() {
            turns += 1;
        }
        assert_eq!(turns, WAIT_MAX.as_millis() / EACH.as_millis());
        assert_eq!(all.turn(&PublicKey([2; 32]), now), Some(Duration::ZERO), "others have theirs");
        assert_eq!(all.turn(&key, now + EACH), Some(WAIT_MAX), "one more each");
        let later = now + WAIT_MAX * 2 + EACH * BURST;
        assert_eq!(all.turn(&key, later), Some(Duration::ZERO));
    }
}
