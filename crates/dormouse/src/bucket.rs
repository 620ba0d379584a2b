//! A store whose segments lie in object storage: `s3://BUCKET/PREFIX`, and a state directory.
//!
//! Owns: opening both together, the thread that brings the server's state into the bucket, the
//! end. Invariants: the state directory and the bucket name each other by an id, and are never
//! mixed; the server's key leaves this machine only sealed to a recipient that was named.
//! Leaves to others: objects, lease and fences (`dormouse_bucket`), and what segments mean.

mod files;
pub mod rebuild;
mod saver;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_bucket::{Bucket, Durable, Objects, Remote, Settings, Url, Who, store_id};
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
const DIR: &str = "bucket";
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
}

impl Note {
    fn new(url: &Url, id: String) -> Self {
        Self { url: url.to_string(), id, holder: hex(&OsRandom.array::<8>()) }
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
}

/// An open bucket, and what keeps the server's state in it.
#[derive(Debug)]
pub struct BucketStore {
    bucket: Arc<Bucket>,
    /// A file that is there while a server may have left something here.
    unclean: PathBuf,
    saver: Option<Saver>,
}

fn who(note: &Note, takeover: bool) -> Who {
    Who { holder: note.holder.clone(), host: host_name(), takeover }
}

/// The address in an argument, if it is one.
pub fn url_of(store: &Path) -> Option<&str> {
    store.to_str().filter(|text| text.starts_with(SCHEME))
}

fn reach(url: &str, options: &Options) -> Result<(Url, Arc<dyn Objects>)> {
    let url: Url = url.parse()?;
    let objects = Remote::s3(&url, options.settings.alone)?;
    Ok((url, Arc::new(objects)))
}

/// Opens what `dormouse serve` was given: a directory, or a bucket with its state directory.
pub fn open_to_serve(store: &Path, args: &BucketArgs, log: &Log) -> Result<StoreDir> {
    let options = Options::of(args)?;
    let Some(url) = url_of(store) else {
        if args.state.is_some() {
            return fail(
                Class::Usage,
                "--state goes with a store in object storage",
                "dormouse serve s3://BUCKET/PREFIX --state DIR",
            );
        }
        let store = StoreDir::open_or_create(store)?;
        let Some(note) = store.note().cloned() else { return Ok(store) };
        let (_, objects) = reach(&note.url, &options)?;
        return attach(store, objects, &note, &options, log);
    };
    let state = state_dir(args)?;
    let (url, objects) = reach(url, &options)?;
    let store = match StoreDir::open(&state) {
        Ok(store) => store,
        Err(_) if is_new(&state)? => make(&state, &url, &*objects)?,
        Err(error) => return Err(error),
    };
    let Some(note) = store.note().cloned() else {
        return fail(
            Class::Place,
            format!("{} is a store of its own, not the state of one in {url}", state.display()),
            "name another directory with --state",
        );
    };
    attach(store, objects, &note, &options, log)
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

/// Makes a new store: first here, then there, so that a cut leaves nothing that is in the way.
fn make(state: &Path, url: &Url, objects: &dyn Objects) -> Result<StoreDir> {
    if store_id(objects)?.is_some() {
        return fail(
            Class::Place,
            format!("{url} holds a store already, and {} is not its state", state.display()),
            format!(
                "if the machine that had the state is lost: dormouse rebuild {url} --state {}\n\
                 else name the right directory with --state, or another prefix",
                state.display()
            ),
        );
    }
    StoreDir::create_with(state, Some(Note::new(url, hex(&OsRandom.array::<16>()))))?;
    StoreDir::open(state)
}

/// Opens the bucket of a state directory for writing.
fn attach(
    store: StoreDir,
    objects: Arc<dyn Objects>,
    note: &Note,
    options: &Options,
    log: &Log,
) -> Result<StoreDir> {
    // Held before the lease: whoever has the directory is the holder.
    drop(store.lock()?);
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
        &who(note, options.takeover),
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
    Ok(store.in_bucket(Arc::new(BucketStore { bucket, unclean, saver: Some(saver) })))
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
    let unclean = dir.join(UNCLEAN);
    Ok(store.in_bucket(Arc::new(BucketStore { bucket, unclean, saver: None })))
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

    /// Vaults that the bucket has.
    pub fn vaults(&self) -> Result<Vec<VaultId>> {
        Ok(self.bucket.vaults()?)
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
