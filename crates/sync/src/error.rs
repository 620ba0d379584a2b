//! What can go wrong on the client's side of the protocol.

use dormouse_format::message::Refusal;
use dormouse_format::{Block, ChunkId, Seq};

/// Why the client cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused.
    #[error("the server refused: {}", plain(text))]
    Refused {
        /// Why, for programs.
        refusal: Refusal,
        /// Why, for people.
        text: String,
    },
    /// The server answered something that was not asked.
    #[error("the server broke the protocol: {what}")]
    Protocol {
        /// What was wrong.
        what: &'static str,
    },
    /// Bytes that do not decode, or do not hold.
    #[error(transparent)]
    Crypt(#[from] dormouse_crypt::Error),
    /// A part of the map is not what the signed root says.
    #[error("the server's map of point {seq} is not what its writer signed: {what}")]
    Map {
        /// The point.
        seq: Seq,
        /// Which part.
        what: &'static str,
    },
    /// A point is not of the volume, the vault or a writer that the authority knows.
    #[error("point {seq} is not to be trusted: {why}")]
    Point {
        /// The point.
        seq: Seq,
        /// Why.
        why: &'static str,
    },
    /// The server shows an older state than this machine has seen acknowledged.
    #[error(
        "the server has lost history: it shows point {shown}, and had acknowledged point {seen}"
    )]
    Rollback {
        /// The newest point that this machine knows of.
        seen: Seq,
        /// The newest point that the server shows.
        shown: Seq,
    },
    /// The server shows another history than this machine has seen.
    #[error(
        "the server shows another history: its point {seq} is not the one that it acknowledged"
    )]
    Fork {
        /// The point that differs.
        seq: Seq,
    },
    /// The volume has another head than the one that was looked at before it was opened.
    #[error("another writer made a point of this volume in this moment")]
    Moved,
    /// A commit named chunks that the store lost in between.
    #[error("the server no longer has {} chunks that it said it had, the first {first}", count)]
    Missing {
        /// How many.
        count: usize,
        /// One of them.
        first: ChunkId,
    },
    /// A chunk that a point needs cannot be had.
    #[error("chunk {id}, which holds block {block}, cannot be used: {why}")]
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// The first block that needs it.
        block: Block,
        /// Why.
        why: String,
    },
}

impl From<dormouse_format::Error> for Error {
    fn from(e: dormouse_format::Error) -> Self {
        Self::Crypt(e.into())
    }
}

/// A peer's text as it may be shown: without the control characters that a terminal obeys.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Result of this crate.
pub type Result<T> = core::result::Result<T, Error>;

/// What an unexpected answer means: a refusal, or a broken protocol.
pub(crate) fn unexpected(message: dormouse_format::message::Message, what: &'static str) -> Error {
    match message {
        dormouse_format::message::Message::Error { refusal, text } => {
            Error::Refused { refusal, text }
        }
        _ => Error::Protocol { what },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_moves_no_cursor() {
        let (refusal, text) = (Refusal::Full, "é \u{1b}[2J\u{9b}1m\n".to_owned());
        let shown = Error::Refused { refusal, text }.to_string();
        assert_eq!(shown, "the server refused: é \u{fffd}[2J\u{fffd}1m\u{fffd}");
    }
}
