//! The scene of a Debian with an NVMe disk of data, mounted from its start to its stop: what
//! docs/reboot.md says is to be done, done, with the files of `contrib` as they are.
//!
//! Owns: what is installed in it. Leaves to others: how a Debian is made ([`super::debian`]).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::debian::Debian;
use super::image::stripped;
use super::kernel::Kernel;
use super::machine::{Machine, nvme};
use super::{COMMON, disk};

/// What it is called.
pub const NAME: &str = "data-disk";
/// What it shows.
pub const WHAT: &str = "initramfs-tools and systemd: a mounted NVMe disk: reboots without a scan; a scan if written \
     unseen, not watched early, not closed late";
/// Five starts of a Debian.
const LIMIT: Duration = Duration::from_secs(1500);
const ROOT: u64 = 1 << 30;
const DATA: u64 = 64 << 20;
/// Of the disk, as mke2fs reads it: what lies behind is written from outside.
const FILE_SYSTEM: &str = "48M";
/// The machine says so each time that it starts itself anew.
const AGAIN: &str = "AGAIN";
const STARTS: usize = 4;

/// Files that are put there: what, where, mode.
const FILES: &[(&str, &str, u32)] = &[
    (include_str!("scenes/data_disk_scene.service"), "/etc/systemd/system/scene.service", 0o644),
    (include_str!("scenes/data_disk_work.service"), "/etc/systemd/system/work.service", 0o644),
    (
        include_str!("scenes/data_disk_outside.sh"),
        "/etc/initramfs-tools/scripts/init-premount/outside",
        0o755,
    ),
    ("/dev/vda / ext4 defaults 0 1\n/dev/nvme0n1 /data ext4 defaults 0 2\n", "/etc/fstab", 0o644),
    ("/dev/nvme0n1\n", "/etc/dormouse/early", 0o644),
    ("MODULES=list\nCOMPRESS=gzip\n", "/etc/initramfs-tools/conf.d/scene", 0o644),
    ("virtio_pci\nvirtio_blk\next4\n", "/etc/initramfs-tools/modules", 0o644),
    ("0123456789abcdef0123456789abcdef\n", "/etc/machine-id", 0o444),
    ("data-disk\n", "/etc/hostname", 0o644),
    ("[Journal]\nStorage=persistent\n", "/etc/systemd/journald.conf.d/scene.conf", 0o644),
];

/// Files of `contrib`, and where their own first lines and docs/daemon.md say that they go.
const CONTRIB: &[(&str, &str, u32)] = &[
    ("initramfs-tools/dormouse.hook", "/etc/initramfs-tools/hooks/dormouse", 0o755),
    (
        "initramfs-tools/dormouse.premount",
        "/etc/initramfs-tools/scripts/local-premount/dormouse",
        0o755,
    ),
    ("systemd/dormouse.service", "/etc/systemd/system/dormouse.service", 0o644),
    ("systemd/dormouse-close.service", "/etc/systemd/system/dormouse-close.service", 0o644),
    ("systemd/dormouse-serve.service", "/etc/systemd/system/dormouse-serve.service", 0o644),
    ("systemd/dormouse-serve.socket", "/etc/systemd/system/dormouse-serve.socket", 0o644),
    ("systemd/dormouse.sysusers", "/etc/sysusers.d/dormouse.conf", 0o644),
];

const ENABLED: &str = "dormouse.service dormouse-close.service dormouse-serve.socket dormouse-serve.service work.service \
     scene.service";
/// What only takes time here.
const MASKED: &str = "serial-getty@ttyS0.service getty@tty1.service e2scrub_reap.service";
const ARGUMENTS: &str = "root=/dev/vda ro";

pub fn play(kernel: &Kernel, place: &Path, log: &mut String) -> Result<()> {
    let debian = Debian::made(place, kernel)?;
    install(&debian)?;
    let initrd = place.join("data-disk.initrd");
    debian.initrd(kernel, &initrd)?;
    let root = place.join("data-disk-root.disk");
    debian.disk(&root, ROOT)?;
    let flag = disk(place, "data-disk-flag.disk", 1 << 20)?;
    let data = disk(place, "data-disk-nvme.disk", DATA)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4"]).arg(&data).arg(FILE_SYSTEM);
    ensure!(mke2fs.status()?.success(), "mke2fs failed");
    let machine =
        Machine::boot_with(&kernel.file(), &initrd, &[&root, &flag], ARGUMENTS, &nvme(&data))?;
    let status = machine.wait(LIMIT, log)?;
    ensure!(status == 0, "the script has ended with status {status}");
    ensure!(log.matches(AGAIN).count() == STARTS, "it was not started anew {STARTS} times");
    Ok(())
}

fn install(debian: &Debian) -> Result<()> {
    debian.file("/usr/bin/dormouse", &stripped(Path::new("target/debug/dormouse"))?, 0o755)?;
    for (text, to, mode) in FILES {
        debian.file(to, text.as_bytes(), *mode)?;
    }
    for (from, to, mode) in CONTRIB {
        debian.file(to, &fs::read(Path::new("contrib").join(from))?, *mode)?;
    }
    let script = include_str!("scenes/data_disk.sh");
    debian.file("/run.sh", format!("{COMMON}\n{script}").as_bytes(), 0o755)?;
    debian.run(&format!(
        "systemd-sysusers; systemctl -q enable {ENABLED}; systemctl -q mask {MASKED}; mkdir -p /data"
    ))
}
