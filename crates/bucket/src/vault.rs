//! The segments of one vault: on this machine, in the bucket, or both.
//!
//! Owns: which of them has which bytes. Invariants: what is in the bucket was durable here
//! before; a segment leaves this machine only when the bucket has all of it; nobody else's part is
//! in the chain after the fence with which this one began. Leaves to others: how the store sees
//! it ([`crate::dir`]), putting ([`crate::pump`]), and how it begins ([`crate::opening`]).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_format::VaultId;
use dormouse_format::seeded::seeded;
use dormouse_store::{Dir, File};

use crate::cache::{Key, PIECE};
use crate::chain::{Piece, Stored};
use crate::error::{Error, Result};
use crate::names::{self, Name};
use crate::part::{Kind, Part};
use crate::shared::{Durable, Shared, lock};
use crate::{objects::Put, opening, pump};

/// A segment.
#[derive(Default)]
pub(crate) struct Segment {
    pub(crate) stored: Stored,
    /// Its file, if it is on this machine.
    pub(crate) local: Option<Arc<dyn File>>,
    /// Bytes of the file that are durable here.
    pub(crate) durable: u64,
    /// Whether somebody is packing or removing it.
    pub(crate) busy: bool,
    /// Whether the file may go when there is no room.
    pub(crate) spare: bool,
    /// The store has removed it, and does not see it any more; what there is goes later.
    pub(crate) doomed: Option<Doomed>,
    /// Whether all of it is gone: the chain passes over its number.
    pub(crate) removed: bool,
}

/// A segment that is to go. Before it does, the bucket must have what was durable here when it was
/// removed: the store removes what it has written again elsewhere, after it noted so. Until then
/// it is brought to the bucket like any other, so that what a lost machine leaves is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doomed {
    /// The segment that was the newest then.
    pub(crate) behind: u64,
    /// How much of it was durable.
    pub(crate) len: u64,
    /// Whether the bucket does not let it go.
    pub(crate) stays: bool,
}

impl Segment {
    pub(crate) const fn is_there(&self) -> bool {
        self.local.is_some() || self.stored.is_there()
    }

    /// Whether the store sees it.
    pub(crate) const fn is_seen(&self) -> bool {
        self.is_there() && self.doomed.is_none()
    }

    /// Bytes that are durable here and not in the bucket.
    pub(crate) const fn waiting(&self) -> u64 {
        self.durable.saturating_sub(self.stored.end)
    }
}

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) segments: BTreeMap<u64, Segment>,
    /// Whether there is a thread that puts.
    pub(crate) pumping: bool,
    pub(crate) ended: bool,
}

impl Table {
    /// Number of the segment that is written.
    pub(crate) fn newest(&self) -> u64 {
        let there = |(n, s): (&u64, &Segment)| s.is_there().then_some(*n);
        self.segments.iter().rev().find_map(there).unwrap_or(0)
    }

    /// Whether the bucket has what must be there before a segment goes.
    pub(crate) fn may_go(&self, doomed: &Doomed) -> bool {
        let behind = self.segments.get(&doomed.behind);
        behind.is_none_or(|s| s.removed || s.stored.end >= doomed.len) || seeded("doomed-at-once")
    }
}

pub(crate) struct Vault {
    pub(crate) id: VaultId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) dir: Arc<dyn Dir>,
    pub(crate) writes: bool,
    table: Mutex<Table>,
    pub(crate) changed: Condvar,
}

