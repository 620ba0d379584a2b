//! The first stage: which leaves and blocks differ from the last checkpoint.
//!
//! Invariant: leaves are compared in address order, each against hashes and tags that
//! were checked under the checkpoint's root.

use std::sync::Arc;

use dormouse_crypt::digest::Leaf as Hashes;
use dormouse_crypt::hash;
use dormouse_format::geometry::{self, Place};
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::Message;
use dormouse_format::seeded::seeded;
use dormouse_format::{ChunkId, Hash, Tag};

use super::{Action, Copy, Mode, Question};
use crate::error::{Error, Result};
use crate::leaf::{Claim, LeafData};
use crate::map::{Entry, Front, Walker, open_leaves};

/// Leaves whose old tags are asked for in one question.
const LEAVES_ASK: u32 = 8;

pub(super) enum Old {
    /// All blocks were zero.
    Zero,
    /// The tags have been asked for.
    Asked,
    /// The tags.
    Known(Box<[Tag; LEAF_BLOCKS as usize]>),
    /// The tags, and where the map says that the blocks are.
    Hinted(Box<[Entry; LEAF_BLOCKS as usize]>),
}

impl Old {
    pub(super) fn tag(&self, i: usize) -> Tag {
        match self {
            Self::Zero | Self::Asked => Tag::ZERO,
            Self::Known(tags) => tags[i],
            Self::Hinted(entries) => entries[i].tag,
        }
    }

    pub(super) fn hint(&self, i: usize) -> Option<Hint> {
        let Self::Hinted(entries) = self else { return None };
        let Entry { chunk, index, .. } = entries[i];
        (!chunk.is_zero()).then_some(Hint { chunk, index })
    }
}

/// Where the last checkpoint's map says that a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) chunk: ChunkId,
    pub(super) index: u8,
}

pub(super) enum Compare {
    Leaf {
        index: u64,
        data: Arc<LeafData>,
        hashes: Box<Hashes>,
        old: Old,
    },
    /// The leaf is all zero now, and was not.
    Zeroed {
        index: u64,
    },
}

pub(super) struct Page {
    pub(super) index: u64,
    pub(super) source: u64,
    pub(super) old: Option<Box<[Hash; FANOUT as usize]>>,
    pub(super) slot: u64,
    pub(super) ask: u64,
}

impl Copy {
    pub(super) fn ask_nodes(&mut self, actions: &mut Vec<Action>) {
        if let Some(walker) = &mut self.walker {
            let questions = &mut self.questions;
            walker.ask(&mut |message| {
                questions.push_back(Question::Node);
                actions.push(Action::Send(message));
            });
        }
    }

    pub(super) fn read_ahead(&mut self, actions: &mut Vec<Action>) {
        while self.budget.used() + Claim::WHOLE <= self.plan.window || self.budget.used() == 0 {
            let next = self.plan.leaves.next(self.next_read);
            let Some(index) = next.filter(|leaf| leaf / FANOUT < self.plan.part.end) else {
                return;
            };
            self.next_read = index + 1;
            self.reading += 1;
            actions.push(Action::Read { index, claim: self.budget.claim(Claim::WHOLE) });
        }
    }

    /// The first stage: in address order, which leaves differ at all.
    pub(super) fn compare_leaves(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        loop {
            if self.page.is_none() && !self.next_page()? {
                break;
            }
            if !self.compare_page(actions) {
                break;
            }
        }
        // What waits for tags must be asked for before the budget is used up.
        let full = self.budget.used() + Claim::WHOLE > self.plan.window;
        if full && self.page.as_ref().is_some_and(|p| p.ask != 0) {
            self.ask_leaves(actions);
        }
        Ok(())
    }

    /// Takes up the next page that the source or the old map has; false if it is not
    /// known yet, or there is none.
    fn next_page(&mut self) -> Result<bool> {
        let source = self.plan.leaves.next_page(self.next_page);
        let source = source.filter(|page| *page < self.plan.part.end);
        let front = self.pass_over(source.unwrap_or(u64::MAX));
        let (index, old) = match (source, front) {
            (None, Front::End) => {
                self.compared = true;
                return Ok(false);
            }
            (Some(s), Front::End) => (s, None),
            (Some(s), Front::Wait(first) | Front::Page(first))
                if first >= (s + 1) * PAGE_BLOCKS =>
            {
                (s, None)
            }
            (_, Front::Wait(_)) => return Ok(false),
            (_, Front::Page(first)) => {
                (first / PAGE_BLOCKS, self.walker.as_mut().and_then(Walker::take))
            }
            // It lies behind the page.
            (Some(s), Front::Whole(..)) => (s, None),
            (None, Front::Whole(..)) => {
                return Err(Error::Protocol { what: "an unopened subtree" });
            }
        };
        let source = self.plan.leaves.page(index);
        self.page = Some(Page { index, source, old, slot: 0, ask: 0 });
        self.next_page = index + 1;
        Ok(true)
    }

    /// Takes over the old map's subtrees before a page that are not compared; what comes then.
    fn pass_over(&mut self, page: u64) -> Front {
        loop {
            let front = self.walker.as_ref().map_or(Front::End, Walker::front);
            let Front::Whole(place, hash) = front else { return front };
            if place.first_block() >= page.saturating_mul(PAGE_BLOCKS) {
                return front;
            }
            self.walker.as_mut().and_then(Walker::take);
            self.push_subtree(place, Some(hash));
        }
    }

