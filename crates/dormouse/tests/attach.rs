//! `attach`, `detach`, `attached`, with the real program, by FUSE and a loop device. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::loops::Loop;
use common::program::{Numbers, Place, Running, Said, Serving, same};
use dormouse_device::kernel::Via;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// A place with a volume 'disk' of one point, or a line that says why not.
struct Stand {
    place: Place,
    name: &'static str,
    server: RefCell<Option<Serving>>,
    address: String,
}

impl Stand {
    /// The name is only this test's: others have loop devices too.
    fn new(name: &'static str, image: impl FnOnce(&Path)) -> Option<Self> {
        if let Some(why) = Via::Fuse.missing() {
            eprintln!("SKIPPED: attaching needs root, FUSE and loop devices: {why}");
            return None;
        }
        let (place, server) = Place::served();
        image(&place.path(name));
        place.mirror(name);
        let address = server.address.clone();
        Some(Self { place, name, server: RefCell::new(Some(server)), address })
    }

    fn start(&self, args: &[&str]) -> Running {
        let records = self.place.path("attached");
        self.place.start_with("home", args, |command| {
            command.env("DORMOUSE_ATTACHED", records);
        })
    }

    fn run(&self, args: &[&str]) -> Said {
        self.start(args).wait()
    }

    fn server_dies(&self) {
        self.server.take().unwrap().kill();
    }

    fn server_comes_back(&self) {
        self.server.replace(Some(self.place.serve(&self.address)));
    }

    fn attach(&self, more: &[&str]) -> Attached<'_> {
        let args = [&["attach", self.name, "--via", "fuse", "--json"], more].concat();
        let said = self.run(&args).ok();
        Attached { stand: self, record: said.json(), notes: said.err }
    }

    fn list(&self) -> Vec<Value> {
        self.run(&["attached", "--json"]).ok().json().as_array().unwrap().clone()
    }
}

/// Detached, by force, when a test fails.
struct Attached<'a> {
    stand: &'a Stand,
    record: Value,
    notes: String,
}

impl Attached<'_> {
    fn device(&self) -> PathBuf {
        self.record["device"].as_str().unwrap().into()
    }

    fn pid(&self) -> i32 {
        self.record["pid"].as_i64().unwrap() as i32
    }

    fn kill(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let until = Instant::now() + SOON;
        while is_running(self.pid()) {
            assert!(Instant::now() < until, "it does not die");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Nothing is left of it.
    #[track_caller]
    fn is_gone(&self) {
        assert!(!is_running(self.pid()), "its process has ended");
        let name = self.device().file_name().unwrap().to_owned();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        // A loop device that is let go of is free when the last has closed it: for a moment that may be
        // another test's process, which looks at all devices.
        let (until, own) = (Instant::now() + SOON, format!("/{}@", self.stand.name));
        let read = || std::fs::read_to_string(&backing).unwrap_or_default();
        while read().contains(&own) {
            assert!(Instant::now() < until, "the device is free: {}", read());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.stand.list(), [] as [Value; 0]);
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if !self.stand.list().is_empty() {
            self.stand.run(&["detach", self.record["device"].as_str().unwrap(), "--force"]);
        }
    }
}

fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn noise(path: &Path) {
    let mut bytes = Numbers(7).noise(5 << 20);
    // A hole, and an end that is no whole leaf.
    bytes[1 << 20..2 << 20].fill(0);
    bytes.truncate((5 << 20) - 8192);
    std::fs::write(path, bytes).unwrap();
}

/// An ext4 with some files.
fn ext4(path: &Path) {
    let from = tempfile::tempdir().unwrap();
    std::fs::write(from.path().join("a"), Numbers(1).noise(300_000)).unwrap();
    std::fs::write(from.path().join("b"), "second").unwrap();
    File::create(path).unwrap().set_len(32 << 20).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(from.path())
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}

#[test]
fn a_point_is_a_disk_until_it_is_detached() {
    let Some(stand) = Stand::new("whole", noise) else { return };
    let image = std::fs::read(stand.place.path("whole")).unwrap();
    let attached = stand.attach(&[]);
    assert_eq!(attached.record["point"], 1);
    assert!(attached.notes.contains("whole: point 1"), "{}", attached.notes);
    same(&attached.device(), &image);
    let refused = File::options().write(true).open(attached.device());
    refused.and_then(|disk| disk.write_all_at(b"x", 0)).unwrap_err();
    let list = stand.list();
    assert_eq!((list.len(), &list[0]["state"]), (1, &Value::from("served")));
    let table = stand.run(&["attached"]).ok().out;
    assert!(table.contains(attached.device().to_str().unwrap()), "{table}");
    let said = stand.run(&["detach", "whole"]).ok();
    assert!(said.out.contains("is detached"), "{said:?}");
    attached.is_gone();
    stand.run(&["detach", "whole"]).fails(4, &["'whole'", "not attached"]);
}

#[test]
fn it_is_mounted_read_only_and_kept_while_in_use() {
    let Some(stand) = Stand::new("mounted", ext4) else { return };
    let dir = stand.place.path("mnt");
    let at = dir.to_str().unwrap();
    stand.run(&["attach", "mounted", "--mount", at]).fails(8, &[at, "No such file"]);
    std::fs::create_dir(&dir).unwrap();
    let attached = stand.attach(&["--mount", at]);
    assert_eq!(std::fs::read(dir.join("a")).unwrap(), Numbers(1).noise(300_000));
    std::fs::write(dir.join("c"), "x").unwrap_err();
    let open = File::open(dir.join("b")).unwrap();
    let own = format!("process {} ", std::process::id());
    stand.run(&["detach", at]).fails(12, &[at, "in use", &own, "--force"]);
    assert_eq!(std::fs::read(dir.join("b")).unwrap(), b"second", "nothing has changed");
    drop(open);
    stand.run(&["detach", at]).ok();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "it is unmounted");
    attached.is_gone();
}

