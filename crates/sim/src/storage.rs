//! A disk that loses what was not synced.
//!
//! Owns: what each file holds in memory and on the medium, and which changes lie in
//! between. Invariant: only a sync moves a change to the medium for certain; until
//! then a crash keeps it, loses it, or tears it at 512 bytes, each sector by itself.
//! Changes of names become durable in their order. Leaves to others: which operation
//! fails and how ([`Watch`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use dormouse_store::{Dir, File};

use crate::random::Lcg;
use crate::registry::Place;

/// What is written in one piece or not at all.
pub const SECTOR: usize = 512;
/// The directory of segments.
pub const SEGMENTS: &str = "segments";
/// The directory of the index.
pub const INDEX: &str = "index";

/// An operation, before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op<'a> {
    /// How many were done before.
    pub index: u64,
    /// What it does.
    pub kind: OpKind,
    /// The directory.
    pub dir: &'a str,
    /// The file; of a rename the old name; empty for the directory itself.
    pub name: &'a str,
    /// Where in the file.
    pub at: u64,
    /// How many bytes.
    pub len: usize,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after the call")]
pub enum OpKind {
    List,
    Open,
    Create,
    Remove,
    Rename,
    SyncDir,
    Len,
    Read,
    Write,
    Sync,
    SetLen,
}

impl OpKind {
    /// Whether it changes what a crash may leave.
    pub const fn changes(self) -> bool {
        !matches!(self, Self::List | Self::Open | Self::Len | Self::Read)
    }
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Go,
    /// It fails, and nothing is done. What a sync that fails was to write is lost on the
    /// medium in parts, while memory goes on showing it, and no later sync writes it.
    Fail(ErrorKind),
    /// A write stops after so many bytes.
    Short(usize, ErrorKind),
    /// A write reaches the medium at another place of the file, so many sectors on or back.
    Misdirect(i64),
    /// The machine goes down before it.
    Crash,
}

