//! The server: accepts connections and runs a session on each.
//!
//! Owns: the listening socket, the threads, the limits before authentication, and
//! the graceful stop. Invariant: an unauthenticated peer costs one thread, one small
//! buffer and twenty seconds at most, and their number is bounded; while their places are
//! all taken, newcomers wait in the system's queue and get one in turn. Leaves to others:
//! who gets a place ([`strangers`]), what a session may (`dormouse_sync::server`), and
//! who may ([`crate::access`]).

mod connection;
mod limits;
mod strangers;
mod tally;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::access::Access;
use crate::bucket;
use crate::cli::bucket::BucketArgs;
use crate::daemon::notify::Notify;
use crate::exit::{Class, Failure, text_of};
use crate::files::Lock;
use crate::log::Log;
use crate::out;
use crate::store_dir::StoreDir;
use crate::text::hex;
use crate::tls::ServerTls;
use limits::Limits;
use strangers::{Group, Strangers, Verdict};
use tally::Tally;

/// Connections that may wait in the system's queue, as far as the system lets them.
const BACKLOG: i32 = 4096;
/// How long a stop waits for what runs.
const STOP_WAIT: Duration = Duration::from_secs(4);
/// How long a connection that is refused is kept before it is closed: who comes back at once
/// costs a socket then, and no processor time.
const PARKED: Duration = Duration::from_secs(1);
/// How often it is looked whether a place was given back.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Stack of a connection's thread. Touched pages count, not this.
const STACK: usize = 1 << 20;

/// A running server.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    fingerprint: [u8; 32],
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
    stop: Option<Sender<()>>,
    _lock: Lock,
}

#[derive(Debug)]
pub(crate) struct Shared {
    access: Arc<Access>,
    tls: ServerTls,
    log: Log,
    /// For lines about strangers.
    tally: Tally,
    limits: Limits,
    /// Never carries anything: it is closed when the server stops.
    stopping: Receiver<()>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<TcpStream>>,
    threads: Vec<JoinHandle<()>>,
    strangers: Strangers,
    /// Connections of each client.
    clients: HashMap<String, usize>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the table; given back when dropped.
pub(crate) struct Seat {
    shared: Arc<Shared>,
    id: u64,
    client: Option<String>,
}

impl Seat {
    /// Its TLS hello has come.
    fn greeted(&self) {
        self.shared.table().strangers.greeted(self.id, Instant::now());
    }

    /// It has said something, and is not put out while that is looked at.
    fn hold(&self) {
        self.shared.table().strangers.hold(self.id);
    }

    /// What it said was refused: it may be put out again.
    fn loosen(&self) {
        self.shared.table().strangers.loosen(self.id);
    }

    /// It is a client, and no stranger any more; false if the client has too many.
    fn is_client(&mut self, name: &str) -> bool {
        let mut table = self.shared.table();
        let count = table.clients.entry(name.to_owned()).or_default();
        if *count >= limits::CLIENT_CONNECTIONS_MAX {
            return false;
        }
        *count += 1;
        table.strangers.remove(self.id);
        drop(table);
        self.client = Some(name.to_owned());
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.open.remove(&self.id);
        table.strangers.remove(self.id);
        if let Some(name) = &self.client
            && let Some(count) = table.clients.get_mut(name)
        {
            *count -= 1;
            if *count == 0 {
                table.clients.remove(name);
            }
        }
    }
}

impl Server {
    /// Takes the store's lock, listens, and begins to accept.
    pub fn start(store: StoreDir, listen: &str, log: Log) -> Result<Self> {
        let key = store.key()?;
        let tls = ServerTls::new(&key)?;
        Self::start_with(store, listen, log, tls)
    }

