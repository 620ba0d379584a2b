//! Opened blocks in a directory, kept from one run to the next.
//!
//! Owns: `data`, a sparse file of 4 KiB places; `index`, which block and tag each place holds;
//! `lock`. Both files are bounded by the size that the user gave.
//!
//! Invariant: nothing in these files is believed. A place counts only while its tag is the one
//! that the proved map has for the block, and what is read from it is digested, and its tag
//! computed, before it is given out. A tag binds volume, address and content, so that files that
//! are damaged, exchanged, torn by a crash or of another volume cost a fetch, and never a byte.
//! So nothing is synced, and entries need no check of their own. A place that was checked so is read
//! again by the sum that it had then ([`dormouse_crypt::sum`]), which only this process knows.
//!
//! The content is plaintext: files are 0600 in a directory that only its owner may enter.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use dormouse_crypt::sum::{Sum, Sums};
use dormouse_crypt::{OsRandom, VaultSecrets};
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::{Block, Tag, VolumeId};

use super::ways::{WAYS, Ways};
use crate::exit::{Class, fail};
use crate::files::Lock;

const SHARDS: u64 = 16;
/// Sets next to each other that lie in one shard.
const STRIPE: u64 = 16;
/// `index`: magic, version and number of places; then the entries.
const HEADER: usize = 64;
const MAGIC: [u8; 8] = *b"DMCACHE\x01";
/// An entry of `index`: the block and one (zero: none), and its tag.
const ENTRY: usize = 8 + Tag::LEN;
/// Blocks that are looked up, read and checked together.
const TOGETHER: usize = 64;
/// The least that a cache may have.
const LEAST: u64 = 1 << 20;

/// The cache.
pub(super) struct CacheFile {
    data: File,
    index: File,
    _lock: Lock,
    shards: Vec<Mutex<Shard>>,
    /// Sets in all. A place is `way * sets + set`, so that blocks that follow one another
    /// mostly lie so in the file.
    sets: u64,
    secrets: Arc<VaultSecrets>,
    sums: Sums,
    volume: VolumeId,
    /// Writing failed, as where there is no room: what is here is used, and nothing added.
    full: AtomicBool,
    /// Places whose content was not what its tag says.
    damaged: AtomicU64,
}

struct Shard {
    ways: Ways,
    /// Tag of each place, and whether the map of the attached point has it.
    tags: Vec<(Tag, bool)>,
    /// Sum of each place that was checked under its tag.
    sums: Vec<Sum>,
    looks: u8,
}

impl Shard {
    fn holds(&self, set: usize, block: Block) -> bool {
        self.ways.place(set, block).is_some_and(|place| self.tags[place].1)
    }

    /// A place has other content from now on.
    fn name(&mut self, place: usize, tag: (Tag, bool)) {
        self.tags[place] = tag;
        self.sums[place] = Sum::NONE;
    }
}

/// Where a block may be read.
#[derive(Clone, Copy)]
struct Found {
    slot: u64,
    tag: Tag,
    sum: Sum,
}

impl CacheFile {
    /// Opens or makes a cache of so many bytes. What is there is used, if it is of that size.
    pub(super) fn open(
        dir: &Path,
        bytes: u64,
        secrets: Arc<VaultSecrets>,
        volume: VolumeId,
    ) -> Result<Self> {
        if bytes < LEAST {
            return fail(
                Class::Usage,
                format!("a cache of {bytes} bytes is too small"),
                "give it 1 MiB at least; what is read at once should fit",
            );
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("cannot make the cache's directory {}", dir.display()))?;
        let lock = match Lock::take(&dir.join("lock"))? {
            Ok(lock) => lock,
            Err(pid) => {
                return fail(
                    Class::InUse,
                    format!("the cache {} is in use by process {pid}", dir.display()),
                    "give each disk a cache directory of its own",
                );
            }
        };
        let sets = bytes / BLOCK_SIZE as u64 / WAYS as u64;
        let (data, index) = (open(&dir.join("data"))?, open(&dir.join("index"))?);
        let locals = (sets / (SHARDS * STRIPE) + 1) * STRIPE;
        let shard = || Shard {
            ways: Ways::new(locals as usize),
            tags: vec![(Tag::ZERO, false); locals as usize * WAYS],
            sums: vec![Sum::NONE; locals as usize * WAYS],
            looks: 0,
        };
        let shards = (0..SHARDS).map(|_| Mutex::new(shard())).collect();
        let (full, damaged) = (AtomicBool::new(false), AtomicU64::new(0));
        let sums = Sums::new(&mut OsRandom);
        let cache =
            Self { data, index, _lock: lock, shards, sets, secrets, sums, volume, full, damaged };
        cache.load().with_context(|| format!("cannot use the cache {}", dir.display()))?;
        Ok(cache)
    }

