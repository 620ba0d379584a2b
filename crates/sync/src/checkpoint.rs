//! A checkpoint of the head, without reading the source: the new root is computed
//! from the touched leaves, which the server supplies and which are verified under
//! the old root. The client needs no copy of the map.
//!
//! Invariant: untouched subtrees enter the new tree with the hash that the old
//! root vouches for; touched leaves only after their hash was checked.

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_crypt::{SigningKey, hash};
use dormouse_format::geometry::{self, Place, span};
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::{Base, Message};
use dormouse_format::point::{Grade, Point, SignedPoint, StoredPoint};
use dormouse_format::seeded::seeded;
use dormouse_format::{Hash, Tag, TimeNs, VolumeId};

use crate::bridge;
use crate::error::{Error, Result, unexpected};
use crate::history::{builds_on, hash_of};
use crate::map::{Entry, Front, LeafEntries, Root, TreeHasher, Walker, open_leaves};
use crate::overlay::{Deltas, Overlay};

const JOBS: usize = 64;
const LEAF: usize = LEAF_BLOCKS as usize;

/// What a checkpoint is made of.
#[derive(Debug)]
pub struct Plan {
    /// The generation that the server gave.
    pub generation: u64,
    /// The newest point, verified.
    pub head: StoredPoint,
    /// The checkpoint that it builds on, verified.
    pub checkpoint: StoredPoint,
    /// Grade of the new point: that of the head, whose state it repeats.
    pub grade: Grade,
    /// The writer's clock.
    pub time: TimeNs,
    /// The new point is the first of this volume, a fork of the head's.
    pub fork: Option<VolumeId>,
}

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Sends a message.
    Send(Message),
    /// The checkpoint is durable.
    Done {
        /// The point.
        point: SignedPoint,
        /// When the server received it.
        receipt: TimeNs,
    },
}

enum Job {
    Whole(Place, Hash),
    Page {
        index: u64,
        hashes: Box<[Hash; FANOUT as usize]>,
        asked: u64,
        leaves: Option<Vec<LeafEntries>>,
    },
}

enum Question {
    Deltas,
    Node,
    Leaves(u64),
    Commit,
}

/// A checkpoint under way.
pub struct Checkpoint {
    plan: Plan,
    root: Root,
    signer: Arc<SigningKey>,
    deltas: Option<Deltas>,
    overlay: Arc<Overlay>,
    walker: Option<Walker>,
    jobs: VecDeque<Job>,
    next_page: u64,
    walked: bool,
    tree: TreeHasher,
    questions: VecDeque<Question>,
    point: Option<SignedPoint>,
}

impl core::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Checkpoint(page {})", self.next_page)
    }
}

impl Checkpoint {
    /// A checkpoint by this plan.
    pub fn new(plan: Plan, signer: Arc<SigningKey>) -> Result<Self> {
        builds_on(&plan.head, &plan.checkpoint)?;
        let root = Root::of(&plan.checkpoint)?;
        let deltas = Some(Deltas::after(&plan.checkpoint));
        let overlay = Arc::new(Overlay::new(geometry::blocks(root.size)));
        Ok(Self {
            plan,
            root,
            signer,
            deltas,
            overlay,
            walker: None,
            jobs: VecDeque::new(),
            next_page: 0,
            walked: false,
            tree: TreeHasher::new(),
            questions: VecDeque::new(),
            point: None,
        })
    }

    /// Begins: asks for the deltas since the last checkpoint.
    pub fn start(&mut self, actions: &mut Vec<Action>) {
        self.questions.push_back(Question::Deltas);
        let p = self.plan.head.point();
        actions.push(Action::Send(Message::GetDeltas { volume: p.volume, seq: p.seq }));
    }

