//! From blocks that are wanted to chunks that hold them.
//!
//! Invariant: a block that is zero costs no chunk; one that this machine has is not fetched; a
//! chunk that several requests want is fetched once. What one leaf has of a chunk is taken
//! together: who reads a block reads its neighbours next.

use dormouse_format::limits::{GET_MAX, LEAF_BLOCKS};
use dormouse_format::{Block, ChunkId};
use std::collections::{HashMap, VecDeque};

use super::view::{Known, Leaf};
use super::{Action, Local, Priority, Question, Reader, RequestId};
use crate::chunks::{Asked, Chunks, Next, OpenJob, Placement, Want};
use crate::error::Error;

/// Parts that are looked at ahead of the first that cannot go on.
const LOOK: usize = 256;

/// The blocks of one leaf that a request wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) id: RequestId,
    pub(super) leaf: u64,
    pub(super) from: u16,
    pub(super) to: u16,
}

/// A chunk on its way.
#[derive(Debug)]
pub(super) struct Flight {
    /// It was not asked for yet.
    queued: Option<Want>,
    /// Blocks that it brings: first and number of each placement.
    brings: Vec<(Block, u64)>,
    waiting: Vec<RequestId>,
    /// What was wanted of it when it was under way already.
    more: Option<(Want, Vec<RequestId>)>,
}

impl Flight {
    fn brings(&self, block: Block) -> bool {
        self.brings.iter().any(|(start, n)| (*start..start + n).contains(&block))
    }
}

/// What is on its way, and what waits for a place.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_id: HashMap<ChunkId, Flight>,
    queues: [VecDeque<ChunkId>; 2],
    /// Blocks asked for and not yet opened.
    blocks: u64,
    /// Chunks asked for and not yet opened.
    chunks: usize,
}

/// A bit for each block of a leaf.
type Bits = [u64; 4];

const fn bit(bits: &Bits, i: usize) -> bool {
    bits[i / 64] >> (i % 64) & 1 == 1
}

const fn set(bits: &mut Bits, i: usize) {
    bits[i / 64] |= 1 << (i % 64);
}

impl Reader {
    /// Plans parts whose leaves are known, and asks for the leaves of others.
    pub(super) fn plan_parts(&mut self, local: Local<'_>, actions: &mut Vec<Action>) {
        for priority in [Priority::Demand, Priority::Ahead] {
            let mut parts = core::mem::take(&mut self.parts[priority as usize]);
            let mut left = VecDeque::new();
            while let Some(part) = parts.pop_front() {
                let flights = &self.flights;
                let enough = flights.queues[priority as usize].len() > GET_MAX;
                if left.len() >= LOOK || enough || flights.is_full(priority, &self.limits) {
                    left.push_back(part);
                    break;
                }
                if !self.requests.contains_key(&part.id) {
                    continue;
                }
                match self.leaf(0, part.leaf, actions) {
                    Ok(Known::Later) => left.push_back(part),
                    Ok(Known::Zero(_)) => self.plan(part, None, local, actions),
                    Ok(Known::Is(leaf)) => self.plan(part, Some(&leaf), local, actions),
                    Err(error) => self.settle(part.id, Some(&error), actions),
                }
            }
            left.append(&mut parts);
            self.parts[priority as usize] = left;
        }
        self.ask_leaves(actions);
    }

    fn plan(
        &mut self,
        part: Part,
        base: Option<&Leaf>,
        local: Local<'_>,
        actions: &mut Vec<Action>,
    ) {
        let entries = self.laid_over(0, part.leaf, base);
        let first = part.leaf * LEAF_BLOCKS;
        let (mut zero, mut held) = ([0; 4], [0; 4]);
        for (i, entry) in entries.iter().enumerate() {
            if entry.tag.is_zero() {
                set(&mut zero, i);
            } else if local(first + i as u64, &entry.tag) {
                set(&mut held, i);
            }
        }
        actions.push(Action::Known { leaf: part.leaf, zero });
        let mut chunks: Vec<ChunkId> = Vec::new();
        let range = usize::from(part.from)..usize::from(part.to);
        let mut at = range.start;
        while at < range.end {
            let (is_zero, is_held) = (bit(&zero, at), bit(&held, at));
            let same = |i: &usize| bit(&zero, *i) == is_zero && bit(&held, *i) == is_held;
            let end = (at..range.end).find(|i| !same(i)).unwrap_or(range.end);
            let (id, start, count) = (part.id, first + at as u64, (end - at) as u64);
            if is_zero {
                actions.push(Action::Zero { id, start, count });
            } else if is_held {
                actions.push(Action::Held { id, start, count });
            } else {
                for entry in &entries[at..end] {
                    if chunks.last() != Some(&entry.chunk) && !chunks.contains(&entry.chunk) {
                        chunks.push(entry.chunk);
                    }
                }
            }
            at = end;
        }
        for chunk in chunks {
            let mut want = Want::new(chunk);
            for (i, entry) in entries.iter().enumerate() {
                if entry.chunk == chunk && !bit(&zero, i) && !bit(&held, i) {
                    Placement::add(&mut want.placements, first + i as u64, entry);
                }
            }
            self.want(part.id, want);
        }
        self.settle(part.id, None, actions);
    }

