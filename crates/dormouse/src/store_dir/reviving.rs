//! The state of a store made anew, as far as it can be.
//!
//! Invariant: nothing is deleted; a store of a newer version is left alone; a server's key is
//! made only when that was asked for, since with another key every client must join again.

use std::path::Path;

use anyhow::Result;

use super::{HEADER, KEY, StoreDir, check_header, make_header, make_key, state_of};
use crate::exit::{Class, Failure, fail};
use crate::state_files::{Fault, MANIFEST, StateFiles, Why};

impl StoreDir {
    /// Makes manifest and header anew, goes on with the state files that hold, and makes a key if
    /// there is none and `new_key`. Says what was done, a line for each thing.
    pub fn revive(path: &Path, new_key: bool) -> Result<Vec<String>> {
        let state = state_of(path);
        if !path.join("vaults").is_dir() {
            // Whatever this is, it has nothing that a store could be made of again.
            return Self::open(path).map(|_| Vec::new());
        }
        match state.read(HEADER) {
            Ok(Some(text)) => drop(check_header(path, &text)?),
            // With a header of its own it would be taken for a store, of which most is missing.
            _ if path.join(crate::bucket::DIR).exists() => {
                return fail(
                    Class::Damaged,
                    format!(
                        "{} was the state of a store in a bucket, and its header does not hold",
                        path.display()
                    ),
                    "make the state anew out of the bucket: dormouse rebuild s3://BUCKET/PREFIX --state NEW",
                );
            }
            _ => {}
        }
        let faults = state.check()?;
        if let Some(newer) = faults.iter().find(|fault| matches!(fault.why, Why::Newer(_))) {
            return Err(Failure::from(newer.clone()).into());
        }
        let at = |name: &str| faults.iter().find(|fault| fault.path == path.join(name));
        let lost_key = at(KEY).map_or(!path.join(KEY).exists(), is_lost);
        if lost_key && !new_key {
            return fail(
                Class::KeyMissing,
                format!("{} is missing, or does not hold", path.join(KEY).display()),
                "bring it back from a copy of the store; or let `dormouse rebuild STORE --new-key` \
                 make\nanother one: then every client must join again, for it knows the server by \
                 its key",
            );
        }
        let mut said = Vec::new();
        for (name, lost) in [
            (MANIFEST, at(MANIFEST).is_some_and(is_lost)),
            (HEADER, at(HEADER).is_some_and(is_lost)),
            (KEY, lost_key),
        ] {
            if lost && path.join(name).exists() {
                said.push(format!(
                    "{name}: did not hold; set aside, as {}",
                    state.move_aside(name)?
                ));
            }
        }
        if (!faults.is_empty() || !state.exists()) && !state.is_empty()? {
            said.extend(state.accept()?.iter().map(|line| told(line)));
        }
        finish(path, &state, &mut said)?;
        Ok(said)
    }
}

/// What is missing is made.
fn finish(path: &Path, state: &StateFiles, said: &mut Vec<String>) -> Result<()> {
    if !path.join(KEY).exists() {
        make_key(state)?;
        said.push(format!("{KEY}: a new key; every client must join again"));
    }
    if !path.join(HEADER).exists() {
        make_header(state, None)?;
        said.push(format!("{HEADER}: made anew"));
    }
    Ok(())
}

/// Whether nothing of a file can be used. An old version can.
const fn is_lost(fault: &Fault) -> bool {
    matches!(fault.why, Why::Damaged | Why::IsOf(_) | Why::OtherTree | Why::Missing)
}

/// A line, with what it means where a client's file is lost.
fn told(line: &str) -> String {
    let name = line.strip_prefix("clients/").and_then(|rest| rest.split_once(".toml: "));
    match name {
        Some((name, _)) => format!("{line}; the client '{name}' must join again"),
        None => line.to_owned(),
    }
}
