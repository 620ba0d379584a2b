//! The second stage: what differs is cut into chunks, asked for, sealed, put and named.
//!
//! Invariant: what goes to the server as extents stands in `out` in address order, and
//! leaves it when its chunk is there. A chunk id is asked for once.

use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use dormouse_crypt::digest::Leaf as Hashes;
use dormouse_crypt::hash;
use dormouse_format::geometry;
use dormouse_format::limits::LEAF_BLOCKS;
use dormouse_format::message::Message;
use dormouse_format::seeded::seeded;
use dormouse_format::{Block, ChunkId, Tag};

use super::compare::{Compare, Hint, Old};
use super::{Action, Copy, Mode, Question};
use crate::cut::Cut;
use crate::error::{Error, Result};
use crate::leaf::{Claim, LeafData};

/// Chunk ids in one question.
const ASK: usize = 256;
/// Bytes of extents in one message.
const EXTENTS: usize = 64 << 10;
/// Bytes of a part of a delta's extents.
const DELTA_PART: usize = 192 << 10;
/// Chunks that are sealed before the server says whether it has them: 48 MiB on average.
const AHEAD_MAX: usize = 768;
/// Bytes put between two barriers.
const BARRIER: u64 = 256 << 20;
/// Chunk ids of this session that are remembered, so that they are not asked again.
const KNOWN_MAX: usize = 1 << 20;

/// Unchanged blocks that follow one another, in the source and in one chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// Of the first of them.
    pub(super) first: Hint,
    /// That of a block that goes on with them,
    pub(super) next: Hint,
    /// and the block.
    pub(super) at: Block,
}

pub(super) enum Out {
    Zero {
        start: Block,
        count: u64,
    },
    Chunk {
        id: ChunkId,
        start: Block,
        tags: Vec<Tag>,
    },
    /// Unchanged blocks, a part of a chunk: nothing to tell, unless the chunk is lost.
    Part {
        of: ChunkId,
        cut: Cut,
    },
}

pub(super) struct Waiting {
    /// Its blocks, until it is known whether they must be sent.
    pub(super) cut: Option<Arc<Cut>>,
    /// Whether all of its blocks are in the source; if not, it cannot be sent.
    pub(super) whole: bool,
    pub(super) ready: bool,
    /// How many of what is in `out` name it.
    pub(super) users: u32,
}

impl Copy {
    /// The second stage: which blocks differ, cut into chunks.
    pub(super) fn cut_leaves(&mut self) {
        while let Some(front) = self.compare.front() {
            if matches!(front, Compare::Leaf { old: Old::Asked, .. }) {
                return;
            }
            match self.compare.pop_front() {
                Some(Compare::Leaf { index, data, hashes, old }) => {
                    self.cut_leaf(index, &data, &hashes, &old);
                }
                Some(Compare::Zeroed { index }) => {
                    self.end_chunk();
                    let start = index * LEAF_BLOCKS;
                    let end = (start + LEAF_BLOCKS).min(geometry::blocks(self.plan.size));
                    self.zero(start, end - start);
                }
                None => return,
            }
        }
        if self.compared {
            self.end_chunk();
        }
    }

    fn cut_leaf(&mut self, index: u64, data: &Arc<LeafData>, hashes: &Hashes, old: &Old) {
        let mut offsets = [usize::MAX; LEAF_BLOCKS as usize];
        data.blocks().for_each(|(block, at)| offsets[block] = at);
        let end = (geometry::blocks(self.plan.size) - index * LEAF_BLOCKS).min(LEAF_BLOCKS);
        for (i, offset) in offsets.into_iter().enumerate().take(end as usize) {
            let block = index * LEAF_BLOCKS + i as u64;
            let tag = hashes.tags[i];
            let changed = match self.plan.mode {
                Mode::Changes => offset != usize::MAX,
                Mode::Scan | Mode::Check => tag != old.tag(i),
            };
            let takes_part = changed || (self.plan.mode == Mode::Check && !data.unread.has(i));
            if tag.is_zero() || !takes_part {
                self.end_chunk();
                if changed && !seeded("zeros-unsent") {
                    self.zero(block, 1);
                }
                continue;
            }
            self.progress.changed += u64::from(changed);
            self.keep(block, if changed { None } else { old.hint(i) });
            let (cutter, mut cuts) = (&mut self.cutter, Vec::new());
            cutter.add(block, hashes.digests[i], tag, data, offset, &mut |c| cuts.push(c));
            cuts.into_iter().for_each(|cut| self.chunk(cut));
        }
    }

    /// Ends the open chunk, unless `block` goes on with it: both changed, or both are
    /// where the old map's hints have them.
    fn keep(&mut self, block: Block, hint: Option<Hint>) {
        let goes_on = match (self.kept, hint) {
            (Some(kept), Some(hint)) => (kept.next, kept.at) == (hint, block),
            (None, None) => true,
            _ => false,
        };
        if !goes_on {
            self.end_chunk();
        }
        if let Some(hint) = hint {
            let first = self.kept.map_or(hint, |kept| kept.first);
            let next = Hint { index: hint.index + 1, ..hint };
            self.kept = Some(Kept { first, next, at: block + 1 });
        }
    }

