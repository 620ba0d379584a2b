//! Orders of who runs the store to a server that has it: `STORE/orders/`.
//!
//! An order is a file `ID.ask` that holds a vault's id and the frame of a question about what is
//! kept; the server puts its answers into `ID.told`. Invariants: who can write there can do
//! anything to the store anyhow; a file counts when it has its final name, and is read whole or
//! not at all. Leaves to others: what an order does (`dormouse_sync::server::keeping`).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use dormouse_crypt::{OsRandom, Random};
use dormouse_format::VaultId;
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Deframer, Message};

use crate::exit::{Class, Failure};
use crate::files;
use crate::store_dir::StoreDir;
use crate::text::hex;

const DIR: &str = "orders";
const ORDER_MAX: u64 = 4096;
/// Orders that are looked at in one round.
const ROUND: usize = 64;
/// Answers that nobody has taken for so long are removed.
const STALE: Duration = Duration::from_secs(3600);
/// How long an order waits for its answer.
const WAIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

fn dir(store: &StoreDir) -> PathBuf {
    store.path().join(DIR)
}

/// Gives an order, and waits for the answers.
pub fn give(store: &StoreDir, vault: &VaultId, question: &Message) -> Result<Vec<Message>> {
    let dir = dir(store);
    files::make_dir(&dir)?;
    let id = hex(&OsRandom.array::<8>());
    let (ask, told) = (dir.join(format!("{id}.ask")), dir.join(format!("{id}.told")));
    let order = [&vault.0[..], &question.encode()].concat();
    files::replace(&ask, &order, 0o600)?;
    let until = Instant::now() + WAIT;
    loop {
        if let Some(bytes) = files::read_within(&told, FRAME_MAX as u64 * 16)? {
            let _ = std::fs::remove_file(&told);
            return messages(&bytes).with_context(|| format!("the answer {}", told.display()));
        }
        if Instant::now() > until {
            // If it is taken just now, it happens, and nobody hears of it.
            let _ = std::fs::remove_file(&ask);
            let message = format!("who has {} takes no orders", store.path().display());
            return Err(Failure::new(Class::InUse, message)
                .hint(
                    "is it `dormouse serve` of this version? Otherwise end it first: then this \
                     command works on the store itself",
                )
                .into());
        }
        std::thread::sleep(LOOK);
    }
}

fn messages(bytes: &[u8]) -> Result<Vec<Message>> {
    let mut deframer = Deframer::new(FRAME_MAX);
    deframer.push(bytes);
    let mut all = Vec::new();
    while let Some(message) = deframer.next_message()? {
        all.push(message);
    }
    Ok(all)
}

/// Does an order for a vault, which the user of this number gave.
pub type Act<'a> = &'a mut dyn FnMut(&VaultId, Message, u32) -> Vec<Message>;

/// Does the orders that are there: each is taken off, then done, then answered.
pub fn take(store: &StoreDir, act: Act<'_>) -> Result<()> {
    let dir = dir(store);
    let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(()) };
    for entry in entries.take(ROUND) {
        let path = entry?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("ask") => one(&path, act)?,
            Some("told") if is_stale(&path) => files::remove(&path)?,
            _ => {}
        }
    }
    Ok(())
}

fn one(ask: &Path, act: Act<'_>) -> Result<()> {
    let by = std::fs::metadata(ask).map_or(0, |m| m.uid());
    let order = files::read_within(ask, ORDER_MAX);
    // Whatever it holds, it is not looked at twice.
    files::remove(ask)?;
    let Some((vault, question)) = order?.as_deref().and_then(read) else { return Ok(()) };
    let answers = act(&vault, question, by);
    let bytes: Vec<u8> = answers.iter().flat_map(Message::encode).collect();
    files::replace(&ask.with_extension("told"), &bytes, 0o600)
}

fn read(order: &[u8]) -> Option<(VaultId, Message)> {
    let (vault, frame) = order.split_first_chunk()?;
    let [question] = messages(frame).ok()?.try_into().ok()?;
    Some((VaultId(*vault), question))
}

fn is_stale(path: &Path) -> bool {
    let modified = std::fs::metadata(path).and_then(|m| m.modified());
    modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > STALE))
}
