//! Which disk is meant: the one that was copied into the volume before, whatever it is called now.
//!
//! Owns: looking at a disk's identity, finding the disk of a volume among those that are there, and
//! the refusal of another one. Invariant: what is not known to be another disk is not refused; what is
//! known to be another is never copied into the volume unasked. Leaves to others: by what a disk is
//! known ([`dormouse_track::disk_id`]), and where that is kept ([`crate::home`]).

use std::path::Path;

use anyhow::Result;
use dormouse_track::device::Disk;
use dormouse_track::disk_id::{DiskId, HEAD, Verdict};

use crate::exit::{Class, Failure};
use crate::source::{ALIGN, AlignedBuf, Source};

/// By what a disk is known, with what lies on it.
pub fn id_of(disk: &Disk) -> Result<DiskId> {
    Ok(of_source(disk, &Source::open_shared(&disk.path)?))
}

/// The same, of a disk that is open. What cannot be read counts for nothing.
pub fn of_source(disk: &Disk, source: &Source) -> DiskId {
    let mut head = AlignedBuf::new(HEAD.min(source.size() as usize).next_multiple_of(ALIGN));
    if source.read_at(0, &mut head).is_err() {
        for at in (0..head.len()).step_by(ALIGN) {
            if source.read_at(at as u64, &mut head[at..at + ALIGN]).is_err() {
                head[at..at + ALIGN].fill(0);
            }
        }
    }
    DiskId::of(disk, &head)
}

/// An error if this is another disk than the one that was recorded.
pub fn must_be(volume: &str, recorded: &DiskId, found: &DiskId, device: &Path) -> Result<()> {
    match recorded.judge(found) {
        Verdict::Same | Verdict::Unknown => Ok(()),
        Verdict::Other => Err(other(volume, recorded, found, device)),
    }
}

fn other(volume: &str, recorded: &DiskId, found: &DiskId, device: &Path) -> anyhow::Error {
    let shown = device.display();
    let message = format!(
        "{shown} is another disk than the one in '{volume}': it has {}; that one had {}",
        found.told(),
        recorded.told()
    );
    Failure::new(Class::Place, message)
        .hint(format!(
            "is the right one there? /dev/disk/by-id has names that stay with a disk;\n\
             if it is meant (replaced, made anew): `dormouse mirror {shown} --volume {volume} --same-disk`, once"
        ))
        .into()
}

/// The disk of a volume: the one that is named, if it is not another one; else the one that
/// was recorded, if it is there under any name.
pub fn find(
    volume: &str,
    named: Result<Disk>,
    recorded: Option<&DiskId>,
    device: &Path,
) -> Result<Disk> {
    let Some(recorded) = recorded else { return named };
    let refusal = match named {
        Ok(disk) => match must_be(volume, recorded, &id_of(&disk)?, device) {
            Ok(()) => return Ok(disk),
            Err(refusal) => refusal,
        },
        Err(error) => error,
    };
    let mut all: Vec<Disk> = Disk::all().into_iter().filter(|d| is_it(recorded, d)).collect();
    match (all.pop(), all.is_empty()) {
        (Some(disk), true) => Ok(disk),
        (Some(disk), false) => {
            all.push(disk);
            let names: Vec<_> = all.iter().map(|d| d.path.display().to_string()).collect();
            Err(refusal.context(format!(
                "the disk of '{volume}' may be any of {}: name one of them",
                names.join(", ")
            )))
        }
        (None, _) => Err(refusal),
    }
}

/// Whether it is certainly that disk. What lies on it is looked at only where that decides.
fn is_it(recorded: &DiskId, disk: &Disk) -> bool {
    let verdict = recorded
        .judge_hardware(&DiskId::of_hardware(disk))
        .unwrap_or_else(|| id_of(disk).map_or(Verdict::Other, |found| recorded.judge(&found)));
    verdict == Verdict::Same
}
