//! Lives of a write log: writes, flushes, points, kills and power cuts, in any order.
//!
//! A model keeps what the disk was after each entry, which files and names are durable, and what
//! the server has. After a power cut any part of what was not durable is there, in any state. What
//! the log reads as then, over what the server has, must be the disk after some entry, not before the
//! last flush; and the log must build on the server's newest point, or be known to have become it.

use std::collections::BTreeMap;

use dormouse_device::write_log::{Base, Cut, Limits, WriteLog};

use crate::Target;
use crate::input::Input;
use crate::scratch::Scratch;

/// The life of a log.
pub const LIFE: Target = Target {
    name: "write-log",
    what: "writes, flushes, points, kills and power cuts of a write log, against a model",
    run: live,
    seeds,
    len_max: 1 << 10,
};

const BLOCK: usize = 4096;
/// Blocks of the disk, at most; more than one entry takes.
const BLOCKS: u64 = 300;
const LIMITS: Limits = Limits { bytes: 1 << 30, part: 1 << 20, wait: None };
const STEPS_MAX: usize = 60;
/// Blocks written with data in one input.
const DATA_MAX: u64 = 700;

/// What each block holds: 0 as it was, 1 zeros, others a number that fills it.
type Plain = Vec<u16>;

#[derive(Clone, PartialEq)]
struct Disk {
    size: u64,
    blocks: Plain,
}

/// What the server has.
struct Server {
    disk: Disk,
    /// The number of the state that it has.
    state: usize,
    point: u64,
    /// The generation of its newest point.
    generation: u64,
    checkpoint: bool,
}

struct Life {
    scratch: Scratch,
    log: Option<WriteLog>,
    /// The disk after each entry that changes it.
    states: Vec<Disk>,
    /// The state that is durable.
    flushed: usize,
    /// Durable bytes of each file.
    durable: BTreeMap<String, u64>,
    /// Files that were unlinked since the directory was last synced, in that order.
    unlinked: Vec<(String, Vec<u8>)>,
    server: Server,
    generation: u64,
    number: u16,
    data: u64,
}

fn live(data: &[u8]) {
    let mut input = Input::new(data);
    let size = 1 + input.u64() % BLOCKS;
    let disk = Disk { size: size << 12, blocks: vec![0; BLOCKS as usize] };
    let server = Server { disk: disk.clone(), state: 0, point: 1, generation: 1, checkpoint: true };
    let mut life = Life {
        scratch: Scratch::default(),
        log: None,
        states: vec![disk],
        flushed: 0,
        durable: BTreeMap::new(),
        unlinked: Vec::new(),
        server,
        generation: 1,
        number: 1,
        data: 0,
    };
    life.begin(false);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        life.step(&mut input);
    }
    life.killed();
}

impl Life {
    fn log(&self) -> &WriteLog {
        self.log.as_ref().unwrap()
    }

    fn now(&self) -> &Disk {
        self.states.last().unwrap()
    }

