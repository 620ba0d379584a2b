//! The metrics, read back by a strict reader of the text format.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::daemon::board::LastPoint;

/// Name, labels and value of a sample.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads the text format by its description; refuses what it does not allow, and what it
/// allows and Prometheus warns of: a name without HELP and TYPE, scattered or doubled samples.
fn read(text: &str) -> Result<Vec<Sample>, String> {
    let (mut samples, mut seen) = (Vec::new(), BTreeSet::new());
    let (mut helped, mut typed): (BTreeSet<String>, BTreeMap<String, String>) = Default::default();
    let mut family = String::new();
    let text = text.strip_suffix('\n').ok_or("the last line has no end")?;
    for line in text.split('\n') {
        let fault = |why: &str| format!("{why}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| fault("no text"))?;
            let new = helped.insert(name.to_owned());
            if !new || help.is_empty() || !name_is_good(name) {
                return Err(fault("bad HELP"));
            }
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| fault("no type"))?;
            let known = ["gauge", "counter"].contains(&kind) && name == family;
            if !known || typed.insert(name.to_owned(), kind.to_owned()).is_some() {
                return Err(fault("bad TYPE"));
            }
            if (kind == "counter") != name.ends_with("_total") {
                return Err(fault("a counter ends with _total, and nothing else does"));
            }
        } else {
            let sample = sample(line).ok_or_else(|| fault("no sample"))?;
            if sample.0 != family || !typed.contains_key(&sample.0) {
                return Err(fault("not below its HELP and TYPE"));
            }
            if !seen.insert(line.rsplit_once(' ').map(|(key, _)| key.to_owned())) {
                return Err(fault("twice"));
            }
            samples.push(sample);
        }
    }
    Ok(samples)
}

fn name_is_good(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
    name.chars().all(fits) && name.starts_with(|c: char| !c.is_ascii_digit())
}

