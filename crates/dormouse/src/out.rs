//! Standard output and standard error, without panics.
//!
//! Owns: the only ways to write there. Invariant: what cannot be written to standard
//! output is an error: [`Closed`] if nobody reads any more, else one with the system's
//! words. What cannot be written to standard error is lost, and the work goes on.

use std::fmt;
use std::io::{self, Write};

use anyhow::Result;

use crate::exit::{Class, Failure};

/// The exit code if nobody reads the output any more: what a shell shows for SIGPIPE.
pub const CLOSED: u8 = 141;

/// Nobody reads standard output any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("standard output was closed")]
pub struct Closed;

/// Writes to standard output.
pub fn write(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| failed(&e))
}

/// A line on standard output; see [`say`].
pub fn line(text: fmt::Arguments<'_>) -> Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// A line on standard error; see [`note`].
pub fn note_line(text: fmt::Arguments<'_>) {
    // There is no other place to say that this one failed.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// What it means that output cannot be written.
pub fn failed(error: &io::Error) -> anyhow::Error {
    use io::ErrorKind::{BrokenPipe, QuotaExceeded, StorageFull};
    if error.kind() == BrokenPipe {
        return Closed.into();
    }
    let full = matches!(error.kind(), StorageFull | QuotaExceeded);
    let class = if full { Class::NoSpace } else { Class::Other };
    Failure::new(class, format!("cannot write to standard output: {error}"))
        .hint("only the output is lost: what the command did before stays done")
        .into()
}

/// Writes a line to standard output: like `println`, but its errors are returned.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::line(format_args!($($text)*)) };
}

/// Writes a line to standard error: like `eprintln`, but never panics.
macro_rules! note {
    ($($text:tt)*) => { $crate::out::note_line(format_args!($($text)*)) };
}

pub(crate) use {note, say};
