//! The log of segments: names, locations, and reading by location.
//!
//! Owns: which file holds which bytes. Invariant: nothing read here is returned
//! before its checks hold; what lay in a retired segment is [`Error::Moved`]. Appending is in
//! [`append`], walking in [`walk`], the chain over gaps in [`gaps`], and what a crash
//! left is judged in [`recover`].

pub(crate) mod append;
pub(crate) mod gaps;
pub(crate) mod recover;
pub(crate) mod walk;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use dormouse_crypt::record;
use dormouse_format::VaultId;
use dormouse_format::record::{HEADER_LEN, Header};
use dormouse_format::seeded::seeded;

use crate::dir::{Dir, File};
use crate::error::{Error, Result};
use crate::locks::{lock, read, write};
use gaps::Retirees;

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
    retired: RwLock<Retirees>,
}

impl Segments {
    pub(crate) fn new(dir: Arc<dyn Dir>) -> Self {
        Self { dir, open: Mutex::default(), retired: RwLock::default() }
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

    /// From now on these segments are no longer here, whether their files are or not.
    pub(crate) fn retire(&self, segments: &Retirees) {
        write(&self.retired).extend(segments);
        segments.keys().for_each(|number| self.forget(*number));
    }

    pub(crate) fn is_retired(&self, number: u64) -> bool {
        read(&self.retired).contains_key(&number)
    }

    pub(crate) fn retired_count(&self) -> u64 {
        read(&self.retired).len() as u64
    }

    /// The numbers of all segments that are here, ascending.
    pub(crate) fn present(&self) -> Result<Vec<u64>> {
        let mut numbers = numbers(&*self.dir)?;
        let retired = read(&self.retired);
        numbers.retain(|number| !retired.contains_key(number));
        Ok(numbers)
    }

    /// The chain value at the end of a sealed or retired segment; zero for number 0.
    pub(crate) fn chain_after(&self, number: u64, vault: &VaultId) -> Result<[u8; 16]> {
        if number == 0 {
            return Ok([0; 16]);
        }
        let gone = read(&self.retired).get(&number).map(|r| r.chain);
        match gone {
            Some(chain) => Ok(chain),
            None => Ok(walk::sealed(&*self.file(number)?, number, vault)?.chain),
        }
    }

    pub(crate) fn file(&self, number: u64) -> Result<Arc<dyn File>> {
        if self.is_retired(number) {
            return Err(Error::Moved);
        }
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
        if self.is_retired(number) {
            // Retired in between: nobody needs the file to stay open.
            self.forget(number);
        }
        Ok(file)
    }

    /// A record's bytes, checked wholly.
    pub(crate) fn record(&self, at: &RecordRef) -> Result<(Header, Vec<u8>)> {
        self.unmoved(at, self.record_here(at))
    }

    /// What cannot be read because its segment was retired meanwhile was moved.
    fn unmoved<T>(&self, at: &RecordRef, read: Result<T>) -> Result<T> {
        if read.is_err() && self.is_retired(at.segment()) { Err(Error::Moved) } else { read }
    }

    fn record_here(&self, at: &RecordRef) -> Result<(Header, Vec<u8>)> {
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
        self.unmoved(at, self.header_here(at))
    }

    fn header_here(&self, at: &RecordRef) -> Result<Header> {
        let file = self.file(at.segment())?;
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&read_range(&*file, at.segment(), at.offset(), HEADER_LEN)?);
        record::check_header(&bytes).map_err(|e| at.damaged(e.to_string()))
    }
}
