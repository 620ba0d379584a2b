//! What is asked of object storage: four verbs, blocking.
//!
//! Invariant: an object is whole or not there, and is never overwritten: the only way to
//! make one is create-if-absent. Names are below a prefix that the implementation knows.
//! Everything else stands on this trait, so tests can put faults in between.

use std::ops::Range;

use bytes::Bytes;

use crate::error::Result;

/// What a create-if-absent came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is there now, and was not before.
    Made,
    /// There was one of this name already; nothing was changed.
    Taken,
}

/// An object, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Name below the prefix.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// Object storage. Used from many threads at once.
pub trait Objects: Send + Sync {
    /// Makes an object, unless there is one of this name. After an error it may be there or not.
    fn put_new(&self, name: &str, bytes: Bytes) -> Result<Put>;
    /// Reads an object, or a range that lies within it; `None` if it is not there.
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>>;
    /// All objects below a name that ends like a directory, without the final '/'.
    fn list(&self, below: &str) -> Result<Vec<Item>>;
    /// Removes an object; fine if it is not there.
    fn delete(&self, name: &str) -> Result<()>;
}
