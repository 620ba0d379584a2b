//! Extents: which blocks have which tags, and which chunk holds them.
//!
//! One codec serves the message that announces changes, the delta record, the
//! page record and the answer that carries leaves. Layout: docs/format.md, 'Extents'.
//! Invariant: runs ascend and do not overlap; a data run lies in one chunk.

use crate::codec::{Error, Reader, Result, Writer, invalid};
use crate::ids::{Block, ChunkId, Tag};
use crate::limits::{BLOCK_SIZE, CHUNK_BLOCKS_MAX, LEAF_BLOCKS, VOLUME_SIZE_MAX};
use crate::seeded::seeded;

const WHAT: &str = "extents";
const KIND_ZERO: u8 = 0;
const KIND_DATA: u8 = 1;
const KIND_TAGS: u8 = 2;
const BLOCKS_MAX: u64 = VOLUME_SIZE_MAX / BLOCK_SIZE as u64;

/// What a run of blocks holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Zeros: no chunk, no tags.
    Zero,
    /// Consecutive blocks of one chunk, from index `first`.
    Data {
        /// The chunk that holds them (a hint, checked after opening).
        chunk: ChunkId,
        /// Index of the run's first block in the chunk.
        first: u8,
        /// The tags, 16 bytes each.
        tags: Tags<'a>,
    },
    /// Tags without hints, for comparing only.
    Tags(Tags<'a>),
}

/// Tags as they lie in the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tags<'a>(&'a [u8]);

impl<'a> Tags<'a> {
    /// Number of tags.
    pub const fn len(self) -> usize {
        self.0.len() / Tag::LEN
    }

    /// Whether there are none (never so in a decoded run).
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The tags in order.
    pub fn iter(self) -> impl Iterator<Item = Tag> + 'a {
        self.0.as_chunks::<{ Tag::LEN }>().0.iter().map(|t| Tag(*t))
    }
}

/// A run of consecutive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// The first block.
    pub start: Block,
    /// How many blocks.
    pub count: u64,
    /// What they hold.
    pub content: Content<'a>,
}

impl Run<'_> {
    /// The block after the last.
    pub const fn end(&self) -> Block {
        self.start + self.count
    }
}

/// Writes runs in ascending order.
#[derive(Debug, Default, Clone)]
pub struct ExtentsWriter {
    out: Writer,
    end: Block,
}

impl ExtentsWriter {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes written so far.
    pub const fn len(&self) -> usize {
        self.out.0.len()
    }

    /// Whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.out.0.is_empty()
    }

    /// The block after the last run.
    pub const fn end(&self) -> Block {
        self.end
    }

    fn head(&mut self, kind: u8, start: Block, count: u64) {
        debug_assert!(start >= self.end && count > 0, "runs ascend");
        self.out.u8(kind).varint(start - self.end).varint(count);
        self.end = start + count;
    }

    /// A run of zeros.
    pub fn zero(&mut self, start: Block, count: u64) {
        self.head(KIND_ZERO, start, count);
    }

    /// A run within one chunk.
    pub fn data(&mut self, start: Block, chunk: ChunkId, first: u8, tags: &[Tag]) {
        self.head(KIND_DATA, start, tags.len() as u64);
        self.out.u8(first).bytes(&chunk.0);
        self.put_tags(tags);
    }

    /// A run of tags without hints, at most a leaf long.
    pub fn tags(&mut self, start: Block, tags: &[Tag]) {
        self.head(KIND_TAGS, start, tags.len() as u64);
        self.put_tags(tags);
    }

    fn put_tags(&mut self, tags: &[Tag]) {
        for tag in tags {
            self.out.bytes(&tag.0);
        }
    }

    /// The bytes, and an empty writer in its place.
    pub fn take(&mut self) -> Vec<u8> {
        self.end = 0;
        core::mem::take(&mut self.out.0)
    }
}

/// Reads runs, checking each.
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    reader: Reader<'a>,
    end: Block,
}

