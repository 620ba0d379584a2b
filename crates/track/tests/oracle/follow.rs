//! A copy that follows a device by its marks alone.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use dormouse_track::device::Disk;
use dormouse_track::dirty::Dirty;
use dormouse_track::discards::{Discarded, parts};
use dormouse_track::ebpf::Watch;

use crate::place::Place;

const BLOCK: usize = 4096;

pub struct Follower {
    watch: Option<Watch>,
    device: File,
    copy: Vec<u8>,
    pub passes: u64,
    marked: u64,
    discarded: Discarded,
    /// Blocks that were taken for zeros, and not read.
    pub zeros: u64,
}

impl Follower {
    /// Begins to watch, and copies all.
    pub fn begin(place: &Place) -> Self {
        let disk = Disk::of(&place.device).unwrap();
        let watch = Watch::begin(&disk, &place.pins()).unwrap();
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let device = File::options().read(true).custom_flags(direct).open(&place.device).unwrap();
        let copy = vec![0; disk.size() as usize];
        let discarded = Discarded::default();
        let watch = Some(watch);
        let mut follower = Self { watch, device, copy, passes: 0, marked: 0, discarded, zeros: 0 };
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

    /// Takes over what is marked, and what was discarded. Every seventh fails after it was read, and
    /// now and then the daemon dies.
    pub fn pass(&mut self) {
        self.passes += 1;
        let watch = self.watch.as_ref().unwrap();
        let (marks, ring) = (watch.marks().unwrap(), watch.ring().unwrap());
        marks.cut();
        self.discarded.drain(&ring, &marks, ring.put());
        let (dirty, _) = marks.carried(usize::MAX, u64::MAX, &Dirty::default());
        let (zeros, _) = self.discarded.zeros();
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
            for run in zeros.iter() {
                let end = (run.end as usize * BLOCK).min(self.copy.len());
                self.copy[run.start as usize * BLOCK..end].fill(0);
            }
            self.zeros += zeros.blocks();
            self.discarded.sent(&ring, &marks, &zeros, &dirty);
            marks.forget(&dirty);
        }
        marks.carry_back();
        if self.passes % 11 == 7 {
            self.discarded = Discarded::left(&ring, &marks);
        }
    }

    /// Looks at all that was discarded. The blocks that are not zero.
    fn look(&mut self) -> u64 {
        let watch = self.watch.as_ref().unwrap();
        let (marks, ring) = (watch.marks().unwrap(), watch.ring().unwrap());
        let (mut buffer, mut found) = (Aligned::new(1 << 20), 0);
        let (device, size) = (&self.device, self.copy.len());
        let looked = self.discarded.look(&ring, &marks, u64::MAX, |run| {
            let mut blocks = Vec::new();
            for part in parts(run) {
                let at = part.start as usize * BLOCK;
                let bytes = &mut buffer.bytes()[..(part.end as usize * BLOCK).min(size) - at];
                device.read_exact_at(bytes, at as u64)?;
                let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
                let all = part.zip(bytes.chunks(BLOCK));
                blocks.extend(all.filter(|(_, b)| !zero(b)).map(|(block, _)| block));
            }
            found += blocks.len() as u64;
            std::io::Result::Ok(blocks)
        });
        looked.unwrap();
        assert_eq!(self.discarded.to_look_at(), 0);
        found
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
        // This disk punches holes: what was discarded is zeros, and a look finds nothing.
        assert!(
            self.discarded.zeros().0.is_empty(),
            "{load}: more was discarded than a pass takes"
        );
        let missed = blocks(&self.copy, &now);
        assert!(
            missed.is_empty(),
            "{load}: {} missed: {:?}",
            missed.len(),
            &missed[..missed.len().min(20)]
        );
        assert_eq!(self.look(), 0, "{load}: zeros in the copy, and not on the disk");
        let changed = blocks(&before, &now).len() as u64;
        (std::mem::take(&mut self.marked), changed)
    }

    /// Goes on with the new size, as a daemon that notices it late.
    pub fn resized(&mut self, place: &Place) {
        let disk = Disk::of(&place.device).unwrap();
        let watch = self.watch.take().unwrap();
        self.watch = Some(watch.resized(&disk).unwrap());
        self.discarded = Discarded::default();
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
