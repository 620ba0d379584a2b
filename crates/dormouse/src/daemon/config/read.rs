//! From the text of the daemon's file to its values, or to all that is wrong with it.
//!
//! Owns: the keys, what each wants, and the words of each problem. Invariants: a key that is
//! asked for is allowed and every other is unknown, so the two lists cannot differ; a problem
//! stands at the key or value that it is about. A text that is not TOML has only problems of
//! syntax: what the rest means is not guessed.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_format::vault::name_is_valid;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    AfterReboot, Config, Freeze, Hook, LIMIT_MIN, MirrorConfig, POINT_EVERY_MAX, POINT_EVERY_MIN,
    Problem, SCAN_EVERY_MIN, Swap, Tracker,
};
use crate::daemon::quantity;

/// Characters of a wrong value that are shown.
const SHOWN_MAX: usize = 40;

/// Reads a whole file.
pub(super) fn config(bytes: &[u8]) -> Result<Config, Vec<Problem>> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let good = String::from_utf8_lossy(&bytes[..e.valid_up_to()]).into_owned();
        let mut reading = Reading::new(&good);
        reading.problem(good.len()..good.len(), None, "a byte that is not UTF-8");
        reading.problems
    })?;
    let mut reading = Reading::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let message = error.message().trim().replace('\n', ", ");
        reading.problem(error.span().unwrap_or(0..0), None, message);
    }
    let config = if reading.problems.is_empty() { reading.top(&table) } else { None };
    match config {
        Some(config) if reading.problems.is_empty() => Ok(config),
        _ => {
            reading.problems.sort_by_key(|p| (p.line, p.column));
            Err(reading.problems)
        }
    }
}

/// A text and what was found wrong with it.
struct Reading<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

/// One table: what was asked of it is what it may hold.
struct Section<'t, 'i> {
    name: &'static str,
    table: &'t DeTable<'i>,
    asked: Vec<&'static str>,
}

/// A value and where it stands.
struct Found<T> {
    value: T,
    at: Range<usize>,
}

impl<'a> Reading<'a> {
    const fn new(text: &'a str) -> Self {
        Self { text, problems: Vec::new() }
    }

    fn problem(&mut self, at: Range<usize>, key: Option<&str>, message: impl Display) {
        let (line, column) = place(self.text, at.start);
        let message = match key {
            Some(key) => format!("{key}: {message}"),
            None => message.to_string(),
        };
        self.problems.push(Problem { line, column, key: key.map(str::to_owned), message });
    }

