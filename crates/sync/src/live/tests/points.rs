//! When passes begin, when a point is forced, when a checkpoint is made.

use super::*;

/// A disk that is written all the time: each pass ends after `took`, fuzzy, and leaves `left`.
/// Goes on until a freeze is begun.
fn busy(bench: &mut Bench, took: Duration, left: u64) {
    for _ in 0..100_000 {
        match bench.job() {
            None => drop(bench.sleep()),
            Some(Job::Pass { .. }) => drop(bench.pass_ends(took, Grade::Fuzzy, left, left)),
            Some(Job::Checkpoint) => drop(bench.after(ms(300), Event::Checkpointed { seq: 1 })),
            Some(_) => return,
        }
    }
    panic!("nothing but passes")
}

fn written(every: Duration) -> Bench {
    let mut bench = Bench::with(Freeze::Auto { every }).into_live();
    bench.after(SECOND, dirty(MIB));
    bench
}

#[test]
fn a_pass_follows_another_when_something_was_written_and_not_too_soon() {
    let mut bench = Bench::live();
    assert_eq!(bench.live.wake(), None, "nothing was written: nothing happens");
    assert_eq!(bench.after(50 * MINUTE, dirty(0)), []);
    bench.tell(dirty(4096));
    let begun = bench.now;
    assert_eq!(
        bench.job(),
        Some(Job::Pass { deltas_max: points_room(&bench), hot: true }),
        "at once"
    );
    bench.pass_ends(ms(40), Grade::Settled, 4096, 4096);
    bench.sleep();
    assert_eq!(bench.now, begun + PASS_MIN);
    assert!(is_pass(bench.job()));
    bench.pass_ends(SECOND, Grade::Settled, 4096, 4096);
    assert!(is_pass(bench.job()), "after a long one at once");
    bench.pass_ends(ms(40), Grade::Settled, 4096, 0);
    assert_eq!(bench.job(), None);
    assert!(bench.live.wake() > Some(bench.now + 5 * MINUTE), "the hourly checkpoint");
}

fn points_room(bench: &Bench) -> u64 {
    bench.live.checkpoints.room()
}

#[test]
fn what_proves_itself_needs_no_freeze() {
    let mut bench = written(5 * SECOND);
    for _ in 0..1000 {
        bench.pass_ends(ms(50), Grade::Settled, 4096, 4096);
        bench.sleep();
        assert!(is_pass(bench.job()));
    }
    assert_eq!(bench.live.points.approach, Approach::None);
}

#[test]
fn a_point_is_forced_when_the_newest_good_one_is_old() {
    let mut bench = written(5 * SECOND);
    let start = bench.now;
    busy(&mut bench, ms(100), 64 << 10);
    assert_eq!(bench.job(), Some(Job::Freeze));
    let age = bench.view().point_lag.unwrap();
    assert!(age >= 5 * SECOND && age < 6 * SECOND, "{age:?} after {:?}", bench.now - start);
    bench.pass_ends(ms(200), Grade::Frozen, 64 << 10, 4096);
    assert_eq!(bench.view().point_lag, Some(ms(200)));
    assert!(is_pass(bench.job()) || bench.job().is_none());
}

#[test]
fn the_point_lag_stays_within_three_seconds_of_what_was_asked_for() {
    let mut bench = written(5 * SECOND);
    let mut worst = Duration::ZERO;
    for _ in 0..100 {
        // 20 MB/s over a link of twice that: a pass of half a second leaves 10 MB.
        busy(&mut bench, ms(500), 10 * MIB);
        bench.now += ms(600);
        worst = worst.max(bench.view().point_lag.unwrap());
        let event = bench.made(Grade::Frozen, 10 * MIB, 10 * MIB);
        bench.tell(event);
    }
    assert!(worst <= 8 * SECOND, "{worst:?}");
}

#[test]
fn before_a_freeze_passes_make_the_rest_small() {
    let mut bench = written(MINUTE);
    bench.now += MINUTE;
    // As in moving a machine while it runs: each pass leaves what was written during it.
    for left in [4 * GIB, GIB, 200 * MIB, 50 * MIB] {
        bench.pass_ends(SECOND, Grade::Fuzzy, GIB, left);
        assert!(is_pass(bench.job()), "{left}");
    }
    bench.pass_ends(ms(10), Grade::Fuzzy, GIB, REST_SMALL);
    assert_eq!(bench.job(), Some(Job::Freeze));
}

