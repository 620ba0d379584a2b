//! Two bitmaps of dirty blocks, and the page beside them that says which is active.
//!
//! Owns: the meaning of that memory, which the program in the kernel (`bpf/track.bpf.c`) shares.
//! Invariant: what was marked stays marked, in one bitmap or the other, until [`Marks::forget`]
//! is told that it is durable elsewhere; a daemon may die at any line of this file. Leaves to
//! others: where the memory comes from ([`crate::ebpf`]).
//!
//! **Life of a mark.** It is set in the active bitmap. [`Marks::cut`] makes the other one active:
//! what lies in the old one is what a pass carries. When the server has it, the old one is
//! emptied. If the pass failed, or the daemon died, [`Marks::carry_back`] puts the marks of the
//! old one back into the active one.
//!
//! **Marking while a cut is made.** Who marks reads the epoch, sets its bits in that epoch's
//! bitmap, and reads the epoch again: if it has changed, the bits are set in the other bitmap as
//! well. Who cuts changes the epoch, and reads the bits afterwards. Both put a full barrier
//! between the two. So one of them sees the other: either the pass has the bits, or the active
//! bitmap has. It may be both; that costs a block sent twice. The epoch counts up, so that a
//! bitmap which became active again is not taken for one that stayed so.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::dirty::{Dirty, LEAF_WORDS};
use crate::early::NOTE_WORDS;
use crate::record::{RECORD_WORDS, Record};
use crate::runs::Runs;

/// Words of 64 bits in the control page.
pub const CONTROL_WORDS: usize = 512;
/// Blocks of a word.
pub const WORD_BLOCKS: u64 = 64;

/// Fields of the control page, by word. The first eight are those of the program in the kernel.
pub(crate) mod at {
    pub(super) const EPOCH: usize = 0;
    pub(super) const EVERYTHING: usize = 1;
    pub(crate) const MARKED: usize = 2;
    pub(super) const DEV: usize = 3;
    pub(super) const FIRST: usize = 4;
    pub(super) const SECTORS: usize = 5;
    pub(super) const WORDS: usize = 6;
    pub(super) const WHOLE: usize = 7;
    /// Which of the two records counts: 0 none, else its number.
    pub(super) const RECORD: usize = 8;
    /// 1 while a daemon freezes what lies on the disk.
    pub(super) const FREEZING: usize = 9;
    /// Of the program in the kernel.
    pub(super) const BEYOND: usize = 10;
    /// Discards: how many were put into the ring, and taken out; which lists count; how many are under
    /// way ([`crate::discards`]).
    pub(crate) const PUT: usize = 11;
    pub(crate) const TAKEN: usize = 12;
    pub(crate) const LISTS: usize = 13;
    pub(crate) const OPEN: usize = 14;
    pub(super) const RECORDS: [usize; 2] = [64, 256];
    pub(super) const NOTE: usize = 448;
}

/// What the program in the kernel looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The whole disk, as the kernel numbers it.
    pub dev: u64,
    /// First sector of what is tracked.
    pub first: u64,
    /// Its sectors.
    pub sectors: u64,
    /// Whether it is all of the disk: a mark behind its end is then one of everything.
    pub whole: bool,
}

impl Range {
    /// Words of one bitmap.
    pub const fn words(&self) -> u64 {
        self.sectors.div_ceil(8).div_ceil(WORD_BLOCKS)
    }
}

/// How much is taken from a bitmap: so many leaves and, but for those of the last leaf, blocks.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Leaves.
    pub leaves: usize,
    /// Blocks.
    pub blocks: u64,
}

/// The bitmaps of one disk.
#[derive(Debug, Clone, Copy)]
pub struct Marks<'a> {
    control: &'a [AtomicU64],
    bits: &'a [AtomicU64],
}

impl<'a> Marks<'a> {
    /// Over this memory; none if it is too short for what it says of itself.
    pub fn over(control: &'a [AtomicU64], bits: &'a [AtomicU64]) -> Option<Self> {
        let words = control.get(at::WORDS)?.load(Ordering::Acquire);
        let fits = words.checked_mul(2).is_some_and(|n| n <= bits.len() as u64);
        (control.len() >= CONTROL_WORDS && fits).then_some(Self { control, bits })
    }

    /// Says what is tracked, in fresh memory, before any program uses it.
    pub fn prepare(control: &[AtomicU64], range: &Range) {
        let words = [
            (at::DEV, range.dev),
            (at::FIRST, range.first),
            (at::SECTORS, range.sectors),
            (at::WORDS, range.words()),
            (at::WHOLE, u64::from(range.whole)),
        ];
        for (field, value) in words {
            control[field].store(value, Ordering::SeqCst);
        }
    }

