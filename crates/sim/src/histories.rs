//! Random histories with expiry and collection, against a model.
//!
//! Each history is played on the real store and a disk that loses what was not synced: volumes
//! and forks that share content, writers whose steps fall into collections, points that expire,
//! clocks that jump, crashes at any I/O. Afterwards all is quiet, the grace passes, and two
//! rounds later every kept point must show what it must, and nothing else may be left.

mod judge;
mod model;
mod play;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use play::World;

/// What was played.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it counts")]
pub struct Figures {
    pub histories: u64,
    pub points: u64,
    pub forks: u64,
    pub expired: u64,
    pub rounds: u64,
    pub retired: u64,
    pub crashes: u64,
    /// Crashes while a collection ran.
    pub crashes_in_rounds: u64,
    /// Commits of points for which a collection ran between 'have' and commit.
    pub over_rounds: u64,
    /// Commits that were refused, with what is missing named.
    pub refused: u64,
    pub clock_jumps: u64,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.points += other.points;
        self.forks += other.forks;
        self.expired += other.expired;
        self.rounds += other.rounds;
        self.retired += other.retired;
        self.crashes += other.crashes;
        self.crashes_in_rounds += other.crashes_in_rounds;
        self.over_rounds += other.over_rounds;
        self.refused += other.refused;
        self.clock_jumps += other.clock_jumps;
    }
}

/// A history that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its number.
    pub seed: u64,
    /// What is wrong.
    pub why: String,
}

/// Histories `first..first + runs`; failures at most ten.
pub fn run(
    first: u64,
    runs: u64,
    jobs: usize,
    tell: &(dyn Fn(u64) + Sync),
) -> (Figures, Vec<Failure>) {
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Figures::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= runs || sum.lock().unwrap().1.len() >= 10 {
                        return;
                    }
                    let (figures, failed) = one(first + n, false);
                    let mut sum = sum.lock().unwrap();
                    sum.0.add(&figures);
                    sum.1.extend(failed);
                    tell(sum.0.histories);
                }
            });
        }
    });
    let (figures, mut failures) = sum.into_inner().unwrap();
    failures.sort_by_key(|f| f.seed);
    (figures, failures)
}

/// One history; with `trace` every step goes to standard error.
pub fn one(seed: u64, trace: bool) -> (Figures, Option<Failure>) {
    let mut world = World::new(seed, trace);
    let done = catch_unwind(AssertUnwindSafe(|| world.play()));
    let why = match done {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(_) => Some("it panicked".to_owned()),
    };
    let figures = Figures { histories: 1, ..world.figures };
    (figures, why.map(|why| Failure { seed, why }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minute of these is `cargo xtask histories`; more seeds than here are its default.
    #[test]
    fn some_histories_hold() {
        let (figures, failures) = run(1, 60, 2, &|_| {});
        assert_eq!(failures, []);
        assert!(figures.retired > 60 && figures.expired > 60, "{figures:?}");
        assert!(figures.crashes_in_rounds > 0 && figures.over_rounds > 0, "{figures:?}");
        assert!(figures.forks > 0 && figures.refused > 0, "{figures:?}");
    }
}
