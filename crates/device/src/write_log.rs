//! The write log of a network disk: every write in its order, on this machine, until the server
//! has it.
//!
//! Owns: the files of one directory, and which block's newest content lies where in them.
//! Invariant: after a crash the log reads as a prefix of what was written, not shorter than at
//! the last flush that returned; every block that is read is compared with its sum. What is
//! forgotten was acknowledged by the server. Leaves to others: sending (the program), and what a
//! block was before it was written here.

mod entry;
mod files;
mod runs;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_format::limits::BLOCK_SIZE;
use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};
pub use entry::Base;
use entry::{BLOCKS_MAX, EntryHead, FILE_HEAD, FileHead, HASH_SUMS, Kind, block_sum, hash_sums};
use runs::{Content, Runs, Span};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Entries that are written with one call, at most.
const TOGETHER: usize = 128;

/// The shape of a log.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all files, at most: a write that does not fit waits.
    pub bytes: u64,
    /// How long a write waits for room; `None`: for ever.
    pub wait: Option<Duration>,
}

/// What an earlier process left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// On what it builds.
    pub base: Base,
    /// Whether one point may have been made out of it after that.
    pub after_cut: bool,
    /// The newest generation under which it was written, and points were made of it.
    pub generation: u64,
    /// The disk's size after all of it.
    pub size: u64,
    /// Entries that were taken.
    pub entries: u64,
    /// Bytes behind them that were never flushed.
    pub torn: u64,
}

/// A log. Used by many threads at once.
#[derive(Debug)]
pub struct WriteLog {
    dir: PathBuf,
    limits: Limits,
    salt: u64,
    state: Mutex<State>,
    /// Told when something was forgotten, or the log ends.
    room: Condvar,
    _lock: File,
}

#[derive(Debug)]
struct State {
    /// Written since the last cut.
    now: Runs,
    /// What the last cut took, until it is forgotten.
    old: Option<Arc<Runs>>,
    /// Older files, and the one that is written; none before [`WriteLog::begin`].
    files: VecDeque<Part>,
    /// Where the next entry goes in the last of them.
    tail: u64,
    next_number: u64,
    /// Files of an earlier process in which nothing counts.
    lost: Vec<PathBuf>,
    size: u64,
    seq: u64,
    /// The number behind the last entry that changed the disk.
    written: u64,
    chain: u64,
    /// Entries below are durable.
    durable: u64,
    /// Whether `now` holds an entry that the last cut has not.
    touched: bool,
    bytes: u64,
    base: Option<Base>,
    ended: Option<&'static str>,
}

#[derive(Debug)]
struct Part {
    number: u64,
    path: PathBuf,
    file: Arc<File>,
    synced: bool,
}

/// What was written up to one moment: a prefix of the log. It stays readable until it is
/// forgotten.
#[derive(Debug, Clone)]
pub struct Cut {
    runs: Arc<Runs>,
    /// The disk's size then.
    pub size: u64,
    /// Entries with a lower number are in it.
    pub seq: u64,
    /// The first file that is not of it.
    behind: u64,
}

impl WriteLog {
    /// Takes the log of a directory, which is made if it is not there, and what is in it.
    /// `salt` is random. Nothing can be written before [`Self::begin`].
    pub fn open(dir: &Path, limits: Limits, salt: u64) -> Result<(Self, Option<Left>)> {
        std::fs::create_dir_all(dir)?;
        let lock = private().open(dir.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let dir = dir.display();
            return Err(Error::Damaged(format!("another process writes the log in {dir}")));
        }
        let replay = files::replay(dir)?;
        let left = replay.first.map(|_| Left {
            base: replay.base,
            after_cut: replay.after_cut,
            generation: replay.generation,
            size: replay.size,
            entries: replay.writes,
            torn: replay.torn,
        });
        let mut parts = VecDeque::new();
        for (number, path) in replay.files {
            let file = Arc::new(File::open(&path)?);
            parts.push_back(Part { number, path, file, synced: false });
        }
        let state = State {
            touched: left.is_some_and(|left| left.entries > 0),
            now: replay.runs,
            old: None,
            files: parts,
            tail: 0,
            next_number: replay.next_number,
            lost: replay.lost,
            size: replay.size,
            seq: replay.seq,
            written: replay.seq,
            chain: replay.chain,
            durable: 0,
            bytes: replay.bytes,
            base: None,
            ended: None,
        };
        let (dir, state, room) = (dir.to_owned(), Mutex::new(state), Condvar::new());
        Ok((Self { dir, limits, salt, state, room, _lock: lock }, left))
    }

