//! The source of a copy: a file or a block device, read and never written.
//!
//! Owns: how it is opened, its size, its holes, and the proof that it stood still.
//! Invariant: 'settled' is claimed only with a proof: a device that nobody else can
//! write, or a file whose times cannot have missed a write. Leaves to others: what
//! is done with the bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use dormouse_format::limits::{BLOCK_SIZE, VOLUME_SIZE_MAX};
use dormouse_format::point::Grade;
use rustix::fs::{OFlags, SeekFrom};

use crate::exit::{Class, Failure, fail};

/// What buffers of direct reads are aligned to.
pub const ALIGN: usize = 4096;
/// The coarsest clock of a file system's times, with room.
const TICK: Duration = Duration::from_millis(50);

/// Bytes whose first lies at a multiple of 4096 in memory.
#[derive(Debug)]
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of zeros.
    pub fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { bytes, start, len }
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Whether the source provably stood still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It did, and why.
    Settled(&'static str),
    /// It did not, or that cannot be proved, and why.
    Fuzzy(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

#[derive(Debug)]
enum Kind {
    File(Stamp),
    Device { exclusive: bool, read_only: bool },
}

/// An open source.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    size: u64,
    kind: Kind,
}

impl Source {
    /// Opens a file or a block device; the latter exclusively, if nobody else uses it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, true)
    }

    /// Opens a file or a block device that others may go on using, and begin to use.
    pub fn open_shared(path: &Path) -> Result<Self> {
        Self::open_as(path, false)
    }

    fn open_as(path: &Path, alone: bool) -> Result<Self> {
        let shown = path.display();
        let meta = std::fs::metadata(path).map_err(|e| open_failure(path, &e))?;
        let kind = meta.file_type();
        let (file, kind) = if kind.is_block_device() {
            open_device(path, meta.rdev(), alone)?
        } else if kind.is_file() {
            let file = File::open(path).map_err(|e| open_failure(path, &e))?;
            let stamp = still(&file).with_context(|| format!("cannot read {shown}"))?;
            (file, Kind::File(stamp))
        } else {
            return fail(
                Class::Place,
                format!("{shown} is neither a file nor a block device"),
                "name an image file, or a device such as /dev/sda",
            );
        };
        let size = match &kind {
            Kind::File(stamp) => stamp.size,
            Kind::Device { .. } => rustix::fs::seek(&file, SeekFrom::End(0))
                .map_err(io::Error::from)
                .with_context(|| format!("cannot tell the size of {shown}"))?,
        };
        if size > VOLUME_SIZE_MAX {
            return fail(
                Class::Place,
                format!("{shown} is larger than the largest volume (1 EiB)"),
                "copy parts of it",
            );
        }
        Ok(Self { path: path.to_owned(), file, size, kind })
    }

    /// Its size in bytes when it was opened.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// As it is open.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `out` from `offset`; what lies behind the end is zero. For a device,
    /// `offset` is a multiple of 4096 and `out` is an [`AlignedBuf`], or a part of one
    /// at such multiples. May be called from many threads.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.try_read(offset, out).map_err(|e| self.told(&e))
    }

    /// The same, with what the system said.
    pub fn try_read(&self, offset: u64, out: &mut [u8]) -> std::result::Result<(), Unread> {
        let left = self.size.saturating_sub(offset);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        out[want..].fill(0);
        // A direct read asks for whole blocks, and gets less at the end.
        let ask = match self.kind {
            Kind::Device { .. } => want.next_multiple_of(BLOCK_SIZE).min(out.len()),
            Kind::File(_) => want,
        };
        let mut done = 0;
        while done < want {
            match self.file.read_at(&mut out[done..ask], offset + done as u64) {
                Ok(0) => return Err(Unread { at: offset + done as u64, why: None }),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Unread { at: offset + done as u64, why: Some(e) }),
            }
        }
        out[want..].fill(0);
        Ok(())
    }

    /// An error of [`Self::try_read`], for people.
    pub fn told(&self, error: &Unread) -> anyhow::Error {
        match &error.why {
            Some(why) => self.read_failure(error.at, why).into(),
            None => self.shrank(error.at),
        }
    }

    fn shrank(&self, at: u64) -> anyhow::Error {
        let message = format!(
            "{} shrank while it was read: it ends at byte {at}, and had {} bytes",
            self.path.display(),
            self.size
        );
        Failure::new(Class::Place, message)
            .hint("the last point is whole; copy again when the source does not change its size")
            .into()
    }

    fn read_failure(&self, at: u64, error: &io::Error) -> Failure {
        let message = format!("cannot read {} at byte {at}: {error}", self.path.display());
        Failure::new(Class::Place, message).hint(
            "the last point is whole; if the disk fails, copy it with ddrescue to an image first",
        )
    }

    /// The ranges that may hold data, in order; holes are left out. Ends are rounded
    /// outward to whole blocks, but not beyond the size.
    pub fn data_ranges(&self) -> DataRanges<'_> {
        DataRanges { source: self, at: 0 }
    }

    /// The first range from `from` on that may hold data.
    pub fn next_range(&self, from: u64) -> Result<Option<(u64, u64)>> {
        if from >= self.size {
            return Ok(None);
        }
        if matches!(self.kind, Kind::Device { .. }) {
            return Ok(Some((from, self.size)));
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start.min(self.size),
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            // A file system that knows no holes.
            Err(rustix::io::Errno::INVAL) => return Ok(Some((from, self.size))),
            Err(e) => return Err(self.read_failure(from, &e.into()).into()),
        };
        let end = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(self.size),
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(e) => return Err(self.read_failure(start, &e.into()).into()),
        };
        let block = BLOCK_SIZE as u64;
        let start = (start - start % block).max(from);
        let end = end.next_multiple_of(block).min(self.size);
        Ok((start < end).then_some((start, end)))
    }

    /// Whether the source provably stood still since it was opened. An error if it
    /// vanished or shrank.
    pub fn unchanged(&self) -> Result<Proof> {
        let before = match &self.kind {
            Kind::Device { exclusive: true, .. } => {
                return Ok(Proof::Settled("the device was held exclusively"));
            }
            Kind::Device { read_only: true, .. } => {
                return Ok(Proof::Settled("the device is read-only"));
            }
            Kind::Device { .. } => {
                return Ok(Proof::Fuzzy("the device is in use and can be written".into()));
            }
            Kind::File(before) => before,
        };
        // Pages that are mapped and dirty must show in the times.
        let _ = rustix::fs::fsync(&self.file);
        let after =
            stamp(&self.file).with_context(|| format!("cannot look at {}", self.path.display()))?;
        if after.size < before.size {
            return Err(self.shrank(after.size));
        }
        let same_name = std::fs::metadata(&self.path)
            .is_ok_and(|m| (m.dev(), m.ino()) == (before.device, before.inode));
        // First, because losing its name changes a file's ctime too.
        if !same_name {
            return Ok(Proof::Fuzzy("the file was replaced or removed while it was read".into()));
        }
        if after != *before {
            return Ok(Proof::Fuzzy("the file was written while it was read".into()));
        }
        Ok(Proof::Settled("the file did not change while it was read"))
    }
}

