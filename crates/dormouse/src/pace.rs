//! How fast something may go: so many bytes a second.
//!
//! Invariant: over any time, no more than the rate allows for that time and [`BURST`] is let
//! through. Who takes more than there is waits before it goes on.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may go at once after a rest.
const BURST: Duration = Duration::from_millis(250);

/// A rate that several threads share.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: NonZeroU64,
    /// When what was taken so far will have had its time.
    paid: Mutex<Instant>,
}

impl Pace {
    /// So many bytes a second.
    pub fn new(bytes_per_s: NonZeroU64) -> Self {
        Self { bytes_per_s, paid: Mutex::new(Instant::now()) }
    }

    /// Takes bytes; returns when they may go.
    pub fn take(&self, bytes: u64) {
        std::thread::sleep(self.wait(bytes, Instant::now()));
    }

    /// How long these bytes have to wait.
    fn wait(&self, bytes: u64, now: Instant) -> Duration {
        let cost = Duration::from_nanos(
            (u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.get()))
                .try_into()
                .unwrap_or(u64::MAX),
        );
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_rate_goes_through() {
        let pace = Pace::new(NonZeroU64::new(1000).unwrap());
        let start = Instant::now() + Duration::from_secs(1);
        // A quarter of a second's worth at once, then what there is.
        assert_eq!(pace.wait(250, start), Duration::ZERO);
        assert_eq!(pace.wait(100, start), Duration::from_millis(100));
        assert_eq!(pace.wait(400, start), Duration::from_millis(500));
        let later = start + Duration::from_secs(10);
        assert_eq!(pace.wait(1250, later), Duration::from_secs(1));
        let mut now = later + Duration::from_secs(5);
        let (began, mut sent) = (now, 0);
        for bytes in [1, 700, 3, 250, 90, 5000, 12] {
            now += pace.wait(bytes, now);
            sent += bytes;
        }
        let allowed = 250 + (now - began).as_millis() as u64;
        assert!(sent <= allowed + 1, "{sent} {allowed}");
    }
}
