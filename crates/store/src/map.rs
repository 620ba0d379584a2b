//! The map: pages and inner nodes, as records of the log.
//!
//! Owns: finding a node from a checkpoint's top, and checking it. Invariant: a
//! node or page is used only if its hash is what its parent (at the top: the
//! point) names. Building a new map is in [`build`]; deltas are laid over an old
//! one in [`overlay`].

pub(crate) mod build;
mod cache;
pub(crate) mod overlay;
pub(crate) mod page;

use std::sync::Arc;

use dormouse_crypt::hash;
use dormouse_format::codec::{Reader, Writer, invalid};
use dormouse_format::geometry::{Place, top_level};
use dormouse_format::limits::{FANOUT, LEVEL_MAX};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::{Hash, RecordId};

use crate::error::{Error, Result};
use crate::log::RecordRef;
pub(crate) use cache::Cache;
pub use cache::MapCache;
use page::{Body, DEPTH_MAX, Page};

const F: usize = FANOUT as usize;

/// A node: its hash and the record that has it; both zero if all below is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) hash: Hash,
    pub(crate) record: RecordId,
}

impl Link {
    pub(crate) const ZERO: Self = Self { hash: Hash::ZERO, record: RecordId::ZERO };

    pub(crate) fn is_zero(&self) -> bool {
        self.hash.is_zero()
    }
}

/// Children of an inner node of level 2 or above.
pub(crate) type Children = [Link; F];

/// The map of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) top: Link,
    pub(crate) level: u8,
    pub(crate) size: u64,
}

impl Tree {
    pub(crate) const EMPTY: Self = Self { top: Link::ZERO, level: 1, size: 0 };

    pub(crate) const fn of(checkpoint: &StoredPoint) -> Self {
        let size = checkpoint.signed.point.size;
        let top = Link { hash: checkpoint.top, record: checkpoint.top_record };
        Self { top, level: top_level(size), size }
    }
}

/// A page put together from its record and those it stands on.
pub(crate) struct Loaded {
    pub(crate) page: Page,
    pub(crate) leaves: [Hash; F],
    pub(crate) depth: u8,
    /// Bytes of runs of the full page at the bottom.
    pub(crate) full_len: usize,
    /// Bytes of runs of all patches above it.
    pub(crate) patch_len: usize,
    /// The records that it stands on, itself not counted.
    pub(crate) bases: Vec<RecordId>,
}

/// Where records come from: the store, or a scrub's own table.
pub(crate) trait Source {
    /// The record with this kind and id, checked.
    fn fetch(&self, kind: Kind, id: &RecordId) -> Result<(RecordRef, Vec<u8>)>;
}

/// Node record: level u8 | reserved 7 | index u64 | mask u64 | (hash 32, record 16) of each.
pub(crate) fn encode_node(place: Place, children: &Children) -> Vec<u8> {
    let mut w = Writer::with_capacity(24 + F * 48);
    let set = |mask, (i, c): (usize, &Link)| mask | (u64::from(!c.is_zero()) << i);
    let mask = children.iter().enumerate().fold(0, set);
    w.u8(place.level).reserved(7).u64(place.index).u64(mask);
    for child in children.iter().filter(|c| !c.is_zero()) {
        w.bytes(&child.hash.0).bytes(&child.record.0);
    }
    w.done()
}

pub(crate) fn decode_node(body: &[u8]) -> dormouse_format::Result<(Place, Children)> {
    let mut r = Reader::new(body, "map node");
    let level = r.u8()?;
    r.reserved(7)?;
    let place = Place { level, index: r.u64()? };
    if !(2..=LEVEL_MAX).contains(&level) {
        return Err(invalid("map node", "no node has this level"));
    }
    let mask = r.u64()?;
    let mut children = [Link::ZERO; F];
    for (i, child) in children.iter_mut().enumerate() {
        if mask >> i & 1 == 1 {
            *child = Link { hash: Hash(r.array()?), record: RecordId(r.array()?) };
            if child.is_zero() {
                return Err(invalid("map node", "a child that is there has the hash zero"));
            }
        }
    }
    r.end()?;
    Ok((place, children))
}

/// Reads maps.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) cache: &'a Cache,
}

