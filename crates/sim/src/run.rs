//! One run of the simulator: everything from one seed.
//!
//! Owns: time, the order of events, and when which fault comes. Invariant: nothing
//! here depends on anything but the seed. A run has three parts: machines join and
//! volumes are made, without faults; then clients write, copy and restore while disk,
//! network and clocks fail; then the faults stop, and all must come to rest and hold.

pub mod client;
mod duties;
pub mod faults;
mod finish;
pub mod kept;
pub mod model;
pub mod net;
mod office;
pub mod orders;
mod plan;
mod report;
pub mod server;
pub mod trace;
mod weather;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dormouse_format::VolumeId;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::message::{Message, Refusal};
use dormouse_store::{Error as StoreError, VaultStore};
use dormouse_sync::Error;

use crate::random::{Lcg, noise};
use client::{Around, Client, Job, Turn};
use duties::Duties;
use faults::{Faults, Rates};
use model::{Model, Violation};
use net::{LinkId, Net, Sent, To, Weather};
use server::{Server, Start};
use trace::Trace;

pub use plan::{Family, Settings};
pub use report::Report;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
/// A client that hears nothing for so long gives the link up.
const PATIENCE: u64 = 40 * S;
/// Events of a run at most: more means that it does not come to rest.
const EVENTS_MAX: u64 = 400_000;

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A message may have arrived.
    Arrival(LinkId, To),
    /// An end learns that the link has ended.
    Hangup(LinkId, To),
    /// A client goes on.
    Turn(usize),
    /// A client looks for something to do.
    Idle(usize),
    /// A client loses patience, if nothing has happened since.
    Impatience(usize, u64),
    /// The disk of a client is written.
    Write(usize),
    /// The server's process is started.
    Start,
    /// Somebody looks at the weather: crashes, clocks, rot.
    Weather,
    /// The server does something of itself, or its operator does.
    Duty,
    /// The server looks who may still be connected.
    Watch,
}

/// A run.
pub struct Run {
    settings: Settings,
    now: u64,
    skew: i64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next: u64,
    random: Lcg,
    net: Net,
    faults: Faults,
    server: Server,
    clients: Vec<Client>,
    model: Model,
    trace: Trace,
    report: Report,
    /// Faults have stopped.
    calm: bool,
    /// The store has said at an opening that something was torn or damaged.
    told: bool,
    /// Jobs that failed since then.
    calm_failures: u64,
    /// What the server does for years.
    duties: Duties,
}

/// What a step of the run comes to.
type Stepped = Result<(), Violation>;

impl Run {
    /// Runs a seed to its end.
    pub fn seed(seed: u64, family: Family, print: bool) -> (Report, Stepped) {
        let mut run = plan::prepare(seed, family, print);
        let outcome = run.go().and_then(|()| run.finish());
        run.report.trace = run.trace.hash();
        run.report.gone = run.model.gone;
        let disk = run.faults.counts();
        run.report.disk_operations = run.server.storage.ops();
        (run.report.half_open, run.report.stalls) = (run.net.blacked, run.net.stalled);
        (run.report.disk_failures, run.report.misdirected) = (disk.failures, disk.misdirected);
        (run.report.short_writes, run.report.no_room) = (disk.short, disk.full);
        (run.report.failed_syncs, run.report.failed_reads) = (disk.syncs, disk.reads);
        (run.report, outcome)
    }

