//! A map of the kernel as memory of this process.
//!
//! Invariant: the memory stays mapped, whole and writable, as long as the value lives; it is
//! used by atomic operations only, as the programs in the kernel use it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// So many words of 64 bits, shared with the kernel.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: *mut AtomicU64,
    words: usize,
}

#[allow(unsafe_code, reason = "the memory is shared with the kernel, and only used atomically")]
// SAFETY: it is only given out as `&[AtomicU64]`, which may be shared and sent.
unsafe impl Send for Mapped {}

#[allow(unsafe_code, reason = "the memory is shared with the kernel, and only used atomically")]
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first words of an array.
    pub(crate) fn new(fd: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        #[allow(unsafe_code, reason = "mapping memory")]
        // SAFETY: the address is chosen by the kernel, so no memory of Rust's is replaced; the
        // kernel refuses a length that the map does not have.
        let start = unsafe { mmap(std::ptr::null_mut(), words * 8, protection, flags, fd, 0) }?;
        Ok(Self { start: start.cast(), words })
    }

    /// The memory.
    pub(crate) const fn words(&self) -> &[AtomicU64] {
        #[allow(unsafe_code, reason = "a view of mapped memory")]
        // SAFETY: `start` is aligned to a page and mapped for `words` words until `drop`; the
        // kernel changes them by atomic operations only, as AtomicU64 expects.
        unsafe {
            std::slice::from_raw_parts(self.start, self.words)
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "the other end of mmap")]
        // SAFETY: mapped in `new` with this length; no reference outlives `self`.
        let _ = unsafe { munmap(self.start.cast(), self.words * 8) };
    }
}
