//! Who may: clients and invites, one small file each, and the vaults of a store.
//!
//! Owns: `clients/NAME.toml`, `invites/ID.toml`, which are state files, and the open vaults. Invariant:
//! nothing is kept in memory but open vaults and what a manifest proves to be unchanged ([`roster`]),
//! so that `invite`, `grant` and `revoke` work while the server runs; an invite is used durably before the client is told, by one key
//! only. Leaves to others: proofs (`dormouse_sync::server`).

mod grants;
mod registry;
mod roster;

use anyhow::Result;
use dormouse_crypt::{OsRandom, hash, invite as secret};
use dormouse_format::vault::name_is_valid;
use dormouse_format::{PublicKey, TimeNs, VaultId, WriterId};
use dormouse_sync::server::{Client, Role};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::exit::{Class, Failure, fail};
use crate::invite::{Address, Invite};
use crate::store_dir::StoreDir;
use crate::text::{hex, parse_time, time_utc};

pub use grants::{Quota, revoke, set_quota, set_role};
pub use registry::Access;
pub(crate) use roster::Roster;

/// A client's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFile {
    /// Its transport key, hex.
    pub key: String,
    /// Its vault, hex.
    pub vault: String,
    /// Its writer, hex.
    pub writer: String,
    /// When it joined.
    pub created: String,
    /// What it may; a writer's file says nothing of it, as none did before there were roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
    /// Whether nobody is to refer to its records.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub distrusted: bool,
}

/// An invite's file. The secret is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteFile {
    /// The client's name.
    pub name: String,
    /// Hash of the key that the secret stands for, hex.
    pub verifier: String,
    /// When it was made.
    pub created: String,
    /// Until when it may be used.
    pub expires: String,
    /// The role that it invites to; a writer's says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The fingerprint of the key that used it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
    /// When it was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
}

impl InviteFile {
    /// The role that it invites to.
    pub fn role(&self) -> Option<Role> {
        role_in(self.role.as_deref())
    }

    /// Whether it is past its date; a date that cannot be read is past.
    pub fn expired(&self, now: TimeNs) -> bool {
        parse_time(&self.expires).is_none_or(|t| t <= now)
    }
}

/// A client, read from its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its transport key.
    pub key: PublicKey,
    /// Its vault.
    pub vault: VaultId,
    /// Its writer.
    pub writer: WriterId,
    /// When it joined.
    pub created: TimeNs,
    /// What it may.
    pub role: Role,
    /// When it was revoked.
    pub revoked: Option<TimeNs>,
    /// Whether nobody is to refer to its records.
    pub distrusted: bool,
}

impl Known {
    pub(crate) fn read(name: &str, text: &str) -> Option<Self> {
        let file: ClientFile = toml::from_str(text).ok()?;
        // What cannot be read as a date still revokes.
        let revoked = file.revoked.map(|t| parse_time(&t).unwrap_or(0));
        Some(Self {
            name: name.to_owned(),
            key: PublicKey::from_hex(&file.key)?,
            vault: VaultId::from_hex(&file.vault)?,
            writer: WriterId::from_hex(&file.writer)?,
            created: parse_time(&file.created)?,
            // A role that is not known here gives no right.
            role: role_in(file.role.as_deref())?,
            revoked,
            distrusted: file.distrusted,
        })
    }

    pub(crate) fn text(&self) -> Result<String> {
        Ok(toml::to_string(&ClientFile {
            key: self.key.to_string(),
            vault: self.vault.to_string(),
            writer: self.writer.to_string(),
            created: time_utc(self.created),
            role: role_text(self.role),
            revoked: self.revoked.map(time_utc),
            distrusted: self.distrusted,
        })?)
    }

    /// As a session sees it.
    pub(crate) fn client(&self) -> Client {
        Client {
            name: self.name.clone(),
            vault: self.vault,
            writer: self.writer,
            role: self.role,
            revoked: self.revoked.is_some(),
        }
    }

    /// Fingerprint of its key.
    pub fn fingerprint(&self) -> String {
        hex(&hash::fingerprint(&self.key))
    }
}

/// The role in a file; none is a writer's.
fn role_in(text: Option<&str>) -> Option<Role> {
    text.map_or(Some(Role::Writer), Role::from_name)
}

