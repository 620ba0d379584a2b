//! One freeze from its order to the last thaw, as the helper sees it.
//!
//! Invariant: lanes are frozen one after the other; from the moment that anything goes wrong all
//! are let go, and nothing is frozen any more. Each round tells exactly one `Ending` and one
//! `Ended`. Does no waiting and asks no clock. Leaves to others: threads, sockets, signals.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::lane::{Lane, Step};
use super::link::{Body, Cause};

/// Where the messages to the daemon go, at once.
pub type Tell<'a> = &'a mut dyn FnMut(Body);

/// A freeze under way.
pub struct Round {
    /// Emptied to let all go.
    lanes: Vec<Lane>,
    count: usize,
    frozen: usize,
    over: usize,
    begun: Instant,
    deadline: Instant,
    complete: Option<Instant>,
    ending: Option<Instant>,
    fault: Option<(usize, Errno)>,
}

impl Round {
    /// Orders the first freeze.
    pub fn begin(lanes: Vec<Lane>, hold_max: Duration, now: Instant, tell: Tell<'_>) -> Round {
        let mut round = Round {
            count: lanes.len(),
            lanes,
            frozen: 0,
            over: 0,
            begun: now,
            deadline: now + hold_max,
            complete: None,
            ending: None,
            fault: None,
        };
        round.freeze_next(now, tell);
        round
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.ending.is_none().then_some(self.deadline)
    }

    /// Not all are frozen yet, and they are to be.
    pub fn is_freezing(&self) -> bool {
        self.ending.is_none() && self.complete.is_none()
    }

    /// Everything is thawed and told.
    pub fn is_over(&self) -> bool {
        self.ending.is_some() && self.over == self.count
    }

    /// A lane has got on.
    pub fn step(&mut self, index: usize, step: Step, now: Instant, tell: Tell<'_>) {
        match step {
            Step::Frozen => {
                self.frozen += 1;
                self.freeze_next(now, tell);
            }
            Step::Refused(errno) => {
                self.over += 1;
                self.end(Cause::Refused(index, errno), now, tell);
            }
            Step::Ended(errno) => {
                self.over += 1;
                self.fault = self.fault.or(errno.map(|errno| (index, errno)));
            }
        }
        self.tell_when_over(now, tell);
    }

    /// Ends it when its time is up.
    pub fn tick(&mut self, now: Instant, tell: Tell<'_>) {
        if now >= self.deadline {
            self.stop(Cause::Late(self.frozen.min(self.count.saturating_sub(1))), now, tell);
        }
    }

    /// Ends it because somebody wants it to.
    pub fn stop(&mut self, cause: Cause, now: Instant, tell: Tell<'_>) {
        if self.ending.is_none() {
            self.end(cause, now, tell);
            self.tell_when_over(now, tell);
        }
    }

    fn freeze_next(&mut self, now: Instant, tell: Tell<'_>) {
        if self.ending.is_some() {
            return;
        }
        if let Some(lane) = self.lanes.get(self.frozen) {
            // Told before it is done: who finds this helper dead must know what to thaw.
            tell(Body::Started { index: self.frozen });
            lane.freeze();
        } else {
            self.complete = Some(now);
            tell(Body::Frozen { freezing: now - self.begun });
        }
    }

    fn end(&mut self, cause: Cause, now: Instant, tell: Tell<'_>) {
        if self.ending.is_none() {
            self.lanes.clear();
            self.ending = Some(now);
            tell(Body::Ending { cause });
        }
    }

    fn tell_when_over(&self, now: Instant, tell: Tell<'_>) {
        if let (true, Some(ending)) = (self.is_over(), self.ending) {
            let held = self.complete.map_or(Duration::ZERO, |complete| ending - complete);
            tell(Body::Ended { held, thawing: now - ending, fault: self.fault });
        }
    }
}

#[cfg(test)]
mod tests;
