//! What only the fuzzer sees: decoders that are this crate's own, and a log into which
//! any record may be written. Thin: every function stands for one that the store uses.

use std::io;
use std::sync::Arc;

use dormouse_crypt::record;
use dormouse_format::geometry::Place;
use dormouse_format::limits::FANOUT;
use dormouse_format::record::{CHECKED_LEN, Header, Kind};
use dormouse_format::{Block, Hash, RecordId, TimeNs, VaultId, WriterId};

use crate::dir::Dir;
use crate::error::Result;
use crate::index::run::{Cursor, Range, Run, RunWriter};
use crate::index::{Index, decode};
use crate::log::append::{Log, begin_segment};
use crate::log::{RecordRef, Segments};
use crate::map::page::{Body, Page, page_hash};
use crate::map::{Link, decode_node, encode_node};

/// Children of a node: hash and record of each.
pub type Children = [(Hash, RecordId); FANOUT as usize];

/// Reads a node's body.
pub fn node(body: &[u8]) -> dormouse_format::Result<(Place, Children)> {
    let (place, children) = decode_node(body)?;
    Ok((place, children.map(|link| (link.hash, link.record))))
}

/// A node's body.
pub fn node_body(place: Place, children: &Children) -> Vec<u8> {
    encode_node(place, &children.map(|(hash, record)| Link { hash, record }))
}

/// A page's body, split: index, base, depth, runs.
pub fn page(body: &[u8]) -> dormouse_format::Result<(u64, RecordId, u8, &[u8])> {
    Body::decode(body).map(|b| (b.index, b.base, b.depth, b.runs))
}

/// A page's body.
pub fn page_body(index: u64, base: RecordId, depth: u8, runs: &[u8]) -> Vec<u8> {
    Body { index, base, depth, runs }.encode()
}

/// A page in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct MapPage(Page);

impl core::fmt::Debug for MapPage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MapPage")
    }
}

impl MapPage {
    /// All zeros.
    pub fn zero() -> Self {
        Self(Page::zero())
    }

    /// Applies the runs of a page's record.
    pub fn apply(&mut self, index: u64, runs: &[u8]) -> dormouse_format::Result<()> {
        self.0.apply_record(index, runs)
    }

    /// Makes blocks zero.
    pub fn clear(&mut self, index: u64, start: Block, end: Block) {
        self.0.clear(index, start, end);
    }

    /// Runs of what differs from `base`, or from zeros.
    pub fn diff(&self, index: u64, base: Option<&Self>) -> Vec<u8> {
        self.0.diff(index, base.map(|b| &b.0))
    }

    /// Runs of the leaves in `mask`.
    pub fn select(&self, index: u64, mask: u64, hints: bool) -> Vec<u8> {
        self.0.select(index, mask, hints)
    }

    /// The page's hash.
    pub fn hash(&self, index: u64) -> Hash {
        page_hash(index, &self.0.leaves(index))
    }
}

/// An entry of an index run: id, segment, offset.
pub type Place3 = (RecordId, u64, u64);

/// All entries of the index run `name`, in the order in which they lie there, and whether each
/// is found by its id.
pub fn index_run(dir: &dyn Dir, name: &str, vault: &VaultId) -> io::Result<Vec<(Place3, bool)>> {
    let run = Arc::new(Run::open(dir, name, vault)?);
    let mut cursor = Cursor::new(Arc::clone(&run))?;
    let mut out = Vec::new();
    while let Some(raw) = cursor.peek().copied() {
        let mut id = RecordId::ZERO;
        id.0.copy_from_slice(&raw[..16]);
        let mut found = false;
        run.find(&id, &mut |other| found |= *other == raw)?;
        if let Some(entry) = decode(&raw, &run.writers) {
            out.push(((entry.id, entry.at.segment(), entry.at.offset()), found));
        }
        cursor.advance()?;
    }
    Ok(out)
}

/// Writes an index run out of raw entries, in their order, whatever they say.
pub fn write_index_run(
    dir: &dyn Dir,
    vault: &VaultId,
    span: (u64, u64),
    ends: ([u8; 16], [u8; 16]),
    writers: &[WriterId],
    entries: &[[u8; 32]],
) -> io::Result<()> {
    let mut out = RunWriter::new(dir, span.0, span.1)?;
    entries.iter().try_for_each(|raw| out.push(raw))?;
    let range = Range { first: span.0, last: span.1, before: ends.0, chain: ends.1 };
    out.finish(range, vault, writers).map(drop)
}

/// A log without the store's rules: any record can be written to it.
pub struct RawLog(Log);

impl core::fmt::Debug for RawLog {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("RawLog")
    }
}

impl RawLog {
    /// A new log with its first segment.
    pub fn create(
        segments: Box<dyn Dir>,
        index: Box<dyn Dir>,
        vault: VaultId,
        segment_size: u64,
    ) -> Result<Self> {
        let segments = Segments::new(Arc::from(segments));
        let active = begin_segment(&segments, vault, 1, [0; 16], 1)?;
        Ok(Self(Log::new(vault, segment_size, segments, Index::new(index, vault, 16), active)))
    }

    /// Appends a record as it is; where it lies.
    pub fn append(&self, record: &[u8], now: TimeNs) -> Result<RecordRef> {
        let (header, _) = dormouse_format::record::split(record)?;
        Ok(self.0.append(&header, record, now)?.0)
    }

    /// Appends a record whose header breaks a rule, but whose checks hold.
    pub fn append_any(&self, header: &Header, body: &[u8], now: TimeNs) -> Result<RecordRef> {
        let record = dormouse_crypt::fuzzing::assemble(*header, body);
        let check = record[CHECKED_LEN..].first_chunk().copied().unwrap_or_default();
        let header = Header { body_len: body.len() as u32, check, ..*header };
        Ok(self.0.append(&header, &record, now)?.0)
    }

    /// Appends a plain record.
    pub fn plain(&self, kind: Kind, writer: WriterId, body: &[u8]) -> Result<RecordRef> {
        self.append(&record::plain(kind, writer, body), 1)
    }

    /// Makes all durable, so that the next entry says so.
    pub fn sync(&self) -> Result<()> {
        self.0.sync_to(self.0.end())
    }
}
