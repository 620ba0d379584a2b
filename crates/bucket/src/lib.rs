//! A store's segments in S3-compatible object storage.
//!
//! Owns: which objects there are and what they are called, the lease, the fence, what is kept on
//! this machine. Invariants: an object is never overwritten and never renamed, so Object Lock
//! can be on; what was acknowledged is durable as the settings say; two servers never both write
//! one vault. Leaves to others: what segments mean ([`dormouse_store`] checks every byte that it
//! reads, from wherever), and what the state files are. docs/object-storage.md is the
//! specification.
#![forbid(unsafe_code)]

mod cache;
mod chain;
mod dir;
mod error;
mod held;
mod lease;
mod names;
mod objects;
mod opening;
mod part;
mod pump;
#[cfg(feature = "s3")]
mod reach;
#[cfg(feature = "s3")]
mod remote;
mod room;
mod shared;
mod state;
mod vault;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dormouse_format::VaultId;
use dormouse_store::Dir;

pub use dir::{BucketDir, Hand};
pub use error::{Error, Result};
pub use lease::Who;
pub use objects::{Item, Objects, Put};
#[cfg(feature = "s3")]
pub use reach::{Endpoint, Environment, Names, Reach};
#[cfg(feature = "s3")]
pub use remote::{Remote, Url};
pub use shared::{Durable, Settings, Tell};
pub use state::StateFile;

use opening::Mode;
use shared::{Shared, lock};
use state::{Saved, Snapshots};

const HEADER: &str = "dormouse bucket\nversion ";
const VERSION: u32 = 1;

/// A store in a bucket, opened.
pub struct Bucket {
    shared: Arc<Shared>,
    mode: Mode,
    snapshots: Mutex<Option<Snapshots>>,
    id: String,
    removes: bool,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.id)
    }
}

/// The id of the store that a bucket holds; `None` if it holds nothing.
pub fn store_id(objects: &dyn Objects) -> Result<Option<String>> {
    let Some(bytes) = objects.get(names::STORE, None)? else { return Ok(None) };
    let bad = || Error::NotAStore { why: "its object 'store' is not Dormouse's".into() };
    let text = std::str::from_utf8(&bytes).ok().and_then(|t| t.strip_prefix(HEADER));
    let (version, rest) = text.and_then(|t| t.split_once('\n')).ok_or_else(bad)?;
    let found: u32 = version.parse().map_err(|_| bad())?;
    if found > VERSION {
        return Err(Error::Newer { object: names::STORE.into(), found, known: VERSION });
    }
    let id = rest.strip_prefix("id ").and_then(|t| t.strip_suffix('\n'));
    id.map(|id| Some(id.to_owned())).ok_or_else(bad)
}

/// The newest snapshot of the server's state in a bucket.
pub fn newest_state(objects: &dyn Objects) -> Result<Vec<StateFile>> {
    state::newest(objects)
}

/// Makes a store with this id, in a prefix that holds nothing.
pub fn create(objects: &dyn Objects, id: &str) -> Result<()> {
    let probe = |i: &Item| i.name.starts_with(names::PROBE);
    if let Some(found) = objects.list("")?.into_iter().find(|i| !probe(i)) {
        let why = format!("there is '{}', and no store; name another prefix", found.name);
        return Err(Error::NotAStore { why });
    }
    let text = format!("{HEADER}{VERSION}\nid {id}\n");
    match objects.put_new(names::STORE, Bytes::from(text))? {
        Put::Made => Ok(()),
        Put::Taken if store_id(objects)?.as_deref() == Some(id) => Ok(()),
        Put::Taken => Err(Error::NotAStore { why: "another server has just made it".into() }),
    }
}

impl Bucket {
    /// Opens a store for writing: shows that create-if-absent excludes, and takes the lease.
    /// `dir` is this machine's place for what it knows of the bucket; `nonce` was never used.
    pub fn open(
        objects: Arc<dyn Objects>,
        who: &Who,
        settings: Settings,
        dir: &Path,
        nonce: &str,
        tell: Tell,
    ) -> Result<Self> {
        if !settings.alone {
            lease::probe(&*objects, nonce)?;
        }
        // An object that never was: what counts is whether it is allowed.
        let gone = format!("{}/{nonce}-gone", names::PROBE);
        let removes = !matches!(objects.delete(&gone), Err(Error::Refused { .. }));
        let generation = lease::take(&*objects, who)?;
        let held = held::add(dir, generation)?;
        let snapshots = Snapshots::open(&*objects, generation)?;
        let opened = Self::with(objects, settings, dir, held, Some(snapshots), tell)?;
        Ok(Self { removes, ..opened })
    }

