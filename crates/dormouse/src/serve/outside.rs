//! The way into the jail: what is opened before it, and what is said of its layers.
//!
//! Invariant: no thread runs yet, and what is read from files of the host is read here for the
//! last time.

use std::net::TcpListener;
use std::num::NonZero;
use std::os::unix::net::UnixStream;

use anyhow::Result;

use super::BACKLOG;
use super::limits::Limits;
use super::pages::Ready;
use crate::exit::{Class, fail};
use crate::jail::{self, Plan};
use crate::log::{Entry, Level, Log};

/// What a server needs of its host, opened before it goes into the jail; no thread runs yet.
pub(super) struct Outside {
    pub(super) listener: TcpListener,
    pub(super) pages: Option<Ready>,
    pub(super) wake: (UnixStream, UnixStream),
    pub(super) limits: Limits,
    pub(super) cores: usize,
}

impl Outside {
    pub(super) fn open(listener: TcpListener, pages: Option<Ready>, log: &Log) -> Result<Self> {
        listener.set_nonblocking(true)?;
        // The library's own queue is short: a few strangers would keep all others out.
        rustix::net::listen(&listener, BACKLOG)?;
        let (wake, limits) = (UnixStream::pair()?, Limits::of_system(log));
        let cores = std::thread::available_parallelism().map_or(2, NonZero::get);
        // Both are read from files the first time, which a jail hides.
        crate::text::time_local(0);
        crate::keep::clock::prepare();
        Ok(Self { listener, pages, wake, limits, cores })
    }
}

/// Goes into the jail; says which layers do not hold, and fails for them if they are required.
pub(super) fn enter_jail(
    plan: &Plan,
    beside: &[jail::Standing],
    required: bool,
    log: &Log,
) -> Result<()> {
    let mut missing = Vec::new();
    for standing in jail::enter(plan).iter().chain(beside) {
        if let Err(why) = &standing.held {
            let layer = standing.layer;
            let text = format!(
                "the jail's layer '{}' does not hold: {why}\n  {}",
                layer.name(),
                layer.way_out()
            );
            log.event(&Entry::new(Level::Warning, &text));
            missing.push(layer.name());
        }
    }
    if !required || missing.is_empty() {
        return Ok(());
    }
    fail(
        Class::Other,
        format!(
            "the jail is required, and {} of its layers do not hold: {}",
            missing.len(),
            missing.join(", ")
        ),
        "`dormouse doctor` says why, and what to do; without --require-jail the server runs all the same",
    )
}
