//! The server: accepts connections and runs a session on each.
//!
//! Owns: the listening socket, the threads, the limits before authentication, the way into the
//! jail, and the graceful stop. Invariant: an unauthenticated peer costs one thread, one small
//! buffer and twenty seconds at most, and their number is bounded; while their places are
//! all taken, newcomers wait in the system's queue and get one in turn. Leaves to others:
//! who gets a place ([`strangers`]), how it is listened to ([`introduction`]), what a session may (`dormouse_sync::server`), and
//! who may ([`crate::access`]).

mod audited;
mod collecting;
mod connection;
mod counters;
mod door;
pub mod expiring;
mod introduction;
mod limits;
mod lounge;
mod members;
mod outside;
pub mod pages;
mod returns;
mod scans;
pub mod seen;
mod serving;
mod strangers;
mod tally;
mod turns;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender};
use dormouse_format::PublicKey;
use dormouse_sync::server::{Client, Refused};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::access::Access;
use crate::bucket;
use crate::cli::bucket::BucketArgs;
use crate::daemon::notify::Notify;
use crate::exit::{Failure, text_of};
use crate::files::Lock;
use crate::jail::Plan;
use crate::link::LinkTx;
use crate::log::Log;
use crate::out;
use crate::store_dir::StoreDir;
use crate::text::{hex, now_ns};
use crate::tls::ServerTls;
use audited::Takeovers;
use counters::Counters;
use introduction::Guest;
use limits::Limits;
use lounge::Lounge;
use members::Members;
use outside::{Outside, enter_jail};
use pages::{Pages, Place as PagesPlace, Ready};
use returns::Returns;
use scans::Scans;
use seen::Seen;
use strangers::{Group, Strangers, Verdict};
use tally::Tally;
use turns::Turns;

/// Connections that may wait in the system's queue, as far as the system lets them.
const BACKLOG: i32 = 4096;
/// Scans at a time.
const SCANS_PER_CORE: usize = 2;
/// Sessions that work at a time. More than one: some wait for the disk.
const TURNS_PER_CORE: usize = 2;
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
    threads: Vec<JoinHandle<()>>,
    pages: Option<Pages>,
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
    counters: Counters,
    returns: Returns,
    takeovers: Takeovers,
    scans: Arc<Scans>,
    turns: Turns,
    /// Connections that say nothing.
    lounge: Lounge,
    limits: Limits,
    /// Never carries anything: it is closed when the server stops.
    stopping: Receiver<()>,
    table: Mutex<Table>,
    /// Threads that listen to strangers give up all but their socket.
    confine: bool,
}

