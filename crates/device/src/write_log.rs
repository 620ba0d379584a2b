//! The write log of a network disk: every write in its order, on this machine, until the server
//! has it.
//!
//! Owns: the files of one directory, and which block's newest content lies where in them.
//! Invariant: after a crash the log reads as a prefix of what was written, not shorter than at
//! the last flush that returned; every block that is read is compared with its sum. What is
//! forgotten was acknowledged by the server; what left before had no effect that later entries, which
//! are durable, do not repeat. Leaves to others: sending (the program), and what a
//! block was before it was written here.

mod append;
mod cut;
mod entry;
mod file;
mod files;
mod keep;
mod read;
mod runs;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_format::limits::BLOCK_SIZE;
use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};
pub use cut::Cut;
pub use entry::Base;
use file::LogFile;
use runs::Runs;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// The shape of a log.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all files, at most: a write that does not fit waits.
    pub bytes: u64,
    /// Bytes of one file, about: the log leaves, or is forgotten, by files.
    pub part: u64,
    /// How long a write waits for room; `None`: for ever.
    pub wait: Option<Duration>,
}

/// What an earlier process left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// On what it builds.
    pub base: Base,
    /// Whether one point may have been made out of it after that.
    pub after_cut: bool,
    /// The newest generation under which it was written, and points were made of it.
    pub generation: u64,
    /// The disk's size after all of it.
    pub size: u64,
    /// Entries that were taken.
    pub entries: u64,
    /// Bytes behind them that were never flushed.
    pub torn: u64,
}

/// A log. Used by many threads at once.
#[derive(Debug)]
pub struct WriteLog {
    dir: PathBuf,
    limits: Limits,
    salt: u64,
    state: Mutex<State>,
    /// Held by who begins files, or removes some; taken before the state.
    turn: Mutex<()>,
    /// Held by who syncs; taken after the turn and before the state.
    syncing: Mutex<()>,
    /// Told when there is room again, or the log ends.
    room: Condvar,
    /// Told when there is something for [`Self::keep`] to do, or the log ends.
    work: Condvar,
    _lock: File,
}

#[derive(Debug)]
struct State {
    /// Written since the last cut.
    now: Runs,
    /// What the last cut took, until it is forgotten.
    old: Option<Arc<Runs>>,
    /// Older files, and the one that is written; none before [`WriteLog::begin`].
    files: VecDeque<Part>,
    /// Where the next entry goes in the last of them.
    tail: u64,
    next_number: u64,
    /// A file that was made ahead; its number is the next.
    spare: Option<Part>,
    /// Files whose names are gone, and that somebody may still read.
    left: Vec<Part>,
    /// Whether the keeper waits to be told.
    keeper_waits: bool,
    /// Files of an earlier process in which nothing counts.
    lost: Vec<PathBuf>,
    size: u64,
    seq: u64,
    /// The number behind the last entry that changed the disk.
    written: u64,
    chain: u64,
    /// Entries below are durable.
    durable: u64,
    /// Whether `now` holds an entry that the last cut has not.
    touched: bool,
    bytes: u64,
    base: Option<Base>,
    ended: Option<&'static str>,
}

#[derive(Debug)]
struct Part {
    file: Arc<LogFile>,
    len: u64,
    synced: bool,
}

impl WriteLog {
    /// Takes the log of a directory, which is made if it is not there, and what is in it.
    /// `salt` is random. Nothing can be written before [`Self::begin`].
    pub fn open(dir: &Path, limits: Limits, salt: u64) -> Result<(Self, Option<Left>)> {
        let lock = locked(dir)?;
        let replay = files::replay(dir)?;
        let left = replay.first.map(|_| Left {
            base: replay.base,
            after_cut: replay.after_cut,
            generation: replay.generation,
            size: replay.size,
            entries: replay.writes,
            torn: replay.torn,
        });
        replay.runs.all().for_each(|(start, end, content)| content.file().gains(end - start));
        let part = |(file, len)| Part { file, len, synced: false };
        let state = State {
            touched: left.is_some_and(|left| left.entries > 0),
            now: replay.runs,
            old: None,
            files: replay.files.into_iter().map(part).collect(),
            tail: 0,
            next_number: replay.next_number,
            spare: None,
            left: Vec::new(),
            keeper_waits: false,
            lost: replay.lost,
            size: replay.size,
            seq: replay.seq,
            written: replay.seq,
            chain: replay.chain,
            durable: 0,
            bytes: replay.bytes,
            base: None,
            ended: None,
        };
        let log = Self {
            dir: dir.to_owned(),
            limits,
            salt,
            state: Mutex::new(state),
            turn: Mutex::default(),
            syncing: Mutex::default(),
            room: Condvar::new(),
            work: Condvar::new(),
            _lock: lock,
        };
        Ok((log, left))
    }

