//! What the files of clients and quotas say, kept in memory.
//!
//! Invariants: what is kept is used only while the manifest is the one that it was read under (the
//! same file, and several times a second byte for byte), so a change counts from the next question on; only if every file held, so a file
//! that was mended counts too; and a client is let in only if its own file is still the same. Without this each greeting read every client's file, and a fleet that
//! comes back reads them all for each of its machines.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use dormouse_format::{PublicKey, VaultId, WriterId};

use super::grants::{Quota, quotas};
use super::{Known, Listed, client_file, clients};
use crate::files;
use crate::state_files::MANIFEST;
use crate::store_dir::StoreDir;

/// Clients and quotas at one moment.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    clients: Vec<Known>,
    by_key: HashMap<PublicKey, usize>,
    /// The file of each, byte for byte.
    raw: Vec<Option<Vec<u8>>>,
    quotas: HashMap<VaultId, Quota>,
    /// What is wrong with files that do not hold.
    pub(crate) faults: Vec<anyhow::Error>,
}

impl Roster {
    /// Reads all of them.
    pub(crate) fn load(store: &StoreDir) -> Result<Self> {
        let Listed { good, mut faults } = clients(store)?;
        let quotas = quotas(store)?;
        faults.extend(quotas.faults);
        let mut by_key = HashMap::new();
        for (at, client) in good.iter().enumerate() {
            by_key.entry(client.key).or_insert(at);
        }
        let raw = good.iter().map(|c| raw(store, c)).collect();
        Ok(Self { clients: good, by_key, raw, quotas: quotas.good.into_iter().collect(), faults })
    }

    /// The client with this key.
    pub(crate) fn client(&self, key: &PublicKey) -> Option<&Known> {
        self.clients.get(*self.by_key.get(key)?)
    }

    /// Whether the file of the client with this key is still what it was.
    fn is_same(&self, store: &StoreDir, key: &PublicKey) -> bool {
        let Some(at) = self.by_key.get(key) else { return true };
        self.raw[*at].is_some() && raw(store, &self.clients[*at]) == self.raw[*at]
    }

    /// All clients.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Known> {
        self.clients.iter()
    }

    /// How much a vault may hold, if nothing else is said than by default.
    pub(crate) fn quota(&self, vault: &VaultId, default: Option<u64>) -> Option<u64> {
        self.quotas.get(vault).map_or(default, |quota| quota.bytes())
    }

    /// Writers of a vault whose records nobody is to refer to.
    pub(crate) fn distrusted(&self, vault: &VaultId) -> HashSet<WriterId> {
        let of = self.all().filter(|c| c.vault == *vault && c.distrusted);
        of.map(|c| c.writer).collect()
    }
}

fn raw(store: &StoreDir, client: &Known) -> Option<Vec<u8>> {
    files::read_opt(&store.path().join(client_file(&client.name))).ok().flatten()
}

/// The roster that was read last.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Option<Last>>);

#[derive(Debug)]
struct Last {
    manifest: Vec<u8>,
    stamp: Option<Stamp>,
    roster: Arc<Roster>,
}

/// By what a manifest is told from the one before without reading it: it is replaced, never
/// written again.
type Stamp = (u64, u64, i64, i64);

fn stamp(store: &StoreDir) -> Option<Stamp> {
    let file = std::fs::metadata(store.path().join(MANIFEST)).ok()?;
    Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Option<Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The roster, to let the client with this key in.
    pub(super) fn for_client(&self, store: &StoreDir, key: &PublicKey) -> Result<Arc<Roster>> {
        let roster = self.now(store)?;
        if roster.is_same(store, key) {
            return Ok(roster);
        }
        *self.lock() = None;
        self.now(store)
    }

    /// The roster as it is now. The manifest is looked at, and read only if it is another: who asks
    /// is one of thousands.
    pub(super) fn now(&self, store: &StoreDir) -> Result<Arc<Roster>> {
        let now = stamp(store);
        if let Some(last) = &*self.lock()
            && now.is_some()
            && last.stamp == now
            && last.roster.faults.is_empty()
        {
            return Ok(last.roster.clone());
        }
        self.look(store)
    }

    /// The same, by every byte of the manifest.
    pub(super) fn look(&self, store: &StoreDir) -> Result<Arc<Roster>> {
        let (stamp, manifest) = (stamp(store), store.state().manifest_bytes()?);
        let mut kept = self.lock();
        if let Some(last) = &mut *kept
            && last.manifest == manifest
            && last.roster.faults.is_empty()
        {
            last.stamp = stamp;
            return Ok(last.roster.clone());
        }
        // What changes after the manifest was read is found by the next question.
        let roster = Arc::new(Roster::load(store)?);
        *kept = Some(Last { manifest, stamp, roster: roster.clone() });
        Ok(roster)
    }
}
