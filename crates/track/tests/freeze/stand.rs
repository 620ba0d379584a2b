//! Disks, file systems and writers to freeze. Every wait is bounded, and everything is thawed,
//! unmounted and detached at the end, also when a test fails.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_track::freeze::{FileSystem, Mount, OnDevice, Roots, survey};
use tempfile::TempDir;

/// Far longer than anything here takes, far shorter than the longest hold.
pub const SOON: Duration = Duration::from_secs(8);
/// A hold that no test waits out.
pub const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// Whether this machine can do it; says so loudly if not.
pub fn possible(what: &str) -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "needs root"
    } else if !Path::new("/dev/loop-control").exists() {
        "needs loop devices"
    } else {
        return true;
    };
    skip(what, missing);
    false
}

/// Past the capture of the test harness.
pub fn skip(what: &str, why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED: {what}: {why}");
}

/// Runs a tool, for 20 s at most.
pub fn try_run(line: &[&str]) -> Output {
    Command::new("timeout").arg("20").args(line).output().unwrap()
}

/// Runs a tool that must succeed, and returns what it prints.
pub fn run(line: &[&str]) -> String {
    let out = try_run(line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A loop device over a sparse file.
pub struct Disk {
    pub device: String,
    pub image: PathBuf,
    place: Option<TempDir>,
}

impl Disk {
    pub fn new(mib: u64) -> Disk {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let mut disk = Disk::over(&place.path().join("image"), mib);
        disk.place = Some(place);
        disk
    }

    /// Over a file in a place that is kept elsewhere.
    pub fn over(image: &Path, mib: u64) -> Disk {
        File::create(image).unwrap().set_len(mib * MIB).unwrap();
        let device = run(&["losetup", "--find", "--show", "--partscan", image.to_str().unwrap()]);
        Disk { device, image: image.to_owned(), place: None }
    }

    /// Two partitions, each as large as told. The kernel is told of them directly: it need not
    /// understand partition tables.
    pub fn partitioned(mib: [u64; 2]) -> Disk {
        let disk = Disk::new(1 + mib[0] + mib[1]);
        let mut start = 1;
        for (number, mib) in ["1", "2"].into_iter().zip(mib) {
            let sectors = |mib: u64| (mib * MIB / 512).to_string();
            run(&["addpart", &disk.device, number, &sectors(start), &sectors(mib)]);
            start += mib;
        }
        disk
    }

    pub fn partition(&self, number: u32) -> String {
        format!("{}p{number}", self.device)
    }

    pub fn survey(&self) -> OnDevice {
        survey_of(&self.device)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        try_run(&["losetup", "--detach", &self.device]);
    }
}

/// What is in use on a device.
pub fn survey_of(device: &str) -> OnDevice {
    survey(&Roots::default(), fs::metadata(device).unwrap().rdev()).unwrap()
}

/// The file system at a mount point, as a survey would describe it.
pub fn file_system_at(point: &str) -> FileSystem {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = text.lines().rev().find(|line| line.split(' ').nth(4) == Some(point)).unwrap();
    let fields: Vec<_> = line.split(' ').collect();
    let dash = fields.iter().position(|field| *field == "-").unwrap();
    FileSystem {
        mounts: vec![Mount { id: fields[0].parse().unwrap(), point: point.into() }],
        kind: fields[dash + 1].to_owned(),
        source: fields[dash + 2].into(),
        writable: true,
        number: (0, 0),
    }
}

/// A place where something is mounted. Thawed and unmounted when dropped.
pub struct Mounted {
    place: TempDir,
}

impl Mounted {
    /// Runs `mount` with these arguments and the place.
    pub fn new(arguments: &[&str]) -> Mounted {
        let place = TempDir::new().unwrap();
        let mounted = Mounted { place };
        run(&[&["mount"], arguments, &[mounted.point()]].concat());
        mounted
    }

    /// Makes a file system on a device first.
    pub fn fresh(kind: &str, device: &str) -> Mounted {
        make(kind, &[device]);
        Mounted::new(&[device])
    }

    pub fn point(&self) -> &str {
        self.place.path().to_str().unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub fn unmount(&self) -> bool {
        try_run(&["umount", self.point()]).status.success()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let until = Instant::now() + SOON;
        // Thawed first: what is unmounted while it is frozen stays so, out of reach.
        while thaw_by_hand(self.point()) || !self.unmount() {
            if Instant::now() > until {
                try_run(&["umount", "--lazy", self.point()]);
                return;
            }
            let gone = !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(self.point());
            if gone {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Makes a file system.
pub fn make(kind: &str, devices: &[&str]) {
    let quiet: &[&str] = if kind == "btrfs" { &["-q", "-f"] } else { &["-q"] };
    run(&[&[&format!("mkfs.{kind}")[..]], quiet, devices].concat());
}

/// A disk with one mounted file system.
pub struct Volume {
    pub mounted: Mounted,
    pub disk: Disk,
}

impl Volume {
    pub fn new(kind: &str) -> Volume {
        let mib = if kind == "xfs" { 320 } else { 128 };
        let disk = Disk::new(mib);
        Volume { mounted: Mounted::fresh(kind, &disk.device), disk }
    }

    pub fn file_systems(&self) -> Vec<FileSystem> {
        self.disk.survey().file_systems
    }

    pub fn point(&self) -> &str {
        self.mounted.point()
    }
}

pub fn freeze_by_hand(point: &str) {
    run(&["fsfreeze", "--freeze", point]);
}

pub fn thaw_by_hand(point: &str) -> bool {
    try_run(&["fsfreeze", "--unfreeze", point]).status.success()
}

/// Asks the kernel by trying; leaves it as it was.
pub fn is_frozen(point: &str) -> bool {
    let out = try_run(&["fsfreeze", "--freeze", point]);
    if out.status.success() {
        assert!(thaw_by_hand(point));
        return false;
    }
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("busy"), "{text}");
    true
}

/// Waits for something that is to come soon; returns how long it took.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// Waits until a file system is thawed.
pub fn until_thawed(point: &str) -> Duration {
    until("it is thawed", || !is_frozen(point))
}

/// A thread that writes one block, syncs it, and says that it is through.
pub struct Write1 {
    done: Receiver<()>,
}

impl Write1 {
    pub fn start(path: &Path) -> Write1 {
        let (sender, done) = channel();
        let path = path.to_owned();
        thread::spawn(move || {
            let mut file = File::create(path).unwrap();
            file.write_all(&[7; 4096]).unwrap();
            file.sync_all().unwrap();
            drop(file);
            let _ = sender.send(());
        });
        Write1 { done }
    }

    /// Whether it has not got through, some time after its start.
    pub fn is_stuck(&self) -> bool {
        self.done.recv_timeout(Duration::from_millis(300)).is_err()
    }

    pub fn finish(&self) {
        self.done.recv_timeout(SOON).expect("a write does not go on");
    }
}
