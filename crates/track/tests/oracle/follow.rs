//! A copy that follows a device by its marks alone.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use dormouse_track::device::Disk;
use dormouse_track::dirty::Dirty;
use dormouse_track::ebpf::Watch;

use crate::place::Place;

const BLOCK: usize = 4096;

pub struct Follower {
    watch: Option<Watch>,
    device: File,
    copy: Vec<u8>,
    pub passes: u64,
    marked: u64,
}

impl Follower {
    /// Begins to watch, and copies all.
    pub fn begin(place: &Place) -> Self {
        let disk = Disk::of(&place.device).unwrap();
        let watch = Watch::begin(&disk, &place.pins()).unwrap();
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let device = File::options().read(true).custom_flags(direct).open(&place.device).unwrap();
        let copy = vec![0; disk.size() as usize];
        let mut follower = Self { watch: Some(watch), device, copy, passes: 0, marked: 0 };
        follower.copy = follower.whole();
        follower
    }

    fn whole(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.copy.len());
        let mut buffer = Aligned::new(1 << 20);
        while all.len() < self.copy.len() {
            let want = buffer.bytes().len().min(self.copy.len() - all.len());
            self.device.read_exact_at(&mut buffer.bytes()[..want], all.len() as u64).unwrap();
            all.extend_from_slice(&buffer.bytes()[..want]);
        }
        all
    }

    /// Takes over what is marked. Every seventh fails after it was read.
    pub fn pass(&mut self) {
        self.passes += 1;
        let marks = self.watch.as_ref().unwrap().marks().unwrap();
        marks.cut();
        let (dirty, _) = marks.carried(usize::MAX, u64::MAX, &Dirty::default());
        let mut buffer = Aligned::new(BLOCK);
        let failed = self.passes.is_multiple_of(7);
        for block in dirty.all_blocks() {
            let at = block as usize * BLOCK;
            let Some(len) = self.copy.len().checked_sub(at).map(|n| n.min(BLOCK)) else { continue };
            self.device.read_exact_at(&mut buffer.bytes()[..len], at as u64).unwrap();
            if !failed {
                self.copy[at..at + len].copy_from_slice(&buffer.bytes()[..len]);
                self.marked += 1;
            }
        }
        if !failed {
            marks.forget(&dirty);
        }
        marks.carry_back();
    }

    /// The disk stands still: the copy must equal it. How many blocks were taken over since
    /// the last time, and how many had changed.
    pub fn judge(&mut self, load: &str) -> (u64, u64) {
        let before = self.copy.clone();
        rustix::fs::fsync(&self.device).unwrap();
        self.pass();
        self.pass();
        let now = self.whole();
        let blocks = |a: &[u8], b: &[u8]| -> Vec<usize> {
            let pairs = a.chunks(BLOCK).zip(b.chunks(BLOCK));
            pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect()
        };
        let missed = blocks(&self.copy, &now);
        assert!(
            missed.is_empty(),
            "{load}: {} missed: {:?}",
            missed.len(),
            &missed[..missed.len().min(20)]
        );
        let changed = blocks(&before, &now).len() as u64;
        (std::mem::take(&mut self.marked), changed)
    }

    /// Goes on with the new size, as a daemon that notices it late.
    pub fn resized(&mut self, place: &Place) {
        let disk = Disk::of(&place.device).unwrap();
        let watch = self.watch.take().unwrap();
        self.watch = Some(watch.resized(&disk).unwrap());
        self.copy.resize(disk.size() as usize, 0);
    }

    pub fn beyond(&self) -> u64 {
        self.watch().marks().unwrap().beyond()
    }

    fn watch(&self) -> &Watch {
        self.watch.as_ref().unwrap()
    }

    pub fn everything(&self) -> u64 {
        self.watch().marks().unwrap().everything()
    }
}

/// Memory for direct reads and writes.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start, len }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
