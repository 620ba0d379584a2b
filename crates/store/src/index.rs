//! The index: id to place, for chunks, pages and nodes. A cache, never synced.
//!
//! Owns: entries of the newest segments in memory, those of older ones in sorted
//! run files, each of a range of sealed segments; ranges follow one another from
//! segment 1 on. Invariant: an entry is added before the lock of the log's end is
//! released, so a run made from memory lacks none of its range; entries of segments that
//! are hidden are not found. Whoever uses an entry checks the record that it names. Leaves
//! to others: which of several records of one id may be used.

pub(crate) mod run;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use dormouse_format::record::{Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::segment::Seal;
use dormouse_format::{RecordId, VaultId, WriterId};

use crate::dir::Dir;
use crate::error::Result;
use crate::locks::{lock, read, write};
use crate::log::{RecordRef, Segments, walk};
pub(crate) use run::Range;
use run::{Cursor, ENTRY_LEN, Raw, Run, RunWriter};

/// Runs of one size class that are merged into one.
const MERGE: usize = 4;

/// An entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: RecordId,
    pub(crate) at: RecordRef,
    pub(crate) kind: Kind,
    pub(crate) count: u8,
    pub(crate) writer: WriterId,
}

/// Sort key in memory: id, then place.
type Key = (RecordId, u32, u32);

#[derive(Debug, Clone, Copy)]
struct Value {
    body_len: u32,
    kind: u8,
    count: u8,
    writer: u16,
}

#[derive(Default)]
struct Inner {
    recent: BTreeMap<Key, Value>,
    runs: Vec<Arc<Run>>,
}

#[derive(Default)]
struct Writers {
    list: Vec<WriterId>,
    numbers: HashMap<WriterId, u16>,
}

impl Writers {
    fn number(&mut self, writer: &WriterId) -> u16 {
        if let Some(n) = self.numbers.get(writer) {
            return *n;
        }
        // `put` refuses more certificates than fit; recovery cannot find more.
        let n = self.list.len().min(usize::from(u16::MAX)) as u16;
        self.list.push(*writer);
        self.numbers.insert(*writer, n);
        n
    }
}

/// A run that cannot be read: its first and last segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadRun(pub(crate) u64, pub(crate) u64);

/// The index.
pub(crate) struct Index {
    dir: Box<dyn Dir>,
    vault: VaultId,
    /// Entries that memory keeps; at least 1.
    limit: AtomicUsize,
    inner: RwLock<Inner>,
    writers: RwLock<Writers>,
    /// Segments that are about to be retired, and whether they are.
    hidden: RwLock<HashMap<u32, bool>>,
    upkeep: Mutex<()>,
}

fn encode(key: &Key, value: &Value) -> Raw {
    let mut raw = [0; ENTRY_LEN];
    raw[..16].copy_from_slice(&key.0.0);
    raw[16..20].copy_from_slice(&key.1.to_le_bytes());
    raw[20..24].copy_from_slice(&key.2.to_le_bytes());
    raw[24..28].copy_from_slice(&value.body_len.to_le_bytes());
    raw[28] = value.kind;
    raw[29] = value.count;
    raw[30..].copy_from_slice(&value.writer.to_le_bytes());
    raw
}

