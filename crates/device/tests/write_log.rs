//! The write log against a plain array, through cuts, crashes and damage.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

#[path = "write_log/faults.rs"]
mod faults;
#[path = "write_log/keep.rs"]
mod keep;

use std::fs;
use std::io::{Read, Seek, Write};
use std::path::Path;

use dormouse_device::Error;
use dormouse_device::write_log::{Base, Limits, WriteLog};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 600;
const LIMITS: Limits = Limits { bytes: 1 << 30, part: 64 << 20, wait: None };
const BASE: Base = Base { volume: [1; 16], generation: 2, seq: 3, hash: [4; 32] };

/// A number for each block: 0 is never written, 1 zeros, others fill the block.
type Plain = Vec<u64>;

fn fill(number: u64) -> Vec<u8> {
    if number == 1 { vec![0; BLOCK] } else { number.to_le_bytes().repeat(BLOCK / 8) }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn open(dir: &Path, salt: u64) -> (WriteLog, Option<dormouse_device::write_log::Left>) {
    WriteLog::open(dir, LIMITS, salt).unwrap()
}

/// What the log holds now.
fn content(log: &WriteLog) -> Plain {
    let (mut out, mut missing) = (vec![0xee; BLOCKS as usize * BLOCK], Vec::new());
    log.read(0, &mut out, &mut missing).unwrap();
    let mut plain: Plain = out
        .chunks(BLOCK)
        .map(|b| match u64::from_le_bytes(b[..8].try_into().unwrap()) {
            0 => 1,
            n => n,
        })
        .collect();
    for (first, count) in missing {
        plain[first as usize..(first + count) as usize].fill(0);
    }
    for (block, number) in out.chunks(BLOCK).zip(&plain) {
        assert!(*number == 0 || block == fill(*number));
    }
    plain
}

/// One random write, and what the disk is then.
fn write(log: &WriteLog, random: &mut Random, plain: &mut Plain, number: u64) {
    let start = random.below(BLOCKS);
    let count = match random.below(8) {
        0 => 1 + random.below((BLOCKS - start).min(300)),
        _ => 1 + random.below((BLOCKS - start).min(6)),
    };
    let range = start as usize..(start + count) as usize;
    if random.below(4) == 0 {
        log.zero(start, count).unwrap();
        plain[range].fill(1);
    } else {
        // One entry at most: a longer write is several, and a crash may come between them.
        let count = count.min(256);
        log.write(start, &fill(number).repeat(count as usize)).unwrap();
        plain[start as usize..(start + count) as usize].fill(number);
    }
}

/// What a power cut may leave: of what was not synced, any part.
fn crash(from: &Path, to: &Path, synced: &[(String, u64)], random: &mut Random) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let mut bytes = fs::read(entry.path()).unwrap();
        let safe = synced.iter().find(|(n, _)| *n == name).map(|(_, len)| *len as usize);
        let safe = safe.unwrap_or(0);
        if bytes.len() > safe {
            bytes.truncate(safe + random.below((bytes.len() - safe) as u64 + 1) as usize);
            for _ in 0..random.below(3) {
                let hole = safe + random.below((bytes.len() - safe) as u64 + 1) as usize;
                let end = (hole + 512 * (1 + random.below(20) as usize)).min(bytes.len());
                bytes[hole..end].fill(0);
            }
        }
        fs::write(to.join(name), bytes).unwrap();
    }
}

fn lengths(dir: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len())).collect()
}

