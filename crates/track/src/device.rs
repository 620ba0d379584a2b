//! A block device as the kernel shows it in sysfs.
//!
//! Owns: which disk a path is, which of its sectors are meant, and what the kernel counts of
//! it. Invariant: a [`Disk`] names one appearance of a disk; another disk under the same name
//! has another sequence number. Leaves to others: its content.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::marks::Range;

/// Sectors that the kernel counts in, in bytes.
pub const SECTOR: u64 = 512;

/// How a device takes its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As requests: NVMe, SCSI, virtio, loop.
    Requests,
    /// As bios, which it hands on: device mapper, md, zram.
    Bios,
}

/// A disk, or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// As it was named.
    pub path: PathBuf,
    /// The kernel's name of the whole disk, as `nvme0n1`.
    pub name: String,
    /// Device number of what was named, as in `st_rdev`.
    pub rdev: u64,
    /// What of which disk is meant.
    pub range: Range,
    /// The kernel's number of this appearance of the disk; 0 where it has none (before 5.15).
    pub sequence: u64,
    /// How it takes its writes.
    pub kind: Kind,
    /// In sysfs, what was named.
    directory: PathBuf,
}

/// What was written to a device since it appeared, as the kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Writes that were completed.
    pub writes: u64,
    /// Sectors of them.
    pub sectors: u64,
    /// Discards that were completed.
    pub discards: u64,
    /// Flushes that were completed.
    pub flushes: u64,
}

impl Disk {
    /// The device of this path.
    pub fn of(path: &Path) -> Result<Self> {
        let found = fs::metadata(path).map_err(|e| sysfs(path, e))?;
        if !found.file_type().is_block_device() {
            return Err(Error::NotADevice(path.to_owned()));
        }
        Self::in_sysfs(path, found.rdev(), Path::new("/sys"))
    }

    /// With another sysfs: for tests.
    pub(crate) fn in_sysfs(path: &Path, rdev: u64, sys: &Path) -> Result<Self> {
        let number = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let link = sys.join("dev/block").join(&number);
        let directory = fs::canonicalize(&link).map_err(|e| sysfs(&link, e))?;
        let partition = directory.join("partition").exists();
        let whole = match directory.parent() {
            Some(parent) if partition => parent.to_owned(),
            _ => directory.clone(),
        };
        let name = whole.file_name().map(|n| n.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| Error::NotADevice(path.to_owned()))?;
        let mq = whole.join("mq").exists();
        if !mq && name.starts_with("nvme") {
            return Err(Error::Multipath(name));
        }
        let first = if partition { number_in(&directory.join("start"))? } else { 0 };
        let sectors = number_in(&directory.join("size"))?;
        let dev = kernel_number(&whole.join("dev"))?;
        Ok(Self {
            path: path.to_owned(),
            name,
            rdev,
            range: Range { dev, first, sectors, whole: !partition },
            sequence: number_in(&whole.join("diskseq")).unwrap_or(0),
            kind: if mq { Kind::Requests } else { Kind::Bios },
            directory,
        })
    }

    /// Its size in bytes when it was looked at.
    pub const fn size(&self) -> u64 {
        self.range.sectors * SECTOR
    }

    /// Whether it is the same appearance of the same disk, and begins at the same place; the
    /// size may differ.
    pub fn is_same_but_for_size(&self, other: &Self) -> bool {
        let sectors = self.range.sectors;
        *self == Self { range: Range { sectors, ..other.range }, ..other.clone() }
    }

    /// The same device now, under the same path.
    pub fn again(&self) -> Result<Self> {
        Self::of(&self.path)
    }

    /// In sysfs: of what was named, and of the whole disk.
    pub(crate) fn directories(&self) -> (&Path, &Path) {
        let own = self.directory.as_path();
        let above = own.parent().filter(|_| !self.range.whole);
        (own, above.unwrap_or(own))
    }

