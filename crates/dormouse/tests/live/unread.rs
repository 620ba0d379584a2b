//! What cannot be read is named, keeps what the copy has, and is tried again; the rest goes on.
//!
//! The image behind the device is cut short: what lay there cannot be read.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::stand::{SIZE, Stand, until};

const MIB: u64 = 1 << 20;

/// The device, written past the page cache of whoever reads it.
struct Device(File);

impl Device {
    fn of(stand: &Stand) -> Self {
        Self(OpenOptions::new().write(true).open(&stand.device).unwrap())
    }

    fn write(&self, at: u64, byte: u8) {
        self.0.write_all_at(&[byte; 8192], at).unwrap();
        self.0.sync_all().unwrap();
    }
}

fn notes(stand: &Stand) -> String {
    stand.status().map_or_else(String::new, |v| v["notes"].to_string())
}

#[test]
fn a_pass_goes_on_without_what_cannot_be_read() {
    let Some(mut stand) = Stand::new() else { return };
    stand.umount();
    stand.start(&[]);
    stand.is_live();
    let device = Device::of(&stand);
    let write = |at, byte| device.write(at, byte);
    write(SIZE - MIB, 3);
    stand.comes_back();
    stand.kill();
    write(SIZE - MIB, 4);
    write(5 * MIB, 5);
    stand.cut_short(SIZE - 2 * MIB);
    stand.start(&[]);
    until("it is noticed", || notes(&stand).contains("2 blocks of the device cannot be read"));
    let at = format!("cannot read 2 blocks from byte {} on: ", SIZE - MIB);
    assert!(stand.log().contains(&at), "{}", stand.log());
    assert_eq!(stand.counter("read_errors"), 2);
    // The rest goes on, and each point says what it lacks.
    write(7 * MIB, 6);
    until("the rest goes on", || stand.counter("settled") > 0);
    until("it is in a point", || stand.newest()[7 << 20..][..8192] == [6; 8192]);
    let copy = stand.newest();
    assert_eq!(copy[(SIZE - MIB) as usize..][..8192], [3; 8192], "what the copy had was lost");
    assert_eq!(copy[5 << 20..][..8192], [5; 8192]);
    let first = SIZE - MIB;
    let said = stand.said_at_restore();
    let range = format!(
        "2 blocks of this point: it has what was there before, or zeros, at bytes {first}-{}",
        first + 8191
    );
    assert!(said.contains(&range), "{said}");
    // The disk gives them again.
    stand.cut_short(SIZE);
    stand.comes_back();
    until("all is well", || !notes(&stand).contains("cannot be read"));
    write(8 * MIB, 7);
    stand.comes_back();
    assert!(!stand.said_at_restore().contains("did not give"), "{}", stand.said_at_restore());
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

/// A scan, too: of a first copy, and of one that goes on from a delta.
#[test]
fn a_scan_goes_on_without_what_cannot_be_read() {
    let Some(mut stand) = Stand::new() else { return };
    stand.umount();
    let device = Device::of(&stand);
    device.write(SIZE - 5 * MIB, 1);
    stand.cut_short(SIZE - 4 * MIB);
    stand.start(&[]);
    stand.is_live();
    let unread = |blocks: u64| format!("{blocks} blocks of the device cannot be read");
    until("it is told", || notes(&stand).contains(&unread(1024)));
    let at = format!("cannot read 1024 blocks from byte {} on: ", SIZE - 4 * MIB);
    assert!(stand.log().contains(&at), "{}", stand.log());
    assert_eq!(stand.counter("read_errors"), 1024);
    until("there is a point all the same", || stand.counter("settled") > 0);
    let said = stand.said_at_restore();
    assert!(said.contains("did not give 1024 blocks of this point"), "{said}");
    // A daemon that comes back knows of it, without a scan.
    stand.stop();
    stand.start(&[]);
    until("it is told again", || notes(&stand).contains(&unread(1024)));
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    // They are read as soon as the disk gives them.
    stand.cut_short(SIZE);
    until("all is well", || !notes(&stand).contains("cannot be read"));
    stand.comes_back();

    // In the newest point, and not in its checkpoint; then the watch ends, as by a reboot.
    device.write(SIZE - MIB, 7);
    stand.comes_back();
    stand.kill();
    assert!(stand.remove_pins());
    device.write(5 * MIB, 8);
    stand.cut_short(SIZE - 2 * MIB);
    stand.start(&[]);
    until("it is scanned", || stand.counter("points") > 0);
    assert_eq!(stand.scans().len(), 2, "{}", stand.log());
    until("it is told", || notes(&stand).contains(&unread(512)));
    let copy = stand.newest_fuzzy();
    assert_eq!(copy[(SIZE - MIB) as usize..][..8192], [7; 8192], "what the copy had was lost");
    assert_eq!(copy[5 << 20..][..8192], [8; 8192], "what can be read is not there");
    stand.cut_short(SIZE);
    stand.comes_back();
    stand.stop();
}