    /// Begins writing, on this base; `size` is the disk's if nothing was left.
    pub fn begin(&self, base: Base, size: u64) -> Result<()> {
        let lost = std::mem::take(&mut self.state().lost);
        lost.into_iter().try_for_each(std::fs::remove_file)?;
        let mut state = self.state();
        if state.files.is_empty() {
            state.size = size;
        }
        drop(state);
        self.rebase(base)
    }

    /// What is written from now on builds on `base`, and so does what was written and not
    /// forgotten. That is durable when this returns: only then may a point be made under a new
    /// generation. For one thread.
    pub fn rebase(&self, base: Base) -> Result<()> {
        let part = self.new_file()?;
        let file = Arc::clone(&part.file);
        let mut state = self.state();
        state.base = Some(base);
        // What was cut, and is not forgotten, is tried again.
        let after_cut = state.old.is_some();
        self.go_on_in(part, after_cut, &mut state)?;
        drop(state);
        Ok(file.sync_data()?)
    }

    /// Drops what an earlier process left; before [`Self::begin`].
    pub fn discard(&self) -> Result<()> {
        let mut state = self.state();
        state.files.drain(..).try_for_each(|part| std::fs::remove_file(part.path))?;
        File::open(&self.dir)?.sync_all()?;
        (state.now, state.touched, state.bytes) = (Runs::default(), false, 0);
        (state.seq, state.written, state.chain) = (0, 0, 0);
        Ok(())
    }

    /// Writes whole blocks.
    pub fn write(&self, block: u64, bytes: &[u8]) -> Result<()> {
        self.write_each(&[(block, bytes)])
    }

    /// Writes runs of whole blocks, one after the other: the block at which each begins, and its
    /// bytes. Short ones go to the file together.
    pub fn write_each(&self, runs: &[(u64, &[u8])]) -> Result<()> {
        let part_max = BLOCKS_MAX as usize * BLOCK_SIZE;
        let (mut entries, mut bytes) = (Vec::with_capacity(runs.len()), 0);
        for (block, run) in runs {
            for (data, first) in run.chunks(part_max).zip((*block..).step_by(BLOCKS_MAX as usize)) {
                if bytes + data.len() > part_max || entries.len() >= TOGETHER {
                    self.append(std::mem::take(&mut entries))?;
                    bytes = 0;
                }
                let blocks = data.chunks_exact(BLOCK_SIZE).zip(first..);
                let sums: Box<[u64]> = blocks.map(|(b, n)| block_sum(self.salt, n, b)).collect();
                let count = sums.len() as u64;
                entries.push(Entry { kind: Kind::Data, block: first, count, sums, data });
                bytes += data.len();
            }
        }
        self.append(entries)
    }

    /// Makes blocks zero.
    pub fn zero(&self, block: u64, count: u64) -> Result<()> {
        self.append(vec![Entry { count, ..Entry::of(Kind::Zero, block) }])
    }

