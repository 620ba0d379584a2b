//! Random access to a verified point: single blocks at once, without its whole map.
//!
//! Owns: requests for ranges of blocks, of allocation and of changes; the parts of the map that
//! they need; the chunks; and going on after a link was lost. Invariant: a block is given out
//! only if its tag stands in the map under the point's signed root, with the deltas that the
//! point signs laid over it. What does not hold fails the requests that need it, and no other.
//! Memory is bounded by [`Limits`], by the deltas, and by the ranges of open requests.
//! Leaves to others: links, threads, and where blocks are kept.
//!
//! What a lie costs: a request whose map or chunk does not hold fails with an error. Chunks are
//! proved as a whole, so that a false hint can fail a request for another block of the same
//! chunk too; a wrong byte is never given out.

mod kept;
mod plan;
mod survey;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use dormouse_crypt::Identity;
use dormouse_format::geometry::{self, Place};
use dormouse_format::limits::{FANOUT, GET_MAX, LEAF_BLOCKS};
use dormouse_format::message::{Message, Refusal};
use dormouse_format::point::StoredPoint;
use dormouse_format::{Block, Hash, Tag};

use crate::chunks::{Asked, Chunks, Next};
pub use crate::chunks::{OpenJob, Placement, Write};
use crate::error::{Error, Result, unexpected};
use crate::history::Trust;
use crate::overlay::Overlay;
use kept::Kept;
use plan::{Flights, Part};
use survey::Survey;
use view::{Leaf, View};

/// What a caller calls a request.
pub type RequestId = u64;

/// Whether this machine has a block already: by its address, and the tag that the map has there.
pub type Local<'a> = &'a mut dyn FnMut(Block, &Tag) -> bool;

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    Demand = 0,
    /// Somebody may want it soon.
    Ahead = 1,
}

/// How much is kept, and how much is under way.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Inner nodes of the map that are kept, of 2 KiB each; 64 at least.
    pub nodes: usize,
    /// Leaves of the map that are kept, of 9 KiB each; 8 at least.
    pub leaves: usize,
    /// Blocks asked for and not yet opened, at most.
    pub blocks: u64,
    /// The same, before something is asked for ahead. It is what a request on demand waits for
    /// in the worst case.
    pub ahead: u64,
    /// Chunks asked for and not yet opened, at most.
    pub chunks: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 4096, leaves: 2048, blocks: 8192, ahead: 2048, chunks: 2048 }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The server's answer.
    Message(Message),
    /// A chunk was opened, and its blocks were given out.
    Opened(OpenJob),
    /// A chunk did not hold; nothing of it was given out.
    Broken {
        /// The job.
        job: OpenJob,
        /// Why.
        error: Error,
    },
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Sends a message.
    Send(Message),
    /// Opens a chunk, and gives its blocks to whoever waits for them.
    Open(OpenJob),
    /// These blocks of a request are zeros.
    Zero {
        /// The request.
        id: RequestId,
        /// The first.
        start: Block,
        /// How many.
        count: u64,
    },
    /// These blocks of a request are on this machine.
    Held {
        /// The request.
        id: RequestId,
        /// The first.
        start: Block,
        /// How many.
        count: u64,
    },
    /// Which blocks of a leaf are zeros, bit by bit.
    Known {
        /// Which leaf.
        leaf: u64,
        /// Its zeros.
        zero: [u64; 4],
    },
    /// All blocks of a request were given out, or not all can be.
    Done {
        /// The request.
        id: RequestId,
        /// Why not.
        result: Result<()>,
    },
    /// The answer about allocation or changes: numbers of blocks, one part after the other,
    /// and whether a part is zero, or may have changed.
    Parts {
        /// The request.
        id: RequestId,
        /// The parts; at least one.
        parts: Result<Vec<(u64, bool)>>,
    },
    /// A point can be used.
    Ready {
        /// Which: [`MAIN`], or one that was added.
        view: usize,
        /// Why not.
        result: Result<()>,
    },
}

