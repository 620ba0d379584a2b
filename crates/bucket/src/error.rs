//! What can go wrong with a bucket, with the way out in the text.

use std::io;

/// Why a bucket refuses or fails.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It does not answer now; trying again may help.
    #[error("the object storage does not answer: {what}: {why}")]
    Away {
        /// What was asked.
        what: String,
        /// What came back.
        why: String,
    },
    /// It answers, and says no.
    #[error(
        "the object storage refuses: {what}: {why}; check AWS_ACCESS_KEY_ID, \
         AWS_SECRET_ACCESS_KEY, and what that key may do with the bucket"
    )]
    Refused {
        /// What was asked.
        what: String,
        /// What came back.
        why: String,
    },
    /// The address or the environment cannot be used.
    #[error("{why}")]
    Settings {
        /// What is wrong, and what would be right.
        why: String,
    },
    /// Create-if-absent does not exclude.
    #[error(
        "{why}: two servers could overwrite each other there. Use a bucket whose server knows \
         `If-None-Match: *` for PUT, atomically"
    )]
    NotAtomic {
        /// What the probe saw.
        why: String,
    },
    /// Another server holds the bucket.
    #[error(
        "the bucket is held by the server on {host}, state {holder}, since its start {generation}; \
         if that one is gone for good, take over with --takeover: what it had acknowledged and not \
         put is lost then"
    )]
    Held {
        /// Its machine.
        host: String,
        /// Id of its state directory.
        holder: String,
        /// Generation of its lease.
        generation: u64,
    },
    /// Another server has taken the bucket over since.
    #[error("another server has taken the bucket over ({why}); nothing more is written from here")]
    Lost {
        /// What tells so.
        why: String,
    },
    /// The bucket, or the prefix, holds something else.
    #[error("this is not the store of that bucket: {why}")]
    NotAStore {
        /// What is there.
        why: String,
    },
    /// Written by a newer program.
    #[error("{object} has version {found}, and this program knows up to {known}; update it")]
    Newer {
        /// Which object.
        object: String,
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// An object is not what was put.
    #[error("object {object}: {why}")]
    Damaged {
        /// Its name below the prefix.
        object: String,
        /// What does not hold.
        why: String,
    },
    /// The disk of this machine failed.
    #[error("{what}: {why}")]
    Local {
        /// What was done.
        what: String,
        /// What the system said.
        why: String,
        /// Its kind.
        kind: io::ErrorKind,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

/// Result of this crate.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// Whether trying again later may help.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Refused { .. })
    }

    pub(crate) fn damaged(object: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), why: why.into() }
    }

    pub(crate) fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |e| Self::Local { what, why: e.to_string(), kind: e.kind() }
    }
}

impl From<Error> for io::Error {
    /// As the store sees it: a disk that is full stays one.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Local { kind, .. } => *kind,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
