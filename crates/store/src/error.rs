//! What can go wrong in a store, with the way out in the text.

use dormouse_format::WriterId;

/// Why the store refuses or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system failed.
    #[error("{what}: {source}")]
    Io {
        /// The file or directory, and what was done with it.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes are not of our format.
    #[error(transparent)]
    Format(#[from] dormouse_format::Error),
    /// A checksum, signature or key does not hold.
    #[error(transparent)]
    Crypt(#[from] dormouse_crypt::Error),
    /// A record or a segment is not what was written.
    #[error("segment {segment}, byte {offset}: {why}")]
    Damaged {
        /// Name of the segment's file.
        segment: String,
        /// Where in it.
        offset: u64,
        /// What does not hold, and what can be done.
        why: String,
    },
    /// No such thing.
    #[error("{what} is not in this store")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// A volume's name is taken.
    #[error("there is already a volume named {name}")]
    Exists {
        /// The name.
        name: String,
    },
    /// Another writer, or another instance of this one, holds the volume.
    #[error("volume {volume} is held by {}; take it over only if that one has stopped", holder(.by, *.same))]
    Held {
        /// The volume's name.
        volume: String,
        /// Who holds it.
        by: WriterId,
        /// It is the writer that asks, on another machine.
        same: bool,
    },
    /// The volume was taken over since.
    #[error("a newer connection has taken the volume over")]
    Fenced,
    /// The point does not fit what is there.
    #[error("the point does not fit: {why}")]
    Conflict {
        /// What does not fit.
        why: String,
    },
    /// A record is refused.
    #[error("the record is refused: {why}")]
    BadRecord {
        /// Which rule it breaks.
        why: String,
    },
    /// What was to be let go stays, or a policy is none.
    #[error("{why}")]
    Kept {
        /// Why.
        why: String,
    },
    /// A write or a sync failed before; nothing is written any more.
    #[error("an earlier write failed, so nothing more is written; open the store again")]
    Poisoned,
    /// Written by a newer program.
    #[error("a segment has version {found}, and this program knows up to {known}; update it")]
    NewerVersion {
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// The directory holds no such vault, or something else.
    #[error("this is not the store of that vault: {why}")]
    NotAStore {
        /// What is wrong.
        why: String,
    },
    /// The vault holds as much as it may.
    #[error(
        "the vault's quota is used up: {} of {} are stored; what is there stays, and can be read",
        size(*used),
        size(*quota)
    )]
    Quota {
        /// Bytes that it holds.
        used: u64,
        /// Bytes that it may hold.
        quota: u64,
    },
    /// What was looked at was moved to another segment meanwhile.
    #[error("the record was moved by a collection while it was looked for; ask again")]
    Moved,
    /// Whoever ran it had it stop.
    #[error("stopped before the end")]
    Stopped,
    /// No room.
    #[error("there is no room left for the store; free some, then open the store again")]
    Full,
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Result of this crate.
pub type Result<T> = core::result::Result<T, Error>;

fn holder(by: &WriterId, same: bool) -> String {
    if same { "another machine with this one's keys".into() } else { format!("writer {by}") }
}

impl Error {
    /// An I/O error while doing `what`; no room becomes [`Error::Full`].
    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        if matches!(source.kind(), StorageFull | QuotaExceeded) {
            return Self::Full;
        }
        Self::Io { what: what.into(), source }
    }

    pub(crate) fn conflict(why: impl Into<String>) -> Self {
        Self::Conflict { why: why.into() }
    }

    pub(crate) fn kept(why: impl Into<String>) -> Self {
        Self::Kept { why: why.into() }
    }

    pub(crate) fn bad(why: impl Into<String>) -> Self {
        Self::BadRecord { why: why.into() }
    }

    pub(crate) fn damaged(segment: u64, offset: u64, why: impl Into<String>) -> Self {
        let segment = crate::log::name(segment);
        Self::Damaged { segment, offset, why: why.into() }
    }
}