#[test]
fn what_is_written_stays_in_the_overlay() {
    let Some(stand) = Stand::new("overlaid", ext4) else { return };
    let image = std::fs::read(stand.place.path("overlaid")).unwrap();
    let (dir, file) = (stand.place.path("mnt"), stand.place.name("overlay"));
    std::fs::create_dir(&dir).unwrap();
    let args = ["--overlay", &file, "--mount", dir.to_str().unwrap()];
    let attached = stand.attach(&args);
    std::fs::write(dir.join("new"), Numbers(3).noise(200_000)).unwrap();
    std::fs::remove_file(dir.join("a")).unwrap();
    stand.run(&["detach", "overlaid"]).ok();
    attached.is_gone();
    let again = stand.attach(&args);
    assert_eq!(std::fs::read(dir.join("new")).unwrap(), Numbers(3).noise(200_000));
    assert!(!dir.join("a").exists());
    let check = Command::new("umount").arg(&dir).status().unwrap();
    assert!(check.success());
    let fsck = Command::new("e2fsck").arg("-fn").arg(again.device()).output().unwrap();
    assert!(fsck.status.success(), "{fsck:?}");
    stand.run(&["detach", "overlaid"]).ok();
    again.is_gone();
    let point = stand.attach(&[]);
    same(&point.device(), &image);
    stand.run(&["detach", "overlaid"]).ok();
}

#[test]
fn a_device_that_is_open_is_taken_away_by_force_only() {
    let Some(stand) = Stand::new("held", noise) else { return };
    let attached = stand.attach(&[]);
    let open = File::open(attached.device()).unwrap();
    let own = format!("process {} ", std::process::id());
    stand.run(&["detach", "held"]).fails(12, &["in use", &own]);
    assert!(is_running(attached.pid()));
    let began = Instant::now();
    stand.run(&["detach", "held", "--force"]).ok();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let read = open.read_exact_at(&mut [0; 4096], 3 << 20);
    assert!(read.is_err(), "whoever has it open gets errors");
    drop(open);
    attached.is_gone();
}

#[test]
fn what_a_killed_process_has_left_is_removed() {
    let Some(stand) = Stand::new("killed", ext4) else { return };
    let dir = stand.place.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let attached = stand.attach(&["--mount", dir.to_str().unwrap()]);
    attached.kill();
    let list = stand.list();
    assert_eq!(list[0]["state"], "dead");
    let said = stand.run(&["attached"]).ok();
    assert!(said.err.contains("dormouse detach"), "{said:?}");
    // An uncached read fails, and does not hang.
    let device = attached.device();
    let dd = [format!("if={}", device.display()), "of=/dev/null".into(), "iflag=direct".into()];
    assert!(!Command::new("dd").args(dd).output().unwrap().status.success());
    let began = Instant::now();
    stand.run(&["detach", "killed"]).ok();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "it is unmounted");
    attached.is_gone();
}

#[test]
fn in_the_foreground_a_signal_ends_it() {
    let Some(stand) = Stand::new("front", noise) else { return };
    let mut running = stand.start(&["attach", "front@1", "--via", "fuse", "--foreground"]);
    let until = Instant::now() + SOON;
    while !running.out().contains('\n') {
        assert!(!running.ended() && Instant::now() < until, "{}", running.err());
        std::thread::sleep(Duration::from_millis(10));
    }
    let device = running.out().trim().to_owned();
    same(Path::new(&device), &std::fs::read(stand.place.path("front")).unwrap());
    running.signal(rustix::process::Signal::TERM);
    running.wait().ok();
    assert!(stand.list().is_empty());
}

