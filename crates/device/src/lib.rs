//! A disk as the program sees it, layers around one, and front ends that give one away.
//!
//! Owns: [`BlockDevice`], what wraps one, and how a kernel or another program gets one.
//! Invariant: a front end checks every range and flag before it asks a device, so a device
//! sees requests within its size only. Leaves to others: where the bytes come from (the
//! program), and what they are believed by (`dormouse-sync`).

mod error;
pub mod file;
pub mod fuse;
pub mod kernel;
pub mod kernel_nbd;
pub mod layers;
pub mod memory;
pub mod nbd;
pub mod ublk;
pub mod write_log;

pub use error::{Error, Result};

use std::sync::Arc;

/// What a disk is like. It may change while the disk is in use: the size, when it is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes; a multiple of 512 where a kernel is to use it.
    pub size: u64,
    /// The unit that costs least, in bytes: a power of two, from 512 to 64 KiB.
    pub block: u32,
    /// Whether every write is refused.
    pub read_only: bool,
}

/// Which promises a write makes when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Write {
    /// Force unit access: these bytes are as durable as after a flush.
    pub fua: bool,
}

/// How bytes become zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Zero {
    /// As in [`Write::fua`].
    pub fua: bool,
    /// Space must stay allocated: no hole may come of it.
    pub keep: bool,
    /// Refuse with [`Error::Unsupported`] what is no faster than writing zeros.
    pub fast: bool,
}

/// A part of a disk, as it is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// Nothing is stored for it.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

/// A part of a disk, compared with how it was at an older point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Bytes.
    pub len: u64,
    /// Whether something in it may differ.
    pub changed: bool,
}

/// What changed on a disk since some point.
pub trait Changes: Send + Sync {
    /// Parts that begin at `at`, at most `most` of them, and at least one; they cover no more
    /// than `len` bytes.
    fn parts(&self, at: u64, len: u64, most: usize) -> Result<Vec<Change>>;
}

/// A disk of bytes. Used by many threads at once; each call returns when it is done.
///
/// Ranges lie within [`Geometry::size`] and are not empty; they need not be aligned. Two
/// requests that overlap and run at the same time may take effect in either order.
///
/// After [`BlockDevice::flush`] returns, all that returned before it began is durable, from
/// whichever thread or connection it came.
pub trait BlockDevice: Send + Sync {
    /// What it is like now.
    fn geometry(&self) -> Geometry;

    /// Reads `out.len()` bytes from byte `at` on.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()>;

    /// Whether [`BlockDevice::read`] of this range would not wait for a network: then a front
    /// end may call it in the thread that takes requests. Only a hint.
    fn ready(&self, at: u64, len: u64) -> bool {
        let _ = (at, len);
        true
    }

    /// Whether [`BlockDevice::write`] of this range would not wait for a network: as
    /// [`BlockDevice::ready`]. One that ends within a block may have to read first.
    fn write_ready(&self, at: u64, len: u64) -> bool {
        self.ready(at, len)
    }

    /// Whether writes wait for each other anyway, and cost little: then another thread for them gains
    /// nothing.
    fn writes_in_turn(&self) -> bool {
        false
    }

    /// Reads ahead, without waiting for it. Only a hint.
    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        let _ = (at, len);
        Ok(())
    }

    /// Writes.
    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        let _ = (at, bytes, how);
        Err(Error::ReadOnly)
    }

    /// Writes parts one after the other. After an error any of them may have been written.
    fn write_each(&self, parts: &[(u64, &[u8])]) -> Result<()> {
        parts.iter().try_for_each(|(at, bytes)| self.write(*at, bytes, Write::default()))
    }

    /// Makes bytes zero.
    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        let _ = (at, len, how);
        Err(Error::ReadOnly)
    }

    /// The content of these bytes is not needed any more. What is read there afterwards is what
    /// was there, or zeros.
    fn trim(&self, at: u64, len: u64) -> Result<()> {
        let _ = (at, len);
        Err(Error::ReadOnly)
    }

    /// Makes what was written durable.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// How bytes from `at` on are allocated: at most `most` extents, at least one; together no
    /// more than `len` bytes. Two neighbours may be alike.
    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        let _ = (at, most);
        Ok(vec![Extent { len, hole: false, zero: false }])
    }

    /// What changed since a point of the same history, as the user names it.
    fn changes_since(&self, point: &str) -> Result<Arc<dyn Changes>> {
        let _ = point;
        Err(Error::Unsupported("it has no history"))
    }

    /// Changes the size.
    fn resize(&self, size: u64) -> Result<()> {
        let _ = size;
        Err(Error::Unsupported("its size cannot be changed"))
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        (**self).read(at, out)
    }
    fn ready(&self, at: u64, len: u64) -> bool {
        (**self).ready(at, len)
    }
    fn write_ready(&self, at: u64, len: u64) -> bool {
        (**self).write_ready(at, len)
    }
    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        (**self).prefetch(at, len)
    }
    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        (**self).write(at, bytes, how)
    }
    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        (**self).zero(at, len, how)
    }
    fn trim(&self, at: u64, len: u64) -> Result<()> {
        (**self).trim(at, len)
    }
    fn flush(&self) -> Result<()> {
        (**self).flush()
    }
    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        (**self).extents(at, len, most)
    }
    fn changes_since(&self, point: &str) -> Result<Arc<dyn Changes>> {
        (**self).changes_since(point)
    }
    fn resize(&self, size: u64) -> Result<()> {
        (**self).resize(size)
    }
}
