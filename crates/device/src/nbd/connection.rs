//! One connection: its thread takes requests, carries out those that do not wait, hands the rest
//! to the pool, and sends all replies.
//!
//! Owns: the order of things. Invariants: this thread alone uses the socket; what is under way is
//! bounded in number and bytes; a connection ends when all that it had begun has ended, and what
//! it wrote is then flushed. Leaves to others: what requests mean ([`super::request`]), what is
//! replied ([`super::answer`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::answer::{Answer, PIECE};
use super::buffer::{In, Out};
use super::handshake::{Chosen, Handshake, Step, Tls, hello};
use super::options::Broken;
use super::pool::{Budget, Held, Pool};
use super::protocol::REQUEST_LEN;
use super::request::{Agreed, Op, Request};
use super::server::{Limits, Settings};
use super::socket::{Socket, Stream, Wait};
use super::{Exports, protocol};
use crate::Write;

/// Bytes that are read at a time.
const READ: usize = 256 << 10;
/// Replies are sent when there are so many bytes of them, or nothing more to do.
const SEND_AT: usize = 64 << 10;
/// Requests up to here are handed over when they take longer than that costs.
const SMALL: u32 = 64 << 10;
/// What it costs to hand one over, about.
const SLOW: Duration = Duration::from_micros(15);
/// Writes that are handed over together.
const BATCH: usize = 16;
/// Writes that are carried out together, and their bytes.
const JOINED: usize = 64;
const JOINED_BYTES: u64 = 256 << 10;
/// Finished replies up to here are copied, so that they are sent together.
const COPIED_MAX: usize = 64 << 10;

/// What all connections share.
pub struct Shared {
    pub exports: Exports,
    pub settings: Settings,
    pub pool: Pool,
    pub budget: Arc<Budget>,
    pub stopping: AtomicBool,
}

impl Shared {
    const fn limits(&self) -> &Limits {
        &self.settings.limits
    }
}

/// Why a connection ended, other than by the peer's wish.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The peer does not keep to the protocol.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it wrote could not be made durable.
    #[error("flush at its end: {0}")]
    Flush(crate::Error),
}

/// Serves a peer that has just connected. `begun` is called when it has chosen a disk.
pub fn run(shared: &Shared, mut socket: Socket, begun: impl FnOnce()) -> Result<(), Ended> {
    let until = Instant::now() + shared.limits().handshake;
    let tls = if shared.settings.tls.is_some() { Tls::Required } else { Tls::Absent };
    let mut handshake = Handshake::new(shared.exports.clone(), tls);
    let mut input = In::default();
    socket.send_all(&hello(), Wait::Until(until))?;
    let mut step = negotiate(&mut socket, &mut handshake, &mut input, until)?;
    let mut stream: Box<dyn Stream> = match (&step, &shared.settings.tls) {
        (Step::StartTls, Some(tls)) => {
            let mut stream = tls.start(socket, until)?;
            handshake.secured();
            step = negotiate(&mut *stream, &mut handshake, &mut input, until)?;
            stream
        }
        _ => Box::new(socket),
    };
    match step {
        Step::Begin(chosen) => {
            begun();
            serve(shared, stream, chosen, input)
        }
        _ => {
            stream.close();
            Ok(())
        }
    }
}

/// Until something other than options is to be done.
fn negotiate(
    stream: &mut dyn Stream,
    handshake: &mut Handshake,
    input: &mut In,
    until: Instant,
) -> Result<Step, Ended> {
    let mut out = Vec::new();
    loop {
        match handshake.step(input.filled(), &mut out)? {
            Some((len, step)) => {
                input.take(len);
                stream.send_all(&out, Wait::Until(until))?;
                out.clear();
                if !matches!(step, Step::More) {
                    return Ok(step);
                }
            }
            None => match stream.receive(input.room(4096), Wait::Until(until))? {
                0 => return Ok(Step::End),
                len => input.came(len),
            },
        }
    }
}

/// Serves a peer that has a disk.
pub fn serve(
    shared: &Shared,
    stream: Box<dyn Stream>,
    chosen: Chosen,
    input: In,
) -> Result<(), Ended> {
    let mut connection = Connection {
        shared,
        stream,
        agreed: Agreed { structured: chosen.structured, contexts: !chosen.contexts.is_empty() },
        chosen: Arc::new(chosen),
        input,
        out: Out::default(),
        finished: Arc::new(Finished::new()?),
        under_way: 0,
        wrote: false,
        pace: Pace::default(),
        batch: Batch::default(),
    };
    let served = connection.run();
    let flushed = connection.finish(served.is_ok());
    served.and(flushed)
}