/// Reads a disk past the system's cache.
fn read_direct(device: &Path, at_mib: u64, mib: u64) -> std::process::Child {
    let input = format!("if={}", device.display());
    let range = [format!("skip={at_mib}"), format!("count={mib}")];
    let args = ["of=/dev/null", "bs=1M", "iflag=direct", "status=none"];
    Command::new("dd").arg(input).args(range).args(args).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn reads_wait_for_a_server_that_is_away_and_go_on() {
    let Some(stand) = Stand::new("waits", noise) else { return };
    let attached = stand.attach(&["--no-cache"]);
    stand.server_dies();
    let mut read = read_direct(&attached.device(), 2, 2);
    std::thread::sleep(Duration::from_millis(800));
    assert!(read.try_wait().unwrap().is_none(), "it waits");
    stand.server_comes_back();
    assert!(read.wait().unwrap().success());
    same(&attached.device(), &std::fs::read(stand.place.path("waits")).unwrap());
    stand.run(&["detach", "waits"]).ok();
    attached.is_gone();
}

#[test]
fn with_a_timeout_reads_fail() {
    let Some(stand) = Stand::new("timed", noise) else { return };
    let attached = stand.attach(&["--no-cache", "--timeout", "1s"]);
    stand.server_dies();
    let began = Instant::now();
    assert!(!read_direct(&attached.device(), 2, 1).wait().unwrap().success());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    stand.run(&["detach", "timed"]).ok();
    attached.is_gone();
}

#[test]
fn while_the_server_is_away_a_disk_is_detached_by_force_or_if_nobody_waits() {
    let Some(stand) = Stand::new("away", noise) else { return };
    let idle = stand.attach(&["--no-cache"]);
    let waited = stand.attach(&["--no-cache"]);
    assert_ne!(idle.device(), waited.device());
    stand.server_dies();
    let began = Instant::now();
    stand.run(&["detach", "away"]).fails(2, &[idle.record["device"].as_str().unwrap()]);
    stand.run(&["detach", idle.record["device"].as_str().unwrap()]).ok();
    let mut read = read_direct(&waited.device(), 2, 1);
    std::thread::sleep(Duration::from_millis(300));
    let device = waited.record["device"].as_str().unwrap();
    stand.run(&["detach", device]).fails(12, &["in use", "(dd)"]);
    assert!(read.try_wait().unwrap().is_none(), "it waits");
    stand.run(&["detach", device, "--force"]);
    assert!(!read.wait().unwrap().success(), "who waited gets an error");
    assert!(began.elapsed() < SOON * 2, "{:?}", began.elapsed());
    waited.is_gone();
}

#[test]
fn what_cannot_be_attached_leaves_nothing() {
    let Some(stand) = Stand::new("cannot", noise) else { return };
    stand.run(&["attach", "other"]).fails(4, &["other"]);
    stand.run(&["attach", "cannot@99"]).fails(4, &["99"]);
    stand.run(&["attach", "cannot", "--cache-size", "much"]).fails(2, &["'much'"]);
    let dir = stand.place.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let at = dir.to_str().unwrap();
    // Noise is no file system, and has no partitions.
    stand.run(&["attach", "cannot", "--via", "fuse", "--mount", at]).fails(8, &["no file system"]);
    let part = ["attach", "cannot", "--via", "fuse", "--mount", at, "--partition", "2"];
    stand.run(&part).fails(8, &["p2"]);
    assert!(stand.list().is_empty());
    assert_eq!(
        std::fs::read_dir(stand.place.path("attached"))
            .unwrap()
            .filter(|entry| {
                entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "json")
            })
            .count(),
        0
    );
}

