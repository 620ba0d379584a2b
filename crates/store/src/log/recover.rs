//! What a crash left in the log: torn ends are set aside, damage is refused.
//!
//! Rule: at the first invalid entry, at X, of the last segment: if anything after
//! X says that more than X was durable, it is damage and nothing is changed; else
//! it is the torn end of writes that nobody was told about, its bytes are copied
//! to `NAME.torn-X` and cut off. But a record that was durable, and of which the body
//! alone is damaged, is kept, as one in a sealed segment is. Bytes not known to be durable,
//! the header and the name of the file among them, are written again and synced, for an
//! earlier program may have died of a failed sync, after which the system shows what the
//! disk does not have. Finding changes nothing; mending comes after all else was found
//! fit, so a log that is refused is left as it is. Segments that are missing must have been
//! retired; files of retired ones that a crash left are removed.

use std::io::ErrorKind;
use std::sync::Arc;

use dormouse_crypt::hash;
use dormouse_format::VaultId;
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::segment::{self, Tail};

use super::append::{Active, Table};
use super::gaps::{Break, Link, Retirees, breaks};
use super::walk::{self, Entry, Sealed, Walk};
use super::{RecordRef, Segments, name, numbers, read_range};
use crate::dir::File;
use crate::error::{Error, Result};

/// Bytes that were set aside: an unfinished end of writes that were never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// Name of the segment's file.
    pub segment: String,
    /// Where the bytes lay in it.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// The file that has them now.
    pub kept_in: String,
}

/// The log as found.
pub(crate) struct Found {
    /// All segments but the last, in order of number; retired ones too, if a crash left them.
    pub(crate) sealed: Vec<Sealed>,
    /// Header of the last segment.
    header: segment::Header,
    pub(crate) active: Active,
    pub(crate) torn: Vec<TornTail>,
    /// Records of the last segment whose bodies are damaged.
    pub(crate) damaged: Vec<(RecordRef, Error)>,
    /// Whether nothing can be written there.
    pub(crate) read_only: bool,
    /// Only because there was no room to mend its end.
    pub(crate) no_room: bool,
    /// A segment of which not even the header is whole.
    unfinished: Option<u64>,
    mending: Mending,
}

/// What is to be done with the last segment.
struct Mending {
    file: Arc<dyn File>,
    bytes: Vec<u8>,
    /// Where its whole entries end.
    end: usize,
    durable: u64,
    tail: Option<[u8; segment::TAIL_LEN]>,
}

/// Reads the ends of all segments, and the last one wholly. Changes nothing.
pub(crate) fn recover(segments: &Segments, vault: &VaultId) -> Result<Found> {
    let mut numbers = numbers(&*segments.dir)?;
    let mut unfinished = None;
    let Some(&newest) = numbers.last() else {
        return Err(Error::NotAStore { why: "it has no segments".into() });
    };
    if is_unfinished(segments, newest)? {
        if newest == 1 {
            let why = "its creation did not finish; remove its only segment and create it again";
            return Err(Error::NotAStore { why: why.into() });
        }
        unfinished = Some(newest);
        numbers.pop();
    }
    let mut sealed = Vec::with_capacity(numbers.len());
    let last = numbers.pop().unwrap_or(1);
    for number in numbers {
        sealed.push(walk::sealed(&*segments.file(number)?, number, vault)?);
    }
    let Last { header, active, damaged, mending } = last_segment(segments, last, vault)?;
    let (torn, read_only, no_room) = (Vec::new(), false, false);
    Ok(Found { sealed, header, active, torn, damaged, read_only, no_room, unfinished, mending })
}

