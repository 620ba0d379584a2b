//! Building a new map out of an old one, deltas and a stream of extents.
//!
//! Extents arrive in ascending order; when they move past a page, its record is
//! written. Memory: one page, a link for each changed page, the zeroed ranges.
//! Invariant: nothing refers to the new records before the point does.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_crypt::hash;
use dormouse_format::Block;
use dormouse_format::extents::{Content, Run};
use dormouse_format::geometry::{Place, blocks, top_level};
use dormouse_format::limits::{FANOUT, PAGE_BLOCKS};
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;

use super::overlay::Overlay;
use super::page::{Body, DEPTH_MAX, Page, page_hash};
use super::{Children, Link, Loaded, Reading, Tree, encode_node, hashes};
use crate::error::{Error, Result};
use dormouse_format::RecordId;

/// Where new records go.
pub(crate) trait Sink {
    /// Appends a record and tells its id.
    fn append(&self, kind: Kind, body: &[u8]) -> Result<RecordId>;
}

/// Old map and sink, for one call.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) reading: Reading<'a>,
    pub(crate) sink: &'a dyn Sink,
}

struct Open {
    index: u64,
    page: Page,
    base: Option<(Link, Arc<Loaded>)>,
}

/// A map being built.
pub(crate) struct Building {
    base: Tree,
    overlay: Overlay,
    size: u64,
    open: Option<Open>,
    done: BTreeMap<u64, Link>,
    zeroed: Vec<(u64, u64)>,
}

/// Old node while the tree is rebuilt.
#[derive(Debug, Clone, Copy)]
enum Old {
    /// Nothing there.
    None,
    /// A node of the old map.
    Node(Link),
    /// Above the old map's top: it is, or lies below, child 0.
    Above,
}

impl Building {
    pub(crate) fn new(base: Tree, overlay: Overlay, size: u64) -> Self {
        Self { base, overlay, size, open: None, done: BTreeMap::new(), zeroed: Vec::new() }
    }

    fn blocks(&self) -> Block {
        blocks(self.size)
    }

    /// Adds the next run, which begins where the last ended or later.
    pub(crate) fn run(&mut self, site: Site<'_>, run: &Run<'_>) -> Result<()> {
        let end = run.end().min(self.blocks());
        let mut from = run.start;
        while from < end {
            let index = from / PAGE_BLOCKS;
            let whole = (end - from) / PAGE_BLOCKS;
            if run.content == Content::Zero && from.is_multiple_of(PAGE_BLOCKS) && whole > 0 {
                self.finish_open(site)?;
                match self.zeroed.last_mut() {
                    Some(last) if last.1 == index => last.1 += whole,
                    _ => self.zeroed.push((index, index + whole)),
                }
                from += whole * PAGE_BLOCKS;
            } else {
                let limit = self.blocks();
                self.enter(site, index)?.page.apply(index, limit, run);
                from = (index + 1) * PAGE_BLOCKS;
            }
        }
        Ok(())
    }

    fn enter(&mut self, site: Site<'_>, index: u64) -> Result<&mut Open> {
        if self.open.as_ref().is_none_or(|o| o.index != index) {
            self.finish_open(site)?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.load(site, index)?,
        };
        Ok(self.open.insert(open))
    }

    fn load(&self, site: Site<'_>, index: u64) -> Result<Open> {
        let link = site.reading.find(&self.base, Place { level: 1, index })?;
        let base = match link.is_zero() {
            true => None,
            false => Some((link, site.reading.page(index, &link)?)),
        };
        let mut page = base.as_ref().map_or_else(Page::zero, |(_, l)| l.page.clone());
        self.overlay.apply(index, &mut page)?;
        Ok(Open { index, page, base })
    }

    fn finish_open(&mut self, site: Site<'_>) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let index = open.index;
        open.page.clear(index, self.blocks(), Block::MAX);
        let link = Self::write_page(site, &open)?;
        if !link.is_zero() || open.base.is_some() || self.overlay.touches(index) {
            self.done.insert(index, link);
        }
        Ok(())
    }

    /// Writes a page's record, unless it equals the old one.
    fn write_page(site: Site<'_>, open: &Open) -> Result<Link> {
        let index = open.index;
        let leaves = open.page.leaves(index);
        let hash = page_hash(index, &leaves);
        if hash.is_zero() {
            return Ok(Link::ZERO);
        }
        if let Some((link, old)) = &open.base {
            if old.page == open.page {
                return Ok(*link);
            }
            let runs = open.page.diff(index, Some(&old.page));
            let patches = old.patch_len + runs.len();
            if old.depth < DEPTH_MAX && patches < old.full_len / 4 {
                let body = Body { index, base: link.record, depth: old.depth + 1, runs: &runs };
                let record = site.sink.append(Kind::Page, &body.encode())?;
                return Ok(Link { hash, record });
            }
        }
        let runs = open.page.diff(index, None);
        let body = Body { index, base: RecordId::ZERO, depth: 0, runs: &runs };
        let record = site.sink.append(Kind::Page, &body.encode())?;
        Ok(Link { hash, record })
    }

