//! A simulated client: its disks, what it remembers, and what it does now.
//!
//! It does what the program does: connect, say who it is, open a volume, copy or
//! restore, remember the head that was acknowledged. A job that fails is begun anew
//! later. Leaves to others: when messages arrive, and whether what comes is right; reading the
//! past ([`past`]).

mod past;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use dormouse_format::message::{Message, Refusal};
use dormouse_format::point::{Grade, SignedPoint, StoredPoint};
use dormouse_format::{Block, Hash, Seq, TimeNs, VolumeId, geometry};
use dormouse_sync::error::{Error, Result};
use dormouse_sync::history::{Points, Trust, check_anchor, hash_of};
use dormouse_sync::server::Role;
use dormouse_sync::{checkpoint, copy};

use super::model::{Model, Violation};
use super::net::LinkId;
use super::orders::{Order, forbidden};
use crate::drive::{Checkpointing, Copying, Ends, Restoring};
use crate::machine::Machine;
use crate::random::Lcg;
use crate::source::Disk;
use crate::world::opened;
use past::Gaps;

/// A volume as a client knows it.
#[derive(Debug)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its signed body.
    pub body: Vec<u8>,
    /// Whether the server has said that it is there.
    pub created: bool,
    /// The disk.
    pub disk: Disk,
    /// Blocks that were written since `base`.
    pub dirty: BTreeSet<Block>,
    /// The point that `dirty` is relative to; none if all must be compared.
    pub base: Option<Hash>,
    /// The last point that was acknowledged to this client, or that it has seen.
    pub anchor: Option<SignedPoint>,
    /// A commit that was sent and not answered, and the dirty blocks in it.
    doubt: Option<(SignedPoint, BTreeSet<Block>)>,
}

impl Volume {
    /// A volume that the server does not know yet.
    pub fn new(id: VolumeId, body: Vec<u8>, disk: Disk) -> Self {
        let (dirty, base, anchor, doubt) = (BTreeSet::new(), None, None, None);
        Self { id, body, created: false, disk, dirty, base, anchor, doubt }
    }

    /// Whether the last point that was acknowledged is not the disk as it is.
    pub fn is_behind(&self) -> bool {
        self.base.is_none() || !self.dirty.is_empty() || self.doubt.is_some()
    }
}

/// What a client sets out to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Brings a volume's copy up to date; with `all` the server reads every chunk.
    Copy {
        /// Which.
        volume: usize,
        /// Compare everything, and have it read.
        all: bool,
    },
    /// Makes a checkpoint of the head.
    Checkpoint {
        /// Which.
        volume: usize,
    },
    /// Restores a point, `back` before the newest.
    Restore {
        /// Which.
        volume: usize,
        /// How far back.
        back: u64,
        /// Over a disk that holds something else.
        in_place: bool,
    },
    /// Says something about what is kept.
    Keep {
        /// Of which.
        volume: usize,
        /// What.
        order: Order,
    },
    /// Tries what its role does not allow.
    Forbidden {
        /// On which.
        volume: usize,
        /// Which of such things.
        nth: u64,
    },
}

impl Job {
    /// The volume.
    pub const fn volume(&self) -> usize {
        match self {
            Self::Copy { volume, .. }
            | Self::Checkpoint { volume }
            | Self::Restore { volume, .. }
            | Self::Keep { volume, .. }
            | Self::Forbidden { volume, .. } => *volume,
        }
    }
}

enum Step {
    Hello,
    Order,
    Create,
    Open,
    Copy { copying: Box<Copying>, state: Arc<Disk>, taken: BTreeSet<Block> },
    Checkpoint { making: Box<Checkpointing>, state: Arc<Disk> },
    List,
    Certs { points: Vec<StoredPoint>, trust: Trust },
    Gaps { points: Vec<StoredPoint>, trust: Trust, told: Gaps },
    Restore { restoring: Box<Restoring>, point: StoredPoint, disk: Disk },
}

/// What a turn came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// It waits for an answer, or has more to do.
    Goes,
    /// The job is done.
    Done,
    /// The job failed; it is begun anew on another link.
    Failed(Error),
}

/// A client.
pub struct Client {
    /// Its keys.
    pub machine: Machine,
    /// What it was invited as.
    pub role: Role,
    /// Its volumes; of one that is no writer those of others.
    pub volumes: Vec<Volume>,
    /// The point that it restores.
    pub reading: Option<(VolumeId, Seq)>,
    /// Its link.
    pub link: Option<LinkId>,
    /// Counts what happens, so that an old alarm is known as such.
    pub epoch: u64,
    /// What it does.
    pub job: Option<Job>,
    /// How far its clock is off, in nanoseconds.
    pub skew: i64,
    /// Whether the link is cut, as far as it knows.
    pub closed: bool,
    greeted: bool,
    step: Option<Step>,
    inbox: VecDeque<Message>,
    random: Lcg,
}

