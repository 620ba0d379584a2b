//! The reader and the writer of a link over TLS.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
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

type Shared = Arc<Mutex<Connection>>;
type Parts = (Vec<JoinHandle<()>>, Inbox);

fn lock(shared: &Shared) -> MutexGuard<'_, Connection> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn start(
    socket: &Arc<TcpStream>,
    connection: Connection,
    queue: Arc<Queue>,
    deframer: Deframer,
) -> io::Result<Parts> {
    let shared = Arc::new(Mutex::new(connection));
    let (tx, rx) = inbox();
    let builder = |name: &str| std::thread::Builder::new().name(name.into()).stack_size(STACK);
    let writer = {
        let (shared, queue, socket) = (shared.clone(), queue.clone(), socket.clone());
        builder("link-write").spawn(move || {
            if let Err(error) = write(&shared, &queue, &socket) {
                queue.close(LinkError::Cut(error.to_string()));
                let _ = socket.shutdown(Shutdown::Both);
            }
            queue.set_drained();
        })?
    };
    let reader = {
        let socket = socket.clone();
        let reading = builder("link-read").spawn({
            let queue = queue.clone();
            move || {
                let why = read(&shared, &queue, &socket, deframer, &tx);
                let broken = matches!(why, LinkError::Protocol(_));
                if !broken {
                    queue.close(why.clone());
                }
                let _ = tx.send(vec![Err(why)]);
                // Who broke the protocol can still be told so. What it sends is not looked at,
                // but taken: unread bytes would take the answer back.
                while broken && (&*socket).read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
            }
        });
        reading.inspect_err(|_| queue.close(LinkError::Closed))?
    };
    Ok((vec![writer, reader], rx))
}

fn write(shared: &Shared, queue: &Queue, socket: &TcpStream) -> io::Result<()> {
    let mut out = Vec::new();
    loop {
        let next = queue.next(WRITE_SIZE);
        let end = matches!(next, Next::End);
        let frames = match next {
            Next::Items(frames) => frames,
            Next::Flush => Vec::new(),
            Next::End => {
                lock(shared).send_close_notify();
                Vec::new()
            }
        };
        if frames.is_empty() {
            seal(shared, &[], &mut out)?;
        }
        for frame in frames {
            // A large frame goes in pieces, so that the reader gets the lock in between.
            for piece in frame.chunks(WRITE_SIZE) {
                if out.len() + piece.len() > WRITE_SIZE {
                    put(queue, socket, &out)?;
                    out.clear();
                }
                seal(shared, piece, &mut out)?;
            }
        }
        put(queue, socket, &out)?;
        out.clear();
        if end {
            return socket.shutdown(Shutdown::Write);
        }
    }
}

fn put(queue: &Queue, mut socket: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    queue.sent.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
    socket.write_all(bytes)
}

/// Seals `plain` and adds the TLS records, with whatever else TLS has to say, to `out`.
fn seal(shared: &Shared, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut connection = lock(shared);
    connection.writer().write_all(plain)?;
    while connection.wants_write() {
        connection.write_tls(out)?;
    }
    Ok(())
}

fn read(
    shared: &Shared,
    queue: &Queue,
    socket: &TcpStream,
    mut deframer: Deframer,
    tx: &Sender<Batch>,
) -> LinkError {
    let mut buffer = vec![0; READ_FIRST];
    loop {
        // First what is there already: frames that came with the handshake.
        if let Err(why) = pass_on(&mut deframer, tx) {
            return why;
        }
        let n = match (&*socket).read(&mut buffer) {
            Ok(0) => return LinkError::Cut("the other side went away".into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return LinkError::Cut(error.to_string()),
        };
        queue.received.fetch_add(n as u64, std::sync::atomic::Ordering::Relaxed);
        match open(shared, queue, &buffer[..n], &mut deframer) {
            Ok(()) => {}
            // What came before the goodbye still counts.
            Err(LinkError::Closed) => {
                let _ = pass_on(&mut deframer, tx);
                return LinkError::Closed;
            }
            Err(error) => return error,
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
fn open(
    shared: &Shared,
    queue: &Queue,
    mut received: &[u8],
    deframer: &mut Deframer,
) -> Result<(), LinkError> {
    let mut connection = lock(shared);
    let mut closed = false;
    while !received.is_empty() {
        let cut = |e: io::Error| LinkError::Cut(e.to_string());
        connection.read_tls(&mut received).map_err(cut)?;
        let state = connection.process_new_packets().map_err(|e| {
            queue.flush();
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
        queue.flush();
    }
    if closed { Err(LinkError::Closed) } else { Ok(()) }
}