impl Source {
    /// The grade that the source has earned since it was opened.
    pub fn grade(&self) -> Result<Grade> {
        Ok(match self.unchanged()? {
            Proof::Settled(_) => Grade::Settled,
            Proof::Fuzzy(_) => Grade::Fuzzy,
        })
    }

    /// Why it has earned no better grade.
    pub fn why_fuzzy(&self) -> String {
        match self.unchanged() {
            Ok(Proof::Fuzzy(why)) => why,
            Ok(Proof::Settled(_)) => "it changed while it was read".into(),
            Err(error) => error.to_string(),
        }
    }
}

/// A read that failed.
#[derive(Debug)]
pub struct Unread {
    /// Where, in bytes.
    at: u64,
    /// Why; nothing if the source ends there.
    why: Option<io::Error>,
}

impl Unread {
    /// Whether the disk is there and does not give this place: it may give others.
    pub fn is_local(&self) -> bool {
        use rustix::io::Errno;
        let errno = self.why.as_ref().and_then(io::Error::raw_os_error);
        let errno = errno.map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::IO | Errno::NODATA | Errno::ILSEQ))
    }

    /// What the system said.
    pub fn text(&self) -> String {
        self.why.as_ref().map_or_else(|| "it ends there".into(), io::Error::to_string)
    }
}

/// Iterates over [`Source::data_ranges`].
#[derive(Debug)]
pub struct DataRanges<'a> {
    source: &'a Source,
    at: u64,
}

impl Iterator for DataRanges<'_> {
    type Item = Result<(u64, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.source.next_range(self.at) {
            Ok(Some((start, end))) => {
                self.at = end;
                Some(Ok((start, end)))
            }
            Ok(None) => {
                self.at = u64::MAX;
                None
            }
            Err(error) => {
                self.at = u64::MAX;
                Some(Err(error))
            }
        }
    }
}

