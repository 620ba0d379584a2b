//! `dormouse check`: what a daemon would do with its file, on this machine, as this user.
//!
//! Owns: what is looked at, and how it is told. Invariants: nothing is changed, and no server is
//! asked; an error is what keeps a mirror from starting now, a warning what may. Leaves to
//! others: what the file means ([`super::config`]).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use dormouse_track::device::Disk;
use rustix::fs::OFlags;
use serde::Serialize;
use serde_json::json;

use super::config::{self, Config, Freeze, MirrorConfig, Tracker};
use crate::exit::{Class, fail};
use crate::home::Home;
use crate::out::{self, say};
use crate::text::{lasting, size};
use crate::which_disk;

/// Beginnings of names that the kernel gives in the order in which it finds disks.
const FOUND: [&str; 9] = ["sd", "hd", "vd", "xvd", "nvme", "mmcblk", "sr", "dm-", "md"];
/// Where names are that a disk keeps; the first that fits is proposed.
const KEPT: [&str; 4] =
    ["/dev/disk/by-id", "/dev/disk/by-partuuid", "/dev/disk/by-uuid", "/dev/disk/by-path"];

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// What would become of one mirror.
#[derive(Debug, Serialize)]
struct Outlook {
    device: PathBuf,
    volume: String,
    /// Whether this home knows the volume.
    known: bool,
    /// Of the device, if it is there.
    size: Option<u64>,
    point_every_ms: u64,
    freeze: &'static str,
    tracker: &'static str,
    limit_bytes_per_s: Option<u64>,
    /// What keeps it from starting now.
    errors: Vec<String>,
    /// What may.
    warnings: Vec<String>,
}

/// Runs the command.
pub fn run(home: &Home, file: &Path, as_json: bool) -> Result<()> {
    let config = match Config::parse(&config::bytes_of(file)?) {
        Ok(config) => config,
        Err(problems) => {
            if as_json {
                say!("{:#}", json!({ "file": file, "problems": problems, "mirrors": [] }))?;
            }
            return Err(config::failure(file, &problems).into());
        }
    };
    let capabilities = capabilities();
    let mut outlooks: Vec<Outlook> =
        config.mirrors.iter().map(|m| outlook(home, m, capabilities)).collect();
    same_devices(&mut outlooks);
    if as_json {
        say!("{:#}", json!({ "file": file, "problems": [], "mirrors": outlooks }))?;
    } else {
        let shown: String = outlooks.iter().map(text_of).collect();
        out::write(shown.as_bytes())?;
    }
    let bad = outlooks.iter().filter(|o| !o.errors.is_empty()).count();
    if bad > 0 {
        return fail(
            Class::Place,
            format!("{bad} of {} mirrors cannot start now", outlooks.len()),
            "the file itself is good; a daemon starts the others, and tries these again and again",
        );
    }
    Ok(())
}

fn outlook(home: &Home, mirror: &MirrorConfig, capabilities: u64) -> Outlook {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let device = found(home, mirror).map_err(|e| errors.push(format!("{e:#}"))).ok();
    let size = device.as_ref().and_then(|d| size_of(d).map_err(|e| errors.push(e)).ok());
    match &device {
        Some(device) if *device != mirror.device => {
            warnings.push(format!("the disk of '{}' is {} now", mirror.volume, device.display()));
        }
        _ => warnings.extend(passing_name(&mirror.device)),
    }
    warnings.extend(missing_rights(mirror, capabilities));
    let known = home.joined().then(|| home.known_volume(&mirror.volume));
    let known = match known {
        None => {
            let home = home.dir().display();
            errors.push(format!("nothing is joined yet in {home}: dormouse join INVITE"));
            false
        }
        Some(Err(error)) => {
            errors.push(format!("{error:#}"));
            false
        }
        Some(Ok(known)) => known.is_some(),
    };
    for hook in mirror.hook_before.iter().chain(&mirror.hook_after) {
        if rustix::fs::access(&hook.program, rustix::fs::Access::EXEC_OK).is_err() {
            errors.push(format!("the hook {} cannot be run", hook.program.display()));
        }
    }
    Outlook {
        device: mirror.device.clone(),
        volume: mirror.volume.clone(),
        known,
        size,
        point_every_ms: u64::try_from(mirror.point_every.as_millis()).unwrap_or(u64::MAX),
        freeze: match mirror.freeze {
            Freeze::Auto => "auto",
            Freeze::Never => "never",
        },
        tracker: match mirror.tracker {
            Tracker::Ebpf => "ebpf",
            Tracker::Scan => "scan",
        },
        limit_bytes_per_s: mirror.limit.map(std::num::NonZeroU64::get),
        errors,
        warnings,
    }
}

/// Where the disk of a mirror is; an error if another one has its name.
fn found(home: &Home, mirror: &MirrorConfig) -> Result<PathBuf> {
    let known = if home.joined() { home.known_volume(&mirror.volume)? } else { None };
    let recorded = known.map(|id| home.known_disk(&id)).transpose()?.flatten();
    let Some(recorded) = recorded else { return Ok(mirror.device.clone()) };
    let named = Disk::of(&mirror.device).map_err(Into::into);
    which_disk::find(&mirror.volume, named, Some(&recorded), &mirror.device).map(|disk| disk.path)
}