    /// Compares leaves of the current page; false if it must wait for one.
    fn compare_page(&mut self, actions: &mut Vec<Action>) -> bool {
        let blocks = geometry::blocks(self.plan.size);
        let short = if seeded("last-leaf-skipped") { LEAF_BLOCKS - 1 } else { 0 };
        let last_leaf = (blocks - short.min(blocks)).div_ceil(LEAF_BLOCKS);
        let Some(mut page) = self.page.take() else { return false };
        while page.slot < FANOUT {
            let index = page.index * FANOUT + page.slot;
            let old = page.old.as_ref().map_or(Hash::ZERO, |o| o[page.slot as usize]);
            if page.source >> page.slot & 1 == 1 {
                let Some((data, hashes)) = self.arrived.remove(&index) else {
                    self.page = Some(page);
                    return false;
                };
                self.progress.leaves += 1;
                let ask = !old.is_zero();
                if self.plan.mode != Mode::Changes {
                    // With blocks that could not be read it is known with the old tags.
                    let known = hashes.hash == old || !ask || data.unread.is_empty();
                    let place = Place { level: 0, index };
                    self.push_subtree(place, known.then_some(hashes.hash));
                }
                let wanted = match self.plan.mode {
                    Mode::Scan => hashes.hash != old,
                    Mode::Check => ask || hashes.hash != old,
                    Mode::Changes => true,
                };
                if wanted {
                    page.ask |= u64::from(ask) << page.slot;
                    let old = if ask { Old::Asked } else { Old::Zero };
                    self.compare.push_back(Compare::Leaf { index, data, hashes, old });
                }
            } else if !old.is_zero() && index < last_leaf {
                self.compare.push_back(Compare::Zeroed { index });
            }
            page.slot += 1;
            if page.ask.count_ones() >= LEAVES_ASK {
                self.page = Some(page);
                self.ask_leaves(actions);
                let Some(same) = self.page.take() else { return false };
                page = same;
            }
        }
        if page.ask != 0 {
            self.page = Some(page);
            self.ask_leaves(actions);
            self.page = None;
        }
        true
    }

    /// A hash goes into the tree, in address order; without one, when it is known.
    fn push_subtree(&mut self, place: Place, hash: Option<Hash>) {
        match hash {
            Some(hash) if self.unhashed.is_empty() => self.tree.push(place, hash),
            hash => self.unhashed.push_back((place, hash)),
        }
    }

    /// The hash of a leaf that waited for its old tags.
    fn leaf_hash(&mut self, index: u64, hash: Hash) {
        let leaf = Place { level: 0, index };
        if let Some(waiting) = self.unhashed.iter_mut().find(|(place, _)| *place == leaf) {
            waiting.1 = Some(hash);
        }
        while let Some(&(place, Some(hash))) = self.unhashed.front() {
            self.tree.push(place, hash);
            self.unhashed.pop_front();
        }
    }

    fn ask_leaves(&mut self, actions: &mut Vec<Action>) {
        let (Some(page), Some(checkpoint)) = (&mut self.page, &self.plan.checkpoint) else {
            return;
        };
        let Some(old) = &page.old else { return };
        let mask = core::mem::take(&mut page.ask);
        self.leaves_asked.push_back((page.index, mask, old.clone()));
        self.questions.push_back(Question::Leaves);
        actions.push(Action::Send(Message::GetLeaves {
            volume: self.plan.volume,
            seq: checkpoint.point().seq,
            page: page.index,
            mask,
            hints: self.plan.mode == Mode::Check,
        }));
    }

    pub(super) fn old_leaves(&mut self, runs: &[u8]) -> Result<()> {
        let asked = self.leaves_asked.pop_front();
        let (page, mask, hashes) = asked.ok_or(Error::Protocol { what: "leaves not asked for" })?;
        let seq = self.plan.checkpoint.as_ref().map_or(0, |c| c.point().seq);
        let leaves = open_leaves(seq, page, mask, &hashes, runs)?;
        let mut leaves = leaves.into_iter().peekable();
        let mut found = Vec::new();
        for item in &mut self.compare {
            let Some((next, _)) = leaves.peek() else { break };
            if let Compare::Leaf { index, data, hashes, old } = item
                && index == next
                && let Some((_, entries)) = leaves.next()
            {
                if !data.unread.is_empty() {
                    for (i, entry) in entries.iter().enumerate() {
                        if data.unread.has(i) {
                            hashes.tags[i] = entry.tag;
                        }
                    }
                    hashes.hash = hash::leaf(*index, &hashes.tags);
                    found.push((*index, hashes.hash));
                }
                if self.plan.mode == Mode::Check {
                    *old = Old::Hinted(entries);
                    continue;
                }
                let mut tags = Box::new([Tag::ZERO; LEAF_BLOCKS as usize]);
                tags.iter_mut().zip(entries.iter()).for_each(|(t, e)| *t = e.tag);
                *old = Old::Known(tags);
            }
        }
        for (index, hash) in found {
            self.leaf_hash(index, hash);
        }
        Ok(())
    }
}
