//! Active swap of a mirrored disk is zeros in the copy, and no work; and it comes back as content when it
//! is given up, whoever was there then.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::program::Numbers;
use crate::stand::{Stand, done, numbers, sh, until};

const MIB: u64 = 1 << 20;
/// The partition, and what of it is left out.
const AREA: std::ops::Range<u64> = 40 * MIB..56 * MIB;
const HEADER: u64 = 4 << 10;

/// A partition that is swapped to. Given up when it is dropped.
struct Swapping(PathBuf);

impl Swapping {
    /// None, and a loud line, where it cannot be.
    fn begin(stand: &Stand) -> Option<Self> {
        let part = PathBuf::from(format!("{}p1", stand.device.display()));
        let (start, len) = (AREA.start / 512, (AREA.end - AREA.start) / 512);
        let shown = part.display();
        if !done(&format!("addpart {} 1 {start} {len}; mkswap -q {shown}", stand.device.display()))
        {
            eprintln!("SKIPPED: no partition for swap: swap is not tested here");
            return None;
        }
        let swapping = Self(part);
        if !done(&format!("swapon {}", swapping.0.display())) {
            eprintln!("SKIPPED: swapon does not work: swap is not tested here");
            return None;
        }
        Some(swapping)
    }

    fn on(&self) {
        sh(&format!("swapon {}", self.0.display()));
    }

    fn off(&self) {
        sh(&format!("swapoff {}", self.0.display()));
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        let part = self.0.display();
        let disk = self.0.to_str().unwrap().trim_end_matches("p1");
        done(&format!("swapoff {part} 2>/dev/null || true; delpart {disk} 1"));
    }
}

/// Writes as the kernel does that swaps: to the disk, not through the partition.
fn noise(stand: &Stand, numbers: &mut Numbers) {
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    let at = AREA.start + HEADER + MIB;
    device.write_all_at(&numbers.noise(4 << 20), at).unwrap();
    device.sync_all().unwrap();
}

/// Waits until the newest point is the disk, but for zeros behind the header of the area.
#[track_caller]
fn left_out(stand: &Stand) {
    let mut disk = std::fs::read(&stand.image).unwrap();
    let area = (AREA.start + HEADER) as usize..AREA.end as usize;
    assert!(disk[area.clone()].iter().any(|b| *b != 0), "there is nothing to be left out");
    disk[area].fill(0);
    let mut differs = Vec::new();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        let copy = stand.newest_fuzzy();
        let blocks = copy.chunks(4096).zip(disk.chunks(4096)).enumerate();
        differs = blocks.filter(|(_, (a, b))| a != b).map(|(block, _)| block).collect();
        if differs.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let (all, first) = (differs.len(), differs[0]);
    panic!("{all} blocks are not as on the disk, or not zero: {first}…\n{}", stand.log());
}

#[test]
fn active_swap_is_left_out_and_comes_back_when_it_is_given_up() {
    let Some(mut stand) = Stand::new() else { return };
    let mut numbers = numbers();
    stand.umount();
    // Some of it is never written again.
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    device.write_all_at(&numbers.noise(2 << 20), AREA.end - 3 * MIB).unwrap();
    noise(&stand, &mut numbers);
    let Some(swapping) = Swapping::begin(&stand) else { return };
    stand.start(&[]);
    stand.is_live();
    left_out(&stand);
    until("it says so", || {
        stand.status().unwrap()["notes"].to_string().contains("p1 (16.0 MiB) is left out")
    });
    // It may be written as much as it likes: that is no work, and no point.
    until("it is settled, and quiet", || {
        let points = stand.counter("points");
        std::thread::sleep(Duration::from_secs(2));
        stand.counter("settled") > 0 && stand.counter("points") == points
    });
    let (points, read) = (stand.counter("points"), stand.counter("bytes_read"));
    for _ in 0..10 {
        noise(&stand, &mut numbers);
        std::thread::sleep(Duration::from_millis(150));
    }
    let status = stand.status().unwrap();
    assert_eq!((status["state"].as_str(), &status["backlog_bytes"]), (Some("LIVE"), &0.into()));
    assert_eq!(stand.counter("points"), points, "swap makes points: {status}");
    assert_eq!(stand.counter("bytes_read"), read, "swap is read");
    // Anything else goes on as always.
    device.write_all_at(&[7; 8192], 9 * MIB).unwrap();
    device.sync_all().unwrap();
    left_out(&stand);

    // It is given up, and what lies there is content.
    swapping.off();
    stand.comes_back();
    swapping.on();
    left_out(&stand);
    // Also when nobody is there to see it.
    stand.kill();
    swapping.off();
    noise(&stand, &mut numbers);
    stand.start(&[]);
    stand.comes_back();
    stand.kill();
    swapping.on();
    stand.start(&[]);
    left_out(&stand);
    stand.stop();
    stand.start(&["--swap", "copy"]);
    stand.comes_back();
    stand.stop();
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
}
