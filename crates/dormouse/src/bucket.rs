//! A store whose segments lie in object storage: `s3://BUCKET/PREFIX`, and a state directory.
//!
//! Owns: joining both ([`ready`] for a server that goes into its jail), the thread that brings the server's state into the bucket, the
//! end. Invariants: the state directory and the bucket name each other by an id, and are never
//! mixed; the server's key leaves this machine only sealed to a recipient that was named.
//! Leaves to others: objects, lease and fences (`dormouse_bucket`), and what segments mean.

mod files;
pub mod names;
pub mod ready;
pub mod rebuild;
mod saver;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_bucket::{
    Bucket, Durable, Environment, Objects, Remote, Settings, Url, Who, store_id,
};
use dormouse_crypt::{OsRandom, Random, Recipient};
use dormouse_format::VaultId;
use dormouse_store::Dir;
use dormouse_store::disk::DiskDir;
use serde::{Deserialize, Serialize};

use crate::cli::bucket::BucketArgs;
use crate::daemon::quantity;
use crate::exit::{Class, Failure, fail};
use crate::join::host_name;
use crate::log::Log;
use crate::store_dir::StoreDir;
use crate::text::hex;
use saver::Saver;

/// What the address of a bucket begins with.
pub const SCHEME: &str = "s3://";
/// What the state directory knows of the bucket.
pub(crate) const DIR: &str = "bucket";
const UNCLEAN: &str = "unclean";
/// How long a stop waits for what is not put yet.
const STOP_WAIT: Duration = Duration::from_secs(20);
/// How long a start waits for what one vault has not put.
const PUSH_WAIT: Duration = Duration::from_secs(120);

/// Which bucket a state directory belongs to; stands in its header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The bucket's address.
    pub url: String,
    /// Id of the store, which the bucket holds too.
    pub id: String,
    /// Id of this state directory, for leases.
    pub holder: String,
    /// Whether no other server will ever use the prefix (`--only-server`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
}

impl Note {
    fn new(url: &Url, id: String, alone: bool) -> Self {
        Self { url: url.to_string(), id, holder: hex(&OsRandom.array::<8>()), alone }
    }
}

/// How a bucket is used, apart from which.
#[derive(Debug, Clone, Default)]
pub struct Options {
    settings: Settings,
    takeover: bool,
    key_to: Option<Recipient>,
}

impl Options {
    /// What the command line says.
    pub fn of(args: &BucketArgs) -> Result<Self> {
        let mut settings = Settings { alone: args.only_server, ..Settings::default() };
        if args.durable == crate::cli::bucket::DurableArg::Remote {
            settings.durable = Durable::Remote;
        }
        if let Some(size) = &args.backlog {
            settings.backlog_max = quantity::size(size)?.get();
        }
        if let Some(size) = &args.cache {
            settings.cache_max = quantity::size(size)?.get();
        }
        let key_to = args.key_to.as_deref().map(str::parse).transpose().map_err(|e| {
            Failure::new(Class::Usage, format!("--key-to: {e}"))
                .hint("a recipient is such as age1…; `age-keygen` makes one")
        })?;
        Ok(Self { settings, takeover: args.takeover, key_to })
    }

    /// What was said once holds: [`Note::alone`].
    const fn remember(&mut self, note: &Note) {
        self.settings.alone |= note.alone;
    }

    const fn alone(&self) -> bool {
        self.settings.alone
    }
}

/// An open bucket, and what keeps the server's state in it.
#[derive(Debug)]
pub struct BucketStore {
    bucket: Arc<Bucket>,
    /// A file that is there while a server may have left something here.
    unclean: PathBuf,
    saver: Option<Saver>,
    /// Listed once: a listing goes over every object.
    vaults: OnceLock<Vec<VaultId>>,
}

impl BucketStore {
    fn new(bucket: Arc<Bucket>, unclean: PathBuf, saver: Option<Saver>) -> Arc<Self> {
        Arc::new(Self { bucket, unclean, saver, vaults: OnceLock::new() })
    }
}

fn who(note: &Note, takeover: bool) -> Who {
    Who { holder: note.holder.clone(), host: host_name(), takeover }
}

/// The address in an argument, if it is one.
pub fn url_of(store: &Path) -> Option<&str> {
    store.to_str().filter(|text| text.starts_with(SCHEME))
}

/// Reaches a bucket from a command, which has no jail.
fn reach(url: &str, options: &Options) -> Result<(Url, Arc<dyn Objects>)> {
    let url: Url = url.parse()?;
    let reach = Environment::of(&url)?.reach(options.alone(), None)?;
    Ok((url, Arc::new(Remote::start(reach)?)))
}

/// Where the state lies, which must be said.
fn state_dir(args: &BucketArgs) -> Result<PathBuf> {
    args.state.clone().map_or_else(
        || {
            fail(
                Class::Usage,
                "a store in object storage needs a directory on this machine",
                "name it with --state DIR: clients, keys, and what is not in the bucket yet lie there",
            )
        },
        Ok,
    )
}

/// Whether a directory is not there, or empty.
fn is_new(path: &Path) -> Result<bool> {
    if !path.exists() {
        return Ok(true);
    }
    let mut entries =
        std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(!entries.any(|e| e.is_ok_and(|e| e.file_name() != "lost+found")))
}

