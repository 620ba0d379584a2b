//! Whatever dies, and whenever: nothing is lost, and nothing is compared again without need.

use std::time::Duration;

use dormouse_track::record::Record;
use dormouse_track::sleep::Slept;
use rustix::process::Signal;

use crate::common::program::Numbers;
use crate::load::Load;
use crate::stand::{SIZE, Stand, numbers, sh, until};

const SHORT: Duration = Duration::from_millis(500);

#[test]
fn after_a_break_it_goes_on_without_a_scan() {
    let Some(mut stand) = Stand::live(&["--point-every", "1s"]) else { return };
    let load = Load::start(&stand.mount, numbers(), 8);
    std::thread::sleep(SHORT);
    for clean in [false, true, false] {
        if clean {
            stand.stop()
        } else {
            stand.kill()
        }
        // What is written while nobody looks is marked all the same.
        std::thread::sleep(SHORT);
        stand.start(&["--point-every", "1s"]);
        stand.is_live();
        let read = stand.counter("bytes_read");
        assert!(read < SIZE / 4, "{read} bytes were read of {SIZE}");
    }
    let reconnects = stand.counter("reconnects");
    stand.restart_server(SHORT);
    until("it is connected again", || stand.counter("reconnects") > reconnects);
    stand.is_live();
    stand.relay.sever();
    until("it is connected again", || stand.counter("reconnects") > reconnects + 1);
    stand.is_live();
    std::thread::sleep(SHORT);
    let scans = stand.counter("scans");
    load.end();
    stand.umount();
    stand.comes_back();
    assert_eq!((stand.scans().len(), scans), (1, 0), "{}", stand.log());
    stand.stop();
}

#[test]
fn a_daemon_that_is_killed_at_any_moment_loses_nothing() {
    let kills = std::env::var("DORMOUSE_LIVE_KILLS").map_or(10, |n| n.parse().unwrap());
    let mut numbers = numbers();
    let more = ["--point-every", "1s"];
    let Some(mut stand) = Stand::live(&more) else { return };
    let mut load = Load::start(&stand.mount, numbers.clone(), 4);
    let mut sampled = [0, 0];
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(numbers.below(900)));
        // Every third time the server stands still meanwhile: the daemon dies between its cut
        // and the acknowledgement, and the point is made, or not, when nobody waits for it.
        let held = kill % 3 == 2;
        if held {
            stand.server.as_ref().unwrap().signal(Signal::STOP);
            std::thread::sleep(Duration::from_millis(numbers.below(300)));
        }
        stand.kill();
        if held {
            stand.server.as_ref().unwrap().signal(Signal::CONT);
        }
        if kill % 5 == 4 {
            stand.restart_server(Duration::ZERO);
        }
        stand.start(&more);
        stand.is_live();
        for (i, grade) in ["frozen", "settled"].into_iter().enumerate() {
            let points = stand.points(grade);
            if kill % 4 == 3 && !points.is_empty() {
                let newest = points.len() as u64 - 1;
                stand.is_sound(points[(newest - numbers.below(newest.min(3) + 1)) as usize], grade);
                sampled[i] += 1;
            }
        }
        if kill % 10 == 9 {
            load.end();
            stand.umount();
            stand.comes_back();
            stand.mount();
            load = Load::start(&stand.mount, Numbers(numbers.next()), 4);
        }
    }
    load.end();
    stand.umount();
    stand.comes_back();
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    assert!(sampled[0] + sampled[1] > 0, "no point was looked at");
    println!(
        "{kills} kills, points that were sound: {} frozen, {} settled",
        sampled[0], sampled[1]
    );
    stand.stop();
}

#[test]
fn a_watch_that_was_broken_is_answered_by_a_scan() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    stand.stop();
    assert!(stand.remove_pins());
    let load = Load::start(&stand.mount, numbers(), 2);
    std::thread::sleep(SHORT);
    load.end();
    stand.start(&[]);
    stand.is_live();
    stand.umount();
    stand.comes_back();
    let scans = stand.scans();
    assert_eq!(scans.len(), 2, "{}", stand.log());
    assert!(scans[1].contains("no proof of an unbroken watch"), "{scans:?}");
    assert_eq!(stand.counter("scans"), 1);
    stand.stop();
}

#[test]
fn a_volume_that_another_took_over_is_left_to_it() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    // Another installation in the same vault.
    let (kit, server) = (stand.place.name("kit"), &stand.relay.address);
    stand.place.run_in("clone", &["join", "--kit", &kit, server]).ok();
    let once = stand.place.run_in("clone", &stand.mirror(&["--once"]));
    once.fails(12, &["--takeover"]);
    assert!(stand.status().is_some_and(|v| v["state"] == "LIVE"));
    let once = stand.place.run_in("clone", &stand.mirror(&["--once", "--takeover"]));
    assert!(matches!(once.code, Some(0 | 3)), "{once:?}");
    let load = Load::start(&stand.mount, numbers(), 2);
    stand.becomes("NOCONN");
    // It does not fight.
    std::thread::sleep(Duration::from_secs(3));
    let status = stand.status().unwrap();
    assert_eq!(status["state"], "NOCONN", "{}", stand.log());
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("another instance has taken this volume over"), "{reason}");
    assert!(status["notes"].to_string().contains("--takeover"), "{status}");
    stand.kill();
    stand.start(&["--takeover"]);
    stand.is_live();
    load.end();
    stand.umount();
    stand.comes_back();
    assert_eq!(stand.scans().len(), 2, "{}", stand.log());
    stand.stop();
}

