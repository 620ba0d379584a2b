//! `dormouse scrub STORE`: every record of every vault, and the server's own state,
//! checked without keys.
//!
//! Works beside a running server. Invariant: nothing is written, unless the state
//! that is there is to be accepted, or the store healed ([`crate::replicate`]).

use std::path::Path;

use anyhow::Result;
use dormouse_format::VaultId;
use dormouse_format::record::Kind;
use dormouse_store::scrub::{Finding, Summary, Touch, scrub};
use serde_json::json;

use crate::bucket;
use crate::exit::{Class, fail};
use crate::log::Log;
use crate::out::{note, say};
use crate::state_files::Fault;
use crate::store_dir::StoreDir;
use crate::text::size;

/// Runs the command.
pub fn run(
    store: &Path,
    accept_state: bool,
    repair_from: Option<&Path>,
    as_json: bool,
) -> Result<()> {
    if accept_state {
        for line in StoreDir::accept_state(store)? {
            note!("{line}");
        }
    }
    // The state first: what is wrong with the header is told like the rest.
    let faults = StoreDir::state_faults(store)?;
    for fault in &faults {
        tell_state(fault, as_json)?;
    }
    let store = StoreDir::open(store)?;
    if let Some(copy) = repair_from {
        crate::replicate::repair(&store, copy, as_json)?;
    }
    let store = bucket::attach_to_read(store, &Log::stderr())?;
    // Held while scrubbing, so that no server starts in the middle.
    let lock = store.lock().ok();
    let live = lock.is_none();
    let mut total = Summary { findings: faults.len() as u64, ..Summary::default() };
    let mut vaults = 0;
    for vault in store.vaults()? {
        vaults += 1;
        let dir = store.segments_to_read(&vault)?;
        let mut told = Ok(());
        let mut show = |finding: Finding| {
            if told.is_ok() {
                told = tell(&vault, &finding, as_json);
            }
        };
        // An unfinished end is no fault, whether a server writes it just now or died of it:
        // the next opening sets it aside. One that is on record as durable is a fault.
        let unfinished_is_fine = true;
        let summary = scrub(&*dir, vault, unfinished_is_fine, &mut show)?;
        told?;
        total.segments += summary.segments;
        total.records += summary.records;
        total.bytes += summary.bytes;
        total.findings += summary.findings;
    }
    if as_json {
        say!(
            "{}",
            json!({
                "event": "done", "vaults": vaults, "segments": total.segments,
                "records": total.records, "bytes": total.bytes, "findings": total.findings,
                "live": live,
            })
        )?;
    } else {
        say!(
            "{vaults} vaults, {} segments, {} records, {} checked: {} faults",
            total.segments,
            total.records,
            size(total.bytes),
            total.findings
        )?;
    }
    if total.findings == 0 {
        return Ok(());
    }
    fail(
        Class::Damaged,
        format!("{} faults in {}", total.findings, store.path().display()),
        "check the disk. On the client `dormouse mirror SOURCE --once --all` sends damaged chunks\n\
         again, where the source still has them; a second copy of the store heals the rest: \
         `--repair-from COPY`. State files (clients, invites, keys): `--accept-state` goes on with what holds.\n\
         `dormouse verify VOLUME@WHEN` tells which points are whole",
    )
}

fn tell(vault: &VaultId, finding: &Finding, as_json: bool) -> Result<()> {
    let kind = finding.kind.map_or("record", Kind::name);
    if as_json {
        let touches: Vec<_> = finding
            .touches
            .iter()
            .map(|t| json!({ "volume": t.volume, "points": t.seqs }))
            .collect();
        return say!(
            "{}",
            json!({
                "event": "fault", "vault": vault.to_string(), "segment": finding.segment,
                "offset": finding.offset, "kind": finding.kind.map(|k| k.name()),
                "id": finding.id.map(|id| id.to_string()), "why": finding.why, "touches": touches,
            })
        );
    }
    let id = finding.id.map_or_else(String::new, |id| format!(" {id}"));
    say!(
        "vault {vault}, segment {}, byte {}: {kind}{id}: {}",
        finding.segment,
        finding.offset,
        finding.why
    )?;
    if finding.touches.is_empty() && finding.kind == Some(Kind::Chunk) {
        say!("    touches no point: none needs it, or the store has a good copy")?;
    }
    for touch in &finding.touches {
        say!("    touches volume '{}', {}", touch.volume, points(touch))?;
    }
    Ok(())
}

fn tell_state(fault: &Fault, as_json: bool) -> Result<()> {
    let path = fault.path.display().to_string();
    if as_json {
        return say!("{}", json!({ "event": "state", "file": path, "why": fault.why.to_string() }));
    }
    say!("state {path}: {}", fault.why)
}

fn points(touch: &Touch) -> String {
    const SHOWN: usize = 12;
    let mut text: Vec<String> = touch.seqs.iter().take(SHOWN).map(u64::to_string).collect();
    if touch.seqs.len() > SHOWN {
        text.push(format!("and {} more", touch.seqs.len() - SHOWN));
    }
    format!("points {}", text.join(", "))
}
