//! How long the other side may keep one waiting.
//!
//! Owns: the rule, and the clock of a question. The system itself notices a machine that is
//! gone; this is about one that is there, and does nothing, or next to nothing. The rule: a
//! question has the limit, and a second more for each [`RATE_LEAST`] bytes that crossed the
//! link meanwhile. So a slow disk and a slow link are waited for, and a byte a second is not
//! taken for progress. Leaves to others: which question is open.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::exit::{Class, fail};
use crate::link::Link;

/// Unless the command line says otherwise. A commit waits for a disk, and some take a minute.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Bytes a second below which a link is no better than none.
const RATE_LEAST: u64 = 8 << 10;
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);

static CHOSEN: OnceLock<Duration> = OnceLock::new();

/// Sets the limit of this process, once.
pub fn choose(limit: Duration) {
    let _ = CHOSEN.set(limit);
}

/// The limit of this process.
pub fn limit() -> Duration {
    *CHOSEN.get().unwrap_or(&LIMIT)
}

/// The clock of the oldest open question on a link.
#[derive(Debug)]
pub struct Patience {
    since: Instant,
    /// Bytes that had crossed the link then.
    moved: u64,
    /// Questions that had been answered when it was last looked.
    answered: u64,
}

impl Patience {
    /// A question was asked now.
    pub fn new(link: &Link) -> Self {
        Self { since: Instant::now(), moved: link.moved(), answered: 0 }
    }

    /// What is left for the answer.
    fn left(&self, moved: u64, now: Instant) -> Duration {
        let bytes = moved.saturating_sub(self.moved);
        let more = Duration::from_millis(bytes.saturating_mul(1000) / RATE_LEAST);
        (limit() + more).saturating_sub(now.saturating_duration_since(self.since))
    }

    /// How long to wait before the next [`Self::check`].
    pub fn step(&self, link: &Link) -> Duration {
        self.left(link.moved(), Instant::now()).clamp(Duration::from_millis(1), LOOK)
    }

    /// An error if the time of the oldest question is over.
    pub fn check(&self, link: &Link) -> Result<()> {
        // With itself a process is patient.
        if link.is_local() || !self.left(link.moved(), Instant::now()).is_zero() {
            return Ok(());
        }
        fail(
            Class::Unreachable,
            format!(
                "the server did not answer within {} s: the connection stands, and nothing, or \
                 next to nothing, comes",
                limit().as_secs_f64()
            ),
            "its disk may be very slow, or its log may say more: try again, and wait longer with\n\
             --patience; what was acknowledged is not sent twice",
        )
    }

    /// The same for many questions: so many were answered until now, and so many are open.
    pub fn watch(&mut self, link: &Link, answered: u64, open: usize) -> Result<()> {
        if open == 0 || answered != self.answered {
            *self = Self { answered, ..Self::new(link) };
        }
        self.check(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_too_slowly_does_not_help_for_long() {
        let since = Instant::now();
        let asked = Patience { since, moved: 100, answered: 0 };
        let at = |seconds: u64| since + Duration::from_secs(seconds);
        assert_eq!(asked.left(100, at(0)), LIMIT);
        assert!(asked.left(100, at(300)).is_zero());
        // A byte a second.
        assert!(asked.left(100 + 301, at(301)).is_zero());
        // A slow link, an hour long.
        assert_eq!(asked.left(100 + 3600 * RATE_LEAST, at(3600)), LIMIT);
    }
}
