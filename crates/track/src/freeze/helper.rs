//! The process that freezes and thaws for a daemon.
//!
//! Invariant: it ends only when everything that it froze is thawed; the end of its daemon, a
//! signal and the deadline all lead there. While something is frozen it opens no file and writes
//! no log: a write to what it holds would never return. Leaves to others: what is a good moment.
//!
//! It is in a session of its own, so that a terminal's Ctrl-C reaches only the daemon, which then
//! ends the freeze in order. It does not ask to be killed with its daemon: the closed link tells.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU,
};

use super::hurry::Hurry;
use super::lane::{Lane, Report, Step};
use super::link::{self, Arrival, Body, Cause, Message};
use super::round::Round;
use super::{Locked, lock_memory};

/// What the helper asks for at its start; a bit of `Hello::refused` says which it did not get.
pub const WISHES: [&str; 6] = [
    "its memory is not locked",
    "it has no session of its own",
    "it has no raised priority",
    "it may be chosen when memory runs out",
    "its allocations may wait for the disk",
    "each freeze takes some 30 ms longer, as /sys/kernel/rcu_expedited cannot be written",
];

/// What is sent to end a process, or ends it by default. Of what is missing here, a sign of a bug
/// (`SIGSEGV`) or beyond its power (`SIGKILL`), it dies, and the daemon thaws.
const SIGNALS: [i32; 11] = [
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU,
];

