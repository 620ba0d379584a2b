//! The storage that the store stands on: a flat directory of files.
//!
//! Two traits, wide open, so that disks, memory, the simulator and failing
//! wrappers look the same to the store.

use std::io;
use std::sync::Arc;

/// A flat directory of files.
pub trait Dir: Send + Sync {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file that is there; `NotFound` if it is not.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Makes an empty file; `AlreadyExists` if it is there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file; what had the new name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes create, remove and rename durable.
    fn sync(&self) -> io::Result<()>;
}

/// An open file. Used from many threads at once.
#[expect(clippy::len_without_is_empty, reason = "the length may fail, and emptiness is not asked")]
pub trait File: Send + Sync {
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file's content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
}
