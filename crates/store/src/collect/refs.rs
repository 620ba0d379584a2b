//! Ids that something refers to, sorted, in bounded memory.
//!
//! Of each id the first 8 bytes are kept: two that are alike there keep one record too many,
//! never one too few. What does not fit into memory goes to files of the cache, in blocks with
//! checks: a block that does not hold ends the round. Files are removed when this is dropped.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;

use dormouse_crypt::hash::body_check;
use dormouse_format::RecordId;

use crate::dir::{Dir, File};
use crate::error::{Error, Result};

/// Ids in memory at most.
const BUFFER: usize = 2 << 20;
/// Ids in a block, before 8 bytes of its number and 16 of a check.
const BLOCK: usize = 1021;
const BLOCK_LEN: usize = (BLOCK + 3) * 8;
const SUFFIX: &str = ".refs";

/// The part of an id that is compared.
pub(super) fn key(id: &RecordId) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&id.0[..8]);
    u64::from_be_bytes(out)
}

/// A file of sorted keys.
struct Run {
    name: String,
    file: Arc<dyn File>,
    keys: u64,
}

/// A set of ids.
pub(super) struct Refs<'a> {
    dir: &'a dyn Dir,
    limit: usize,
    /// What the lowest bit of each key says, if it does not belong to the id.
    pub(super) class: Option<u64>,
    buffer: Vec<u64>,
    runs: Vec<Run>,
}

fn failed(e: io::Error) -> Error {
    Error::io("sorting what is referred to", e)
}

impl<'a> Refs<'a> {
    /// An empty set; files that an earlier one left are removed.
    pub(super) fn new(dir: &'a dyn Dir) -> Self {
        let left = dir.list().unwrap_or_default();
        left.iter().filter(|name| name.ends_with(SUFFIX)).for_each(|name| drop(dir.remove(name)));
        Self { dir, limit: BUFFER, class: None, buffer: Vec::new(), runs: Vec::new() }
    }

    pub(super) fn add(&mut self, id: &RecordId) -> Result<()> {
        let key = key(id);
        self.buffer.push(self.class.map_or(key, |class| key & !1 | class));
        if self.buffer.len() < self.limit {
            return Ok(());
        }
        self.tidy();
        // Many were alike: there is room again.
        if self.buffer.len() * 2 < self.limit { Ok(()) } else { self.spill().map_err(failed) }
    }

    fn tidy(&mut self) {
        self.buffer.sort_unstable();
        self.buffer.dedup();
    }

    fn spill(&mut self) -> io::Result<()> {
        let name = format!("collect-{}{SUFFIX}", self.runs.len());
        let file = self.dir.create(&name)?;
        let keys = self.buffer.len() as u64;
        self.runs.push(Run { name, file: Arc::clone(&file), keys });
        for (n, keys) in (0u64..).zip(self.buffer.chunks(BLOCK)) {
            let mut block = Vec::with_capacity(BLOCK_LEN);
            keys.iter().for_each(|key| block.extend_from_slice(&key.to_le_bytes()));
            block.resize(BLOCK * 8, 0);
            block.extend_from_slice(&n.to_le_bytes());
            let check = body_check(&block);
            block.extend_from_slice(&check);
            file.write_at(&block, n * BLOCK_LEN as u64)?;
        }
        self.buffer.clear();
        Ok(())
    }

    /// No more is added.
    pub(super) fn finish(mut self) -> Self {
        self.tidy();
        self.buffer.shrink_to_fit();
        self
    }

    /// All keys in order; some may come twice.
    pub(super) fn cursor(&self) -> Result<Cursor<'_>> {
        let mut cursor = Cursor { memory: &self.buffer, runs: Vec::new(), heap: BinaryHeap::new() };
        for run in &self.runs {
            cursor.runs.push(RunCursor { run, next: 0, block: Vec::new() });
        }
        for i in 0..=cursor.runs.len() {
            cursor.draw(i)?;
        }
        Ok(cursor)
    }
}

impl Drop for Refs<'_> {
    fn drop(&mut self) {
        self.runs.iter().for_each(|run| drop(self.dir.remove(&run.name)));
    }
}

