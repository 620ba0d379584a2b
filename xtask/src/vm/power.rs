//! The scene `power`: a machine loses its power in the middle of writes to an attached disk; the
//! next one must find everything that was flushed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::machine::Machine;
use super::{LIMIT, disk, image};

/// What it shows.
pub const WHAT: &str = "power cut in the middle of writes by ublk: what was flushed is there";

const WRITES: &str = include_str!("scenes/power_write.sh");
const JUDGES: &str = include_str!("scenes/power_verify.sh");
/// Flushes that must have returned before the power goes.
const FLUSHES: usize = 40;

pub fn play(kernel: &Kernel, place: &Path, log: &mut String) -> Result<()> {
    let disk = disk(place, "power.disk", 16 << 20)?;
    let initrd = place.join("power.initrd");
    image(kernel, &["ublk_drv"], WRITES)?.write(&initrd)?;
    let mut machine = Machine::boot(&kernel.file(), &initrd, &[&disk])?;
    machine.wait_for(LIMIT, |said| said.matches("flushed ").count() >= FLUSHES)?;
    // Not right after a flush.
    std::thread::sleep(Duration::from_millis(37));
    let said = machine.cut_power()?;
    let flushed = last_flushed(&said).context("no flush was told of")?;
    log.push_str(&format!("power cut after write {flushed} was flushed\n"));
    let script = format!("AT_LEAST={flushed}\n{JUDGES}");
    image(kernel, &["ublk_drv"], &script)?.write(&initrd)?;
    let status = Machine::boot(&kernel.file(), &initrd, &[&disk])?.wait(LIMIT, log)?;
    ensure!(status == 0, "the disk is not as it was flushed");
    Ok(())
}

/// The last whole line `flushed N`: the newest may have been cut.
fn last_flushed(said: &str) -> Option<u64> {
    let (whole, _) = said.rsplit_once('\n')?;
    whole.lines().rev().find_map(|line| line.strip_prefix("flushed ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_does_not_count() {
        assert_eq!(last_flushed("x\nflushed 12\nflushed 3"), Some(12));
        assert_eq!(last_flushed("flushed 12\nflushed 31\n"), Some(31));
        assert_eq!(last_flushed("flushed 12"), None);
    }
}
