//! Memory of a queue that is shared with the kernel: descriptions of requests, and their bytes.
//!
//! Invariant: a tag's bytes are used by one thread at a time: the one that does the request that
//! the tag has, and the kernel before and after it. The exception is a queue that refuses: then
//! nobody looks at bytes any more.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::abi::{DESCRIPTION, Description};

/// A part of memory; given back when dropped.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

#[allow(unsafe_code, reason = "memory that no thread owns; see what uses it")]
// SAFETY: it is only an address and a length; what lies there is used through the types below.
unsafe impl Send for Mapping {}
#[allow(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(at: *mut core::ffi::c_void, len: usize) -> io::Result<Self> {
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "the other half of mmap")]
        // SAFETY: made by mmap with this length; nothing borrows from it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// What the kernel writes about the requests of a queue.
pub struct Descriptions {
    map: Mapping,
    depth: u16,
}

impl Descriptions {
    /// Those of the first queue.
    pub fn map(device: &File, depth: u16) -> io::Result<Self> {
        let len = usize::from(depth) * DESCRIPTION;
        #[allow(unsafe_code, reason = "mmap has no safe form")]
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, device, 0) }?;
        Ok(Self { map: Mapping::new(at, len)?, depth })
    }

    /// Of a tag that the kernel has handed over.
    pub fn of(&self, tag: u16) -> Description {
        let tag = tag.min(self.depth - 1);
        #[allow(unsafe_code, reason = "the kernel writes there")]
        // SAFETY: within the mapping; volatile, since the kernel has written since the last time.
        let bytes: [u8; DESCRIPTION] = unsafe {
            let at = self.map.at.as_ptr().add(usize::from(tag) * DESCRIPTION);
            at.cast::<[u8; DESCRIPTION]>().read_volatile()
        };
        Description::read(&bytes)
    }
}

/// A buffer for each tag. Pages that are never used cost nothing.
pub struct Buffers {
    map: Mapping,
    each: usize,
    depth: u16,
}

impl Buffers {
    /// For so many tags, of so many bytes each.
    pub fn new(depth: u16, each: usize) -> io::Result<Self> {
        let len = usize::from(depth) * each;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        #[allow(unsafe_code, reason = "mmap has no safe form")]
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { mmap_anonymous(null_mut(), len, access, flags) }?;
        Ok(Self { map: Mapping::new(at, len)?, each, depth })
    }

    /// Bytes of each.
    pub const fn each(&self) -> usize {
        self.each
    }

    fn start(&self, tag: u16) -> *mut u8 {
        let tag = usize::from(tag.min(self.depth - 1));
        self.map.at.as_ptr().wrapping_add(tag * self.each)
    }

    /// Where the kernel finds a tag's bytes.
    pub fn address(&self, tag: u16) -> u64 {
        self.start(tag) as u64
    }

    /// The bytes of the request that a tag has; only for who does this request.
    pub fn of(&self, tag: u16, len: usize) -> Bytes<'_> {
        let len = len.min(self.each);
        #[allow(unsafe_code, reason = "each tag has its own part of one mapping")]
        // SAFETY: within the mapping, which lives as long as the borrow; by the module's
        // invariant no other thread uses this part meanwhile.
        Bytes(unsafe { std::slice::from_raw_parts_mut(self.start(tag), len) })
    }
}

/// The bytes of a request.
pub struct Bytes<'a>(&'a mut [u8]);

impl Deref for Bytes<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl DerefMut for Bytes<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0
    }
}
