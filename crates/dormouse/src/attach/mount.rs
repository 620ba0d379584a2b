//! Mounts what is attached.
//!
//! Invariant: a point is mounted read-only, and nothing replays a journal on a disk that cannot
//! be written; what that may mean for its files is said. Where a copy and its source would be
//! taken for each other, it is not mounted.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::clash;
use super::superblock::{FileSystem, Kind, uuid_text};
use crate::exit::{Class, Failure, fail};

/// How something is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    options: &'static str,
    flags: MountFlags,
    notes: Vec<String>,
}

/// What is attached, as far as a mount cares.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// It has an overlay: writes go there.
    pub writable: bool,
    /// The file systems stood still when the point was made.
    pub frozen: bool,
}

fn plan(found: &FileSystem, about: About, mounted: Option<&Path>) -> Result<Plan> {
    let mut notes = Vec::new();
    if let Some(other) = mounted {
        let uuid = uuid_text(&found.uuid);
        let name = found.kind.name();
        let text =
            format!("the {name} with the same UUID {uuid} is mounted on {}", other.display());
        match found.kind {
            Kind::Btrfs => {
                return fail(
                    Class::InUse,
                    format!("{text}: btrfs may take one for the other"),
                    "mount it on another machine, or unmount the other one first;\n\
                     `dormouse restore` brings it to a file, where `btrfstune -u` gives it a new UUID",
                );
            }
            Kind::Xfs | Kind::Ext4 => notes.push(format!("{text}: do not mount by UUID now")),
        }
    }
    if found.unreplayed && !about.writable {
        notes.push(format!(
            "its {} was in use when the point was made, and its journal is not replayed on a \
             read-only disk: what was written last may be missing or incomplete",
            found.kind.name()
        ));
    } else if found.kind == Kind::Xfs && !about.writable && !about.frozen {
        notes.push(
            "its xfs may have been in use when the point was made; its log is not replayed on a \
             read-only disk: what was written last may be missing or incomplete"
                .to_owned(),
        );
    }
    let options = match (found.kind, about.writable) {
        (Kind::Ext4, false) => "noload",
        (Kind::Xfs, false) => "norecovery,nouuid",
        (Kind::Xfs, true) => "nouuid",
        (Kind::Btrfs, false) => "rescue=nologreplay",
        (Kind::Ext4 | Kind::Btrfs, true) => "",
    };
    Ok(Plan { options, flags: flags(about), notes })
}

/// No devices and no rights of others' programs: it is a copy to look at.
fn flags(about: About) -> MountFlags {
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    if about.writable { flags } else { flags | MountFlags::RDONLY }
}

/// Where a partition of a device is; an error tells that there is none.
pub fn partition(device: &Path, number: Option<u32>) -> Result<PathBuf> {
    let Some(number) = number else { return Ok(device.to_owned()) };
    let path = PathBuf::from(format!("{}p{number}", device.display()));
    if path.exists() {
        return Ok(path);
    }
    fail(
        Class::Place,
        format!(
            "there is no {}: the disk has no such partition, or this kernel reads no table of it",
            path.display()
        ),
        "`fdisk -l` on the attached device shows its partitions;\n\
         a kernel that reads none can mount one with `mount -o ro,loop,offset=BYTES`",
    )
}

/// Mounts a device; returns what is to be said about it. `own` are its numbers.
pub fn mount(device: &Path, dir: &Path, own: &[(u32, u32)], about: About) -> Result<Vec<String>> {
    let cannot = || format!("cannot mount {} on {}", device.display(), dir.display());
    let Some(found) = clash::of_device(device) else {
        return any(device, dir, about).with_context(cannot).map(|()| Vec::new());
    };
    let plan = plan(&found, about, clash::with(&found, own).as_deref())?;
    one(device, dir, found.kind.name(), plan.flags, plan.options).map_err(|e| {
        let failure =
            Failure::new(Class::Other, format!("{}: {}", cannot(), std::io::Error::from(e)));
        anyhow::Error::from(failure.hint("the kernel's log (dmesg) says why"))
    })?;
    Ok(plan.notes)
}

fn one(
    device: &Path,
    dir: &Path,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), Errno> {
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(device, dir, kind, flags, options.as_c_str())
}

/// As a file system of another kind: each that the kernel knows, as mount(8) does.
fn any(device: &Path, dir: &Path, about: About) -> Result<()> {
    let kinds = std::fs::read_to_string("/proc/filesystems").context("/proc/filesystems")?;
    let kinds = kinds.lines().filter(|line| !line.starts_with("nodev")).map(str::trim);
    for kind in kinds {
        if Kind::named(kind).is_none() && one(device, dir, kind, flags(about), "").is_ok() {
            return Ok(());
        }
    }
    fail(
        Class::Place,
        "no file system that this kernel knows is there",
        "a whole disk has partitions: name one with `--partition N`",
    )
}

/// Unmounts a directory; `lazily`: takes it away also while it is in use.
pub fn unmount(dir: &Path, lazily: bool) -> Result<(), Errno> {
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(dir, flags | UnmountFlags::NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(kind: Kind, unreplayed: bool, about: About) -> Plan {
        plan(&FileSystem { kind, uuid: [0; 16], unreplayed }, about, None).unwrap()
    }

    #[test]
    fn a_point_is_mounted_without_a_write() {
        let about = About { writable: false, frozen: true };
        for (kind, options) in [
            (Kind::Ext4, "noload"),
            (Kind::Xfs, "norecovery,nouuid"),
            (Kind::Btrfs, "rescue=nologreplay"),
        ] {
            let plan = planned(kind, false, about);
            assert_eq!(plan.options, options);
            assert!(plan.flags.contains(MountFlags::RDONLY) && plan.notes.is_empty(), "{plan:?}");
        }
        assert_eq!(planned(Kind::Ext4, true, about).notes.len(), 1);
        assert_eq!(planned(Kind::Xfs, false, About { frozen: false, ..about }).notes.len(), 1);
    }

    #[test]
    fn with_an_overlay_journals_are_replayed() {
        let about = About { writable: true, frozen: false };
        for (kind, options) in [(Kind::Ext4, ""), (Kind::Xfs, "nouuid"), (Kind::Btrfs, "")] {
            let plan = planned(kind, true, about);
            assert_eq!((plan.options, plan.notes.len()), (options, 0));
            assert!(!plan.flags.contains(MountFlags::RDONLY));
        }
    }

    #[test]
    fn a_twin_that_is_mounted_is_told_or_refused() {
        let about = About { writable: false, frozen: true };
        let found = |kind| FileSystem { kind, uuid: [7; 16], unreplayed: false };
        let other = Path::new("/home");
        for kind in [Kind::Ext4, Kind::Xfs] {
            let plan = plan(&found(kind), about, Some(other)).unwrap();
            assert!(plan.notes[0].contains("/home") && plan.notes[0].contains("07070707-0707"));
        }
        let refused = plan(&found(Kind::Btrfs), about, Some(other)).unwrap_err();
        assert!(crate::exit::text_of(&refused).contains("/home"));
        assert!(!crate::exit::hint_of(&refused).is_empty());
    }
}
