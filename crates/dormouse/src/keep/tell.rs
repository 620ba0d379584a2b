//! What people and scripts see of retention and of what expires.

use anyhow::Result;
use dormouse_format::keeping::{Deletion, Retention};
use dormouse_format::message::{Keep, Kept, Message};
use dormouse_format::{Seq, VolumeId};
use serde_json::{Value, json};

use super::{Keeper, Named};
use crate::exit::{Class, fail};
use crate::out::{self, note, say};
use crate::text::{now_ns, size, table, time_local, time_utc};

/// What was pruned of a volume, or would be.
pub(super) struct Pruned {
    pub(super) name: String,
    pub(super) points: u64,
    pub(super) gone: u64,
    pub(super) ranges: Vec<(Seq, Seq)>,
    pub(super) note: String,
    /// Bytes that would be gained with all of its vault that is told of; if that is known.
    pub(super) gain: Option<u64>,
}

/// What would be gained in a vault.
pub(super) struct Gain {
    pub(super) bytes: Option<u64>,
    /// For people.
    line: String,
}

impl Gain {
    /// Asks. That it cannot be told takes nothing away from the rest.
    pub(super) fn of(keeper: &Keeper<'_>, volume: VolumeId, several: bool) -> Self {
        let vault = keeper.prefix(several);
        let unknown = |why: String| {
            let line = format!("{vault}what would be gained is not known: {why}");
            Self { bytes: None, line }
        };
        match keeper.ask(Keep::GetGain { volume }) {
            Ok(Message::Kept(Kept::Gain { bytes: Some(bytes), .. })) => {
                let size = size(bytes);
                let line = format!("{vault}{size} of records would not be needed any more");
                Self { bytes: Some(bytes), line }
            }
            Ok(Message::Kept(Kept::Gain { note, .. })) => unknown(note),
            Ok(_) => unknown("the server answered something else".into()),
            // Such as a server of before there was this question.
            Err(error) => unknown(format!("{error:#}")),
        }
    }
}

/// Shows what is set: for one volume, or all.
pub(super) fn settings(keepers: &[Keeper<'_>], only: Option<&str>, as_json: bool) -> Result<()> {
    let several = keepers.len() > 1;
    let (mut settings, mut deletions) = (Vec::new(), Vec::new());
    let mut known = false;
    for keeper in keepers {
        let (volumes, told) = (keeper.volumes()?, keeper.told()?);
        known |= only.is_none_or(|name| volumes.iter().any(|(_, n)| n == name));
        if !told.doubt.is_empty() {
            note!("{}", told.doubt);
        }
        let name = |id| named(&volumes, id, &keeper.prefix(several));
        let wanted = |id: &VolumeId| only.is_none_or(|name| is_called(&volumes, id, name));
        let own = |s: &&Retention| wanted(&s.volume) || s.volume.is_zero();
        settings.extend(told.settings.iter().filter(own).map(|s| (name(&s.volume), s.clone())));
        let of = told.deletions.iter().filter(|d| wanted(&d.volume));
        deletions.extend(of.map(|d| (name(&d.volume), d.clone())));
    }
    if let Some(name) = only.filter(|_| !known) {
        return fail(
            Class::NotFound,
            format!("there is no volume '{name}'"),
            "`dormouse volumes` lists those that are there",
        );
    }
    if as_json {
        let settings: Vec<Value> = settings.iter().map(setting_json).collect();
        let deletions: Vec<Value> = deletions.iter().map(deletion_json).collect();
        return say!("{:#}", json!({ "retention": settings, "deletions": deletions }));
    }
    show(&settings, &deletions)
}

fn show(settings: &[(String, Retention)], deletions: &[(String, Deletion)]) -> Result<()> {
    if settings.is_empty() {
        say!("nothing is set: everything is kept")?;
    } else {
        let rows: Vec<Vec<String>> = settings.iter().map(|(name, s)| row(name, s)).collect();
        let head = ["VOLUME", "POLICY", "EFFECTIVE", "SET BY", "AT"];
        out::write(table(&head, &[], &rows).as_bytes())?;
    }
    for (name, d) in deletions {
        let (what, by) = (what(d), &d.by);
        say!(
            "{what} of '{name}' will be deleted at {} (asked for by {by})",
            time_local(d.effective)
        )?;
    }
    Ok(())
}

fn row(name: &str, s: &Retention) -> Vec<String> {
    let holds = s.effective <= now_ns();
    let effective =
        if holds { "yes".into() } else { format!("from {} on", time_local(s.effective)) };
    let policy = if s.policy.is_empty() { "none of its own".into() } else { s.policy.clone() };
    vec![name.to_owned(), policy, effective, s.by.clone(), time_local(s.at)]
}

/// What a deletion is about.
pub fn what(d: &Deletion) -> String {
    d.points.map_or_else(|| "all".into(), |(first, last)| format!("points {first} to {last}"))
}

fn setting_json((name, s): &(String, Retention)) -> Value {
    json!({
        "volume": (!s.volume.is_zero()).then_some(name), "policy": s.policy, "set_by": s.by,
        "set": time_utc(s.at), "effective": time_utc(s.effective),
    })
}

fn deletion_json((name, d): &(String, Deletion)) -> Value {
    json!({
        "volume": name, "points": d.points.map(|(first, last)| [first, last]), "asked_by": d.by,
        "asked": time_utc(d.at), "effective": time_utc(d.effective),
    })
}

fn named(volumes: &[Named], id: &VolumeId, prefix: &str) -> String {
    if id.is_zero() {
        return format!("{prefix}(default)");
    }
    let name = volumes.iter().find(|(v, _)| v == id).map(|(_, name)| name.clone());
    prefix.to_owned() + &name.unwrap_or_else(|| id.to_string())
}

fn is_called(volumes: &[Named], id: &VolumeId, name: &str) -> bool {
    volumes.iter().any(|(v, n)| v == id && n == name)
}

/// Shows what went, or would.
pub(super) fn pruned(rows: &[Pruned], gains: &[Gain], dry_run: bool, as_json: bool) -> Result<()> {
    if as_json {
        let values: Vec<Value> = rows
            .iter()
            .map(|r| {
                json!({
                    "volume": r.name, "points": r.points, "expired": r.gone, "dry_run": dry_run,
                    "ranges": r.ranges, "note": (!r.note.is_empty()).then_some(&r.note),
                    "gain_bytes": r.gain,
                })
            })
            .collect();
        return say!("{:#}", json!(values));
    }
    let verb = if dry_run { "would expire" } else { "have expired" };
    for r in rows {
        let ranges = ranges(&r.ranges);
        say!("{}: {} of {} points {verb}{ranges}", r.name, r.gone, r.points)?;
        if !r.note.is_empty() {
            note!("{}: {}", r.name, r.note);
        }
    }
    for gain in gains {
        say!("{}", gain.line)?;
    }
    if rows.is_empty() {
        say!("no volumes yet")?;
    }
    Ok(())
}

fn ranges(ranges: &[(Seq, Seq)]) -> String {
    const SHOWN: usize = 8;
    if ranges.is_empty() {
        return String::new();
    }
    let one = |(first, last): &(Seq, Seq)| {
        if first == last { first.to_string() } else { format!("{first} to {last}") }
    };
    let mut text: Vec<String> = ranges.iter().take(SHOWN).map(one).collect();
    if ranges.len() > SHOWN {
        text.push(format!("and {} more ranges", ranges.len() - SHOWN));
    }
    format!(": {}", text.join(", "))
}
