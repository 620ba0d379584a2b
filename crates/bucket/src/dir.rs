//! A vault's segments as the store sees them: a directory of files.
//!
//! Invariants: bytes of a segment that are in the bucket never change, and nothing is added to a
//! segment that is closed there; a sync returns when what it covers is durable as was chosen; what
//! is removed goes at once here, and from the bucket when it holds why ([`Doomed`]).
//! Files that are no segments (what recovery has set aside) are on this machine only.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dormouse_store::{Dir, File};

use crate::error::Result;
use crate::names;
use crate::part::Kind;
use crate::pump;
use crate::vault::{Doomed, Segment, Vault};

/// A vault's segments as the store sees them.
pub struct BucketDir(Arc<Vault>);

impl std::fmt::Debug for BucketDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BucketDir({})", self.0.id)
    }
}

impl Drop for BucketDir {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Does by hand what threads do else ([`crate::Settings::threads`]).
#[derive(Clone)]
pub struct Hand(Weak<Vault>);

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hand")
    }
}

impl Hand {
    /// The next put, packing or removal, tried once; false if there is none.
    pub fn work(&self) -> Result<bool> {
        self.0.upgrade().map_or(Ok(false), |vault| pump::once(&vault))
    }
}

impl BucketDir {
    /// Who works for it.
    pub fn hand(&self) -> Hand {
        Hand(Arc::downgrade(&self.0))
    }

    pub(crate) const fn new(vault: Arc<Vault>) -> Self {
        Self(vault)
    }

    pub(crate) fn push(&self, most: Duration) -> Result<u64> {
        self.0.push(most)
    }

    fn writable(&self) -> io::Result<()> {
        if !self.0.writes {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(self.0.shared.usable()?)
    }

    fn file(&self, number: u64) -> Arc<dyn File> {
        Arc::new(SegmentFile { vault: self.0.clone(), number })
    }
}

impl Dir for BucketDir {
    fn list(&self) -> io::Result<Vec<String>> {
        if !self.0.writes {
            self.0.look_again()?;
        }
        let mut names = self.0.dir.list()?;
        names.retain(|n| names::number(n).is_none());
        let table = self.0.table();
        let there = table.segments.iter().filter(|(_, s)| s.is_seen());
        names.extend(there.map(|(n, _)| names::file(*n)));
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let Some(number) = names::number(name) else { return self.0.dir.open(name) };
        let table = self.0.table();
        let there = table.segments.get(&number).is_some_and(Segment::is_seen);
        if there { Ok(self.file(number)) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.writable()?;
        let Some(number) = names::number(name) else { return self.0.dir.create(name) };
        let mut table = self.0.table();
        let segment = table.segments.entry(number).or_default();
        if segment.is_there() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        segment.local = Some(self.0.dir.create(name)?);
        segment.durable = 0;
        segment.removed = false;
        drop(table);
        Ok(self.file(number))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let Some(number) = names::number(name) else { return self.0.dir.remove(name) };
        self.writable()?;
        let mut table = self.0.table();
        let behind = table.newest();
        let len = table.segments.get(&behind).map_or(0, |s| s.durable);
        let segment = table.segments.get_mut(&number).filter(|s| s.is_seen());
        let segment = segment.ok_or(io::ErrorKind::NotFound)?;
        if segment.durable > 0 || segment.stored.is_there() {
            segment.doomed = Some(Doomed { behind, len, stays: false });
            pump::ensure(&self.0, &mut table);
            self.0.changed.notify_all();
            return Ok(());
        }
        // Nothing of it was ever durable, so nothing of it is needed.
        segment.local = None;
        segment.removed = true;
        drop(table);
        self.0.dir.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.writable()?;
        let Some(number) = names::number(from) else { return self.0.dir.rename(from, to) };
        let mut table = self.0.table();
        let segment = table.segments.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
        if segment.stored.is_there() || names::number(to).is_some() {
            let why = "a segment that the bucket has is not renamed";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let waiting = segment.waiting();
        segment.local = None;
        segment.durable = 0;
        drop(table);
        self.0.shared.sub_backlog(waiting);
        self.0.dir.rename(from, to)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.dir.sync()
    }
}

/// A segment as the store sees it; whether it is here or there may change under way.
struct SegmentFile {
    vault: Arc<Vault>,
    number: u64,
}

impl SegmentFile {
    fn local(&self) -> Option<Arc<dyn File>> {
        self.vault.table().segments.get(&self.number).and_then(|s| s.local.clone())
    }

    /// The file to write to.
    fn writable(&self) -> io::Result<Arc<dyn File>> {
        if !self.vault.writes {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.vault.shared.usable()?;
        let why = "a segment that is only in the bucket does not change";
        self.local().ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, why))
    }

    fn stored_end(&self) -> u64 {
        self.stored().0
    }

    /// How much the bucket has, and whether that is all there will be.
    fn stored(&self) -> (u64, bool) {
        let stored = |s: &Segment| (s.stored.end, s.stored.closed);
        self.vault.table().segments.get(&self.number).map_or((0, false), stored)
    }
}

impl File for SegmentFile {
    fn len(&self) -> io::Result<u64> {
        match self.local() {
            Some(file) => file.len(),
            None => Ok(self.stored_end()),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.local() {
            Some(file) => file.read_at(buf, offset),
            None => self.vault.read_stored(self.number, buf, offset),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let file = self.writable()?;
        let (stored, closed) = self.stored();
        if closed && offset + buf.len() as u64 > stored {
            let why = "the bucket has all of the segment; nothing is added to it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if offset < stored && !buf.is_empty() {
            // Recovery writes again what is there: that changes nothing.
            let same = buf.len().min((stored - offset) as usize);
            let mut there = vec![0; same];
            file.read_at(&mut there, offset)?;
            if there != buf[..same] {
                let why = "bytes that the bucket has do not change";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        }
        file.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        if !self.vault.writes {
            // Who copies from here asks that it be durable where it is; in the bucket it is.
            return self.local().map_or(Ok(()), |file| file.sync());
        }
        let file = self.writable()?;
        let len = file.len()?;
        file.sync()?;
        Ok(self.vault.settle(self.number, len)?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let file = self.writable()?;
        if len < self.stored_end() {
            let cut = || self.vault.put_part(self.number, Kind::Cut, len, &[]);
            self.vault.shared.ask(cut)?;
        }
        file.set_len(len)?;
        let mut table = self.vault.table();
        if let Some(segment) = table.segments.get_mut(&self.number) {
            let waiting = segment.waiting();
            segment.durable = segment.durable.min(len);
            let less = waiting - segment.waiting();
            drop(table);
            self.vault.shared.sub_backlog(less);
        }
        Ok(())
    }
}
