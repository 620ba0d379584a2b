//! Surveys of trees that look like those of other machines.

use std::os::unix::fs::symlink;

use rustix::fs::makedev;
use tempfile::TempDir;

use super::*;

/// A tree with a `proc`, a `sys` and a `dev`.
struct Machine {
    place: TempDir,
    mounts: String,
}

impl Machine {
    fn new() -> Machine {
        let place = TempDir::new().unwrap();
        for directory in ["proc/self", "sys/dev/block", "sys/devices", "sys/fs", "dev/mapper"] {
            fs::create_dir_all(place.path().join(directory)).unwrap();
        }
        Machine { place, mounts: String::new() }
    }

    /// A device: `sda`, or `sda/sda1` for a partition.
    fn device(&self, path: &str, number: &str) -> &Machine {
        let own = self.place.path().join("sys/devices").join(path);
        fs::create_dir_all(own.join("holders")).unwrap();
        fs::write(own.join("dev"), format!("{number}\n")).unwrap();
        if path.contains('/') {
            fs::write(own.join("partition"), "1\n").unwrap();
        }
        symlink(&own, self.place.path().join("sys/dev/block").join(number)).unwrap();
        fs::write(self.place.path().join("dev").join(own.file_name().unwrap()), "").unwrap();
        self
    }

    /// `upper` is stacked on `lower`.
    fn stack(&self, upper: &str, lower: &str) -> &Machine {
        let devices = self.place.path().join("sys/devices");
        symlink(devices.join(upper), devices.join(lower).join("holders").join(upper)).unwrap();
        self
    }

    /// The kernel has a file system of this type in use: `ext4/sda1`.
    fn in_use(&self, path: &str) -> &Machine {
        fs::create_dir_all(self.place.path().join("sys/fs").join(path)).unwrap();
        self
    }

    /// A btrfs in use on these devices.
    fn pool(&self, uuid: &str, names: &[&str]) -> &Machine {
        for name in names {
            self.in_use(&format!("btrfs/{uuid}/devices/{name}"));
        }
        self
    }

    fn mount(&mut self, id: u64, number: &str, point: &str, kind: &str, source: &str) -> &mut Self {
        self.mounts += &format!("{id} 1 {number} / {point} rw - {kind} {source} rw\n");
        self
    }

    fn survey(&self, (major, minor): (u32, u32)) -> Result<OnDevice, FreezeError> {
        let root = self.place.path();
        fs::write(root.join("proc/self/mountinfo"), &self.mounts).unwrap();
        let roots = Roots { proc: root.join("proc"), sys: root.join("sys"), dev: root.join("dev") };
        survey(&roots, makedev(major, minor))
    }

    /// First mount points of what is found on a device.
    fn points(&self, number: (u32, u32)) -> Vec<String> {
        let found = self.survey(number).unwrap();
        found.file_systems.iter().map(|one| one.mount_point().display().to_string()).collect()
    }
}

const SDA: (u32, u32) = (8, 0);
const SDB: (u32, u32) = (8, 16);

#[test]
fn partitions_volumes_and_what_is_stacked_on_them_belong_to_the_disk() {
    let mut machine = Machine::new();
    machine.device("sda", "8:0").device("sda/sda1", "8:1").device("sda/sda2", "8:2");
    machine.device("sdb", "8:16").device("sdb/sdb1", "8:17");
    // LUKS on sda2, LVM in it; and an array of sda1 and sdb1, with a partition of its own.
    machine.device("dm-0", "253:0").stack("dm-0", "sda/sda2");
    machine.device("dm-1", "253:1").stack("dm-1", "dm-0");
    machine.device("md0", "9:0").stack("md0", "sda/sda1").stack("md0", "sdb/sdb1");
    machine.device("md0/md0p1", "259:0");
    machine.mount(21, "253:1", "/", "ext4", "/dev/mapper/vg-root");
    machine.mount(22, "259:0", "/data", "xfs", "/dev/md0p1");
    machine.mount(23, "8:16", "/other", "ext4", "/dev/sdb");
    machine.mount(24, "0:31", "/tmp", "tmpfs", "tmpfs");
    assert_eq!(machine.points(SDA), ["/", "/data"]);
    assert_eq!(machine.points(SDB), ["/data", "/other"]);
    assert_eq!(machine.points((8, 2)), ["/"], "a partition alone");
    assert_eq!(machine.points((253, 1)), ["/"], "a volume alone");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let error = Machine::new().survey((8, 48)).unwrap_err();
    assert_eq!(error.to_string(), "the kernel knows no block device 8:48");
}

#[test]
fn mounts_of_one_file_system_are_one() {
    let mut machine = Machine::new();
    machine.device("sda", "8:0");
    machine
        .mount(21, "8:0", "/", "ext4", "/dev/sda")
        .mount(30, "8:0", "/srv/x", "ext4", "/dev/sda");
    let found = machine.survey(SDA).unwrap();
    let [one] = &found.file_systems[..] else { panic!("{:?}", found.file_systems) };
    let mount = |id, point: &str| Mount { id, point: point.into() };
    assert_eq!(one.mounts, [mount(21, "/"), mount(30, "/srv/x")]);
    assert_eq!((one.number, one.writable), (SDA, true));
}

