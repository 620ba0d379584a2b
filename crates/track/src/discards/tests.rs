//! Against a disk and a kernel in memory, in every order of events; and with threads.

mod double;
mod scenes;

use scenes::nothing_new;

use std::sync::atomic::AtomicBool;

use double::{Disk, Double, Op};

use super::*;

/// Numbers that look random, and are the same each time.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

/// A daemon whose copy follows a disk, in steps.
struct Daemon<'a> {
    double: &'a Double,
    disk: &'a Disk,
    discarded: Discarded,
    copy: Vec<u64>,
    /// What the pass takes.
    pass: Option<Pass>,
}

struct Pass {
    left: Vec<u64>,
    /// Blocks, and what they were.
    read: Vec<(u64, u64)>,
    zeros: Runs,
}

impl<'a> Daemon<'a> {
    fn new(double: &'a Double, disk: &'a Disk) -> Self {
        let copy = disk.all();
        Self { double, disk, discarded: Discarded::default(), copy, pass: None }
    }

    fn begin(&mut self) {
        let (ring, marks) = (self.double.ring(), self.double.marks());
        marks.carry_back();
        marks.cut();
        self.discarded.drain(&ring, &marks, ring.put());
        let (dirty, _) = marks.carried(usize::MAX, u64::MAX, &Dirty::default());
        let (zeros, _) = self.discarded.zeros();
        let overlap = Runs::of_dirty(&dirty).blocks() + zeros.blocks();
        assert_eq!(overlap, Runs::of_dirty(&dirty).or(&zeros).blocks(), "read, and zero");
        let left = dirty.all_blocks().collect();
        self.pass = Some(Pass { left, read: Vec::new(), zeros });
    }

    /// Reads a block. Whether there was one.
    fn read(&mut self) -> bool {
        let Some(Pass { left, read, .. }) = &mut self.pass else { return false };
        let Some(block) = left.pop() else { return false };
        read.push((block, self.disk.get(block)));
        true
    }

    /// Ends the pass: it is durable, or has failed, or was killed at one of four moments.
    fn end(&mut self, fails: bool, killed: Option<u8>) {
        let Some(Pass { left, read, zeros }) = self.pass.take() else { return };
        assert!(left.is_empty());
        let (ring, marks) = (self.double.ring(), self.double.marks());
        let reborn = |daemon: &mut Self| {
            marks.carry_back();
            daemon.discarded = Discarded::left(&ring, &marks);
        };
        if killed == Some(0) {
            return reborn(self);
        }
        if fails {
            marks.carry_back();
            return;
        }
        zeros.iter().flat_map(Clone::clone).for_each(|block| self.copy[block as usize] = 0);
        read.iter().for_each(|(block, version)| self.copy[*block as usize] = *version);
        if killed == Some(1) {
            return reborn(self);
        }
        let dirty = Dirty::of_blocks(read.iter().map(|(block, _)| *block));
        self.discarded.sent(&ring, &marks, &zeros, &dirty);
        if killed == Some(2) {
            return reborn(self);
        }
        marks.forget(&dirty);
        marks.carry_back();
        if killed == Some(3) {
            reborn(self);
        }
    }

    fn whole_pass(&mut self) {
        self.begin();
        while self.read() {}
        self.end(false, None);
    }

    fn look(&mut self, most: u64) {
        let (ring, marks) = (self.double.ring(), self.double.marks());
        let disk = self.disk;
        let not_zero = |run: &Range<u64>| -> Result<Vec<u64>, ()> {
            Ok(run.clone().filter(|block| disk.get(*block) != 0).collect())
        };
        self.discarded.look(&ring, &marks, most, not_zero).unwrap();
    }

    /// The copy is the disk, and nothing is left to be done. `looks` if it may have to look first.
    fn is_the_disk(&mut self, looks: bool, what: &str) {
        for _ in 0..3 {
            self.whole_pass();
        }
        if looks {
            self.look(u64::MAX);
            assert_eq!(self.discarded.to_look_at(), 0);
            self.whole_pass();
        }
        assert!(nothing_new(self.double), "{what}");
        assert_eq!(self.discarded.work(&self.double.ring()), 0, "{what}");
        let all = self.disk.all();
        let missed: Vec<usize> = (0..all.len()).filter(|b| all[*b] != self.copy[*b]).collect();
        assert_eq!(missed, [0; 0], "{what}");
    }
}

