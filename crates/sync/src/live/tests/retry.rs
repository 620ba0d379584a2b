//! When the server is tried again.

use super::*;

const SOON: Away = Away::Unreachable;

fn connecting(seed: u64) -> Bench {
    let freeze = Freeze::Never;
    let mut bench = Bench::of(Settings { size: GIB, freeze, rest_max: 0, seed });
    assert_eq!(bench.tick(), [Action::Begin(Job::Connect { takeover: false })], "at once");
    bench
}

/// Fails so often, and waits each time.
fn waits(bench: &mut Bench, away: Away, times: u32) -> Vec<Duration> {
    (0..times)
        .map(|_| {
            bench.tell(lost(away));
            bench.sleep()
        })
        .collect()
}

#[test]
fn waits_double_from_a_second_to_a_minute() {
    for seed in 0..200 {
        let waits = waits(&mut connecting(seed), SOON, 12);
        for (n, wait) in waits.iter().enumerate() {
            let range = Duration::from_secs(60.min(2 << n.min(6)));
            assert!(*wait >= RETRY_MIN && *wait <= RETRY_MAX, "{waits:?}");
            assert!(*wait >= range / 2 && *wait <= range, "try {n} of {waits:?}");
        }
    }
}

#[test]
fn clients_that_lose_their_server_together_do_not_come_back_together() {
    let mut first: Vec<_> = (0..1000).map(|n| waits(&mut connecting(n), SOON, 1)[0]).collect();
    first.sort();
    first.dedup();
    assert!(first.len() > 990, "{} different waits", first.len());
    // A thousand clients within a second: none of its tenths gets a third of them.
    for tenth in 0..10u64 {
        let from = SECOND + ms(100) * tenth as u32;
        let within = first.iter().filter(|wait| **wait >= from && **wait < from + ms(100)).count();
        assert!((20..333).contains(&within), "{within} in tenth {tenth}");
    }
    let (a, b) = (waits(&mut connecting(1), SOON, 20), waits(&mut connecting(2), SOON, 20));
    assert!(a.iter().zip(&b).all(|(a, b)| a != b), "{a:?} {b:?}");
}

#[test]
fn what_only_somebody_can_mend_is_tried_seldom_and_what_would_harm_not_at_all() {
    for away in Away::ALL {
        let mut bench = connecting(7);
        match away.again() {
            Again::Soon => assert!(waits(&mut bench, away, 1)[0] <= 2 * SECOND, "{away:?}"),
            Again::Seldom => {
                let waits = waits(&mut bench, away, 5);
                assert!(waits.iter().all(|w| *w >= RETRY_MAX / 2 && *w <= RETRY_MAX), "{waits:?}");
            }
            Again::Asked => {
                bench.tell(lost(away));
                assert_eq!(bench.live.wake(), None, "{away:?}");
                assert_eq!(bench.after(100 * MINUTE, Event::RouteChanged), [], "{away:?}");
                assert_eq!(bench.view().next_try, None);
            }
        }
        assert_eq!(bench.live.state().reason(), away.text());
    }
    let harmful = [Away::Fenced, Away::LostHistory, Away::Ended];
    assert!(Away::ALL.iter().all(|a| (a.again() == Again::Asked) == harmful.contains(a)));
}

#[test]
fn a_connection_that_was_of_use_ends_the_series() {
    let lost_after = |stays: Duration, point: bool| {
        let mut bench = connecting(3);
        waits(&mut bench, SOON, 8);
        let event = bench.connected(if point { MIB } else { 0 });
        bench.tell(event);
        if point {
            bench.pass_ends(ms(10), Grade::Settled, MIB, 0);
        }
        bench.now += stays;
        waits(&mut bench, Away::LinkLost, 1)[0]
    };
    assert!(lost_after(STAYED, false) <= 2 * SECOND, "it stayed");
    assert!(lost_after(SECOND, true) <= 2 * SECOND, "it made a point");
    assert!(lost_after(STAYED - SECOND, false) >= RETRY_MAX / 2, "it came and went");
}

