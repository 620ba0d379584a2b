//! The enumeration in short, and its names.

use std::collections::HashSet;

use super::*;

#[test]
fn every_sequence_has_a_name_and_is_there_once() {
    let all = Sequence::all();
    assert_eq!(all.len(), 1 + 9 + 81 + 729);
    let names: HashSet<_> = all.iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), all.len());
    for sequence in all {
        assert_eq!(sequence.to_string().parse(), Ok(sequence));
    }
    let point: CrashPoint = "write+index-loss:17:3".parse().unwrap();
    assert_eq!(point.to_string(), "write+index-loss:17:3");
    for bad in ["write:17", "wrote:1:1", "write:1:x", "write:1:1:1", ""] {
        assert!(bad.parse::<CrashPoint>().is_err(), "{bad}");
    }
}

#[test]
fn every_sequence_is_played_in_every_pass_once() {
    let sequences = Sequence::all();
    for (wide, rounds) in [(false, 2 * ENDS), (true, 2)] {
        let mut played = HashSet::new();
        for n in 0..820 * rounds {
            let (sequence, passes) = item(&sequences, n, wide);
            for pass in passes {
                assert!(played.insert((sequence.to_string(), pass)), "{sequence} {pass}");
            }
        }
        let others = played.iter().filter(|(name, _)| name != "setup").count();
        assert_eq!(others as u64, 819 * 2 * ENDS);
    }
}

#[test]
fn nothing_acknowledged_is_lost_at_any_crash() {
    let plan = Plan { points: 3000, seed: 1, jobs: 2 };
    let (figures, failures) = run(&plan, &|_| ());
    assert_eq!(failures, []);
    assert!(figures.points >= plan.points && figures.torn > 100, "{figures:?}");
    assert!(figures.again > 1000 && figures.restores > 300, "{figures:?}");
}
