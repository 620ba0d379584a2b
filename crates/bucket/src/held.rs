//! The generations that a state directory has held, in a file of it.
//!
//! Invariant: a generation is on record here before anything is put under it; the file is
//! whole, as before or as after.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};

const NAME: &str = "generations";

fn read(path: &Path) -> io::Result<BTreeSet<u64>> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let number = |line: &str| {
        let why = format!("'{line}' is no generation");
        line.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, why))
    };
    text.lines().map(number).collect()
}

/// Adds a generation, durably; all that there are.
pub(crate) fn add(dir: &Path, generation: u64) -> Result<BTreeSet<u64>> {
    let path = dir.join(NAME);
    let done = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut held = read(&path)?;
        held.insert(generation);
        let tmp = dir.join(format!("{NAME}.tmp"));
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        for generation in &held {
            writeln!(file, "{generation}")?;
        }
        file.sync_all()?;
        fs::rename(&tmp, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(held)
    };
    done().map_err(Error::local(format!("writing {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("bucket");
        assert_eq!(add(&dir, 3).unwrap(), BTreeSet::from([3]));
        assert_eq!(add(&dir, 7).unwrap(), BTreeSet::from([3, 7]));
        fs::write(dir.join(NAME), "3\nx\n").unwrap();
        assert!(add(&dir, 8).unwrap_err().to_string().contains("'x' is no generation"));
    }
}
