//! Numbered files, one after the other, with known content: what a copy holds of them is a prefix
//! of what was written, and not too short a one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Load, Seen, Steps};
use crate::random::SplitMix;

/// Files that are there; the oldest is removed for each new one.
const KEPT: u64 = 300;
const LENGTH_MAX: usize = 48 << 10;

pub struct Ledger {
    at: PathBuf,
    steps: Steps,
}

/// Every second file is synced; which, and what it holds, follows from its number.
fn synced(number: u64) -> bool {
    SplitMix::new(number).next() & 1 == 0
}

fn content(number: u64) -> Vec<u8> {
    let mut random = SplitMix::new(!number);
    let length = 1 + random.below(LENGTH_MAX);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Ledger {
    pub fn new(at: &Path) -> Self {
        Self { at: at.to_owned(), steps: Steps::default() }
    }

    /// As when all stood still: all that was done, and of one step more a part.
    fn check_frozen(found: &BTreeSet<u64>, at: &Path, done: u64, begun: u64) -> Result<usize> {
        let oldest = done.saturating_sub(KEPT) + 1;
        for number in found {
            // The step that was under way removes the oldest last.
            ensure!(
                (oldest..=begun).contains(number),
                "file {number} is there: {oldest} to {done} should be, and {begun} had begun"
            );
        }
        let sure = if begun > done { oldest + 1 } else { oldest };
        for number in sure..=done {
            ensure!(found.contains(&number), "file {number} is not there: {done} was done");
            is(at, number)?;
        }
        if found.contains(&begun) && begun > done {
            let part = fs::read(at.join(begun.to_string()))?;
            ensure!(content(begun).starts_with(&part), "file {begun} begins otherwise");
        }
        Ok((done + 1).saturating_sub(sure) as usize)
    }

    /// As after a power cut: what was synced.
    fn check_settled(at: &Path, done: u64, begun: u64) -> Result<usize> {
        let kept = (begun.saturating_sub(KEPT) + 1..=done).filter(|n| synced(*n));
        let mut count = 0;
        for number in kept {
            is(at, number)?;
            count += 1;
        }
        Ok(count)
    }
}

fn is(at: &Path, number: u64) -> Result<()> {
    let found = fs::read(at.join(number.to_string())).with_context(|| format!("file {number}"))?;
    ensure!(found == content(number), "file {number} has another content");
    Ok(())
}

impl Load for Ledger {
    fn name(&self) -> &'static str {
        "ledger"
    }

    fn step(&self, random: &mut SplitMix) -> Result<()> {
        let number = self.steps.begin();
        let mut file = File::create(self.at.join(number.to_string()))?;
        file.write_all(&content(number))?;
        if synced(number) {
            file.sync_all()?;
            File::open(&self.at)?.sync_all()?;
        }
        if number > KEPT {
            fs::remove_file(self.at.join((number - KEPT).to_string()))?;
        }
        self.steps.done();
        thread::sleep(Duration::from_millis(random.below(10) as u64));
        Ok(())
    }

    fn end(&self) -> Result<()> {
        Ok(())
    }

    fn check(&self, seen: &Seen<'_>) -> Result<usize> {
        let (done, begun) = self.steps.by(seen.time);
        let at = seen.root.join("ledger");
        if done == 0 {
            return Ok(0);
        }
        if !seen.frozen {
            return Self::check_settled(&at, done, begun);
        }
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&at)? {
            found.insert(entry?.file_name().to_string_lossy().parse()?);
        }
        Self::check_frozen(&found, &at, done, begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_too_few_too_many_or_too_short_is_found() {
        let at = std::env::temp_dir().join(format!("xtask-ledger-{}", std::process::id()));
        fs::create_dir_all(&at).unwrap();
        for number in 1..=4 {
            fs::write(at.join(number.to_string()), content(number)).unwrap();
        }
        let all: BTreeSet<u64> = (1..=4).collect();
        assert_eq!(Ledger::check_frozen(&all, &at, 4, 4).unwrap(), 4);
        assert_eq!(Ledger::check_frozen(&all, &at, 3, 4).unwrap(), 2);
        // Too new, and too old.
        assert!(Ledger::check_frozen(&all, &at, 3, 3).is_err());
        assert!(Ledger::check_frozen(&all, &at, 5, 5).is_err());
        assert!(Ledger::check_frozen(&all, &at, KEPT + 2, KEPT + 3).is_err());
        fs::write(at.join("4"), &content(4)[1..]).unwrap();
        assert!(Ledger::check_frozen(&all, &at, 4, 4).is_err());
        assert!(Ledger::check_frozen(&all, &at, 3, 4).is_err());
        fs::write(at.join("4"), &content(4)[..1]).unwrap();
        assert!(Ledger::check_frozen(&all, &at, 3, 4).is_ok());
        let lost = (1..=4).find(|n| synced(*n)).unwrap();
        fs::remove_file(at.join(lost.to_string())).unwrap();
        assert!(Ledger::check_settled(&at, 3, 4).is_err());
        fs::remove_dir_all(at).unwrap();
    }
}
