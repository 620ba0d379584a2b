//! The map of a point, from the root down: what is known of it, and what is asked for.
//!
//! Invariant: a node or leaf counts only under the hash that its parent, or the signed root,
//! has for it. Leaves to others: what is done with the leaves ([`super::plan`]).

use std::sync::Arc;

use dormouse_crypt::hash;
use dormouse_format::geometry::{self, Place, span};
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_format::{Block, Hash};

use super::{Action, MAIN, Question, Reader};
use crate::error::{Error, Result};
use crate::history::builds_on;
use crate::map::{Entry, Root, open_leaves};
use crate::overlay::{Deltas, Overlay};

const LEAF: usize = LEAF_BLOCKS as usize;
/// What the map holds for the blocks of a leaf.
pub(super) type Leaf = [Entry; LEAF];
/// Nodes beside the one that is needed that are asked for with it, when a map is gone through.
const BESIDE: usize = 12;

/// A point's map: a checkpoint's, and what changed since.
#[derive(Debug)]
pub(super) struct View {
    pub(super) point: StoredPoint,
    checkpoint: StoredPoint,
    root: Root,
    /// Bytes of the volume.
    pub(super) size: u64,
    pub(super) overlay: Overlay,
    /// Until all deltas were taken.
    pub(super) deltas: Option<Deltas>,
    /// The deltas do not hold.
    pub(super) broken: Option<Error>,
}

impl View {
    pub(super) fn new(point: StoredPoint, checkpoint: StoredPoint) -> Result<Self> {
        builds_on(&point, &checkpoint)?;
        let root = Root::of(&checkpoint)?;
        let overlay = Overlay::new(geometry::blocks(root.size));
        let deltas = (!point.point().is_checkpoint()).then(|| Deltas::after(&checkpoint));
        let size = point.point().size;
        Ok(Self { point, checkpoint, root, size, overlay, deltas, broken: None })
    }
    pub(super) fn blocks(&self) -> Block {
        geometry::blocks(self.size)
    }

    /// The question for its deltas.
    pub(super) const fn deltas_question(&self) -> Message {
        let p = self.point.point();
        Message::GetDeltas { volume: p.volume, seq: p.seq }
    }

    /// Before the first answer about them again.
    pub(super) fn deltas_again(&mut self) {
        self.deltas = Some(Deltas::after(&self.checkpoint));
    }
}

/// What is known of a place.
pub(super) enum Known<T> {
    /// All of it.
    Is(T),
    /// Zeros: all blocks of the place that is given.
    Zero(Place),
    /// It was asked for.
    Later,
}

impl Reader {
    /// The hashes of a page's leaves, and of the page that a block lies in. `ahead`: those that
    /// follow are asked for too.
    pub(super) fn page(
        &mut self,
        view: usize,
        block: Block,
        ahead: bool,
        actions: &mut Vec<Action>,
    ) -> Result<Known<Arc<[Hash; FANOUT as usize]>>> {
        let place = Place { level: 1, index: block / PAGE_BLOCKS };
        self.node(view, place, ahead, actions)
    }

    /// The children of a node of level 1 or above.
    fn node(
        &mut self,
        view: usize,
        wanted: Place,
        ahead: bool,
        actions: &mut Vec<Action>,
    ) -> Result<Known<Arc<[Hash; FANOUT as usize]>>> {
        let root = self.views[view].root;
        if let Some(error) = &self.views[view].broken {
            return Err(error.clone());
        }
        let first = wanted.first_block();
        let mut place = Place { level: geometry::top_level(root.size), index: 0 };
        let mut hash = root.top;
        if first >= span(place.level) || !self.views[view].overlay.base_reaches(first) {
            return Ok(Known::Zero(wanted));
        }
        loop {
            if hash.is_zero() {
                return Ok(Known::Zero(place));
            }
            let Some(children) = self.nodes.get(&hash) else {
                self.ask_node(view, place, hash, actions)?;
                return Ok(Known::Later);
            };
            if place.level == wanted.level {
                return Ok(Known::Is(children));
            }
            let slot = first / span(place.level - 1) % FANOUT;
            if ahead && place.level == wanted.level + 1 {
                self.ask_beside(view, place, &children, slot, actions)?;
            }
            place = place.child(slot);
            hash = children[slot as usize];
        }
    }

    /// The hash of a node or leaf, as far as the checkpoint's map goes.
    pub(super) fn hash_at(
        &mut self,
        view: usize,
        place: Place,
        actions: &mut Vec<Action>,
    ) -> Result<Known<Hash>> {
        let root = self.views[view].root;
        let top = geometry::top_level(root.size);
        if place.level == top && place.index == 0 {
            return Ok(Known::Is(root.top));
        }
        let (parent, slot) = place.parent();
        Ok(match self.node(view, parent, true, actions)? {
            Known::Is(children) => Known::Is(children[slot]),
            Known::Zero(_) => Known::Is(Hash::ZERO),
            Known::Later => Known::Later,
        })
    }

    /// The level of a map's top node.
    pub(super) fn top_level(&self, view: usize) -> u8 {
        geometry::top_level(self.views[view].root.size)
    }

    fn ask_beside(
        &mut self,
        view: usize,
        place: Place,
        children: &[Hash; FANOUT as usize],
        slot: u64,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        // Only where the first of them is missing: most were asked for with the one before.
        if children[slot as usize].is_zero() || self.nodes.holds(&children[slot as usize]) {
            return Ok(());
        }
        for (slot, hash) in (slot..FANOUT).zip(&children[slot as usize..]).take(BESIDE) {
            if !hash.is_zero() && !self.nodes.holds(hash) {
                self.ask_node(view, place.child(slot), *hash, actions)?;
            }
        }
        Ok(())
    }

