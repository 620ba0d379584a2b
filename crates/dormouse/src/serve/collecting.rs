//! Collection in the background: a round over every vault, an hour after the last.
//!
//! Invariant: one round at a time, at the rate that is set; a stop of the server ends it
//! within a moment, and what it had retired by then is gone. What a round did is logged if it
//! did anything, and so is why one failed.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use dormouse_sync::server::Registry;

use crate::access::Access;
use crate::collect::{self, Settings};
use crate::exit::text_of;
use crate::log::{Entry, Level, Log};
use crate::store_dir::StoreDir;

/// Clients that come back after a restart go first.
const FIRST_AFTER: Duration = Duration::from_secs(15 * 60);
const EVERY: Duration = Duration::from_secs(3600);

/// Begins it, unless `server.toml` says `collect = false`. `stopping` is closed at a stop.
pub(super) fn start(
    store: &StoreDir,
    access: &Arc<Access>,
    stopping: &Receiver<()>,
    log: &Log,
) -> Result<Option<JoinHandle<()>>> {
    let config = store.config()?;
    if config.collect == Some(false) {
        return Ok(None);
    }
    if let Err(error) = store.can_collect() {
        log.event(&Entry::new(Level::Warning, &text_of(&error)));
        return Ok(None);
    }
    let settings = Settings::new(&config, None, None)?;
    let (store, access) = (store.clone(), Arc::clone(access));
    let (stopping, log) = (stopping.clone(), log.clone());
    let run = move || {
        let mut wait = FIRST_AFTER;
        while stopping.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            wait = EVERY;
            if let Err(error) = rounds(&store, &access, &settings, &stopping, &log) {
                log.line(&text_of(&error));
            }
        }
    };
    Ok(Some(std::thread::Builder::new().name("collect".into()).spawn(run)?))
}

fn rounds(
    store: &StoreDir,
    access: &Access,
    settings: &Settings,
    stopping: &Receiver<()>,
    log: &Log,
) -> Result<()> {
    use crossbeam_channel::TryRecvError::Disconnected;
    let stopped = || stopping.try_recv() == Err(Disconnected);
    for id in store.vaults()? {
        if stopped() {
            return Ok(());
        }
        // Why a vault cannot be opened is logged there.
        let Ok(Some(vault)) = access.vault(&id) else { continue };
        match collect::round(&vault, settings, false, &stopped) {
            Ok(round) if round.retired > 0 || !round.damaged.is_empty() || round.put_off => {
                log.line(&collect::line(&id, &round, false));
            }
            Ok(_) | Err(dormouse_store::Error::Stopped) => {}
            Err(error) => log.line(&format!("vault {id} is not collected: {error}")),
        }
    }
    Ok(())
}
