//! Both lags, the rate and the backlog, by scenarios.

use super::*;

fn lags(bench: &Bench) -> (Option<Duration>, Option<Duration>) {
    let view = bench.view();
    (view.data_lag, view.point_lag)
}

#[test]
fn a_write_ages_until_a_pass_that_began_after_it_is_acknowledged() {
    let mut bench = Bench::live();
    bench.after(ms(500), dirty(0));
    assert_eq!(lags(&bench), (Some(ms(0)), Some(ms(0))));
    // Written some time in these 400 ms: 400 ms at most.
    bench.after(ms(400), dirty(4096));
    assert!(is_pass(bench.job()));
    assert_eq!(lags(&bench), (Some(ms(400)), Some(ms(400))));
    // Written again meanwhile; the pass took 200 ms, and its cut was at its begin.
    bench.pass_ends(ms(200), Grade::Fuzzy, 4096, 4096);
    assert_eq!(lags(&bench), (Some(ms(200)), Some(ms(600))), "the point proves nothing");
    bench.after(ms(50), Event::Tick);
    bench.pass_ends(ms(100), Grade::Settled, 4096, 4096);
    assert_eq!(lags(&bench), (Some(ms(100)), Some(ms(100))), "now it does");
    bench.after(ms(150), Event::Tick);
    bench.pass_ends(ms(30), Grade::Settled, 4096, 0);
    assert_eq!(lags(&bench), (Some(ms(0)), Some(ms(0))));
}

/// A pass carries so much at most. As long as more is marked, it says nothing of the rest.
#[test]
fn what_a_pass_leaves_behind_goes_on_ageing() {
    let mut bench = Bench::live();
    bench.after(ms(500), dirty(0));
    bench.after(ms(400), dirty(GIB));
    let partial = |bench: &mut Bench, sent| {
        let point = bench.point(Grade::Fuzzy);
        let made = carried(point, bench.now, [64 * MIB, MIB, GIB]);
        bench.after(SECOND, Event::Made(Made { sent, ..made }));
        bench.tell(Event::Tick);
    };
    let begun = bench.now;
    partial(&mut bench, None);
    assert_eq!(lags(&bench).0, Some(ms(1400)), "the rest is as old as before");
    partial(&mut bench, None);
    assert_eq!(lags(&bench).0, Some(ms(2400)));
    // Then a sweep was over all that was marked when it began.
    partial(&mut bench, Some(begun));
    assert_eq!(lags(&bench).0, Some(ms(3000)));
    // What is known does not become worse by a sweep that began earlier than a look.
    partial(&mut bench, Some(begun - SECOND));
    assert_eq!(lags(&bench).0, Some(ms(4000)));
}

#[test]
fn an_old_look_says_nothing() {
    let mut bench = Bench::live();
    bench.after(ms(500), dirty(0));
    bench.now += LOOK_FRESH;
    assert_eq!(lags(&bench), (Some(ms(0)), Some(ms(0))));
    bench.now += ms(1);
    let age = LOOK_FRESH + ms(1);
    assert_eq!(lags(&bench), (Some(age), Some(age)));
    bench.tell(dirty(0));
    assert_eq!(lags(&bench), (Some(ms(0)), Some(ms(0))), "nothing was written for an hour");
    bench.after(60 * MINUTE, dirty(0));
    bench.after(ms(100), dirty(4096));
    assert_eq!(lags(&bench).1, Some(ms(100)), "the point showed the disk until just now");
}

#[test]
fn without_a_server_lags_grow_once_something_is_written() {
    let mut bench = Bench::live();
    bench.tell(lost(Away::LinkLost));
    bench.after(ms(200), dirty(0));
    assert_eq!(lags(&bench), (Some(ms(0)), Some(ms(0))));
    bench.after(ms(300), dirty(MIB));
    bench.after(MINUTE, dirty(2 * MIB));
    let age = MINUTE + ms(300);
    assert_eq!(lags(&bench), (Some(age), Some(age)));
    let view = bench.view();
    assert_eq!((view.backlog, view.eta), (2 * MIB, None));
}