    /// The disk has another size from now on, in bytes, whole blocks.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.append(vec![Entry::of(Kind::Size, size)])
    }

    /// The disk's size now.
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Makes all durable that was written before.
    pub fn flush(&self) -> Result<()> {
        let (parts, seq) = {
            let state = self.state();
            if let Some(why) = state.ended {
                return Err(failed(why));
            }
            if state.durable == state.seq {
                return Ok(());
            }
            let unsynced = state.files.iter().filter(|part| !part.synced);
            let parts: Vec<_> = unsynced.map(|p| (p.number, Arc::clone(&p.file))).collect();
            (parts, state.seq)
        };
        let synced = parts.iter().try_for_each(|(_, file)| file.sync_data());
        let mut state = self.state();
        if let Err(e) = synced {
            // What is in the files now is not known: nothing may be written behind it.
            state.ended = Some("a sync of the write log failed");
            self.room.notify_all();
            return Err(e.into());
        }
        state.durable = state.durable.max(seq);
        let last = parts.last().map_or(0, |(number, _)| *number);
        for part in state.files.iter_mut().filter(|part| part.number < last) {
            part.synced = true;
        }
        Ok(())
    }

    /// Reads `out`, whole blocks from `block` on, where they were written here; `missing` gets
    /// the first block and the number of those that were not.
    pub fn read(&self, block: u64, out: &mut [u8], missing: &mut Vec<(u64, u64)>) -> Result<()> {
        let end = block + out.len() as u64 / BLOCK;
        let mut found = Vec::new();
        {
            let state = self.state();
            state.now.parts(block, end, &mut |start, stop, content| match content {
                Some(content) => found.push((start, stop, content.clone())),
                None => match &state.old {
                    Some(old) => {
                        old.parts(start, stop, &mut |start, stop, content| match content {
                            Some(content) => found.push((start, stop, content.clone())),
                            None => missing.push((start, stop - start)),
                        })
                    }
                    None => missing.push((start, stop - start)),
                },
            });
        }
        for (start, stop, content) in found {
            let range = (start - block) as usize * BLOCK_SIZE..(stop - block) as usize * BLOCK_SIZE;
            read_content(start, &content, &mut out[range])?;
        }
        Ok(())
    }

    /// Whether `block` was written here, and up to where before `end` that is so.
    pub fn held(&self, block: u64, end: u64) -> (bool, u64) {
        let state = self.state();
        let new = state.now.same(block, end);
        if new.0 {
            return new;
        }
        state.old.as_ref().map_or(new, |old| old.same(block, new.1))
    }

    /// Whether `block`, which was written here, is zeros, and up to where that is one run.
    pub fn zeros(&self, block: u64) -> (bool, u64) {
        let state = self.state();
        let (held, end) = state.now.same(block, u64::MAX);
        let runs = if held { Some(&state.now) } else { state.old.as_deref() };
        let mut found = (false, end);
        if let Some(runs) = runs {
            runs.parts(block, block + 1, &mut |_, _, content| {
                found.0 = matches!(content, Some(Content::Zero));
            });
            found.1 = found.1.min(runs.run_end(block).unwrap_or(end));
        }
        found
    }

    /// The number behind the last entry that changed the disk.
    pub fn written(&self) -> u64 {
        self.state().written
    }

    /// Takes what was written so far, together with what an earlier cut took and was not
    /// forgotten; `None` if there is nothing. For one thread.
    pub fn cut(&self) -> Result<Option<Cut>> {
        if !self.pending() {
            return Ok(None);
        }
        let mut state = self.state();
        if state.touched {
            drop(state);
            let part = self.new_file()?;
            let file = Arc::clone(&part.file);
            state = self.state();
            self.go_on_in(part, true, &mut state)?;
            let now = std::mem::take(&mut state.now);
            let old = match state.old.take() {
                None => now,
                Some(old) => {
                    let mut old = Arc::unwrap_or_clone(old);
                    now.all()
                        .for_each(|(start, end, content)| old.put(start, end, content.clone()));
                    old
                }
            };
            state.old = Some(Arc::new(old));
            state.touched = false;
            drop(state);
            // Before a point is made of it: so it is known to be of this log.
            file.sync_data()?;
            state = self.state();
        }
        let behind = state.files.back().map_or(0, |part| part.number);
        let runs = state.old.clone().unwrap_or_default();
        Ok(Some(Cut { runs, size: state.size, seq: state.seq, behind }))
    }

    /// Forgets a cut: the server has it. What was written since builds on `base`.
    pub fn forget(&self, cut: Cut, base: Base) -> Result<()> {
        let old = self.state().old.take();
        if let Err(e) = self.builds_on(base) {
            self.state().old = old;
            return Err(e);
        }
        let behind = cut.behind;
        drop((cut, old));
        let mut state = self.state();
        while state.files.front().is_some_and(|part| part.number < behind) {
            let Some(part) = state.files.pop_front() else { break };
            let len = part.file.metadata().map_or(0, |m| m.len());
            state.bytes = state.bytes.saturating_sub(len);
            std::fs::remove_file(&part.path)?;
        }
        self.room.notify_all();
        Ok(())
    }

    /// What is written, and not forgotten, builds on this point, of the same generation: it has
    /// the same content as the one before, and what was forgotten.
    pub fn builds_on(&self, base: Base) -> Result<()> {
        let sums = hash_sums(&base.hash);
        let kind = {
            let mut state = self.state();
            state.base = Some(base);
            if state.old.is_some() { Kind::BaseOfCut } else { Kind::Base }
        };
        let sums = Box::new(sums);
        self.append(vec![Entry { count: HASH_SUMS, sums, ..Entry::of(kind, base.seq) }])
    }

    /// Bytes that are kept, and entries that were written.
    pub fn kept(&self) -> (u64, u64) {
        let state = self.state();
        (state.bytes, state.seq)
    }

    /// Whether more than half of what it may take is taken.
    pub fn is_half_full(&self) -> bool {
        self.state().bytes > self.limits.bytes / 2
    }

    /// Whether something was written that no cut has taken and the server has acknowledged.
    pub fn pending(&self) -> bool {
        let state = self.state();
        state.touched || state.old.is_some()
    }

    /// Ends it: who waits for room gets an error, and so does whoever writes.
    pub fn end(&self, why: &'static str) {
        self.state().ended.get_or_insert(why);
        self.room.notify_all();
    }

    /// Whether so many bytes could be written now, in whole blocks or not, without waiting for room.
    pub fn has_room(&self, bytes: u64) -> bool {
        // An entry's head and sums are less than its data, and so are two edges.
        let need = bytes * 2 + 4 * BLOCK;
        self.state().bytes + need <= self.limits.bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends entries, all or none of them.
    fn append(&self, entries: Vec<Entry<'_>>) -> Result<()> {
        let need = entries.iter().map(Entry::len).sum();
        let small = entries.iter().all(Entry::is_base);
        let mut state = self.wait_for_room(need, small)?;
        let file = match state.files.back() {
            Some(part) if state.base.is_some() => Arc::clone(&part.file),
            _ => return Err(Error::Closed),
        };
        let (at, mut seq, mut chain) = (state.tail, state.seq, state.chain);
        let mut heads = Vec::with_capacity(entries.iter().map(|e| e.head_len() as usize).sum());
        for entry in &entries {
            let Entry { kind, block, count, .. } = *entry;
            let head = EntryHead { kind, block, count, seq, durable: state.durable, chain, sum: 0 };
            (seq, chain) = (seq + 1, head.encode(self.salt, &entry.sums, &mut heads));
        }
        // Both under the lock: the order in the log is the order in which they count here.
        put(&file, at, &heads, &entries)?;
        state.bytes += need;
        for entry in entries {
            let data = state.tail + entry.head_len();
            state.tail += entry.len();
            state.count(entry, &file, self.salt, data);
        }
        state.chain = chain;
        Ok(())
    }

    fn wait_for_room(&self, need: u64, small: bool) -> Result<MutexGuard<'_, State>> {
        let until = self.limits.wait.map(|wait| Instant::now() + wait);
        let mut state = self.state();
        loop {
            if let Some(why) = state.ended {
                return Err(failed(why));
            }
            // One entry goes in however long it is, and so does what makes room.
            let empty = !(state.touched || state.old.is_some());
            if small || empty || state.bytes + need <= self.limits.bytes {
                return Ok(state);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Error::TimedOut("the write log is full, and the server away".into()));
            }
            let wait = left.unwrap_or(Duration::from_secs(3600));
            let woken = self.room.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A new file, empty, whose name is durable: so a file that is missing was forgotten, and
    /// one that was lost in a crash is seen by its name.
    fn new_file(&self) -> Result<Part> {
        let number = self.state().take_number();
        let path = self.dir.join(files::name(number));
        let file = private().create_new(true).open(&path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(Part { number, path, file: Arc::new(file), synced: false })
    }

    /// Entries go into `part` from now on.
    fn go_on_in(&self, part: Part, after_cut: bool, state: &mut State) -> Result<()> {
        let Some(base) = state.base else { return Err(Error::Closed) };
        let (salt, size, seq, chain) = (self.salt, state.size, state.seq, state.chain);
        let number = part.number;
        let head = FileHead { number, after_cut, salt, base, size, seq, chain };
        if let Err(e) = part.file.write_all_at(&head.encode(), 0) {
            state.ended = Some("the write log could not go on in a new file");
            self.room.notify_all();
            return Err(e.into());
        }
        state.files.push_back(part);
        state.tail = FILE_HEAD as u64;
        state.bytes += FILE_HEAD as u64;
        Ok(())
    }
}

/// Something to be appended.
#[derive(Debug)]
struct Entry<'a> {
    kind: Kind,
    block: u64,
    count: u64,
    sums: Box<[u64]>,
    data: &'a [u8],
}