    fn base(&self) -> Base {
        let Server { point, .. } = self.server;
        Base { volume: [1; 16], generation: self.generation, seq: point, hash: [point as u8; 32] }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=3 => self.write(input),
            4 => self.write_each(input),
            5 | 6 => self.zero(input),
            7 => self.resize(input),
            8 => self.flush(),
            9 => drop(self.cut()),
            10 | 11 => self.send(input),
            12 => self.checkpoint(input),
            13 => self.reconnect(),
            14 => self.killed(),
            _ => self.power_cut(input),
        }
    }

    /// A range of the disk as it is now.
    fn range(&self, input: &mut Input<'_>) -> (u64, u64) {
        let blocks = self.now().size >> 12;
        let start = u64::from(input.u16()) % blocks;
        let count = match input.u8() {
            255 => blocks,
            small => 1 + u64::from(small) % 8,
        };
        (start, count.min(blocks - start))
    }

    /// The disk after one more entry.
    fn changed(&mut self, start: u64, end: u64, number: u16) {
        let mut next = self.now().clone();
        next.blocks[start as usize..end as usize].fill(number);
        self.states.push(next);
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let (start, count) = self.range(input);
        if self.data + count > DATA_MAX {
            return;
        }
        self.data += count;
        self.number += 1;
        self.log().write(start, &filled(self.number).repeat(count as usize)).unwrap();
        // An entry has 256 blocks at most, and a cut may come between two.
        let (middle, end) = (start + count.min(256), start + count);
        self.changed(start, middle, self.number);
        if middle < end {
            self.changed(middle, end, self.number);
        }
    }

    /// Several at once; a power cut may come between any two.
    fn write_each(&mut self, input: &mut Input<'_>) {
        let mut runs = Vec::new();
        for _ in 0..input.below(6) {
            let (start, count) = self.range(input);
            if count > 8 || self.data + count > DATA_MAX {
                continue;
            }
            self.data += count;
            self.number += 1;
            self.changed(start, start + count, self.number);
            runs.push((start, filled(self.number).repeat(count as usize)));
        }
        let runs: Vec<(u64, &[u8])> = runs.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        self.log().write_each(&runs).unwrap();
    }

    fn zero(&mut self, input: &mut Input<'_>) {
        let (start, count) = self.range(input);
        self.log().zero(start, count).unwrap();
        self.changed(start, start + count, 1);
    }

    fn resize(&mut self, input: &mut Input<'_>) {
        let (old, new) = (self.now().size >> 12, 1 + u64::from(input.u16()) % BLOCKS);
        self.log().resize(new << 12).unwrap();
        self.changed(new.min(old), old, 1);
        self.states.last_mut().unwrap().size = new << 12;
    }

    fn flush(&mut self) {
        self.log().flush().unwrap();
        self.flushed = self.states.len() - 1;
        self.durable = lengths(&self.scratch);
    }

    /// A file was begun: its name and header are durable, and so is every name before it.
    fn began_file(&mut self) {
        self.unlinked.clear();
        let (name, len) = lengths(&self.scratch).pop_last().unwrap();
        self.durable.insert(name, len);
    }

    fn cut(&mut self) -> Option<Cut> {
        let files = lengths(&self.scratch).len();
        let cut = self.log().cut().unwrap();
        if lengths(&self.scratch).len() > files {
            self.began_file();
        }
        let cut = cut?;
        // What it holds, over what the server has, is the disk now.
        assert_eq!(cut.size, self.now().size);
        let mut disk = self.server.disk.blocks.clone();
        for (start, end, zeros) in cut.runs() {
            let mut bytes = vec![0xee; (end - start) as usize * BLOCK];
            cut.read(start, &mut bytes).unwrap();
            for (block, bytes) in (start..).zip(bytes.chunks(BLOCK)) {
                disk[block as usize] = number_of(bytes);
                assert!(!zeros || disk[block as usize] == 1);
            }
        }
        assert!(disk == self.now().blocks, "a cut is not what was written");
        Some(cut)
    }

    /// A point is made; this side may be told of it, or not.
    fn send(&mut self, input: &mut Input<'_>) {
        let Some(cut) = self.cut() else { return };
        self.flush();
        self.server.disk = self.now().clone();
        self.server.state = self.states.len() - 1;
        self.server.point += 1;
        (self.server.generation, self.server.checkpoint) = (self.generation, false);
        match input.below(8) {
            0 => return self.power_cut(input),
            1 => return self.killed(),
            2 => return self.reconnect(),
            _ => {}
        }
        let before = self.scratch.files();
        self.log().forget(cut, self.base()).unwrap();
        let after = lengths(&self.scratch);
        self.unlinked.extend(before.into_iter().filter(|(name, _)| !after.contains_key(name)));
        assert!(!self.log().pending());
    }

    /// A point with the content of the newest; this side may be told of it, or not.
    fn checkpoint(&mut self, input: &mut Input<'_>) {
        self.flush();
        self.server.point += 1;
        (self.server.generation, self.server.checkpoint) = (self.generation, true);
        if input.below(4) > 0 {
            self.log().builds_on(self.base()).unwrap();
        } else {
            self.power_cut(input);
        }
    }

    /// Under a new generation, on what the server has.
    fn reconnect(&mut self) {
        self.generation += 1;
        self.log().rebase(self.base()).unwrap();
        self.began_file();
    }

    /// The process ends; what it wrote is there.
    fn killed(&mut self) {
        self.log = None;
        self.opens(self.states.len() - 1);
    }

    /// Of what is not durable any part is lost.
    fn power_cut(&mut self, input: &mut Input<'_>) {
        self.log = None;
        for (name, bytes) in self.scratch.files() {
            let durable = self.durable.get(&name).copied().unwrap_or(0) as usize;
            if name.ends_with(".log") && bytes.len() > durable {
                self.scratch.put(&name, &spoiled(bytes, durable, input));
            }
        }
        // Names go in the order in which they were unlinked.
        let gone = input.below(self.unlinked.len() + 1);
        for (name, bytes) in self.unlinked.split_off(gone) {
            self.scratch.put(&name, &bytes);
        }
        self.unlinked.clear();
        self.durable = lengths(&self.scratch);
        self.opens(self.flushed);
        self.flushed = self.states.len() - 1;
    }

    /// It is opened again: it holds a state, not an earlier one than `least`.
    fn opens(&mut self, least: usize) {
        let (log, left) = WriteLog::open(self.scratch.path(), LIMITS, 1).unwrap();
        let left = left.unwrap();
        let mut disk = Disk { size: left.size, blocks: self.server.disk.blocks.clone() };
        let held = held(&log);
        disk.blocks.iter_mut().zip(held).for_each(|(to, held)| *to = held.unwrap_or(*to));
        let found = self.states.iter().rposition(|state| *state == disk);
        let found = found.expect("no prefix of what was written");
        assert!(found >= least && found >= self.server.state, "{found} of {least}");
        self.states.truncate(found + 1);
        let Server { point, generation, checkpoint, .. } = self.server;
        let made_here = left.base.seq + 1 == point && (left.after_cut || checkpoint);
        assert!(left.base.seq == point || made_here, "it would be refused: {left:?}, {point}");
        assert!(left.generation >= generation, "{left:?}, {generation}");
        self.log = Some(log);
        self.generation += 1;
        self.begin(true);
    }

    fn begin(&mut self, again: bool) {
        if again {
            assert_eq!(self.log().size(), self.now().size);
        } else {
            let (log, left) = WriteLog::open(self.scratch.path(), LIMITS, 1).unwrap();
            assert!(left.is_none());
            self.log = Some(log);
        }
        self.log().begin(self.base(), self.now().size).unwrap();
        self.durable.retain(|name, _| self.scratch.path().join(name).exists());
        self.began_file();
    }
}

