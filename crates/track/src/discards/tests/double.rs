//! The kernel's part, in this process: the rules of `bpf/track.bpf.c` for whole blocks, and a disk.

use crate::marks::tests::{Memory, zeros};

use super::*;

/// Blocks, each a number; 0 is a block of zeros.
pub struct Disk {
    blocks: Vec<AtomicU64>,
    /// What was discarded stays as it is.
    keeps_content: bool,
}

impl Disk {
    pub fn new(blocks: u64, keeps_content: bool) -> Self {
        Self { blocks: zeros(blocks as usize), keeps_content }
    }

    fn take(&self, op: &Op) {
        if op.version.is_some() || !self.keeps_content {
            let blocks = &self.blocks[op.first as usize..(op.first + op.count) as usize];
            blocks.iter().for_each(|b| b.store(op.version.unwrap_or(0), Ordering::SeqCst));
        }
    }

    pub fn get(&self, block: u64) -> u64 {
        self.blocks[block as usize].load(Ordering::SeqCst)
    }

    pub fn all(&self) -> Vec<u64> {
        self.blocks.iter().map(|block| block.load(Ordering::SeqCst)).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Issued,
    /// It has done its work at the disk.
    Done,
    /// Of a discard: whether no write had said anything at its place.
    Looked(bool),
    /// Of a write: it has said so at the discards that it met. Of a discard: it is in the ring, if it
    /// may be.
    Ending(bool),
}

/// A request on its way.
pub struct Op {
    first: u64,
    count: u64,
    /// None: a discard.
    version: Option<u64>,
    /// Its place among those that are under way.
    place: Option<usize>,
    /// How far it has come.
    stage: Stage,
}

pub struct Double {
    memory: Memory,
    open: Vec<AtomicU64>,
    entries: Vec<AtomicU64>,
    requests: AtomicU64,
}

impl Double {
    pub fn of_blocks(blocks: u64) -> Self {
        let (open, entries) = (zeros(OPEN_WORDS), zeros(DISCARDS_WORDS));
        Self { memory: Memory::of_blocks(blocks), open, entries, requests: AtomicU64::new(1) }
    }

    pub fn marks(&self) -> Marks<'_> {
        self.memory.marks()
    }

    pub fn ring(&self) -> Ring<'_> {
        Ring::over(self.memory.control(), &self.open, &self.entries).unwrap()
    }

    pub fn control(&self, field: usize) -> &AtomicU64 {
        &self.memory.control()[field]
    }

    pub fn place(&self, place: usize) -> &[AtomicU64] {
        &self.open[place * OPEN_WIDTH..][..OPEN_WIDTH]
    }

    pub fn issue(&self, first: u64, count: u64, version: Option<u64>) -> Op {
        let mut op = Op { first, count, version, place: None, stage: Stage::Issued };
        match version {
            Some(_) => self.written(&op),
            None => op.place = self.begin(&op),
        }
        if op.place.is_none() {
            self.marks().mark(first, count);
        }
        op
    }

    /// The next step: at the disk, and then those of its end. Whether that was the last.
    pub fn go_on(&self, op: &mut Op, disk: &Disk) -> bool {
        match op.stage {
            Stage::Issued => {
                disk.take(op);
                op.stage = Stage::Done;
            }
            Stage::Done if op.version.is_some() => {
                self.written(op);
                op.stage = Stage::Ending(false);
            }
            Stage::Done => {
                let certain = op.place.is_some_and(|place| !self.was_written(place));
                op.stage = Stage::Looked(certain);
            }
            Stage::Looked(certain) => {
                op.stage = Stage::Ending(certain && self.put(op.first, op.count));
            }
            Stage::Ending(certain) => {
                if !(op.place.is_some_and(|place| self.leave(place)) && certain) {
                    self.marks().mark(op.first, op.count);
                }
                return true;
            }
        }
        false
    }

    fn was_written(&self, place: usize) -> bool {
        self.place(place)[4].load(Ordering::SeqCst) != 0
    }

    /// Whether no write has met the discard that was here.
    fn leave(&self, place: usize) -> bool {
        let certain = !self.was_written(place);
        // (Nobody gives it up here: see the scene of that.)
        self.place(place)[0].store(0, Ordering::SeqCst);
        self.control(at::OPEN).fetch_sub(1, Ordering::SeqCst);
        certain
    }

    fn written(&self, op: &Op) {
        if self.control(at::OPEN).load(Ordering::SeqCst) == 0 {
            return;
        }
        for place in self.open.chunks_exact(OPEN_WIDTH) {
            let get = |i: usize| place[i].load(Ordering::SeqCst);
            if get(0) != 0 && get(1) < (op.first + op.count) * 8 && op.first * 8 < get(2) {
                place[4].store(1, Ordering::SeqCst);
            }
        }
    }

    fn begin(&self, op: &Op) -> Option<usize> {
        let request = self.requests.fetch_add(1, Ordering::SeqCst);
        let epoch = self.marks().epoch();
        self.control(at::OPEN).fetch_add(1, Ordering::SeqCst);
        let free = |place: &[AtomicU64]| {
            place[0].compare_exchange(0, request, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        let found = self.open.chunks_exact(OPEN_WIDTH).position(free);
        let Some(found) = found else {
            self.control(at::OPEN).fetch_sub(1, Ordering::SeqCst);
            return None;
        };
        let values = [op.first * 8, (op.first + op.count) * 8, epoch, 0];
        let words = self.place(found)[1..].iter();
        words.zip(values).for_each(|(word, value)| word.store(value, Ordering::SeqCst));
        Some(found)
    }

    pub fn put(&self, first: u64, count: u64) -> bool {
        self.ring().discard(first, count)
    }
}
