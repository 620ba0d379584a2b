//! The directory of a STORE, apart from the vaults' segments.
//!
//! Owns: header file, server key, configuration, lock. Invariant: nothing is
//! written into a directory that is not a store, nor into one of a newer version.
//! Header, key, clients and invites are state files ([`crate::state_files`]);
//! `server.toml` is the administrator's, and is not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use dormouse_crypt::{OsRandom, Random, SigningKey, hash};
use dormouse_format::VaultId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::access::Quota;
use crate::bucket::{BucketStore, Note};
use crate::exit::{Class, Failure, fail};
use crate::files::{self, Lock};
use crate::state_files::{Fault, Kind, StateFiles};
use crate::text::{hex, unhex_array};

mod reviving;
mod segments;

pub(crate) const HEADER: &str = "dormouse-store";
const FORMAT: &str = "dormouse store";
/// Of a directory that is the state of a store in object storage.
const STATE_FORMAT: &str = "dormouse bucket state";
/// The version of the store's layout that this program writes.
pub const VERSION: u32 = 1;
pub(crate) const KEY: &str = "server.key";
/// What marks a directory as a second copy of a store ([`crate::replicate`]).
pub const REPLICA: &str = "replica.toml";

const STATE: Kind = Kind {
    files: &[HEADER, KEY],
    dirs: &["clients", "invites", "quotas"],
    spare: &["clients", "invites", "quotas"],
    way_out: "`dormouse scrub STORE` lists all that is wrong; bring the newest version of the file back from a backup,\n\
              or let `dormouse scrub STORE --accept-state` go on with what holds: a client whose file\n\
              is set aside must join again",
};

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<Note>,
}

/// What an administrator may set, in `server.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How clients reach this server, HOST:PORT: what invites name.
    pub url: Option<String>,
    /// Where the server listens.
    pub listen: Option<String>,
    /// How much each vault may hold, such as 500GiB, if `dormouse grant` says nothing else.
    pub quota: Option<String>,
    /// Whether it collects in the background; it does without it.
    pub collect: Option<bool>,
    /// For how long what nothing refers to stays, such as `7d`.
    pub collect_grace: Option<String>,
    /// Bytes a second that a collection reads and writes, such as `16MiB`.
    pub collect_rate: Option<String>,
}

impl Config {
    /// How much each vault may hold by default.
    pub fn quota(&self) -> Result<Option<u64>> {
        let quota: Option<Quota> = self.quota.as_deref().map(str::parse).transpose()?;
        Ok(quota.and_then(Quota::bytes))
    }
}

/// A store's directory, its header checked.
#[derive(Debug, Clone)]
pub struct StoreDir {
    path: PathBuf,
    /// The bucket that its header names.
    note: Option<Note>,
    /// That bucket, where it was opened.
    bucket: Option<Arc<BucketStore>>,
}

impl StoreDir {
    /// Opens a store that is there.
    pub fn open(path: &Path) -> Result<Self> {
        let Some(text) = header(path)? else {
            let shown = path.display();
            no_bucket(path)?;
            let (class, why) = if path.is_dir() {
                (Class::Place, format!("{shown} is not a Dormouse store"))
            } else if path.exists() {
                (Class::Place, format!("{shown} is not a directory"))
            } else {
                (Class::NotFound, format!("there is no store at {shown}"))
            };
            return fail(
                class,
                why,
                "a store is made by `dormouse serve STORE`, in an empty or new directory",
            );
        };
        let note = check_header(path, &text)?;
        let store = Self { path: std::path::absolute(path)?, note, bucket: None };
        for sub in STATE.dirs.iter().chain(&["vaults"]) {
            files::make_dir(&store.path.join(sub))?;
        }
        Ok(store)
    }

    /// Opens a store, and makes it first if the directory is empty or not there.
    pub fn open_or_create(path: &Path) -> Result<Self> {
        if header(path)?.is_none() {
            Self::create_with(path, None)?;
        }
        Self::open(path)
    }

