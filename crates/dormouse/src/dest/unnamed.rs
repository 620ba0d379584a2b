//! A new file that gets its name when it is whole.
//!
//! Invariant: whatever ends the program before [`Unnamed::name`], `kill -9` and a power
//! cut included, nothing is left where the file system can keep files without a name;
//! elsewhere a file `DEST.dormouse-PID` is, which the next restore by that process
//! number, or anybody, may remove.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags};

use crate::files::parent;

/// How the file is kept until it has its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unnamed {
    /// Without any name.
    Nameless,
    /// Under this one.
    Temporary(PathBuf),
}

impl Unnamed {
    /// Makes the file that will be `path`.
    pub(super) fn create(path: &Path) -> io::Result<(File, Self)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let nameless =
            options.clone().custom_flags(OFlags::TMPFILE.bits() as i32).open(parent(path));
        match nameless {
            Ok(file) => Ok((file, Self::Nameless)),
            // Not every file system can, and each says so in another way.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound) => Err(e),
            Err(_) => {
                let temporary = beside(path);
                // What an earlier process of this number left.
                let _ = std::fs::remove_file(&temporary);
                let file = options.create_new(true).open(&temporary)?;
                Ok((file, Self::Temporary(temporary)))
            }
        }
    }

    /// Gives the file its name. What has it now is replaced only with `replace`.
    pub(super) fn name(&self, file: &File, path: &Path, replace: bool) -> io::Result<()> {
        let temporary = match self {
            Self::Temporary(temporary) => temporary.clone(),
            Self::Nameless => {
                match link(file, path) {
                    Err(e) if replace && e.kind() == io::ErrorKind::AlreadyExists => {}
                    other => return other,
                }
                let temporary = beside(path);
                let _ = std::fs::remove_file(&temporary);
                link(file, &temporary)?;
                temporary
            }
        };
        if replace {
            return std::fs::rename(&temporary, path).inspect_err(|_| {
                let _ = std::fs::remove_file(&temporary);
            });
        }
        match std::fs::hard_link(&temporary, path) {
            Ok(()) => std::fs::remove_file(&temporary),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
            // A file system without links.
            Err(_) if !path.exists() => std::fs::rename(&temporary, path),
            Err(e) => Err(e),
        }
    }

    /// Removes what is there of it.
    pub(super) fn discard(&self) {
        if let Self::Temporary(temporary) = self {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".dormouse-{}", std::process::id()));
    path.with_file_name(name)
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn names(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn both_ways_name_once_and_replace_when_asked() {
        for named in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("d");
            let make = || {
                if named {
                    let file = File::create_new(beside(&path)).unwrap();
                    (file, Unnamed::Temporary(beside(&path)))
                } else {
                    Unnamed::create(&path).unwrap()
                }
            };
            let (file, how) = make();
            assert_eq!(how == Unnamed::Nameless, !named);
            assert_eq!(names(dir.path()), usize::from(named));
            file.write_all_at(b"one", 0).unwrap();
            how.name(&file, &path, false).unwrap();
            let (file, how) = make();
            file.write_all_at(b"two", 0).unwrap();
            let there = how.name(&file, &path, false).unwrap_err();
            assert_eq!(there.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&path).unwrap(), b"one");
            how.name(&file, &path, true).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"two");
            assert_eq!(names(dir.path()), 1);
            let (_, how) = make();
            how.discard();
            assert_eq!(names(dir.path()), 1);
        }
    }
}
