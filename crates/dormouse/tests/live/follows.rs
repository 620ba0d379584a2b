//! The copy follows a disk in use, of whatever size, and no faster than it may.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::stand::{SIZE, Stand, done, numbers, sh, until};

const MIB: u64 = 1 << 20;

#[test]
fn what_is_written_to_a_mounted_disk_is_in_the_newest_point() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    let load = Load::start(&stand.mount, numbers(), 8);
    std::thread::sleep(Duration::from_secs(2));
    assert!(load.end() > 100, "too little was written to prove anything");
    stand.umount();
    stand.comes_back();
    // As people see it.
    let json = stand.place.run(&["status", "--json"]).ok().json();
    let seen = &json["daemons"][0]["volumes"][0];
    assert_eq!(seen["volume"], *stand.volume);
    assert_eq!(seen["state"], "LIVE", "{seen}");
    for lag in ["data_lag_ms", "point_lag_ms"] {
        assert!(seen[lag].as_u64().is_some_and(|ms| ms < 60_000), "{lag}: {seen}");
    }
    assert_eq!(seen["backlog_bytes"], 0, "{seen}");
    assert!(seen["counters"]["bytes_sent"].as_u64().unwrap() > 0, "{seen}");
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
    stand.comes_back();
}

/// Nobody is kept from a disk because it is mirrored.
#[test]
fn a_disk_may_be_mounted_and_made_anew_while_it_is_followed() {
    let Some(mut stand) = Stand::new() else { return };
    stand.umount();
    stand.start(&[]);
    stand.is_live();
    sh(&format!("mke2fs -q -F -t ext4 -L anew {}", stand.device.display()));
    stand.mount();
    let load = Load::start(&stand.mount, numbers(), 8);
    std::thread::sleep(Duration::from_secs(1));
    load.end();
    stand.umount();
    stand.comes_back();
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

#[test]
fn a_limit_holds() {
    const LIMIT: u64 = MIB;
    let Some(mut stand) = Stand::new() else { return };
    stand.start(&["--limit", "1MiB"]);
    // The first copy is small: an empty file system.
    stand.is_live();
    let file = stand.mount.join("noise");
    std::fs::write(&file, numbers().noise(24 << 20)).unwrap();
    sh(&format!("sync {}", file.display()));
    let (began, before) = (Instant::now(), stand.relay.sent());
    std::thread::sleep(Duration::from_secs(4));
    let (sent, took) = (stand.relay.sent() - before, began.elapsed().as_millis() as u64);
    let allowed = LIMIT * took / 1000;
    println!("{sent} bytes in {took} ms, {allowed} allowed");
    // A chunk or two more may be under way; and it is used.
    assert!(sent < allowed + MIB && sent > allowed / 2, "{sent} bytes in {took} ms");
    stand.kill();
}

#[test]
fn a_disk_that_grows_and_shrinks_goes_on() {
    let Some(mut stand) = Stand::live(&["--point-every", "1s"]) else { return };
    let load = Load::start(&stand.mount, numbers(), 8);
    stand.resize(SIZE + 32 * MIB + 4096);
    std::thread::sleep(Duration::from_secs(1));
    load.end();
    stand.umount();
    sh(&format!("e2fsck -fp {0}; resize2fs {0}", stand.device.display()));
    // In its last block too.
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    device.write_all_at(&[7; 4096], SIZE + 32 * MIB).unwrap();
    device.sync_all().unwrap();
    drop(device);
    stand.comes_back();
    stand.is_live();
    let (larger, point) = (std::fs::read(&stand.image).unwrap(), stand.newest_point());
    // Not by whole blocks: the last one is padded with zeros.
    stand.resize(40 * MIB + 512);
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    device.write_all_at(&[8; 4096], 39 * MIB).unwrap();
    device.write_all_at(&[9; 512], 40 * MIB).unwrap();
    device.sync_all().unwrap();
    drop(device);
    stand.comes_back();
    until("it is LIVE again", || stand.status().is_some_and(|v| v["state"] == "LIVE"));
    assert_eq!(stand.newest().len() as u64, 40 * MIB + 512);
    assert!(stand.at(point) == larger, "the old tail is not in point {point} any more");
    stand.stop();
}

/// What was written behind its end while it was longer is not in the marks: all is compared, once.
#[test]
fn a_disk_that_was_longer_for_a_moment_is_compared_once() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    stand.umount();
    stand.comes_back();
    stand.kill();
    stand.resize(SIZE + MIB);
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    device.write_all_at(&[7; 8192], SIZE).unwrap();
    device.sync_all().unwrap();
    stand.resize(SIZE);
    device.write_all_at(&[8; 8192], 5 * MIB).unwrap();
    device.sync_all().unwrap();
    stand.start(&[]);
    until("it is compared", || stand.scans().len() == 2);
    stand.is_live();
    stand.comes_back();
    // It looks each quarter of a second.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((stand.counter("scans"), stand.scans().len()), (1, 2), "{}", stand.log());
    stand.stop();
}

