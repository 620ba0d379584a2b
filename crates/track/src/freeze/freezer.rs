//! The daemon's side of a freeze.
//!
//! Invariant: [`Frozen::thaw`] says that everything was held only if the helper froze all, was
//! asked in time, and thawed each one itself. Everything else is an error, and errs on the side
//! of 'not held'. Nothing here writes or logs between a freeze and its thaw. Leaves to others:
//! which file systems, and when.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};
use rustix::process::Pid;

use super::guard::Guard;
use super::helper::WISHES;
use super::hurry::Hurry;
use super::kernel::THAW_MAX;
use super::link::{self, Arrival, Body, Cause, Message};
use super::watch::{Ended, Watch};
use super::{FILE_SYSTEMS_MAX, FileSystem, FreezeError};

/// How long a program has to show that it is a helper.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// No freeze is held longer, whatever is asked.
const HOLD_MAX: Duration = Duration::from_secs(3600);
/// How long a helper may take to end.
const END_MAX: Duration = Duration::from_secs(2);

/// A running helper process, and the right to freeze with it. Dropping it ends the helper.
pub struct Freezer {
    link: Arc<OwnedFd>,
    child: Child,
    refused: u64,
    rounds: u32,
    /// A round that the kernel had not let go when its freeze returned.
    unfinished: Option<Watch>,
    gone: bool,
}

