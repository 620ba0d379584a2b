//! Freezes that end as they should, and freezes that cannot be had.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_track::freeze::{FreezeError, settle_writes, thaw_all};

use crate::roles::freezer;
use crate::stand::{
    LONG, Mounted, SOON, Volume, Write1, file_system_at, freeze_by_hand, is_frozen, possible,
    thaw_by_hand, until, until_thawed,
};

/// While it is frozen a write blocks, and goes on after the thaw; and nothing is kept open.
fn a_write_waits(kind: &str) {
    if !possible(kind) {
        return;
    }
    let volume = Volume::new(kind);
    let mut freezer = freezer();
    let mut frozen = freezer.freeze(&volume.file_systems(), LONG).unwrap();
    let write = Write1::start(&volume.mounted.file("a"));
    assert!(write.is_stuck());
    assert!(frozen.is_held());
    let held = frozen.thaw().unwrap();
    write.finish();
    assert!(held.held >= Duration::from_millis(300) && held.held < SOON, "{held:?}");
    assert!(held.freezing < SOON && held.thawing < SOON, "{held:?}");

    // Again with the same helper; and unmounted at once.
    freezer.freeze(&volume.file_systems(), LONG).unwrap().thaw().unwrap();
    assert!(volume.mounted.unmount(), "something keeps it open");
}

#[test]
fn a_write_to_a_frozen_ext4_waits() {
    a_write_waits("ext4");
}

#[test]
fn a_write_to_a_frozen_xfs_waits() {
    a_write_waits("xfs");
}

#[test]
fn a_write_to_a_frozen_btrfs_waits() {
    a_write_waits("btrfs");
}

#[test]
fn the_deadline_thaws_and_the_hold_does_not_count() {
    if !possible("deadline") {
        return;
    }
    let volume = Volume::new("ext4");
    let mut freezer = freezer();
    let start = Instant::now();
    let hold_max = Duration::from_millis(400);
    let mut frozen = freezer.freeze(&volume.file_systems(), hold_max).unwrap();
    assert!(is_frozen(volume.point()));
    until_thawed(volume.point());
    let elapsed = start.elapsed();
    assert!(elapsed >= hold_max && elapsed < hold_max * 3, "thawed after {elapsed:?}");
    assert!(!frozen.is_held());
    match frozen.thaw() {
        Err(FreezeError::Late { hold_max: told }) => assert_eq!(told, hold_max),
        other => panic!("{other:?}"),
    }
    freezer.freeze(&volume.file_systems(), LONG).unwrap().thaw().unwrap();
}

#[test]
fn dropping_thaws() {
    if !possible("dropping") {
        return;
    }
    let volume = Volume::new("ext4");
    let mut freezer = freezer();
    drop(freezer.freeze(&volume.file_systems(), LONG).unwrap());
    assert!(!is_frozen(volume.point()));
}

#[test]
fn what_somebody_else_froze_is_named_and_stays_frozen() {
    if !possible("somebody else's freeze") {
        return;
    }
    let volume = Volume::new("ext4");
    freeze_by_hand(volume.point());
    let mut freezer = freezer();
    match freezer.freeze(&volume.file_systems(), LONG).map(drop) {
        Err(FreezeError::AlreadyFrozen { mount_point }) => {
            assert_eq!(mount_point, Path::new(volume.point()));
        }
        other => panic!("{other:?}"),
    }
    assert!(thaw_by_hand(volume.point()), "it was thawed");
    freezer.freeze(&volume.file_systems(), LONG).unwrap().thaw().unwrap();
}