impl Reading<'_> {
    /// Children of the inner node at `place` that its parent calls `link`.
    pub(crate) fn children(&self, place: Place, link: &Link) -> Result<Arc<Children>> {
        let cached = self.cache.node(&link.record);
        let (children, at) = match cached {
            Some(children) => (children, None),
            None => {
                let (at, record) = self.source.fetch(Kind::Node, &link.record)?;
                let (found, children) =
                    decode_node(&record[HEADER_LEN..]).map_err(|e| at.damaged(e.to_string()))?;
                if found != place {
                    return Err(at.damaged("the map node is one of another place"));
                }
                let children = Arc::new(children);
                self.cache.put_node(link.record, Arc::clone(&children));
                (children, Some(at))
            }
        };
        if hash::node(place, &hashes(&children)) != link.hash {
            return Err(misnamed(self.source, Kind::Node, &link.record, at));
        }
        Ok(children)
    }

    /// The page `index` that its parent calls `link`.
    pub(crate) fn page(&self, index: u64, link: &Link) -> Result<Arc<Loaded>> {
        let cached = self.cache.page(&link.record);
        let loaded = match cached {
            Some(loaded) => loaded,
            None => {
                let loaded = Arc::new(self.load(index, &link.record)?);
                self.cache.put_page(link.record, Arc::clone(&loaded));
                loaded
            }
        };
        if page::page_hash(index, &loaded.leaves) != link.hash {
            return Err(misnamed(self.source, Kind::Page, &link.record, None));
        }
        Ok(loaded)
    }

    fn load(&self, index: u64, record: &RecordId) -> Result<Loaded> {
        let mut chain = Vec::new();
        let mut bases = Vec::new();
        let mut next = *record;
        let mut wanted = None;
        loop {
            let (at, bytes) = self.source.fetch(Kind::Page, &next)?;
            let body = Body::decode(&bytes[HEADER_LEN..]).map_err(|e| at.damaged(e.to_string()))?;
            if body.index != index || wanted.is_some_and(|d| d != body.depth) {
                return Err(at.damaged("the map page is not the one that is named"));
            }
            let (base, depth) = (body.base, body.depth);
            chain.push((at, bytes));
            if depth == 0 || chain.len() > usize::from(DEPTH_MAX) {
                break;
            }
            wanted = Some(depth - 1);
            next = base;
            bases.push(base);
        }
        let mut page = Page::zero();
        let lens = chain.iter().map(|(_, b)| b.len() - HEADER_LEN - page::PREFIX_LEN);
        let lens: Vec<usize> = lens.collect();
        if seeded("patch-order") {
            chain.reverse();
        }
        for (at, bytes) in chain.iter().rev() {
            let runs = &bytes[HEADER_LEN + page::PREFIX_LEN..];
            page.apply_record(index, runs).map_err(|e| at.damaged(e.to_string()))?;
        }
        let full_len = lens.last().copied().unwrap_or(0);
        let patch_len = lens.iter().sum::<usize>() - full_len;
        let leaves = page.leaves(index);
        Ok(Loaded { page, leaves, depth: (chain.len() - 1) as u8, full_len, patch_len, bases })
    }

    /// The link of the node at `place`, of level 1 or above, found from the top.
    pub(crate) fn find(&self, tree: &Tree, place: Place) -> Result<Link> {
        if place.level > tree.level {
            return Ok(Link::ZERO);
        }
        let above = 6 * u32::from(tree.level - place.level);
        if place.index.checked_shr(above).unwrap_or(0) != 0 {
            return Ok(Link::ZERO);
        }
        let mut link = tree.top;
        for level in (place.level + 1..=tree.level).rev() {
            if link.is_zero() {
                return Ok(Link::ZERO);
            }
            let node = Place { level, index: place.index >> (6 * u32::from(level - place.level)) };
            let children = self.children(node, &link)?;
            let slot = place.index >> (6 * u32::from(level - 1 - place.level)) & (FANOUT - 1);
            link = children[slot as usize];
        }
        Ok(link)
    }
}

pub(crate) fn hashes(children: &Children) -> [Hash; F] {
    let mut out = [Hash::ZERO; F];
    out.iter_mut().zip(children).for_each(|(o, c)| *o = c.hash);
    out
}

fn misnamed(source: &dyn Source, kind: Kind, id: &RecordId, at: Option<RecordRef>) -> Error {
    let at = at.map_or_else(|| source.fetch(kind, id).map(|(at, _)| at), Ok);
    match at {
        Ok(at) => at.damaged("the hash of the map's node is not what its parent names"),
        Err(e) => e,
    }
}
