//! Opening what `dormouse serve` was given, in two halves: what needs the host, and what is done
//! in the jail.
//!
//! Invariants: the first half asks nothing of a bucket and leaves no thread; of the second nothing
//! needs a file outside of the state directory. A new state directory is made here after the
//! bucket was looked at, so that a cut leaves nothing that is in the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use dormouse_bucket::{Environment, Names, Objects, Reach, Remote, Url, store_id};
use dormouse_crypt::{OsRandom, Random};

use super::names::Helper;
use super::{Note, Options, attach, is_new, state_dir, url_of};
use crate::cli::bucket::BucketArgs;
use crate::exit::{Class, fail};
use crate::files::{self, Lock};
use crate::jail::Standing;
use crate::log::Log;
use crate::store_dir::{Config, StoreDir};
use crate::text::hex;

/// A store that is about to be opened.
#[derive(Debug)]
pub struct Ready {
    dir: PathBuf,
    /// What is in the directory, taken; none if it is to be made.
    there: Option<(StoreDir, Lock)>,
    bucket: Option<Outside>,
}

/// A bucket of which nothing was asked yet.
#[derive(Debug)]
struct Outside {
    url: Url,
    reach: Reach,
    port: u16,
    /// Layers that do not hold for the process that resolves names.
    missing: Vec<Standing>,
    options: Options,
}

impl Outside {
    fn of(url: &str, options: Options) -> Result<Self> {
        let url: Url = url.parse()?;
        let environment = Environment::of(&url)?;
        let endpoint = environment.endpoint().clone();
        let (names, missing) = match endpoint.name() {
            None => (None, Vec::new()),
            Some(host) => {
                let (helper, missing) = Helper::start(host)?;
                (Some(Arc::new(helper) as Arc<dyn Names>), missing)
            }
        };
        let reach = environment.reach(options.alone(), names)?;
        Ok(Self { url, reach, port: endpoint.port, missing, options })
    }
}

impl Ready {
    /// Of a directory, or a bucket with its state directory.
    pub fn of(store: &Path, args: &BucketArgs) -> Result<Self> {
        let mut options = Options::of(args)?;
        let Some(url) = url_of(store) else {
            if args.state.is_some() {
                return fail(
                    Class::Usage,
                    "--state goes with a store in object storage",
                    "dormouse serve s3://BUCKET/PREFIX --state DIR",
                );
            }
            let store = StoreDir::open_or_create(store)?;
            let lock = store.lock()?;
            let bucket = store.note().map(|note| {
                options.remember(note);
                Outside::of(&note.url, options)
            });
            let (dir, bucket) = (store.path().to_owned(), bucket.transpose()?);
            return Ok(Self { dir, there: Some((store, lock)), bucket });
        };
        // In the jail it is not known where the process is.
        let dir = std::path::absolute(state_dir(args)?)?;
        let there = match StoreDir::open(&dir) {
            Ok(store) => Some(store),
            Err(_) if is_new(&dir)? => None,
            Err(error) => return Err(error),
        };
        let there = match there {
            None => None,
            Some(store) => {
                let Some(note) = store.note() else {
                    return fail(
                        Class::Place,
                        format!(
                            "{} is a store of its own, not the state of one in {url}",
                            dir.display()
                        ),
                        "name another directory with --state",
                    );
                };
                options.remember(note);
                let lock = store.lock()?;
                Some((store, lock))
            }
        };
        let bucket = Some(Outside::of(url, options)?);
        // The jail is built around it.
        files::make_dir(&dir)?;
        Ok(Self { dir, there, bucket })
    }

    /// Where the store, or its state, lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What its `server.toml` says.
    pub fn config(&self) -> Result<Config> {
        self.there.as_ref().map_or_else(|| Ok(Config::default()), |(store, _)| store.config())
    }

    /// The port to which the jail must let connections be made.
    pub fn port(&self) -> Option<u16> {
        self.bucket.as_ref().map(|bucket| bucket.port)
    }

    /// Layers that do not hold for the process beside, which resolves names.
    pub fn missing(&self) -> &[Standing] {
        self.bucket.as_ref().map_or(&[], |bucket| &bucket.missing)
    }

    /// The second half.
    pub fn open(self, log: &Log) -> Result<(StoreDir, Lock)> {
        let Self { dir, there, bucket } = self;
        let Some(Outside { url, reach, options, .. }) = bucket else {
            return there.map_or_else(
                || fail(Class::Place, format!("{} is no store", dir.display()), "name another"),
                Ok,
            );
        };
        let objects: Arc<dyn Objects> = Arc::new(Remote::start(reach)?);
        let (store, lock) = match there {
            Some(there) => there,
            None => {
                let store = make(&dir, &url, &options, &*objects)?;
                let lock = store.lock()?;
                (store, lock)
            }
        };
        Ok((attach(store, objects, &options, log)?, lock))
    }
}

/// Makes a new store: first here, then there, so that a cut leaves nothing that is in the way.
fn make(state: &Path, url: &Url, options: &Options, objects: &dyn Objects) -> Result<StoreDir> {
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
    let id = hex(&OsRandom.array::<16>());
    StoreDir::create_with(state, Some(Note::new(url, id, options.alone())))?;
    StoreDir::open(state)
}
