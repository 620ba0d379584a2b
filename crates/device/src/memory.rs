//! A disk in memory: for tests, and for trying a peer.

use std::sync::{PoisonError, RwLock};

use crate::{BlockDevice, Error, Extent, Geometry, Result, Write, Zero};

/// Bytes that nobody keeps.
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: RwLock<Vec<u8>>,
    read_only: bool,
}

impl MemoryDevice {
    /// With this content.
    pub const fn new(bytes: Vec<u8>, read_only: bool) -> Self {
        Self { bytes: RwLock::new(bytes), read_only }
    }

    /// All of it as it is now.
    pub fn content(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, at: u64, len: usize, with: impl FnOnce(&mut [u8])) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let range = at as usize..(at as usize).saturating_add(len);
        with(bytes.get_mut(range).ok_or(Error::Range { at, len: len as u64 })?);
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        let size = self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64;
        Geometry { size, block: 4096, read_only: self.read_only }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let len = out.len();
        let range = at as usize..(at as usize).saturating_add(len);
        out.copy_from_slice(bytes.get(range).ok_or(Error::Range { at, len: len as u64 })?);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8], _: Write) -> Result<()> {
        self.change(at, bytes.len(), |to| to.copy_from_slice(bytes))
    }

    fn zero(&self, at: u64, len: u64, _: Zero) -> Result<()> {
        self.change(at, len as usize, |to| to.fill(0))
    }

    fn trim(&self, at: u64, len: u64) -> Result<()> {
        self.zero(at, len, Zero::default())
    }

    /// Blocks of zeros are holes.
    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let end = at + len;
        let all = bytes.get(at as usize..end as usize).ok_or(Error::Range { at, len })?;
        let mut extents: Vec<Extent> = Vec::new();
        for part in all.chunks(4096) {
            let (len, zero) = (part.len() as u64, part.iter().all(|b| *b == 0));
            let full = extents.len() == most;
            match extents.last_mut() {
                Some(last) if last.zero == zero => last.len += len,
                _ if full => break,
                _ => extents.push(Extent { len, hole: zero, zero }),
            }
        }
        Ok(extents)
    }
}
