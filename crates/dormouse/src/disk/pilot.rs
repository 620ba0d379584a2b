//! The thread that owns the link and the reader of a disk.
//!
//! Invariant: it waits for everything at once, and for nothing alone: a command, a message, a
//! worker, a server that is being reached. So a disk is closed at once, whatever the server does.
//! When the link is lost, what was asked is asked again on the next one; requests wait, or fail
//! at once where waiting cannot help. Leaves to others: what to ask (`sync::read`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};
use dormouse_format::Block;
use dormouse_format::geometry::blocks;
use dormouse_format::point::StoredPoint;
use dormouse_sync::history::Trust;
use dormouse_sync::live::{Again, Away, Retry};
use dormouse_sync::read::{Action, Event, Priority, Reader, RequestId};

use super::Shared;
use super::file::CacheFile;
use super::own;
use super::reach::{Place, Reached};
use super::waits::Fault;
use super::workers::{Jobs, TOGETHER};
use crate::exit::{Class, away_of, class_of, text_of};
use crate::link::{Batch, Link};
use crate::log::{Entry, Level, Log};
use crate::patience::Patience;

/// How often it is looked whether the server is too slow.
const TICK: Duration = Duration::from_millis(500);
/// A link that lasted so long is worth trying again at once.
const GOOD: Duration = Duration::from_secs(2);
/// Blocks of one request of the background (4 MiB), and how many of them are open.
const FILL: u64 = 1024;
const FILLS: usize = 3;

/// The answer about ranges.
pub(super) type Ranges = dormouse_sync::Result<Vec<(u64, bool)>>;

/// What the disk asks of its pilot.
pub(super) enum Command {
    /// Blocks that somebody waits for.
    Read { id: RequestId, first: Block, count: u64 },
    /// Blocks that somebody may want soon.
    Ahead { first: Block, count: u64 },
    /// Nobody waits for these any more.
    Cancel(RequestId),
    /// Allocation, or changes since another point.
    Survey { with: Option<usize>, first: Block, count: u64, most: usize, answer: Sender<Ranges> },
    /// Another point to compare with.
    View {
        point: Box<StoredPoint>,
        checkpoint: Box<StoredPoint>,
        answer: Sender<dormouse_sync::Result<usize>>,
    },
    /// The owner of the volume has made a point out of these extents.
    Apply { size: u64, extents: Vec<Vec<u8>>, answer: Sender<dormouse_sync::Result<()>> },
    /// The owner has made this checkpoint of what it laid over.
    Rebase { checkpoint: Box<StoredPoint>, answer: Sender<dormouse_sync::Result<()>> },
    /// The end.
    Close,
}

/// What the pilot starts with.
pub(super) struct Start {
    pub(super) shared: Arc<Shared>,
    pub(super) place: Place,
    pub(super) link: Link,
    pub(super) trust: Arc<Trust>,
    pub(super) reader: Reader,
    pub(super) commands: Receiver<Command>,
    pub(super) jobs: Sender<Jobs>,
    pub(super) events: Receiver<Vec<Event>>,
    pub(super) fill: bool,
    pub(super) log: Log,
}

pub(super) struct Pilot {
    shared: Arc<Shared>,
    place: Place,
    link: Option<Link>,
    /// When the link came to stand, and how many questions had been answered then.
    since: Instant,
    answered: u64,
    patience: Patience,
    looked: Instant,
    reaching: Option<Receiver<anyhow::Result<Reached>>>,
    retry: Retry,
    started: Instant,
    trust: Arc<Trust>,
    reader: Reader,
    commands: Receiver<Command>,
    jobs: Sender<Jobs>,
    events: Receiver<Vec<Event>>,
    actions: Vec<Action>,
    surveys: HashMap<RequestId, Sender<Ranges>>,
    views: HashMap<usize, Vec<Sender<dormouse_sync::Result<usize>>>>,
    /// Requests that nobody waits for, and how many blocks each is about.
    ahead: HashMap<RequestId, u64>,
    fills: HashSet<RequestId>,
    /// Reads that wait until older ones are over, if there are too many changes.
    held: Vec<Command>,
    holding: bool,
    /// Where the background goes on; nothing if it is done.
    fill: Option<Block>,
    log: Log,
    /// Why the last read failed: a program that tries again says nothing new.
    said: String,
    /// Damaged places of the cache that were spoken of.
    damaged: u64,
}

/// What happened.
enum Happened {
    Command(Command),
    Batch(Option<Batch>),
    Events(Vec<Event>),
    Reached(anyhow::Result<Reached>),
    Time,
}

