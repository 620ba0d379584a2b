//! A page of the map in memory, and the body of its record.
//!
//! Record: page index u64 | base record 16 (zero: from zero) | depth u8 |
//! reserved 7 | runs of what differs from the base, with absolute addresses.

use dormouse_crypt::hash;
use dormouse_format::codec::{Reader, Result, Writer, invalid};
use dormouse_format::extents::{Content, ExtentsWriter, Run, Runs};
use dormouse_format::geometry::{Place, blocks};
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS, PAGE_BLOCKS, VOLUME_SIZE_MAX};
use dormouse_format::seeded::seeded;
use dormouse_format::{Block, ChunkId, Hash, RecordId, Tag};

const N: usize = PAGE_BLOCKS as usize;
const LEAF: usize = LEAF_BLOCKS as usize;
/// Pages of the largest volume.
const PAGES_MAX: u64 = blocks(VOLUME_SIZE_MAX).div_ceil(PAGE_BLOCKS);
/// Bytes before the runs.
pub(crate) const PREFIX_LEN: usize = 32;
/// Records in a chain of patches at most, the full page not counted.
pub(crate) const DEPTH_MAX: u8 = 8;

/// Tags and hints of 16384 blocks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Page {
    tags: Vec<Tag>,
    chunks: Vec<ChunkId>,
    at: Vec<u8>,
}

/// A page record's body, split.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Body<'a> {
    pub(crate) index: u64,
    pub(crate) base: RecordId,
    pub(crate) depth: u8,
    pub(crate) runs: &'a [u8],
}

impl<'a> Body<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(bytes, "map page");
        let (index, base, depth) = (r.u64()?, RecordId(r.array()?), r.u8()?);
        r.reserved(7)?;
        if index >= PAGES_MAX {
            return Err(invalid("map page", "it lies beyond the largest volume"));
        }
        if base.is_zero() != (depth == 0) || depth > DEPTH_MAX {
            return Err(invalid("map page", "the depth does not fit the base"));
        }
        Ok(Self { index, base, depth, runs: r.rest() })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(PREFIX_LEN + self.runs.len());
        w.u64(self.index).bytes(&self.base.0).u8(self.depth).reserved(7).bytes(self.runs);
        w.done()
    }
}

impl Page {
    pub(crate) fn zero() -> Self {
        Self { tags: vec![Tag::ZERO; N], chunks: vec![RecordId::ZERO; N], at: vec![0; N] }
    }

    /// Makes blocks of the page `index` zero; what lies outside is left out.
    pub(crate) fn clear(&mut self, index: u64, start: Block, end: Block) {
        let first = index * PAGE_BLOCKS;
        let from = start.clamp(first, first + PAGE_BLOCKS) - first;
        let to = end.clamp(first, first + PAGE_BLOCKS) - first;
        if from < to {
            let range = from as usize..to as usize;
            self.tags[range.clone()].fill(Tag::ZERO);
            self.chunks[range.clone()].fill(RecordId::ZERO);
            self.at[range].fill(0);
        }
    }

    /// Sets blocks from `start` on, all in the page `index`, to those of a chunk.
    pub(crate) fn set(
        &mut self,
        index: u64,
        start: Block,
        chunk: ChunkId,
        first: u8,
        tags: impl Iterator<Item = Tag>,
    ) {
        let from = (start - index * PAGE_BLOCKS) as usize;
        for (i, tag) in tags.enumerate() {
            self.tags[from + i] = tag;
            self.chunks[from + i] = chunk;
            self.at[from + i] = first + i as u8;
        }
    }

    /// Applies the part of a run that lies in the page `index` and before `limit`.
    pub(crate) fn apply(&mut self, index: u64, limit: Block, run: &Run<'_>) {
        let first = index * PAGE_BLOCKS;
        let from = run.start.max(first);
        let to = run.end().min(first + PAGE_BLOCKS).min(limit);
        if from >= to {
            return;
        }
        match run.content {
            Content::Data { chunk, first: at, tags } => {
                let skip = (from - run.start) as usize;
                let tags = tags.iter().skip(skip).take((to - from) as usize);
                self.set(index, from, chunk, at + skip as u8, tags);
            }
            Content::Zero | Content::Tags(_) => self.clear(index, from, to),
        }
    }