    /// A request wants a chunk.
    fn want(&mut self, id: RequestId, mut want: Want) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.left += 1;
        let priority = request.priority;
        let Some(flight) = self.flights.by_id.get_mut(&want.id) else {
            self.flights.queue(id, want, priority);
            return;
        };
        // What comes anyway is not asked for twice.
        want.placements.retain(|p| (0..p.tags.len() as u64).any(|i| !flight.brings(p.start + i)));
        if want.placements.is_empty() {
            flight.waiting.push(id);
        } else if let Some(queued) = &mut flight.queued {
            flight.brings.extend(want.placements.iter().map(|p| (p.start, p.tags.len() as u64)));
            queued.placements.append(&mut want.placements);
            queued.blocks = queued.placements.iter().map(|p| p.tags.len() as u64).sum();
            flight.waiting.push(id);
        } else {
            match &mut flight.more {
                Some((more, waiting)) => {
                    more.placements.append(&mut want.placements);
                    waiting.push(id);
                }
                None => flight.more = Some((want, vec![id])),
            }
            return;
        }
        if priority == Priority::Demand && flight.queued.is_some() {
            let queue = &mut self.flights.queues[Priority::Demand as usize];
            if !queue.contains(&want.id) {
                queue.push_back(want.id);
            }
        }
    }

    /// Asks for chunks, as many as there is room for.
    pub(super) fn ask_chunks(&mut self, actions: &mut Vec<Action>) {
        let mut ids = Vec::new();
        for priority in [Priority::Demand, Priority::Ahead] {
            while ids.len() < GET_MAX && !self.flights.is_full(priority, &self.limits) {
                let Some(id) = self.flights.queues[priority as usize].pop_front() else { break };
                let Some(want) = self.flights.take(&id) else { continue };
                ids.push(id);
                self.questions.push_back(Question::Of(Asked::Chunk(want)));
            }
        }
        if !ids.is_empty() {
            actions.push(Action::Send(self.chunks.question(0, ids)));
        }
    }

    /// A record of a chunk came, or none.
    pub(super) fn take_chunk(
        &mut self,
        want: Want,
        record: Option<Vec<u8>>,
        actions: &mut Vec<Action>,
    ) {
        let Some(record) = record else { return self.go_on([Chunks::absent(want)], actions) };
        self.received += record.len() as u64;
        if let Err(error) = Chunks::check(&want, &record) {
            return self.go_on([Next::Lost(want, error)], actions);
        }
        let mut next = Vec::new();
        let id = want.id;
        if let Err(error) = self.chunks.record(want, record, &mut next) {
            self.landed(&id, None, Some(&error), actions);
        }
        self.go_on(next, actions);
    }

    pub(super) fn go_on(
        &mut self,
        next: impl IntoIterator<Item = Next>,
        actions: &mut Vec<Action>,
    ) {
        for next in next {
            match next {
                Next::Ask(message, asked) => self.ask(message, Question::Of(asked), actions),
                Next::Open(job) => actions.push(Action::Open(job)),
                Next::Lost(want, error) => self.landed(&want.id, None, Some(&error), actions),
            }
        }
    }

    /// A chunk was opened, or cannot be had.
    pub(super) fn landed(
        &mut self,
        id: &ChunkId,
        job: Option<OpenJob>,
        error: Option<&Error>,
        actions: &mut Vec<Action>,
    ) {
        let Some(flight) = self.flights.by_id.remove(id) else { return };
        self.flights.chunks -= 1;
        self.flights.blocks -= flight.brings.iter().map(|(_, n)| n).sum::<u64>();
        if error.is_some() {
            flight.brings.iter().for_each(|(b, _)| self.forget_leaf(b / LEAF_BLOCKS, actions));
        }
        let mut settled = flight.waiting;
        match (flight.more, job) {
            (Some((want, waiting)), Some(job)) => {
                // The record is here: it need not come again.
                let flight = Flight::of(&want, waiting);
                let blocks = flight.brings.iter().map(|(_, n)| n).sum();
                self.flights.chunks += 1;
                self.flights.blocks += blocks;
                self.flights.by_id.insert(*id, flight);
                actions.push(Action::Open(OpenJob { placements: want.placements, blocks, ..job }));
            }
            (Some((_, waiting)), None) => settled.extend(waiting),
            (None, _) => {}
        }
        for request in settled {
            self.settle(request, error, actions);
        }
    }
}

impl Flight {
    fn of(want: &Want, waiting: Vec<RequestId>) -> Self {
        let brings = want.placements.iter().map(|p| (p.start, p.tags.len() as u64)).collect();
        Self { queued: None, brings, waiting, more: None }
    }
}

impl Flights {
    /// Whether there is no room for more of this priority.
    fn is_full(&self, priority: Priority, limits: &super::Limits) -> bool {
        let blocks = match priority {
            Priority::Demand => limits.blocks,
            Priority::Ahead => limits.ahead,
        };
        self.blocks >= blocks || self.chunks >= limits.chunks
    }

    /// Whether no chunk is wanted or under way.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn queue(&mut self, id: RequestId, mut want: Want, priority: Priority) {
        let mut flight = Flight::of(&want, vec![id]);
        want.blocks = flight.brings.iter().map(|(_, n)| n).sum();
        let chunk = want.id;
        flight.queued = Some(want);
        self.by_id.insert(chunk, flight);
        self.queues[priority as usize].push_back(chunk);
    }

    /// Takes a chunk out of its queue: it is asked for now. None if that was done before.
    fn take(&mut self, id: &ChunkId) -> Option<Want> {
        let want = self.by_id.get_mut(id)?.queued.take()?;
        self.blocks += want.blocks;
        self.chunks += 1;
        Some(want)
    }
}
