//! State files: small texts that a store or a home keeps, each with a proof.
//!
//! Owns: a tree of such files and its manifest. A change numbers itself, writes its
//! file, then the manifest; a removal tells the manifest first. Invariants: at any
//! moment, also after a crash, at most one file is one change ahead of the manifest,
//! and none further; a file is read only if it is the one that the manifest names, or
//! that one. So a flipped byte, a cut, exchanged files, an old file or an old manifest
//! are told, never used. Who can write there can compute all of it: this finds
//! accidents, not liars. Leaves to others: what the texts mean.

mod accept;
mod copying;
mod manifest;
mod sheet;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dormouse_crypt::{OsRandom, Random};
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use crate::exit::{Class, Failure, class_of};
use crate::files;
use manifest::Manifest;
use sheet::Sheet;

pub use manifest::{NAME as MANIFEST, Why};

/// Largest manifest.
const MANIFEST_MAX: u64 = 64 << 20;
const LOCK: &str = "manifest.lock";

/// Which files are state in a tree of some kind.
#[derive(Debug)]
pub struct Kind {
    /// Files beside the manifest.
    pub files: &'static [&'static str],
    /// Directories in which every file is state.
    pub dirs: &'static [&'static str],
    /// Those of them whose files can be done without.
    pub spare: &'static [&'static str],
    /// What to do if a file does not hold.
    pub way_out: &'static str,
}

/// A tree of state files.
#[derive(Debug, Clone)]
pub struct StateFiles {
    root: PathBuf,
    kind: &'static Kind,
}

/// A file that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub why: Why,
    way_out: &'static str,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let message = format!("{}: {}", fault.path.display(), fault.why);
        match fault.why {
            Why::Newer(_) => Self::new(Class::Version, message)
                .hint("update dormouse on this machine; nothing was changed"),
            _ => Self::new(Class::Damaged, message).hint(fault.way_out),
        }
    }
}

/// What lies at a name.
enum Found {
    Absent,
    /// Something whose check does not hold under this name.
    Bad(Vec<u8>),
    Good(Sheet),
}

/// The files as they were at one moment; changes wait until it is dropped.
#[derive(Debug)]
pub struct View<'a> {
    tree: &'a StateFiles,
    manifest: Option<Manifest>,
    _lock: Option<File>,
}

impl View<'_> {
    /// What a file says; `None` if it is not there and should not be.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>> {
        let found = self.tree.found(name)?;
        let judged = match &self.manifest {
            Some(manifest) => {
                judge(manifest, name, found).map_err(|why| self.tree.fault(name, why))
            }
            None if matches!(found, Found::Absent) => Ok(None),
            None => Err(self.tree.fault(manifest::NAME, Why::NoManifest)),
        };
        Ok(judged.map_err(Failure::from)?.map(|sheet| sheet.text))
    }

    /// Names in a directory: of files that are there, and of those that should be.
    pub fn names(&self, dir: &str) -> Result<Vec<String>> {
        let mut names: BTreeSet<String> = self.tree.listed(dir)?.into_iter().collect();
        if let Some(manifest) = &self.manifest {
            let inside = |n: &&String| n.strip_prefix(dir).is_some_and(|n| n.starts_with('/'));
            names.extend(manifest.files.keys().filter(inside).cloned());
        }
        Ok(names.into_iter().collect())
    }
}

fn judge(manifest: &Manifest, name: &str, found: Found) -> Result<Option<Sheet>, Why> {
    let bytes = match found {
        Found::Absent => return manifest.judge(name, None),
        Found::Good(sheet) => return manifest.judge(name, Some(sheet)),
        Found::Bad(bytes) => bytes,
    };
    let other = |n: &&String| Sheet::read(n, &bytes).is_some();
    match manifest.files.keys().find(other) {
        Some(other) => Err(Why::IsOf(other.clone())),
        None if manifest.files.contains_key(name) => Err(Why::Damaged),
        None if manifest.removing.as_deref() == Some(name) => Ok(None),
        None => Err(Why::Stray),
    }
}

impl StateFiles {
    /// The state files of a directory.
    pub const fn new(root: PathBuf, kind: &'static Kind) -> Self {
        Self { root, kind }
    }

    /// Whether there is a manifest.
    pub fn exists(&self) -> bool {
        self.path(manifest::NAME).exists()
    }

