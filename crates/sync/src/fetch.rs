//! The client's end of a restore: walk a point's map, fetch chunks, open them,
//! and give out blocks that are proved to be the point's.
//!
//! Invariant: a block is given out only if its chunk opened, the chunk's id is
//! the hash of its digests, and the block's tag stands in the map under the
//! point's signed root. Memory is bounded by the pages and chunks under way.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use dormouse_crypt::seal::{DataKey, Opener};
use dormouse_crypt::{Identity, VaultSecrets, record};
use dormouse_format::geometry;
use dormouse_format::limits::{
    BLOCK_SIZE, CHUNK_TRIES_MAX, FANOUT, GET_MAX, LEAF_BLOCKS, PAGE_BLOCKS,
};
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_format::record::{Kind, split};
use dormouse_format::vault::{self, Signed};
use dormouse_format::{Block, ChunkId, Hash, KeyId, RecordId, Tag, VolumeId, WriterId};

use crate::error::{Error, Result, unexpected};
use crate::history::Trust;
use crate::leaf::LeafSet;
use crate::map::{Entry, Front, LeafEntries, Root, Walker, open_leaves};
use crate::overlay::{Deltas, Overlay};

/// Blocks asked for and not yet written, at most (96 MiB).
const WINDOW: u64 = 24_576;
/// Pages whose leaves are under way: at most 0.6 MiB each. A page may hold as little as one
/// block, so few pages in a round trip would be a low rate.
const PAGES: usize = 16;

/// What happens to blocks that are zero, or already right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The destination reads as zeros: zeros are not written.
    Fresh,
    /// The destination holds anything: zeros are written too.
    Overwrite,
    /// The destination is compared first; only what differs is fetched and written.
    InPlace,
}

/// Blocks of a chunk that go to consecutive addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The first block.
    pub start: Block,
    /// Its index in the chunk.
    pub first: u8,
    /// The tags that the blocks must have.
    pub tags: Vec<Tag>,
}

/// Writes bytes at a byte address.
pub type Write<'a, E> = &'a mut dyn FnMut(u64, &[u8]) -> core::result::Result<(), E>;

/// A chunk to open and to write.
#[derive(Debug)]
pub struct OpenJob {
    /// Its record.
    pub record: Vec<u8>,
    /// The key that sealed it.
    pub key: Arc<DataKey>,
    /// Where its blocks go.
    pub placements: Vec<Placement>,
    /// Blocks that this job counts for.
    pub blocks: u64,
    /// How many other records of the chunk did not hold before this one.
    skip: u8,
}

impl OpenJob {
    /// Opens the chunk, compares every tag, and gives the blocks to `write` (byte
    /// address, bytes). Nothing is written unless all of it holds.
    pub fn run<E>(
        &self,
        who: (&Trust, &VaultSecrets, &VolumeId),
        opener: &mut Opener,
        write: Write<'_, E>,
    ) -> Result<core::result::Result<(), E>> {
        let (trust, secrets, volume) = who;
        let (header, body) = split(&self.record)?;
        let (content, digests) = opener.open(trust.vault(), &self.key, secrets, &header, body)?;
        for p in &self.placements {
            for (i, tag) in p.tags.iter().enumerate() {
                let block = p.start + i as u64;
                let digest = digests.get(usize::from(p.first) + i);
                if digest.map(|d| secrets.tag(volume, block, d)) != Some(*tag) {
                    let why = "it holds another block than the map says".to_owned();
                    return Err(Error::Chunk { id: header.id, block, why });
                }
            }
        }
        for p in &self.placements {
            let at = usize::from(p.first) * BLOCK_SIZE;
            let bytes = &content[at..at + p.tags.len() * BLOCK_SIZE];
            if let Err(e) = write(p.start * BLOCK_SIZE as u64, bytes) {
                return Ok(Err(e));
            }
        }
        Ok(Ok(()))
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The server's answer.
    Message(Message),
    /// A chunk was opened and written.
    Opened {
        /// Blocks that the job counted for.
        blocks: u64,
    },
    /// A chunk did not hold; nothing of it was written.
    Broken {
        /// The job.
        job: OpenJob,
        /// Why.
        error: Error,
    },
    /// Tags of a leaf of the destination, as it is now.
    Local {
        /// Which leaf.
        index: u64,
        /// Its tags.
        tags: Box<[Tag; LEAF_BLOCKS as usize]>,
    },
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Sends a message.
    Send(Message),
    /// Opens a chunk and writes its blocks.
    Open(OpenJob),
    /// Makes blocks of the destination zero.
    Zero {
        /// The first.
        start: Block,
        /// How many.
        count: u64,
    },
    /// Reads a leaf of the destination and computes its tags.
    ReadLocal {
        /// Which.
        index: u64,
    },
    /// All is written.
    Done,
}

/// Counters for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the point that lie before the place where the work is now.
    pub at: u64,
    /// Blocks written (or checked, for `verify`).
    pub written: u64,
    /// Blocks that were already right.
    pub same: u64,
    /// Chunks fetched.
    pub chunks: u64,
    /// Bytes received for them.
    pub received: u64,
    /// Chunks that could not be used.
    pub bad: u64,
}

