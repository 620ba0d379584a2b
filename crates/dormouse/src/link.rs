//! A full-duplex link of messages over a TLS connection, or inside the process.
//!
//! Owns: two threads for each connection that is at work, and the queues between them and the
//! caller. Invariant: neither thread holds the TLS lock while it waits for the
//! socket, so both directions always move; both queues are bounded; a link that is
//! dropped ends its threads. Leaves to others: what the messages mean.

mod answers;
mod in_process;
mod inbox;
mod queue;
mod resting;
mod threads;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dormouse_format::message::{Deframer, Message};
use rustls::Connection;

use crate::patience;
use crate::tls::Fault;
pub use answers::Answers;
pub use inbox::{Batch, Inbox};
use queue::Queue;
use threads::Wire;

/// Bytes that may wait to be sent before `send` blocks.
pub const SEND_BYTES_MAX: usize = 8 << 20;
/// How long a closing link waits for its last bytes to leave.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other side said that it is done.
    #[error("the other side closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection was cut: {0}")]
    Cut(String),
    /// The other side sent what no message is.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
    /// TLS found something wrong.
    #[error(transparent)]
    Tls(Fault),
}

/// What is received: a message, or at last why there are no more.
pub type Received = Result<Message, LinkError>;

/// The sending half; can be cloned.
#[derive(Debug, Clone)]
pub struct LinkTx {
    queue: Arc<Queue>,
}

impl LinkTx {
    /// Queues a message; waits while too many bytes are queued.
    pub fn send(&self, message: Message) -> Result<(), LinkError> {
        self.queue.push(message)
    }

    /// Queues messages, and wakes the writer once for all of them.
    pub fn send_all(&self, messages: impl IntoIterator<Item = Message>) -> Result<(), LinkError> {
        // Before the queue is locked: the writer needs it too.
        let frames: Vec<_> = messages.into_iter().map(|m| m.encode()).collect();
        self.queue.push_all(frames)
    }

    /// Lets what is queued go out, then says goodbye. Does not wait.
    pub fn shutdown(&self) {
        self.queue.close(LinkError::Closed);
    }

    /// Bytes that went out so far: what crossed the wire, TLS included.
    pub fn sent(&self) -> u64 {
        self.queue.sent.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Bytes that came in so far, TLS included.
    pub fn received(&self) -> u64 {
        self.queue.received.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Why nothing can be sent any more, if that is so.
    pub fn ended(&self) -> Option<LinkError> {
        self.queue.closed()
    }

    /// Bytes queued and not yet handed to the system.
    pub fn queued(&self) -> usize {
        self.queue.bytes()
    }

    /// Bytes of all messages that were sent or queued, without what TLS adds.
    pub fn sent_bytes(&self) -> u64 {
        self.queue.total()
    }
}

/// A link: send with `tx`, receive with `rx`.
#[derive(Debug)]
pub struct Link {
    /// Sends.
    pub tx: LinkTx,
    /// Receives. An error is the last thing that comes.
    pub rx: Inbox,
    /// The writer, then the reader; none while it rests.
    threads: Vec<JoinHandle<()>>,
    /// None if the other side is in this process.
    wire: Option<Arc<Wire>>,
}

impl Link {
    /// A link over an authenticated connection. `deframer` may hold bytes that came
    /// before, and has the limit of a frame.
    pub fn start(
        socket: impl Into<Arc<TcpStream>>,
        connection: Connection,
        deframer: Deframer,
    ) -> io::Result<Self> {
        let socket = socket.into();
        prepare(&socket)?;
        let queue = Arc::new(Queue::new(SEND_BYTES_MAX));
        let wire = Arc::new(Wire::new(socket, connection, queue.clone()));
        let writer = threads::start_writer(&wire)?;
        let (reader, rx) = threads::start_reader(&wire, deframer)?;
        Ok(Self { tx: LinkTx { queue }, rx, threads: vec![writer, reader], wire: Some(wire) })
    }

    /// Bytes that crossed the wire in both directions so far.
    pub fn moved(&self) -> u64 {
        self.tx.sent() + self.tx.received()
    }

    /// Whether the other side is in this process.
    pub const fn is_local(&self) -> bool {
        self.wire.is_none()
    }

    /// Ends the connection at once; both threads notice.
    pub fn cut(&self) {
        self.tx.queue.close(LinkError::Cut("closed on this side".into()));
        if let Some(wire) = &self.wire {
            let _ = wire.socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tx.queue.close(LinkError::Closed);
        let until = Instant::now() + CLOSE_WAIT;
        // The reader may be waiting for room: take what is there until the writer is done.
        let at_rest = self.threads.is_empty();
        while !at_rest && !self.tx.queue.drained() && Instant::now() < until {
            let _ = self.rx.recv_timeout(Duration::from_millis(5));
        }
        if let Some(wire) = &self.wire {
            let _ = wire.socket.shutdown(Shutdown::Both);
        }
        // A thread that waits for room in the channel gets it, also if somebody kept a
        // clone of `rx`.
        while self.threads.iter().any(|t| !t.is_finished()) {
            if self.rx.recv_timeout(Duration::from_millis(2)).is_err_and(|e| e.is_disconnected()) {
                break;
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// No delay for small messages, and a dead peer is noticed: one whose system does not answer,
/// or whose program takes nothing of what waits for it. A minute would not do: a program that
/// waits for its disk takes nothing either.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(20))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(socket, 4)?;
    let dead = u32::try_from(patience::limit().as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, dead)?;
    Ok(())
}
