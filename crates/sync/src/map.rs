//! The client's view of the map: hashing a new tree, and walking the server's
//! tree top-down, believing nothing that is not under the signed root.
//!
//! Invariant: memory is a few nodes a level, however large the volume.

use std::collections::{BTreeMap, VecDeque};

use dormouse_crypt::hash;
use dormouse_format::extents::{Content, Runs};
use dormouse_format::geometry::{self, Place, span};
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_format::seeded::seeded;
use dormouse_format::{ChunkId, Hash, Seq, Tag, VolumeId};

use crate::error::{Error, Result};

const N: usize = FANOUT as usize;
/// Questions under way at most.
const WINDOW: usize = 128;
/// How many items from the front inner nodes are asked for ahead.
const AHEAD: usize = 160;

/// Computes the top hash of a tree whose subtrees come in ascending order.
#[derive(Debug, Default)]
pub struct TreeHasher {
    /// For each level above 0, from level 1 on: the node being filled.
    open: Vec<Option<(u64, Box<[Hash; N]>)>>,
}

impl TreeHasher {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the subtree at `place`. Zero subtrees may be left out.
    pub fn push(&mut self, place: Place, hash: Hash) {
        if hash.is_zero() {
            return;
        }
        self.close_before(place);
        self.put(place, hash);
    }

    /// Puts a closed subtree into its parent. An open parent of another place lies
    /// before it, and is closed first.
    fn put(&mut self, place: Place, hash: Hash) {
        let (parent, slot) = place.parent();
        let level = usize::from(place.level);
        while self.open.len() <= level {
            self.open.push(None);
        }
        if self.open[level].as_ref().is_some_and(|n| n.0 != parent.index) {
            self.close(level);
        }
        let node =
            self.open[level].get_or_insert_with(|| (parent.index, Box::new([Hash::ZERO; N])));
        node.1[slot] = hash;
    }

    /// Closes the open nodes that lie wholly before `place`, lowest first.
    fn close_before(&mut self, place: Place) {
        let first = place.first_block();
        for i in 0..self.open.len() {
            let level = i as u8 + 1;
            let ends_before =
                |n: &(u64, Box<[Hash; N]>)| (n.0 + 1).saturating_mul(span(level)) <= first;
            if self.open[i].as_ref().is_some_and(ends_before) {
                self.close(i);
            }
        }
    }

    fn close(&mut self, i: usize) {
        let Some((index, children)) = self.open[i].take() else { return };
        let place = Place { level: i as u8 + 1, index };
        self.put(place, hash::node(place, &children));
    }

    /// The hash of node 0 of level `top`.
    pub fn finish(mut self, top: u8) -> Hash {
        for i in 0..usize::from(top) {
            if i < self.open.len() {
                self.close(i);
            }
        }
        match self.open.get_mut(usize::from(top)).and_then(Option::take) {
            Some((_, children)) => children[0],
            None => Hash::ZERO,
        }
    }
}

/// A checkpoint whose map is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The volume.
    pub volume: VolumeId,
    /// The checkpoint.
    pub seq: Seq,
    /// Its size in bytes.
    pub size: u64,
    /// Hash of the top node, under the signed root.
    pub top: Hash,
}

impl Root {
    /// The root of a checkpoint whose signature was checked.
    pub fn of(stored: &StoredPoint) -> Result<Self> {
        let p = stored.point();
        let seq = p.seq;
        if !p.is_checkpoint() {
            return Err(Error::Map { seq, what: "the point is no checkpoint" });
        }
        let level = geometry::top_level(p.size);
        let root = hash::content_root(&p.volume, p.size, level, &stored.top);
        if root != p.root && !seeded("top-unchecked") {
            return Err(Error::Map { seq, what: "the top node is not under the signed root" });
        }
        Ok(Self { volume: p.volume, seq, size: p.size, top: stored.top })
    }
}

#[derive(Debug)]
enum State {
    New,
    Asked,
    Page(Box<[Hash; N]>),
    Whole,
}

#[derive(Debug)]
struct Item {
    place: Place,
    hash: Hash,
    state: State,
}

