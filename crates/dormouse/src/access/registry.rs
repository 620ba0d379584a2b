//! The server's view: what `dormouse_sync` asks about clients, invites and vaults.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_crypt::hash;
use dormouse_format::limits::NAME_MAX;
use dormouse_format::message::Refusal;
use dormouse_format::{PublicKey, TimeNs, VaultId};
use dormouse_store::disk::DiskDir;
use dormouse_store::{Error as StoreError, MapCache, Options, VaultStore};
use dormouse_sync::server::{Client, Refused, Registry, Role};

use super::roster::{Kept, Roster};
use super::{InviteFile, Known, client_file, invite_file};
use crate::exit::{Class, class_of, text_of};
use crate::keep::clock::ClockFile;
use crate::log::Log;
use crate::store_dir::StoreDir;
use crate::text::{hex, time_utc};

/// Digits of its key's fingerprint that end the name of a machine that came back: more if there is
/// such a client already.
const NAME_ENDS: [usize; 2] = [4, 16];
/// Pages of maps that are kept of all vaults together: 70 MiB, while they are used.
const PAGES_KEPT: usize = 128;
/// Index entries that are kept in memory of all vaults together, of some 60 bytes: 60 MiB. The segment
/// that is written comes on top.
const INDEX_KEPT: usize = 1 << 20;
/// A vault keeps no more of them, and may keep as many however many vaults there are.
const INDEX_OF_ONE: std::ops::RangeInclusive<usize> = 1 << 10..=256 << 10;
/// Damaged records of a vault that are logged one by one when it is opened.
const FAULTS_LOGGED: usize = 16;

/// The registry of a store's directory.
pub struct Access {
    store: StoreDir,
    log: Log,
    /// One at a time changes the files of clients and invites.
    change: Mutex<()>,
    vaults: Mutex<HashMap<VaultId, Arc<VaultStore>>>,
    roster: Kept,
    /// How much a vault may hold if nothing is set for it.
    quota: Option<u64>,
    clock: ClockFile,
    /// What all vaults lately read of their maps.
    maps: MapCache,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Access({})", self.store.path().display())
    }
}

