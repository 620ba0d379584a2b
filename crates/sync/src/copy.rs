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
//!
//! A block that a scan could not read stays as the last checkpoint has it: zero in a first copy.
//!
//! A scan may be one of a part of the volume: what lies outside enters the new root with the
//! hashes that the last checkpoint's root vouches for.

mod chunks;
mod compare;

use core::ops::Range;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use dormouse_crypt::digest::Leaf as Hashes;
use dormouse_crypt::{SigningKey, VaultSecrets, hash};
use dormouse_format::extents::ExtentsWriter;
use dormouse_format::geometry::{self, Place, span};
use dormouse_format::limits::{FANOUT, PAGE_BLOCKS};
use dormouse_format::message::{Base, Message};
use dormouse_format::point::{Grade, Point, SignedPoint, StoredPoint};
use dormouse_format::{ChunkId, Hash, TimeNs, VaultId, VolumeId};

use crate::bridge;
use crate::cut::{Cut, Cutter};
use crate::error::{Error, Result, unexpected};
use crate::history::{builds_on, hash_of};
use crate::leaf::{Budget, Claim, LeafData, LeafSet};
use crate::map::{Root, TreeHasher, Walker};
use chunks::{Kept, Out, Waiting};
use compare::{Compare, Page};

/// Bytes of leaves in flight, for a copy that has the machine to itself.
pub const WINDOW: u64 = 80 << 20;
/// [`Plan::part`] of a copy of all.
pub const ALL: Range<u64> = 0..u64::MAX;

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
    /// Pages of a [`Mode::Scan`] whose leaves are compared; the others stay as the checkpoint has
    /// them, which then must not be larger than the source. Else [`ALL`].
    pub part: Range<u64>,
    /// Whether there are blocks that the source does not give, and that the copy leaves out.
    pub stale: bool,
    /// Bytes of leaves in flight, at most; [`WINDOW`] where memory does not matter.
    pub window: u64,
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
    /// Bytes that say which block lies in which chunk.
    pub extent_bytes: u64,
    /// While the scan waits until the server lets it begin: how many are before it.
    pub queued: Option<u32>,
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
    /// Chunks that are sealed before the server has said whether it wants them, and
    /// their records when they are there.
    ahead: HashMap<ChunkId, Option<Vec<u8>>>,
    /// Those of them that are still being sealed, and that nobody wants.
    unwanted: HashSet<ChunkId>,
    /// Chunks that are being sealed.
    sealing: u64,
    extents: ExtentsWriter,
    /// Copies of the extents that were sent, if the caller wants them.
    kept_extents: Option<Vec<Vec<u8>>>,
    deltas: Hash,
    parts: u64,
    tree: TreeHasher,
    /// Hashes of leaves and subtrees from the first leaf on that waits for its old tags.
    unhashed: VecDeque<(Place, Option<Hash>)>,
    barriers: VecDeque<u64>,
    last_barrier: u64,
    questions: VecDeque<Question>,
    answered: u64,
    generation: Option<u64>,
    state: State,
}

/// Answers come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Create,
    Open,
    Scan,
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
        if let (Some(head), Some(checkpoint)) = (&plan.head, &plan.checkpoint) {
            builds_on(head, checkpoint)?;
        }
        let walker = match (&plan.checkpoint, plan.mode) {
            (Some(stored), Mode::Scan | Mode::Check) => Some(walker(stored, &plan)?),
            _ => None,
        };
        let part = plan.part.clone();
        if part != ALL && plan.mode != Mode::Scan {
            return Err(Error::Protocol { what: "a part of what is no scan" });
        }
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
            next_read: part.start.saturating_mul(FANOUT),
            reading: 0,
            arrived: BTreeMap::new(),
            page: None,
            next_page: part.start,
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
            ahead: HashMap::new(),
            unwanted: HashSet::new(),
            sealing: 0,
            extents: ExtentsWriter::new(),
            kept_extents: None,
            deltas,
            parts: 0,
            tree: TreeHasher::new(),
            unhashed: VecDeque::new(),
            barriers: VecDeque::new(),
            last_barrier: 0,
            questions,
            answered: 0,
            generation,
            state: State::Running,
        })
    }

    /// The counters.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Keeps a copy of the extents that are sent: who reads the volume meanwhile needs them.
    pub fn keep_extents(&mut self) {
        self.kept_extents = Some(Vec::new());
    }

    /// The extents that were sent so far and kept, part by part.
    pub fn take_extents(&mut self) -> Vec<Vec<u8>> {
        self.kept_extents.take().unwrap_or_default()
    }

    /// How many questions were answered, and how many are open.
    pub fn asked(&self) -> (u64, usize) {
        (self.answered, self.questions.len())
    }

    /// Bytes of the source in flight.
    pub fn in_flight(&self) -> u64 {
        self.budget.used()
    }

    /// Begins: the first actions. A scan asks whether it may; what follows is answered behind that.
    pub fn start(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        if self.plan.mode != Mode::Changes {
            self.questions.push_back(Question::Scan);
            actions.push(Action::Send(Message::AskScan));
        }
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
        self.seal_ahead(actions);
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

    fn message(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<()> {
        self.answered += 1;
        if let (Some(Question::Scan), Message::Queued { ahead }) =
            (self.questions.front(), &message)
        {
            self.progress.queued = Some(*ahead);
            return Ok(());
        }
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
            (Some(Question::Scan), Message::Admitted) => {
                self.progress.queued = None;
                Ok(())
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
            stale: self.plan.stale,
            checkpoint,
            epoch: self.secrets.epoch,
            prev,
            root,
            deltas,
        };
        let point = self.signer.sign_point(point);
        self.state = State::Committing(point);
        self.questions.push_back(Question::Commit);
        let bridge = bridge::put(&self.signer, self.plan.checkpoint.as_ref(), &point);
        actions.extend(bridge.map(Action::Send));
        actions.push(Action::Send(Message::Commit { point }));
        Ok(())
    }
}

/// A walk over the checkpoint's map that opens what is compared.
fn walker(checkpoint: &StoredPoint, plan: &Plan) -> Result<Walker> {
    let root = Root::of(checkpoint)?;
    if plan.part == ALL {
        return Ok(Walker::new(root));
    }
    if root.size > plan.size {
        return Err(Error::Protocol { what: "a scan of a part of what has become smaller" });
    }
    let blocks = |page: u64| page.saturating_mul(PAGE_BLOCKS);
    let (first, end) = (blocks(plan.part.start), blocks(plan.part.end));
    let touched = move |place: Place| {
        let start = place.first_block();
        start < end && start.saturating_add(span(place.level)) > first
    };
    Ok(Walker::only(root, Box::new(touched)))
}
