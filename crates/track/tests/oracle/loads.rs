//! Ways to write to a disk.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Child, Command, Stdio};

use crate::follow::Aligned;
use crate::place::{Place, has, run};

pub struct Load {
    pub name: &'static str,
    pub run: fn(&Place),
}

macro_rules! loads {
    ($($name:ident),* $(,)?) => { &[$(Load { name: stringify!($name), run: $name }),*] };
}

pub const ALL: &[Load] = loads![
    direct,
    unaligned,
    buffered,
    mapped,
    io_uring,
    merged,
    write_zeroes,
    ext4,
    discard,
    xfs,
    btrfs,
    discard_all_then_little
];

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

fn open(place: &Place, direct: bool) -> (File, u64) {
    let flag = if direct { rustix::fs::OFlags::DIRECT.bits() as i32 } else { 0 };
    let file = File::options().read(true).write(true).custom_flags(flag).open(&place.device);
    let mut file = file.unwrap();
    let size = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
    (file, size)
}

/// Random places, a unit and its size at most.
fn random_writes(place: &Place, is_direct: bool, unit: u64, most: u64, seed: u64) {
    let (file, size) = open(place, is_direct);
    let mut random = Random(seed);
    let mut buffer = Aligned::new((unit * most) as usize);
    for _ in 0..400 {
        let len = unit * (1 + random.below(most));
        let at = random.below(size / unit - most) * unit;
        buffer.bytes().fill(1 + random.below(255) as u8);
        file.write_all_at(&buffer.bytes()[..len as usize], at).unwrap();
    }
    file.sync_all().unwrap();
}

pub fn direct(place: &Place) {
    random_writes(place, true, 4096, 20, 1);
}

/// Sectors that are no whole blocks.
fn unaligned(place: &Place) {
    random_writes(place, true, 512, 30, 2);
}

pub fn buffered(place: &Place) {
    random_writes(place, false, 1, 9000, 3);
}

pub fn write_at(place: &Place, at: u64, bytes: &[u8]) {
    let (file, _) = open(place, false);
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

fn fio(place: &Place, arguments: &str) {
    if !has("fio") {
        return buffered(place);
    }
    run("fio", |c| {
        c.args(["--name=x", "--output-format=json", "--randrepeat=0", "--allow_mounted_write=1"])
            .arg(format!("--filename={}", place.device.display()))
            .args(arguments.split(' '))
    });
}

fn mapped(place: &Place) {
    fio(place, "--ioengine=mmap --rw=randwrite --bs=4k --number_ios=2000 --end_fsync=1");
}

fn io_uring(place: &Place) {
    fio(
        place,
        "--ioengine=io_uring --direct=1 --iodepth=32 --rw=randwrite --bs=4k --number_ios=3000",
    );
}

/// Neighbours that the kernel puts together.
fn merged(place: &Place) {
    fio(
        place,
        "--ioengine=libaio --direct=1 --iodepth=64 --iodepth_batch=64 --rw=write --bs=4k --number_ios=8000",
    );
}

fn discard(place: &Place) {
    // Ranges that end within blocks; behind them content, so that something changes.
    random_writes(place, true, 4096, 20, 4);
    fio(place, "--ioengine=sync --direct=1 --rw=randtrim --bs=512-128k --number_ios=300");
    random_writes(place, true, 4096, 20, 5);
    blkdiscard(place, &["-o", "1048576", "-l", "5242880"]);
}

fn discard_all_then_little(place: &Place) {
    blkdiscard(place, &[]);
    random_writes(place, true, 512, 3, 6);
}

fn write_zeroes(place: &Place) {
    random_writes(place, true, 4096, 20, 7);
    blkdiscard(place, &["-z", "-o", "512", "-l", "10485760"]);
}

fn blkdiscard(place: &Place, arguments: &[&str]) {
    run("blkdiscard", |c| c.arg("-f").args(arguments).arg(&place.device)).unwrap();
}

fn ext4(place: &Place) {
    file_system(place, "mkfs.ext4", &["-q", "-F"]);
}

fn xfs(place: &Place) {
    file_system(place, "mkfs.xfs", &["-q", "-f"]);
}

fn btrfs(place: &Place) {
    file_system(place, "mkfs.btrfs", &["-q", "-f"]);
}

/// Made, mounted, filled, emptied, trimmed.
fn file_system(place: &Place, mkfs: &str, arguments: &[&str]) {
    let Ok(made) = Command::new(mkfs).args(arguments).arg(&place.device).output() else {
        eprintln!("SKIPPED: no {mkfs} here");
        return direct(place);
    };
    // Too small a disk for this one is said so.
    if !made.status.success() {
        eprintln!("SKIPPED: {mkfs}: {}", String::from_utf8_lossy(&made.stderr));
        return direct(place);
    }
    let at = tempfile::tempdir().unwrap();
    run("mount", |c| c.arg(&place.device).arg(at.path())).unwrap();
    let mounted = Mounted(at.path());
    let mut random = Random(9);
    for file in 0..60u64 {
        let content = vec![file as u8 + 1; random.below(200_000) as usize];
        std::fs::write(at.path().join(file.to_string()), content).unwrap();
    }
    run("sync", |c| c.arg("-f").arg(at.path())).unwrap();
    for file in (0..60).step_by(2) {
        std::fs::remove_file(at.path().join(file.to_string())).unwrap();
    }
    run("sync", |c| c.arg("-f").arg(at.path())).unwrap();
    run("fstrim", |c| c.arg(at.path())).unwrap();
    drop(mounted);
}

struct Mounted<'a>(&'a std::path::Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// Four jobs at once: io_uring at depth, threads, buffered, and discards among writes.
pub fn fio_mixed(place: &Place, writes: u64, seed: u64) -> Child {
    let mut command = Command::new("fio");
    let quarter = (writes / 4).max(1);
    command
        .args(["--output-format=json", "--rw=randwrite", "--randrepeat=0", "--norandommap"])
        .arg(format!("--filename={}", place.device.display()))
        .arg(format!("--number_ios={quarter}"))
        .args(["--size=100%", "--io_size=1t"])
        .arg(format!("--randseed={}", seed + 1))
        .args(["--name=ring", "--ioengine=io_uring", "--direct=1", "--iodepth=16", "--bs=4k"])
        .args(["--name=aio", "--ioengine=libaio", "--direct=1", "--iodepth=8", "--bs=512-16k"])
        .args(["--name=buffered", "--ioengine=psync", "--bs=1k-8k", "--fsync=200"])
        .args(["--name=sync", "--ioengine=psync", "--direct=1", "--bs=4k", "--rw=randtrimwrite"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Writes and trims that fio says it has made.
pub fn fio_writes(json: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(json);
    let numbers = text.split("\"total_ios\" : ").skip(1);
    numbers.map(|rest| rest.split(',').next().unwrap().trim().parse::<u64>().unwrap()).sum()
}