/// What the walk has at its front.
#[derive(Debug)]
pub enum Front {
    /// Nothing before this block is in the map; what follows is not known yet.
    Wait(u64),
    /// A page begins at this block and is known.
    Page(u64),
    /// A subtree that the walk was not asked to open.
    Whole(Place, Hash),
    /// The map holds nothing more.
    End,
}

/// Walks a checkpoint's map in address order.
pub struct Walker {
    root: Root,
    items: BTreeMap<u64, Item>,
    asked: VecDeque<u64>,
    /// Which subtrees are to be opened; others are given whole.
    wanted: Box<dyn Fn(Place) -> bool + Send>,
}

impl core::fmt::Debug for Walker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Walker({} items, {} asked)", self.items.len(), self.asked.len())
    }
}

impl Walker {
    /// A walk over all of a map.
    pub fn new(root: Root) -> Self {
        Self::only(root, Box::new(|_| true))
    }

    /// A walk that opens only subtrees for which `wanted` holds.
    pub fn only(root: Root, wanted: Box<dyn Fn(Place) -> bool + Send>) -> Self {
        let mut walker = Self { root, items: BTreeMap::new(), asked: VecDeque::new(), wanted };
        walker.add(Place { level: geometry::top_level(root.size), index: 0 }, root.top);
        walker
    }

    fn add(&mut self, place: Place, hash: Hash) {
        if hash.is_zero() {
            return;
        }
        let state = if (self.wanted)(place) { State::New } else { State::Whole };
        self.items.insert(place.first_block(), Item { place, hash, state });
    }

    /// The questions to send now.
    pub fn ask(&mut self, send: &mut dyn FnMut(Message)) {
        for (position, (first, item)) in self.items.iter_mut().enumerate() {
            if self.asked.len() >= WINDOW || position > AHEAD {
                break;
            }
            if matches!(item.state, State::New) {
                item.state = State::Asked;
                self.asked.push_back(*first);
                let Root { volume, seq, .. } = self.root;
                send(Message::GetNode { volume, seq, place: item.place });
            }
        }
    }

    /// Takes the answer to the oldest question.
    pub fn answer(&mut self, mask: u64, hashes: &[Hash]) -> Result<()> {
        let unasked = Error::Protocol { what: "a map node that was not asked for" };
        let first = self.asked.pop_front().ok_or(unasked.clone())?;
        let item = self.items.remove(&first).ok_or(unasked)?;
        let mut children = Box::new([Hash::ZERO; N]);
        let slots = (0..N).filter(|s| mask >> s & 1 == 1);
        slots.zip(hashes).for_each(|(slot, hash)| children[slot] = *hash);
        if hash::node(item.place, &children) != item.hash && !seeded("node-unchecked") {
            return Err(Error::Map { seq: self.root.seq, what: "a node's hash" });
        }
        if item.place.level == 1 {
            self.items.insert(first, Item { state: State::Page(children), ..item });
        } else {
            for (slot, hash) in children.iter().enumerate() {
                self.add(item.place.child(slot as u64), *hash);
            }
        }
        Ok(())
    }

    /// What comes first.
    pub fn front(&self) -> Front {
        match self.items.first_key_value() {
            None => Front::End,
            Some((first, item)) => match item.state {
                State::New | State::Asked => Front::Wait(*first),
                State::Page(_) => Front::Page(*first),
                State::Whole => Front::Whole(item.place, item.hash),
            },
        }
    }

    /// Takes what comes first: the leaf hashes, if it is a known page.
    pub fn take(&mut self) -> Option<Box<[Hash; N]>> {
        match self.items.first_entry()?.remove().state {
            State::Page(children) => Some(children),
            _ => None,
        }
    }
}

/// What the map holds for a block, with the hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The tag; zero for the zero block.
    pub tag: Tag,
    /// The chunk that holds it; zero where there is no hint.
    pub chunk: ChunkId,
    /// Its index in the chunk.
    pub index: u8,
}

impl Entry {
    /// The zero block.
    pub const ZERO: Self = Self { tag: Tag::ZERO, chunk: ChunkId::ZERO, index: 0 };
}

/// A leaf's index and what it holds.
pub type LeafEntries = (u64, Box<[Entry; LEAF_BLOCKS as usize]>);

