//! A few seeds of each family hold, and a seed is always the same.

use super::*;

fn runs(family: Family, seeds: core::ops::Range<u64>) -> Report {
    let mut sum = Report::default();
    for seed in seeds {
        let (report, outcome) = Run::seed(seed, family, false);
        if let Err(Violation(why)) = outcome {
            panic!("{family:?} seed {seed}: {why}");
        }
        sum.add(&report);
    }
    sum
}

#[test]
fn a_sound_disk_loses_nothing() {
    let sum = runs(Family::Sound, 1..30);
    assert!(sum.copies > 100 && sum.restores > 20 && sum.crashes > 10, "{sum:?}");
    assert!(sum.late > 0 && sum.fenced > 0 && sum.half_open > 0 && sum.stalls > 0, "{sum:?}");
    assert!(sum.failed_syncs > 0 && sum.no_room > 0 && sum.torn_tails > 0, "{sum:?}");
}

#[test]
fn a_rotten_disk_returns_nothing_wrong() {
    runs(Family::Rot, 1..20);
}

#[test]
fn what_is_kept_stays_and_nobody_does_what_he_must_not() {
    let sum = runs(Family::Kept, 1..20);
    assert!(sum.gone > 40 && sum.retired > 40 && sum.nights > 50, "{sum:?}");
    assert!(sum.orders > 50 && sum.grants > 10 && sum.quotas > 5 && sum.revoked > 3, "{sum:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for (seed, family) in
        [(3, Family::Sound), (4, Family::Sound), (5, Family::Rot), (7, Family::Kept)]
    {
        assert_eq!(Run::seed(seed, family, false), Run::seed(seed, family, false));
    }
}
