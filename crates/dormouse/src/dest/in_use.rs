//! Whether a destination is mounted or otherwise in use.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;

use crate::exit::{Class, fail};

/// Refuses a device that is mounted, swapped to, or held by another device, or of
/// which a part is.
pub(super) fn check_device(path: &Path, rdev: u64) -> Result<()> {
    let number = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = swaps();
    for (number, name) in family(&number) {
        let named =
            if name.is_empty() { path.display().to_string() } else { format!("/dev/{name}") };
        let busy = |why: String| {
            fail(
                Class::Place,
                format!("{} cannot be overwritten: {why}", path.display()),
                "unmount it or end its use first; nothing was written",
            )
        };
        if let Some(at) = mounted_at(&mounts, &number) {
            return busy(format!("{named} is mounted at {at}"));
        }
        if swaps.contains(&number) {
            return busy(format!("{named} is in use as swap"));
        }
        if let Some(holder) = holder(&number) {
            return busy(format!("{named} is held by {holder}"));
        }
    }
    Ok(())
}

/// The device, its partitions, and if it is one the whole disk's device number is
/// not needed: a partition may be overwritten while another is mounted.
fn family(number: &str) -> Vec<(String, String)> {
    let sys = format!("/sys/dev/block/{number}");
    let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).ok();
    let mut all = vec![(number.to_owned(), String::new())];
    for entry in std::fs::read_dir(&sys).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if read(&format!("{sys}/{name}/partition")).is_some()
            && let Some(number) = read(&format!("{sys}/{name}/dev"))
        {
            all.push((number, name));
        }
    }
    all
}

/// Where a device is mounted. Field 3 of mountinfo is its number, field 5 the place.
fn mounted_at(mounts: &str, number: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.nth(2)? == number).then(|| fields.nth(1).unwrap_or("?").to_owned())
    })
}

fn swaps() -> HashSet<String> {
    let text = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    text.lines()
        .skip(1)
        .filter_map(|line| std::fs::metadata(line.split_whitespace().next()?).ok())
        .map(|m| format!("{}:{}", rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev())))
        .collect()
}

fn holder(number: &str) -> Option<String> {
    let mut holders = std::fs::read_dir(format!("/sys/dev/block/{number}/holders")).ok()?;
    Some(holders.next()?.ok()?.file_name().to_string_lossy().into_owned())
}

/// Refuses a file that a loop device shows as a disk.
pub(super) fn check_file(path: &Path) -> Result<()> {
    let Ok(real) = std::fs::canonicalize(path) else { return Ok(()) };
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = entry.path().join("loop/backing_file");
        let Ok(text) = std::fs::read_to_string(backing) else { continue };
        if Path::new(text.trim_end()) == real {
            return fail(
                Class::Place,
                format!(
                    "{} is in use as /dev/{}",
                    path.display(),
                    entry.file_name().to_string_lossy()
                ),
                "unmount it and detach it with `losetup -d` first; nothing was written",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_by_number() {
        let text = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 1 8:17 / /mnt rw - ext4 /dev/sdb1 rw\n";
        assert_eq!(mounted_at(text, "8:17").as_deref(), Some("/mnt"));
        assert_eq!(mounted_at(text, "8:1").as_deref(), Some("/"));
        assert_eq!(mounted_at(text, "8:2"), None);
    }

    #[test]
    fn a_mounted_device_of_this_machine_is_refused() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let sys = |n: &str| Path::new("/sys/dev/block").join(n).exists();
        let Some(number) = mounts.lines().filter_map(|l| l.split(' ').nth(2)).find(|n| sys(n))
        else {
            eprintln!("SKIPPED: no block device is mounted here");
            return;
        };
        let (major, minor) = number.split_once(':').unwrap();
        let rdev = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
        let error = check_device(Path::new("/dev/x"), rdev).unwrap_err();
        assert!(error.to_string().contains("is mounted at"), "{error}");
    }
}