/// Entries of its index that each of so many vaults may keep in memory.
fn index_share(vaults: usize) -> usize {
    (INDEX_KEPT / vaults.max(1)).clamp(*INDEX_OF_ONE.start(), *INDEX_OF_ONE.end())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Access {
    /// The registry; the caller holds the store's lock.
    pub fn new(store: StoreDir, log: Log) -> Self {
        // A file that cannot be understood is told of by who starts the server.
        let quota = store.config().and_then(|c| c.quota()).unwrap_or_default();
        let (change, vaults, roster) = Default::default();
        let (clock, maps) = (ClockFile::of(store.path()), MapCache::new(PAGES_KEPT));
        Self { store, log, change, vaults, roster, quota, clock, maps }
    }

    /// The store's directory.
    pub const fn store(&self) -> &StoreDir {
        &self.store
    }

    /// Closes every open vault: what they cache is written, and they take no more.
    pub fn close(&self) {
        let closing: Vec<_> = lock(&self.vaults).drain().collect();
        for (id, vault) in &closing {
            if let Err(error) = vault.close() {
                self.log.line(&format!("vault {id}: closing: {error}"));
            }
        }
        self.store.drain();
        drop(closing);
        self.store.finish(&self.log);
    }

    /// Clients and quotas as they are now.
    pub(crate) fn roster(&self) -> anyhow::Result<Arc<Roster>> {
        self.roster.now(&self.store)
    }

    /// The same, by every byte of what says that nothing has changed.
    pub(crate) fn look(&self) -> anyhow::Result<Arc<Roster>> {
        self.roster.look(&self.store)
    }

    /// Lets go of the parts of maps that nobody has read since this was called last.
    pub(crate) fn age_maps(&self) {
        self.maps.age();
    }

    /// The vaults that are open.
    pub(crate) fn open_vaults(&self) -> Vec<Arc<VaultStore>> {
        lock(&self.vaults).values().cloned().collect()
    }

    /// A vault more is open: each may keep a little less in memory.
    fn share_memory(&self) {
        let vaults = self.open_vaults();
        let share = index_share(vaults.len());
        vaults.iter().for_each(|vault| vault.keep_index(share));
    }

    /// Tells every open vault what is set for it.
    pub(crate) fn apply(&self, roster: &Roster) {
        self.open_vaults().iter().for_each(|vault| self.apply_to(vault, roster));
    }

    fn apply_to(&self, vault: &VaultStore, roster: &Roster) {
        vault.set_quota(roster.quota(vault.vault(), self.quota));
        vault.set_distrusted(roster.distrusted(vault.vault()));
    }

    /// An error goes to the log.
    pub(crate) fn tell(&self, error: &anyhow::Error) {
        self.log.line(&text_of(error));
    }

    /// An error whose details stay in the server's log.
    fn internal(&self, error: &anyhow::Error) -> Refused {
        self.log.line(&text_of(error));
        match class_of(error) {
            Class::NoSpace => Refused::new(Refusal::Full, "the server's disk is full"),
            Class::Damaged => Refused::new(
                Refusal::Damaged,
                "a file of the server's state does not hold; its log says which",
            ),
            _ => Refused::new(Refusal::Internal, "the server failed; its log says why"),
        }
    }

    fn store_error(&self, vault: &VaultId, error: &StoreError) -> Refused {
        self.log.line(&format!("vault {vault}: {error}"));
        match error {
            StoreError::Full => Refused::new(Refusal::Full, "the server's disk is full"),
            StoreError::NewerVersion { found, known } => Refused::new(
                Refusal::NewerStore,
                format!(
                    "a segment of the vault has version {found}, and the dormouse there knows \
                     up to {known}"
                ),
            ),
            StoreError::Io { .. } | StoreError::Poisoned => {
                Refused::new(Refusal::Internal, "the server failed; its log says why")
            }
            _ => Refused::new(
                Refusal::Damaged,
                "the vault cannot be opened on the server; its log says why",
            ),
        }
    }

    fn load_invite(&self, verifier: &[u8; 32]) -> Result<InviteFile, Refused> {
        let text =
            self.store.state().read(&invite_file(verifier)).map_err(|e| self.internal(&e))?;
        let invite: Option<InviteFile> = text.and_then(|t| toml::from_str(&t).ok());
        invite.filter(|i| i.verifier == hex(verifier)).ok_or_else(|| {
            Refused::new(Refusal::InviteUnknown, "this invite is not known to the server")
        })
    }

    /// The invite, if this key may use it, or has used it.
    fn usable(
        &self,
        verifier: &[u8; 32],
        name: &str,
        key: &PublicKey,
        now: TimeNs,
    ) -> Result<InviteFile, Refused> {
        let invite = self.load_invite(verifier)?;
        if invite.name != name {
            return Err(Refused::new(
                Refusal::InviteUnknown,
                format!("this invite is for a client named '{}'", invite.name),
            ));
        }
        if let Some(by) = &invite.used_by {
            if *by == hex(&hash::fingerprint(key)) {
                return Ok(invite);
            }
            let when = invite.used.as_deref().unwrap_or("an unknown time");
            return Err(Refused::new(
                Refusal::InviteUsed,
                format!(
                    "this invite was used already, on {when}, by the key with fingerprint {by}"
                ),
            ));
        }
        if invite.expired(now) {
            return Err(Refused::new(
                Refusal::InviteExpired,
                format!("this invite expired on {}", invite.expires),
            ));
        }
        Ok(invite)
    }

    /// Writes a client's file; `false` if the name is taken by another key.
    fn add(&self, known: &Known) -> anyhow::Result<bool> {
        let file = client_file(&known.name);
        if self.store.state().create_new(&file, &known.text()?, 0o600)? {
            return Ok(true);
        }
        let there = super::client(&self.store, &known.name)?;
        Ok(there.is_some_and(|c| c.key == known.key && c.vault == known.vault))
    }

    fn known(name: &str, key: &PublicKey, client: &Client, now: TimeNs) -> Known {
        Known {
            name: name.to_owned(),
            key: *key,
            vault: client.vault,
            writer: client.writer,
            created: now,
            role: client.role,
            revoked: None,
            distrusted: false,
        }
    }

    fn open_vault(
        &self,
        id: &VaultId,
        now: Option<TimeNs>,
    ) -> Result<Option<Arc<VaultStore>>, Refused> {
        let mut open = lock(&self.vaults);
        if let Some(vault) = open.get(id) {
            // After a failed write a vault takes nothing more until it is opened again.
            if !vault.stats().poisoned || Arc::strong_count(vault) > 1 {
                // What was granted before this connection began counts from its first message on.
                self.apply_to(vault, &*self.roster().map_err(|e| self.internal(&e))?);
                return Ok(Some(vault.clone()));
            }
            open.remove(id);
        }
        let segments = self.store.segments(id, now.is_some()).map_err(|e| self.internal(&e))?;
        let Some(segments) = segments else { return Ok(None) };
        let path = self.store.vault_path(id);
        let failed = |e: std::io::Error| {
            self.internal(&anyhow::Error::from(e).context(path.display().to_string()))
        };
        let there = !segments.list().map_err(failed)?.is_empty();
        if !there && now.is_none() {
            return Ok(None);
        }
        let index = Box::new(DiskDir::create_or_open(&path.join("index")).map_err(failed)?);
        let index_entries = index_share(open.len() + 1);
        let options = Options { index_entries, ..Options::default() };
        let vault = match now {
            Some(now) if !there => VaultStore::create(segments, index, *id, now, options),
            _ => VaultStore::open(segments, index, *id, options).map(|(vault, recovery)| {
                for torn in &recovery.torn {
                    self.log.line(&format!(
                        "vault {id}: segment {}: {} bytes from {} on were not whole; kept in {}",
                        torn.segment, torn.bytes, torn.offset, torn.kept_in
                    ));
                }
                for fault in recovery.damaged.iter().take(FAULTS_LOGGED) {
                    self.log.line(&format!("vault {id}: {}", fault.why));
                }
                if recovery.damaged.len() > FAULTS_LOGGED {
                    let more = recovery.damaged.len() - FAULTS_LOGGED;
                    self.log.line(&format!("vault {id}: {more} more faults; run scrub"));
                }
                vault
            }),
        };
        let mut vault = vault.map_err(|e| self.store_error(id, &e))?;
        vault.share_maps(&self.maps);
        let vault = Arc::new(vault);
        self.apply_to(&vault, &*self.roster().map_err(|e| self.internal(&e))?);
        open.insert(*id, vault.clone());
        drop(open);
        self.share_memory();
        Ok(Some(vault))
    }
}

/// The role of an invite; one that is not known here is none.
fn invited_to(invite: &InviteFile) -> Result<Role, Refused> {
    invite.role().ok_or_else(|| {
        Refused::new(
            Refusal::InviteUnknown,
            "this invite is for a role that the server does not know",
        )
    })
}

impl Registry for Access {
    fn client(&self, key: &PublicKey) -> Result<Option<Client>, Refused> {
        let roster = self.roster.for_client(&self.store, key).map_err(|e| self.internal(&e))?;
        if let Some(known) = roster.client(key) {
            return Ok(Some(known.client()));
        }
        // It may be the one whose file does not hold.
        for fault in roster.faults.iter().skip(1) {
            self.log.line(&text_of(fault));
        }
        roster.faults.first().map_or(Ok(None), |fault| Err(self.internal(fault)))
    }

    fn check_invite(
        &self,
        verifier: &[u8; 32],
        name: &str,
        key: &PublicKey,
        now: TimeNs,
    ) -> Result<Role, Refused> {
        invited_to(&self.usable(verifier, name, key, now)?)
    }

    fn use_invite(
        &self,
        verifier: &[u8; 32],
        key: &PublicKey,
        client: &Client,
        now: TimeNs,
    ) -> Result<Client, Refused> {
        let _one = lock(&self.change);
        let mut invite = self.usable(verifier, &client.name, key, now)?;
        if let Some(known) = self.client(key)? {
            if known.revoked {
                let text = format!("the key of client '{}' was revoked", known.name);
                return Err(Refused::new(Refusal::Revoked, text));
            }
            if known.vault == client.vault && invite.used_by.is_some() {
                return Ok(known);
            }
        }
        let there = super::client(&self.store, &client.name).map_err(|e| self.internal(&e))?;
        let taken = there.is_some_and(|c| c.key != *key);
        let exists = || {
            Refused::new(Refusal::Exists, format!("there is already a client '{}'", client.name))
        };
        if taken {
            return Err(exists());
        }
        // First the invite, then the client: a crash in between leaves an invite that
        // the same key can use again.
        if invite.used_by.is_none() {
            invite.used_by = Some(hex(&hash::fingerprint(key)));
            invite.used = Some(time_utc(now));
            let write = || {
                let text = toml::to_string(&invite)?;
                self.store.state().write(&invite_file(verifier), &text, 0o600)
            };
            write().map_err(|e| self.internal(&e))?;
        }
        let client = Client { role: invited_to(&invite)?, ..client.clone() };
        let known = Self::known(&client.name, key, &client, now);
        if !self.add(&known).map_err(|e| self.internal(&e))? {
            return Err(exists());
        }
        self.store.state_changed().map_err(|e| self.internal(&e))?;
        Ok(client)
    }

    fn add_recovered(
        &self,
        key: &PublicKey,
        client: &Client,
        now: TimeNs,
    ) -> Result<Client, Refused> {
        let _one = lock(&self.change);
        if let Some(known) = self.client(key)? {
            if known.revoked {
                let text = format!("the key of client '{}' was revoked", known.name);
                return Err(Refused::new(Refusal::Revoked, text));
            }
            if known.vault != client.vault {
                let text = "this machine's key is a client of another vault on this server";
                return Err(Refused::new(Refusal::Exists, text));
            }
            return Ok(known);
        }
        // Never the name alone: that it is free, or taken, would tell of other vaults' clients.
        let fingerprint = hex(&hash::fingerprint(key));
        let base = &client.name[..client.name.len().min(NAME_MAX - 1 - NAME_ENDS[1])];
        for digits in NAME_ENDS {
            let name = format!("{base}-{}", &fingerprint[..digits]);
            let known = Self::known(&name, key, client, now);
            if self.add(&known).map_err(|e| self.internal(&e))? {
                self.store.state_changed().map_err(|e| self.internal(&e))?;
                return Ok(known.client());
            }
        }
        Err(Refused::new(Refusal::Exists, "no free name was found for this client"))
    }

    fn vault(&self, id: &VaultId) -> Result<Option<Arc<VaultStore>>, Refused> {
        self.open_vault(id, None)
    }

    fn create_vault(&self, id: &VaultId, now: TimeNs) -> Result<Arc<VaultStore>, Refused> {
        self.open_vault(id, Some(now))?
            .ok_or_else(|| Refused::new(Refusal::Internal, "the vault was not made"))
    }

    fn clock_holds(&self, confirmed: bool) -> Result<(), Refused> {
        self.clock.holds(confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vaults_share_the_memory_of_the_index() {
        assert_eq!([1, 4, 8].map(index_share), [256 << 10, 256 << 10, 128 << 10]);
        assert!((1..=1000).all(|vaults| vaults * index_share(vaults) <= INDEX_KEPT));
        assert_eq!([0, 1 << 20].map(index_share), [256 << 10, 1 << 10]);
    }
}
