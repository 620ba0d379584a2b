//! A directory of the file system.

use std::fs;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dir::{Dir, File};

/// A directory of the file system. Files are made readable by their owner only.
#[derive(Debug)]
pub struct DiskDir {
    path: PathBuf,
    handle: fs::File,
    writable: bool,
}

impl DiskDir {
    /// Opens a directory, making it and its parents where needed.
    pub fn create_or_open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Self { path: path.to_owned(), handle: fs::File::open(path)?, writable: true })
    }

    /// Opens a directory that is there, to read only.
    pub fn open(path: &Path) -> io::Result<Self> {
        let handle = fs::File::open(path)?;
        if !handle.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { path: path.to_owned(), handle, writable: false })
    }
}

fn mode() -> fs::OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.read(true).mode(0o600);
    options
}

impl Dir for DiskDir {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let path = self.path.join(name);
        let file = mode().write(self.writable).open(&path)?;
        Ok(DiskFile::open(file, self.writable))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = mode().write(true).create_new(true).open(self.path.join(name))?;
        Ok(DiskFile::open(file, true))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

/// Bytes after which the disk is asked to begin writing them.
const BEGIN: u64 = 4 << 20;

struct DiskFile {
    file: fs::File,
    writable: bool,
    /// How far the disk was asked to begin.
    begun: AtomicU64,
}

impl DiskFile {
    fn open(file: fs::File, writable: bool) -> Arc<dyn File> {
        Arc::new(Self { file, writable, begun: AtomicU64::new(0) })
    }

    /// Lets the disk begin with what was appended, so that a sync has little left to do.
    /// Only advice: what counts is the sync.
    fn begin(&self, offset: u64, end: u64) {
        // What was there before this file was opened is on the disk already.
        let _ = self.begun.compare_exchange(0, offset, Ordering::Relaxed, Ordering::Relaxed);
        let begun = self.begun.load(Ordering::Relaxed);
        if end < begun.saturating_add(BEGIN) {
            return;
        }
        self.begun.store(end, Ordering::Relaxed);
        let advice = rustix::fs::Advice::DontNeed;
        let _ = rustix::fs::fadvise(&self.file, begun, NonZero::new(end - begun), advice);
    }
}

impl File for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.file.write_all_at(buf, offset)?;
        self.begin(offset, offset + buf.len() as u64);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}