    fn at(&mut self, after: u64, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((self.now + after, self.next, event)));
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.below(n)
    }

    fn note(&mut self, text: core::fmt::Arguments<'_>) {
        self.trace.line(self.now, text);
    }

    /// The time that there is: events, and nights in which nothing happened.
    fn time(&self) -> u64 {
        self.now + self.duties.slept
    }

    /// The server's wall clock.
    fn wall(&self) -> u64 {
        self.time().saturating_add_signed(self.skew)
    }

    /// Runs events until there are none, or the writers have had enough and all is quiet.
    fn go(&mut self) -> Stepped {
        while self.report.given_up == 0 && self.step()? {}
        Ok(())
    }

    /// The next event; false if there is none.
    fn step(&mut self) -> Result<bool, Violation> {
        let Some(Reverse((time, _, event))) = self.queue.pop() else { return Ok(false) };
        self.now = time;
        self.report.events += 1;
        if self.report.events > EVENTS_MAX {
            return Err(Violation(format!("no rest after {EVENTS_MAX} events")));
        }
        self.event(event)?;
        Ok(true)
    }

    fn event(&mut self, event: Event) -> Stepped {
        match event {
            Event::Arrival(link, To::Server) => self.server_hears(link),
            Event::Arrival(link, To::Client) => self.client_hears(link),
            Event::Hangup(link, To::Server) => {
                self.net.leave(link, To::Server);
                self.server.hang_up(link);
                self.after_server()
            }
            Event::Hangup(link, To::Client) => {
                self.net.leave(link, To::Client);
                match self.clients.iter().position(|c| c.link == Some(link)) {
                    Some(client) => {
                        self.clients[client].closed = true;
                        self.turn(client)
                    }
                    None => Ok(()),
                }
            }
            Event::Turn(client) => self.turn(client),
            Event::Idle(client) => self.idle(client),
            Event::Impatience(client, epoch) => {
                if self.clients[client].epoch == epoch && self.clients[client].job.is_some() {
                    self.note(format_args!("client {client} loses patience"));
                    self.give_link_up(client);
                    self.retry(client);
                }
                Ok(())
            }
            Event::Write(client) => self.write(client),
            Event::Start => self.start_server(),
            Event::Weather => self.weather(),
            Event::Duty => self.duty(),
            Event::Watch => {
                self.watch();
                Ok(())
            }
        }
    }

    /// Sends a message, and plans what comes of it.
    fn send(&mut self, link: LinkId, to: To, message: &Message) {
        let frame = message.encode();
        self.report.messages += 1;
        let sent = self.net.send(link, to, self.now, frame.clone());
        self.note(format_args!("{link} to {to:?}: {} {} {sent:?}", frame[4], frame.len()));
        match sent {
            Sent::Arrives(at) => self.at(at - self.now, Event::Arrival(link, to)),
            Sent::Lost => {}
            Sent::Cut => {
                self.report.cuts += 1;
                for end in [To::Server, To::Client] {
                    let after = self.below(3000) * MS;
                    self.at(after, Event::Hangup(link, end));
                }
            }
        }
    }

    fn server_hears(&mut self, link: LinkId) -> Stepped {
        let Some(frame) = self.net.arrived(link, To::Server, self.now) else { return Ok(()) };
        if !self.server.up {
            return Ok(());
        }
        if !self.server.serves(link) {
            let Some(client) = self.net.client(link) else { return Ok(()) };
            // A new process does not know the links of the old one.
            if frame.get(4) != Some(&1) {
                self.at(MS, Event::Hangup(link, To::Client));
                return Ok(());
            }
            self.server.accept(link, self.clients[client].machine.transport);
        }
        self.report.late += u64::from(self.clients.iter().all(|c| c.link != Some(link)));
        let wall = self.wall();
        let question = Message::decode(&frame[4..]);
        let guard = self.guard(link, question.as_ref().ok());
        let (answers, close) = self.server.handle(link, wall, &frame);
        self.keeps_to(guard, question.as_ref().ok(), &answers)?;
        // Of a machine that went down these were said before.
        for answer in &answers {
            self.judge(question.as_ref().ok(), answer)?;
            self.send(link, To::Client, answer);
        }
        if close && !self.server.storage.is_down() {
            self.server.hang_up(link);
            let after = self.net.drained(link, To::Client, self.now) - self.now;
            self.net.leave(link, To::Server);
            self.at(after, Event::Hangup(link, To::Client));
        }
        self.after_server()
    }

    /// Judges what the server says when it says it.
    fn judge(&mut self, question: Option<&Message>, answer: &Message) -> Stepped {
        match (question, answer) {
            (Some(Message::Commit { point }), Message::Committed { .. }) => {
                self.model.acknowledged(point)
            }
            (_, Message::Error { refusal: Refusal::Fenced, .. }) => {
                self.report.fenced += 1;
                Ok(())
            }
            (Some(Message::OpenWrite { volume, .. }), Message::Opened { generation, .. }) => {
                self.model.generation(*volume, *generation)
            }
            _ => Ok(()),
        }
    }

    /// Looks what became of the server after it did something.
    fn after_server(&mut self) -> Stepped {
        if !self.server.up {
            return Ok(());
        }
        if self.server.storage.is_down() {
            self.report.crashes += 1;
            self.server_dies(true);
        } else if self.server.is_poisoned() {
            // Somebody reads the log and starts it again.
            let after = self.below(20_000) * MS;
            self.note(format_args!("the store is poisoned"));
            self.server_dies_later(after);
        }
        Ok(())
    }

    fn server_dies_later(&mut self, after: u64) {
        if self.below(3) == 0 {
            self.report.kills += 1;
            self.server_dies(false);
        } else {
            self.at(after, Event::Weather);
        }
    }

    /// The server's process ends; with `machine` the machine goes down.
    fn server_dies(&mut self, machine: bool) {
        self.note(format_args!("the server dies, machine: {machine}"));
        self.server.die(machine);
        for link in self.net.all() {
            self.net.leave(link, To::Server);
            // A machine that is down says nothing; a process that ended does.
            if !machine || self.below(2) == 0 {
                let after = self.below(5000) * MS;
                self.at(after, Event::Hangup(link, To::Client));
            }
        }
        let after = self.below(20_000) * MS;
        self.at(after, Event::Start);
    }

    fn start_server(&mut self) -> Stepped {
        if self.server.up {
            return Ok(());
        }
        if self.settings.family == Family::Rot {
            self.server.storage.alter(|image| image.evict());
        }
        if self.below(10) == 0 {
            self.note(format_args!("the index is lost"));
            self.server.storage.alter(|image| image.clear(crate::storage::INDEX));
        }
        let before = self.faults.counts();
        match self.server.start() {
            Start::Up(recovery) => {
                let (torn, damaged) = (recovery.torn.len(), recovery.damaged.len());
                self.told |= torn + damaged > 0;
                self.note(format_args!("the server starts: {torn} torn, {damaged} damaged"));
                self.report.torn_tails += torn as u64;
                if damaged > 0 && self.settings.family != Family::Rot {
                    let fault = &recovery.damaged[0];
                    return Err(Violation(format!(
                        "a sound disk, and {} byte {}: {}",
                        fault.segment, fault.offset, fault.why
                    )));
                }
                self.settle_doubts();
                self.look_at_all()
            }
            Start::Down => {
                self.note(format_args!("the machine goes down while the server starts"));
                self.report.crashes += 1;
                let after = self.below(20_000) * MS;
                self.at(after, Event::Start);
                Ok(())
            }
            Start::Failed(error) => {
                self.note(format_args!("the server does not start: {error}"));
                if self.faults.counts().failures > before.failures {
                    let after = self.below(20_000) * MS;
                    self.at(after, Event::Start);
                    return Ok(());
                }
                let bad = self.report.rotten + self.faults.counts().misdirected > 0;
                if bad && matches!(error, StoreError::Damaged { .. } | StoreError::NotAStore { .. })
                {
                    // It says what is damaged, and serves nothing that is not whole.
                    self.report.given_up += 1;
                    return Ok(());
                }
                Err(Violation(format!("the store does not open: {error}")))
            }
        }
    }

    /// All volumes, as the store shows them.
    fn look_at_all(&mut self) -> Stepped {
        let Some(store) = self.server.store() else { return Ok(()) };
        if self.settings.family == Family::Rot {
            return Ok(());
        }
        let ids: Vec<VolumeId> = store.volumes().into_iter().map(|(v, ..)| v.id).collect();
        for id in ids {
            self.look_at(&store, id)?;
        }
        drop(store);
        self.after_server()
    }

    /// The points of a volume; false if the disk does not tell.
    fn look_at(&mut self, store: &VaultStore, id: VolumeId) -> Result<bool, Violation> {
        let before = self.faults.counts();
        match store.points(&id, 1, 10_000) {
            Ok(points) => self.model.visible(id, &points).map(|()| true),
            // A read that fails shows nothing.
            Err(_) if self.faults.counts() != before || self.server.storage.is_down() => Ok(false),
            Err(e) => Err(Violation(format!("points cannot be listed: {e}"))),
        }
    }

    fn client_hears(&mut self, link: LinkId) -> Stepped {
        let Some(frame) = self.net.arrived(link, To::Client, self.now) else { return Ok(()) };
        let Some(client) = self.clients.iter().position(|c| c.link == Some(link)) else {
            return Ok(());
        };
        let message = Message::decode(&frame[4..]);
        let message = message.map_err(|e| Violation(format!("an answer that is none: {e}")))?;
        self.clients[client].hear(message);
        // It need not look at once.
        let after = self.below(4) * MS;
        self.at(after, Event::Turn(client));
        Ok(())
    }

    /// Runs something of a client, and sends what it says.
    fn with<T>(&mut self, at: usize, run: impl FnOnce(&mut Client, &mut Around<'_>) -> T) -> T {
        let mut outbox = Vec::new();
        let takeover = self.settings.shared;
        // A client's clock is a label: it may say anything.
        let now = self.time().saturating_add_signed(self.clients[at].skew);
        let mut around = Around { now, model: &mut self.model, outbox: &mut outbox, takeover };
        let done = run(&mut self.clients[at], &mut around);
        if let Some(link) = self.clients[at].link {
            for message in outbox {
                self.send(link, To::Server, &message);
            }
        }
        done
    }

    fn turn(&mut self, at: usize) -> Stepped {
        let Some(job) = self.clients[at].job else { return Ok(()) };
        if self.clients[at].link.is_none() {
            return Ok(());
        }
        let turned = self.with(at, |client, around| client.turn(around))?;
        match turned {
            Turn::Goes => {
                if self.clients[at].is_busy() {
                    let after = self.below(10) * MS;
                    self.at(after, Event::Turn(at));
                }
                let epoch = self.clients[at].epoch;
                self.at(PATIENCE, Event::Impatience(at, epoch));
            }
            Turn::Done => {
                self.note(format_args!("client {at} has done {job:?}"));
                match job {
                    Job::Copy { .. } => self.report.copies += 1,
                    Job::Checkpoint { .. } => self.report.checkpoints += 1,
                    Job::Restore { .. } => self.report.restores += 1,
                    Job::Keep { .. } => self.report.orders += 1,
                    Job::Forbidden { .. } => {}
                }
                if self.below(2) == 0 {
                    self.give_link_up(at);
                }
                let after = self.below(3000) * MS;
                self.at(after, Event::Idle(at));
            }
            Turn::Failed(error) => {
                self.note(format_args!("client {at}: {job:?} failed: {error}"));
                self.report.failed_jobs += 1;
                if !self.is_excused(at, job, &error) {
                    self.excuse(&error)?;
                }
                self.give_link_up(at);
                if matches!(job, Job::Forbidden { .. } | Job::Keep { .. }) {
                    self.clients[at].job = None;
                }
                self.retry(at);
            }
        }
        Ok(())
    }

    /// Whether a failure is one that the faults explain.
    fn excuse(&self, error: &Error) -> Stepped {
        let rot = self.settings.family == Family::Rot;
        let fine = match error {
            Error::Protocol { what: "cut" } => true,
            Error::Refused { refusal, .. } => match refusal {
                // Another link of the same or of another machine came since.
                Refusal::Fenced | Refusal::Held | Refusal::Stopping => true,
                Refusal::Full | Refusal::Internal => !self.calm,
                Refusal::Damaged | Refusal::NotFound | Refusal::Conflict => rot,
                _ => false,
            },
            _ => rot,
        };
        if fine { Ok(()) } else { Err(Violation(format!("a job failed: {error}"))) }
    }

    fn give_link_up(&mut self, at: usize) {
        let Some(link) = self.clients[at].let_go() else { return };
        self.net.leave(link, To::Client);
        // What is on the way to the server arrives; then it may learn of the end, or not.
        if self.below(4) != 0 {
            let after = self.net.drained(link, To::Server, self.now) - self.now;
            self.at(after, Event::Hangup(link, To::Server));
        }
    }

    /// The job is begun anew later, or given up while faults go on.
    fn retry(&mut self, at: usize) {
        if self.calm {
            self.calm_failures += 1;
            if self.settings.family == Family::Rot && self.calm_failures > 20 {
                // What is damaged keeps it from resting, and it was told so each time.
                self.report.unrest += 1;
                self.clients[at].job = None;
                return;
            }
        } else if self.below(5) == 0 {
            self.clients[at].job = None;
        }
        let after = self.below(10_000) * MS;
        self.at(after, Event::Idle(at));
    }

    fn idle(&mut self, at: usize) -> Stepped {
        let again = self.clients[at].job;
        if self.clients[at].link.is_some() && again.is_some() {
            return Ok(());
        }
        let job = match again {
            Some(job) => Some(job),
            None => self.choose(at),
        };
        let Some(job) = job else {
            self.idle_again(at);
            return Ok(());
        };
        if self.clients[at].link.is_none() {
            self.clients[at].link = Some(self.net.open(at));
        }
        self.note(format_args!("client {at} begins {job:?}"));
        self.with(at, |client, around| client.begin(job, around));
        let epoch = self.clients[at].epoch;
        self.at(PATIENCE, Event::Impatience(at, epoch));
        Ok(())
    }

    /// What a client does next.
    fn choose(&mut self, at: usize) -> Option<Job> {
        if self.settings.family == Family::Kept
            && let Some(chosen) = self.choose_as(at)
        {
            return chosen;
        }
        let volumes = self.clients[at].volumes.len() as u64;
        let volume = self.below(volumes) as usize;
        if self.calm {
            let behind = self.clients[at].volumes.iter().position(client::Volume::is_behind)?;
            let all = self.settings.family == Family::Rot;
            return Some(Job::Copy { volume: behind, all });
        }
        if self.settings.writes_left == 0 {
            return None;
        }
        Some(match self.below(10) {
            0 => Job::Checkpoint { volume },
            1 | 2 => {
                let (back, in_place) = (self.below(6), self.below(2) == 0);
                Job::Restore { volume, back, in_place }
            }
            n => Job::Copy { volume, all: n == 3 },
        })
    }

    /// Somebody writes on a client's disk.
    fn write(&mut self, at: usize) -> Stepped {
        if self.settings.writes_left == 0 {
            return Ok(());
        }
        self.settings.writes_left -= 1;
        let volumes = self.clients[at].volumes.len() as u64;
        let volume = self.below(volumes) as usize;
        let random = &mut self.random;
        let volume = &mut self.clients[at].volumes[volume];
        plan::change(random, volume);
        let after = self.below(8000) * MS;
        self.at(after, Event::Write(at));
        if self.clients[at].job.is_none() {
            self.at(0, Event::Idle(at));
        }
        Ok(())
    }
}

/// A block that compresses to a few bytes, and is like no other.
fn block(random: &mut Lcg) -> Vec<u8> {
    let mut block = noise(random);
    block[64..BLOCK_SIZE].fill(7);
    block
}

/// No faults at all.
const CALM: (Rates, Weather) = (
    Rates { crash: 0, write: 0, short: 0, full: 0, sync: 0, read: 0, misdirect: 0 },
    Weather { cut: 0, black: 0, stall: 0 },
);

#[cfg(test)]
mod tests;