    fn zero(&mut self, start: Block, count: u64) {
        self.progress.changed += count;
        if let Some(Out::Zero { start: s, count: c }) = self.out.back_mut()
            && *s + *c == start
        {
            *c += count;
            return;
        }
        self.out.push_back(Out::Zero { start, count });
    }

    fn end_chunk(&mut self) {
        let mut last = None;
        self.cutter.end(&mut |cut| last = Some(cut));
        if let Some(cut) = last {
            self.chunk(cut);
        }
    }

    fn chunk(&mut self, cut: Cut) {
        let id = self.secrets.chunk_id(&cut.digests);
        self.progress.chunks += 1;
        match self.kept.take().map(|kept| kept.first) {
            // The map names it already.
            Some(hint) if hint == (Hint { chunk: id, index: 0 }) => self.want(id, 0, Some(cut)),
            Some(hint) if hint.chunk != id => {
                self.want(hint.chunk, 1, None);
                self.out.push_back(Out::Part { of: hint.chunk, cut });
            }
            _ => self.name(id, cut),
        }
    }

    /// Blocks whose place in the map will be this chunk.
    fn name(&mut self, id: ChunkId, mut cut: Cut) {
        let (start, tags) = (cut.start, core::mem::take(&mut cut.tags));
        self.out.push_back(Out::Chunk { id, start, tags });
        self.want(id, 1, Some(cut));
    }

    /// Asks for a chunk, unless it is known or asked for; without its blocks it cannot be
    /// sent. `users` of what is in `out` name it.
    fn want(&mut self, id: ChunkId, users: u32, cut: Option<Cut>) {
        let whole = cut.is_some();
        if self.known.contains(&id) {
            self.progress.known += u64::from(whole);
            return;
        }
        let cut = cut.map(Arc::new);
        match self.waiting.get_mut(&id) {
            Some(waiting) => {
                waiting.users += users;
                if whole && !waiting.whole && !waiting.ready {
                    (waiting.whole, waiting.cut) = (true, cut);
                } else {
                    self.progress.known += u64::from(whole);
                }
            }
            None => {
                self.waiting.insert(id, Waiting { cut, whole, ready: false, users });
                self.ask.push(id);
            }
        }
    }

    /// These chunks are lost: what the source still has of them is cut anew.
    fn cut_anew(&mut self, lost: &HashSet<ChunkId>) {
        self.waiting.retain(|id, _| !lost.contains(id));
        for item in core::mem::take(&mut self.out) {
            match item {
                Out::Part { of, cut } if lost.contains(&of) => {
                    self.name(self.secrets.chunk_id(&cut.digests), cut);
                }
                item => self.out.push_back(item),
            }
        }
    }

    pub(super) fn ask_chunks(&mut self, actions: &mut Vec<Action>) {
        let idle = self.asked.is_empty();
        while self.ask.len() >= ASK || (idle && !self.ask.is_empty()) || self.must_ask() {
            let rest = self.ask.split_off(self.ask.len().min(ASK));
            let ids = core::mem::replace(&mut self.ask, rest);
            self.asked.push_back(ids.clone());
            self.questions.push_back(Question::Have);
            let check = self.plan.mode == Mode::Check;
            actions.push(Action::Send(Message::Have { check, ids }));
        }
    }

    /// Whether less than a batch must be asked for now: the budget is used up, or
    /// nothing more comes.
    fn must_ask(&self) -> bool {
        let full = self.budget.used() + Claim::WHOLE > self.plan.window;
        !self.ask.is_empty() && (full || self.compared)
    }

    pub(super) fn have(&mut self, have: &[bool], actions: &mut Vec<Action>) -> Result<()> {
        let asked = self.asked.pop_front();
        let ids = asked.ok_or(Error::Protocol { what: "an answer about chunks not asked for" })?;
        if ids.len() != have.len() && !seeded("have-short") {
            return Err(Error::Protocol { what: "an answer about another number of chunks" });
        }
        let mut lost = HashSet::new();
        let have = have.iter().skip(usize::from(seeded("have-shifted")));
        for (id, have) in ids.into_iter().zip(have) {
            let Some(waiting) = self.waiting.get_mut(&id) else { continue };
            let cut = waiting.cut.take();
            match (have, cut) {
                (true, cut) => {
                    self.progress.known += u64::from(cut.is_some());
                    if let Some(None) = self.ahead.remove(&id) {
                        self.unwanted.insert(id);
                    }
                    self.ready(id);
                }
                (false, Some(cut)) => match self.ahead.remove(&id) {
                    None => {
                        self.sealing += 1;
                        actions.push(Action::Seal { id, cut });
                    }
                    Some(None) => {}
                    Some(Some(record)) => self.put(id, record, actions),
                },
                (false, None) => drop(lost.insert(id)),
            }
        }
        if !lost.is_empty() {
            self.cut_anew(&lost);
        }
        Ok(())
    }

