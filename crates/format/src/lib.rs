//! Ids, ranges, limits and codecs of Dormouse.
//!
//! Owns: the byte layout of everything that lies in a store or crosses the wire.
//! Invariant: decoding accepts exactly the bytes that encoding makes (one
//! encoding for each value, reserved bytes zero, no trailing bytes), allocates
//! no more than the input's own length allows, and never panics.
//! Leaves to others: I/O, clocks, and all cryptography; checksums, signatures
//! and seals are computed and checked by `dormouse-crypt`.
//!
//! The byte-level specification is `docs/format.md` and `docs/protocol.md`.
#![forbid(unsafe_code)]

pub mod codec;
pub mod delta;
pub mod extents;
pub mod geometry;
pub mod ids;
pub mod limits;
pub mod message;
pub mod point;
pub mod record;
pub mod seeded;
pub mod segment;
pub mod stale;
pub mod vault;

pub use codec::{Error, Reader, Result, Writer};
pub use ids::*;