/// Opens the bucket of a state directory for writing. The caller holds the directory's lock: who
/// has that is the holder of the lease.
fn attach(
    store: StoreDir,
    objects: Arc<dyn Objects>,
    options: &Options,
    log: &Log,
) -> Result<StoreDir> {
    let Some(note) = store.note().cloned() else { return Ok(store) };
    let dir = store.path().join(DIR);
    match store_id(&*objects)? {
        Some(id) if id == note.id => {}
        Some(id) => {
            return fail(
                Class::Place,
                format!(
                    "{} holds the store {id}, and {} is the state of {}",
                    note.url,
                    store.path().display(),
                    note.id
                ),
                "name the bucket and the directory that belong together",
            );
        }
        None if dir.join("generations").exists() => {
            return fail(
                Class::Damaged,
                format!(
                    "{} is empty, and {} says that it was in use",
                    note.url,
                    store.path().display()
                ),
                "look for what removed its objects, or whether the address is right; nothing was changed",
            );
        }
        None => dormouse_bucket::create(&*objects, &note.id)?,
    }
    let bucket = Bucket::open(
        objects,
        &who(&note, options.takeover),
        options.settings,
        &dir,
        &hex(&OsRandom.array::<8>()),
        tell(log),
    )?;
    let bucket = Arc::new(bucket);
    push_left(&store, &bucket, log)?;
    if options.key_to.is_none() {
        log.line(&format!(
            "the server's key is not in the bucket: keep a copy of {}/server.key, or serve with \
             --key-to age1…",
            store.path().display()
        ));
    }
    let saver = Saver::start(bucket.clone(), store.clone(), options, log.clone())?;
    let unclean = dir.join(UNCLEAN);
    Ok(store.in_bucket(BucketStore::new(bucket, unclean, Some(saver))))
}

/// Puts what a server that was killed has left here: its clients may not come back soon.
fn push_left(store: &StoreDir, bucket: &Bucket, log: &Log) -> Result<()> {
    let unclean = store.path().join(DIR).join(UNCLEAN);
    if unclean.exists() {
        for vault in store.vaults()? {
            let local = DiskDir::create_or_open(&store.vault_path(&vault).join("segments"))?;
            let left = bucket.push(vault, Arc::new(local), PUSH_WAIT)?;
            if left > 0 {
                log.line(&format!("vault {vault}: {left} bytes are only on this machine"));
            }
        }
    }
    crate::files::replace(&unclean, b"", 0o600)
}

/// Opens the bucket of a state directory to read, as scrub does; beside a server that writes.
pub fn attach_to_read(store: StoreDir, log: &Log) -> Result<StoreDir> {
    let Some(note) = store.note().cloned() else { return Ok(store) };
    let (_, objects) = reach(&note.url, &Options::default())?;
    let dir = store.path().join(DIR).join("reading");
    let settings = Settings { cache_max: 1 << 30, ..Settings::default() };
    let bucket = Arc::new(Bucket::read_only(objects, settings, &dir, tell(log))?);
    if bucket.id() != note.id {
        return fail(
            Class::Place,
            format!(
                "{} does not hold the store to which {} is the state",
                note.url,
                store.path().display()
            ),
            "name the directory that belongs to that bucket",
        );
    }
    let unclean = dir.join(UNCLEAN);
    Ok(store.in_bucket(BucketStore::new(bucket, unclean, None)))
}

/// Opens the bucket of a state directory to write, as a command beside no server does; any other
/// store is as it is. The caller holds its lock, and ends with [`StoreDir::finish`].
pub fn attach_to_write(store: StoreDir, log: &Log) -> Result<StoreDir> {
    let Some(note) = store.note().cloned() else { return Ok(store) };
    let mut options = Options::default();
    options.remember(&note);
    let (_, objects) = reach(&note.url, &options)?;
    attach(store, objects, &options, log)
}

fn tell(log: &Log) -> dormouse_bucket::Tell {
    let log = log.clone();
    Arc::new(move |line| log.line(line))
}

impl BucketStore {
    /// The segments of a vault; `None` if there are none and none are to be made.
    pub fn segments(
        &self,
        vault: &VaultId,
        dir: &Path,
        make: bool,
    ) -> Result<Option<Box<dyn Dir>>> {
        let here = std::fs::read_dir(dir).is_ok_and(|mut d| d.next().is_some());
        if !make && !here && !self.bucket.has_vault(vault)? {
            return Ok(None);
        }
        let local = DiskDir::create_or_open(dir)
            .with_context(|| format!("cannot open {}", dir.display()))?;
        Ok(Some(Box::new(self.bucket.segments(*vault, Arc::new(local))?)))
    }

    /// Fails if the bucket lets nothing be removed: collection would only add to it.
    pub fn can_collect(&self) -> Result<()> {
        if self.bucket.removes() {
            return Ok(());
        }
        fail(
            Class::NotAuthorised,
            "the bucket does not let this key remove objects, so collection would only add to it",
            "give the key the right to remove objects of the prefix, or say `collect = false` in \
             server.toml",
        )
    }

    /// Vaults that the bucket had when it was opened; those that are made here have a directory.
    pub fn vaults(&self) -> Result<Vec<VaultId>> {
        if let Some(vaults) = self.vaults.get() {
            return Ok(vaults.clone());
        }
        let vaults = self.bucket.vaults()?;
        Ok(self.vaults.get_or_init(|| vaults).clone())
    }

    /// The server's state has changed: it is in the bucket on return, or soon, as was chosen.
    pub fn state_changed(&self) -> Result<()> {
        self.saver.as_ref().map_or(Ok(()), Saver::changed)
    }

    /// Waits until everything is in the bucket, or for some time.
    pub fn drain(&self) {
        self.bucket.drain(STOP_WAIT);
    }

    /// Nothing more is put; the lease is given back, unless something is only here.
    pub fn finish(&self, log: &Log) {
        if let Some(saver) = &self.saver {
            saver.stop();
        }
        let left = self.bucket.finish();
        if left == 0 {
            // If it stays, the next start looks for what is left, and finds nothing.
            let _ = crate::files::remove(&self.unclean);
        } else {
            log.line(&format!(
                "{left} bytes are only on this machine; they are put when it serves again"
            ));
        }
    }
}