/// How a file says a role.
fn role_text(role: Role) -> Option<String> {
    (role != Role::Writer).then(|| role.name().to_owned())
}

/// What the files of one directory say, and what is wrong with those that do not hold.
#[derive(Debug)]
pub struct Listed<T> {
    /// Those that hold, by name.
    pub good: Vec<T>,
    /// One error for each other.
    pub faults: Vec<anyhow::Error>,
}

/// All clients of a store.
pub fn clients(store: &StoreDir) -> Result<Listed<Known>> {
    listed(store, "clients", Known::read)
}

/// All invites of a store, with their ids.
pub fn invites(store: &StoreDir) -> Result<Listed<(String, InviteFile)>> {
    listed(store, "invites", |id, text| Some((id.to_owned(), toml::from_str(text).ok()?)))
}

fn listed<T>(
    store: &StoreDir,
    dir: &str,
    parse: impl Fn(&str, &str) -> Option<T>,
) -> Result<Listed<T>> {
    let state = store.state();
    let view = state.view()?;
    let mut out = Listed { good: Vec::new(), faults: Vec::new() };
    for file in view.names(dir)? {
        match view.read(&file) {
            Ok(None) => {}
            Ok(Some(text)) => {
                let stem = file.strip_prefix(dir).and_then(|f| f[1..].strip_suffix(".toml"));
                match stem.and_then(|stem| parse(stem, &text)) {
                    Some(value) => out.good.push(value),
                    None => out.faults.push(not_understood(store, &file)),
                }
            }
            Err(fault) => out.faults.push(fault),
        }
    }
    Ok(out)
}

fn not_understood(store: &StoreDir, file: &str) -> anyhow::Error {
    let path = store.path().join(file);
    Failure::new(Class::Damaged, format!("{} cannot be understood", path.display()))
        .hint("was it written by another version of dormouse?")
        .into()
}

/// The client of this name; an error if its file does not hold.
fn client(store: &StoreDir, name: &str) -> Result<Option<Known>> {
    let file = client_file(name);
    let Some(text) = store.state().read(&file)? else { return Ok(None) };
    Known::read(name, &text).map(Some).ok_or_else(|| not_understood(store, &file))
}

fn client_file(name: &str) -> String {
    format!("clients/{name}.toml")
}

/// Makes an invite for a writer, one new file; works while the server runs.
pub fn invite(
    store: &StoreDir,
    client: &str,
    address: Address,
    now: TimeNs,
    lasts_ns: u64,
) -> Result<Invite> {
    invite_as(store, client, Role::Writer, address, now, lasts_ns)
}

/// Makes an invite for a role.
pub fn invite_as(
    store: &StoreDir,
    client: &str,
    role: Role,
    address: Address,
    now: TimeNs,
    lasts_ns: u64,
) -> Result<Invite> {
    check_name(client)?;
    if let Some(known) = self::client(store, client)? {
        let state = if known.revoked.is_some() { "was revoked" } else { "has joined already" };
        return fail(
            Class::Place,
            format!("client '{client}' {state}"),
            "invite it under another name, or `dormouse clients STORE` to see who is there",
        );
    }
    let secret = Zeroizing::new(secret::secret(&mut OsRandom));
    let verifier = secret::verifier(&secret::key(&secret)?.public());
    let file = InviteFile {
        name: client.to_owned(),
        verifier: hex(&verifier),
        created: time_utc(now),
        expires: time_utc(now.saturating_add(lasts_ns)),
        role: role_text(role),
        used_by: None,
        used: None,
    };
    let name = invite_file(&verifier);
    if !store.state().create_new(&name, &toml::to_string(&file)?, 0o600)? {
        return fail(Class::Other, format!("{name} is there already"), "try again");
    }
    Ok(Invite { address, client: client.to_owned(), fingerprint: store.fingerprint()?, secret })
}

fn invite_file(verifier: &[u8; 32]) -> String {
    format!("invites/{}.toml", hex(&verifier[..8]))
}

/// Checks the name of a client.
pub fn check_name(name: &str) -> Result<()> {
    if name_is_valid(name) {
        return Ok(());
    }
    fail(
        Class::Usage,
        format!("'{name}' is not a valid name"),
        "a name is 1 to 64 letters, digits, '.', '_' or '-', and does not begin with '.' or '-'",
    )
}
