//! From one state to the next, as it happens to a disk in use.

use super::*;

#[test]
fn a_first_copy_then_live() {
    let mut bench = Bench::new();
    assert_eq!(bench.view().state, State::NoConn(Away::Starting));
    assert_eq!(bench.tick(), [Action::Begin(Job::Connect { takeover: false })]);
    let event = Event::Connected { proof: Proof::Unbroken, head: None, dirty: GIB };
    assert_eq!(bench.tell(event), [Action::Begin(Job::Scan { resume: false })]);
    assert_eq!(bench.live.state(), State::Scanning(Gap::FirstCopy));
    // What was written during the scan is caught up with; then it follows.
    bench.pass_ends(60 * MINUTE, Grade::Fuzzy, 100 * GIB, GIB);
    assert_eq!(bench.live.state(), State::CatchUp);
    assert!(is_pass(bench.job()));
    bench.pass_ends(10 * SECOND, Grade::Fuzzy, GIB, MIB);
    assert_eq!(bench.live.state(), State::Live);
}

#[test]
fn every_gap_leads_to_a_scan_with_its_reason() {
    for gap in Gap::ALL {
        let mut bench = Bench::new();
        bench.tick();
        let head = Some(bench.head(Grade::Settled));
        bench.tell(Event::Connected { proof: Proof::Broken(gap), head, dirty: 0 });
        assert_eq!(bench.live.state(), State::Scanning(gap));
        assert_eq!(bench.view().state.reason(), gap.text());
        // Only where all was watched since a scan was begun, that one goes on.
        let resume = gap == Gap::Incomplete;
        assert_eq!(bench.job(), Some(Job::Scan { resume }));

        let mut live = Bench::live();
        live.after(SECOND, dirty(MIB));
        assert_eq!(live.tell(Event::Gap(gap)), [Action::Cancel]);
        assert_eq!((live.live.state(), live.live.state().name()), (State::Rescan(gap), "RESCAN"));
        assert_eq!(live.tell(Event::Gap(Gap::Asked)), [], "it is being cancelled already");
        assert_eq!(live.live.state(), State::Rescan(Gap::Asked));
        live.tell(failed());
        assert_eq!(live.live.state(), State::Scanning(Gap::Asked));
        assert_eq!(live.job(), Some(Job::Scan { resume: false }));
    }
}

#[test]
fn a_scan_that_was_cut_off_goes_on_if_the_watch_did() {
    let mut bench = Bench::new();
    bench.tick();
    bench.tell(Event::Connected { proof: Proof::Unbroken, head: None, dirty: 0 });
    bench.after(MINUTE, lost(Away::LinkLost));
    bench.sleep();
    let mut broken = bench.clone();
    let mut recorded = bench.clone();
    let proof = Proof::Broken(Gap::Incomplete);
    recorded.tell(Event::Connected { proof, head: None, dirty: 0 });
    assert_eq!(recorded.job(), Some(Job::Scan { resume: true }), "no gap in the watch");
    // A head without all of the disk does not make it whole.
    let event = bench.connected(MIB);
    assert_eq!(bench.tell(event), [Action::Begin(Job::Scan { resume: true })]);
    assert_eq!(bench.live.state(), State::Scanning(Gap::FirstCopy));
    bench.tell(failed());
    bench.sleep();
    assert_eq!(bench.job(), Some(Job::Scan { resume: true }), "the disk came back");

    let proof = Proof::Broken(Gap::TrackerGone);
    broken.tell(Event::Connected { proof, head: None, dirty: 0 });
    assert_eq!(broken.job(), Some(Job::Scan { resume: false }));
}

#[test]
fn a_gap_without_a_server_is_not_forgotten() {
    let mut bench = Bench::live();
    bench.tell(lost(Away::Stopping));
    bench.tell(Event::Gap(Gap::Everything));
    assert_eq!(bench.live.state(), State::NoConn(Away::Stopping));
    bench.sleep();
    let event = bench.connected(0);
    bench.tell(event);
    assert_eq!(bench.live.state(), State::Scanning(Gap::Everything));
}

#[test]
fn a_scan_that_ends_after_a_gap_does_not_count() {
    let mut bench = Bench::new();
    bench.tick();
    bench.tell(Event::Connected { proof: Proof::Unbroken, head: None, dirty: 0 });
    bench.tell(Event::Gap(Gap::Everything));
    bench.pass_ends(MINUTE, Grade::Settled, GIB, 0);
    assert_eq!(bench.live.state(), State::Scanning(Gap::Everything));
    assert_eq!(bench.job(), Some(Job::Scan { resume: false }));
    assert!(bench.view().consistent.is_some(), "but its point is one");
}

