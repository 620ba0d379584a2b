//! Putting: what is durable here goes to the bucket, in the order of the chain.
//!
//! Owns: one thread for each vault that is written. Invariants: one object of the chain is under
//! way at a time, and what was tried is tried again byte for byte until the bucket has it; a
//! segment's first part is put after the one before is closed. A vault that is written now and
//! then costs about one put a second. Packing parts into one object, and removing them, is done
//! beside it, for it must not keep commits waiting.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::chain::Stored;
use crate::error::{Error, Result};
use crate::names::{self, Name};
use crate::objects::Put;
use crate::part::{Kind, PART_MAX};
use crate::vault::{Doomed, Segment, Table, Vault};

/// Bytes that are put without waiting for their time.
const MANY: u64 = 8 << 20;
/// Puts that may follow one another at once.
const BURST: u32 = 10;
/// How long a thread sleeps at most when there is nothing to do.
const IDLE: Duration = Duration::from_secs(60);
/// Stack of a thread.
const STACK: usize = 256 << 10;
/// Bytes at the end of a packed segment that are read back.
const READ_BACK: u64 = 4096;

/// Spreads puts over time.
struct Pace {
    every: Duration,
    left: u32,
    since: Instant,
}

impl Pace {
    fn new(every: Duration, now: Instant) -> Self {
        Self { every, left: BURST, since: now }
    }

