//! The tracker against a disk: what has changed must be marked, whatever changed it.
//!
//! A copy follows a loop device by marks alone while loads write to it. After each load the
//! copy must equal the device, block by block: a block that differs was written and not marked,
//! or its mark was lost between two passes. `DORMOUSE_ORACLE_WRITES=10000000` sets how many
//! writes the random loads make together (a few thousand by default).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod follow;
mod loads;
mod place;

use dormouse_track::device::Disk;
use dormouse_track::ebpf::{Gap, Watch};
use dormouse_track::record::Record;
use dormouse_track::sleep::Slept;
use follow::Follower;
use place::{Place, run};

/// Writes of the random loads, together.
fn writes() -> u64 {
    std::env::var("DORMOUSE_ORACLE_WRITES").map_or(20_000, |n| n.parse().unwrap())
}

#[test]
fn every_kind_of_write_is_marked() {
    let Some(place) = Place::new(320 << 20) else { return };
    let mut follower = Follower::begin(&place);
    for load in loads::ALL {
        (load.run)(&place);
        let before = follower.zeros;
        let (marked, changed) = follower.judge(load.name);
        assert!(changed > 0, "{}: the load has changed nothing", load.name);
        let zeros = follower.zeros - before;
        eprintln!("{}: {changed} blocks changed, {marked} were marked, {zeros} zeros", load.name);
        // What nobody writes at the same time need not be read.
        let least = if load.name == "discard_all_then_little" { 70_000 } else { 0 };
        assert!(zeros >= least, "{}: {zeros} blocks were known to be discarded", load.name);
        let discards =
            load.name.contains("discard") || ["ext4", "xfs", "btrfs"].contains(&load.name);
        assert!(discards || zeros == 0, "{}: {zeros} zeros, and nothing was discarded", load.name);
    }
    assert!(follower.zeros > 100_000, "{} zeros", follower.zeros);
    assert_eq!(follower.everything(), 0);
}

/// While fio writes in several ways at once, passes follow each other; and again and again
/// one fails and is carried back.
#[test]
fn nothing_is_missed_while_passes_follow_a_load() {
    let Some(place) = Place::new(512 << 20) else { return };
    if !place::has("fio") {
        return;
    }
    let (mut follower, mut done) = (Follower::begin(&place), 0);
    let mut round = 0;
    while done < writes() {
        let share = (writes() - done).min(2_000_000);
        let mut fio = loads::fio_mixed(&place, share, round);
        while fio.try_wait().unwrap().is_none() {
            follower.pass();
        }
        let out = fio.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        done += loads::fio_writes(&out.stdout);
        let (marked, _) = follower.judge("fio, four ways at once");
        eprintln!("{done} writes, {} passes, {marked} blocks were marked", follower.passes);
        round += 1;
    }
    assert_eq!(follower.everything(), 0);
}

/// A watch that begins while a load runs sees all that completes from then on.
#[test]
fn a_watch_may_begin_and_end_while_the_disk_is_written() {
    let Some(place) = Place::new(128 << 20) else { return };
    if !place::has("fio") {
        return;
    }
    let mut fio = loads::fio_mixed(&place, 20_000, 1);
    for began in 0..5 {
        let mut follower = Follower::begin(&place);
        for _ in 0..5 {
            follower.pass();
        }
        // What it has seen until it ends is not judged: the load goes on. The next sees more.
        if fio.try_wait().unwrap().is_some() {
            fio = loads::fio_mixed(&place, 20_000, began);
        }
    }
    fio.wait().unwrap();
    let mut fio = loads::fio_mixed(&place, 20_000, 2);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let mut follower = Follower::begin(&place);
    fio.wait().unwrap();
    follower.judge("a load that ran before the watch began");
}

#[test]
fn a_partition_has_its_own_marks_and_the_disk_has_them_too() {
    let Some(place) = Place::new(64 << 20) else { return };
    if !place::has("sfdisk") {
        return;
    }
    // Partitions that begin and end within a block of 4 KiB.
    place.partition("start=2049, size=40003, type=83\nstart=50001, size=60001, type=83\n");
    let mut whole = Follower::begin(&place);
    let parts = [place.part(1), place.part(2)];
    let mut followers = parts.each_ref().map(Follower::begin);
    for (i, part) in parts.iter().enumerate() {
        loads::direct(part);
        loads::buffered(part);
        let (_, changed) = followers[i].judge("its partition");
        assert!(changed > 0);
        let (_, of_disk) = whole.judge("the whole disk");
        assert!(of_disk >= changed, "{of_disk} of {changed}");
        let (marked, changed) = followers[1 - i].judge("the other partition");
        assert_eq!((marked, changed), (0, 0), "writes of partition {i} are marked in the other");
    }
}

