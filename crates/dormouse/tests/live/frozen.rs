//! Points of a disk that is held still: under any load, for a moment only, and whoever dies.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::load::Load;
use crate::stand::{Stand, numbers, until};

const EACH_SECOND: [&str; 4] = ["--freeze", "auto", "--point-every", "1s"];
/// Writers wait at most for the hold, a second, and for what it takes to come to it.
const STALL_MAX: Duration = Duration::from_secs(3);

impl Stand {
    fn frozen_since(&self, before: u64, count: u64) {
        until("frozen points", || self.counter("frozen") >= before + count);
    }

    /// A program that the test gives as a hook.
    fn script(&self, name: &str, text: &str) -> String {
        let path = self.place.path(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn a_disk_that_is_never_quiet_has_frozen_points() {
    let Some(mut stand) = Stand::live(&EACH_SECOND) else { return };
    let loads = [1, 1, 3].map(|sync| {
        let at = stand.mount.join(format!("load{sync}"));
        let _ = std::fs::create_dir(&at);
        Load::start(&at, numbers(), sync)
    });
    stand.frozen_since(0, 3);
    let steps = loads.each_ref().map(Load::steps);
    std::thread::sleep(Duration::from_millis(300));
    for (load, before) in loads.into_iter().zip(steps) {
        let longest = load.longest();
        assert!(load.end() > before, "a writer did not go on");
        assert!(longest < STALL_MAX, "a writer waited for {longest:?}");
    }
    let points = stand.points("frozen");
    assert!(points.len() >= 3, "{points:?}");
    points[points.len() - 3..].iter().for_each(|p| stand.is_sound(*p, "frozen"));
    stand.stop();
}

/// Stops the daemon again and again, for a moment, until writers stand still meanwhile.
fn stop_while_frozen(stand: &Stand, load: &Load) {
    let daemon = stand.daemon.as_ref().unwrap();
    let moves = |for_so_long: Duration| {
        let (steps, began) = (load.steps(), Instant::now());
        while began.elapsed() < for_so_long {
            if load.steps() > steps {
                return true;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        false
    };
    until("the daemon stands still while the disk is frozen", || {
        daemon.signal(Signal::STOP);
        if !moves(Duration::from_millis(150)) {
            return true;
        }
        daemon.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(1));
        false
    });
}

#[test]
fn a_daemon_that_is_killed_in_a_freeze_leaves_nothing_frozen() {
    let Some(mut stand) = Stand::live(&EACH_SECOND) else { return };
    let load = Load::start(&stand.mount, numbers(), 1);
    stand.frozen_since(0, 1);
    for stopped in [false, true] {
        stop_while_frozen(&stand, &load);
        let (steps, began) = (load.steps(), Instant::now());
        if !stopped {
            stand.kill();
        }
        // A daemon that only stands still is one that hangs: the deadline is the helper's.
        until("writers go on", || load.steps() > steps);
        let took = began.elapsed();
        println!("writers went on after {took:?}");
        assert!(took < Duration::from_millis(1500), "{took:?}");
        if stopped {
            let daemon = stand.daemon.as_ref().unwrap();
            daemon.signal(Signal::CONT);
        } else {
            stand.start(&EACH_SECOND);
            stand.is_live();
        }
        stand.frozen_since(stand.counter("frozen"), 1);
    }
    load.end();
    for point in stand.points("frozen").into_iter().rev().take(2) {
        stand.is_sound(point, "frozen");
    }
    stand.umount();
    stand.comes_back();
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

#[test]
fn its_own_state_and_log_may_lie_on_what_it_freezes() {
    let Some(mut stand) = Stand::new() else { return };
    crate::stand::sh(&format!("cp -a {} {}", stand.place.name("home"), stand.mount.display()));
    stand.home = stand.mount.join("home").to_str().unwrap().to_owned();
    let log: PathBuf = stand.mount.join("daemon.log");
    let err = File::create(&log).unwrap();
    let args = stand.mirror(&EACH_SECOND);
    let daemon = stand.place.start_with(&stand.home, &args, |command| {
        command.stderr(err);
    });
    stand.daemon = Some(daemon);
    stand.is_live();
    let load = Load::start(&stand.mount, numbers(), 1);
    stand.frozen_since(0, 4);
    assert!(load.longest() < STALL_MAX, "{:?}", load.longest());
    load.end();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.matches(": frozen for ").count() >= 4, "{said}");
    // With nothing else to say, what the daemon does makes no work for itself.
    std::thread::sleep(Duration::from_secs(2));
    let before = stand.counter("points");
    std::thread::sleep(Duration::from_secs(3));
    let more = stand.counter("points") - before;
    assert!(more <= 2, "{more} points of a disk on which only the daemon writes");
    stand.stop();
    stand.home = "home".into();
}

#[test]
fn hooks_are_run_before_and_after_and_one_that_fails_keeps_it_from_freezing() {
    let Some(mut stand) = Stand::new() else { return };
    let calls = stand.place.path("calls");
    let shown = calls.display();
    let hook = stand.script("hook", &format!("echo \"$1\" >> {shown}"));
    let failing = stand.script("failing", &format!("echo failed >> {shown}; exit 3"));
    let (before, after) = (format!("{hook} before"), format!("{hook} after"));
    let hooks = ["--hook-before", &before, "--hook-after", &after];
    stand.start(&[&EACH_SECOND[..], &hooks].concat());
    stand.is_live();
    let load = Load::start(&stand.mount, numbers(), 1);
    stand.frozen_since(0, 2);
    stand.stop();
    let said = std::fs::read_to_string(&calls).unwrap();
    let said: Vec<_> = said.lines().collect();
    assert!(said.len() >= 4, "{said:?}");
    for pair in said.chunks(2) {
        assert_eq!(pair, ["before", "after"], "{said:?}");
    }
    std::fs::remove_file(&calls).unwrap();
    stand.start(&[&EACH_SECOND[..], &["--hook-before", &failing, "--hook-after", &after]].concat());
    until("the hook was run", || calls.exists());
    until("it is said", || {
        stand.status().is_some_and(|v| v["notes"].to_string().contains("no frozen point"))
    });
    assert_eq!(stand.counter("frozen"), 0);
    assert!(stand.counter("freezes_failed") > 0);
    let notes = stand.status().unwrap()["notes"].to_string();
    assert!(notes.contains(&failing), "{notes}");
    let said = std::fs::read_to_string(&calls).unwrap();
    assert!(said.lines().all(|l| l == "failed" || l == "after"), "{said}");
    load.end();
    stand.stop();
}
