//! The state of a tree brought to a second copy of it.
//!
//! Invariant: the files are of one moment, and each was checked. The manifest comes last, so a
//! copy that was cut short is told as such by whoever reads it, and is whole after the next.

use std::path::Path;

use anyhow::Result;
use rustix::fs::FlockOperation;

use super::{StateFiles, judge, manifest};
use crate::exit::Failure;
use crate::files;

impl StateFiles {
    /// Makes the state files of `to` those of this tree. How many were written or removed.
    pub fn copy_to(&self, to: &Self) -> Result<u64> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let Some(manifest) = self.manifest()? else {
            let why = manifest::Why::NoManifest;
            return Err(Failure::from(self.fault(manifest::NAME, why)).into());
        };
        let mut names = self.all_names()?;
        names.extend(manifest.files.keys().cloned());
        names.sort();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let found = self.found(&name)?;
            let judged = judge(&manifest, &name, found);
            let sheet = judged.map_err(|why| Failure::from(self.fault(&name, why)))?;
            files.extend(sheet.map(|sheet| (name, sheet.render())));
        }
        let mut changed = 0;
        for name in to.all_names()? {
            if files.iter().all(|(kept, _)| *kept != name) {
                files::remove(&to.path(&name))?;
                changed += 1;
            }
        }
        for (name, text) in &files {
            changed += u64::from(put(&to.path(name), text.as_bytes())?);
        }
        changed += u64::from(put(&to.path(manifest::NAME), manifest.render()?.as_bytes())?);
        Ok(changed)
    }
}

/// Writes a file if it says something else; whether it did.
fn put(path: &Path, bytes: &[u8]) -> Result<bool> {
    if files::read_opt(path)?.is_some_and(|there| there == bytes) {
        return Ok(false);
    }
    files::make_dir(files::parent(path))?;
    files::replace(path, bytes, 0o600)?;
    Ok(true)
}
