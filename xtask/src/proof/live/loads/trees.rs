//! Trees of files that are copied to the disk and removed again: the project's own checkout and many
//! small files, by `cp`; and its history, by `git clone`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Load, Seen, Span, now};
use crate::proof::live::disk::words;
use crate::random::SplitMix;
use crate::world::output;

/// Trees that are there.
const KEPT: usize = 2;
const SMALL_FILES: usize = 1200;
const SMALL_MAX: usize = 6000;

#[derive(Clone, Copy)]
struct Tree {
    made: Span,
    /// When its removal began.
    removed: Option<u64>,
}

pub struct Trees {
    at: PathBuf,
    /// What is copied.
    source: PathBuf,
    clones: bool,
    trees: Mutex<Vec<Tree>>,
}

impl Trees {
    pub fn copies(at: &Path, scratch: &Path) -> Result<Self> {
        let source = scratch.join("source");
        let repository = bare(&scratch.join("repository"))?;
        clone(&repository, &source)?;
        fs::remove_dir_all(source.join(".git"))?;
        let mut random = SplitMix::new(0x7472_6565);
        for number in 0..SMALL_FILES {
            let directory = source.join(format!("small/{}/{}", number % 7, number % 31));
            fs::create_dir_all(&directory)?;
            let line = format!("{}\n", random.next());
            let text = line.repeat(random.below(SMALL_MAX) / line.len());
            fs::write(directory.join(number.to_string()), text)?;
        }
        Ok(Self::of(at, source, false))
    }

    pub fn clones(at: &Path, scratch: &Path) -> Result<Self> {
        Ok(Self::of(at, bare(&scratch.join("repository"))?, true))
    }

    fn of(at: &Path, source: PathBuf, clones: bool) -> Self {
        Self { at: at.to_owned(), source, clones, trees: Mutex::default() }
    }

    fn trees(&self) -> MutexGuard<'_, Vec<Tree>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_whole(&self, tree: &Path) -> Result<()> {
        if self.clones {
            let git = |words: &[&str]| {
                let mut command = git();
                command.arg("-C").arg(tree).args(words);
                output(command).map(drop)
            };
            git(&["fsck", "--full", "--strict"])?;
            // All content, against what was committed.
            return git(&["diff", "--quiet", "HEAD"]);
        }
        let mut command = words("diff --recursive --brief");
        command.arg(&self.source).arg(tree);
        output(command).map(drop)
    }
}

/// Whoever the checkout belongs to, and whatever is set up for others.
fn git() -> Command {
    let mut command = Command::new("git");
    command
        .args(["--no-optional-locks", "-c", "safe.directory=*", "-c", "gc.auto=0"])
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// The project's history, outside the disk.
fn bare(at: &Path) -> Result<PathBuf> {
    let mut command = git();
    command.args(["clone", "--quiet", "--bare", "--no-local"]).arg(std::env::current_dir()?);
    command.arg(at);
    output(command).context("a clone of the project: run it in its checkout")?;
    Ok(at.to_owned())
}

fn clone(from: &Path, to: &Path) -> Result<()> {
    let mut command = git();
    command.args(["clone", "--quiet", "--no-local"]).arg(from).arg(to);
    output(command).map(drop)
}

impl Load for Trees {
    fn name(&self) -> &'static str {
        if self.clones { "git" } else { "tree" }
    }

    fn step(&self, random: &mut SplitMix) -> Result<()> {
        let number = self.trees().len();
        self.trees().push(Tree { made: Span::begin(), removed: None });
        let to = self.at.join(number.to_string());
        if self.clones {
            clone(&self.source, &to)?;
        } else {
            let mut command = words("cp -r");
            command.arg(&self.source).arg(&to);
            output(command)?;
        }
        if let Some(tree) = self.trees().last_mut() {
            tree.made.done = Some(now());
        }
        if let Some(old) = number.checked_sub(KEPT) {
            self.trees()[old].removed = Some(now());
            fs::remove_dir_all(self.at.join(old.to_string()))?;
        }
        thread::sleep(Duration::from_millis(1000 + random.below(2000) as u64));
        Ok(())
    }

    fn end(&self) -> Result<()> {
        Ok(())
    }

    /// Nothing of it was synced: only what was frozen can be expected.
    fn check(&self, seen: &Seen<'_>) -> Result<usize> {
        if !seen.frozen {
            return Ok(0);
        }
        let trees = self.trees();
        let there = |tree: &Tree| {
            tree.made.done_by(seen.time) && tree.removed.is_none_or(|at| at > seen.time)
        };
        let mut count = 0;
        for (number, _) in trees.iter().enumerate().filter(|(_, tree)| there(tree)) {
            self.is_whole(&seen.root.join(self.name()).join(number.to_string()))?;
            count += 1;
        }
        Ok(count)
    }
}