#[test]
fn a_crash_leaves_a_prefix_that_holds_what_was_flushed() {
    let root = tempfile::tempdir().unwrap();
    let (mut crashes, mut cut_tails) = (0, 0);
    for seed in 0..60 {
        let mut random = Random(seed * 7919 + 1);
        let mut dir = root.path().join(format!("{seed}-0"));
        let mut plain = vec![0; BLOCKS as usize];
        let mut number = 2;
        for life in 1..4 {
            let (log, left) = open(&dir, seed * 100 + life);
            assert_eq!(left.is_some(), life > 1);
            assert_eq!(content(&log), plain, "seed {seed}, life {life}");
            log.begin(BASE, BLOCKS * BLOCK as u64).unwrap();
            // What the disk was after each entry of this life, and how far it is flushed.
            let mut states = vec![plain.clone()];
            let first = log.kept().1;
            let (mut flushed, mut synced) = (0, Vec::new());
            if life > 1 && random.below(2) == 0 {
                log.flush().unwrap();
                synced = lengths(&dir);
            } else if life > 1 {
                // The files of the life before were read back: they are there.
                synced = lengths(&dir);
                synced.sort();
                synced.pop();
            }
            for _ in 0..random.below(40) {
                match random.below(12) {
                    0 => {
                        log.flush().unwrap();
                        (flushed, synced) = (states.len() - 1, lengths(&dir));
                    }
                    1 => {
                        log.cut().unwrap();
                    }
                    _ => {
                        number += 1;
                        write(&log, &mut random, &mut plain, number);
                        states.push(plain.clone());
                    }
                }
            }
            assert_eq!(content(&log), plain);
            assert_eq!(log.kept().1 - first, states.len() as u64 - 1);
            let next = root.path().join(format!("{seed}-{life}"));
            crash(&dir, &next, &synced, &mut random);
            drop(log);
            dir = next;
            let (log, left) = open(&dir, 0);
            // An entry that two lives have lost between them is numbered once.
            let found = content(&log);
            let at = states.iter().rposition(|state| *state == found);
            let at = at.unwrap_or_else(|| panic!("seed {seed}, life {life}: no prefix"));
            assert!(at >= flushed, "seed {seed}, life {life}: {at} of {flushed} flushed");
            assert!(left.is_some() || states.len() == 1 || flushed == 0);
            crashes += 1;
            cut_tails += u64::from(at + 1 < states.len());
            plain = found;
            if left.is_none() {
                break;
            }
        }
    }
    assert!(crashes > 100 && cut_tails > 30, "{crashes} crashes, {cut_tails} cut short");
}

#[test]
fn cuts_are_prefixes_and_what_is_forgotten_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), 1);
    log.begin(BASE, BLOCKS * BLOCK as u64).unwrap();
    assert!(log.cut().unwrap().is_none());
    let mut random = Random(5);
    let mut plain = vec![0; BLOCKS as usize];
    // What the server has.
    let mut server = vec![0; BLOCKS as usize];
    for round in 0..60 {
        for number in 0..random.below(10) {
            write(&log, &mut random, &mut plain, 2 + round * 100 + number);
        }
        let expected = plain.clone();
        let Some(cut) = log.cut().unwrap() else { continue };
        for number in 50..50 + random.below(5) {
            write(&log, &mut random, &mut plain, 2 + round * 100 + number);
        }
        if random.below(3) == 0 {
            // The link broke: the next cut has it all.
            continue;
        }
        let mut sent = server.clone();
        for (start, end, zeros) in cut.runs() {
            let mut bytes = vec![1; (end - start) as usize * BLOCK];
            cut.read(start, &mut bytes).unwrap();
            for (block, bytes) in (start..).zip(bytes.chunks(BLOCK)) {
                let n = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert_eq!(zeros, n == 0);
                sent[block as usize] = n.max(1);
            }
        }
        server = sent;
        assert_eq!(server, expected);
        log.forget(cut, BASE).unwrap();
        // What is not in the log is as the server has it.
        let over = content(&log);
        let all =
            over.iter().zip(&server).map(|(log, server)| if *log == 0 { *server } else { *log });
        assert!(all.eq(plain.iter().copied()));
    }
    while let Some(cut) = log.cut().unwrap() {
        log.forget(cut, BASE).unwrap();
    }
    assert!(!log.pending());
    // A header, and on what it builds.
    assert_eq!(log.kept().0, 128 + 56 + 32);
    assert_eq!(lengths(dir.path()).iter().filter(|(n, _)| n.ends_with(".log")).count(), 1);
}

