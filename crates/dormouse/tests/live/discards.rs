//! What is discarded becomes zeros without being read, and is looked at when all is quiet.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::program::Numbers;
use crate::stand::{SIZE, Stand, done, numbers, sh, until};

const MIB: u64 = 1 << 20;

/// Whether these programs are here; a loud line if not.
fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|name| !done(&format!("command -v {name}")));
    if let Some(name) = missing {
        eprintln!("SKIPPED: {name} is not here: no live mirror is shown a discard");
    }
    missing.is_none()
}

fn to_look_at(stand: &Stand) -> u64 {
    stand.status().and_then(|v| v["recheck_bytes"].as_u64()).unwrap_or(0)
}

/// Bytes that were read of the device, as the kernel counts them.
fn read_of(device: &Path) -> u64 {
    let name = device.file_name().unwrap().to_str().unwrap();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    stat.split_ascii_whitespace().nth(2).unwrap().parse::<u64>().unwrap() * 512
}

fn is_quiet(stand: &Stand) -> bool {
    let Some(status) = stand.status() else { return false };
    status["state"] == "LIVE" && status["backlog_bytes"] == 0 && status["data_lag_ms"] == 0
}

/// A disk that was full is emptied and trimmed: next to nothing of it is read for the copy.
#[test]
fn a_trimmed_disk_is_not_read() {
    if !have(&["fstrim"]) {
        return;
    }
    const DISK: u64 = 256 * MIB;
    let Some(mut stand) = Stand::of(DISK) else { return };
    let noise = numbers().noise(8 << 20);
    let files: Vec<_> = (0..18).map(|n| stand.mount.join(n.to_string())).collect();
    files.iter().for_each(|path| std::fs::write(path, &noise).unwrap());
    sh(&format!("sync -f {}", stand.mount.display()));
    stand.start(&[]);
    stand.is_live();
    until("it is quiet", || is_quiet(&stand));
    files.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    sh(&format!("sync -f {}", stand.mount.display()));
    until("the journal is sent", || is_quiet(&stand));
    let before = read_of(&stand.device);
    let out = Command::new("fstrim").arg("-v").arg(&stand.mount).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let inside = said.split(['(', ')']).nth(1).and_then(|t| t.split(' ').next());
    let trimmed: u64 = inside.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    assert!(trimmed > DISK / 2, "{said}");
    let mut left = 0;
    until("the zeros are sent", || {
        left = to_look_at(&stand);
        left > 0
    });
    let read = read_of(&stand.device) - before;
    // What was read by now is what was looked at by now; and some of the file system.
    let looked = trimmed.saturating_sub(left);
    println!("{trimmed} bytes were trimmed, {read} were read, {looked} of them to look at it");
    assert!(left > trimmed * 3 / 4, "{left} of {trimmed} bytes are to be looked at");
    assert!(read < looked + 24 * MIB, "{read} bytes were read, {looked} of them to look");
    until("all was looked at", || to_look_at(&stand) == 0);
    assert!(read_of(&stand.device) - before > trimmed * 9 / 10, "it was not looked at");
    stand.umount();
    stand.comes_back();
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

/// A disk that gives what was there before: the copy has zeros, until somebody looks.
#[test]
fn what_is_not_zero_after_a_discard_is_found() {
    let Some(mut stand) = Stand::new() else { return };
    stand.umount();
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    device.write_all_at(&numbers().noise(2 << 20), 40 * MIB).unwrap();
    device.sync_all().unwrap();
    stand.start(&[]);
    stand.is_live();
    stand.comes_back();
    let newest = stand.newest_point();
    // As if the kernel had seen the end of such a discard: the disk does nothing.
    let (watch, _) = stand.watch().unwrap();
    assert!(watch.ring().unwrap().discard(40 * MIB / 4096, 512));
    until("the zeros are in a point", || {
        let mut later = stand.points("settled").into_iter().filter(|point| *point > newest);
        later.any(|point| stand.at(point)[40 << 20..][..2 << 20].iter().all(|byte| *byte == 0))
    });
    until("it was looked at", || to_look_at(&stand) == 0);
    stand.comes_back();
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

/// Writes and discards, and kills at any moment: what a daemon had taken out and not sent, or sent and
/// not looked at, is not lost.
#[test]
fn a_daemon_that_is_killed_with_discards_loses_none() {
    if !have(&["blkdiscard"]) {
        return;
    }
    let kills = std::env::var("DORMOUSE_LIVE_KILLS").map_or(8, |n| n.parse().unwrap());
    let Some(mut stand) = Stand::new() else { return };
    let mut numbers = numbers();
    stand.umount();
    stand.start(&[]);
    stand.is_live();
    let device = OpenOptions::new().write(true).open(&stand.device).unwrap();
    let mut left = 0;
    for kill in 0..kills {
        churn(&stand, &device, &mut numbers);
        std::thread::sleep(Duration::from_millis(numbers.below(700)));
        let held = kill % 3 == 2;
        if held {
            // It dies between its cut and the acknowledgement.
            stand.server.as_ref().unwrap().signal(rustix::process::Signal::STOP);
            churn(&stand, &device, &mut numbers);
            std::thread::sleep(Duration::from_millis(numbers.below(500)));
        }
        left += u64::from(to_look_at(&stand) > 0);
        stand.kill();
        if held {
            stand.server.as_ref().unwrap().signal(rustix::process::Signal::CONT);
        }
        churn(&stand, &device, &mut numbers);
        stand.start(&[]);
        stand.is_live();
    }
    stand.comes_back();
    until("all was looked at", || to_look_at(&stand) == 0);
    stand.comes_back();
    println!("{kills} kills, {left} of them before all was looked at");
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

/// Some writes, and discards of what was written; partly within a block.
fn churn(stand: &Stand, device: &File, numbers: &mut Numbers) {
    for _ in 0..6 {
        let at = numbers.below(SIZE / 512 - 16_384) * 512;
        device.write_all_at(&numbers.noise(1 << 20), at).unwrap();
        device.sync_all().unwrap();
        let (from, len) = (at + numbers.below(600) * 512, 512 * (1 + numbers.below(9000)));
        sh(&format!("blkdiscard -f -o {from} -l {len} {}", stand.device.display()));
        if numbers.below(2) == 0 {
            device.write_all_at(&numbers.noise(8192), from).unwrap();
        }
    }
    device.sync_all().unwrap();
}
