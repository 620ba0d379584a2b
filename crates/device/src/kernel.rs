//! What the ways of giving the kernel a disk have in common.
//!
//! Owns: their names ([`Via`]), what each of them can do once the disk is there ([`Front`]), and
//! the threads that wait for a network ([`pool`]). Leaves to others: each way ([`crate::fuse`],
//! [`crate::kernel_nbd`], [`crate::ublk`]).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::{BlockDevice, Error, Result, fuse, kernel_nbd, ublk};

pub(crate) mod pool;

/// Bytes of a sector, in which the kernel counts.
pub const SECTOR: u64 = 512;
/// What a removal that need not wait for anything takes at most.
const MOMENT: Duration = Duration::from_millis(500);
/// How long a removal may take when nothing waits for the disk any more.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// A way of giving the kernel a disk, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// The driver `ublk_drv`: `/dev/ublkbN`. A disk outlives its process, which may be restarted.
    Ublk,
    /// The kernel's NBD client: `/dev/nbdN`. Likewise, for a time that is set.
    Nbd,
    /// A file of a file system in user space, and a loop device on it: `/dev/loopN`.
    Fuse,
}

impl Via {
    /// All, the best first.
    pub const ALL: [Self; 3] = [Self::Ublk, Self::Nbd, Self::Fuse];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
        }
    }

    /// The way with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|via| via.name() == name)
    }

    /// Why this kernel does not have it, or this process may not use it.
    pub fn missing(self) -> Option<String> {
        let tried = match self {
            Self::Ublk => ublk::probe(),
            Self::Nbd => kernel_nbd::probe(),
            Self::Fuse => fuse::probe(),
        };
        tried.err().map(|e| e.to_string())
    }

    /// Where a disk of this number is.
    pub fn path(self, number: u32) -> PathBuf {
        let prefix = match self {
            Self::Ublk => "/dev/ublkb",
            Self::Nbd => "/dev/nbd",
            Self::Fuse => "/dev/loop",
        };
        format!("{prefix}{number}").into()
    }

    /// Whether a disk outlives its process, and another one may serve it.
    pub const fn can_resume(self) -> bool {
        !matches!(self, Self::Fuse)
    }

    /// Gives the kernel a disk.
    pub fn attach(self, disk: Arc<dyn BlockDevice>, how: &Options) -> Result<Box<dyn Front>> {
        Ok(match self {
            Self::Ublk => Box::new(ublk::Ublk::attach(disk, how)?),
            Self::Nbd => Box::new(kernel_nbd::KernelNbd::attach(disk, how)?),
            Self::Fuse => Box::new(fuse::FuseLoop::attach(disk, how)?),
        })
    }

    /// Serves a disk again whose process has died.
    pub fn resume(
        self,
        number: u32,
        disk: Arc<dyn BlockDevice>,
        how: &Options,
    ) -> Result<Box<dyn Front>> {
        Ok(match self {
            Self::Ublk => Box::new(ublk::Ublk::resume(number, disk, how)?),
            Self::Nbd => Box::new(kernel_nbd::KernelNbd::resume(number, disk, how)?),
            Self::Fuse => {
                return Err(Error::Unsupported("a loop device ends with its process"));
            }
        })
    }

    /// Whether the kernel has a disk of this number and label, served or not.
    pub fn is_there(self, number: u32, label: &str) -> bool {
        match self {
            Self::Ublk => ublk::is_there(number, label),
            Self::Nbd => kernel_nbd::is_there(number, label),
            Self::Fuse => fuse::is_there(number, label),
        }
    }

    /// Takes a disk away whose process has died. Requests that still wait fail.
    pub fn remove(self, number: u32) -> Result<()> {
        match self {
            Self::Ublk => ublk::remove(number),
            Self::Nbd => kernel_nbd::remove(number),
            Self::Fuse => fuse::remove(number),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a disk is given to the kernel.
#[derive(Debug, Clone)]
pub struct Options {
    /// What it is, for those who look at the kernel's lists: at most 63 bytes are shown.
    pub label: String,
    /// How long the kernel keeps requests for a process that has died, where there is a limit
    /// (NBD): whole seconds.
    pub dead: Duration,
}

impl Options {
    /// With what is usual.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), dead: Duration::from_secs(600) }
    }
}

/// A disk that the kernel has from this process. Dropping one does not take it away: call
/// [`Front::stop`].
pub trait Front: Send + Sync {
    /// By which way.
    fn via(&self) -> Via;

    /// Its number.
    fn number(&self) -> u32;

    /// Where it is.
    fn path(&self) -> PathBuf {
        self.via().path(self.number())
    }

    /// Tells the kernel that the disk's size is another one.
    fn resized(&self) -> Result<()>;

    /// Whether the kernel has given it up, within some time.
    fn ended(&self, within: Duration) -> bool;

    /// Takes it away: what was written is handed over first. Requests that are still waiting
    /// after `patience` fail. Returns then, whatever the disk does; how the writes ended is the
    /// error.
    fn stop(&self, patience: Duration) -> Result<()>;
}

/// Sectors of a disk; what is left over at its end is not seen by the kernel.
pub(crate) fn sectors(disk: &dyn BlockDevice) -> u64 {
    disk.geometry().size / SECTOR
}

/// An error of the system, with what it is about.
pub(crate) fn about(what: impl fmt::Display, errno: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Something that may hang in the kernel, in a thread of its own. If nobody waits for it any more
/// it goes on, and nobody hears of it.
struct Pending(Receiver<Result<()>>);

impl Pending {
    fn start(name: &str, work: impl FnOnce() -> Result<()> + Send + 'static) -> io::Result<Self> {
        let (done, finished) = channel();
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let _ = done.send(work());
        })?;
        Ok(Self(finished))
    }

    /// How it has ended, if it ends in time.
    fn wait(&self, until: Instant) -> Option<Result<()>> {
        self.0.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
    }
}

/// Takes a disk away that this process serves: what was written is handed over, then `remove` is
/// called. What is still waiting when the time is over is failed by `refuse`.
pub(crate) fn take_away(
    path: &Path,
    patience: Duration,
    refuse: &dyn Fn(),
    remove: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let late = |what| Err(Error::TimedOut(format!("{what} {}", path.display())));
    let until = Instant::now() + patience;
    let device = path.to_owned();
    let flushing = Pending::start("flush", move || Ok(std::fs::File::open(device)?.sync_all()?))?;
    let flushed = flushing.wait(until).unwrap_or_else(|| late("writing back"));
    if flushed.is_err() {
        refuse();
    }
    let removing = Pending::start("remove", remove)?;
    let removed = removing.wait(until.max(Instant::now() + MOMENT)).or_else(|| {
        refuse();
        removing.wait(Instant::now() + AFTER_REFUSAL)
    });
    flushed.and(removed.unwrap_or_else(|| late("removing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_paths_told() {
        for via in Via::ALL {
            assert_eq!(Via::named(via.name()), Some(via));
            assert_eq!(via.to_string(), via.name());
        }
        assert_eq!(Via::named("iscsi"), None);
        assert_eq!(Via::Ublk.path(3), Path::new("/dev/ublkb3"));
        assert_eq!(Via::Nbd.path(0), Path::new("/dev/nbd0"));
        assert_eq!(Via::Fuse.path(12), Path::new("/dev/loop12"));
        assert!(Via::Ublk < Via::Nbd && Via::Nbd < Via::Fuse);
    }
}
