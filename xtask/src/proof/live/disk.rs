//! A disk in use: an image, its loop device, its file system and where that is mounted.
//!
//! Invariant: what a [`Disk`], an [`Attached`] or a [`Mounted`] began is ended when it is dropped,
//! also if it is frozen.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::loads::Kind;
use crate::world::output;

/// What is mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    pub fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|one| one.name() == name);
        found.with_context(|| format!("there is no file system {name} here: ext4, xfs or btrfs"))
    }

    /// Makes it on a device.
    fn make(self, device: &Path) -> Result<()> {
        let mut command = Command::new(format!("mkfs.{}", self.name()));
        command.arg(if self == Self::Ext4 { "-F" } else { "-f" }).arg("-q").arg(device);
        output(command).map(drop)
    }

    /// Checks it without any repair.
    pub fn check(self, device: &Path) -> Result<()> {
        let mut command = match self {
            Self::Ext4 => words("e2fsck -fn"),
            Self::Xfs => words("xfs_repair -n"),
            Self::Btrfs => words("btrfs check --readonly"),
        };
        command.arg(device);
        output(command).map(drop)
    }

    /// Whether its checker wants its journal replayed even if it was frozen: XFS makes its log dirty
    /// again at the end of a freeze, by intent, for files that are open and deleted.
    pub const fn log_outlives_freeze(self) -> bool {
        matches!(self, Self::Xfs)
    }

    /// How a copy is mounted that nobody may write.
    const fn read_only(self) -> &'static str {
        match self {
            Self::Ext4 => "ro,noload",
            Self::Xfs => "ro,norecovery,nouuid",
            Self::Btrfs => "ro",
        }
    }

    /// How one is mounted that plays its journal.
    const fn replaying(self) -> &'static str {
        match self {
            Self::Xfs => "rw,nouuid",
            Self::Ext4 | Self::Btrfs => "rw",
        }
    }
}

/// A command of words.
pub fn words(line: &str) -> Command {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Why the proof cannot run here.
pub fn cannot_run(file_systems: &[FileSystem], loads: &[Kind]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("this kernel has no BTF".into());
    }
    let makers = file_systems.iter().map(|one| format!("mkfs.{}", one.name()));
    let tools = loads.iter().flat_map(|load| load.needs().iter().map(|need| (*need).to_owned()));
    let mut needed = ["losetup", "mount"].map(str::to_owned).into_iter().chain(makers).chain(tools);
    let here = |tool: &String| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|at| at.join(tool).exists())
    };
    needed.find(|tool| !here(tool)).map(|tool| format!("{tool} is not on the path"))
}

/// A loop device on a file.
pub struct Attached(pub PathBuf);

impl Attached {
    pub fn to(file: &Path, more: &[&str]) -> Result<Self> {
        let mut command = words("losetup --find --show");
        command.args(more).arg(file);
        Ok(Self(output(command)?.trim().into()))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A file system that is mounted.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn at(device: &Path, at: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        let mut command = words("mount -o");
        command.arg(options).arg(device).arg(at);
        output(command)?;
        Ok(Self(at.to_owned()))
    }

    pub fn end(self) -> Result<()> {
        let mut command = Command::new("umount");
        command.arg(&self.0);
        output(command)?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let quietly = |mut command: Command| {
            let _ = command.arg(&self.0).stderr(Stdio::null()).status();
        };
        // Only one that a failure left frozen.
        quietly(words("fsfreeze --unfreeze"));
        quietly(words("umount --lazy"));
    }
}

/// The disk that is mirrored.
pub struct Disk {
    mounted: Option<Mounted>,
    pub device: PathBuf,
    pub mount: PathBuf,
    image: PathBuf,
    _attached: Attached,
}

impl Disk {
    pub fn create(root: &Path, file_system: FileSystem, size: u64) -> Result<Self> {
        let (image, mount) = (root.join("disk.img"), root.join("mnt"));
        File::create(&image)?.set_len(size)?;
        let attached = Attached::to(&image, &["--direct-io=on"])
            .or_else(|_| Attached::to(&image, &[]))
            .context("no loop device")?;
        file_system.make(&attached.0)?;
        let mounted = Mounted::at(&attached.0, &mount, "rw")?;
        Ok(Self {
            mounted: Some(mounted),
            device: attached.0.clone(),
            mount,
            image,
            _attached: attached,
        })
    }

    pub fn umount(&mut self) -> Result<()> {
        self.mounted.take().map_or(Ok(()), Mounted::end)
    }

    pub fn image(&self) -> &Path {
        &self.image
    }
}

/// Mounts a copy so that nothing of it changes, for as long as `look` takes.
pub fn look_into<T>(
    file_system: FileSystem,
    image: &Path,
    look: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let attached = Attached::to(image, &["-r"])?;
    let at = image.with_file_name("look");
    forget(file_system);
    let mounted = Mounted::at(&attached.0, &at, file_system.read_only())?;
    let found = look(&at)?;
    mounted.end()?;
    Ok(found)
}

/// Mounts a copy as it is mounted after a crash, and ends that well.
pub fn replay(file_system: FileSystem, image: &Path) -> Result<()> {
    let attached = Attached::to(image, &[])?;
    forget(file_system);
    Mounted::at(&attached.0, &image.with_file_name("look"), file_system.replaying())?.end()
}

/// The kernel keeps in mind where it has seen a btrfs; its copy would be taken for it.
fn forget(file_system: FileSystem) {
    if file_system == FileSystem::Btrfs {
        let _ = words("btrfs device scan --forget").stdout(Stdio::null()).status();
    }
}

/// Copies a directory out of a file system that nobody may write.
pub fn copy_out(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let mut command = words("cp -a");
    command.arg(from).arg(to);
    output(command)?;
    if !to.exists() {
        bail!("{} was not copied", from.display());
    }
    Ok(())
}