impl Vault {
    pub(crate) fn new(
        id: VaultId,
        shared: Arc<Shared>,
        dir: Arc<dyn Dir>,
        writes: bool,
        segments: BTreeMap<u64, Segment>,
    ) -> Arc<Self> {
        let backlog = segments.values().map(Segment::waiting).sum();
        shared.opened(&id, backlog);
        let table = Mutex::new(Table { segments, ..Table::default() });
        Arc::new(Self { id, shared, dir, writes, table, changed: Condvar::new() })
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(crate) fn wait<'a>(
        &self,
        table: MutexGuard<'a, Table>,
        most: Duration,
    ) -> MutexGuard<'a, Table> {
        let waited = self.changed.wait_timeout(table, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn object(&self, name: Name) -> String {
        name.of(&self.id)
    }

    /// Reads objects; each must be there, and be long enough.
    pub(crate) fn fetch(&self, pieces: &[Piece], out: &mut [u8]) -> Result<()> {
        let mut rest = out;
        for piece in pieces {
            let name = self.object(piece.object);
            let range = piece.at..piece.at + piece.len;
            let got = self.shared.ask(|| self.shared.objects.get(&name, Some(range.clone())))?;
            let got = got.ok_or_else(|| Error::damaged(&name, "it is missing"))?;
            let (to, after) = rest
                .split_at_mut_checked(piece.len as usize)
                .ok_or_else(|| Error::damaged(&name, "its places do not add up"))?;
            if got.len() != to.len() {
                return Err(Error::damaged(&name, "it is shorter than the listing said"));
            }
            to.copy_from_slice(&got);
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(Error::damaged("segment", "bytes are missing")) }
    }

    /// Reads from the bucket, through the cache where the segment does not change any more.
    pub(crate) fn read_stored(&self, number: u64, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let before = self.stored(number)?;
        let Err(error) = self.read_from(&before, number, buf, offset) else { return Ok(()) };
        // It may have been packed or removed meanwhile.
        if !self.writes {
            self.look_again()?;
        }
        let now = self.stored(number)?;
        if now == before { Err(error) } else { self.read_from(&now, number, buf, offset) }
    }

    fn stored(&self, number: u64) -> io::Result<Stored> {
        let table = self.table();
        let there = table.segments.get(&number).filter(|s| s.stored.is_there());
        Ok(there.ok_or(io::ErrorKind::NotFound)?.stored.clone())
    }

    fn read_from(
        &self,
        stored: &Stored,
        number: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= stored.end);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        // Long reads are a scrub's, which would drive everything else out.
        if !stored.closed || buf.len() as u64 >= 4 * PIECE {
            return Ok(self.fetch(&stored.pieces(number, offset, end - offset), buf)?);
        }
        for piece in offset / PIECE..end.div_ceil(PIECE) {
            let bytes = self.piece(stored, number, piece)?;
            let at = piece * PIECE;
            let (from, to) = (offset.max(at), end.min(at + bytes.len() as u64));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }

    /// The listing of the bucket anew, for who reads beside the server that writes: what was
    /// packed or removed since lies elsewhere, or nowhere.
    pub(crate) fn look_again(&self) -> Result<()> {
        let mut stored = opening::stored(&self.shared, &self.id)?;
        let mut table = self.table();
        for (number, segment) in &mut table.segments {
            segment.stored = stored.remove(number).unwrap_or_default();
        }
        let new = |(n, stored)| (n, Segment { stored, ..Segment::default() });
        table.segments.extend(stored.into_iter().map(new));
        Ok(())
    }

    /// A piece of a segment that does not change any more.
    pub(crate) fn piece(&self, stored: &Stored, segment: u64, piece: u64) -> Result<Vec<u8>> {
        let key = Key { vault: self.id, segment, piece };
        let at = piece * PIECE;
        let len = PIECE.min(stored.end.saturating_sub(at));
        if let Some(bytes) = self.shared.cache.get(&key).filter(|b| b.len() as u64 == len) {
            return Ok(bytes);
        }
        let mut bytes = vec![0; len as usize];
        self.fetch(&stored.pieces(segment, at, len), &mut bytes)?;
        self.shared.cache.put(&key, &bytes);
        Ok(bytes)
    }

    /// Puts the next part of a segment; it is taken into the table. Fails if the name is taken by
    /// anything else: then another server writes here.
    pub(crate) fn put_part(&self, number: u64, kind: Kind, offset: u64, data: &[u8]) -> Result<()> {
        self.shared.usable()?;
        let next = self.table().segments.get(&number).map_or(0, |s| s.stored.next);
        let generation = self.shared.generation;
        let part = Part { kind, vault: self.id, segment: number, number: next, offset, generation };
        let object = part.encode(data);
        let name = part.name();
        if self.shared.objects.put_new(&name, object.clone())? == Put::Taken {
            // An answer may have been lost: then it is ours.
            let there = self.shared.objects.get(&name, None)?;
            if there.as_ref() != Some(&object) && !seeded("taken-believed") {
                return Err(self.taken(&name, there.as_deref(), &part));
            }
        }
        let mut table = self.table();
        let segment = table.segments.entry(number).or_default();
        if segment.removed && kind == Kind::Data {
            segment.stored.next += 1;
            drop(table);
            return self.shared.delete(&name).map(drop);
        }
        let waited = segment.waiting();
        segment.stored.push(number, kind, offset, data.len() as u64);
        let less = waited.saturating_sub(segment.waiting());
        let ended = table.ended;
        drop(table);
        if !ended {
            self.shared.sub_backlog(less);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// The name of the next part is taken: by another server, or because this one has opened the
    /// vault again, while a put of before was still under way.
    fn taken(&self, name: &str, there: Option<&[u8]>, ours: &Part) -> Error {
        let part = there.and_then(|b| Part::decode(b, &self.id, ours.segment, ours.number).ok());
        if part.is_some_and(|(part, _)| part.generation == self.shared.generation) {
            self.end();
            return Error::Lost { why: "this server has opened the vault again".into() };
        }
        self.shared.lose(format!("{name} was put by another"))
    }

    /// Removes the file of a segment that the bucket has wholly.
    pub(crate) fn evict(&self, number: u64) {
        let mut table = self.table();
        let Some(segment) = table.segments.get_mut(&number) else { return };
        let whole = segment.stored.closed && segment.stored.end >= segment.durable;
        if segment.busy || !segment.spare || !whole || segment.local.is_none() {
            return;
        }
        // Whoever has it open reads from the bucket from now on.
        segment.local = None;
        drop(table);
        let _ = self.dir.remove(&names::file(number));
    }

    /// What was synced here is durable where it is to be.
    pub(crate) fn settle(self: &Arc<Self>, number: u64, len: u64) -> Result<()> {
        let mut table = self.table();
        let Some(segment) = table.segments.get_mut(&number) else { return Ok(()) };
        let before = segment.waiting();
        segment.durable = segment.durable.max(len);
        self.shared.add_backlog(segment.waiting() - before);
        pump::ensure(self, &mut table);
        self.changed.notify_all();
        if self.shared.settings.durable == Durable::Local || seeded("acknowledged-unput") {
            drop(table);
            return self.shared.wait_backlog();
        }
        loop {
            if table.segments.get(&number).is_none_or(|s| s.stored.end >= len) {
                return Ok(());
            }
            self.shared.usable()?;
            if table.ended {
                return Err(Error::Stopping);
            }
            if self.shared.settings.threads {
                table = self.wait(table, Duration::from_millis(500));
                continue;
            }
            drop(table);
            self.shared.ask(|| pump::once(self))?;
            table = self.table();
        }
    }

    /// Ends the thread that puts, after what it does now.
    pub(crate) fn end(&self) {
        let mut table = self.table();
        if std::mem::replace(&mut table.ended, true) {
            return;
        }
        let waiting = table.segments.values().map(Segment::waiting).sum();
        drop(table);
        self.shared.closed(&self.id, waiting);
        self.changed.notify_all();
    }

    /// Puts all that lies here; bytes that are not put after so long.
    pub(crate) fn push(self: &Arc<Self>, most: Duration) -> Result<u64> {
        let until = Instant::now() + most;
        let mut table = self.table();
        let newest = table.newest();
        if let Some(segment) = table.segments.get_mut(&newest)
            && let Some(file) = segment.local.clone()
        {
            let failed = || Error::local(format!("syncing {}", names::file(newest)));
            file.sync().map_err(failed())?;
            let waited = segment.waiting();
            segment.durable = segment.durable.max(file.len().map_err(failed())?);
            self.shared.add_backlog(segment.waiting() - waited);
        }
        pump::ensure(self, &mut table);
        loop {
            let left = table.segments.values().map(Segment::waiting).sum();
            if left == 0 || table.ended || Instant::now() > until {
                return Ok(left);
            }
            self.shared.usable()?;
            table = self.wait(table, Duration::from_millis(500));
        }
    }
}
