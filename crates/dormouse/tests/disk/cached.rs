//! The cache on disk: it saves fetching, and is believed in nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use dormouse::disk::{DiskOptions, open_own};
use dormouse::exit::Class;
use dormouse::netdisk::{Opening, Options};
use dormouse::report::Report;
use dormouse_device::BlockDevice;
use dormouse_format::record::HEADER_LEN;

use super::stand::*;
use crate::common::assert_fails;
use crate::common::program::{Numbers, Place, chunks};

/// Damages every chunk in the store: what is read after that comes from the cache.
fn spoil_store(place: &Place) {
    for segment in place.segments() {
        let file = OpenOptions::new().read(true).write(true).open(&segment).unwrap();
        for (at, _) in chunks(&segment) {
            let at = (at + HEADER_LEN + 3) as u64;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
    }
}

#[test]
fn what_was_read_once_is_there_after_a_restart_also_at_another_point() {
    let (place, _server) = Place::served();
    let versions = versions(&place, 2);
    let options = cached(&place, 64 << 20);
    let disk = open(&place, "v@2", &options);
    reads_whole(&*disk, &versions[1], 1 << 20);
    drop(disk);
    spoil_store(&place);
    for seed in 0..2 {
        let disk = open(&place, "v@2", &options);
        reads_right(&*disk, &versions[1], seed, 60);
        reads_whole(&*disk, &versions[1], 50_000);
    }
    // Of the older point all is there but what was changed.
    let disk = open(&place, "v@1", &options);
    let (mut right, mut failed) = (0, 0);
    for at in (0..versions[0].len() / 4096 * 4096).step_by(4096) {
        let mut out = [0; 4096];
        let old = &versions[0][at..at + 4096];
        match disk.read(at as u64, &mut out) {
            Ok(()) => {
                assert!(out == old, "block at {at}");
                right += 1;
            }
            Err(_) => {
                failed += 1;
                assert!(versions[1][at..at + 4096] != *old, "block at {at} is in the cache");
            }
        }
    }
    assert!(right > 2000 && failed > 5, "{right} right, {failed} failed");
}

#[test]
fn a_damaged_cache_gives_no_wrong_byte() {
    let (place, _server) = Place::served();
    let versions = versions(&place, 2);
    let options = cached(&place, 16 << 20);
    let mut numbers = Numbers(3);
    let files = ["data", "index"].map(|name| place.path("cache").join(name));
    let damage = |numbers: &mut Numbers, times: u64| {
        for path in &files {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let len = file.metadata().unwrap().len();
            for _ in 0..times {
                let n = 1 + numbers.below(9000) as usize;
                let at = numbers.below(len - n as u64);
                let bytes = numbers.noise(n);
                file.write_all_at(if n % 2 == 0 { &bytes } else { &bytes[..1] }, at).unwrap();
            }
        }
    };
    for round in 0..12 {
        let image = &versions[round % 2];
        let disk = open(&place, &format!("v@{}", round % 2 + 1), &options);
        reads_right(&*disk, image, round as u64, 15);
        // While it is in use, and while it is not.
        damage(&mut numbers, 20);
        reads_whole(&*disk, image, 30_000);
        drop(disk);
        match round {
            // Cut, gone, and of another size.
            3 => File::create(&files[0]).unwrap().set_len(5000).unwrap(),
            5 => File::create(&files[1]).unwrap().set_len(5000).unwrap(),
            7 => std::fs::remove_file(&files[0]).unwrap(),
            8 => std::fs::remove_file(&files[1]).unwrap(),
            _ => damage(&mut numbers, 60),
        }
    }
    let disk = open(&place, "v@1", &cached(&place, 5 << 20));
    reads_whole(&*disk, &versions[0], 1 << 20);
}

/// Entries that are exchanged: right blocks at wrong places.
#[test]
fn a_shuffled_cache_gives_no_wrong_byte() {
    let (place, _server) = Place::served();
    let image = versions(&place, 1).remove(0);
    let options = cached(&place, 16 << 20);
    reads_whole(&*open(&place, "v", &options), &image, 1 << 20);
    let data = std::fs::read(place.path("cache/data")).unwrap();
    let mut blocks: Vec<_> = data.chunks(4096).collect();
    blocks.rotate_left(1);
    std::fs::write(place.path("cache/data"), blocks.concat()).unwrap();
    let disk = open(&place, "v", &options);
    reads_whole(&*disk, &image, 1 << 20);
    reads_right(&*disk, &image, 1, 50);
}

#[test]
fn it_keeps_to_its_size_and_to_its_owner() {
    let (place, _server) = Place::served();
    let image = versions(&place, 1).remove(0);
    let options = cached(&place, 2 << 20);
    let disk = open(&place, "v", &options);
    for seed in 0..3 {
        reads_whole(&*disk, &image, 1 << 20);
        reads_right(&*disk, &image, seed, 30);
    }
    let mut bytes = 0;
    for name in ["data", "index", "lock"] {
        let meta = std::fs::metadata(place.path("cache").join(name)).unwrap();
        assert_eq!(meta.mode() & 0o777, 0o600, "{name}");
        bytes += meta.blocks() * 512;
    }
    assert!(bytes <= (2 << 20) + (2 << 20) / 128 + 8192, "{bytes} bytes");
    assert_eq!(std::fs::metadata(place.path("cache")).unwrap().mode() & 0o777, 0o700);
    assert_fails(try_open(&place, "v", &options).map(|_| ()), Class::InUse, "in use by process");
    drop(disk);
    open(&place, "v", &options);
    let small = cached(&place, 1000);
    assert_fails(try_open(&place, "v", &small).map(|_| ()), Class::Usage, "too small");
}

#[test]
fn the_rest_is_pulled_in_the_background_and_needs_no_server_then() {
    let (place, server) = Place::served();
    let image = versions(&place, 1).remove(0);
    let options = DiskOptions { fill: true, ..cached(&place, 64 << 20) };
    let disk = open(&place, "v", &options);
    let until = Instant::now() + Duration::from_secs(60);
    let all = |disk: &dyn BlockDevice| disk.ready(0, image.len() as u64);
    while !all(&*disk) {
        assert!(Instant::now() < until, "it is never filled");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    reads_whole(&*disk, &image, 1 << 20);
    reads_right(&*disk, &image, 2, 50);
}

/// The owner of a volume lays changes over the point: what was kept of it is not given out.
#[test]
fn what_the_owner_changes_is_read_at_once_whatever_was_kept() {
    let (place, _server) = Place::served();
    let mut image = versions(&place, 1).remove(0);
    let home = home(&place);
    let newest = Opening::new(&home, "v", Options::default()).map(|o| *o.head()).unwrap();
    let mut report = Report::new(false, true);
    let (base, opened) =
        open_own(&home, "v", &newest, &cached(&place, 64 << 20), &mut report).unwrap();
    let disk = opened.device;
    reads_whole(&*disk, &image, 1 << 20);
    // A few blocks, many, more than the disk has now, and fewer.
    for (start, count, size) in
        [(3u64, 20, image.len()), (100, 6000, 40 << 20), (0, 1, 3 << 20), (5, 6, 9 << 20)]
    {
        let mut runs = dormouse_format::extents::ExtentsWriter::new();
        runs.zero(start, count);
        base.apply(size as u64, &[runs.take()]).unwrap();
        image.resize(size, 0);
        let end = ((start + count) as usize * 4096).min(size);
        image[start as usize * 4096..end].fill(0);
        assert_eq!(disk.geometry().size, size as u64);
        reads_right(&*disk, &image, start, 20);
        reads_whole(&*disk, &image, 1 << 20);
    }
    assert!(base.apply(1 << 20, &[vec![9, 9, 9]]).is_err());
}
