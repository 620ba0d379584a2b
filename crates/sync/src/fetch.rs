//! The client's end of a restore: walk a point's map, fetch chunks, open them,
//! and give out blocks that are proved to be the point's.
//!
//! Invariant: a block is given out only if its chunk opened, the chunk's id is
//! the hash of its digests, and the block's tag stands in the map under the
//! point's signed root. Memory is bounded by the pages and chunks under way.

mod chunks;
mod pages;

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_crypt::Identity;
use dormouse_format::geometry;
use dormouse_format::limits::FANOUT;
use dormouse_format::limits::LEAF_BLOCKS;
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_format::{Block, Tag};

use crate::chunks::{Asked, Chunks, Want};
pub use crate::chunks::{OpenJob, Placement, Write};
use crate::error::{Error, Result, unexpected};
use crate::history::{Trust, builds_on};
use crate::leaf::LeafSet;
use crate::map::{Root, Walker, open_leaves};
use crate::overlay::{Deltas, Overlay};
use pages::PageJob;

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

enum Question {
    Deltas,
    Node,
    Leaves(u64),
    Of(Asked),
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
    walker: Option<Walker>,
    deltas: Option<Deltas>,
    overlay: Overlay,
    pages: VecDeque<PageJob>,
    next_page: u64,
    walked: bool,
    want: VecDeque<Want>,
    under_way: u64,
    /// Chunks asked for and not yet written.
    open: usize,
    chunks: Chunks,
    questions: VecDeque<Question>,
    answered: u64,
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
        builds_on(&plan.point, &plan.checkpoint)?;
        let root = Root::of(&plan.checkpoint)?;
        Ok(Self {
            walker: None,
            root,
            deltas: None,
            overlay: Overlay::new(geometry::blocks(root.size)),
            pages: VecDeque::new(),
            next_page: 0,
            walked: false,
            want: VecDeque::new(),
            under_way: 0,
            open: 0,
            chunks: Chunks::new(trust, identity, plan.point.point().writer),
            questions: VecDeque::new(),
            answered: 0,
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

    /// How many questions were answered, and how many are open.
    pub fn asked(&self) -> (u64, usize) {
        (self.answered, self.questions.len())
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
                self.settled(blocks);
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

    /// A chunk is no longer under way, nor are the blocks that it was for.
    const fn settled(&mut self, blocks: u64) {
        self.under_way -= blocks;
        self.open -= 1;
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
        let idle = self.want.is_empty() && self.under_way == 0 && self.chunks.is_idle();
        if self.walked && self.pages.is_empty() && idle {
            self.done = true;
            self.progress.at = self.plan.point.point().size;
            actions.push(Action::Done);
        }
        Ok(())
    }

    fn message(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<()> {
        let question = self.questions.pop_front();
        let series = matches!(question, Some(Question::Of(Asked::Key(_)) | Question::Deltas));
        self.answered += u64::from(!series || message == Message::Done);
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
            (Some(Question::Of(Asked::Chunk(want))), Message::Record { record }) => {
                self.chunk(want, record, actions)
            }
            (Some(Question::Of(Asked::Chunk(want))), Message::Absent { .. }) => {
                self.go_on([Chunks::absent(want)], actions)
            }
            (Some(Question::Of(Asked::Key(maker))), Message::Record { record }) => {
                self.questions.push_front(Question::Of(Asked::Key(maker)));
                self.chunks.key(maker, &record)
            }
            (Some(Question::Of(Asked::Key(maker))), Message::Done) => {
                let mut next = Vec::new();
                self.chunks.key_end(maker, &mut next)?;
                self.go_on(next, actions)
            }
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
}
