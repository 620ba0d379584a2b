//! A directory in memory that counts how often it is read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_sim::registry::{Memory, Place};
use dormouse_store::{Dir, File};

/// Where a vault lies; clones share the files and the count.
#[derive(Clone, Default)]
pub struct Counted {
    memory: Memory,
    reads: Arc<AtomicU64>,
}

impl Counted {
    /// Reads since the last call.
    pub fn taken(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }

    fn dir(&self, dir: Box<dyn Dir>) -> Box<dyn Dir> {
        Box::new(CountedDir(dir, self.reads.clone()))
    }
}

impl Place for Counted {
    fn segments(&self) -> Box<dyn Dir> {
        self.dir(self.memory.segments())
    }
    fn index(&self) -> Box<dyn Dir> {
        self.dir(self.memory.index())
    }
}

struct CountedDir(Box<dyn Dir>, Arc<AtomicU64>);

struct CountedFile(Arc<dyn File>, Arc<AtomicU64>);

impl CountedDir {
    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(CountedFile(file, self.1.clone()))
    }
}

impl Dir for CountedDir {
    fn list(&self) -> io::Result<Vec<String>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(self.file(self.0.open(name)?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.0.create(name)?))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

impl File for CountedFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}
