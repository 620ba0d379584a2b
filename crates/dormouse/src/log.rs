//! The server's log: one line for each event, with its time, on standard error.

use std::sync::Arc;

use crate::out::note;
use crate::text::{now_ns, time_local};

/// Where lines go. Cheap to clone.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(&str) + Send + Sync>);

impl Log {
    /// To standard error, with the time.
    pub fn stderr() -> Self {
        Self(Arc::new(|line| note!("{} {line}", time_local(now_ns()))))
    }

    /// To nowhere.
    pub fn silent() -> Self {
        Self(Arc::new(|_| {}))
    }

    /// To a function of the caller.
    pub fn to(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// Writes one line.
    pub fn line(&self, line: &str) {
        (self.0)(line);
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}
