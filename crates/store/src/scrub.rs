//! Checks every record without keys, and says what a damage touches.
//!
//! Owns: the judgement of segments as files: header, number, link to the one
//! before, every entry's checks and chain, the table, the tail. Stands on the
//! directory alone, so it runs beside a server (`live`), which may retire segments meanwhile. Which points a damage
//! touches is worked out in [`touch`], in a second pass, only if there is damage.

mod touch;

use std::io::ErrorKind;

use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::segment::{self, Item, Seal, TRAILER_LEN, Tail};
use dormouse_format::{RecordId, Seq, VaultId};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::log::append::Table;
use crate::log::gaps::{Break, Link, Retirees, breaks, retirees};
use crate::log::walk::{self, Entry, Walk};
use crate::log::{name, numbers, read_range};
use dormouse_crypt::hash;

/// Points of a volume that a damage touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// The volume's name.
    pub volume: String,
    /// The points, ascending.
    pub seqs: Vec<Seq>,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Name of the segment's file.
    pub segment: String,
    /// Where in it.
    pub offset: u64,
    /// What the damaged record was, if that is known.
    pub kind: Option<Kind>,
    /// Its id, if that is known.
    pub id: Option<RecordId>,
    /// What does not hold.
    pub why: String,
    /// Which volumes and points it touches, as far as can be told.
    pub touches: Vec<Touch>,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segments read.
    pub segments: u64,
    /// Records checked and found good.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Faults found.
    pub findings: u64,
}

/// A fault before it is known what it touches.
#[derive(Debug, Clone)]
struct Fault {
    number: u64,
    offset: u64,
    kind: Option<Kind>,
    id: Option<RecordId>,
    why: String,
}

/// Faults kept at most; more than this is not worth listing one by one.
const FAULTS_MAX: usize = 10_000;
/// How often segments that a server retires are looked for.
const LOOKS_MAX: usize = 64;

/// Checks all segments of a vault. `live`: a server appends meanwhile, so that an
/// unfinished end of the last segment is no fault.
pub fn scrub(
    segments: &dyn Dir,
    vault: VaultId,
    live: bool,
    report: &mut dyn FnMut(Finding),
) -> Result<Summary> {
    let mut scrub = Scrub { live, ..Scrub::new(segments, vault) };
    let numbers = numbers(segments)?;
    let last = numbers.last().copied().unwrap_or(0);
    for number in numbers {
        scrub.segment(number, number == last)?;
    }
    scrub.chain(last)?;
    let mut summary = scrub.summary;
    summary.findings = scrub.faults.len() as u64;
    if !scrub.faults.is_empty() {
        let touches = touch::touches(segments, &vault, &scrub.faults);
        for (fault, touches) in scrub.faults.into_iter().zip(touches) {
            let Fault { number, offset, kind, id, why } = fault;
            report(Finding { segment: name(number), offset, kind, id, why, touches });
        }
    }
    Ok(summary)
}

struct Scrub<'a> {
    dir: &'a dyn Dir,
    vault: VaultId,
    live: bool,
    /// What links the segments that were read.
    links: Vec<Link>,
    retired: Retirees,
    faults: Vec<Fault>,
    summary: Summary,
}

/// What the walk over one segment saw.
struct Seen {
    table: Table,
    seal: Option<(u64, Seal)>,
    end: usize,
    chain: Option<[u8; 16]>,
    clean: bool,
}

impl<'a> Scrub<'a> {
    fn new(dir: &'a dyn Dir, vault: VaultId) -> Self {
        let summary = Summary { segments: 0, records: 0, bytes: 0, findings: 0 };
        let (links, retired, faults) = (Vec::new(), Retirees::new(), Vec::new());
        Self { dir, vault, live: false, links, retired, faults, summary }
    }

    fn fault(&mut self, number: u64, offset: u64, what: Option<(Kind, RecordId)>, why: &str) {
        if self.faults.len() < FAULTS_MAX {
            let (kind, id) = (what.map(|w| w.0), what.map(|w| w.1));
            self.faults.push(Fault { number, offset, kind, id, why: why.to_owned() });
        }
    }

    /// Faults between the segments. `last` was the last one when the scrub began.
    fn chain(&mut self, last: u64) -> Result<()> {
        for _ in 0..LOOKS_MAX {
            let found = breaks(self.links.iter().copied(), &self.retired);
            let missing = found.iter().any(|b| matches!(b, Break::Missing(_)));
            if missing && self.live && self.look_again(last)? {
                continue;
            }
            for found in found {
                match found {
                    Break::Missing(n) => {
                        self.fault(n, 0, None, "segments are missing from here on");
                    }
                    Break::Unlinked(n) => {
                        self.fault(n, 0, None, "the segment does not follow the one before it");
                    }
                    Break::Exchanged(n) => {
                        self.fault(n, 0, None, "another segment of this number was retired");
                    }
                }
            }
            break;
        }
        Ok(())
    }

    /// A server may have retired segments since they were listed: it noted so from segment
    /// `from` on before it removed them. Whether there is anything new.
    fn look_again(&mut self, from: u64) -> Result<bool> {
        let known = self.retired.len();
        for number in numbers(self.dir)?.into_iter().filter(|number| *number >= from) {
            let Some(bytes) = self.read(number)? else { continue };
            let Ok(header) = walk::header(&bytes, number, &self.vault) else { continue };
            let mut walk = Walk::new(&bytes, &header);
            while let Ok(Some(entry)) = walk.step() {
                self.note(&entry);
            }
        }
        Ok(self.retired.len() > known)
    }

    /// A segment's bytes; none if the server removed it meanwhile.
    fn read(&self, number: u64) -> Result<Option<Vec<u8>>> {
        match read_all(self.dir, number) {
            Err(Error::Io { source, .. }) if self.live && source.kind() == ErrorKind::NotFound => {
                Ok(None)
            }
            bytes => bytes.map(Some),
        }
    }

