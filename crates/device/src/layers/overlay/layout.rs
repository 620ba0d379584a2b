//! The file of an overlay: what is where in it, and its first block.
//!
//! ```text
//! offset  size  field
//!      0     8  "DORMOVL1"
//!      8     4  bytes of a block, 4096
//!     12     8  bytes of the disk
//!     20     4  bytes of the identity
//!     24     …  identity: what the overlay lies over
//!   4088     8  sum of the 4088 bytes before
//!   4096     …  bitmap, a bit for each block from the lowest bit of the first byte on, padded
//!               with zeros to whole blocks
//!      …     …  content, each block at its own place
//! ```
//!
//! Integers are little-endian; what is not named is zero.

use crate::{BlockDevice, Error, Result};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Largest disk: its bitmap takes 4 GiB of memory.
const SIZE_MAX: u64 = 128 << 40;
const MAGIC: &[u8; 8] = b"DORMOVL1";
const IDENTITY_AT: usize = 24;
const IDENTITY_MAX: usize = 2048;
const SUM_AT: usize = 4088;

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the disk.
    pub size: u64,
    /// What lies below.
    pub identity: String,
    /// Where the content begins.
    pub data_at: u64,
}

/// FNV-1a: finds a damaged block, and proves nothing against an attacker.
fn sum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn damaged<T>(text: &str) -> Result<T> {
    Err(Error::Damaged(text.to_owned()))
}

impl Layout {
    /// For a disk of this size.
    pub fn new(size: u64, identity: &str) -> Result<Self> {
        if size > SIZE_MAX {
            return Err(Error::Unsupported("overlays of disks over 128 TiB"));
        }
        if identity.len() > IDENTITY_MAX {
            return Err(Error::Unsupported("an overlay's identity of over 2048 bytes"));
        }
        let bitmap = size.div_ceil(BLOCK * 8).next_multiple_of(BLOCK);
        Ok(Self { size, identity: identity.to_owned(), data_at: BLOCK + bitmap })
    }

    /// Where the bitmap is.
    pub const fn bitmap_at(&self) -> u64 {
        BLOCK
    }

    /// Its bytes.
    pub const fn bitmap_size(&self) -> u64 {
        self.data_at - BLOCK
    }

    /// Bytes of the whole file.
    pub const fn file_size(&self) -> u64 {
        self.data_at + self.size
    }

    /// The first block.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&(self.identity.len() as u32).to_le_bytes());
        out.extend_from_slice(self.identity.as_bytes());
        out.resize(SUM_AT, 0);
        out.extend_from_slice(&sum(&out).to_le_bytes());
        out
    }

    /// Of a file.
    pub fn read(file: &dyn BlockDevice) -> Result<Self> {
        let mut block = [0; BLOCK as usize];
        if file.geometry().size < BLOCK {
            return damaged("it is no overlay: too short");
        }
        file.read(0, &mut block)?;
        let found = Self::decode(&block)?;
        if file.geometry().size < found.file_size() {
            return damaged("it is cut short");
        }
        Ok(found)
    }

    /// Reads the first block.
    pub fn decode(block: &[u8; BLOCK as usize]) -> Result<Self> {
        if block.iter().all(|b| *b == 0) {
            return damaged("it was never finished; remove it");
        }
        if !block.starts_with(MAGIC) {
            return damaged("it is no overlay");
        }
        let (body, check) = block.split_at(SUM_AT);
        if sum(body).to_le_bytes() != check {
            return damaged("its first block is damaged");
        }
        let field = |at: usize| body.get(at..at + 4).and_then(|b| b.try_into().ok());
        let number = |at| field(at).map_or(0, u32::from_le_bytes);
        let size = u64::from(number(12)) | u64::from(number(16)) << 32;
        let identity = body.get(IDENTITY_AT..IDENTITY_AT + number(20) as usize);
        match identity.map(core::str::from_utf8) {
            Some(Ok(identity)) if u64::from(number(8)) == BLOCK => Self::new(size, identity),
            _ => damaged("its first block has values that are not known"),
        }
    }

    /// An error if this lies over something else.
    pub fn expect(&self, size: u64, identity: &str) -> Result<()> {
        if self.identity != identity || self.size != size {
            let text = format!(
                "it was made over {} ({} bytes), not over {identity} ({size} bytes)",
                self.identity, self.size
            );
            return Err(Error::Damaged(text));
        }
        Ok(())
    }

    /// The words of the bitmap of a file; holes are not read.
    pub fn bitmap(&self, file: &dyn BlockDevice) -> Result<Vec<u64>> {
        let mut words = vec![0; self.bitmap_size() as usize / 8];
        let (mut at, end) = (0, self.bitmap_size());
        while at < end {
            let len = (end - at).min(1 << 20);
            let extents = file.extents(self.bitmap_at() + at, len, 1)?;
            let Some(extent) = extents.first().filter(|e| e.len > 0) else {
                return damaged("its bitmap cannot be read");
            };
            // Whole words.
            let len = extent.len.min(len).next_multiple_of(8);
            if !extent.zero {
                let mut bytes = vec![0; len as usize];
                file.read(self.bitmap_at() + at, &mut bytes)?;
                let read =
                    bytes.chunks_exact(8).map(|w| w.try_into().map_or(0, u64::from_le_bytes));
                let to = words.iter_mut().skip(at as usize / 8);
                to.zip(read).for_each(|(word, read)| *word = read);
            }
            at += len;
        }
        Ok(words)
    }
}
