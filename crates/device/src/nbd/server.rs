//! Listening, and the table of connections.
//!
//! Invariants: there are so many connections at most; one that has not chosen a disk makes room
//! for a newcomer, the oldest first, but not before it had a fair time; meanwhile newcomers wait
//! in the system's queue. A stop takes no longer than its limit.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{Shutdown, shutdown};

use super::Exports;
use super::buffer::In;
use super::connection::{self, Shared};
use super::handshake::Chosen;
use super::pool::{Budget, Pool};
use super::socket::{Socket, StartTls};

/// Stack of a connection's thread.
const STACK: usize = 512 << 10;
/// After an accept that failed, such as for want of file descriptors.
const REST: Duration = Duration::from_millis(100);
/// Connections that the system keeps until they are accepted.
const BACKLOG: i32 = 64;

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Until a disk must have been chosen.
    pub handshake: Duration,
    /// For so long a connection without a disk does not have to make room.
    pub grace: Duration,
    /// Threads for requests that may take long.
    pub workers: usize,
    /// Requests of one connection that such threads have.
    pub under_way: usize,
    /// Bytes that all connections hold for such requests, beyond one request for each.
    pub memory: usize,
    /// How long a stop waits for what is under way.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            handshake: Duration::from_secs(30),
            grace: Duration::from_millis(500),
            workers: 32,
            under_way: 128,
            memory: 256 << 20,
            stop: Duration::from_secs(30),
        }
    }
}

/// Where a server's events go.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// How a server is set up.
#[derive(Clone, Default)]
pub struct Settings {
    /// Its bounds.
    pub limits: Limits,
    /// If there is one, nothing is told without it.
    pub tls: Option<Arc<dyn StartTls>>,
    /// Told of connections that end for a reason.
    pub log: Option<Log>,
}

impl core::fmt::Debug for Settings {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Settings({:?}, tls: {})", self.limits, self.tls.is_some())
    }
}

