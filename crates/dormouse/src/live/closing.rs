//! A clean close, and the start after it: whether a reboot needs a scan.
//!
//! Owns: when what is known of a disk may be kept, and what it is worth at the next start. Invariants:
//! it is kept only if the marks and the copy together were the disk at the moment of its count; it is
//! taken away, durably, before it is used, so that no start finds that of an older close; a disk that
//! does not pass is scanned. Leaves to others: the judgement ([`dormouse_track::closed`]).

use std::fs::File;

use anyhow::Result;
use dormouse_crypt::hash::body_check;
use dormouse_crypt::{OsRandom, Random};
use dormouse_format::VolumeId;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_track::closed::{Closed, Count, Look, Samples, Trust, Why, judge};
use dormouse_track::device::Disk;
use dormouse_track::dirty::Dirty;
use dormouse_track::early;
use dormouse_track::ebpf::Watch;
use dormouse_track::look::look;
use dormouse_track::marks::Marks;
use dormouse_track::record::Record;
use dormouse_track::sleep::Slept;

use super::swap::mark;
use crate::daemon::config::AfterReboot;
use crate::home::Home;
use crate::source::{AlignedBuf, Source};

/// Blocks with content that are read at the close, and compared at the start.
const SAMPLES: usize = 128;
/// So many are tried: on an empty disk most are zero, and say nothing.
const TRIES: usize = 1024;
/// How often a close waits for other writes to end.
const SETTLES: usize = 3;

/// Keeps in the home what spares the next start a scan, also after a reboot. What was done, for people.
pub(super) fn keep(
    home: &Home,
    (disk, source): (&Disk, &Source),
    watch: &Watch,
    after: AfterReboot,
) -> Result<String> {
    let scan = |why: &str| Ok(format!("after a reboot all will be compared: {why}"));
    let closed = match close(disk, source, watch, after) {
        Ok(closed) => closed,
        Err(why) => return scan(&why),
    };
    if !home.keep_closed(&closed)? {
        return scan("too much is marked");
    }
    // The home may lie on the disk, or a file system of it be in use.
    if writes(&look(disk, source.file())) != writes(&closed.look) {
        home.forget_closed(&VolumeId(closed.volume))?;
        return scan(
            "it is being written to: by a file system on it, or because the home lies there",
        );
    }
    let count = closed.look.counted.map(|counted| counted.count).unwrap_or_default();
    let summary = summary(&closed.dirty, &count);
    Ok(format!("closed: {summary}; after a reboot only that is sent, if no more is counted"))
}

/// What is known of a disk at a clean close, or why there is no use in keeping it.
fn close(
    disk: &Disk,
    source: &Source,
    watch: &Watch,
    after: AfterReboot,
) -> std::result::Result<Closed, String> {
    let marks = &watch.marks().map_err(|e| e.to_string())?;
    let record = marks.record().filter(|r| r.complete && r.seq > 0);
    let record = record.ok_or("the disk was never compared as a whole")?;
    if record.everything != marks.everything()
        || marks.beyond() > 0
        || record.slept.hibernated(&Slept::now(), false)
    {
        return Err("not all that was written is marked".into());
    }
    let look = settled_look(disk, source.file())?;
    // A count that does not count here would keep nobody from a scan.
    judge(&look, &look, trust(after)).map_err(told)?;
    let samples = sample(source);
    // What was counted by now had left its mark when it was issued.
    // First what was discarded, and not read since: it may be marked now.
    let discarded = discarded(watch, marks);
    let all = marks.all_marked().or(&discarded);
    let Record { volume, head, seq, generation, .. } = record;
    Ok(Closed { volume, head, seq, generation, look, samples, dirty: all })
}

/// A look at a disk whose cache was flushed, and that nobody wrote to meanwhile.
fn settled_look(disk: &Disk, device: &File) -> std::result::Result<Look, String> {
    let mut before = look(disk, device);
    for _ in 0..SETTLES {
        // What is only in the disk's cache may be lost with the power, and is in the copy.
        rustix::fs::fsync(device).map_err(|e| format!("the disk cannot be flushed: {e}"))?;
        let after = look(disk, device);
        if writes(&after) == writes(&before) {
            return Ok(after);
        }
        before = after;
    }
    Err("it is being written to".into())
}

