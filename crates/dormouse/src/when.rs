//! VOLUME@WHEN: which point is meant.
//!
//! Owns: the forms of WHEN (DESIGN 7) and the choice among points. Pure: the
//! present and the zone come in as arguments. Invariant: a fuzzy point is never
//! chosen unless asked for.

use anyhow::Result;
use dormouse_format::point::StoredPoint;
use dormouse_format::vault::name_is_valid;
use dormouse_format::{Seq, TimeNs};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

use crate::exit::{Class, Failure, fail};
use crate::text::time_local;

/// WHEN, as it was typed; `None` is `latest`. What it means depends on the present.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct When(pub Option<String>);

/// VOLUME[@WHEN].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeAt {
    /// The volume's name.
    pub volume: String,
    /// Which point.
    pub when: When,
}

impl std::str::FromStr for VolumeAt {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (volume, when) = split(text)?;
        let when = When(when);
        // What no present makes right is told at once.
        when.moment(crate::text::now_ns(), &TimeZone::system())?;
        Ok(Self { volume, when })
    }
}

impl When {
    /// The moment that is meant.
    pub fn moment(&self, now: TimeNs, zone: &TimeZone) -> Result<Moment> {
        parse(self.0.as_deref(), now, zone)
    }

    /// Whether it names one point by its sequence number.
    pub fn is_number(&self) -> bool {
        matches!(self.moment(0, &TimeZone::UTC), Ok(Moment::Seq(_)))
    }
}

/// A moment, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The newest consistent point.
    Latest,
    /// The point with this sequence number.
    Seq(Seq),
    /// The newest consistent point not after this time.
    NotAfter(TimeNs),
}

const FORMS: &str = "WHEN is a point's number, `latest`, `yesterday`, `2h ago`, `3 days ago`,\n\
                     or a time such as 2026-11-20, 2026-11-20T10:00 or 2026-11-20T10:00:00Z";

/// Splits VOLUME[@WHEN].
pub fn split(text: &str) -> Result<(String, Option<String>)> {
    let (volume, when) = match text.split_once('@') {
        Some((volume, when)) => (volume, Some(when.trim().to_owned())),
        None => (text, None),
    };
    if !name_is_valid(volume) {
        return fail(
            Class::Usage,
            format!("'{volume}' is not a valid name of a volume"),
            "`dormouse volumes` shows the volumes that there are",
        );
    }
    Ok((volume.to_owned(), when))
}

/// Reads WHEN; `None` is `latest`.
pub fn parse(when: Option<&str>, now: TimeNs, zone: &TimeZone) -> Result<Moment> {
    let Some(text) = when else { return Ok(Moment::Latest) };
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    if lower == "latest" {
        return Ok(Moment::Latest);
    }
    if !lower.is_empty() && lower.bytes().all(|b| b.is_ascii_digit()) {
        // Four digits and a dash would be a year; digits alone are a number.
        return lower.parse().map(Moment::Seq).or_else(|_| bad(text));
    }
    let Some(now) = timestamp(now) else { return bad(text) };
    let now = now.to_zoned(zone.clone());
    let time = match lower.as_str() {
        "now" => Some(now.clone()),
        "yesterday" => now.checked_sub(1.day()).ok(),
        _ => match lower.strip_suffix("ago") {
            Some(span) => ago(&now, span.trim()),
            None => absolute(text, zone),
        },
    };
    let ns = time.and_then(|t| u64::try_from(t.timestamp().as_nanosecond()).ok());
    ns.map_or_else(|| bad(text), |ns| Ok(Moment::NotAfter(ns)))
}

fn bad<T>(text: &str) -> Result<T> {
    fail(Class::Usage, format!("'{text}' is not a time or a point"), FORMS)
}

fn timestamp(ns: TimeNs) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(ns)).ok()
}

fn ago(now: &Zoned, span: &str) -> Option<Zoned> {
    let span: Span = span.parse().ok()?;
    if span.is_negative() {
        return None;
    }
    now.checked_sub(span).ok()
}