impl Entry<'_> {
    fn of(kind: Kind, block: u64) -> Self {
        Self { kind, block, count: 0, sums: Box::default(), data: &[] }
    }

    const fn head_len(&self) -> u64 {
        (entry::ENTRY_HEAD + self.sums.len() * 8) as u64
    }

    const fn len(&self) -> u64 {
        self.head_len() + self.data.len() as u64
    }

    const fn is_base(&self) -> bool {
        matches!(self.kind, Kind::Base | Kind::BaseOfCut)
    }
}

impl State {
    /// An entry was appended whose data begins at byte `at` of the file.
    fn count(&mut self, entry: Entry<'_>, file: &Arc<File>, salt: u64, at: u64) {
        self.seq += 1;
        if !entry.is_base() {
            (self.written, self.touched) = (self.seq, true);
        }
        let Entry { kind, block, count, sums, .. } = entry;
        match kind {
            Kind::Base | Kind::BaseOfCut => {}
            Kind::Data => {
                let span = Span { file: Arc::clone(file), salt, block, at, sums };
                self.now.put(block, block + count, Content::Data(Arc::new(span)));
            }
            Kind::Zero => self.now.put(block, block + count, Content::Zero),
            Kind::Size => {
                resized(&mut self.now, self.size, block);
                self.size = block;
            }
        }
    }

