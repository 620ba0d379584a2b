//! What was discarded of the mirrored disk: sent as zeros, unread; and looked at when nothing else is to do.
//!
//! Owns: when it is looked at, and how much at a time. Invariants: behind each cut the ring is drained,
//! before anything of that cut is forgotten; what is not zero when it is looked at is marked, and a pass
//! reads it. Leaves to others: the lists and why they are right ([`dormouse_track::discards`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_sync::live::Event;
use dormouse_track::dirty::Dirty;
use dormouse_track::discards::{Discarded, Ring, parts};
use dormouse_track::marks::Marks;
use dormouse_track::runs::Runs;

use super::disk::{Tracked, not_watched};
use crate::source::{AlignedBuf, Source};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// A look takes no longer, nor more than this: at most 64 MiB a second, a fifth of the time.
const LOOK_TIME: Duration = Duration::from_millis(50);
const LOOK_BYTES: u64 = 16 << 20;

static ZERO: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// What is zero in a pass, and not read for that.
pub(super) struct Zeros {
    pub(super) runs: Runs,
    /// Whether that is all.
    pub(super) all: bool,
}

impl Zeros {
    /// How much a pass has carried, if a discard counts as what it costs.
    pub(super) fn weigh(&self, event: Event) -> Event {
        let Event::Made(mut made) = event else { return event };
        let zeros = self.runs.blocks() * BLOCK_SIZE as u64;
        made.bytes = made.bytes.saturating_sub(zeros) + Discarded::work_of(&self.runs);
        Event::Made(made)
    }
}

impl Tracked {
    fn discards(&mut self) -> Result<(&mut Discarded, Option<Ring<'_>>, Marks<'_>)> {
        let watch = self.watch.as_ref().context("there is no tracker")?;
        Ok((&mut self.discarded, watch.ring(), watch.marks().map_err(not_watched)?))
    }

    /// What a daemon before this one has left.
    pub(super) fn find_discards(&mut self) -> Result<()> {
        let (discarded, ring, marks) = self.discards()?;
        *discarded = ring.map_or_else(Discarded::default, |ring| Discarded::left(&ring, &marks));
        Ok(())
    }

    /// Cuts off what was marked, and takes what was discarded.
    pub(super) fn cut(&mut self) -> Result<()> {
        let (discarded, ring, marks) = self.discards()?;
        let before = ring.as_ref().map(Ring::put);
        marks.carry_back();
        marks.cut();
        ring.iter().zip(before).for_each(|(ring, put)| discarded.drain(ring, &marks, put));
        Ok(())
    }

    /// Empties the bitmaps and what was discarded: all will be read.
    pub(super) fn clear(&mut self) -> Result<()> {
        let (discarded, ring, marks) = self.discards()?;
        marks.clear();
        ring.iter().for_each(|ring| discarded.forget(ring));
        Ok(())
    }

    /// What the next pass sends as zeros.
    pub(super) fn discarded_zeros(&self) -> Zeros {
        let (runs, all) = self.discarded.zeros();
        Zeros { runs, all }
    }

    /// Whether what is sent as zeros was discarded before the last cut, and none of these blocks since,
    /// nor is it being discarded.
    pub(super) fn discards_spare(&self, blocks: &Dirty) -> Result<bool> {
        let watch = self.watch.as_ref().context("there is no tracker")?;
        let marks = watch.marks().map_err(not_watched)?;
        let spares = |ring: Ring<'_>| self.discarded.in_time() && ring.spares(&marks, blocks);
        Ok(watch.ring().is_none_or(spares))
    }

    /// These zeros are durable, and this was read for the point.
    pub(super) fn has_sent(&mut self, zeros: &Runs, read: &Dirty) -> Result<()> {
        let (discarded, ring, marks) = self.discards()?;
        ring.iter().for_each(|ring| discarded.sent(ring, &marks, zeros, read));
        Ok(())
    }

    /// Bytes of work that discards make.
    pub(super) fn discarded_work(&self) -> u64 {
        let ring = self.watch.as_ref().and_then(|watch| watch.ring());
        ring.map_or(0, |ring| self.discarded.work(&ring))
    }
}

/// When it was looked at last, and what with.
#[derive(Default)]
pub(super) struct Look {
    last: Option<Instant>,
    buffer: Option<AlignedBuf>,
}

impl Look {
    /// Looks at some of what is zeros in the copy, if it is time. The memory is given back at the end.
    pub(super) fn go_on(&mut self, tracked: &mut Tracked, read: &AtomicU64) -> Result<()> {
        if tracked.discarded.to_look_at() == 0 {
            self.buffer = None;
            return Ok(());
        }
        let began = Instant::now();
        if self.last.is_some_and(|last| began.duration_since(last) < EVERY) {
            return Ok(());
        }
        self.last = Some(began);
        let leaf = LEAF_BLOCKS as usize * BLOCK_SIZE;
        let buffer = self.buffer.get_or_insert_with(|| AlignedBuf::new(leaf));
        let mut left = LOOK_BYTES;
        while left > 0 && began.elapsed() < LOOK_TIME {
            let watch = tracked.watch.as_ref().context("there is no tracker")?;
            let Some(ring) = watch.ring() else { break };
            let (marks, source) = (watch.marks().map_err(not_watched)?, &tracked.source);
            let mut not_zero = |run: &Range<u64>| Ok(not_zero(source, run, buffer, read));
            let looked: Result<u64> =
                tracked.discarded.look(&ring, &marks, LEAF_BLOCKS, &mut not_zero);
            match looked? * BLOCK_SIZE as u64 {
                0 => break,
                bytes => left = left.saturating_sub(bytes),
            }
        }
        Ok(())
    }
}

/// Which blocks of a run are not zero. Those that cannot be read are among them: a pass tells of that.
fn not_zero(
    source: &Source,
    run: &Range<u64>,
    buffer: &mut AlignedBuf,
    read: &AtomicU64,
) -> Vec<u64> {
    let mut found = Vec::new();
    for part in parts(run) {
        let bytes = &mut buffer[..(part.end - part.start) as usize * BLOCK_SIZE];
        if source.try_read(part.start * BLOCK_SIZE as u64, bytes).is_err() {
            found.extend(part);
            continue;
        }
        read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let blocks = part.zip(bytes.chunks_exact(BLOCK_SIZE));
        found.extend(blocks.filter(|(_, bytes)| *bytes != ZERO).map(|(block, _)| block));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_not_zero_and_what_cannot_be_read_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len((4 << 20) + 10).unwrap();
        let byte = |block: u64, at: u64| file.write_all_at(&[1], block * 4096 + at).unwrap();
        [(3, 0), (4, 4095), (300, 7), (1024, 9)].into_iter().for_each(|(b, at)| byte(b, at));
        let source = Source::open_shared(&path).unwrap();
        let (mut buffer, read) = (AlignedBuf::new(1 << 20), AtomicU64::new(0));
        let mut find = |run| not_zero(&source, &run, &mut buffer, &read);
        assert_eq!(find(0..1025), [3, 4, 300, 1024]);
        assert_eq!((find(5..300), find(4..5)), (vec![], vec![4]));
        assert_eq!(read.load(Ordering::Relaxed), (1025 + 295 + 1) * 4096);
        file.set_len(1 << 20).unwrap();
        assert_eq!(find(250..260), [256, 257, 258, 259]);
    }
}
