//! Follows a disk by its marks alone while it writes to it: `follow_device DEVICE WRITES`.
//!
//! For disks that a test on this machine does not have (virtio, NVMe, device mapper, md): carried into a
//! virtual machine. Everything on the disk is lost. Ends with an error if a block was missed, or if
//! something had no range. Never shipped.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dormouse_track::device::Disk;
use dormouse_track::dirty::Dirty;
use dormouse_track::ebpf::{self, Watch};
use rustix::fs::OFlags;

const BLOCK: usize = 4096;
/// Sectors of the largest write.
const MOST: u64 = 64;
const WRITERS: u64 = 3;

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Memory for direct reads and writes.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Self {
        Self(vec![0; MOST as usize * 512 + BLOCK])
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[start..start + len]
    }
}

fn open(path: &Path, write: bool, direct: bool) -> std::io::Result<File> {
    let flag = if direct { OFlags::DIRECT.bits() as i32 } else { 0 };
    File::options().read(true).write(write).custom_flags(flag).open(path)
}

/// Sectors of the least that the disk takes.
fn unit(disk: &Disk) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let path = format!("/sys/block/{}/queue/logical_block_size", disk.name);
    Ok(std::fs::read_to_string(path)?.trim().parse::<u64>()? / 512)
}

fn writer(path: &Path, sectors: u64, unit: u64, seed: u64, until: &AtomicU64) -> Outcome {
    let direct = !seed.is_multiple_of(WRITERS);
    let file = open(path, true, direct)?;
    let (mut state, mut buffer) = (seed + 1, Aligned::new());
    let mut below = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % n
    };
    while until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
        // Half of them in a small part: written again and again.
        let part = if below(2) == 0 { sectors / 16 } else { sectors / 2 };
        let count = (1 + below(MOST)).next_multiple_of(unit);
        // Direct and buffered writes of the same place get in each other's way.
        let at = below(part - MOST) + if direct { sectors / 2 } else { 0 };
        let at = at - at % unit;
        let bytes = buffer.bytes(count as usize * 512);
        bytes.fill(1 + below(255) as u8);
        file.write_all_at(bytes, at * 512)?;
        if below(200) == 0 {
            file.sync_data()?;
        }
    }
    Ok(file.sync_all()?)
}

fn pass(watch: &Watch, file: &File, copy: &mut [u8]) -> Outcome {
    let marks = watch.marks()?;
    marks.cut();
    let (dirty, _) = marks.carried(usize::MAX, u64::MAX, &Dirty::default());
    let mut buffer = Aligned::new();
    for block in dirty.all_blocks() {
        let at = block as usize * BLOCK;
        let Some(len) = copy.len().checked_sub(at).map(|n| n.min(BLOCK)) else { continue };
        file.read_exact_at(buffer.bytes(len), at as u64)?;
        copy[at..at + len].copy_from_slice(buffer.bytes(len));
    }
    marks.forget(&dirty);
    marks.carry_back();
    Ok(())
}

fn whole(file: &File, size: usize) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let (mut all, mut buffer) = (Vec::with_capacity(size), Aligned::new());
    while all.len() < size {
        let want = (size - all.len()).min(MOST as usize * 512);
        file.read_exact_at(buffer.bytes(want), all.len() as u64)?;
        all.extend_from_slice(buffer.bytes(want));
    }
    Ok(all)
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, writes] = &arguments[..] else {
        return Err("usage: follow_device DEVICE WRITES".into());
    };
    let (path, left) = (Path::new(path), AtomicU64::new(writes.parse()?));
    let disk = Disk::of(path)?;
    let pins = ebpf::place().join("follow_device");
    let watch = Watch::begin(&disk, &pins)?;
    let file = open(path, false, true)?;
    let size = disk.size() as usize;
    let mut copy = whole(&file, size)?;
    let unit = unit(&disk)?;
    let (done, mut passes) = (AtomicBool::new(false), 0);
    std::thread::scope(|scope| -> Outcome {
        let writers: Vec<_> = (0..WRITERS)
            .map(|seed| {
                scope.spawn({
                    let left = &left;
                    move || writer(path, disk.range.sectors, unit, seed, left)
                })
            })
            .collect();
        let (done, watch, file) = (&done, &watch, &file);
        let follower = scope.spawn(|| -> Outcome {
            while !done.load(Ordering::Relaxed) {
                pass(watch, file, &mut copy)?;
                passes += 1;
            }
            pass(watch, file, &mut copy)?;
            pass(watch, file, &mut copy)
        });
        let ended: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        done.store(true, Ordering::Relaxed);
        for end in ended {
            end.map_err(|_| "a writer panicked")??;
        }
        follower.join().map_err(|_| "the follower panicked")?
    })?;
    let now = whole(&file, size)?;
    let missed = copy.chunks(BLOCK).zip(now.chunks(BLOCK)).filter(|(a, b)| a != b).count();
    let everything = watch.marks()?.everything();
    let kind = disk.kind;
    watch.end()?;
    println!(
        "{}: {kind:?}, {writes} writes, {passes} passes, {missed} missed, {everything} of everything",
        path.display()
    );
    if missed > 0 || everything > 0 {
        return Err("marks were missed".into());
    }
    Ok(())
}