/// An RFC 3339 time; without a zone it is local, without a time the day's end.
fn absolute(text: &str, zone: &TimeZone) -> Option<Zoned> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.to_zoned(zone.clone()));
    }
    if text.len() > 10 {
        return text.parse::<DateTime>().ok()?.to_zoned(zone.clone()).ok();
    }
    // A day means all of it: the newest point of that day or before.
    let next = text.parse::<Date>().ok()?.tomorrow().ok()?;
    next.to_zoned(zone.clone()).ok()?.checked_sub(1.nanosecond()).ok()
}

/// Chooses among points in ascending order, in the system's zone; the index of the one
/// meant.
pub fn resolve(points: &[StoredPoint], when: &When, now: TimeNs, fuzzy: bool) -> Result<usize> {
    choose(points, when.moment(now, &TimeZone::system())?, fuzzy)
}

/// Chooses among points in ascending order; the index of the one meant.
pub fn choose(points: &[StoredPoint], when: Moment, fuzzy: bool) -> Result<usize> {
    let fits = |p: &StoredPoint| fuzzy || p.point().grade.consistent();
    let found = match when {
        Moment::Latest => points.iter().rposition(fits),
        Moment::NotAfter(time) => points.iter().rposition(|p| p.receipt <= time && fits(p)),
        Moment::Seq(seq) => match points.iter().position(|p| p.point().seq == seq) {
            Some(i) if !fits(&points[i]) => {
                return fail(
                    Class::NotFound,
                    format!("point {seq} is only fuzzy: its parts may be of different moments"),
                    "add --fuzzy to use it all the same",
                );
            }
            found => found,
        },
    };
    found.ok_or_else(|| nothing(points, when, fuzzy).into())
}

fn nothing(points: &[StoredPoint], when: Moment, fuzzy: bool) -> Failure {
    let fits = |p: &&StoredPoint| fuzzy || p.point().grade.consistent();
    let kind = if fuzzy { "point" } else { "consistent point" };
    let Some(first) = points.iter().find(fits) else {
        let hidden = points.len();
        let failure = Failure::new(Class::NotFound, format!("the volume has no {kind} yet"));
        return if hidden == 0 {
            failure.hint("`dormouse mirror SOURCE --once` makes one")
        } else {
            failure.hint(format!(
                "it has {hidden} fuzzy ones: `points --all` shows them, --fuzzy uses them"
            ))
        };
    };
    let message = match when {
        Moment::Seq(seq) => format!("there is no point {seq}"),
        Moment::Latest => format!("there is no {kind}"),
        Moment::NotAfter(time) => format!("there is no {kind} at or before {}", time_local(time)),
    };
    Failure::new(Class::NotFound, message).hint(format!(
        "the oldest is point {} of {}; `dormouse points VOLUME` shows all",
        first.point().seq,
        time_local(first.receipt)
    ))
}

/// Splits VOLUME, VOLUME@WHEN and VOLUME@WHEN..WHEN; one moment is a range of itself.
pub fn split_range(text: &str) -> Result<(String, Option<(String, String)>)> {
    let (volume, when) = split(text)?;
    let range = when.map(|when| match when.split_once("..") {
        Some((from, to)) => (from.trim().to_owned(), to.trim().to_owned()),
        None => (when.clone(), when),
    });
    Ok((volume, range))
}

