//! The reader and the writer of a link over TLS.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use dormouse_format::message::Deframer;
use rustls::Connection;

use super::LinkError;
use super::inbox::{Batch, Inbox, inbox};
use super::queue::{Next, Queue};
use crate::tls;

/// Bytes asked of the socket at once, at most; and at first: thousands say next to nothing.
const READ_SIZE: usize = 256 << 10;
const READ_FIRST: usize = 4 << 10;
/// Bytes sealed under one hold of the lock.
const WRITE_SIZE: usize = 256 << 10;
/// Messages that are handed on together, at most: a frame of five bytes becomes a message of
/// several hundred.
const BATCH_MESSAGES: usize = 128;
/// Stack of each thread; neither recurses.
const STACK: usize = 256 << 10;

type Shared = Mutex<Connection>;

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What both threads need, and what is left of them when they rest.
#[derive(Debug)]
pub(super) struct Wire {
    connection: Shared,
    pub(super) socket: Arc<TcpStream>,
    queue: Arc<Queue>,
    /// What a reader has left that ended because nothing came.
    pub(super) left: Mutex<Option<Deframer>>,
    /// Whether the reader may end when nothing comes for its socket's timeout.
    pub(super) may_rest: AtomicBool,
}

impl Wire {
    pub(super) fn new(socket: Arc<TcpStream>, connection: Connection, queue: Arc<Queue>) -> Self {
        let (left, may_rest) = Default::default();
        Self { connection: Mutex::new(connection), socket, queue, left, may_rest }
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }
}

fn builder(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.into()).stack_size(STACK)
}

/// Begins to send what is queued.
pub(super) fn start_writer(wire: &Arc<Wire>) -> io::Result<JoinHandle<()>> {
    let wire = wire.clone();
    builder("link-write").spawn(move || {
        match write(&wire) {
            Ok(Done::Rests) => return,
            Ok(Done::Ended) => {}
            Err(error) => {
                wire.queue.close(LinkError::Cut(error.to_string()));
                let _ = wire.socket.shutdown(Shutdown::Both);
            }
        }
        wire.queue.set_drained();
    })
}

/// Begins to receive. The inbox ends with an error, or without one if the reader rests.
pub(super) fn start_reader(
    wire: &Arc<Wire>,
    mut deframer: Deframer,
) -> io::Result<(JoinHandle<()>, Inbox)> {
    let (tx, rx) = inbox();
    let reading = builder("link-read").spawn({
        let wire = wire.clone();
        move || {
            let Err(why) = read(&wire, &mut deframer, &tx) else {
                deframer.shrink();
                *lock(&wire.left) = Some(deframer);
                return;
            };
            let broken = matches!(why, LinkError::Protocol(_));
            if !broken {
                wire.queue.close(why.clone());
            }
            let _ = tx.send(vec![Err(why)]);
            // Who broke the protocol can still be told so. What it sends is not looked at,
            // but taken: unread bytes would take the answer back.
            let mut socket = &*wire.socket;
            while broken && goes_on(socket.read(&mut [0; 4096])) {}
        }
    });
    Ok((reading.inspect_err(|_| wire.queue.close(LinkError::Closed))?, rx))
}

/// Whether there is, or may be, more.
fn goes_on(read: io::Result<usize>) -> bool {
    read.map_or_else(|error| is_silence(&error), |n| n > 0)
}

/// Whether nothing came for the socket's timeout.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// How a writer ends that has not failed.
enum Done {
    Ended,
    Rests,
}

fn write(wire: &Wire) -> io::Result<Done> {
    let mut out = Vec::new();
    loop {
        let next = wire.queue.next(WRITE_SIZE);
        let end = matches!(next, Next::End);
        let frames = match next {
            Next::Items(frames) => frames,
            Next::Flush => Vec::new(),
            Next::End => {
                lock(&wire.connection).send_close_notify();
                Vec::new()
            }
            Next::Rest => return Ok(Done::Rests),
        };
        if frames.is_empty() {
            seal(&wire.connection, &[], &mut out)?;
        }
        for frame in frames {
            // A large frame goes in pieces, so that the reader gets the lock in between.
            for piece in frame.chunks(WRITE_SIZE) {
                if out.len() + piece.len() > WRITE_SIZE {
                    put(wire, &out)?;
                    out.clear();
                }
                seal(&wire.connection, piece, &mut out)?;
            }
        }
        put(wire, &out)?;
        out.clear();
        if end {
            wire.socket.shutdown(Shutdown::Write)?;
            return Ok(Done::Ended);
        }
    }
}

