//! Whether a disk was written while nothing watched it: across a reboot, above all.
//!
//! Owns: what is kept of a disk when its mirror is closed ([`Closed`]), what is looked at then and
//! when it is watched again ([`Look`]), and the judgement ([`judge`]). Invariant: `Ok` is said only
//! where every reason of [`Why`] was looked for and not found; whatever is not known is a reason. No
//! I/O. Leaves to others: asking the disk ([`crate::nvme`]), reading samples, and keeping the text.
//!
//! **What proves it.** An NVMe disk counts the write commands that it has completed, of every host,
//! for its whole life (Host Write Commands of its health page). At the close the count is taken, the
//! disk's cache is flushed, and the count is found to be the same; then the marks are taken. A write
//! that was counted had left its mark when it was issued, so the marks and the copy together are the
//! disk as of that count. Whoever watches anew first marks, and then looks at the count: if it is
//! the same, nobody has written in between.
//!
//! **What can lie, and what is done about it.**
//! - *Data Units Written* is in thousands of sectors, rounded up: not used.
//! - The count does not have to include discards (Dataset Management), Write Zeroes, Write
//!   Uncorrectable, Copy, Format or Sanitize. So it proves nothing of a disk that knows one of these
//!   ([`Counted::uncounted`]), and that is almost every one: [`Trust::Proof`] then says
//!   [`Why::Uncounted`]. [`Trust::Count`] is the user's word that nobody discards or zeroes parts of
//!   the disk without writing to it: a file system that is mounted and trimmed writes, too. What
//!   still shows is looked at: this kernel's own count of discards, the disk's own measure of what
//!   is in use, and samples of the content, which an emptied disk does not pass.
//! - A count that was not saved before the power went may come back lower, and meet the old one
//!   again: a power cut since the close ([`Count::unsafe_shutdowns`]) is a reason.
//! - A count that starts anew (an emulator, new firmware, another disk): reads and power cycles must
//!   not have gone back, the firmware and all numbers of the disk must be the same.
//! - Several controllers before one namespace count each for itself; so do those of a fabric.
//! - The disk of a virtual machine can be written, or put back to an older state, from outside, and
//!   its count knows nothing of that: [`Why::Emulated`], unless the user trusts it.
//! - Loop, virtio, SATA and SCSI disks have no such count here: [`Why::NoCount`].

#[cfg(test)]
mod tests;
mod text;

use crate::device::Written;
use crate::dirty::Dirty;
use crate::disk_id::{DiskId, Verdict};

/// What a disk has counted in its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Write commands.
    pub writes: u64,
    /// Read commands.
    pub reads: u64,
    /// How often it was switched on.
    pub power_cycles: u64,
    /// How often its power went without notice.
    pub unsafe_shutdowns: u64,
    /// Blocks of the namespace that are in use: no count, but what it measures.
    pub used: u64,
}

/// A disk that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Serial number of the controller.
    pub serial: String,
    /// Its model.
    pub model: String,
    /// Its firmware.
    pub firmware: String,
    /// Which of its namespaces.
    pub namespace: u32,
    /// Blocks of the namespace.
    pub blocks: u64,
    /// It may be written by ways that this controller does not count.
    pub shared: bool,
    /// It knows commands that change content, and need not be counted.
    pub uncounted: bool,
    /// The count.
    pub count: Count,
}

/// What is seen of a disk at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The kernel's id of this boot.
    pub boot: String,
    /// By what the disk is known.
    pub id: DiskId,
    /// First sector of what is tracked.
    pub first: u64,
    /// Its sectors.
    pub sectors: u64,
    /// What this kernel has written to it since the disk appeared; none if it does not count.
    pub written: Option<Written>,
    /// What the disk says of itself; none if it has no count.
    pub counted: Option<Counted>,
    /// This is a virtual machine.
    pub emulated: bool,
}

/// What was read of a disk at its close, to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Samples {
    /// What goes into each check, so that it says nothing of the content to others.
    pub salt: [u8; 16],
    /// Blocks, and the check of each.
    pub blocks: Vec<(u64, [u8; 16])>,
}

/// What is kept of a mirror that was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The volume.
    pub volume: [u8; 16],
    /// The newest point that the server has acknowledged.
    pub head: [u8; 32],
    /// Its number.
    pub seq: u64,
    /// The right to write under which the next point would have been made.
    pub generation: u64,
    /// What was seen.
    pub look: Look,
    /// What was read.
    pub samples: Samples,
    /// Blocks that the server lacks.
    pub dirty: Dirty,
}

/// What is taken for a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// A count that nothing can pass by.
    Proof,
    /// The disk's count of write commands.
    Count,
}

