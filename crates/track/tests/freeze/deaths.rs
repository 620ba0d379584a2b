//! Whoever dies, the file systems are thawed.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_track::freeze::{FreezeError, Freezer};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, getsid, kill_process, pidfd_getfd, pidfd_open,
};

use crate::roles::{Player, freezer};
use crate::stand::{
    LONG, Volume, Write1, freeze_by_hand, is_frozen, possible, thaw_by_hand, until, until_thawed,
};

/// Long before a deadline, with room for a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(2);

pub fn signal(process: u32, signal: Signal) {
    kill_process(pid(process), signal).unwrap();
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(process.try_into().unwrap()).unwrap()
}

#[test]
fn a_killed_daemon_leaves_nothing_frozen() {
    if !possible("a daemon's death") {
        return;
    }
    let volume = Volume::new("ext4");
    let (mut daemon, helper) = Player::daemon(volume.point());
    assert_eq!(daemon.hear(), "frozen");
    assert!(is_frozen(volume.point()));
    let write = Write1::start(&volume.mounted.file("a"));
    daemon.kill();
    assert!(until_thawed(volume.point()) < AT_ONCE);
    write.finish();
    until("the helper ends", || !Path::new(&format!("/proc/{helper}")).exists());
}

#[test]
fn a_killed_helper_leaves_nothing_frozen() {
    if !possible("a helper's death") {
        return;
    }
    let volume = Volume::new("ext4");
    let mut freezer = freezer();
    let helper = freezer.pid();
    let mut frozen = freezer.freeze(&volume.file_systems(), LONG).unwrap();
    assert!(is_frozen(volume.point()));
    signal(helper, Signal::KILL);
    // Nobody asks: the daemon notices by itself.
    assert!(until_thawed(volume.point()) < AT_ONCE);
    until("it is noticed", || !frozen.is_held());
    assert!(matches!(frozen.thaw(), Err(FreezeError::HelperGone)));
    let again = freezer.freeze(&volume.file_systems(), LONG).map(drop);
    assert!(matches!(again, Err(FreezeError::HelperGone)));
    let mut freezer = crate::roles::freezer();
    freezer.freeze(&volume.file_systems(), LONG).unwrap().thaw().unwrap();
    assert!(volume.mounted.unmount(), "something keeps it open");
}

#[test]
fn a_helper_that_hangs_leaves_nothing_frozen() {
    if !possible("a helper that hangs") {
        return;
    }
    let volume = Volume::new("ext4");
    let mut freezer = freezer();
    let helper = freezer.pid();
    let hold_max = Duration::from_millis(500);
    let start = Instant::now();
    let frozen = freezer.freeze(&volume.file_systems(), hold_max).unwrap();
    signal(helper, Signal::STOP);
    until_thawed(volume.point());
    assert!(start.elapsed() < hold_max + AT_ONCE);
    assert!(matches!(frozen.thaw(), Err(FreezeError::HelperGone)));
}

#[test]
fn a_helper_that_hung_is_thawed_for_once_only() {
    if !possible("somebody else's freeze after a hang") {
        return;
    }
    let volume = Volume::new("ext4");
    let mut freezer = freezer();
    let helper = pid(freezer.pid());
    // Its end of the link outlives it: the daemon does not see it die.
    let flags = (PidfdFlags::empty(), PidfdGetfdFlags::empty());
    let link = pidfd_getfd(pidfd_open(helper, flags.0).unwrap(), 0, flags.1).unwrap();
    let hold_max = Duration::from_millis(200);
    let frozen = freezer.freeze(&volume.file_systems(), hold_max).unwrap();
    kill_process(helper, Signal::STOP).unwrap();
    until_thawed(volume.point());
    assert!(matches!(frozen.thaw(), Err(FreezeError::HelperGone)));
    freeze_by_hand(volume.point());
    drop(link);
    thread::sleep(Duration::from_millis(300));
    assert!(thaw_by_hand(volume.point()), "somebody else's freeze was thawed");
}

#[test]
fn a_helper_that_is_told_to_end_thaws_first() {
    if !possible("signals") {
        return;
    }
    let volume = Volume::new("ext4");
    for number in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1] {
        let mut freezer = freezer();
        let helper = freezer.pid();
        let frozen = freezer.freeze(&volume.file_systems(), LONG).unwrap();
        signal(helper, number);
        // The helper did it, not the daemon in its place: that is another error.
        assert!(until_thawed(volume.point()) < AT_ONCE, "{number:?}");
        assert!(matches!(frozen.thaw(), Err(FreezeError::Stopped)), "{number:?}");
    }
}

#[test]
fn a_helper_without_its_link_is_in_a_session_of_its_own_and_ends_with_its_daemon() {
    if !possible("the helper's life") {
        return;
    }
    let freezer = freezer();
    let helper = freezer.pid();
    assert_eq!(getsid(Some(pid(helper))).unwrap(), pid(helper));
    drop(freezer);
    assert!(!Path::new(&format!("/proc/{helper}")).exists());
}

#[test]
fn a_program_that_is_no_helper_is_refused() {
    for program in ["true", "/no/such/program"] {
        let result = Freezer::start(Command::new(program)).map(drop);
        assert!(matches!(result, Err(FreezeError::Start { .. })), "{program}: {result:?}");
    }
}
