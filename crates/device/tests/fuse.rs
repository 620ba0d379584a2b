//! A disk by FUSE and a loop device, on this machine's kernel: needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use dormouse_device::file::FileDevice;
use dormouse_device::kernel::{Front, Options, Via};
use dormouse_device::{BlockDevice, Error, Geometry, Result, Write, Zero};

const SIZE: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// False, and a line that says why, where this cannot be tried.
fn possible() -> bool {
    match Via::Fuse.missing() {
        None => true,
        Some(why) => {
            eprintln!("SKIPPED: FUSE and loop devices need root and a kernel that has them: {why}");
            false
        }
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let out =
        Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said =
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {said}");
    said
}

/// A place with a file that is the disk.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        File::create(place.image()).unwrap().set_len(SIZE).unwrap();
        std::fs::create_dir(place.mount_point()).unwrap();
        place
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn file(&self, read_only: bool) -> Arc<FileDevice> {
        Arc::new(FileDevice::open(&self.image(), read_only).unwrap())
    }
}

/// Given back also when a test fails.
struct Attached(Box<dyn Front>);

impl Attached {
    fn new(disk: Arc<dyn BlockDevice>) -> Self {
        Self(Via::Fuse.attach(disk, &Options::new(label())).unwrap())
    }

    fn path(&self) -> String {
        self.0.path().to_str().unwrap().to_owned()
    }

    fn stop(self) {
        self.0.stop(PATIENCE).unwrap();
        assert!(self.0.ended(PATIENCE), "the kernel has let go of it");
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.0.stop(Duration::from_secs(1));
    }
}

/// Another one for each test: each has its thread.
fn label() -> String {
    format!("test-{:?}", std::thread::current().id())
}

fn sysfs(device: &str, name: &str) -> String {
    let path = format!("/sys/block/{}/{name}", device.strip_prefix("/dev/").unwrap());
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_owned()
}

#[test]
fn a_file_system_is_made_used_trimmed_and_whole() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let attached = Attached::new(place.file(false));
    let (device, mount) = (attached.path(), place.mount_point());
    assert_eq!(sysfs(&device, "loop/dio"), "1", "nothing is kept twice");
    assert_eq!(sysfs(&device, "size"), (SIZE / 512).to_string());
    run("mke2fs", &["-q", "-t", "ext4", "-E", "nodiscard", &device]);
    run("mount", &[&device, mount.to_str().unwrap()]);
    let mounted = Mounted(mount.clone());
    let bytes: Vec<u8> = (0..40u32 << 20).map(|n| (n % 251) as u8).collect();
    let file = File::create(mount.join("big")).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap();
    let blocks = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap());
    let full = blocks(&place.image());
    assert!(full > 40 << 11, "a sync brings the bytes to the disk: {full}");
    drop(file);
    std::fs::remove_file(mount.join("big")).unwrap();
    std::fs::write(mount.join("small"), &bytes[..100_000]).unwrap();
    run("sync", &["-f", mount.to_str().unwrap()]);
    run("fstrim", &["-v", mount.to_str().unwrap()]);
    let trimmed = blocks(&place.image());
    assert!(trimmed < full / 4, "what is trimmed takes no space: {trimmed} of {full}");
    drop(mounted);
    attached.stop();
    run("e2fsck", &["-fn", place.image().to_str().unwrap()]);
    let found = run("debugfs", &["-R", "stat small", place.image().to_str().unwrap()]);
    assert!(found.contains("Size: 100000"), "{found}");
    assert!(!Via::Fuse.is_there(number(&device), &label()));
}

fn number(device: &str) -> u32 {
    device.strip_prefix("/dev/loop").unwrap().parse().unwrap()
}

/// Unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn zeros_are_zeros_with_and_without_a_hole() {
    if !possible() {
        return;
    }
    let place = Place::new();
    File::options()
        .write(true)
        .open(place.image())
        .unwrap()
        .write_all_at(&[7; 1 << 20], 0)
        .unwrap();
    let attached = Attached::new(place.file(false));
    let device = attached.path();
    run("blkdiscard", &["-z", "-o", "0", "-l", "262144", &device]);
    run("blkdiscard", &["-f", "-o", "524288", "-l", "262144", &device]);
    attached.stop();
    let image = std::fs::read(place.image()).unwrap();
    let at = |from: usize| image[from..from + 262_144].iter().all(|b| *b == 0);
    assert!(at(0) && at(524_288));
    assert!(image[262_144..524_288].iter().chain(&image[786_432..1 << 20]).all(|b| *b == 7));
}