/// What a server listens on.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP port.
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<(OwnedFd, String)> {
        match self {
            Self::Unix(listener) => {
                let (socket, _) = listener.accept()?;
                socket.set_nonblocking(false)?;
                Ok((socket.into(), "a peer".to_owned()))
            }
            Self::Tcp(listener) => {
                let (socket, from) = listener.accept()?;
                socket.set_nonblocking(false)?;
                Ok((socket.into(), from.to_string()))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A connection in the table.
struct Seat {
    /// To end it from outside.
    socket: OwnedFd,
    /// Whether it has a disk.
    begun: bool,
    since: Instant,
}

#[derive(Default)]
struct Table {
    next: u64,
    seats: HashMap<u64, Seat>,
}

struct Inner {
    shared: Shared,
    table: Mutex<Table>,
    /// A connection has ended.
    ended: Condvar,
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, text: impl FnOnce() -> String) {
        if let Some(log) = &self.shared.settings.log {
            log(&text());
        }
    }
}

/// A server.
pub struct Server {
    inner: Arc<Inner>,
    wakes: Vec<UnixStream>,
    accepting: Vec<JoinHandle<()>>,
}

impl core::fmt::Debug for Server {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Server({:?})", self.inner.shared.exports)
    }
}

impl Server {
    /// One that does not listen yet.
    pub fn new(exports: Exports, settings: Settings) -> Self {
        let limits = settings.limits;
        let shared = Shared {
            exports,
            settings,
            pool: Pool::new(limits.workers),
            budget: Arc::new(Budget::new(limits.memory)),
            stopping: AtomicBool::new(false),
        };
        let inner = Inner { shared, table: Mutex::default(), ended: Condvar::new() };
        Self { inner: Arc::new(inner), wakes: Vec::new(), accepting: Vec::new() }
    }

    /// Accepts connections from now on.
    pub fn listen(&mut self, listener: Listener) -> io::Result<()> {
        match &listener {
            Listener::Unix(l) => l.set_nonblocking(true)?,
            Listener::Tcp(l) => l.set_nonblocking(true)?,
        }
        rustix::net::listen(&listener, BACKLOG)?;
        let (wake, woken) = UnixStream::pair()?;
        let inner = Arc::clone(&self.inner);
        let accept = move || accept_loop(&inner, &listener, &woken);
        self.accepting.push(std::thread::Builder::new().name("nbd-accept".into()).spawn(accept)?);
        self.wakes.push(wake);
        Ok(())
    }

    /// Serves a peer that has connected elsewhere, from the greeting on. `from` is what the log
    /// calls it.
    pub fn take(&self, socket: OwnedFd, from: &str) -> io::Result<()> {
        seat(&self.inner, socket, from.to_owned(), None)
    }

    /// Serves a disk on a socket whose other side has agreed with us in another way, and sends
    /// requests at once: a kernel's.
    pub fn serve(&self, socket: OwnedFd, name: &str) -> io::Result<()> {
        let no_such = || io::Error::new(io::ErrorKind::NotFound, format!("no disk '{name}'"));
        let export = Arc::clone(self.inner.shared.exports.find(name).ok_or_else(no_such)?);
        let chosen = Chosen { export, structured: false, contexts: Vec::new() };
        seat(&self.inner, socket, name.to_owned(), Some(chosen))
    }

    /// How many connections have a disk.
    pub fn connections(&self) -> usize {
        self.inner.table().seats.values().filter(|s| s.begun).count()
    }

    /// Ends: nothing new is taken, what is under way is finished and flushed. Whether all ended
    /// in time.
    pub fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        let inner = &self.inner;
        let until = Instant::now() + inner.shared.settings.limits.stop;
        inner.shared.stopping.store(true, Ordering::Relaxed);
        // Also who waits for a place.
        drop(inner.table());
        inner.ended.notify_all();
        for wake in &mut self.wakes {
            let _ = wake.write_all(b"x");
        }
        for thread in self.accepting.drain(..) {
            let _ = thread.join();
        }
        close_all(inner, Shutdown::Read);
        let ended = wait_for_end(inner, until);
        if !ended {
            // They wait for a peer that does not read, or for a disk.
            close_all(inner, Shutdown::Both);
            wait_for_end(inner, Instant::now() + REST);
        }
        inner.shared.pool.close();
        ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn close_all(inner: &Inner, how: Shutdown) {
    for seat in inner.table().seats.values() {
        let _ = shutdown(&seat.socket, how);
    }
}

fn wait_for_end(inner: &Inner, until: Instant) -> bool {
    let mut table = inner.table();
    while !table.seats.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let waited = inner.ended.wait_timeout(table, left);
        table = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

fn accept_loop(inner: &Arc<Inner>, listener: &Listener, woken: &UnixStream) {
    let mut failing = false;
    while !inner.shared.stopping.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
        if poll(&mut fds, None).is_err() || !fds[1].revents().is_empty() {
            continue;
        }
        let done = match listener.accept() {
            Ok((socket, from)) => seat(inner, socket, from, None),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(error) = &done {
            if !failing {
                inner.log(|| format!("accepting: {error}"));
            }
            std::thread::sleep(REST);
        }
        failing = done.is_err();
    }
}

/// Gives a connection a place and a thread.
fn seat(
    inner: &Arc<Inner>,
    socket: OwnedFd,
    from: String,
    chosen: Option<Chosen>,
) -> io::Result<()> {
    let outside = socket.try_clone()?;
    let Some(mut table) = place(inner)? else {
        inner.log(|| format!("{from}: too many connections, closed"));
        return Ok(());
    };
    let id = table.next;
    table.next += 1;
    table
        .seats
        .insert(id, Seat { socket: outside, begun: chosen.is_some(), since: Instant::now() });
    drop(table);
    let leave = Leave { inner: Arc::clone(inner), id };
    std::thread::Builder::new().name("nbd".into()).stack_size(STACK).spawn(move || {
        let inner = &*leave.inner;
        let socket = Socket::new(socket);
        let done = match chosen {
            Some(chosen) => {
                connection::serve(&inner.shared, Box::new(socket), chosen, In::default())
            }
            None => connection::run(&inner.shared, socket, || begin(inner, leave.id)),
        };
        if let Err(error) = done {
            inner.log(|| format!("{from}: {error}"));
        }
    })?;
    Ok(())
}

/// Finds a place, if need be that of the oldest connection that has no disk, and waits while
/// that is new itself. None if all have disks; an error if the server ends.
fn place(inner: &Inner) -> io::Result<Option<MutexGuard<'_, Table>>> {
    let limits = &inner.shared.settings.limits;
    let mut table = inner.table();
    loop {
        if inner.shared.stopping.load(Ordering::Relaxed) {
            return Err(io::Error::other("the server is being stopped"));
        }
        if table.seats.len() < limits.connections {
            return Ok(Some(table));
        }
        let without = table.seats.iter().filter(|(_, s)| !s.begun);
        let Some((&id, oldest)) = without.min_by_key(|(id, _)| **id) else { return Ok(None) };
        let left = limits.grace.saturating_sub(oldest.since.elapsed());
        if left.is_zero() {
            if let Some(seat) = table.seats.remove(&id) {
                let _ = shutdown(&seat.socket, Shutdown::Both);
            }
            return Ok(Some(table));
        }
        let waited = inner.ended.wait_timeout(table, left);
        table = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn begin(inner: &Inner, id: u64) {
    if let Some(seat) = inner.table().seats.get_mut(&id) {
        seat.begun = true;
    }
}

/// Gives a place back when dropped.
struct Leave {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.inner.table().seats.remove(&self.id);
        self.inner.ended.notify_all();
    }
}
