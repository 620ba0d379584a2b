//! What is logged of strangers: a few lines, then how many more there were.
//!
//! Invariant: strangers can make the log grow by no more than [`LINES`] lines and one for each
//! [`SPAN`], however many come.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::log::Log;

/// Lines that are written in a span.
const LINES: u32 = 20;
const SPAN: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    lines: u32,
    more: u64,
}

/// Writes lines about strangers, as long as they are few.
#[derive(Debug)]
pub(super) struct Tally {
    log: Log,
    state: Mutex<State>,
}

impl Tally {
    pub(super) fn new(log: Log) -> Self {
        Self { log, state: Mutex::default() }
    }

    /// One line about a stranger, written or counted.
    pub(super) fn line(&self, line: impl FnOnce() -> String) {
        self.at(Instant::now(), line);
    }

    fn at(&self, now: Instant, line: impl FnOnce() -> String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.began.is_none_or(|began| now.saturating_duration_since(began) >= SPAN) {
            let more = state.more;
            *state = State { began: Some(now), ..State::default() };
            if more > 0 {
                self.log.line(&format!("{more} more connections of strangers ended like these"));
            }
        }
        if state.lines < LINES {
            state.lines += 1;
            self.log.line(&line());
        } else {
            state.more += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = lines.clone();
        let tally = Tally::new(Log::to(move |line| to.lock().unwrap().push(line.to_owned())));
        let now = Instant::now();
        (0..1000).for_each(|n| tally.at(now, || format!("stranger {n}")));
        assert_eq!(lines.lock().unwrap().len(), LINES as usize);
        tally.at(now + SPAN, || "one more".into());
        let lines = lines.lock().unwrap();
        assert_eq!(lines[20..], ["980 more connections of strangers ended like these", "one more"]);
    }
}