#[test]
fn what_does_not_get_small_is_frozen_if_it_fits_into_memory() {
    for (left, job) in [(64 * MIB, Some(Job::Freeze)), (65 * MIB, None)] {
        let mut bench = written(MINUTE);
        bench.now += MINUTE;
        for _ in 0..3 {
            bench.pass_ends(ms(100), Grade::Fuzzy, left, left);
        }
        let (unfrozen, got) = (bench.view().unfrozen.map(|(why, _)| why), bench.job());
        if job.is_some() {
            assert_eq!((got, unfrozen), (job, None));
        } else {
            assert_eq!(unfrozen, Some(Unfrozen::TooLarge));
        }
    }
}

#[test]
fn a_freeze_that_failed_is_tried_again_ever_more_seldom() {
    let mut bench = written(5 * SECOND);
    let mut pauses = Vec::new();
    let mut last = bench.now;
    for _ in 0..10 {
        busy(&mut bench, ms(20), 4096);
        pauses.push(bench.now - last);
        last = bench.now;
        bench.tell(unfrozen(Unfrozen::Deadline));
        assert_eq!(bench.view().unfrozen, Some((Unfrozen::Deadline, String::new())));
    }
    assert!(pauses[1] >= FREEZE_PAUSE_MIN && pauses[1] <= 6 * SECOND, "{pauses:?}");
    assert!(pauses[9] >= FREEZE_PAUSE_MAX / 2 && pauses[9] <= FREEZE_PAUSE_MAX + 5 * SECOND);
    // One that worked begins anew.
    busy(&mut bench, ms(20), 4096);
    bench.pass_ends(ms(20), Grade::Frozen, 4096, 4096);
    assert_eq!(bench.view().unfrozen, None);
    last = bench.now;
    busy(&mut bench, ms(20), 4096);
    assert!(bench.now - last <= 6 * SECOND);
    // What cannot be frozen at all is left alone for a while.
    bench.tell(unfrozen(Unfrozen::Impossible));
    last = bench.now;
    busy(&mut bench, ms(20), 4096);
    assert!(bench.now - last >= FREEZE_PAUSE_MAX / 2);
    // Frozen, and yet not proved, is a failure too.
    bench.pass_ends(ms(20), Grade::Fuzzy, 4096, 4096);
    assert_eq!(bench.view().unfrozen.map(|(why, _)| why), Some(Unfrozen::Unproved));
}

#[test]
fn nothing_is_forced_where_nobody_wants_it_or_nothing_changed() {
    let mut bench = Bench::with(Freeze::Never).into_live();
    bench.after(SECOND, dirty(4096));
    for _ in 0..5000 {
        bench.pass_ends(ms(20), Grade::Fuzzy, 4096, 4096);
        if bench.job().is_none() {
            bench.sleep();
        }
        assert!(is_pass(bench.job()) || bench.job() == Some(Job::Checkpoint));
        if bench.job() == Some(Job::Checkpoint) {
            bench.tell(Event::Checkpointed { seq: 1 });
            bench.sleep();
        }
    }
    let mut idle = Bench::live();
    for _ in 0..10_000 {
        assert_eq!(idle.after(SECOND, dirty(0)), []);
    }
    // The clock of a disk at rest does not run: the first write is no reason to freeze.
    idle.tell(dirty(4096));
    idle.pass_ends(ms(20), Grade::Fuzzy, 4096, 4096);
    assert_eq!(idle.live.points.approach, Approach::None);
}

#[test]
fn a_disk_at_rest_whose_newest_point_proves_nothing_gets_a_pass_that_does() {
    let mut bench = Bench::with(Freeze::Never).into_live();
    bench.after(SECOND, dirty(MIB));
    bench.pass_ends(ms(100), Grade::Fuzzy, MIB, 0);
    bench.sleep();
    assert!(is_pass(bench.job()));
    bench.pass_ends(ms(10), Grade::Settled, 0, 0);
    let checkpoint = bench.live.wake().unwrap();
    assert!(checkpoint > bench.now + 59 * MINUTE, "nothing more but the hourly checkpoint");
}

