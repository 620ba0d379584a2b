//! A disk that fails: at given places, or by chance with a seed.
//!
//! Invariant: what fails has not been done.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Gate, Kind, Request};
use crate::{Error, Result};

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As a broken disk.
    Io,
    /// As a full one.
    NoRoom,
    /// As one that does not answer: after that time.
    TimedOut(Duration),
}

/// Which requests fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Of this kind.
    pub kind: Kind,
    /// That touch these bytes; nothing is all.
    pub within: Option<Range<u64>>,
    /// One of so many, by chance.
    pub one_in: u64,
    /// In this way.
    pub how: How,
}

/// Rules, and the chance.
#[derive(Debug)]
pub struct Fault {
    rules: Vec<Rule>,
    chance: AtomicU64,
    failed: AtomicU64,
}

impl Fault {
    /// The same seed and order of requests fails alike.
    pub const fn new(rules: Vec<Rule>, seed: u64) -> Self {
        Self { rules, chance: AtomicU64::new(seed), failed: AtomicU64::new(0) }
    }

    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// A number that nobody expects (splitmix64).
    fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let x = self.chance.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

impl Rule {
    fn meets(&self, request: &Request) -> bool {
        let touches = |r: &Range<u64>| request.at < r.end && r.start < request.at + request.len;
        self.kind == request.kind && self.within.as_ref().is_none_or(touches)
    }
}

impl Gate for Fault {
    fn pass(&self, request: &Request, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let falls =
            |rule: &&Rule| rule.meets(request) && self.draw().is_multiple_of(rule.one_in.max(1));
        let Some(rule) = self.rules.iter().find(falls) else { return go() };
        self.failed.fetch_add(1, Ordering::Relaxed);
        let text = format!("{} at byte {}: fails on purpose", request.kind.name(), request.at);
        Err(match rule.how {
            How::Io => Error::Damaged(text),
            How::NoRoom => Error::NoRoom(text),
            How::TimedOut(after) => {
                std::thread::sleep(after);
                Error::TimedOut(text)
            }
        })
    }

    fn waits(&self) -> bool {
        self.rules.iter().any(|r| matches!(r.how, How::TimedOut(_)))
    }
}
