//! The client's end of a copy: compare with what the server has, send what
//! differs, end with a point.
//!
//! A pipeline in one state machine. Leaves are read ahead within a budget of
//! bytes; each is compared in address order with the verified map of the last
//! checkpoint; changed blocks are cut into chunks; chunk ids are asked in
//! batches; what the server lacks is sealed and put; extents follow in address
//! order, each after its chunk; the point ends it. Nothing waits for an answer
//! before the budget is used up, so the link's latency does not limit the rate.
//!
//! Invariant: extents that name a chunk are sent after the chunk was put in this
//! session, or after the server said that it has it.
//!
//! A check ([`Mode::Check`]) takes the unchanged blocks along. They are cut as the
//! last checkpoint's map has them, so that the ids are those that older points name,
//! and a chunk that is sent again heals all of them. Of a chunk that was overwritten
//! in part the id is asked for all the same; if it is lost, what is left of it is
//! cut anew.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use dormouse_crypt::digest::Leaf as Hashes;
use dormouse_crypt::{SigningKey, VaultSecrets, hash};
use dormouse_format::extents::ExtentsWriter;
use dormouse_format::geometry::{self, Place};
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::{Base, Message};
use dormouse_format::point::{Grade, Point, SignedPoint, StoredPoint};
use dormouse_format::{Block, ChunkId, Hash, Tag, TimeNs, VaultId, VolumeId};

use crate::cut::{Cut, Cutter};
use crate::error::{Error, Result, unexpected};
use crate::history::hash_of;
use crate::leaf::{Budget, Claim, LeafData, LeafSet};
use crate::map::{Entry, Front, Root, TreeHasher, Walker, open_leaves};

/// Bytes of leaves in flight.
pub const WINDOW: u64 = 80 << 20;
/// Chunk ids in one question.
const ASK: usize = 256;
/// Leaves whose old tags are asked for in one question.
const LEAVES_ASK: u32 = 8;
/// Bytes of extents in one message.
const EXTENTS: usize = 64 << 10;
/// Bytes of a part of a delta's extents.
const DELTA_PART: usize = 192 << 10;
/// Bytes put between two barriers.
const BARRIER: u64 = 256 << 20;
/// Chunk ids of this session that are remembered, so that they are not asked again.
const KNOWN_MAX: usize = 1 << 20;

/// What is copied, and from where on.
#[derive(Debug)]
pub struct Plan {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// The right to write.
    pub generation: Generation,
    /// The newest point.
    pub head: Option<StoredPoint>,
    /// The checkpoint that the head builds on (the head itself, if it is one).
    pub checkpoint: Option<StoredPoint>,
    /// Size of the source in bytes.
    pub size: u64,
    /// Leaves of the source that may hold data, or that changed.
    pub leaves: LeafSet,
    /// What the leaves are.
    pub mode: Mode,
}

/// Where the right to write comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The server gave this one.
    Given(u64),
    /// The volume's opening was asked for on this link, and was not answered yet. The
    /// head that the answer shows must be the plan's. Until then only Begin and questions
    /// are sent: a chunk is put after its answer, which comes after this one.
    Asked {
        /// The volume's creation was asked for before.
        created: bool,
    },
}

/// How the changes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All of the source is compared; the point is a checkpoint.
    Scan,
    /// As [`Mode::Scan`]; and the server reads each chunk that the point needs before it
    /// says that it has it.
    Check,
    /// Exactly the blocks that the reader gives have changed; the point is a delta.
    Changes,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A leaf was read and hashed.
    Leaf {
        /// Which.
        index: u64,
        /// Its data.
        data: Arc<LeafData>,
        /// Its digests, tags and hash.
        hashes: Box<Hashes>,
    },
    /// A chunk was sealed.
    Sealed {
        /// The chunk.
        id: ChunkId,
        /// Its record.
        record: Vec<u8>,
    },
    /// The server's answer.
    Message(Message),
    /// The source was read to the end, and this is what it proves.
    Finished {
        /// The grade that is earned.
        grade: Grade,
        /// The writer's clock.
        time: TimeNs,
    },
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Sends a message.
    Send(Message),
    /// Reads and hashes a leaf.
    Read {
        /// Which.
        index: u64,
        /// What it counts for; goes into its data.
        claim: Claim,
    },
    /// Seals a chunk.
    Seal {
        /// Its id.
        id: ChunkId,
        /// Its blocks.
        cut: Arc<Cut>,
    },
    /// All leaves were read: say which grade the point earns.
    Finish,
    /// The point is durable.
    Done(Outcome),
}

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The new point.
    pub point: SignedPoint,
    /// When the server received it.
    pub receipt: TimeNs,
    /// The counters at the end.
    pub progress: Progress,
}