/// Passes of so many bytes of deltas, settled or not, until a checkpoint; how long that took.
fn until_checkpoint(size: u64, grade: Grade, deltas: u64) -> (Duration, u64) {
    let settings = Settings { size, freeze: Freeze::Never, rest_max: 0, seed: 1 };
    let mut bench = Bench::of(settings).into_live();
    let start = bench.now;
    let mut bytes = 0;
    while bench.job() != Some(Job::Checkpoint) {
        bench.after(SECOND, dirty(4096));
        if !is_pass(bench.job()) {
            continue;
        }
        let (point, cut) = (bench.point(grade), bench.now);
        bytes += deltas;
        bench.tell(Event::Made(carried(point, cut, [4096, deltas, 0])));
    }
    (bench.now - start, bytes)
}

#[test]
fn checkpoints_are_made_hourly_and_when_deltas_are_many() {
    let near = |took: Duration, wanted: Duration| {
        assert!(took >= wanted && took <= wanted + 4 * SECOND, "{took:?} and not {wanted:?}");
    };
    near(until_checkpoint(1 << 40, Grade::Settled, 40).0, CHECKPOINT_EVERY);
    // A map of 4 MiB blocks: a quarter of it is 33 MiB. Of a small disk: a few MiB.
    let (took, bytes) = until_checkpoint(16 * GIB, Grade::Settled, MIB);
    assert_eq!((bytes, took < MINUTE), (34 * MIB, true));
    assert_eq!(until_checkpoint(GIB, Grade::Settled, MIB).1, DELTAS_SMALL + MIB);
    // Of a large one half of what the store takes.
    assert_eq!(until_checkpoint(1 << 40, Grade::Settled, MIB).1, DELTAS_URGENT);
}

#[test]
fn a_checkpoint_waits_for_a_good_point_but_not_for_ever() {
    let (took, _) = until_checkpoint(1 << 40, Grade::Fuzzy, 40);
    assert!(took >= CHECKPOINT_EVERY + CHECKPOINT_PATIENCE, "{took:?}");
    assert!(took <= CHECKPOINT_EVERY + CHECKPOINT_PATIENCE + FREEZE_PAUSE_MAX, "{took:?}");
    assert_eq!(until_checkpoint(1 << 40, Grade::Fuzzy, 8 * MIB).1, DELTAS_URGENT, "it cannot");
}

#[test]
fn no_checkpoint_comes_between_a_freeze_and_its_point() {
    let mut bench = written(MINUTE);
    bench.now += CHECKPOINT_EVERY + CHECKPOINT_PATIENCE;
    bench.pass_ends(ms(10), Grade::Fuzzy, 4096, 10 * MIB);
    // The hour was long over when it was forced: the point comes first.
    let first = bench.job();
    if first == Some(Job::Checkpoint) {
        bench.tell(Event::Checkpointed { seq: 1 });
    }
    assert!(is_pass(bench.job()), "{first:?}");
    assert_ne!(bench.live.points.approach, Approach::None);
    bench.now += 2 * CHECKPOINT_EVERY;
    let left = [5 * MIB, 4 * MIB, 2 * MIB];
    for left in left {
        if is_pass(bench.job()) {
            bench.pass_ends(ms(10), Grade::Fuzzy, 4096, left);
        }
    }
    assert_eq!(bench.job(), Some(Job::Freeze));
    bench.pass_ends(ms(10), Grade::Frozen, 4096, 4096);
    assert_eq!(bench.job(), Some(Job::Checkpoint), "of the frozen point");
    bench.tell(Event::Checkpointed { seq: 777 });
    assert_eq!(bench.view().consistent.map(|p| (p.seq, p.grade)), Some((777, Grade::Frozen)));
}