    /// Takes a place; else how long to wait for one.
    fn take(&mut self, now: Instant) -> core::result::Result<(), Duration> {
        let passed = now.duration_since(self.since);
        let earned = passed.as_nanos().checked_div(self.every.as_nanos()).unwrap_or(u128::MAX);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if self.left.saturating_add(earned) >= BURST {
            (self.left, self.since) = (BURST, now);
        } else {
            self.left += earned;
            self.since += self.every * earned;
        }
        if self.left == 0 {
            return Err(self.every.saturating_sub(now.duration_since(self.since)));
        }
        self.left -= 1;
        Ok(())
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Put {
        segment: u64,
        offset: u64,
        len: u64,
        urgent: bool,
    },
    Close(u64),
    Pack(u64),
    /// The segment's file may go.
    Spare(u64, u64),
    /// All of the segment goes.
    Remove(u64),
}

/// The next object of the chain; then what can be done beside it.
fn next(table: &Table, parts_max: usize) -> Option<Job> {
    let newest = table.newest();
    let open = |(n, s): &(&u64, &Segment)| !s.stored.closed && (**n < newest || s.is_there());
    if let Some((&segment, found)) = table.segments.iter().find(open) {
        let (waiting, offset) = (found.waiting(), found.stored.end);
        if waiting > 0 && found.local.is_some() {
            let urgent = segment < newest || waiting >= MANY;
            return Some(Job::Put { segment, offset, len: waiting.min(PART_MAX), urgent });
        }
        // One that was removed is closed too: no number of the chain is left out.
        if segment < newest && (found.durable > 0 || found.local.is_none()) {
            return Some(Job::Close(segment));
        }
    }
    let beside = |(&n, s): (&u64, &Segment)| {
        // The newest stays here: the store may have it open to write.
        if n >= newest || !s.stored.closed || s.busy {
            return None;
        }
        if let Some(doomed) = &s.doomed {
            return (!doomed.stays && table.may_go(doomed)).then_some(Job::Remove(n));
        }
        s.local.as_ref()?;
        let many = !s.stored.whole && s.stored.parts.len() > parts_max;
        if many || !s.stored.spare.is_empty() {
            return Some(Job::Pack(n));
        }
        (!s.spare).then_some(Job::Spare(n, s.stored.end))
    };
    table.segments.iter().find_map(beside)
}

/// Starts the thread of a vault, if there is none.
pub(crate) fn ensure(vault: &Arc<Vault>, table: &mut Table) {
    if table.pumping || table.ended || !vault.writes || !vault.shared.settings.threads {
        return;
    }
    let own = vault.clone();
    let thread = thread::Builder::new().name("bucket".into()).stack_size(STACK);
    table.pumping = thread.spawn(move || run(&own)).is_ok();
}

/// Does the next thing, once; false if there is nothing to do.
pub(crate) fn once(vault: &Arc<Vault>) -> Result<bool> {
    let shared = &vault.shared;
    let job = {
        let mut table = vault.table();
        shared.usable()?;
        let ended = table.ended || !vault.writes;
        let job = next(&table, shared.settings.parts_max).filter(|_| !ended);
        let Some(job) = job else { return Ok(false) };
        if let Job::Spare(n, _) = job
            && let Some(segment) = table.segments.get_mut(&n)
        {
            segment.spare = true;
        }
        job
    };
    match job {
        Job::Put { segment, offset, len, .. } => put(vault, segment, offset, len)?,
        Job::Close(segment) => close(vault, segment)?,
        Job::Spare(segment, bytes) => shared.room.add(Arc::downgrade(vault), segment, bytes),
        Job::Pack(segment) => pack(vault, segment)?,
        Job::Remove(segment) => remove(vault, segment)?,
    }
    Ok(true)
}

fn run(vault: &Arc<Vault>) {
    let shared = &vault.shared;
    let mut pace = Pace::new(shared.settings.put_every, Instant::now());
    loop {
        let job = {
            let mut table = vault.table();
            let job = loop {
                if table.ended || shared.usable().is_err() {
                    table.pumping = false;
                    return;
                }
                let wait = match next(&table, shared.settings.parts_max) {
                    None => IDLE,
                    Some(job @ Job::Put { urgent: false, .. }) => match pace.take(Instant::now()) {
                        Ok(()) => break job,
                        Err(wait) => wait.max(Duration::from_millis(1)),
                    },
                    Some(job) => break job,
                };
                table = vault.wait(table, wait);
            };
            if let Job::Pack(n) | Job::Spare(n, _) | Job::Remove(n) = job
                && let Some(segment) = table.segments.get_mut(&n)
            {
                segment.spare = matches!(job, Job::Spare(..));
                segment.busy = !segment.spare;
            }
            job
        };
        match job {
            Job::Put { segment, offset, len, .. } => {
                insist(vault, || put(vault, segment, offset, len));
            }
            Job::Close(segment) => insist(vault, || close(vault, segment)),
            Job::Spare(segment, bytes) => shared.room.add(Arc::downgrade(vault), segment, bytes),
            Job::Pack(segment) => beside(vault, segment, pack),
            Job::Remove(segment) => beside(vault, segment, remove),
        }
    }
}

/// Does what must not keep commits waiting, in a thread of its own.
fn beside(vault: &Arc<Vault>, segment: u64, job: fn(&Vault, u64) -> Result<()>) {
    let done = move |vault: &Vault| {
        if let Some(s) = vault.table().segments.get_mut(&segment) {
            s.busy = false;
        }
        vault.changed.notify_all();
    };
    let own = vault.clone();
    let thread = thread::Builder::new().name("pack".into()).stack_size(STACK);
    let work = move || {
        insist(&own, || job(&own, segment));
        done(&own);
    };
    if thread.spawn(work).is_err() {
        let _ = vault.shared.pause(0);
        done(vault);
    }
}

/// Tries until it is done, or nothing can be done any more.
fn insist(vault: &Vault, mut job: impl FnMut() -> Result<()>) {
    let shared = &vault.shared;
    let mut tries = 0;
    loop {
        match job() {
            Ok(()) => return shared.is_back(),
            Err(e @ (Error::Lost { .. } | Error::Stopping)) => {
                if vault.table().ended || shared.usable().is_err() {
                    return;
                }
                shared.is_away(&e);
            }
            // Away, and also a disk here that fails, or an object that is not as it should be:
            // what was acknowledged stays here, and is put when that is mended.
            Err(e) => shared.is_away(&e),
        }
        if shared.pause(tries).is_err() || vault.table().ended {
            return;
        }
        tries += 1;
    }
}

/// A range of a segment's file.
fn read(vault: &Vault, segment: u64, offset: u64, len: u64) -> Result<Vec<u8>> {
    let file = vault.table().segments.get(&segment).and_then(|s| s.local.clone());
    let file = file.ok_or(Error::Stopping)?;
    let mut bytes = vec![0; len as usize];
    let what = format!("reading {} for the bucket", names::file(segment));
    file.read_at(&mut bytes, offset).map_err(Error::local(what))?;
    Ok(bytes)
}

fn put(vault: &Vault, segment: u64, offset: u64, len: u64) -> Result<()> {
    let _flight = vault.shared.flight(2 * len);
    let bytes = read(vault, segment, offset, len)?;
    vault.put_part(segment, Kind::Data, offset, &bytes)
}

fn close(vault: &Vault, segment: u64) -> Result<()> {
    let end = vault.table().segments.get(&segment).map_or(0, |s| s.stored.end);
    vault.put_part(segment, Kind::Close, end, &[])
}

/// Puts a segment as one object, and removes its parts.
fn pack(vault: &Vault, number: u64) -> Result<()> {
    let Some(stored) = vault.table().segments.get(&number).map(|s| s.stored.clone()) else {
        return Ok(());
    };
    if stored.is_there() && !stored.whole {
        put_whole(vault, number, stored.end)?;
    }
    if !stored.whole {
        let mut table = vault.table();
        let there = table.segments.get_mut(&number).filter(|s| s.stored.is_there());
        let Some(segment) = there else {
            drop(table);
            // It was removed meanwhile.
            return vault.shared.delete(&vault.object(Name::Whole(number))).map(drop);
        };
        let part = |p: &crate::chain::Piece| match p.object {
            Name::Part(_, part) => Some(part),
            Name::Whole(_) => None,
        };
        let spare: Vec<u32> = segment.stored.parts.iter().filter_map(part).collect();
        segment.stored.spare.extend(spare);
        segment.stored.whole = true;
    }
    let spare = vault.table().segments.get(&number).map(|s| s.stored.spare.clone());
    for part in spare.unwrap_or_default() {
        vault.shared.delete(&vault.object(Name::Part(number, part)))?;
    }
    if let Some(segment) = vault.table().segments.get_mut(&number)
        && segment.stored.whole
    {
        segment.stored.spare.clear();
        segment.stored.parts.clear();
    }
    Ok(())
}

/// Removes all of a segment. Here first: what is only in the bucket is found by the next opening,
/// and removed again by the store, which knows why.
fn remove(vault: &Vault, number: u64) -> Result<()> {
    let (local, objects) = {
        let table = vault.table();
        let Some(segment) = table.segments.get(&number) else { return Ok(()) };
        let stored = &segment.stored;
        let spare = stored.spare.iter().map(|part| Name::Part(number, *part));
        // Known or not: it may have been on its way when another server died.
        let whole = [Name::Whole(number)];
        let all = stored.parts.iter().map(|p| p.object).chain(spare).chain(whole);
        (segment.local.is_some(), all.collect::<BTreeSet<_>>())
    };
    if local {
        let file = names::file(number);
        let gone = vault.dir.remove(&file).or_else(|e| match e.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        });
        gone.and_then(|()| vault.dir.sync()).map_err(Error::local(format!("removing {file}")))?;
    }
    vault.shared.cache.forget(&vault.id, number);
    let mut stays = false;
    for object in objects {
        stays |= !vault.shared.delete(&vault.object(object))?;
    }
    if let Some(segment) = vault.table().segments.get_mut(&number) {
        segment.local = None;
        if stays {
            segment.doomed = segment.doomed.map(|doomed| Doomed { stays, ..doomed });
            return Ok(());
        }
        let Stored { next, closed, .. } = segment.stored;
        segment.stored = Stored { next, closed, ..Stored::default() };
        (segment.durable, segment.doomed, segment.removed) = (0, None, true);
    }
    Ok(())
}

