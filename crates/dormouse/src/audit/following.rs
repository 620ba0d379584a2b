//! The audit log of a second copy follows that of its store.
//!
//! Invariant: lines are only added to what a copy has. Where the store's log does not begin with
//! that, somebody has changed one of the two: what the copy has is kept beside, under a name of its
//! own, before it takes the store's. Leaves to others: when ([`crate::replicate`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::NAME;
use crate::files;

/// Bytes that are compared or copied at once.
const PART: usize = 64 << 10;

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Bytes of lines that were added.
    pub bytes: u64,
    /// Where that is kept which the copy had, and the store has not.
    pub kept_in: Option<PathBuf>,
}

/// Brings the log of the copy `to` to that of the store `from`.
pub fn follow(from: &Path, to: &Path) -> Result<Followed> {
    let (source, copy) = (from.join(NAME), to.join(NAME));
    let mut done = Followed::default();
    let mut source = match File::open(&source) {
        Ok(file) => file,
        // What a copy has stays.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(done),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", source.display())),
    };
    let what = || format!("cannot write {}", copy.display());
    // No line is half written meanwhile.
    flock(&source, FlockOperation::LockShared).map_err(io::Error::from)?;
    let mut open = OpenOptions::new();
    open.read(true).append(true).create(true).mode(0o600);
    let mut file = open.open(&copy).with_context(what)?;
    if !begins_with(&mut source, &mut file).with_context(what)? {
        let kept = spare_name(to);
        std::fs::rename(&copy, &kept).with_context(what)?;
        file = open.open(&copy).with_context(what)?;
        source.rewind()?;
        done.kept_in = Some(kept);
    }
    done.bytes = io::copy(&mut source, &mut file).with_context(what)?;
    file.flush().and_then(|()| file.sync_data()).with_context(what)?;
    files::sync_dir(to).with_context(what)?;
    Ok(done)
}

/// Whether a file begins with all of another; it is left right behind that.
fn begins_with(file: &mut File, with: &mut File) -> io::Result<bool> {
    with.seek(SeekFrom::Start(0))?;
    let mut parts = (vec![0; PART], vec![0; PART]);
    loop {
        let n = with.read(&mut parts.0)?;
        if n == 0 {
            return Ok(true);
        }
        match file.read_exact(&mut parts.1[..n]) {
            Ok(()) if parts.0[..n] == parts.1[..n] => {}
            Ok(()) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

fn spare_name(dir: &Path) -> PathBuf {
    let name = |n: u64| dir.join(format!("{NAME}.kept-{n}"));
    (1..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_loses_no_line_whatever_becomes_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        [&from, &to].iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        let write = |text: &str| std::fs::write(from.join(NAME), text).unwrap();
        let read = |name: &str| std::fs::read_to_string(to.join(name)).unwrap();
        assert_eq!(follow(&from, &to).unwrap(), Followed::default());
        write("a\nb\n");
        assert_eq!(follow(&from, &to).unwrap().bytes, 4);
        assert_eq!(follow(&from, &to).unwrap(), Followed::default());
        write("a\nb\nc\n");
        assert_eq!(follow(&from, &to).unwrap(), Followed { bytes: 2, kept_in: None });
        // A run that was cut.
        std::fs::write(to.join(NAME), "a\nb").unwrap();
        assert_eq!(follow(&from, &to).unwrap().bytes, 3);
        assert_eq!(read(NAME), "a\nb\nc\n");
        // Gone, cut short, and altered: each time the copy's own is kept.
        std::fs::remove_file(from.join(NAME)).unwrap();
        assert_eq!(follow(&from, &to).unwrap(), Followed::default());
        for (n, text) in [(1, "a\n"), (2, "x\n"), (3, "x\ny\n")] {
            let was = read(NAME);
            write(text);
            let done = follow(&from, &to).unwrap();
            assert_eq!(read(NAME), text);
            if n < 3 {
                let kept = format!("{NAME}.kept-{n}");
                assert_eq!(done.kept_in, Some(to.join(&kept)));
                assert_eq!(read(&kept), was);
            } else {
                assert_eq!(done, Followed { bytes: 2, kept_in: None });
            }
        }
    }
}