#[test]
fn a_watch_outlives_its_daemon_and_is_found_again_only_if_it_is_whole() {
    let Some(place) = Place::new(32 << 20) else { return };
    let disk = Disk::of(&place.device).unwrap();
    let pins = place.pins();
    let volume = [7; 16];
    let gap = |disk: &Disk, volume| Watch::find(disk, &pins, volume).unwrap().err();
    assert_eq!(gap(&disk, &volume), Some(Gap::None));
    let watch = Watch::begin(&disk, &pins).unwrap();
    assert_eq!(gap(&disk, &volume), Some(Gap::Unrecorded));
    let mut record = Record {
        volume,
        disk_sequence: disk.sequence,
        size: disk.size(),
        links: watch.links(),
        head: [1; 32],
        seq: 5,
        generation: 3,
        complete: false,
        scanned: 4,
        everything: 0,
        slept: Slept::default(),
    };
    let set = |record: &Record| watch.marks().unwrap().set_record(record);
    set(&record);
    let found = || Watch::find(&disk, &pins, &volume).unwrap().ok().map(|(_, record)| record);
    assert_eq!(found(), Some(record), "a scan under way");
    // One that did not see all is none to go on with, however far the scan was.
    set(&Record { everything: 1, ..record });
    assert_eq!(gap(&disk, &volume), Some(Gap::Everything));
    set(&Record { slept: Slept { ms: u64::MAX / 2, suspends: 0 }, ..record });
    assert_eq!(gap(&disk, &volume), Some(Gap::Hibernated));
    record.complete = true;
    set(&record);
    assert_eq!(gap(&disk, &volume), None);
    assert_eq!(gap(&disk, &[8; 16]), Some(Gap::Unrecorded));
    set(&Record { links: [1, 2], ..record });
    assert_eq!(gap(&disk, &volume), Some(Gap::Links));
    set(&Record { disk_sequence: record.disk_sequence + 1, ..record });
    assert_eq!(gap(&disk, &volume), Some(Gap::Disk));
    set(&Record { size: 1, ..record });
    assert_eq!(gap(&disk, &volume), Some(Gap::Size));
    set(&record);
    // The daemon is gone; the disk is written; another daemon finds the marks.
    drop(watch);
    loads::direct(&place);
    let (watch, found) = Watch::find(&disk, &pins, &volume).unwrap().unwrap();
    assert_eq!(found, record);
    assert!(watch.marks().unwrap().dirty_blocks() > 0);
    // A larger disk.
    drop(watch);
    place.resize(48 << 20);
    assert_eq!(gap(&Disk::of(&place.device).unwrap(), &volume), Some(Gap::Size));
    place.resize(32 << 20);
    assert_eq!(gap(&disk, &volume), None);
    // A program was taken away.
    std::fs::remove_file(pins.join("rq_issue")).unwrap();
    assert_eq!(gap(&disk, &volume), Some(Gap::Parts));
    // Another disk under the name.
    Watch::begin(&disk, &pins).unwrap().marks().unwrap().set_record(&record);
    assert_eq!(gap(&disk, &volume), Some(Gap::Links));
}

/// Writes before, between and after; the marks go on, and no scan is needed.
#[test]
fn a_disk_may_grow_and_shrink() {
    let Some(place) = Place::new(32 << 20) else { return };
    let mut follower = Follower::begin(&place);
    for size in [48 << 20, (48 << 20) + 1536, 24 << 20, (16 << 20) + 512, 40 << 20] {
        loads::write_at(&place, 5000, &[size as u8 ^ 3; 9000]);
        place.resize(size);
        loads::write_at(&place, size - 5000, &[size as u8 ^ 5; 5000]);
        loads::direct(&place);
        follower.resized(&place);
        loads::buffered(&place);
        let (_, changed) = follower.judge("another size");
        assert!(changed > 0);
    }
    assert_eq!(follower.everything(), 0);
}

#[test]
fn a_write_behind_the_bitmap_is_counted() {
    let Some(place) = Place::new(32 << 20) else { return };
    let follower = Follower::begin(&place);
    place.resize(48 << 20);
    loads::write_at(&place, 40 << 20, &[1; 4096]);
    assert!(follower.beyond() > 0);
    assert_eq!(follower.everything(), 0);
}

#[test]
fn no_rights_and_no_place_are_said_so() {
    let Some(place) = Place::new(1 << 20) else { return };
    let disk = Disk::of(&place.device).unwrap();
    let error = Watch::begin(&disk, &place.path("pins/x")).unwrap_err();
    assert!(error.to_string().contains("BPF file system"), "{error}");
    // Nobody, by the same program: see `as_nobody`.
    let me = std::env::current_exe().unwrap();
    let out = run("setpriv", |c| {
        c.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg("sh")
            .args(["-c", "cat /dev/null; exec \"$0\" --exact as_nobody --ignored --nocapture"]);
        c.arg(&me).env("DISK", &place.device)
    });
    if let Some(out) = out {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("CAP_BPF"), "{text}");
    }
}

/// Run by the test above, without rights.
#[test]
#[ignore = "part of another test"]
fn as_nobody() {
    let disk = Disk::of(std::path::Path::new(&std::env::var("DISK").unwrap())).unwrap();
    let pins = dormouse_track::ebpf::place().join("nobody");
    println!("{}", Watch::begin(&disk, &pins).unwrap_err());
}
