//! Who runs the server: roles, revocation, quotas; and the rules of what nobody may.
//!
//! The rules, on what crosses the link and on how long the log is:
//! - Who is revoked, reads only, or administers, has nothing appended to the log; a writer
//!   changes nothing of what is kept.
//! - At the quota nothing new is appended; the end of what was begun stays within a reserve.
//! - A commit is refused for what is missing only where somebody's records are not relied on
//!   any more: it names chunks, and they are not there. Else what was promised is there.

use dormouse_format::VolumeId;
use dormouse_format::message::{Keep, Message, Refusal};
use dormouse_format::record::{Kind, split};
use dormouse_sync::Error;
use dormouse_sync::server::Role;

use super::client::Job;
use super::kept::{Told, lets_go};
use super::model::Violation;
use super::net::{LinkId, To};
use super::orders::Order;
use super::{Event, Family, MS, Run, S, Stepped};

/// What may be above the quota at the end of what was begun below it.
const RESERVE: u64 = 1 << 20;
/// What the log adds to a record: its trailer, and the end of a segment that is full.
const FRAME: u64 = 16 << 10;

/// What was so before a message was handled.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Bytes of the log.
    bytes: u64,
    /// Why nothing may be appended.
    why: Option<&'static str>,
    /// How far above the quota it may end.
    reserve: u64,
    /// What was due was noted of this volume.
    pruning: Option<VolumeId>,
}

impl Run {
    /// Who runs the server does something.
    pub(super) fn office(&mut self) {
        let writers = self.clients.iter().filter(|c| c.role == Role::Writer).count() as u64;
        let at = self.below(writers) as usize;
        let key = self.clients[at].machine.transport;
        let Some(known) = self.server.registry.clients.lock().unwrap().get(&key).cloned() else {
            return;
        };
        match self.below(5) {
            0 | 1 => {
                let quota = self.server.store().map(|s| s.quota().0 + self.below(40_000));
                let quota = quota.filter(|_| self.server.terms.quota.is_none());
                self.note(format_args!("the quota is {quota:?}"));
                self.report.quotas += u64::from(quota.is_some());
                self.server.terms.quota = quota;
                self.server.agree();
            }
            2 | 3 if !known.revoked => {
                let role = if known.role == Role::Writer { Role::Reader } else { Role::Writer };
                self.note(format_args!("client {at} is {role:?}"));
                self.report.grants += 1;
                self.duties.appointed.insert(at);
                self.server.registry.grant(&key, role, false);
                self.send_watch();
            }
            _ if !known.revoked && writers > 1 && self.report.revoked == 0 => {
                let distrust = self.below(2) == 0;
                self.note(format_args!("client {at} is revoked, distrusted: {distrust}"));
                self.report.revoked += 1;
                self.server.registry.grant(&key, known.role, true);
                if distrust {
                    self.server.terms.distrusted.insert(known.writer);
                    self.server.agree();
                }
                self.send_watch();
            }
            _ => {}
        }
    }

    fn send_watch(&mut self) {
        self.duties.unwatched = true;
        let after = self.below(1000) * MS;
        self.at(after, Event::Watch);
    }

    /// The server ends the connections of who is something else now.
    pub(super) fn watch(&mut self) {
        self.duties.unwatched = false;
        for link in self.server.watch() {
            self.net.leave(link, To::Server);
            let after = self.below(500) * MS;
            self.at(after, Event::Hangup(link, To::Client));
        }
    }

    /// Whether a client's key is revoked.
    pub(super) fn is_revoked(&self, at: usize) -> bool {
        let clients = self.server.registry.clients.lock().unwrap();
        clients.get(&self.clients[at].machine.transport).is_some_and(|c| c.revoked)
    }

    /// Everybody is again what he was, the quota is gone, the clock is right.
    pub(super) fn relieve(&mut self) {
        self.server.terms.quota = None;
        for client in &self.clients {
            let key = client.machine.transport;
            let clients = &self.server.registry.clients;
            let revoked = clients.lock().unwrap().get(&key).is_some_and(|c| c.revoked);
            self.server.registry.grant(&key, client.role, revoked);
        }
        self.correct_clock();
    }

    /// What may come of a message, before it is handled.
    pub(super) fn guard(&mut self, link: LinkId, question: Option<&Message>) -> Guard {
        let (Family::Kept, Some(question)) = (self.settings.family, question) else {
            return Guard::default();
        };
        self.tick();
        let Some(store) = self.server.store() else { return Guard::default() };
        let (bytes, quota) = store.quota();
        let keeps = matches!(question, Message::Keep(ask) if !ask.is_read());
        let new = match question {
            // These belong to the end of a point.
            Message::Put { record } => !split(record)
                .is_ok_and(|(header, _)| matches!(header.kind, Kind::Bridge | Kind::Stale)),
            Message::CreateVolume { .. } | Message::OpenWrite { .. } => true,
            _ => false,
        };
        let client = self.server.client(link).filter(|_| !self.duties.unwatched);
        let why = match client {
            Some(client) if client.revoked => Some("a revoked key"),
            Some(client) if client.role == Role::Reader => Some("a reader"),
            Some(client) if client.role == Role::Admin && !keeps => Some("an administrator"),
            Some(client) if client.role == Role::Writer && keeps => Some("a writer's order"),
            _ if new && quota.is_some_and(|quota| bytes >= quota) => Some("more than the quota"),
            _ => None,
        };
        let pruning = lets_go(question).filter(|_| why.is_none());
        let pruning = pruning.filter(|volume| self.prunes(*volume));
        let reserve = if new { FRAME } else { RESERVE + FRAME };
        Guard { bytes, why, reserve, pruning }
    }

