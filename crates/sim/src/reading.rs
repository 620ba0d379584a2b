//! Runs a reader of single blocks: opens chunks for it in an order that a seed decides, and
//! keeps what it gave out, by request.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use dormouse_crypt::seal::Opener;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::point::StoredPoint;
use dormouse_format::{Block, Tag, VolumeId};
use dormouse_sync::error::Result;
use dormouse_sync::history::Trust;
use dormouse_sync::read::{Action, Event, Limits, OpenJob, Priority, Reader, RequestId};

use crate::drive::Ends;
use crate::machine::Machine;
use crate::random::Lcg;

/// A block's content; none if it is zero.
pub type Content = Option<Arc<[u8]>>;

/// What came of a request.
#[derive(Debug, Clone, Default)]
pub struct Got {
    range: Range<Block>,
    /// What was given out.
    pub blocks: BTreeMap<Block, Content>,
    /// Whether all of it was.
    pub done: Option<Result<()>>,
}

/// A reader that runs.
pub struct Reading {
    /// The reader.
    pub reader: Reader,
    volume: VolumeId,
    machine: Machine,
    trust: Arc<Trust>,
    opener: Opener,
    random: Lcg,
    actions: Vec<Action>,
    jobs: Vec<OpenJob>,
    /// Blocks that this machine keeps, with their tags.
    pub local: HashMap<Block, (Tag, Arc<[u8]>)>,
    /// Whether it keeps what it reads.
    pub keeps: bool,
    /// What came of requests.
    pub got: HashMap<RequestId, Got>,
    /// What came of questions about allocation and changes.
    pub parts: HashMap<RequestId, Result<Vec<(u64, bool)>>>,
    /// Points that can be used, and those that cannot.
    pub ready: BTreeMap<usize, Result<()>>,
    /// How many chunks were opened.
    pub opened: usize,
    next: RequestId,
}

impl Reading {
    /// A reader of a point with its checkpoint. Nothing is asked yet.
    pub fn new(
        machine: &Machine,
        trust: Trust,
        [point, checkpoint]: [StoredPoint; 2],
        limits: Limits,
        seed: u64,
    ) -> Result<Self> {
        let trust = Arc::new(trust);
        let identity = machine.identity.clone();
        let mut reader = Reader::new(point, checkpoint, trust.clone(), identity, limits)?;
        let mut actions = Vec::new();
        reader.start(&mut actions);
        Ok(Self {
            reader,
            volume: point.point().volume,
            machine: machine.clone(),
            trust,
            opener: Opener::new().unwrap(),
            random: Lcg(seed),
            actions,
            jobs: Vec::new(),
            local: HashMap::new(),
            keeps: false,
            got: HashMap::new(),
            parts: HashMap::new(),
            ready: BTreeMap::new(),
            opened: 0,
            next: 0,
        })
    }

    /// Wants blocks.
    pub fn read(&mut self, range: Range<Block>, priority: Priority) -> RequestId {
        self.next += 1;
        self.reader.read(self.next, range.start, range.end - range.start, priority);
        self.got.insert(self.next, Got { range, ..Got::default() });
        self.next
    }

    /// Asks for allocation, or for changes since another point.
    pub fn survey(&mut self, with: Option<usize>, range: Range<Block>, most: usize) -> RequestId {
        self.next += 1;
        let count = range.end - range.start;
        match with {
            None => self.reader.allocation(self.next, range.start, count, most),
            Some(view) => self.reader.changes(self.next, view, range.start, count, most),
        }
        self.next
    }

    /// Another point to compare with.
    pub fn add_view(&mut self, point: StoredPoint, checkpoint: StoredPoint) -> Result<usize> {
        self.reader.add_view(point, checkpoint, &mut self.actions)
    }

    /// A new link stands.
    pub fn restart(&mut self, shown: &StoredPoint) -> Result<()> {
        // What was to be sent on the old one is among the questions.
        self.actions.retain(|a| !matches!(a, Action::Send(_)));
        let trust = self.trust.clone();
        self.reader.restart(shown, trust, &mut self.actions)
    }

    /// Goes on until nothing more comes, or for so many steps.
    pub fn turn(&mut self, ends: &mut dyn Ends, steps: usize) -> Result<()> {
        for _ in 0..steps {
            let event = match self.pick(ends) {
                Some(event) => event?,
                None if self.advance() => continue,
                None => return Ok(()),
            };
            let taken = self.reader.take(event, &mut self.actions);
            self.advance();
            self.act(ends);
            taken?;
        }
        Ok(())
    }

    /// Whether there is something to do.
    fn advance(&mut self) -> bool {
        let local = &self.local;
        let mut has =
            |block: Block, tag: &Tag| local.get(&block).is_some_and(|(kept, _)| kept == tag);
        self.reader.advance(&mut has, &mut self.actions);
        !self.actions.is_empty()
    }

    fn pick(&mut self, ends: &mut dyn Ends) -> Option<Result<Event>> {
        self.act(ends);
        let open = !self.jobs.is_empty() && (!ends.waiting() || self.random.below(2) == 0);
        if open {
            let at = self.random.below(self.jobs.len() as u64) as usize;
            let job = self.jobs.swap_remove(at);
            return Some(Ok(self.open(job)));
        }
        if !ends.waiting() {
            return None;
        }
        ends.receive().map(|received| received.map(Event::Message))
    }

    fn open(&mut self, job: OpenJob) -> Event {
        let mut blocks = Vec::new();
        let mut write = |at: u64, bytes: &[u8]| {
            let first = at / BLOCK_SIZE as u64;
            blocks.extend(bytes.chunks(BLOCK_SIZE).zip(first..).map(|(c, b)| (b, Arc::from(c))));
            Ok::<(), ()>(())
        };
        let who = (&*self.trust, &*self.machine.secrets, &self.volume);
        match job.run(who, &mut self.opener, &mut write) {
            Ok(done) => done.unwrap(),
            Err(error) => return Event::Broken { job, error },
        }
        self.opened += 1;
        let tags = job.placements.iter().flat_map(|p| p.tags.iter());
        for ((block, content), tag) in blocks.into_iter().zip(tags) {
            let content: Arc<[u8]> = content;
            for got in self.got.values_mut().filter(|got| got.range.contains(&block)) {
                got.blocks.insert(block, Some(content.clone()));
            }
            if self.keeps {
                self.local.insert(block, (*tag, content));
            }
        }
        Event::Opened(job)
    }

    fn act(&mut self, ends: &mut dyn Ends) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Send(message) => ends.send(message),
                Action::Open(job) => self.jobs.push(job),
                Action::Zero { id, start, count } => {
                    let zeros = (start..start + count).map(|b| (b, None));
                    self.got.get_mut(&id).unwrap().blocks.extend(zeros);
                }
                Action::Held { id, start, count } => {
                    let held = (start..start + count).map(|b| (b, Some(self.local[&b].1.clone())));
                    self.got.get_mut(&id).unwrap().blocks.extend(held);
                }
                Action::Known { .. } => {}
                Action::Done { id, result } => {
                    let old = self.got.get_mut(&id).unwrap().done.replace(result);
                    assert!(old.is_none(), "a request was done twice");
                }
                Action::Parts { id, parts } => {
                    assert!(self.parts.insert(id, parts).is_none(), "answered twice");
                }
                Action::Ready { view, result } => {
                    self.ready.insert(view, result);
                }
            }
        }
    }
}