fn writes(look: &Look) -> Option<u64> {
    look.counted.as_ref().map(|counted| counted.count.writes)
}

/// Blocks here and there, the first and the last, and their checks.
fn sample(source: &Source) -> Samples {
    let blocks = source.size() / BLOCK_SIZE as u64;
    let mut samples = Samples { salt: OsRandom.array(), blocks: Vec::new() };
    let some = (0..TRIES).map(|_| u64::from_le_bytes(OsRandom.array()) % blocks.max(1));
    let mut buffer = AlignedBuf::new(BLOCK_SIZE);
    for block in [0, blocks.saturating_sub(1)].into_iter().chain(some) {
        if samples.blocks.len() >= SAMPLES || blocks == 0 {
            break;
        }
        // One that cannot be read is told of elsewhere.
        if source.try_read(block * BLOCK_SIZE as u64, &mut buffer).is_ok()
            && buffer.iter().any(|byte| *byte != 0)
        {
            samples.blocks.push((block, check(&samples.salt, &buffer)));
        }
    }
    samples.blocks.sort_unstable();
    samples.blocks.dedup();
    samples
}

fn check(salt: &[u8; 16], block: &[u8]) -> [u8; 16] {
    body_check(&[salt, block].concat())
}

/// What was discarded, and may be something else than zeros.
fn discarded(watch: &Watch, marks: &Marks<'_>) -> Dirty {
    watch.ring().map(|ring| ring.all(marks).to_dirty()).unwrap_or_default()
}