#[test]
fn a_changed_route_ends_the_wait() {
    let mut bench = connecting(4);
    waits(&mut bench, SOON, 8);
    bench.tell(lost(SOON));
    let begin = [Action::Begin(Job::Connect { takeover: false })];
    assert_eq!(bench.after(ms(999), Event::RouteChanged), [], "not within a second of a try");
    assert_eq!(bench.sleep(), ms(1), "but then");
    // While it tries, it remembers.
    bench.after(ms(10), Event::RouteChanged);
    bench.after(3 * SECOND, lost(SOON));
    assert!(matches!(bench.job(), Some(Job::Connect { .. })), "by the new route, at once");
    // The series begins anew: the name server may not be reached yet.
    assert!(waits(&mut bench, SOON, 1)[0] <= 2 * SECOND);
    bench.tell(lost(Away::WrongKey));
    assert_eq!(bench.after(2 * SECOND, Event::RouteChanged), begin, "another network's machine");
}

#[test]
fn a_route_that_flaps_does_not_hammer_the_server() {
    let mut bench = connecting(5);
    let mut tries = 0;
    for _ in 0..1000 {
        bench.tell(lost(SOON));
        tries += bench.after(ms(10), Event::RouteChanged).len();
    }
    assert!((8..=10).contains(&tries), "{tries} tries in 10 s");
    let mut live = Bench::live();
    let probes: usize = (0..1000).map(|_| live.after(ms(10), Event::RouteChanged).len()).sum();
    assert!((9..=11).contains(&probes), "{probes} looks at the connection in 10 s");
}

#[test]
fn after_a_takeover_only_the_user_begins_again_and_all_is_compared() {
    for away in [Away::Fenced, Away::Held] {
        let mut bench = Bench::live();
        bench.now += SECOND;
        bench.tell(lost(away));
        bench.after(SECOND, dirty(MIB));
        assert_eq!(bench.job(), None, "{away:?}");
        assert_eq!(bench.view().data_lag, None, "the other one may have sent anything");
        let take = bench.tell(Event::Try { takeover: true });
        assert_eq!(take, [Action::Begin(Job::Connect { takeover: true })]);
        // It fails for another reason: the next try takes over still.
        bench.tell(lost(Away::Unreachable));
        bench.sleep();
        assert_eq!(bench.job(), Some(Job::Connect { takeover: true }));
        let proved = bench.connected(0);
        bench.tell(proved);
        assert_eq!(bench.live.state(), State::Scanning(Gap::TakenOver));
        assert_eq!(bench.job(), Some(Job::Scan { resume: false }));
        // And later ones do not.
        bench.tell(lost(Away::LinkLost));
        bench.sleep();
        assert_eq!(bench.job(), Some(Job::Connect { takeover: false }));
    }
}

#[test]
fn each_refusal_has_its_reason() {
    use dormouse_format::message::Refusal;
    let of = |reason| {
        Refusal::ALL.into_iter().filter(|r| Away::of_refusal(*r) == reason).collect::<Vec<_>>()
    };
    assert_eq!(of(Away::Fenced), [Refusal::Fenced]);
    assert_eq!(of(Away::Held), [Refusal::Held]);
    assert_eq!(of(Away::UnknownVolume), [Refusal::NotFound]);
    assert_eq!(of(Away::Full), [Refusal::Full]);
    assert_eq!(of(Away::Stopping), [Refusal::Stopping]);
    assert_eq!(of(Away::Version), [Refusal::Protocol, Refusal::NewerStore]);
    assert_eq!(of(Away::ServerFailed), [Refusal::Damaged, Refusal::Internal]);
    assert_eq!(of(Away::NotAuthorised).len(), 5);
    assert_eq!(of(Away::Failed), [Refusal::Exists, Refusal::Conflict, Refusal::BadRecord]);
}
