//! The rules of retention, for any history.

use proptest::prelude::*;

use super::policy::DAY;
use super::*;

const HOUR: u64 = DAY / 24;

/// A history: gaps between receipts in minutes, which points are checkpoints, which fuzzy.
fn history() -> impl Strategy<Value = Vec<Seen>> {
    let gap = prop_oneof![0u64..3, 0u64..90, 0u64..3000, 0u64..40_000];
    prop::collection::vec((gap, 0u8..4, any::<bool>()), 0..120).prop_map(|points| {
        let (mut receipt, mut checkpoint) = (20_000 * DAY, 1);
        (1..)
            .zip(points)
            .map(|(seq, (gap, kind, consistent))| {
                receipt += gap * (HOUR / 60);
                if kind == 0 || seq == 1 {
                    checkpoint = seq;
                }
                Seen { seq, checkpoint, consistent, receipt }
            })
            .collect()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let texts = [
        "all:24h,hourly:7d,daily:30d,weekly:1y",
        "all:3d",
        "hourly:2d",
        "all:30d,yearly:forever",
        "daily:10d,monthly:90d",
        "weekly:60d,floor:3d",
        "all:1h,hourly:5h,floor:10min,short-floor",
        "all:1h,daily:forever,floor:1h,short-floor",
        "all:forever",
    ];
    prop::sample::select(texts.to_vec()).prop_map(|text| text.parse().unwrap())
}

fn pins() -> impl Strategy<Value = Vec<Seq>> {
    prop::collection::btree_set(1u64..130, 0..3).prop_map(|pins| pins.into_iter().collect())
}

fn left(points: &[Seen], kept: &[bool]) -> Vec<Seen> {
    points.iter().zip(kept).filter(|(_, kept)| **kept).map(|(p, _)| *p).collect()
}

fn now_after(points: &[Seen], later: u64) -> TimeNs {
    points.last().map_or(0, |p| p.receipt) + later * HOUR
}

/// Why a point stays by itself, said again in the simplest way.
fn has_reason(points: &[Seen], at: usize, policy: &Policy, pins: &[Seq], now: TimeNs) -> bool {
    let p = points[at];
    let later = &points[at + 1..];
    let newest_of = |class: Class| {
        let same = |q: &Seen| {
            q.consistent && q.is_checkpoint() && class.span(q.receipt) == class.span(p.receipt)
        };
        p.consistent
            && p.is_checkpoint()
            && policy.covers(class, p.receipt, now)
            && !later.iter().any(same)
    };
    policy.is_young(p.receipt, now)
        || later.is_empty()
        || (p.consistent && !later.iter().any(|q| q.consistent))
        || pins.contains(&p.seq)
        || CLASSES.into_iter().any(newest_of)
}

proptest! {
    /// Exactly those stay that have a reason, and what these need.
    #[test]
    fn a_point_stays_for_a_reason(
        points in history(), policy in policy(), pins in pins(), later in 0u64..20_000,
    ) {
        let now = now_after(&points, later);
        let kept = keep(&points, &policy, &pins, now);
        for (at, p) in points.iter().enumerate() {
            let needing = (at..points.len()).take_while(|n| points[*n].checkpoint <= p.seq);
            let wanted = needing.into_iter().any(|n| has_reason(&points, n, &policy, &pins, now));
            prop_assert_eq!(kept[at], wanted, "point {} of {:?}", p.seq, points);
        }
    }

    #[test]
    fn what_stays_can_be_read(
        points in history(), policy in policy(), pins in pins(), later in 0u64..20_000,
    ) {
        let kept = keep(&points, &policy, &pins, now_after(&points, later));
        let left: std::collections::BTreeSet<_> =
            left(&points, &kept).iter().map(|p| p.seq).collect();
        for p in points.iter().filter(|p| left.contains(&p.seq)) {
            for needed in p.checkpoint..p.seq {
                prop_assert!(left.contains(&needed), "{} needs {needed}", p.seq);
            }
        }
        if let Some(newest) = points.last() {
            prop_assert!(left.contains(&newest.seq));
        }
        if let Some(consistent) = points.iter().rfind(|p| p.consistent) {
            prop_assert!(left.contains(&consistent.seq));
        }
        for pin in pins.iter().filter(|pin| **pin <= points.len() as u64) {
            prop_assert!(left.contains(pin));
        }
        // A gap ends at a checkpoint: bridges lead over it.
        let after_gap = points.windows(2).filter(|w| !left.contains(&w[0].seq));
        for w in after_gap.filter(|w| left.contains(&w[1].seq)) {
            prop_assert!(w[1].is_checkpoint());
        }
    }

    #[test]
    fn nothing_goes_under_the_floor(
        points in history(), policy in policy(), later in 0u64..100,
    ) {
        let now = now_after(&points, later);
        let kept = keep(&points, &policy, &[], now);
        for (p, kept) in points.iter().zip(kept) {
            prop_assert!(kept || now - p.receipt >= policy.floor());
        }
    }

    /// Often or once: it makes no difference.
    #[test]
    fn now_and_later_is_as_later(
        points in history(), policy in policy(), pins in pins(),
        (cut, first, second) in (0usize..120, 0u64..5000, 0u64..5000),
    ) {
        let early = &points[..cut.min(points.len())];
        let then = early.last().map_or(0, |p| p.receipt) + first * (HOUR / 60);
        let then = points.get(early.len()).map_or(then, |next| then.min(next.receipt));
        // Forks are made of points that are there.
        let pinned: Vec<_> = pins.iter().copied().filter(|pin| *pin <= early.len() as u64).collect();
        let kept = keep(early, &policy, &pinned, then);
        let mut between = left(early, &kept);
        between.extend_from_slice(&points[early.len()..]);
        let now = now_after(&points, second).max(then);
        let twice = left(&between, &keep(&between, &policy, &pinned, now));
        let once = left(&points, &keep(&points, &policy, &pinned, now));
        prop_assert_eq!(twice, once);
    }

    /// Whatever a stolen key adds, what is in spans that were over before stays as it would.
    #[test]
    fn a_flood_does_not_push_out_the_past(
        points in history(), policy in policy(), later in 0u64..5000,
        flood in prop::collection::vec((0u64..60, any::<bool>(), any::<bool>()), 1..300),
    ) {
        let begins = now_after(&points, later);
        let seq = points.len() as u64 + 1;
        let mut all = points.clone();
        let mut checkpoint = seq;
        for (n, (minutes, new, consistent)) in (0..).zip(flood) {
            if new {
                checkpoint = seq + n;
            }
            let receipt = begins + minutes * (HOUR / 3600);
            all.push(Seen { seq: seq + n, checkpoint, consistent, receipt });
        }
        let now = begins + HOUR;
        let with = left(&all, &keep(&all, &policy, &[], now));
        let without = left(&points, &keep(&points, &policy, &[], now));
        let over = |p: &&Seen| CLASSES.into_iter().all(|c| c.span(p.receipt) != c.span(begins));
        let newest = points.last().map(|p| p.checkpoint..=p.seq);
        let consistent = points.iter().rfind(|p| p.consistent).map(|p| p.checkpoint..=p.seq);
        let was_newest = |p: &&Seen| {
            newest.iter().chain(&consistent).any(|r| r.contains(&p.seq))
        };
        for p in without.iter().filter(over).filter(|p| !was_newest(p)) {
            prop_assert!(with.contains(p), "{} was pushed out", p.seq);
        }
    }

    #[test]
    fn ranges_name_what_goes(points in history(), flags in prop::collection::vec(any::<bool>(), 120)) {
        let kept = &flags[..points.len()];
        let ranges = gone(&points, kept);
        for (p, kept) in points.iter().zip(kept) {
            let named = ranges.iter().filter(|r| r.contains(&p.seq)).count();
            prop_assert_eq!(named, usize::from(!kept));
        }
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].end() + 1 < *pair[1].start());
        }
    }
}

#[test]
fn the_usual_policy_of_a_year() {
    // A point each ten minutes, the first of each hour a checkpoint.
    let begin = 20_000 * DAY;
    let points: Vec<Seen> = (0..400 * 144u64)
        .map(|n| {
            let checkpoint = n / 6 * 6 + 1;
            let receipt = begin + n * HOUR / 6;
            Seen { seq: n + 1, checkpoint, consistent: true, receipt }
        })
        .collect();
    let policy = "all:24h,hourly:7d,daily:30d,weekly:1y".parse().unwrap();
    let now = begin + 400 * DAY;
    let left = left(&points, &keep(&points, &policy, &[], now));
    let younger = |age: u64| left.iter().filter(|p| now - p.receipt < age).count();
    assert_eq!(younger(DAY), 143);
    assert_eq!(younger(7 * DAY) - younger(DAY), 6 * 24);
    assert_eq!(younger(30 * DAY) - younger(7 * DAY), 23);
    let weeks = left.len() - younger(30 * DAY);
    assert!((47..=49).contains(&weeks), "{weeks}");
    assert!(left.iter().all(|p| now - p.receipt < 366 * DAY));
    assert_eq!(gone(&points, &keep(&points, &Policy::KEEP, &[], now)), []);
}
