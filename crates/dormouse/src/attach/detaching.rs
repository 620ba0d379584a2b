//! Takes an attached disk away, whether its process lives or not.
//!
//! Invariants: nothing is changed while somebody uses the disk, unless that is forced; nothing is
//! waited for without a bound.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_device::kernel::Via;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::record::{Record, Records};
use super::{holders, mount, serving};
use crate::exit::{Class, Failure, fail};

/// How long an unmount may take: it writes back.
const UNMOUNT: Duration = Duration::from_secs(20);
/// How long the process may take; its own limits are below that.
const STOP: Duration = Duration::from_secs(30);
/// After a kill, and for the removal of what a dead process has left.
const KILLED: Duration = Duration::from_secs(10);

/// Takes it away.
pub fn detach(record: &Record, records: &Records, force: bool) -> Result<()> {
    unmount(record, force)?;
    if !force {
        let users = holders::of_device(&record.device, record.pid);
        if !users.is_empty() {
            return in_use(&record.device, &users);
        }
    }
    if let Some(process) = record.process() {
        end(&process)?;
    }
    // The process has removed its record if all went well.
    let Some(left) = records.all()?.into_iter().find(|left| left.device == record.device) else {
        return Ok(());
    };
    let Ok(_lock) = records.lock(&record.device)? else {
        return fail(
            Class::InUse,
            format!("{} is being served again", record.device.display()),
            "try again",
        );
    };
    if let Some(via) = left.via().filter(|via| via.is_there(left.number, &left.label)) {
        remove(via, left.number)
            .with_context(|| format!("cannot take {} away", record.device.display()))?;
    }
    records.remove(&record.device)?;
    match left.failed {
        Some(failed) => {
            let text = format!("{} is detached, but: {failed}", record.device.display());
            fail(Class::Other, text, "what was written last may not be on the disk")
        }
        None => Ok(()),
    }
}

fn in_use<T>(what: &Path, users: &[String]) -> Result<T> {
    let text = format!("{} is in use: {}", what.display(), users.join("; "));
    fail(
        Class::InUse,
        text,
        "unmount it or end what uses it, then try again;\n`--force` takes it away all the same, and whoever uses it gets errors",
    )
}

/// Unmounts what `--mount` has mounted, if it still is.
fn unmount(record: &Record, force: bool) -> Result<()> {
    let Some(dir) = record.mount.as_deref().filter(|dir| serving::is_mounted(&record.device, dir))
    else {
        return Ok(());
    };
    let (done, ended) = channel();
    let place = dir.to_owned();
    std::thread::Builder::new().name("unmount".into()).spawn(move || {
        let _ = done.send(mount::unmount(&place, false));
    })?;
    let wait = if force { UNMOUNT / 4 } else { UNMOUNT };
    match ended.recv_timeout(wait) {
        // It was not mounted any more.
        Ok(Ok(()) | Err(Errno::INVAL)) => Ok(()),
        Ok(Err(_)) | Err(_) if force => {
            // In use, or waiting for a server that is away: it goes when that ends.
            let _ = mount::unmount(dir, true);
            Ok(())
        }
        Ok(Err(Errno::BUSY)) => in_use(dir, &holders::of_mount(dir)),
        Ok(Err(e)) => Err(std::io::Error::from(e))
            .with_context(|| format!("cannot unmount {}", dir.display())),
        Err(_) => Err(Failure::new(
            Class::Unreachable,
            format!(
                "{} is not unmounted after {} s: is the server away?",
                dir.display(),
                wait.as_secs()
            ),
        )
        .hint("`--force` takes it away all the same")
        .into()),
    }
}

/// Ends the process that serves: it is asked, then killed.
fn end(process: &OwnedFd) -> Result<()> {
    for (signal, patience) in [(Signal::TERM, STOP), (Signal::KILL, KILLED)] {
        match pidfd_send_signal(process, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(std::io::Error::from(e)).context("cannot end its process"),
        }
        if has_ended(process, patience) {
            return Ok(());
        }
    }
    fail(
        Class::InUse,
        "its process does not end, although it was killed",
        "the kernel's log (dmesg) may say why",
    )
}

fn has_ended(process: &OwnedFd, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(process, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(_) => {}
        }
    }
}

/// Removes what a dead process has left.
fn remove(via: Via, number: u32) -> Result<()> {
    let (done, ended) = channel();
    std::thread::Builder::new().name("remove".into()).spawn(move || {
        let _ = done.send(via.remove(number));
    })?;
    match ended.recv_timeout(KILLED) {
        Ok(removed) => Ok(removed?),
        Err(_) => fail(
            Class::InUse,
            "the kernel does not let go of it",
            "whoever has it open gets errors from now on; it goes when they close it",
        ),
    }
}
