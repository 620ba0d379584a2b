//! Where a store's segments lie: beside its state, or in a bucket.
//!
//! Invariant: what needs all segments is never given those alone that are kept on this machine
//! ([`StoreDir::must_be_whole`]). Leaves to others: opening the bucket ([`crate::bucket`]).

use std::sync::Arc;

use anyhow::{Context, Result};
use dormouse_format::VaultId;
use dormouse_store::Dir;
use dormouse_store::disk::DiskDir;

use super::StoreDir;
use crate::bucket::{BucketStore, Note};
use crate::exit::{Class, Failure, fail};
use crate::log::Log;

impl StoreDir {
    /// The same with its bucket open.
    pub(crate) fn in_bucket(mut self, bucket: Arc<BucketStore>) -> Self {
        self.bucket = Some(bucket);
        self
    }

    /// The bucket to which this directory is the state.
    pub const fn note(&self) -> Option<&Note> {
        self.note.as_ref()
    }

    /// Fails if this is the state of a store in object storage that was not opened.
    pub fn must_be_whole(&self) -> Result<()> {
        let Some(note) = self.note.as_ref().filter(|_| self.bucket.is_none()) else {
            return Ok(());
        };
        fail(
            Class::Place,
            format!("{} is the state of the store in {}", self.path.display(), note.url),
            format!("serve it, and join that server: dormouse serve {}", self.path.display()),
        )
    }

    /// The segments of a vault, to write; `None` if there are none and none are to be made.
    pub fn segments(&self, vault: &VaultId, make: bool) -> Result<Option<Box<dyn Dir>>> {
        let path = self.vault_path(vault).join("segments");
        if let Some(bucket) = &self.bucket {
            return bucket.segments(vault, &path, make);
        }
        self.must_be_whole()?;
        let there = std::fs::read_dir(&path).is_ok_and(|mut d| d.next().is_some());
        if !there && !make {
            return Ok(None);
        }
        let dir = DiskDir::create_or_open(&path);
        Ok(Some(Box::new(dir.with_context(|| format!("cannot open {}", path.display()))?)))
    }

    /// The segments of a vault, to read.
    pub fn segments_to_read(&self, vault: &VaultId) -> Result<Box<dyn Dir>> {
        let path = self.vault_path(vault).join("segments");
        if let Some(bucket) = &self.bucket {
            let none = || Failure::new(Class::NotFound, format!("there is no vault {vault}"));
            return Ok(bucket.segments(vault, &path, false)?.ok_or_else(none)?);
        }
        self.must_be_whole()?;
        let dir = DiskDir::open(&path);
        Ok(Box::new(dir.with_context(|| format!("cannot open the segments of vault {vault}"))?))
    }

    /// All vaults.
    pub fn vaults(&self) -> Result<Vec<VaultId>> {
        let mut all = Vec::new();
        let path = self.path.join("vaults");
        let entries = std::fs::read_dir(&path);
        for entry in entries.with_context(|| format!("cannot read {}", path.display()))? {
            all.extend(entry?.file_name().to_str().and_then(VaultId::from_hex));
        }
        if let Some(bucket) = &self.bucket {
            all.extend(bucket.vaults()?);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// Clients or invites have changed: what keeps them elsewhere is told.
    pub fn state_changed(&self) -> Result<()> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| bucket.state_changed())
    }

    /// Brings what is only here into the bucket, for some time; vaults are still open.
    pub fn drain(&self) {
        if let Some(bucket) = &self.bucket {
            bucket.drain();
        }
    }

    /// Fails where collection would gain nothing, because nothing may be removed.
    pub fn can_collect(&self) -> Result<()> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| bucket.can_collect())
    }

    /// Bytes of a vault's segments; none where only the server knows them.
    pub fn vault_bytes(&self, vault: &VaultId) -> Option<u64> {
        if self.note.is_some() {
            return None;
        }
        let entries = std::fs::read_dir(self.vault_path(vault).join("segments"));
        let sizes =
            entries.into_iter().flatten().flatten().map(|e| e.metadata().map_or(0, |m| m.len()));
        Some(sizes.sum())
    }

    /// Ends the use of the bucket.
    pub fn finish(&self, log: &Log) {
        if let Some(bucket) = &self.bucket {
            bucket.finish(log);
        }
    }
}
