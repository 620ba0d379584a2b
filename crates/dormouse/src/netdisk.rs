//! A network disk: a volume that is written here, and kept by the server.
//!
//! Owns: how a write becomes durable, and when points are made of what was written.
//! Invariant: what the server has is a prefix of what was written, in its order; what a flush
//! promised is on this machine's disk, or at the server, as it was chosen. The newest content
//! of a block lies in the write log until a point that holds it was acknowledged. Leaves to
//! others: the log (`dormouse_device::write_log`), and reading what the server has ([`Below`]).

mod below;
mod device;
mod sender;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_crypt::{OsRandom, Random};
use dormouse_device::write_log::{Base, Left, Limits, WriteLog};
use dormouse_format::point::StoredPoint;
use dormouse_format::{Hash, WriterId};
use dormouse_sync::history::hash_of;

use crate::disk::{self, DiskOptions, Opened};
use crate::exit::{Class, Failure, fail};
use crate::files::Lock;
use crate::home::{Account, Home};
use crate::out::note;
use crate::report::Report;
use crate::text;
use crate::when::VolumeAt;
use crate::writing::{How, Writing};
pub use below::Below;
use sender::Sender;
pub use sender::{Seen, Shared};

/// Where network disks keep their write logs, in the home.
const LOGS: &str = "writing";

/// Bytes of a write log, at most: what a block takes in a delta, 48 bytes, makes half of what the
/// store keeps between checkpoints.
pub const LOG_BYTES_MAX: u64 = 4 << 30;
/// And at least: some requests of the largest size fit.
pub const LOG_BYTES_MIN: u64 = 16 << 20;
/// The part of what is free that a write log may take, if nobody says how much.
const LOG_PART: u64 = 4;

/// A log has so many files when it is full, about: one in which nothing counts any more leaves early.
const LOG_FILES: u64 = 64;
/// Bytes of such a file, at least and at most.
const LOG_FILE_MIN: u64 = 1 << 20;
const LOG_FILE_MAX: u64 = 64 << 20;

/// When a flush is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When the write log on this machine has it (`--writeback`).
    #[default]
    Local,
    /// When the server has it (`--sync`).
    Server,
}

/// How a network disk is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// When a flush is done.
    pub durability: Durability,
    /// A point at most this often, unless a flush waits for one.
    pub point_every: Duration,
    /// Bytes of the write log, at most; if that is not said, a quarter of what is free where it
    /// lies, within [`LOG_BYTES_MIN`] and [`LOG_BYTES_MAX`].
    pub log_bytes: Option<u64>,
    /// How long a request may wait for the server; without it, as long as it takes.
    pub timeout: Option<Duration>,
    /// Give up what an earlier process has written and not sent.
    pub discard: bool,
    /// Take the volume over from another writer.
    pub takeover: bool,
    /// The zstd level.
    pub level: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Local,
            point_every: Duration::from_secs(1),
            log_bytes: None,
            timeout: None,
            discard: false,
            takeover: false,
            level: 1,
        }
    }
}

/// A volume that is open for writing, and what an earlier process left to be sent.
pub struct Opening {
    account: Arc<Account>,
    name: String,
    options: Options,
    writing: Writing,
    log: WriteLog,
    left: Option<Left>,
    head: StoredPoint,
    _lock: Lock,
}

/// Opens a volume for writing as a disk, over what the server has; sends what an earlier process
/// left.
pub fn open(
    home: &Home,
    what: &VolumeAt,
    options: Options,
    disk: &DiskOptions,
    report: &mut Report,
) -> Result<(NetDisk, Opened)> {
    let name = &what.volume;
    if let Some(when) = &what.when.0 {
        return fail(
            Class::Usage,
            format!("'{name}@{when}' is in the past, and cannot be written"),
            "`dormouse fork VOLUME@WHEN NAME` makes a volume of it; --overlay keeps writes in a file",
        );
    }
    let opening = Opening::new(home, name, options)?;
    if let Some(left) = opening.left() {
        report.note(&format!(
            "{name}: {} writes of an earlier process were not sent yet; they are sent now",
            left.entries
        ));
    }
    let (below, opened) = disk::open_own(home, name, &opening.head, disk, report)?;
    Ok((opening.start(home, below)?, opened))
}

/// Between two tries to make room in the log.
const KEEP_RETRY: Duration = Duration::from_secs(1);

/// How long an end waits for what is still to be sent.
const CLOSE: Duration = Duration::from_secs(15);

