//! The start and the stop of a machine: what a close was worth, and what is done without a mirror.
//!
//! Owns: the steps of a start after a close, and `dormouse track`. Invariant: what was kept is taken away
//! before it is used. Leaves to others: what is kept, and whether it proves anything ([`super::closing`]).

use std::path::Path;

use anyhow::{Context, Result};
use dormouse_format::VolumeId;
use dormouse_track::device::Disk;
use dormouse_track::early;
use dormouse_track::ebpf::{self, Watch};

use super::closing;
use super::disk::{not_watched, pins_name};
use crate::daemon::config::{AfterReboot, MirrorConfig};
use crate::home::Home;
use crate::source::Source;

/// What a close is worth at the next start.
#[derive(Debug)]
pub(super) enum Start {
    /// Nothing was written since: no scan.
    Unwritten(String),
    /// It may have been, and why.
    Unproved(String),
}

/// Begins a watch, and goes on from what was kept of the last close, if that can be proved.
pub(super) fn begun(
    home: &Home,
    known: Option<&VolumeId>,
    of: (&Disk, &Source),
    pins: &Path,
    config: &MirrorConfig,
) -> Result<(Watch, Option<Start>)> {
    let (watch, seen) = closing::begin(of.0, of.1, pins).map_err(not_watched)?;
    let Some(volume) = known else { return Ok((watch, None)) };
    let closed = home.closed(volume);
    // Before it is used: whoever dies from here on has to scan.
    home.forget_closed(volume)?;
    let Some(closed) = closed else { return Ok((watch, None)) };
    let start = match closing::resume(&closed, volume, &seen, of, &watch, config.after_reboot)? {
        Ok(count) => Start::Unwritten(closing::summary(&closed.dirty, &count)),
        Err(why) => Start::Unproved(why),
    };
    Ok((watch, Some(start)))
}

/// `dormouse track pin`: begins to watch a disk before anybody knows whose it is. What it had counted.
pub fn pin(device: &Path) -> Result<String> {
    let disk = Disk::of(device).map_err(not_watched)?;
    let source = Source::open_shared(device)?;
    let note = early::pin(&disk, source.file()).map_err(not_watched)?;
    Ok(match note.count {
        Some(count) => format!("it has counted {} write commands", count.writes),
        None => "it has no count of writes: its mirror will compare all".into(),
    })
}

/// `dormouse track save`: a clean close of every disk that is still watched for this home and that
/// no mirror runs for. What was done, a line for each.
pub fn save(home: &Home) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let disks = Disk::all();
    for volume in home.known_volumes()? {
        let pins = ebpf::place().join(pins_name(home, &volume));
        if !pins.exists() {
            continue;
        }
        let done = save_one(home, &volume, &pins, &disks);
        said.push(format!("{volume}: {}", done.unwrap_or_else(|error| format!("{error:#}"))));
    }
    Ok(said)
}

fn save_one(home: &Home, volume: &str, pins: &Path, disks: &[Disk]) -> Result<String> {
    let _lock = home.lock_named(&format!("volume-{volume}"))?;
    let id = home.known_volume(volume)?.context("the home does not know the volume any more")?;
    for disk in disks {
        let Ok((watch, _)) = Watch::find(disk, pins, &id.0).map_err(not_watched)? else { continue };
        let source = Source::open_shared(&disk.path)?;
        // Whether it is trusted is asked again at the start.
        return closing::keep(home, (disk, &source), &watch, AfterReboot::Trust);
    }
    Ok("all will be compared: there is no disk that was watched for it without a gap".into())
}
