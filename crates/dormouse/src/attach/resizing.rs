//! Another size for a volume that is attached and written.
//!
//! Owns: how the wish gets to the process that serves it, and the answer back: a file beside its
//! record, and a signal. Invariant: the one who asks is told what came of it, or that nobody
//! answers.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_device::BlockDevice;
use dormouse_device::kernel::Front;
use rustix::process::{Signal, pidfd_send_signal};

use super::record::{Record, Records};
use crate::create;
use crate::exit::{Class, fail};
use crate::netdisk::NetDisk;

/// How long the process may take.
const ANSWER: Duration = Duration::from_secs(15);
const DONE: &str = "done";
const FAILED: &str = "failed: ";

/// Has the process that serves a volume give it another size; the old one. `None` if it is not
/// attached for writing.
pub fn ask(volume: &str, size: u64, shrink: bool) -> Result<Option<u64>> {
    let records = Records::locate();
    let serves = |r: &Record| r.written && r.volume == volume;
    let Some(record) = records.all()?.into_iter().find(serves) else { return Ok(None) };
    let Some(process) = record.process() else { return Ok(None) };
    create::check_shrink(volume, record.size, size, shrink)?;
    records.write_wish(&record.device, &size.to_string())?;
    pidfd_send_signal(&process, Signal::USR1)
        .map_err(std::io::Error::from)
        .context("cannot tell the process that serves the disk")?;
    let until = Instant::now() + ANSWER;
    while Instant::now() < until {
        let answer = records.wish(&record.device)?.unwrap_or_default();
        if answer == DONE {
            records.remove_wish(&record.device)?;
            return Ok(Some(record.size));
        }
        if let Some(why) = answer.strip_prefix(FAILED) {
            records.remove_wish(&record.device)?;
            return fail(
                Class::Other,
                format!("{} keeps its size: {why}", record.device.display()),
                "detach it, and resize the volume then",
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fail(
        Class::InUse,
        format!("the process that serves {} does not answer", record.device.display()),
        "`dormouse attached` shows it; its log lies beside its record",
    )
}

/// Does what was asked for; the new size, if there is one.
pub fn answer(
    records: &Records,
    device: &Path,
    disk: Option<&NetDisk>,
    front: &dyn Front,
) -> Result<Option<u64>> {
    let Some(wish) = records.wish(device)?.and_then(|text| text.parse::<u64>().ok()) else {
        return Ok(None);
    };
    let done = match disk {
        None => Err("it is not written".to_owned()),
        Some(disk) => {
            disk.resize(wish).and_then(|()| front.resized()).map_err(|error| error.to_string())
        }
    };
    let text = match &done {
        Ok(()) => DONE.to_owned(),
        Err(why) => format!("{FAILED}{why}"),
    };
    records.write_wish(device, &text)?;
    Ok(done.is_ok().then_some(wish))
}
