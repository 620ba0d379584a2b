//! The log of segments: names, locations, and reading by location.
//!
//! Owns: which file holds which bytes. Invariant: nothing read here is returned
//! before its checks hold. Appending is in [`append`], walking in [`walk`], and
//! what a crash left is judged in [`recover`].

pub(crate) mod append;
pub(crate) mod recover;
pub(crate) mod walk;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dormouse_crypt::record;
use dormouse_format::record::{HEADER_LEN, Header};
use dormouse_format::seeded::seeded;

use crate::dir::{Dir, File};
use crate::error::{Error, Result};
use crate::locks::lock;

/// Open files kept at most.
const OPEN_MAX: usize = 128;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordRef {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) body_len: u32,
}

impl RecordRef {
    /// Number of the segment.
    pub const fn segment(&self) -> u64 {
        self.segment as u64
    }

    /// Where the record begins in it.
    pub const fn offset(&self) -> u64 {
        self.offset as u64
    }

    /// Bytes of the whole record.
    pub const fn record_len(&self) -> usize {
        HEADER_LEN + self.body_len as usize
    }

    pub(crate) fn damaged(&self, why: impl Into<String>) -> Error {
        Error::damaged(self.segment(), self.offset(), why)
    }
}

/// Name of a segment's file.
pub(crate) fn name(number: u64) -> String {
    format!("{number:016}.seg")
}

/// Number of the segment with this file name; `None` if it is not one.
pub(crate) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let fits = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit());
    if fits { digits.parse().ok() } else { None }
}

/// The numbers of all segments in a directory, ascending.
pub(crate) fn numbers(dir: &dyn Dir) -> Result<Vec<u64>> {
    let names = dir.list().map_err(|e| Error::io("listing the segments", e))?;
    let mut numbers: Vec<_> = names.iter().filter_map(|n| number(n)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a range that must be there.
pub(crate) fn read_range(file: &dyn File, number: u64, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    file.read_at(&mut buf, at).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::damaged(number, at, "the file ends before these bytes")
        }
        _ => Error::io(format!("reading {}", name(number)), e),
    })?;
    Ok(buf)
}

/// The segments' files, opened when first read.
pub(crate) struct Segments {
    pub(crate) dir: Arc<dyn Dir>,
    open: Mutex<HashMap<u64, Arc<dyn File>>>,
}

impl Segments {
    pub(crate) fn new(dir: Arc<dyn Dir>) -> Self {
        Self { dir, open: Mutex::default() }
    }

    pub(crate) fn remember(&self, number: u64, file: Arc<dyn File>) {
        let mut open = lock(&self.open);
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(number, file);
    }

    pub(crate) fn forget(&self, number: u64) {
        lock(&self.open).remove(&number);
    }

    pub(crate) fn file(&self, number: u64) -> Result<Arc<dyn File>> {
        if let Some(file) = lock(&self.open).get(&number) {
            return Ok(Arc::clone(file));
        }
        let name = name(number);
        let file = self.dir.open(&name).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::damaged(number, 0, "the segment is missing; restore it from a copy")
            }
            _ => Error::io(format!("opening {name}"), e),
        })?;
        self.remember(number, Arc::clone(&file));
        Ok(file)
    }

    /// A record's bytes, checked wholly.
    pub(crate) fn record(&self, at: &RecordRef) -> Result<(Header, Vec<u8>)> {
        let file = self.file(at.segment())?;
        let bytes = read_range(&*file, at.segment(), at.offset(), at.record_len())?;
        let checked = match seeded("record-unchecked") {
            false => record::check(&bytes),
            true => Ok(dormouse_format::record::split(&bytes)?),
        };
        match checked {
            Ok((header, _)) => Ok((header, bytes)),
            Err(e) => Err(at.damaged(format!("{e}; run scrub to see what it touches"))),
        }
    }

    /// A record's header, checked.
    pub(crate) fn header(&self, at: &RecordRef) -> Result<Header> {
        let file = self.file(at.segment())?;
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&read_range(&*file, at.segment(), at.offset(), HEADER_LEN)?);
        record::check_header(&bytes).map_err(|e| at.damaged(e.to_string()))
    }
}
