//! Discards that have completed: zeros in the copy, without being read first.
//!
//! Owns: the ring into which the program in the kernel (`bpf/track.bpf.c`) puts them, and the two lists
//! of a daemon beside it: `pending`, which the server is to be told of, and `recheck`, which is zero in
//! the copy and was not read yet. Invariants: what was put into the ring is in the ring, in a list, or
//! marked, until it was read as zeros or as content, whoever dies when; a block that is marked is in the
//! copy as it was read, and never as these zeros (*dirty wins*). Bounded: what finds no room is marked.
//! Leaves to others: sending, and reading (`dormouse::live`).
//!
//! What a disk has of a block that was discarded is not defined until the block is written: zeros, what
//! was there before, or anything. So zeros are a true copy of it, and stay one if nobody ever looks. It
//! is looked at all the same, for what people read of a disk may be more than what is promised of it.
//!
//! **What goes into the ring.** A discard takes a place in `OPEN` when it is issued. When it has
//! completed, its whole blocks go into the ring, and not into the bitmap, if it succeeded as a whole and
//! no write of its sectors has said at its place that it was under way as well. All else is marked, as
//! before: failures, parts, edges within a block, discards that find no place or no room, and those of
//! devices that handle bios, whose ends are not always seen. Secure erase, zeroing and zones are writes.
//!
//! **Races.** W is a write, D a discard of the same block, *carried* what a pass reads and forgets.
//! - *W ends, then D is issued.* The mark of W may still be there: then the block is read, after D. Or
//!   it was carried: then D makes it zeros, which is later.
//! - *D has ended, then W is issued.* D was in the ring before W's marks were set. Whoever forgets the
//!   marks of W has cut after they were set, and drains the ring behind each cut, before anything is
//!   forgotten: so D was seen no later than W, and W is read with that pass or the next.
//! - *Both are under way.* W, as it ends, first says so at the place of D, and then marks. D, as it ends,
//!   first goes into the ring, and then looks at its place; each has a full barrier in between. If D
//!   finds nothing said there, W's marks come after D in the ring, which is the case before. Else D is
//!   marked as well, after it went into the ring: a drain may have found it, and the mark follows.
//!   (W ends before D takes its place, or D leaves it before W looks: the two cases above.)
//! - *A cut between the issue of D and its end*: nothing depends on it. Before its end D has no effect
//!   here; a pass that reads meanwhile reads the one or the other, and the ring comes later.
//! - *The same range twice, or in part*: a union of ranges.
//! - *A point is to prove that the copy equals the disk at the cut*: only if all that was pending went with
//!   its pass, nothing was drained that came after the cut ([`Discarded::in_time`]), and no block that was
//!   read is in the ring again or is being discarded ([`Ring::spares`]).
//! - *A scan* begins with empty bitmaps: the ring and the lists are emptied after them. What was in them
//!   was discarded before the scan reads.
//! - *A daemon is killed.* What it had not drained is still in the ring; nobody has forgotten a mark that
//!   was set after it. What it had drained, and may not have sent, is in the list `pending`; marks that
//!   came after it may be forgotten: the next daemon marks it all. `recheck` goes on where it was.

use core::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};

use crate::dirty::Dirty;
use crate::marks::{CONTROL_WORDS, Marks, at};
use crate::runs::Runs;

/// Words of `OPEN`: places of discards that are under way.
pub const OPEN_WORDS: usize = 128 * OPEN_WIDTH;
const OPEN_WIDTH: usize = 5;
/// Places of the ring.
pub const RING_MAX: usize = 1 << 16;
/// Places that stay free, for those that others take meanwhile.
const RING_SPARE: usize = 1 << 13;
/// Runs of both lists together.
pub const LIST_MAX: usize = 1 << 16;
/// Words of `DISCARDS`: the ring, and two places for the lists, each with their lengths.
pub const DISCARDS_WORDS: usize = 2 * (RING_MAX + 2 * (LIST_MAX + 1));
/// After so many cuts (a minute or more) nobody waits for the end of a discard any more.
const LOST_AFTER: u64 = 256;
/// Leaves (1 MiB each) that go as zeros with one pass: some tenths of a second.
const LEAVES_MAX: u64 = 2048;

/// The memory that is shared with the kernel, and outlives the daemon.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    control: &'a [AtomicU64],
    open: &'a [AtomicU64],
    entries: &'a [AtomicU64],
}

/// What the ring holds: places, and blocks.
type Found = Vec<(u64, Range<u64>)>;