/// Ends a disk, and says what could not be sent: it is kept.
pub fn close(disk: &NetDisk, name: &str) -> Result<()> {
    let seen = disk.close(CLOSE)?;
    if !disk.all_sent() {
        let why = seen.away.or(seen.ended).unwrap_or_else(|| "the link is slow".into());
        let kept = text::size(disk.log.kept().0);
        note!("{name}: {kept} of writes are kept here and are sent the next time: {why}");
    }
    Ok(())
}

/// A network disk.
pub struct NetDisk {
    log: Arc<WriteLog>,
    below: Arc<dyn Below>,
    shared: Arc<Shared>,
    durability: Durability,
    timeout: Option<Duration>,
    /// Held by writes of whole blocks together, and by one of a part alone.
    partial: RwLock<()>,
    /// The sender, and who keeps room in the log.
    threads: Mutex<Option<[JoinHandle<()>; 2]>>,
    _lock: Lock,
}

impl Opening {
    /// Opens a volume for writing, and its write log.
    pub fn new(home: &Home, name: &str, options: Options) -> Result<Self> {
        let lock = home.lock_named(&format!("volume-{name}"))?;
        let account = Arc::new(home.account()?);
        let dir = home.dir().join(LOGS).join(name);
        let bytes = match options.log_bytes {
            Some(bytes) => bytes,
            None => log_bytes(free_bytes(home.dir())?),
        };
        let part = (bytes / LOG_FILES).clamp(LOG_FILE_MIN, LOG_FILE_MAX);
        let limits = Limits { bytes, part, wait: options.timeout };
        let salt = u64::from_le_bytes(OsRandom.array());
        if options.discard {
            // Before it is read: it may be damaged.
            WriteLog::remove(&dir).map_err(|e| log_failure(&dir, &e))?;
        }
        let (log, left) = WriteLog::open(&dir, limits, salt).map_err(|e| log_failure(&dir, &e))?;
        let how = How { level: options.level, takeover: options.takeover, new: false };
        let writing = Writing::open(home, &account, name, how)?;
        let head = writing.head.with_context(|| format!("volume '{name}' has no point yet"))?;
        if let Some(left) = &left {
            let Left { base, generation, after_cut, .. } = *left;
            let kept = Kept { base, generation, after_cut };
            kept.check(name, &writing.volume.id.0, &head, account.writer(), &dir)?;
        }
        log.begin(base_of(&writing), head.point().size)
            .with_context(|| format!("cannot write in {}", dir.display()))?;
        let name = name.to_owned();
        Ok(Self { account, name, options, writing, log, left, head, _lock: lock })
    }

    /// The newest point, on which what is written builds.
    pub const fn head(&self) -> &StoredPoint {
        &self.head
    }

    /// What an earlier process has written and not sent: it is sent now.
    pub fn left(&self) -> Option<Left> {
        self.left.filter(|left| left.entries > 0)
    }

    /// The disk, over what the server has at [`Self::head`].
    pub fn start(self, home: &Home, below: Arc<dyn Below>) -> Result<NetDisk> {
        let Self { account, name, options, writing, log, left: _, head: _, _lock } = self;
        let (log, shared) = (Arc::new(log), Arc::new(Shared::new(&writing)));
        let (durability, timeout) = (options.durability, options.timeout);
        let sender = Sender::new(
            (home.clone(), account, name),
            options,
            writing,
            (Arc::clone(&log), Arc::clone(&below), Arc::clone(&shared)),
        );
        let keeper = Arc::clone(&log);
        let keeper = thread("write-log", move || keep(&keeper))?;
        let threads = Mutex::new(Some([thread("send", || sender.run())?, keeper]));
        let partial = RwLock::new(());
        Ok(NetDisk { log, below, shared, durability, timeout, partial, threads, _lock })
    }
}

impl NetDisk {
    /// How it stands with sending.
    pub fn seen(&self) -> Seen {
        self.shared.seen()
    }

    /// Whether all that was written is at the server.
    pub fn all_sent(&self) -> bool {
        !self.log.pending()
    }

