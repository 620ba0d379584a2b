//! What can go wrong with a disk, and which error number a kernel or peer is told.

use std::io;

use rustix::io::Errno;

/// An error of a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A range does not lie within it.
    #[error("bytes {at} and {len} more do not lie within the disk")]
    Range {
        /// The first byte.
        at: u64,
        /// How many.
        len: u64,
    },
    /// It cannot do this.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// What it is kept in is full.
    #[error("no room: {0}")]
    NoRoom(String),
    /// Where the bytes come from does not answer in time.
    #[error("no answer in time: {0}")]
    TimedOut(String),
    /// It is being taken away.
    #[error("the disk is being closed")]
    Closed,
    /// What came back is not what is on record: never given out.
    #[error("{0}")]
    Damaged(String),
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error number that says it best.
    pub fn errno(&self) -> Errno {
        match self {
            Self::ReadOnly => Errno::PERM,
            Self::Range { .. } => Errno::INVAL,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::NoRoom(_) => Errno::NOSPC,
            Self::TimedOut(_) => Errno::TIMEDOUT,
            Self::Closed => Errno::SHUTDOWN,
            Self::Damaged(_) => Errno::IO,
            Self::Io(e) => Errno::from_io_error(e).unwrap_or(Errno::IO),
        }
    }
}
