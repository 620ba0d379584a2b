//! Scenes in which a machine loses its power in the middle of writes to an attached disk; the next
//! one must find everything that was flushed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::machine::Machine;
use super::{LIMIT, disk, image};

/// A scene of two machines.
pub struct Scene {
    /// What it is called.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// Writes until the power goes.
    writes: &'static str,
    /// Judges what is left; `$AT_LEAST` was flushed.
    judges: &'static str,
    /// Bytes of /dev/vda.
    disk: u64,
}

/// All of them.
pub const SCENES: &[Scene] = &[
    Scene {
        name: "power",
        what: "power cut in the middle of writes by ublk: what was flushed is there",
        writes: include_str!("scenes/power_write.sh"),
        judges: include_str!("scenes/power_verify.sh"),
        disk: 16 << 20,
    },
    Scene {
        name: "power-volume",
        what: "the same for a network disk: here and in the store it is as it was after some write",
        writes: include_str!("scenes/volume_write.sh"),
        judges: include_str!("scenes/volume_verify.sh"),
        disk: 512 << 20,
    },
];

/// Flushes that must have returned before the power goes.
const FLUSHES: usize = 40;

pub fn play(scene: &Scene, kernel: &Kernel, place: &Path, log: &mut String) -> Result<()> {
    let disk = disk(place, &format!("{}.disk", scene.name), scene.disk)?;
    let initrd = place.join(format!("{}.initrd", scene.name));
    image(kernel, &["ublk_drv"], scene.writes)?.write(&initrd)?;
    let mut machine = Machine::boot(&kernel.file(), &initrd, &[&disk])?;
    machine.wait_for(LIMIT, |said| said.matches("flushed ").count() >= FLUSHES)?;
    // Not right after a flush.
    std::thread::sleep(Duration::from_millis(37));
    let said = machine.cut_power()?;
    let flushed = last_flushed(&said).context("no flush was told of")?;
    log.push_str(&format!("power cut after write {flushed} was flushed\n"));
    let script = format!("AT_LEAST={flushed}\n{}", scene.judges);
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