    /// Makes a store's directory; with a note it is the state of one in object storage.
    pub(crate) fn create_with(path: &Path, note: Option<Note>) -> Result<()> {
        no_bucket(path)?;
        if path.exists() {
            if !path.is_dir() {
                return fail(
                    Class::Place,
                    format!("{} is not a directory", path.display()),
                    "name a new or an empty directory",
                );
            }
            let mut names = std::fs::read_dir(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            // What a start that was cut short may have left.
            let ours = |n: &std::ffi::OsStr| {
                let n = n.to_string_lossy();
                [KEY, "manifest.toml", "manifest.lock", "lost+found"].contains(&&*n)
                    || n.contains(".tmp-")
            };
            if names.any(|e| e.is_ok_and(|e| !ours(&e.file_name()))) {
                return fail(
                    Class::Place,
                    format!("{} is not a Dormouse store, and it is not empty", path.display()),
                    "name a new or an empty directory; nothing was changed",
                );
            }
        }
        files::make_dir(path)?;
        let state = state_of(path);
        if state.read(KEY)?.is_none() {
            make_key(&state)?;
        }
        // Last, because it is what makes the directory a store.
        make_header(&state, note)
    }

    /// Ends the making of a state directory whose other files were brought back.
    pub(crate) fn restored(path: &Path, note: Note, seed: &[u8; 32]) -> Result<Self> {
        state_of(path).write(KEY, &Zeroizing::new(hex(seed)), 0o600)?;
        make_header(&state_of(path), Some(note))?;
        Self::open(path)
    }

    /// Goes on with the state files that hold, also where the store cannot be opened.
    pub fn accept_state(path: &Path) -> Result<Vec<String>> {
        if !state_of(path).exists() && !path.join(HEADER).exists() {
            Self::open(path)?;
        }
        state_of(path).accept()
    }

    /// What is wrong with the state files of a store.
    pub fn state_faults(path: &Path) -> Result<Vec<Fault>> {
        state_of(path).check()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its state files.
    pub fn state(&self) -> StateFiles {
        state_of(&self.path)
    }

    /// The server's transport key.
    pub fn key(&self) -> Result<SigningKey> {
        Ok(SigningKey::from_seed(*self.seed()?)?)
    }

    /// The seed of that key.
    pub(crate) fn seed(&self) -> Result<Zeroizing<[u8; 32]>> {
        let path = self.path.join(KEY);
        let text = self.state().read(KEY)?;
        let seed = text.as_deref().and_then(|t| unhex_array(t));
        let seed = seed.ok_or_else(|| {
            Failure::new(Class::Damaged, format!("{} is missing, or no key", path.display()))
                .hint("bring it back from a backup; with a new key every client must join again")
        })?;
        Ok(Zeroizing::new(seed))
    }

    /// Fingerprint of the server's key.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        Ok(hash::fingerprint(&self.key()?.public()))
    }

    /// What `server.toml` says.
    pub fn config(&self) -> Result<Config> {
        let path = self.path.join("server.toml");
        let Some(text) = files::read_text(&path)? else { return Ok(Config::default()) };
        toml::from_str(&text).map_err(|e| {
            let message = format!("{} cannot be understood: {}", path.display(), e.message());
            Failure::new(Class::Usage, message)
                .hint(
                    "it may hold: url = \"HOST:PORT\", listen = \"ADDRESS:PORT\", quota = \"SIZE\", collect = false,\n\
                     collect_grace = \"7d\", collect_rate = \"16MiB\"",
                )
                .into()
        })
    }

    /// Sets how clients reach this server.
    pub fn save_url(&self, url: &str) -> Result<()> {
        let address: crate::invite::Address = url.parse()?;
        let mut config = self.config()?;
        config.url = Some(address.to_string());
        files::replace(&self.path.join("server.toml"), toml::to_string(&config)?.as_bytes(), 0o644)
    }

    /// Copies the state files to another directory, as those of a store of its own. How many were
    /// written or removed.
    pub fn copy_state(&self, to: &Path) -> Result<u64> {
        let target = state_of(to);
        let changed = self.state().copy_to(&target)?;
        if self.note.is_some() {
            make_header(&target, None)?;
        }
        Ok(changed)
    }

    /// The state files of a directory that is, or becomes, a store.
    pub fn state_at(path: &Path) -> StateFiles {
        state_of(path)
    }

    /// Takes the store for writing. A second copy is not written to but by who keeps it equal.
    pub fn lock(&self) -> Result<Lock> {
        if self.path.join(REPLICA).exists() {
            return fail(
                Class::Place,
                format!("{} is a second copy of a store", self.path.display()),
                "if the store is lost, and this shall take its place: `dormouse promote` it",
            );
        }
        Lock::take(&self.path.join("lock"))?.map_err(|pid| {
            let by = if pid.is_empty() { "another process".into() } else { format!("process {pid}") };
            Failure::new(Class::InUse, format!("the store {} is in use by {by}", self.path.display()))
                .hint("if that is `dormouse serve`, use an invite to it instead of the directory;\notherwise wait for it, or end it")
                .into()
        })
    }

    /// Whether a process has the store for writing.
    pub fn is_held(&self) -> Result<bool> {
        Lock::is_held(&self.path.join("lock"))
    }

    /// The directory of a vault.
    pub fn vault_path(&self, vault: &VaultId) -> PathBuf {
        self.path.join("vaults").join(vault.to_string())
    }
}

/// Fails if what was named is a bucket, where a directory is wanted.
pub(crate) fn no_bucket(path: &Path) -> Result<()> {
    if crate::bucket::url_of(path).is_none() {
        return Ok(());
    }
    fail(
        Class::Usage,
        format!("{} is a bucket, and a directory of this machine is asked for", path.display()),
        "name the state directory that `dormouse serve` was given with --state",
    )
}

fn make_key(state: &StateFiles) -> Result<()> {
    let seed = Zeroizing::new(OsRandom.array::<32>());
    state.write(KEY, &Zeroizing::new(hex(&*seed)), 0o600)
}

fn make_header(state: &StateFiles, bucket: Option<Note>) -> Result<()> {
    let format = if bucket.is_some() { STATE_FORMAT } else { FORMAT };
    let header = Header { format: format.into(), version: VERSION, bucket };
    state.write(HEADER, &toml::to_string(&header)?, 0o644)
}

fn state_of(path: &Path) -> StateFiles {
    StateFiles::new(path.to_owned(), &STATE)
}

fn header(path: &Path) -> Result<Option<Zeroizing<String>>> {
    if path.exists() && !path.is_dir() {
        return Ok(None);
    }
    state_of(path).read(HEADER)
}

/// Checks a header; the bucket that it names.
pub(crate) fn check_header(path: &Path, text: &str) -> Result<Option<Note>> {
    let header: Header = toml::from_str(text).map_err(|_| {
        Failure::new(Class::Damaged, format!("{}/{HEADER} cannot be understood", path.display()))
            .hint(format!("it should say: format = \"{FORMAT}\" and version = {VERSION}"))
    })?;
    let expected = if header.bucket.is_some() { STATE_FORMAT } else { FORMAT };
    if header.format != expected {
        return fail(
            Class::Place,
            format!("{} is a '{}', not a '{FORMAT}'", path.display(), header.format),
            "name another directory",
        );
    }
    if header.version > VERSION {
        return fail(
            Class::Version,
            format!(
                "the store {} has version {}, and this program knows up to {VERSION}",
                path.display(),
                header.version
            ),
            "update dormouse on this machine; nothing was changed",
        );
    }
    Ok(header.bucket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::class_of;

    #[test]
    fn a_store_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(class_of(&StoreDir::open(&path).unwrap_err()), Class::NotFound);
        let a = StoreDir::open_or_create(&path).unwrap().fingerprint().unwrap();
        assert_eq!(StoreDir::open_or_create(&path).unwrap().fingerprint().unwrap(), a);
        let store = StoreDir::open(&path).unwrap();
        let held = store.lock().unwrap();
        assert_eq!(class_of(&store.lock().unwrap_err()), Class::InUse);
        drop(held);
    }

    #[test]
    fn what_is_not_a_store_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        for path in [dir.path(), &file] {
            assert_eq!(class_of(&StoreDir::open_or_create(path).unwrap_err()), Class::Place);
            assert_eq!(class_of(&StoreDir::open(path).unwrap_err()), Class::Place);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_versions_and_damage_have_their_own_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        StoreDir::open_or_create(&path).unwrap();
        let set = |text: &str| state_of(&path).write(HEADER, text, 0o644).unwrap();
        set("format = \"dormouse store\"\nversion = 2\n");
        assert_eq!(class_of(&StoreDir::open(&path).unwrap_err()), Class::Version);
        assert_eq!(class_of(&StoreDir::open_or_create(&path).unwrap_err()), Class::Version);
        set("format = \"cheese\"\nversion = 1\n");
        assert_eq!(class_of(&StoreDir::open(&path).unwrap_err()), Class::Place);
        set("???");
        assert_eq!(class_of(&StoreDir::open(&path).unwrap_err()), Class::Damaged);
        set("format = \"dormouse store\"\nversion = 1\n");
        state_of(&path).write(KEY, "zz", 0o600).unwrap();
        assert_eq!(class_of(&StoreDir::open(&path).unwrap().key().unwrap_err()), Class::Damaged);
        std::fs::write(path.join("server.toml"), "port = 1").unwrap();
        let store = StoreDir::open(&path).unwrap();
        assert_eq!(class_of(&store.config().unwrap_err()), Class::Usage);
    }
}
