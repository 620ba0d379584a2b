//! What a client may, how much it may store, and what it learns of others.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod counted;
mod neighbours;
mod quotas;
mod roles;

use dormouse_format::message::{Message, Refusal};
use dormouse_sim::{Disk, Lcg, World, noise};
use dormouse_sync::Error;
use dormouse_sync::error::Result;

/// A disk of noise in every third block.
fn disk(seed: u64, blocks: u64) -> Disk {
    let mut random = Lcg(seed);
    let mut disk = Disk::new(16 << 20);
    (0..blocks).for_each(|b| disk.write(b * 3, noise(&mut random)));
    disk
}

/// The refusal and its text.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T>) -> (Refusal, String) {
    match answer {
        Err(Error::Refused { refusal, text }) => (refusal, text),
        other => panic!("not refused: {other:?}"),
    }
}

/// Bytes of the only vault of this machine's.
fn used(world: &World) -> u64 {
    let vaults = world.registry.vaults.lock().unwrap();
    vaults.values().map(|v| v.stats().bytes).sum()
}

/// A barrier, behind messages that are answered only if refused.
const BARRIER: Message = Message::Barrier;
