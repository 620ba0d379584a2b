//! What the process that serves a disk is like: it must go on when memory is short, since memory
//! may only become free by writing to its disk.
//!
//! Leaves to others: what is served. What is not allowed is left; it is said in the log.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use dormouse_track::freeze::{Locked, lock_memory};
use rustix::event::{PollFd, PollFlags, poll};

/// Killed last of all but what must never be.
const OOM_SCORE: &str = "-900";

/// Prepares this process, before it has other threads: they inherit a part of it. What could not
/// be had.
pub fn prepare() -> Vec<String> {
    let mut missing = Vec::new();
    // Its own requests for memory do not wait for writes to its own disk.
    if let Err(e) = rustix::process::configure_io_flusher_behavior(true) {
        missing
            .push(format!("the kernel does not treat this process as one that writes back: {e}"));
    }
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        missing.push(format!("it may be killed when memory is short: {e}"));
    }
    if let Err(e) = lock_memory().map(Locked::for_ever) {
        missing.push(format!("its memory may be swapped out: {e}"));
    }
    missing
}

/// Waits until nobody reads standard output any more.
pub fn wait_for_orphaning() {
    let out = std::io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    while !matches!(poll(&mut fds, None), Ok(1..)) {}
}

/// Lets go of the caller: standard output is closed, standard error goes to a file.
pub fn let_go(log: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let log = File::options().create(true).write(true).truncate(true).mode(0o600).open(log);
    let log = log.context("cannot make the log")?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    std::io::stdout().flush()?;
    rustix::stdio::dup2_stderr(log.as_fd())?;
    rustix::stdio::dup2_stdout(nothing.as_fd())?;
    Ok(())
}
