//! Small texts: hexadecimal, base64url, sizes and times for people.
//!
//! Invariant: reading accepts exactly what writing makes.

use std::sync::OnceLock;

use dormouse_format::TimeNs;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Reads hexadecimal of any case.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[a, b]| (a << 4) | b).collect())
}

/// Reads exactly `N` bytes of hexadecimal.
pub fn unhex_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    unhex(text)?.try_into().ok()
}

/// Base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |w, &b| (w << 8) | u32::from(b)) << (8 * (3 - group.len()));
        for i in 0..=group.len() {
            out.push(char::from(ALPHABET[(word >> (18 - 6 * i)) as usize & 63]));
        }
    }
    out
}

/// Reads base64url without padding; `None` unless it is exactly what [`base64url`] writes.
pub fn unbase64url(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut word, mut bits) = (0u32, 0);
    for c in text.bytes() {
        let value = ALPHABET.iter().position(|&a| a == c)? as u32;
        word = (word << 6) | value;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
            word &= (1 << bits) - 1;
        }
    }
    (word == 0 && bits < 6).then_some(out)
}

/// A size in binary units, as `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// How long something lasts, as `0.7 s`, `42 s`, `5 min`, `3.0 h` or `2.5 d`.
pub fn lasting(ms: u64) -> String {
    let seconds = ms as f64 / 1000.0;
    match ms {
        0..9_950 => format!("{seconds:.1} s"),
        9_950..119_500 => format!("{seconds:.0} s"),
        119_500..5_970_000 => format!("{:.0} min", seconds / 60.0),
        5_970_000..172_620_000 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} d", seconds / 86_400.0),
    }
}

/// Nanoseconds since 1970.
pub fn now_ns() -> TimeNs {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// A time as RFC 3339 in the local zone, to the second. The zone is read once: a server in its
/// jail could not read it again.
pub fn time_local(time: TimeNs) -> String {
    static ZONE: OnceLock<jiff::tz::TimeZone> = OnceLock::new();
    let zone = ZONE.get_or_init(jiff::tz::TimeZone::system).clone();
    match jiff::Timestamp::from_nanosecond(i128::from(time)) {
        Ok(t) => t.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        Err(_) => format!("{time} ns"),
    }
}

/// A time as RFC 3339 in UTC, with all digits.
pub fn time_utc(time: TimeNs) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(time))
        .map_or_else(|_| format!("{time} ns"), |t| t.to_string())
}

/// Reads what [`time_utc`] writes.
pub fn parse_time(text: &str) -> Option<TimeNs> {
    text.parse::<jiff::Timestamp>().ok()?.as_nanosecond().try_into().ok()
}

/// Rows as an aligned table; columns named in `right` are aligned to the right.
pub fn table(head: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([head[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(i, (c, w))| {
                    if right.contains(&i) { format!("{c:>w$}") } else { format!("{c:<w$}") }
                },
            )
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let titles: Vec<String> = head.iter().map(|h| (*h).to_string()).collect();
    std::iter::once(line(&titles)).chain(rows.iter().map(|r| line(r))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_round_trip_and_strictness() {
        for n in 0..60u8 {
            let bytes: Vec<u8> = (0..n).map(|i| i.wrapping_mul(37) ^ n).collect();
            let text = base64url(&bytes);
            assert_eq!(unbase64url(&text), Some(bytes.clone()), "{text}");
            assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        }
        assert_eq!(base64url(b"\xfb\xff"), "-_8");
        assert_eq!(unbase64url("-_9"), None, "bits beyond the end");
        assert_eq!(unbase64url("A"), None);
        assert_eq!(unbase64url("A+"), None);
        assert_eq!(unhex("abc"), None);
        assert_eq!(unhex("éé"), None);
    }

    #[test]
    fn sizes_and_tables() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        let rows = vec![vec!["a".into(), "10".into()], vec!["bcd".into(), "9".into()]];
        assert_eq!(table(&["N", "SIZE"], &[1], &rows), "N    SIZE\na      10\nbcd     9\n");
    }

    #[test]
    fn how_long_something_lasts() {
        for (ms, text) in [
            (0, "0.0 s"),
            (700, "0.7 s"),
            (9_949, "9.9 s"),
            (9_950, "10 s"),
            (119_499, "119 s"),
            (119_500, "2 min"),
            (5_969_999, "99 min"),
            (5_970_000, "1.7 h"),
            (172_619_999, "47.9 h"),
            (172_620_000, "2.0 d"),
            (u64::MAX, "213503982334.6 d"),
        ] {
            assert_eq!(lasting(ms), text);
        }
    }

    #[test]
    fn times_round_trip() {
        let t = 1_763_719_200_123_456_789;
        assert_eq!(parse_time(&time_utc(t)), Some(t));
    }
}