    /// Applies the runs of a page record.
    pub(crate) fn apply_record(&mut self, index: u64, runs: &[u8]) -> Result<()> {
        let first = index * PAGE_BLOCKS;
        for run in Runs::new(runs) {
            let run = run?;
            if run.start < first || run.end() > first + PAGE_BLOCKS {
                return Err(invalid("map page", "a run lies outside of the page"));
            }
            if matches!(run.content, Content::Tags(_)) {
                return Err(invalid("map page", "a run has no chunk"));
            }
            self.apply(index, Block::MAX, &run);
        }
        Ok(())
    }

    /// Hashes of the 64 leaves.
    pub(crate) fn leaves(&self, index: u64) -> [Hash; FANOUT as usize] {
        let mut hashes = [Hash::ZERO; FANOUT as usize];
        for (slot, tags) in self.tags.as_chunks::<LEAF>().0.iter().enumerate() {
            hashes[slot] = hash::leaf(index * FANOUT + slot as u64, tags);
        }
        hashes
    }

    fn same(&self, base: Option<&Self>, i: usize) -> bool {
        match base {
            None => self.tags[i].is_zero(),
            Some(b) => {
                self.tags[i] == b.tags[i]
                    && (seeded("patch-hints-lost")
                        || self.chunks[i] == b.chunks[i] && self.at[i] == b.at[i])
            }
        }
    }

    /// Whether block `i + 1` goes on with the run that holds block `i`.
    fn goes_on(&self, i: usize) -> bool {
        match (self.tags[i].is_zero(), self.tags[i + 1].is_zero()) {
            (true, true) => true,
            (false, false) => {
                self.chunks[i] == self.chunks[i + 1]
                    && self.at[i].checked_add(1) == Some(self.at[i + 1])
            }
            _ => false,
        }
    }

    /// Runs of what differs from `base` (`None`: from zero).
    pub(crate) fn diff(&self, index: u64, base: Option<&Self>) -> Vec<u8> {
        self.runs(index, |i| !self.same(base, i))
    }

    fn runs(&self, index: u64, wanted: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut out = ExtentsWriter::new();
        let mut i = 0;
        while i < N {
            if !wanted(i) {
                i += 1;
                continue;
            }
            let from = i;
            while i + 1 < N && wanted(i + 1) && self.goes_on(i) {
                i += 1;
            }
            i += 1;
            let start = index * PAGE_BLOCKS + from as u64;
            if self.tags[from].is_zero() {
                out.zero(start, (i - from) as u64);
            } else {
                out.data(start, self.chunks[from], self.at[from], &self.tags[from..i]);
            }
        }
        out.take()
    }

    /// The blocks of the leaves in `mask` that are not zero, with or without hints.
    pub(crate) fn select(&self, index: u64, mask: u64, hints: bool) -> Vec<u8> {
        let wanted = |i: usize| mask >> (i / LEAF) & 1 == 1 && !self.tags[i].is_zero();
        if hints {
            return self.runs(index, wanted);
        }
        let mut out = ExtentsWriter::new();
        let mut i = 0;
        while i < N {
            let from = i;
            let leaf_end = (i / LEAF + 1) * LEAF;
            while i < leaf_end && wanted(i) {
                i += 1;
            }
            if i > from {
                out.tags(index * PAGE_BLOCKS + from as u64, &self.tags[from..i]);
            } else {
                i += 1;
            }
        }
        out.take()
    }

    /// Whether any block names a chunk for which `f` holds.
    pub(crate) fn names(&self, mut f: impl FnMut(&ChunkId) -> bool) -> bool {
        let mut last = None;
        self.tags.iter().zip(&self.chunks).any(|(tag, chunk)| {
            !tag.is_zero() && last != Some(chunk) && {
                last = Some(chunk);
                f(chunk)
            }
        })
    }
}

