//! Files in which nothing counts any more leave the log: at every moment of that a crash leaves
//! what was written, and a log that is written again and again does not fill.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use dormouse_device::Error;
use dormouse_device::write_log::{Limits, WriteLog};

use crate::{BASE, BLOCK, BLOCKS, Plain, Random, content, crash, fill, lengths};

/// Files of 64 KiB, which leave when there are more than eight of them.
const SMALL: Limits = Limits { bytes: 2 << 20, part: 64 << 10, wait: Some(Duration::ZERO) };
/// Blocks that are written again and again.
const HOT: u64 = 40;

/// The log's files.
type Files = BTreeMap<String, Vec<u8>>;

/// In memory, where the machine has that: what is durable is told by the test here, and by no disk.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn files(dir: &Path) -> Files {
    let names = lengths(dir).into_iter().filter(|(name, _)| name.ends_with(".log"));
    names.map(|(name, _)| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

/// What these files hold, over what the server has.
fn found(at: &Path, files: &Files, server: &Plain) -> Plain {
    let _ = fs::remove_dir_all(at);
    fs::create_dir_all(at).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(at.join(name), bytes).unwrap());
    let (log, left) = WriteLog::open(at, SMALL, 0).unwrap();
    assert!(left.is_some());
    over(&log, server)
}

fn over(log: &WriteLog, server: &Plain) -> Plain {
    let held = content(log).into_iter().zip(server);
    held.map(|(log, server)| if log == 0 { *server } else { log }).collect()
}

/// A few blocks of the disk become something else; rarely some that are not hot.
fn change(log: &WriteLog, random: &mut Random, plain: &mut Plain, number: u64) {
    let start = if random.below(60) == 0 { HOT + random.below(500) } else { random.below(HOT) };
    let range = start as usize..(start + 1 + random.below(8)) as usize;
    let count = range.len();
    let value = match random.below(4) {
        0 => 1,
        _ => number,
    };
    match value {
        1 => log.zero(start, count as u64).unwrap(),
        _ => log.write(start, &fill(value).repeat(count)).unwrap(),
    }
    plain[range].fill(value);
}

#[test]
fn a_crash_at_any_moment_of_leaving_leaves_what_was_written() {
    let root = scratch();
    let (mut moments, mut short, mut with_cut) = (0, 0, 0);
    for seed in 0..12 {
        let mut random = Random(seed * 31 + 7);
        let (dir, copy) = (root.path().join(format!("{seed}")), root.path().join("copy"));
        let (log, _) = WriteLog::open(&dir, SMALL, seed + 1).unwrap();
        log.begin(BASE, BLOCKS << 12).unwrap();
        let mut plain = vec![0; BLOCKS as usize];
        let (mut server, mut cut) = (plain.clone(), None);
        let mut states = vec![plain.clone()];
        let (mut flushed, mut synced) = (0, lengths(&dir));
        for number in 0..600 {
            match random.below(40) {
                0 => {
                    log.flush().unwrap();
                    (flushed, synced) = (states.len() - 1, lengths(&dir));
                }
                1 if cut.is_none() => cut = Some((log.cut().unwrap(), plain.clone())),
                2 if let Some((Some(taken), sent)) = cut.take() => {
                    log.flush().unwrap();
                    log.forget(taken, BASE).unwrap();
                    server = sent;
                    (flushed, synced) = (states.len() - 1, lengths(&dir));
                }
                _ => {
                    if !log.has_room(8 << 12) {
                        // The server takes all: some of it is needed that has not left.
                        let taken = log.cut().unwrap().unwrap();
                        log.flush().unwrap();
                        log.forget(taken, BASE).unwrap();
                        (server, cut) = (plain.clone(), None);
                        (flushed, synced) = (states.len() - 1, lengths(&dir));
                    }
                    change(&log, &mut random, &mut plain, number + 2);
                    states.push(plain.clone());
                }
            }
            // Before it: any part of what was not flushed is lost.
            let before = files(&dir);
            if random.below(30) == 0 {
                let _ = fs::remove_dir_all(&copy);
                crash(&dir, &copy, &synced, &mut random);
                let left = found(&root.path().join("again"), &files(&copy), &server);
                let at = states.iter().rposition(|state| *state == left);
                assert!(at.is_some_and(|at| at >= flushed), "seed {seed}, {number}: {at:?}");
                short += usize::from(at < Some(states.len() - 1));
            }
            if log.keep().unwrap() == 0 {
                continue;
            }
            // All was durable when the first of them went, and an entry said so.
            let after = files(&dir);
            let gone: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
            let last = after.values().rfind(|bytes| !bytes.is_empty()).unwrap();
            let entry = &last[last.len() - 88..];
            let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
            assert_eq!((number(24), number(32)), (log.kept().1 - 1, log.kept().1 - 1));
            (flushed, synced) = (states.len() - 1, lengths(&dir));
            for going in 0..=gone.len() {
                let mut there = after.clone();
                there.extend(
                    gone[going..].iter().map(|name| ((*name).clone(), before[*name].clone())),
                );
                assert_eq!(found(&copy, &there, &server), plain, "seed {seed}: {going} have gone");
                moments += 1;
            }
            // Those that are needed no more do not count before, either.
            let mut there = before.clone();
            there.extend(after.iter().map(|(name, bytes)| (name.clone(), bytes.clone())));
            assert_eq!(found(&copy, &there, &server), plain);
            assert_eq!(over(&log, &server), plain);
            with_cut += usize::from(cut.is_some());
        }
    }
    assert!(
        moments > 100 && short > 20 && with_cut > 10,
        "{moments} moments, {short} cut short, {with_cut} with a cut"
    );
}

