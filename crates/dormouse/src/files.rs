//! Files that must be whole: atomic writes, new files, locks.
//!
//! Invariant: a file written here is there with all its bytes or not at all, and
//! durable when the call returns.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

use crate::exit::{Class, Failure};

/// Largest file that is read here.
const FILE_MAX: u64 = 1 << 20;

/// Makes a directory with mode 0700, and what is above it.
pub fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Makes what was created, renamed or removed in a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The directory that a file is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".tmp-{}", std::process::id()));
    path.with_file_name(name)
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replaces or makes a file.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let tmp = temporary(path);
    let done = write_whole(&tmp, bytes, mode)
        .and_then(|()| std::fs::rename(&tmp, path))
        .and_then(|()| sync_dir(parent(path)));
    if done.is_err() {
        let _ = std::fs::remove_file(&tmp);
    }
    done.with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a file that must not be there yet; `false` if it is.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> Result<bool> {
    let tmp = temporary(path);
    let done = write_whole(&tmp, bytes, mode).and_then(|()| std::fs::hard_link(&tmp, path));
    let _ = std::fs::remove_file(&tmp);
    match done {
        Ok(()) => {
            sync_dir(parent(path))
                .with_context(|| format!("cannot make {} durable", path.display()))?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Reads a small file; `None` if it is not there.
pub fn read_opt(path: &Path) -> Result<Option<Vec<u8>>> {
    read_within(path, FILE_MAX)
}

/// Reads a file of at most `max` bytes; `None` if it is not there.
pub fn read_within(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    let what = || format!("cannot read {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(what),
    };
    let mut out = Vec::new();
    file.take(max + 1).read_to_end(&mut out).with_context(what)?;
    if out.len() as u64 > max {
        return Err(Failure::new(
            Class::Damaged,
            format!("{} is larger than any such file can be", path.display()),
        )
        .into());
    }
    Ok(Some(out))
}

/// Reads a small text file; `None` if it is not there.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_opt(path)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|_| {
        Failure::new(Class::Damaged, format!("{} is not a text file", path.display()))
    })?;
    Ok(Some(text))
}

/// Removes a file durably; fine if it is not there.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)).with_context(|| format!("removing {}", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// A lock that is held until it is dropped. The file holds the owner's process id.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Said, not left to closing: a process that was just started by another thread has the
    /// file too, until it runs its own program.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

impl Lock {
    /// Whether another holds the lock. It is shared for a moment, to see.
    pub fn is_held(path: &Path) -> Result<bool> {
        let held = || -> io::Result<bool> {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => Ok(false),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
                Err(e) => Err(e.into()),
            }
        };
        held().with_context(|| format!("cannot look at the lock {}", path.display()))
    }

    /// Takes the lock; `Err` with the owner's process id if another holds it.
    pub fn take(path: &Path) -> Result<Result<Self, String>> {
        let what = || format!("cannot lock {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(what)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.take(32).read_to_string(&mut pid);
                return Ok(Err(pid.trim().to_owned()));
            }
            Err(e) => return Err(io::Error::from(e)).with_context(what),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        written.with_context(what)?;
        Ok(Ok(Self { file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_files_are_made_once_and_locks_exclude() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(create_new(&path, b"1", 0o600).unwrap());
        assert!(!create_new(&path, b"2", 0o600).unwrap());
        assert_eq!(read_text(&path).unwrap().unwrap(), "1");
        replace(&path, b"3", 0o600).unwrap();
        assert_eq!(read_opt(&path).unwrap().unwrap(), b"3");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read_opt(&path).unwrap(), None);

        let lock = dir.path().join("lock");
        let held = Lock::take(&lock).unwrap().unwrap();
        let owner = Lock::take(&lock).unwrap().unwrap_err();
        assert_eq!(owner, std::process::id().to_string());
        assert!(Lock::is_held(&lock).unwrap());
        drop(held);
        assert!(!Lock::is_held(&lock).unwrap() && !Lock::is_held(&path).unwrap());
        assert!(Lock::take(&lock).unwrap().is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