/// Why the disk may have been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It has no count that says.
    NoCount,
    /// It is another disk, or another part of it.
    OtherDisk,
    /// It has another size.
    OtherSize,
    /// It has other firmware, which may count otherwise.
    Firmware,
    /// It can be written by ways that are not counted here.
    Shared,
    /// So often, since the close.
    Written(u64),
    /// A number that only grows has become less.
    WentBack,
    /// Its power went without notice since.
    PowerCut,
    /// More or less of it is in use.
    Used,
    /// This kernel has written to it, or discarded, since the close.
    WrittenHere,
    /// This kernel does not count what it writes.
    NoStatistics,
    /// It knows commands that change content and need not be counted.
    Uncounted,
    /// It is the disk of a virtual machine.
    Emulated,
    /// A block that was read has another content.
    Content(u64),
}

impl Why {
    /// For people.
    pub fn text(self) -> String {
        match self {
            Self::NoCount => "the disk has no count of writes that could prove it".into(),
            Self::OtherDisk => "it is another disk, or another part of it".into(),
            Self::OtherSize => "the disk has another size".into(),
            Self::Firmware => "the disk has other firmware".into(),
            Self::Shared => "the disk can be written by ways that are not counted".into(),
            Self::Written(1) => "the disk was written once since".into(),
            Self::Written(n) => format!("the disk was written {n} times since"),
            Self::WentBack => "the disk's counts have begun anew".into(),
            Self::PowerCut => "the disk's power went without notice since".into(),
            Self::Used => "the disk says that another part of it is in use".into(),
            Self::WrittenHere => "this system has written to the disk or discarded since".into(),
            Self::NoStatistics => "this kernel does not count what it writes to the disk".into(),
            Self::Uncounted => {
                "the disk knows commands that discard or zero without being counted as writes"
                    .into()
            }
            Self::Emulated => "the disk of a virtual machine can be changed from outside".into(),
            Self::Content(block) => format!("block {block} has another content"),
        }
    }

    /// What can be done so that the next start needs no scan; empty where nothing can.
    pub const fn way_out(self) -> &'static str {
        match self {
            Self::Uncounted | Self::Emulated => {
                "after-reboot = \"trust\" goes by the disk's count of write commands all the same"
            }
            Self::Written(_) | Self::WrittenHere => {
                "it is mounted before the tracker is there, or was after the mirror had ended: see \
                 docs/reboot.md"
            }
            _ => "",
        }
    }
}

/// Whether nothing was written between two looks at a disk; if it may have been, why.
pub fn judge(closed: &Look, now: &Look, trust: Trust) -> Result<(), Why> {
    if closed.id.judge_hardware(&now.id) != Some(Verdict::Same) || closed.first != now.first {
        return Err(if closed.counted.is_some() { Why::OtherDisk } else { Why::NoCount });
    }
    if closed.sectors != now.sectors || closed.id.size != now.id.size {
        return Err(Why::OtherSize);
    }
    let (Some(before), Some(after)) = (&closed.counted, &now.counted) else {
        return Err(Why::NoCount);
    };
    same_disk(before, after)?;
    same_count(&before.count, &after.count)?;
    nothing_here(closed, now)?;
    match trust {
        Trust::Count => Ok(()),
        Trust::Proof if closed.emulated || now.emulated => Err(Why::Emulated),
        Trust::Proof if before.uncounted || after.uncounted => Err(Why::Uncounted),
        Trust::Proof => Ok(()),
    }
}

fn same_disk(before: &Counted, after: &Counted) -> Result<(), Why> {
    let names = |c: &Counted| (c.serial.clone(), c.model.clone(), c.namespace);
    if names(before) != names(after) {
        return Err(Why::OtherDisk);
    }
    if before.blocks != after.blocks {
        return Err(Why::OtherSize);
    }
    if before.firmware != after.firmware {
        return Err(Why::Firmware);
    }
    if before.shared || after.shared {
        return Err(Why::Shared);
    }
    Ok(())
}

const fn same_count(before: &Count, after: &Count) -> Result<(), Why> {
    if after.writes < before.writes
        || after.reads < before.reads
        || after.power_cycles < before.power_cycles
        || after.unsafe_shutdowns < before.unsafe_shutdowns
    {
        return Err(Why::WentBack);
    }
    if after.writes > before.writes {
        return Err(Why::Written(after.writes - before.writes));
    }
    if after.unsafe_shutdowns > before.unsafe_shutdowns {
        return Err(Why::PowerCut);
    }
    if after.used != before.used {
        return Err(Why::Used);
    }
    Ok(())
}

/// What this kernel knows of itself: of the time since the close, or since it was started.
fn nothing_here(closed: &Look, now: &Look) -> Result<(), Why> {
    let (Some(before), Some(after)) = (closed.written, now.written) else {
        return Err(Why::NoStatistics);
    };
    let before = if closed.boot == now.boot { before } else { Written::default() };
    let changes = |w: &Written| (w.writes, w.sectors, w.discards);
    if changes(&before) == changes(&after) { Ok(()) } else { Err(Why::WrittenHere) }
}