#[test]
fn a_broken_watch_makes_the_data_lag_unknown_and_the_point_as_old_as_it_is() {
    let mut bench = Bench::live();
    bench.after(SECOND, dirty(4096));
    bench.pass_ends(ms(100), Grade::Settled, 4096, 0);
    let cut = bench.now - ms(100);
    bench.after(MINUTE, dirty(0));
    assert_eq!(lags(&bench), (Some(ms(0)), Some(ms(0))));
    let mut watched = bench.clone();
    watched.tell(Event::Gap(Gap::Everything));
    assert_eq!(lags(&watched), (Some(ms(0)), Some(ms(0))), "it was marked in this moment");
    watched.after(ms(700), dirty(GIB));
    assert_eq!(lags(&watched), (Some(ms(700)), Some(ms(700))));

    bench.tell(Event::Gap(Gap::TrackerGone));
    bench.tell(dirty(0));
    assert_eq!(lags(&bench), (None, Some(bench.now - cut)), "no look shows what it missed");
    assert!(matches!(bench.job(), Some(Job::Scan { .. })));
    bench.now += MINUTE;
    bench.pass_ends(ms(0), Grade::Fuzzy, 100 * GIB, 0);
    assert_eq!(lags(&bench), (Some(ms(0)), Some(bench.now - cut)), "all is there, unproved");
}

#[test]
fn what_the_server_has_is_as_old_as_it_says_after_a_start() {
    let mut bench = Bench::new();
    bench.tick();
    assert_eq!(lags(&bench), (None, None));
    let point = bench.point(Grade::Fuzzy);
    let good = PointSeen { seq: 90, grade: Grade::Frozen, time: 90 };
    let consistent = Some((good, 90 * SECOND));
    let head = Some(Head { point, consistent, deltas: 0 });
    bench.tell(Event::Connected { proof: Proof::Unbroken, head, dirty: MIB });
    assert_eq!(
        lags(&bench),
        (Some(90 * SECOND), Some(90 * SECOND)),
        "a fuzzy one may lack something"
    );
    bench.now += SECOND;
    assert_eq!(lags(&bench), (Some(91 * SECOND), Some(91 * SECOND)));
    assert_eq!((bench.view().point, bench.view().consistent), (Some(point), Some(good)));
}

#[test]
fn what_cannot_be_read_keeps_both_lags() {
    let mut bench = Bench::live();
    bench.after(SECOND, dirty(MIB));
    let point = bench.point(Grade::Settled);
    let cut = bench.now;
    bench.now += ms(100);
    bench.tell(Event::Made(Made { stale: 3, ..carried(point, cut, [MIB, 1, 0]) }));
    bench.after(ms(100), dirty(0));
    assert_eq!(lags(&bench), (Some(ms(200)), Some(ms(200))));
    assert_eq!(bench.view().stale, 3);
    // Tried again, ever more seldom, by a pass.
    let mut waits = Vec::new();
    for _ in 0..6 {
        waits.push(bench.sleep());
        assert!(is_pass(bench.job()));
        let point = bench.point(Grade::Settled);
        let cut = bench.now;
        bench.tell(Event::Made(Made { stale: 3, ..carried(point, cut, [0, 0, 0]) }));
    }
    assert!(waits[0] >= ms(1800) && waits[5] >= 32 * SECOND, "{waits:?}");
    bench.sleep();
    bench.pass_ends(ms(10), Grade::Settled, 4096, 0);
    assert_eq!(lags(&bench), (Some(ms(0)), Some(ms(0))), "it can be read");
}

#[test]
fn rate_and_time_left_come_from_the_last_seconds_of_sending() {
    let mut bench = Bench::with(Freeze::Never).into_live();
    assert_eq!(bench.view().rate, None);
    let mut send = |bytes, took| {
        bench.after(SECOND, dirty(bytes));
        bench.pass_ends(took, Grade::Fuzzy, bytes, 0);
        bench.now += MINUTE;
        bench.view().rate
    };
    assert_eq!(send(4096, ms(20)), None, "that was the round trip");
    assert_eq!(send(20 * MIB, 2 * SECOND), Some(10 * MIB));
    assert_eq!(send(4096, ms(20)), Some(10 * MIB));
    for _ in 0..10 {
        send(MIB, 5 * SECOND);
    }
    let slow = send(MIB, 5 * SECOND).unwrap();
    assert!(slow < MIB / 4 && slow > MIB / 6, "{slow}: the fast times are forgotten");
    bench.tell(dirty(10 * MIB));
    let eta = bench.view().eta.unwrap();
    assert!(eta > 40 * SECOND && eta < 60 * SECOND, "{eta:?}");
}

#[test]
fn a_scan_tells_its_own_rate() {
    let mut bench = Bench::new();
    bench.tick();
    bench.tell(Event::Connected { proof: Proof::Unbroken, head: None, dirty: 0 });
    assert_eq!((bench.view().state, bench.view().eta), (State::Scanning(Gap::FirstCopy), None));
    bench.after(10 * SECOND, Event::Progress { done: 5 * GIB, left: 20 * GIB });
    let view = bench.view();
    assert_eq!((view.backlog, view.rate), (20 * GIB, Some(GIB / 2)));
    assert_eq!(view.eta, Some(40 * SECOND));
    assert_eq!((view.data_lag, view.point_lag), (None, None), "there is nothing yet");
}
