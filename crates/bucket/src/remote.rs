//! The objects of a prefix in S3-compatible storage, by the `object_store` crate.
//!
//! Owns: the address, one small runtime. Invariant: an answer that may pass
//! (no answer, too busy) is told apart from one that says no. Retrying is left to the callers,
//! who know for how long.

use std::future::Future;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, Result};
use crate::objects::{Item, Objects, Put};
use crate::reach::Reach;

/// Objects in one listing at most.
const LISTED_MAX: usize = 20_000_000;

/// `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The bucket.
    pub bucket: String,
    /// The prefix, without '/' at its ends; may be empty.
    pub prefix: String,
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{}{slash}{}", self.bucket, self.prefix)
    }
}

impl FromStr for Url {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::Settings {
            why: format!("'{text}' is no address of a bucket: {why}; it is s3://BUCKET/PREFIX"),
        };
        let rest = text.strip_prefix("s3://").ok_or_else(|| bad("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if bucket.is_empty() || !bucket.chars().all(plain) {
            return Err(bad(
                "the bucket's name is empty, or has other characters than a-z 0-9 . -",
            ));
        }
        let part = |p: &str| !matches!(p, "" | "." | "..") && p.chars().all(plain);
        if !prefix.is_empty() && !prefix.split('/').all(part) {
            return Err(bad(
                "the prefix has empty parts, or other characters than a-z 0-9 . _ - /",
            ));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

/// Objects of a prefix.
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Whether the storage excludes when several create one object.
    excludes: bool,
    runtime: Runtime,
}

impl Remote {
    /// A bucket that can be reached: from here on there is a thread.
    pub fn start(reach: Reach) -> Result<Self> {
        let remote = Self::over(reach.store, &reach.prefix)?;
        Ok(Self { excludes: reach.excludes, ..remote })
    }

    /// Any back end that knows create-if-absent.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("objects")
            .enable_all()
            .build()
            .map_err(Error::local("starting a thread for the object storage"))?;
        Ok(Self { store, prefix: prefix.to_owned(), excludes: true, runtime })
    }

    fn path(&self, name: &str) -> Path {
        match (self.prefix.as_str(), name) {
            ("", name) => Path::from(name),
            (prefix, "") => Path::from(prefix),
            (prefix, name) => Path::from(format!("{prefix}/{name}")),
        }
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

fn failed(what: String, error: &object_store::Error) -> Error {
    use object_store::Error as E;
    // With all that led to it: the first text alone says little.
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let text = inner.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = inner.source();
    }
    why.truncate(why.char_indices().nth(600).map_or(why.len(), |(at, _)| at));
    match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Error::Refused { what, why },
        E::NotFound { .. } => {
            Error::Refused { what, why: format!("there is no such bucket: {why}") }
        }
        _ => Error::Away { what, why },
    }
}

impl Objects for Remote {
    fn put_new(&self, name: &str, bytes: Bytes) -> Result<Put> {
        let path = self.path(name);
        if !self.excludes && self.get(name, Some(0..1))?.is_some() {
            return Ok(Put::Taken);
        }
        let mode = if self.excludes { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.store.put_opts(&path, PutPayload::from_bytes(bytes), options);
        match self.wait(put) {
            Ok(_) => Ok(Put::Made),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Taken),
            Err(object_store::Error::NotImplemented { .. }) => Err(Error::NotAtomic {
                why: "this storage does not know how to create an object only if there is none"
                    .into(),
            }),
            Err(e) => Err(failed(format!("putting {name}"), &e)),
        }
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>> {
        let path = self.path(name);
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let get = async { self.store.get_opts(&path, options).await?.bytes().await };
        match self.wait(get) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(format!("reading {name}"), &e)),
        }
    }

    fn list(&self, below: &str) -> Result<Vec<Item>> {
        let path = self.path(below);
        let path = Some(&path).filter(|p| !p.as_ref().is_empty());
        let strip =
            if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let listing = async {
            let mut items = Vec::new();
            let mut stream = self.store.list(path);
            while let Some(meta) = stream.try_next().await? {
                let name = meta.location.as_ref().strip_prefix(&strip).map(str::to_owned);
                items.extend(name.map(|name| Item { name, size: meta.size }));
                if items.len() > LISTED_MAX {
                    break;
                }
            }
            Ok::<_, object_store::Error>(items)
        };
        let what = || format!("listing '{below}'");
        let items = self.wait(listing).map_err(|e| failed(what(), &e))?;
        if items.len() > LISTED_MAX {
            let why = format!("'{below}' has more than {LISTED_MAX} objects; is it this store's?");
            return Err(Error::NotAStore { why });
        }
        Ok(items)
    }

    fn delete(&self, name: &str) -> Result<()> {
        match self.wait(self.store.delete(&self.path(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed(format!("removing {name}"), &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_bad_ones_say_why() {
        for (text, bucket, prefix) in [
            ("s3://b", "b", ""),
            ("s3://my.bucket/", "my.bucket", ""),
            ("s3://b/some/where/", "b", "some/where"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.bucket.as_str(), url.prefix.as_str()), (bucket, prefix));
            assert_eq!(url.to_string().parse::<Url>().unwrap(), url);
        }
        for bad in ["b/x", "s3://", "s3:///x", "s3://b/a//b", "s3://b/../x", "s3://b/ü", "s3://b c"]
        {
            let error = bad.parse::<Url>().unwrap_err().to_string();
            assert!(error.contains("s3://BUCKET/PREFIX"), "{error}");
        }
    }
}
