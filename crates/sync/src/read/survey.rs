//! What is allocated, and what changed since another point, by the maps alone.
//!
//! Invariant: a subtree that both maps have the same hash for is not opened; allocation needs no
//! leaf. Leaves to others: blocks.

use dormouse_format::Block;
use dormouse_format::geometry::{Place, span};
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS};

use super::view::Known;
use super::{Action, MAIN, Reader, RequestId};
use crate::error::Result;

/// Subtrees and leaves that one answer looks at: it is given early, and asked on from there.
const STEPS: usize = 8192;

/// A request about ranges, not blocks.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) id: RequestId,
    /// The point that is compared with; without one it is about allocation.
    with: Option<usize>,
    at: Block,
    end: Block,
    most: usize,
    parts: Vec<(u64, bool)>,
    steps: usize,
}

impl Survey {
    fn add(&mut self, until: Block, what: bool) {
        let until = until.min(self.end);
        let count = until - self.at;
        match self.parts.last_mut() {
            Some((n, last)) if *last == what => *n += count,
            _ => self.parts.push((count, what)),
        }
        self.at = until;
    }

    fn is_done(&self) -> bool {
        // One more is begun, so that the last part is whole.
        self.at >= self.end || self.parts.len() > self.most || self.steps >= STEPS
    }
}

impl Reader {
    /// Asks how `count` blocks from `start` on are allocated: parts that are zeros, or not.
    pub fn allocation(&mut self, id: RequestId, start: Block, count: u64, most: usize) {
        self.survey(id, None, start, count, most);
    }

    /// Asks which of these blocks differ from those of another point that is ready.
    pub fn changes(&mut self, id: RequestId, with: usize, start: Block, count: u64, most: usize) {
        self.survey(id, Some(with), start, count, most);
    }

    fn survey(&mut self, id: RequestId, with: Option<usize>, at: Block, count: u64, most: usize) {
        let (end, parts) = (at.saturating_add(count), Vec::new());
        self.surveys.push_back(Survey { id, with, at, end, most: most.max(1), parts, steps: 0 });
        self.stirred = true;
    }

    /// Goes on with all of them.
    pub(super) fn go_through(&mut self, actions: &mut Vec<Action>) {
        for mut survey in core::mem::take(&mut self.surveys) {
            match self.go_on_with(&mut survey, actions) {
                Ok(true) => {
                    survey.parts.truncate(survey.most);
                    actions.push(Action::Parts { id: survey.id, parts: Ok(survey.parts) });
                }
                Ok(false) => self.surveys.push_back(survey),
                Err(error) => actions.push(Action::Parts { id: survey.id, parts: Err(error) }),
            }
        }
        self.ask_leaves(actions);
    }

    /// Whether it is done.
    fn go_on_with(&mut self, survey: &mut Survey, actions: &mut Vec<Action>) -> Result<bool> {
        while !survey.is_done() {
            let goes_on = match survey.with {
                None => self.allocated(survey, actions)?,
                Some(view) => self.compared(survey, view, actions)?,
            };
            if !goes_on {
                return Ok(false);
            }
            survey.steps += 1;
        }
        Ok(true)
    }

    /// One leaf, or one subtree that is zero; false if something has to come first.
    fn allocated(&mut self, survey: &mut Survey, actions: &mut Vec<Action>) -> Result<bool> {
        let at = survey.at;
        let leaf = at / LEAF_BLOCKS;
        let (first, leaf_end) = (leaf * LEAF_BLOCKS, (leaf + 1) * LEAF_BLOCKS);
        let zero_end = match self.page(MAIN, at, true, actions)? {
            Known::Later => return Ok(false),
            Known::Zero(place) => Some(place.first_block() + span(place.level)),
            Known::Is(hashes) => {
                let zero = hashes[(leaf % FANOUT) as usize].is_zero();
                let overlay = &self.views[MAIN].overlay;
                let zero = zero || !overlay.base_reaches(first) || overlay.zeroed(first, leaf_end);
                zero.then_some(leaf_end)
            }
        };
        let Some(zero_end) = zero_end.map(|end| end.min(survey.end)) else {
            survey.add(leaf_end, false);
            return Ok(true);
        };
        match self.views[MAIN].overlay.next_data(first, zero_end) {
            Some(block) if block < leaf_end => survey.add(leaf_end, false),
            Some(block) => survey.add(block / LEAF_BLOCKS * LEAF_BLOCKS, true),
            None => survey.add(zero_end, true),
        }
        Ok(true)
    }

    /// One subtree that is the same, or one leaf; false if something has to come first.
    fn compared(
        &mut self,
        survey: &mut Survey,
        with: usize,
        actions: &mut Vec<Action>,
    ) -> Result<bool> {
        if self.views[with].deltas.is_some() {
            return Ok(false);
        }
        let both = self.views[MAIN].blocks().min(self.views[with].blocks());
        if survey.at >= both {
            survey.add(survey.end, true);
            return Ok(true);
        }
        let top = self.top_level(MAIN).min(self.top_level(with));
        for level in (0..=top).rev() {
            let place = Place { level, index: survey.at / span(level) };
            let end = (place.first_block() + span(level)).min(both);
            let hashes = [MAIN, with].map(|view| self.hash_at(view, place, actions));
            let [Known::Is(here), Known::Is(there)] = both_of(hashes)? else { return Ok(false) };
            let touches = |view: usize| self.views[view].overlay.touches(place.first_block(), end);
            if here == there && !touches(MAIN) && !touches(with) {
                survey.add(end, false);
                return Ok(true);
            }
        }
        self.compare_leaf(survey, with, both, actions)
    }

    fn compare_leaf(
        &mut self,
        survey: &mut Survey,
        with: usize,
        both: Block,
        actions: &mut Vec<Action>,
    ) -> Result<bool> {
        let leaf = survey.at / LEAF_BLOCKS;
        let bases = both_of([MAIN, with].map(|view| self.leaf(view, leaf, actions)))?;
        if bases.iter().any(|base| matches!(base, Known::Later)) {
            return Ok(false);
        }
        let [here, there] = bases.map(|base| match base {
            Known::Is(base) => Some(base),
            _ => None,
        });
        let here = self.laid_over(MAIN, leaf, here.as_deref());
        let there = self.laid_over(with, leaf, there.as_deref());
        let first = leaf * LEAF_BLOCKS;
        for block in survey.at..(first + LEAF_BLOCKS).min(both).min(survey.end) {
            let i = (block - first) as usize;
            survey.add(block + 1, here[i].tag != there[i].tag);
        }
        Ok(true)
    }
}

/// Both, or the first error; both were asked for in any case.
fn both_of<T>([a, b]: [Result<T>; 2]) -> Result<[T; 2]> {
    Ok([a?, b?])
}