/// What a file may hold whose end is not durable: less, with holes, old bytes, or a bit changed.
fn spoiled(mut bytes: Vec<u8>, durable: usize, input: &mut Input<'_>) -> Vec<u8> {
    let tail = bytes.len() - durable;
    let mut place = || durable + usize::from(input.u16()) * 61 % tail;
    match place() % 4 {
        0 => {}
        _ => bytes.truncate(place()),
    }
    if bytes.len() == durable {
        return bytes;
    }
    for _ in 0..place() % 3 {
        let (from, to) = (place().min(bytes.len()), place().min(bytes.len()));
        let (from, to) = (from.min(to), from.max(to));
        match place() % 3 {
            0 => bytes[from..to].fill(0),
            1 => bytes.copy_within(
                from - (from - durable).min(4160)..to - (to - durable).min(4160),
                from,
            ),
            _ if from < to => bytes[from] ^= 1 << (to % 8),
            _ => {}
        }
    }
    bytes
}

fn filled(number: u16) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 2)
}

fn number_of(bytes: &[u8]) -> u16 {
    let number = u16::from_le_bytes([bytes[0], bytes[1]]);
    assert!(bytes == filled(number), "a block of two writes");
    number.max(1)
}

/// What each block holds in the log.
fn held(log: &WriteLog) -> Vec<Option<u16>> {
    let (mut out, mut missing) = (vec![0xee; BLOCKS as usize * BLOCK], Vec::new());
    log.read(0, &mut out, &mut missing).unwrap();
    let mut all: Vec<Option<u16>> = vec![Some(0); BLOCKS as usize];
    for (first, count) in missing {
        all[first as usize..(first + count) as usize].fill(None);
    }
    for (to, bytes) in all.iter_mut().zip(out.chunks(BLOCK)).filter(|(to, _)| to.is_some()) {
        *to = Some(number_of(bytes));
    }
    all
}

/// Lengths of the log's files.
fn lengths(scratch: &Scratch) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap());
    let file = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        name.ends_with(".log").then(|| (name, entry.metadata().unwrap().len()))
    };
    entries.filter_map(file).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let with = |ops: &[&[u8]]| [&[40, 0, 0, 0, 0, 0, 0, 0][..], &ops.concat()].concat();
    let (write, zero, size): (&[u8], &[u8], &[u8]) = (&[0, 3, 0, 2], &[5, 9, 0, 4], &[7, 20, 0]);
    let (flush, cut, send, told): (&[u8], &[u8], &[u8], &[u8]) = (&[8], &[9], &[10], &[7]);
    let (again, killed, power): (&[u8], &[u8], &[u8]) = (&[13], &[14], &[15]);
    let spoils: &[u8] = &[1, 0, 9, 0, 2, 0, 30, 0, 50, 0, 1, 0, 7, 0, 3, 0];
    let mut out = vec![
        with(&[write, zero, write, flush, write, power, spoils, write, killed]),
        with(&[write, send, told, write, &[12, 1], zero, power, spoils, send, told]),
        with(&[write, send, &[0], spoils, write, send, &[1], write, send, &[2], write, flush]),
        with(&[write, cut, write, size, write, again, cut, zero, power, spoils, killed, size]),
        with(&[write, &[4, 4, 1, 0, 2, 2, 0, 3, 9, 0, 1, 2, 0, 0], flush, write, power, spoils]),
        with(&[write, send, told, write, send, told, power, spoils, spoils, &[12, 0], spoils]),
        [&[43, 1, 0, 0, 0, 0, 0, 0][..], &[0, 0, 0, 255, 15], spoils, &[0, 0, 0, 255, 8, 15]]
            .concat(),
    ];
    // Longer ones, of everything.
    for n in 0..6u64 {
        let mut state = n + 1;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        out.push((0..200).map(|_| byte()).collect());
    }
    out
}