#[test]
fn a_pass_gets_no_more_deltas_than_the_store_takes() {
    let mut bench = written(MINUTE);
    let point = bench.point(Grade::Fuzzy);
    let (cut, deltas) = (bench.now, DELTAS_URGENT - 1);
    bench.now += MINUTE;
    bench.tell(Event::Made(carried(point, cut, [MIB, deltas, MIB])));
    let room = dormouse_format::limits::DELTAS_BYTES_MAX - deltas;
    assert_eq!(bench.job(), Some(Job::Pass { deltas_max: room, hot: false }));
    // That was too much even while a freeze was near: first a checkpoint.
    bench.live.points.begin();
    let point = bench.point(Grade::Fuzzy);
    let made = carried(point, cut, [MIB, room, GIB]);
    bench.tell(Event::Made(made));
    assert_eq!(bench.job(), Some(Job::Checkpoint));
}

#[test]
fn a_checkpoint_that_fails_holds_up_nothing() {
    let mut bench = written(MINUTE);
    let (point, cut) = (bench.point(Grade::Settled), bench.now);
    let made = carried(point, cut, [MIB, DELTAS_URGENT, MIB]);
    bench.tell(Event::Made(made));
    assert_eq!(bench.job(), Some(Job::Checkpoint));
    bench.tell(failed());
    assert_eq!(bench.view().detail, "a cable fell out");
    let start = bench.now;
    loop {
        match bench.job() {
            None => drop(bench.sleep()),
            Some(Job::Checkpoint) => break,
            Some(_) => drop(bench.pass_ends(ms(10), Grade::Settled, 4096, 4096)),
        }
    }
    assert!(bench.now - start >= CHECKPOINT_PAUSE);
}

/// Ends the pass that runs: so much is left, and so much of it waits.
fn leaves_waiting(bench: &mut Bench, left: u64, waiting: u64) {
    let point = bench.point(Grade::Fuzzy);
    let made = carried(point, bench.now, [MIB, MIB / 128, left]);
    bench.after(ms(10), Event::Made(Made { sent: None, waiting, ..made }));
}

fn takes_hot(bench: &Bench) -> bool {
    matches!(bench.job(), Some(Job::Pass { hot: true, .. }))
}

#[test]
fn hot_blocks_go_once_a_second_and_others_in_each_pass() {
    let mut bench = written(MINUTE);
    assert!(takes_hot(&bench));
    let first = bench.now;
    leaves_waiting(&mut bench, 8192, 8192);
    // Nothing but what waits: nothing is begun for it before its turn.
    bench.sleep();
    assert_eq!(bench.now, first + HOT_EVERY);
    assert!(takes_hot(&bench));
    leaves_waiting(&mut bench, 8192 + 4096, 8192);
    // Something else: it goes, and they do not.
    bench.sleep();
    assert_eq!(bench.now, first + HOT_EVERY + PASS_MIN);
    assert!(is_pass(bench.job()) && !takes_hot(&bench));
    // They count in the backlog all the same, but make no CATCHUP of it.
    bench.live.rate.add(MIB, SECOND);
    leaves_waiting(&mut bench, 16 * MIB, 16 * MIB);
    bench.tell(Event::Dirty { bytes: 16 * MIB, waiting: 16 * MIB });
    assert_eq!((bench.live.state(), bench.view().backlog), (State::Live, 16 * MIB));
    // Where a freeze is due, it takes them.
    assert!(!takes_hot(&written(ms(300))));
}

#[test]
fn before_a_freeze_hot_blocks_are_sent_only_if_they_are_many() {
    let mut bench = written(5 * SECOND);
    while bench.live.points.approach == Approach::None {
        if is_pass(bench.job()) {
            leaves_waiting(&mut bench, 8192, 8192);
        }
        bench.sleep();
    }
    assert!(is_pass(bench.job()) && !takes_hot(&bench), "the freeze takes them");
    let mut many = bench.clone();
    leaves_waiting(&mut bench, 8192, 8192);
    assert_eq!(bench.job(), Some(Job::Freeze));
    leaves_waiting(&mut many, 2 * REST_SMALL, 2 * REST_SMALL);
    assert!(takes_hot(&many), "they are too much to be read while all wait");
    // A clean stop leaves nothing.
    let mut bench = written(MINUTE);
    leaves_waiting(&mut bench, 8192, 8192);
    bench.tell(Event::StopAsked);
    assert!(takes_hot(&bench));
}
