//! Between the state machine and the world: time, signals, what is told.
//!
//! Invariant: one job at a time; while it runs, the machine goes on hearing of time, marks and
//! wishes to stop. Leaves to others: how a job is done ([`super::jobs`]).

use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use dormouse_sync::live::{Action, Event, Job, Live, Moment, PASS_MIN};
use dormouse_track::routes::RouteWatch;
use rustix::time::{ClockId, clock_gettime};

use super::jobs::Worker;
use super::telling::Teller;

/// How often it is told how things stand.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// That a job was cancelled.
#[derive(Debug, thiserror::Error)]
#[error("ended before it was done")]
pub(super) struct Cancelled;

/// The clock that lags are measured by: it goes on while the machine sleeps.
pub(super) fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

pub(super) struct Pilot<'a> {
    machine: Live,
    actions: Vec<Action>,
    stop: &'a Receiver<()>,
    /// How often a stop was asked for.
    stops: u8,
    cancelled: bool,
    stopped: bool,
    routes: Option<RouteWatch>,
    told: Option<Instant>,
    pub(super) teller: Teller,
}

impl<'a> Pilot<'a> {
    pub(super) fn new(
        machine: Live,
        stop: &'a Receiver<()>,
        routes: Option<RouteWatch>,
        teller: Teller,
    ) -> Self {
        Self {
            machine,
            actions: Vec::new(),
            stop,
            stops: 0,
            cancelled: false,
            stopped: false,
            routes,
            told: None,
            teller,
        }
    }

    /// Tells the machine what happened.
    pub(super) fn tell(&mut self, event: Event) {
        self.machine.step(now(), event, &mut self.actions);
    }

    /// Does what the machine decides until it has stopped.
    pub(super) fn fly(&mut self, worker: &mut Worker) -> Result<()> {
        self.tell(Event::Tick);
        while !self.stopped {
            match self.next() {
                Some(job) => {
                    self.cancelled = false;
                    let event = worker.work(self, job)?;
                    self.tell(event);
                    self.show(true);
                }
                None if self.stopped => {}
                None => {
                    worker.look(self)?;
                    self.rest();
                }
            }
        }
        self.show(true);
        Ok(())
    }

    /// The next job, if there is one; smaller things are done at once.
    fn next(&mut self) -> Option<Job> {
        let mut job = None;
        for action in self.actions.drain(..) {
            match action {
                Action::Begin(next) => job = Some(next),
                Action::Cancel => self.cancelled = true,
                // The kernel's own keepalive finds out; nothing to do between jobs.
                Action::Probe => {}
                Action::Stopped => self.stopped = true,
            }
        }
        job.filter(|_| !self.stopped)
    }

    /// While a job runs: hears of stops, tells how things stand. An error if the job has to end.
    pub(super) fn during(&mut self) -> Result<()> {
        match self.stop.try_recv() {
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) if self.stops > 0 => {}
            Ok(()) | Err(TryRecvError::Disconnected) => self.stop_asked(),
        }
        self.hear_of_routes();
        self.tell(Event::Tick);
        for action in self.actions.drain(..) {
            match action {
                Action::Cancel => self.cancelled = true,
                Action::Stopped => self.stopped = true,
                Action::Begin(_) | Action::Probe => {}
            }
        }
        self.show(false);
        if self.cancelled || self.stopped {
            return Err(Cancelled.into());
        }
        Ok(())
    }

    fn hear_of_routes(&mut self) {
        if self.routes.as_ref().is_some_and(|routes| routes.drain().unwrap_or(false)) {
            self.tell(Event::RouteChanged);
        }
    }

    fn stop_asked(&mut self) {
        self.stops = self.stops.saturating_add(1);
        self.tell(Event::StopAsked);
    }

    /// Waits until there is something to do.
    fn rest(&mut self) {
        let wake = self.machine.wake().map_or(PASS_MIN, |at| at.saturating_sub(now()));
        let wait = wake.min(PASS_MIN);
        if wait > Duration::ZERO {
            // A channel that was closed says so each time.
            if self.stops > 0 {
                std::thread::sleep(wait.min(Duration::from_millis(50)));
            } else if self.stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                self.stop_asked();
            }
        }
        self.hear_of_routes();
        self.tell(Event::Tick);
        self.show(false);
    }

    pub(super) fn show(&mut self, news: bool) {
        if !news && self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        let view = self.machine.view(now());
        self.teller.seen(&view);
    }
}
