//! A second copy of a vault's log: brought up to date here, healed from in [`heal`], and made whole
//! without its source in [`settle`].
//!
//! Segments never change but at their end, so equal means equal bytes: all of a sealed segment,
//! whole entries of the last. Invariants: a byte is copied after its record was checked, and
//! after it is durable where it comes from; what is in the copy is never replaced but by the same
//! bytes, or what never was whole; it goes only when it was retired, and the copy says so. A log is healed by putting
//! back the bytes that were there: each record that still verifies is in the healed segment, and
//! the damaged file is kept under another name. Needs no keys.

mod heal;
mod settle;

use std::io::ErrorKind;

use dormouse_crypt::hash;
use dormouse_format::VaultId;
use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::segment::{self, TAIL_LEN, Tail};

use crate::Fault;
use crate::dir::{Dir, File};
use crate::error::{Error, Result};
use crate::log::gaps::{Break, Link, Retirees, breaks, retirees};
use crate::log::walk::{self, Sealed, Walk};
use crate::log::{name, numbers, read_range};

pub use heal::{Healed, Healing, heal};
pub use settle::settle;

/// What a second copy was brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed {
    /// Segments that the log has.
    pub segments: u64,
    /// Segments of which something was copied.
    pub copied: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Records whose bodies are damaged where they come from. They were copied as they are.
    pub damaged: Vec<Fault>,
}

/// What the bytes of a segment are worth.
struct Judged {
    /// Where the whole entries end, with the tail if it is sealed.
    end: usize,
    chain: [u8; 16],
    sealed: bool,
    /// Records of which the body alone is damaged.
    damaged: Vec<(u64, String)>,
    /// What else does not hold, and where.
    broken: Option<(u64, String)>,
}

/// Walks a segment. What lies behind the last whole entry is no fault if nothing says that it
/// was durable.
fn judge(bytes: &[u8], number: u64, vault: &VaultId) -> Result<Judged> {
    let header = walk::header(bytes, number, vault)?;
    let mut walk = Walk::new(bytes, &header);
    let (mut damaged, mut broken, mut seal) = (Vec::new(), None, None);
    loop {
        let at = walk.at as u64;
        match walk.step() {
            Ok(None) => break,
            Ok(Some(entry)) if entry.header.kind == Kind::Seal => {
                seal = Some(at);
                break;
            }
            Ok(Some(_)) => {}
            Err(why) => {
                if walk::durable_beyond(bytes, &walk.segment_check, walk.at).is_none() {
                    break;
                }
                if walk.step_over().is_none() {
                    broken = Some((at, why));
                    break;
                }
                damaged.push((at, why));
            }
        }
    }
    let chain = walk.chain.unwrap_or_default();
    let (mut end, mut sealed) = (walk.at, false);
    if let Some(seal) = seal {
        let tail = Tail { seal, check: hash::tail_check(seal, &chain) }.encode();
        // Seal and tail are two writes: a part of the tail is no fault.
        sealed = bytes[end..] == tail;
        if sealed {
            end += TAIL_LEN;
        } else if !tail.starts_with(&bytes[end..]) {
            broken = Some((end as u64, "the segment's end does not hold".into()));
        }
    }
    Ok(Judged { end, chain, sealed, damaged, broken })
}

fn read_all(file: &dyn File, number: u64) -> Result<Vec<u8>> {
    let len = file.len().map_err(|e| Error::io(name(number), e))?;
    read_range(file, number, 0, len.min(u64::from(u32::MAX)) as usize)
}

/// The bytes of a segment; none if it is not there.
fn bytes_of(dir: &dyn Dir, number: u64) -> Result<Option<Vec<u8>>> {
    match dir.open(&name(number)) {
        Ok(file) => read_all(&*file, number).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("opening {}", name(number)), e)),
    }
}

fn diverged(number: u64, why: &str) -> Error {
    let why =
        format!("{}: {why}; it is no copy of this log, or has gone on by itself", name(number));
    Error::NotAStore { why }
}

/// How often it is begun anew because the server retired a segment meanwhile.
const TRIES: usize = 16;

/// Brings a second copy of a vault's log up to date. The log may be written meanwhile; nobody
/// else writes to the copy. What the log has retired goes from the copy too, when the record
/// that says so is durable there.
pub fn follow(from: &dyn Dir, to: &dyn Dir, vault: &VaultId) -> Result<Followed> {
    let mut done = Followed::default();
    let mut tries = 0;
    loop {
        let theirs = numbers(from)?;
        tries += 1;
        match followed(from, to, vault, &theirs, &mut done) {
            Err(error) if tries == TRIES || numbers(from)? == theirs => return Err(error),
            Err(_) => {}
            Ok(()) => return Ok(done),
        }
    }
}

