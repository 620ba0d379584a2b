//! Which file systems and swap areas lie on a disk.
//!
//! Invariant: what may write to the disk is found, or named as unseen: a file system of which it
//! is unclear whether it lies on the disk counts as lying on it. Only mounts of this process's
//! namespace can be opened; what only others have mounted is [`Unseen`]. Not looked through: loop
//! devices and overlays. They write through the file systems below them, which are found.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use super::blocks::{Blocks, entries, unreadable};
use super::error::Action;
use super::{FreezeError, kernel};

pub(crate) mod parse;
use parse::Line;

/// Types whose driver has no way to stop writing; of others the kernel says so when asked.
const CANNOT_FREEZE: &[&str] = &[
    "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "udf", "hfs", "hfsplus", "minix", "ufs",
    "affs", "ocfs2",
];

/// Where the kernel's file systems are mounted.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { proc: "/proc".into(), sys: "/sys".into(), dev: "/dev".into() }
    }
}

/// A place where a file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of this mount.
    pub id: u64,
    /// The directory.
    pub point: PathBuf,
}

/// A file system on the disk, however often it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// All its mounts in this namespace, at least one.
    pub mounts: Vec<Mount>,
    /// Its type: `ext4`.
    pub kind: String,
    /// What was mounted: `/dev/vda1`.
    pub source: PathBuf,
    /// Whether it may be written to; a read-only view of a writable one counts as writable.
    pub writable: bool,
    /// The kernel's number of it: that of the device, or an anonymous one (btrfs).
    pub number: (u32, u32),
}

impl FileSystem {
    /// The first of its mount points.
    pub fn mount_point(&self) -> &Path {
        self.mounts.first().map_or(Path::new(""), |mount| &mount.point)
    }

    /// False if its type is known not to support freezing: while such a one is writable, the disk
    /// cannot be frozen as a whole. True is no promise: the kernel says when asked.
    pub fn can_freeze(&self) -> bool {
        !CANNOT_FREEZE.contains(&self.kind.as_str())
    }

    /// Opens the first mount point that leads to it: another one may be mounted over.
    pub(super) fn open(&self) -> Result<(&Mount, OwnedFd), FreezeError> {
        let mut first = None;
        for mount in &self.mounts {
            match kernel::open_mount(&mount.point, mount.id) {
                Ok(fd) => return Ok((mount, fd)),
                Err(errno) => first = first.or(Some(errno)),
            }
        }
        let source = first.map_or_else(|| io::ErrorKind::NotFound.into(), io::Error::from);
        let mount_point = self.mount_point().to_owned();
        Err(FreezeError::Failed { action: Action::Open, mount_point, source })
    }
}

/// A file system that is in use on the disk, but not mounted in this namespace: it cannot be
/// frozen from here, and may be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// Its type.
    pub kind: String,
    /// The kernel's name of its device, or the UUID (btrfs).
    pub name: String,
}

/// Active swap on the disk. The kernel writes to it also while a file system is frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The partition or file.
    pub path: PathBuf,
    /// A file of one of the file systems; else a device.
    pub is_file: bool,
}

/// What is in use on a disk.
#[derive(Debug)]
pub struct OnDevice {
    /// Mounted file systems, in the order in which they were mounted first.
    pub file_systems: Vec<FileSystem>,
    /// File systems that cannot be reached from here.
    pub unseen: Vec<Unseen>,
    /// Active swap.
    pub swaps: Vec<Swap>,
    /// Mounts of all disks: to find where a path lies.
    lines: Vec<Line>,
}

impl OnDevice {
    /// The file system on this disk that holds `path`, if one does; `path` must exist.
    pub fn holding(&self, path: &Path) -> Result<Option<&FileSystem>, FreezeError> {
        let path = fs::canonicalize(path).map_err(|source| unreadable(path, source))?;
        Ok(self.holding_name(&path))
    }

    fn holding_name(&self, path: &Path) -> Option<&FileSystem> {
        let covering = self.lines.iter().filter(|line| path.starts_with(&line.point));
        // Of equal ones the last covers the others.
        let line = covering.max_by_key(|line| line.point.as_os_str().len())?;
        self.file_systems.iter().find(|one| one.mounts.iter().any(|mount| mount.id == line.id))
    }
}

/// One mount of this process's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Of the file system: its device's, or an anonymous one (btrfs).
    pub number: (u32, u32),
    /// The directory.
    pub point: PathBuf,
    /// Its type: `ext4`.
    pub kind: String,
    /// What was mounted: `/dev/vda1`.
    pub source: PathBuf,
}

/// All mounts of this process's namespace, in the order in which they were made.
pub fn mounted() -> io::Result<Vec<Mounted>> {
    let lines = parse::mountinfo(&fs::read("/proc/self/mountinfo")?);
    let lines = lines.ok_or(io::ErrorKind::InvalidData)?.into_iter();
    Ok(lines
        .map(|line| Mounted {
            number: line.number,
            point: line.point,
            kind: line.kind,
            source: line.source,
        })
        .collect())
}