    /// Whether what came of a message is within the rules.
    pub(super) fn keeps_to(
        &mut self,
        guard: Guard,
        question: Option<&Message>,
        answers: &[Message],
    ) -> Stepped {
        let (Family::Kept, Some(question)) = (self.settings.family, question) else {
            return Ok(());
        };
        let Some(store) = self.server.store() else { return Ok(()) };
        let (bytes, quota) = store.quota();
        if let Some(why) = guard.why.filter(|_| bytes > guard.bytes) {
            let more = bytes - guard.bytes;
            return Err(Violation(format!("{why} has added {more} bytes to the log")));
        }
        let most = quota.unwrap_or(u64::MAX).saturating_add(guard.reserve);
        if bytes > guard.bytes.max(most) {
            return Err(Violation(format!("{bytes} bytes, and the quota is {quota:?}")));
        }
        for answer in answers {
            if let (Message::Commit { point }, Message::Missing { ids }) = (question, answer) {
                let there = store.have(&point.point.writer, ids, true);
                let wrong = there.is_ok_and(|have| ids.is_empty() || have.contains(&true));
                self.report.missing += 1;
                if wrong {
                    return Err(Violation("a commit is refused for what is there".into()));
                }
                if self.server.terms.distrusted.is_empty() {
                    return Err(Violation("a commit is refused for what was promised".into()));
                }
            }
        }
        let Message::Keep(ask) = question else { return Ok(()) };
        self.taken(ask, answers);
        let Some(volume) = guard.pruning else { return Ok(()) };
        if matches!(answers, [Message::Kept(_)]) {
            self.clock_may()?;
        }
        self.look_at(&store, volume).map(drop)
    }

    /// An order was taken, refused, or may have been taken.
    fn taken(&mut self, ask: &Keep, answers: &[Message]) {
        let told = match answers {
            [Message::Done | Message::Kept(_)] => Told::Done,
            [Message::Error { refusal: Refusal::Internal | Refusal::Full, .. }] | [] => Told::Doubt,
            _ => return,
        };
        let wall = self.wall();
        self.note(format_args!("{ask:?}: {told:?}"));
        self.model.kept.ordered(ask, wall, told);
    }

    /// What was in doubt when the server went down is as it says now.
    pub(super) fn settle_doubts(&mut self) {
        let Some(store) = self.server.store() else { return };
        let settings = store.retention(self.wall()).into_iter();
        let settings: Vec<_> = settings.map(|r| (r.volume, r.policy, r.effective)).collect();
        self.model.kept.settled(&settings, &store.deletions());
    }

    /// Whether roles, revocation and what has expired explain a failure.
    pub(super) fn is_excused(&self, at: usize, job: Job, error: &Error) -> bool {
        if self.settings.family != Family::Kept {
            return false;
        }
        let read = self.clients[at].reading;
        if read.is_some_and(|(id, seq)| self.model.kept.went(&id, seq..=seq)) {
            return true;
        }
        let Error::Refused { refusal, .. } = error else { return false };
        match (job, refusal) {
            (_, Refusal::Revoked) => self.is_revoked(at),
            (Job::Forbidden { .. }, Refusal::NotAuthorised) => true,
            (_, Refusal::NotAuthorised) => !self.calm && self.duties.appointed.contains(&at),
            (Job::Keep { .. }, Refusal::Conflict | Refusal::NotFound) => true,
            _ => false,
        }
    }

    /// What somebody does who is no writer, and now and then a writer; the outer `None`: what a
    /// writer does.
    pub(super) fn choose_as(&mut self, at: usize) -> Option<Option<Job>> {
        let role = self.clients[at].role;
        let over = self.calm || self.settings.writes_left == 0;
        if role != Role::Writer && over {
            return Some(None);
        }
        if over || (role == Role::Writer && self.below(30) > 0) {
            return None;
        }
        let volumes = &self.clients[at].volumes;
        let seen = |n: &usize| !self.model.points(&volumes[*n].id).is_empty();
        let seen: Vec<usize> = (0..volumes.len()).filter(seen).collect();
        if seen.is_empty() {
            return Some(None);
        }
        let volume = seen[self.below(seen.len() as u64) as usize];
        let nth = self.below(60);
        Some(Some(match self.below(6) {
            _ if role == Role::Writer => Job::Forbidden { volume, nth },
            0 => Job::Forbidden { volume, nth },
            1..5 if role == Role::Admin => {
                let id = self.clients[at].volumes[volume].id;
                let order = Order::some(&mut self.random, self.model.points(&id));
                Job::Keep { volume, order }
            }
            _ => Job::Restore { volume, back: self.below(6), in_place: self.below(2) == 0 },
        }))
    }

    /// Who waits for nobody's writes comes again.
    pub(super) fn idle_again(&mut self, at: usize) {
        let over = self.calm || self.settings.writes_left == 0;
        if self.clients[at].role != Role::Writer && !over {
            self.at(5 * S, Event::Idle(at));
        }
    }
}
