//! What a damaged store must come to: refused, or read without a wrong byte.
//!
//! Invariant: whatever is not one of the outcomes that docs/format.md allows is a
//! violation; nothing counts as harmless because it went well.

use std::collections::BTreeMap;

use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_store::memory::MemDir;
use dormouse_store::scrub::{Finding, scrub};
use dormouse_store::{Error, Recovery};
use dormouse_sync::fetch;
use dormouse_sync::history::{self, Trust};

use super::sample::{Name, Place, Sample, Volume};
use crate::machine::Machine;
use crate::source::Disk;
use crate::world::World;

/// What came of a damage, and was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Opening refused, and named the file.
    Refused,
    /// Opening named it; what it did not touch was read.
    Opening,
    /// A restore failed with an error, and scrub named it.
    Reading,
    /// Only scrub named it; all was read right.
    Scrub,
    /// An index: made again, all was read right.
    Healed,
    /// The unconfirmed end was lost, was set aside and named; no point was in it.
    Torn,
    /// The end of the log was lost with points in it: the client's last head shows it.
    Rollback,
    /// The end of the log was cut between two entries, and no point was lost: what an
    /// interrupted write leaves.
    Shorter,
}

impl Outcome {
    /// All of them, and what tables call them.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Refused, "refused"),
        (Self::Opening, "at opening"),
        (Self::Reading, "on read"),
        (Self::Scrub, "scrub only"),
        (Self::Healed, "healed"),
        (Self::Torn, "set aside"),
        (Self::Rollback, "rollback"),
        (Self::Shorter, "shorter"),
    ];
}

/// A damaged store, and where the damage is.
pub struct Damaged<'a> {
    /// The files.
    pub files: BTreeMap<Name, Vec<u8>>,
    /// The files that differ, and the range of bytes in which a fault must be named.
    pub spots: Vec<(&'a Name, std::ops::RangeInclusive<u64>)>,
    /// Whether the end of the last segment may be missing without a word.
    pub cut: bool,
}

impl Damaged<'_> {
    fn fits(&self, segment: &str, offset: u64) -> bool {
        self.spots.iter().any(|((_, name), range)| name == segment && range.contains(&offset))
    }

    fn is_index(&self) -> bool {
        self.spots.iter().all(|((place, _), _)| *place == Place::Index)
    }
}

/// What reading all points came to.
#[derive(Default)]
struct Read {
    failed: Option<String>,
    rolled_back: bool,
}

/// Opens, reads and scrubs; an error says which rule was broken.
pub fn judge(sample: &Sample, damaged: Damaged<'_>) -> Result<Outcome, String> {
    let (mut world, memory) = sample.world(&damaged.files);
    let mut findings = Vec::new();
    let vault = sample.machine.vault;
    let scrubbed = scrub(&memory.segments, vault, true, &mut |f| findings.push(f));
    let scrubbed = scrubbed.map(|_| findings);
    let recovery = match world.registry.reopen(vault) {
        Ok(recovery) => recovery,
        Err(error) => {
            unchanged(&damaged, &memory.segments)?;
            return refused(&damaged, &error, &scrubbed);
        }
    };
    let findings = scrubbed.map_err(|e| format!("opened, and scrub failed: {e}"))?;
    let mut read = Read::default();
    for volume in &sample.volumes {
        read_volume(&mut world, &sample.machine, volume, &mut read)?;
    }
    if damaged.is_index() {
        return index(&read, &recovery, &findings);
    }
    verdict(&damaged, &read, &recovery, &findings)
}

/// What is refused is left as it is.
fn unchanged(damaged: &Damaged<'_>, segments: &MemDir) -> Result<(), String> {
    let same = |((place, name), bytes): (&Name, &Vec<u8>)| {
        *place == Place::Index || segments.get(name).as_ref() == Some(bytes)
    };
    if damaged.files.iter().all(same) { Ok(()) } else { Err("refused, and changed".into()) }
}

fn refused(
    damaged: &Damaged<'_>,
    error: &Error,
    scrubbed: &Result<Vec<Finding>, Error>,
) -> Result<Outcome, String> {
    let Error::Damaged { segment, offset, .. } = error else {
        return Err(format!("refused, and the error names no place: {error}"));
    };
    if !damaged.fits(segment, *offset) {
        return Err(format!("refused, and the error names another place: {error}"));
    }
    match scrubbed {
        Ok(findings) if findings.iter().any(|f| damaged.fits(&f.segment, f.offset)) => {
            Ok(Outcome::Refused)
        }
        Ok(findings) => Err(format!("refused ({error}), and scrub does not name it: {findings:?}")),
        Err(e) => Err(format!("refused ({error}), and scrub failed: {e}")),
    }
}