fn sample(line: &str) -> Option<Sample> {
    let brace = line.find('{')?;
    let (name, mut rest) = (&line[..brace], &line[brace + 1..]);
    let mut labels = BTreeMap::new();
    while !rest.starts_with('}') {
        let (label, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (i, '"') => break i + 1,
                (_, '\\') => value.push(match chars.next()?.1 {
                    '\\' => '\\',
                    '"' => '"',
                    'n' => '\n',
                    _ => return None,
                }),
                (_, c) => value.push(c),
            }
        };
        if !name_is_good(label) || labels.insert(label.to_owned(), value).is_some() {
            return None;
        }
        rest = &after[end..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    let value = rest.strip_prefix("} ")?;
    let fits = !value.is_empty() && value.chars().all(|c| c.is_ascii_digit() || c == '.');
    (name_is_good(name) && fits).then_some((name.to_owned(), labels, value.parse().ok()?))
}

fn volumes() -> Vec<VolumeStatus> {
    let mut root = VolumeStatus::new("root", "/dev/a\"b\\c\nd", State::CatchUp, "");
    root.data_lag_ms = Some(1_005);
    root.point_lag_ms = Some(42_000);
    root.backlog_bytes = 4096;
    root.recheck_bytes = 8192;
    root.eta_s = Some(7);
    root.read_bytes_per_s = 1;
    root.sent_bytes_per_s = 2;
    let time = "2026-11-21T10:00:00.25Z".to_owned();
    root.last_point = Some(LastPoint { seq: 17, grade: "frozen".into(), time });
    root.next_try_s = Some(9);
    root.notes = vec!["a".into(), "b".into()];
    root.age_ms = 30;
    let c = &mut root.counters;
    (c.points, c.frozen, c.settled, c.fuzzy) = (6, 1, 2, 3);
    (c.freezes_failed, c.bytes_read, c.bytes_sent, c.bytes_on_link) = (4, 5, 6, 9);
    (c.reconnects, c.scans, c.read_errors) = (7, 8, u64::MAX);
    vec![VolumeStatus::new("home", "/dev/h", State::NoConn, "refused"), root]
}

#[test]
fn every_status_is_there_in_seconds_and_bytes() {
    let samples = read(&render(&volumes())).unwrap();
    let root: Vec<String> = samples
        .iter()
        .filter(|(_, labels, _)| labels.get("volume").is_some_and(|v| v == "root"))
        .map(|(name, labels, value)| {
            let more = labels.iter().filter(|(name, _)| *name != "volume");
            let more: String = more.map(|(_, value)| format!(" {value}")).collect();
            format!("{}{more} {value}", name.strip_prefix("dormouse_").unwrap())
        })
        .collect();
    assert_eq!(
        root,
        [
            "volume_info /dev/a\"b\\c\nd 1",
            "volume_state NOCONN 0",
            "volume_state SCANNING 0",
            "volume_state CATCHUP 1",
            "volume_state LIVE 0",
            "volume_state RESCAN 0",
            "data_lag_seconds 1.005",
            "point_lag_seconds 42",
            "backlog_bytes 4096",
            "recheck_bytes 8192",
            "eta_seconds 7",
            "read_bytes_per_second 1",
            "sent_bytes_per_second 2",
            "last_point_number 17",
            "last_point_timestamp_seconds 1795255200.25",
            "next_try_seconds 9",
            "notes 2",
            "status_age_seconds 0.03",
            "points_total frozen 1",
            "points_total settled 2",
            "points_total fuzzy 3",
            "freezes_failed_total 4",
            "read_bytes_total 5",
            "sent_bytes_total 6",
            "link_bytes_total 9",
            "reconnects_total 7",
            "scans_total 8",
            "read_errors_total 18446744073709552000",
        ]
    );
    let home =
        samples.iter().filter(|(_, labels, _)| labels.get("volume").is_some_and(|v| v == "home"));
    assert!(home.clone().all(|(name, ..)| !name.contains("lag") && !name.contains("eta")));
    assert_eq!(home.count(), root.len() - 6, "what is not known has no sample");
}

#[test]
fn without_volumes_there_is_the_version() {
    let samples = read(&render(&[])).unwrap();
    assert_eq!(samples.len(), 1);
    assert_eq!(samples[0].1["version"], env!("CARGO_PKG_VERSION"));
}

/// The reader itself refuses what is wrong.
#[test]
fn the_reader_is_strict() {
    let good = "# HELP a x\n# TYPE a gauge\na{v=\"1\"} 1\na{v=\"2\"} 2.5\n";
    assert_eq!(read(good).unwrap().len(), 2);
    for (from, to) in [
        ("2.5\n", "2.5"),
        ("# TYPE a gauge\n", ""),
        ("# HELP a x\n", ""),
        ("a gauge", "a counter"),
        ("a gauge", "a gouge"),
        ("v=\"2\"", "v=\"1\""),
        ("v=\"2\"", "v=\"2\",v=\"3\""),
        ("v=\"2\"", "v=\"\\x\""),
        ("v=\"2\"", "v=\"\"\""),
        ("v=\"2\"", "2=\"\""),
        ("a{v=\"2\"}", "b{v=\"2\"}"),
        ("2.5", ""),
        ("2.5", "nan"),
        (" 2.5", "  2.5"),
        ("1\na", "1\n\na"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        assert!(read(&bad).is_err(), "{bad}");
    }
}

#[test]
fn every_metric_and_field_is_in_the_document() {
    let document = include_str!("../../../../../docs/daemon.md");
    let volumes = volumes();
    for (name, ..) in read(&render(&volumes)).unwrap() {
        assert!(document.contains(&format!("`{name}`")), "{name}");
    }
    let status = serde_json::to_value(&volumes[0]).unwrap();
    let fields = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    for field in [fields(&status), fields(&status["counters"])].concat() {
        assert!(document.contains(&format!("`{field}`")), "{field}");
    }
}
