//! An immutable sorted file of index entries. A cache: whatever is wrong with
//! one, it is thrown away and made again from the seals.
//!
//! Blocks of 4096 bytes: 127 entries of 32 bytes, 16 reserved bytes, 16 bytes
//! check of the 4080 before. Then writers (16 each), fences (the first 8 bytes of
//! each block's first id), a head of 128 bytes at the very end:
//! magic 8 | version u32 | writers u32 | vault 32 | first u64 | last u64 |
//! entries u64 | before 16 | chain 16 | reserved 8 | check 16 of all from the
//! writers on. `before` and `chain` are the chain values at both ends of the
//! range of segments, so a run of another log is not taken for one of this.

use std::io;
use std::sync::Arc;

use dormouse_crypt::hash::body_check;
use dormouse_format::codec::{Reader, Writer};
use dormouse_format::seeded::seeded;
use dormouse_format::{RecordId, VaultId, WriterId};

use crate::dir::{Dir, File};

const MAGIC: [u8; 8] = *b"DORMIDX1";
const VERSION: u32 = 1;
pub(crate) const ENTRY_LEN: usize = 32;
const BLOCK_LEN: usize = 4096;
const BLOCK_ENTRIES: usize = 127;
const CHECKED: usize = BLOCK_LEN - 16;
const HEAD_LEN: usize = 128;
/// Bytes written at once.
const OUT_LEN: usize = 64 * BLOCK_LEN;

/// An entry as it lies in a run: id, then where and what.
pub(crate) type Raw = [u8; ENTRY_LEN];

/// Which segments a run covers, and the chain values at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) before: [u8; 16],
    pub(crate) chain: [u8; 16],
}

/// A run that is read.
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) range: Range,
    pub(crate) entries: u64,
    /// Segments of the range that were retired when it was written, as far as is known.
    pub(crate) thinned: u64,
    pub(crate) writers: Vec<WriterId>,
    fences: Vec<u64>,
    file: Arc<dyn File>,
}

pub(crate) fn file_name(first: u64, last: u64) -> String {
    format!("{first:016}-{last:016}.run")
}

fn fence(id: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id[..8]);
    u64::from_be_bytes(first)
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Run {
    /// Opens a run; any error means that it is of no use.
    pub(crate) fn open(dir: &dyn Dir, name: &str, vault: &VaultId) -> io::Result<Self> {
        let file = dir.open(name)?;
        let len = file.len()?;
        let at = len.checked_sub(HEAD_LEN as u64).ok_or(broken("too short"))?;
        let mut head = [0; HEAD_LEN];
        file.read_at(&mut head, at)?;
        let mut r = Reader::new(&head, "index run");
        let bad = |_| broken("not a run");
        if r.array::<8>().map_err(bad)? != MAGIC || r.u32().map_err(bad)? != VERSION {
            return Err(broken("not a run of this version"));
        }
        let writers = r.u32().map_err(bad)? as usize;
        if r.array::<32>().map_err(bad)? != vault.0 {
            return Err(broken("of another vault"));
        }
        let (first, last) = (r.u64().map_err(bad)?, r.u64().map_err(bad)?);
        let entries = r.u64().map_err(bad)?;
        let (before, chain) = (r.array().map_err(bad)?, r.array().map_err(bad)?);
        let blocks = entries.div_ceil(BLOCK_ENTRIES as u64);
        let foot = (writers as u64) * WriterId::LEN as u64 + blocks * 8;
        if writers > 1 << 16 || entries > 1 << 40 || blocks * BLOCK_LEN as u64 + foot != at {
            return Err(broken("the lengths do not fit"));
        }
        let mut foot_bytes = vec![0; foot as usize + HEAD_LEN];
        file.read_at(&mut foot_bytes, at - foot)?;
        let (checked, check) = foot_bytes.split_at(foot as usize + HEAD_LEN - 16);
        if body_check(checked) != check {
            return Err(broken("the check does not hold"));
        }
        let (list, fences) = checked.split_at(writers * WriterId::LEN);
        let fences = fences[..blocks as usize * 8].as_chunks::<8>().0;
        Ok(Self {
            name: name.to_owned(),
            range: Range { first, last, before, chain },
            entries,
            thinned: 0,
            writers: list.as_chunks().0.iter().map(|w| WriterId(*w)).collect(),
            fences: fences.iter().map(|f| u64::from_le_bytes(*f)).collect(),
            file,
        })
    }

    fn in_block(&self, block: usize) -> usize {
        let before = block as u64 * BLOCK_ENTRIES as u64;
        (self.entries - before).min(BLOCK_ENTRIES as u64) as usize
    }

    fn block(&self, block: usize, buf: &mut [u8; BLOCK_LEN]) -> io::Result<()> {
        self.file.read_at(buf, (block * BLOCK_LEN) as u64)?;
        if body_check(&buf[..CHECKED]) != buf[CHECKED..] {
            return Err(broken("the check of a block does not hold"));
        }
        Ok(())
    }

    /// All entries with this id, in order.
    pub(crate) fn find(&self, id: &RecordId, found: &mut dyn FnMut(&Raw)) -> io::Result<()> {
        let wanted = fence(&id.0);
        let mut block = self.fences.partition_point(|f| *f < wanted).saturating_sub(1);
        let mut buf = [0; BLOCK_LEN];
        while self.fences.get(block).is_some_and(|f| *f <= wanted) {
            self.block(block, &mut buf)?;
            let entries = &buf.as_chunks::<ENTRY_LEN>().0[..self.in_block(block)];
            let from = entries.partition_point(|e| e[..16] < id.0[..]);
            let same = entries[from..].iter().take_while(|e| e[..16] == id.0[..]);
            same.for_each(&mut *found);
            if entries.last().is_some_and(|e| e[..16] > id.0[..]) {
                break;
            }
            block += 1;
        }
        Ok(())
    }
}

