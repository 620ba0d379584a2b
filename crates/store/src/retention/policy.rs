//! The language of retention: `all:24h,hourly:7d,daily:30d,weekly:1y`.
//!
//! Owns: its words, its errors, and the calendar. Invariant: what is printed reads back as the
//! same policy. Spans are those of UTC, so that they do not move with a server's time zone:
//! hours, days, weeks from Monday, months, years.

use std::fmt;
use std::str::FromStr;

use dormouse_format::TimeNs;
use dormouse_format::seeded::seeded;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
/// A day, in nanoseconds.
pub const DAY: u64 = 24 * HOUR;
/// What stands for ever.
const FOREVER: u64 = u64::MAX;
/// Under this age nothing expires, unless the policy says `short-floor`.
pub const FLOOR: u64 = DAY;
const SHORT_FLOOR: &str = "short-floor";
const UNITS: [(&str, u64); 6] = [
    ("y", 365 * DAY),
    ("w", 7 * DAY),
    ("d", DAY),
    ("h", HOUR),
    ("min", 60 * SECOND),
    ("s", SECOND),
];

/// A class that keeps one checkpoint of each span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Of each hour.
    Hourly,
    /// Of each day.
    Daily,
    /// Of each week, from Monday on.
    Weekly,
    /// Of each month.
    Monthly,
    /// Of each year.
    Yearly,
}

/// All classes.
pub const CLASSES: [Class; 5] =
    [Class::Hourly, Class::Daily, Class::Weekly, Class::Monthly, Class::Yearly];
const NAMES: [&str; 5] = ["hourly", "daily", "weekly", "monthly", "yearly"];

impl Class {
    /// Which span a time lies in; later spans have greater numbers.
    pub fn span(self, time: TimeNs) -> u64 {
        let days = time / DAY;
        match self {
            Self::Hourly => time / HOUR,
            Self::Daily => days,
            // Day 0 was a Thursday.
            Self::Weekly => (days + 3) / 7,
            Self::Monthly => {
                let (year, month) = year_and_month(days);
                year * 12 + month
            }
            Self::Yearly => year_and_month(days).0,
        }
    }
}

/// Day 0 is 1970-01-01.
const fn first_day_of(year: u64) -> u64 {
    const fn leap_days_before(year: u64) -> u64 {
        let last = year - 1;
        last / 4 - last / 100 + last / 400
    }
    365 * (year - 1970) + leap_days_before(year) - leap_days_before(1970)
}

fn year_and_month(days: u64) -> (u64, u64) {
    let mut year = 1970 + days / 366;
    while first_day_of(year + 1) <= days {
        year += 1;
    }
    let february = first_day_of(year + 1) - first_day_of(year) - 337;
    let mut left = days - first_day_of(year);
    let mut month = 0;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month)
}

/// How long points are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Every point, for so long; 0: no such class.
    all: u64,
    /// For each of [`CLASSES`]; 0: no such class.
    classes: [u64; 5],
    floor: u64,
}

impl Policy {
    /// Everything, for ever: what holds where nobody has said anything.
    pub const KEEP: Self = Self { all: FOREVER, classes: [0; 5], floor: FLOOR };

    /// Whether nothing can ever expire under it.
    pub const fn keeps_everything(&self) -> bool {
        self.all == FOREVER
    }

    /// Under this age nothing expires.
    pub const fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether a point of this age stays, whatever it is.
    pub fn is_young(&self, receipt: TimeNs, now: TimeNs) -> bool {
        let floor = if seeded("floor-ignored") { 0 } else { self.floor };
        let limit = self.all.max(floor);
        limit == FOREVER || now.saturating_sub(receipt) < limit
    }

    /// Whether a point of this age may stay for a class.
    pub const fn covers(&self, class: Class, receipt: TimeNs, now: TimeNs) -> bool {
        let limit = self.classes[class as usize];
        limit == FOREVER || now.saturating_sub(receipt) < limit
    }
}

/// Why a text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}, '{part}': {why}")]
pub struct BadPolicy {
    /// Which character, from 1.
    pub at: usize,
    /// The part that is wrong.
    pub part: String,
    /// What is wrong with it.
    pub why: String,
}

