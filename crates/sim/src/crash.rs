//! Crash enumeration: every sequence of up to three operations, a crash at every I/O.
//!
//! Owns: which crash points there are, and their figures. A pass crashes every sequence at
//! every I/O, each time in one of several ways, which take turns along the I/O; six passes
//! end a machine in every way at every I/O, and form an edition with its own keys, contents,
//! and sizes of segments and index. So a crash point is named by sequence, I/O and pass, and
//! can be played again alone. Leaves to others: the operations
//! ([`play`]), the crashes ([`watch`]), and the verdict ([`judge`]).

mod judge;
mod ledger;
mod play;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::ops::{AddAssign, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::machine::Pool;
use crate::random::Lcg;
use crate::storage::{Image, Storage};
pub use play::{Operation, Sequence};
use play::{Player, Scene};
use watch::{At, ENDS, Probe, Watcher};

/// What is enumerated.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Crash points at least.
    pub points: u64,
    /// What everything that is random comes from.
    pub seed: u64,
    /// Threads.
    pub jobs: usize,
}

/// The name of one crash point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashPoint {
    /// The sequence.
    pub sequence: Sequence,
    /// Which of its changes of the disk is not done any more.
    pub io: u64,
    /// The pass: edition and way of the crash.
    pub pass: u64,
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.sequence, self.io, self.pass)
    }
}

impl FromStr for CrashPoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is no crash point; one looks like write+commit:17:3");
        let [sequence, io, pass] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(bad());
        };
        let number = |text: &str| text.parse().map_err(|_| bad());
        Ok(Self { sequence: sequence.parse()?, io: number(io)?, pass: number(pass)? })
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Sequences played, the same in another edition or pass counted again.
    pub played: u64,
    /// Crash points: no two of one sequence and I/O leave the same disk.
    pub points: u64,
    /// Crashes within and after a recovery.
    pub again: u64,
    /// Points that were restored and compared.
    pub restores: u64,
    /// Torn ends that recoveries set aside.
    pub torn: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.played += other.played;
        self.points += other.points;
        self.again += other.again;
        self.restores += other.restores;
        self.torn += other.torn;
    }
}

/// A crash point that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub at: CrashPoint,
    /// What does not hold.
    pub why: String,
}

/// Failures after which no more are looked for.
const FAILURES_MAX: usize = 10;
/// From so many crash points on whole editions are played.
const WIDE: u64 = 200_000;
const PANIC: &str = "a panic; its words stand above";

fn mix(a: u64, b: u64) -> u64 {
    let mut random = Lcg(a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (0..3).fold(0, |h, _| h ^ random.below(u64::MAX))
}

/// Enumerates until there are enough crash points, or too many failures. Passes are
/// played one after the other, sequences in an order that spreads a part of a pass. What
/// was reached is told after each sequence.
pub fn run(plan: &Plan, tell: &(dyn Fn(&Figures) + Sync)) -> (Figures, Vec<Failure>) {
    let (pool, sequences) = (Arc::new(Pool::committed()), Sequence::all());
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Figures::default(), Vec::new()));
    let work = || {
        loop {
            let (points, failures) = {
                let sum = sum.lock().unwrap();
                (sum.0.points, sum.1.len())
            };
            if points >= plan.points || failures >= FAILURES_MAX {
                break;
            }
            let n = next.fetch_add(1, Ordering::Relaxed);
            let (sequence, passes) = item(&sequences, n, plan.points >= WIDE);
            let (figures, failure) = play(&pool, plan.seed, sequence, passes, None);
            let mut sum = sum.lock().unwrap();
            sum.0 += figures;
            tell(&sum.0);
            sum.1.extend(failure);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    sum.into_inner().unwrap()
}

/// The sequence and the passes that come as the `n`th. The others come pass by pass, or
/// edition by edition, which plays less and needs more room; the setup, which comes first,
/// always has all passes of an edition.
fn item(sequences: &[Sequence], n: u64, wide: bool) -> (&Sequence, Range<u64>) {
    let all = sequences.len() as u64;
    let (round, at) = (n / all, n % all);
    let edition = round * ENDS..(round + 1) * ENDS;
    match at.checked_sub(1) {
        None => (&sequences[0], edition),
        // A stride that has no divisor in common with 819.
        Some(at) => {
            let sequence = &sequences[1 + (at * 400 % (all - 1)) as usize];
            (sequence, if wide { edition } else { round..round + 1 })
        }
    }
}

/// Plays one crash point alone.
pub fn run_one(seed: u64, at: &CrashPoint) -> (Figures, Option<Failure>) {
    play(&Arc::new(Pool::committed()), seed, &at.sequence, at.pass..at.pass + 1, Some(at.io))
}

/// Plays a sequence, with a crash at every I/O or at one.
fn play(
    pool: &Arc<Pool>,
    seed: u64,
    sequence: &Sequence,
    passes: Range<u64>,
    only: Option<u64>,
) -> (Figures, Option<Failure>) {
    let first = passes.start;
    let edition = mix(seed, first / ENDS);
    let named = sequence.to_string().bytes().fold(edition, |h, b| mix(h, b.into()));
    let mut random = Lcg(named);
    let scene = Arc::new(Scene::new(Arc::clone(pool), &mut random));
    let probe = Arc::new(Mutex::new(Probe::new(&scene, passes, named, only)));
    let watch = Box::new(Watcher(Arc::clone(&probe)));
    let storage = Storage::new(Image::default(), watch, named);
    let mut player = Player::new(&scene, &probe, storage.clone(), random);
    let setup = sequence.0.is_empty();
    if setup {
        probe.lock().unwrap().arm();
    }
    let played = catch_unwind(AssertUnwindSafe(|| {
        player.set_up()?;
        probe.lock().unwrap().arm();
        player.play(sequence)
    }));
    let played = played.unwrap_or_else(|_| Err(PANIC.into()));
    let image = storage.image();
    let mut probe = probe.lock().unwrap_or_else(PoisonError::into_inner);
    let failure = match played {
        Err(why) => Some(At { io: probe.io(), pass: first, why }),
        Ok(()) => {
            probe.crash(&image, true);
            probe.failure.take()
        }
    };
    let figures = Figures { played: 1, ..probe.figures };
    let failure = failure.map(|At { io, pass, why }| {
        let at = CrashPoint { sequence: sequence.clone(), io, pass };
        Failure { at, why }
    });
    (figures, failure)
}
