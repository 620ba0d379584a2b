//! What is found on real disks.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dormouse_track::freeze::{FileSystem, FreezeError, Unseen};

use crate::roles::freezer;
use crate::stand::{
    Disk, LONG, Mounted, Volume, Write1, is_frozen, make, possible, run, survey_of, until,
};

fn points(file_systems: &[FileSystem]) -> Vec<String> {
    file_systems.iter().map(|one| one.mount_point().display().to_string()).collect()
}

#[test]
fn both_partitions_of_a_whole_disk_are_found() {
    if !possible("two partitions") {
        return;
    }
    let disk = Disk::partitioned([64, 320]);
    let first = Mounted::fresh("ext4", &disk.partition(1));
    let second = Mounted::fresh("xfs", &disk.partition(2));
    let other = Volume::new("ext4");
    let found = disk.survey();
    assert_eq!(points(&found.file_systems), [first.point(), second.point()]);
    let kinds: Vec<_> = found.file_systems.iter().map(|one| one.kind.as_str()).collect();
    assert_eq!(kinds, ["ext4", "xfs"]);
    assert_eq!(found.unseen, []);
    assert_eq!(points(&survey_of(&disk.partition(2)).file_systems), [second.point()]);
    assert_eq!(points(&other.file_systems()), [other.point()]);

    let held = found.holding(&second.file(".")).unwrap().unwrap();
    assert_eq!(held.mount_point(), Path::new(second.point()));
    assert_eq!(found.holding(&other.mounted.file(".")).unwrap(), None);
    assert!(found.holding(Path::new("/no/such/path")).is_err());
}

#[test]
fn a_bind_mount_does_not_count_twice() {
    if !possible("bind mounts") {
        return;
    }
    let volume = Volume::new("ext4");
    let directory = volume.mounted.file("inner");
    fs::create_dir(&directory).unwrap();
    let bound = Mounted::new(&["--bind", directory.to_str().unwrap()]);
    let found = volume.file_systems();
    assert_eq!(points(&found), [volume.point()]);
    let mounts: Vec<_> = found[0].mounts.iter().map(|mount| mount.point.as_path()).collect();
    assert_eq!(mounts, [Path::new(volume.point()), Path::new(bound.point())]);
}

#[test]
fn a_read_only_file_system_is_found_and_not_frozen() {
    if !possible("read-only file systems") {
        return;
    }
    let disk = Disk::new(64);
    make("ext4", &[&disk.device]);
    let mounted = Mounted::new(&["-o", "ro", &disk.device]);
    let found = disk.survey().file_systems;
    assert_eq!((points(&found), found[0].writable), (vec![mounted.point().to_owned()], false));
    let mut freezer = freezer();
    let frozen = freezer.freeze(&found, LONG).unwrap();
    assert!(!is_frozen(mounted.point()));
    frozen.thaw().unwrap();
}

#[test]
fn a_read_only_view_of_a_writable_file_system_is_frozen() {
    if !possible("read-only views") {
        return;
    }
    let volume = Volume::new("ext4");
    run(&["mount", "-o", "remount,bind,ro", volume.point()]);
    let found = volume.file_systems();
    assert!(found[0].writable);
    let mut freezer = freezer();
    let frozen = freezer.freeze(&found, LONG).unwrap();
    assert!(is_frozen(volume.point()));
    frozen.thaw().unwrap();
}

#[test]
fn a_btrfs_is_found_on_both_of_its_disks_and_once() {
    if !possible("btrfs on two disks") {
        return;
    }
    let disks = [Disk::new(160), Disk::new(160)];
    make("btrfs", &[&disks[0].device, &disks[1].device]);
    run(&["btrfs", "device", "scan", &disks[0].device, &disks[1].device]);
    let mounted = Mounted::new(&[&disks[0].device]);
    let volume = mounted.file("sub");
    run(&["btrfs", "subvolume", "create", volume.to_str().unwrap()]);
    let sub = Mounted::new(&["-o", "subvol=sub", &disks[1].device]);
    for disk in &disks {
        let found = disk.survey();
        assert_eq!(points(&found.file_systems), [mounted.point()]);
        assert_eq!(found.file_systems[0].mounts.len(), 2);
        assert_eq!(found.unseen, []);
    }
    let other = Volume::new("btrfs");
    assert_eq!(points(&other.file_systems()), [other.point()]);

    let mut freezer = freezer();
    let frozen = freezer.freeze(&disks[1].survey().file_systems, LONG).unwrap();
    let write = Write1::start(&sub.file("a"));
    assert!(write.is_stuck());
    frozen.thaw().unwrap();
    write.finish();
}

#[test]
fn a_mount_point_under_another_mount_is_not_mistaken() {
    if !possible("covered mount points") {
        return;
    }
    let volume = Volume::new("ext4");
    let bound = Mounted::new(&["--bind", volume.point()]);
    run(&["mount", "-t", "tmpfs", "cover", volume.point()]);
    let found = volume.file_systems();
    let mut freezer = freezer();
    let frozen = freezer.freeze(&found, LONG).unwrap();
    let write = Write1::start(&bound.file("a"));
    assert!(write.is_stuck(), "the wrong file system was frozen");
    frozen.thaw().unwrap();
    write.finish();

    assert!(bound.unmount());
    match freezer.freeze(&volume.file_systems(), LONG).map(drop) {
        Err(FreezeError::Failed { mount_point, .. }) => {
            assert_eq!(mount_point, Path::new(volume.point()));
        }
        other => panic!("{other:?}"),
    }
    run(&["umount", volume.point()]);
}

/// A file system that only another mount namespace has mounted.
struct Elsewhere {
    child: Child,
}

impl Elsewhere {
    fn new(device: &str, place: &str) -> Elsewhere {
        let script = format!("mount {device} {place} && echo there && exec sleep 60");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).stdout(Stdio::piped());
        Elsewhere { child: command.spawn().unwrap() }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_only_another_namespace_has_mounted_is_named() {
    if !possible("mount namespaces") {
        return;
    }
    let disk = Disk::new(64);
    make("ext4", &[&disk.device]);
    let place = tempfile::TempDir::new().unwrap();
    let elsewhere = Elsewhere::new(&disk.device, place.path().to_str().unwrap());
    let name = disk.device.trim_start_matches("/dev/").to_owned();
    until("it is mounted there", || !disk.survey().unseen.is_empty());
    let found = disk.survey();
    assert_eq!(found.unseen, [Unseen { kind: "ext4".to_owned(), name }]);
    assert_eq!(found.file_systems, []);
    drop(elsewhere);
    until("it is gone there", || disk.survey().unseen.is_empty());
}