/// What is to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// So many bytes at most.
    Bytes(usize),
    /// Something that is under way.
    Place,
    /// Nothing: the peer has said good-bye.
    End,
}

struct Connection<'a> {
    shared: &'a Shared,
    stream: Box<dyn Stream>,
    chosen: Arc<Chosen>,
    agreed: Agreed,
    input: In,
    out: Out,
    finished: Arc<Finished>,
    under_way: usize,
    wrote: bool,
    pace: Pace,
    batch: Batch,
}

impl Connection<'_> {
    fn run(&mut self) -> Result<(), Ended> {
        loop {
            self.collect()?;
            let next = self.take_requests();
            self.dispatch()?;
            let next = next?;
            self.send()?;
            if next == Next::End || self.shared.stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
            if !self.wait(next)? {
                return Ok(());
            }
        }
    }

    /// Takes every request that is whole.
    fn take_requests(&mut self) -> Result<Next, Ended> {
        loop {
            let Some(head) = self.input.filled().first_chunk::<REQUEST_LEN>() else {
                return Ok(Next::Bytes(READ));
            };
            let request = Request::decode(head)?;
            if request.is_end() {
                return Ok(Next::End);
            }
            let (len, came) = (REQUEST_LEN + request.payload(), self.input.filled().len());
            if came < len {
                // The rest of a long one and no more, so that the next begins a buffer.
                let missing = len - came;
                return Ok(Next::Bytes(if missing > READ { missing } else { READ }));
            }
            let taken = self.take_request(&request, len)?;
            if taken == 0 {
                return Ok(Next::Place);
            }
            self.input.take(taken);
            if self.out.len() >= SEND_AT {
                self.send()?;
            }
        }
    }

    /// Carries a request out, or has it done, and maybe some behind it. How many bytes of the
    /// input that took: none if there is no place for it now.
    fn take_request(&mut self, request: &Request, len: usize) -> Result<usize, Ended> {
        let device = &*self.chosen.export.device;
        let op = match request.check(&device.geometry(), self.agreed) {
            Ok(op) => op,
            Err(refused) => {
                let answer = Answer { chosen: &self.chosen, cookie: request.cookie };
                answer.error(refused.0, refused.1, None, &mut self.out);
                return Ok(len);
            }
        };
        self.wrote |= matches!(op, Op::Write { .. } | Op::Zero { .. } | Op::Trim { .. });
        let at_once = match op {
            Op::Nothing | Op::Cache { .. } => true,
            Op::Read { at, len, .. } => device.ready(at, len.into()),
            Op::Write { at, how } => !how.fua && device.write_ready(at, request.len.into()),
            Op::Flush => device.geometry().read_only,
            Op::Zero { .. } | Op::Trim { .. } | Op::Status { .. } => false,
        };
        let local = at_once && request.len <= SMALL;
        let in_turn = matches!(op, Op::Write { .. }) && device.writes_in_turn();
        if !at_once || (local && !in_turn && self.pace.slow() && self.more_after(len)) {
            let room = self.hand_over(op, request, len, local)?;
            return Ok(if room { len } else { 0 });
        }
        if in_turn
            && local
            && let Some(taken) = self.write_together()
        {
            return Ok(taken);
        }
        let begun = Instant::now();
        let Self { stream, chosen, input, out, .. } = self;
        let payload = input.filled().get(REQUEST_LEN..len).unwrap_or_default();
        let answer = Answer { chosen, cookie: request.cookie };
        answer.perform(op, payload, out, &mut |out: &mut Out| {
            stream.send_all(out.filled(), Wait::Forever)?;
            out.clear();
            Ok::<(), Ended>(())
        })?;
        if local {
            self.pace.note(begun.elapsed());
        }
        Ok(len)
    }

    /// Carries the writes out that lie at the front of the input, if there are several of whole
    /// blocks, with one call of the device. How many bytes they take; `None` if that was not done.
    fn write_together(&mut self) -> Option<usize> {
        let Self { chosen, input, out, agreed, .. } = self;
        let device = &*chosen.export.device;
        let geometry = device.geometry();
        let whole = |n: u64| n.is_multiple_of(geometry.block.into());
        let (mut parts, mut cookies) = (Vec::with_capacity(JOINED), Vec::with_capacity(JOINED));
        let (mut taken, mut bytes) = (0, 0);
        let came = input.filled();
        while cookies.len() < JOINED
            && let Some(rest) = came.get(taken..)
            && let Some(request) = rest.first_chunk().and_then(|head| Request::decode(head).ok())
            && let Some(payload) = rest.get(REQUEST_LEN..REQUEST_LEN + request.payload())
            && let Ok(Op::Write { at, how: Write { fua: false } }) =
                request.check(&geometry, *agreed)
            && request.len <= SMALL
            && whole(at)
            && whole(request.len.into())
        {
            bytes += u64::from(request.len);
            if bytes > JOINED_BYTES || !device.write_ready(at, bytes) {
                break;
            }
            taken += REQUEST_LEN + payload.len();
            parts.push((at, payload));
            cookies.push(request.cookie);
        }
        // After an error each is tried on its own, and gets its own answer.
        if cookies.len() < 2 || device.write_each(&parts).is_err() {
            return None;
        }
        cookies.into_iter().for_each(|cookie| Answer { chosen, cookie }.written(out));
        Some(taken)
    }

    /// Whether another request has come behind so many bytes.
    fn more_after(&self, len: usize) -> bool {
        self.input.filled().len() >= len + REQUEST_LEN
    }

    /// Has a request done by the pool; false if too much is under way.
    fn hand_over(
        &mut self,
        op: Op,
        request: &Request,
        len: usize,
        local: bool,
    ) -> Result<bool, Ended> {
        let reply = if matches!(op, Op::Read { .. }) { request.len as usize } else { 0 };
        let first = self.under_way == 0;
        if self.under_way >= self.shared.limits().under_way {
            return Ok(false);
        }
        let Some(held) = self.shared.budget.take(len + reply, first) else {
            return Ok(false);
        };
        // Writes to one file wait for each other in the kernel: they go to one thread together,
        // while this one takes and answers.
        let together = local && matches!(op, Op::Write { .. });
        if !together {
            self.dispatch()?;
        }
        let payload = self.input.filled().get(REQUEST_LEN..len).unwrap_or_default();
        self.batch.push(op, request.cookie, payload, held);
        self.batch.local = local;
        self.under_way += 1;
        if !together || self.batch.items.len() >= BATCH {
            self.dispatch()?;
        }
        Ok(true)
    }

    /// Gives the pool what was put together for it.
    fn dispatch(&mut self) -> Result<(), Ended> {
        if self.batch.items.is_empty() {
            return Ok(());
        }
        let Batch { items, payload, held, local } = std::mem::take(&mut self.batch);
        let promise = Promise::new(&self.finished, items.len(), held);
        let chosen = Arc::clone(&self.chosen);
        self.shared.pool.run(Box::new(move || {
            promise.keep(local, |out| {
                let mut rest = payload.as_slice();
                for (op, cookie, len) in items {
                    let (payload, after) = rest.split_at_checked(len).ok_or(())?;
                    rest = after;
                    let answer = Answer { chosen: &chosen, cookie };
                    answer.perform(op, payload, out, &mut |_| Ok(()))?;
                }
                Ok(())
            });
        }))?;
        Ok(())
    }

    /// Takes the replies that the pool has made.
    fn collect(&mut self) -> Result<(), Ended> {
        if self.under_way == 0 {
            return Ok(());
        }
        for reply in self.finished.take() {
            self.under_way -= reply.count;
            reply.took.into_iter().for_each(|took| self.pace.note(took));
            if !reply.kept {
                return Err(io::Error::other("a request was not carried out").into());
            }
            if reply.out.len() > COPIED_MAX {
                self.send()?;
                self.stream.send_all(reply.out.filled(), Wait::Forever)?;
            } else {
                self.out.put(reply.out.filled());
            }
            if self.out.len() >= SEND_AT {
                self.send()?;
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Ended> {
        if !self.out.is_empty() {
            self.stream.send_all(self.out.filled(), Wait::Forever)?;
            self.out.clear();
        }
        Ok(())
    }

    /// Waits until there is something to do; false at the end.
    fn wait(&mut self, next: Next) -> Result<bool, Ended> {
        if let Next::Bytes(most) = next {
            let wait = if self.under_way == 0 { Wait::Forever } else { Wait::No };
            match self.stream.receive(self.input.room(most), wait) {
                Ok(0) => return Ok(false),
                Ok(len) => {
                    self.input.came(len);
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        let socket = self.stream.socket();
        let mut fds =
            [PollFd::new(&self.finished.bell, PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
        let fds = if next == Next::Place { &mut fds[..1] } else { &mut fds[..] };
        match poll(fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(true),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }

    /// What is under way ends; what was written is made durable.
    fn finish(&mut self, mut answered: bool) -> Result<(), Ended> {
        while self.under_way > 0 {
            answered = answered && self.collect().and_then(|()| self.send()).is_ok();
            if !answered {
                let ended: usize = self.finished.take().iter().map(|reply| reply.count).sum();
                self.under_way = self.under_way.saturating_sub(ended);
            }
            if self.under_way > 0 {
                let _ = poll(&mut [PollFd::new(&self.finished.bell, PollFlags::IN)], None);
            }
        }
        if answered {
            self.stream.close();
        }
        if self.wrote {
            self.chosen.export.device.flush().map_err(Ended::Flush)?;
        }
        Ok(())
    }
}

/// Requests that one thread of the pool will carry out, in order.
#[derive(Default)]
struct Batch {
    /// Each with its cookie, and the bytes of its payload.
    items: Vec<(Op, u64, usize)>,
    payload: Vec<u8>,
    held: Vec<Held>,
    /// Whether they wait for no network.
    local: bool,
}

impl Batch {
    fn push(&mut self, op: Op, cookie: u64, payload: &[u8], held: Held) {
        self.items.push((op, cookie, payload.len()));
        self.payload.extend_from_slice(payload);
        self.held.push(held);
    }
}

/// How long small requests take: a running mean.
#[derive(Debug, Default)]
struct Pace(Duration);

impl Pace {
    fn note(&mut self, took: Duration) {
        self.0 = (self.0 * 15 + took.min(SLOW * 16)) / 16;
    }

    fn slow(&self) -> bool {
        self.0 > SLOW
    }
}

/// Replies that the pool has made, and a bell that says that there are some.
struct Finished {
    replies: Mutex<Vec<Reply>>,
    bell: OwnedFd,
}

/// Replies to some requests.
struct Reply {
    out: Out,
    kept: bool,
    count: usize,
    took: Option<Duration>,
    _held: Vec<Held>,
}

impl Finished {
    fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { replies: Mutex::default(), bell })
    }

    fn push(&self, reply: Reply) {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let first = replies.is_empty();
        replies.push(reply);
        drop(replies);
        if first {
            // Only a full counter could refuse, and that rings as well.
            let _ = rustix::io::write(&self.bell, &1u64.to_le_bytes());
        }
    }

    fn take(&self) -> Vec<Reply> {
        let _ = rustix::io::read(self.bell.as_fd(), &mut [0; 8]);
        std::mem::take(&mut *self.replies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Replies that will be made; the connection hears of them also if they are not.
struct Promise {
    to: Arc<Finished>,
    out: Out,
    kept: bool,
    count: usize,
    /// How long each took, where that tells something.
    took: Option<Duration>,
    held: Vec<Held>,
}

impl Promise {
    fn new(to: &Arc<Finished>, count: usize, held: Vec<Held>) -> Self {
        let to = Arc::clone(to);
        Self { to, out: Out::default(), kept: false, count, took: None, held }
    }

    /// Makes the replies.
    fn keep(mut self, local: bool, make: impl FnOnce(&mut Out) -> Result<(), ()>) {
        let begun = Instant::now();
        self.kept = make(&mut self.out).is_ok();
        let each = |took: Duration| took / u32::try_from(self.count).unwrap_or(1).max(1);
        self.took = local.then(|| each(begun.elapsed()));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let (out, held) = (std::mem::take(&mut self.out), std::mem::take(&mut self.held));
        let (kept, count, took) = (self.kept, self.count, self.took);
        self.to.push(Reply { out, kept, count, took, _held: held });
    }
}

const _: () = assert!(PIECE >= SEND_AT && READ > protocol::REQUEST_LEN);