/// Opens an answer of leaves of one page: entries of each leaf asked for, checked
/// against the leaf's hash.
pub fn open_leaves(
    seq: Seq,
    page: u64,
    mask: u64,
    leaf_hashes: &[Hash; N],
    runs: &[u8],
) -> Result<Vec<LeafEntries>> {
    let first = page * PAGE_BLOCKS;
    let mut leaves: Vec<_> = (0..FANOUT)
        .filter(|slot| mask >> slot & 1 == 1)
        .map(|slot| (page * FANOUT + slot, Box::new([Entry::ZERO; LEAF_BLOCKS as usize])))
        .collect();
    let wrong = |what| Error::Map { seq, what };
    for run in Runs::new(runs) {
        let run = run?;
        if run.start < first || run.end() > first + PAGE_BLOCKS {
            return Err(wrong("blocks of another page"));
        }
        let (tags, chunk, index) = match run.content {
            Content::Zero => continue,
            Content::Data { chunk, first, tags } => (tags, chunk, first),
            Content::Tags(tags) => (tags, ChunkId::ZERO, 0),
        };
        for (i, tag) in tags.iter().enumerate() {
            let block = run.start + i as u64;
            let leaf = leaves
                .binary_search_by_key(&(block / LEAF_BLOCKS), |l| l.0)
                .map_err(|_| wrong("a leaf that was not asked for"))?;
            let index = if chunk.is_zero() { 0 } else { index + i as u8 };
            leaves[leaf].1[(block % LEAF_BLOCKS) as usize] = Entry { tag, chunk, index };
        }
    }
    for (leaf, entries) in &leaves {
        let mut tags = [Tag::ZERO; LEAF_BLOCKS as usize];
        tags.iter_mut().zip(entries.iter()).for_each(|(t, e)| *t = e.tag);
        let hash = hash::leaf(*leaf, &tags);
        if hash != leaf_hashes[(leaf % FANOUT) as usize] && !seeded("leaf-unchecked") {
            return Err(wrong("a leaf's hash"));
        }
    }
    Ok(leaves)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same tree, computed the slow way.
    fn naive(leaves: &BTreeMap<u64, Hash>, top: u8) -> Hash {
        fn node(leaves: &BTreeMap<u64, Hash>, place: Place) -> Hash {
            if place.level == 0 {
                return leaves.get(&place.index).copied().unwrap_or(Hash::ZERO);
            }
            let per = span(place.level) / LEAF_BLOCKS;
            if leaves.range(place.index * per..(place.index + 1) * per).next().is_none() {
                return Hash::ZERO;
            }
            let mut children = [Hash::ZERO; N];
            for (slot, child) in children.iter_mut().enumerate() {
                *child = node(leaves, place.child(slot as u64));
            }
            hash::node(place, &children)
        }
        node(leaves, Place { level: top, index: 0 })
    }

    #[test]
    fn a_streamed_tree_equals_a_whole_one() {
        for (top, step) in [(1u8, 3u64), (2, 37), (3, 997), (4, 60_000)] {
            let end = span(top) / LEAF_BLOCKS;
            let leaves: BTreeMap<u64, Hash> =
                (0..end).step_by(step as usize).map(|i| (i, Hash([i as u8 | 1; 32]))).collect();
            let mut hasher = TreeHasher::new();
            for (index, hash) in &leaves {
                hasher.push(Place { level: 0, index: *index }, *hash);
            }
            assert_eq!(hasher.finish(top), naive(&leaves, top), "top {top}");
        }
        assert_eq!(TreeHasher::new().finish(3), Hash::ZERO);
    }

    #[test]
    fn whole_subtrees_can_stand_for_their_leaves() {
        let leaves: BTreeMap<u64, Hash> =
            [(0, 1u8), (70, 2), (64 * 64 + 5, 3)].map(|(i, b)| (i, Hash([b; 32]))).into();
        let mut hasher = TreeHasher::new();
        let low = Place { level: 2, index: 0 };
        let part = leaves.iter().filter(|l| *l.0 < 4096).map(|(k, v)| (*k, *v)).collect();
        hasher.push(low, naive(&part, 2));
        hasher.push(Place { level: 0, index: 64 * 64 + 5 }, Hash([3; 32]));
        assert_eq!(hasher.finish(3), naive(&leaves, 3));
    }
}
