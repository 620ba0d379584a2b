//! Opening a vault: what is here and what is in the bucket become one.
//!
//! Invariants: for writing, a fence is put at the end of the chain before anything else, so no
//! other server's part can follow what was read. What lies here and was not put is gone on with
//! only if the last part of the chain was put by this server: a generation belongs to one state
//! directory, which knows its own. Else it is set aside before the fence is put, under its name
//! with `.aside-GENERATION`, and told of. What lies here must not be less than the bucket has.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;

use dormouse_format::VaultId;
use dormouse_format::seeded::seeded;
use dormouse_store::Dir;

use crate::cache::{Key, PIECE};
use crate::chain::{self, Stored};
use crate::error::{Error, Result};
use crate::names::{self, Name};
use crate::objects::Put;
use crate::part::{HEAD, Kind, Part};
use crate::shared::Shared;
use crate::vault::{Segment, Vault};

/// Objects that are read at the same time.
const READERS: usize = 8;
/// Tries to be the one who ends the chain.
const FENCES_MAX: u32 = 100;
/// A file that is being fetched.
const FETCHED: &str = "fetched";

type Segments = BTreeMap<u64, Segment>;

/// How a vault is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To write.
    Write,
    /// To read only.
    Read,
}

pub(crate) fn open(
    shared: &Arc<Shared>,
    id: VaultId,
    dir: Arc<dyn Dir>,
    mode: Mode,
) -> Result<Arc<Vault>> {
    let opening = Opening { shared, id, dir: &*dir };
    let segments = match mode {
        Mode::Read => {
            let stored = opening.stored()?;
            opening.join(stored)?
        }
        Mode::Write => opening.write()?,
    };
    let writes = mode != Mode::Read;
    let vault = Vault::new(id, shared.clone(), dir, writes, segments);
    warm(&vault);
    Ok(vault)
}

/// What the bucket has of a vault.
pub(crate) fn stored(shared: &Shared, id: &VaultId) -> Result<BTreeMap<u64, Stored>> {
    let below = names::segments(id);
    let items = shared.ask(|| shared.objects.list(&below))?;
    chain::read(id, &items, |segment, number| Ok(part(shared, id, segment, number)?.0.offset))
}

fn part(shared: &Shared, id: &VaultId, segment: u64, number: u32) -> Result<(Part, Vec<u8>)> {
    let name = Name::Part(segment, number).of(id);
    let object = shared.ask(|| shared.objects.get(&name, None))?;
    let object = object.ok_or_else(|| Error::damaged(name, "it vanished"))?;
    let (part, data) = Part::decode(&object, id, segment, number)?;
    Ok((part, data.to_vec()))
}

struct Opening<'a> {
    shared: &'a Arc<Shared>,
    id: VaultId,
    dir: &'a dyn Dir,
}