    /// Takes the server's answer.
    pub fn step(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<()> {
        let question = self.questions.pop_front();
        match (question, message) {
            (Some(Question::Deltas), Message::Record { record }) => {
                self.questions.push_front(Question::Deltas);
                self.deltas.as_mut().map_or(Ok(()), |d| d.add(&record))?;
            }
            (Some(Question::Deltas), Message::Done) => self.walk()?,
            (Some(Question::Node), Message::Node { mask, hashes }) => {
                let walker = self.walker.as_mut();
                walker
                    .ok_or(Error::Protocol { what: "a node without a walk" })?
                    .answer(mask, &hashes)?;
            }
            (Some(Question::Leaves(page)), Message::Leaves { runs }) => self.leaves(page, &runs)?,
            (Some(Question::Commit), Message::Committed { receipt }) => {
                if let Some(point) = self.point {
                    actions.push(Action::Done { point, receipt });
                }
            }
            (_, other) => {
                return Err(unexpected(other, "an answer that does not fit the question"));
            }
        }
        self.advance(actions)
    }

    fn walk(&mut self) -> Result<()> {
        let Some(deltas) = self.deltas.take() else { return Ok(()) };
        self.overlay = Arc::new(deltas.finish(&self.plan.head)?);
        let overlay = Arc::clone(&self.overlay);
        let touched = move |place: Place| {
            overlay.touches(place.first_block(), place.first_block() + span(place.level))
        };
        self.walker = Some(Walker::only(self.root, Box::new(touched)));
        Ok(())
    }

    fn leaves(&mut self, page: u64, runs: &[u8]) -> Result<()> {
        for job in &mut self.jobs {
            if let Job::Page { index, hashes, asked, leaves } = job
                && *index == page
            {
                *leaves = Some(open_leaves(self.root.seq, page, *asked, hashes, runs)?);
            }
        }
        Ok(())
    }

    fn advance(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        if self.walker.is_none() || self.point.is_some() {
            return Ok(());
        }
        loop {
            self.take_up(actions)?;
            if !self.hash_front() {
                break;
            }
        }
        if self.walked && self.jobs.is_empty() {
            self.commit(actions);
        }
        Ok(())
    }

    /// Takes up subtrees and pages in address order.
    fn take_up(&mut self, actions: &mut Vec<Action>) -> Result<()> {
        let end = geometry::blocks(self.plan.head.point().size);
        while self.jobs.len() < JOBS {
            let Some(walker) = &mut self.walker else { return Ok(()) };
            let questions = &mut self.questions;
            walker.ask(&mut |message| {
                questions.push_back(Question::Node);
                actions.push(Action::Send(message));
            });
            let other = self.overlay.next_data(self.next_page * PAGE_BLOCKS, end);
            let other = other.map(|block| block / PAGE_BLOCKS);
            let (index, hashes) = match (walker.front(), other) {
                (Front::End, None) => {
                    self.walked = true;
                    return Ok(());
                }
                (Front::End, Some(o)) => (o, None),
                (Front::Wait(first) | Front::Page(first), Some(o))
                    if first >= (o + 1) * PAGE_BLOCKS =>
                {
                    (o, None)
                }
                (Front::Whole(place, _), Some(o)) if place.first_block() > o * PAGE_BLOCKS => {
                    (o, None)
                }
                (Front::Wait(_), _) => return Ok(()),
                (Front::Whole(place, hash), _) => {
                    walker.take();
                    self.jobs.push_back(Job::Whole(place, hash));
                    continue;
                }
                (Front::Page(first), _) => (first / PAGE_BLOCKS, walker.take()),
            };
            self.next_page = index + 1;
            self.page(index, hashes, actions);
        }
        Ok(())
    }

    fn page(
        &mut self,
        index: u64,
        hashes: Option<Box<[Hash; FANOUT as usize]>>,
        actions: &mut Vec<Action>,
    ) {
        let hashes = hashes.unwrap_or_else(|| Box::new([Hash::ZERO; FANOUT as usize]));
        let mut asked = 0u64;
        for (slot, hash) in hashes.iter().enumerate() {
            let first = (index * FANOUT + slot as u64) * LEAF_BLOCKS;
            let touched = self.overlay.touches(first, first + LEAF_BLOCKS);
            if !hash.is_zero() && touched && self.overlay.base_reaches(first) {
                asked |= 1 << slot;
            }
        }
        let mut leaves = None;
        if asked == 0 {
            leaves = Some(Vec::new());
        } else {
            self.questions.push_back(Question::Leaves(index));
            let (volume, seq) = (self.root.volume, self.root.seq);
            let ask = Message::GetLeaves { volume, seq, page: index, mask: asked, hints: false };
            actions.push(Action::Send(ask));
        }
        self.jobs.push_back(Job::Page { index, hashes, asked, leaves });
    }

    /// Hashes what comes first, if it is known.
    fn hash_front(&mut self) -> bool {
        match self.jobs.front() {
            None | Some(Job::Page { leaves: None, .. }) => return false,
            Some(_) => {}
        }
        match self.jobs.pop_front() {
            Some(Job::Whole(place, hash)) => self.tree.push(place, hash),
            Some(Job::Page { index, hashes, leaves, .. }) => {
                let mut leaves = leaves.unwrap_or_default().into_iter().peekable();
                for slot in 0..FANOUT {
                    let leaf = index * FANOUT + slot;
                    let first = leaf * LEAF_BLOCKS;
                    let mut hash = hashes[slot as usize];
                    if self.overlay.touches(first, first + LEAF_BLOCKS) {
                        let mut entries = leaves
                            .next_if(|(i, _)| *i == leaf)
                            .map_or_else(|| Box::new([Entry::ZERO; LEAF]), |(_, e)| e);
                        self.overlay.apply(first, &mut entries[..]);
                        let mut tags = [Tag::ZERO; LEAF];
                        tags.iter_mut().zip(entries.iter()).for_each(|(t, e)| *t = e.tag);
                        let new = hash::leaf(leaf, &tags);
                        let kept = new.is_zero() && seeded("touched-leaf-kept");
                        hash = if kept { hash } else { new };
                    }
                    self.tree.push(Place { level: 0, index: leaf }, hash);
                }
            }
            None => {}
        }
        true
    }

    fn commit(&mut self, actions: &mut Vec<Action>) {
        let head = self.plan.head.point();
        let level = geometry::top_level(head.size);
        let top = core::mem::take(&mut self.tree).finish(level);
        let (volume, seq, prev) = match self.plan.fork {
            Some(fork) => (fork, 1, Hash::ZERO),
            None => (head.volume, head.seq + 1, hash_of(&self.plan.head.signed)),
        };
        let point = self.signer.sign_point(Point {
            volume,
            writer: self.signer.writer_id(),
            seq,
            generation: self.plan.generation,
            time: self.plan.time,
            grade: self.plan.grade,
            checkpoint: seq,
            prev,
            root: hash::content_root(&volume, head.size, level, &top),
            deltas: Hash::ZERO,
            ..*head
        });
        self.point = Some(point);
        self.questions.push_back(Question::Commit);
        actions.push(Action::Send(Message::Begin { base: Base::Head, size: head.size }));
        let bridge = bridge::put(&self.signer, Some(&self.plan.checkpoint), &point);
        actions.extend(bridge.map(Action::Send));
        actions.push(Action::Send(Message::Commit { point }));
    }
}