    /// The server has this chunk.
    fn ready(&mut self, id: ChunkId) {
        if let Some(waiting) = self.waiting.get_mut(&id) {
            waiting.ready = true;
            if waiting.users == 0 {
                self.learn(id);
            }
        }
    }

    /// From here on the id is known, until there are too many of them; while it is still
    /// waited for, it must stay in `waiting`.
    fn learn(&mut self, id: ChunkId) {
        self.waiting.remove(&id);
        if self.known.len() < KNOWN_MAX {
            self.known.insert(id);
        }
    }

    /// A first copy seals while it waits for answers, at its opening and when there is
    /// nothing else to seal: its chunks are most likely new, unless the answers so far say
    /// otherwise. Then a slow link costs it less.
    pub(super) fn seal_ahead(&mut self, actions: &mut Vec<Action>) {
        let idle = self.sealing == 0 && self.progress.known <= self.progress.sent / 8;
        if self.plan.head.is_some() || !(idle || self.generation.is_none()) {
            return;
        }
        for id in self.asked.iter().flatten() {
            if self.ahead.len() >= AHEAD_MAX {
                return;
            }
            let cut = self.waiting.get(id).and_then(|waiting| waiting.cut.clone());
            if let (Some(cut), Entry::Vacant(ahead)) = (cut, self.ahead.entry(*id)) {
                ahead.insert(None);
                self.sealing += 1;
                actions.push(Action::Seal { id: *id, cut });
            }
        }
    }

    pub(super) fn sealed(
        &mut self,
        id: ChunkId,
        record: Vec<u8>,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        self.sealing = self.sealing.saturating_sub(1);
        if self.unwanted.remove(&id) {
            return Ok(());
        }
        if let Some(ahead) = self.ahead.get_mut(&id) {
            *ahead = Some(record);
            return Ok(());
        }
        if !self.waiting.contains_key(&id) {
            return Err(Error::Protocol { what: "a sealed chunk that nobody wants" });
        }
        self.put(id, record, actions);
        Ok(())
    }

    fn put(&mut self, id: ChunkId, record: Vec<u8>, actions: &mut Vec<Action>) {
        self.ready(id);
        self.progress.sent += 1;
        self.progress.sent_bytes += record.len() as u64;
        actions.push(Action::Send(Message::Put { record }));
        if self.progress.sent_bytes - self.last_barrier >= BARRIER {
            self.last_barrier = self.progress.sent_bytes;
            self.barriers.push_back(self.last_barrier);
            self.questions.push_back(Question::Barrier);
            actions.push(Action::Send(Message::Barrier));
        }
    }

    /// Sends the extents whose chunks the server has.
    pub(super) fn flush_extents(&mut self, actions: &mut Vec<Action>, all: bool) {
        if self.generation.is_none() {
            return;
        }
        while let Some(front) = self.out.pop_front() {
            match front {
                Out::Zero { start, count } => self.extents.zero(start, count),
                Out::Chunk { id, start, tags } => {
                    if !self.chunk_is_there(&id) {
                        self.out.push_front(Out::Chunk { id, start, tags });
                        break;
                    }
                    self.extents.data(start, id, 0, &tags);
                }
                Out::Part { of, cut } => {
                    if !self.chunk_is_there(&of) {
                        self.out.push_front(Out::Part { of, cut });
                        break;
                    }
                    self.progress.known += 1;
                }
            }
            let limit = if self.plan.mode == Mode::Changes { DELTA_PART } else { EXTENTS };
            if self.extents.len() >= limit {
                self.send_extents(actions);
            }
        }
        // A delta point has at least one part: it carries the size.
        let first = self.plan.mode == Mode::Changes && self.parts == 0;
        if all && (first || !self.extents.is_empty()) {
            self.send_extents(actions);
        }
    }

    fn chunk_is_there(&mut self, id: &ChunkId) -> bool {
        let Some(waiting) = self.waiting.get_mut(id) else { return self.known.contains(id) };
        if !waiting.ready && !seeded("extents-before-chunk") {
            return false;
        }
        waiting.users -= 1;
        if waiting.users == 0 {
            self.learn(*id);
        }
        true
    }

    fn send_extents(&mut self, actions: &mut Vec<Action>) {
        let runs = self.extents.take();
        self.parts += 1;
        self.progress.extent_bytes += runs.len() as u64;
        if self.plan.mode == Mode::Changes {
            self.deltas = hash::delta(&self.deltas, self.plan.size, &runs);
        }
        if let Some(kept) = &mut self.kept_extents {
            kept.push(runs.clone());
        }
        actions.push(Action::Send(Message::Extents { runs }));
    }
}