impl Opening<'_> {
    fn stored(&self) -> Result<BTreeMap<u64, Stored>> {
        stored(self.shared, &self.id)
    }

    /// Reads a part, checked.
    fn part(&self, segment: u64, number: u32) -> Result<(Part, Vec<u8>)> {
        part(self.shared, &self.id, segment, number)
    }

    /// Puts a fence where the chain ends; what the bucket has then is all there will be of others.
    fn fenced(&self) -> Result<BTreeMap<u64, Stored>> {
        let generation = self.shared.generation;
        for _ in 0..FENCES_MAX {
            let mut stored = self.stored()?;
            if !self.is_ours(&stored)? {
                self.set_aside(|_| Ok(true), "another server has written this vault since")?;
            }
            let chain::End { segment, part } = chain::end(&stored);
            if seeded("fence-unput") {
                return Ok(stored);
            }
            let (kind, offset) = (Kind::Fence, stored.get(&segment).map_or(0, |s| s.end));
            let fence = Part { kind, vault: self.id, segment, number: part, offset, generation };
            let name = fence.name();
            let object = fence.encode(&[]);
            let put = self.shared.ask(|| {
                let put = self.shared.objects.put_new(&name, object.clone())?;
                // An answer may have been lost; two fences in one place are the same.
                let same = || Ok(self.shared.objects.get(&name, None)?.as_ref() == Some(&object));
                Ok(put == Put::Made || same()?)
            })?;
            if put {
                stored.entry(segment).or_default().push(segment, kind, offset, 0);
                return Ok(stored);
            }
            // Somebody else was first: what was put there belongs to the chain.
        }
        Err(self.shared.lose("another server goes on writing"))
    }

    /// Whether the last part of the chain was put by this server, or none was.
    fn is_ours(&self, stored: &BTreeMap<u64, Stored>) -> Result<bool> {
        let last = stored.iter().rev().find(|(_, s)| s.next > 0);
        let Some((number, part)) = last.map(|(n, s)| (*n, s.next - 1)) else { return Ok(true) };
        let name = Name::Part(number, part).of(&self.id);
        let head = Some(0..HEAD as u64);
        let bytes = self.shared.ask(|| self.shared.objects.get(&name, head.clone()))?;
        let bytes = bytes.ok_or_else(|| Error::damaged(name, "it vanished"))?;
        let (part, ..) = Part::head(&bytes, &self.id, number, part)?;
        Ok(self.shared.held.contains(&part.generation))
    }

    fn write(&self) -> Result<Segments> {
        let stored = self.fenced()?;
        let mut segments = Segments::new();
        let newest = stored.iter().filter(|(_, s)| s.is_there()).map(|(n, _)| *n).max();
        let outdated = |n| {
            let Some(there) = stored.get(&n).filter(|s| s.is_there()) else { return Ok(false) };
            self.differs(n, there, newest == Some(n))
        };
        self.set_aside(outdated, "it is not what the bucket has")?;
        for (number, there) in &stored {
            // What is left of a segment that was removed.
            for part in there.spare.iter().filter(|_| !there.is_there()) {
                let name = Name::Part(*number, *part).of(&self.id);
                self.shared.ask(|| self.shared.delete(&name))?;
            }
        }
        if let Some((number, there)) = newest.and_then(|n| Some((n, stored.get(&n)?)))
            && !self.local()?.iter().any(|n| *n >= number)
        {
            self.fetch(number, there)?;
        }
        segments.extend(self.join(stored)?);
        Ok(segments)
    }

    fn local(&self) -> Result<Vec<u64>> {
        let names = self.dir.list().map_err(Error::local("listing the segments"))?;
        Ok(names.iter().filter_map(|n| names::number(n)).collect())
    }

    /// Whether a file here lacks what the bucket has. Its end is compared, where more may come.
    fn differs(&self, number: u64, stored: &Stored, newest: bool) -> Result<bool> {
        let name = names::file(number);
        let failed = || Error::local(format!("reading {}", names::file(number)));
        let file = self.dir.open(&name).map_err(failed())?;
        if file.len().map_err(failed())? < stored.end {
            return Ok(true);
        }
        let Some(last) = stored.parts.last().filter(|_| newest) else { return Ok(false) };
        let Name::Part(_, part) = last.object else { return Ok(false) };
        let (_, data) = self.part(number, part)?;
        let data = data.get(..last.len as usize).unwrap_or(&data);
        let mut here = vec![0; data.len()];
        file.read_at(&mut here, last.offset).map_err(failed())?;
        Ok(here != data)
    }

    fn set_aside(&self, which: impl Fn(u64) -> Result<bool>, why: &str) -> Result<()> {
        for number in self.local()? {
            if !which(number)? {
                continue;
            }
            let from = names::file(number);
            let to = format!("{from}.aside-{}", self.shared.generation);
            (self.shared.tell)(&format!("vault {}: {from} is set aside as {to}: {why}", self.id));
            self.dir.rename(&from, &to).map_err(Error::local(format!("setting {from} aside")))?;
        }
        self.dir.sync().map_err(Error::local("syncing the segments"))
    }

    /// Brings the newest segment here: the store goes on in it, or looks whether it is whole.
    fn fetch(&self, number: u64, stored: &Stored) -> Result<()> {
        let failed = || Error::local(format!("fetching {}", names::file(number)));
        match self.dir.remove(FETCHED) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed()(e)),
            _ => {}
        }
        let file = self.dir.create(FETCHED).map_err(failed())?;
        each(&stored.pieces(number, 0, stored.end), &|piece| {
            let Name::Part(_, part) = piece.object else {
                let name = piece.object.of(&self.id);
                let whole = self.shared.ask(|| self.shared.objects.get(&name, None))?;
                let whole = whole.filter(|w| w.len() as u64 == piece.len);
                let whole = whole.ok_or_else(|| Error::damaged(name, "it has another length"))?;
                return file.write_at(&whole, 0).map_err(failed());
            };
            let (found, data) = self.part(number, part)?;
            let data = data.get(..piece.len as usize).filter(|_| found.offset == piece.offset);
            let bad = || Error::damaged(found.name(), "it does not fit the parts before it");
            file.write_at(data.ok_or_else(bad)?, piece.offset).map_err(failed())
        })?;
        file.sync().map_err(failed())?;
        self.dir.rename(FETCHED, &names::file(number)).map_err(failed())?;
        self.dir.sync().map_err(failed())
    }

    /// What is here beside what is there.
    fn join(&self, stored: BTreeMap<u64, Stored>) -> Result<Segments> {
        let new = |stored| Segment { stored, ..Segment::default() };
        let mut segments: Segments = stored.into_iter().map(|(n, s)| (n, new(s))).collect();
        let local = self.local()?;
        let newest = local.iter().max().copied();
        for number in local {
            let failed = || Error::local(format!("opening {}", names::file(number)));
            let file = self.dir.open(&names::file(number)).map_err(failed())?;
            let len = file.len().map_err(failed())?;
            let segment = segments.entry(number).or_default();
            // Of the last it is known after its first sync.
            let last = newest == Some(number);
            segment.durable = if last { segment.stored.end } else { len };
            segment.local = Some(file);
        }
        // Numbers of segments that were removed before they came to the bucket.
        let known = segments.iter().filter(|(_, s)| s.stored.next > 0).map(|(n, _)| *n).max();
        for number in known.unwrap_or(1)..newest.unwrap_or(0) {
            let segment = segments.entry(number).or_default();
            segment.removed = !segment.is_there();
        }
        Ok(segments)
    }
}

