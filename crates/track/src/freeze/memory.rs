//! Keeps a process in memory, so that it never waits for a disk that it holds still.
//!
//! Invariant: memory is locked only where locking cannot fail later; a limit that ends in the
//! middle of an allocation is refused at once; it stays locked as long as anybody holds a
//! [`Locked`]. Leaves to others: whether to freeze without.

use std::sync::{Mutex, PoisonError};

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

/// How many hold the lock.
static HOLDERS: Mutex<usize> = Mutex::new(0);

/// The memory of this process is locked as long as this is there.
///
/// An allocator gives nothing back to the kernel meanwhile (`madvise` refuses locked pages): hold it
/// as long as something is frozen, and not for ever in a process that goes on to work.
#[derive(Debug)]
#[must_use = "memory is locked as long as this is there"]
pub struct Locked(());

/// Keeps every page of this process in memory from when it is first used; what an allocator has
/// reserved and not used costs nothing. Memory of child processes is not locked.
pub fn lock_memory() -> Result<Locked, LockError> {
    let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if *holders == 0 {
        let capable =
            capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::IPC_LOCK));
        let limit = getrlimit(Resource::Memlock).current;
        if let (false, Some(limit)) = (capable, limit) {
            return Err(LockError::Limit { limit });
        }
        let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        rustix::mm::mlockall(all).map_err(|errno| LockError::Refused { source: errno.into() })?;
    }
    *holders += 1;
    Ok(Locked(()))
}

impl Locked {
    /// Memory stays locked as long as the process is there.
    pub fn for_ever(self) {
        core::mem::forget(self);
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        *holders -= 1;
        if *holders == 0 {
            // It cannot fail for a process that could lock.
            let _ = rustix::mm::munlockall();
        }
    }
}
