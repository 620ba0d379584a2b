//! What a link has received and nobody has taken yet.
//!
//! Invariant: messages come out in the order in which they came in; what is waiting
//! is bounded by batches of about as many bytes as are read at once. They come in
//! batches because waking a thread for each message costs more than the message.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender};

use super::Received;

/// Messages that came together.
pub type Batch = Vec<Received>;

/// Batches that may wait before the link stops reading.
const BATCHES_MAX: usize = 16;

/// The receiving half of a link. An error is the last thing that comes.
#[derive(Debug)]
pub struct Inbox {
    batches: Receiver<Batch>,
    taken: Mutex<VecDeque<Received>>,
}

/// An inbox, and where it is filled from.
pub(super) fn inbox() -> (Sender<Batch>, Inbox) {
    let (tx, batches) = crossbeam_channel::bounded(BATCHES_MAX);
    (tx, Inbox { batches, taken: Mutex::default() })
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Received>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next message of a batch that was taken.
    pub fn taken(&self) -> Option<Received> {
        self.lock().pop_front()
    }

    /// Whether [`Self::taken`] gives something now.
    pub fn has_taken(&self) -> bool {
        !self.lock().is_empty()
    }

    /// For a `select!` after [`Self::taken`] gave nothing. What it gives goes to [`Self::add`].
    pub const fn batches(&self) -> &Receiver<Batch> {
        &self.batches
    }

    /// Takes a batch over, and gives its first message.
    pub fn add(&self, batch: Batch) -> Option<Received> {
        let mut taken = self.lock();
        taken.extend(batch);
        taken.pop_front()
    }

    /// Waits for the next message. An error if the link has ended and said so before.
    pub fn recv(&self) -> Result<Received, RecvError> {
        self.next(|batches| batches.recv())
    }

    /// The same, for so long at most.
    pub fn recv_timeout(&self, wait: Duration) -> Result<Received, RecvTimeoutError> {
        self.recv_deadline(Instant::now() + wait)
    }

    /// The same, until then at most.
    pub fn recv_deadline(&self, until: Instant) -> Result<Received, RecvTimeoutError> {
        self.next(|batches| batches.recv_deadline(until))
    }

    fn next<E>(&self, more: impl Fn(&Receiver<Batch>) -> Result<Batch, E>) -> Result<Received, E> {
        let mut next = self.taken();
        loop {
            match next {
                Some(received) => return Ok(received),
                None => next = self.add(more(&self.batches)?),
            }
        }
    }
}