    /// With a given TLS side: for tests of a version mismatch.
    pub fn start_with(store: StoreDir, listen: &str, log: Log, tls: ServerTls) -> Result<Self> {
        let lock = store.lock()?;
        let fingerprint = store.fingerprint()?;
        // Clients whose files hold are served; the others are told of here, once.
        for fault in store.state().check()? {
            log.line(&text_of(&Failure::from(fault).into()));
        }
        let listener = TcpListener::bind(listen).map_err(|e| listen_failure(listen, &e))?;
        listener.set_nonblocking(true)?;
        // The library's own queue is short: a few strangers would keep all others out.
        rustix::net::listen(&listener, BACKLOG)?;
        let address = listener.local_addr()?;
        let (stop, stopping) = crossbeam_channel::bounded(0);
        let access = Arc::new(Access::new(store, log.clone()));
        let limits = Limits::of_system(&log);
        let table = Mutex::new(Table {
            next: 0,
            open: HashMap::new(),
            threads: Vec::new(),
            strangers: Strangers::new(limits.strangers, limits::STRANGERS_PER_GROUP_MAX),
            clients: HashMap::new(),
        });
        let tally = Tally::new(log.clone());
        let shared = Arc::new(Shared { access, tls, log, tally, limits, stopping, table });
        let (wake, woken) = UnixStream::pair()?;
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("accept".into())
                .spawn(move || accept_loop(&shared, &listener, &woken))?
        };
        Ok(Self {
            shared,
            address,
            fingerprint,
            wake,
            thread: Some(thread),
            stop: Some(stop),
            _lock: lock,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Fingerprint of its key.
    pub const fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Stops: no new connections, each running message ends, vaults are closed.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(stop) = self.stop.take() else { return };
        let until = Instant::now() + STOP_WAIT;
        let _ = (&self.wake).write_all(b"x");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        drop(stop);
        while !self.shared.table().open.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Whoever is still there waits for a peer that does not read.
        for socket in self.shared.table().open.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let threads = std::mem::take(&mut self.shared.table().threads);
        let until = Instant::now() + Duration::from_millis(500);
        for thread in threads {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
        self.shared.access.close();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn listen_failure(listen: &str, error: &io::Error) -> Failure {
    let (class, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            (Class::InUse, "end what listens there, or name another port with --listen")
        }
        io::ErrorKind::PermissionDenied => {
            (Class::NotAuthorised, "ports below 1024 need root; 7447 does not")
        }
        _ => (Class::Usage, "--listen wants ADDRESS:PORT of this machine, such as 0.0.0.0:7447"),
    };
    Failure::new(class, format!("cannot listen on {listen}: {error}")).hint(hint)
}

fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener, woken: &UnixStream) {
    let mut parked = Parked::default();
    loop {
        parked.close(Instant::now());
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
        if poll(&mut fds, parked.wait().as_ref()).is_err() {
            continue;
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((socket, from)) => {
                let Ok(verdict) = place(shared, from, woken) else { return };
                match verdict {
                    Place::Free(table) => admit(shared, table, socket, from),
                    Place::None(why) => {
                        shared.tally.line(|| format!("{from}: {why}"));
                        parked.add(socket, shared.limits.strangers);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Such as no more file descriptors: let those that are there end first.
                shared.tally.line(|| format!("accepting: {error}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Connections that are refused, until they are closed.
#[derive(Default)]
struct Parked(VecDeque<(Instant, TcpStream)>);

impl Parked {
    fn add(&mut self, socket: TcpStream, most: usize) {
        if self.0.len() >= most {
            self.0.pop_front();
        }
        self.0.push_back((Instant::now(), socket));
    }

    /// Closes those whose time is over.
    fn close(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(since, _)| now.duration_since(*since) >= PARKED) {
            self.0.pop_front();
        }
    }

    /// Until the next is to be closed.
    fn wait(&self) -> Option<Timespec> {
        let (since, _) = self.0.front()?;
        Timespec::try_from(PARKED.saturating_sub(since.elapsed()) + Duration::from_millis(1)).ok()
    }
}

/// Whether a newcomer has a place.
enum Place<'a> {
    Free(MutexGuard<'a, Table>),
    None(&'static str),
}

/// Finds a place for a newcomer, and puts another out if need be. While all that could go
/// are new themselves, it waits, and whoever comes next waits in the system's queue. An
/// error if the server stops.
fn place<'a>(shared: &'a Shared, from: SocketAddr, woken: &UnixStream) -> io::Result<Place<'a>> {
    let group = Group::of(from.ip());
    loop {
        let mut table = shared.table();
        table.threads.retain(|t| !t.is_finished());
        if table.open.len() >= shared.limits.connections {
            return Ok(Place::None("too many connections, closed"));
        }
        match table.strangers.verdict(group, Instant::now()) {
            Verdict::Admit => return Ok(Place::Free(table)),
            Verdict::Replace(id) => {
                table.strangers.remove(id);
                // Its thread notices, and gives the rest back.
                if let Some(socket) = table.open.get(&id) {
                    let _ = socket.shutdown(Shutdown::Both);
                }
                return Ok(Place::Free(table));
            }
            Verdict::Refuse => {
                return Ok(Place::None("too many connections from this address, closed"));
            }
            Verdict::Wait(wait) => {
                drop(table);
                let wait = Timespec::try_from(wait.min(LOOK_AGAIN)).ok();
                let mut fds = [PollFd::new(woken, PollFlags::IN)];
                if poll(&mut fds, wait.as_ref()).is_ok_and(|n| n > 0) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
        }
    }
}

fn admit(
    shared: &Arc<Shared>,
    mut table: MutexGuard<'_, Table>,
    socket: TcpStream,
    from: SocketAddr,
) {
    if socket.set_nonblocking(false).is_err() {
        return;
    }
    let socket = Arc::new(socket);
    let id = table.next;
    table.next += 1;
    table.open.insert(id, socket.clone());
    table.strangers.add(id, Group::of(from.ip()), Instant::now());
    // A seat that is given back takes the table's lock.
    drop(table);
    let seat = Seat { shared: shared.clone(), id, client: None };
    let thread = {
        let shared = shared.clone();
        std::thread::Builder::new()
            .name("connection".into())
            .stack_size(STACK)
            .spawn(move || connection::run(&shared, &socket, from, seat))
    };
    match thread {
        Ok(thread) => shared.table().threads.push(thread),
        Err(error) => shared.tally.line(|| format!("{from}: no thread for it: {error}")),
    }
}

/// `dormouse serve`: until SIGTERM or SIGINT.
pub fn run(
    store: &std::path::Path,
    bucket: &BucketArgs,
    listen: Option<&str>,
    url: Option<&str>,
) -> Result<()> {
    let store = bucket::open_to_serve(store, bucket, &Log::system())?;
    let config = store.config()?;
    limits::raise_files();
    if let Some(url) = url {
        store.save_url(url)?;
    }
    let listen = listen.or(config.listen.as_deref()).unwrap_or("127.0.0.1:7447").to_owned();
    let (signal, mut signalled) = UnixStream::pair()?;
    for number in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(number, signal.try_clone()?)
            .context("cannot listen for signals")?;
    }
    let server = Server::start(store, &listen, Log::system())?;
    // In one write: who started this may read one line and close its end.
    let said =
        format!("listening on {}\nfingerprint {}\n", server.address(), hex(server.fingerprint()));
    out::write(said.as_bytes())?;
    let mut notify = Notify::from_env();
    notify.status(&format!("listening on {}", server.address()));
    notify.ready();
    let mut byte = [0];
    while let Err(error) = signalled.read_exact(&mut byte) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("waiting for signals");
        }
    }
    notify.stopping();
    server.stop();
    Ok(())
}
