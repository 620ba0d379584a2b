//! Looks, several times a second, what has changed in the store's files of clients and quotas.
//!
//! Invariant: what `revoke` and `grant` write counts within a second for connections that are open,
//! and for every message of theirs from then on. Leaves to others: what is kept of the files
//! ([`crate::access`]) and who has to go ([`super::members`]).

use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::Shared;
use super::seen::Seen;
use crate::exit::text_of;
use crate::text::now_ns;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(200);
/// Looks between two writings of who was seen.
const SEEN_EVERY: u32 = 5;
/// Looks after which what nobody has read of a map goes from memory: 30 s.
const AGE_EVERY: u32 = 150;

/// Runs until the server stops.
pub(super) fn run(shared: &Shared) {
    let (mut said, mut written, mut looks) = (String::new(), 0, 0);
    let mut applied = None;
    write_seen(shared);
    while shared.stopping.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        match shared.access.look() {
            Ok(roster) => {
                said.clear();
                // A vault that is opened later is told then.
                if !applied.as_ref().is_some_and(|last| Arc::ptr_eq(last, &roster)) {
                    shared.access.apply(&roster);
                    applied = Some(roster.clone());
                }
                let mut table = shared.table();
                for id in table.members.check(&roster, Instant::now()) {
                    if let Some(socket) = table.open.get(&id) {
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                }
            }
            // Once, not five times a second.
            Err(error) => {
                let text = text_of(&error);
                if text != said {
                    shared.log.line(&text);
                    said = text;
                }
            }
        }
        shared.scans.age(Instant::now());
        looks += 1;
        if looks % AGE_EVERY == 0 {
            shared.access.age_maps();
        }
        let changes = shared.table().members.changes();
        if looks % SEEN_EVERY == 0 && changes != written {
            written = changes;
            write_seen(shared);
        }
    }
}

/// What cannot be written now is tried again with the next change.
pub(super) fn write_seen(shared: &Shared) {
    let seen = Seen::new(shared.table().members.seen(now_ns()));
    if let Err(error) = seen.write(shared.access.store()) {
        shared.tally.line(|| format!("seen.json: {error}"));
    }
}