    fn note(&mut self, entry: &Entry<'_>) {
        if entry.header.kind == Kind::Retired {
            self.retired.extend(retirees(entry.body).unwrap_or_default());
        }
    }

    /// Checks one segment.
    fn segment(&mut self, number: u64, last: bool) -> Result<()> {
        let Some(bytes) = self.read(number)? else { return Ok(()) };
        self.summary.segments += 1;
        self.summary.bytes += bytes.len() as u64;
        if last && self.live && bytes.len() <= segment::HEADER_LEN {
            return Ok(());
        }
        let header = match walk::header(&bytes, number, &self.vault) {
            Ok(header) => header,
            Err(Error::Damaged { why, .. }) => {
                self.fault(number, 0, None, &why);
                match raw_header(&bytes) {
                    Some(header) => header,
                    None => {
                        self.links.push(Link { number, before: None, check: None, chain: None });
                        return Ok(());
                    }
                }
            }
            Err(e) => return Err(e),
        };
        let items = items(&bytes);
        let seen = self.walk(number, &bytes, &header, &items, last);
        self.end(number, &bytes, &seen, last);
        let segment::Header { before, check, .. } = header;
        let (before, check) = (Some(before), Some(check));
        self.links.push(Link { number, before, check, chain: seen.chain });
        Ok(())
    }

    fn walk(
        &mut self,
        number: u64,
        bytes: &[u8],
        header: &segment::Header,
        items: &[Item],
        last: bool,
    ) -> Seen {
        let mut walk = Walk::new(bytes, header);
        let (mut table, mut seal, mut clean) = (Table::default(), None, true);
        loop {
            match walk.step() {
                Ok(None) => break,
                Ok(Some(entry)) => {
                    self.summary.records += 1;
                    self.note(&entry);
                    if entry.header.kind == Kind::Seal {
                        let offset = u64::from(entry.offset);
                        seal = Seal::decode(entry.body).ok().map(|s| (offset, s));
                        break;
                    }
                    table.push(&entry.header, entry.offset);
                }
                Err(why) => {
                    let torn =
                        last && walk::durable_beyond(bytes, &walk.segment_check, walk.at).is_none();
                    if torn && self.live {
                        break;
                    }
                    clean = false;
                    let what = identify(bytes, walk.at, items);
                    let note = if torn {
                        "; if nothing more is wrong, opening the store sets \
                        these bytes aside as unfinished writes"
                    } else {
                        ""
                    };
                    self.fault(number, walk.at as u64, what, &format!("{why}{note}"));
                    if !walk.resume() {
                        break;
                    }
                }
            }
        }
        Seen { table, seal, end: walk.at, chain: walk.chain, clean }
    }

    /// Checks what ends the segment.
    fn end(&mut self, number: u64, bytes: &[u8], seen: &Seen, last: bool) {
        let at = seen.end as u64;
        let Some((seal_at, seal)) = &seen.seal else {
            if !last {
                self.fault(number, at, None, "the segment is not the last and has no seal");
            }
            return;
        };
        if seen.clean && seal != seen.table.seal() {
            self.fault(number, *seal_at, None, "the table does not fit the records");
        }
        let rest = &bytes[seen.end..];
        let tail = seen.chain.map(|chain| {
            let check = hash::tail_check(*seal_at, &chain);
            Tail { seal: *seal_at, check }.encode()
        });
        let unfinished = last && self.live && rest.len() < segment::TAIL_LEN;
        if tail.is_some_and(|t| t[..] != *rest) && !unfinished {
            self.fault(number, at, None, "the segment's end does not hold");
        }
    }
}

fn read_all(dir: &dyn Dir, number: u64) -> Result<Vec<u8>> {
    let failed = |e| Error::io(format!("reading {}", name(number)), e);
    let file = dir.open(&name(number)).map_err(failed)?;
    let len = file.len().map_err(failed)?.min(u64::from(u32::MAX));
    read_range(&*file, number, 0, len as usize)
}

/// A header whose checks do not hold, for what its entries still tell.
fn raw_header(bytes: &[u8]) -> Option<segment::Header> {
    let check = bytes.get(segment::CHECKED_LEN..segment::HEADER_LEN)?.try_into().ok()?;
    let (vault, before) = (VaultId::ZERO, [0; 16]);
    let version = segment::VERSION;
    Some(segment::Header { version, vault, number: 0, created: 0, before, check })
}

/// The table of a sealed segment, as far as it can be read.
fn items(bytes: &[u8]) -> Vec<Item> {
    let read = || {
        let (rest, tail) = bytes.split_last_chunk::<{ segment::TAIL_LEN }>()?;
        let seal = Tail::decode(tail)?.seal as usize;
        let record = rest.get(seal..rest.len().checked_sub(TRAILER_LEN)?)?;
        let (header, body) = dormouse_crypt::record::check(record).ok()?;
        if header.kind == Kind::Seal { Seal::decode(body).ok() } else { None }
    };
    read().map_or_else(Vec::new, |seal| seal.items)
}

/// What the damaged entry at `at` was: by its own header, else by the table.
fn identify(bytes: &[u8], at: usize, items: &[Item]) -> Option<(Kind, RecordId)> {
    let head = bytes.get(at..).and_then(|rest| rest.first_chunk::<HEADER_LEN>());
    let header: Option<Header> = head.and_then(|h| dormouse_crypt::record::check_header(h).ok());
    if let Some(header) = header {
        return Some((header.kind, header.id));
    }
    let i = items.binary_search_by_key(&at, |item| item.offset as usize).ok()?;
    Some((items[i].kind, items[i].id))
}
