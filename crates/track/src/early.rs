//! A watch that is begun before anybody knows whose it is: in an initramfs, before root is mounted.
//!
//! Owns: where it is pinned, and what is noted beside its marks: what the disk had counted when the
//! watch had just begun. Invariant: a watch is adopted only if nothing broke it since, and it is of
//! exactly what the mirror watches. Leaves to others: what the note proves ([`crate::closed`]).

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::closed::{Count, Look};
use crate::device::{Disk, Written};
use crate::ebpf::{self, Watch};
use crate::error::Result;
use crate::look::look;
use crate::marks::Marks;
use crate::record::Record;
use crate::sleep::Slept;

/// Words of a note.
pub const NOTE_WORDS: usize = 12;
/// 'noticed' and the version, 1.
const MAGIC: u64 = u64::from_be_bytes(*b"noticed\x01");

/// What the disk had counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// By this kernel.
    pub written: Option<Written>,
    /// By the disk.
    pub count: Option<Count>,
}

impl Note {
    fn of(look: &Look) -> Self {
        Self { written: look.written, count: look.counted.as_ref().map(|c| c.count) }
    }

    /// The look that would have been had when this was noted.
    #[must_use]
    pub fn back_then(&self, now: Look) -> Look {
        let counted = now.counted.zip(self.count).map(|(mut counted, count)| {
            counted.count = count;
            counted
        });
        Look { written: self.written, counted, ..now }
    }

    fn encode(&self) -> [u64; NOTE_WORDS] {
        let w = self.written.unwrap_or_default();
        let c = self.count.unwrap_or_default();
        let known = u64::from(self.written.is_some()) | u64::from(self.count.is_some()) << 1;
        let of_disk = [c.writes, c.reads, c.power_cycles, c.unsafe_shutdowns, c.used];
        let [writes, reads, power_cycles, unsafe_shutdowns, used] = of_disk;
        [
            MAGIC,
            known,
            w.writes,
            w.sectors,
            w.discards,
            w.flushes,
            writes,
            reads,
            power_cycles,
            unsafe_shutdowns,
            used,
            0,
        ]
    }

    fn decode(words: &[u64; NOTE_WORDS]) -> Option<Self> {
        let [magic, known, writes, sectors, discards, flushes, rest @ ..] = *words;
        if magic != MAGIC || known > 3 {
            return None;
        }
        let written = Written { writes, sectors, discards, flushes };
        let [writes, reads, power_cycles, unsafe_shutdowns, used, _] = rest;
        let count = Count { writes, reads, power_cycles, unsafe_shutdowns, used };
        let has = |bit: u64| known & bit != 0;
        Some(Self { written: has(1).then_some(written), count: has(2).then_some(count) })
    }
}

/// Where an early watch of a disk, or of a part of one, is pinned.
fn place(disk: &Disk) -> PathBuf {
    let (major, minor) = (rustix::fs::major(disk.rdev), rustix::fs::minor(disk.rdev));
    ebpf::place().join(format!("early-{major}-{minor}"))
}

/// Begins to watch a disk, and notes what it had counted by then. Does nothing if that was done.
pub fn pin(disk: &Disk, device: impl AsFd) -> Result<Note> {
    if let Some((_, note)) = find(disk)? {
        return Ok(note);
    }
    let watch = Watch::begin(disk, &place(disk))?;
    let marks = watch.marks()?;
    // First it is watched, then it is looked: what is written in between is marked, and counted.
    let note = Note::of(&look(disk, device));
    marks.set_note(&note.encode());
    marks.set_record(&record(disk, &watch, &marks));
    Ok(note)
}

fn record(disk: &Disk, watch: &Watch, marks: &Marks<'_>) -> Record {
    Record {
        volume: [0; 16],
        disk_sequence: disk.sequence,
        size: disk.size(),
        links: watch.links(),
        head: [0; 32],
        seq: 0,
        generation: 0,
        complete: true,
        scanned: 0,
        everything: marks.everything(),
        slept: Slept::now(),
    }
}

fn find(disk: &Disk) -> Result<Option<(Watch, Note)>> {
    let Ok((watch, _)) = Watch::find(disk, &place(disk), &[0; 16])? else { return Ok(None) };
    let marks = watch.marks()?;
    let note = marks.note().filter(|_| marks.beyond() == 0).and_then(|n| Note::decode(&n));
    Ok(note.map(|note| (watch, note)))
}

/// Takes over the early watch of a disk, if there is one without a gap; it is pinned at `directory`
/// from then on. One with a gap is ended.
pub fn adopt(disk: &Disk, directory: &Path) -> Result<Option<(Watch, Note)>> {
    match find(disk)? {
        Some((mut watch, note)) => {
            watch.move_to(directory)?;
            Ok(Some((watch, note)))
        }
        None => {
            end(disk)?;
            Ok(None)
        }
    }
}

/// Ends the early watch of a disk, if there is one.
pub fn end(disk: &Disk) -> Result<()> {
    ebpf::remove(&place(disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_nothing_else_is_one() {
        let written = Written { writes: 1, sectors: 2, discards: 3, flushes: 4 };
        let count = Count { writes: 5, reads: 6, power_cycles: 7, unsafe_shutdowns: 8, used: 9 };
        for written in [None, Some(written)] {
            for count in [None, Some(count)] {
                let note = Note { written, count };
                assert_eq!(Note::decode(&note.encode()), Some(note));
            }
        }
        let mut words = Note { written: None, count: None }.encode();
        words[1] = 4;
        assert_eq!(Note::decode(&words), None);
        assert_eq!(Note::decode(&[0; NOTE_WORDS]), None);
    }
}