/// Writes, discards, passes, kills, looks, each in its steps, in any order. What a discard leaves on
/// the disk is zeros; or, on another disk, what was there.
#[test]
fn dirty_wins_in_every_order() {
    const BLOCKS: u64 = 40;
    let (mut zeros_sent, mut kept, mut killed) = (0, 0, 0);
    for seed in 0..1000 {
        let mut random = Random(seed * 77_777 + 1);
        let keeps_content = seed % 3 == 2;
        let double = Double::of_blocks(BLOCKS);
        let disk = Disk::new(BLOCKS, keeps_content);
        let mut daemon = Daemon::new(&double, &disk);
        let mut ops: Vec<Op> = Vec::new();
        for step in 0..400 {
            match random.below(12) {
                0..=3 if ops.len() < 6 => {
                    let first = random.below(BLOCKS);
                    let count = 1 + random.below(6).min(BLOCKS - first - 1);
                    let version = (random.below(2) == 0).then_some(step + 1);
                    ops.push(double.issue(first, count, version));
                }
                0..=6 if !ops.is_empty() => {
                    let which = random.below(ops.len() as u64) as usize;
                    if double.go_on(&mut ops[which], &disk) {
                        ops.swap_remove(which);
                    }
                }
                7 => {
                    daemon.end_of_reading();
                    daemon.begin();
                    zeros_sent += daemon.pass.as_ref().unwrap().zeros.blocks();
                }
                8 | 9 => {
                    daemon.read();
                }
                10 => {
                    let kill = random.below(8);
                    daemon.end_of_reading();
                    let kill = (kill < 4).then_some(kill as u8);
                    killed += u32::from(kill.is_some());
                    daemon.end(random.below(5) == 0, kill);
                }
                _ if random.below(6) == 0 => daemon.look(random.below(9)),
                _ => {}
            }
        }
        daemon.end_of_reading();
        daemon.end(false, None);
        for mut op in ops {
            while !double.go_on(&mut op, &disk) {}
        }
        daemon.is_the_disk(keeps_content, &format!("seed {seed}"));
        kept += u32::from(keeps_content);
    }
    assert!(zeros_sent > 1000 && kept > 300 && killed > 1000, "{zeros_sent} {kept} {killed}");
}

impl Daemon<'_> {
    fn end_of_reading(&mut self) {
        while self.read() {}
    }
}

/// Threads write and discard the same blocks while passes follow each other.
#[test]
fn nothing_is_missed_while_passes_are_made() {
    const BLOCKS: u64 = 20_000;
    let (double, disk) = (Double::of_blocks(BLOCKS), Disk::new(BLOCKS, false));
    let stop = AtomicBool::new(false);
    let (mut passes, mut zeros) = (0, 0);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (double, disk, stop) = (&double, &disk, &stop);
            scope.spawn(move || {
                let mut random = Random(thread + 1);
                let mut version = thread << 40;
                while !stop.load(Ordering::Relaxed) {
                    version += 1;
                    let first = random.below(BLOCKS - 9);
                    let writes = (random.below(2) > 0).then_some(version);
                    let mut op = double.issue(first, 1 + random.below(8), writes);
                    while !double.go_on(&mut op, disk) {}
                }
            });
        }
        let mut daemon = Daemon::new(&double, &disk);
        let until = std::time::Instant::now() + std::time::Duration::from_millis(600);
        while std::time::Instant::now() < until {
            daemon.begin();
            zeros += daemon.pass.as_ref().unwrap().zeros.blocks();
            daemon.end_of_reading();
            let kill = (passes % 31 == 5).then_some((passes % 4) as u8);
            daemon.end(passes % 7 == 3, kill);
            passes += 1;
        }
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(50));
        daemon.is_the_disk(false, "threads");
    });
    assert!(passes > 20 && zeros > 1000, "{passes} passes, {zeros} blocks were zeros");
}