struct PageJob {
    index: u64,
    leaf_hashes: Box<[Hash; FANOUT as usize]>,
    asked: u64,
    leaves: Option<Vec<LeafEntries>>,
    local_mask: u64,
    local: BTreeMap<u64, Box<[Tag; LEAF_BLOCKS as usize]>>,
}

struct Want {
    id: ChunkId,
    placements: Vec<Placement>,
    blocks: u64,
    skip: u8,
    /// Why the record before did not hold.
    error: Option<Error>,
}

impl Want {
    /// The chunk cannot be had: what was wrong first counts most.
    fn fault(self, why: &str) -> Error {
        let block = self.placements.first().map_or(0, |p| p.start);
        let why = self.error.map_or_else(|| why.to_owned(), |e| e.to_string());
        Error::Chunk { id: self.id, block, why }
    }
}

/// A data key, and the writer that sealed with it.
type Maker = (KeyId, WriterId);

enum Question {
    Deltas,
    Node,
    Leaves(u64),
    Chunk(Want),
    Key(Maker),
}

/// What is fetched, for whom.
#[derive(Debug)]
pub struct Plan {
    /// The point, verified.
    pub point: StoredPoint,
    /// Its checkpoint, verified; the point itself if it is one.
    pub checkpoint: StoredPoint,
    /// What happens to zeros.
    pub mode: Mode,
    /// Leaves of the destination that may hold data ([`Mode::InPlace`]).
    pub local: LeafSet,
    /// Goes on after a chunk that cannot be used, and tells them all.
    pub keep_going: bool,
}

/// A restore under way.
pub struct Fetch {
    plan: Plan,
    root: Root,
    trust: Arc<Trust>,
    identity: Arc<Identity>,
    walker: Option<Walker>,
    deltas: Option<Deltas>,
    overlay: Overlay,
    pages: VecDeque<PageJob>,
    next_page: u64,
    walked: bool,
    want: VecDeque<Want>,
    under_way: u64,
    /// By key and writer: another writer can put a copy of a wrapped key under its own name.
    keys: HashMap<Maker, Arc<DataKey>>,
    key_error: Option<Error>,
    held: HashMap<Maker, Vec<(Want, Vec<u8>)>>,
    questions: VecDeque<Question>,
    progress: Progress,
    faults: Vec<Error>,
    done: bool,
}

impl core::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Fetch({:?})", self.progress)
    }
}

impl Fetch {
    /// A restore by this plan.
    pub fn new(plan: Plan, trust: Arc<Trust>, identity: Arc<Identity>) -> Result<Self> {
        let root = Root::of(&plan.checkpoint)?;
        Ok(Self {
            walker: None,
            root,
            trust,
            identity,
            deltas: None,
            overlay: Overlay::new(geometry::blocks(root.size)),
            pages: VecDeque::new(),
            next_page: 0,
            walked: false,
            want: VecDeque::new(),
            under_way: 0,
            keys: HashMap::new(),
            key_error: None,
            held: HashMap::new(),
            questions: VecDeque::new(),
            progress: Progress::default(),
            faults: Vec::new(),
            done: false,
            plan,
        })
    }

    /// The counters.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What could not be used, if the plan says to keep going.
    pub fn faults(&self) -> &[Error] {
        &self.faults
    }

    /// Begins: the first actions.
    pub fn start(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        let p = *self.plan.point.point();
        if p.is_checkpoint() {
            self.walker = Some(Walker::new(self.root));
            return self.advance(actions);
        }
        if p.checkpoint != self.root.seq || p.root != self.plan.checkpoint.point().root {
            return Err(Error::Point { seq: p.seq, why: "it builds on another checkpoint" });
        }
        self.deltas = Some(Deltas::after(&self.plan.checkpoint));
        self.questions.push_back(Question::Deltas);
        actions.push(Action::Send(Message::GetDeltas { volume: p.volume, seq: p.seq }));
        Ok(())
    }