/// Finds what is in use on the device with the number `rdev`: a disk, a partition, a volume.
pub fn survey(roots: &Roots, rdev: u64) -> Result<OnDevice, FreezeError> {
    let blocks = Blocks::on(&roots.sys, major(rdev), minor(rdev))?;
    let pools = pools(roots, &blocks)?;
    let path = roots.proc.join("self/mountinfo");
    let text = fs::read(&path).map_err(|source| unreadable(&path, source))?;
    let lines = parse::mountinfo(&text)
        .ok_or_else(|| unreadable(&path, io::ErrorKind::InvalidData.into()))?;
    let mut file_systems: Vec<FileSystem> = Vec::new();
    for line in lines.iter().filter(|line| lies_on(roots, &blocks, &pools, line)) {
        let mount = Mount { id: line.id, point: line.point.clone() };
        match file_systems.iter_mut().find(|known| known.number == line.number) {
            Some(known) => known.mounts.push(mount),
            None => file_systems.push(FileSystem {
                mounts: vec![mount],
                kind: line.kind.clone(),
                source: line.source.clone(),
                writable: line.writable,
                number: line.number,
            }),
        }
    }
    let unseen = unseen(roots, &blocks, &pools, &file_systems)?;
    let mut found = OnDevice { file_systems, unseen, swaps: Vec::new(), lines };
    found.swaps = swaps(roots, &blocks, &found)?;
    Ok(found)
}

/// A btrfs that is mounted somewhere, with the names of all its devices.
struct Pool {
    uuid: String,
    names: Vec<String>,
    on_disk: bool,
}

fn pools(roots: &Roots, blocks: &Blocks) -> Result<Vec<Pool>, FreezeError> {
    let directory = roots.sys.join("fs/btrfs");
    let mut pools = Vec::new();
    if !directory.exists() {
        return Ok(pools);
    }
    for place in entries(&directory)? {
        let devices = place.join("devices");
        if devices.exists() {
            let names: Vec<_> = entries(&devices)?.iter().map(|path| last_name(path)).collect();
            let on_disk = names.iter().any(|name| blocks.has_name(name));
            pools.push(Pool { uuid: last_name(&place), names, on_disk });
        }
    }
    Ok(pools)
}

/// Whether the file system of a mount lies on the disk, at least in part.
fn lies_on(roots: &Roots, blocks: &Blocks, pools: &[Pool], line: &Line) -> bool {
    let (major, minor) = line.number;
    if major != 0 {
        return blocks.contains(major, minor);
    }
    // An anonymous number: the source tells, if it is a device at all.
    let source = kernel_name(roots, &line.source);
    if line.kind != "btrfs" {
        return source.is_some_and(|name| blocks.has_name(&name));
    }
    let pool = pools.iter().find(|pool| source.as_ref().is_some_and(|it| pool.names.contains(it)));
    // Of an unknown source it is unclear: it counts if any btrfs lies on the disk.
    pool.map_or_else(|| pools.iter().any(|pool| pool.on_disk), |pool| pool.on_disk)
}

/// File systems on the disk that the kernel has in use, less those that are mounted here.
fn unseen(
    roots: &Roots,
    blocks: &Blocks,
    pools: &[Pool],
    seen: &[FileSystem],
) -> Result<Vec<Unseen>, FreezeError> {
    let mut unseen = Vec::new();
    let directory = roots.sys.join("fs");
    for place in if directory.exists() { entries(&directory)? } else { Vec::new() } {
        for name in blocks.names().filter(|name| place.join(name).exists()) {
            let number = blocks.number(name);
            if !seen.iter().any(|known| Some(known.number) == number) {
                unseen.push(Unseen { kind: last_name(&place), name: name.to_owned() });
            }
        }
    }
    let mounted = |pool: &Pool| {
        let sources = seen.iter().filter(|known| known.kind == "btrfs");
        let mut names = sources.filter_map(|known| kernel_name(roots, &known.source));
        names.any(|name| pool.names.contains(&name))
    };
    for pool in pools.iter().filter(|pool| pool.on_disk && !mounted(pool)) {
        unseen.push(Unseen { kind: "btrfs".to_owned(), name: pool.uuid.clone() });
    }
    Ok(unseen)
}

fn swaps(roots: &Roots, blocks: &Blocks, found: &OnDevice) -> Result<Vec<Swap>, FreezeError> {
    let path = roots.proc.join("swaps");
    let text = match fs::read(&path) {
        // A kernel without swap has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(|source| unreadable(&path, source))?,
    };
    let areas = parse::swaps(&text).into_iter().map(|(path, is_file)| Swap { path, is_file });
    let on_disk = |swap: &Swap| {
        if swap.is_file {
            found.holding_name(&swap.path).is_some()
        } else {
            kernel_name(roots, &swap.path).is_some_and(|name| blocks.has_name(&name))
        }
    };
    Ok(areas.filter(on_disk).collect())
}

/// The kernel's name of a device: of `/dev/mapper/root` it is `dm-0`.
fn kernel_name(roots: &Roots, device: &Path) -> Option<String> {
    let node = roots.dev.join(device.strip_prefix("/dev").ok()?);
    Some(last_name(&fs::canonicalize(&node).unwrap_or(node)))
}

fn last_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