fn put(wire: &Wire, bytes: &[u8]) -> io::Result<()> {
    wire.queue.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    (&*wire.socket).write_all(bytes)
}

/// Seals `plain` and adds the TLS records, with whatever else TLS has to say, to `out`.
fn seal(connection: &Shared, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut connection = lock(connection);
    connection.writer().write_all(plain)?;
    while connection.wants_write() {
        connection.write_tls(out)?;
    }
    Ok(())
}

/// Receives until the link ends; fine if nothing came for a while, and it may rest.
fn read(wire: &Wire, deframer: &mut Deframer, tx: &Sender<Batch>) -> Result<(), LinkError> {
    let mut buffer = vec![0; READ_FIRST];
    loop {
        // First what is there already: frames that came with the handshake.
        pass_on(deframer, tx)?;
        let n = match (&*wire.socket).read(&mut buffer) {
            Ok(0) => return Err(LinkError::Cut("the other side went away".into())),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if is_silence(&error) => {
                if wire.may_rest.load(Ordering::Relaxed) {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(LinkError::Cut(error.to_string())),
        };
        wire.queue.received.fetch_add(n as u64, Ordering::Relaxed);
        match open(wire, &buffer[..n], deframer) {
            Ok(()) => {}
            // What came before the goodbye still counts.
            Err(LinkError::Closed) => {
                let _ = pass_on(deframer, tx);
                return Err(LinkError::Closed);
            }
            Err(error) => return Err(error),
        }
        if n == buffer.len() && n < READ_SIZE {
            buffer = vec![0; (n * 4).min(READ_SIZE)];
        }
    }
}

/// Gives out the whole messages that were received.
fn pass_on(deframer: &mut Deframer, tx: &Sender<Batch>) -> Result<(), LinkError> {
    let mut batch = Batch::new();
    let broken = loop {
        if batch.len() >= BATCH_MESSAGES && tx.send(std::mem::take(&mut batch)).is_err() {
            return Err(LinkError::Closed);
        }
        match deframer.next_message() {
            Ok(Some(message)) => batch.push(Ok(message)),
            Ok(None) => break None,
            Err(error) => break Some(LinkError::Protocol(error.to_string())),
        }
    };
    if !batch.is_empty() && tx.send(batch).is_err() {
        return Err(LinkError::Closed);
    }
    broken.map_or(Ok(()), Err)
}

/// Opens what was received, and gives the plaintext to the deframer.
fn open(wire: &Wire, mut received: &[u8], deframer: &mut Deframer) -> Result<(), LinkError> {
    let mut connection = lock(&wire.connection);
    let mut closed = false;
    while !received.is_empty() {
        let cut = |e: io::Error| LinkError::Cut(e.to_string());
        connection.read_tls(&mut received).map_err(cut)?;
        let state = connection.process_new_packets().map_err(|e| {
            wire.queue.flush();
            LinkError::Tls(tls::fault_of(&e))
        })?;
        closed |= state.peer_has_closed();
        let mut left = state.plaintext_bytes_to_read();
        while left > 0 {
            let mut reader = connection.reader();
            let plain = reader.fill_buf().map_err(cut)?;
            let n = plain.len();
            deframer.push(plain);
            reader.consume(n);
            left = left.saturating_sub(n);
            if n == 0 {
                break;
            }
        }
        if closed {
            break;
        }
    }
    if connection.wants_write() {
        wire.queue.flush();
    }
    if closed { Err(LinkError::Closed) } else { Ok(()) }
}
