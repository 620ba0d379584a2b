//! What a daemon knows of one freeze, from what its guard tells.
//!
//! Invariant: the cause of an end is the first one told. Leaves to others: what to do then.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::FreezeError;
use super::error::Action;
use super::guard::Event;
use super::kernel::THAW_MAX;
use super::link::{Body, Cause};

/// What is known of one round.
pub struct Watch {
    events: Receiver<Event>,
    /// Mount point and type, in the order of freezing.
    names: Vec<(PathBuf, String)>,
    hold_max: Duration,
    pub deadline: Instant,
    pub begun: usize,
    frozen: Option<Duration>,
    pub cause: Option<Cause>,
    pub ended: Option<Ended>,
    /// The helper is gone; with what could not be thawed then.
    pub gone: Option<Option<(usize, Errno)>>,
}

#[derive(Clone, Copy)]
pub struct Ended {
    /// All were frozen this long.
    pub held: Duration,
    /// Thawing took this long.
    pub thawing: Duration,
    /// The first one that did not thaw as it should.
    pub fault: Option<(usize, Errno)>,
}

impl Watch {
    pub fn new(
        events: Receiver<Event>,
        names: Vec<(PathBuf, String)>,
        hold_max: Duration,
        deadline: Instant,
    ) -> Watch {
        Watch {
            events,
            names,
            hold_max,
            deadline,
            begun: 0,
            frozen: None,
            cause: None,
            ended: None,
            gone: None,
        }
    }

    pub fn is_over(&self) -> bool {
        self.ended.is_some() || self.gone.is_some()
    }

    /// Takes one event; false if none came in time.
    pub fn hear(&mut self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(event) = self.events.recv_timeout(left) else { return false };
        match event {
            Event::Told(Body::Started { index }) => self.begun = index,
            Event::Told(Body::Frozen { freezing }) => self.frozen = Some(freezing),
            Event::Told(Body::Ending { cause }) => self.cause = Some(cause),
            Event::Told(Body::Ended { held, thawing, fault }) => {
                self.ended = Some(Ended { held, thawing, fault });
            }
            Event::Told(_) => {}
            Event::Gone(fault) => self.gone = Some(fault),
        }
        true
    }

    pub fn until_over(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        while !self.is_over() && self.hear(until) {}
    }

    /// How long freezing took; `None` if it failed.
    pub fn until_frozen(&mut self) -> Option<Duration> {
        // The guard speaks when the helper does not, so this is never waited out.
        let until = self.deadline + THAW_MAX;
        while self.frozen.is_none() && self.cause.is_none() && self.gone.is_none() {
            if !self.hear(until) {
                break;
            }
        }
        self.frozen
    }

    pub fn point(&self, index: usize) -> PathBuf {
        self.names.get(index).map(|(point, _)| point.clone()).unwrap_or_default()
    }

    pub fn error(&self) -> FreezeError {
        let thaw_failed = |(index, errno): (usize, Errno)| match errno {
            Errno::INVAL => FreezeError::ThawedByOther { mount_point: self.point(index) },
            _ => self.failed(Action::Thaw, index, errno),
        };
        if let Some(fault) = self.gone {
            return fault.map_or(FreezeError::HelperGone, thaw_failed);
        }
        match (self.cause, self.ended) {
            (Some(Cause::Refused(index, errno)), _) => self.refused(index, errno),
            (Some(Cause::Late(index)), _) if self.frozen.is_none() => {
                FreezeError::TooSlow { mount_point: self.point(index), hold_max: self.hold_max }
            }
            (Some(Cause::Late(_)), _) => FreezeError::Late { hold_max: self.hold_max },
            (Some(Cause::Stopped), _) => FreezeError::Stopped,
            (Some(Cause::Asked), Some(Ended { fault: Some(fault), .. })) => thaw_failed(fault),
            (Some(Cause::Asked) | None, _) => {
                FreezeError::StillHeld { mount_point: self.point(self.begun) }
            }
        }
    }

    fn refused(&self, index: usize, errno: Errno) -> FreezeError {
        let mount_point = self.point(index);
        match errno {
            Errno::BUSY => FreezeError::AlreadyFrozen { mount_point },
            Errno::OPNOTSUPP => {
                let kind = self.names.get(index).map(|(_, kind)| kind.clone()).unwrap_or_default();
                FreezeError::Unsupported { mount_point, kind }
            }
            _ => self.failed(Action::Freeze, index, errno),
        }
    }

    fn failed(&self, action: Action, index: usize, errno: Errno) -> FreezeError {
        FreezeError::Failed { action, mount_point: self.point(index), source: errno.into() }
    }
}