impl Found {
    /// That every segment follows the one before it, or what was retired in between.
    pub(crate) fn check_chain(&self, retired: &Retirees) -> Result<()> {
        let link = |header: &segment::Header, chain| {
            let segment::Header { number, before, check, .. } = *header;
            Link { number, before: Some(before), check: Some(check), chain: Some(chain) }
        };
        let sealed = self.sealed.iter().map(|s| link(&s.header, s.chain));
        let last = std::iter::once(link(&self.header, self.active.chain));
        let (number, why) = match breaks(sealed.chain(last), retired).first() {
            None => return Ok(()),
            Some(Break::Missing(number)) => {
                (*number, "segments are missing from here on; restore them from a copy")
            }
            Some(Break::Unlinked(number)) => (
                *number,
                "the segment does not follow the one before it; one of them was exchanged",
            ),
            Some(Break::Exchanged(number)) => {
                (*number, "another segment of this number was retired; move this one away")
            }
        };
        Err(Error::damaged(number, 0, why))
    }

    /// The chain value at the end of a segment that is sealed; zero for number 0.
    pub(crate) fn chain_after(&self, number: u64, retired: &Retirees) -> Option<[u8; 16]> {
        if number == 0 {
            return Some([0; 16]);
        }
        if number == self.active.number {
            return self.active.sealed.then_some(self.active.chain);
        }
        let sealed = self.sealed.binary_search_by_key(&number, |s| s.header.number);
        let here = sealed.ok().map(|i| self.sealed[i].chain);
        here.or_else(|| retired.get(&number).map(|r| r.chain))
    }

    /// Removes what is left of segments that were retired, after the mending: the record
    /// that retired them is durable by then.
    pub(crate) fn remove_retired(&self, segments: &Segments, retired: &Retirees) -> Result<()> {
        let left = self.sealed.iter().filter(|s| retired.contains_key(&s.header.number));
        let left: Vec<u64> = left.map(|s| s.header.number).collect();
        if self.read_only || left.is_empty() { Ok(()) } else { remove(segments, &left) }
    }

    /// Sets what was not finished aside, ends the last segment, and makes it durable.
    pub(crate) fn mend(&mut self, segments: &Segments) -> Result<()> {
        if let Some(number) = self.unfinished.take() {
            self.torn.push(set_aside_file(segments, number)?);
        }
        let access = self.mending.mend(segments, self.active.number, &mut self.torn)?;
        (self.read_only, self.no_room) = (access != Access::Full, access == Access::NoRoom);
        Ok(())
    }
}

impl Mending {
    fn mend(&self, segments: &Segments, number: u64, torn: &mut Vec<TornTail>) -> Result<Access> {
        let Self { file, bytes, end, durable, tail } = self;
        let probe = file.write_at(&[], 0).map_err(|e| e.kind());
        if let Err(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) = probe {
            return Ok(Access::ReadOnly);
        }
        let (whole, rest) = bytes.split_at(*end);
        let finished = tail.as_ref().is_some_and(|t| *rest == t[..]);
        let set_aside = if finished || rest.is_empty() {
            Ok(())
        } else {
            cut(segments, &**file, number, bytes, *end).map(|t| torn.push(t))
        };
        let mended = set_aside.and_then(|()| {
            rewrite(&**file, number, whole, *durable, tail.as_ref())?;
            // Nor is it known that the file's name is durable.
            let failed = |e| Error::io(format!("making the name of {} durable", name(number)), e);
            let known = seeded("reopen-name-unsynced");
            let synced = if known { Ok(()) } else { segments.dir.sync() };
            synced.map_err(failed)
        });
        match mended {
            Ok(()) => Ok(Access::Full),
            // Without room nothing can be mended, but what is there can be read.
            Err(Error::Full) => Ok(Access::NoRoom),
            Err(e) => Err(e),
        }
    }
}

/// Removes the files of retired segments.
pub(crate) fn remove(segments: &Segments, numbers: &[u64]) -> Result<()> {
    for number in numbers {
        let failed = |e| Error::io(format!("removing {}", name(*number)), e);
        segments.forget(*number);
        match segments.dir.remove(&name(*number)) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            done => done.map_err(failed)?,
        }
    }
    segments.dir.sync().map_err(|e| Error::io("removing retired segments", e))
}

