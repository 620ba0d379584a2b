//! A client's connection, from its welcome to its end.
//!
//! Invariants: answers leave in the order of the questions; nothing is looked at any more once
//! the client is sent away; a turn is held only while a message is worked on, and not while anybody
//! is waited for. Leaves to others: the handshake ([`super::connection`]), what a message does
//! (`dormouse_sync::server`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use dormouse_format::VaultId;
use dormouse_format::message::{Base, Keep, Message, Refusal};
use dormouse_sync::server::{After, Refused, Session};

use super::Shared;
use super::audited::What;
use super::scans::Scan;
use super::turns::Turn;
use crate::link::{Answers, Batch, Link, LinkError, Received, SEND_BYTES_MAX};
use crate::text::now_ns;

/// How long a connection that was refused may take to read why.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// When a scan that waits is told so first, and how often from then on.
const QUEUED: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// A connection of a client, awake or at rest.
pub(super) struct Visit {
    pub(super) session: Session,
    pub(super) link: Link,
    /// It hears from this that it has to go.
    pub(super) dismissed: Receiver<Refused>,
    pub(super) from: SocketAddr,
    pub(super) began: Instant,
    /// Its place among the scans, if it scans.
    pub(super) scan: Option<Scan>,
}

/// A connection that is awake.
pub(super) struct Serving<'a> {
    shared: &'a Shared,
    visit: Visit,
    vault: VaultId,
}

/// How a connection ceases to be served.
pub(super) enum End {
    /// It says nothing, and may rest.
    Rests,
    /// It has ended, and why.
    Over(String),
}

/// Whether the connection goes on, or why it does not.
type Went<T = ()> = Result<T, String>;

impl<'a> Serving<'a> {
    /// A connection to be served.
    pub(super) fn new(shared: &'a Shared, visit: Visit) -> Self {
        let vault = visit.session.client().map_or(VaultId::ZERO, |client| client.vault);
        Self { shared, visit, vault }
    }

    /// Serves until the connection ends, or rests.
    pub(super) fn run(mut self) -> (Visit, End) {
        let end = loop {
            match self.next() {
                Ok(Some(first)) => {
                    if let Err(why) = self.work(first) {
                        break End::Over(why);
                    }
                }
                Ok(None) => break End::Rests,
                Err(why) => break End::Over(why),
            }
        };
        (self.visit, end)
    }

    /// Waits for a message; none if none came for a while, and the link rests now.
    fn next(&mut self) -> Went<Option<Received>> {
        loop {
            if let Some(received) = self.visit.link.rx.taken() {
                return Ok(Some(received));
            }
            if let Some(batch) = self.batch()? {
                if let Some(received) = self.visit.link.rx.add(batch) {
                    return Ok(Some(received));
                }
            } else if self.visit.link.rest().map_err(|_| "done")? {
                return Ok(None);
            }
        }
    }

    /// Waits for messages; none if nothing was received for a while.
    fn batch(&self) -> Went<Option<Batch>> {
        let link = &self.visit.link;
        link.may_rest(true);
        let went = select! {
            recv(link.rx.batches()) -> batch => Ok(batch.ok()),
            recv(self.visit.dismissed) -> refused => Err(self.dismiss(refused.ok())),
            recv(self.shared.stopping) -> _ => Err(self.stop()),
        };
        link.may_rest(false);
        went
    }

    /// Works on all that is there, in turns, and sends the answers.
    fn work(&mut self, first: Received) -> Went {
        let (mut answers, mut turn, mut next) = (Answers::default(), None, Some(first));
        while let Some(received) = next {
            if let Ok(refused) = self.visit.dismissed.try_recv() {
                return Err(self.dismiss(Some(refused)));
            }
            let message = match received {
                Ok(message) => message,
                Err(error) => {
                    drop(turn);
                    self.flush(&mut answers)?;
                    return Err(self.broken(error));
                }
            };
            self.answer(message, &mut turn, &mut answers)?;
            if turn.as_ref().is_some_and(Turn::is_over) {
                turn = None;
            }
            next = self.visit.link.rx.taken();
        }
        drop(turn);
        self.flush(&mut answers)
    }