fn put_whole(vault: &Vault, number: u64, end: u64) -> Result<()> {
    let _flight = vault.shared.flight(end);
    let bytes = Bytes::from(read(vault, number, 0, end)?);
    let name = vault.object(Name::Whole(number));
    let objects = &vault.shared.objects;
    let (range, known) = match objects.put_new(&name, bytes.clone())? {
        Put::Made => (end.saturating_sub(READ_BACK)..end, "what was put"),
        // It was put before a stop.
        Put::Taken => (0..end, "the segment"),
    };
    let expected = bytes.slice(range.start as usize..);
    if objects.get(&name, Some(range))?.as_ref() != Some(&expected) {
        return Err(Error::damaged(name, format!("it is not {known}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_store::Dir;
    use dormouse_store::memory::MemDir;

    fn segment(durable: u64, end: u64, closed: bool) -> Segment {
        let file = MemDir::new().create("x").unwrap();
        let stored = Stored { end, closed, ..Stored::default() };
        Segment { stored, local: Some(file), durable, ..Segment::default() }
    }

    fn next_of(segments: Vec<Segment>) -> Option<Job> {
        let segments = (1..).zip(segments).collect();
        next(&Table { segments, ..Table::default() }, 2)
    }

    #[test]
    fn the_chain_goes_in_order() {
        let put = |segment, offset, len, urgent| Some(Job::Put { segment, offset, len, urgent });
        assert_eq!(next_of(vec![segment(100, 40, false)]), put(1, 40, 60, false));
        assert_eq!(next_of(vec![segment(40, 40, false)]), None, "the newest stays open");
        let two = || segment(7, 0, false);
        assert_eq!(next_of(vec![segment(100, 40, false), two()]), put(1, 40, 60, true));
        assert_eq!(next_of(vec![segment(100, 100, false), two()]), Some(Job::Close(1)));
        assert_eq!(next_of(vec![segment(100, 100, true), two()]), put(2, 0, 7, false));
        let done = segment(100, 100, true);
        assert_eq!(next_of(vec![done, segment(7, 7, false)]), Some(Job::Spare(1, 100)));
        let mut many = segment(100, 100, true);
        for i in 0..3 {
            many.stored.push(1, Kind::Data, i, 1);
        }
        many.stored.closed = true;
        assert_eq!(next_of(vec![many, segment(7, 7, false)]), Some(Job::Pack(1)));
        let removed = Segment { removed: true, ..Segment::default() };
        assert_eq!(next_of(vec![removed, segment(7, 0, false)]), Some(Job::Close(1)));
        let doomed = |len, stays| {
            let doomed = Some(Doomed { behind: 2, len, stays });
            Segment { doomed, ..segment(100, 100, true) }
        };
        let why = || segment(7, 5, true);
        assert_eq!(next_of(vec![doomed(5, false), why()]), Some(Job::Remove(1)));
        assert_eq!(next_of(vec![doomed(6, false), why()]), None, "the bucket does not know why");
        assert_eq!(next_of(vec![doomed(5, true), why()]), None, "it may not go");
        let unput = Segment { doomed: doomed(7, false).doomed, ..segment(100, 40, false) };
        assert_eq!(next_of(vec![unput, segment(7, 0, false)]), put(1, 40, 60, true), "until then");
        let large = segment(3 * PART_MAX, 0, false);
        assert_eq!(next_of(vec![large]), put(1, 0, PART_MAX, true));
    }

    #[test]
    fn small_puts_are_spread() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(1), start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!((0..100).filter(|_| pace.take(at(0)).is_ok()).count(), BURST as usize);
        assert_eq!(pace.take(at(400)), Err(Duration::from_millis(600)));
        assert_eq!(pace.take(at(1000)), Ok(()));
        assert!(pace.take(at(1999)).is_err());
        let minute = (1..600).filter(|i| pace.take(at(2000 + i * 100)).is_ok()).count();
        assert!((58..=61).contains(&minute), "{minute} in a minute");
    }
}