/// What was discarded is as the disk gives it from then on; what points had of it stays.
#[test]
fn a_discard_frees_no_history() {
    let Some(mut stand) = Stand::new() else { return };
    if !done("command -v blkdiscard") {
        eprintln!("SKIPPED: blkdiscard is not here: no live mirror is shown a discard");
        return;
    }
    stand.umount();
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    let write = |at: u64, bytes: &[u8]| {
        device.write_all_at(bytes, at).unwrap();
        device.sync_all().unwrap();
    };
    write(40 * MIB, &numbers().noise(8 << 20));
    stand.start(&[]);
    stand.is_live();
    stand.comes_back();
    let (before, point) = (std::fs::read(&stand.image).unwrap(), stand.newest_point());
    sh(&format!("blkdiscard -f -o {} -l {} {}", 40 * MIB, 8 * MIB, stand.device.display()));
    // A write after it counts, and one that the discard overtakes does not.
    write(44 * MIB, &[7; 8192]);
    write(50 * MIB, &[9; 8192]);
    sh(&format!("blkdiscard -f -o {} -l {} {}", 50 * MIB, MIB, stand.device.display()));
    stand.comes_back();
    let after = stand.newest();
    let range = |at: u64| at as usize..at as usize + 8192;
    assert_eq!(after[range(41 * MIB)], [0; 8192]);
    assert_eq!(after[range(44 * MIB)], [7; 8192]);
    assert_eq!(after[range(50 * MIB)], [0; 8192]);
    assert!(stand.at(point) == before, "point {point} has lost what was discarded later");
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

/// A block that is written all the time goes once a second, not with each pass.
#[test]
fn what_is_written_all_the_time_waits_for_its_turn() {
    let Some(mut stand) = Stand::new() else { return };
    stand.umount();
    stand.start(&["--freeze", "never"]);
    stand.is_live();
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    let write = |at: u64, n: u64| {
        device.write_all_at(&[n as u8; 4096], at).unwrap();
        device.sync_data().unwrap();
    };
    let before = stand.counter("points");
    let (began, mut n, mut lag) = (Instant::now(), 0, 0);
    while began.elapsed() < Duration::from_secs(8) {
        n += 1;
        write(50 * MIB, n);
        std::thread::sleep(Duration::from_millis(20));
        let status = stand.status().unwrap();
        lag = lag.max(status["data_lag_ms"].as_u64().unwrap());
        assert_eq!(status["state"], "LIVE", "{status}");
    }
    let points = stand.counter("points") - before;
    println!("{n} writes, {points} points, the data lag was {lag} ms at most");
    // Each quarter of a second at first, until it is known to be hot.
    assert!((7..=16).contains(&points), "{points} points");
    // It shows that it waits.
    assert!((600..5000).contains(&lag), "{lag} ms");
    stand.comes_back();
    stand.stop();
}
