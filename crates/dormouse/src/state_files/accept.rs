//! Going on with the state files that are there, after somebody looked.
//!
//! Invariant: nothing is deleted: what does not hold is moved to `set-aside/`, and
//! only where the rest works without it; else nothing is changed.

use std::collections::BTreeMap;

use anyhow::Result;
use rustix::fs::FlockOperation;

use super::manifest::{Manifest, Why};
use super::sheet::{Sheet, TreeId};
use super::{Found, StateFiles, judge};
use crate::exit::{Class, fail};
use crate::files;

const ASIDE: &str = "set-aside";

/// What becomes of a file.
enum Verdict {
    Keep(Sheet),
    Aside,
    Drop,
    Stuck(Why),
}

impl StateFiles {
    /// Takes the files as they are; says what was done, a line for each thing.
    pub fn accept(&self) -> Result<Vec<String>> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let manifest = self.manifest_or_why()?.ok().flatten();
        let mut names = self.all_names()?;
        names.extend(manifest.iter().flat_map(|m| m.files.keys().cloned()));
        names.sort();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let found = self.found(&name)?;
            files.push((name, found));
        }
        let Some(tree) = manifest.as_ref().map(|m| m.tree).or_else(|| tree_of(&files)) else {
            return fail(
                Class::Damaged,
                format!("no state file in {} holds", self.root.display()),
                "bring the directory back from a backup",
            );
        };
        let mut next = Manifest::new(tree);
        next.change = manifest.as_ref().map_or(0, |m| m.change);
        let (mut aside, mut said) = (Vec::new(), Vec::new());
        for (name, found) in files {
            match self.verdict(manifest.as_ref(), &tree, &name, found) {
                Verdict::Keep(sheet) => {
                    let newest = next.change.max(sheet.change);
                    next.take(&name, &sheet);
                    next.change = newest;
                }
                Verdict::Aside => aside.push(name),
                Verdict::Drop => said.push(format!("{name}: missing, no longer expected")),
                Verdict::Stuck(why) => {
                    return fail(
                        Class::Damaged,
                        format!("{}: {why}", self.path(&name).display()),
                        "nothing works without it; bring it back from a backup, with its directory",
                    );
                }
            }
        }
        next.change += 1;
        for name in aside {
            let kept = self.put_aside(&name, next.change)?;
            said.push(format!("{name}: set aside, as {kept}"));
        }
        self.put_manifest(&next)?;
        said.push(format!("{} files taken as they are", next.files.len()));
        Ok(said)
    }

    /// Moves a file aside that does not hold; says where it is now.
    pub fn move_aside(&self, name: &str) -> Result<String> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let free = |n: &u64| !self.path(&aside_name(name, *n)).exists();
        self.put_aside(name, (0..).find(free).unwrap_or(u64::MAX))
    }

    fn put_aside(&self, name: &str, change: u64) -> Result<String> {
        let kept = aside_name(name, change);
        files::make_dir(&self.path(ASIDE))?;
        std::fs::rename(self.path(name), self.path(&kept))?;
        files::sync_dir(files::parent(&self.path(name)))?;
        files::sync_dir(&self.path(ASIDE))?;
        Ok(kept)
    }

    fn verdict(
        &self,
        manifest: Option<&Manifest>,
        tree: &TreeId,
        name: &str,
        found: Found,
    ) -> Verdict {
        let there = !matches!(found, Found::Absent);
        let spare = name.split_once('/').is_some_and(|(dir, _)| self.kind.spare.contains(&dir));
        let own = match &found {
            Found::Good(sheet) if sheet.tree == *tree => Some(sheet.clone()),
            _ => None,
        };
        let judged = match (manifest, &own) {
            (Some(manifest), _) => judge(manifest, name, found),
            (None, Some(sheet)) => Ok(Some(sheet.clone())),
            (None, None) => Err(Why::Damaged),
        };
        match (judged, own) {
            (Ok(Some(sheet)), _) | (Err(Why::ManifestOld { .. }), Some(sheet)) => {
                Verdict::Keep(sheet)
            }
            (Ok(None), _) if there => Verdict::Aside,
            (Ok(None) | Err(Why::Missing), _) => Verdict::Drop,
            (Err(Why::Stray), _) => Verdict::Aside,
            (Err(_), _) if spare => Verdict::Aside,
            (Err(_), Some(sheet)) => Verdict::Keep(sheet),
            (Err(why), None) => Verdict::Stuck(why),
        }
    }
}

fn aside_name(name: &str, change: u64) -> String {
    format!("{ASIDE}/{}.{change}", name.replace('/', "-"))
}

/// The tree that most files belong to.
fn tree_of(files: &[(String, Found)]) -> Option<TreeId> {
    let mut count = BTreeMap::<TreeId, usize>::new();
    for (_, found) in files {
        if let Found::Good(sheet) = found {
            *count.entry(sheet.tree).or_default() += 1;
        }
    }
    count.into_iter().max_by_key(|(_, n)| *n).map(|(tree, _)| tree)
}
