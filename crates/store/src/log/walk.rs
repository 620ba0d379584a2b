//! Walking a segment's entries, and reading what ends a sealed one.
//!
//! Pure: over bytes. Used by recovery and by scrub, so both judge alike.

use dormouse_crypt::{hash, record};
use dormouse_format::VaultId;
use dormouse_format::record::{HEADER_LEN, Header, Kind, MAGIC};
use dormouse_format::seeded::seeded;
use dormouse_format::segment::{self, Seal, TAIL_LEN, TRAILER_LEN, Tail, Trailer};

use super::read_range;
use crate::dir::File;
use crate::error::{Error, Result};

/// A valid entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) header: Header,
    pub(crate) offset: u32,
    pub(crate) body: &'a [u8],
}

/// Walks the entries of a segment's bytes.
#[derive(Debug, Clone)]
pub(crate) struct Walk<'a> {
    bytes: &'a [u8],
    /// Where the next entry begins.
    pub(crate) at: usize,
    /// The chain value before it, if it is known.
    pub(crate) chain: Option<[u8; 16]>,
    /// The check of the segment's header, which trailers bind.
    pub(crate) segment_check: [u8; 16],
    /// The version of the segment.
    version: u32,
    /// The largest `durable` of the entries so far.
    pub(crate) durable: u64,
}

impl<'a> Walk<'a> {
    /// Over all bytes of a segment whose header has this check.
    pub(crate) const fn new(bytes: &'a [u8], header: &segment::Header) -> Self {
        Self {
            bytes,
            at: segment::HEADER_LEN,
            chain: Some(header.check),
            segment_check: header.check,
            version: header.version,
            durable: segment::HEADER_LEN as u64,
        }
    }

    /// The next entry; `None` where the bytes end; an error says what does not hold.
    pub(crate) fn step(&mut self) -> core::result::Result<Option<Entry<'a>>, String> {
        let Some((entry, trailer)) = self.parts()? else { return Ok(None) };
        record::check_body(&entry.header, entry.body).map_err(|e| e.to_string())?;
        self.linked(&entry.header, &trailer)?;
        Ok(Some(self.pass(entry, &trailer)))
    }

    /// Goes on behind an entry of which the body alone does not hold: its header, its
    /// trailer and the chain do. `None` if more is wrong, or if it is a seal.
    pub(crate) fn step_over(&mut self) -> Option<Entry<'a>> {
        let (entry, trailer) = self.parts().ok()??;
        let linked = self.linked(&entry.header, &trailer).is_ok();
        (linked && entry.header.kind != Kind::Seal).then(|| self.pass(entry, &trailer))
    }

    /// The parts of the next entry; only its header is checked.
    fn parts(&self) -> core::result::Result<Option<(Entry<'a>, Trailer)>, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let head = rest.first_chunk::<HEADER_LEN>().ok_or("the entry ends too early")?;
        let header = record::check_header(head).map_err(|e| e.to_string())?;
        if header.kind.version() > self.version {
            return Err(format!("a segment of version {} holds no such record", self.version));
        }
        let (body, after) = rest[HEADER_LEN..]
            .split_at_checked(header.body_len as usize)
            .ok_or("the entry ends too early")?;
        let trailer = after.first_chunk::<TRAILER_LEN>().ok_or("the entry ends too early")?;
        let trailer = Trailer::decode(trailer).map_err(|e| e.to_string())?;
        Ok(Some((Entry { header, offset: self.at as u32, body }, trailer)))
    }

    /// Checks the trailer of the next entry: by itself, and that it follows.
    fn linked(&self, header: &Header, trailer: &Trailer) -> core::result::Result<(), String> {
        let check = trailer_check(&self.segment_check, self.at, trailer);
        if trailer.check != check && !seeded("trailer-unchecked") {
            return Err("the check of the entry's trailer does not hold".into());
        }
        let follows =
            |before| trailer.chain == hash::chain(&before, &header.check, trailer.durable);
        if !self.chain.is_none_or(follows) && !seeded("chain-unchecked") {
            return Err("the chain does not hold: an entry was swapped, removed or altered".into());
        }
        if trailer.durable > self.at as u64 {
            return Err("an entry says that more is durable than lies before it".into());
        }
        Ok(())
    }

    fn pass(&mut self, entry: Entry<'a>, trailer: &Trailer) -> Entry<'a> {
        self.at += entry.header.record_len() + TRAILER_LEN;
        self.chain = Some(trailer.chain);
        self.durable = self.durable.max(trailer.durable);
        entry
    }

    /// Goes on at the next place that holds a valid record header; `false` if none does.
    pub(crate) fn resume(&mut self) -> bool {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let whole = rest.first_chunk().and_then(|head| record::check_header(head).ok());
        // A header that holds tells where the next entry begins, whatever the body holds.
        let end = whole.map(|h| self.at + h.record_len() + TRAILER_LEN);
        let from = end.filter(|end| self.valid_at(*end)).unwrap_or(self.at + 1);
        self.chain = None;
        let found = (from..self.bytes.len()).find(|at| self.valid_at(*at));
        self.at = found.unwrap_or(self.bytes.len());
        found.is_some()
    }

    fn valid_at(&self, at: usize) -> bool {
        let head = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        head.is_some_and(|h: &[u8; HEADER_LEN]| {
            h[..MAGIC.len()] == MAGIC && record::check_header(h).is_ok()
        })
    }
}

