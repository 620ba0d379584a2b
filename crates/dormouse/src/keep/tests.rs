//! Which points a range names.

use dormouse_format::point::Grade;

use super::*;
use crate::exit::class_of;

fn point(seq: Seq) -> StoredPoint {
    let receipt =
        crate::text::parse_time("2026-11-20T00:00:00Z").unwrap() + seq * 3_600_000_000_000;
    StoredPoint { receipt, ..crate::when::tests::point(seq, Grade::Settled) }
}

#[test]
fn ranges_are_of_numbers_or_times() {
    // Each hour one, but 5 has expired.
    let points: Vec<_> = (1..=30).filter(|seq| *seq != 5).map(point).collect();
    let picked = |from: &str, to: &str| pick(&points, from, to).map_err(|e| class_of(&e));
    assert_eq!(picked("3", "9"), Ok((3, 9)));
    assert_eq!(picked("5", "5"), Err(Class::NotFound));
    assert_eq!(picked("4", "5"), Ok((4, 4)));
    assert_eq!(picked("2026-11-20T02:00:00Z", "2026-11-20T06:30:00Z"), Ok((2, 6)));
    assert_eq!(picked("3", "2026-11-20T06:30:00Z"), Ok((3, 6)));
    assert_eq!(picked("9", "3"), Err(Class::NotFound));
    assert!(pick(&points, "soon", "9").is_err());
}

#[test]
fn a_policy_is_checked_before_anybody_is_asked() {
    assert_eq!(read_policy("none").unwrap(), None);
    assert!(read_policy("all:7d").unwrap().is_some());
    let bad = read_policy("all:7d,hurly:3d").unwrap_err();
    assert_eq!(class_of(&bad), Class::Usage);
    assert!(bad.to_string().contains("at character 8"), "{bad}");
}
