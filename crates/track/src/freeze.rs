//! Holds the file systems of a disk still for a moment.
//!
//! Owns: which file systems lie on a disk ([`survey`]), the process that freezes and thaws
//! them ([`Freezer`], [`helper_main`]), and what keeps a daemon from waiting for a frozen file
//! system ([`settle_writes`], [`lock_memory`]). Invariant: whoever dies, and whenever, a file
//! system that was frozen here is thawed, and a hold that ended early is never reported as one
//! that lasted. Leaves to others: what is read meanwhile, and which grade that earns.
//!
//! Two processes hold the same open directories. The helper freezes, and thaws at the deadline,
//! when the daemon is gone, and on a signal. The daemon thaws when the helper is gone or silent.
//! Only if both are killed at once something may stay frozen: [`thaw_all`] is for that.
//!
//! Order: file systems are frozen in the reverse order of their mounts, one after the other, and
//! thawed all at once. What was mounted later may write into what was mounted earlier (an image
//! in a file, an overlay), and could not be flushed if that were frozen first.

mod blocks;
mod direct;
mod error;
mod freezer;
mod guard;
mod helper;
mod hurry;
mod kernel;
mod lane;
mod link;
mod memory;
pub(crate) mod mounts;
mod round;
mod watch;

pub use direct::{Thawed, settle_writes, thaw_all};
pub use error::{Action, FreezeError};
pub use freezer::{Freezer, Frozen, Held};
pub use helper::helper_main;
pub use memory::{LockError, Locked, lock_memory};
pub use mounts::{FileSystem, Mount, Mounted, OnDevice, Roots, Swap, Unseen, mounted, survey};

/// Most file systems that can be frozen together: as many descriptors as one message carries
/// safely.
pub const FILE_SYSTEMS_MAX: usize = 64;