/// Counters for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Leaves that are compared.
    pub leaves: u64,
    /// Bytes of the source that were read.
    pub read: u64,
    /// Blocks that differ from the last checkpoint, zeros among them.
    pub changed: u64,
    /// Chunks that the changes were cut into.
    pub chunks: u64,
    /// Chunks that the server had already.
    pub known: u64,
    /// Chunks that were sent.
    pub sent: u64,
    /// Bytes of their records.
    pub sent_bytes: u64,
    /// Bytes of records that are known to be durable on the server.
    pub durable_bytes: u64,
}

enum Old {
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
    fn tag(&self, i: usize) -> Tag {
        match self {
            Self::Zero | Self::Asked => Tag::ZERO,
            Self::Known(tags) => tags[i],
            Self::Hinted(entries) => entries[i].tag,
        }
    }

    fn hint(&self, i: usize) -> Option<Hint> {
        let Self::Hinted(entries) = self else { return None };
        let Entry { chunk, index, .. } = entries[i];
        (!chunk.is_zero()).then_some(Hint { chunk, index })
    }
}

/// Where the last checkpoint's map says that a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hint {
    chunk: ChunkId,
    index: u8,
}

/// Unchanged blocks that follow one another, in the source and in one chunk.
#[derive(Debug, Clone, Copy)]
struct Kept {
    /// Of the first of them.
    first: Hint,
    /// That of a block that goes on with them,
    next: Hint,
    /// and the block.
    at: Block,
}

enum Compare {
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

struct Page {
    index: u64,
    source: u64,
    old: Option<Box<[Hash; FANOUT as usize]>>,
    slot: u64,
    ask: u64,
}

enum Out {
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

struct Waiting {
    /// Its blocks, until it is known whether they must be sent.
    cut: Option<Arc<Cut>>,
    /// Whether all of its blocks are in the source; if not, it cannot be sent.
    whole: bool,
    ready: bool,
    /// How many of what is in `out` name it.
    users: u32,
}

/// A copy under way.
pub struct Copy {
    plan: Plan,
    secrets: Arc<VaultSecrets>,
    signer: Arc<SigningKey>,
    progress: Progress,
    budget: Budget,
    walker: Option<Walker>,
    next_read: u64,
    reading: u64,
    arrived: BTreeMap<u64, (Arc<LeafData>, Box<Hashes>)>,
    page: Option<Page>,
    next_page: u64,
    compared: bool,
    compare: VecDeque<Compare>,
    leaves_asked: VecDeque<(u64, u64, Box<[Hash; FANOUT as usize]>)>,
    cutter: Cutter,
    /// What the open chunk is, if its blocks did not change.
    kept: Option<Kept>,
    out: VecDeque<Out>,
    waiting: HashMap<ChunkId, Waiting>,
    known: HashSet<ChunkId>,
    ask: Vec<ChunkId>,
    asked: VecDeque<Vec<ChunkId>>,
    extents: ExtentsWriter,
    deltas: Hash,
    parts: u64,
    tree: TreeHasher,
    barriers: VecDeque<u64>,
    last_barrier: u64,
    questions: VecDeque<Question>,
    generation: Option<u64>,
    state: State,
}

/// Answers come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Create,
    Open,
    Node,
    Leaves,
    Have,
    Barrier,
    Commit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Finishing,
    Committing(SignedPoint),
    Done,
}

impl core::fmt::Debug for Copy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Copy({:?}, {:?})", self.state, self.progress)
    }
}