struct RunCursor<'a> {
    run: &'a Run,
    next: u64,
    block: Vec<u64>,
}

impl RunCursor<'_> {
    fn next(&mut self) -> io::Result<Option<u64>> {
        if self.next == self.run.keys {
            return Ok(None);
        }
        let within = (self.next % BLOCK as u64) as usize;
        if within == 0 {
            self.block = self.load(self.next / BLOCK as u64)?;
        }
        self.next += 1;
        Ok(self.block.get(within).copied())
    }

    fn load(&self, number: u64) -> io::Result<Vec<u64>> {
        let mut block = vec![0; BLOCK_LEN];
        self.run.file.read_at(&mut block, number * BLOCK_LEN as u64)?;
        let (checked, check) = block.split_at(BLOCK_LEN - 16);
        let (keys, place) = checked.split_at(BLOCK * 8);
        if body_check(checked) != check || place != number.to_le_bytes() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a block does not hold"));
        }
        Ok(keys.as_chunks::<8>().0.iter().map(|key| u64::from_le_bytes(*key)).collect())
    }
}

/// Goes through all keys.
pub(super) struct Cursor<'a> {
    memory: &'a [u64],
    runs: Vec<RunCursor<'a>>,
    heap: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Cursor<'_> {
    /// Takes the next key of source `i`: 0 is memory.
    fn draw(&mut self, i: usize) -> Result<()> {
        let key = match i.checked_sub(1) {
            None => self.memory.split_first().map(|(key, rest)| {
                self.memory = rest;
                *key
            }),
            Some(run) => self.runs[run].next().map_err(failed)?,
        };
        self.heap.extend(key.map(|key| Reverse((key, i))));
        Ok(())
    }

    /// The next key.
    pub(super) fn next(&mut self) -> Result<Option<u64>> {
        let Some(Reverse((key, i))) = self.heap.pop() else { return Ok(None) };
        self.draw(i)?;
        Ok(Some(key))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::memory::MemDir;

    fn id(n: u64) -> RecordId {
        let mut out = RecordId::ZERO;
        out.0[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        out
    }

    fn all(refs: &Refs<'_>) -> Result<Vec<u64>> {
        let mut cursor = refs.cursor()?;
        let mut out = Vec::new();
        while let Some(key) = cursor.next()? {
            out.push(key);
        }
        Ok(out)
    }

    #[test]
    fn what_goes_to_disk_comes_back_in_order() {
        let dir = MemDir::new();
        dir.set("collect-9.refs", vec![1]);
        let mut refs = Refs::new(&dir);
        refs.limit = 3000;
        assert_eq!(dir.list().unwrap(), [""; 0], "what was left over is gone");
        let numbers: Vec<u64> = (0..20_000).map(|n| n % 12_345).collect();
        numbers.iter().for_each(|n| refs.add(&id(*n)).unwrap());
        let refs = refs.finish();
        assert!(refs.runs.len() > 3 && !refs.buffer.is_empty());
        let mut found = all(&refs).unwrap();
        assert!(found.is_sorted());
        found.dedup();
        let wanted: BTreeSet<u64> = numbers.iter().map(|n| key(&id(*n))).collect();
        assert_eq!(found, wanted.into_iter().collect::<Vec<_>>());
        assert_eq!(all(&refs).unwrap().len(), all(&refs).unwrap().len(), "more than once");

        let name = &refs.runs[1].name;
        let good = dir.get(name).unwrap();
        for at in [0, 5000, BLOCK * 8, BLOCK_LEN - 1, BLOCK_LEN + 3] {
            let file = dir.open(name).unwrap();
            file.write_at(&[!good[at]], at as u64).unwrap();
            assert!(all(&refs).is_err(), "byte {at}");
            file.write_at(&[good[at]], at as u64).unwrap();
        }
        let file = dir.open(name).unwrap();
        file.write_at(&good[BLOCK_LEN..2 * BLOCK_LEN], 0).unwrap();
        assert!(all(&refs).is_err(), "another block of it");
        drop(refs);
        assert_eq!(dir.list().unwrap(), [""; 0]);
    }
}