    /// The value of a key, if it is there and is what is wanted.
    fn take<'t, T>(
        &mut self,
        section: &mut Section<'t, '_>,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&'t DeValue<'_>) -> Option<T>,
    ) -> Option<Found<T>> {
        section.asked.push(key);
        let value = section.table.get(key)?;
        let at = value.span();
        match read(value.get_ref()) {
            Some(value) => Some(Found { value, at }),
            None => {
                let given = self.given(&at);
                self.problem(at, Some(key), format!("must be {wanted}, not {given}"));
                None
            }
        }
    }

    /// What stands there, in short.
    fn given(&self, at: &Range<usize>) -> String {
        let whole = self.text.get(at.clone()).unwrap_or_default();
        let line = whole.lines().next().unwrap_or_default();
        let mut short: String = line.chars().take(SHOWN_MAX).collect();
        if short.len() < whole.len() {
            short.push('…');
        }
        short
    }

    /// Every key that nobody asked for.
    fn unknown(&mut self, section: &Section<'_, '_>) {
        for key in section.table.keys() {
            let name: &str = key.get_ref();
            if !section.asked.contains(&name) {
                let allowed = section.asked.join(", ");
                let message = format!("is not known; {} may hold {allowed}", section.name);
                self.problem(key.span(), Some(name), message);
            }
        }
    }

    fn top(&mut self, table: &Spanned<DeTable<'_>>) -> Option<Config> {
        let mut section = Section { name: "the file", table: table.get_ref(), asked: Vec::new() };
        let status = self.take(&mut section, "status", "an absolute path", path);
        let anywhere =
            self.take(&mut section, "metrics-anywhere", "true or false", |v| v.as_bool());
        let wanted = "an address and a port such as \"127.0.0.1:9187\"";
        let metrics =
            self.take(&mut section, "metrics", wanted, |v| v.as_str()?.parse::<SocketAddr>().ok());
        if let Some(Found { value, at }) = &metrics
            && !value.ip().is_loopback()
            && !anywhere.is_some_and(|a| a.value)
        {
            let message = format!(
                "{value} can be reached from other machines; name 127.0.0.1 or [::1], or set \
                 metrics-anywhere = true"
            );
            self.problem(at.clone(), Some("metrics"), message);
        }
        let wanted = "tables, each headed [[mirror]]";
        let tables = self.take(&mut section, "mirror", wanted, |v| {
            let tables: Vec<_> = v.as_array()?.iter().map(table_of).collect::<Option<_>>()?;
            Some(tables)
        });
        self.unknown(&section);
        if section.table.get("mirror").is_none() {
            let message = "is missing: a [[mirror]] with a device is the least";
            self.problem(0..0, Some("mirror"), message);
        }
        let mirrors = self.mirrors(&tables?.value);
        Some(Config { status: status.map(|s| s.value), metrics: metrics.map(|m| m.value), mirrors })
    }

    /// All mirrors that hold, none of which shares a device or a volume with another.
    fn mirrors(&mut self, tables: &[(Range<usize>, &DeTable<'_>)]) -> Vec<MirrorConfig> {
        let mut mirrors = Vec::new();
        let (mut devices, mut volumes) = (BTreeMap::new(), BTreeMap::new());
        for (at, table) in tables {
            let Some((mirror, device_at, volume_at)) = self.mirror(at, table) else { continue };
            self.once(&mut devices, "device", &mirror.device.display().to_string(), device_at);
            self.once(&mut volumes, "volume", &mirror.volume, volume_at);
            mirrors.push(mirror);
        }
        mirrors
    }

    fn once(
        &mut self,
        seen: &mut BTreeMap<String, usize>,
        key: &'static str,
        value: &str,
        at: Range<usize>,
    ) {
        let (line, _) = place(self.text, at.start);
        if let Some(first) = seen.get(value) {
            let message = format!("'{value}' is mirrored already, by line {first}; once is enough");
            self.problem(at, Some(key), message);
        } else {
            seen.insert(value.to_owned(), line);
        }
    }

    /// One mirror, and where its device and its volume stand.
    fn mirror(
        &mut self,
        at: &Range<usize>,
        table: &DeTable<'_>,
    ) -> Option<(MirrorConfig, Range<usize>, Range<usize>)> {
        let mut section = Section { name: "[[mirror]]", table, asked: Vec::new() };
        let wanted = "the absolute path of a device, such as \"/dev/disk/by-id/…\"";
        let device = self.take(&mut section, "device", wanted, path);
        if table.get("device").is_none() {
            self.problem(at.clone(), Some("device"), format!("is missing; it must be {wanted}"));
        }
        let wanted = "1 to 64 letters, digits, '.', '_' and '-'";
        let volume = self.take(&mut section, "volume", wanted, |v| {
            v.as_str().filter(|name| name_is_valid(name)).map(str::to_owned)
        });
        let device_at = device.as_ref().map(|d| d.at.clone());
        let volume_at = volume.as_ref().map(|v| v.at.clone());
        // What is wrong in the other keys is told also when there is no device.
        let mut mirror = MirrorConfig::new(device.map(|d| d.value).unwrap_or_default());
        if let Some(volume) = volume {
            mirror.volume = volume.value;
        }
        self.pace(&mut section, &mut mirror);
        self.manner(&mut section, &mut mirror);
        self.unknown(&section);
        let device_at = device_at?;
        let volume_at = volume_at.unwrap_or_else(|| device_at.clone());
        Some((mirror, device_at, volume_at))
    }

    /// How often and how fast.
    fn pace(&mut self, section: &mut Section<'_, '_>, mirror: &mut MirrorConfig) {
        let wanted = "a duration from \"100ms\" to \"24h\", such as \"5s\" or \"1m\"";
        let point_every = self.take(section, "point-every", wanted, |v| {
            duration(v, POINT_EVERY_MIN, POINT_EVERY_MAX)
        });
        let wanted = "a rate of at least \"16KiB\" a second, such as \"10MiB\" or \"2.5MB\"";
        let limit = self.take(section, "limit", wanted, |v| {
            quantity::rate(v.as_str()?).ok().filter(|rate| rate.get() >= LIMIT_MIN)
        });
        let wanted = "a duration of at least \"10s\", such as \"15m\"";
        let scan_every = self
            .take(section, "scan-every", wanted, |v| duration(v, SCAN_EVERY_MIN, Duration::MAX));
        let tracker =
            self.take(section, "tracker", "\"ebpf\" or \"scan\"", |v| match v.as_str()? {
                "ebpf" => Some(Tracker::Ebpf),
                "scan" => Some(Tracker::Scan),
                _ => None,
            });
        set(&mut mirror.point_every, point_every);
        mirror.limit = limit.map(|l| l.value);
        set(&mut mirror.tracker, tracker);
        if let Some(scan_every) = &scan_every
            && mirror.tracker != Tracker::Scan
        {
            let message = "is only for tracker = \"scan\"";
            self.problem(scan_every.at.clone(), Some("scan-every"), message);
        }
        set(&mut mirror.scan_every, scan_every);
    }

    /// In which way.
    fn manner(&mut self, section: &mut Section<'_, '_>, mirror: &mut MirrorConfig) {
        let freeze =
            self.take(section, "freeze", "\"auto\" or \"never\"", |v| match v.as_str()? {
                "auto" => Some(Freeze::Auto),
                "never" => Some(Freeze::Never),
                _ => None,
            });
        let swap = self.take(section, "swap", "\"skip\" or \"copy\"", |v| match v.as_str()? {
            "skip" => Some(Swap::Skip),
            "copy" => Some(Swap::Copy),
            _ => None,
        });
        let wanted = "\"prove\" or \"trust\"";
        let reboot = self.take(section, "after-reboot", wanted, |v| match v.as_str()? {
            "prove" => Some(AfterReboot::Prove),
            "trust" => Some(AfterReboot::Trust),
            _ => None,
        });
        let level = self.take(section, "level", "a number from 1 to 19", |v| {
            let number = v.as_integer()?;
            let level = i32::from_str_radix(number.as_str(), number.radix()).ok()?;
            (1..=19).contains(&level).then_some(level)
        });
        let wanted = "a program with an absolute path and its arguments, such as [\"/usr/bin/psql\", \"-c\", \"CHECKPOINT\"]";
        let before = self.take(section, "hook-before", wanted, hook);
        let after = self.take(section, "hook-after", wanted, hook);
        set(&mut mirror.freeze, freeze);
        set(&mut mirror.swap, swap);
        set(&mut mirror.after_reboot, reboot);
        set(&mut mirror.level, level);
        mirror.hook_before = before.map(|h| h.value);
        mirror.hook_after = after.map(|h| h.value);
    }
}

fn set<T>(place: &mut T, found: Option<Found<T>>) {
    if let Some(found) = found {
        *place = found.value;
    }
}

/// Line and column of a byte, both from 1; the column in characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let at = (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn table_of<'t, 'i>(value: &'t Spanned<DeValue<'i>>) -> Option<(Range<usize>, &'t DeTable<'i>)> {
    Some((value.span(), value.get_ref().as_table()?))
}

fn path(value: &DeValue<'_>) -> Option<PathBuf> {
    let path = Path::new(value.as_str()?);
    let fits = path.is_absolute() && path.file_name().is_some() && !value.as_str()?.contains('\0');
    // Without doubled and closing slashes, so that equal paths are equal texts.
    fits.then(|| path.components().collect())
}

fn duration(value: &DeValue<'_>, least: Duration, most: Duration) -> Option<Duration> {
    quantity::duration(value.as_str()?).ok().filter(|d| (least..=most).contains(d))
}

fn hook(value: &DeValue<'_>) -> Option<Hook> {
    let words: Vec<&str> =
        value.as_array()?.iter().map(|w| w.get_ref().as_str()).collect::<Option<_>>()?;
    let (program, args) = words.split_first()?;
    let fits = Path::new(program).is_absolute() && words.iter().all(|w| !w.contains('\0'));
    fits.then(|| Hook {
        program: PathBuf::from(program),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
    })
}
