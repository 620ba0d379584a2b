//! Holds the file systems of a disk still for a moment.
//!
//! Owns: which file systems lie on a disk ([`survey`]), and what keeps a daemon from waiting for a
//! frozen one ([`settle_writes`], [`lock_memory`], [`thaw_all`]). Leaves to others: what is read
//! meanwhile, and which grade that earns.

mod blocks;
mod direct;
mod error;
mod kernel;
mod memory;
mod mounts;

pub use direct::{Thawed, settle_writes, thaw_all};
pub use error::{Action, FreezeError};
pub use memory::{LockError, lock_memory};
pub use mounts::{FileSystem, Mount, OnDevice, Roots, Swap, Unseen, survey};

/// Most file systems that can be frozen together: as many descriptors as one message carries
/// safely.
pub const FILE_SYSTEMS_MAX: usize = 64;