#[test]
fn live_and_catchup_by_what_the_backlog_takes() {
    let mut bench = Bench::with(Freeze::Never).into_live();
    bench.after(SECOND, dirty(MIB));
    bench.pass_ends(SECOND, Grade::Fuzzy, 10 * MIB, 0);
    let states = [
        (30 * MIB, State::Live),
        (30 * MIB + MIB, State::CatchUp),
        (11 * MIB, State::CatchUp),
        (10 * MIB, State::CatchUp),
    ];
    for (bytes, state) in states {
        bench.after(ms(300), dirty(bytes));
        assert_eq!(bench.live.state(), state, "{bytes}");
    }
    bench.pass_ends(SECOND, Grade::Fuzzy, 10 * MIB, 12 * MIB);
    assert_eq!(bench.live.state(), State::CatchUp, "more than a second's");
    bench.pass_ends(SECOND, Grade::Fuzzy, 10 * MIB, 6 * MIB);
    assert_eq!(bench.live.state(), State::Live);
}

#[test]
fn what_fails_on_this_side_is_tried_again_and_shown() {
    let mut bench = Bench::live();
    bench.after(SECOND, dirty(MIB));
    let mut pauses = Vec::new();
    for _ in 0..9 {
        bench.tell(failed());
        assert_eq!((bench.view().detail.as_str(), bench.job()), ("a cable fell out", None));
        pauses.push(bench.sleep());
        assert!(is_pass(bench.job()));
    }
    assert!(pauses[0] <= 2 * SECOND && pauses[8] >= MINUTE / 2, "{pauses:?}");
    bench.pass_ends(ms(10), Grade::Settled, MIB, 0);
    assert_eq!(bench.view().detail, "");
    bench.after(SECOND, dirty(MIB));
    bench.tell(failed());
    assert!(bench.sleep() <= 2 * SECOND, "a series of its own");
}

#[test]
fn a_head_that_proves_nothing_gets_a_pass_though_nothing_was_written() {
    for (grade, pass) in [(Grade::Fuzzy, true), (Grade::Frozen, false)] {
        let mut bench = Bench::new();
        bench.tick();
        let head = Some(bench.head(grade));
        bench.tell(Event::Connected { proof: Proof::Unbroken, head, dirty: 0 });
        assert_eq!(is_pass(bench.job()), pass, "{grade:?}");
    }
}

#[test]
fn a_new_size_gets_a_point_though_nothing_was_written() {
    let mut bench = Bench::live();
    bench.after(SECOND, Event::Resized { size: 7 * GIB });
    assert!(is_pass(bench.job()));
    assert!(bench.view().point_lag > Some(Duration::ZERO));
}

#[test]
fn a_clean_stop_sends_the_rest_and_makes_a_checkpoint() {
    let mut bench = Bench::live();
    bench.after(SECOND, dirty(MIB));
    assert_eq!(bench.tell(Event::StopAsked), []);
    bench.pass_ends(ms(100), Grade::Settled, MIB, 4096);
    assert!(is_pass(bench.job()), "what was written during it");
    bench.pass_ends(ms(100), Grade::Fuzzy, MIB, 4096);
    assert_eq!(bench.job(), Some(Job::Checkpoint), "not for ever");
    assert_eq!(bench.tell(Event::Checkpointed { seq: 5 }), [Action::Stopped]);
    assert_eq!(bench.live.state(), State::NoConn(Away::Ended));
    assert_eq!(bench.after(MINUTE, Event::Tick), []);

    let mut idle = Bench::live();
    assert_eq!(idle.tell(Event::StopAsked), [Action::Stopped], "nothing to do");
}

#[test]
fn a_clean_stop_leaves_a_backlog_that_would_take_long() {
    let mut bench = Bench::live();
    bench.after(SECOND, dirty(MIB));
    bench.pass_ends(SECOND, Grade::Fuzzy, 10 * MIB, GIB);
    assert!(is_pass(bench.job()));
    assert_eq!(bench.tell(Event::StopAsked), [Action::Cancel]);
    assert_eq!(bench.tell(failed()), [Action::Begin(Job::Checkpoint)]);
    assert_eq!(bench.live.wake(), Some(bench.now + STOP_MAX), "nor that for ever");
    assert_eq!(bench.after(STOP_MAX, Event::Tick), [Action::Stopped]);
}

#[test]
fn whoever_asks_twice_gets_it_at_once() {
    let mut bench = Bench::live();
    bench.after(SECOND, dirty(MIB));
    assert_eq!(bench.tell(Event::StopAsked), []);
    assert_eq!(bench.tell(Event::StopAsked), [Action::Stopped]);
    assert_eq!((bench.job(), bench.live.wake()), (None, None));
}