fn followed(
    from: &dyn Dir,
    to: &dyn Dir,
    vault: &VaultId,
    theirs: &[u64],
    done: &mut Followed,
) -> Result<()> {
    let Some((&last, sealed)) = theirs.split_last() else { return Ok(()) };
    let there = numbers(to)?;
    if let Some(ahead) = there.iter().find(|n| **n > last) {
        return Err(diverged(*ahead, "the log has no such segment"));
    }
    let extra: Vec<u64> = there.into_iter().filter(|n| !theirs.contains(n)).collect();
    let whole = extra.is_empty() && theirs.len() as u64 == last;
    let retired = if whole { Retirees::new() } else { retired_of(from, vault)? };
    let ends = sealed.iter().map(|n| walk::sealed(&*open(from, *n)?, *n, vault));
    let ends = ends.collect::<Result<Vec<_>>>()?;
    check_chain(from, &ends, last, vault, &retired)?;
    done.segments = theirs.len() as u64;
    if seeded("dropped-early") {
        drop_retired(to, &extra, &retired, vault)?;
    }
    for end in ends.iter().filter(|end| !has_same(to, end, vault)) {
        one(from, to, end.header.number, vault, false, done)?;
    }
    one(from, to, last, vault, true, done)?;
    drop_retired(to, &extra, &retired, vault)
}

fn open(dir: &dyn Dir, number: u64) -> Result<std::sync::Arc<dyn File>> {
    dir.open(&name(number)).map_err(|e| Error::io(format!("opening {}", name(number)), e))
}

/// That the log is one chain, over what was retired too.
fn check_chain(
    from: &dyn Dir,
    sealed: &[Sealed],
    last: u64,
    vault: &VaultId,
    retired: &Retirees,
) -> Result<()> {
    let link = |header: &segment::Header, chain| {
        let segment::Header { number, before, check, .. } = *header;
        Link { number, before: Some(before), check: Some(check), chain }
    };
    let file = open(from, last)?;
    let len = file.len().map_err(|e| Error::io(name(last), e))?;
    // One that was just begun has perhaps no header yet.
    let head = match len >= segment::HEADER_LEN as u64 {
        true => walk::header(&read_range(&*file, last, 0, segment::HEADER_LEN)?, last, vault).ok(),
        false => None,
    };
    let sealed = sealed.iter().map(|end| link(&end.header, Some(end.chain)));
    let links = sealed.chain(head.map(|header| link(&header, None)));
    let (number, why) = match breaks(links, retired).first() {
        None => return Ok(()),
        Some(Break::Missing(number)) => (*number, "segments are missing from here on"),
        Some(Break::Unlinked(number)) => (*number, "it does not follow the segment before it"),
        Some(Break::Exchanged(number)) => (*number, "another segment of this number was retired"),
    };
    Err(Error::damaged(number, 0, format!("{why}; heal the store first")))
}

/// Whether the copy has a sealed segment with the same ends: it was copied before.
fn has_same(to: &dyn Dir, end: &Sealed, vault: &VaultId) -> bool {
    let number = end.header.number;
    let there = to.open(&name(number)).ok();
    let there = there.and_then(|file| walk::sealed(&*file, number, vault).ok());
    there.is_some_and(|there| {
        (there.header.check, there.chain, there.len) == (end.header.check, end.chain, end.len)
    })
}

/// Removes what the log has retired. The record that says so is durable in the copy by now.
fn drop_retired(to: &dyn Dir, extra: &[u64], retired: &Retirees, vault: &VaultId) -> Result<()> {
    for number in extra {
        let Some(gone) = retired.get(number) else {
            let why = "the log lacks it, and the copy has it; heal the store first";
            return Err(Error::damaged(*number, 0, why));
        };
        // One whose making was cut short here says nothing, and was never used.
        let there = bytes_of(to, *number)?.unwrap_or_default();
        if has_header(&there) && gone.check != walk::header(&there, *number, vault)?.check {
            return Err(diverged(*number, "another segment of this number was retired"));
        }
        to.remove(&name(*number))
            .map_err(|e| Error::io(format!("removing {}", name(*number)), e))?;
    }
    let sync = if extra.is_empty() { Ok(()) } else { to.sync() };
    sync.map_err(|e| Error::io("removing retired segments", e))
}