    /// Asks, unless it was asked before; an error if the answer just now did not hold.
    fn ask_node(
        &mut self,
        view: usize,
        place: Place,
        hash: Hash,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        if let Some(error) = self.failed.get(&hash) {
            return Err(error.clone());
        }
        if self.pending.insert(hash) {
            let Root { volume, seq, .. } = self.views[view].root;
            let message = Message::GetNode { volume, seq, place };
            self.ask(message, Question::Node { view, place, hash }, actions);
        }
        Ok(())
    }

    pub(super) fn take_node(
        &mut self,
        (view, place, hash): (usize, Place, Hash),
        mask: u64,
        hashes: &[Hash],
    ) {
        self.pending.remove(&hash);
        let mut children = [Hash::ZERO; FANOUT as usize];
        let slots = (0..FANOUT as usize).filter(|s| mask >> s & 1 == 1);
        slots.zip(hashes).for_each(|(slot, hash)| children[slot] = *hash);
        if hash::node(place, &children) != hash {
            let seq = self.views[view].root.seq;
            self.failed.insert(hash, Error::Map { seq, what: "a node's hash" });
        } else {
            self.nodes.put(hash, Arc::new(children));
        }
    }

    /// What the checkpoint's map holds for a leaf; the caller lays the overlay over it.
    pub(super) fn leaf(
        &mut self,
        view: usize,
        leaf: u64,
        actions: &mut Vec<Action>,
    ) -> Result<Known<Arc<Leaf>>> {
        let zero = Place { level: 0, index: leaf };
        let hashes = match self.page(view, leaf * LEAF_BLOCKS, false, actions)? {
            Known::Is(hashes) => hashes,
            Known::Zero(_) => return Ok(Known::Zero(zero)),
            Known::Later => return Ok(Known::Later),
        };
        let hash = hashes[(leaf % FANOUT) as usize];
        if hash.is_zero() || !self.views[view].overlay.base_reaches(leaf * LEAF_BLOCKS) {
            return Ok(Known::Zero(zero));
        }
        if let Some(entries) = self.leaves.get(&hash) {
            return Ok(Known::Is(entries));
        }
        if let Some(error) = self.failed.get(&hash) {
            return Err(error.clone());
        }
        if self.pending.insert(hash) {
            let wanted = self.wanted_leaves.entry((view, leaf / FANOUT)).or_insert((0, hashes));
            wanted.0 |= 1 << (leaf % FANOUT);
        }
        Ok(Known::Later)
    }

    /// What a leaf's hints led to did not hold, and hints are under no hash: the next who wants
    /// the leaf gets it anew.
    pub(super) fn forget_leaf(&mut self, leaf: u64, actions: &mut Vec<Action>) {
        if let Ok(Known::Is(hashes)) = self.page(MAIN, leaf * LEAF_BLOCKS, false, actions) {
            self.leaves.forget(&hashes[(leaf % FANOUT) as usize]);
        }
    }

    /// Asks for the leaves that were found missing, those of a page together.
    pub(super) fn ask_leaves(&mut self, actions: &mut Vec<Action>) {
        for ((view, page), (mask, hashes)) in core::mem::take(&mut self.wanted_leaves) {
            self.ask_leaves_of(view, page, mask, hashes, actions);
        }
    }

    fn ask_leaves_of(
        &mut self,
        view: usize,
        page: u64,
        mask: u64,
        hashes: Arc<[Hash; FANOUT as usize]>,
        actions: &mut Vec<Action>,
    ) {
        let Root { volume, seq, .. } = self.views[view].root;
        let message = Message::GetLeaves { volume, seq, page, mask, hints: true };
        self.ask(message, Question::Leaves { view, page, mask, hashes }, actions);
    }

    pub(super) fn take_leaves(
        &mut self,
        (view, page, mask, hashes): (usize, u64, u64, Arc<[Hash; FANOUT as usize]>),
        runs: &[u8],
        actions: &mut Vec<Action>,
    ) {
        match open_leaves(self.views[view].root.seq, page, mask, &hashes, runs) {
            Ok(leaves) => {
                for (leaf, entries) in leaves {
                    let hash = hashes[(leaf % FANOUT) as usize];
                    self.pending.remove(&hash);
                    self.leaves.put(hash, Arc::from(entries));
                }
            }
            Err(error) => self.leaves_lost((view, page, mask, hashes), error, actions),
        }
    }

    /// An answer about leaves does not hold. Of several each is asked for alone, so that one
    /// that is bad spoils no other.
    pub(super) fn leaves_lost(
        &mut self,
        (view, page, mask, hashes): (usize, u64, u64, Arc<[Hash; FANOUT as usize]>),
        error: Error,
        actions: &mut Vec<Action>,
    ) {
        if mask.count_ones() > 1 {
            for slot in (0..FANOUT).filter(|s| mask >> s & 1 == 1) {
                self.ask_leaves_of(view, page, 1 << slot, Arc::clone(&hashes), actions);
            }
            return;
        }
        let hash = hashes[mask.trailing_zeros() as usize % FANOUT as usize];
        self.pending.remove(&hash);
        self.failed.insert(hash, error);
    }

    /// The entries of a leaf as they are at the view's point.
    pub(super) fn laid_over(&self, view: usize, leaf: u64, base: Option<&Leaf>) -> Box<Leaf> {
        let mut entries = Box::new(base.copied().unwrap_or([Entry::ZERO; LEAF]));
        self.views[view].overlay.apply(leaf * LEAF_BLOCKS, &mut entries[..]);
        let end = self.views[view].blocks().saturating_sub(leaf * LEAF_BLOCKS);
        entries[end.min(LEAF_BLOCKS) as usize..].fill(Entry::ZERO);
        entries
    }
}