/// The point that is read.
pub const MAIN: usize = 0;

/// Points that can be compared with at once.
const VIEWS_MAX: usize = 16;

/// What one step needs at once: the ways down two maps, and the nodes asked for beside them.
const NODES_MIN: usize = 64;
/// Two leaves that are compared, and some that come meanwhile.
const LEAVES_MIN: usize = 8;

/// A question that is open.
#[derive(Debug)]
enum Question {
    Deltas(usize),
    Node { view: usize, place: Place, hash: Hash },
    Leaves { view: usize, page: u64, mask: u64, hashes: Arc<[Hash; FANOUT as usize]> },
    Of(Asked),
}

struct Request {
    priority: Priority,
    /// Parts that were not planned yet, and chunks that it waits for.
    left: usize,
    error: Option<Error>,
}

/// Reads a point.
pub struct Reader {
    limits: Limits,
    views: Vec<View>,
    chunks: Chunks,
    nodes: Kept<[Hash; FANOUT as usize]>,
    leaves: Kept<Leaf>,
    /// Hashes of nodes and leaves that were asked for.
    pending: HashSet<Hash>,
    /// What of that did not hold, until those who need it were told.
    failed: HashMap<Hash, Error>,
    /// Leaves to ask for, by view and page: which, and the hashes of all of the page.
    wanted_leaves: BTreeMap<(usize, u64), (u64, Arc<[Hash; FANOUT as usize]>)>,
    questions: VecDeque<Question>,
    requests: HashMap<RequestId, Request>,
    parts: [VecDeque<Part>; 2],
    surveys: VecDeque<Survey>,
    flights: Flights,
    /// Whether something has come that parts or surveys may wait for.
    stirred: bool,
    answered: u64,
    received: u64,
}

impl core::fmt::Debug for Reader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (requests, questions) = (self.requests.len(), self.questions.len());
        write!(f, "Reader({requests} requests, {questions} questions)")
    }
}

impl Reader {
    /// A reader of a point that builds on this checkpoint; both are verified.
    pub fn new(
        point: StoredPoint,
        checkpoint: StoredPoint,
        trust: Arc<Trust>,
        identity: Arc<Identity>,
        limits: Limits,
    ) -> Result<Self> {
        let writer = point.point().writer;
        Ok(Self {
            views: vec![View::new(point, checkpoint)?],
            chunks: Chunks::new(trust, identity, writer),
            nodes: Kept::new(limits.nodes.max(NODES_MIN)),
            leaves: Kept::new(limits.leaves.max(LEAVES_MIN)),
            limits,
            pending: HashSet::new(),
            failed: HashMap::new(),
            wanted_leaves: BTreeMap::new(),
            questions: VecDeque::new(),
            requests: HashMap::new(),
            parts: [VecDeque::new(), VecDeque::new()],
            surveys: VecDeque::new(),
            flights: Flights::default(),
            stirred: false,
            answered: 0,
            received: 0,
        })
    }

    /// Begins: asks for what the point needs before a block can be read.
    pub fn start(&mut self, actions: &mut Vec<Action>) {
        self.begin_view(MAIN, actions);
    }

    fn begin_view(&mut self, view: usize, actions: &mut Vec<Action>) {
        if self.views[view].deltas.is_some() {
            self.ask(self.views[view].deltas_question(), Question::Deltas(view), actions);
        } else {
            actions.push(Action::Ready { view, result: Ok(()) });
        }
    }

