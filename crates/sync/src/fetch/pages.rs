//! The first stage: which blocks of a page are wanted, and from which chunks.
//!
//! Invariant: pages are taken up in address order; leaves are checked under the
//! checkpoint's root, and what later deltas changed is laid over them.

use std::collections::{BTreeMap, HashMap};

use dormouse_format::geometry;
use dormouse_format::limits::{BLOCK_SIZE, FANOUT, GET_MAX, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::Message;
use dormouse_format::{Block, ChunkId, Hash, Tag};

use super::{Action, Fetch, Mode, Question};
use crate::chunks::{Placement, Want};
use crate::error::{Error, Result};
use crate::map::{Entry, Front, LeafEntries};

/// Pages whose leaves are under way: at most 0.6 MiB each. A page may hold as little as one
/// block, so few pages in a round trip would be a low rate.
const PAGES: usize = 16;

pub(super) struct PageJob {
    pub(super) index: u64,
    pub(super) leaf_hashes: Box<[Hash; FANOUT as usize]>,
    pub(super) asked: u64,
    pub(super) leaves: Option<Vec<LeafEntries>>,
    pub(super) local_mask: u64,
    pub(super) local: BTreeMap<u64, Box<[Tag; LEAF_BLOCKS as usize]>>,
}

impl Fetch {
    /// Takes up pages in address order and asks for their leaves.
    pub(super) fn open_pages(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        let Some(walker) = &mut self.walker else { return Ok(()) };
        let questions = &mut self.questions;
        walker.ask(&mut |message| {
            questions.push_back(Question::Node);
            actions.push(Action::Send(message));
        });
        while self.pages.len() < PAGES && self.want.len() < 4 * GET_MAX {
            let from = self.next_page * PAGE_BLOCKS;
            let end = geometry::blocks(self.plan.point.point().size);
            let other = [
                self.overlay.next_data(from, end).map(|block| block / PAGE_BLOCKS),
                self.plan.local.next_page(self.next_page),
            ];
            let other = other.into_iter().flatten().min();
            let walker = self.walker.as_mut();
            let Some(walker) = walker else { return Ok(()) };
            let (index, hashes) = match (walker.front(), other) {
                (Front::End, None) => {
                    self.walked = true;
                    return Ok(());
                }
                (Front::Wait(first), Some(o)) if first >= (o + 1) * PAGE_BLOCKS => (o, None),
                (Front::Page(first), Some(o)) if first > o * PAGE_BLOCKS => (o, None),
                (Front::End, Some(o)) => (o, None),
                (Front::Wait(_), _) => return Ok(()),
                (Front::Page(first), _) => (first / PAGE_BLOCKS, walker.take()),
                (Front::Whole(..), _) => {
                    return Err(Error::Protocol { what: "an unopened subtree" });
                }
            };
            self.next_page = index + 1;
            self.open_page(index, hashes, actions);
        }
        Ok(())
    }

    fn open_page(
        &mut self,
        index: u64,
        hashes: Option<Box<[Hash; FANOUT as usize]>>,
        actions: &mut Vec<Action>,
    ) {
        let mut leaf_hashes = hashes.unwrap_or_else(|| Box::new([Hash::ZERO; FANOUT as usize]));
        let mut asked = 0u64;
        for (slot, hash) in leaf_hashes.iter_mut().enumerate() {
            let first = (index * FANOUT + slot as u64) * LEAF_BLOCKS;
            if !hash.is_zero() && self.overlay.base_reaches(first) {
                asked |= 1 << slot;
            }
        }
        let mut leaves = None;
        if asked == 0 {
            leaves = Some(Vec::new());
        } else {
            self.questions.push_back(Question::Leaves(index));
            actions.push(Action::Send(Message::GetLeaves {
                volume: self.root.volume,
                seq: self.root.seq,
                page: index,
                mask: asked,
                hints: true,
            }));
        }
        let local_mask =
            if self.plan.mode == Mode::InPlace { self.plan.local.page(index) } else { 0 };
        for slot in (0..FANOUT).filter(|s| local_mask >> s & 1 == 1) {
            actions.push(Action::ReadLocal { index: index * FANOUT + slot });
        }
        let local = BTreeMap::new();
        self.pages.push_back(PageJob { index, leaf_hashes, asked, leaves, local_mask, local });
    }

    /// Turns the front page into wanted chunks, if all of it is known.
    pub(super) fn plan_page(&mut self, actions: &mut Vec<Action>) -> bool {
        let known =
            |p: &PageJob| p.leaves.is_some() && p.local.len() as u32 == p.local_mask.count_ones();
        if !self.pages.front().is_some_and(known) {
            return false;
        }
        let Some(page) = self.pages.pop_front() else { return false };
        let mut leaves: BTreeMap<u64, Box<[Entry; LEAF_BLOCKS as usize]>> =
            page.leaves.unwrap_or_default().into_iter().collect();
        self.lay_over(page.index, &mut leaves);
        let mut planner = Planner::default();
        let end = geometry::blocks(self.plan.point.point().size);
        let zero_leaf = [Entry::ZERO; LEAF_BLOCKS as usize];
        for leaf in page.index * FANOUT..(page.index + 1) * FANOUT {
            let entries = leaves.get(&leaf);
            let local = page.local.get(&leaf);
            if entries.is_none() && local.is_none() && self.plan.mode != Mode::Overwrite {
                continue;
            }
            let entries = entries.map_or(&zero_leaf, |e| &**e);
            let first = leaf * LEAF_BLOCKS;
            for i in 0..LEAF_BLOCKS.min(end.saturating_sub(first)) as usize {
                let now = local.map_or(Tag::ZERO, |l| l[i]);
                let entry = &entries[i];
                if self.plan.mode == Mode::InPlace && now == entry.tag {
                    self.progress.same += u64::from(!now.is_zero());
                } else if !entry.tag.is_zero() {
                    planner.block(first + i as u64, entry);
                } else if self.plan.mode != Mode::Fresh {
                    planner.zero(first + i as u64);
                }
            }
        }
        self.progress.at = (page.index * PAGE_BLOCKS).min(end) * BLOCK_SIZE as u64;
        for (start, count) in planner.zeros {
            actions.push(Action::Zero { start, count });
        }
        self.want.extend(planner.wants);
        true
    }

    fn lay_over(&self, page: u64, leaves: &mut BTreeMap<u64, Box<[Entry; LEAF_BLOCKS as usize]>>) {
        let end = (page + 1) * PAGE_BLOCKS;
        let mut at = page * PAGE_BLOCKS;
        while let Some(block) = self.overlay.next_data(at, end) {
            let leaf = block / LEAF_BLOCKS;
            leaves.entry(leaf).or_insert_with(|| Box::new([Entry::ZERO; LEAF_BLOCKS as usize]));
            at = (leaf + 1) * LEAF_BLOCKS;
        }
        for (leaf, entries) in leaves {
            self.overlay.apply(leaf * LEAF_BLOCKS, &mut entries[..]);
        }
    }
}

/// Groups the blocks of a page by chunk.
#[derive(Default)]
struct Planner {
    wants: Vec<Want>,
    by_chunk: HashMap<ChunkId, usize>,
    zeros: Vec<(Block, u64)>,
}

impl Planner {
    fn zero(&mut self, block: Block) {
        match self.zeros.last_mut() {
            Some((start, count)) if *start + *count == block => *count += 1,
            _ => self.zeros.push((block, 1)),
        }
    }

    fn block(&mut self, block: Block, entry: &Entry) {
        let at = *self.by_chunk.entry(entry.chunk).or_insert_with(|| {
            self.wants.push(Want::new(entry.chunk));
            self.wants.len() - 1
        });
        let want = &mut self.wants[at];
        want.blocks += 1;
        Placement::add(&mut want.placements, block, entry);
    }
}
