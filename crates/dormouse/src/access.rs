//! Who may: clients and invites, one small file each, and the vaults of a store.
//!
//! Owns: `clients/NAME.toml`, `invites/ID.toml` and the open vaults. Invariant:
//! nothing is cached but open vaults, so that `invite` and `revoke` work while the
//! server runs; an invite is used durably before the client is told, by one key
//! only. Leaves to others: proofs (`dormouse_sync::server`).

mod registry;

use anyhow::Result;
use dormouse_crypt::{OsRandom, hash, invite as secret};
use dormouse_format::vault::name_is_valid;
use dormouse_format::{PublicKey, TimeNs, VaultId, WriterId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::exit::{Class, Failure, fail};
use crate::files;
use crate::invite::{Address, Invite};
use crate::store_dir::StoreDir;
use crate::text::{hex, parse_time, time_utc};

pub use registry::Access;

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
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
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
    /// The fingerprint of the key that used it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
    /// When it was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
}

impl InviteFile {
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
    /// When it was revoked.
    pub revoked: Option<TimeNs>,
}

impl Known {
    fn read(name: &str, text: &str) -> Option<Self> {
        let file: ClientFile = toml::from_str(text).ok()?;
        // What cannot be read as a date still revokes.
        let revoked = file.revoked.map(|t| parse_time(&t).unwrap_or(0));
        Some(Self {
            name: name.to_owned(),
            key: PublicKey::from_hex(&file.key)?,
            vault: VaultId::from_hex(&file.vault)?,
            writer: WriterId::from_hex(&file.writer)?,
            created: parse_time(&file.created)?,
            revoked,
        })
    }

    fn text(&self) -> Result<String> {
        Ok(toml::to_string(&ClientFile {
            key: self.key.to_string(),
            vault: self.vault.to_string(),
            writer: self.writer.to_string(),
            created: time_utc(self.created),
            revoked: self.revoked.map(time_utc),
        })?)
    }

    /// Fingerprint of its key.
    pub fn fingerprint(&self) -> String {
        hex(&hash::fingerprint(&self.key))
    }
}

/// All clients of a store, by name.
pub fn clients(store: &StoreDir) -> Result<Vec<Known>> {
    let mut all = Vec::new();
    for (name, text) in toml_files(store, "clients")? {
        let known = Known::read(&name, &text).ok_or_else(|| {
            let path = store.path().join("clients").join(format!("{name}.toml"));
            Failure::new(Class::Damaged, format!("{} cannot be understood", path.display()))
                .hint("repair the file, or remove it to forget the client")
        })?;
        all.push(known);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// All invites of a store, with their ids.
pub fn invites(store: &StoreDir) -> Result<Vec<(String, InviteFile)>> {
    let files = toml_files(store, "invites")?;
    Ok(files.into_iter().filter_map(|(id, text)| Some((id, toml::from_str(&text).ok()?))).collect())
}

/// Stems and texts of a directory's TOML files.
fn toml_files(store: &StoreDir, dir: &str) -> Result<Vec<(String, String)>> {
    let path = store.path().join(dir);
    let mut out = Vec::new();
    for entry in std::fs::read_dir(&path)? {
        let file = entry?.file_name();
        let Some(stem) = file.to_str().and_then(|n| n.strip_suffix(".toml")) else { continue };
        if let Some(text) = files::read_text(&path.join(&file))? {
            out.push((stem.to_owned(), text));
        }
    }
    Ok(out)
}

/// Makes an invite. Needs no lock: it is one new file.
pub fn invite(
    store: &StoreDir,
    client: &str,
    address: Address,
    now: TimeNs,
    lasts_ns: u64,
) -> Result<Invite> {
    check_name(client)?;
    if let Some(known) = clients(store)?.into_iter().find(|c| c.name == client) {
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
        used_by: None,
        used: None,
    };
    let path = invite_path(store, &verifier);
    if !files::create_new(&path, toml::to_string(&file)?.as_bytes(), 0o600)? {
        return fail(Class::Other, format!("{} is there already", path.display()), "try again");
    }
    Ok(Invite { address, client: client.to_owned(), fingerprint: store.fingerprint()?, secret })
}

fn invite_path(store: &StoreDir, verifier: &[u8; 32]) -> std::path::PathBuf {
    store.path().join("invites").join(format!("{}.toml", hex(&verifier[..8])))
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

/// Revokes a client's key; the next connection is refused. Idempotent.
pub fn revoke(store: &StoreDir, client: &str, now: TimeNs) -> Result<Known> {
    let known = clients(store)?.into_iter().find(|c| c.name == client);
    let Some(mut known) = known else {
        return fail(
            Class::NotFound,
            format!("there is no client '{client}' in {}", store.path().display()),
            "`dormouse clients STORE` shows who is there",
        );
    };
    if known.revoked.is_none() {
        known.revoked = Some(now);
        let path = store.path().join("clients").join(format!("{client}.toml"));
        files::replace(&path, known.text()?.as_bytes(), 0o600)?;
    }
    Ok(known)
}