/// A duration such as `24h`, `7d` or `90 minutes`, in nanoseconds.
pub fn duration_ns(text: &str) -> Result<u64> {
    let span = text.parse::<Span>().ok().filter(|s| !s.is_negative());
    // A day is 24 hours here: an invite's end does not depend on summer time.
    let start = Zoned::new(Timestamp::UNIX_EPOCH, TimeZone::UTC);
    let end = span.and_then(|s| start.checked_add(s).ok());
    match end.and_then(|e| u64::try_from(e.timestamp().as_nanosecond()).ok()) {
        Some(ns) if ns > 0 => Ok(ns),
        _ => fail(
            Class::Usage,
            format!("'{text}' is not a duration"),
            "a duration is such as 30m, 24h or 7d",
        ),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::exit::class_of;
    use dormouse_format::point::{Grade, Point, SignedPoint};
    use dormouse_format::{Hash, RecordId, Signature, VaultId, VolumeId, WriterId};

    const HOUR: u64 = 3_600_000_000_000;

    fn at(text: &str) -> u64 {
        crate::text::parse_time(text).unwrap()
    }

    fn zone() -> TimeZone {
        TimeZone::fixed(jiff::tz::offset(2))
    }

    fn when(text: &str) -> Moment {
        parse(Some(text), at("2026-11-21T12:00:00Z"), &zone()).unwrap()
    }

    #[test]
    fn forms() {
        let t = |s: &str| Moment::NotAfter(at(s));
        assert_eq!(when("latest"), Moment::Latest);
        assert_eq!(parse(None, 0, &zone()).unwrap(), Moment::Latest);
        assert_eq!(when("17"), Moment::Seq(17));
        assert_eq!(when("2h ago"), t("2026-11-21T10:00:00Z"));
        assert_eq!(when("3 days ago"), t("2026-11-18T12:00:00Z"));
        assert_eq!(when("1 hour 30 minutes ago"), t("2026-11-21T10:30:00Z"));
        assert_eq!(when("yesterday"), t("2026-11-20T12:00:00Z"));
        assert_eq!(when("2026-11-20T10:00:00Z"), t("2026-11-20T10:00:00Z"));
        assert_eq!(when("2026-11-20T10:00:00+02:00"), t("2026-11-20T08:00:00Z"));
        assert_eq!(when("2026-11-20T10:00"), t("2026-11-20T08:00:00Z"));
        assert_eq!(when("2026-11-20"), t("2026-11-20T21:59:59.999999999Z"));
        for bad in
            ["", "x", "-1", "-2h ago", "ago", "2026-13-01", "tomorrow", "99999999999999999999999"]
        {
            assert!(parse(Some(bad), at("2026-11-21T12:00:00Z"), &zone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn splitting_and_durations() {
        assert_eq!(split("v").unwrap(), ("v".into(), None));
        assert_eq!(split("v@2h ago").unwrap(), ("v".into(), Some("2h ago".into())));
        assert!(split("@1").is_err());
        assert!(split("a/b").is_err());
        assert_eq!(duration_ns("24h").unwrap(), 24 * HOUR);
        assert_eq!(duration_ns("7d").unwrap(), 7 * 24 * HOUR);
        assert!(duration_ns("0h").is_err());
        assert!(duration_ns("-1h").is_err());
        assert!(duration_ns("soon").is_err());
    }

    fn points() -> Vec<StoredPoint> {
        let grades = [Grade::Settled, Grade::Fuzzy, Grade::Settled, Grade::Fuzzy];
        grades.into_iter().zip(1..).map(|(grade, seq)| point(seq, grade)).collect()
    }

    pub(crate) fn point(seq: u64, grade: Grade) -> StoredPoint {
        let point = Point {
            vault: VaultId::ZERO,
            volume: VolumeId::ZERO,
            writer: WriterId::ZERO,
            seq,
            generation: 1,
            time: 0,
            size: 0,
            grade,
            stale: false,
            checkpoint: seq,
            epoch: 1,
            prev: Hash::ZERO,
            root: Hash::ZERO,
            deltas: Hash::ZERO,
        };
        StoredPoint {
            signed: SignedPoint { point, signature: Signature([0; 64]) },
            receipt: seq * HOUR,
            top: Hash::ZERO,
            top_record: RecordId::ZERO,
        }
    }

    #[test]
    fn the_newest_consistent_point_not_after() {
        let p = points();
        let pick = |when, fuzzy| {
            choose(&p, when, fuzzy).map(|i| p[i].point().seq).map_err(|e| class_of(&e))
        };
        assert_eq!(pick(Moment::Latest, false), Ok(3));
        assert_eq!(pick(Moment::Latest, true), Ok(4));
        assert_eq!(pick(Moment::NotAfter(2 * HOUR + 1), false), Ok(1));
        assert_eq!(pick(Moment::NotAfter(2 * HOUR), true), Ok(2));
        assert_eq!(pick(Moment::NotAfter(HOUR - 1), false), Err(Class::NotFound));
        assert_eq!(pick(Moment::Seq(3), false), Ok(3));
        assert_eq!(pick(Moment::Seq(2), false), Err(Class::NotFound));
        assert_eq!(pick(Moment::Seq(2), true), Ok(2));
        assert_eq!(pick(Moment::Seq(9), true), Err(Class::NotFound));
        assert!(choose(&[], Moment::Latest, false).is_err());
    }
}