fn word(raw: &Raw, at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

pub(crate) fn decode(raw: &Raw, writers: &[WriterId]) -> Option<Entry> {
    let mut id = RecordId::ZERO;
    id.0.copy_from_slice(&raw[..16]);
    let at = RecordRef { segment: word(raw, 16), offset: word(raw, 20), body_len: word(raw, 24) };
    let writer = *writers.get(usize::from(u16::from_le_bytes([raw[30], raw[31]])))?;
    Some(Entry { id, at, kind: Kind::from_u8(raw[28])?, count: raw[29], writer })
}

/// Order of entries in a run: id, segment, offset.
fn order(raw: &Raw) -> (&[u8], u32, u32) {
    (&raw[..16], word(raw, 16), word(raw, 20))
}

impl Index {
    /// An index in this directory; runs are taken in by [`Self::load`].
    pub(crate) fn new(dir: Box<dyn Dir>, vault: VaultId, limit: usize) -> Self {
        let limit = limit.max(1).into();
        let (inner, writers) = (RwLock::default(), RwLock::default());
        let (hidden, upkeep) = (RwLock::default(), Mutex::default());
        Self { dir, vault, limit, inner, writers, hidden, upkeep }
    }

    /// Keeps at most so many entries in memory from now on, once they are in sealed segments.
    pub(crate) fn set_limit(&self, entries: usize) {
        self.limit.store(entries.max(1), Ordering::Relaxed);
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// The directory, for what else is only a cache.
    pub(crate) fn dir(&self) -> &dyn Dir {
        &*self.dir
    }

    /// Entries of this segment are not found from now on.
    pub(crate) fn hide(&self, segment: u64) {
        write(&self.hidden).entry(segment as u32).or_insert(false);
    }

    /// Entries of this segment are found again.
    pub(crate) fn show(&self, segment: u64) {
        write(&self.hidden).remove(&(segment as u32));
    }

    /// Entries of these segments are never found again, and go when there is a chance.
    pub(crate) fn retire(&self, segments: impl Iterator<Item = u64>) {
        write(&self.hidden).extend(segments.map(|segment| (segment as u32, true)));
    }

    fn is_hidden(&self, segment: u32) -> bool {
        read(&self.hidden).contains_key(&segment)
    }

    fn is_retired(&self, segment: u32) -> bool {
        read(&self.hidden).get(&segment) == Some(&true)
    }

    /// How many segments of a range are retired.
    fn retired_in(&self, range: &Range) -> u64 {
        let of = |(n, gone): &(&u32, &bool)| {
            **gone && (range.first..=range.last).contains(&u64::from(**n))
        };
        read(&self.hidden).iter().filter(of).count() as u64
    }

    /// Lets go of the entries of retired segments: those in memory, and those in runs of
    /// which half the segments went. What fails stays: it is not found all the same.
    pub(crate) fn prune(&self) {
        let _upkeep = lock(&self.upkeep);
        let gone = read(&self.hidden).clone();
        write(&self.inner).recent.retain(|key, _| gone.get(&key.1) != Some(&true));
        let runs = read(&self.inner).runs.clone();
        for run in runs {
            let all = run.range.last + 1 - run.range.first;
            let more = self.retired_in(&run.range).saturating_sub(run.thinned);
            if more == 0 || more * 2 < all - run.thinned {
                continue;
            }
            let Ok(thin) = self.merge_group(std::slice::from_ref(&run)) else { continue };
            let mut inner = write(&self.inner);
            if let Some(at) = inner.runs.iter().position(|r| Arc::ptr_eq(r, &run)) {
                inner.runs[at] = Arc::new(thin);
            }
        }
    }

    /// Takes in the run files that fit the log; `chain(n)` is the chain value at the
    /// end of sealed segment `n`, zero for 0. Others are removed.
    pub(crate) fn load(&self, chain: &dyn Fn(u64) -> Option<[u8; 16]>) {
        let names = self.dir.list().unwrap_or_default();
        let ours = names.iter().filter(|n| n.ends_with(".run") || n.ends_with(".run.tmp"));
        let fits = |run: &Run| {
            let r = &run.range;
            r.first >= 1
                && r.first <= r.last
                && chain(r.first - 1) == Some(r.before)
                && (chain(r.last) == Some(r.chain) || seeded("run-of-any-log"))
        };
        let mut runs = Vec::new();
        for name in ours {
            match Run::open(&*self.dir, name, &self.vault) {
                Ok(run) if fits(&run) && name.ends_with(".run") => runs.push(run),
                _ => drop(self.dir.remove(name)),
            }
        }
        runs.sort_by_key(|r| (r.range.first, u64::MAX - r.range.last));
        let mut inner = write(&self.inner);
        let mut covered = 0;
        for run in runs {
            if run.range.first > covered {
                covered = run.range.last;
                inner.runs.push(Arc::new(run));
            } else {
                drop(self.dir.remove(&run.name));
            }
        }
    }

    /// Whether a run covers this segment.
    pub(crate) fn covers(&self, segment: u64) -> bool {
        let inner = read(&self.inner);
        inner.runs.iter().any(|r| (r.range.first..=r.range.last).contains(&segment))
    }

    /// Adds a record, if its kind is indexed.
    pub(crate) fn insert(&self, header: &Header, at: &RecordRef) {
        if header.kind.indexed() {
            let (id, kind, count) = (header.id, header.kind, header.count);
            self.add(&Entry { id, at: *at, kind, count, writer: header.writer });
        }
    }

    fn add(&self, entry: &Entry) {
        let (key, value) = self.pack(entry);
        write(&self.inner).recent.insert(key, value);
    }

    fn pack(&self, entry: &Entry) -> (Key, Value) {
        let known = read(&self.writers).numbers.get(&entry.writer).copied();
        let writer = known.unwrap_or_else(|| write(&self.writers).number(&entry.writer));
        let (kind, count, body_len) = (entry.kind as u8, entry.count, entry.at.body_len);
        let key = (entry.id, entry.at.segment, entry.at.offset);
        (key, Value { body_len, kind, count, writer })
    }

    /// Adds what a segment's table lists.
    pub(crate) fn insert_table(&self, segment: u64, seal: &Seal) {
        entries(segment, seal).for_each(|e| self.add(&e));
    }

    /// Calls `stop` with each entry of this id, newest first, until it says true.
    pub(crate) fn find(
        &self,
        id: &RecordId,
        stop: &mut dyn FnMut(&Entry) -> bool,
    ) -> core::result::Result<(), BadRun> {
        let inner = read(&self.inner);
        let all = (*id, 0, 0)..=(*id, u32::MAX, u32::MAX);
        for ((id, segment, offset), v) in inner.recent.range(all).rev() {
            if self.is_hidden(*segment) {
                continue;
            }
            let writer = read(&self.writers).list.get(usize::from(v.writer)).copied();
            let at = RecordRef { segment: *segment, offset: *offset, body_len: v.body_len };
            let (Some(writer), Some(kind)) = (writer, Kind::from_u8(v.kind)) else { continue };
            if stop(&Entry { id: *id, at, kind, count: v.count, writer }) {
                return Ok(());
            }
        }
        let runs = inner.runs.clone();
        drop(inner);
        for run in runs.iter().rev() {
            let mut found = Vec::new();
            let bad = |_| BadRun(run.range.first, run.range.last);
            run.find(id, &mut |raw| found.push(*raw)).map_err(bad)?;
            for raw in found.iter().rev() {
                let entry = decode(raw, &run.writers).filter(|e| !self.is_hidden(e.at.segment));
                if entry.is_some_and(|e| stop(&e)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Moves entries of sealed segments to a run when there are many. A failure
    /// leaves them in memory.
    pub(crate) fn maintain(&self, segments: &Segments, sealed_to: u64) {
        if read(&self.inner).recent.len() <= self.limit() {
            return;
        }
        let _upkeep = lock(&self.upkeep);
        let first = read(&self.inner).runs.last().map_or(1, |r| r.range.last + 1);
        if sealed_to >= first && read(&self.inner).recent.len() > self.limit() {
            let _ = self.flush(segments, first, sealed_to);
        }
    }

    /// At opening: moves the entries of `first..=last`, all that memory has, to a run
    /// if they are many or `force` says so.
    pub(crate) fn flush_opening(
        &self,
        segments: &Segments,
        first: u64,
        last: u64,
        force: bool,
    ) -> bool {
        let many = read(&self.inner).recent.len() > self.limit();
        (many || force) && self.flush(segments, first, last).is_ok()
    }

    fn flush(&self, segments: &Segments, first: u64, last: u64) -> Result<()> {
        let range = range(segments, &self.vault, first, last)?;
        let failed = |e| crate::Error::io("writing the index", e);
        let mut out = RunWriter::new(&*self.dir, first, last).map_err(failed)?;
        let raws: Vec<Raw> = {
            let inner = read(&self.inner);
            let old = inner.recent.iter().filter(|(key, _)| u64::from(key.1) <= last);
            old.map(|(key, value)| encode(key, value)).collect()
        };
        raws.iter().try_for_each(|raw| out.push(raw)).map_err(failed)?;
        let writers = read(&self.writers).list.clone();
        let run = out.finish(range, &self.vault, &writers).map_err(failed)?;
        {
            let mut inner = write(&self.inner);
            let at = inner.runs.partition_point(|r| r.range.first < first);
            inner.runs.insert(at, Arc::new(run));
            let last = last + u64::from(seeded("flush-too-much"));
            inner.recent.retain(|key, _| u64::from(key.1) > last);
        }
        let _ = self.merge();
        Ok(())
    }

    fn class(&self, run: &Run) -> u32 {
        (run.entries / self.limit() as u64).max(1).ilog(MERGE as u64)
    }

    /// Merges neighbours as long as enough of them are of one size class.
    fn merge(&self) -> io::Result<()> {
        loop {
            let runs = read(&self.inner).runs.clone();
            let Some(range) = (0..runs.len()).rev().find_map(|last| self.mergeable(&runs, last))
            else {
                return Ok(());
            };
            let group = &runs[range.clone()];
            let merged = Arc::new(self.merge_group(group)?);
            // Only who holds `upkeep`, or opens the store, changes the list.
            write(&self.inner).runs.splice(range, [merged]);
            group.iter().for_each(|r| drop(self.dir.remove(&r.name)));
        }
    }

    /// The runs up to `last` that follow one another and are not of a higher class
    /// than it, if they are enough.
    fn mergeable(&self, runs: &[Arc<Run>], last: usize) -> Option<core::ops::Range<usize>> {
        let class = self.class(&runs[last]);
        let mut first = last;
        while first > 0
            && self.class(&runs[first - 1]) <= class
            && runs[first - 1].range.last + 1 == runs[first].range.first
        {
            first -= 1;
        }
        (last + 1 - first >= MERGE).then_some(first..last + 1)
    }

    fn merge_group(&self, group: &[Arc<Run>]) -> io::Result<Run> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let range = Range { last: last.range.last, chain: last.range.chain, ..first.range };
        let thinned = self.retired_in(&range);
        let mut out = RunWriter::new(&*self.dir, range.first, range.last)?;
        let mut writers = Writers::default();
        let mut cursors = Vec::new();
        let mut maps = Vec::new();
        for run in group {
            maps.push(run.writers.iter().map(|w| writers.number(w)).collect::<Vec<_>>());
            cursors.push(Cursor::new(Arc::clone(run))?);
        }
        loop {
            let next = (0..cursors.len())
                .filter_map(|i| cursors[i].peek().map(|raw| (i, raw)))
                .min_by(|a, b| order(a.1).cmp(&order(b.1)));
            let Some((i, raw)) = next else { break };
            let mut raw = *raw;
            cursors[i].advance()?;
            if self.is_retired(word(&raw, 16)) {
                continue;
            }
            let old = usize::from(u16::from_le_bytes([raw[30], raw[31]]));
            let new = *maps[i].get(old).ok_or(io::ErrorKind::InvalidData)?;
            raw[30..].copy_from_slice(&new.to_le_bytes());
            out.push(&raw)?;
        }
        let mut run = out.finish(range, &self.vault, &writers.list)?;
        run.thinned = thinned;
        Ok(run)
    }

    /// Makes a run that cannot be read again from the seals of its segments.
    pub(crate) fn heal(&self, segments: &Segments, bad: BadRun) -> Result<()> {
        let _upkeep = lock(&self.upkeep);
        let same = |r: &Arc<Run>| (r.range.first, r.range.last) == (bad.0, bad.1);
        let Some(old) = read(&self.inner).runs.iter().find(|r| same(r)).cloned() else {
            return Ok(());
        };
        let mut made = Vec::new();
        let mut first = bad.0;
        while first <= bad.1 {
            let (run, last) = self.rebuild(segments, first, bad.1)?;
            made.push(Arc::new(run));
            first = last + 1;
        }
        let mut inner = write(&self.inner);
        if let Some(at) = inner.runs.iter().position(|r| Arc::ptr_eq(r, &old)) {
            inner.runs.splice(at..=at, made);
        }
        if inner.runs.iter().all(|r| r.name != old.name) {
            drop(self.dir.remove(&old.name));
        }
        drop(inner);
        let _ = self.merge();
        Ok(())
    }

    /// A run of as many segments from `first` on as memory should hold at once.
    fn rebuild(&self, segments: &Segments, first: u64, limit: u64) -> Result<(Run, u64)> {
        let mut sorted = BTreeMap::new();
        let mut last = first;
        for number in first..=limit {
            last = number;
            if segments.is_retired(number) {
                continue;
            }
            let file = segments.file(number)?;
            let sealed = walk::sealed(&*file, number, &self.vault)?;
            let seal = walk::table(&*file, number, &sealed)?;
            sorted.extend(entries(number, &seal).map(|e| self.pack(&e)));
            if sorted.len() > self.limit() {
                break;
            }
        }
        let failed = |e| crate::Error::io("writing the index", e);
        let range = range(segments, &self.vault, first, last)?;
        let mut out = RunWriter::new(&*self.dir, first, last).map_err(failed)?;
        sorted.iter().try_for_each(|(k, v)| out.push(&encode(k, v))).map_err(failed)?;
        let writers = read(&self.writers).list.clone();
        Ok((out.finish(range, &self.vault, &writers).map_err(failed)?, last))
    }

    /// Entries in memory, runs, entries in runs.
    pub(crate) fn sizes(&self) -> (u64, u64, u64) {
        let inner = read(&self.inner);
        let in_runs = inner.runs.iter().map(|r| r.entries).sum();
        (inner.recent.len() as u64, inner.runs.len() as u64, in_runs)
    }
}

/// The indexed records of a segment's table.
fn entries(segment: u64, seal: &Seal) -> impl Iterator<Item = Entry> {
    seal.items.iter().filter(|item| item.kind.indexed()).map(move |item| {
        let (offset, body_len) = (item.offset, item.body_len);
        let at = RecordRef { segment: segment as u32, offset, body_len };
        let writer = seal.writers.get(usize::from(item.writer)).copied().unwrap_or(WriterId::ZERO);
        Entry { id: item.id, at, kind: item.kind, count: item.count, writer }
    })
}

fn range(segments: &Segments, vault: &VaultId, first: u64, last: u64) -> Result<Range> {
    let before = segments.chain_after(first - 1, vault)?;
    Ok(Range { first, last, before, chain: segments.chain_after(last, vault)? })
}
