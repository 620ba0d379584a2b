//! Active swap on a disk: its content is of no use to anybody after a restart.
//!
//! Owns: which blocks of a disk the kernel swaps to. Invariant: the blocks named here lie as a whole in
//! an active area, behind its header, which holds the label and the uuid by which it is found at a
//! start. Not looked for: swap files (they lie in a file system, which may move them), and areas on
//! volumes of device mapper or md upon the disk (which blocks those are is not known here).

use std::fs;
use std::path::{Path, PathBuf};

use crate::device::{Disk, SECTOR};
use crate::dirty::Dirty;
use crate::freeze::mounts::parse;

/// Sectors of a block.
const BLOCK: u64 = 4096 / SECTOR;

/// Active swap on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swap {
    /// The areas.
    pub areas: Vec<PathBuf>,
    /// Their blocks.
    pub blocks: Dirty,
}

/// The kernel's list, to be compared; empty where it has none.
pub fn listed() -> Vec<u8> {
    fs::read("/proc/swaps").unwrap_or_default()
}

impl Swap {
    /// Of such a list, what lies on this disk.
    pub fn on(disk: &Disk, listed: &[u8]) -> Self {
        Self::in_sysfs(disk, listed, Path::new("/sys"))
    }

    fn in_sysfs(disk: &Disk, listed: &[u8], sys: &Path) -> Self {
        let mut swap = Self::default();
        let header = (rustix::param::page_size() as u64).div_ceil(BLOCK * SECTOR);
        for (path, is_file) in parse::swaps(listed) {
            let Some(area) = (!is_file).then(|| area_of(&path, sys)).flatten() else { continue };
            let (ours, theirs) = (disk.range, area.range);
            let Some(first) = theirs.first.checked_sub(ours.first) else { continue };
            if theirs.dev != ours.dev || first + theirs.sectors > ours.sectors {
                continue;
            }
            // The header is a page of the kernel; behind it, all is swapped to.
            let start = first.div_ceil(BLOCK) + header;
            let end = (first + theirs.sectors) / BLOCK;
            swap.blocks = swap.blocks.or(&Dirty::of_range(start..end));
            swap.areas.push(path);
        }
        swap
    }
}

/// The disk or partition of a path, by the kernel's name for it.
fn area_of(path: &Path, sys: &Path) -> Option<Disk> {
    let node = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let number = fs::read_to_string(sys.join("class/block").join(node.file_name()?).join("dev"));
    let (major, minor) = number.as_ref().ok()?.trim().split_once(':')?;
    let rdev = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    Disk::in_sysfs(path, rdev, sys).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A disk `vda` of 4 GiB with two partitions, the second of which begins off the grid of blocks;
    /// and a disk `vdb`.
    fn tree() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let put = |path: &str, files: &[(&str, u64)], number: &str| {
            let place = sys.path().join("devices").join(path);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("dev"), number).unwrap();
            files.iter().for_each(|(name, n)| fs::write(place.join(name), n.to_string()).unwrap());
            for (folder, name) in [("dev/block", number), ("class/block", &path[path.len() - 4..])]
            {
                fs::create_dir_all(sys.path().join(folder)).unwrap();
                let _ = symlink(&place, sys.path().join(folder).join(name.trim_start_matches('/')));
            }
        };
        put("/vda", &[("size", 8 << 20)], "254:0");
        put("/vda/vda1", &[("size", 2048), ("start", 2048), ("partition", 1)], "254:1");
        put("/vda/vda2", &[("size", 20_003), ("start", 4099), ("partition", 2)], "254:2");
        put("/vdb", &[("size", 9000)], "254:16");
        sys
    }

    #[test]
    fn areas_are_found_by_partition_and_their_headers_are_kept() {
        let sys = tree();
        let header = rustix::param::page_size() as u64 / 4096;
        let disk = |minor| {
            Disk::in_sysfs(Path::new("/dev/x"), rustix::fs::makedev(254, minor), sys.path())
                .unwrap()
        };
        let list = |areas: &[&str]| format!("Filename Type Size\n{}\n", areas.join("\n"));
        let on = |minor, areas: &[&str]| {
            Swap::in_sysfs(&disk(minor), list(areas).as_bytes(), sys.path())
        };
        let second = "/dev/vda2 partition 9 0 -2";
        let swap = on(0, &[second, "/dev/vdb partition 9 0 -3", "/vda1 file 9 0 -4"]);
        assert_eq!(swap.areas, [PathBuf::from("/dev/vda2")]);
        // 4099 sectors are 512 blocks and a bit; it ends at sector 24102.
        assert_eq!(swap.blocks, Dirty::of_range(513 + header..3012));
        // Of the partition itself it is all but the header; of the other one, nothing.
        assert_eq!(on(2, &[second]).blocks, Dirty::of_range(header..2500));
        assert_eq!(on(1, &[second]), Swap::default());
        // A disk that is swapped to as a whole; and lists that say nothing.
        assert_eq!(on(16, &["/dev/vdb partition 9 0 -3"]).blocks, Dirty::of_range(header..1125));
        for nothing in ["", "/dev/none partition 9 0 -2", "/dev/vda2", "\u{1}"] {
            assert_eq!(on(0, &[nothing]), Swap::default(), "{nothing:?}");
        }
    }
}
