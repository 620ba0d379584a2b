//! A disk that tells each request to a writer: one line when it begins, one when it ends.
//!
//! ```text
//! 12.345678 #7 write 4096+512 fua
//! 12.346001 #7 write: ok
//! ```
//!
//! Leaves to others: the writer. One that fails is not told again.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{Gate, Kind, Request};
use crate::Result;

/// Where the lines go.
pub struct Log {
    to: Mutex<Option<Box<dyn Write + Send>>>,
    next: AtomicU64,
    begun: Instant,
}

impl core::fmt::Debug for Log {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Log")
    }
}

impl Log {
    /// To this writer.
    pub fn new(to: Box<dyn Write + Send>) -> Self {
        Self { to: Mutex::new(Some(to)), next: AtomicU64::new(1), begun: Instant::now() }
    }

    fn line(&self, text: &str) {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = self.begun.elapsed().as_secs_f64();
        let line = format!("{seconds:.6} {text}\n");
        if to.as_mut().is_some_and(|to| to.write_all(line.as_bytes()).is_err()) {
            *to = None;
        }
    }
}

impl Gate for Log {
    fn pass(&self, request: &Request, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Request { kind, at, len, fua } = *request;
        let (id, name) = (self.next.fetch_add(1, Ordering::Relaxed), kind.name());
        let range = if kind == Kind::Flush { String::new() } else { format!(" {at}+{len}") };
        self.line(&format!("#{id} {name}{range}{}", if fua { " fua" } else { "" }));
        let done = go();
        match &done {
            Ok(()) => self.line(&format!("#{id} {name}: ok")),
            Err(error) => self.line(&format!("#{id} {name}: {error}")),
        }
        done
    }
}