    /// Whether there is no state file, but perhaps a manifest.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.all_names()?.is_empty())
    }

    /// The manifest as it is, unjudged: if it is the same as before, so is every file.
    pub fn manifest_bytes(&self) -> Result<Vec<u8>> {
        let bytes = files::read_within(&self.path(manifest::NAME), MANIFEST_MAX)?;
        Ok(bytes.unwrap_or_default())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn fault(&self, name: &str, why: Why) -> Fault {
        // It is not the newer file that is at fault.
        let name = if matches!(why, Why::ManifestOld { .. }) { manifest::NAME } else { name };
        Fault { path: self.path(name), why, way_out: self.kind.way_out }
    }

    /// Reads files of one moment.
    pub fn view(&self) -> Result<View<'_>> {
        let lock = self.lock(FlockOperation::LockShared)?;
        Ok(View { tree: self, manifest: self.manifest()?, _lock: lock })
    }

    /// Reads one file.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>> {
        self.view()?.read(name)
    }

    /// Every file that does not hold.
    pub fn check(&self) -> Result<Vec<Fault>> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let names = self.all_names()?;
        let manifest = match self.manifest_or_why()? {
            Ok(Some(manifest)) => manifest,
            Ok(None) if names.is_empty() => return Ok(Vec::new()),
            Ok(None) => return Ok(vec![self.fault(manifest::NAME, Why::NoManifest)]),
            Err(why) => return Ok(vec![self.fault(manifest::NAME, why)]),
        };
        let mut faults = Vec::new();
        let (mut ahead, mut behind) = (0, None);
        let known = manifest.files.keys().cloned();
        for name in names.into_iter().chain(known).collect::<BTreeSet<_>>() {
            match judge(&manifest, &name, self.found(&name)?) {
                Err(Why::ManifestOld { newest, .. }) => behind = behind.max(Some(newest)),
                Err(why) => faults.push(self.fault(&name, why)),
                Ok(Some(sheet)) if manifest.is_ahead(&sheet) => {
                    ahead += 1;
                    if ahead > 1 {
                        behind = behind.max(Some(sheet.change));
                    }
                }
                Ok(_) => {}
            }
        }
        if let Some(newest) = behind {
            let why = Why::ManifestOld { newest, found: manifest.change };
            faults.insert(0, self.fault(manifest::NAME, why));
        }
        Ok(faults)
    }

    /// All files with their bytes, the manifest first, as they were at one moment.
    pub fn snapshot(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let mut out = Vec::new();
        for name in [manifest::NAME.to_owned()].into_iter().chain(self.all_names()?) {
            let bytes = files::read_within(&self.path(&name), MANIFEST_MAX)?;
            out.extend(bytes.map(|bytes| (name, bytes)));
        }
        Ok(out)
    }

    /// Fails with the first fault, if there is one.
    pub fn must_hold(&self) -> Result<()> {
        match self.check()?.into_iter().next() {
            Some(fault) => Err(Failure::from(fault).into()),
            None => Ok(()),
        }
    }

    /// Makes or replaces a file.
    pub fn write(&self, name: &str, text: &str, mode: u32) -> Result<()> {
        let (_lock, mut manifest) = self.begin()?;
        self.change(&mut manifest, name, text, mode)
    }

    /// Makes or replaces a file, or leaves it, as `next` says from what it holds; nothing
    /// comes in between. What does not hold counts as nothing.
    pub fn update(
        &self,
        name: &str,
        mode: u32,
        next: impl FnOnce(Option<&str>) -> Option<String>,
    ) -> Result<()> {
        let (_lock, mut manifest) = self.begin()?;
        let old = judge(&manifest, name, self.found(name)?).ok().flatten();
        match next(old.as_ref().map(|sheet| sheet.text.as_str())) {
            Some(text) => self.change(&mut manifest, name, &text, mode),
            None => Ok(()),
        }
    }

    /// Makes a file; `false` if there is anything of that name.
    pub fn create_new(&self, name: &str, text: &str, mode: u32) -> Result<bool> {
        let (_lock, mut manifest) = self.begin()?;
        if manifest.files.contains_key(name) || self.path(name).symlink_metadata().is_ok() {
            return Ok(false);
        }
        self.change(&mut manifest, name, text, mode)?;
        Ok(true)
    }

    /// Removes a file; fine if it is not there. `wipe` is called on its path before.
    pub fn remove(&self, name: &str, wipe: impl FnOnce(&Path)) -> Result<()> {
        let (_lock, mut manifest) = self.begin()?;
        if manifest.files.remove(name).is_none() {
            return Ok(());
        }
        manifest.change += 1;
        manifest.removing = Some(name.to_owned());
        self.put_manifest(&manifest)?;
        wipe(&self.path(name));
        self.finish_removal(&mut manifest)
    }

    /// The file, then the manifest: a crash between leaves the file one change ahead.
    fn change(&self, manifest: &mut Manifest, name: &str, text: &str, mode: u32) -> Result<()> {
        let sheet = Sheet::new(manifest.tree, manifest.change + 1, name, text);
        self.put(name, &sheet, mode)?;
        manifest.take(name, &sheet);
        self.put_manifest(manifest)
    }

    fn put(&self, name: &str, sheet: &Sheet, mode: u32) -> Result<()> {
        let path = self.path(name);
        files::make_dir(files::parent(&path))?;
        files::replace(&path, sheet.render().as_bytes(), mode)
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<()> {
        files::replace(&self.path(manifest::NAME), manifest.render()?.as_bytes(), 0o600)
    }

    fn finish_removal(&self, manifest: &mut Manifest) -> Result<()> {
        let Some(name) = &manifest.removing else { return Ok(()) };
        files::remove(&self.path(name))?;
        manifest.removing = None;
        manifest.change += 1;
        self.put_manifest(manifest)
    }

    /// Takes the tree for a change, and ends one that was cut short.
    fn begin(&self) -> Result<(Option<File>, Manifest)> {
        files::make_dir(&self.root)?;
        let lock = self.lock(FlockOperation::LockExclusive)?;
        let names = self.all_names()?;
        let mut manifest = match self.manifest()? {
            Some(manifest) => manifest,
            None if names.is_empty() => {
                let new = Manifest::new(OsRandom.array());
                self.put_manifest(&new)?;
                new
            }
            None => return Err(Failure::from(self.fault(manifest::NAME, Why::NoManifest)).into()),
        };
        self.finish_removal(&mut manifest)?;
        let mut ahead: Option<(String, Sheet)> = None;
        for name in names {
            let Found::Good(sheet) = self.found(&name)? else { continue };
            if sheet.tree != manifest.tree || sheet.change <= manifest.change {
                continue;
            }
            if ahead.is_some() || !manifest.is_ahead(&sheet) {
                let why = manifest.behind(&sheet);
                return Err(Failure::from(self.fault(&name, why)).into());
            }
            ahead = Some((name, sheet));
        }
        if let Some((name, sheet)) = ahead {
            manifest.take(&name, &sheet);
            self.put_manifest(&manifest)?;
        }
        self.sweep()?;
        Ok((lock, manifest))
    }

    /// Readers share, writers exclude; where no lock file can be made, nobody writes.
    fn lock(&self, how: FlockOperation) -> Result<Option<File>> {
        let path = self.path(LOCK);
        let writes = matches!(how, FlockOperation::LockExclusive);
        if !writes && !self.exists() {
            return Ok(None);
        }
        let open = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .or_else(|e| if writes { Err(e) } else { File::open(&path) });
        let what = || format!("cannot lock {}", path.display());
        match open {
            Ok(file) => {
                flock(&file, how).map_err(std::io::Error::from).with_context(what)?;
                Ok(Some(file))
            }
            Err(e) if writes => Err(e).with_context(what),
            Err(_) => Ok(None),
        }
    }

    fn manifest(&self) -> Result<Option<Manifest>> {
        let judged = self.manifest_or_why()?;
        Ok(judged.map_err(|why| Failure::from(self.fault(manifest::NAME, why)))?)
    }

    fn manifest_or_why(&self) -> Result<Result<Option<Manifest>, Why>> {
        let bytes = files::read_within(&self.path(manifest::NAME), MANIFEST_MAX)?;
        Ok(bytes.map(|b| Manifest::read(&b)).transpose())
    }

    fn found(&self, name: &str) -> Result<Found> {
        let path = self.path(name);
        match files::read_opt(&path) {
            Ok(None) => Ok(Found::Absent),
            Ok(Some(bytes)) => {
                let bytes = Zeroizing::new(bytes);
                Ok(Sheet::read(name, &bytes)
                    .map_or_else(|| Found::Bad(bytes.to_vec()), Found::Good))
            }
            Err(e) if class_of(&e) == Class::Damaged || path.is_dir() => Ok(Found::Bad(Vec::new())),
            Err(e) => Err(e),
        }
    }

    /// Names of all state files that are there.
    fn all_names(&self) -> Result<Vec<String>> {
        let there = |n: &&&str| self.path(n).symlink_metadata().is_ok();
        let mut names: Vec<String> =
            self.kind.files.iter().filter(there).map(|n| (*n).to_owned()).collect();
        for dir in self.kind.dirs {
            names.extend(self.listed(dir)?);
        }
        Ok(names)
    }

    fn listed(&self, dir: &str) -> Result<Vec<String>> {
        let entries = self.entries(dir)?.into_iter();
        Ok(entries.filter(|n| !is_temporary(n)).map(|n| format!("{dir}/{n}")).collect())
    }

    fn entries(&self, dir: &str) -> Result<Vec<String>> {
        let path = self.path(dir);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let name = |e: std::io::Result<std::fs::DirEntry>| {
            e.map(|e| e.file_name().to_string_lossy().into_owned())
        };
        Ok(entries.map(name).collect::<std::io::Result<_>>()?)
    }

    /// Removes what writes that were cut short have left; they may hold keys.
    fn sweep(&self) -> Result<()> {
        for dir in self.kind.dirs {
            for name in self.entries(dir)?.iter().filter(|n| is_temporary(n)) {
                files::remove(&self.path(dir).join(name))?;
            }
        }
        let own = |n: &String| {
            let base = n.rsplit_once(".tmp-").map_or("", |(base, _)| base);
            is_temporary(n) && (base == manifest::NAME || self.kind.files.contains(&base))
        };
        for name in self.entries(".")?.iter().filter(|n| own(n)) {
            files::remove(&self.path(name))?;
        }
        Ok(())
    }
}

/// Whether a name is one that `files` writes to before it renames.
fn is_temporary(name: &str) -> bool {
    let digits = |d: &str| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit());
    name.rsplit_once(".tmp-").is_some_and(|(_, pid)| digits(pid))
}
