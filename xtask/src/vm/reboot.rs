//! The scene of a machine that starts itself anew, with an emulated NVMe disk: each thing that spares
//! a scan, or asks for one, by itself. With the whole of Debian around it: [`super::data_disk`].

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::kernel::Kernel;
use super::machine::{Machine, nvme};
use super::{disk, image};

/// What it is called.
pub const NAME: &str = "reboot";
/// What it shows.
pub const WHAT: &str =
    "NVMe: a reboot without a scan; a scan if written or emptied unseen; watched early, none";
/// Seven starts of one machine.
const LIMIT: Duration = Duration::from_secs(600);
const STATE: u64 = 256 << 20;
const MIRRORED: u64 = 64 << 20;
/// The machine says so each time.
const AGAIN: &str = "AGAIN";
const STARTS: usize = 6;

pub fn play(kernel: &Kernel, place: &Path, log: &mut String) -> Result<()> {
    let state = disk(place, "reboot-state.disk", STATE)?;
    let mirrored = disk(place, "reboot-nvme.disk", MIRRORED)?;
    let initrd = place.join("reboot.initrd");
    image(kernel, &["nvme"], include_str!("scenes/reboot.sh"))?.write(&initrd)?;
    let machine = Machine::boot_with(&kernel.file(), &initrd, &[&state], "", &nvme(&mirrored))?;
    let status = machine.wait(LIMIT, log)?;
    ensure!(status == 0, "the script has ended with status {status}");
    ensure!(log.matches(AGAIN).count() == STARTS, "it was not started anew {STARTS} times");
    Ok(())
}
