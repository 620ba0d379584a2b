//! The trust core of a backup store: log, map, index, history, collection, scrub.
//!
//! Owns: what lies in a vault's segments and in which order it becomes durable.
//! Invariant: what was acknowledged is durable (P1); a point is visible wholly or
//! not at all (P2); what is read was checked after reading (P4). The log of
//! segments is all there is: the index is a cache that is rebuilt from it.
//! Leaves to others: keys and opening (`dormouse-crypt`), who may connect, and
//! the protocol (`dormouse-sync`). Time and storage come in as arguments.
#![forbid(unsafe_code)]

pub mod collect;
mod dir;
pub mod disk;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod locks;
mod log;
mod map;
pub mod memory;
pub mod replica;
pub mod retention;
pub mod scrub;
mod state;
mod vault;

pub use dir::{Dir, File};
pub use dormouse_format::message::Base;
pub use dormouse_format::point::{SignedPoint, StoredPoint};
pub use error::{Error, Result};
pub use log::RecordRef;
pub use log::recover::TornTail;
pub use map::MapCache;
pub use vault::{
    By, Commit, Due, Fault, GRACE, Look, Options, Pending, Pins, Recovery, Stats, Unfinished,
    VaultStore, look,
};