    /// Another point of the same volume, to compare with; both are verified. It is ready when
    /// [`Action::Ready`] says so.
    pub fn add_view(
        &mut self,
        point: StoredPoint,
        checkpoint: StoredPoint,
        actions: &mut Vec<Action>,
    ) -> Result<usize> {
        let found = self.views.iter().skip(1).position(|v| v.point.signed == point.signed);
        let view = found.map_or(self.views.len(), |i| i + 1);
        if found.is_some() && self.views[view].broken.is_none() {
            if self.views[view].deltas.is_none() {
                actions.push(Action::Ready { view, result: Ok(()) });
            }
            return Ok(view);
        }
        if view >= VIEWS_MAX {
            return Err(Error::Point { seq: point.point().seq, why: "too many are compared with" });
        }
        let new = View::new(point, checkpoint)?;
        match self.views.get_mut(view) {
            Some(broken) => *broken = new,
            None => self.views.push(new),
        }
        self.begin_view(view, actions);
        Ok(view)
    }

    /// Bytes of the volume now.
    pub fn size(&self) -> u64 {
        self.views[MAIN].size
    }

    /// Whether it reads this very point.
    pub fn reads(&self, point: &StoredPoint) -> bool {
        self.views[MAIN].point.signed == point.signed
    }

    /// How many questions were answered, and how many are open.
    pub fn asked(&self) -> (u64, usize) {
        (self.answered, self.questions.len())
    }

    /// Bytes of chunks that were received.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Requests that are open.
    pub fn requests(&self) -> usize {
        self.requests.len() + self.surveys.len()
    }

    /// Wants `count` blocks from `start` on; they lie within the volume.
    pub fn read(&mut self, id: RequestId, start: Block, count: u64, priority: Priority) {
        let end = start.saturating_add(count);
        let mut at = start;
        let mut left = 0;
        while at < end {
            let leaf = at / LEAF_BLOCKS;
            let until = end.min((leaf + 1) * LEAF_BLOCKS);
            let first = leaf * LEAF_BLOCKS;
            let (from, to) = ((at - first) as u16, (until - first) as u16);
            self.parts[priority as usize].push_back(Part { id, leaf, from, to });
            at = until;
            left += 1;
        }
        self.requests.insert(id, Request { priority, left, error: None });
        self.stirred = true;
    }

    /// Nobody waits for a request any more. What is under way for it still comes.
    pub fn cancel(&mut self, id: RequestId) {
        self.requests.remove(&id);
        self.surveys.retain(|s| s.id != id);
        for parts in &mut self.parts {
            parts.retain(|p| p.id != id);
        }
    }

    /// Takes an event. An error means that the link is of no more use; what was asked on it is
    /// asked again by [`Self::restart`].
    pub fn take(&mut self, event: Event, actions: &mut Vec<Action>) -> Result<()> {
        match event {
            Event::Message(message) => self.message(message, actions)?,
            Event::Opened(job) => {
                let id = job.id;
                self.landed(&id, Some(job), None, actions);
            }
            Event::Broken { job, error } => {
                let next = self.chunks.broken(job, error);
                self.go_on([next], actions);
            }
        }
        Ok(())
    }

    /// Goes on with what can go on, after some events or requests.
    pub fn advance(&mut self, local: Local<'_>, actions: &mut Vec<Action>) {
        let ready = self.views[MAIN].deltas.is_none();
        if ready && core::mem::take(&mut self.stirred) {
            self.plan_parts(local, actions);
            self.go_through(actions);
            self.failed.clear();
        }
        self.ask_chunks(actions);
    }

    fn ask(&mut self, message: Message, question: Question, actions: &mut Vec<Action>) {
        self.questions.push_back(question);
        actions.push(Action::Send(message));
    }

