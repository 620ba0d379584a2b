//! One file of the log, and how many blocks have their newest content in it.
//!
//! Invariant: a file that is complete and in which nothing counts any more never counts again.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file. Who reads from it keeps it, also when its name is gone.
#[derive(Debug)]
pub(super) struct LogFile {
    pub number: u64,
    pub path: PathBuf,
    pub file: File,
    /// Changed and read under the log's lock alone.
    live: AtomicU64,
}

impl LogFile {
    pub(super) const fn new(number: u64, path: PathBuf, file: File) -> Self {
        Self { number, path, file, live: AtomicU64::new(0) }
    }

    /// The newest content of so many more blocks lies in it.
    pub(super) fn gains(&self, blocks: u64) {
        self.live.fetch_add(blocks, Ordering::Relaxed);
    }

    /// So many blocks of it were written again, or zeroed, elsewhere or here.
    pub(super) fn loses(&self, blocks: u64) {
        self.live.fetch_sub(blocks, Ordering::Relaxed);
    }

    /// Blocks whose newest content lies in it.
    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
}
