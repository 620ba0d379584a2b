//! Durations and rates, as people write them in the daemon's file and on the command line.
//!
//! Invariant: one text means the same in both places, and what is ambiguous is refused: a number
//! without a unit, and bits. Leaves to others: which values make sense for a key.

use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::Result;

use crate::exit::{Class, fail};
use crate::when;

/// Units of a rate, in bytes; the longest ending that fits counts.
const UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];
/// Digits after the point.
const FRACTION_MAX: usize = 9;

/// A duration such as `500ms`, `5s`, `1m` or `24h`; never zero.
pub fn duration(text: &str) -> Result<Duration> {
    when::duration_ns(text).map(Duration::from_nanos)
}

/// Bytes a second, such as `10MiB`, `1.5 MB` or `512KiB/s`; never zero.
pub fn rate(text: &str) -> Result<NonZeroU64> {
    let found = rate_of(text.trim()).and_then(NonZeroU64::new);
    found.map_or_else(
        || {
            fail(
                Class::Usage,
                format!("'{text}' is not a rate"),
                "a rate is such as 10MiB, 1.5MB or 512KiB: bytes a second, not bits",
            )
        },
        Ok,
    )
}

/// Bytes, such as `4GiB`, `1.5 MB` or `512KiB`; never zero.
pub fn size(text: &str) -> Result<NonZeroU64> {
    let bytes = Some(text.trim()).filter(|text| !text.ends_with("/s"));
    bytes.and_then(rate_of).and_then(NonZeroU64::new).map_or_else(
        || {
            fail(
                Class::Usage,
                format!("'{text}' is not a size"),
                "a size is such as 512MiB, 4GiB or 10GB",
            )
        },
        Ok,
    )
}

fn rate_of(text: &str) -> Option<u64> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    let number = number.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > FRACTION_MAX {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = whole
        .parse::<u64>()
        .ok()
        .map(u128::from)?
        .checked_mul(scale)?
        .checked_add(fraction.parse().ok()?)?;
    u64::try_from(scaled.checked_mul(u128::from(unit))? / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::class_of;

    #[test]
    fn rates() {
        let bytes = |t: &str| rate(t).map(NonZeroU64::get).map_err(|e| class_of(&e));
        for (text, expected) in [
            ("10MiB", 10 << 20),
            ("10 MiB", 10 << 20),
            ("10MiB/s", 10 << 20),
            (" 1.5MB ", 1_500_000),
            ("0.5KiB", 512),
            ("512KiB", 512 << 10),
            ("7B", 7),
            ("3kB", 3_000),
            ("3KB", 3_000),
            ("2GB", 2_000_000_000),
            ("2GiB", 2 << 30),
            ("1.000000001GB", 1_000_000_001),
            ("18446744073709551615B", u64::MAX),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "10",
            "MiB",
            "10Mbit",
            "10Mb",
            "10mib",
            "-1MiB",
            "+1MiB",
            "1e3B",
            "1,5MiB",
            "1.MiB",
            ".5MiB",
            "0MiB",
            "0.1B",
            "10MiB/h",
            "1.0000000001GB",
            "18446744073709551616B",
            "18446744073709551615KiB",
            "99999999999999999999999999999999999999999GiB",
        ] {
            assert_eq!(bytes(text), Err(Class::Usage), "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("1m").unwrap(), Duration::from_secs(60));
        for text in ["5", "0s", "-1s", "soon", ""] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
