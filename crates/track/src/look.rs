//! Looks at a disk: all that [`crate::closed::judge`] goes by.
//!
//! Invariant: nothing is changed; what cannot be found out is said to be unknown. Leaves to others:
//! when to look, and what it proves.

use std::fs;
use std::os::fd::AsFd;

use crate::closed::Look;
use crate::device::Disk;
use crate::disk_id::DiskId;
use crate::nvme;

/// Looks at a disk; `device` is open for reading.
pub fn look(disk: &Disk, device: impl AsFd) -> Look {
    Look {
        boot: boot_id(),
        id: DiskId::of_hardware(disk),
        first: disk.range.first,
        sectors: disk.range.sectors,
        written: disk.written().ok().filter(|_| disk.counts_writes()),
        counted: nvme::counted(disk, device),
        emulated: is_emulated(),
    }
}

/// The kernel's id of this boot. Where there is none, each look is one of another boot.
fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.split_ascii_whitespace().next().unwrap_or("none").to_owned()
}

/// Whether a hypervisor runs this machine.
fn is_emulated() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let says = |line: &str| line.starts_with("flags") && line.contains(" hypervisor");
    // Where processors do not say it, there may be one all the same.
    !processors.lines().any(|line| line.starts_with("flags"))
        || processors.lines().any(says)
        || fs::exists("/sys/hypervisor/type").unwrap_or(true)
}
