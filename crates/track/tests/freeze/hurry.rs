//! The kernel's grace periods are short during a freeze, and as before afterwards.
//!
//! The switch is the whole machine's, and other tests freeze at the same time: what is off in the
//! end is waited for.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::deaths::signal;
use crate::roles::freezer;
use crate::slow::Nested;
use crate::stand::{LONG, Volume, file_system_at, possible, skip, until};

const SWITCH: &str = "/sys/kernel/rcu_expedited";

fn is_on() -> bool {
    fs::read_to_string(SWITCH).unwrap().trim() == "1"
}

/// Whether there is a switch here, and it is off.
fn there_is_a_switch(what: &str) -> bool {
    if !possible(what) {
        return false;
    }
    let hurries = !freezer().weaknesses().iter().any(|lack| lack.contains(SWITCH));
    if !hurries {
        skip(what, "needs a writable /sys/kernel/rcu_expedited");
    }
    hurries
}

#[test]
fn it_is_off_while_all_is_held_and_afterwards() {
    if !there_is_a_switch("short grace periods") {
        return;
    }
    let volume = Volume::new("ext4");
    let mut freezer = freezer();
    let frozen = freezer.freeze(&volume.file_systems(), LONG).unwrap();
    until("it is off while frozen", || !is_on());
    frozen.thaw().unwrap();
    until("it is off after the thaw", || !is_on());
}

#[test]
fn it_is_on_while_the_kernel_freezes_and_off_after_a_helpers_death() {
    if !there_is_a_switch("short grace periods and a death") {
        return;
    }
    // Another test may have turned it on, and turn it off: then it is tried again.
    let seen = (0..10).any(|_| {
        let nested = Nested::stuck();
        let mut freezer = freezer();
        let helper = freezer.pid();
        let inner = [file_system_at(nested.inner.point())];
        let freezing = thread::spawn(move || freezer.freeze(&inner, LONG).map(drop));
        thread::sleep(Duration::from_millis(300));
        let seen = is_on();
        signal(helper, Signal::KILL);
        nested.release();
        until("the freeze returns", || freezing.is_finished());
        seen
    });
    assert!(seen, "it is not turned on");
    until("it is off", || !is_on());
}

#[test]
fn it_is_off_when_the_deadline_has_passed() {
    if !there_is_a_switch("short grace periods and a deadline") {
        return;
    }
    let nested = Nested::stuck();
    let mut freezer = freezer();
    let inner = [file_system_at(nested.inner.point())];
    assert!(freezer.freeze(&inner, Duration::from_millis(200)).is_err());
    // The kernel is still at it.
    until("it is off", || !is_on());
    nested.release();
}