struct Mail<'a> {
    inbox: &'a mut VecDeque<Message>,
    outbox: &'a mut Vec<Message>,
    closed: bool,
}

impl Ends for Mail<'_> {
    fn send(&mut self, message: Message) {
        self.outbox.push(message);
    }

    fn receive(&mut self) -> Option<Result<Message>> {
        match self.inbox.pop_front() {
            Some(Message::Error { refusal, text }) => Some(Err(Error::Refused { refusal, text })),
            Some(message) => Some(Ok(message)),
            None if self.closed => Some(Err(Error::Protocol { what: "cut" })),
            None => None,
        }
    }

    fn waiting(&self) -> bool {
        !self.inbox.is_empty()
    }
}

/// What a client is told beside its messages.
pub struct Around<'a> {
    /// Its clock.
    pub now: TimeNs,
    /// Who judges.
    pub model: &'a mut Model,
    /// What it sends.
    pub outbox: &'a mut Vec<Message>,
    /// Whether a takeover is in order.
    pub takeover: bool,
}

/// A turn, or a broken rule.
type Turned = core::result::Result<Turn, Violation>;

impl Client {
    /// A client that has joined.
    pub fn new(machine: Machine, role: Role, volumes: Vec<Volume>, random: Lcg) -> Self {
        Self {
            machine,
            role,
            volumes,
            reading: None,
            link: None,
            epoch: 0,
            job: None,
            skew: 0,
            closed: false,
            greeted: false,
            step: None,
            inbox: VecDeque::new(),
            random,
        }
    }

    /// Whether it has more to do without an answer.
    pub fn is_busy(&self) -> bool {
        match &self.step {
            Some(Step::Copy { copying, .. }) => copying.is_busy(),
            _ => false,
        }
    }

    /// Forgets the link and what was under way on it.
    pub fn let_go(&mut self) -> Option<LinkId> {
        self.epoch += 1;
        if let Some(Step::Copy { copying, taken, .. }) = self.step.take()
            && let Some(job) = self.job
        {
            let volume = &mut self.volumes[job.volume()];
            match copying.signed {
                Some(point) => volume.doubt = Some((point, taken)),
                None => volume.dirty.extend(taken),
            }
        }
        self.inbox.clear();
        self.greeted = false;
        self.closed = false;
        self.link.take()
    }

    /// The process is killed: what it had only in memory is gone.
    pub fn die(&mut self) -> Option<LinkId> {
        let link = self.let_go();
        self.job = None;
        for volume in &mut self.volumes {
            volume.base = None;
            volume.dirty.clear();
            volume.doubt = None;
        }
        link
    }

    /// Sets out. The link is the client's own, new or left over from the job before.
    pub fn begin(&mut self, job: Job, around: &mut Around<'_>) {
        self.job = Some(job);
        self.epoch += 1;
        self.reading = None;
        if self.greeted {
            self.after_hello(around);
        } else {
            around.outbox.push(Message::Hello { instance: self.machine.instance() });
            self.step = Some(Step::Hello);
        }
    }

    /// Takes a message that has arrived.
    pub fn hear(&mut self, message: Message) {
        self.epoch += 1;
        self.inbox.push_back(message);
    }

    /// Goes on with what is there.
    pub fn turn(&mut self, around: &mut Around<'_>) -> Turned {
        let Some(job) = self.job else { return Ok(Turn::Done) };
        match self.go_on(job, around) {
            Err(Stop::Failed(error)) => Ok(Turn::Failed(error)),
            Err(Stop::Broken(violation)) => Err(violation),
            Ok(true) => {
                self.job = None;
                Ok(Turn::Done)
            }
            Ok(false) => Ok(Turn::Goes),
        }
    }

    fn receive(&mut self) -> core::result::Result<Option<Message>, Stop> {
        let mut nothing = Vec::new();
        let (inbox, closed) = (&mut self.inbox, self.closed);
        let mut mail = Mail { inbox, outbox: &mut nothing, closed };
        Ok(mail.receive().transpose()?)
    }

