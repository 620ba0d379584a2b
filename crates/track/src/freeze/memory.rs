//! Keeps a process in memory, so that it never waits for a disk that it holds still.
//!
//! Invariant: memory is locked only where locking cannot fail later; a limit that ends in the
//! middle of an allocation is refused at once. Leaves to others: whether to freeze without.

use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// Why memory is not locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The process may lock a little only, and would fail later in an allocation.
    #[error(
        "only {limit} bytes of memory may be locked: while a disk with active swap is frozen, the \
         daemon may have to wait for its own memory, up to the deadline of the freeze; give it \
         CAP_IPC_LOCK or LimitMEMLOCK=infinity"
    )]
    Limit {
        /// `RLIMIT_MEMLOCK`.
        limit: u64,
    },
    /// The kernel refused.
    #[error(
        "memory cannot be locked ({source}): while a disk with active swap is frozen, the daemon \
         may have to wait for its own memory, up to the deadline of the freeze"
    )]
    Refused {
        /// Its answer.
        source: std::io::Error,
    },
}

/// Keeps every page of this process in memory from when it is first used; what an allocator has
/// reserved and not used costs nothing. Memory of child processes is not locked.
pub fn lock_memory() -> Result<(), LockError> {
    let capable =
        capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::IPC_LOCK));
    let limit = getrlimit(Resource::Memlock).current;
    if let (false, Some(limit)) = (capable, limit) {
        return Err(LockError::Limit { limit });
    }
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    rustix::mm::mlockall(all).map_err(|errno| LockError::Refused { source: errno.into() })
}