/// What the readable segments of a log say was retired.
pub(crate) fn retired_of(dir: &dyn Dir, vault: &VaultId) -> Result<Retirees> {
    let mut retired = Retirees::new();
    for number in numbers(dir)? {
        let Ok(file) = dir.open(&name(number)) else { continue };
        let table = walk::sealed(&*file, number, vault)
            .and_then(|sealed| walk::table(&*file, number, &sealed));
        let Ok(table) = table else {
            // The last one, or a damaged one: what can be read of it.
            let Ok(bytes) = read_all(&*file, number) else { continue };
            let Ok(header) = walk::header(&bytes, number, vault) else { continue };
            let mut walk = Walk::new(&bytes, &header);
            loop {
                match walk.step() {
                    Ok(Some(entry)) if entry.header.kind == Kind::Retired => {
                        retired.extend(retirees(entry.body)?);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) if walk.step_over().is_some() || walk.resume() => {}
                    Err(_) => break,
                }
            }
            continue;
        };
        for item in table.items.iter().filter(|item| item.kind == Kind::Retired) {
            let len = HEADER_LEN + item.body_len as usize;
            let bytes = read_range(&*file, number, u64::from(item.offset), len)?;
            if let Ok((_, body)) = dormouse_crypt::record::check(&bytes) {
                retired.extend(retirees(body)?);
            }
        }
    }
    Ok(retired)
}

/// Brings one segment up to date.
fn one(
    from: &dyn Dir,
    to: &dyn Dir,
    number: u64,
    vault: &VaultId,
    last: bool,
    done: &mut Followed,
) -> Result<()> {
    let failed = |what: &str| {
        let what = format!("{what} {}", name(number));
        move |e| Error::io(what.clone(), e)
    };
    let file = open(from, number)?;
    let bytes = read_all(&*file, number)?;
    if last && bytes.len() <= segment::HEADER_LEN {
        return Ok(());
    }
    // What was read is durable there before it is here: nothing that a crash there takes away
    // stays behind here.
    if !seeded("copied-undurable") {
        file.sync().map_err(failed("making durable"))?;
    }
    let judged = judge(&bytes, number, vault)?;
    if let Some((at, why)) = judged.broken {
        return Err(Error::damaged(number, at, format!("{why}; heal the store first")));
    }
    if !last && !judged.sealed {
        return Err(Error::damaged(
            number,
            judged.end as u64,
            "it is not the last, and has no end",
        ));
    }
    let faults = judged.damaged.into_iter();
    done.damaged.extend(faults.map(|(offset, why)| Fault { segment: name(number), offset, why }));
    let bytes = &bytes[..judged.end];
    let there = bytes_of(to, number)?;
    let (kept, len) = match &there {
        None => (0, 0),
        Some(there) => (kept(there, bytes, number, vault)?, there.len()),
    };
    if kept < bytes.len() || len > bytes.len() {
        let file = match there {
            Some(_) => open(to, number)?,
            None => to.create(&name(number)).map_err(failed("making"))?,
        };
        file.set_len(kept as u64).map_err(failed("cutting"))?;
        file.write_at(&bytes[kept..], kept as u64).map_err(failed("writing"))?;
        file.sync().map_err(failed("making durable"))?;
        to.sync().map_err(failed("making durable"))?;
        done.copied += 1;
        done.bytes += (bytes.len() - kept) as u64;
    }
    Ok(())
}

/// Whether there is a whole header; else the making of the segment was cut short.
fn has_header(there: &[u8]) -> bool {
    let header = there.split_at_checked(segment::CHECKED_LEN);
    header.is_some_and(|(checked, rest)| rest.starts_with(&hash::header_check(checked)))
}

/// How much of what is there stays: all, or up to where a copy was cut short. It is never less
/// than its whole entries.
fn kept(there: &[u8], bytes: &[u8], number: u64, vault: &VaultId) -> Result<usize> {
    if bytes.starts_with(there) || (seeded("copy-cut-short") && there.len() <= bytes.len()) {
        return Ok(there.len());
    }
    if !has_header(there) {
        return Ok(0);
    }
    // A copy whose end is not whole: what lies before must be the same.
    match judge(there, number, vault) {
        Ok(judged) if bytes.starts_with(&there[..judged.end]) => Ok(judged.end),
        Ok(_) => Err(diverged(number, "it differs")),
        Err(error) => Err(diverged(number, &error.to_string())),
    }
}
