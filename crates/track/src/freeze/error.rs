//! What can go wrong with a freeze, and the way out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why there is no freeze, or why a freeze did not last. Nothing stays frozen, except where
/// `AlreadyFrozen`, `StillHeld` or a failed thaw say so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// What the kernel tells of disks and mounts cannot be read.
    #[error("cannot read {path}: {source}")]
    Survey {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no such disk.
    #[error("the kernel knows no block device {major}:{minor}")]
    NoDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// More file systems than one freeze can hold.
    #[error("{count} file systems cannot be frozen together, at most {}", super::FILE_SYSTEMS_MAX)]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// The helper cannot be started, or what was started is not it.
    #[error("cannot start the freeze helper: {source}")]
    Start {
        /// Why.
        source: io::Error,
    },
    /// The helper died or hung; the daemon has thawed what it held.
    #[error("the freeze helper is gone; nothing stays frozen; start another one")]
    HelperGone,
    /// The helper was told to end, and has thawed everything.
    #[error("the freeze helper was told to end; nothing stays frozen; start another one")]
    Stopped,
    /// The kernel has not come back yet from freezing or thawing.
    #[error(
        "the kernel is still busy with {mount_point}, which is thawed as soon as that ends: its \
         disk may hang, see the kernel's log"
    )]
    StillHeld {
        /// Where the file system is mounted.
        mount_point: PathBuf,
    },
    /// Somebody else holds it; that was left alone.
    #[error(
        "{mount_point} is frozen by somebody else and stays so; when nobody needs that any more: \
         fsfreeze --unfreeze {mount_point}"
    )]
    AlreadyFrozen {
        /// Where the file system is mounted.
        mount_point: PathBuf,
    },
    /// This type of file system cannot be frozen.
    #[error(
        "{mount_point} cannot be frozen: {kind} does not support it; leave it out, or mount it \
         read-only"
    )]
    Unsupported {
        /// Where the file system is mounted.
        mount_point: PathBuf,
        /// Its type.
        kind: String,
    },
    /// The kernel refused something else.
    #[error("cannot {action} {mount_point}: {source}")]
    Failed {
        /// What was tried.
        action: Action,
        /// Where the file system is mounted.
        mount_point: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The deadline passed before everything was frozen.
    #[error(
        "freezing {mount_point} took longer than {} ms; write back more before, or allow more time",
        hold_max.as_millis()
    )]
    TooSlow {
        /// The file system that was being frozen then.
        mount_point: PathBuf,
        /// The deadline.
        hold_max: Duration,
    },
    /// The deadline passed before the daemon asked to thaw: what was read later was not held.
    #[error("the file systems were thawed after {} ms, before all was read", hold_max.as_millis())]
    Late {
        /// The deadline.
        hold_max: Duration,
    },
    /// Somebody else thawed it: what was read was not held all the time.
    #[error("{mount_point} was thawed by somebody else while it was held")]
    ThawedByOther {
        /// Where the file system is mounted.
        mount_point: PathBuf,
    },
}

/// What was tried with a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// To open its mount point.
    Open,
    /// To write back what it holds in memory.
    Flush,
    /// To freeze it.
    Freeze,
    /// To thaw it.
    Thaw,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Action::Open => "open",
            Action::Flush => "write back",
            Action::Freeze => "freeze",
            Action::Thaw => "thaw",
        })
    }
}