/// Reads a run's entries in order.
pub(crate) struct Cursor {
    pub(crate) run: Arc<Run>,
    block: usize,
    at: usize,
    buf: Box<[u8; BLOCK_LEN]>,
}

impl Cursor {
    pub(crate) fn new(run: Arc<Run>) -> io::Result<Self> {
        let mut cursor = Self { run, block: 0, at: 0, buf: Box::new([0; BLOCK_LEN]) };
        if cursor.run.entries > 0 {
            cursor.run.block(0, &mut cursor.buf)?;
        }
        Ok(cursor)
    }

    /// The entry here; `None` at the end.
    pub(crate) fn peek(&self) -> Option<&Raw> {
        if self.block >= self.run.fences.len() {
            return None;
        }
        self.buf.as_chunks::<ENTRY_LEN>().0.get(self.at)
    }

    pub(crate) fn advance(&mut self) -> io::Result<()> {
        self.at += 1;
        if self.at + usize::from(seeded("merge-short")) < self.run.in_block(self.block) {
            return Ok(());
        }
        self.at = 0;
        self.block += 1;
        if self.block < self.run.fences.len() {
            self.run.block(self.block, &mut self.buf)?;
        }
        Ok(())
    }
}

/// Writes a run. Its name appears when it is finished.
pub(crate) struct RunWriter<'a> {
    dir: &'a dyn Dir,
    file: Arc<dyn File>,
    temporary: String,
    out: Vec<u8>,
    written: u64,
    entries: u64,
    in_block: usize,
    fences: Vec<u64>,
}

impl<'a> RunWriter<'a> {
    pub(crate) fn new(dir: &'a dyn Dir, first: u64, last: u64) -> io::Result<Self> {
        let temporary = format!("{}.tmp", file_name(first, last));
        let _ = dir.remove(&temporary);
        let file = dir.create(&temporary)?;
        let out = Vec::with_capacity(OUT_LEN);
        let (written, entries, in_block) = (0, 0, 0);
        Ok(Self { dir, file, temporary, out, written, entries, in_block, fences: Vec::new() })
    }

    pub(crate) fn push(&mut self, raw: &Raw) -> io::Result<()> {
        if self.in_block == 0 {
            self.fences.push(fence(raw));
        }
        self.out.extend_from_slice(raw);
        self.entries += 1;
        self.in_block += 1;
        if self.in_block == BLOCK_ENTRIES { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> io::Result<()> {
        let start = self.out.len() - self.in_block * ENTRY_LEN;
        self.out.resize(start + CHECKED, 0);
        let check = body_check(&self.out[start..]);
        self.out.extend_from_slice(&check);
        self.in_block = 0;
        if self.out.len() >= OUT_LEN { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.out, self.written)?;
        self.written += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    /// Writes the end, gives the run its name and opens it.
    pub(crate) fn finish(
        mut self,
        range: Range,
        vault: &VaultId,
        writers: &[WriterId],
    ) -> io::Result<Run> {
        if self.in_block > 0 {
            self.end_block()?;
        }
        self.flush()?;
        let mut w = Writer::default();
        writers.iter().for_each(|writer| {
            w.bytes(&writer.0);
        });
        self.fences.iter().for_each(|f| {
            w.u64(*f);
        });
        w.bytes(&MAGIC).u32(VERSION).u32(writers.len() as u32).bytes(&vault.0);
        w.u64(range.first).u64(range.last).u64(self.entries);
        w.bytes(&range.before).bytes(&range.chain).reserved(8);
        let check = body_check(&w.0);
        w.bytes(&check);
        self.out = w.done();
        self.flush()?;
        let name = file_name(range.first, range.last);
        self.dir.rename(&self.temporary, &name)?;
        Run::open(self.dir, &name, vault)
    }
}