fn open_failure(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "check the path; `lsblk` shows the disks of this machine",
        io::ErrorKind::PermissionDenied => "run as root, or as a member of the group `disk`",
        _ => "check the path",
    };
    Failure::new(Class::Place, format!("cannot open {}: {error}", path.display())).hint(hint)
}

fn open_device(path: &Path, rdev: u64, alone: bool) -> Result<(File, Kind)> {
    let direct = OFlags::DIRECT.bits() as i32;
    let exclusive = OFlags::EXCL.bits() as i32;
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    let (file, exclusive) = match open(if alone { direct | exclusive } else { direct }) {
        Ok(file) => (file, alone),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            (open(direct).map_err(|e| open_failure(path, &e))?, false)
        }
        Err(e) => return Err(open_failure(path, &e).into()),
    };
    Ok((file, Kind::Device { exclusive, read_only: device_is_read_only(rdev) }))
}

fn device_is_read_only(rdev: u64) -> bool {
    let name = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    std::fs::read_to_string(format!("/sys/dev/block/{name}/ro")).is_ok_and(|t| t.trim() == "1")
}

fn stamp(file: &File) -> io::Result<Stamp> {
    let m = file.metadata()?;
    Ok(Stamp {
        device: m.dev(),
        inode: m.ino(),
        size: m.size(),
        mtime: (m.mtime(), m.mtime_nsec()),
        ctime: (m.ctime(), m.ctime_nsec()),
    })
}

/// The file's stamp, such that any later write changes it. Two things could hide a
/// write: a page that is mapped and already dirty (so it is written back, and the next
/// store faults), and a time in the same tick of the clock (so that tick is waited out).
fn still(file: &File) -> io::Result<Stamp> {
    let _ = rustix::fs::fsync(file);
    let mut now = stamp(file)?;
    for _ in 0..4 {
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(now.ctime.0.max(0) as u64, now.ctime.1.clamp(0, 999_999_999) as u32);
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        if age > TICK {
            break;
        }
        std::thread::sleep(TICK);
        now = stamp(file)?;
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::class_of;
    use std::io::Write;

    fn sparse(dir: &Path, size: u64, data: &[(u64, &[u8])]) -> PathBuf {
        let path = dir.join("s");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        path
    }

    #[test]
    fn holes_are_left_out_and_the_end_is_padded() {
        let dir = tempfile::tempdir().unwrap();
        let path = sparse(dir.path(), (8 << 20) + 5, &[(4 << 20, b"x"), ((8 << 20) + 1, b"yz")]);
        let source = Source::open(&path).unwrap();
        assert_eq!(source.size(), (8 << 20) + 5);
        let ranges: Vec<_> = source.data_ranges().map(Result::unwrap).collect();
        assert!(ranges.iter().any(|&(a, b)| a <= 4 << 20 && b > 4 << 20), "{ranges:?}");
        assert_eq!(ranges.last().unwrap().1, source.size());
        assert!(ranges.iter().map(|(a, b)| b - a).sum::<u64>() < 1 << 20, "{ranges:?}");
        let mut buf = AlignedBuf::new(8192);
        assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
        buf.fill(9);
        source.read_at(8 << 20, &mut buf).unwrap();
        assert_eq!(&buf[..6], b"\0yz\0\0\0");
        assert!(buf[6..].iter().all(|&b| b == 0));
        assert!(matches!(source.unchanged().unwrap(), Proof::Settled(_)));
    }

    #[test]
    fn a_write_shrink_or_removal_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = sparse(dir.path(), 1 << 20, &[(0, b"abc")]);
        let source = Source::open(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().write_all(b"abd").unwrap();
        assert!(matches!(source.unchanged().unwrap(), Proof::Fuzzy(_)));

        let source = Source::open(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert_eq!(class_of(&source.unchanged().unwrap_err()), Class::Place);
        let mut buf = AlignedBuf::new(8192);
        assert_eq!(class_of(&source.read_at(0, &mut buf).unwrap_err()), Class::Place);

        let source = Source::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(source.unchanged().unwrap(), Proof::Fuzzy(_)));
        assert_eq!(class_of(&Source::open(&path).unwrap_err()), Class::Place);
        assert_eq!(class_of(&Source::open(dir.path()).unwrap_err()), Class::Place);
    }

    #[test]
    fn a_write_just_after_opening_shows() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..5u8 {
            let path = sparse(dir.path(), 4096, &[(0, &[i])]);
            let source = Source::open(&path).unwrap();
            OpenOptions::new().write(true).open(&path).unwrap().write_all(&[i + 1]).unwrap();
            assert!(matches!(source.unchanged().unwrap(), Proof::Fuzzy(_)));
        }
    }
}
