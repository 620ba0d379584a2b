//! The destination of a restore: a sparse file or a block device.
//!
//! Owns: what may be overwritten, and how. Invariant: an existing file is replaced
//! only with `--force` or changed only with `--in-place`; a device that is mounted or
//! in use is never written; a new file appears under its name only when it is whole.
//! Leaves to others: what is written where.

mod in_use;
mod unnamed;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom};

use crate::exit::{Class, Failure, fail};
use crate::{files, text};
use unnamed::Unnamed;

/// Zeros that are written where a device cannot make them itself.
const ZEROS: usize = 1 << 20;

/// Bytes written at once from which on the disk is asked to begin.
const START_WRITING: usize = 256 << 10;

/// How a destination may be treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DestOptions {
    /// An existing file may be replaced.
    pub force: bool,
    /// An existing file or device is an older copy: only what differs is written.
    pub in_place: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A new file that gets its name at the end; all zero at first.
    New { how: Unnamed, replace: bool },
    /// An existing file that is changed.
    Existing,
    /// A block device.
    Device,
}

/// An open destination.
#[derive(Debug)]
pub struct Dest {
    path: PathBuf,
    file: File,
    size: u64,
    kind: Kind,
    written: AtomicU64,
    /// Held while a file is written: the system lets one writer in at a time anyway, and
    /// lets the others burn a processor meanwhile.
    turn: Mutex<()>,
    finished: bool,
}

