//! A session's answers on their way to its link: several at once.
//!
//! Invariant: the order stays; no more than [`TOGETHER`] bytes and one message wait;
//! whoever waits for the next question calls [`Answers::flush`] first.

use dormouse_format::message::Message;

/// Bytes of answers that go together.
const TOGETHER: usize = 256 << 10;

/// Answers that are not sent yet.
#[derive(Debug, Default)]
pub struct Answers {
    waiting: Vec<Message>,
    bytes: usize,
}

/// Sends messages; false if the link has ended.
pub type Send<'a> = &'a mut dyn FnMut(Vec<Message>) -> bool;

impl Answers {
    /// Adds an answer, and sends what waits if it is enough; false if the link has ended.
    pub fn add(&mut self, message: Message, send: Send<'_>) -> bool {
        self.bytes += weight(&message);
        self.waiting.push(message);
        self.bytes < TOGETHER || self.flush(send)
    }

    /// Sends what waits; false if the link has ended.
    pub fn flush(&mut self, send: Send<'_>) -> bool {
        self.bytes = 0;
        self.waiting.is_empty() || send(std::mem::take(&mut self.waiting))
    }
}

/// About as many bytes as the message has.
fn weight(message: &Message) -> usize {
    const SMALL: usize = 1 << 10;
    SMALL
        + match message {
            Message::Record { record } => record.len(),
            Message::Leaves { runs } => runs.len(),
            Message::Points { points } => points.len() * SMALL,
            Message::Volumes { items } => items.len() * SMALL,
            _ => 0,
        }
}
