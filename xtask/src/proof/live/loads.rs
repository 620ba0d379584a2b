//! What works on the disk meanwhile, and what each load can say about a copy of it.
//!
//! Owns: how a load runs, and what it is shown of a copy. Each load notes, by this machine's clock,
//! when it began and finished what it did. A copy of the disk at a moment then must hold what
//! was finished before, and may hold of the rest only what had begun. What was finished is there in
//! a `frozen` point whether it was synced or not: freezing syncs all. In a `settled` point, which
//! is a disk as a power cut leaves it, only what was synced has to be.

mod fio;
mod ledger;
mod postgres;
mod sqlite;
mod trees;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};

use crate::random::SplitMix;

/// What can work on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ledger,
    Tree,
    Git,
    Sqlite,
    Postgres,
    Fio,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Ledger, Self::Tree, Self::Git, Self::Sqlite, Self::Postgres, Self::Fio];

    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.with_context(|| format!("there is no load {name}: see cargo xtask help"))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Tree => "tree",
            Self::Git => "git",
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Fio => "fio",
        }
    }

    /// Programs that it needs.
    pub const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Ledger => &[],
            Self::Tree => &["cp", "diff", "git"],
            Self::Git => &["git"],
            Self::Sqlite => &["sqlite3"],
            // `pg_ctl` and the rest are found beside `psql`: see postgres.rs.
            Self::Postgres => &["setpriv", "psql"],
            Self::Fio => &["fio"],
        }
    }
}

/// A copy of the disk that a load looks into.
pub struct Seen<'a> {
    /// Where it is mounted; nobody can write it.
    pub root: &'a Path,
    /// A place of the load's own, elsewhere.
    pub scratch: &'a Path,
    /// When the disk was so, in nanoseconds.
    pub time: u64,
    pub frozen: bool,
}

/// Something that works on the disk.
pub trait Load: Send + Sync {
    fn name(&self) -> &'static str;

    /// Does a little more.
    fn step(&self, random: &mut SplitMix) -> Result<()>;

    /// Leaves the disk.
    fn end(&self) -> Result<()>;

    /// Compares a copy with what was done; how many things were compared. An error says what
    /// is wrong with it.
    fn check(&self, seen: &Seen<'_>) -> Result<usize>;
}

/// Prepares loads in directories of their own below `mount`.
pub fn make(kinds: &[Kind], mount: &Path, scratch: &Path) -> Result<Vec<Arc<dyn Load>>> {
    kinds
        .iter()
        .map(|kind| {
            let (at, scratch) = (mount.join(kind.name()), scratch.join(kind.name()));
            fs::create_dir_all(&at)?;
            fs::create_dir_all(&scratch)?;
            let load: Arc<dyn Load> = match kind {
                Kind::Ledger => Arc::new(ledger::Ledger::new(&at)),
                Kind::Tree => Arc::new(trees::Trees::copies(&at, &scratch)?),
                Kind::Git => Arc::new(trees::Trees::clones(&at, &scratch)?),
                Kind::Sqlite => Arc::new(sqlite::Sqlite::new(&at)?),
                Kind::Postgres => Arc::new(postgres::Postgres::new(&at)?),
                Kind::Fio => Arc::new(fio::Fio::new(&at)),
            };
            Ok(load)
        })
        .collect()
}

/// A load in its thread.
pub struct Running {
    load: Arc<dyn Load>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Running {
    pub fn start(load: Arc<dyn Load>, seed: u64) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let (asked, works) = (Arc::clone(&stop), Arc::clone(&load));
        let thread = thread::spawn(move || {
            let mut random = SplitMix::new(seed);
            while !asked.load(Ordering::Relaxed) {
                works.step(&mut random)?;
            }
            Ok(())
        });
        Self { load, stop, thread: Some(thread) }
    }

    /// An error if it has ended by itself.
    pub fn is_well(&self) -> Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            bail!("the load {} ended", self.load.name());
        }
        Ok(())
    }

    pub fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let done = match thread.join() {
            Ok(done) => done.with_context(|| format!("the load {}", self.load.name())),
            Err(_) => bail!("the load {} ended", self.load.name()),
        };
        self.load.end().and(done)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After another failure, which is told.
        let _ = self.finish();
    }
}

/// The clock of points, in nanoseconds.
fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

/// When something was begun and done.
#[derive(Clone, Copy, Default)]
struct Span {
    begun: u64,
    /// None while it goes on.
    done: Option<u64>,
}

impl Span {
    fn begin() -> Self {
        Self { begun: now(), done: None }
    }

    fn done_by(&self, time: u64) -> bool {
        self.done.is_some_and(|done| done < time)
    }
}

/// What was done, one after the other, from 1 on.
#[derive(Default)]
struct Steps(Mutex<Vec<Span>>);

impl Steps {
    fn all(&self) -> MutexGuard<'_, Vec<Span>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the step that begins.
    fn begin(&self) -> u64 {
        let mut all = self.all();
        all.push(Span::begin());
        all.len() as u64
    }

    /// The newest step is done.
    fn done(&self) {
        if let Some(last) = self.all().last_mut() {
            last.done = Some(now());
        }
    }

    /// The newest steps that were done, and that had begun, by this time; 0: none.
    fn by(&self, time: u64) -> (u64, u64) {
        let all = self.all();
        let done = all.iter().rposition(|step| step.done_by(time));
        let begun = all.iter().rposition(|step| step.begun < time);
        (done.map_or(0, |i| i as u64 + 1), begun.map_or(0, |i| i as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_by_when_they_began_and_ended() {
        let steps = Steps::default();
        *steps.all() = vec![
            Span { begun: 10, done: Some(20) },
            Span { begun: 21, done: Some(30) },
            Span { begun: 31, done: None },
        ];
        for (time, expected) in
            [(10, (0, 0)), (11, (0, 1)), (20, (0, 1)), (21, (1, 1)), (30, (1, 2)), (99, (2, 3))]
        {
            assert_eq!(steps.by(time), expected, "{time}");
        }
        assert_eq!(steps.begin(), 4);
    }
}