impl<'a> Ring<'a> {
    /// Over this memory; none if it is too short.
    pub const fn over(
        control: &'a [AtomicU64],
        open: &'a [AtomicU64],
        entries: &'a [AtomicU64],
    ) -> Option<Self> {
        let fits = control.len() >= CONTROL_WORDS
            && open.len() >= OPEN_WORDS
            && entries.len() >= DISCARDS_WORDS;
        if fits { Some(Self { control, open, entries }) } else { None }
    }

    /// How many entries it has had. Grows.
    pub fn put(&self) -> u64 {
        self.control[at::PUT].load(Ordering::SeqCst)
    }

    fn taken(&self) -> u64 {
        self.control[at::TAKEN].load(Ordering::Acquire)
    }

    const fn entry(&self, place: u64) -> (&'a AtomicU64, &'a AtomicU64) {
        let word = 2 * (place as usize % RING_MAX);
        (&self.entries[word], &self.entries[word + 1])
    }

    /// Puts blocks in, as the program in the kernel does. False if there is no room.
    pub fn discard(&self, first: u64, count: u64) -> bool {
        if self.put().saturating_sub(self.taken()) > (RING_MAX - RING_SPARE) as u64 {
            return false;
        }
        let place = self.control[at::PUT].fetch_add(1, Ordering::SeqCst);
        self.fill(place, first, count);
        true
    }

    fn fill(&self, place: u64, first: u64, count: u64) {
        let (word, length) = self.entry(place);
        word.store(first, Ordering::SeqCst);
        length.store(number(place) << 32 | count, Ordering::SeqCst);
        self.control[at::MARKED].fetch_add(1, Ordering::SeqCst);
    }

    /// What is there. None if the ring is not in order.
    fn found(&self) -> Option<Found> {
        fence(Ordering::SeqCst);
        let (put, taken) = (self.put(), self.taken());
        if put.wrapping_sub(taken) > RING_MAX as u64 {
            return None;
        }
        let there = (taken..put).filter_map(|place| {
            let (first, count) = self.entry(place);
            let word = count.load(Ordering::Acquire);
            // Whoever has taken the place may not have filled it yet.
            if word >> 32 != number(place) {
                return None;
            }
            let first = first.load(Ordering::Acquire);
            Some((place, first..first.saturating_add(word & u64::from(u32::MAX))))
        });
        Some(there.collect())
    }

    /// These are in a list now: their places are free again, up to the first that is not filled yet.
    fn take(&self, found: &Found) {
        let mut taken = self.taken();
        for (place, _) in found {
            // If it stays behind one that is not filled: it is not taken a second time.
            self.entry(*place).1.store(number(*place) << 32, Ordering::Release);
            taken += u64::from(*place == taken);
        }
        self.control[at::TAKEN].store(taken, Ordering::SeqCst);
    }

    /// It was not in order: what was put into it is not known.
    fn start_anew(&self) -> Found {
        self.control[at::TAKEN].store(self.put(), Ordering::SeqCst);
        Found::new()
    }