#[test]
fn a_source_that_is_mounted_is_named() {
    let Some(stand) = Stand::new("twin", ext4) else { return };
    let Some(source) = Loop::attach(&stand.place.path("twin"), &["-r"]) else { return };
    let (original, copy) = (stand.place.path("original"), stand.place.path("copy"));
    std::fs::create_dir(&original).unwrap();
    std::fs::create_dir(&copy).unwrap();
    let mounted = Command::new("mount").args(["-o", "ro"]).arg(&source.0).arg(&original).status();
    assert!(mounted.unwrap().success());
    let unmount = Unmount(original.clone());
    let attached = stand.attach(&["--mount", copy.to_str().unwrap()]);
    let words = ["same UUID", original.to_str().unwrap(), "do not mount by UUID"];
    assert!(words.iter().all(|word| attached.notes.contains(word)), "{}", attached.notes);
    assert_eq!(std::fs::read(copy.join("b")).unwrap(), b"second");
    stand.run(&["detach", "twin"]).ok();
    attached.is_gone();
    drop(unmount);
    let attached = stand.attach(&[]);
    assert!(!attached.notes.contains("UUID"), "{}", attached.notes);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn checked(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(
        out.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// An empty volume becomes a disk with a file system. Its process is killed, the server goes
/// away, it is attached again and grows; each point that a sync has made is a clean file system.
#[test]
fn a_volume_is_a_disk_that_is_written() {
    let Some(stand) = Stand::new("written", |path| std::fs::write(path, [1; 4096]).unwrap()) else {
        return;
    };
    stand.run(&["create", "drive", "48MiB"]).ok();
    let attach = |more: &[&str]| {
        let args = [&["attach", "drive", "--via", "fuse", "--json", "--write"], more].concat();
        let said = stand.run(&args).ok();
        Attached { stand: &stand, record: said.json(), notes: said.err }
    };
    let dir = stand.place.path("dir");
    std::fs::create_dir(&dir).unwrap();
    let (dir_text, mut random) = (common::program::text(&dir).to_owned(), Numbers(9));
    let disk = attach(&["--sync"]);
    let device = common::program::text(&disk.device()).to_owned();
    checked("mke2fs", &["-q", "-t", "ext4", &device]);
    checked("mount", &[&device, &dir_text]);
    let mut files = Vec::new();
    for round in 0..6 {
        let bytes = random.noise(300_000 + round * 4096);
        std::fs::write(dir.join(format!("file-{round}")), &bytes).unwrap();
        files.push(bytes);
        rustix::fs::syncfs(File::open(&dir).unwrap()).unwrap();
    }
    checked("umount", &[&dir_text]);
    let synced = last_point(&stand);
    assert!(synced > 6, "each sync makes a point");
    // Killed without a word: what was written by then is sent by the next one.
    disk.kill();
    stand.run(&["detach", "drive"]);
    drop(disk);
    let disk = attach(&[]);
    let device = common::program::text(&disk.device()).to_owned();
    checked("e2fsck", &["-fn", &device]);
    checked("mount", &[&device, &dir_text]);
    for (round, bytes) in files.iter().enumerate() {
        assert!(std::fs::read(dir.join(format!("file-{round}"))).unwrap() == *bytes, "{round}");
    }
    // A flush needs no server.
    stand.server_dies();
    std::fs::write(dir.join("alone"), &files[0]).unwrap();
    rustix::fs::syncfs(File::open(&dir).unwrap()).unwrap();
    checked("umount", &[&dir_text]);
    let said = stand.run(&["detach", "drive"]).ok();
    drop(disk);
    drop(said);
    stand.server_comes_back();
    let disk = attach(&[]);
    assert!(disk.notes.contains("were not sent yet"), "{}", disk.notes);
    stand.run(&["detach", "drive"]).ok();
    drop(disk);
    // Restored, and sound without repair; and so is the state of the last sync.
    for what in ["drive".to_owned(), format!("drive@{synced}")] {
        let image = stand.place.path("restored");
        let image = common::program::text(&image);
        stand.run(&["restore", &what, image, "--force"]).ok();
        checked("e2fsck", &["-fn", image]);
    }
    // Another size, in use and not.
    let disk = attach(&[]);
    stand.run(&["resize", "drive", "56MiB"]).ok();
    let size = |disk: &Attached| File::open(disk.device()).unwrap().seek(SeekFrom::End(0)).unwrap();
    assert_eq!(size(&disk), 56 << 20);
    stand.run(&["resize", "drive", "40MiB"]).fails(2, &["is less", "--shrink"]);
    assert_eq!(stand.list()[0]["size"], 56 << 20);
    stand.run(&["detach", "drive"]).ok();
    drop(disk);
    stand.run(&["resize", "drive", "64MiB"]).ok();
    // A fork of the last sync, made and written in one go; and again.
    let what = format!("drive@{synced}");
    for _ in 0..2 {
        let args = ["attach", &what, "--fork", "trial", "--via", "fuse", "--json"];
        let said = stand.run(&args).ok();
        let disk = Attached { stand: &stand, record: said.json(), notes: said.err };
        assert_eq!((size(&disk), disk.record["written"].as_bool()), (48 << 20, Some(true)));
        let device = common::program::text(&disk.device()).to_owned();
        checked("e2fsck", &["-fn", &device]);
        checked("tune2fs", &["-L", "trial", &device]);
        stand.run(&["detach", "trial"]).ok();
    }
    stand.run(&["restore", "trial", stand.place.path("t").to_str().unwrap()]).ok();
    checked("e2fsck", &["-fn", stand.place.path("t").to_str().unwrap()]);
    let args = ["attach", "drive@1", "--via", "fuse", "--write"];
    stand.run(&args).fails(2, &["in the past", "fork"]);
}

/// The newest point's number.
fn last_point(stand: &Stand) -> u64 {
    let points = stand.run(&["points", "drive", "--json"]).ok().json();
    points.as_array().unwrap().iter().map(|p| p["point"].as_u64().unwrap()).max().unwrap()
}