/// The first sample that is not as it was, but for those that were written or discarded under an early
/// watch: a mark is set before the content changes.
fn changed(
    samples: &Samples,
    source: &Source,
    (marks, discarded): (&Marks<'_>, &Dirty),
) -> Option<u64> {
    let mut buffer = AlignedBuf::new(BLOCK_SIZE);
    let differs = |(block, was): &&(u64, [u8; 16])| {
        source.try_read(block * BLOCK_SIZE as u64, &mut buffer).is_err()
            || check(&samples.salt, &buffer) != *was
    };
    let seen = |block: u64| discarded.has(block) || marks.marked_of(&Dirty::of_blocks([block])) > 0;
    let mut all = samples.blocks.iter().filter(differs);
    all.find(|(block, _)| !seen(*block)).map(|(block, _)| *block)
}

/// A watch that has begun: the early one of this disk, or a new one; and what was seen of the disk
/// when it had just begun.
pub(super) fn begin(
    disk: &Disk,
    source: &Source,
    pins: &std::path::Path,
) -> Result<(Watch, Look), dormouse_track::Error> {
    if let Some((watch, note)) = early::adopt(disk, pins)? {
        return Ok((watch, note.back_then(look(disk, source.file()))));
    }
    let watch = Watch::begin(disk, pins)?;
    let seen = look(disk, source.file());
    Ok((watch, seen))
}

/// Goes on from a close, if nothing was written since; else why not.
pub(super) fn resume(
    closed: &Closed,
    volume: &VolumeId,
    now: &Look,
    (disk, source): (&Disk, &Source),
    watch: &Watch,
    after: AfterReboot,
) -> Result<std::result::Result<Count, String>> {
    let marks = watch.marks()?;
    let unexplained = || {
        let discarded = discarded(watch, &marks);
        changed(&closed.samples, source, (&marks, &discarded))
    };
    let judged = match judge(&closed.look, now, trust(after)) {
        Ok(()) => unexplained().map_or(Ok(()), |at| Err(Why::Content(at))),
        refused => refused,
    };
    let count = now.counted.as_ref().map(|counted| counted.count);
    let count = match (judged, count) {
        (Ok(()), Some(count)) if closed.volume == volume.0 => count,
        (Ok(()), _) => return Ok(Err("what was kept is of another volume".into())),
        (Err(why), _) => return Ok(Err(told(why))),
    };
    mark(&marks, &closed.dirty);
    marks.set_record(&Record {
        volume: volume.0,
        disk_sequence: disk.sequence,
        size: disk.size(),
        links: watch.links(),
        head: closed.head,
        seq: closed.seq,
        generation: closed.generation,
        complete: true,
        scanned: 0,
        // As it was when the watch began: an early one has that on record.
        everything: marks.record().map_or(0, |early| early.everything),
        slept: Slept::now(),
    });
    Ok(Ok(count))
}

const fn trust(after: AfterReboot) -> Trust {
    match after {
        AfterReboot::Prove => Trust::Proof,
        AfterReboot::Trust => Trust::Count,
    }
}

fn told(why: Why) -> String {
    match why.way_out() {
        "" => why.text(),
        way_out => format!("{} ({way_out})", why.text()),
    }
}

/// For people: what is kept, or was found.
pub(super) fn summary(dirty: &Dirty, count: &Count) -> String {
    format!("{} write commands, {} blocks are marked", count.writes, dirty.blocks())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicU64;

    use dormouse_track::disk_id::DiskId;
    use dormouse_track::marks::{CONTROL_WORDS, Range};

    use super::*;

    fn closed() -> Closed {
        let look = Look {
            boot: "one".into(),
            id: DiskId::from_text("size 4096\nserial 7\n").unwrap(),
            first: 0,
            sectors: 8,
            written: None,
            counted: None,
            emulated: false,
        };
        Closed {
            volume: [7; 16],
            head: [1; 32],
            seq: 3,
            generation: 2,
            look,
            samples: Samples::default(),
            dirty: Dirty::of_blocks([0]),
        }
    }

    #[test]
    fn what_is_kept_is_there_for_one_start() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path().to_owned())).unwrap();
        let (closed, volume) = (closed(), VolumeId([7; 16]));
        assert_eq!(home.closed(&volume), None);
        for _ in 0..2 {
            assert!(home.keep_closed(&closed).unwrap());
            assert_eq!(home.closed(&volume).as_ref(), Some(&closed));
            home.forget_closed(&volume).unwrap();
            assert_eq!(home.closed(&volume), None);
        }
        // One that does not hold is none, and can be taken away all the same.
        home.keep_closed(&closed).unwrap();
        let path = dir.path().join(format!("closed/{volume}"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("dirty 0 1\n", "")).unwrap();
        assert_eq!(home.closed(&volume), None);
        home.forget_closed(&volume).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_disk_that_was_emptied_does_not_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[5; 1 << 20], 1 << 20).unwrap();
        file.write_all_at(&[6; 4096], (8 << 20) - 4096).unwrap();
        let source = Source::open_shared(&path).unwrap();
        let samples = sample(&source);
        assert!(samples.blocks.len() > 20, "an eighth of it has content: {samples:?}");
        assert!(samples.blocks.iter().any(|(block, _)| *block == 2047), "the last one");
        let memory = |words: usize| -> Vec<AtomicU64> { (0..words).map(|_| 0.into()).collect() };
        let (control, bits) = (memory(CONTROL_WORDS), memory(64));
        let range = Range { dev: 1, first: 0, sectors: (8 << 20) / 512, whole: true };
        Marks::prepare(&control, &range);
        let (marks, none) = (Marks::over(&control, &bits).unwrap(), Dirty::default());
        assert_eq!(changed(&samples, &source, (&marks, &none)), None);
        file.write_all_at(&[0; 1 << 20], 1 << 20).unwrap();
        assert_eq!(changed(&samples, &source, (&marks, &none)), Some(samples.blocks[0].0));
        // What was seen to be written is sent anyway.
        marks.mark(256, 100);
        let first = samples.blocks.iter().map(|(block, _)| *block).find(|block| *block >= 356);
        assert_eq!(changed(&samples, &source, (&marks, &none)), first.filter(|block| *block < 512));
        let rest = Dirty::of_range(356..512);
        assert_eq!(changed(&samples, &source, (&marks, &rest)), None, "discarded under it");
        marks.mark(256, 256);
        assert_eq!(changed(&samples, &source, (&marks, &none)), None);
        file.set_len(0).unwrap();
        marks.clear();
        assert!(changed(&samples, &source, (&marks, &none)).is_some(), "what cannot be read");
    }
}