    /// Ends it: what was written is sent, but for no longer than `wait`; what was not stays in
    /// the write log, durable, for the next time. Nothing can be written afterwards.
    pub fn close(&self, wait: Duration) -> Result<Seen> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some([sender, keeper]) = threads else { return Ok(self.seen()) };
        let flushed = self.log.flush();
        self.shared.stop(wait);
        let sent = sender.join();
        self.log.end("the disk was closed");
        let kept = keeper.join();
        sent.map_err(|_| anyhow::anyhow!("the sending thread has panicked"))?;
        kept.map_err(|_| anyhow::anyhow!("the write log's thread has panicked"))?;
        if self.all_sent() {
            return Ok(self.seen());
        }
        flushed.context("what was not sent could not be made durable here")?;
        Ok(self.seen())
    }
}

impl Drop for NetDisk {
    fn drop(&mut self) {
        // Nobody waits: what was written stays in the log.
        let _ = self.close(Duration::ZERO);
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.context("no thread can be made")
}

/// Keeps room in a log, until it ends.
fn keep(log: &WriteLog) {
    let mut said = false;
    while log.wait_to_keep() {
        let Err(error) = log.keep() else {
            said = false;
            continue;
        };
        // It costs room only; the next time may be better.
        if !std::mem::replace(&mut said, true) {
            note!("the write log keeps what is not needed any more: {error}");
        }
        std::thread::sleep(KEEP_RETRY);
    }
}

/// Bytes that this user may still take on the file system of a directory.
fn free_bytes(dir: &Path) -> Result<u64> {
    let free = rustix::fs::statvfs(dir)
        .with_context(|| format!("cannot learn what is free in {}", dir.display()))?;
    Ok(free.f_bavail.saturating_mul(free.f_frsize))
}

/// Bytes of a write log where so many are free.
fn log_bytes(free: u64) -> u64 {
    (free / LOG_PART).clamp(LOG_BYTES_MIN, LOG_BYTES_MAX)
}

/// What is known of a write log that was kept: on what it builds, and the newest generation
/// under which points were made of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) base: Base,
    pub(crate) generation: u64,
    /// Whether a point may have been made out of the log after that.
    pub(crate) after_cut: bool,
}

impl Kept {
    /// That the head is the point on which the log builds, or the one that was being made out of
    /// the log, or a checkpoint: then writing the log again gives what is right. Whoever else opens
    /// the volume gets a greater generation, and all points from then on have it, or a greater one;
    /// a log that was put back from a backup lacks points that were made since.
    pub(crate) fn check(
        &self,
        name: &str,
        volume: &[u8; 16],
        head: &StoredPoint,
        writer: WriterId,
        dir: &Path,
    ) -> Result<()> {
        let p = head.point();
        let base = Hash(self.base.hash);
        let same = p.seq == self.base.seq && hash_of(&head.signed) == base;
        let next = self.base.seq.checked_add(1) == Some(p.seq) && p.prev == base;
        let ours = p.writer == writer && p.generation <= self.generation;
        let made_here = next && ours && (self.after_cut || p.is_checkpoint());
        if *volume == self.base.volume && (same || made_here) {
            return Ok(());
        }
        let message = format!(
            "volume '{name}' was written otherwise: writes that are here and were not sent build on \
             point {1}, and point {0} is not made out of them",
            p.seq, self.base.seq
        );
        Err(Failure::new(Class::InUse, message)
            .hint(format!(
                "they lie in {}; to give them up: --discard-log; to keep both, copy that directory \
                 first",
                dir.display()
            ))
            .into())
    }
}

/// What writes build on from now.
fn base_of(writing: &Writing) -> Base {
    let head = writing.head.map(|head| (head.point().seq, hash_of(&head.signed)));
    let (seq, hash) = head.unwrap_or((0, Hash::ZERO));
    Base { volume: writing.volume.id.0, generation: writing.generation, seq, hash: hash.0 }
}

fn log_failure(dir: &Path, error: &dormouse_device::Error) -> anyhow::Error {
    Failure::new(Class::Damaged, format!("the write log in {}: {error}", dir.display()))
        .hint(
            "is the disk attached already? `dormouse attached` shows it; if the log is damaged, what was \
             written and not sent\nis lost from there on: --discard-log goes on with what the server has",
        )
        .into()
}

/// The write log of a volume, if one was left: its directory.
pub fn log_dir(home: &Home, name: &str) -> PathBuf {
    home.dir().join(LOGS).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_takes_a_quarter_of_what_is_free_within_bounds() {
        assert_eq!(log_bytes(0), LOG_BYTES_MIN);
        assert_eq!(log_bytes(10 << 30), 5 << 29);
        assert_eq!(log_bytes(u64::MAX), LOG_BYTES_MAX);
        assert!(free_bytes(Path::new("/nothing/here")).is_err());
    }
}
