//! A disk that takes its time.

use std::time::Duration;

use super::{Gate, Kind, Request};
use crate::Result;

/// How long requests wait before they go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delay {
    /// Reads.
    pub read: Duration,
    /// Writes, zeros, trims.
    pub write: Duration,
    /// Flushes.
    pub flush: Duration,
}

impl Gate for Delay {
    fn pass(&self, request: &Request, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let wait = match request.kind {
            Kind::Read => self.read,
            Kind::Write | Kind::Zero | Kind::Trim => self.write,
            Kind::Flush => self.flush,
        };
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        go()
    }

    fn waits(&self) -> bool {
        true
    }
}
