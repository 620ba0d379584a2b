//! A disk with an ext4 on it, a server behind a relay, and a daemon that mirrors the one to the
//! other. Whatever was begun is ended when it is dropped, also after a failure.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dormouse_track::device::Disk;
use dormouse_track::ebpf::{self, Watch};
use dormouse_track::record::Record;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::loops::Loop;
use crate::common::program::{Numbers, Place, Running, Serving, text};
use crate::common::relay::Relay;

const MIB: u64 = 1 << 20;
/// Of the disk.
pub const SIZE: u64 = 96 * MIB;
/// Nothing that is waited for takes longer.
const LIMIT: Duration = Duration::from_secs(20);

pub struct Stand {
    pub place: Place,
    pub server: Option<Serving>,
    pub relay: Relay,
    pub volume: String,
    /// Of the daemon; a path below the place, or one of its own.
    pub home: String,
    pub daemon: Option<Running>,
    pub device: PathBuf,
    pub mount: PathBuf,
    /// What daemons before this one have logged.
    logged: String,
    address: String,
    device_loop: Option<Loop>,
    pub image: PathBuf,
    /// Of the image, in memory.
    _memory: tempfile::TempDir,
}

/// None, and a loud line, where a live mirror cannot run.
fn may_run() -> Option<()> {
    let why = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        "this kernel has no BTF"
    } else if !mounted(ebpf::place().parent()?) && !done("mount -t bpf bpf /sys/fs/bpf") {
        "no BPF file system"
    } else {
        return Some(());
    };
    eprintln!("SKIPPED: {why}: a live mirror is not tested here");
    None
}

fn mounted(at: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().any(|l| l.split(' ').nth(1) == at.to_str())
}

/// Runs a line of commands; whether all was well.
pub fn done(line: &str) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    command.args(["-ec", line]).env("PATH", path).stdin(Stdio::null());
    let out = command.output().unwrap();
    if !out.status.success() {
        let said = [out.stdout, out.stderr].concat();
        eprintln!("{line}: {}", String::from_utf8_lossy(&said).trim());
    }
    out.status.success()
}

#[track_caller]
pub fn sh(line: &str) {
    assert!(done(line), "{line}");
}

/// Waits until it is so.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The seed of a test, told so that it can be given again.
pub fn numbers() -> Numbers {
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("DORMOUSE_LIVE_SEED").map_or(clock, |s| s.parse().unwrap());
    println!("DORMOUSE_LIVE_SEED={seed}");
    Numbers(seed)
}

impl Stand {
    /// Without a daemon. None, and a loud line, where it cannot be.
    pub fn new() -> Option<Self> {
        Self::of(SIZE)
    }

    /// The same with a disk of this size.
    pub fn of(size: u64) -> Option<Self> {
        may_run()?;
        let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let image = memory.path().join("image");
        File::create(&image).unwrap().set_len(size).unwrap();
        if !done(&format!("mke2fs -q -F -t ext4 {}", image.display())) {
            eprintln!("SKIPPED: mke2fs does not run: a live mirror is not tested here");
            return None;
        }
        let device_loop = Loop::attach(&image, &[])?;
        let place = Place::new();
        let server = place.serve("127.0.0.1:0");
        let address = server.address.clone();
        let relay = Relay::start(&address);
        let invite = place.run(&["invite", &place.name("store"), "me", "--url", &relay.address]);
        place.run(&["join", invite.ok().out.trim()]).ok();
        place.run(&["recovery-kit", &place.name("kit")]).ok();
        let mount = place.path("mnt");
        std::fs::create_dir(&mount).unwrap();
        let stand = Self {
            // The pins of a test are found by the volume's name.
            volume: format!("live{}", memory.path().file_name()?.display()).replace('.', "-"),
            home: "home".into(),
            device: device_loop.0.clone(),
            device_loop: Some(device_loop),
            daemon: None,
            logged: String::new(),
            server: Some(server),
            _memory: memory,
            place,
            relay,
            mount,
            address,
            image,
        };
        stand.mount();
        Some(stand)
    }

    /// With a daemon that is LIVE.
    pub fn live(more: &[&str]) -> Option<Self> {
        let mut stand = Self::new()?;
        stand.start(more);
        stand.is_live();
        Some(stand)
    }

