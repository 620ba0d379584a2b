//! Damage: every byte, every length, every exchange and every old version, of a real
//! small store. Each must be refused, or read without one wrong byte, and be named.
//!
//! Owns: the cases, their count and the table. The state files of server and home are
//! the program's, and are damaged in its own tests.

pub mod cases;
pub mod judge;
pub mod sample;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cases::{Case, Row};
use judge::{Outcome, judge};
use sample::{End, Sample};

use crate::random::Lcg;

/// Violations that are shown one by one.
const SHOWN: usize = 20;

/// A damage that came to something that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Number of the case, for the same seed.
    pub case: usize,
    /// The damage.
    pub what: String,
    /// What came of it.
    pub why: String,
}

/// What all cases came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    rows: BTreeMap<Row, BTreeMap<Outcome, u64>>,
    /// What was not allowed.
    pub violations: Vec<Violation>,
}

impl Table {
    fn add(&mut self, row: Row, number: usize, case: &Case<'_>, came: Result<Outcome, String>) {
        let row = self.rows.entry(row).or_default();
        match came {
            Ok(outcome) => *row.entry(outcome).or_default() += 1,
            Err(why) => {
                let what = case.to_string();
                self.violations.push(Violation { case: number, what, why });
            }
        }
    }

    fn merge(&mut self, other: Self) {
        for (row, counts) in other.rows {
            let to = self.rows.entry(row).or_default();
            counts.into_iter().for_each(|(o, n)| *to.entry(o).or_default() += n);
        }
        self.violations.extend(other.violations);
    }

    /// Cases that were tried.
    pub fn tried(&self) -> u64 {
        self.rows.values().flat_map(|r| r.values()).sum::<u64>() + self.violations.len() as u64
    }

    /// How many cases came to this.
    pub fn count(&self, row: Row, outcome: Outcome) -> u64 {
        self.rows.get(&row).and_then(|r| r.get(&outcome)).copied().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {:26} | {:>7}", "damage", "tried")?;
        for (_, name) in Outcome::ALL {
            write!(f, " | {name:>10}")?;
        }
        write!(f, " |\n|---|--:")?;
        Outcome::ALL.iter().try_for_each(|_| write!(f, "|--:"))?;
        writeln!(f, "|")?;
        for (row, counts) in &self.rows {
            write!(f, "| {:26} | {:>7}", row.name(), counts.values().sum::<u64>())?;
            for (outcome, _) in Outcome::ALL {
                write!(f, " | {:>10}", counts.get(&outcome).copied().unwrap_or(0))?;
            }
            writeln!(f, " |")?;
        }
        for v in self.violations.iter().take(SHOWN) {
            writeln!(f, "VIOLATION, case {}: {}: {}", v.case, v.what, v.why)?;
        }
        write!(f, "{} tried, {} violations", self.tried(), self.violations.len())
    }
}

/// Which cases are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// All of them.
    All,
    /// So many of each row, drawn by the seed; all of a row that has no more.
    Sampled(usize),
    /// This one.
    One(usize),
}

/// Tries cases on the samples of this seed, in so many threads. Of the store that was
/// closed only the last segment differs from the one whose server was killed.
pub fn run(seed: u64, choice: Choice, jobs: usize) -> Table {
    let (killed, closed) = (Sample::new(seed, End::Killed), Sample::new(seed, End::Closed));
    let mut all: Vec<_> = cases::all(&killed).into_iter().map(|(r, c)| (r, c, &killed)).collect();
    let more = cases::all(&closed).into_iter().filter(|(_, c)| c.is_of(closed.last()));
    all.extend(more.map(|(r, c)| (r, c, &closed)));
    let chosen = choose(&all, choice, &mut Lcg(seed));
    let (next, table) = (AtomicUsize::new(0), Mutex::new(Table::default()));
    let work = || {
        let mut own = Table::default();
        while let Some(&number) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (row, case, sample) = &all[number];
            own.add(*row, number, case, tried(sample, case));
        }
        table.lock().unwrap().merge(own);
    };
    std::thread::scope(|scope| {
        (0..jobs.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let mut table = table.into_inner().unwrap();
    table.violations.sort_by_key(|v| v.case);
    table
}

fn tried(sample: &Sample, case: &Case<'_>) -> Result<Outcome, String> {
    let judged = catch_unwind(AssertUnwindSafe(|| judge(sample, case.build(sample))));
    judged.unwrap_or_else(|_| Err("a panic".into()))
}

fn choose(all: &[(Row, Case<'_>, &Sample)], choice: Choice, random: &mut Lcg) -> Vec<usize> {
    let each = match choice {
        Choice::All => return (0..all.len()).collect(),
        Choice::One(number) => return vec![number],
        Choice::Sampled(each) => each,
    };
    let mut rows = BTreeMap::<Row, Vec<usize>>::new();
    for (number, (row, ..)) in all.iter().enumerate() {
        rows.entry(*row).or_default().push(number);
    }
    let draw = |mut row: Vec<usize>| {
        for i in 0..each.min(row.len()) {
            let j = i + random.below((row.len() - i) as u64) as usize;
            row.swap(i, j);
        }
        row.truncate(each);
        row
    };
    rows.into_values().flat_map(draw).collect()
}