/// Does something with each item, several at a time; the first error ends it.
fn each<T: Sync>(items: &[T], f: &(impl Fn(&T) -> Result<()> + Sync)) -> Result<()> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            if let Err(e) = f(item) {
                next.store(items.len(), std::sync::atomic::Ordering::Relaxed);
                return Err(e);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..READERS.min(items.len())).map(|_| scope.spawn(work)).collect();
        let done = threads.into_iter().map(|t| t.join().unwrap_or(Err(Error::Stopping)));
        done.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Fetches the first and the last pieces of segments that are not here: those are what opening a
/// store reads of each, one after the other.
fn warm(vault: &Arc<Vault>) {
    let mut wanted = Vec::new();
    for (number, segment) in &vault.table().segments {
        let stored = &segment.stored;
        if segment.local.is_some() || !stored.is_there() || !stored.closed {
            continue;
        }
        let last = (stored.end - 1) / PIECE;
        let mut pieces = vec![0, last.saturating_sub(1), last];
        pieces.dedup();
        let key = |piece| Key { vault: vault.id, segment: *number, piece };
        let missing = |piece: &u64| !vault.shared.cache.has(&key(*piece));
        let pieces = pieces.into_iter().filter(missing);
        wanted.extend(pieces.map(|piece| (*number, stored.clone(), piece)));
    }
    // What cannot be had now is asked for again when it is read, and told of then.
    let fetch = |(number, stored, piece): &(u64, Stored, u64)| {
        vault.piece(stored, *number, *piece).map(drop)
    };
    let _ = each(&wanted, &fetch);
}