    /// All that the kernel shows now, by their names in `/dev`. What it shows and cannot be
    /// watched is left out.
    pub fn all() -> Vec<Self> {
        let Ok(names) = fs::read_dir("/sys/class/block") else { return Vec::new() };
        let of = |entry: fs::DirEntry| {
            let uevent = fs::read_to_string(entry.path().join("uevent")).ok()?;
            let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
            Self::of(&Path::new("/dev").join(name)).ok()
        };
        let mut all: Vec<_> = names.flatten().filter_map(of).collect();
        all.retain(|disk| disk.range.sectors > 0);
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// Writes that the device has begun and not completed.
    pub fn writes_in_flight(&self) -> Result<u64> {
        let path = self.directory.join("inflight");
        let text = read(&path)?;
        let writes = text.split_whitespace().nth(1).and_then(|n| n.parse().ok());
        writes.ok_or_else(|| not_understood(&path))
    }

    /// What was written since it appeared.
    pub fn written(&self) -> Result<Written> {
        let path = self.directory.join("stat");
        let text = read(&path)?;
        let numbers: Vec<u64> =
            text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let at = |i: usize| numbers.get(i).copied();
        let (Some(writes), Some(sectors)) = (at(4), at(6)) else {
            return Err(not_understood(&path));
        };
        let rest = |i| at(i).unwrap_or(0);
        Ok(Written { writes, sectors, discards: rest(11), flushes: rest(15) })
    }
}

impl Disk {
    /// Whether the kernel counts what it writes: [`Self::written`] says nothing where it was told
    /// not to.
    pub fn counts_writes(&self) -> bool {
        let (_, whole) = self.directories();
        number_in(&whole.join("queue/iostats")).is_ok_and(|on| on == 1)
    }
}

fn sysfs(path: &Path, source: io::Error) -> Error {
    Error::Sysfs { path: path.to_owned(), source }
}

fn not_understood(path: &Path) -> Error {
    sysfs(path, io::Error::new(io::ErrorKind::InvalidData, "it has another form than expected"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| sysfs(path, e))
}

fn number_in(path: &Path) -> Result<u64> {
    read(path)?.trim().parse().map_err(|_| not_understood(path))
}

/// A device number as the kernel keeps it in itself: 12 bits of major, 20 of minor.
fn kernel_number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    let numbers = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse::<u64>().ok()?, minor.parse::<u64>().ok()?)));
    let (major, minor) = numbers.ok_or_else(|| not_understood(path))?;
    Ok(major << 20 | minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A disk of 100 sectors with a partition of 40 from 8 on.
    fn tree(name: &str, mq: bool) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let whole = sys.path().join("devices").join(name);
        let part = whole.join("part1");
        put(&whole.join("dev"), "259:3\n");
        put(&whole.join("size"), "100\n");
        put(&whole.join("diskseq"), "17\n");
        put(&whole.join("stat"), "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n");
        put(&whole.join("inflight"), "       2        3\n");
        put(&part.join("partition"), "1\n");
        put(&part.join("start"), "8\n");
        put(&part.join("size"), "40\n");
        put(&part.join("inflight"), "0 1\n");
        if mq {
            put(&whole.join("mq/0/x"), "");
        }
        let links = sys.path().join("dev/block");
        fs::create_dir_all(&links).unwrap();
        std::os::unix::fs::symlink(&whole, links.join("259:3")).unwrap();
        std::os::unix::fs::symlink(&part, links.join("259:4")).unwrap();
        sys
    }

    #[test]
    fn a_disk_and_its_partition() {
        let sys = tree("vda", true);
        let of = |minor| {
            Disk::in_sysfs(Path::new("/dev/x"), rustix::fs::makedev(259, minor), sys.path())
        };
        let disk = of(3).unwrap();
        let dev = 259 << 20 | 3;
        assert_eq!(disk.range, Range { dev, first: 0, sectors: 100, whole: true });
        assert_eq!((disk.name.as_str(), disk.sequence, disk.kind), ("vda", 17, Kind::Requests));
        assert_eq!(disk.writes_in_flight().unwrap(), 3);
        let written = Written { writes: 5, sectors: 7, discards: 12, flushes: 16 };
        assert_eq!(disk.written().unwrap(), written);
        let part = of(4).unwrap();
        assert_eq!(part.range, Range { dev, first: 8, sectors: 40, whole: false });
        assert_eq!((part.sequence, part.size()), (17, 40 * 512));
        assert_eq!(part.writes_in_flight().unwrap(), 1);
        assert!(of(5).unwrap_err().to_string().contains("259:5"));
    }

    #[test]
    fn what_cannot_be_watched_or_read_is_named() {
        let sys = tree("nvme0n1", false);
        let rdev = rustix::fs::makedev(259, 3);
        let found = Disk::in_sysfs(Path::new("/dev/x"), rdev, sys.path());
        assert!(matches!(found, Err(Error::Multipath(name)) if name == "nvme0n1"));
        let sys = tree("dm-0", false);
        let found = Disk::in_sysfs(Path::new("/dev/x"), rdev, sys.path()).unwrap();
        assert_eq!(found.kind, Kind::Bios);
        put(&sys.path().join("devices/dm-0/inflight"), "nothing");
        assert!(found.writes_in_flight().unwrap_err().to_string().contains("inflight"));
        put(&sys.path().join("devices/dm-0/size"), "-1");
        let found = Disk::in_sysfs(Path::new("/dev/x"), rdev, sys.path());
        assert!(found.unwrap_err().to_string().contains("dm-0/size"));
        assert!(matches!(Disk::of(Path::new("/dev/null")), Err(Error::NotADevice(_))));
        assert!(matches!(Disk::of(sys.path()), Err(Error::NotADevice(_))));
    }
}