/// Whether a segment holds not even a whole header: its creation was cut short.
fn is_unfinished(segments: &Segments, number: u64) -> Result<bool> {
    let file = segments.file(number)?;
    let len = file.len().map_err(|e| Error::io(name(number), e))?;
    if len > segment::HEADER_LEN as u64 {
        return Ok(false);
    }
    if len < segment::HEADER_LEN as u64 {
        return Ok(true);
    }
    let head = read_range(&*file, number, 0, segment::HEADER_LEN)?;
    let (checked, check) = head.split_at(segment::CHECKED_LEN);
    Ok(hash::header_check(checked) != check)
}

fn set_aside_file(segments: &Segments, number: u64) -> Result<TornTail> {
    let from = name(number);
    let failed = |e| Error::io(format!("setting {} aside", name(number)), e);
    let bytes = segments.file(number)?.len().map_err(failed)?;
    let kept_in = free_name(segments, &format!("{from}.torn-0"))?;
    segments.forget(number);
    segments.dir.rename(&from, &kept_in).map_err(failed)?;
    segments.dir.sync().map_err(failed)?;
    Ok(TornTail { segment: from, offset: 0, bytes, kept_in })
}

fn free_name(segments: &Segments, wanted: &str) -> Result<String> {
    let names = segments.dir.list().map_err(|e| Error::io("listing the segments", e))?;
    let mut name = wanted.to_owned();
    let mut n = 2;
    while names.contains(&name) {
        name = format!("{wanted}-{n}");
        n += 1;
    }
    Ok(name)
}

/// What can be done with the last segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Everything.
    Full,
    /// Its files or their file system are read-only.
    ReadOnly,
    /// There was no room to mend its end.
    NoRoom,
}

/// What the walk over the last segment found.
struct Walked {
    table: Table,
    end: usize,
    chain: [u8; 16],
    durable: u64,
    seal: Option<u64>,
    damaged: Vec<(RecordRef, Error)>,
}

/// Walks from the header to the first entry that does not hold; over those that were
/// durable and of which the body alone does not.
fn walk_last(bytes: &[u8], number: u64, header: &segment::Header) -> Result<Walked> {
    let mut walk = Walk::new(bytes, header);
    let mut table = Table::default();
    let mut seal = None;
    let mut damaged = Vec::new();
    // Bytes of which anything, also beyond what the walk will reach, says that they were durable.
    let mut proved = 0;
    let why = loop {
        match walk.step() {
            Ok(Some(entry)) if entry.header.kind == Kind::Seal => {
                seal = Some(u64::from(entry.offset));
                break "bytes follow the seal".to_owned();
            }
            Ok(Some(entry)) => table.push(&entry.header, entry.offset),
            Ok(None) => break String::new(),
            Err(why) => {
                if proved <= walk.at as u64 {
                    let proof = walk::durable_beyond(bytes, &walk.segment_check, walk.at);
                    let Some(proof) = proof else { break why };
                    proved = proof.durable;
                }
                let Some(Entry { header, offset, .. }) = walk.step_over() else { break why };
                table.push(&header, offset);
                let (segment, body_len) = (number as u32, header.body_len);
                let at = RecordRef { segment, offset, body_len };
                damaged.push((at, at.damaged(why)));
            }
        }
    };
    if let Some(proof) = walk::durable_beyond(bytes, &walk.segment_check, walk.at)
        && !seeded("damage-as-torn-end")
    {
        let why = format!(
            "{why}; the record at byte {} says that these bytes were durable, so they are \
             damaged and not just unfinished. Nothing was changed: restore the segment from a copy",
            proof.at
        );
        return Err(Error::damaged(number, walk.at as u64, why));
    }
    // What is kept must prove it, or the next opening would take it for a torn end.
    let unproved = |at: &RecordRef| at.offset() + at.record_len() as u64 > walk.durable;
    if let Some((at, _)) = damaged.iter().find(|(at, _)| unproved(at)) {
        let why = "its body is damaged, and only what lies beyond a torn end says that it was \
                   durable. Nothing was changed: restore the segment from a copy";
        return Err(at.damaged(why));
    }
    let chain = walk.chain.unwrap_or_default();
    Ok(Walked { table, end: walk.at, chain, durable: walk.durable, seal, damaged })
}

