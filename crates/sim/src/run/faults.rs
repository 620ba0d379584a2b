//! Which operation of the disk fails, and how.
//!
//! Two families. Faults of a sound disk: crashes, failed and short writes, no room,
//! failed syncs, failed reads; under them nothing acknowledged may be lost. Faults of
//! a bad one: rot and misdirected writes; under them nothing wrong may be returned,
//! and every loss must be said.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use crate::random::Lcg;
use crate::storage::{Image, Op, OpKind, Verdict, Watch};

/// Chances in ten thousand operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// The machine goes down.
    pub crash: u64,
    /// A write, a creation or a cut fails.
    pub write: u64,
    /// A write stops in the middle.
    pub short: u64,
    /// There is no room.
    pub full: u64,
    /// A sync fails.
    pub sync: u64,
    /// A read fails.
    pub read: u64,
    /// A write reaches the medium elsewhere.
    pub misdirect: u64,
}

/// What was done to the disk so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Crashes within an operation.
    pub crashes: u64,
    /// Operations that failed, all together.
    pub failures: u64,
    /// Writes that stopped half way.
    pub short: u64,
    /// Writes and creations for which there was no room.
    pub full: u64,
    /// Syncs that failed.
    pub syncs: u64,
    /// Reads that failed.
    pub reads: u64,
    /// Writes that went elsewhere.
    pub misdirected: u64,
}

#[derive(Debug)]
struct Inner {
    rates: Rates,
    counts: Counts,
    random: Lcg,
}

/// The faults of one disk. Clones are the same.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Mutex<Inner>>);

impl Faults {
    /// Faults at these rates.
    pub fn new(rates: Rates, random: Lcg) -> Self {
        Self(Arc::new(Mutex::new(Inner { rates, counts: Counts::default(), random })))
    }

    /// Sets the rates.
    pub fn set(&self, rates: Rates) {
        self.0.lock().unwrap().rates = rates;
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.0.lock().unwrap().counts
    }
}

impl Inner {
    fn decide(&mut self, op: &Op<'_>) -> Verdict {
        let r = self.rates;
        let dice = self.random.below(10_000);
        // Each rate takes the part of the dice that follows those asked before.
        let mut from = 0;
        let mut hit = |rate: u64| {
            from += rate;
            dice < from
        };
        let changes = op.kind.changes();
        if changes && hit(r.crash) {
            return Verdict::Crash;
        }
        match op.kind {
            OpKind::Write if hit(r.write) => Verdict::Fail(ErrorKind::Other),
            OpKind::Write if hit(r.short) => {
                let n = self.random.below(op.len as u64 + 1) as usize;
                Verdict::Short(n, ErrorKind::StorageFull)
            }
            OpKind::Write | OpKind::Create if hit(r.full) => Verdict::Fail(ErrorKind::StorageFull),
            OpKind::Write if op.len > 0 && hit(r.misdirect) => {
                let sectors = 1 + self.random.below(8) as i64;
                Verdict::Misdirect(if self.random.below(2) == 0 { sectors } else { -sectors })
            }
            OpKind::Create | OpKind::SetLen | OpKind::Rename | OpKind::Remove if hit(r.write) => {
                Verdict::Fail(ErrorKind::Other)
            }
            OpKind::Sync | OpKind::SyncDir if hit(r.sync) => Verdict::Fail(ErrorKind::Other),
            OpKind::Read | OpKind::Open | OpKind::List | OpKind::Len if hit(r.read) => {
                Verdict::Fail(ErrorKind::Other)
            }
            _ => Verdict::Go,
        }
    }
}

impl Watch for Faults {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        let mut inner = self.0.lock().unwrap();
        let verdict = inner.decide(op);
        let counts = &mut inner.counts;
        match verdict {
            Verdict::Go => {}
            Verdict::Crash => counts.crashes += 1,
            Verdict::Misdirect(_) => counts.misdirected += 1,
            Verdict::Fail(_) | Verdict::Short(..) => counts.failures += 1,
        }
        match (op.kind, verdict) {
            (_, Verdict::Short(..)) => counts.short += 1,
            (_, Verdict::Fail(ErrorKind::StorageFull)) => counts.full += 1,
            (OpKind::Sync | OpKind::SyncDir, Verdict::Fail(_)) => counts.syncs += 1,
            (kind, Verdict::Fail(_)) if !kind.changes() => counts.reads += 1,
            _ => {}
        }
        verdict
    }
}
