//! Writing: entries are put behind one another, and what they hold becomes the newest content.
//!
//! Invariant: the order in the file is the order in which entries count here; of entries that go
//! together all are there, or none of them counts.

use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_format::limits::BLOCK_SIZE;

use super::entry::{self, BLOCKS_MAX, EntryHead, Kind, block_sum};
use super::file::LogFile;
use super::runs::{Content, Span};
use super::{BLOCK, State, WriteLog, failed};
use crate::{Error, Result};

/// A run is kept in memory for so many bytes of the log at most: an entry of zeros takes 56 bytes in
/// it, and what it takes here is to be bounded, too.
const BYTES_PER_RUN: u64 = 1024;

/// Entries that are written with one call, at most.
const TOGETHER: usize = 128;

impl WriteLog {
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

    /// Whether so many bytes could be written now, in whole blocks or not, without waiting for room.
    pub fn has_room(&self, bytes: u64) -> bool {
        // An entry's head and sums are less than its data, and so are two edges.
        self.takes(&self.state(), bytes * 2 + 4 * BLOCK)
    }

    /// Whether so many bytes more are within the limits.
    fn takes(&self, state: &State, bytes: u64) -> bool {
        let runs = state.now.len() + state.old.as_ref().map_or(0, |old| old.len());
        state.bytes + bytes <= self.limits.bytes
            && (runs as u64) < self.limits.bytes / BYTES_PER_RUN
    }

    /// Appends entries, all or none of them.
    fn append(&self, entries: Vec<Entry<'_>>) -> Result<()> {
        let need = entries.iter().map(Entry::len).sum();
        let mut state = self.wait_for_room(need)?;
        if self.wants_file(&state) {
            // The keeper is far behind. A file that is long is no fault if no other can be made.
            drop(state);
            let _ = self.make_spare();
            state = self.wait_for_room(need)?;
        }
        self.rotate(&mut state);
        self.append_now(&mut state, entries)
    }

    /// Appends entries, whether there is room or not.
    pub(super) fn append_now(&self, state: &mut State, entries: Vec<Entry<'_>>) -> Result<()> {
        let need: u64 = entries.iter().map(Entry::len).sum();
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
        if let Err(e) = put(&file.file, at, &heads, &entries) {
            // Entries that are whole would count if the log goes on in another file.
            if file.file.set_len(at).is_err() {
                state
                    .ended
                    .get_or_insert("what was half written could not be taken out of the write log");
                self.tell_all();
            }
            return Err(e.into());
        }
        state.bytes += need;
        for entry in entries {
            let data = state.tail + entry.head_len();
            state.tail += entry.len();
            state.count(entry, &file, self.salt, data);
        }
        state.chain = chain;
        let tail = state.tail;
        state.files.back_mut().into_iter().for_each(|part| part.len = tail);
        self.call_keeper(state);
        Ok(())
    }

    fn wait_for_room(&self, need: u64) -> Result<MutexGuard<'_, State>> {
        let until = self.limits.wait.map(|wait| Instant::now() + wait);
        let mut state = self.state();
        loop {
            if let Some(why) = state.ended {
                return Err(failed(why));
            }
            // One entry goes in however long it is.
            let empty = !(state.touched || state.old.is_some());
            if empty || self.takes(&state, need) {
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
}

/// Something to be appended.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub kind: Kind,
    pub block: u64,
    pub count: u64,
    pub sums: Box<[u64]>,
    pub data: &'a [u8],
}

impl Entry<'_> {
    pub(super) fn of(kind: Kind, block: u64) -> Self {
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
    fn count(&mut self, entry: Entry<'_>, file: &Arc<LogFile>, salt: u64, at: u64) {
        self.seq += 1;
        if !entry.is_base() {
            (self.written, self.touched) = (self.seq, true);
        }
        let Entry { kind, block, count, sums, .. } = entry;
        match kind {
            Kind::Base | Kind::BaseOfCut => {}
            Kind::Data => {
                let span = Span { file: Arc::clone(file), salt, block, at, sums };
                self.put(block, block + count, Content::Data(Arc::new(span)));
            }
            Kind::Zero => self.put(block, block + count, Content::Zero(Arc::clone(file))),
            Kind::Size => {
                if let Some((from, to)) = cut_off(self.size, block) {
                    self.put(from, to, Content::Zero(Arc::clone(file)));
                }
                self.size = block;
            }
        }
    }

    /// Blocks have new content.
    fn put(&mut self, start: u64, end: u64, content: Content) {
        content.file().gains(end - start);
        let content = match self.now.swap(start, end, content) {
            Ok(before) => return before.file().loses(end - start),
            Err(content) => content,
        };
        let lose = |start: u64, end: u64, content: Option<&Content>| {
            content.inspect(|content| content.file().loses(end - start)).is_some()
        };
        self.now.parts(start, end, &mut |start, end, content| {
            // What the cut has was the newest where nothing was written since.
            if !lose(start, end, content)
                && let Some(old) = &self.old
            {
                old.parts(start, end, &mut |start, end, content| {
                    lose(start, end, content);
                });
            }
        });
        self.now.put(start, end, content);
    }
}

/// What a new size cuts off: that reads as zeros if it comes back.
pub(super) fn cut_off(old: u64, new: u64) -> Option<(u64, u64)> {
    let (from, to) = (new.div_ceil(BLOCK), old.div_ceil(BLOCK));
    (from < to).then_some((from, to))
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
