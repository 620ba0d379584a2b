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
pub use play::second::Copied;
pub use play::shelf::Shelved;

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

/// Histories that second copies follow, `first..first + runs`; failures at most ten.
pub fn run_copied(first: u64, runs: u64) -> (Copied, Vec<Failure>) {
    each(first, runs, Copied::add, play::second::play)
}

/// Histories whose log lies in a bucket, likewise.
pub fn run_shelved(first: u64, runs: u64) -> (Shelved, Vec<Failure>) {
    each(first, runs, Shelved::add, play::shelf::play)
}

fn each<T: Default>(
    first: u64,
    runs: u64,
    add: fn(&mut T, &T),
    play: fn(u64, bool) -> (T, Result<(), String>),
) -> (T, Vec<Failure>) {
    let (mut sum, mut failures) = (T::default(), Vec::new());
    for seed in first..first + runs {
        let done = catch_unwind(|| play(seed, false));
        let (one, done) = done.unwrap_or_else(|_| (T::default(), Err("it panicked".to_owned())));
        add(&mut sum, &one);
        failures.extend(done.err().map(|why| Failure { seed, why }));
        if failures.len() >= 10 {
            break;
        }
    }
    (sum, failures)
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

    #[test]
    fn second_copies_follow_open_and_heal() {
        let (copied, failures) = run_copied(1, 40);
        assert_eq!(failures, []);
        assert!(copied.interrupted > 20 && copied.opened > 100, "{copied:?}");
        assert!(copied.healed > 40 && copied.left > 0, "{copied:?}");
    }

    #[test]
    fn logs_in_buckets_come_back_from_them() {
        let (shelved, failures) = run_shelved(1, 40);
        assert_eq!(failures, []);
        assert!(shelved.lost > 80 && shelved.fenced > 20 && shelved.refused == 40, "{shelved:?}");
        assert!(shelved.objects.late > 0 && shelved.objects.taken > 0, "{shelved:?}");
        let again = run_shelved(1, 4);
        assert_eq!(run_shelved(1, 4), again, "the same seed, the same bucket");
    }
}