impl Copy {
    /// A copy by this plan. `plan.head` and `plan.checkpoint` were verified by the caller.
    pub fn new(plan: Plan, secrets: Arc<VaultSecrets>, signer: Arc<SigningKey>) -> Result<Self> {
        let walker = match (&plan.checkpoint, plan.mode) {
            (Some(stored), Mode::Scan | Mode::Check) => Some(Walker::new(Root::of(stored)?)),
            _ => None,
        };
        let deltas = match &plan.head {
            Some(head) if head.point().is_checkpoint() => head.point().root,
            Some(head) => head.point().deltas,
            None => Hash::ZERO,
        };
        if plan.mode == Mode::Changes && plan.head.is_none() {
            return Err(Error::Protocol { what: "a first point that is no checkpoint" });
        }
        let (generation, questions) = match plan.generation {
            Generation::Given(generation) => (Some(generation), VecDeque::new()),
            Generation::Asked { created: false } => (None, [Question::Open].into()),
            Generation::Asked { created: true } => {
                (None, [Question::Create, Question::Open].into())
            }
        };
        Ok(Self {
            plan,
            secrets,
            signer,
            progress: Progress::default(),
            budget: Budget::default(),
            walker,
            next_read: 0,
            reading: 0,
            arrived: BTreeMap::new(),
            page: None,
            next_page: 0,
            compared: false,
            compare: VecDeque::new(),
            leaves_asked: VecDeque::new(),
            cutter: Cutter::default(),
            kept: None,
            out: VecDeque::new(),
            waiting: HashMap::new(),
            known: HashSet::new(),
            ask: Vec::new(),
            asked: VecDeque::new(),
            extents: ExtentsWriter::new(),
            deltas,
            parts: 0,
            tree: TreeHasher::new(),
            barriers: VecDeque::new(),
            last_barrier: 0,
            questions,
            generation,
            state: State::Running,
        })
    }

    /// The counters.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Bytes of the source in flight.
    pub fn in_flight(&self) -> u64 {
        self.budget.used()
    }

    /// Begins: the first actions.
    pub fn start(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        let base = match self.plan.mode {
            Mode::Scan | Mode::Check => Base::Checkpoint,
            Mode::Changes => Base::Delta,
        };
        actions.push(Action::Send(Message::Begin { base, size: self.plan.size }));
        self.advance(actions)
    }

    /// Takes an event.
    pub fn step(&mut self, event: Event, actions: &mut Vec<Action>) -> Result<()> {
        match event {
            Event::Leaf { index, data, hashes } => {
                self.reading -= 1;
                self.progress.read += data.data_len();
                self.arrived.insert(index, (data, hashes));
            }
            Event::Sealed { id, record } => self.sealed(id, record, actions)?,
            Event::Message(message) => self.message(message, actions)?,
            Event::Finished { grade, time } => self.commit(grade, time, actions)?,
        }
        self.advance(actions)
    }

    fn advance(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        if self.state != State::Running {
            return Ok(());
        }
        self.ask_nodes(actions);
        self.compare_leaves(actions)?;
        self.cut_leaves();
        self.ask_chunks(actions);
        self.flush_extents(actions, false);
        self.read_ahead(actions);
        let all = self.compared && self.compare.is_empty() && self.out.is_empty();
        let answered = self.asked.is_empty() && self.generation.is_some();
        if all && answered && self.waiting.is_empty() {
            self.flush_extents(actions, true);
            self.state = State::Finishing;
            actions.push(Action::Finish);
        }
        Ok(())
    }

    fn ask_nodes(&mut self, actions: &mut Vec<Action>) {
        if let Some(walker) = &mut self.walker {
            let questions = &mut self.questions;
            walker.ask(&mut |message| {
                questions.push_back(Question::Node);
                actions.push(Action::Send(message));
            });
        }
    }

    fn read_ahead(&mut self, actions: &mut Vec<Action>) {
        while self.budget.used() + Claim::WHOLE <= WINDOW || self.budget.used() == 0 {
            let Some(index) = self.plan.leaves.next(self.next_read) else { return };
            self.next_read = index + 1;
            self.reading += 1;
            actions.push(Action::Read { index, claim: self.budget.claim(Claim::WHOLE) });
        }
    }

    /// The first stage: in address order, which leaves differ at all.
    fn compare_leaves(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        loop {
            if self.page.is_none() && !self.next_page()? {
                break;
            }
            if !self.compare_page(actions) {
                break;
            }
        }
        // What waits for tags must be asked for before the budget is used up.
        let full = self.budget.used() + Claim::WHOLE > WINDOW;
        if full && self.page.as_ref().is_some_and(|p| p.ask != 0) {
            self.ask_leaves(actions);
        }
        Ok(())
    }

