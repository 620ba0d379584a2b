//! Who uses a device or a mounted directory: for people who want it back.

use std::fs;
use std::path::{Path, PathBuf};

use dormouse_track::freeze::{Roots, mounted, survey};
use rustix::fs::{major, minor};

/// How many are named.
const NAMED: usize = 8;

/// The numbers of a device and of its partitions.
pub fn numbers(device: &Path) -> Vec<(u32, u32)> {
    let name = device.file_name().unwrap_or_default();
    let whole = Path::new("/sys/class/block").join(name);
    let parts = fs::read_dir(&whole).into_iter().flatten().flatten().map(|entry| entry.path());
    let parts = parts.filter(|path| path.join("partition").exists());
    std::iter::once(whole.clone()).chain(parts).filter_map(|path| number(&path)).collect()
}

fn number(directory: &Path) -> Option<(u32, u32)> {
    let text = fs::read_to_string(directory.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The directories on which a device, or a part of it, is mounted here.
pub fn mount_points(device: &Path) -> Vec<PathBuf> {
    let Some((major, minor)) = numbers(device).first().copied() else { return Vec::new() };
    match survey(&Roots::default(), rustix::fs::makedev(major, minor)) {
        Ok(found) => {
            let mounts = found.file_systems.into_iter().flat_map(|system| system.mounts);
            mounts.map(|mount| mount.point).collect()
        }
        Err(_) => Vec::new(),
    }
}

/// What uses a device, other than the process that serves it: mounts, swap, other devices,
/// programs.
pub fn of_device(device: &Path, server: i32) -> Vec<String> {
    let mut users: Vec<String> = mount_points(device)
        .iter()
        .map(|point| format!("it is mounted on {}", point.display()))
        .collect();
    let numbers = numbers(device);
    if let Some((major, minor)) = numbers.first()
        && let Ok(found) = survey(&Roots::default(), rustix::fs::makedev(*major, *minor))
    {
        let elsewhere = |kind: &str| format!("its {kind} is mounted in another name space");
        users.extend(found.unseen.iter().map(|unseen| elsewhere(&unseen.kind)));
        users.extend(found.swaps.iter().map(|swap| format!("{} is swap", swap.path.display())));
    }
    let name = device.file_name().unwrap_or_default();
    let above = Path::new("/sys/class/block").join(name).join("holders");
    let above = fs::read_dir(above).into_iter().flatten().flatten();
    users.extend(above.map(|entry| format!("{} lies on it", entry.file_name().display())));
    let opened = |link: &Path| {
        let meta = fs::metadata(link);
        meta.is_ok_and(|meta| {
            use std::os::unix::fs::{FileTypeExt, MetadataExt};
            let number = (major(meta.rdev()), minor(meta.rdev()));
            meta.file_type().is_block_device() && numbers.contains(&number)
        })
    };
    users.extend(processes(&[server, std::process::id() as i32], &["fd"], opened));
    users
}

/// Which programs have something open below a mounted directory.
pub fn of_mount(directory: &Path) -> Vec<String> {
    let Some(number) = mounted().ok().and_then(|all| {
        all.into_iter().rfind(|mount| mount.point == directory).map(|mount| mount.number)
    }) else {
        return Vec::new();
    };
    let within = |link: &Path| {
        fs::metadata(link).is_ok_and(|meta| {
            let dev = std::os::unix::fs::MetadataExt::dev(&meta);
            (major(dev), minor(dev)) == number
        })
    };
    processes(&[std::process::id() as i32], &["cwd", "root", "exe", "fd"], within)
}

/// Processes of which one of these links fits.
fn processes(but: &[i32], names: &[&str], fits: impl Fn(&Path) -> bool) -> Vec<String> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let holds = |pid: &i32| {
        let of = |name: &&str| -> bool {
            let path = PathBuf::from(format!("/proc/{pid}/{name}"));
            match fs::read_dir(&path) {
                Ok(entries) if *name == "fd" => entries.flatten().any(|entry| fits(&entry.path())),
                _ => fits(&path),
            }
        };
        !but.contains(pid) && names.iter().any(of)
    };
    let mut found: Vec<i32> = pids.filter(holds).collect();
    found.sort_unstable();
    let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let more = found.len().saturating_sub(NAMED);
    let named = found.iter().take(NAMED);
    let mut texts: Vec<String> =
        named.map(|pid| format!("process {pid} ({}) uses it", name(*pid).trim())).collect();
    if more > 0 {
        texts.push(format!("{more} processes more"));
    }
    texts
}