impl Pilot {
    pub(super) fn new(start: Start) -> Self {
        let Start { shared, place, link, trust, reader, commands, jobs, events, fill, log } = start;
        let now = Instant::now();
        let seed = u64::from(std::process::id()) << 32 | u64::from(now.elapsed().subsec_nanos());
        Self {
            patience: Patience::new(&link),
            shared,
            place,
            link: Some(link),
            since: now,
            answered: 0,
            looked: now,
            reaching: None,
            retry: Retry::new(seed),
            started: now,
            trust,
            reader,
            commands,
            jobs,
            events,
            actions: Vec::new(),
            surveys: HashMap::new(),
            views: HashMap::new(),
            ahead: HashMap::new(),
            fills: HashSet::new(),
            held: Vec::new(),
            holding: false,
            fill: fill.then_some(0),
            log,
            said: String::new(),
            damaged: 0,
        }
    }

    /// Flies until the disk is closed.
    pub(super) fn run(mut self) {
        // However it ends, nobody is left waiting.
        let last = Last(Arc::clone(&self.shared));
        loop {
            self.act();
            if !self.take() {
                break;
            }
            self.forget_changes();
            self.fill();
        }
        if let Some(link) = self.link.take() {
            link.cut();
        }
        drop(last);
    }

    /// Does what the reader says.
    fn act(&mut self) {
        let mut local = {
            let shared = Arc::clone(&self.shared);
            move |block: Block, tag: &dormouse_format::Tag| shared.blocks.prove(block, tag)
        };
        self.reader.advance(&mut local, &mut self.actions);
        let (mut messages, mut group, mut blocks) = (Vec::new(), Vec::new(), 0);
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Send(message) => messages.push(message),
                Action::Open(job) => {
                    blocks += job.blocks;
                    group.push(job);
                    if blocks >= TOGETHER {
                        blocks = 0;
                        self.open(std::mem::take(&mut group));
                    }
                }
                Action::Zero { id, start, count } => self.shared.waits.zero(id, start, count),
                // Whoever waits for it looks again when all is done.
                Action::Held { .. } => {}
                Action::Known { leaf, zero } => self.shared.blocks.put_zeros(leaf, zero),
                Action::Done { id, result } => self.done(id, result),
                Action::Parts { id, parts } => {
                    if let Some(answer) = self.surveys.remove(&id) {
                        let _ = answer.send(parts);
                    }
                }
                Action::Ready { view, result } => {
                    for answer in self.views.remove(&view).unwrap_or_default() {
                        let _ = answer.send(result.clone().map(|()| view));
                    }
                }
            }
        }
        self.open(group);
        // Without a link they are among the questions that are asked again.
        if let Some(link) = &self.link
            && !messages.is_empty()
            && let Err(error) = crate::connect::send_all(link, messages)
        {
            self.lost(&error);
        }
    }

    fn open(&self, group: Vec<dormouse_sync::read::OpenJob>) {
        if !group.is_empty() {
            let _ = self.jobs.send((Arc::clone(&self.trust), group));
        }
    }

    fn done(&mut self, id: RequestId, result: dormouse_sync::Result<()>) {
        if let Some(blocks) = self.ahead.remove(&id) {
            self.shared.ahead.fetch_sub(blocks, Ordering::Relaxed);
            self.fills.remove(&id);
            return;
        }
        let result = result.map_err(|e| e.to_string());
        if let Err(why) = &result
            && self.said != *why
        {
            self.log.event(&Entry::new(Level::Error, &format!("a read fails: {why}")));
            self.said.clone_from(why);
        }
        self.shared.waits.done(id, result.map_err(Fault::Lost));
    }

    /// Waits, and takes what came; false if that is the end.
    fn take(&mut self) -> bool {
        match self.wait() {
            Happened::Command(command) => {
                let mut next = Some(command);
                while let Some(command) = next {
                    if !self.command(command) {
                        return false;
                    }
                    next = self.commands.try_recv().ok();
                }
            }
            Happened::Batch(batch) => self.messages(batch),
            Happened::Events(events) => self.opened(events),
            Happened::Reached(reached) => self.reached(reached),
            Happened::Time => self.look(),
        }
        true
    }

    fn wait(&self) -> Happened {
        if self.link.as_ref().is_some_and(|link| link.rx.has_taken()) {
            return Happened::Batch(None);
        }
        let (no_batches, not_reaching) = (never(), never());
        let batches = self.link.as_ref().map_or(&no_batches, |link| link.rx.batches());
        let reaching = self.reaching.as_ref().unwrap_or(&not_reaching);
        select! {
            recv(self.commands) -> command => Happened::Command(command.unwrap_or(Command::Close)),
            recv(self.events) -> events => events.map_or(Happened::Time, Happened::Events),
            recv(batches) -> batch => Happened::Batch(Some(batch.unwrap_or_default())),
            recv(reaching) -> reached => match reached {
                Ok(reached) => Happened::Reached(reached),
                Err(_) => Happened::Reached(Err(anyhow::anyhow!("the thread that reaches the server ended"))),
            },
            default(self.pause()) => Happened::Time,
        }
    }

    /// How long until something has to be done without being woken.
    fn pause(&self) -> Duration {
        if self.link.is_some() || self.reaching.is_some() {
            return TICK;
        }
        let next = self.retry.next().unwrap_or_default();
        next.saturating_sub(self.started.elapsed()).clamp(Duration::from_millis(1), TICK)
    }

    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Read { .. } | Command::Ahead { .. } if self.holding => self.held.push(command),
            Command::Read { id, first, count } => {
                self.reader.read(id, first, count, Priority::Demand);
            }
            Command::Ahead { first, count } => {
                self.ask_ahead(first, count);
            }
            Command::Cancel(id) => self.reader.cancel(id),
            Command::Survey { with, first, count, most, answer } => {
                let id = self.shared.waits.number();
                self.surveys.insert(id, answer);
                match with {
                    None => self.reader.allocation(id, first, count, most),
                    Some(view) => self.reader.changes(id, view, first, count, most),
                }
            }
            Command::View { point, checkpoint, answer } => {
                match self.reader.add_view(*point, *checkpoint, &mut self.actions) {
                    Ok(view) => self.views.entry(view).or_default().push(answer),
                    Err(error) => drop(answer.send(Err(error))),
                }
            }
            Command::Apply { size, extents, answer } => {
                let _ = answer.send(self.apply(size, &extents));
            }
            Command::Rebase { checkpoint, answer } => {
                let seq = checkpoint.point().seq;
                let done = self.reader.rebase(*checkpoint, &[]);
                if done.is_ok() {
                    self.place.seq = seq;
                }
                let _ = answer.send(done);
            }
            Command::Close => return false,
        }
        true
    }

    /// Changes what is read from now on: first what was kept, then the map.
    fn apply(&mut self, size: u64, extents: &[Vec<u8>]) -> dormouse_sync::Result<()> {
        for runs in extents {
            let old = self.reader.size();
            self.shared.own.add(old, size, runs, &self.shared.blocks)?;
            self.reader.apply(size, runs)?;
        }
        self.holding = self.shared.own.count() > own::MOST;
        Ok(())
    }

    /// Forgets changes that nothing is older than, and lets go on what waited for that.
    fn forget_changes(&mut self) {
        if self.shared.own.count() > 0 && self.reader.is_idle() {
            self.shared.own.forget();
            self.holding = false;
            for command in std::mem::take(&mut self.held) {
                self.command(command);
            }
        }
    }

    fn ask_ahead(&mut self, first: Block, count: u64) -> RequestId {
        let id = self.shared.waits.number();
        self.ahead.insert(id, count);
        self.shared.ahead.fetch_add(count, Ordering::Relaxed);
        self.reader.read(id, first, count, Priority::Ahead);
        id
    }

    /// Goes on in the background, where nothing else is to do.
    fn fill(&mut self) {
        let end = blocks(self.reader.size());
        while let Some(first) = self.fill
            && self.link.is_some()
            && self.fills.len() < FILLS
            && self.ahead.len() < 2 * FILLS
        {
            let room = self.shared.blocks.file.as_ref().map_or(0, |f| f.capacity() / 4096);
            if first >= end.min(room) {
                self.fill = None;
                let all = if room < end { "as much as fits" } else { "all of the point" };
                self.log.line(&format!("{all} was asked for, to be on this machine"));
                return;
            }
            let count = FILL.min(end - first);
            let id = self.ask_ahead(first, count);
            self.fills.insert(id);
            self.fill = Some(first + count);
        }
    }

    fn messages(&mut self, batch: Option<Batch>) {
        let Some(link) = &self.link else { return };
        let mut next = match batch {
            Some(batch) if batch.is_empty() => {
                let closed = crate::connect::link_failure(&crate::link::LinkError::Closed);
                return self.lost(&closed.into());
            }
            Some(batch) => link.rx.add(batch),
            None => link.rx.taken(),
        };
        while let Some(received) = next {
            let taken = match received {
                Ok(message) => self
                    .reader
                    .take(Event::Message(message), &mut self.actions)
                    .map_err(anyhow::Error::from),
                Err(error) => Err(crate::connect::link_failure(&error).into()),
            };
            if let Err(error) = taken {
                return self.lost(&error);
            }
            next = link.rx.taken();
        }
    }

    fn opened(&mut self, events: Vec<Event>) {
        for event in events {
            // What a worker tells is no fault of the link.
            if let Err(error) = self.reader.take(event, &mut self.actions) {
                self.log.event(&Entry::new(Level::Error, &error.to_string()));
            }
        }
    }

    /// Looks whether the server is too slow, or whether it is time to try again.
    fn look(&mut self) {
        let Some(link) = &self.link else {
            let due = self.retry.next().is_some_and(|next| self.started.elapsed() >= next);
            if self.reaching.is_none() && due {
                self.retry.begin(self.started.elapsed());
                self.reaching = Some(self.place.reach());
            }
            return;
        };
        if self.looked.elapsed() >= TICK {
            self.looked = Instant::now();
            let damaged = self.shared.blocks.file.as_ref().map_or(0, CacheFile::damaged);
            if damaged > self.damaged {
                let n = damaged - self.damaged;
                let message =
                    format!("{n} blocks of the cache were damaged, and are fetched again");
                self.log.event(&Entry::new(Level::Warning, &message));
                self.damaged = damaged;
            }
            let (answered, open) = self.reader.asked();
            if let Err(error) = self.patience.watch(link, answered, open) {
                self.lost(&error);
            }
        }
    }

    /// There is no link any more.
    fn lost(&mut self, error: &anyhow::Error) {
        let Some(link) = self.link.take() else { return };
        link.cut();
        // Its threads may take a moment to end.
        let _ = std::thread::Builder::new().name("disk-unlink".into()).spawn(move || drop(link));
        self.actions.retain(|action| !matches!(action, Action::Send(_)));
        // One that brought something is worth as much.
        let brought = self.reader.asked().0 > self.answered;
        let good = brought || self.since.elapsed() >= GOOD;
        self.away(error, good);
        if good && !self.shared.is_refused() {
            self.reaching = Some(self.place.reach());
        }
    }

    /// Says why there is no server, and fails who waits where waiting cannot help.
    fn away(&mut self, error: &anyhow::Error, good: bool) {
        let away = away_of(error).unwrap_or_else(|| match class_of(error) {
            Class::NotFound => Away::UnknownVolume,
            Class::NotAuthorised => Away::NotAuthorised,
            _ => Away::LinkLost,
        });
        // A point that is shown otherwise, or not at all, may be shown again; but a disk that
        // waits for that would look like a slow one.
        let again = if away.again() == Again::Asked { Again::Seldom } else { away.again() };
        // What broke the protocol may be one bad answer: whoever needed it was told.
        let again = if good { Again::Soon } else { again };
        self.retry.lost(self.started.elapsed(), again, good);
        let why = text_of(error);
        let refused = again == Again::Seldom;
        let (level, then) = match refused {
            true => (Level::Error, "reads fail until that is mended"),
            false => (Level::Warning, "reads wait"),
        };
        let first = self.shared.set_away(Some(why.clone()), refused);
        if first {
            let message = format!("no server, {then}: {why}");
            self.log.event(&Entry::new(level, &message));
        }
        if refused {
            for id in self.shared.waits.fail(&Fault::Lost(why)) {
                self.reader.cancel(id);
            }
            // Whoever waits for these gets an error as the other end goes away.
            self.surveys.keys().for_each(|id| self.reader.cancel(*id));
            self.surveys.clear();
        }
    }

    fn reached(&mut self, reached: anyhow::Result<Reached>) {
        self.reaching = None;
        let reached = reached.and_then(|reached| {
            let Some(shown) = reached.shown else {
                return Err(dormouse_sync::Error::Fork { seq: self.place.seq }.into());
            };
            let trust = Arc::new(reached.trust);
            self.actions.retain(|action| !matches!(action, Action::Send(_)));
            self.reader.restart(&shown, Arc::clone(&trust), &mut self.actions)?;
            Ok((reached.link, trust))
        });
        match reached {
            Ok((link, trust)) => {
                self.patience = Patience::new(&link);
                self.link = Some(link);
                self.trust = trust;
                (self.since, self.answered) = (Instant::now(), self.reader.asked().0);
                self.shared.set_away(None, false);
                self.log.line("the server is back");
            }
            Err(error) => self.away(&error, false),
        }
    }
}

/// Ends all waits.
struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.waits.fail(&Fault::Closed);
    }
}
