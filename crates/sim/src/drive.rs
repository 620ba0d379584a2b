//! Runs the client's state machines: reads, seals, opens and writes for them.
//!
//! One thread, no waiting: a turn ends when nothing can be done before the next
//! answer. What a program does in threads happens here in an order that a seed
//! decides.

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_crypt::seal::{DataKey, Opener, SealFor, Sealer};
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::message::Message;
use dormouse_format::point::{Grade, Point, SignedPoint, StoredPoint};
use dormouse_format::{Block, TimeNs, VolumeId};
use dormouse_sync::checkpoint::{self, Checkpoint};
use dormouse_sync::copy::{self, Copy, Outcome};
use dormouse_sync::error::Result;
use dormouse_sync::fetch::{self, Fetch};
use dormouse_sync::history::Trust;
use dormouse_sync::leaf::{Budget, Claim, LeafSet};

use crate::machine::Machine;
use crate::random::Lcg;
use crate::source::Disk;

/// A client's end of a link.
pub trait Ends {
    /// Sends a message; if the link is cut it goes nowhere.
    fn send(&mut self, message: Message);
    /// The next message that has arrived; an error if the server refused, or if
    /// nothing can arrive any more.
    fn receive(&mut self) -> Option<Result<Message>>;
    /// Whether a message has arrived.
    fn waiting(&self) -> bool;
}

/// A copy that runs.
pub struct Copying {
    machine: Machine,
    volume: VolumeId,
    key: DataKey,
    sealer: Sealer,
    copy: Copy,
    /// The blocks that changed, if they are known.
    changed: Option<Vec<Block>>,
    actions: Vec<copy::Action>,
    todo: VecDeque<copy::Action>,
    /// Every record that was sealed goes here.
    pub sealed: Vec<Vec<u8>>,
    /// The point that was sent, once it was.
    pub signed: Option<SignedPoint>,
}

impl Copying {
    /// Begins a copy; sends its data key first.
    pub fn start(
        machine: &Machine,
        plan: copy::Plan,
        changed: Option<&[Block]>,
        now: TimeNs,
        random: &mut Lcg,
        ends: &mut dyn Ends,
    ) -> Result<Self> {
        let (key, record) = machine.data_key(random, now);
        ends.send(Message::Put { record });
        let volume = plan.volume;
        let mut copy = Copy::new(plan, machine.secrets.clone(), machine.signer.clone())?;
        let mut actions = Vec::new();
        copy.start(&mut actions)?;
        Ok(Self {
            machine: machine.clone(),
            volume,
            key,
            sealer: Sealer::new(1).unwrap(),
            copy,
            changed: changed.map(<[Block]>::to_vec),
            actions,
            todo: VecDeque::new(),
            sealed: Vec::new(),
            signed: None,
        })
    }

    /// Whether it has more to do without an answer.
    pub fn is_busy(&self) -> bool {
        !self.actions.is_empty() || !self.todo.is_empty()
    }

    /// Does at most `steps` things; the outcome, once there is one.
    pub fn turn(
        &mut self,
        disk: &Disk,
        now: TimeNs,
        random: &mut Lcg,
        ends: &mut dyn Ends,
        steps: usize,
    ) -> Result<Option<Outcome>> {
        for _ in 0..steps {
            self.todo.extend(self.actions.drain(..));
            // A worker may be late: answers come while a chunk is being sealed.
            let late = matches!(self.todo.front(), Some(copy::Action::Seal { .. }))
                && random.below(3) == 0
                && ends.waiting();
            let event = match if late { None } else { self.todo.pop_front() } {
                Some(copy::Action::Send(message)) => {
                    if let Message::Commit { point } = &message {
                        self.signed = Some(*point);
                    }
                    ends.send(message);
                    continue;
                }
                Some(copy::Action::Read { index, claim }) => {
                    let data = disk.leaf(index, self.changed.as_deref(), claim);
                    let hashes = data.hash(&self.machine.secrets, &self.volume, index);
                    copy::Event::Leaf { index, data, hashes }
                }
                Some(copy::Action::Seal { id, cut }) => {
                    let who = SealFor {
                        vault: &self.machine.vault,
                        writer: self.machine.writer(),
                        key: &self.key,
                        secrets: &self.machine.secrets,
                    };
                    let mut scratch = Vec::new();
                    let content = cut.content(&mut scratch);
                    let record = self.sealer.seal(who, id, &cut.digests, content).unwrap();
                    self.sealed.push(record.clone());
                    copy::Event::Sealed { id, record }
                }
                Some(copy::Action::Finish) => {
                    copy::Event::Finished { grade: Grade::Settled, time: now }
                }
                Some(copy::Action::Done(outcome)) => return Ok(Some(outcome)),
                None => match ends.receive() {
                    Some(message) => copy::Event::Message(message?),
                    None => return Ok(None),
                },
            };
            self.copy.step(event, &mut self.actions)?;
        }
        Ok(None)
    }
}