/// The whole life of the helper: serves the daemon whose link is descriptor 0, until that is
/// closed or a signal comes.
pub fn helper_main() -> ExitCode {
    match Helper::start().map(Helper::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = "the freeze helper is started by its daemon, not by hand";
            let _ = writeln!(io::stderr(), "{text}: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Helper {
    link: OwnedFd,
    signals: UnixStream,
    wake: UnixStream,
    waker: Arc<UnixStream>,
    current: Option<Current>,
    hurry: Hurry,
    quitting: bool,
}

/// What a wait ended for; none of them at the deadline.
struct Ready {
    wake: bool,
    signals: bool,
    link: bool,
}

struct Current {
    id: u32,
    round: Round,
    steps: Receiver<(usize, Step)>,
}

impl Helper {
    fn start() -> io::Result<Helper> {
        let link = io::stdin().as_fd().try_clone_to_owned()?;
        let (signals, signalled) = wake_pair()?;
        for signal in SIGNALS {
            signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)?;
        }
        let (wake, waker) = wake_pair()?;
        // It must not keep a file system from being unmounted.
        std::env::set_current_dir("/")?;
        let hurry = Hurry::new();
        let refused = prepare(hurry.is_possible());
        let hello = Body::Hello { version: link::VERSION, refused };
        link::send(&link, Message { round: 0, body: hello }, &[])?;
        let waker = Arc::new(waker);
        Ok(Helper { link, signals, wake, waker, current: None, hurry, quitting: false })
    }

    fn run(mut self) {
        while !(self.quitting && self.current.is_none()) {
            let ready = self.wait().unwrap_or_else(|_| {
                // It can no longer hear: it lets go, and looks by itself whether that is done.
                self.quit();
                thread::sleep(Duration::from_millis(1));
                Ready { wake: true, signals: false, link: false }
            });
            if ready.wake {
                drain(&mut self.wake);
                self.collect_steps();
            }
            if ready.signals {
                drain(&mut self.signals);
                self.quit();
            }
            if ready.link {
                self.hear();
            }
            self.with_round(|round, tell| round.tick(Instant::now(), tell));
            if !self.current.as_ref().is_some_and(|current| current.round.is_freezing()) {
                self.hurry.stop();
            }
            if self.current.as_ref().is_some_and(|current| current.round.is_over()) {
                self.current = None;
            }
        }
    }

    /// Waits until something is to be done: a lane, a signal, the link; or the deadline.
    fn wait(&self) -> rustix::io::Result<Ready> {
        let deadline = self.current.as_ref().and_then(|current| current.round.deadline());
        let timeout = deadline.map(link::timeout_until);
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        // A link that is closed would wake for ever.
        if !self.quitting {
            fds.push(PollFd::new(&self.link, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
        Ok(Ready { wake: ready(0), signals: ready(1), link: ready(2) })
    }

    fn collect_steps(&mut self) {
        while let Some(Ok((index, step))) = self.current.as_ref().map(|now| now.steps.try_recv()) {
            self.with_round(|round, tell| round.step(index, step, Instant::now(), tell));
        }
    }

    fn hear(&mut self) {
        match link::receive(&self.link, Some(Instant::now())) {
            Ok(Arrival::Silence) => {}
            Ok(Arrival::Message(Message { round, body }, fds)) => match body {
                Body::Freeze { count, hold_max } if self.current.is_none() => {
                    self.begin(round, count, hold_max, fds);
                }
                Body::Thaw => self.thaw(round),
                _ => self.quit(),
            },
            Ok(Arrival::Closed) | Err(_) => self.quit(),
        }
    }

    fn begin(&mut self, id: u32, count: usize, hold_max: Duration, fds: Vec<OwnedFd>) {
        let link = &self.link;
        let mut tell = |body| tell(link, id, body);
        let (sender, steps) = channel();
        let report = Report { steps: sender, wake: Arc::clone(&self.waker) };
        let mut lanes = Vec::with_capacity(count);
        for fd in fds {
            match Lane::start(lanes.len(), fd, report.clone()) {
                Ok(lane) => lanes.push(lane),
                Err(_) => break,
            }
        }
        if lanes.len() < count {
            // Nothing was frozen: the lanes just end.
            tell(Body::Ending { cause: Cause::Refused(lanes.len(), Errno::AGAIN) });
            tell(Body::Ended { held: Duration::ZERO, thawing: Duration::ZERO, fault: None });
            return;
        }
        self.hurry.start();
        let round = Round::begin(lanes, hold_max, Instant::now(), &mut tell);
        self.current = Some(Current { id, round, steps });
    }

    /// An order for a round that has ended meanwhile is late; the daemon has been told.
    fn thaw(&mut self, id: u32) {
        if self.current.as_ref().is_some_and(|current| current.id == id) {
            self.with_round(|round, tell| round.stop(Cause::Asked, Instant::now(), tell));
        }
    }

    fn quit(&mut self) {
        self.quitting = true;
        self.with_round(|round, tell| round.stop(Cause::Stopped, Instant::now(), tell));
    }

    fn with_round(&mut self, act: impl FnOnce(&mut Round, &mut dyn FnMut(Body))) {
        if let Some(Current { id, round, .. }) = &mut self.current {
            let (id, link) = (*id, &self.link);
            act(round, &mut |body| tell(link, id, body));
        }
    }
}

fn tell(link: &OwnedFd, round: u32, body: Body) {
    // A daemon that is gone is noticed where the link is read.
    let _ = link::send(link, Message { round, body }, &[]);
}

/// Asks for what makes the helper reliable; each answer is a bit. It works without any of them.
fn prepare(hurries: bool) -> u64 {
    let answers = [
        lock_memory().map(Locked::for_ever).is_ok(),
        rustix::process::setsid().is_ok(),
        rustix::process::setpriority_process(None, -20).is_ok(),
        std::fs::write("/proc/self/oom_score_adj", "-1000").is_ok(),
        rustix::process::configure_io_flusher_behavior(true).is_ok(),
        hurries,
    ];
    (0..).zip(answers).filter(|(_, granted)| !granted).map(|(bit, _)| 1u64 << bit).sum()
}

fn wake_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    Ok((read, write))
}

fn drain(stream: &mut UnixStream) {
    let mut bytes = [0; 64];
    while stream.read(&mut bytes).is_ok_and(|count| count == bytes.len()) {}
}
