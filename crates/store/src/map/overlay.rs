//! Deltas laid over a checkpoint's map, page by page.
//!
//! Owns: in which order changes apply. Memory is bounded by the deltas
//! themselves: zero ranges of whole pages are kept as ranges, never as pages.

use std::collections::BTreeMap;

use dormouse_format::codec::{Reader, Writer};
use dormouse_format::extents::{Content, Runs};
use dormouse_format::geometry::blocks;
use dormouse_format::limits::PAGE_BLOCKS;
use dormouse_format::seeded::seeded;
use dormouse_format::{Block, RecordId, Result, Tag};

use super::page::Page;

/// Zeros of whole pages `first..end`, made by change number `order`.
#[derive(Debug, Clone, Copy)]
struct Wide {
    order: u32,
    first: u64,
    end: u64,
}

/// Changes to pages, in order.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// Of each page: order u32, from u16, count u16, first u8 (255: zeros), chunk, tags.
    pages: BTreeMap<u64, Writer>,
    wide: Vec<Wide>,
    order: u32,
    blocks: Block,
}

const ZEROS: u8 = 255;

impl Overlay {
    /// Over a map of this size.
    pub(crate) fn new(size: u64) -> Self {
        Self { blocks: blocks(size), ..Self::default() }
    }

    /// What was there beyond this size goes.
    pub(crate) fn resize(&mut self, size: u64) {
        self.order += 1;
        let new = blocks(size);
        if new < self.blocks && !seeded("shrink-forgotten") {
            self.zero(new, self.blocks);
        }
        self.blocks = new;
    }

    /// Adds one part of a point's changes.
    pub(crate) fn add(&mut self, runs: &[u8]) -> Result<()> {
        self.order += 1;
        for run in Runs::new(runs) {
            let run = run?;
            let end = run.end().min(self.blocks);
            match run.content {
                Content::Data { chunk, first, tags } => {
                    let tags: Vec<Tag> = tags.iter().collect();
                    let (mut from, mut skip) = (run.start, 0);
                    while from < end {
                        let to = end.min((from / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
                        let n = (to - from) as usize;
                        let w = self.op(from, n as u64, first + skip as u8);
                        w.bytes(&chunk.0);
                        tags[skip..skip + n].iter().for_each(|t| {
                            w.bytes(&t.0);
                        });
                        (from, skip) = (to, skip + n);
                    }
                }
                Content::Zero | Content::Tags(_) => self.zero(run.start, end),
            }
        }
        Ok(())
    }

    fn op(&mut self, from: Block, count: u64, first: u8) -> &mut Writer {
        let w = self.pages.entry(from / PAGE_BLOCKS).or_default();
        w.u32(self.order).u16((from % PAGE_BLOCKS) as u16).u16(count as u16).u8(first)
    }

    fn zero(&mut self, mut from: Block, to: Block) {
        while from < to {
            let whole = (to - from) / PAGE_BLOCKS;
            if from.is_multiple_of(PAGE_BLOCKS) && whole > 0 {
                let first = from / PAGE_BLOCKS;
                self.wide.push(Wide { order: self.order, first, end: first + whole });
                from += whole * PAGE_BLOCKS;
            } else {
                let end = to.min((from / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
                self.op(from, end - from, ZEROS);
                from = end;
            }
        }
    }

    /// Applies all changes to a page of the map below.
    pub(crate) fn apply(&self, index: u64, page: &mut Page) -> Result<()> {
        let first = index * PAGE_BLOCKS;
        let wide = |w: &&Wide| (w.first..w.end).contains(&index);
        let mut wides = self.wide.iter().filter(wide).peekable();
        let ops = self.pages.get(&index).map_or(&[][..], |w| &w.0);
        let mut r = Reader::new(ops, "overlay");
        while r.left() > 0 {
            let (order, from, count, at) = (r.u32()?, r.u16()?, r.u16()?, r.u8()?);
            while wides.next_if(|w| w.order <= order).is_some() {
                page.clear(index, first, first + PAGE_BLOCKS);
            }
            let start = first + u64::from(from);
            if at == ZEROS {
                page.clear(index, start, start + u64::from(count));
            } else {
                let chunk = RecordId(r.array()?);
                let tags = r.bytes(usize::from(count) * Tag::LEN)?;
                let tags = tags.as_chunks().0.iter().map(|t| Tag(*t));
                page.set(index, start, chunk, at, tags);
            }
        }
        if wides.next().is_some() {
            page.clear(index, first, first + PAGE_BLOCKS);
        }
        Ok(())
    }

    /// Pages with changes other than whole zeros.
    pub(crate) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    /// Ranges of pages that are zero unless [`Self::pages`] has them.
    pub(crate) fn zeros(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.wide.iter().map(|w| (w.first, w.end))
    }

    pub(crate) fn touches(&self, index: u64) -> bool {
        self.pages.contains_key(&index)
            || self.wide.iter().any(|w| (w.first..w.end).contains(&index))
    }
}