/// A checkpoint of the head that is being made.
pub struct Checkpointing {
    checkpoint: Checkpoint,
    actions: Vec<checkpoint::Action>,
    /// The point that was sent, once it was.
    pub signed: Option<SignedPoint>,
}

impl Checkpointing {
    /// Begins.
    pub fn start(machine: &Machine, plan: checkpoint::Plan) -> Result<Self> {
        let mut checkpoint = Checkpoint::new(plan, machine.signer.clone())?;
        let mut actions = Vec::new();
        checkpoint.start(&mut actions);
        Ok(Self { checkpoint, actions, signed: None })
    }

    /// Goes on until an answer is needed; the point, once it is committed.
    pub fn turn(&mut self, ends: &mut dyn Ends) -> Result<Option<Point>> {
        loop {
            for action in self.actions.drain(..) {
                match action {
                    checkpoint::Action::Send(message) => {
                        if let Message::Commit { point } = &message {
                            self.signed = Some(*point);
                        }
                        ends.send(message);
                    }
                    checkpoint::Action::Done { point, .. } => return Ok(Some(point.point)),
                }
            }
            let Some(message) = ends.receive() else { return Ok(None) };
            self.checkpoint.step(message?, &mut self.actions)?;
        }
    }
}

/// A restore that runs.
pub struct Restoring {
    volume: VolumeId,
    machine: Machine,
    trust: Arc<Trust>,
    fetch: Fetch,
    opener: Opener,
    actions: Vec<fetch::Action>,
    todo: VecDeque<fetch::Action>,
}

impl Restoring {
    /// Begins a restore of a point with its checkpoint onto `disk`.
    pub fn start(
        machine: &Machine,
        volume: VolumeId,
        trust: Trust,
        [point, checkpoint]: [StoredPoint; 2],
        mode: fetch::Mode,
        disk: &mut Disk,
    ) -> Result<Self> {
        disk.resize(point.point().size);
        let in_place = mode == fetch::Mode::InPlace;
        let local = if in_place { disk.leaves() } else { LeafSet::new(0) };
        let plan = fetch::Plan { point, checkpoint, mode, local, keep_going: false };
        let trust = Arc::new(trust);
        let mut fetch = Fetch::new(plan, trust.clone(), machine.identity.clone())?;
        let mut actions = Vec::new();
        fetch.start(&mut actions)?;
        let (opener, todo) = (Opener::new().unwrap(), VecDeque::new());
        let machine = machine.clone();
        Ok(Self { volume, machine, trust, fetch, opener, actions, todo })
    }

    /// Goes on until an answer is needed; what it came to, once it is done. `disk` has
    /// what was written, also after an error.
    pub fn turn(
        &mut self,
        disk: &mut Disk,
        ends: &mut dyn Ends,
    ) -> Result<Option<fetch::Progress>> {
        loop {
            self.todo.extend(self.actions.drain(..));
            let event = match self.todo.pop_front() {
                Some(fetch::Action::Send(message)) => {
                    ends.send(message);
                    continue;
                }
                Some(fetch::Action::Open(job)) => {
                    let mut write = |at: u64, bytes: &[u8]| {
                        for (i, b) in bytes.chunks(BLOCK_SIZE).enumerate() {
                            disk.write(at / BLOCK_SIZE as u64 + i as u64, b);
                        }
                        Ok::<(), ()>(())
                    };
                    let who = (&*self.trust, &*self.machine.secrets, &self.volume);
                    match job.run(who, &mut self.opener, &mut write) {
                        Ok(done) => {
                            done.unwrap();
                            fetch::Event::Opened { blocks: job.blocks }
                        }
                        Err(error) => fetch::Event::Broken { job, error },
                    }
                }
                Some(fetch::Action::Zero { start, count }) => {
                    disk.zero(start, count);
                    continue;
                }
                Some(fetch::Action::ReadLocal { index }) => {
                    let claim = Budget::default().claim(Claim::WHOLE);
                    let data = disk.leaf(index, None, claim);
                    let hashes = data.hash(&self.machine.secrets, &self.volume, index);
                    fetch::Event::Local { index, tags: Box::new(hashes.tags) }
                }
                Some(fetch::Action::Done) => return Ok(Some(*self.fetch.progress())),
                None => match ends.receive() {
                    Some(message) => fetch::Event::Message(message?),
                    None => return Ok(None),
                },
            };
            self.fetch.step(event, &mut self.actions)?;
        }
    }
}