    fn is_zeroed(&self, index: u64) -> bool {
        let after = self.zeroed.partition_point(|z| z.0 <= index);
        after > 0 && self.zeroed[after - 1].1 > index
    }

    fn finish_page(&mut self, site: Site<'_>, index: u64) -> Result<()> {
        if self.done.contains_key(&index) || self.is_zeroed(index) {
            return Ok(());
        }
        self.enter(site, index)?;
        self.finish_open(site)
    }

    /// Writes what is left and the inner nodes; the top of the new map.
    pub(crate) fn finish(mut self, site: Site<'_>) -> Result<Tree> {
        self.finish_open(site)?;
        let end = self.blocks().div_ceil(PAGE_BLOCKS);
        let changed: Vec<u64> = self.overlay.pages().take_while(|p| *p < end).collect();
        for index in changed {
            self.finish_page(site, index)?;
        }
        if !self.blocks().is_multiple_of(PAGE_BLOCKS) && blocks(self.base.size) > self.blocks() {
            self.finish_page(site, self.blocks() / PAGE_BLOCKS)?;
        }
        let mut zeros = core::mem::take(&mut self.zeroed);
        zeros.extend(self.overlay.zeros());
        if !seeded("shrink-keeps-pages") {
            zeros.push((end, u64::MAX));
        }
        self.zeroed = merge(zeros);
        let level = top_level(self.size);
        let top = Place { level, index: 0 };
        let old = match level > self.base.level {
            true if self.base.top.is_zero() => Old::None,
            true => Old::Above,
            false => match site.reading.find(&self.base, top)? {
                Link::ZERO => Old::None,
                link => Old::Node(link),
            },
        };
        let top = self.node(site, top, old)?;
        Ok(Tree { top, level, size: self.size })
    }

    fn node(&self, site: Site<'_>, place: Place, old: Old) -> Result<Link> {
        let width = 6 * u32::from(place.level - 1);
        let (first, end) = (place.index << width, (place.index + 1) << width);
        let changed = self.done.range(first..end).next();
        let at = self.zeroed.partition_point(|z| z.1 <= first);
        let zero = self.zeroed.get(at).filter(|z| z.0 < end);
        if changed.is_none() {
            match (old, zero) {
                (Old::None, _) => return Ok(Link::ZERO),
                (_, Some(z)) if z.0 <= first && z.1 >= end => return Ok(Link::ZERO),
                (Old::Node(link), None) => return Ok(link),
                _ => {}
            }
        }
        if place.level == 1 {
            // A page is either changed, zeroed or old: the first two were seen above.
            return Ok(changed.map_or(Link::ZERO, |(_, link)| *link));
        }
        self.inner(site, place, old)
    }

    fn inner(&self, site: Site<'_>, place: Place, old: Old) -> Result<Link> {
        let before = match old {
            Old::Node(link) => Some(site.reading.children(place, &link)?),
            _ => None,
        };
        let mut children: Children = [Link::ZERO; FANOUT as usize];
        for slot in 0..FANOUT {
            let old = match (&old, &before) {
                (Old::Above, _) if slot > 0 => Old::None,
                (Old::Above, _) if place.level - 1 > self.base.level => Old::Above,
                (Old::Above, _) => Old::Node(self.base.top),
                (_, Some(b)) if !b[slot as usize].is_zero() => Old::Node(b[slot as usize]),
                _ => Old::None,
            };
            children[slot as usize] = self.node(site, place.child(slot), old)?;
        }
        if let (Old::Node(link), Some(before)) = (old, before)
            && *before == children
        {
            return Ok(link);
        }
        let hash = hash::node(place, &hashes(&children));
        if hash.is_zero() {
            return Ok(Link::ZERO);
        }
        let record = site.sink.append(Kind::Node, &encode_node(place, &children))?;
        Ok(Link { hash, record })
    }
}

/// Sorted, disjoint ranges out of any.
fn merge(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (first, end) in ranges {
        match out.last_mut() {
            Some(last) if first <= last.1 => last.1 = last.1.max(end),
            _ => out.push((first, end)),
        }
    }
    out
}

impl core::fmt::Debug for Building {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Building({} pages changed)", self.done.len())
    }
}

/// For a run that is not allowed where maps are written.
pub(crate) fn tags_refused() -> Error {
    Error::bad("extents that are written must name chunks, not tags alone")
}