impl Dest {
    /// Opens or makes a destination that takes `size` bytes.
    pub fn create(path: &Path, size: u64, options: DestOptions) -> Result<Self> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(open_failure(path, &e).into()),
        };
        let (file, kind) = match meta {
            None => {
                refuse_dangling(path)?;
                new_file(path, false)?
            }
            Some(m) if m.file_type().is_block_device() => {
                (open_device(path, m.rdev(), size)?, Kind::Device)
            }
            Some(m) if m.is_file() && options.in_place => {
                in_use::check_file(path)?;
                (open(path, 0)?, Kind::Existing)
            }
            Some(m) if m.is_file() && options.force => {
                in_use::check_file(path)?;
                new_file(path, true)?
            }
            Some(m) if m.is_file() => {
                return fail(
                    Class::Place,
                    format!("{} exists already", path.display()),
                    "--force replaces it; --in-place writes only what differs, if it is an older copy",
                );
            }
            Some(m) if m.is_dir() => {
                return fail(
                    Class::Place,
                    format!("{} is a directory", path.display()),
                    "name a file in it",
                );
            }
            Some(_) => {
                return fail(
                    Class::Place,
                    format!("{} is neither a file nor a block device", path.display()),
                    "name a file or a block device",
                );
            }
        };
        let dest = Self {
            path: path.to_owned(),
            file,
            size,
            kind,
            written: AtomicU64::new(0),
            turn: Mutex::new(()),
            finished: false,
        };
        dest.reserve()?;
        Ok(dest)
    }

    /// Gives a file its size.
    fn reserve(&self) -> Result<()> {
        if self.kind == Kind::Device {
            return Ok(());
        }
        let now = self.file.metadata()?.len();
        if now < self.size {
            self.file.set_len(self.size).map_err(|e| self.failure("give its size to", &e))?;
        }
        Ok(())
    }

    /// Bytes that belong to the restored volume.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether all of it is zero before the first write.
    pub const fn reads_as_zeros(&self) -> bool {
        matches!(self.kind, Kind::New { .. })
    }

    /// Bytes that were written so far, or begun to be: counted before, because a write that fails
    /// may have come halfway.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// What of `len` bytes at `at` lies within the size.
    fn clip(&self, at: u64, len: u64) -> u64 {
        len.min(self.size.saturating_sub(at))
    }

    /// Writes bytes; what lies behind the size is left out. May be called from many threads.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let len = self.clip(at, bytes.len() as u64) as usize;
        let turn = (self.kind != Kind::Device)
            .then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        self.written.fetch_add(len as u64, Ordering::Relaxed);
        self.file.write_all_at(&bytes[..len], at).map_err(|e| self.failure("write to", &e))?;
        drop(turn);
        if len >= START_WRITING {
            // The disk begins now, and not only when all is to be made durable. Advice:
            // if it is not taken, nothing is lost.
            let span = std::num::NonZero::new(len as u64);
            let _ = rustix::fs::fadvise(&self.file, at, span, Advice::DontNeed);
        }
        Ok(())
    }

    /// Makes a range zero, as a hole where that can be.
    pub fn zero_range(&self, at: u64, len: u64) -> Result<()> {
        let len = self.clip(at, len);
        if len == 0 || self.reads_as_zeros() {
            return Ok(());
        }
        let how = match self.kind {
            Kind::Device => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            _ => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        };
        match rustix::fs::fallocate(&self.file, how, at, len) {
            Ok(()) => {
                self.written.fetch_add(len, Ordering::Relaxed);
                Ok(())
            }
            Err(rustix::io::Errno::NOSPC) => {
                Err(self.failure("write to", &rustix::io::Errno::NOSPC.into()).into())
            }
            // Not known here, or not aligned: then by hand.
            Err(_) => self.write_zeros(at, len),
        }
    }

    fn write_zeros(&self, at: u64, len: u64) -> Result<()> {
        let zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
        let mut done = 0;
        while done < len {
            let n = (zeros.len() as u64).min(len - done);
            self.write_at(at + done, &zeros[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    /// Reads what is there, to compare; behind its end it is zero.
    pub fn read_at(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let want = self.clip(at, out.len() as u64) as usize;
        let mut done = 0;
        while done < want {
            match self.file.read_at(&mut out[done..want], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failure("read", &e).into()),
            }
        }
        out[done..].fill(0);
        Ok(())
    }

    /// The next range that may hold data, from `from` on; `None` if there is no more.
    /// Lets an in-place restore pass over holes.
    pub fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        if from >= self.size || self.reads_as_zeros() {
            return Ok(None);
        }
        if self.kind == Kind::Device {
            return Ok(Some((from, self.size)));
        }
        let seek = |to| rustix::fs::seek(&self.file, to);
        match seek(SeekFrom::Data(from)) {
            Ok(start) if start >= self.size => Ok(None),
            Ok(start) => {
                let end = seek(SeekFrom::Hole(start)).unwrap_or(self.size).min(self.size);
                Ok(Some((start, end)))
            }
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(_) => Ok(Some((from, self.size))),
        }
    }

    /// Makes everything durable, and gives a new file its name.
    pub fn finish(mut self) -> Result<()> {
        if self.kind != Kind::Device {
            // An older copy may have been longer.
            self.file.set_len(self.size).map_err(|e| self.failure("cut", &e))?;
        }
        self.file.sync_all().map_err(|e| self.failure("make durable", &e))?;
        if let Kind::New { how, replace } = &self.kind {
            how.name(&self.file, &self.path, *replace).map_err(|e| self.name_failure(&e))?;
            self.finished = true;
            files::sync_dir(files::parent(&self.path))?;
        }
        self.finished = true;
        Ok(())
    }

    fn failure(&self, what: &str, error: &io::Error) -> Failure {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let full = matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge);
        let message = format!("cannot {what} {}: {error}", self.path.display());
        let class = if full { Class::NoSpace } else { Class::Place };
        Failure::new(class, message).hint(self.left_behind())
    }

    fn name_failure(&self, error: &io::Error) -> Failure {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return self.failure("give its name to", error);
        }
        let path = self.path.display();
        Failure::new(Class::Place, format!("{path} was made by somebody else meanwhile")).hint(
            "it was left as it is, and of the restored nothing is kept;\n\
             --force replaces it; --in-place writes only what differs; or name another place",
        )
    }

    /// What an end before `finish` leaves.
    fn left_behind(&self) -> String {
        let written = text::size(self.written());
        match self.kind {
            Kind::New { .. } => format!(
                "nothing is left behind: the {written} written so far lay in a file without a name"
            ),
            _ if self.written() == 0 => "nothing was written".into(),
            _ => format!(
                "up to {written} were written, so it is neither the old content nor the new;\nrun the same restore again with --in-place"
            ),
        }
    }
}

impl Drop for Dest {
    fn drop(&mut self) {
        if let (Kind::New { how, .. }, false) = (&self.kind, self.finished) {
            how.discard();
        }
    }
}

fn open(path: &Path, flags: i32) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    Ok(file.map_err(|e| open_failure(path, &e))?)
}

fn open_failure(path: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot write to {}: {error}", path.display());
    let (class, hint) = match error.kind() {
        io::ErrorKind::ResourceBusy => {
            (Class::Place, "it is in use: unmount it, or end what holds it")
        }
        io::ErrorKind::PermissionDenied => (Class::Place, "run as root, or name another place"),
        io::ErrorKind::StorageFull => (Class::NoSpace, "free space there, or name another place"),
        _ => (Class::Place, "check the path"),
    };
    Failure::new(class, message).hint(hint)
}