    /// Removes the log of a directory, also one that cannot be read.
    pub fn remove(dir: &Path) -> Result<()> {
        let _lock = locked(dir)?;
        files::remove(dir)
    }

    /// Begins writing, on this base; `size` is the disk's if nothing was left.
    pub fn begin(&self, base: Base, size: u64) -> Result<()> {
        let lost = std::mem::take(&mut self.state().lost);
        lost.into_iter().try_for_each(std::fs::remove_file)?;
        let mut state = self.state();
        if state.files.is_empty() {
            state.size = size;
        }
        drop(state);
        self.rebase(base)
    }

    /// The disk's size now.
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Makes all durable that was written before.
    pub fn flush(&self) -> Result<()> {
        let one = self.syncing();
        let (parts, seq) = {
            let state = self.state();
            if let Some(why) = state.ended {
                return Err(failed(why));
            }
            if state.durable == state.seq {
                return Ok(());
            }
            let unsynced = state.files.iter().filter(|part| !part.synced);
            let parts: Vec<_> = unsynced.map(|p| Arc::clone(&p.file)).collect();
            (parts, state.seq)
        };
        self.sync(&one, &parts)?;
        let mut state = self.state();
        state.durable = state.durable.max(seq);
        let last = parts.last().map_or(0, |part| part.number);
        for part in state.files.iter_mut().filter(|part| part.file.number < last) {
            part.synced = true;
        }
        Ok(())
    }

    /// One syncs at a time: the system tells an error to one of those that sync a file, and to
    /// the others that all is well.
    fn syncing(&self) -> MutexGuard<'_, ()> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes files durable. What is in them after a failure is not known: nothing may be written
    /// behind it, and nothing may be said to be durable.
    fn sync(&self, _one: &MutexGuard<'_, ()>, files: &[Arc<LogFile>]) -> Result<()> {
        if let Some(why) = self.state().ended {
            return Err(failed(why));
        }
        let synced = files.iter().try_for_each(|file| file.file.sync_data());
        if synced.is_err() {
            self.end("a sync of the write log failed");
        }
        Ok(synced?)
    }

    /// The number behind the last entry that changed the disk.
    pub fn written(&self) -> u64 {
        self.state().written
    }

    /// Bytes that are kept, and entries that were written.
    pub fn kept(&self) -> (u64, u64) {
        let state = self.state();
        (state.bytes, state.seq)
    }

    /// Whether more than half of what it may take is taken.
    pub fn is_half_full(&self) -> bool {
        self.state().bytes > self.limits.bytes / 2
    }

    /// Whether something was written that no cut has taken and the server has acknowledged.
    pub fn pending(&self) -> bool {
        let state = self.state();
        state.touched || state.old.is_some()
    }

    /// Ends it: who waits for room gets an error, and so does whoever writes.
    pub fn end(&self, why: &'static str) {
        self.state().ended.get_or_insert(why);
        self.tell_all();
    }

    fn tell_all(&self) {
        self.room.notify_all();
        self.work.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory, which is made if it is not there, that no other log uses meanwhile.
fn locked(dir: &Path) -> Result<File> {
    std::fs::create_dir_all(dir)?;
    let lock = private().open(dir.join("lock"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let dir = dir.display();
        return Err(Error::Damaged(format!("another process writes the log in {dir}")));
    }
    Ok(lock)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

fn failed(why: &'static str) -> Error {
    Error::Io(io::Error::other(why))
}
