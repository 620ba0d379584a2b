//! The scene of a machine that starts itself anew, with an emulated NVMe disk: qemu counts its write
//! commands from its own start on, so the count goes on over the guest's.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::kernel::Kernel;
use super::machine::Machine;
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
    let drive = format!("if=none,id=nvme,format=raw,discard=unmap,file={}", mirrored.display());
    let more = ["-drive", &drive, "-device", "nvme,drive=nvme,serial=dormouse-1"];
    let more = more.map(str::to_owned);
    let status = Machine::boot_with(&kernel.file(), &initrd, &[&state], &more)?.wait(LIMIT, log)?;
    ensure!(status == 0, "the script has ended with status {status}");
    ensure!(log.matches(AGAIN).count() == STARTS, "it was not started anew {STARTS} times");
    Ok(())
}