    /// Bytes that it may hold.
    pub(super) const fn capacity(&self) -> u64 {
        self.sets * WAYS as u64 * BLOCK_SIZE as u64
    }

    /// Whether it takes no more, because it could not be written.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Places whose content was not what its tag says, so far.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..16].copy_from_slice(&(self.sets * WAYS as u64).to_le_bytes());
        header
    }

    /// Takes over what the index names, or begins anew.
    fn load(&self) -> io::Result<()> {
        let entries = self.sets as usize * WAYS * ENTRY;
        let len = (HEADER + entries) as u64;
        let mut header = [0; HEADER];
        let same = self.index.metadata()?.len() == len
            && self.index.read_exact_at(&mut header, 0).is_ok()
            && header == self.header();
        if !same {
            self.index.set_len(0)?;
            self.index.set_len(len)?;
            self.data.set_len(0)?;
            self.data.set_len(self.capacity())?;
            return self.index.write_all_at(&self.header(), 0);
        }
        self.data.set_len(self.capacity())?;
        let mut bytes = vec![0; (64 << 10) * ENTRY];
        let mut slot = 0;
        while slot < self.sets * WAYS as u64 {
            let n = (self.sets * WAYS as u64 - slot).min(64 << 10) as usize;
            let part = &mut bytes[..n * ENTRY];
            self.index.read_exact_at(part, HEADER as u64 + slot * ENTRY as u64)?;
            for (entry, slot) in part.as_chunks::<ENTRY>().0.iter().zip(slot..) {
                self.take(slot, entry);
            }
            slot += n as u64;
        }
        Ok(())
    }

    fn take(&self, slot: u64, entry: &[u8; ENTRY]) {
        let (Some(key), Some(tag)) = (entry.first_chunk(), entry.last_chunk()) else { return };
        let Some(block) = u64::from_le_bytes(*key).checked_sub(1) else { return };
        let (mut shard, set) = self.shard(block);
        let place = set * WAYS + (slot / self.sets) as usize;
        // An entry that stands where its block cannot be is not its own.
        if block % self.sets == slot % self.sets && shard.ways.place(set, block).is_none() {
            shard.ways.put(place, block);
            shard.name(place, (Tag(*tag), false));
        }
    }

    fn shard(&self, block: Block) -> (MutexGuard<'_, Shard>, usize) {
        let set = block % self.sets;
        let (stripe, at) = (set / STRIPE, set % STRIPE);
        let shard = &self.shards[(stripe % SHARDS) as usize];
        let local = stripe / SHARDS * STRIPE + at;
        (shard.lock().unwrap_or_else(PoisonError::into_inner), local as usize)
    }

    const fn slot(&self, block: Block, place: usize) -> u64 {
        (place % WAYS) as u64 * self.sets + block % self.sets
    }

    /// The map has this tag for a block: whether it is here.
    pub(super) fn prove(&self, block: Block, tag: &Tag) -> bool {
        let (mut shard, set) = self.shard(block);
        let Some(place) = shard.ways.place(set, block) else { return false };
        let same = shard.tags[place].0 == *tag;
        shard.tags[place].1 = same;
        same
    }

    /// The first block of a range that is not here, or that the map does not have, or its end.
    pub(super) fn held_until(&self, range: &core::ops::Range<Block>) -> Block {
        let mut block = range.start;
        while block < range.end {
            let (shard, set) = self.shard(block);
            let count = self.rest_of_stripe(block).min(range.end - block);
            let held = (0..count).take_while(|i| shard.holds(set + *i as usize, block + i)).count();
            block += held as u64;
            if (held as u64) < count {
                break;
            }
        }
        block
    }

    /// How many blocks from this one on lie under one lock, in sets that follow one another.
    const fn rest_of_stripe(&self, block: Block) -> u64 {
        let set = block % self.sets;
        let (stripe, end) = (STRIPE - set % STRIPE, self.sets - set);
        if stripe < end { stripe } else { end }
    }

    /// What the map had here is no more.
    pub(super) fn forget(&self, range: core::ops::Range<Block>) {
        if range.end - range.start > self.sets * WAYS as u64 {
            for shard in &self.shards {
                let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                let Shard { ways, tags, .. } = &mut *shard;
                for (place, tag) in tags.iter_mut().enumerate() {
                    tag.1 &= ways.block(place).is_some_and(|block| !range.contains(&block));
                }
            }
            return;
        }
        for block in range {
            let (mut shard, set) = self.shard(block);
            if let Some(place) = shard.ways.place(set, block) {
                shard.tags[place].1 = false;
            }
        }
    }

    /// Where blocks from `first` on may be read, and which should be kept in memory too.
    fn find(&self, first: Block, found: &mut [Option<(Found, bool)>]) {
        let mut rest = (found, first);
        while !rest.0.is_empty() {
            let (found, block) = rest;
            let count = found.len().min(self.rest_of_stripe(block) as usize);
            let (these, others) = found.split_at_mut(count);
            let (mut shard, set) = self.shard(block);
            for (i, found) in these.iter_mut().enumerate() {
                *found = self.find_in(&mut shard, set + i, block + i as u64);
            }
            rest = (others, block + count as u64);
        }
    }

    fn find_in(&self, shard: &mut Shard, set: usize, block: Block) -> Option<(Found, bool)> {
        let place = shard.ways.find(set, block)?;
        let (tag, proved) = shard.tags[place];
        shard.looks = shard.looks.wrapping_add(1);
        let often = shard.looks % 8 == 0;
        let found = Found { slot: self.slot(block, place), tag, sum: shard.sums[place] };
        proved.then_some((found, often))
    }

    /// Reads blocks from `first` on, as many as there is room for in `out`. `got` is told which
    /// of them (by index) are there and right, and whether to keep them in memory.
    pub(super) fn read(&self, first: Block, out: &mut [u8], got: &mut dyn FnMut(usize, bool)) {
        for (i, out) in out.chunks_mut(TOGETHER * BLOCK_SIZE).enumerate() {
            let skip = i * TOGETHER;
            self.read_some(first + skip as u64, out, &mut |i, often| got(skip + i, often));
        }
    }

    fn read_some(&self, first: Block, out: &mut [u8], got: &mut dyn FnMut(usize, bool)) {
        let n = out.len() / BLOCK_SIZE;
        let mut found = [None; TOGETHER];
        self.find(first, &mut found[..n]);
        let mut at = 0;
        while at < n {
            let Some((start, _)) = found[at] else {
                at += 1;
                continue;
            };
            let follows =
                |i: &usize| found[*i].is_some_and(|(f, _)| f.slot == start.slot + (*i - at) as u64);
            let end = (at..n).find(|i| !follows(i)).unwrap_or(n);
            let bytes = &mut out[at * BLOCK_SIZE..end * BLOCK_SIZE];
            let read = self.data.read_exact_at(bytes, start.slot * BLOCK_SIZE as u64);
            let of_run = &found[at..end];
            let skip = at;
            at = end;
            if read.is_ok() && self.known(bytes, of_run) {
                (skip..end).for_each(|i| got(i, found[i].is_some_and(|(_, often)| often)));
                continue;
            }
            let mut check = |i: usize, digest| {
                let (block, Some((found, often))) = (first + (skip + i) as u64, of_run[i]) else {
                    return;
                };
                if self.secrets.tag(&self.volume, block, &digest) == found.tag {
                    self.checked(block, found, &bytes[i * BLOCK_SIZE..]);
                    got(skip + i, often);
                } else {
                    self.wrong(block, found);
                }
            };
            match read {
                Ok(()) if of_run.len() == 1 => check(0, self.secrets.digest(bytes)),
                Ok(()) => self.secrets.digests(bytes, &mut check),
                Err(_) => (skip..end).for_each(|i| {
                    if let Some((found, _)) = found[i] {
                        self.wrong(first + i as u64, found);
                    }
                }),
            }
        }
    }

    /// Whether each of these blocks has the sum that it had when it was checked.
    fn known(&self, bytes: &[u8], found: &[Option<(Found, bool)>]) -> bool {
        let blocks = bytes.as_chunks::<BLOCK_SIZE>().0;
        found.iter().zip(blocks).all(|(found, block)| {
            found.is_some_and(|(f, _)| f.sum != Sum::NONE && f.sum == self.sums.of(block))
        })
    }

    /// A block was read here, and is what its tag says.
    fn checked(&self, block: Block, found: Found, bytes: &[u8]) {
        let Some(bytes) = bytes.first_chunk() else { return };
        let (mut shard, set) = self.shard(block);
        let Some(place) = shard.ways.place(set, block) else { return };
        if shard.tags[place].0 == found.tag && self.slot(block, place) == found.slot {
            shard.sums[place] = self.sums.of(bytes);
        }
    }

    /// What was read is not what its tag says: the place was given to another block meanwhile,
    /// or it is damaged.
    fn wrong(&self, block: Block, found: Found) {
        let (mut shard, set) = self.shard(block);
        let Some(place) = shard.ways.place(set, block) else { return };
        if shard.tags[place].0 == found.tag && self.slot(block, place) == found.slot {
            shard.ways.clear(place);
            shard.name(place, (Tag::ZERO, false));
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Keeps blocks that follow one another, and that were proved.
    pub(super) fn put(&self, first: Block, tags: &[Tag], bytes: &[u8]) {
        if self.full.load(Ordering::Relaxed) {
            return;
        }
        let mut at = 0;
        while at < tags.len() {
            let start = self.reserve(first + at as u64);
            let mut end = at + 1;
            while end < tags.len() && self.reserve(first + end as u64) == start + (end - at) as u64
            {
                end += 1;
            }
            let part = &bytes[at * BLOCK_SIZE..end * BLOCK_SIZE];
            if self.write(start, first + at as u64, &tags[at..end], part).is_err() {
                self.full.store(true, Ordering::Relaxed);
                return;
            }
            for (i, tag) in (at..end).zip(&tags[at..end]) {
                self.settle(first + i as u64, start + (i - at) as u64, tag);
            }
            at = end;
        }
    }

    /// Makes room for a block: whatever was in its place is not there any more.
    fn reserve(&self, block: Block) -> u64 {
        let (mut shard, set) = self.shard(block);
        let place = shard.ways.choose(set, block);
        if shard.ways.block(place).is_some() {
            shard.ways.clear(place);
            shard.name(place, (Tag::ZERO, false));
        }
        self.slot(block, place)
    }

    fn write(&self, slot: u64, block: Block, tags: &[Tag], bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, slot * BLOCK_SIZE as u64)?;
        let mut entries = [0; TOGETHER * ENTRY];
        let at = HEADER as u64 + slot * ENTRY as u64;
        for (part, tags) in tags.chunks(TOGETHER).enumerate() {
            for ((entry, tag), i) in
                entries.as_chunks_mut::<ENTRY>().0.iter_mut().zip(tags).zip(0..)
            {
                let key = block + (part * TOGETHER) as u64 + i + 1;
                entry[..8].copy_from_slice(&key.to_le_bytes());
                entry[8..].copy_from_slice(&tag.0);
            }
            let skip = (part * TOGETHER * ENTRY) as u64;
            self.index.write_all_at(&entries[..tags.len() * ENTRY], at + skip)?;
        }
        Ok(())
    }

    fn settle(&self, block: Block, slot: u64, tag: &Tag) {
        let (mut shard, set) = self.shard(block);
        let place = set * WAYS + (slot / self.sets) as usize;
        // Another thread may have put it elsewhere meanwhile: once is enough.
        if let Some(old) = shard.ways.place(set, block) {
            shard.ways.clear(old);
        }
        shard.ways.put(place, block);
        shard.name(place, (*tag, true));
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests;
