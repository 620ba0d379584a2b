//! Clients' connections that say nothing: each costs its socket and the state of its TLS and
//! session, and no thread.
//!
//! Owns: the connections at rest, and one thread that watches their sockets. Invariants: who is
//! spoken to, is to be sent away, or can be read from again gets a thread at once; when the
//! server stops, all get one, to say goodbye. Leaves to others: when a connection may rest
//! (`link::resting`), and what it does when it is awake ([`super::serving`]).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::TryRecvError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection;
use super::serving::Visit;
use super::{STACK, Seat, Shared};

/// How long a connection says nothing before it rests.
pub(super) const QUIET: Duration = Duration::from_secs(3);
/// How often it is looked who is to be sent away.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A connection at rest.
pub(super) struct Resting {
    pub(super) visit: Visit,
    pub(super) seat: Seat,
}

/// Where connections rest.
#[derive(Debug)]
pub(super) struct Lounge {
    state: Mutex<State>,
    wake: UnixStream,
}

#[derive(Default)]
struct State {
    /// Those that nobody watches yet.
    new: Vec<Resting>,
    /// Those that are watched.
    watched: usize,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at rest", self.new.len() + self.watched)
    }
}

impl Lounge {
    /// An empty one, and what wakes its watch.
    pub(super) fn new() -> io::Result<(Self, UnixStream)> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok((Self { state: Mutex::default(), wake }, woken))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection rests from now on. It is given back if the server stops.
    pub(super) fn take(&self, resting: Resting) -> Option<Resting> {
        let mut state = self.lock();
        if state.closed {
            return Some(resting);
        }
        state.new.push(resting);
        drop(state);
        // If it is full it is awake.
        let _ = (&self.wake).write(b"x");
        None
    }

    /// Connections at rest.
    pub(super) fn len(&self) -> usize {
        let state = self.lock();
        state.new.len() + state.watched
    }
}

/// Begins to watch; ends when the server stops.
pub(super) fn start(shared: &Arc<Shared>, woken: UnixStream) -> io::Result<JoinHandle<()>> {
    let shared = shared.clone();
    std::thread::Builder::new().name("lounge".into()).spawn(move || watch(&shared, woken))
}

fn watch(shared: &Arc<Shared>, mut woken: UnixStream) {
    let mut all: Vec<Resting> = Vec::new();
    loop {
        let stopping = shared.stopping.try_recv() == Err(TryRecvError::Disconnected);
        {
            let mut state = shared.lounge.lock();
            all.append(&mut state.new);
            state.watched = all.len();
            state.closed |= stopping;
        }
        if stopping {
            all.into_iter().for_each(|resting| wake(shared, resting));
            return;
        }
        let ready = wait(&all, &woken);
        while woken.read(&mut [0; 64]).is_ok_and(|n| n == 64) {}
        // From behind: whoever takes the place of one that goes was looked at before.
        for at in (0..all.len()).rev() {
            let sent_away = !all[at].visit.dismissed.is_empty();
            if sent_away || ready.get(at).copied().unwrap_or(true) {
                wake(shared, all.swap_remove(at));
            }
        }
    }
}

/// Waits a moment, until one of them can be read, or another comes. Which can be read.
fn wait(all: &[Resting], woken: &UnixStream) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> = all
        .iter()
        .filter_map(|r| r.visit.link.socket())
        .map(|s| PollFd::from_borrowed_fd(s, PollFlags::IN))
        .collect();
    fds.push(PollFd::new(woken, PollFlags::IN));
    // Without anybody there is nobody to be sent away; but the server may stop.
    if poll(&mut fds, Some(&LOOK)).is_err() {
        return vec![false; all.len()];
    }
    fds.iter().take(all.len()).map(|fd| !fd.revents().is_empty()).collect()
}

/// Gives a connection a thread again.
fn wake(shared: &Arc<Shared>, resting: Resting) {
    let from = resting.visit.from;
    let thread = {
        let shared = shared.clone();
        let builder = std::thread::Builder::new().name("connection".into()).stack_size(STACK);
        builder.spawn(move || connection::go_on(&shared, resting))
    };
    match thread {
        Ok(thread) => {
            let mut table = shared.table();
            table.threads.retain(|t| !t.is_finished());
            table.threads.push(thread);
        }
        Err(error) => shared.tally.line(|| format!("{from}: no thread for it: {error}")),
    }
}