/// Hash of a page whose leaves have these hashes.
pub(crate) fn page_hash(index: u64, leaves: &[Hash; FANOUT as usize]) -> Hash {
    hash::node(Place { level: 1, index }, leaves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{decode_node, encode_node};
    use dormouse_format::record::Kind;

    /// The bytes of a committed vector.
    fn vector(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text
            .lines()
            .filter(|l| !l.starts_with('#'))
            .flat_map(|l| l.chars().map(|c| c.to_digit(16).unwrap()))
            .collect();
        digits.chunks_exact(2).map(|d| (d[0] << 4 | d[1]) as u8).collect()
    }

    #[test]
    fn the_committed_page_and_its_patch_are_read_and_written() {
        let full = vector(include_str!("../../../../testdata/vectors/page.txt"));
        let patch = vector(include_str!("../../../../testdata/vectors/page_patch.txt"));
        let body = Body::decode(&full).unwrap();
        assert_eq!((body.index, body.base, body.depth), (0, RecordId::ZERO, 0));
        let mut page = Page::zero();
        page.apply_record(0, body.runs).unwrap();
        let runs = page.diff(0, None);
        assert_eq!(Body { runs: &runs, ..body }.encode(), full);
        assert_eq!(
            (page.tags[300], page.chunks[301], page.at[301]),
            (Tag([0xd1; 16]), RecordId([0xc1; 16]), 3)
        );

        let base = page.clone();
        let body = Body::decode(&patch).unwrap();
        let id = hash::plain_id(Kind::Page as u8, &full);
        assert_eq!((body.index, body.base, body.depth), (0, id, 1));
        page.apply_record(0, body.runs).unwrap();
        let runs = page.diff(0, Some(&base));
        assert_eq!(Body { runs: &runs, ..body }.encode(), patch);
        assert_eq!((page.tags[300], page.tags[302]), (Tag::ZERO, Tag([0xd5; 16])));

        for bad in [&full[..31], &[&full[..24], &[1], &full[25..]].concat()] {
            assert!(Body::decode(bad).is_err());
        }
        let reserved = [&full[..31], &[1], &full[32..]].concat();
        assert!(Body::decode(&reserved).is_err());
        let deep = [&patch[..24], &[9], &patch[25..]].concat();
        assert!(Body::decode(&deep).is_err());
        assert!(Page::zero().apply_record(1, body.runs).is_err());
        let beyond = |index: u64| Body { index, base: RecordId::ZERO, depth: 0, runs: &[] };
        assert!(Body::decode(&beyond(PAGES_MAX - 1).encode()).is_ok());
        for index in [PAGES_MAX, u64::MAX] {
            assert!(Body::decode(&beyond(index).encode()).is_err(), "page {index}");
        }
    }

    #[test]
    fn the_committed_node_is_read_and_written() {
        let bytes = vector(include_str!("../../../../testdata/vectors/node.txt"));
        let (place, children) = decode_node(&bytes).unwrap();
        assert_eq!((place.level, place.index), (2, 3));
        assert_eq!(
            (children[0].hash, children[0].record),
            (Hash([0xe1; 32]), RecordId([0xf1; 16]))
        );
        assert_eq!(
            (children[5].hash, children[5].record),
            (Hash([0xe2; 32]), RecordId([0xf2; 16]))
        );
        assert_eq!(children.iter().filter(|c| !c.is_zero()).count(), 2);
        assert_eq!(encode_node(place, &children), bytes);
        let zero = [&bytes[..24], &[0; 32], &bytes[56..]].concat();
        let long = [&bytes[..], &[0]].concat();
        let [low, high] = [1, 9].map(|level| [&[level], &bytes[1..]].concat());
        for bad in [&bytes[..bytes.len() - 1], &zero, &long, &low, &high] {
            assert!(decode_node(bad).is_err());
        }
    }
}