    fn after_hello(&mut self, around: &mut Around<'_>) {
        let Some(job) = self.job else { return };
        let volume = &self.volumes[job.volume()];
        let id = volume.id;
        self.step = Some(match job {
            Job::Keep { order, .. } => {
                around.outbox.push(Message::Keep(order.ask(id)));
                Step::Order
            }
            Job::Forbidden { nth, .. } => {
                around.outbox.push(forbidden(self.role, id, nth));
                Step::Order
            }
            _ if !volume.created => {
                around.outbox.push(Message::CreateVolume { body: volume.body.clone() });
                Step::Create
            }
            Job::Restore { .. } => {
                around.outbox.push(Points::question(id, 1));
                Step::List
            }
            _ => {
                let takeover = around.takeover;
                around.outbox.push(Message::OpenWrite { volume: id, takeover });
                Step::Open
            }
        });
    }

    fn go_on(&mut self, job: Job, around: &mut Around<'_>) -> core::result::Result<bool, Stop> {
        match self.step.take() {
            Some(Step::Hello) => {
                let Some(message) = self.receive()? else { return self.wait(Step::Hello) };
                if !matches!(message, Message::Welcome { .. }) {
                    return Err(odd());
                }
                self.greeted = true;
                self.after_hello(around);
                Ok(false)
            }
            Some(Step::Create) => {
                let Some(message) = self.receive()? else { return self.wait(Step::Create) };
                if message != Message::Done {
                    return Err(odd());
                }
                self.volumes[job.volume()].created = true;
                self.after_hello(around);
                Ok(false)
            }
            Some(Step::Order) => {
                let Some(message) = self.receive()? else { return self.wait(Step::Order) };
                ordered(job, &message)
            }
            Some(Step::Open) => {
                let Some(message) = self.receive()? else { return self.wait(Step::Open) };
                self.open(job, message, around)
            }
            Some(Step::Copy { copying, state, taken }) => {
                self.copy(job, copying, state, taken, around)
            }
            Some(Step::Checkpoint { making, state }) => self.checkpoint(job, making, state, around),
            Some(Step::List) => {
                let Some(message) = self.receive()? else { return self.wait(Step::List) };
                self.list(job, message, around)
            }
            Some(Step::Certs { points, mut trust }) => {
                let Some(message) = self.receive()? else {
                    return self.wait(Step::Certs { points, trust });
                };
                if let Message::Record { record } = message {
                    trust.add_cert(&record)?;
                    self.step = Some(Step::Certs { points, trust });
                    return self.go_on(job, around);
                }
                self.past(job, points, trust, around)
            }
            Some(Step::Gaps { points, trust, told }) => self.gaps(job, points, trust, told, around),
            Some(Step::Restore { mut restoring, point, mut disk }) => {
                let (inbox, outbox) = (&mut self.inbox, &mut *around.outbox);
                let mut mail = Mail { inbox, outbox, closed: self.closed };
                match restoring.turn(&mut disk, &mut mail)? {
                    None => self.wait(Step::Restore { restoring, point, disk }),
                    Some(_) => {
                        around.model.restored(&point, &disk)?;
                        Ok(true)
                    }
                }
            }
            None => Ok(true),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "it ends a step, which may fail")]
    fn wait(&mut self, step: Step) -> core::result::Result<bool, Stop> {
        self.step = Some(step);
        Ok(false)
    }

    /// The volume was opened: what was in doubt is settled by the head that is shown.
    fn open(
        &mut self,
        job: Job,
        message: Message,
        around: &mut Around<'_>,
    ) -> core::result::Result<bool, Stop> {
        let opened = opened(message)?;
        let (generation, head, checkpoint) = opened;
        let volume = &mut self.volumes[job.volume()];
        let shown = head.filter(|h| volume.anchor.is_some_and(|a| h.point().seq == a.point.seq));
        let newer = |h: &StoredPoint| volume.anchor.is_none_or(|a| h.point().seq > a.point.seq);
        if !head.as_ref().is_some_and(newer) {
            check_anchor(volume.anchor.as_ref(), head.as_ref(), shown.as_ref())?;
        }
        if let Some((point, taken)) = volume.doubt.take() {
            if head.is_some_and(|h| h.signed == point) {
                around.model.acknowledged(&point)?;
                volume.anchor = Some(point);
                if volume.base.is_some() || point.point.is_checkpoint() {
                    volume.base = Some(hash_of(&point));
                }
            } else {
                volume.dirty.extend(taken);
            }
        }
        let head_hash = head.map(|h| hash_of(&h.signed));
        if volume.base.is_none() || volume.base != head_hash {
            volume.base = None;
        }
        if let Job::Checkpoint { .. } = job {
            let (Some(head), Some(checkpoint)) = (head, checkpoint) else { return Ok(true) };
            let Some(state) = around.model.state(&head.signed).cloned() else {
                return Err(Stop::Broken(Violation("the head was signed by nobody".into())));
            };
            let grade = Grade::Settled;
            let plan = checkpoint::Plan {
                generation,
                head,
                checkpoint,
                grade,
                time: around.now,
                fork: None,
            };
            let making = Box::new(Checkpointing::start(&self.machine, plan)?);
            return self.checkpoint(job, making, state, around);
        }
        let all = matches!(job, Job::Copy { all: true, .. });
        let delta = volume.base.is_some() && !all && self.random.below(4) != 0;
        let mode = match (delta, all) {
            (true, _) => copy::Mode::Changes,
            (_, true) => copy::Mode::Check,
            _ => copy::Mode::Scan,
        };
        let taken = std::mem::take(&mut volume.dirty);
        let end = geometry::blocks(volume.disk.size);
        let changed: Vec<Block> = taken.iter().copied().filter(|b| *b < end).collect();
        let changed = delta.then_some(&changed[..]);
        let state = Arc::new(volume.disk.clone());
        let plan = state.plan(&self.machine, volume.id, opened, mode, changed);
        let (inbox, outbox) = (&mut self.inbox, &mut *around.outbox);
        let mut mail = Mail { inbox, outbox, closed: self.closed };
        let random = &mut self.random;
        let copying = Copying::start(&self.machine, plan, changed, around.now, random, &mut mail)?;
        self.copy(job, Box::new(copying), state, taken, around)
    }