    /// Has a message answered.
    fn answer(
        &mut self,
        message: Message,
        turn: &mut Option<Turn<'a>>,
        answers: &mut Answers,
    ) -> Went {
        match &message {
            Message::AskScan => {
                *turn = None;
                self.flush(answers)?;
                self.admission()?;
            }
            // What it does next is no scan.
            Message::OpenWrite { .. } | Message::Begin { base: Base::Delta, .. } => {
                self.visit.scan = None;
            }
            _ => {}
        }
        let what = What::of(&self.visit.session, &message);
        let commit = matches!(message, Message::Commit { .. });
        let (began, scans) = (Instant::now(), self.visit.scan.is_some());
        let (shared, link, vault) = (self.shared, &self.visit.link, self.vault);
        // It reads much, for one who can wait: who has a turn goes on meanwhile.
        if matches!(message, Message::Keep(Keep::GetGain { .. })) {
            *turn = None;
        } else {
            turn.get_or_insert_with(|| shared.turns.take(vault, scans));
        }
        let mut send = |messages: Vec<Message>| {
            let full = link.tx.queued() >= SEND_BYTES_MAX / 2;
            if !full && !turn.as_ref().is_some_and(Turn::is_over) {
                return link.tx.send_all(messages).is_ok();
            }
            // It may take its time to read, or it is somebody else's turn.
            *turn = None;
            let sent = link.tx.send_all(messages).is_ok();
            *turn = Some(shared.turns.take(vault, scans));
            sent
        };
        let (mut said, mut there, mut committed) = (None, true, false);
        let mut kept = Message::Done;
        let after = self.visit.session.handle(now_ns(), message, &mut |m| {
            match &m {
                Message::Error { text, refusal } => {
                    shared.counters.refused(*refusal);
                    said = Some(text.clone());
                }
                Message::Committed { .. } => committed = true,
                Message::Kept(_) if what.is_some() => kept = m.clone(),
                _ => {}
            }
            there = there && answers.add(m, &mut send);
        });
        if commit && committed {
            shared.counters.commit(began.elapsed());
            self.visit.scan = None;
        }
        if let (Some(what), None) = (what, &said) {
            what.write(shared, &self.visit.session, self.visit.from, &kept);
        }
        if !there {
            return Err(self.ended());
        }
        if after == After::Close {
            *turn = None;
            let _ = self.flush(answers);
            self.close();
            return Err(format!("refused: {}", said.as_deref().unwrap_or("no reason given")));
        }
        Ok(())
    }

    /// Waits until a scan may begin, and tells the client meanwhile how many are before it.
    fn admission(&mut self) -> Went {
        self.visit.scan = None;
        let scan = self.shared.scans.enter(Instant::now());
        let mut wait = QUEUED[0];
        loop {
            select! {
                recv(scan.admitted()) -> _ => break,
                recv(self.visit.dismissed) -> refused => return Err(self.dismiss(refused.ok())),
                recv(self.shared.stopping) -> _ => return Err(self.stop()),
                default(wait) => {
                    wait = QUEUED[1];
                    let queued = Message::Queued { ahead: scan.ahead() };
                    self.visit.link.tx.send(queued).map_err(|_| self.ended())?;
                }
            }
        }
        self.visit.scan = Some(scan);
        Ok(())
    }

    fn flush(&self, answers: &mut Answers) -> Went {
        let sent = answers.flush(&mut |messages| self.visit.link.tx.send_all(messages).is_ok());
        if sent { Ok(()) } else { Err(self.ended()) }
    }

    /// Sends the client away.
    fn dismiss(&self, refused: Option<Refused>) -> String {
        let Some(Refused { refusal, text }) = refused else { return "cut".into() };
        self.shared.counters.refused(refusal);
        let why = format!("sent away: {text}");
        let _ = self.visit.link.tx.send(Message::Error { refusal, text });
        self.close();
        why
    }

    fn stop(&self) -> String {
        let text = "the server is stopping".to_owned();
        let _ = self.visit.link.tx.send(Message::Error { refusal: Refusal::Stopping, text });
        self.close();
        "stopped".into()
    }

    /// The link has ended, or what came is no message.
    fn broken(&self, error: LinkError) -> String {
        match error {
            LinkError::Closed => "done".into(),
            LinkError::Protocol(_) => {
                let (refusal, text) = (Refusal::Protocol, error.to_string());
                self.shared.counters.refused(refusal);
                let _ = self.visit.link.tx.send(Message::Error { refusal, text: text.clone() });
                self.close();
                text
            }
            error => error.to_string(),
        }
    }

    /// Why nothing can be sent on the link.
    fn ended(&self) -> String {
        self.visit.link.tx.ended().map_or_else(|| "cut".into(), |why| why.to_string())
    }

    /// Lets the last answer go out, and takes what the client still sends: a socket that
    /// is closed with unread bytes would take the answer back.
    fn close(&self) {
        self.visit.link.tx.shutdown();
        let until = Instant::now() + LINGER;
        while let Ok(received) = self.visit.link.rx.recv_deadline(until) {
            if received.is_err() {
                break;
            }
        }
    }
}
