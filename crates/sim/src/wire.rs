//! A connection without a network, and lies on it.

use std::collections::VecDeque;
use std::sync::Arc;

use dormouse_format::TimeNs;
use dormouse_format::message::Message;
use dormouse_sync::error::{Error, Result};
use dormouse_sync::server::{After, Session};

use crate::drive::Ends;

/// What is said on a link, as it is said.
#[derive(Debug, Clone, Copy)]
pub enum Said<'a> {
    /// By the client; the server has not looked at it yet.
    Asked(&'a Message),
    /// By the server, which may go on working after it.
    Answered(&'a Message),
}

/// Hears what is said on links.
pub type Ear = Arc<dyn Fn(Said<'_>) + Send + Sync>;

/// A connection without a wire; messages still go through their codec.
pub struct Wire {
    session: Session,
    /// Hears everything.
    pub ear: Option<Ear>,
    inbox: VecDeque<Message>,
    /// The time that the server is told.
    pub now: TimeNs,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Messages sent.
    pub messages: u64,
    /// The link is cut when so many messages were sent.
    pub cut_after: Option<u64>,
    closed: bool,
}

impl Wire {
    /// A link to this session.
    pub fn new(session: Session, now: TimeNs) -> Self {
        let (inbox, cut_after, closed) = (VecDeque::new(), None, false);
        let (sent, received, messages) = (0, 0, 0);
        Self { session, ear: None, inbox, now, sent, received, messages, cut_after, closed }
    }

    /// Sends a message, unless the link is cut.
    pub fn send(&mut self, message: &Message) {
        if self.cut_after.is_some_and(|n| self.messages >= n) {
            self.closed = true;
        }
        if self.closed {
            return;
        }
        self.messages += 1;
        let frame = message.encode();
        self.sent += frame.len() as u64;
        let message = Message::decode(&frame[4..]).unwrap();
        let (inbox, received) = (&mut self.inbox, &mut self.received);
        let ear = self.ear.as_deref();
        ear.inspect(|ear| ear(Said::Asked(&message)));
        let after = self.session.handle(self.now, message, &mut |answer| {
            ear.inspect(|ear| ear(Said::Answered(&answer)));
            let frame = answer.encode();
            *received += frame.len() as u64;
            inbox.push_back(Message::decode(&frame[4..]).unwrap());
        });
        self.closed = after == After::Close;
    }

    /// The connection ends, and the server sees it.
    pub fn end(&mut self) {
        self.closed = true;
        self.session.end();
    }

    /// Sends a question and takes the next answer.
    pub fn ask(&mut self, message: &Message) -> Result<Message> {
        self.send(message);
        self.answer()
    }

    /// The next answer. Nothing waits here: an answer that is not there never comes.
    pub fn answer(&mut self) -> Result<Message> {
        match self.inbox.pop_front() {
            Some(Message::Error { refusal, text }) => Err(Error::Refused { refusal, text }),
            Some(message) => Ok(message),
            None => Err(Error::Protocol { what: "cut" }),
        }
    }
}

/// A lie about one message.
pub type Lie = Box<dyn FnMut(&mut Message)>;

/// What a lying server does: it answers another question, or alters an answer.
#[derive(Default)]
pub struct Liar {
    /// Alters questions before the server sees them.
    pub ask: Option<Lie>,
    /// Alters answers before the client sees them.
    pub answer: Option<Lie>,
}

/// A link on which somebody lies.
pub struct Lied<'a> {
    /// The link.
    pub wire: &'a mut Wire,
    /// Who lies.
    pub liar: &'a mut Liar,
}

impl Ends for Lied<'_> {
    fn send(&mut self, mut message: Message) {
        if let Some(ask) = &mut self.liar.ask {
            ask(&mut message);
        }
        self.wire.send(&message);
    }

    fn receive(&mut self) -> Option<Result<Message>> {
        Some(self.wire.answer().map(|mut message| {
            if let Some(answer) = &mut self.liar.answer {
                answer(&mut message);
            }
            message
        }))
    }

    fn waiting(&self) -> bool {
        !self.wire.inbox.is_empty()
    }
}