    fn copy(
        &mut self,
        job: Job,
        mut copying: Box<Copying>,
        state: Arc<Disk>,
        taken: BTreeSet<Block>,
        around: &mut Around<'_>,
    ) -> core::result::Result<bool, Stop> {
        let steps = 1 + self.random.below(30) as usize;
        let (inbox, outbox) = (&mut self.inbox, &mut *around.outbox);
        let mut mail = Mail { inbox, outbox, closed: self.closed };
        let signed = copying.signed;
        let turned = copying.turn(&state, around.now, &mut self.random, &mut mail, steps);
        if let (None, Some(point)) = (signed, copying.signed) {
            around.model.signs(&point, Arc::clone(&state));
        }
        for record in copying.sealed.drain(..) {
            around.model.sealed(&record)?;
        }
        let failed = turned.as_ref().err().cloned();
        let done = turned.ok().flatten();
        let Some(outcome) = done else {
            // Kept even if it failed: `let_go` settles what was taken.
            self.step = Some(Step::Copy { copying, state, taken });
            return failed.map_or(Ok(false), |e| Err(e.into()));
        };
        let volume = &mut self.volumes[job.volume()];
        around.model.acknowledged(&outcome.point)?;
        Model::told(volume.anchor.as_ref(), &outcome.point)?;
        volume.anchor = Some(outcome.point);
        volume.base = Some(hash_of(&outcome.point));
        Ok(true)
    }

    fn checkpoint(
        &mut self,
        job: Job,
        mut making: Box<Checkpointing>,
        state: Arc<Disk>,
        around: &mut Around<'_>,
    ) -> core::result::Result<bool, Stop> {
        let (inbox, outbox) = (&mut self.inbox, &mut *around.outbox);
        let mut mail = Mail { inbox, outbox, closed: self.closed };
        let turned = making.turn(&mut mail);
        if let Some(point) = making.signed {
            around.model.signs(&point, Arc::clone(&state));
        }
        let Some(point) = turned? else {
            return self.wait(Step::Checkpoint { making, state });
        };
        let volume = &mut self.volumes[job.volume()];
        let Some(signed) = making.signed.filter(|s| s.point == point) else {
            return Err(Stop::Broken(Violation("another point than the signed one".into())));
        };
        around.model.acknowledged(&signed)?;
        Model::told(volume.anchor.as_ref(), &signed)?;
        volume.anchor = Some(signed);
        if volume.base == Some(point.prev) {
            volume.base = Some(hash_of(&signed));
        }
        Ok(true)
    }
}

/// Why a job does not go on.
enum Stop {
    Failed(Error),
    Broken(Violation),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Broken(violation)
    }
}

/// What an order, or what was not allowed, is answered with.
fn ordered(job: Job, message: &Message) -> core::result::Result<bool, Stop> {
    match (job, message) {
        (Job::Keep { .. }, Message::Done | Message::Kept(_)) => Ok(true),
        (Job::Forbidden { nth, .. }, _) => {
            let why = format!("what a role forbids, number {nth}, was answered by {message:?}");
            Err(Stop::Broken(Violation(why)))
        }
        _ => Err(odd()),
    }
}

fn odd() -> Stop {
    Stop::Failed(Error::Refused { refusal: Refusal::Protocol, text: "an odd answer".into() })
}