    const fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

impl Cut {
    /// What it holds: first block, the one behind the last, and whether they are zeros.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        self.runs.all().map(|(start, end, content)| (start, end, matches!(content, Content::Zero)))
    }

    /// The first block from `from` on that it holds.
    pub fn next(&self, from: u64) -> Option<u64> {
        self.runs.next(from)
    }

    /// Parts of `start` to `end` that it holds.
    pub fn held(&self, start: u64, end: u64, take: &mut dyn FnMut(u64, u64)) {
        self.runs.parts(start, end, &mut |start, end, content| {
            if content.is_some() {
                take(start, end);
            }
        });
    }

    /// Reads whole blocks, all of which it holds.
    pub fn read(&self, block: u64, out: &mut [u8]) -> Result<()> {
        let end = block + out.len() as u64 / BLOCK;
        let mut done = Ok(());
        self.runs.parts(block, end, &mut |start, stop, content| {
            let range = (start - block) as usize * BLOCK_SIZE..(stop - block) as usize * BLOCK_SIZE;
            if let (Some(content), Ok(())) = (content, &done) {
                done = read_content(start, content, &mut out[range]);
            }
        });
        done
    }
}

/// What a new size does to what was written: what is cut off reads as zeros if it comes back.
fn resized(runs: &mut Runs, old: u64, new: u64) {
    let (from, to) = (new.div_ceil(BLOCK), old.div_ceil(BLOCK));
    if from < to {
        runs.put(from, to, Content::Zero);
    }
}

fn read_content(block: u64, content: &Content, out: &mut [u8]) -> Result<()> {
    let Content::Data(span) = content else {
        out.fill(0);
        return Ok(());
    };
    span.file.read_exact_at(out, span.at + (block - span.block) * BLOCK)?;
    for (bytes, number) in out.chunks_exact(BLOCK_SIZE).zip(block..) {
        let sum = span.sums.get((number - span.block) as usize);
        if sum != Some(&block_sum(span.salt, number, bytes)) {
            return Err(Error::Damaged(format!("block {number} is damaged in the write log")));
        }
    }
    Ok(())
}

/// Writes entries with one call, mostly.
fn put(file: &File, mut at: u64, mut heads: &[u8], entries: &[Entry<'_>]) -> io::Result<()> {
    let mut slices = Vec::with_capacity(entries.len() * 2);
    for entry in entries {
        let (head, others) = heads.split_at(entry.head_len() as usize);
        slices.extend([io::IoSlice::new(head), io::IoSlice::new(entry.data)]);
        heads = others;
    }
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, rest, at))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += written as u64;
        io::IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

fn failed(why: &'static str) -> Error {
    Error::Io(io::Error::other(why))
}