impl Freezer {
    /// Starts the helper: `command` must lead to [`helper_main`](super::helper_main).
    pub fn start(mut command: Command) -> Result<Freezer, FreezeError> {
        let failed = |source: io::Error| FreezeError::Start { source };
        let (near, far) = link::pair().map_err(|errno| failed(errno.into()))?;
        // Not even its panic may write to a frozen file system.
        command.stdin(Stdio::from(far)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        // The command still holds the helper's end; a helper that dies must be noticed.
        drop(command);
        match greet(&near) {
            Ok(refused) => Ok(Freezer {
                link: Arc::new(near),
                child,
                refused,
                rounds: 0,
                unfinished: None,
                gone: false,
            }),
            Err(source) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(source))
            }
        }
    }

    /// What the helper asked for and did not get; it works without, less reliably.
    pub fn weaknesses(&self) -> Vec<&'static str> {
        (0..)
            .zip(WISHES)
            .filter(|(bit, _)| self.refused >> bit & 1 == 1)
            .map(|(_, name)| name)
            .collect()
    }

    /// The helper's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Freezes the writable ones of `file_systems`, the last mounted first, and holds them for
    /// `hold_max` from its start at most. If one cannot be frozen in time, all are thawed, and the
    /// error names it.
    pub fn freeze(
        &mut self,
        file_systems: &[FileSystem],
        hold_max: Duration,
    ) -> Result<Frozen<'_>, FreezeError> {
        self.finish_last()?;
        let hold_max = hold_max.min(HOLD_MAX);
        let chosen: Vec<_> = file_systems.iter().rev().filter(|one| one.writable).collect();
        if chosen.len() > FILE_SYSTEMS_MAX {
            return Err(FreezeError::TooMany { count: chosen.len() });
        }
        let mut names = Vec::new();
        let mut fds = Vec::new();
        for file_system in chosen {
            let (mount, fd) = file_system.open()?;
            names.push((mount.point.clone(), file_system.kind.clone()));
            fds.push(Arc::new(fd));
        }
        let mut watch = self.order(names, fds, hold_max)?;
        match watch.until_frozen() {
            Some(freezing) => Ok(Frozen { freezer: self, watch: Some(watch), freezing }),
            None => Err(self.give_up(watch)),
        }
    }

    fn order(
        &mut self,
        names: Vec<(PathBuf, String)>,
        fds: Vec<Arc<OwnedFd>>,
        hold_max: Duration,
    ) -> Result<Watch, FreezeError> {
        self.rounds = self.rounds.wrapping_add(1);
        let round = self.rounds;
        let (sender, events) = channel();
        let guard = Guard {
            link: Arc::clone(&self.link),
            helper: Pid::from_raw(self.child.id().cast_signed()),
            round,
            fds: fds.iter().cloned().map(Some).collect(),
            hurry: Some(Hurry::new()).filter(Hurry::is_calm),
            events: sender,
        };
        let deadline = Instant::now() + hold_max;
        guard.start(hold_max).map_err(|source| FreezeError::Start { source })?;
        let body = Body::Freeze { count: fds.len(), hold_max };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // If that fails the helper is gone: the guard finds out.
        let _ = link::send(&self.link, Message { round, body }, &fds);
        Ok(Watch::new(events, names, hold_max, deadline))
    }

    /// A freeze that failed: waits for its end, if that is near.
    fn give_up(&mut self, mut watch: Watch) -> FreezeError {
        let patience = match watch.cause {
            // The kernel is still freezing: the caller hears of it at once.
            Some(Cause::Late(_)) => Duration::ZERO,
            _ => THAW_MAX,
        };
        watch.until_over(patience);
        let error = watch.error();
        self.keep(watch);
        error
    }

    /// Keeps what the kernel has not let go.
    fn keep(&mut self, watch: Watch) {
        self.gone |= watch.gone.is_some() || watch.cause == Some(Cause::Stopped);
        if !watch.is_over() {
            self.unfinished = Some(watch);
        }
    }

    fn finish_last(&mut self) -> Result<(), FreezeError> {
        if let Some(mut watch) = self.unfinished.take() {
            watch.until_over(Duration::ZERO);
            if !watch.is_over() {
                let mount_point = watch.point(watch.begun);
                self.unfinished = Some(watch);
                return Err(FreezeError::StillHeld { mount_point });
            }
            self.keep(watch);
        }
        if self.gone { Err(FreezeError::HelperGone) } else { Ok(()) }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // For the helper the daemon is gone now, also while a guard still reads the link.
        let _ = shutdown(&self.link, Shutdown::Write);
        let until = Instant::now() + END_MAX;
        while let Ok(None) = self.child.try_wait() {
            // Waiting for the kernel, if it is still there: it ends as soon as it can.
            if Instant::now() >= until {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn greet(link: &OwnedFd) -> io::Result<u64> {
    let stranger = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    match link::receive(link, Some(Instant::now() + HELLO_MAX))? {
        Arrival::Message(Message { body: Body::Hello { version, refused }, .. }, _) => {
            if version == link::VERSION {
                Ok(refused)
            } else {
                stranger("it is of another version; restart the daemon")
            }
        }
        Arrival::Message(..) => stranger("it does not greet"),
        Arrival::Closed => stranger("it ended at once"),
        Arrival::Silence => stranger("it does not answer"),
    }
}

/// File systems that are frozen. Dropping it thaws them.
pub struct Frozen<'a> {
    freezer: &'a mut Freezer,
    /// Taken when it is over.
    watch: Option<Watch>,
    freezing: Duration,
}

/// How long a freeze lasted. Writers were held up for the sum, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// From the start of the first freeze to the end of the last.
    pub freezing: Duration,
    /// All were frozen, until the thaw began.
    pub held: Duration,
    /// Until all were thawed.
    pub thawing: Duration,
}

impl Frozen<'_> {
    /// How long it took until all were frozen.
    pub fn freezing(&self) -> Duration {
        self.freezing
    }

    /// When the helper thaws by itself.
    pub fn deadline(&self) -> Instant {
        self.watch.as_ref().map_or_else(Instant::now, |watch| watch.deadline)
    }

    /// Whether they are still held, as far as is known now: a reason to stop early, no proof.
    pub fn is_held(&mut self) -> bool {
        self.watch.as_mut().is_some_and(|watch| {
            while watch.hear(Instant::now()) {}
            watch.cause.is_none() && watch.gone.is_none()
        })
    }

    /// Thaws. An error if not everything was held until now, or if something did not thaw.
    pub fn thaw(mut self) -> Result<Held, FreezeError> {
        self.end()
    }

    fn end(&mut self) -> Result<Held, FreezeError> {
        let Some(mut watch) = self.watch.take() else { return Err(FreezeError::HelperGone) };
        let thaw = Message { round: self.freezer.rounds, body: Body::Thaw };
        // If that fails the helper is gone: the guard finds out.
        let _ = link::send(&self.freezer.link, thaw, &[]);
        watch.until_over(THAW_MAX);
        let result = match (watch.cause, watch.ended, watch.gone) {
            (Some(Cause::Asked), Some(Ended { held, thawing, fault: None }), None) => {
                Ok(Held { freezing: self.freezing, held, thawing })
            }
            _ => Err(watch.error()),
        };
        self.freezer.keep(watch);
        result
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if self.watch.is_some() {
            let _ = self.end();
        }
    }
}
