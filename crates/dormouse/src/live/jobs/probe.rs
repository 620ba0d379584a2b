//! Asks a server that nothing is sent to whether this instance still has the right to write.
//!
//! Invariant: no job begins while the answer is open. Without this, a volume that another instance has
//! taken over would be called LIVE until something is written.

use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_format::message::{Base, Message};

use super::Worker;
use crate::connect;

/// How long nothing is said before it is asked.
const IDLE: Duration = Duration::from_secs(15);

/// What was asked, and when something was said last.
#[derive(Debug)]
pub(super) struct Probe {
    open: bool,
    said: Instant,
}

impl Default for Probe {
    fn default() -> Self {
        Self { open: false, said: Instant::now() }
    }
}

impl Worker {
    /// Asks, when it is time; an error if the answer is that it has not.
    pub(super) fn probe(&mut self) -> Result<()> {
        let Some(session) = &self.session else { return Ok(()) };
        if self.probe.open {
            self.probe.open = connect::receive_now(&session.link)?.is_none();
        } else if self.probe.said.elapsed() >= IDLE && session.checkpoint.is_some() {
            // The begin of a point is refused to whom the volume is not open any more.
            let begin = Message::Begin { base: Base::Delta, size: self.tracked.size() };
            connect::send_all(&session.link, [begin, Message::Barrier])?;
            self.probe = Probe { open: true, ..Probe::default() };
        }
        Ok(())
    }

    /// Waits for the answer, if one is open.
    pub(super) fn end_probe(&mut self) -> Result<()> {
        let open = std::mem::take(&mut self.probe).open;
        match &self.session {
            Some(session) if open => connect::receive(&session.link).map(drop),
            _ => Ok(()),
        }
    }
}
