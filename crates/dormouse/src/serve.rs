//! The server: accepts connections and runs a session on each.
//!
//! Owns: the listening socket, the threads, the limits before authentication, and
//! the graceful stop. Invariant: an unauthenticated peer costs one thread, one small
//! buffer and ten seconds at most, and their number is bounded. Leaves to others:
//! what a session may (`dormouse_sync::server`), and who may ([`crate::access`]).

mod connection;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender};
use rustix::event::{PollFd, PollFlags, poll};

use crate::access::Access;
use crate::exit::{Class, Failure, text_of};
use crate::files::Lock;
use crate::log::Log;
use crate::out;
use crate::store_dir::StoreDir;
use crate::text::hex;
use crate::tls::ServerTls;

/// Most connections that have not said who they are.
const STRANGERS_MAX: usize = 1024;
/// The same for one address.
const STRANGERS_PER_ADDRESS_MAX: usize = 64;
/// Most connections together.
const CONNECTIONS_MAX: usize = 8192;
/// How long a stop waits for what runs.
const STOP_WAIT: Duration = Duration::from_secs(4);
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
    /// Never carries anything: it is closed when the server stops.
    stopping: Receiver<()>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, TcpStream>,
    threads: Vec<JoinHandle<()>>,
    strangers: HashMap<IpAddr, usize>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether one more from this address may come.
    fn admits(&self, from: IpAddr) -> bool {
        let all: usize = self.strangers.values().sum();
        let same = self.strangers.get(&from).copied().unwrap_or(0);
        all < STRANGERS_MAX && same < STRANGERS_PER_ADDRESS_MAX && self.open.len() < CONNECTIONS_MAX
    }
}

/// A place among those that have not said who they are; given back when dropped.
pub(crate) struct Stranger {
    shared: Arc<Shared>,
    from: IpAddr,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        if let Some(n) = table.strangers.get_mut(&self.from) {
            *n -= 1;
            if *n == 0 {
                table.strangers.remove(&self.from);
            }
        }
    }
}

/// A row of the table of connections; goes when dropped.
struct Row {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Row {
    fn drop(&mut self) {
        self.shared.table().open.remove(&self.id);
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
        let address = listener.local_addr()?;
        let (stop, stopping) = crossbeam_channel::bounded(0);
        let access = Arc::new(Access::new(store, log.clone()));
        let shared = Arc::new(Shared { access, tls, log, stopping, table: Mutex::default() });
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
            let _ = socket.shutdown(std::net::Shutdown::Both);
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
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((socket, from)) => admit(shared, socket, from),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Such as no more file descriptors: let those that are there end first.
                shared.log.line(&format!("accepting: {error}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, socket: TcpStream, from: SocketAddr) {
    let mut table = shared.table();
    table.threads.retain(|t| !t.is_finished());
    if !table.admits(from.ip()) {
        drop(table);
        shared.log.line(&format!("{from}: too many connections, closed"));
        return;
    }
    let Ok(copy) = socket.try_clone() else { return };
    if socket.set_nonblocking(false).is_err() {
        return;
    }
    let id = table.next;
    table.next += 1;
    table.open.insert(id, copy);
    *table.strangers.entry(from.ip()).or_default() += 1;
    let stranger = Stranger { shared: shared.clone(), from: from.ip() };
    let thread = {
        let shared = shared.clone();
        std::thread::Builder::new().name("connection".into()).stack_size(STACK).spawn(move || {
            let _row = Row { shared: shared.clone(), id };
            connection::run(&shared, socket, from, stranger);
        })
    };
    match thread {
        Ok(thread) => table.threads.push(thread),
        Err(error) => {
            table.open.remove(&id);
            drop(table);
            shared.log.line(&format!("{from}: no thread for it: {error}"));
        }
    }
}

/// `dormouse serve`: until SIGTERM or SIGINT.
pub fn run(store: &std::path::Path, listen: Option<&str>, url: Option<&str>) -> Result<()> {
    let store = StoreDir::open_or_create(store)?;
    let config = store.config()?;
    if let Some(url) = url {
        store.save_url(url)?;
    }
    let listen = listen.or(config.listen.as_deref()).unwrap_or("127.0.0.1:7447").to_owned();
    let (signal, mut signalled) = UnixStream::pair()?;
    for number in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(number, signal.try_clone()?)
            .context("cannot listen for signals")?;
    }
    let server = Server::start(store, &listen, Log::stderr())?;
    // In one write: who started this may read one line and close its end.
    let said =
        format!("listening on {}\nfingerprint {}\n", server.address(), hex(server.fingerprint()));
    out::write(said.as_bytes())?;
    let mut byte = [0];
    while let Err(error) = signalled.read_exact(&mut byte) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("waiting for signals");
        }
    }
    server.stop();
    Ok(())
}