/// Decides what becomes of each operation.
pub trait Watch: Send {
    /// Called before each operation, with the disk as it is.
    fn before(&mut self, op: &Op<'_>, disk: &Image) -> Verdict;
}

/// No faults.
impl Watch for () {
    fn before(&mut self, _: &Op<'_>, _: &Image) -> Verdict {
        Verdict::Go
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => content.resize(*len, 0),
            Self::Write { at, bytes } => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

/// One file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Inode {
    /// What reads see.
    memory: Vec<u8>,
    /// What is on the medium.
    medium: Vec<u8>,
    /// What a sync would write.
    pending: Vec<Change>,
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.memory);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.medium);
        }
    }

    /// Whether a crash leaves just what memory shows.
    fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.memory == self.medium
    }

    /// What the medium may hold after a crash now.
    fn torn(&self, random: &mut Lcg) -> Vec<u8> {
        let mut out = self.medium.clone();
        let all = self.pending.len() as u64;
        match random.below(8) {
            0 => {}
            1 | 2 => self.pending.iter().for_each(|c| c.apply(&mut out)),
            // A prefix of the writes, the last of them torn.
            3 | 4 => {
                let whole = random.below(all + 1) as usize;
                self.pending[..whole].iter().for_each(|c| c.apply(&mut out));
                if let Some(last) = self.pending.get(whole) {
                    Self::tear(&mut out, last, random, 2);
                }
            }
            // Each sector by itself: mostly old, mostly new, or either.
            n => {
                for change in &self.pending {
                    Self::tear(&mut out, change, random, [1, 2, 3][n as usize - 5]);
                }
            }
        }
        // The length may be known to the medium before the content is.
        if out.len() < self.memory.len() && random.below(4) == 0 {
            out.resize(self.memory.len(), 0);
        }
        out
    }

    /// Applies a change in part: each sector with a chance of `of_4` in 4.
    fn tear(out: &mut Vec<u8>, change: &Change, random: &mut Lcg, of_4: u64) {
        let Change::Write { at, bytes } = change else {
            if random.below(4) < of_4 {
                change.apply(out);
            }
            return;
        };
        let mut from = 0;
        while from < bytes.len() {
            let to = (((at + from) / SECTOR + 1) * SECTOR - at).min(bytes.len());
            if random.below(4) < of_4 {
                Change::Write { at: at + from, bytes: bytes[from..to].to_vec() }.apply(out);
            }
            from = to;
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Naming {
    Create(String, usize),
    Remove(String),
    Rename(String, String),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create(name, inode) => drop(names.insert(name.clone(), *inode)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    memory: BTreeMap<String, usize>,
    medium: BTreeMap<String, usize>,
    pending: Vec<Naming>,
}

impl Names {
    fn change(&mut self, naming: Naming) {
        naming.apply(&mut self.memory);
        self.pending.push(naming);
    }
}

/// All files of a disk, in memory and on the medium.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    inodes: Vec<Arc<Inode>>,
    dirs: BTreeMap<String, Names>,
}

impl Image {
    fn inode(&mut self, at: usize) -> &mut Inode {
        Arc::make_mut(&mut self.inodes[at])
    }

    fn dir(&mut self, name: &str) -> &mut Names {
        self.dirs.entry(name.to_owned()).or_default()
    }

    /// What a crash now leaves, one of many possibilities.
    pub fn crashed(&self, random: &mut Lcg) -> Self {
        let mut out = Self::default();
        for (name, names) in &self.dirs {
            let mut medium = names.medium.clone();
            let kept = random.below(names.pending.len() as u64 + 1) as usize;
            names.pending[..kept].iter().for_each(|n| n.apply(&mut medium));
            for inode in medium.values_mut() {
                let before = &self.inodes[*inode];
                out.inodes.push(if before.is_settled() {
                    Arc::clone(before)
                } else {
                    let content = before.torn(random);
                    let (memory, medium) = (content.clone(), content);
                    Arc::new(Inode { memory, medium, pending: Vec::new() })
                });
                *inode = out.inodes.len() - 1;
            }
            let names = Names { memory: medium.clone(), medium, pending: Vec::new() };
            out.dirs.insert(name.clone(), names);
        }
        out
    }

    /// What a crash now leaves if nothing of what waits for a sync is kept, or all of it.
    pub fn settled(&self, kept: bool) -> Self {
        let mut out = self.clone();
        for names in out.dirs.values_mut() {
            names.pending.clear();
            let (from, to) = if kept {
                (&names.memory, &mut names.medium)
            } else {
                (&names.medium, &mut names.memory)
            };
            to.clone_from(from);
        }
        for inode in out.inodes.iter_mut().filter(|i| !i.is_settled()) {
            let inode = Arc::make_mut(inode);
            if kept {
                inode.sync();
            }
            inode.pending.clear();
            inode.memory.clone_from(&inode.medium);
        }
        out
    }

    /// Forgets a directory's files, as if they were removed durably.
    pub fn clear(&mut self, dir: &str) {
        self.dirs.remove(dir);
    }

    /// Whether anything waits for a sync.
    pub fn has_pending(&self) -> bool {
        self.dirs.values().any(|d| !d.pending.is_empty())
            || self.inodes.iter().any(|i| !i.pending.is_empty())
    }

    /// Names of a directory's files.
    pub fn names(&self, dir: &str) -> BTreeSet<String> {
        self.dirs.get(dir).map(|d| d.memory.keys().cloned().collect()).unwrap_or_default()
    }

    /// The content of a file, as reads see it.
    pub fn content(&self, dir: &str, name: &str) -> Option<&[u8]> {
        let inode = *self.dirs.get(dir)?.memory.get(name)?;
        Some(&self.inodes[inode].memory)
    }

    /// Flips bits of a byte of a file, on the medium and as reads see it.
    pub fn rot(&mut self, dir: &str, name: &str, at: usize, mask: u8) {
        if let Some(inode) = self.dirs.get(dir).and_then(|d| d.memory.get(name)).copied() {
            let inode = self.inode(inode);
            for content in [&mut inode.memory, &mut inode.medium] {
                if let Some(byte) = content.get_mut(at) {
                    *byte ^= mask;
                }
            }
        }
    }

    /// What memory shows becomes what the medium has, where nothing waits for a sync.
    pub fn evict(&mut self) {
        for i in 0..self.inodes.len() {
            if self.inodes[i].pending.is_empty() && self.inodes[i].memory != self.inodes[i].medium {
                let inode = self.inode(i);
                inode.memory = inode.medium.clone();
            }
        }
    }
}

struct Inner {
    image: Image,
    watch: Box<dyn Watch>,
    random: Lcg,
    ops: u64,
    down: bool,
}

/// A disk. Clones are the same one.
#[derive(Clone)]
pub struct Storage(Arc<Mutex<Inner>>);

impl Storage {
    /// A disk with these files.
    pub fn new(image: Image, watch: Box<dyn Watch>, seed: u64) -> Self {
        let (random, ops, down) = (Lcg(seed), 0, false);
        Self(Arc::new(Mutex::new(Inner { image, watch, random, ops, down })))
    }

    /// The files as they are.
    pub fn image(&self) -> Image {
        self.0.lock().unwrap().image.clone()
    }

    /// Whether the machine went down.
    pub fn is_down(&self) -> bool {
        self.0.lock().unwrap().down
    }

    /// Operations so far.
    pub fn ops(&self) -> u64 {
        self.0.lock().unwrap().ops
    }

    /// Changes the files behind the back of who has them open.
    pub fn alter(&self, change: impl FnOnce(&mut Image)) {
        change(&mut self.0.lock().unwrap().image);
    }

    /// The machine goes down, and comes back with what the medium holds. Who has files
    /// open can use them no more.
    pub fn restart(&self) -> Self {
        self.again(|image, random| image.crashed(random))
    }

    /// A process ends, and another comes: nothing is lost, but who has files open can use
    /// them no more.
    pub fn reopened(&self) -> Self {
        self.again(|image, _| image.clone())
    }

    fn again(&self, left: impl FnOnce(&Image, &mut Lcg) -> Image) -> Self {
        let mut inner = self.0.lock().unwrap();
        inner.down = true;
        let seed = inner.random.below(u64::MAX);
        let image = left(&inner.image, &mut Lcg(seed));
        let watch = std::mem::replace(&mut inner.watch, Box::new(()));
        let (random, ops, down) = (Lcg(seed ^ 0x5eed), inner.ops, false);
        Self(Arc::new(Mutex::new(Inner { image, watch, random, ops, down })))
    }

    fn at(&self, dir: &'static str) -> SimDir {
        SimDir { disk: self.clone(), dir }
    }

    /// Asks the watch, counts, and does what the verdict leaves.
    fn run<T>(
        &self,
        (kind, dir, name): (OpKind, &str, &str),
        (at, len): (u64, usize),
        done: impl FnOnce(&mut Inner, Verdict) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = self.0.lock().unwrap();
        if inner.down {
            return Err(io::Error::other("the machine is down"));
        }
        let inner = &mut *inner;
        let op = Op { index: inner.ops, kind, dir, name, at, len };
        let verdict = inner.watch.before(&op, &inner.image);
        inner.ops += 1;
        match verdict {
            Verdict::Crash => {
                inner.down = true;
                Err(io::Error::other("the machine goes down"))
            }
            Verdict::Fail(kind) if op.kind != OpKind::Sync => Err(kind.into()),
            _ => done(inner, verdict),
        }
    }
}

impl Place for Storage {
    fn segments(&self) -> Box<dyn Dir> {
        Box::new(self.at(SEGMENTS))
    }
    fn index(&self) -> Box<dyn Dir> {
        Box::new(self.at(INDEX))
    }
}

struct SimDir {
    disk: Storage,
    dir: &'static str,
}

struct SimFile {
    disk: Storage,
    dir: &'static str,
    name: String,
    inode: usize,
}

impl SimDir {
    fn file(&self, name: &str, inode: usize) -> Arc<dyn File> {
        let (disk, dir) = (self.disk.clone(), self.dir);
        Arc::new(SimFile { disk, dir, name: name.to_owned(), inode })
    }

    fn op(&self, kind: OpKind, name: &str, change: Option<Naming>) -> io::Result<()> {
        self.disk.run((kind, self.dir, name), (0, 0), |inner, _| {
            let names = inner.image.dir(self.dir);
            match change {
                Some(Naming::Remove(_) | Naming::Rename(..))
                    if !names.memory.contains_key(name) =>
                {
                    Err(ErrorKind::NotFound.into())
                }
                Some(change) => {
                    names.change(change);
                    Ok(())
                }
                None => {
                    for naming in names.pending.drain(..) {
                        naming.apply(&mut names.medium);
                    }
                    Ok(())
                }
            }
        })
    }
}

impl Dir for SimDir {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.run((OpKind::List, self.dir, ""), (0, 0), |inner, _| {
            Ok(inner.image.dir(self.dir).memory.keys().cloned().collect())
        })
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let found = self.disk.run((OpKind::Open, self.dir, name), (0, 0), |inner, _| {
            Ok(inner.image.dir(self.dir).memory.get(name).copied())
        })?;
        found.map(|inode| self.file(name, inode)).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let made = self.disk.run((OpKind::Create, self.dir, name), (0, 0), |inner, _| {
            let inode = inner.image.inodes.len();
            let names = inner.image.dir(self.dir);
            if names.memory.contains_key(name) {
                return Err(ErrorKind::AlreadyExists.into());
            }
            names.change(Naming::Create(name.to_owned(), inode));
            inner.image.inodes.push(Arc::default());
            Ok(inode)
        })?;
        Ok(self.file(name, made))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.op(OpKind::Remove, name, Some(Naming::Remove(name.to_owned())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.op(OpKind::Rename, from, Some(Naming::Rename(from.to_owned(), to.to_owned())))
    }

    fn sync(&self) -> io::Result<()> {
        self.op(OpKind::SyncDir, "", None)
    }
}

impl SimFile {
    fn run<T>(
        &self,
        kind: OpKind,
        place: (u64, usize),
        done: impl FnOnce(&mut Inner, Verdict) -> io::Result<T>,
    ) -> io::Result<T> {
        self.disk.run((kind, self.dir, &self.name), place, done)
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.run(OpKind::Len, (0, 0), |inner, _| {
            Ok(inner.image.inodes[self.inode].memory.len() as u64)
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.run(OpKind::Read, (offset, buf.len()), |inner, _| {
            let memory = &inner.image.inodes[self.inode].memory;
            let at = offset as usize;
            let source = at.checked_add(buf.len()).and_then(|end| memory.get(at..end));
            buf.copy_from_slice(source.ok_or(ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.run(OpKind::Write, (offset, buf.len()), |inner, verdict| {
            let inode = inner.image.inode(self.inode);
            let at = offset as usize;
            match verdict {
                Verdict::Short(n, kind) => {
                    let bytes = buf[..n.min(buf.len())].to_vec();
                    inode.change(Change::Write { at, bytes });
                    Err(kind.into())
                }
                Verdict::Misdirect(sectors) => {
                    Change::Write { at, bytes: buf.to_vec() }.apply(&mut inode.memory);
                    let at = at.saturating_add_signed(sectors as isize * SECTOR as isize);
                    inode.pending.push(Change::Write { at, bytes: buf.to_vec() });
                    Ok(())
                }
                _ if buf.is_empty() => Ok(()),
                _ => {
                    inode.change(Change::Write { at, bytes: buf.to_vec() });
                    Ok(())
                }
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.run(OpKind::Sync, (0, 0), |inner, verdict| {
            let random = &mut inner.random;
            let inode = Arc::make_mut(&mut inner.image.inodes[self.inode]);
            if let Verdict::Fail(kind) = verdict {
                inode.medium = inode.torn(random);
                inode.pending.clear();
                return Err(kind.into());
            }
            inode.sync();
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(OpKind::SetLen, (len, 0), |inner, _| {
            inner.image.inode(self.inode).change(Change::SetLen(len as usize));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
