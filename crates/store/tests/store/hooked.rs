//! A directory in memory that asks before it writes or syncs.

use std::io;
use std::sync::Arc;

use dormouse_store::memory::MemDir;
use dormouse_store::{Dir, File};

/// What is asked; an error is the operation's outcome, and nothing is done.
pub trait Hook: Send + Sync + 'static {
    /// Before a write to a file.
    fn write(&self) -> io::Result<()> {
        Ok(())
    }
    /// At a sync of a file.
    fn sync(&self) -> io::Result<()>;
    /// At a sync of the directory.
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The directory.
pub struct Hooked<H>(pub MemDir, pub Arc<H>);
struct HookedFile<H>(Arc<dyn File>, Arc<H>);

impl<H: Hook> Hooked<H> {
    fn wrap(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(HookedFile(file, Arc::clone(&self.1)))
    }
}

impl<H: Hook> Dir for Hooked<H> {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.0.open(name)?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.0.create(name)?))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.sync_dir()
    }
}

impl<H: Hook> File for HookedFile<H> {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.1.write()?;
        self.0.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.sync()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}