    fn message(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<()> {
        let question = self.questions.pop_front();
        let series = matches!(question, Some(Question::Of(Asked::Key(_)) | Question::Deltas(_)));
        self.answered += u64::from(!series || message == Message::Done);
        match (question, message) {
            (Some(Question::Node { view, place, hash }), Message::Node { mask, hashes }) => {
                self.stirred = true;
                self.take_node((view, place, hash), mask, &hashes);
            }
            (Some(Question::Leaves { view, page, mask, hashes }), Message::Leaves { runs }) => {
                self.stirred = true;
                self.take_leaves((view, page, mask, hashes), &runs, actions);
            }
            (Some(Question::Of(Asked::Chunk(want))), Message::Record { record }) => {
                self.take_chunk(want, Some(record), actions);
            }
            (Some(Question::Of(Asked::Chunk(want))), Message::Absent { .. }) => {
                self.take_chunk(want, None, actions);
            }
            (Some(Question::Of(Asked::Key(maker))), Message::Record { record }) => {
                if let Err(error) = self.chunks.key(maker, &record) {
                    self.lost(Question::Of(Asked::Key(maker)), &error, actions);
                    return Err(error);
                }
                self.questions.push_front(Question::Of(Asked::Key(maker)));
            }
            (Some(Question::Of(Asked::Key(maker))), Message::Done) => {
                let mut next = Vec::new();
                self.chunks.key_end(maker, &mut next)?;
                self.go_on(next, actions);
            }
            (Some(Question::Deltas(view)), Message::Record { record }) => {
                let deltas = self.views[view].deltas.as_mut();
                if let Some(Err(error)) = deltas.map(|d| d.add(&record)) {
                    self.lost(Question::Deltas(view), &error, actions);
                    return Err(error);
                }
                self.questions.push_front(Question::Deltas(view));
            }
            (Some(Question::Deltas(view)), Message::Done) => self.deltas_end(view, actions),
            (question, other) => return self.out_of_order(question, other, actions),
        }
        Ok(())
    }

    fn deltas_end(&mut self, view: usize, actions: &mut Vec<Action>) {
        let of = &mut self.views[view];
        let Some(deltas) = of.deltas.take() else { return };
        let result = deltas.finish(&of.point).map(|overlay| of.overlay = overlay);
        of.broken = result.as_ref().err().cloned();
        self.stirred = true;
        actions.push(Action::Ready { view, result });
    }

    /// An answer that does not fit. A server that refuses what was asked, and goes on, fails
    /// what needs it; with all else the link ends.
    fn out_of_order(
        &mut self,
        question: Option<Question>,
        message: Message,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        let error = unexpected(message, "an answer that does not fit the question");
        let Some(question) = question else { return Err(error) };
        match &error {
            // It says so about this one, and stays.
            Error::Refused { refusal: Refusal::NotFound, .. } => {
                self.lost(question, &error, actions);
                Ok(())
            }
            Error::Refused { refusal: Refusal::Damaged | Refusal::BadRecord, .. }
            | Error::Protocol { .. } => {
                self.lost(question, &error, actions);
                Err(error)
            }
            // Not about the question: it is asked again.
            _ => {
                self.questions.push_front(question);
                Err(error)
            }
        }
    }

    /// A question that is not asked again: who needs its answer is told.
    fn lost(&mut self, question: Question, error: &Error, actions: &mut Vec<Action>) {
        self.stirred = true;
        match question {
            Question::Deltas(view) => {
                self.views[view].deltas = None;
                self.views[view].broken = Some(error.clone());
                actions.push(Action::Ready { view, result: Err(error.clone()) });
            }
            Question::Node { hash, .. } => {
                self.pending.remove(&hash);
                self.failed.insert(hash, error.clone());
            }
            Question::Leaves { view, page, mask, hashes } => {
                self.leaves_lost((view, page, mask, hashes), error.clone(), actions);
            }
            Question::Of(Asked::Chunk(want)) => {
                let error = want.fault(&error.to_string());
                self.go_on([Next::Lost(want, error)], actions);
            }
            Question::Of(Asked::Key(maker)) => {
                for want in self.chunks.key_lost(&maker) {
                    let error = want.fault(&error.to_string());
                    self.go_on([Next::Lost(want, error)], actions);
                }
            }
        }
    }

    /// Part of a request is done, or failed.
    fn settle(&mut self, id: RequestId, error: Option<&Error>, actions: &mut Vec<Action>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.left -= 1;
        if request.error.is_none() {
            request.error = error.cloned();
        }
        if request.left == 0 {
            let error = self.requests.remove(&id).and_then(|r| r.error);
            actions.push(Action::Done { id, result: error.map_or(Ok(()), Err) });
        }
        self.stirred = true;
    }

    /// A new link stands, and shows `shown` where the point is: asks again what is open.
    pub fn restart(
        &mut self,
        shown: &StoredPoint,
        trust: Arc<Trust>,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        if !self.reads(shown) {
            return Err(Error::Fork { seq: self.views[MAIN].point.point().seq });
        }
        self.chunks.trust(trust);
        let mut ids = Vec::new();
        for question in core::mem::take(&mut self.questions) {
            let first = matches!(&question, Question::Of(Asked::Chunk(want)) if want.skip == 0);
            if !ids.is_empty() && (!first || ids.len() >= GET_MAX) {
                let ids = core::mem::take(&mut ids);
                actions.push(Action::Send(self.chunks.question(0, ids)));
            }
            let message = match &question {
                Question::Deltas(view) => {
                    self.views[*view].deltas_again();
                    Some(self.views[*view].deltas_question())
                }
                // Whoever needs it asks for it again, by the map as it is then.
                Question::Node { .. } | Question::Leaves { .. } => {
                    self.forget_question(&question);
                    continue;
                }
                Question::Of(Asked::Chunk(want)) if want.skip == 0 => {
                    ids.push(want.id);
                    None
                }
                Question::Of(Asked::Chunk(want)) => {
                    Some(self.chunks.question(want.skip, vec![want.id]))
                }
                Question::Of(Asked::Key(maker)) => {
                    self.chunks.key_again();
                    Some(Chunks::key_question(maker))
                }
            };
            actions.extend(message.map(Action::Send));
            self.questions.push_back(question);
        }
        if !ids.is_empty() {
            actions.push(Action::Send(self.chunks.question(0, ids)));
        }
        Ok(())
    }

    /// A part of the map is not asked for any more.
    fn forget_question(&mut self, question: &Question) {
        match question {
            Question::Node { hash, .. } => {
                self.pending.remove(hash);
            }
            Question::Leaves { mask, hashes, .. } => self.forget_leaves(*mask, hashes),
            Question::Deltas(_) | Question::Of(_) => {}
        }
        self.stirred = true;
    }

    fn forget_leaves(&mut self, mask: u64, hashes: &[Hash; FANOUT as usize]) {
        for slot in (0..FANOUT as usize).filter(|slot| mask >> slot & 1 == 1) {
            self.pending.remove(&hashes[slot]);
        }
    }

    /// Whether nothing is being fetched: no request is open, and no chunk under way.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.flights.is_empty()
    }