/// Runs that go to the file with one call are entries of their own: a crash leaves some of them.
#[test]
fn of_runs_that_are_written_together_a_crash_leaves_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(3);
    let (log, _) = open(&dir.path().join("log"), 77);
    log.begin(BASE, BLOCKS << 12).unwrap();
    let (mut plain, mut states) = (vec![0; BLOCKS as usize], Vec::new());
    states.push(plain.clone());
    let mut runs = Vec::new();
    for number in 0..300 {
        let start = random.below(BLOCKS);
        // Now and then one of more than an entry takes.
        let longest = if number % 50 == 7 { 300 } else { 4 };
        let count = 1 + random.below((BLOCKS - start).min(longest));
        for first in (start..start + count).step_by(256) {
            plain[first as usize..(start + count).min(first + 256) as usize].fill(number + 2);
            states.push(plain.clone());
        }
        runs.push((start, fill(number + 2).repeat(count as usize)));
    }
    let parts: Vec<_> = runs.iter().map(|(start, bytes)| (*start, &bytes[..])).collect();
    log.write_each(&parts).unwrap();
    assert_eq!((content(&log), log.written()), (plain, states.len() as u64 - 1));
    drop(log);
    let name = "0000000000000001.log";
    let whole = fs::read(dir.path().join("log").join(name)).unwrap();
    for len in (0..60).map(|_| 128 + random.below(whole.len() as u64 - 127) as usize) {
        let copy = dir.path().join(format!("{len}"));
        fs::create_dir(&copy).unwrap();
        fs::write(copy.join(name), &whole[..len]).unwrap();
        let (log, left) = open(&copy, 1);
        let entries = left.unwrap().entries as usize;
        log.begin(BASE, BLOCKS << 12).unwrap();
        assert_eq!(content(&log), states[entries], "{entries} entries of {len} bytes");
        assert_eq!(entries == states.len() - 1, len == whole.len());
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn sizes_are_kept_and_what_is_cut_off_comes_back_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), 1);
    log.begin(BASE, 64 << 12).unwrap();
    log.write(60, &fill(9)).unwrap();
    log.resize(32 << 12).unwrap();
    log.resize(128 << 12).unwrap();
    log.flush().unwrap();
    drop(log);
    let (log, left) = open(dir.path(), 2);
    assert_eq!(left.map(|l| (l.size, l.entries, l.torn, l.base)), Some((128 << 12, 3, 0, BASE)));
    let plain = content(&log);
    assert_eq!((plain[31], plain[32], plain[60], plain[63], plain[64]), (0, 1, 1, 1, 0));
    assert!(matches!(log.write(0, &fill(3)), Err(Error::Closed)), "not begun");
    assert!(matches!(WriteLog::open(dir.path(), LIMITS, 3), Err(Error::Damaged(_))), "locked");
    drop(log);
    WriteLog::remove(dir.path()).unwrap();
    let (log, left) = open(dir.path(), 2);
    assert!(left.is_none());
    log.begin(BASE, 8 << 12).unwrap();
    assert_eq!((content(&log)[60], log.size(), log.pending()), (0, 8 << 12, false));
}

#[test]
fn damage_before_what_was_flushed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), 77);
    log.begin(BASE, 64 << 12).unwrap();
    log.write(1, &fill(5).repeat(2)).unwrap();
    log.write(7, &fill(6)).unwrap();
    log.flush().unwrap();
    log.write(9, &fill(7)).unwrap();
    drop(log);
    let path = dir.path().join("0000000000000001.log");
    let good = fs::read(&path).unwrap();
    let mut random = Random(1);
    for _ in 0..400 {
        let at = 128 + random.below(good.len() as u64 - 128) as usize;
        let mut bad = good.clone();
        bad[at] ^= 1 << random.below(8);
        fs::write(&path, &bad).unwrap();
        // Entries of 56 bytes, 8 for each block, and the blocks.
        let last = 128 + 2 * 56 + 3 * (8 + BLOCK);
        match WriteLog::open(dir.path(), LIMITS, 3) {
            Err(Error::Damaged(why)) => {
                assert!(at < last && why.contains("durable"), "{at}: {why}")
            }
            Ok((_, Some(left))) => assert!(at >= last && left.entries == 2, "{at}: {left:?}"),
            other => panic!("{at}: {other:?}"),
        }
    }
    // Damage that comes while it is in use.
    fs::write(&path, &good).unwrap();
    let (log, _) = open(dir.path(), 3);
    let mut file = fs::OpenOptions::new().write(true).read(true).open(&path).unwrap();
    let at = 128 + 56 + 16 + 100;
    file.seek(std::io::SeekFrom::Start(at)).unwrap();
    file.write_all(&[99]).unwrap();
    let mut out = vec![0; BLOCK];
    let error = log.read(1, &mut out, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("block 1 is damaged"), "{error}");
    log.read(2, &mut out, &mut Vec::new()).unwrap();
    file.rewind().unwrap();
    file.read_exact(&mut out[..8]).unwrap();
    assert_eq!(&out[..8], b"DORMWLG1");
}

