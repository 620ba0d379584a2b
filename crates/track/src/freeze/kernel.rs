//! What the kernel is asked: open a mount point, flush, freeze, thaw.
//!
//! Invariant: a descriptor that leaves here belongs to the mount that was meant, not to another
//! one that was mounted over it. Leaves to others: when to ask, and what to make of an answer.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, Result};
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

/// The stacks of threads here are locked into memory, and they do little.
pub const STACK_BYTES: usize = 64 << 10;
/// How long a thaw may take before it is reported as failed; it goes on.
pub const THAW_MAX: Duration = Duration::from_secs(10);

const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// Opens a directory or file at `point`, if it belongs to the mount `id`. A pipe or device that
/// is mounted there is not opened: that could block or have effects.
pub fn open_mount(point: &Path, id: u64) -> Result<OwnedFd> {
    let place = rustix::fs::open(point, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let wanted = StatxFlags::TYPE | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(&place, "", AtFlags::EMPTY_PATH, wanted)?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    if found.stx_mnt_id != id {
        return Err(Errno::STALE);
    }
    // The same place again, now for use: through its descriptor, so that it cannot change.
    match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&place, ".", flags, Mode::empty())
        }
        _ => Err(Errno::NOTDIR),
    }
}

/// Writes back everything that the file system holds in memory.
pub fn flush(fd: impl AsFd) -> Result<()> {
    rustix::fs::syncfs(fd)
}

/// Stops all writing to the file system; `BUSY`: it is frozen already.
#[allow(unsafe_code, reason = "an ioctl has no safe form")]
pub fn freeze(fd: impl AsFd) -> Result<()> {
    // SAFETY: this request takes no argument and touches no memory of this process.
    unsafe { ioctl(fd, NoArg::<FIFREEZE>::new()) }
}

/// Lets writing go on; `INVAL`: it was not frozen.
#[allow(unsafe_code, reason = "an ioctl has no safe form")]
pub fn thaw(fd: impl AsFd) -> Result<()> {
    loop {
        // SAFETY: this request takes no argument and touches no memory of this process.
        match unsafe { ioctl(&fd, NoArg::<FITHAW>::new()) } {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Thaws each of them at the same time: one whose disk hangs must not keep the others. `None`:
/// still at it after [`THAW_MAX`].
pub fn thaw_together(fds: &[Arc<OwnedFd>]) -> Vec<Option<Result<()>>> {
    let until = Instant::now() + THAW_MAX;
    let mut results = vec![None; fds.len()];
    let (sender, done) = channel();
    for (index, fd) in fds.iter().enumerate() {
        let (own, sender) = (Arc::clone(fd), sender.clone());
        let work = move || {
            let result = thaw(&own);
            // First the descriptor: who hears of it may unmount.
            drop(own);
            let _ = sender.send((index, result));
        };
        if thread::Builder::new().stack_size(STACK_BYTES).spawn(work).is_err() {
            results[index] = Some(thaw(fd));
        }
    }
    drop(sender);
    loop {
        match done.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((index, result)) => results[index] = Some(result),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return results,
        }
    }
}