    /// The owner of the volume lays a change of its own over it: encoded runs, after which the
    /// volume has `size` bytes. A request that is open may see it or not.
    pub fn apply(&mut self, size: u64, runs: &[u8]) -> Result<()> {
        let main = &mut self.views[MAIN];
        main.overlay.add(geometry::blocks(size), runs)?;
        main.size = size;
        self.stirred = true;
        Ok(())
    }

    /// The owner of the volume has committed a checkpoint of what it laid over; `since` is what
    /// it laid over after that, each with the size that the volume then had. What is kept of
    /// the map stays of use: it is kept by content.
    pub fn rebase(&mut self, checkpoint: StoredPoint, since: &[(u64, Vec<u8>)]) -> Result<()> {
        let mut view = View::new(checkpoint, checkpoint)?;
        for (size, runs) in since {
            view.overlay.add(geometry::blocks(*size), runs)?;
            view.size = *size;
        }
        self.views[MAIN] = view;
        // What is to be asked for still is asked for by the new map.
        for ((_, _), (mask, hashes)) in core::mem::take(&mut self.wanted_leaves) {
            self.forget_leaves(mask, &hashes);
        }
        self.stirred = true;
        Ok(())
    }

    /// What was laid over the checkpoint's map.
    pub fn overlay(&self) -> &Overlay {
        &self.views[MAIN].overlay
    }
}