    /// Where a list begins: its lengths.
    const fn list(&self, which: usize) -> &'a [AtomicU64] {
        let (_, lists) = self.entries.split_at(2 * RING_MAX);
        let (first, second) = lists.split_at(2 * (LIST_MAX + 1));
        if which == 0 { first } else { second }
    }

    /// Keeps the lists, at once or not at all. They must have room.
    fn keep(&self, pending: &Runs, recheck: &Runs) {
        let which = usize::from(self.control[at::LISTS].load(Ordering::Acquire) == 1);
        let (lengths, runs) = self.list(which).split_at(2);
        lengths[0].store(pending.len() as u64, Ordering::Relaxed);
        lengths[1].store(recheck.len() as u64, Ordering::Relaxed);
        for (words, run) in runs.chunks_exact(2).zip(pending.iter().chain(recheck.iter())) {
            words[0].store(run.start, Ordering::Relaxed);
            words[1].store(run.end, Ordering::Relaxed);
        }
        self.control[at::LISTS].store(which as u64 + 1, Ordering::SeqCst);
    }

    /// The lists that were kept last. None if they are not in order.
    fn kept(&self) -> Option<(Runs, Runs)> {
        let which = match self.control[at::LISTS].load(Ordering::SeqCst) {
            0 => return Some((Runs::default(), Runs::default())),
            n @ 1..=2 => n as usize - 1,
            _ => return None,
        };
        let (lengths, runs) = self.list(which).split_at(2);
        let length = |i: usize| lengths[i].load(Ordering::Acquire) as usize;
        let (pending, recheck) = (length(0), length(1));
        if pending.checked_add(recheck)? > LIST_MAX {
            return None;
        }
        let of = |from: usize, n: usize| {
            let words = runs.chunks_exact(2).skip(from).take(n);
            let range =
                |w: &[AtomicU64]| w[0].load(Ordering::Acquire)..w[1].load(Ordering::Acquire);
            Runs::of(words.map(range).collect())
        };
        Some((of(0, pending), of(pending, recheck)))
    }

    /// Of the discards that are under way: places, their epochs, and the blocks between which they lie.
    fn under_way(&self, marks: &Marks<'_>) -> Vec<(&'a [AtomicU64], u64, Range<u64>)> {
        let base = marks.range().first;
        let places = self.open.chunks_exact(OPEN_WIDTH);
        let there = places.filter(|place| place[0].load(Ordering::SeqCst) != 0);
        let all = there.map(|place| {
            let get = |i: usize| place[i].load(Ordering::SeqCst);
            let blocks = get(1).saturating_sub(base) / 8..get(2).saturating_sub(base).div_ceil(8);
            (place, get(3), blocks)
        });
        all.collect()
    }

    /// Whether none of these blocks was discarded since the last drain, or is being discarded: nothing
    /// that was read of them is of a later time for that.
    pub fn spares(&self, marks: &Marks<'_>, blocks: &Dirty) -> bool {
        // In this order: a discard is in the ring before it leaves its place.
        let mut others: Vec<_> =
            self.under_way(marks).into_iter().map(|(_, _, blocks)| blocks).collect();
        let put = self.put();
        let Some(found) = self.found() else { return false };
        // One that is not filled yet may be anywhere.
        if (found.len() as u64) < put - self.taken() {
            return false;
        }
        others.extend(found.into_iter().map(|(_, blocks)| blocks));
        let blocks = Runs::of_dirty(blocks);
        blocks.minus(&Runs::of(others)) == blocks
    }

    /// Marks the ranges of discards whose end was never seen.
    fn give_up_lost(&self, marks: &Marks<'_>) {
        let now = marks.epoch();
        for (place, epoch, blocks) in self.under_way(marks) {
            if now.saturating_sub(epoch) > LOST_AFTER {
                marks.mark(blocks.start, blocks.end.saturating_sub(blocks.start));
                let request = place[0].load(Ordering::SeqCst);
                let free =
                    place[0].compare_exchange(request, 0, Ordering::SeqCst, Ordering::SeqCst);
                if request != 0 && free.is_ok() {
                    self.control[at::OPEN].fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// Blocks that may be zeros in the copy, or are to be, and were not read since; all, if that is not
    /// known.
    pub fn all(&self, marks: &Marks<'_>) -> Runs {
        let blocks = marks.blocks();
        // In this order: what leaves one is in the next.
        let under_way = self.under_way(marks).into_iter().map(|(_, _, blocks)| blocks);
        let under_way = Runs::of(under_way.collect());
        let (Some(found), Some((pending, recheck))) = (self.found(), self.kept()) else {
            return Runs::of(core::iter::once(0..blocks).collect());
        };
        let found = Runs::of(found.into_iter().map(|(_, blocks)| blocks).collect());
        let mut all = under_way.or(&found).or(&pending).or(&recheck);
        all.truncate(blocks);
        all
    }
}

/// By which an entry is known to be of this round.
const fn number(place: u64) -> u64 {
    (place + 1) & u32::MAX as u64
}

/// What a daemon knows of discards.
#[derive(Debug, Default)]
pub struct Discarded {
    /// Zeros that the server is to be told of.
    pending: Runs,
    /// Zeros in the copy, not read yet.
    recheck: Runs,
    /// Whether some of what was drained last was perhaps discarded after the cut, and so after writes
    /// that the cut does not have.
    late: bool,
}

impl Discarded {
    /// What a daemon before this one has left. What it may not have sent is marked.
    pub fn left(ring: &Ring<'_>, marks: &Marks<'_>) -> Self {
        let mut found = Self::default();
        let Some((pending, recheck)) = ring.kept() else {
            marks.mark(0, marks.blocks());
            return found;
        };
        pending.iter().for_each(|run| mark(marks, run));
        found.recheck = recheck;
        found.recheck.truncate(marks.blocks());
        found.keep(ring, marks);
        found
    }

    /// Takes what was discarded out of the ring. To be called behind each cut, before what was cut off
    /// is read; `put` is what [`Ring::put`] was before the cut.
    pub fn drain(&mut self, ring: &Ring<'_>, marks: &Marks<'_>, put: u64) {
        ring.give_up_lost(marks);
        let found = ring.found();
        if found.is_none() {
            marks.mark(0, marks.blocks());
        }
        let found = found.unwrap_or_else(|| ring.start_anew());
        self.late = found.iter().any(|(place, _)| *place >= put);
        if !found.is_empty() || !self.pending.is_empty() {
            let new = Runs::of(found.iter().map(|(_, blocks)| blocks.clone()).collect());
            let mut pending = self.pending.or(&new);
            pending.truncate(marks.blocks());
            // Those are read.
            let pending = marks.unmarked(&pending, LIST_MAX);
            if pending != self.pending {
                self.pending = pending;
                self.keep(ring, marks);
            }
        }
        ring.take(&found);
    }

    /// Forgets all: a scan begins, and the bitmaps were emptied.
    pub fn forget(&mut self, ring: &Ring<'_>) {
        *self = Self::default();
        ring.keep(&self.pending, &self.recheck);
        let found = ring.found().unwrap_or_else(|| ring.start_anew());
        ring.take(&found);
    }

    /// Whether all that was drained last was discarded before the cut.
    pub const fn in_time(&self) -> bool {
        !self.late
    }

    /// What goes as zeros with a pass, and whether that is all.
    pub fn zeros(&self) -> (Runs, bool) {
        let first = self.pending.first_leaves(LEAVES_MAX);
        let all = first == self.pending;
        (first, all)
    }

    /// A pass is durable: these are zeros there, and those were read for it. Before its marks are
    /// forgotten.
    pub fn sent(&mut self, ring: &Ring<'_>, marks: &Marks<'_>, zeros: &Runs, read: &Dirty) {
        if zeros.is_empty() && self.recheck.is_empty() {
            return;
        }
        let recheck = self.recheck.or(zeros).minus(&Runs::of_dirty(read));
        if zeros.is_empty() && recheck == self.recheck {
            return;
        }
        self.pending = self.pending.minus(zeros);
        self.recheck = recheck;
        self.keep(ring, marks);
    }

    /// Looks at some of what is zeros in the copy, `most` blocks at most: `not_zero` says of a run which
    /// of its blocks are not, or cannot be read. Those are marked. How many were looked at.
    pub fn look<E>(
        &mut self,
        ring: &Ring<'_>,
        marks: &Marks<'_>,
        most: u64,
        mut not_zero: impl FnMut(&Range<u64>) -> Result<Vec<u64>, E>,
    ) -> Result<u64, E> {
        let mut left = self.recheck.clone();
        let some = left.take_first(most);
        // A block that is marked is read anyway.
        for run in marks.unmarked(&some, usize::MAX).iter() {
            not_zero(run)?.into_iter().for_each(|block| marks.mark(block, 1));
        }
        self.recheck = left;
        self.keep(ring, marks);
        Ok(some.blocks())
    }

    /// Keeps the lists where they outlive the daemon. What finds no room is marked.
    fn keep(&mut self, ring: &Ring<'_>, marks: &Marks<'_>) {
        while self.pending.len() + self.recheck.len() > LIST_MAX {
            let longer = self.pending.len() > self.recheck.len();
            let list = if longer { &mut self.pending } else { &mut self.recheck };
            list.pop().iter().for_each(|run| mark(marks, run));
        }
        ring.keep(&self.pending, &self.recheck);
    }

    /// Bytes of blocks whose sending takes as long as that of what is to be sent as zeros.
    pub fn work(&self, ring: &Ring<'_>) -> u64 {
        let not_drained = ring.put().saturating_sub(ring.taken());
        (self.pending.leaves() + not_drained) * BLOCK_SIZE as u64
    }

    /// The same of zeros that were sent: a block for each leaf that has some.
    pub fn work_of(zeros: &Runs) -> u64 {
        zeros.leaves() * BLOCK_SIZE as u64
    }

    /// Bytes that are zeros in the copy, and were not looked at yet.
    pub fn to_look_at(&self) -> u64 {
        self.recheck.blocks() * BLOCK_SIZE as u64
    }
}

fn mark(marks: &Marks<'_>, run: &Range<u64>) {
    marks.mark(run.start, run.end.saturating_sub(run.start));
}

/// Blocks of a run, in parts that are read at once: a leaf, or less.
pub fn parts(run: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let run = run.clone();
    (run.start / LEAF_BLOCKS..run.end.div_ceil(LEAF_BLOCKS)).map(move |leaf| {
        let first = leaf * LEAF_BLOCKS;
        run.start.max(first)..run.end.min(first + LEAF_BLOCKS)
    })
}

#[cfg(test)]
mod tests;