    /// Takes an event.
    pub fn step(&mut self, event: Event, actions: &mut Vec<Action>) -> Result<()> {
        match event {
            Event::Message(message) => self.message(message, actions)?,
            Event::Opened { blocks } => {
                self.under_way -= blocks;
                self.progress.written += blocks;
            }
            Event::Broken { job, error } => self.broken(job, error, actions)?,
            Event::Local { index, tags } => {
                let page = self.pages.iter_mut().find(|p| p.index == index / FANOUT);
                let page = page.ok_or(Error::Protocol { what: "a leaf that was not read" })?;
                page.local.insert(index, tags);
            }
        }
        self.advance(actions)
    }

    /// Another record of the same chunk may hold: anybody who writes to the vault can
    /// put a bad one under any id.
    fn broken(&mut self, job: OpenJob, error: Error, actions: &mut Vec<Action>) -> Result<()> {
        let (header, _) = split(&job.record)?;
        let want = Want {
            id: header.id,
            placements: job.placements,
            blocks: job.blocks,
            skip: job.skip + 1,
            error: Some(error),
        };
        self.again(want, actions)
    }

    fn again(&mut self, want: Want, actions: &mut Vec<Action>) -> Result<()> {
        if want.skip > CHUNK_TRIES_MAX {
            self.under_way -= want.blocks;
            return self.fault(want.fault("no record of it holds"));
        }
        let (writer, skip, ids) = (self.plan.point.point().writer, want.skip, vec![want.id]);
        actions.push(Action::Send(Message::GetChunks { writer, skip, ids }));
        self.questions.push_back(Question::Chunk(want));
        Ok(())
    }

    fn fault(&mut self, e: Error) -> Result<()> {
        self.progress.bad += 1;
        if !self.plan.keep_going {
            return Err(e);
        }
        if self.faults.len() < 10_000 {
            self.faults.push(e);
        }
        Ok(())
    }

    fn advance(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        if self.walker.is_none() || self.done {
            return Ok(());
        }
        loop {
            self.open_pages(actions)?;
            if !self.plan_page(actions) {
                break;
            }
        }
        self.ask_chunks(actions);
        let idle = self.want.is_empty() && self.under_way == 0 && self.held.is_empty();
        if self.walked && self.pages.is_empty() && idle {
            self.done = true;
            self.progress.at = self.plan.point.point().size;
            actions.push(Action::Done);
        }
        Ok(())
    }

