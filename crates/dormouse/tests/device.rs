//! Sources and destinations that are block devices. Needs root and loop devices;
//! says so where it cannot run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::loops::{Loop, make_ext4};
use common::program::Place;
use dormouse::dest::{Dest, DestOptions};
use dormouse::exit::{Class, class_of};
use dormouse::source::{AlignedBuf, Proof, Source};
use dormouse_format::limits::BLOCK_SIZE;

/// A file of 3 MiB and a half block with a mark at each MiB.
fn image(dir: &Path) -> PathBuf {
    let path = dir.join("image");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len((3 << 20) + 2048).unwrap();
    for i in 0..3 {
        file.write_all_at(&[i as u8 + 1; 512], i << 20).unwrap();
    }
    file.write_all_at(&[9; 512], (3 << 20) + 1536).unwrap();
    path
}

#[test]
fn a_device_is_read_directly_and_proved_by_exclusion() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let Some(device) = Loop::attach(&path, &[]) else { return };
    let source = Source::open(&device.0).unwrap();
    assert_eq!(source.size(), (3 << 20) + 2048);
    let mut buf = AlignedBuf::new(2 * BLOCK_SIZE);
    source.read_at(1 << 20, &mut buf).unwrap();
    assert_eq!((buf[0], buf[511], buf[512]), (2, 2, 0));
    source.read_at(3 << 20, &mut buf).unwrap();
    assert_eq!((buf[1535], buf[1536], buf[2047], buf[2048]), (0, 9, 9, 0));
    assert!(matches!(source.unchanged().unwrap(), Proof::Settled(_)));
    // While it is held, another sees it as in use.
    let second = Source::open(&device.0).unwrap();
    assert!(matches!(second.unchanged().unwrap(), Proof::Fuzzy(_)));
    drop((source, second, device));
    let Some(device) = Loop::attach(&path, &["-r"]) else { return };
    let first = Source::open(&device.0).unwrap();
    let second = Source::open(&device.0).unwrap();
    assert!(matches!(second.unchanged().unwrap(), Proof::Settled(_)));
    drop((first, second));
}

#[test]
fn a_device_is_written_zeroed_and_never_exceeded() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let Some(device) = Loop::attach(&path, &[]) else { return };
    let options = DestOptions::default();
    let small = Dest::create(&device.0, 4 << 20, options).unwrap_err();
    assert_eq!(class_of(&small), Class::Place, "{small}");
    let in_use = Dest::create(&path, 4096, DestOptions { force: true, in_place: false });
    assert_eq!(class_of(&in_use.unwrap_err()), Class::Place);
    let dest = Dest::create(&device.0, 2 << 20, options).unwrap();
    dest.write_at(8192, &[5; 4096]).unwrap();
    dest.zero_range(1 << 20, 1 << 20).unwrap();
    dest.finish().unwrap();
    drop(device);
    let all = std::fs::read(&path).unwrap();
    assert_eq!(all.len(), (3 << 20) + 2048);
    assert_eq!((all[8192], all[0], all[1 << 20], all[2 << 20]), (5, 1, 0, 3));
}

#[test]
fn a_mounted_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs");
    if !make_ext4(&path) {
        return;
    }
    let Some(device) = Loop::attach(&path, &[]) else { return };
    let at = dir.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let mounted = Command::new("mount").arg(&device.0).arg(&at).status();
    if !mounted.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: cannot mount here");
        return;
    }
    let before = std::fs::read(&path).unwrap();
    let both = DestOptions { force: true, in_place: true };
    let error = Dest::create(&device.0, 4096, both).unwrap_err();
    let source = Source::open(&device.0).unwrap().unchanged().unwrap();
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    assert!(error.to_string().contains("is mounted at"), "{error}");
    assert_eq!(class_of(&error), Class::Place);
    assert!(matches!(source, Proof::Fuzzy(_)));
    assert_eq!(before.len(), std::fs::read(&path).unwrap().len());
}

#[test]
fn the_program_copies_and_restores_devices() {
    let place = Place::joined();
    let fs = place.path("fs");
    if !make_ext4(&fs) {
        return;
    }
    let target = place.path("target");
    std::fs::write(&target, vec![7; 16 << 20]).unwrap();
    let (Some(from), Some(to)) = (Loop::attach(&fs, &[]), Loop::attach(&target, &[])) else {
        return;
    };
    let (source, dest) = (from.0.to_str().unwrap(), to.0.to_str().unwrap());
    let mirror = ["mirror", source, "--volume", "v", "--once", "--json"];
    let done = place.run(&mirror).ok().event("done");
    assert_eq!((&done["grade"], &done["size"]), (&"settled".into(), &(16 << 20).into()));
    // Zeros too: the device held something else everywhere.
    place.run(&["restore", "v", dest]).ok();
    assert!(std::fs::read(&target).unwrap() == std::fs::read(&fs).unwrap());
    let again = place.run(&["restore", "v", dest, "--in-place", "--json"]).ok().event("done");
    assert_eq!(again["written_bytes"], 0);

    let at = place.path("mnt");
    std::fs::create_dir(&at).unwrap();
    if !Command::new("mount").arg(source).arg(&at).status().is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: cannot mount here");
        return;
    }
    let fuzzy = place.run(&mirror);
    let refused = place.run(&["restore", "v@1", source, "--in-place", "--force"]);
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    fuzzy.fails(3, &["fuzzy", "snapshot"]);
    refused.fails(8, &["is mounted at"]);
}