#[test]
fn a_cut_stays_readable_when_its_files_have_left_and_takes_room_until_then() {
    let dir = scratch();
    let (log, _) = WriteLog::open(dir.path(), SMALL, 1).unwrap();
    log.begin(BASE, BLOCKS << 12).unwrap();
    let round = |value: u64| {
        for block in 0..200 {
            log.write(block, &fill(value)).unwrap();
            log.keep().unwrap();
        }
    };
    round(5);
    let cut = log.cut().unwrap().unwrap();
    let names = files(dir.path());
    round(6);
    let kept = files(dir.path());
    assert!(names.keys().take(10).all(|name| !kept.contains_key(name)), "{:?}", kept.keys());
    let mut out = vec![0; 200 * BLOCK];
    cut.read(0, &mut out).unwrap();
    assert_eq!(out, fill(5).repeat(200));
    let there: u64 = kept.values().map(|bytes| bytes.len() as u64).sum();
    let (bytes, _) = log.kept();
    assert!(bytes > there + 190 * BLOCK as u64, "{bytes} of {there} are not counted");
    log.forget(cut, BASE).unwrap();
    let there: u64 = files(dir.path()).values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(log.kept().0, there);
    assert_eq!(content(&log)[..201], [&[6; 200][..], &[0]].concat());
}

#[test]
fn a_log_that_is_written_again_and_again_does_not_fill() {
    let dir = scratch();
    let limits = Limits { wait: Some(Duration::from_secs(20)), ..SMALL };
    let (log, _) = WriteLog::open(dir.path(), limits, 1).unwrap();
    log.begin(BASE, BLOCKS << 12).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while log.wait_to_keep() {
                log.keep().unwrap();
            }
        });
        // Ten times what it may hold; nobody sends.
        let mut result = Ok(());
        let mut most = 0;
        for number in 0..640 {
            let written = log.write(number % 10 * 8, &fill(number + 2).repeat(8));
            result = result.and(written);
            most = most.max(log.kept().0);
        }
        log.end("it is over");
        result.unwrap();
        // Its limit, and entries that say how far it is durable.
        assert!(most <= SMALL.bytes + 88 * 640, "{most}");
    });
    for block in 0..10 {
        assert_eq!(content(&log)[block * 8..][..8], [632 + block as u64; 8]);
    }
    drop(log);
    // One that is written once keeps what it has, however full it is.
    let dir = scratch();
    let (log, _) = WriteLog::open(dir.path(), SMALL, 1).unwrap();
    log.begin(BASE, BLOCKS << 12).unwrap();
    let full = (0..BLOCKS).find(|block| {
        assert_eq!(log.keep().unwrap(), 0);
        matches!(log.write(*block, &fill(5)), Err(Error::TimedOut(_)))
    });
    assert!(full.is_some_and(|full| full > 400), "{full:?}");
}

/// What leaves is nowhere else: damage behind it must not look like the end of what was written.
#[test]
fn damage_behind_what_has_left_is_refused() {
    let dir = scratch();
    let (log, _) = WriteLog::open(dir.path(), SMALL, 1).unwrap();
    log.begin(BASE, BLOCKS << 12).unwrap();
    let mut went = 0;
    for number in 0..400 {
        log.write(number % 16 * 8, &fill(number + 2).repeat(8)).unwrap();
        went = log.keep().unwrap();
        if went > 0 {
            break;
        }
    }
    assert!(went > 0);
    drop(log);
    let good = files(dir.path());
    let mut random = Random(9);
    for (name, bytes) in good.iter().filter(|(_, bytes)| bytes.len() > 300) {
        for _ in 0..8 {
            // Behind the header, and before the entry that says how far it was durable.
            let at = 128 + random.below(bytes.len() as u64 - 128 - 88) as usize;
            let mut bad = bytes.clone();
            bad[at] ^= 1 << random.below(8);
            fs::write(dir.path().join(name), &bad).unwrap();
            match WriteLog::open(dir.path(), SMALL, 3) {
                Err(Error::Damaged(why)) => assert!(why.contains("durable"), "{why}"),
                other => panic!("{name}, {at}: {other:?}"),
            }
        }
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    assert!(WriteLog::open(dir.path(), SMALL, 3).is_ok());
}
