//! A plain file, or a block device, as a disk: what tests and measurements compare with.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::{BlockDevice, Error, Extent, Geometry, Result, Write, Zero};

/// A file, read and written through the system's cache.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    size: AtomicU64,
    read_only: bool,
    /// A run without holes, as it was found last. Some file systems look at every page to find
    /// the end of one; to take a hole for data does no harm.
    data: Mutex<Range<u64>>,
}

impl FileDevice {
    /// Opens a file or block device; its size is what it has now.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        Self::of(OpenOptions::new().read(true).write(!read_only).open(path)?, read_only)
    }

    /// The same with a file that is open.
    pub fn of(file: File, read_only: bool) -> io::Result<Self> {
        let size = seek(&file, SeekFrom::End(0))?;
        Ok(Self { file, size: AtomicU64::new(size), read_only, data: Mutex::new(0..0) })
    }

    fn writable(&self) -> Result<()> {
        if self.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    fn durable(&self, fua: bool) -> Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }

    fn known(&self) -> MutexGuard<'_, Range<u64>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the run that begins at `at`, or of a part of it, and whether it is a hole.
    fn run(&self, at: u64) -> Result<(u64, bool)> {
        let known = self.known().clone();
        if known.contains(&at) {
            return Ok((known.end, false));
        }
        let data = self.next(at, true)?;
        if data > at {
            return Ok((data, true));
        }
        let end = self.next(at, false)?;
        *self.known() = at..end;
        Ok((end, false))
    }

    /// The first byte from `at` on that is data, or a hole; the end if there is none.
    fn next(&self, at: u64, data: bool) -> Result<u64> {
        let from = if data { SeekFrom::Data(at) } else { SeekFrom::Hole(at) };
        match seek(&self.file, from) {
            Ok(found) => Ok(found),
            Err(Errno::NXIO) => Ok(self.size.load(Ordering::Relaxed)),
            // No holes are known of here, as on a block device.
            Err(Errno::INVAL) => Ok(if data { at } else { self.size.load(Ordering::Relaxed) }),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        let size = self.size.load(Ordering::Relaxed);
        Geometry { size, block: 4096, read_only: self.read_only }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(out, at)?)
    }

    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        self.writable()?;
        self.file.write_all_at(bytes, at)?;
        self.durable(how.fua)
    }

    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        self.writable()?;
        *self.known() = 0..0;
        let kind = if how.keep { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
        match fallocate(&self.file, kind | FallocateFlags::KEEP_SIZE, at, len) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) if how.fast => {
                return Err(Error::Unsupported("zeros are written here byte by byte"));
            }
            Err(Errno::OPNOTSUPP) => {
                let zeros = vec![0; len.min(1 << 20) as usize];
                let mut done = 0;
                while done < len {
                    let part = (len - done).min(zeros.len() as u64);
                    self.file.write_all_at(&zeros[..part as usize], at + done)?;
                    done += part;
                }
            }
            Err(e) => return Err(io::Error::from(e).into()),
        }
        self.durable(how.fua)
    }

    fn trim(&self, at: u64, len: u64) -> Result<()> {
        self.writable()?;
        *self.known() = 0..0;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, how, at, len) {
            // To keep it all is allowed.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        let end = at + len;
        let (mut extents, mut from) = (Vec::new(), at);
        while from < end && extents.len() < most {
            let (until, hole) = self.run(from)?;
            let until = until.min(end);
            extents.push(Extent { len: until - from, hole, zero: hole });
            from = until;
        }
        Ok(extents)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.writable()?;
        *self.known() = 0..0;
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_and_tells_holes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = FileDevice::open(file.path(), false).unwrap();
        disk.write(65_536, &[7; 131_072], Write { fua: true }).unwrap();
        disk.zero(65_536, 65_536, Zero::default()).unwrap();
        let mut out = [1; 4096];
        disk.read(126_976, &mut out).unwrap();
        assert_eq!(out, [0; 4096]);
        disk.read(131_072, &mut out).unwrap();
        assert_eq!(out, [7; 4096]);
        let extents = disk.extents(0, 1 << 20, 10).unwrap();
        let lens: Vec<_> = extents.iter().map(|e| (e.len, e.hole)).collect();
        assert_eq!(lens, [(131_072, true), (65_536, false), ((1 << 20) - 196_608, true)]);
        assert_eq!(disk.extents(0, 1 << 20, 1).unwrap().len(), 1);
        assert!(matches!(
            FileDevice::open(file.path(), true).unwrap().write(0, &[1], Write::default()),
            Err(Error::ReadOnly)
        ));
        disk.resize(4096).unwrap();
        assert_eq!(disk.geometry().size, 4096);
    }
}
