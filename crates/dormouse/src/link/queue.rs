//! The queue of frames that wait to be sent, bounded in bytes.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dormouse_format::message::Message;

use super::LinkError;
use crate::patience;

/// What an item costs beside its bytes: without it, millions of the smallest frames would be
/// within the limit.
const EACH: usize = 64;

/// What the writer is to do next.
#[derive(Debug)]
pub(super) enum Next<T> {
    /// Send these.
    Items(Vec<T>),
    /// Only what TLS itself wants to send.
    Flush,
    /// Say goodbye: nothing more comes.
    End,
    /// Nothing comes for a while: [`Queue::rest`].
    Rest,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    total: u64,
    flush: bool,
    closed: Option<LinkError>,
    drained: bool,
    /// The writer has something in hand that is not in the system's hands yet.
    writing: bool,
    resting: bool,
}

impl<T> State<T> {
    fn add(&mut self, item: T, bytes: usize) {
        self.items.push_back((item, bytes));
        self.bytes += bytes + EACH;
        self.total += bytes as u64;
    }
}

/// A bounded queue with a closing reason.
#[derive(Debug)]
pub(super) struct Queue<T = Vec<u8>> {
    state: Mutex<State<T>>,
    room: Condvar,
    work: Condvar,
    limit: usize,
    /// Bytes that went to the socket; plaintext where there is none.
    pub(super) sent: AtomicU64,
    /// Bytes that came from the socket.
    pub(super) received: AtomicU64,
}

impl Queue<Vec<u8>> {
    /// Adds a message as its frame.
    pub(super) fn push(&self, message: Message) -> Result<(), LinkError> {
        self.push_all([message.encode()])
    }

    /// Adds frames; the writer is woken once.
    pub(super) fn push_all(
        &self,
        frames: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<(), LinkError> {
        let mut state = self.lock();
        for frame in frames {
            state = self.wait_for_room(state)?;
            let len = frame.len();
            state.add(frame, len);
        }
        if !state.items.is_empty() {
            self.work.notify_one();
        }
        Ok(())
    }
}

impl<T> Queue<T> {
    pub(super) fn new(limit: usize) -> Self {
        let state = State {
            items: VecDeque::new(),
            bytes: 0,
            total: 0,
            flush: false,
            closed: None,
            drained: false,
            writing: false,
            resting: false,
        };
        Self {
            state: Mutex::new(state),
            room: Condvar::new(),
            work: Condvar::new(),
            limit,
            sent: 0.into(),
            received: 0.into(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room; an error if the queue is closed, or if the other side takes
    /// next to nothing for as long as one waits for an answer.
    fn wait_for_room<'a>(
        &self,
        mut state: MutexGuard<'a, State<T>>,
    ) -> Result<MutexGuard<'a, State<T>>, LinkError> {
        let until = Instant::now() + patience::limit();
        while state.closed.is_none() && state.bytes >= self.limit {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.closed = Some(LinkError::Cut(format!(
                    "the other side took nothing for {} s",
                    patience::limit().as_secs_f64()
                )));
                break;
            }
            self.work.notify_one();
            let woken = self.room.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        match &state.closed {
            Some(why) => Err(why.clone()),
            None => Ok(state),
        }
    }

    /// Wakes the writer so that it sends what TLS has to say.
    pub(super) fn flush(&self) {
        self.lock().flush = true;
        self.work.notify_one();
    }

    /// No more is taken; the first reason given stays.
    pub(super) fn close(&self, why: LinkError) {
        let mut state = self.lock();
        state.closed.get_or_insert(why);
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Sends the writer home, if it has nothing to do; false if it has, or if the link has ended.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.lock();
        if state.writing || state.flush || !state.items.is_empty() || state.closed.is_some() {
            return false;
        }
        state.resting = true;
        self.work.notify_all();
        true
    }

    /// There is a writer again.
    pub(super) fn wake(&self) {
        self.lock().resting = false;
    }

    /// The writer has ended.
    pub(super) fn set_drained(&self) {
        let mut state = self.lock();
        state.drained = true;
        state.items.clear();
        state.bytes = 0;
    }

    pub(super) fn closed(&self) -> Option<LinkError> {
        self.lock().closed.clone()
    }

    pub(super) fn drained(&self) -> bool {
        self.lock().drained
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Bytes of all items that were ever added.
    pub(super) fn total(&self) -> u64 {
        self.lock().total
    }

    /// Waits for work: items of about `batch` bytes together, and at least one.
    pub(super) fn next(&self, batch: usize) -> Next<T> {
        let mut state = self.lock();
        // Who asks has done what it was given before.
        state.writing = false;
        loop {
            if !state.items.is_empty() {
                let mut out = Vec::new();
                let mut taken = 0;
                while let Some((item, bytes)) = state.items.pop_front() {
                    taken += bytes;
                    out.push(item);
                    if state.items.front().is_none_or(|(_, next)| taken + next > batch) {
                        break;
                    }
                }
                state.bytes -= taken + EACH * out.len();
                state.flush = false;
                state.writing = true;
                self.room.notify_all();
                return Next::Items(out);
            }
            if state.flush {
                state.flush = false;
                state.writing = true;
                return Next::Flush;
            }
            if state.closed.is_some() {
                return Next::End;
            }
            if state.resting {
                return Next::Rest;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
