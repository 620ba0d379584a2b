//! Whether a file system that is mounted here has the same UUID as one that is attached.
//!
//! A copy has the UUID of its source. XFS refuses to mount both, btrfs may take one for the
//! other, ext4 does not care, but who mounts by UUID gets either. Leaves to others: what is done
//! about it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dormouse_track::freeze::{Mounted, mounted};

use super::superblock::{self, FileSystem, Kind, LOOKED_AT};

/// Where a mounted file system with the same UUID is, if there is one.
pub fn with(this: &FileSystem, own: &[(u32, u32)]) -> Option<PathBuf> {
    if this.kind == Kind::Btrfs
        && !Path::new("/sys/fs/btrfs").join(superblock::uuid_text(&this.uuid)).exists()
    {
        return None;
    }
    let all = mounted().ok()?;
    let same = |mount: &&Mounted| {
        Kind::named(&mount.kind) == Some(this.kind)
            && !own.contains(&mount.number)
            && of_device(&device(mount)).is_some_and(|found| found.uuid == this.uuid)
    };
    all.iter().find(same).map(|mount| mount.point.clone())
}

/// The device of a mount: by its number, which is right also where its name is not. btrfs has
/// numbers of its own.
fn device(mount: &Mounted) -> PathBuf {
    let (major, minor) = mount.number;
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let name = uevent.ok().and_then(|text| {
        text.lines().find_map(|line| Some(line.strip_prefix("DEVNAME=")?.to_owned()))
    });
    name.map_or_else(|| mount.source.clone(), |name| Path::new("/dev").join(name))
}

/// The file system on a device, if it is one that is known here.
pub fn of_device(path: &Path) -> Option<FileSystem> {
    let device = File::open(path).ok()?;
    let mut bytes = vec![0; LOOKED_AT];
    let mut len = 0;
    // A device that is smaller than what is looked at has a file system as well.
    while let Ok(more @ 1..) = device.read_at(&mut bytes[len..], len as u64) {
        len += more;
    }
    superblock::read(&bytes[..len])
}
