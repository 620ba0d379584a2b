//! What an administrator grants and takes away: roles, quotas, a client's place.
//!
//! Owns: `quotas/VAULT.toml`, state files, and changes of clients' files. Invariant: a change is
//! made from what the file says, with nothing in between, so that a grant never undoes a
//! revocation. Works while the server runs: it sees the change within a second.

use anyhow::Result;
use dormouse_format::{TimeNs, VaultId};
use dormouse_sync::server::Role;
use serde::{Deserialize, Serialize};

use super::{Known, Listed, check_name, client, client_file, listed, not_understood};
use crate::daemon::quantity;
use crate::exit::{Class, fail};
use crate::store_dir::StoreDir;

/// How much a vault may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// So many bytes.
    Bytes(u64),
    /// Anything.
    Unlimited,
}

impl Quota {
    /// The limit.
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Unlimited => None,
        }
    }
}

impl std::str::FromStr for Quota {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::Unlimited),
            text => quantity::size(text).map(|bytes| Self::Bytes(bytes.get())),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct QuotaFile {
    /// Such as 1073741824B, or none.
    quota: String,
}

fn quota_file(vault: &VaultId) -> String {
    format!("quotas/{vault}.toml")
}

/// The quotas that were set for single vaults.
pub(crate) fn quotas(store: &StoreDir) -> Result<Listed<(VaultId, Quota)>> {
    listed(store, "quotas", |vault, text| {
        let file: QuotaFile = toml::from_str(text).ok()?;
        Some((VaultId::from_hex(vault)?, file.quota.parse().ok()?))
    })
}

/// Sets how much a client's vault may hold; `None` is what `server.toml` says for all.
pub fn set_quota(store: &StoreDir, name: &str, quota: Option<Quota>) -> Result<Known> {
    let Some(known) = there(store, name)? else { return absent(store, name) };
    let file = quota_file(&known.vault);
    match quota {
        Some(quota) => {
            let text = quota.bytes().map_or_else(|| "none".into(), |bytes| format!("{bytes}B"));
            store.state().write(&file, &toml::to_string(&QuotaFile { quota: text })?, 0o600)?;
        }
        None => store.state().remove(&file, |_| {})?,
    }
    Ok(known)
}

/// Gives a client another role.
pub fn set_role(store: &StoreDir, name: &str, role: Role) -> Result<Known> {
    let known = change(store, name, |known| {
        if known.revoked.is_none() {
            known.role = role;
        }
    })?;
    if known.revoked.is_some() {
        return fail(
            Class::Place,
            format!("client '{name}' was revoked"),
            "invite it again, under another name: `dormouse invite STORE NAME --role ROLE`",
        );
    }
    Ok(known)
}

/// Revokes a client's key; with `distrust`, nobody refers to its records any more. Idempotent.
pub fn revoke(store: &StoreDir, name: &str, distrust: bool, now: TimeNs) -> Result<Known> {
    change(store, name, |known| {
        known.revoked.get_or_insert(now);
        known.distrusted |= distrust;
    })
}

fn there(store: &StoreDir, name: &str) -> Result<Option<Known>> {
    check_name(name)?;
    client(store, name)
}

fn absent<T>(store: &StoreDir, name: &str) -> Result<T> {
    fail(
        Class::NotFound,
        format!("there is no client '{name}' in {}", store.path().display()),
        "`dormouse clients STORE` shows who is there",
    )
}

/// Changes a client's file, from what it says.
fn change(store: &StoreDir, name: &str, with: impl FnOnce(&mut Known)) -> Result<Known> {
    check_name(name)?;
    let file = client_file(name);
    let mut done = None;
    store.state().update(&file, 0o600, |old| {
        let before = Known::read(name, old?)?;
        let mut known = before.clone();
        with(&mut known);
        let text = known.text();
        let changed = known != before;
        done = Some(text.as_ref().map(|_| known).map_err(|e| anyhow::anyhow!("{e:#}")));
        text.ok().filter(|_| changed)
    })?;
    match done {
        Some(known) => known,
        None if client(store, name)?.is_none() => absent(store, name),
        None => Err(not_understood(store, &file)),
    }
}
