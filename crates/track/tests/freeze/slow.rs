//! Freezes in which the kernel itself does not come back.
//!
//! The file system to freeze lies in a file of another one, which is frozen by hand: what is
//! written back for the freeze has to wait there.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_track::freeze::FreezeError;
use rustix::process::Signal;

use crate::deaths::signal;
use crate::roles::{Player, freezer};
use crate::stand::{
    Disk, LONG, Mounted, Volume, file_system_at, freeze_by_hand, is_frozen, possible, thaw_by_hand,
    until, until_thawed,
};

/// A file system in a file of another one. The inner one goes first.
pub struct Nested {
    pub inner: Mounted,
    _disk: Disk,
    base: Volume,
}

impl Nested {
    /// With something to write back, and a base that does not take it.
    pub fn stuck() -> Nested {
        let base = Volume::new("ext4");
        let disk = Disk::over(&base.mounted.file("image"), 64);
        let inner = Mounted::fresh("ext4", &disk.device);
        let nested = Nested { inner, _disk: disk, base };
        freeze_by_hand(nested.base.point());
        File::create(nested.inner.file("a")).unwrap().write_all(&[3; 1 << 20]).unwrap();
        nested
    }

    pub fn release(&self) {
        assert!(thaw_by_hand(self.base.point()));
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        // Before the inner one: nothing of it can end earlier.
        thaw_by_hand(self.base.point());
    }
}

#[test]
fn the_caller_hears_at_once_and_the_kernels_late_freeze_is_undone() {
    if !possible("slow freezes") {
        return;
    }
    let nested = Nested::stuck();
    let quick = Volume::new("ext4");
    // The later one is frozen first, quickly; then the kernel gets stuck.
    let both = [file_system_at(nested.inner.point()), quick.file_systems().remove(0)];
    let mut freezer = freezer();
    let hold_max = Duration::from_millis(500);
    let start = Instant::now();
    match freezer.freeze(&both, hold_max).map(drop) {
        Err(FreezeError::TooSlow { mount_point, .. }) => {
            assert_eq!(mount_point, Path::new(nested.inner.point()));
        }
        other => panic!("{other:?}"),
    }
    let elapsed = start.elapsed();
    assert!(elapsed >= hold_max && elapsed < hold_max * 2, "heard after {elapsed:?}");
    let waited = until_thawed(quick.point());
    assert!(waited < Duration::from_millis(500), "the other was kept for {waited:?}");

    match freezer.freeze(&quick.file_systems(), LONG).map(drop) {
        Err(FreezeError::StillHeld { mount_point }) => {
            assert_eq!(mount_point, Path::new(nested.inner.point()));
        }
        other => panic!("{other:?}"),
    }
    nested.release();
    until_thawed(nested.inner.point());
    until("the helper is ready again", || freezer.freeze(&quick.file_systems(), LONG).is_ok());
}

#[test]
fn a_daemon_that_dies_meanwhile_leaves_nothing_frozen() {
    if !possible("a daemon's death in a slow freeze") {
        return;
    }
    let nested = Nested::stuck();
    let (mut daemon, helper) = Player::daemon(nested.inner.point());
    // Time to get stuck.
    thread::sleep(Duration::from_millis(300));
    daemon.kill();
    let alive = || Path::new(&format!("/proc/{helper}")).exists();
    let used = cpu_ticks(helper);
    thread::sleep(Duration::from_millis(500));
    assert!(alive(), "the helper did not wait for the kernel");
    assert!(cpu_ticks(helper) - used < 10, "the helper does not rest");
    nested.release();
    until("the helper ends", || !alive());
    assert!(!is_frozen(nested.inner.point()));
}

/// Processor time of a process, in hundredths of a second.
fn cpu_ticks(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_helper_that_hangs_meanwhile_leaves_nothing_frozen() {
    if !possible("a helper that hangs in a slow freeze") {
        return;
    }
    let nested = Nested::stuck();
    let mut freezer = freezer();
    let inner = [file_system_at(nested.inner.point())];
    let result = freezer.freeze(&inner, Duration::from_millis(200)).map(drop);
    assert!(matches!(result, Err(FreezeError::TooSlow { .. })), "{result:?}");
    let helper = freezer.pid();
    signal(helper, Signal::STOP);
    nested.release();
    let waited = until_thawed(nested.inner.point());
    assert!(waited > Duration::from_millis(500), "it was never frozen: this shows nothing");
    signal(helper, Signal::CONT);
    until("the helper is ready again", || freezer.freeze(&inner, LONG).is_ok());
}

#[test]
fn a_helper_that_dies_meanwhile_leaves_nothing_frozen() {
    if !possible("a helper's death in a slow freeze") {
        return;
    }
    let nested = Nested::stuck();
    let mut freezer = freezer();
    let helper = freezer.pid();
    let file_systems = [file_system_at(nested.inner.point())];
    let freezing = thread::spawn(move || freezer.freeze(&file_systems, LONG).map(drop));
    thread::sleep(Duration::from_millis(300));
    signal(helper, Signal::KILL);
    thread::sleep(Duration::from_millis(100));
    assert!(!freezing.is_finished());
    nested.release();
    until("the freeze returns", || freezing.is_finished());
    assert!(matches!(freezing.join().unwrap(), Err(FreezeError::HelperGone)));
    assert!(!is_frozen(nested.inner.point()));
}