impl<'a> Runs<'a> {
    /// The runs in `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { reader: Reader::new(bytes, WHAT), end: 0 }
    }

    fn run(&mut self) -> Result<Run<'a>> {
        let kind = self.reader.u8()?;
        let gap = self.reader.varint()?;
        let count = self.reader.varint()?;
        let start = self.end.checked_add(gap).filter(|&s| s < BLOCKS_MAX);
        let start = start.ok_or(invalid(WHAT, "a run starts beyond the largest volume"))?;
        if count == 0 || count > BLOCKS_MAX - start {
            return Err(invalid(WHAT, "a run is empty or ends beyond the largest volume"));
        }
        self.end = start + count;
        let content = match kind {
            KIND_ZERO => Content::Zero,
            KIND_DATA => {
                let first = self.reader.u8()?;
                let most = CHUNK_BLOCKS_MAX as u64 + u64::from(seeded("run-beyond-chunk"));
                if u64::from(first) + count > most {
                    return Err(invalid(WHAT, "a run reaches beyond its chunk"));
                }
                let chunk = crate::ids::RecordId(self.reader.array()?);
                if chunk.is_zero() {
                    return Err(invalid(WHAT, "a data run names no chunk"));
                }
                Content::Data { chunk, first, tags: self.read_tags(count)? }
            }
            KIND_TAGS => {
                if count > LEAF_BLOCKS {
                    return Err(Error::TooLarge { what: WHAT, value: count, limit: LEAF_BLOCKS });
                }
                Content::Tags(self.read_tags(count)?)
            }
            _ => return Err(invalid(WHAT, "unknown kind of run")),
        };
        Ok(Run { start, count, content })
    }

    fn read_tags(&mut self, count: u64) -> Result<Tags<'a>> {
        let tags = Tags(self.reader.bytes(count as usize * Tag::LEN)?);
        if tags.iter().any(|t| t.is_zero()) {
            return Err(invalid(WHAT, "a data run holds the tag of the zero block"));
        }
        Ok(tags)
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = Result<Run<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.left() == 0 {
            return None;
        }
        let run = self.run();
        if run.is_err() {
            self.reader.rest();
        }
        Some(run)
    }
}

/// Checks all runs of `bytes`; the end of the last is returned.
pub fn check(bytes: &[u8]) -> Result<Block> {
    let mut runs = Runs::new(bytes);
    for run in runs.by_ref() {
        run?;
    }
    Ok(runs.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut w = ExtentsWriter::new();
        w.zero(3, 5);
        w.data(8, crate::ids::RecordId([7; 16]), 2, &[Tag([1; 16]), Tag([2; 16])]);
        w.tags(300, &[Tag([9; 16])]);
        w.take()
    }

    #[test]
    fn round_trip() {
        let bytes = sample();
        let runs: Vec<_> = Runs::new(&bytes).collect::<Result<_>>().unwrap();
        assert_eq!(runs.len(), 3);
        assert_eq!((runs[0].start, runs[0].count, runs[0].content), (3, 5, Content::Zero));
        assert_eq!((runs[1].start, runs[1].end()), (8, 10));
        assert!(matches!(runs[2].content, Content::Tags(t) if t.len() == 1));
        assert_eq!(check(&bytes), Ok(301));
    }

    #[test]
    fn each_defect_is_refused() {
        let good = sample();
        assert!(check(&good[..good.len() - 1]).is_err(), "short");
        let mut bad = good.clone();
        bad[0] = 9;
        assert!(check(&bad).is_err(), "kind");
        let mut w = ExtentsWriter::new();
        w.data(0, crate::ids::RecordId([7; 16]), 63, &[Tag([1; 16]), Tag([2; 16])]);
        assert!(check(&w.take()).is_err(), "beyond its chunk");
        let mut w = ExtentsWriter::new();
        w.data(0, crate::ids::RecordId([7; 16]), 0, &[Tag::ZERO]);
        assert!(check(&w.take()).is_err(), "zero tag");
        let mut w = ExtentsWriter::new();
        w.zero(BLOCKS_MAX, 1);
        assert!(check(&w.take()).is_err(), "beyond the largest volume");
        assert!(check(&[0, 0, 0]).is_err(), "empty run");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_decode(bytes: Vec<u8>) {
            let _ = check(&bytes);
        }
    }
}
