//! A link at rest: its socket and the state of its TLS, and no thread.
//!
//! Invariant: a link rests only when nothing waits to be sent, and while whoever takes its
//! messages is waiting for one ([`Link::may_rest`]); nothing that came is lost, be it half a
//! message. Leaves to others: when to wake it: as soon as its socket can be read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_format::message::Deframer;
use rustls::Connection;

use super::Link;
use super::inbox::inbox;
use super::threads::{start_reader, start_writer};

impl Link {
    /// A link over an authenticated connection, that can rest when nothing came for so long.
    pub fn start_resting(
        socket: impl Into<std::sync::Arc<std::net::TcpStream>>,
        connection: Connection,
        deframer: Deframer,
        quiet: Duration,
    ) -> io::Result<Self> {
        let socket = socket.into();
        socket.set_read_timeout(Some(quiet))?;
        Self::start(socket, connection, deframer)
    }

    /// Whether it may rest from now on when nothing comes. Then `rx` ends without an error, and
    /// whoever takes from it calls [`Self::rest`].
    pub fn may_rest(&self, may: bool) {
        if let Some(wire) = &self.wire {
            wire.may_rest.store(may, Ordering::Relaxed);
        }
    }

    /// Rests, if `rx` has ended because nothing came, and nothing waits to be sent; else it goes
    /// on receiving. An error if the link has ended, or the system has no more threads.
    pub fn rest(&mut self) -> io::Result<bool> {
        let wire = self.wire.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // The reader's last act but ending.
        let mut reader = self.threads.pop().ok_or(io::ErrorKind::NotConnected)?;
        let _ = reader.join();
        let mut left = wire.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let deframer = left.take().ok_or(io::ErrorKind::NotConnected)?;
        if wire.queue().rest() {
            *left = Some(deframer);
            drop(left);
            self.threads.drain(..).for_each(|writer| drop(writer.join()));
            // What it has room for is given back.
            self.rx = inbox().1;
            return Ok(true);
        }
        drop(left);
        (reader, self.rx) = start_reader(wire, deframer)?;
        self.threads.push(reader);
        Ok(false)
    }

    /// Goes on after a rest.
    pub fn wake(&mut self) -> io::Result<()> {
        let wire = self.wire.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let left = wire.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let deframer = left.ok_or(io::ErrorKind::NotConnected)?;
        wire.may_rest.store(false, Ordering::Relaxed);
        wire.queue().wake();
        self.threads.push(start_writer(wire)?);
        let (reader, rx) = start_reader(wire, deframer)?;
        self.threads.push(reader);
        self.rx = rx;
        Ok(())
    }

    /// What to watch while it rests; nothing if the other side is in this process.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.wire.as_ref().map(|wire| wire.socket.as_fd())
    }
}