    /// Takes up the next page that the source or the old map has; false if it is not
    /// known yet, or there is none.
    fn next_page(&mut self) -> Result<bool> {
        let source = self.plan.leaves.next_page(self.next_page);
        let front = self.walker.as_ref().map_or(Front::End, Walker::front);
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
            (_, Front::Whole(..)) => return Err(Error::Protocol { what: "an unopened subtree" }),
        };
        let source = self.plan.leaves.page(index);
        self.page = Some(Page { index, source, old, slot: 0, ask: 0 });
        self.next_page = index + 1;
        Ok(true)
    }

    /// Compares leaves of the current page; false if it must wait for one.
    fn compare_page(&mut self, actions: &mut Vec<Action>) -> bool {
        let last_leaf = geometry::blocks(self.plan.size).div_ceil(LEAF_BLOCKS);
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
                if self.plan.mode != Mode::Changes {
                    self.tree.push(Place { level: 0, index }, hashes.hash);
                }
                let ask = !old.is_zero();
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

    /// The second stage: which blocks differ, cut into chunks.
    fn cut_leaves(&mut self) {
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
            if tag.is_zero() || !(changed || self.plan.mode == Mode::Check) {
                self.end_chunk();
                if changed {
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

    fn chunk(&mut self, mut cut: Cut) {
        let id = self.secrets.chunk_id(&cut.digests);
        self.progress.chunks += 1;
        match self.kept.take().map(|kept| kept.first) {
            // The map names it already.
            Some(hint) if hint == (Hint { chunk: id, index: 0 }) => self.want(id, 0, Some(cut)),
            Some(hint) if hint.chunk != id => {
                self.want(hint.chunk, 1, None);
                self.out.push_back(Out::Part { of: hint.chunk, cut });
            }
            _ => {
                let (start, tags) = (cut.start, core::mem::take(&mut cut.tags));
                self.out.push_back(Out::Chunk { id, start, tags });
                self.want(id, 1, Some(cut));
            }
        }
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
                Out::Part { of, mut cut } if lost.contains(&of) => {
                    let id = self.secrets.chunk_id(&cut.digests);
                    let (start, tags) = (cut.start, core::mem::take(&mut cut.tags));
                    self.out.push_back(Out::Chunk { id, start, tags });
                    self.want(id, 1, Some(cut));
                }
                item => self.out.push_back(item),
            }
        }
    }

    fn ask_chunks(&mut self, actions: &mut Vec<Action>) {
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
        let full = self.budget.used() + Claim::WHOLE > WINDOW;
        !self.ask.is_empty() && (full || self.compared)
    }

    fn message(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<()> {
        let question = self.questions.pop_front();
        match (question, message) {
            (Some(Question::Create), Message::Done) => Ok(()),
            (Some(Question::Open), Message::Opened { generation, head, .. }) => {
                self.generation = Some(generation);
                if head.map(|h| h.signed) == self.plan.head.map(|h| h.signed) {
                    Ok(())
                } else {
                    Err(Error::Moved)
                }
            }
            (Some(Question::Node), Message::Node { mask, hashes }) => {
                let walker = self.walker.as_mut();
                let walker = walker.ok_or(Error::Protocol { what: "a node without a walk" })?;
                walker.answer(mask, &hashes)
            }
            (Some(Question::Leaves), Message::Leaves { runs }) => self.old_leaves(&runs),
            (Some(Question::Have), Message::HaveAnswer { have }) => self.have(&have, actions),
            (Some(Question::Barrier), Message::Durable) => {
                self.progress.durable_bytes =
                    self.barriers.pop_front().unwrap_or(self.progress.durable_bytes);
                Ok(())
            }
            (Some(Question::Commit), Message::Committed { receipt }) => {
                if let State::Committing(point) = self.state {
                    self.state = State::Done;
                    self.progress.durable_bytes = self.progress.sent_bytes;
                    let progress = self.progress;
                    actions.push(Action::Done(Outcome { point, receipt, progress }));
                }
                Ok(())
            }
            (Some(Question::Commit), Message::Missing { ids }) => {
                let first = ids.first().copied().unwrap_or(ChunkId::ZERO);
                Err(Error::Missing { count: ids.len(), first })
            }
            (_, other) => Err(unexpected(other, "an answer that does not fit the question")),
        }
    }

    fn old_leaves(&mut self, runs: &[u8]) -> Result<()> {
        let asked = self.leaves_asked.pop_front();
        let (page, mask, hashes) = asked.ok_or(Error::Protocol { what: "leaves not asked for" })?;
        let seq = self.plan.checkpoint.as_ref().map_or(0, |c| c.point().seq);
        let leaves = open_leaves(seq, page, mask, &hashes, runs)?;
        let mut leaves = leaves.into_iter().peekable();
        for item in &mut self.compare {
            let Some((next, _)) = leaves.peek() else { break };
            if let Compare::Leaf { index, old, .. } = item
                && index == next
                && let Some((_, entries)) = leaves.next()
            {
                if self.plan.mode == Mode::Check {
                    *old = Old::Hinted(entries);
                    continue;
                }
                let mut tags = Box::new([Tag::ZERO; LEAF_BLOCKS as usize]);
                tags.iter_mut().zip(entries.iter()).for_each(|(t, e)| *t = e.tag);
                *old = Old::Known(tags);
            }
        }
        Ok(())
    }

    fn have(&mut self, have: &[bool], actions: &mut Vec<Action>) -> Result<()> {
        let asked = self.asked.pop_front();
        let ids = asked.ok_or(Error::Protocol { what: "an answer about chunks not asked for" })?;
        if ids.len() != have.len() {
            return Err(Error::Protocol { what: "an answer about another number of chunks" });
        }
        let mut lost = HashSet::new();
        for (id, have) in ids.into_iter().zip(have) {
            let Some(waiting) = self.waiting.get_mut(&id) else { continue };
            let cut = waiting.cut.take();
            match (have, cut) {
                (true, cut) => {
                    self.progress.known += u64::from(cut.is_some());
                    self.ready(id);
                }
                (false, Some(cut)) => actions.push(Action::Seal { id, cut }),
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

    fn sealed(&mut self, id: ChunkId, record: Vec<u8>, actions: &mut Vec<Action>) -> Result<()> {
        if !self.waiting.contains_key(&id) {
            return Err(Error::Protocol { what: "a sealed chunk that nobody wants" });
        }
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
        Ok(())
    }

    /// Sends the extents whose chunks the server has.
    fn flush_extents(&mut self, actions: &mut Vec<Action>, all: bool) {
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
        if !waiting.ready {
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
        if self.plan.mode == Mode::Changes {
            self.deltas = hash::delta(&self.deltas, self.plan.size, &runs);
        }
        actions.push(Action::Send(Message::Extents { runs }));
    }

    fn commit(&mut self, grade: Grade, time: TimeNs, actions: &mut Vec<Action>) -> Result<()> {
        let tree = core::mem::take(&mut self.tree);
        let Plan { vault, volume, size, .. } = self.plan;
        let generation = self.generation.ok_or(Error::Protocol { what: "an end unasked for" })?;
        let seq = self.plan.head.as_ref().map_or(0, |h| h.point().seq) + 1;
        let prev = self.plan.head.as_ref().map_or(Hash::ZERO, |h| hash_of(&h.signed));
        let (checkpoint, root, deltas) = match (self.plan.mode, &self.plan.head) {
            (Mode::Changes, Some(h)) => (h.point().checkpoint, h.point().root, self.deltas),
            _ => {
                let level = geometry::top_level(size);
                let root = hash::content_root(&volume, size, level, &tree.finish(level));
                (seq, root, Hash::ZERO)
            }
        };
        let point = Point {
            vault,
            volume,
            writer: self.signer.writer_id(),
            seq,
            generation,
            time,
            size,
            grade,
            checkpoint,
            epoch: self.secrets.epoch,
            prev,
            root,
            deltas,
        };
        let point = self.signer.sign_point(point);
        self.state = State::Committing(point);
        self.questions.push_back(Question::Commit);
        actions.push(Action::Send(Message::Commit { point }));
        Ok(())
    }
}