/// The size of a device or file that can be read.
fn size_of(device: &Path) -> Result<u64, String> {
    let shown = device.display();
    let kind = fs::metadata(device).map_err(|e| format!("{shown}: {e}"))?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(format!("{shown} is neither a block device nor a file"));
    }
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(device);
    file.and_then(|mut f| f.seek(SeekFrom::End(0)))
        .map_err(|e| format!("{shown} cannot be read: {e}"))
}

/// A warning of a name that another disk may have tomorrow.
fn passing_name(device: &Path) -> Option<String> {
    let name = device.strip_prefix("/dev").ok()?.to_str()?;
    let passing = FOUND.iter().any(|f| name.starts_with(f)) && !name.contains('/');
    if !passing {
        return None;
    }
    let kept = kept_name(device);
    let better = kept.unwrap_or_else(|| PathBuf::from("/dev/disk/by-id/…"));
    Some(format!(
        "another disk may be called {} after the next start; {} stays",
        device.display(),
        better.display()
    ))
}

/// Another name of a device, which it keeps.
fn kept_name(device: &Path) -> Option<PathBuf> {
    let device = fs::canonicalize(device).ok()?;
    KEPT.iter().find_map(|dir| {
        let mut links: Vec<_> = fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).collect();
        links.sort();
        links.into_iter().find(|link| fs::canonicalize(link).is_ok_and(|to| to == device))
    })
}

/// Warnings of what this user may not do.
fn missing_rights(mirror: &MirrorConfig, capabilities: u64) -> Vec<String> {
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    let mut warnings = Vec::new();
    let ebpf = has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON));
    if mirror.tracker == Tracker::Ebpf && !ebpf {
        warnings.push(
            "tracker \"ebpf\" needs root, or CAP_BPF and CAP_PERFMON; \"scan\" does not".into(),
        );
    }
    if mirror.freeze == Freeze::Auto && !has(CAP_SYS_ADMIN) {
        warnings.push("to freeze needs CAP_SYS_ADMIN: without it no point is frozen".into());
    }
    warnings
}

/// The capabilities of this process that have an effect.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Warns of two names for one device.
fn same_devices(outlooks: &mut [Outlook]) {
    let mut seen: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for outlook in outlooks {
        let Ok(real) = fs::canonicalize(&outlook.device) else { continue };
        match seen.get(&real) {
            Some(first) => {
                let first = first.display();
                outlook.warnings.push(format!("it is the same device as {first}"));
            }
            None => {
                seen.insert(real, outlook.device.clone());
            }
        }
    }
}

fn text_of(outlook: &Outlook) -> String {
    let bytes = outlook.size.map_or_else(|| "size unknown".to_owned(), size);
    let known = if outlook.known { "known here" } else { "new here" };
    let freeze = match outlook.freeze {
        "auto" => format!("freezes for a point every {}", lasting(outlook.point_every_ms)),
        _ => "never freezes".to_owned(),
    };
    let limit = outlook.limit_bytes_per_s.map(|l| format!(", at most {} a second", size(l)));
    let mut text = format!(
        "{}: {}, {bytes}; volume {known}\n  {freeze}, tracker {}{}\n",
        outlook.volume,
        outlook.device.display(),
        outlook.tracker,
        limit.unwrap_or_default(),
    );
    let findings = [("error", &outlook.errors), ("warning", &outlook.warnings)];
    for (kind, lines) in findings {
        for line in lines {
            text.push_str(&format!("  {kind}: {line}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_stay_are_told() {
        for passing in ["/dev/sda", "/dev/sdb1", "/dev/nvme0n1p2", "/dev/vda", "/dev/dm-3"] {
            let warning = passing_name(Path::new(passing)).unwrap();
            assert!(warning.contains(passing) && warning.contains("/dev/disk/"), "{warning}");
        }
        for kept in ["/dev/disk/by-id/sda", "/dev/mapper/sdx", "/dev/vg/root", "/srv/sda"] {
            assert_eq!(passing_name(Path::new(kept)), None, "{kept}");
        }
    }

    #[test]
    fn rights_are_those_of_the_tracker_and_of_freezing() {
        let mut mirror = MirrorConfig::new("/dev/x".into());
        let warnings = |mirror: &MirrorConfig, caps: &[u32]| {
            missing_rights(mirror, caps.iter().map(|c| 1u64 << c).sum()).len()
        };
        assert_eq!(warnings(&mirror, &[]), 2);
        assert_eq!(warnings(&mirror, &[CAP_BPF]), 2);
        assert_eq!(warnings(&mirror, &[CAP_BPF, CAP_PERFMON]), 1);
        assert_eq!(warnings(&mirror, &[CAP_SYS_ADMIN]), 0);
        mirror.tracker = Tracker::Scan;
        mirror.freeze = Freeze::Never;
        assert_eq!(warnings(&mirror, &[]), 0);
    }

    #[test]
    fn what_is_no_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        std::fs::write(&file, [0; 5000]).unwrap();
        assert_eq!(size_of(&file), Ok(5000));
        assert!(size_of(dir.path()).unwrap_err().contains("neither"));
        assert!(size_of(&dir.path().join("none")).unwrap_err().contains("No such file"));
    }
}
