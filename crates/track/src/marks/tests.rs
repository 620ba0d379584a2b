//! The bitmaps, in plain memory.

use super::*;
use crate::sleep::Slept;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

/// Bitmaps of a disk that nobody else marks.
pub(crate) struct Memory {
    control: Vec<AtomicU64>,
    bits: Vec<AtomicU64>,
}

pub(crate) fn zeros(n: usize) -> Vec<AtomicU64> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

impl Memory {
    pub(crate) fn of_blocks(blocks: u64) -> Self {
        let range = Range { dev: 1, first: 0, sectors: blocks * 8, whole: true };
        let control = zeros(CONTROL_WORDS);
        Marks::prepare(&control, &range);
        Self { control, bits: zeros(2 * range.words() as usize) }
    }

    pub(crate) fn control(&self) -> &[AtomicU64] {
        &self.control
    }

    pub(crate) fn marks(&self) -> Marks<'_> {
        Marks::over(&self.control, &self.bits).unwrap()
    }
}

fn blocks(dirty: &Dirty) -> Vec<u64> {
    dirty.all_blocks().collect()
}

#[test]
fn memory_that_is_too_short_is_refused() {
    let memory = Memory::of_blocks(1000);
    assert!(Marks::over(&memory.control, &memory.bits[1..]).is_none());
    assert!(Marks::over(&memory.control[..100], &memory.bits).is_none());
    assert!(Marks::over(&[], &[]).is_none());
    memory.control[at::WORDS].store(u64::MAX, Ordering::Relaxed);
    assert!(Marks::over(&memory.control, &memory.bits).is_none());
    let range = Range { dev: 9, first: 2048, sectors: 81, whole: false };
    Marks::prepare(&memory.control, &range);
    assert_eq!((memory.marks().range(), range.words()), (range, 1));
}

#[test]
fn marks_go_from_one_bitmap_to_the_other_and_come_back() {
    let memory = Memory::of_blocks(1000);
    let marks = memory.marks();
    marks.mark(3, 2);
    marks.mark(62, 200);
    marks.mark(990, 1000);
    let all: Vec<u64> = (3..5).chain(62..262).chain(990..1000).collect();
    assert_eq!(
        (marks.carried(99, u64::MAX, &Dirty::default()).0.blocks(), marks.dirty_blocks()),
        (0, all.len() as u64)
    );
    marks.cut();
    let (carried, whole) = marks.carried(99, u64::MAX, &Dirty::default());
    assert_eq!((blocks(&carried), whole), (all.clone(), true));
    assert!(!marks.is_marked(3) && marks.marked_again(&carried) == 0);
    marks.mark(4, 1);
    assert!(marks.is_marked(4) && !marks.is_marked(3));
    assert_eq!(marks.marked_again(&carried), 1);
    // The pass failed.
    assert!(marks.carry_back() && !marks.carry_back());
    assert!(marks.carried(99, u64::MAX, &Dirty::default()).0.is_empty());
    marks.cut();
    assert_eq!(blocks(&marks.carried(99, u64::MAX, &Dirty::default()).0), all);
    // A pass of the first leaf only.
    let (first, whole) = marks.carried(1, u64::MAX, &Dirty::default());
    assert_eq!((blocks(&first).last(), whole), (Some(&255), false));
    assert_eq!(
        (&first, false),
        (&marks.carried(99, 1, &Dirty::default()).0, marks.carried(99, 1, &Dirty::default()).1)
    );
    marks.forget(&first);
    assert_eq!(blocks(&marks.carried(99, u64::MAX, &Dirty::default()).0)[0], 256);
    assert!(marks.carry_back());
    marks.cut();
    let (rest, _) = marks.carried(99, u64::MAX, &Dirty::default());
    assert_eq!(rest.blocks() + first.blocks(), all.len() as u64);
    marks.forget(&rest);
    assert_eq!(marks.dirty_blocks(), 0);
    marks.mark(7, 1);
    marks.clear();
    assert_eq!((marks.dirty_blocks(), marks.everything()), (0, 0));
}

#[test]
fn a_new_mark_shows_in_the_counter_and_an_old_one_does_not() {
    let memory = Memory::of_blocks(1000);
    let marks = memory.marks();
    marks.mark(70, 80);
    let seen = marks.marked();
    marks.mark(75, 10);
    assert_eq!(marks.marked(), seen);
    marks.mark(75, 90);
    assert_ne!(marks.marked(), seen);
}

#[test]
fn a_record_is_replaced_at_once_or_not_at_all() {
    let memory = Memory::of_blocks(1000);
    let marks = memory.marks();
    assert_eq!(marks.record(), None);
    let record = |seq| Record {
        volume: [1; 16],
        disk_sequence: 2,
        size: 3,
        links: [4, 5],
        head: [6; 32],
        seq,
        generation: 7,
        complete: false,
        scanned: seq,
        everything: 0,
        slept: Slept::default(),
    };
    for seq in 0..5 {
        marks.set_record(&record(seq));
        assert_eq!(marks.record(), Some(record(seq)));
        // A daemon that dies while it writes the next: the slot that does not count.
        let other =
            at::RECORDS[usize::from(memory.control[at::RECORD].load(Ordering::Relaxed) == 1)];
        memory.control[other].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(marks.record(), Some(record(seq)));
    }
}

/// Threads mark while cuts are made: what a thread marked after it wrote is in a later pass, or
/// still marked. Each block has a version, as content on a disk; a copy takes versions over.
#[test]
fn nothing_is_missed_while_cuts_are_made() {
    const BLOCKS: u64 = 600;
    let memory = Memory::of_blocks(BLOCKS);
    let disk = zeros(BLOCKS as usize);
    let mut copy = vec![0; BLOCKS as usize];
    let (stop, mut passes) = (AtomicBool::new(false), 0);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (marks, disk, stop) = (memory.marks(), &disk, &stop);
            scope.spawn(move || {
                let mut state = thread + 1;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let first = state >> 33 & 511;
                    let count = 1 + (state >> 60) * 5;
                    for block in first..(first + count).min(BLOCKS) {
                        disk[block as usize].fetch_add(1, Ordering::Relaxed);
                    }
                    marks.mark(first, count);
                }
            });
        }
        let marks = memory.marks();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(600);
        let mut pass = |last: bool| {
            marks.cut();
            let (dirty, _) = marks.carried(usize::MAX, u64::MAX, &Dirty::default());
            for block in dirty.all_blocks().take_while(|b| *b < BLOCKS) {
                copy[block as usize] = disk[block as usize].load(Ordering::Relaxed);
            }
            // Now and then a pass fails, and once it is all carried again.
            if !last && passes % 7 == 3 {
                marks.carry_back();
            } else {
                marks.forget(&dirty);
            }
            // Late marks of a bitmap that was emptied are carried too.
            marks.carry_back();
            passes += 1;
        };
        while std::time::Instant::now() < until {
            pass(false);
        }
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(50));
        pass(true);
        pass(true);
    });
    assert!(passes > 100, "{passes}");
    let disk: Vec<u64> = disk.iter().map(|v| v.load(Ordering::Relaxed)).collect();
    let missed: BTreeSet<usize> = (0..copy.len()).filter(|b| disk[*b] != copy[*b]).collect();
    assert_eq!(missed, BTreeSet::new());
}