/// A machine that was cloned has the same key: it needs no leave to take over, has to compare, and
/// the first does not fight.
#[test]
fn a_home_that_was_copied_takes_over_and_compares() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    stand.umount();
    stand.comes_back();
    let (home, copy) = (stand.place.path("home"), stand.place.path("copied"));
    sh(&format!("cp -a {} {}; rm -rf {1}/run", home.display(), copy.display()));
    // It knows the volume, and a watch that is not its own says nothing to it.
    let mirror = stand.mirror(&[]).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let args: Vec<&str> = mirror.iter().map(String::as_str).collect();
    let second = stand.place.start_in("copied", &args);
    until("the copy follows", || second.err().contains(": LIVE: "));
    assert!(second.err().contains(": SCANNING: no proof of an unbroken watch"), "{}", second.err());
    // The first hears of it when it asks, or sends something.
    let device = std::fs::OpenOptions::new().write(true).open(&stand.device).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&device, &[5; 8192], 7 << 20).unwrap();
    device.sync_all().unwrap();
    stand.becomes("NOCONN");
    std::thread::sleep(Duration::from_secs(2));
    let status = stand.status().unwrap();
    assert!(status["reason"].to_string().contains("has taken this volume over"), "{status}");
    assert!(!second.err().contains("taken this volume over"), "{}", second.err());
    stand.comes_back();
    drop(second);
    stand.kill();
    while stand.remove_pins() {}
}

/// The marks wake up with the machine, and what was written meanwhile is not among them.
#[test]
fn a_machine_that_has_hibernated_is_compared() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    stand.umount();
    stand.comes_back();
    // The clocks cannot be turned here: what is on record is another sleep.
    let sleep_again = |stand: &Stand| {
        let (watch, record) = stand.watch().unwrap();
        let slept = Slept { ms: record.slept.ms + 60_000, ..record.slept };
        watch.marks().unwrap().set_record(&Record { slept, ..record });
    };
    sleep_again(&stand);
    until("it is noticed", || stand.scans().len() == 2);
    stand.is_live();
    stand.stop();
    sleep_again(&stand);
    stand.start(&[]);
    stand.is_live();
    let scans = stand.scans();
    assert_eq!(scans.len(), 3, "{}", stand.log());
    assert!(scans[1..].iter().all(|scan| scan.contains("hibernated")), "{scans:?}");
    stand.comes_back();
    stand.stop();
}

/// Nothing is written, so nothing is refused: it asks.
#[test]
fn a_mirror_that_is_idle_hears_of_a_takeover() {
    let Some(mut stand) = Stand::new() else { return };
    stand.umount();
    stand.start(&[]);
    stand.is_live();
    let (kit, server) = (stand.place.name("kit"), &stand.relay.address);
    stand.place.run_in("clone", &["join", "--kit", &kit, server]).ok();
    // Longer than it takes to be asked, and the answer is that all is well.
    std::thread::sleep(Duration::from_secs(17));
    assert_eq!(stand.status().unwrap()["state"], "LIVE");
    let device = std::fs::OpenOptions::new().write(true).open(&stand.device).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&device, &[5; 8192], 7 << 20).unwrap();
    device.sync_all().unwrap();
    stand.comes_back();
    let once = stand.place.run_in("clone", &stand.mirror(&["--once", "--takeover"]));
    assert!(matches!(once.code, Some(0 | 3)), "{once:?}");
    stand.becomes("NOCONN");
    let status = stand.status().unwrap();
    assert!(status["reason"].to_string().contains("has taken this volume over"), "{status}");
    stand.kill();
}

/// Between two writes of the home only the record beside the marks knows what was acknowledged.
#[test]
fn a_server_that_has_gone_back_gets_nothing() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    let (store, old, new) =
        (stand.place.path("store"), stand.place.path("old"), stand.place.path("new"));
    stand.server.take().unwrap().kill();
    sh(&format!("cp -a {} {}", store.display(), old.display()));
    stand.serve();
    let load = Load::start(&stand.mount, numbers(), 2);
    until("a point is made", || stand.counter("points") > 3);
    load.end();
    stand.server.take().unwrap().kill();
    sh(&format!("mv {0} {1}; mv {2} {0}", store.display(), new.display(), old.display()));
    stand.serve();
    until("the loss is noticed", || {
        stand.status().is_some_and(|v| v["reason"].to_string().contains("lost history"))
    });
    assert_eq!(stand.status().unwrap()["state"], "NOCONN");
    stand.kill();
    // It was a mistake: nothing was sent, and it goes on where it was.
    stand.server.take().unwrap().kill();
    sh(&format!("mv {0} {1}; mv {2} {0}", store.display(), old.display(), new.display()));
    stand.serve();
    stand.start(&[]);
    stand.is_live();
    stand.umount();
    stand.comes_back();
    assert_eq!(stand.scans().len(), 1, "{}", stand.log());
    stand.stop();
}

#[test]
fn a_tracker_that_is_not_wanted_any_more_can_be_ended() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    let name = stand.volume.clone();
    stand.place.run(&["untrack", &name]).fails(12, &["in use"]);
    stand.stop();
    stand.place.run(&["untrack", &name]).ok();
    stand.place.run(&["untrack", &name]).fails(4, &["no tracker"]);
    assert!(!stand.remove_pins());
    stand.start(&[]);
    stand.is_live();
    assert_eq!(stand.scans().len(), 2, "{}", stand.log());
    stand.stop();
}
