//! A directory in memory, for tests and the simulator.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, RwLock};

use crate::dir::{Dir, File};
use crate::locks::{lock, read, write};

/// A directory in memory. Clones share the same files.
#[derive(Debug, Clone, Default)]
pub struct MemDir(Arc<Mutex<BTreeMap<String, MemFile>>>);

#[derive(Debug, Clone, Default)]
struct MemFile(Arc<RwLock<Vec<u8>>>);

impl MemDir {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of all files as they are now, which changes of this one do not reach.
    pub fn snapshot(&self) -> Self {
        let files = lock(&self.0);
        let copy = |(name, file): (&String, &MemFile)| {
            (name.clone(), MemFile(Arc::new(RwLock::new(read(&file.0).clone()))))
        };
        Self(Arc::new(Mutex::new(files.iter().map(copy).collect())))
    }

    /// A file's bytes.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        lock(&self.0).get(name).map(|f| read(&f.0).clone())
    }

    /// Sets a file's bytes.
    pub fn set(&self, name: &str, bytes: Vec<u8>) {
        lock(&self.0).insert(name.to_owned(), MemFile(Arc::new(RwLock::new(bytes))));
    }
}

fn absent(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Dir for MemDir {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.0).keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = lock(&self.0).get(name).cloned().ok_or_else(|| absent(name))?;
        Ok(Arc::new(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut files = lock(&self.0);
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = MemFile::default();
        files.insert(name.to_owned(), file.clone());
        Ok(Arc::new(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        lock(&self.0).remove(name).map(drop).ok_or_else(|| absent(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = lock(&self.0);
        let file = files.remove(from).ok_or_else(|| absent(from))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl File for MemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(read(&self.0).len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = read(&self.0);
        let at = offset as usize;
        let source = at.checked_add(buf.len()).and_then(|end| bytes.get(at..end));
        buf.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = write(&self.0);
        let at = offset as usize;
        let end = at + buf.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(buf);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        write(&self.0).resize(len as usize, 0);
        Ok(())
    }
}
