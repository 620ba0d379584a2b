//! Watches over the helper during one freeze: the daemon's side of the invariant.
//!
//! Invariant: when the helper dies or falls silent, everything that it had begun to freeze is
//! thawed here, at once and without being asked, through the daemon's own descriptors; what it had
//! not begun is left alone, for that may be frozen by somebody else. Leaves to others: what the
//! helper's messages mean.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::hurry::Hurry;
use super::kernel::{STACK_BYTES, thaw_together};
use super::link::{self, Arrival, Body, Cause, Message};

/// How long after its deadline a helper may be silent.
const SILENCE_MAX: Duration = Duration::from_millis(500);
/// How long a helper may take to thaw before the daemon helps out.
const ENDING_MAX: Duration = Duration::from_secs(3);

/// What the daemon is told.
#[derive(Debug)]
pub enum Event {
    /// The helper said it.
    Told(Body),
    /// The helper is gone, and what it held has been thawed; except this one.
    Gone(Option<(usize, Errno)>),
}

/// The watch over one round.
pub struct Guard {
    /// The link to the helper.
    pub link: Arc<OwnedFd>,
    /// The helper.
    pub helper: Option<Pid>,
    /// The round's number.
    pub round: u32,
    /// What is to be frozen, in the order of the message; less what was thawed here.
    pub fds: Vec<Option<Arc<OwnedFd>>>,
    /// If it was off before: turned off in place of a helper that is gone.
    pub hurry: Option<Hurry>,
    /// Where to tell.
    pub events: Sender<Event>,
}

impl Guard {
    /// Starts watching; before the helper gets its order.
    pub fn start(self, hold_max: Duration) -> io::Result<()> {
        let until = Instant::now() + hold_max + SILENCE_MAX;
        let work = move || self.watch(until);
        thread::Builder::new().stack_size(STACK_BYTES).spawn(work).map(drop)
    }

    fn watch(mut self, until: Instant) {
        let mut until = Some(until);
        let mut begun = 0;
        let mut ending = false;
        loop {
            match link::receive(&self.link, until) {
                Ok(Arrival::Message(Message { round, body }, _)) if round == self.round => {
                    match body {
                        Body::Started { index } => begun = index + 1,
                        Body::Ending { cause } => {
                            ending = true;
                            until = Some(Instant::now() + ENDING_MAX);
                            if let Cause::Refused(index, _) = cause {
                                begun = index;
                            }
                        }
                        Body::Ended { .. } => return self.tell_last(Event::Told(body)),
                        _ => {}
                    }
                    self.tell(Event::Told(body));
                }
                Ok(Arrival::Message(..)) => {}
                Ok(Arrival::Silence) => {
                    until = self.speak_up(begun, ending);
                }
                // Also after a kill: a freeze that was under way then ends only now.
                Ok(Arrival::Closed) | Err(_) => {
                    self.calm();
                    let fault = self.thaw(begun);
                    return self.tell_last(Event::Gone(fault));
                }
            }
        }
    }

    /// The helper is silent: thaws in its place. Returns when to do so again.
    fn speak_up(&mut self, begun: usize, ending: bool) -> Option<Instant> {
        if ending {
            // It waits for the kernel, most likely, and must live for what comes back from there.
            // A thaw of our own that waits there too is enough.
            let waits = matches!(self.thaw(begun), Some((_, Errno::TIMEDOUT)));
            return (!waits).then(|| Instant::now() + ENDING_MAX);
        }
        self.calm();
        // If it were to wake later, it could thaw what is no longer its own.
        if let Some(helper) = self.helper {
            let _ = kill_process(helper, Signal::KILL);
        }
        let fault = self.thaw(begun);
        self.tell(Event::Gone(fault));
        None
    }

    fn calm(&self) {
        if let Some(hurry) = &self.hurry {
            hurry.calm();
        }
    }

    /// Thaws the first `begun`, less those that it has thawed before: by now somebody else may
    /// hold them. Returns one that did not thaw.
    fn thaw(&mut self, begun: usize) -> Option<(usize, Errno)> {
        let chosen = || self.fds.iter().enumerate().take(begun);
        let left: Vec<_> = chosen().filter_map(|(index, fd)| Some((index, fd.clone()?))).collect();
        let (places, fds): (Vec<_>, Vec<_>) = left.into_iter().unzip();
        let mut fault = None;
        for (index, result) in places.into_iter().zip(thaw_together(&fds)) {
            match result {
                Some(Ok(())) => self.fds[index] = None,
                // The helper had thawed it, or has not come to freeze it yet.
                Some(Err(Errno::INVAL)) => {}
                Some(Err(errno)) => fault = fault.or(Some((index, errno))),
                None => fault = fault.or(Some((index, Errno::TIMEDOUT))),
            }
        }
        fault
    }

    /// First closes the directories: who hears of the end may unmount.
    fn tell_last(&mut self, event: Event) {
        self.fds.clear();
        self.tell(event);
    }

    fn tell(&self, event: Event) {
        // A daemon that does not listen any more has had its answer.
        let _ = self.events.send(event);
    }
}
