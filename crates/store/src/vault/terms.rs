//! What an administrator has set for a vault: how many bytes it may hold, and whose records are
//! not relied upon.
//!
//! Owns: the two limits that follow from a quota. Invariants: at the quota nothing new is begun and
//! nothing new is taken; what was begun before may end within a reserve above it, and no client
//! gets anything in beyond that, of whatever kind; what the server itself writes (retention,
//! collection) is never refused here. Several connections may be looked at at once: each may
//! go beyond by one record.
//! Leaves to others: where the terms are kept, and who sets them.

use std::collections::HashSet;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_format::WriterId;
use dormouse_format::seeded::seeded;

use super::VaultStore;
use crate::error::{Error, Result};
use crate::locks::{read, write};

/// Least and most bytes above a quota for the end of what was begun below it: maps and points.
const RESERVE: (u64, u64) = (1 << 20, 1 << 30);
/// The reserve is this part of the quota, within these.
const RESERVE_PART: u64 = 16;

/// What a record is to a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Something new: data, keys, a volume, a new right to write.
    New,
    /// A part of a point that was begun.
    Ending,
}

/// The terms of a vault.
#[derive(Debug)]
pub(super) struct Terms {
    quota: AtomicU64,
    distrusted: RwLock<HashSet<WriterId>>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { quota: AtomicU64::new(u64::MAX), distrusted: RwLock::default() }
    }
}

impl VaultStore {
    /// Sets how many bytes the vault may hold; none is no limit. What is there stays.
    pub fn set_quota(&self, quota: Option<u64>) {
        self.terms.quota.store(quota.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Bytes that the vault holds, and may hold.
    pub fn quota(&self) -> (u64, Option<u64>) {
        let quota = self.terms.quota.load(Ordering::Relaxed);
        (self.log.bytes.load(Ordering::Relaxed), (quota != u64::MAX).then_some(quota))
    }

    /// Sets whose records nobody may refer to: other writers send the content again. They are
    /// still given to readers, who check them.
    pub fn set_distrusted(&self, writers: HashSet<WriterId>) {
        if *read(&self.terms.distrusted) != writers {
            *write(&self.terms.distrusted) = writers;
        }
    }

    /// Whether this writer's records may be referred to.
    pub(super) fn relies_on(&self, writer: &WriterId) -> bool {
        !read(&self.terms.distrusted).contains(writer)
    }

    /// Refuses so many bytes more of a client, if they do not fit into the quota.
    pub(super) fn room(&self, what: Room, bytes: usize) -> Result<()> {
        let quota = self.terms.quota.load(Ordering::Relaxed);
        if quota == u64::MAX {
            return Ok(());
        }
        let used = self.log.bytes.load(Ordering::Relaxed);
        let reserve = match what {
            Room::New => 0,
            Room::Ending => (quota / RESERVE_PART).clamp(RESERVE.0, RESERVE.1),
        };
        let after = used.saturating_add(bytes as u64);
        if after > quota.saturating_add(reserve) && !seeded("quota-unchecked") {
            Err(Error::Quota { used, quota })
        } else {
            Ok(())
        }
    }
}