    /// Opens a store to read: no lease, nothing is put.
    pub fn read_only(
        objects: Arc<dyn Objects>,
        settings: Settings,
        dir: &Path,
        tell: Tell,
    ) -> Result<Self> {
        Self::with(objects, settings, dir, BTreeSet::new(), None, tell)
    }

    fn with(
        objects: Arc<dyn Objects>,
        settings: Settings,
        dir: &Path,
        held: BTreeSet<u64>,
        snapshots: Option<Snapshots>,
        tell: Tell,
    ) -> Result<Self> {
        let id = store_id(&*objects)?;
        let id = id.ok_or_else(|| Error::NotAStore { why: "there is nothing".into() })?;
        let dir = dir.join("cache");
        let opened = cache::Cache::open(&dir, settings.cache_max / 2);
        let cache = opened.map_err(Error::local(format!("opening {}", dir.display())))?;
        let mode = if snapshots.is_some() { Mode::Write } else { Mode::Read };
        let shared = Arc::new(Shared::new(objects, settings, held, cache, tell));
        Ok(Self { shared, mode, snapshots: Mutex::new(snapshots), id, removes: false })
    }

    /// The store's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Generation of the lease; zero if it is open to read only.
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// Whether objects may be removed: without that, collection would only add to the bucket.
    pub const fn removes(&self) -> bool {
        self.removes
    }

    /// Ids of the vaults that the bucket has.
    pub fn vaults(&self) -> Result<Vec<VaultId>> {
        let items = self.shared.ask(|| self.shared.objects.list("vaults"))?;
        let id = |item: &Item| {
            let rest = item.name.strip_prefix("vaults/")?;
            VaultId::from_hex(rest.split('/').next()?)
        };
        let mut ids: Vec<VaultId> = items.iter().filter_map(id).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Whether the bucket has anything of a vault.
    pub fn has_vault(&self, vault: &VaultId) -> Result<bool> {
        let below = names::segments(vault);
        Ok(!self.shared.ask(|| self.shared.objects.list(&below))?.is_empty())
    }

    /// Opens the segments of a vault; `dir` is where those on this machine lie.
    pub fn segments(&self, vault: VaultId, dir: Arc<dyn Dir>) -> Result<BucketDir> {
        opening::open(&self.shared, vault, dir, self.mode).map(BucketDir::new)
    }

    /// Puts what a server that was killed has left on this machine; bytes that are not put after
    /// so long. The vault must not be open.
    pub fn push(&self, vault: VaultId, dir: Arc<dyn Dir>, most: Duration) -> Result<u64> {
        self.segments(vault, dir)?.push(most)
    }

    /// Bytes that are acknowledged and not put.
    pub fn backlog(&self) -> u64 {
        self.shared.backlog()
    }

    /// Fails if another server has taken the bucket over, also where nothing is put.
    pub fn check(&self) -> Result<()> {
        self.shared.usable()?;
        if lease::is_superseded(&*self.shared.objects, self.shared.generation)? {
            return Err(self.shared.lose("there is a newer lease"));
        }
        Ok(())
    }

    /// Puts a snapshot of the server's state. The first of a lease keeps older servers' away.
    pub fn save_state(&self, files: &[StateFile], first: bool) -> Result<()> {
        self.shared.usable()?;
        let mut snapshots = lock(&self.snapshots);
        let Some(snapshots) = snapshots.as_mut() else { return Ok(()) };
        match snapshots.save(&*self.shared.objects, files, first)? {
            Saved::Done => Ok(()),
            Saved::Lost(why) => Err(self.shared.lose(why)),
        }
    }

    /// The newest snapshot of the server's state.
    pub fn newest_state(&self) -> Result<Vec<StateFile>> {
        self.shared.ask(|| newest_state(&*self.shared.objects))
    }

    /// Waits until everything is put, or for this long; bytes that are not. The vaults must be
    /// open still.
    pub fn drain(&self, most: Duration) -> u64 {
        self.shared.wait_empty(most)
    }

    /// Nothing more is put. The lease is given back if nothing is only on this machine; how many
    /// bytes are.
    pub fn finish(&self) -> u64 {
        let left = self.shared.left();
        let lost = self.shared.usable().is_err();
        self.shared.stop();
        // With something left, the next server must be this one, or be told to take over.
        if left == 0 && !lost && self.shared.generation > 0 {
            let _ = lease::release(&*self.shared.objects, self.shared.generation);
        }
        left
    }

    /// Ends all waiting at once: nothing more is put.
    pub fn stop(&self) {
        self.shared.stop();
    }
}