#[derive(Debug)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<TcpStream>>,
    threads: Vec<JoinHandle<()>>,
    strangers: Strangers,
    members: Members,
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

    /// It is a client, and no stranger any more. It hears from what is returned that it has to
    /// go; `None` if the client has too many connections.
    fn is_client(&self, client: &Client, key: PublicKey) -> Option<Receiver<Refused>> {
        let mut table = self.shared.table();
        let dismissed = table.members.add(self.id, client, key)?;
        table.strangers.remove(self.id);
        Some(dismissed)
    }

    /// It has a link.
    fn linked(&self, link: LinkTx) {
        self.shared.table().members.linked(self.id, link);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.open.remove(&self.id);
        if table.strangers.remove(self.id) {
            self.shared.counters.stranger_ended();
        }
        table.members.remove(self.id, now_ns());
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
        let outside = Outside::open(door::listen(listen)?, None, &log)?;
        Self::start_in(store, lock, outside, log, tls)
    }

    /// The same, in the jail or not: whatever it needs of the host is there already.
    fn start_in(
        store: StoreDir,
        lock: Lock,
        outside: Outside,
        log: Log,
        tls: ServerTls,
    ) -> Result<Self> {
        let Outside { listener, pages, wake, limits, cores } = outside;
        let fingerprint = store.fingerprint()?;
        // Clients whose files hold are served; the others are told of here, once.
        for fault in store.state().check()? {
            log.line(&text_of(&Failure::from(fault).into()));
        }
        let address = listener.local_addr()?;
        let (stop, stopping) = crossbeam_channel::bounded(0);
        let access = Arc::new(Access::new(store.clone(), log.clone()));
        let table = Mutex::new(Table {
            next: 0,
            open: HashMap::new(),
            threads: Vec::new(),
            strangers: Strangers::new(limits.strangers, limits::STRANGERS_PER_GROUP_MAX),
            members: Members::new(Seen::read(access.store()).times()),
        });
        let tally = Tally::new(log.clone());
        let (wake, woken) = wake;
        let confined = introduction::can_confine();
        if let Err(why) = &confined {
            log.line(&format!("strangers are listened to by threads that may do anything: {why}"));
        }
        let expiring = expiring::start(access.clone(), log.clone(), stopping.clone())?;
        let collecting = collecting::start(&store, &access, &stopping, &log)?;
        let (counters, returns, takeovers) = Default::default();
        let (lounge, roused) = Lounge::new()?;
        let shared = Arc::new(Shared {
            access,
            tls,
            log,
            tally,
            counters,
            returns,
            takeovers,
            scans: Scans::new(cores * SCANS_PER_CORE),
            turns: Turns::new(cores * TURNS_PER_CORE),
            lounge,
            limits,
            stopping,
            table,
            confine: confined.is_ok(),
        });
        let pages = pages.map(|ready| Pages::begin(ready, &shared)).transpose()?;
        let (hall, guests) = crossbeam_channel::unbounded();
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        let usher = {
            let shared = shared.clone();
            named("usher").spawn(move || introduction::usher(&shared, &guests))?
        };
        let rest = lounge::start(&shared, roused)?;
        shared.table().threads.extend(collecting.into_iter().chain([usher, rest]));
        let accept = {
            let shared = shared.clone();
            named("accept").spawn(move || accept_loop(&shared, &listener, &woken, &hall))?
        };
        let watch = {
            let shared = shared.clone();
            std::thread::Builder::new().name("watch".into()).spawn(move || watch::run(&shared))?
        };
        Ok(Self {
            shared,
            address,
            fingerprint,
            wake,
            threads: vec![accept, watch, expiring],
            pages,
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

    /// Shows metrics and health there; the port's address if it is one.
    pub fn show_metrics(&mut self, place: &PagesPlace) -> Result<Option<SocketAddr>> {
        let pages = Pages::begin(Ready::open(place)?, &self.shared)?;
        let address = pages.address;
        self.pages = Some(pages);
        Ok(address)
    }

    /// Stops: no new connections, each running message ends, vaults are closed.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(stop) = self.stop.take() else { return };
        let until = Instant::now() + STOP_WAIT;
        let _ = (&self.wake).write_all(b"x");
        drop(stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
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
        watch::write_seen(&self.shared);
        self.pages = None;
        self.shared.access.close();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept_loop(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    woken: &UnixStream,
    hall: &Sender<Guest>,
) {
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
                    Place::Free(table) => admit(shared, table, socket, from, hall),
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
    hall: &Sender<Guest>,
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
    shared.counters.connection();
    let seat = Seat { shared: shared.clone(), id };
    let thread = {
        let (shared, hall) = (shared.clone(), hall.clone());
        std::thread::Builder::new()
            .name("stranger".into())
            .stack_size(STACK)
            .spawn(move || introduction::meet(&shared, socket, from, seat, &hall))
    };
    match thread {
        Ok(thread) => shared.table().threads.push(thread),
        Err(error) => shared.tally.line(|| format!("{from}: no thread for it: {error}")),
    }
}

/// What `dormouse serve` is told.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// How a store in object storage is used.
    pub bucket: BucketArgs,
    /// Where to listen.
    pub listen: Option<String>,
    /// How clients reach this server.
    pub url: Option<String>,
    /// Where metrics and health are shown.
    pub metrics: Option<PagesPlace>,
    /// Whether the log is lines of JSON on standard error.
    pub json_log: bool,
    /// Whether to refuse to run where a layer of the jail does not hold.
    pub require_jail: bool,
}

/// `dormouse serve`: until SIGTERM or SIGINT.
pub fn run(store: &std::path::Path, options: &ServeOptions) -> Result<()> {
    // First, so that no process that is started inherits it.
    let handed = door::handed()?;
    let ready = bucket::ready::Ready::of(store, &options.bucket)?;
    let config = ready.config()?;
    config.quota()?;
    limits::raise_files();
    let listen = options.listen.clone().or(config.listen);
    let listen = listen.unwrap_or_else(|| "127.0.0.1:7447".to_owned());
    let (signal, mut signalled) = UnixStream::pair()?;
    for number in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(number, signal.try_clone()?)
            .context("cannot listen for signals")?;
    }
    // In the jail no socket can be made.
    let mut notify = Notify::from_env();
    let log = if options.json_log { Log::json() } else { Log::system() };
    let mut plan =
        Plan { ports: ready.port().into_iter().collect(), ..Plan::of_store(ready.dir())? };
    if let Some(PagesPlace::Unix(path)) = &options.metrics {
        // Where that is not possible, listening there says why.
        let _ = plan.clears(path);
    }
    let door = handed.map_or_else(|| door::listen(&listen), Ok)?;
    let pages = options.metrics.as_ref().map(Ready::open).transpose()?;
    let outside = Outside::open(door, pages, &log)?;
    // Every socket is there now, but for those to a bucket; every thread begins in the jail.
    enter_jail(&plan, ready.missing(), options.require_jail, &log)?;
    let (store, lock) = ready.open(&log)?;
    if let Some(url) = &options.url {
        store.save_url(url)?;
    }
    let tls = ServerTls::new(&store.key()?)?;
    let server = Server::start_in(store, lock, outside, log.clone(), tls)?;
    // In one write: who started this may read one line and close its end.
    let said =
        format!("listening on {}\nfingerprint {}\n", server.address(), hex(server.fingerprint()));
    out::write(said.as_bytes())?;
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
