//! Collection: what nothing refers to any more goes, a segment at a time.
//!
//! A round marks what the kept points refer to ([`mark`], [`refs`]), compares it with the
//! tables of old segments ([`survey`]), appends what is live in those that hold little of it again
//! at the head of the log, notes that they are retired, and removes them ([`compact`]).
//! Nothing is opened, nothing is overwritten. Invariant: a file goes only after its live records
//! and the note are durable. What does not belong to a point stays for the grace after it was
//! received, what expired points alone refer to for the grace after they expired; what
//! a connection holds ([`crate::Pins`]) stays anyhow.
//!
//! Memory, whatever the store's size: 16 MiB of references (the rest is sorted on disk, 8 bytes
//! each), about 50 bytes for each of at most a million records of the segments that are
//! compared at once, 40 bytes for each map page that is kept.

mod compact;
pub mod gain;
mod mark;
mod refs;
mod survey;

use std::collections::{BTreeSet, HashSet};
use std::sync::{MutexGuard, TryLockError};

use dormouse_format::TimeNs;

use crate::error::{Error, Result};
use crate::vault::{Fault, VaultStore};
use compact::Compaction;
use survey::Survey;

/// What goes, and what is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// For how long what nothing refers to stays, in nanoseconds.
    pub grace_ns: u64,
    /// A segment of which more than this is live is left as it is.
    pub live_percent_max: u8,
}

impl Default for Rules {
    fn default() -> Self {
        Self { grace_ns: 7 * 24 * 3_600_000_000_000, live_percent_max: 50 }
    }
}

/// What a round found and did; or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// Segments of the log.
    pub segments: u64,
    /// Segments that are too young, or hold what is not committed yet.
    pub young: u64,
    /// Bytes of records in the others to which nothing refers.
    pub dead_bytes: u64,
    /// Segments that were retired.
    pub retired: u64,
    /// Bytes of these.
    pub retired_bytes: u64,
    /// Bytes that were written again.
    pub copied_bytes: u64,
    /// Segments that cannot be retired, because something that is live there is damaged.
    pub damaged: Vec<Fault>,
    /// The round ended early: a connection holds more than is remembered one by one.
    pub put_off: bool,
}

/// Asked after so many bytes were read or written, without any lock: may wait; false stops.
pub type Pace<'a> = &'a mut dyn FnMut(u64) -> bool;

/// Goes on, or [`Error::Stopped`].
fn go_on(pace: Pace<'_>, bytes: u64) -> Result<()> {
    if pace(bytes) { Ok(()) } else { Err(Error::Stopped) }
}

impl VaultStore {
    /// A round of collection. What was retired when it is stopped, or fails, is gone; the
    /// rest is as it was.
    pub fn collect(&self, now: TimeNs, rules: &Rules, pace: Pace<'_>) -> Result<Round> {
        self.log.usable()?;
        self.round(now, rules, true, pace)
    }

    /// What a round would do. Nothing is changed.
    pub fn plan_collection(&self, now: TimeNs, rules: &Rules, pace: Pace<'_>) -> Result<Round> {
        self.round(now, rules, false, pace)
    }

    /// Held while the log is looked through: one at a time.
    fn one_round(&self) -> Result<MutexGuard<'_, ()>> {
        match self.collecting.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(Error::conflict("a collection of this vault is under way"))
            }
            Err(TryLockError::Poisoned(e)) => Ok(e.into_inner()),
            Ok(one) => Ok(one),
        }
    }

    fn round(&self, now: TimeNs, rules: &Rules, act: bool, pace: Pace<'_>) -> Result<Round> {
        let _one = self.one_round()?;
        let since = now.saturating_sub(rules.grace_ns);
        let mut survey = Survey::begin(self, now, since)?;
        let marks = mark::marks(self, since, pace)?;
        let (segments, young) = (survey.segments, survey.young);
        let mut round = Round { segments, young, ..Round::default() };
        let mut left = BTreeSet::new();
        while !round.put_off {
            let batch = survey.batch(pace)?;
            if batch.is_empty() {
                // A point is moved with all of its deltas: elsewhere they are dead now.
                if survey.again(&std::mem::take(&mut left)) {
                    continue;
                }
                break;
            }
            let numbers: HashSet<u64> = batch.iter().map(|c| c.number).collect();
            let holders = self.holders(|number| numbers.contains(&number), since);
            let chosen = survey.choose(batch, &marks, &holders, rules, &mut round)?;
            if act {
                let compaction = Compaction::new(self, now, since, &holders);
                left.extend(compaction.run(chosen, survey.written(), &mut round, pace)?);
            } else {
                round.retired += chosen.len() as u64;
                round.retired_bytes += chosen.iter().map(|c| c.len).sum::<u64>();
                round.copied_bytes += chosen.iter().map(|c| c.live_bytes).sum::<u64>();
            }
        }
        if act {
            self.log.index.prune();
        }
        Ok(round)
    }
}