#[test]
fn a_read_only_disk_refuses_writes() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let attached = Attached::new(place.file(true));
    let device = attached.path();
    assert_eq!(sysfs(&device, "ro"), "1");
    let mut bytes = [1; 4096];
    File::open(&device).unwrap().read_exact_at(&mut bytes, SIZE - 4096).unwrap();
    assert_eq!(bytes, [0; 4096]);
    // Some kernels refuse at once, others when something is written.
    let opened = OpenOptions::new().write(true).open(&device);
    opened.and_then(|disk| disk.write_all_at(&[1; 4096], 0)).unwrap_err();
    attached.stop();
}

#[test]
fn a_size_may_change() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let file = place.file(false);
    let attached = Attached::new(file.clone());
    file.resize(SIZE * 2).unwrap();
    attached.0.resized().unwrap();
    let device = attached.path();
    assert_eq!(sysfs(&device, "size"), (SIZE * 2 / 512).to_string());
    let end = OpenOptions::new().read(true).write(true).open(&device).unwrap();
    end.write_all_at(&[9; 4096], SIZE * 2 - 4096).unwrap();
    end.sync_all().unwrap();
    drop(end);
    attached.stop();
    let image = File::open(place.image()).unwrap();
    let mut bytes = [0; 4096];
    image.read_exact_at(&mut bytes, SIZE * 2 - 4096).unwrap();
    assert_eq!(bytes, [9; 4096]);
}

/// A disk whose reads of one half wait, as for a server that is away.
struct Away {
    below: Arc<FileDevice>,
    away: Mutex<bool>,
    news: Condvar,
    waits: AtomicBool,
}

impl Away {
    fn on(below: Arc<FileDevice>) -> Arc<Self> {
        let waits = AtomicBool::new(false);
        Arc::new(Self { below, away: Mutex::new(true), news: Condvar::new(), waits })
    }

    fn come_back(&self) {
        *self.away.lock().unwrap() = false;
        self.news.notify_all();
    }

    fn is_waited_for(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.waits.load(Ordering::Relaxed) {
            assert!(Instant::now() < until, "nobody reads there");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl BlockDevice for Away {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }
    fn ready(&self, at: u64, _len: u64) -> bool {
        at < SIZE / 2
    }
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        if !self.ready(at, 1) {
            self.waits.store(true, Ordering::Relaxed);
            let mut away = self.away.lock().unwrap();
            while *away {
                away = self.news.wait(away).unwrap();
            }
        }
        self.below.read(at, out)
    }
    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        self.below.write(at, bytes, how)
    }
    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        self.below.zero(at, len, how)
    }
    fn flush(&self) -> Result<()> {
        self.below.flush()
    }
}

/// Reads 4 KiB past the system's cache.
fn read_direct(device: &str, at: u64) -> std::process::Child {
    let (skip, input) = (format!("skip={}", at / 4096), format!("if={device}"));
    let args = ["of=/dev/null", "bs=4096", "count=1", "iflag=direct", "status=none"];
    Command::new("dd").arg(input).arg(skip).args(args).spawn().unwrap()
}

#[test]
fn reads_that_wait_hold_up_nothing_else_and_go_on() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let disk = Away::on(place.file(false));
    let attached = Attached::new(disk.clone());
    let device = attached.path();
    // More of them than there are threads.
    let mut waiting: Vec<_> = (0..40).map(|n| read_direct(&device, SIZE / 2 + n * 8192)).collect();
    disk.is_waited_for();
    let began = Instant::now();
    assert!(read_direct(&device, 8192).wait().unwrap().success());
    let write = ["if=/dev/zero", &format!("of={device}"), "bs=4096", "count=1", "oflag=direct"];
    run("dd", &write);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert!(waiting.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "they wait");
    disk.come_back();
    for mut child in waiting {
        assert!(child.wait().unwrap().success());
    }
    attached.stop();
}

#[test]
fn a_stop_does_not_wait_for_what_does_not_come() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let disk = Away::on(place.file(false));
    let attached = Attached::new(disk.clone());
    let mut waiting = read_direct(&attached.path(), SIZE / 2);
    disk.is_waited_for();
    let began = Instant::now();
    let _ = attached.0.stop(Duration::from_millis(300));
    assert!(!waiting.wait().unwrap().success(), "its read fails");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert!(attached.0.ended(PATIENCE));
    assert!(!Via::Fuse.is_there(attached.0.number(), &label()));
    disk.come_back();
}

#[test]
fn an_error_of_the_disk_is_an_error_of_the_device() {
    struct Bad(Arc<FileDevice>);
    impl BlockDevice for Bad {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
            if (1 << 20..2 << 20).contains(&at) {
                return Err(Error::Damaged("as planned".into()));
            }
            self.0.read(at, out)
        }
    }
    if !possible() {
        return;
    }
    let place = Place::new();
    let attached = Attached::new(Arc::new(Bad(place.file(true))));
    let device = attached.path();
    assert!(!read_direct(&device, 1 << 20).wait().unwrap().success());
    assert!(read_direct(&device, 3 << 20).wait().unwrap().success());
    attached.stop();
}
