//! A scan that is broken off goes on where it was, as long as the watch did; else from the beginning.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use dormouse_track::record::Record;

use crate::common::program::Numbers;
use crate::stand::{Stand, numbers, until};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 64 * MIB;
/// Of a first step, in pages; the second is twice as large.
const STEP: u64 = 4;
const SIZE: u64 = 14 * PAGE;
/// Slow enough to be broken off within a step.
const SLOWLY: [&str; 2] = ["--limit", "4MiB"];

/// A disk without a file system, with some noise in each page.
fn noisy(numbers: &mut Numbers) -> Option<(Stand, File)> {
    let stand = Stand::of(SIZE)?;
    stand.umount();
    let disk = OpenOptions::new().write(true).open(&stand.device).unwrap();
    for page in 0..SIZE / PAGE {
        disk.write_all_at(&numbers.noise(3 << 20), page * PAGE + MIB).unwrap();
    }
    disk.sync_all().unwrap();
    Some((stand, disk))
}

fn record(stand: &Stand) -> Option<Record> {
    stand.watch().map(|(_, record)| record)
}

/// Waits until so many pages are on record, and some of the next were read.
fn scanned(stand: &Stand, pages: u64) {
    until("a step is on record", || record(stand).is_some_and(|r| r.scanned == pages));
    let read = stand.counter("bytes_read");
    until("it is in the next step", || stand.counter("bytes_read") > read + PAGE);
}

fn write(disk: &File, at: u64, byte: u8) {
    disk.write_all_at(&[byte; 8192], at).unwrap();
    disk.sync_all().unwrap();
}

fn is_the_disk(stand: &Stand) {
    let dest = stand.place.path("back");
    let (dest, volume) = (dest.to_str().unwrap(), stand.volume.as_str());
    until("the newest point is the disk", || {
        // At first there is none that may be taken.
        let restored = stand.place.run(&["restore", volume, dest, "--force"]).code == Some(0);
        restored
            && std::process::Command::new("cmp")
                .args(["-s", dest, stand.image.to_str().unwrap()])
                .status()
                .is_ok_and(|status| status.success())
    });
}

#[test]
fn a_scan_goes_on_after_a_kill_and_a_cut() {
    let Some((mut stand, disk)) = noisy(&mut numbers()) else { return };
    stand.start(&SLOWLY);
    scanned(&stand, STEP);
    // Nobody takes for a copy what is half of one.
    let points = stand.place.run(&["restore", &stand.volume, "/dev/null/x"]);
    assert_ne!(points.code, Some(0), "{points:?}");
    assert_eq!(stand.points("settled").len() + stand.points("frozen").len(), 0);
    stand.relay.sever();
    until("it is connected again", || stand.counter("reconnects") == 1);
    until("it goes on", || {
        stand.log().contains("the comparison goes on at 256.0 MiB of 896.0 MiB")
    });
    stand.kill();
    // What was compared, what was not, and what is being compared.
    for page in [1, STEP + 1, 13] {
        write(&disk, page * PAGE + 7, page as u8);
    }
    stand.start(&[]);
    stand.is_live();
    let (read, rest) = (stand.counter("bytes_read"), SIZE - STEP * PAGE);
    println!("{read} bytes were read of {rest}");
    // The blocks that were written meanwhile are read once more.
    assert!((rest..rest + MIB).contains(&read), "{read} bytes were read, {rest} were left");
    assert_eq!(stand.scans().len(), 3, "{}", stand.log());
    assert_eq!(record(&stand).map(|r| (r.complete, r.scanned)), Some((true, 0)));
    is_the_disk(&stand);
    stand.stop();
}

#[test]
fn without_a_proof_a_scan_begins_anew() {
    let Some((mut stand, disk)) = noisy(&mut numbers()) else { return };
    stand.start(&SLOWLY);
    scanned(&stand, STEP);
    stand.kill();
    write(&disk, 9 * PAGE, 5);
    // A request without a range came: the marks do not tell all.
    let (watch, record) = stand.watch().unwrap();
    assert_eq!((record.scanned, record.complete), (STEP, false));
    watch.marks().unwrap().set_record(&Record { everything: record.everything + 1, ..record });
    drop(watch);
    stand.start(&SLOWLY);
    scanned(&stand, STEP);
    assert!(!stand.log().contains("the comparison goes on"), "{}", stand.log());
    assert!(stand.scans()[1].contains("without a range"), "{:?}", stand.scans());
    // And after a reboot, which leaves nothing, with a server that has the first step.
    stand.kill();
    assert!(stand.remove_pins());
    write(&disk, MIB, 6);
    stand.start(&[]);
    stand.is_live();
    let read = stand.counter("bytes_read");
    assert!(read >= SIZE, "{read} bytes were read of {SIZE}");
    is_the_disk(&stand);
    stand.stop();
}

/// A disk that has another size while it is compared is compared anew.
#[test]
fn a_resize_in_the_middle_of_a_scan_begins_it_anew() {
    let Some((mut stand, disk)) = noisy(&mut numbers()) else { return };
    stand.start(&["--limit", "8MiB"]);
    scanned(&stand, STEP);
    stand.resize(SIZE - PAGE);
    until("it is noticed", || stand.log().contains("RESCAN: the disk's size changed"));
    write(&disk, 2 * PAGE, 9);
    stand.is_live();
    is_the_disk(&stand);
    stand.stop();
}