    /// Takes up pages in address order and asks for their leaves.
    fn open_pages(&mut self, actions: &mut Vec<Action>) -> Result<()> {
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
    fn plan_page(&mut self, actions: &mut Vec<Action>) -> bool {
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

    fn ask_chunks(&mut self, actions: &mut Vec<Action>) {
        let mut ids = Vec::new();
        while ids.len() < GET_MAX && (self.under_way < WINDOW || self.under_way == 0) {
            let Some(want) = self.want.pop_front() else { break };
            ids.push(want.id);
            self.under_way += want.blocks;
            self.questions.push_back(Question::Chunk(want));
        }
        if !ids.is_empty() {
            let writer = self.plan.point.point().writer;
            actions.push(Action::Send(Message::GetChunks { writer, skip: 0, ids }));
        }
    }

    fn message(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<()> {
        let question = self.questions.pop_front();
        match (question, message) {
            (Some(Question::Node), Message::Node { mask, hashes }) => match &mut self.walker {
                Some(walker) => walker.answer(mask, &hashes),
                None => Err(Error::Protocol { what: "a node without a walk" }),
            },
            (Some(Question::Leaves(index)), Message::Leaves { runs }) => {
                let seq = self.root.seq;
                if let Some(page) = self.pages.iter_mut().find(|p| p.index == index) {
                    let leaves = open_leaves(seq, index, page.asked, &page.leaf_hashes, &runs)?;
                    page.leaves = Some(leaves);
                }
                Ok(())
            }
            (Some(Question::Chunk(want)), Message::Record { record }) => {
                self.chunk(want, record, actions)
            }
            (Some(Question::Chunk(want)), Message::Absent { .. }) => {
                self.under_way -= want.blocks;
                self.fault(want.fault("the server does not have it, or only damaged"))
            }
            (Some(Question::Key(maker)), Message::Record { record }) => {
                self.questions.push_front(Question::Key(maker));
                self.key(maker, &record)
            }
            (Some(Question::Key(maker)), Message::Done) => self.key_end(maker, actions),
            (Some(Question::Deltas), Message::Record { record }) => {
                self.questions.push_front(Question::Deltas);
                self.deltas.as_mut().map_or(Ok(()), |d| d.add(&record))
            }
            (Some(Question::Deltas), Message::Done) => {
                if let Some(deltas) = self.deltas.take() {
                    self.overlay = deltas.finish(&self.plan.point)?;
                }
                self.walker = Some(Walker::new(self.root));
                Ok(())
            }
            (_, other) => Err(unexpected(other, "an answer that does not fit the question")),
        }
    }

    fn chunk(&mut self, want: Want, bytes: Vec<u8>, actions: &mut Vec<Action>) -> Result<()> {
        let (header, _) = split(&bytes)?;
        if header.id != want.id || header.kind != Kind::Chunk {
            return Err(Error::Protocol { what: "another chunk than the one asked for" });
        }
        self.progress.chunks += 1;
        self.progress.received += bytes.len() as u64;
        self.opened(want, bytes, actions)
    }

    /// Opens a record, or asks for its key first.
    fn opened(&mut self, want: Want, bytes: Vec<u8>, actions: &mut Vec<Action>) -> Result<()> {
        let (header, _) = split(&bytes)?;
        let maker = (header.key, header.writer);
        match self.keys.get(&maker) {
            Some(key) => actions.push(open(want, bytes, key)),
            None => {
                let held = self.held.entry(maker).or_default();
                if held.is_empty() {
                    self.questions.push_back(Question::Key(maker));
                    let ids = vec![RecordId(header.key.0)];
                    actions.push(Action::Send(Message::GetSmall { kind: Kind::DataKey, ids }));
                }
                held.push((want, bytes));
            }
        }
        Ok(())
    }

    fn key(&mut self, maker: Maker, bytes: &[u8]) -> Result<()> {
        let (header, body) = record::check(bytes)?;
        if header.kind != Kind::DataKey {
            return Err(Error::Protocol { what: "a record that is no data key" });
        }
        // Anybody who writes to the vault can put a key's record under this id. One that
        // does not hold is passed over.
        let writer = vault::DataKey::decode(body)?.0.writer;
        if writer != maker.1 {
            return Ok(());
        }
        let Some(cert) = self.trust.writer(&writer) else { return Ok(()) };
        match DataKey::unwrap(self.trust.vault(), body, &cert.key, &self.identity) {
            Ok(key) if key.id == maker.0 => {
                self.keys.insert(maker, Arc::new(key));
            }
            Ok(_) => {}
            Err(e) => self.key_error = Some(e.into()),
        }
        Ok(())
    }

    fn key_end(&mut self, maker: Maker, actions: &mut Vec<Action>) -> Result<()> {
        let held = self.held.remove(&maker).unwrap_or_default();
        for (mut want, record) in held {
            if self.keys.contains_key(&maker) {
                self.opened(want, record, actions)?;
            } else {
                want.skip += 1;
                want.error = want.error.or_else(|| {
                    let why = "its data key is not there, or of an unknown writer".to_owned();
                    let block = want.placements.first().map_or(0, |p| p.start);
                    self.key_error.clone().or(Some(Error::Chunk { id: want.id, block, why }))
                });
                self.again(want, actions)?;
            }
        }
        Ok(())
    }
}

fn open(want: Want, record: Vec<u8>, key: &Arc<DataKey>) -> Action {
    let Want { placements, blocks, skip, .. } = want;
    Action::Open(OpenJob { record, key: Arc::clone(key), placements, blocks, skip })
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
            self.wants.push(Want {
                id: entry.chunk,
                placements: Vec::new(),
                blocks: 0,
                skip: 0,
                error: None,
            });
            self.wants.len() - 1
        });
        let want = &mut self.wants[at];
        want.blocks += 1;
        if let Some(last) = want.placements.last_mut() {
            let n = last.tags.len();
            if last.start + n as u64 == block
                && usize::from(last.first) + n == usize::from(entry.index)
            {
                last.tags.push(entry.tag);
                return;
            }
        }
        let tags = vec![entry.tag];
        want.placements.push(Placement { start: block, first: entry.index, tags });
    }
}