#[test]
fn a_btrfs_lies_on_each_of_its_devices() {
    let mut machine = Machine::new();
    machine
        .device("sda", "8:0")
        .device("sdb", "8:16")
        .device("sdc", "8:32")
        .device("dm-0", "253:0");
    symlink("../dm-0", machine.place.path().join("dev/mapper/pool")).unwrap();
    machine.stack("dm-0", "sda");
    machine.pool("u-1", &["dm-0", "sdb"]).pool("u-2", &["sdc"]);
    machine.mount(21, "0:40", "/", "btrfs", "/dev/mapper/pool");
    machine.mount(22, "0:40", "/home", "btrfs", "/dev/mapper/pool");
    machine.mount(23, "0:41", "/c", "btrfs", "/dev/sdc");
    for number in [SDA, SDB] {
        let found = machine.survey(number).unwrap();
        assert_eq!(found.file_systems.len(), 1);
        assert_eq!(found.file_systems[0].mounts.len(), 2);
        assert_eq!(found.unseen, []);
    }
    assert_eq!(machine.points((8, 32)), ["/c"]);
}

#[test]
fn a_btrfs_of_unclear_source_counts_as_lying_on_the_disk() {
    let mut machine = Machine::new();
    machine.device("sda", "8:0").device("sdb", "8:16").pool("u-1", &["sda"]);
    machine.mount(21, "0:40", "/", "btrfs", "/dev/root");
    assert_eq!(machine.points(SDA), ["/"]);
    assert_eq!(machine.points(SDB), [""; 0]);
}

#[test]
fn what_only_others_have_mounted_is_unseen() {
    let mut machine = Machine::new();
    machine.device("sda", "8:0").device("sda/sda1", "8:1").device("sda/sda2", "8:2");
    machine.device("sdb", "8:16");
    machine.in_use("ext4/sda1").in_use("xfs/sda2").in_use("ext4/features").in_use("ext4/sdb");
    machine.pool("u-1", &["sda2"]);
    machine.mount(21, "8:1", "/", "ext4", "/dev/sda1");
    let unseen = |kind: &str, name: &str| Unseen { kind: kind.into(), name: name.into() };
    let found = machine.survey(SDA).unwrap();
    assert_eq!(found.unseen, [unseen("xfs", "sda2"), unseen("btrfs", "u-1")]);
}

#[test]
fn swap_on_the_disk_and_in_its_files_is_found() {
    let mut machine = Machine::new();
    machine.device("sda", "8:0").device("sda/sda1", "8:1").device("sda/sda2", "8:2");
    machine.device("sdb", "8:16");
    machine.mount(21, "8:1", "/", "ext4", "/dev/sda1").mount(22, "8:16", "/b", "ext4", "/dev/sdb");
    let text = "Filename Type Size Used Priority\n/dev/sda2 partition 8 0 -2\n/swapfile file 8 0 -3\n\
                /b/swapfile file 8 0 -4\n/dev/sdb partition 8 0 -5\n";
    fs::write(machine.place.path().join("proc/swaps"), text).unwrap();
    let swap = |path: &str, is_file| Swap { path: path.into(), is_file };
    let found = machine.survey(SDA).unwrap();
    assert_eq!(found.swaps, [swap("/dev/sda2", false), swap("/swapfile", true)]);
}

#[test]
fn a_path_lies_on_the_innermost_and_last_mount() {
    let mut machine = Machine::new();
    machine.device("sda", "8:0").device("sdb", "8:16");
    machine.mount(21, "8:0", "/", "ext4", "/dev/sda").mount(22, "8:16", "/var", "ext4", "/dev/sdb");
    let found = machine.survey(SDA).unwrap();
    assert!(found.holding_name(Path::new("/variable")).is_some());
    assert!(found.holding_name(Path::new("/var/lib")).is_none());
    machine.mount(23, "8:0", "/var", "ext4", "/dev/sda");
    let found = machine.survey(SDA).unwrap();
    assert!(found.holding_name(Path::new("/var/lib")).is_some());
}

#[test]
fn a_type_that_cannot_be_frozen_is_known() {
    let mut machine = Machine::new();
    machine.device("sda", "8:0").device("sda/sda1", "8:1").device("sda/sda2", "8:2");
    machine.mount(21, "8:1", "/boot/efi", "vfat", "/dev/sda1");
    machine.mount(22, "8:2", "/", "ext4", "/dev/sda2");
    let found = machine.survey(SDA).unwrap();
    let able: Vec<_> = found.file_systems.iter().map(FileSystem::can_freeze).collect();
    assert_eq!(able, [false, true]);
}