impl FromStr for Policy {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let mut found = Found::default();
        let mut at = 1;
        for piece in text.split(',') {
            let lead = piece.chars().take_while(|c| c.is_whitespace()).count();
            let part = piece.trim();
            let bad = |why: String| BadPolicy { at: at + lead, part: part.to_owned(), why };
            found.take(part).map_err(bad)?;
            at += piece.chars().count() + 1;
        }
        found.done().map_err(|why| BadPolicy { at: 1, part: text.trim().to_owned(), why })
    }
}

/// What was read of a policy so far.
#[derive(Default)]
struct Found {
    all: Option<u64>,
    classes: [Option<u64>; 5],
    floor: Option<u64>,
    short: bool,
}

impl Found {
    fn take(&mut self, part: &str) -> Result<(), String> {
        if part == SHORT_FLOOR {
            self.short = true;
            return Ok(());
        }
        let Some((name, length)) = part.split_once(':') else {
            return Err(format!(
                "a policy is a list of CLASS:AGE, such as all:24h,hourly:7d,daily:30d; the classes \
                 are all, {}, and there is floor:AGE",
                NAMES.join(", ")
            ));
        };
        let slot = match name {
            "all" => &mut self.all,
            "floor" => &mut self.floor,
            _ => match NAMES.iter().position(|n| *n == name) {
                Some(class) => &mut self.classes[class],
                None => return Err(unknown(name)),
            },
        };
        if slot.is_some() {
            return Err(format!("'{name}' stands here a second time"));
        }
        *slot = Some(age(length)?);
        Ok(())
    }

    fn done(self) -> Result<Policy, String> {
        if self.all.is_none() && self.classes.iter().all(Option::is_none) {
            return Err("it keeps nothing: name at least one class, such as all:7d".into());
        }
        let floor = self.floor.unwrap_or(FLOOR);
        if floor < FLOOR && !self.short {
            return Err(format!(
                "a floor of less than 24h lets who steals a client's key push out what is younger \
                 than a day; if that is meant, add the word {SHORT_FLOOR}"
            ));
        }
        let classes = self.classes.map(Option::unwrap_or_default);
        Ok(Policy { all: self.all.unwrap_or_default(), classes, floor })
    }
}

fn unknown(name: &str) -> String {
    if matches!(name, "last" | "count" | "keep" | "newest") {
        return "points are not kept by their number: a flood of new ones, sent with a stolen key, \
                would push out the old ones; use ages"
            .into();
    }
    format!("there is no class '{name}': all, {}, floor", NAMES.join(", "))
}

/// Reads an age: a whole number and a unit.
pub fn age(text: &str) -> Result<u64, String> {
    if text == "forever" {
        return Ok(FOREVER);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if unit == "m" {
        return Err("'m' may be minutes or months: write min, or days".into());
    }
    let known = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ns)| *ns);
    let (Ok(number), Some(unit)) = (number.parse::<u64>(), known) else {
        return Err(
            "an age is a whole number and s, min, h, d, w or y (365 days), or 'forever'".into()
        );
    };
    match number.checked_mul(unit) {
        Some(0) => Err("an age of nothing keeps nothing: leave the class out".into()),
        Some(ns) if ns < FOREVER => Ok(ns),
        _ => Err("that is longer than time is counted here: write 'forever'".into()),
    }
}