    /// What is tracked.
    pub fn range(&self) -> Range {
        let get = |field: usize| self.control[field].load(Ordering::Acquire);
        Range {
            dev: get(at::DEV),
            first: get(at::FIRST),
            sectors: get(at::SECTORS),
            whole: get(at::WHOLE) != 0,
        }
    }

    fn words(&self) -> usize {
        self.control[at::WORDS].load(Ordering::Acquire) as usize
    }

    /// Blocks of what is tracked.
    pub(crate) fn blocks(&self) -> u64 {
        self.range().sectors.div_ceil(8)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.control[at::EPOCH].load(Ordering::SeqCst)
    }

    fn bitmap(&self, epoch: u64) -> &'a [AtomicU64] {
        let words = self.words();
        let start = (epoch & 1) as usize * words;
        &self.bits[start..start + words]
    }

    fn active(&self) -> &'a [AtomicU64] {
        self.bitmap(self.epoch())
    }

    fn old(&self) -> &'a [AtomicU64] {
        self.bitmap(self.epoch() + 1)
    }

    /// How often something was written that has no range here. Grows.
    pub fn everything(&self) -> u64 {
        self.control[at::EVERYTHING].load(Ordering::Acquire)
    }

    /// How often something was written behind the last bit: the disk has grown. Grows.
    pub fn beyond(&self) -> u64 {
        self.control[at::BEYOND].load(Ordering::Acquire)
    }

    /// Changes whenever a bit is newly set: cheaper to look at than the bitmap.
    pub fn marked(&self) -> u64 {
        self.control[at::MARKED].load(Ordering::Acquire)
    }

    /// Marks blocks, as the program in the kernel does.
    pub fn mark(&self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.blocks());
        if first >= end {
            return;
        }
        let mut epoch = self.epoch();
        loop {
            let bitmap = self.bitmap(epoch);
            let mut newly = 0;
            for word in first / WORD_BLOCKS..end.div_ceil(WORD_BLOCKS) {
                let mask = mask_of(word, first, end);
                newly |= mask & !bitmap[word as usize].fetch_or(mask, Ordering::SeqCst);
            }
            fence(Ordering::SeqCst);
            let now = self.epoch();
            if newly != 0 {
                self.control[at::MARKED].fetch_add(1, Ordering::Relaxed);
            }
            if now == epoch {
                return;
            }
            epoch = now;
        }
    }

    /// Makes the other bitmap active. What was marked until now is in the old one, or will be
    /// in both. The old one must be empty before: see [`Self::carry_back`].
    pub fn cut(&self) {
        self.control[at::EPOCH].fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// What the old bitmap holds, in address order, up to so many leaves and, but for the last
    /// leaf, blocks; and whether that is all. Blocks of `without` are passed over.
    pub fn carried(&self, leaves: usize, blocks: u64, without: &Dirty) -> (Dirty, bool) {
        let end = self.leaves();
        let (dirty, next) = self.carried_in(0..end, &mut Room { leaves, blocks }, without);
        (dirty, next == end)
    }

    /// The same of these leaves only; and where it ended. What it holds is taken off `room`.
    pub(crate) fn carried_in(
        &self,
        leaves: core::ops::Range<u64>,
        room: &mut Room,
        without: &Dirty,
    ) -> (Dirty, u64) {
        let mut dirty = Dirty::default();
        let (first, end) = (leaves.start as usize, leaves.end as usize);
        let all = self.old().chunks(LEAF_WORDS).enumerate();
        for (leaf, words) in all.take(end).skip(first) {
            let mut found = [0; LEAF_WORDS];
            for (to, word) in found.iter_mut().zip(words) {
                *to = word.load(Ordering::Acquire);
            }
            if found != [0; LEAF_WORDS] && !without.is_empty() {
                let without = without.words(leaf as u64);
                found.iter_mut().zip(without).for_each(|(word, not)| *word &= !not);
            }
            if found != [0; LEAF_WORDS] {
                if room.leaves == 0 || room.blocks == 0 {
                    return (dirty, leaf as u64);
                }
                let blocks = found.iter().map(|word| u64::from(word.count_ones())).sum();
                room.leaves -= 1;
                room.blocks = room.blocks.saturating_sub(blocks);
                dirty.push(leaf as u64, found);
            }
        }
        (dirty, leaves.end)
    }

    /// Leaves of a bitmap; the last one may be a part.
    pub(crate) fn leaves(&self) -> u64 {
        self.words().div_ceil(LEAF_WORDS) as u64
    }

    /// Whether a block has been marked since the cut.
    pub fn is_marked(&self, block: u64) -> bool {
        let word = self.active().get((block / WORD_BLOCKS) as usize);
        word.is_some_and(|w| w.load(Ordering::SeqCst) >> (block % WORD_BLOCKS) & 1 == 1)
    }

    /// Those of these blocks that neither bitmap has, in `most` runs about; what there is more is marked.
    pub(crate) fn unmarked(&self, of: &Runs, most: usize) -> Runs {
        fence(Ordering::SeqCst);
        let (active, old) = (self.active(), self.old());
        let mut left = Runs::default();
        for run in of.iter().filter(|run| !run.is_empty()) {
            for word in run.start / WORD_BLOCKS..run.end.div_ceil(WORD_BLOCKS) {
                if left.len() >= most {
                    let from = run.start.max(word * WORD_BLOCKS);
                    self.mark(from, run.end - from);
                    break;
                }
                let get =
                    |b: &[AtomicU64]| b.get(word as usize).map_or(0, |w| w.load(Ordering::SeqCst));
                let free = mask_of(word, run.start, run.end) & !(get(active) | get(old));
                each_run(free, |bits| {
                    left.add_behind(word * WORD_BLOCKS + bits.start..word * WORD_BLOCKS + bits.end);
                });
            }
        }
        left
    }

    /// How many of these blocks have been marked since the cut.
    pub fn marked_again(&self, of: &Dirty) -> u64 {
        self.count(of, [self.active()])
    }

    /// How many of these blocks are marked, in both bitmaps.
    pub fn marked_of(&self, of: &Dirty) -> u64 {
        self.count(of, [self.active(), self.old()])
    }

    fn count<const N: usize>(&self, of: &Dirty, bitmaps: [&[AtomicU64]; N]) -> u64 {
        fence(Ordering::SeqCst);
        let leaf = |&(leaf, words): &(u64, [u64; LEAF_WORDS])| -> u64 {
            let first = leaf as usize * LEAF_WORDS;
            let both = words.iter().enumerate().map(|(i, word)| {
                let in_one =
                    |b: &&[AtomicU64]| b.get(first + i).map_or(0, |w| w.load(Ordering::SeqCst));
                bitmaps.iter().map(in_one).fold(0, |all, one| all | one) & word
            });
            both.map(|word| u64::from(word.count_ones())).sum()
        };
        of.iter().map(leaf).sum()
    }

    /// These blocks of the old bitmap are durable elsewhere.
    pub fn forget(&self, durable: &Dirty) {
        let old = self.old();
        for (leaf, words) in durable.iter() {
            let first = *leaf as usize * LEAF_WORDS;
            for (word, bits) in old[first.min(old.len())..].iter().zip(words) {
                word.fetch_and(!bits, Ordering::SeqCst);
            }
        }
    }

    /// Puts what the old bitmap holds back into the active one. Whether there was any.
    pub fn carry_back(&self) -> bool {
        let mut any = false;
        for (from, to) in self.old().iter().zip(self.active()) {
            let bits = from.load(Ordering::Acquire);
            if bits != 0 {
                to.fetch_or(bits, Ordering::SeqCst);
                from.fetch_and(!bits, Ordering::SeqCst);
                any = true;
            }
        }
        if any {
            self.control[at::MARKED].fetch_add(1, Ordering::Relaxed);
        }
        any
    }

    /// Forgets all marks of both bitmaps: for a scan that begins now and reads all of the disk.
    /// A mark that is set meanwhile stays.
    pub fn clear(&self) {
        self.carry_back();
        self.cut();
        self.old().iter().for_each(|word| word.store(0, Ordering::SeqCst));
    }

    /// Marks here what is marked there, as far as it has a place here.
    pub fn take_over(&self, other: &Marks<'_>) {
        for from in [other.active(), other.old()] {
            for (word, bits) in from.iter().enumerate().take(self.words()) {
                // What lies behind the end is never carried, and would stay for good.
                let bits = bits.load(Ordering::SeqCst) & mask_of(word as u64, 0, self.blocks());
                if bits != 0 {
                    self.active()[word].fetch_or(bits, Ordering::SeqCst);
                }
            }
        }
        self.control[at::MARKED].fetch_add(1, Ordering::Relaxed);
    }

    /// What is marked, in both bitmaps.
    pub fn all_marked(&self) -> Dirty {
        fence(Ordering::SeqCst);
        let mut dirty = Dirty::default();
        let both = self.active().chunks(LEAF_WORDS).zip(self.old().chunks(LEAF_WORDS));
        for (leaf, (active, old)) in both.enumerate() {
            let mut found = [0; LEAF_WORDS];
            for (to, (a, b)) in found.iter_mut().zip(active.iter().zip(old)) {
                *to = a.load(Ordering::SeqCst) | b.load(Ordering::SeqCst);
            }
            if found != [0; LEAF_WORDS] {
                dirty.push(leaf as u64, found);
            }
        }
        dirty
    }

    /// Blocks that are marked, in both bitmaps.
    pub fn dirty_blocks(&self) -> u64 {
        let count = |(a, b): (&AtomicU64, &AtomicU64)| {
            u64::from((a.load(Ordering::Relaxed) | b.load(Ordering::Relaxed)).count_ones())
        };
        self.active().iter().zip(self.old()).map(count).sum()
    }

    /// Says, where it outlives the daemon, that file systems of the disk are being frozen or
    /// are frozen; or that they are not any more.
    pub fn set_freezing(&self, freezing: bool) {
        self.control[at::FREEZING].store(u64::from(freezing), Ordering::SeqCst);
    }

    /// What the daemon has recorded of its watch.
    pub fn record(&self) -> Option<Record> {
        let slot = self.control[at::RECORD].load(Ordering::Acquire).checked_sub(1)?;
        let start = *at::RECORDS.get(slot as usize)?;
        let mut words = [0; RECORD_WORDS];
        for (to, word) in words.iter_mut().zip(&self.control[start..]) {
            *to = word.load(Ordering::Acquire);
        }
        Record::decode(&words)
    }

    /// Records this, at once or not at all.
    pub fn set_record(&self, record: &Record) {
        let now = self.control[at::RECORD].load(Ordering::Acquire);
        let slot = usize::from(now == 1);
        for (word, value) in self.control[at::RECORDS[slot]..].iter().zip(record.encode()) {
            word.store(value, Ordering::Release);
        }
        self.control[at::RECORD].store(slot as u64 + 1, Ordering::SeqCst);
    }

    /// What was noted when an early watch began ([`crate::early`]).
    pub(crate) fn note(&self) -> Option<[u64; NOTE_WORDS]> {
        let mut words = [0; NOTE_WORDS];
        for (to, word) in words.iter_mut().zip(self.control.get(at::NOTE..)?) {
            *to = word.load(Ordering::Acquire);
        }
        Some(words)
    }

    /// Notes this, before there is a record.
    pub(crate) fn set_note(&self, note: &[u64; NOTE_WORDS]) {
        for (word, value) in self.control[at::NOTE..].iter().zip(note) {
            word.store(*value, Ordering::Release);
        }
    }
}