    pub fn mount(&self) {
        sh(&format!("mount {} {}", self.device.display(), self.mount.display()));
    }

    pub fn umount(&self) {
        sh(&format!("umount {}", self.mount.display()));
    }

    /// The command line of a mirror of the disk.
    pub fn mirror<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["mirror", text(&self.device), "--volume", &self.volume], more].concat()
    }

    pub fn start(&mut self, more: &[&str]) {
        self.daemon = Some(self.place.start_in(&self.home, &self.mirror(more)));
    }

    fn take(&mut self) -> Running {
        let daemon = self.daemon.take().unwrap();
        self.logged.push_str(&daemon.err());
        daemon
    }

    /// kill -9 of the daemon.
    pub fn kill(&mut self) {
        self.take().kill();
    }

    /// Its clean end.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.signal(Signal::TERM);
        self.logged.push_str(&daemon.wait().ok().err);
    }

    /// kill -9 of the server; the next is there after so long.
    pub fn restart_server(&mut self, after: Duration) {
        self.server.take().unwrap().kill();
        std::thread::sleep(after);
        self.serve();
    }

    /// Starts the server where it was.
    pub fn serve(&mut self) {
        self.server = Some(self.place.serve(&self.address));
    }

    /// What all daemons have logged.
    pub fn log(&self) -> String {
        format!("{}{}", self.logged, self.daemon.as_ref().map(Running::err).unwrap_or_default())
    }

    /// The lines of scans in it.
    pub fn scans(&self) -> Vec<String> {
        self.log().lines().filter(|l| l.contains(": SCANNING: ")).map(str::to_owned).collect()
    }

    /// The volume, as the daemon's socket shows it.
    pub fn status(&self) -> Option<Value> {
        let pid = self.daemon.as_ref()?.child.id();
        let socket = self.place.path(&self.home).join(format!("run/status-{pid}.sock"));
        let mut peer = UnixStream::connect(socket).ok()?;
        peer.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        peer.write_all(b"status\n").ok()?;
        let mut line = String::new();
        BufReader::new(peer).read_line(&mut line).ok()?;
        let json: Value = serde_json::from_str(&line).ok()?;
        let volumes = json["volumes"].as_array()?;
        volumes.iter().find(|v| v["volume"] == *self.volume).cloned()
    }

    /// A number of it; 0 where there is none yet.
    pub fn counter(&self, name: &str) -> u64 {
        self.status().and_then(|v| v["counters"][name].as_u64()).unwrap_or(0)
    }

    #[track_caller]
    pub fn is_live(&mut self) {
        self.becomes("LIVE");
    }

    #[track_caller]
    pub fn becomes(&mut self, state: &str) {
        let began = Instant::now();
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(|v| v["state"] == state) {
                return;
            }
            let ended = self.daemon.as_mut().unwrap().ended();
            let late = began.elapsed() > LIMIT;
            assert!(!ended && !late, "not {state}: {status:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The points of this grade, oldest first.
    pub fn points(&self, grade: &str) -> Vec<u64> {
        let points = self.place.run(&["points", &self.volume, "--json"]).ok().json();
        let points = points.as_array().unwrap().iter().filter(|p| p["grade"] == grade);
        points.map(|p| p["point"].as_u64().unwrap()).collect()
    }

    /// Restores a point, or the newest one, into memory.
    fn restored(&self, point: Option<u64>) -> PathBuf {
        let dest = self.image.with_file_name("restored");
        let at = point.map_or_else(String::new, |n| format!("@{n}"));
        let what = format!("{}{at}", self.volume);
        self.place.run(&["restore", &what, text(&dest), "--force"]).ok();
        dest
    }

    /// What a point holds.
    pub fn at(&self, point: u64) -> Vec<u8> {
        std::fs::read(self.restored(Some(point))).unwrap()
    }

    /// The number of the newest point that can be taken.
    pub fn newest_point(&self) -> u64 {
        let all = [self.points("settled"), self.points("frozen")].concat();
        all.into_iter().max().unwrap()
    }

    /// The newest point that can be taken.
    pub fn newest(&self) -> Vec<u8> {
        std::fs::read(self.restored(None)).unwrap()
    }

    /// What a restore of it says.
    pub fn said_at_restore(&self) -> String {
        let dest = self.image.with_file_name("restored");
        self.place.run(&["restore", &self.volume, text(&dest), "--force"]).ok().err
    }

    /// The newest point, whatever its grade.
    pub fn newest_fuzzy(&self) -> Vec<u8> {
        let dest = self.image.with_file_name("fuzzy");
        let args = ["restore", &self.volume, text(&dest), "--force", "--fuzzy"];
        self.place.run(&args).ok();
        std::fs::read(dest).unwrap()
    }

    /// A file system that was frozen is clean as it is; one that settled, after its journal.
    #[track_caller]
    pub fn is_sound(&self, point: u64, grade: &str) {
        let dest = self.restored(Some(point));
        let at = self.place.path("sound");
        let (image, at) = (dest.display(), at.display());
        if grade == "settled" {
            sh(&format!("mkdir -p {at}; mount -o loop {image} {at}; umount {at}"));
        }
        assert!(done(&format!("e2fsck -fn {image}")), "{grade} point {point} is not clean");
    }

    /// Waits until the newest point is the disk, bit for bit. Nothing may be mounted.
    #[track_caller]
    pub fn comes_back(&self) {
        let began = Instant::now();
        loop {
            let restored = self.restored(None);
            let (copy, disk) =
                (std::fs::read(restored).unwrap(), std::fs::read(&self.image).unwrap());
            if copy == disk {
                return;
            }
            if began.elapsed() > LIMIT {
                let differs = |(a, b): (&[u8], &[u8])| a != b;
                let at = copy.chunks(4096).zip(disk.chunks(4096)).position(differs);
                panic!(
                    "the newest point ({} bytes) is not the disk ({} bytes): block {at:?}\n{}",
                    copy.len(),
                    disk.len(),
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Makes the image behind the device as long as this; the device does not know.
    pub fn cut_short(&self, size: u64) {
        std::fs::File::options().write(true).open(&self.image).unwrap().set_len(size).unwrap();
    }

    /// Makes the device as large as this.
    pub fn resize(&self, size: u64) {
        File::options().write(true).open(&self.image).unwrap().set_len(size).unwrap();
        sh(&format!("losetup -c {}", self.device.display()));
    }

    /// Puts an image behind a device that is free, and takes that for the disk from now on.
    pub fn plug(&mut self, device: &Path, image: &Path) {
        self.unplug();
        sh(&format!("losetup {} {}", device.display(), image.display()));
        self.device_loop = Some(Loop(device.to_owned()));
        self.device = device.to_owned();
        self.image = image.to_owned();
    }

    /// Takes the disk away.
    pub fn unplug(&mut self) {
        self.device_loop = None;
    }

    /// Where what watches the disk is pinned.
    pub fn pins(&self) -> Option<PathBuf> {
        let all = std::fs::read_dir(ebpf::place()).into_iter().flatten().flatten();
        let mut all = all.map(|entry| entry.path());
        all.find(|p| p.file_name().unwrap().to_string_lossy().starts_with(&*self.volume))
    }

    /// What watches the disk, and what is on record of that.
    pub fn watch(&self) -> Option<(Watch, Record)> {
        let id =
            std::fs::read_to_string(self.place.path("home/volumes").join(&self.volume)).ok()?;
        let id: Vec<u8> = id.as_bytes()[..32]
            .chunks(2)
            .map(|hex| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap())
            .collect();
        let disk = Disk::of(&self.device).unwrap();
        Watch::find(&disk, &self.pins()?, &id.try_into().unwrap()).unwrap().ok()
    }

    /// Removes what watches the disk, as a reboot does.
    pub fn remove_pins(&self) -> bool {
        self.pins().is_some_and(|pins| std::fs::remove_dir_all(pins).is_ok())
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.daemon = None;
        let at = self.mount.display();
        if mounted(&self.mount) {
            // Nothing may be frozen any more; if it is, it would hang all that follows.
            done(&format!("fsfreeze -u {at} 2>/dev/null || true; umount -l {at}"));
        }
        self.device_loop = None;
        self.remove_pins();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