#[test]
fn what_somebody_else_thawed_does_not_count_as_held() {
    if !possible("somebody else's thaw") {
        return;
    }
    let volume = Volume::new("xfs");
    let mut freezer = freezer();
    let frozen = freezer.freeze(&volume.file_systems(), LONG).unwrap();
    assert!(thaw_by_hand(volume.point()));
    match frozen.thaw() {
        Err(FreezeError::ThawedByOther { mount_point }) => {
            assert_eq!(mount_point, Path::new(volume.point()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn if_the_second_cannot_be_frozen_the_first_is_thawed() {
    if !possible("a file system that cannot be frozen") {
        return;
    }
    let volume = Volume::new("ext4");
    let memory = Mounted::new(&["-t", "tmpfs", "none"]);
    // The later one is frozen first.
    let both = [file_system_at(memory.point()), volume.file_systems().remove(0)];
    let mut freezer = freezer();
    match freezer.freeze(&both, LONG).map(drop) {
        Err(FreezeError::Unsupported { mount_point, kind }) => {
            assert_eq!(
                (mount_point.as_path(), kind.as_str()),
                (Path::new(memory.point()), "tmpfs")
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(!is_frozen(volume.point()));
}

#[test]
fn two_file_systems_are_held_at_once_the_later_frozen_first() {
    if !possible("two file systems") {
        return;
    }
    let volumes = [Volume::new("ext4"), Volume::new("btrfs")];
    let both: Vec<_> = volumes.iter().flat_map(Volume::file_systems).collect();
    let mut freezer = freezer();
    let mut refused = || match freezer.freeze(&both, LONG).map(drop) {
        Err(FreezeError::AlreadyFrozen { mount_point }) => mount_point,
        other => panic!("{other:?}"),
    };
    volumes.iter().for_each(|volume| freeze_by_hand(volume.point()));
    assert_eq!(refused(), Path::new(volumes[1].point()), "the first that was tried");
    assert!(thaw_by_hand(volumes[1].point()));
    assert_eq!(refused(), Path::new(volumes[0].point()));
    assert!(!is_frozen(volumes[1].point()), "it was frozen before the other was tried");
    assert!(thaw_by_hand(volumes[0].point()));

    let frozen = freezer.freeze(&both, LONG).unwrap();
    let writes = [0, 1].map(|at: usize| Write1::start(&volumes[at].mounted.file("a")));
    assert!(writes.iter().all(Write1::is_stuck));
    frozen.thaw().unwrap();
    writes.iter().for_each(Write1::finish);
}

#[test]
fn settling_writes_back_what_was_written() {
    if !possible("settling") {
        return;
    }
    let volume = Volume::new("ext4");
    let mark = b"only on the disk after a flush: 5f1e77a0".repeat(200);
    File::create(volume.mounted.file("a")).unwrap().write_all(&mark).unwrap();
    let on_disk = || {
        let image = fs::read(&volume.disk.image).unwrap();
        image.windows(mark.len()).any(|part| part == mark)
    };
    assert!(!on_disk(), "it was written back before");
    let took = settle_writes(&volume.file_systems()).unwrap();
    assert!(on_disk());
    assert!(took.len() == 1 && took[0] > Duration::ZERO && took[0] < SOON, "{took:?}");
}

#[test]
fn what_an_earlier_run_left_is_thawed() {
    if !possible("thawing all") {
        return;
    }
    let volumes = [Volume::new("ext4"), Volume::new("xfs")];
    let both: Vec<_> = volumes.iter().flat_map(Volume::file_systems).collect();
    freeze_by_hand(volumes[1].point());
    let result = thaw_all(&both);
    assert_eq!(result.thawed, [Path::new(volumes[1].point())]);
    assert!(result.faults.is_empty(), "{:?}", result.faults);
    assert!(!is_frozen(volumes[1].point()));
    assert!(volumes[1].mounted.unmount(), "something keeps it open");
    let result = thaw_all(&both);
    assert!(result.thawed.is_empty());
    assert_eq!(result.faults.len(), 1, "one is not mounted any more: {:?}", result.faults);
}

#[test]
fn many_freezes_under_writes_all_hold_and_all_end() {
    if !possible("many freezes") {
        return;
    }
    let volume = Volume::new("ext4");
    let mut freezer = freezer();
    let file_systems = volume.file_systems();
    let (path, stop) = (volume.mounted.file("log"), volume.mounted.file("stop"));
    // Before the first freeze: the thread may come later.
    let mut file = File::create(path).unwrap();
    let writer = thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.exists() {
                file.write_all(&[1; 512]).unwrap();
                file.sync_data().unwrap();
            }
        }
    });
    for _ in 0..50 {
        let frozen = freezer.freeze(&file_systems, LONG).unwrap();
        let log = fs::metadata(volume.mounted.file("log")).unwrap().len();
        thread::sleep(Duration::from_millis(3));
        assert_eq!(fs::metadata(volume.mounted.file("log")).unwrap().len(), log);
        frozen.thaw().unwrap();
    }
    File::create(stop).unwrap();
    until("the writer ends", || writer.is_finished());
    assert!(writer.join().is_ok());
}
