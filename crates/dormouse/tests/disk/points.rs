//! Every point, honest and at rest.

use std::time::Instant;

use dormouse::disk::DiskOptions;
use dormouse_device::{Error, Write};

use super::stand::*;
use crate::common::program::{Numbers, Place, same};

#[test]
fn each_point_reads_as_its_image_over_a_server_and_in_a_directory() {
    let (served, _server) = Place::served();
    for place in [served, Place::joined()] {
        let versions = versions(&place, 4);
        for (i, image) in versions.iter().enumerate() {
            let what = format!("v@{}", i + 1);
            let opened = try_open(&place, &what, &DiskOptions::default()).unwrap();
            assert_eq!((opened.point, opened.size), (i as u64 + 1, image.len() as u64));
            let disk = opened.device;
            reads_right(&*disk, image, i as u64, 60);
            reads_whole(&*disk, image, 64 << 10);
            let size = image.len() as u64;
            for (at, len) in [(size, 1), (size - 1, 2), (u64::MAX, 2)] {
                let outside = disk.read(at, &mut vec![0; len]);
                assert!(matches!(outside, Err(Error::Range { .. })), "{outside:?}");
            }
            assert!(matches!(disk.write(0, &[1], Write::default()), Err(Error::ReadOnly)));
            assert!(disk.geometry().read_only);
        }
    }
}

/// What is not here is waited for in the thread that reads, and only then is it ready.
#[test]
fn what_was_read_is_ready_and_what_was_not_is_not() {
    let (place, _server) = Place::served();
    let image = versions(&place, 1).remove(0);
    let disk = open(&place, "v", &DiskOptions::default());
    let zero = (3 * MIB + 8192) as u64;
    assert!(!disk.ready(0, 4096) && !disk.ready(zero, 4096));
    // Who waits for a block may have it a moment before it is kept.
    let soon_ready = |at: u64, len: u64| {
        let until = Instant::now() + std::time::Duration::from_secs(20);
        while !disk.ready(at, len) {
            assert!(Instant::now() < until, "{len} bytes at {at} are never ready");
            std::thread::yield_now();
        }
    };
    reads(&*disk, &image, 100, 10);
    soon_ready(0, 4096);
    soon_ready(10, 1);
    reads(&*disk, &image, zero, 1);
    soon_ready(zero, 4096);
    disk.prefetch(8 * MIB as u64, MIB as u64).unwrap();
    soon_ready(8 * MIB as u64, MIB as u64);
    reads(&*disk, &image, 8 * MIB as u64, MIB as u64);
}

#[test]
fn holes_and_changes_are_those_of_the_images() {
    let (place, _server) = Place::served();
    let versions = versions(&place, 4);
    for (i, image) in versions.iter().enumerate() {
        let disk = open(&place, &format!("v@{}", i + 1), &DiskOptions::default());
        let size = image.len() as u64;
        let (mut at, mut holes) = (0, 0);
        while at < size {
            let extents = disk.extents(at, size - at, 2).unwrap();
            assert!(!extents.is_empty() && extents.len() <= 2);
            for e in extents {
                let bytes = &image[at as usize..(at + e.len) as usize];
                assert!(!e.zero || bytes.iter().all(|b| *b == 0), "{} bytes at {at}", e.len);
                holes += if e.hole { e.len } else { 0 };
                at += e.len;
            }
        }
        assert_eq!(at, size);
        assert!(holes >= 2 << 20, "{holes} bytes of holes");
        for (j, old) in versions[..=i].iter().enumerate() {
            let changes = disk.changes_since(&(j + 1).to_string()).unwrap();
            let mut at = 0;
            while at < size {
                for part in changes.parts(at, size - at, 3).unwrap() {
                    for block in (at..at + part.len).step_by(4096) {
                        let of = |image: &[u8]| {
                            let end = (block as usize + 4096).min(image.len());
                            image.get(block as usize..end).map(<[u8]>::to_vec)
                        };
                        assert_eq!(part.changed, of(image) != of(old), "{i} {j} block at {block}");
                    }
                    at += part.len;
                }
            }
        }
        assert!(disk.changes_since("77").is_err());
        // Bytes that are no whole blocks.
        let part = disk.changes_since("1").unwrap().parts(5000, 10, 9).unwrap();
        assert_eq!(part.iter().map(|p| p.len).sum::<u64>(), 10);
    }
}

#[test]
fn many_threads_read_at_once() {
    let (place, _server) = Place::served();
    let image = versions(&place, 1).remove(0);
    for options in [DiskOptions::default(), cached(&place, 4 << 20)] {
        let disk = open(&place, "v", &options);
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let (disk, image) = (&disk, &image);
                scope.spawn(move || reads_right(&**disk, image, seed, 40));
            }
        });
    }
}

/// A disk of any size is there at once, and takes no memory for its size. Times are printed:
/// what they are depends on the machine.
#[test]
fn a_tebibyte_is_open_at_once() {
    if !alone("points::a_tebibyte_is_open_at_once") {
        return;
    }
    let (place, _server) = Place::served();
    let file = std::fs::File::create(place.path("v")).unwrap();
    file.set_len(1 << 40).unwrap();
    let mut numbers = Numbers(5);
    let mut written = Vec::new();
    for _ in 0..300 {
        let at = numbers.below((1 << 28) - 4) << 12;
        let bytes = numbers.noise(8192);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
        written.push((at, bytes));
    }
    place.mirror("v");
    let before = resident();
    let begun = Instant::now();
    let disk = open(&place, "v", &DiskOptions::default());
    let opened = begun.elapsed();
    let mut out = vec![0; 8192];
    // What was written later may lie over what was written first.
    for (at, _) in &written {
        let mut right = vec![0; 8192];
        std::os::unix::fs::FileExt::read_exact_at(
            &std::fs::File::open(place.path("v")).unwrap(),
            &mut right,
            *at,
        )
        .unwrap();
        disk.read(*at, &mut out).unwrap();
        assert!(out == right);
    }
    for _ in 0..20_000 {
        disk.read(numbers.below((1 << 28) - 4) << 12, &mut out).unwrap();
    }
    let grown = resident().saturating_sub(before);
    eprintln!(
        "1 TiB open in {opened:?}; 300 places and 20,000 others read in {:?}, {grown} KiB more",
        begun.elapsed()
    );
    assert!(grown < 160 << 10, "{grown} KiB");
    let extents = disk.extents(0, 1 << 40, 10_000).unwrap();
    assert!(extents.iter().filter(|e| !e.hole).count() <= 600);
}

/// Whether this process runs this test only; else another one runs it, and must succeed: the memory
/// of a process is that of all tests in it.
fn alone(test: &str) -> bool {
    const ALONE: &str = "DORMOUSE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]).env(ALONE, "1");
    let out = again.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    eprintln!("{said}");
    assert!(out.status.success() && said.contains("1 passed"), "{test} failed by itself");
    false
}

/// KiB that this process has in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What `restore` brings and what the disk reads are the same.
#[test]
fn a_disk_copied_out_is_what_a_restore_brings() {
    let (place, _server) = Place::served();
    versions(&place, 3);
    for what in ["v@1", "v@2", "v@3"] {
        let dest = place.name("restored");
        place.run(&["restore", what, &dest, "--force"]).ok();
        let disk = open(&place, what, &DiskOptions::default());
        let mut out = vec![0; disk.geometry().size as usize];
        disk.read(0, &mut out).unwrap();
        same(std::path::Path::new(&dest), &out);
    }
}