/// The last segment, and what is to be done with it.
struct Last {
    header: segment::Header,
    active: Active,
    damaged: Vec<(RecordRef, Error)>,
    mending: Mending,
}

fn last_segment(segments: &Segments, number: u64, vault: &VaultId) -> Result<Last> {
    let file = segments.file(number)?;
    let len = file.len().map_err(|e| Error::io(name(number), e))?;
    if len > u64::from(u32::MAX) {
        return Err(Error::damaged(number, 0, "the segment is longer than any can be"));
    }
    let bytes = read_range(&*file, number, 0, len as usize)?;
    let header = walk::header(&bytes, number, vault)?;
    let walked = walk_last(&bytes, number, &header)?;
    let tail = walked.seal.map(|seal| {
        let check = hash::tail_check(seal, &walked.chain);
        Tail { seal, check }.encode()
    });
    let end = (walked.end + tail.map_or(0, |t| t.len())) as u64;
    let active = Active {
        number,
        version: header.version,
        file: Arc::clone(&file),
        end,
        chain: walked.chain,
        segment_check: header.check,
        durable: end,
        noted: walked.durable,
        table: walked.table,
        sealed: walked.seal.is_some(),
    };
    let mending = Mending { file, bytes, end: walked.end, durable: walked.durable, tail };
    Ok(Last { header, active, damaged: walked.damaged, mending })
}

/// Copies what lies from `end` on to a file of its own, durably, then cuts it off.
fn cut(
    segments: &Segments,
    file: &dyn File,
    number: u64,
    bytes: &[u8],
    end: usize,
) -> Result<TornTail> {
    let segment = name(number);
    let failed = |e| Error::io(format!("setting the torn end of {} aside", name(number)), e);
    let kept_in = free_name(segments, &format!("{segment}.torn-{end}"))?;
    let copy = segments.dir.create(&kept_in).map_err(failed)?;
    let sync_copy = |()| if seeded("torn-copy-unsynced") { Ok(()) } else { copy.sync() };
    let sync_name = |()| if seeded("torn-name-unsynced") { Ok(()) } else { segments.dir.sync() };
    let copied = copy.write_at(&bytes[end..], 0).and_then(sync_copy);
    if let Err(e) = copied.and_then(sync_name) {
        // Half a copy is of no use; the torn end is still where it was.
        segments.dir.remove(&kept_in).ok();
        return Err(failed(e));
    }
    file.set_len(end as u64).map_err(failed)?;
    let (offset, len) = (end as u64, (bytes.len() - end) as u64);
    Ok(TornTail { segment, offset, bytes: len, kept_in })
}

/// Writes what is not known to be durable again, with the tail, and syncs.
fn rewrite(
    file: &dyn File,
    number: u64,
    bytes: &[u8],
    durable: u64,
    tail: Option<&[u8; segment::TAIL_LEN]>,
) -> Result<()> {
    let failed = |e| Error::io(format!("making {} durable", name(number)), e);
    // That much every segment says from the start: it proves nothing, not even the header.
    let proved = if durable > segment::HEADER_LEN as u64 { durable } else { 0 };
    let from = (proved as usize).min(bytes.len());
    if !seeded("reopen-unwritten") {
        file.write_at(&bytes[from..], from as u64).map_err(failed)?;
    }
    if let Some(tail) = tail {
        file.write_at(tail, bytes.len() as u64).map_err(failed)?;
    }
    if seeded("reopen-unsynced") {
        return Ok(());
    }
    file.sync().map_err(failed)
}