#[test]
fn a_full_log_waits_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let wait = Some(std::time::Duration::from_millis(50));
    let limits = Limits { bytes: 3 * 4160 + 128, part: 64 << 20, wait };
    let (log, _) = WriteLog::open(dir.path(), limits, 1).unwrap();
    log.begin(BASE, 64 << 12).unwrap();
    (0..3).for_each(|n| log.write(n, &fill(5)).unwrap_or_else(|e| panic!("{n}: {e}")));
    assert!(matches!(log.write(3, &fill(5)), Err(Error::TimedOut(_))));
    std::thread::scope(|scope| {
        let limits = Limits { wait: None, ..limits };
        drop(log);
        let (log, _) = WriteLog::open(dir.path(), limits, 1).unwrap();
        log.begin(BASE, 64 << 12).unwrap();
        let log = std::sync::Arc::new(log);
        let writer = std::sync::Arc::clone(&log);
        let waits = scope.spawn(move || writer.write(3, &fill(5)));
        let cut = log.cut().unwrap().unwrap();
        log.forget(cut, BASE).unwrap();
        waits.join().unwrap().unwrap();
        log.end("it is taken away");
        let error = log.write(4, &fill(5)).unwrap_err();
        assert!(error.to_string().contains("taken away"), "{error}");
    });
}

/// An entry of zeros is short, but what is known of it is kept in memory: scattered ones wait for
/// room as well.
#[test]
fn a_log_of_scattered_zeros_waits_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let wait = Some(std::time::Duration::from_millis(50));
    let (log, _) =
        WriteLog::open(dir.path(), Limits { bytes: 64 << 10, part: 64 << 20, wait }, 1).unwrap();
    log.begin(BASE, 600 << 12).unwrap();
    (0..64).for_each(|n| log.zero(n * 3, 1).unwrap_or_else(|e| panic!("{n}: {e}")));
    assert!(matches!(log.zero(300, 1), Err(Error::TimedOut(_))));
    assert!(!log.has_room(1) && log.kept().0 < 8 << 10);
    let cut = log.cut().unwrap().unwrap();
    log.forget(cut, BASE).unwrap();
    log.zero(300, 1).unwrap();
}

/// A log whose files say what none can say is refused, or what they say is not taken; it can be
/// removed all the same.
#[test]
fn numbers_that_no_log_has_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    for number in [u64::MAX, 9_999_999_999_999_999] {
        let path = dir.path().join(format!("{number:016}.log"));
        fs::write(&path, b"x").unwrap();
        match WriteLog::open(dir.path(), LIMITS, 3) {
            Err(Error::Damaged(why)) => assert!(why.contains("number"), "{why}"),
            other => panic!("{other:?}"),
        }
        WriteLog::remove(dir.path()).unwrap();
        assert!(!path.exists());
    }
    assert!(open(dir.path(), 3).1.is_none());
}

/// A cut says how far it goes: what is written while it is being made is not of it.
#[test]
fn a_cut_holds_every_entry_below_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), 1);
    log.begin(BASE, BLOCKS << 12).unwrap();
    let first = log.written();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                log.write(number % BLOCKS, &fill(number + 2)).unwrap();
                number += 1;
            }
            number
        });
        // Also when the test fails: the scope waits for the writer.
        let stop = Stop(&done);
        let mut cuts = 0;
        while cuts < 20 {
            let Some(cut) = log.cut().unwrap() else { continue };
            cuts += 1;
            // The last that it must hold.
            let Some(number) = (cut.seq - first).checked_sub(1) else { continue };
            let mut out = vec![0; BLOCK];
            cut.read(number % BLOCKS, &mut out).unwrap();
            assert_eq!(out, fill(number + 2), "entry {number}");
            let mut next = vec![1; BLOCK];
            if cut.next((number + 1) % BLOCKS) == Some((number + 1) % BLOCKS) {
                cut.read((number + 1) % BLOCKS, &mut next).unwrap();
                assert_ne!(next, fill(number + 3), "entry {} is not of it", number + 1);
            }
        }
        drop(stop);
        assert!(writer.join().unwrap() >= 20);
    });
}

struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