/// An age as [`age`] reads it.
pub fn show_age(ns: u64) -> String {
    if ns == FOREVER {
        return "forever".into();
    }
    let fits = |(_, unit): &&(&str, u64)| ns.is_multiple_of(*unit);
    let (name, unit) = UNITS.iter().find(fits).unwrap_or(&("s", SECOND));
    format!("{}{name}", ns / unit)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.all > 0 {
            parts.push(format!("all:{}", show_age(self.all)));
        }
        for (name, length) in NAMES.iter().zip(self.classes).filter(|(_, l)| *l > 0) {
            parts.push(format!("{name}:{}", show_age(length)));
        }
        if self.floor != FLOOR {
            parts.push(format!("floor:{}", show_age(self.floor)));
        }
        if self.floor < FLOOR {
            parts.push(SHORT_FLOOR.into());
        }
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(year: u64, month: u64, day: u64) -> u64 {
        let lengths =
            [31, 28 + u64::from(year.is_multiple_of(4)), 31, 30, 31, 30, 31, 31, 30, 31, 30];
        let before: u64 = lengths.iter().take(month as usize - 1).sum();
        first_day_of(year) + before + day - 1
    }

    #[test]
    fn what_is_printed_reads_back() {
        for text in [
            "all:1d,hourly:1w,daily:30d,weekly:1y",
            "all:forever",
            "daily:90min,floor:2d",
            "all:1h,monthly:forever,yearly:10y,floor:1h,short-floor",
        ] {
            let policy: Policy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
        }
        let spaced: Policy = " all:24h , hourly:168h ".parse().unwrap();
        assert_eq!(spaced.to_string(), "all:1d,hourly:1w");
        assert_eq!(Policy::KEEP.to_string(), "all:forever");
    }

    #[test]
    fn errors_name_the_place() {
        for (text, at, part, why) in [
            ("", 1, "", "list of CLASS:AGE"),
            ("all:24h,,daily:3d", 9, "", "list of CLASS:AGE"),
            ("all:24h, hurly:7d", 10, "hurly:7d", "no class 'hurly'"),
            ("all:24h,last:10", 9, "last:10", "not kept by their number"),
            ("all:24h,all:3d", 9, "all:3d", "a second time"),
            ("all:3m", 1, "all:3m", "minutes or months"),
            ("all:0h", 1, "all:0h", "keeps nothing"),
            ("all:-1h", 1, "all:-1h", "whole number"),
            ("all:1.5h", 1, "all:1.5h", "whole number"),
            ("all:99999999999y", 1, "all:99999999999y", "forever"),
            ("all:584y,daily:600y", 10, "daily:600y", "forever"),
            ("floor:2d", 1, "floor:2d", "at least one class"),
            ("all:1h,floor:23h", 1, "all:1h,floor:23h", "short-floor"),
            ("äll:1h", 1, "äll:1h", "no class"),
            ("all:1d,wöchentlich,x", 8, "wöchentlich", "list of CLASS:AGE"),
        ] {
            let bad = text.parse::<Policy>().unwrap_err();
            assert_eq!((bad.at, bad.part.as_str()), (at, part), "{text}");
            assert!(bad.why.contains(why), "{text}: {}", bad.why);
        }
    }

    #[test]
    fn the_floor_cannot_be_lowered_without_the_word() {
        assert!("all:1h,floor:1h".parse::<Policy>().is_err());
        let low: Policy = "all:1h,floor:1h,short-floor".parse().unwrap();
        assert_eq!(low.floor(), HOUR);
        let usual: Policy = "all:1h".parse().unwrap();
        assert_eq!(usual.floor(), DAY);
        assert!(usual.is_young(0, DAY - 1) && !usual.is_young(0, DAY));
        assert!(!low.is_young(0, HOUR));
    }

    #[test]
    fn spans_follow_the_calendar() {
        let month = |y, m, d| Class::Monthly.span(day(y, m, d) * DAY);
        assert_eq!(day(2026, 11, 22) * 86_400, 1_795_305_600);
        assert_eq!(month(2024, 2, 29), month(2024, 2, 1));
        assert_eq!(month(2024, 2, 29) + 1, month(2024, 3, 1));
        assert_eq!(month(2025, 2, 28) + 1, month(2025, 3, 1));
        assert_eq!(month(2025, 12, 31) + 1, month(2026, 1, 1));
        let year = |y, m, d| Class::Yearly.span(day(y, m, d) * DAY);
        assert_eq!((year(2024, 12, 31), year(2025, 1, 1)), (2024, 2025));
        assert_eq!((year(1970, 1, 1), year(2100, 1, 1)), (1970, 2100));
        // 2026-11-23 is a Monday.
        let week = |d| Class::Weekly.span(day(2026, 11, d) * DAY);
        assert_eq!((week(16), week(22) + 1), (week(22), week(23)));
        assert_eq!(Class::Daily.span(DAY - 1) + 1, Class::Daily.span(DAY));
        assert_eq!(Class::Hourly.span(HOUR - 1) + 1, Class::Hourly.span(HOUR));
    }
}