fn index(read: &Read, recovery: &Recovery, findings: &[Finding]) -> Result<Outcome, String> {
    if let Some(why) = &read.failed {
        return Err(format!("only the index is damaged, and a restore failed: {why}"));
    }
    let quiet = recovery.torn.is_empty() && recovery.damaged.is_empty() && findings.is_empty();
    if read.rolled_back || !quiet {
        return Err(format!("only the index is damaged: {recovery:?}, {findings:?}"));
    }
    Ok(Outcome::Healed)
}

fn verdict(
    damaged: &Damaged<'_>,
    read: &Read,
    recovery: &Recovery,
    findings: &[Finding],
) -> Result<Outcome, String> {
    let torn = recovery.torn.iter().any(|t| damaged.fits(&t.segment, t.offset));
    let opening = recovery.damaged.iter().any(|f| damaged.fits(&f.segment, f.offset));
    let scrub = findings.iter().any(|f| damaged.fits(&f.segment, f.offset));
    let told = format!("{:?}, {:?}, {findings:?}", recovery.torn, recovery.damaged);
    if read.rolled_back {
        return if torn || damaged.cut { Ok(Outcome::Rollback) } else { Err(told) };
    }
    if torn {
        return match &read.failed {
            None => Ok(Outcome::Torn),
            Some(why) => Err(format!("set aside, and a point that is there fails: {why}; {told}")),
        };
    }
    if !scrub {
        if damaged.cut && read.failed.is_none() && recovery.damaged.is_empty() {
            return Ok(Outcome::Shorter);
        }
        return Err(format!("scrub does not name it: {:?}; {told}", read.failed));
    }
    Ok(match (&read.failed, opening) {
        (_, true) => Outcome::Opening,
        (Some(_), false) => Outcome::Reading,
        (None, false) => Outcome::Scrub,
    })
}

/// Restores every point that the client knows of. A wrong byte is an error of ours;
/// an error of theirs goes to `read`.
fn read_volume(
    world: &mut World,
    machine: &Machine,
    volume: &Volume,
    read: &mut Read,
) -> Result<(), String> {
    let mut fail = |e: String| {
        read.failed.get_or_insert(e);
    };
    let (trust, points) = match shown(world, machine, volume) {
        Ok(shown) => shown,
        Err(e) => {
            fail(e.to_string());
            return Ok(());
        }
    };
    let seen = &volume.seen;
    let at_seen = points.iter().find(|p| p.point().seq == seen.point.seq);
    match history::check_anchor(Some(seen), points.last(), at_seen) {
        Ok(()) => {}
        Err(dormouse_sync::Error::Rollback { .. }) => read.rolled_back = true,
        Err(e) => {
            fail(e.to_string());
            return Ok(());
        }
    }
    // Damage may leave points out; each that is shown must be right by itself.
    if let Err(e) = trust.chain(&volume.id, &points) {
        fail(e.to_string());
    }
    for point in &points {
        let p = point.point();
        let built_on = points.iter().find(|c| c.point().seq == p.checkpoint);
        let (Some(checkpoint), Ok(())) = (built_on, trust.point(&volume.id, point)) else {
            fail(format!("point {} cannot be read", p.seq));
            continue;
        };
        let model = volume.models.get(p.seq as usize - 1).ok_or("a point that never was")?;
        let mut disk = Disk::default();
        let (pair, trust) = ([*point, *checkpoint], trust.clone());
        let restored = world.restore_trusting(machine, trust, pair, fetch::Mode::Fresh, &mut disk);
        match restored {
            Ok(_) if disk == *model => {}
            Ok(_) => return Err(format!("wrong bytes in point {}", p.seq)),
            Err(e) => {
                fail(e.to_string());
                no_wrong_block(&disk, model)?;
            }
        }
    }
    Ok(())
}

/// What was written before a restore failed is right too.
fn no_wrong_block(disk: &Disk, model: &Disk) -> Result<(), String> {
    let wrong = disk.blocks.iter().find(|(at, bytes)| model.blocks.get(at) != Some(bytes));
    wrong.map_or(Ok(()), |(at, _)| Err(format!("wrong bytes in block {at}, before an error")))
}

fn shown(
    world: &mut World,
    machine: &Machine,
    volume: &Volume,
) -> dormouse_sync::error::Result<(Trust, Vec<StoredPoint>)> {
    let trust = world.trust(machine)?;
    let question = Message::ListPoints { volume: volume.id, from: 1, limit: 2000 };
    match world.hello(machine)?.ask(&question)? {
        Message::Points { points } => Ok((trust, points)),
        _ => Err(dormouse_sync::Error::Protocol { what: "no points" }),
    }
}