/// Of a control page alone: which disk it is about, if a daemon has left that in a freeze.
pub(crate) fn left_frozen(control: &[AtomicU64]) -> Option<u64> {
    let get = |field: usize| control.get(field).map(|w| w.load(Ordering::Acquire));
    (get(at::FREEZING)? == 1).then(|| get(at::DEV))?
}

/// Of a control page alone: nothing of its disk is frozen.
pub(crate) fn no_longer_frozen(control: &[AtomicU64]) {
    if let Some(word) = control.get(at::FREEZING) {
        word.store(0, Ordering::SeqCst);
    }
}

/// The bits of a word that lie in a range of blocks.
const fn mask_of(word: u64, first: u64, end: u64) -> u64 {
    let mut mask = u64::MAX;
    if word == first / WORD_BLOCKS {
        mask &= u64::MAX << (first % WORD_BLOCKS);
    }
    if word == (end - 1) / WORD_BLOCKS {
        mask &= u64::MAX >> (WORD_BLOCKS - 1 - (end - 1) % WORD_BLOCKS);
    }
    mask
}

/// The runs of bits that are set in a word.
fn each_run(mut word: u64, mut each: impl FnMut(core::ops::Range<u64>)) {
    while word != 0 {
        let first = word.trailing_zeros();
        let count = (word >> first).trailing_ones();
        each(u64::from(first)..u64::from(first + count));
        // (Nothing is left of a word that was all ones.)
        word &= u64::MAX.checked_shl(first + count).unwrap_or(0);
    }
}

#[cfg(test)]
pub(crate) mod tests;
