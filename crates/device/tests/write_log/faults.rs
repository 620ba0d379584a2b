//! A disk that fails in the middle: what could not be written does not count, and what could stays.

use std::fs;
use std::path::Path;
use std::process::Command;

use dormouse_device::write_log::WriteLog;

use crate::{BASE, BLOCK, BLOCKS, LIMITS, content, fill, open};

/// Says in which directory the test's own child writes.
const CHILD: &str = "DORMOUSE_TEST_LIMITED";
/// Files may not become longer, in units of 512 bytes: a batch of three entries ends anywhere.
const LONGEST: core::ops::Range<u64> = 300..325;
const SIZE: u64 = BLOCKS * BLOCK as u64;

/// A file whose making was cut short lies before the first that has anything in it.
#[test]
fn an_empty_file_in_front_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let orphan = dir.path().join(format!("{:016}.log", 1));
    fs::write(&orphan, []).unwrap();
    let (log, _) = open(dir.path(), 7);
    log.begin(BASE, SIZE).unwrap();
    log.write(3, &fill(9)).unwrap();
    log.flush().unwrap();
    // It says that the one before it is durable.
    log.write(4, &fill(10)).unwrap();
    drop(log);
    fs::write(&orphan, []).unwrap();
    let (log, left) = open(dir.path(), 8);
    assert_eq!(left.unwrap().entries, 2);
    assert_eq!(content(&log)[3..5], [9, 10]);
    // One in which there was something is another matter.
    drop(log);
    fs::write(&orphan, [0; 200]).unwrap();
    assert!(WriteLog::open(dir.path(), LIMITS, 9).is_err());
}

/// Entries of a batch that are whole in the file, though the batch failed, do not count when the
/// log goes on in another file.
#[test]
fn a_batch_that_fails_half_way_does_not_count() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return until_the_limit(Path::new(&dir));
    }
    LONGEST.step_by(4).for_each(fails_at);
}

fn fails_at(longest: u64) {
    let dir = tempfile::tempdir().unwrap();
    let name = "faults::a_batch_that_fails_half_way_does_not_count";
    // The signal would end it; the test is of the error.
    let script = format!("trap '' XFSZ; ulimit -f {longest}; exec \"$0\" --exact {name}");
    let mut child = Command::new("sh");
    child.args(["-c", &script]).arg(std::env::current_exe().unwrap()).env(CHILD, dir.path());
    let out = child.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let (log, left) = open(dir.path(), 8);
    let count = left.unwrap().entries - 1;
    assert!(count > 20 && count % 3 == 0, "{count}");
    let held = content(&log);
    assert_eq!(held[599], 77, "what was flushed after the failure");
    assert!((0..count).all(|n| held[n as usize] == 100 + n));
    assert!(held[count as usize..599].iter().all(|n| *n == 0), "of a batch that failed");
}

fn until_the_limit(dir: &Path) {
    let (log, _) = open(dir, 7);
    log.begin(BASE, SIZE).unwrap();
    let mut next = 0;
    loop {
        let blocks: Vec<_> = (next..next + 3).map(|n| (n, fill(100 + n))).collect();
        let runs: Vec<_> = blocks.iter().map(|(n, bytes)| (*n, &bytes[..])).collect();
        if log.write_each(&runs).is_err() {
            break;
        }
        next += 3;
    }
    log.cut().unwrap().unwrap();
    log.write(599, &fill(77)).unwrap();
    log.flush().unwrap();
}
