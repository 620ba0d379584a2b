//! The server lets points expire, and does what its operator orders.
//!
//! Owns: one thread. Each hour, and a while after the start, what is due goes, in every vault;
//! each second it looks for orders. Invariant: nothing goes by a clock that is not believed; a
//! vault that fails is told of, and keeps no other from its turn.
//! Leaves to others: what is due (`dormouse_store`), and what becomes of the space (collection).

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use dormouse_format::VaultId;
use dormouse_format::message::{Message, Refusal};
use dormouse_store::{By, GRACE, VaultStore};
use dormouse_sync::server::keeping::LOOKS_MAX;
use dormouse_sync::server::{Refused, Registry};

use crate::access::Access;
use crate::audit::Event;
use crate::audit::keeping::carried_out;
use crate::exit::text_of;
use crate::keep::local;
use crate::keep::orders;
use crate::log::Log;
use crate::text::now_ns;

/// After the start clients come back first.
const FIRST: Duration = Duration::from_secs(300);
const EVERY: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_secs(1);

/// Begins; ends when the server stops.
pub(super) fn start(
    access: Arc<Access>,
    log: Log,
    stopping: Receiver<()>,
) -> std::io::Result<JoinHandle<()>> {
    let work = move || {
        let mut next = Instant::now() + FIRST;
        while stopping.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let store = access.store();
            let taken =
                orders::take(store, &mut |vault, ask, by| ordered(&access, &log, vault, ask, by));
            if let Err(error) = taken {
                log.line(&format!("orders: {}", text_of(&error)));
            }
            if Instant::now() >= next {
                expire_all(&access, &log, &|| {
                    stopping.try_recv().is_err_and(|e| e.is_disconnected())
                });
                next = Instant::now() + EVERY;
            }
        }
    };
    std::thread::Builder::new().name("expiring".into()).spawn(work)
}

/// Does one order.
fn ordered(access: &Access, log: &Log, id: &VaultId, ask: Message, by: u32) -> Vec<Message> {
    let answers = match access.vault(id) {
        Ok(Some(vault)) => {
            local::answer(&vault, access, ask, LOOKS_MAX, &|what| Event::by_order(what, by))
        }
        Ok(None) => local::refusal(Refused::new(Refusal::NotFound, "there is no such vault")),
        Err(refused) => local::refusal(refused),
    };
    if let Some(Message::Error { text, .. }) = answers.first() {
        log.line(&format!("vault {id}: an order was refused: {text}"));
    }
    answers
}

/// Lets go what is due, in every vault.
pub fn expire_all(access: &Access, log: &Log, stopped: &dyn Fn() -> bool) {
    let vaults = match access.store().vaults() {
        Ok(vaults) => vaults,
        Err(error) => return log.line(&text_of(&error)),
    };
    for id in vaults {
        match access.vault(&id) {
            Ok(Some(vault)) if vault.keeps_less() => {
                // Asked for only where something may go: who has set nothing is not bothered.
                if let Err(doubt) = access.clock_holds(false) {
                    return log.line(&doubt.text);
                }
                expire(access, &vault, log, stopped);
            }
            Ok(_) => {}
            Err(refused) => log.line(&format!("vault {id}: {}", refused.text)),
        }
        if stopped() {
            return;
        }
    }
}

fn expire(access: &Access, vault: &VaultStore, log: &Log, stopped: &dyn Fn() -> bool) {
    let id = vault.vault();
    for (volume, ..) in vault.volumes() {
        let name = &volume.name;
        let pruned = vault.prune(&volume.id, By { name: "retention", grace: GRACE, now: now_ns() });
        for event in pruned.iter().flat_map(|due| carried_out(id, name, &volume.id, due)) {
            if let Err(error) = event.write(access.store()) {
                log.line(&text_of(&error));
            }
        }
        match pruned {
            Ok(due) if due.volume => log.line(&format!("vault {id}: volume '{name}' is deleted")),
            Ok(due) if due.gone > 0 => {
                let (gone, points) = (due.gone, due.points);
                log.line(&format!("vault {id}: '{name}': {gone} of {points} points have expired"));
            }
            Ok(_) => {}
            Err(error) => log.line(&format!("vault {id}: '{name}': {error}")),
        }
        if stopped() {
            return;
        }
    }
}