/// A file cannot get the name of a link, and following it would make a file elsewhere.
fn refuse_dangling(path: &Path) -> Result<()> {
    let Ok(target) = std::fs::read_link(path) else { return Ok(()) };
    fail(
        Class::Place,
        format!(
            "{} is a symbolic link to {}, which does not exist",
            path.display(),
            target.display()
        ),
        "remove the link, or name the file itself",
    )
}

fn new_file(path: &Path, replace: bool) -> Result<(File, Kind)> {
    let (file, how) = Unnamed::create(path).map_err(|e| open_failure(path, &e))?;
    Ok((file, Kind::New { how, replace }))
}

fn open_device(path: &Path, rdev: u64, size: u64) -> Result<File> {
    in_use::check_device(path, rdev)?;
    let file = open(path, OFlags::EXCL.bits() as i32)?;
    let there = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(io::Error::from)?;
    if there < size {
        return fail(
            Class::Place,
            format!(
                "{} has {there} bytes, and the volume needs {size} ({} more)",
                path.display(),
                text::size(size - there)
            ),
            "name a larger device, or restore to a file; nothing was written",
        );
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::class_of;

    fn options(force: bool, in_place: bool) -> DestOptions {
        DestOptions { force, in_place }
    }

    #[test]
    fn a_new_file_is_sparse_and_appears_when_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let dest = Dest::create(&path, (64 << 20) + 3, DestOptions::default()).unwrap();
        dest.write_at(32 << 20, &[1; 4096]).unwrap();
        dest.write_at(64 << 20, &[2; 4096]).unwrap();
        dest.zero_range(0, 4096).unwrap();
        assert!(!path.exists());
        dest.finish().unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), (64 << 20) + 3);
        assert!(meta.blocks() * 512 < 1 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::write(&path, "old").unwrap();
        assert_eq!(
            class_of(&Dest::create(&path, 9, options(false, false)).unwrap_err()),
            Class::Place
        );
        let dest = Dest::create(&path, 9, options(true, false)).unwrap();
        dest.write_at(0, b"newnewnew").unwrap();
        drop(dest);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(
            class_of(&Dest::create(dir.path(), 9, options(true, false)).unwrap_err()),
            Class::Place
        );
        assert_eq!(
            class_of(&Dest::create(Path::new("/dev/null"), 9, options(true, false)).unwrap_err()),
            Class::Place
        );
        let nowhere = dir.path().join("no/d");
        assert_eq!(
            class_of(&Dest::create(&nowhere, 9, options(true, false)).unwrap_err()),
            Class::Place
        );
    }

    #[test]
    fn a_dangling_link_and_a_name_taken_meanwhile_have_their_words() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("d"), dir.path().join("elsewhere"));
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        for options in [options(false, false), options(true, false), options(false, true)] {
            let error = Dest::create(&path, 9, options).unwrap_err();
            assert_eq!(class_of(&error), Class::Place);
            let text = crate::exit::text_of(&error);
            assert!(text.contains("elsewhere, which does not exist\n  remove the link"), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        let dest = Dest::create(&path, 9, DestOptions::default()).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        let error = dest.finish().unwrap_err();
        assert_eq!(class_of(&error), Class::Place);
        let text = crate::exit::text_of(&error);
        assert!(text.contains("meanwhile\n  it was left as it is"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn in_place_changes_and_cuts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        std::fs::write(&path, vec![7; 20000]).unwrap();
        let dest = Dest::create(&path, 12288, options(false, true)).unwrap();
        let mut was = [0; 4096];
        dest.read_at(4096, &mut was).unwrap();
        assert_eq!(was, [7; 4096]);
        dest.zero_range(4096, 4096).unwrap();
        dest.write_at(8192, &[3; 8192]).unwrap();
        assert_eq!(dest.next_data(0).unwrap().unwrap().0, 0);
        dest.finish().unwrap();
        let all = std::fs::read(&path).unwrap();
        assert_eq!(all, [vec![7; 4096], vec![0; 4096], vec![3; 4096]].concat());
    }

    #[test]
    fn a_full_disk_has_its_own_class() {
        // A file system's largest file stands in for a full one.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let dest = Dest::create(&path, 4096, DestOptions::default()).unwrap();
        let failure = dest.failure("write to", &io::ErrorKind::StorageFull.into());
        assert_eq!(failure.class, Class::NoSpace);
        assert!(failure.hint.unwrap().contains("nothing is left behind"));
        drop(dest);
        assert!(!path.exists());
    }
}