/// What says that bytes were durable once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proof {
    /// Where the record begins whose trailer says so.
    pub(crate) at: usize,
    /// How many bytes of the segment.
    pub(crate) durable: u64,
}

/// Whether bytes at or after `from` hold a record whose trailer says that more
/// than `from` was durable: then what is wrong at `from` is damage, not a torn end.
pub(crate) fn durable_beyond(bytes: &[u8], segment_check: &[u8; 16], from: usize) -> Option<Proof> {
    let mut at = from;
    while let Some(rest) = bytes.get(at..) {
        let found = rest.windows(MAGIC.len()).position(|w| w == MAGIC)?;
        let here = at + found;
        at = here + 1;
        let Some(head) = bytes[here..].first_chunk::<HEADER_LEN>() else { continue };
        let Ok(header) = record::check_header(head) else { continue };
        let Some(trailer) = bytes.get(here + header.record_len()..) else { continue };
        let Some(trailer) = trailer.first_chunk::<TRAILER_LEN>() else { continue };
        let Ok(trailer) = Trailer::decode(trailer) else { continue };
        let proved = trailer.check == trailer_check(segment_check, here, &trailer);
        if proved && trailer.durable > from as u64 && trailer.durable <= here as u64 {
            return Some(Proof { at: here, durable: trailer.durable });
        }
    }
    None
}

fn trailer_check(segment_check: &[u8; 16], offset: usize, trailer: &Trailer) -> [u8; 8] {
    hash::trailer_check(segment_check, offset as u64, trailer.durable, &trailer.chain)
}

/// Reads and checks a segment's header.
pub(crate) fn header(bytes: &[u8], number: u64, vault: &VaultId) -> Result<segment::Header> {
    let damaged = |at: u64, why: &str| Error::damaged(number, at, why);
    let head = bytes
        .first_chunk::<{ segment::HEADER_LEN }>()
        .ok_or_else(|| damaged(0, "the segment's header ends too early"))?;
    let (checked, check) = head.split_at(segment::CHECKED_LEN);
    // The check has its place in all versions: without it a version is no version.
    if hash::header_check(checked) != check {
        return Err(damaged(0, "the check of the segment's header does not hold"));
    }
    let header = match segment::Header::decode(head) {
        Ok(header) => header,
        Err(dormouse_format::Error::Version { found, known, .. }) => {
            return Err(Error::NewerVersion { found, known });
        }
        Err(e) => return Err(damaged(0, &e.to_string())),
    };
    if header.vault != *vault {
        return Err(damaged(0, "the segment belongs to another vault; move it away"));
    }
    if header.number != number {
        return Err(damaged(0, "the file's name does not fit the number in it"));
    }
    Ok(header)
}

/// A sealed segment: what can be known of it without reading its records.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) header: segment::Header,
    /// The chain value of the seal's entry.
    pub(crate) chain: [u8; 16],
    pub(crate) seal: u64,
    /// Bytes of the file.
    pub(crate) len: u64,
}

/// Reads header and tail of a sealed segment, but not its table.
pub(crate) fn sealed(file: &dyn File, number: u64, vault: &VaultId) -> Result<Sealed> {
    let len = file.len().map_err(|e| Error::io(super::name(number), e))?;
    let header = header(&read_range(file, number, 0, segment::HEADER_LEN)?, number, vault)?;
    let tail_at = len.saturating_sub(TAIL_LEN as u64);
    let bad = || {
        let why = "the segment is not the last and has no valid end; restore it from a copy";
        Error::damaged(number, tail_at, why)
    };
    let mut tail = [0; TAIL_LEN];
    tail.copy_from_slice(&read_range(file, number, tail_at, TAIL_LEN)?);
    let tail = Tail::decode(&tail).ok_or_else(bad)?;
    let least = (HEADER_LEN + TRAILER_LEN) as u64;
    if tail.seal < segment::HEADER_LEN as u64 || tail.seal.saturating_add(least) > tail_at {
        return Err(bad());
    }
    let trailer = read_range(file, number, tail_at - TRAILER_LEN as u64, TRAILER_LEN)?;
    let mut fixed = [0; TRAILER_LEN];
    fixed.copy_from_slice(&trailer);
    let chain = Trailer::decode(&fixed)?.chain;
    if hash::tail_check(tail.seal, &chain) != tail.check && !seeded("tail-unchecked") {
        return Err(bad());
    }
    Ok(Sealed { header, chain, seal: tail.seal, len })
}

/// Reads the table of a sealed segment.
pub(crate) fn table(file: &dyn File, number: u64, sealed: &Sealed) -> Result<Seal> {
    let damaged = |why: String| Error::damaged(number, sealed.seal, why);
    let end = sealed.len - (TAIL_LEN + TRAILER_LEN) as u64;
    let max = (HEADER_LEN + Kind::Seal.body_max()) as u64;
    if end - sealed.seal > max {
        return Err(damaged("the table is too long".into()));
    }
    let bytes = read_range(file, number, sealed.seal, (end - sealed.seal) as usize)?;
    let (header, body) = record::check(&bytes).map_err(|e| damaged(e.to_string()))?;
    if header.kind != Kind::Seal {
        return Err(damaged("what stands at the end is not a table".into()));
    }
    let seal = Seal::decode(body).map_err(|e| damaged(e.to_string()))?;
    if seal.items.iter().any(|item| item.kind.version() > sealed.header.version) {
        return Err(damaged("it lists a record that no segment of its version holds".into()));
    }
    Ok(seal)
}
