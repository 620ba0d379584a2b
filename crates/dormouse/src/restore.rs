//! `dormouse restore` and `dormouse verify`: a point comes back, or is proved to.
//!
//! Invariant: every block that is written was authenticated, opened, and found
//! under the signed root of the point that the command names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use dormouse_crypt::VaultSecrets;
use dormouse_format::limits;
use dormouse_sync::fetch::{self, Fetch};
use dormouse_sync::leaf::LeafSet;
use serde_json::json;

use crate::chosen::{self, Chosen, How};
use crate::dest::{Dest, DestOptions};
use crate::engine::{self, Opening, Target};
use crate::exit::{Class, Failure};
use crate::home::Home;
use crate::report::Report;
use crate::text;
use crate::when::VolumeAt;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The volume, and which point.
    pub what: VolumeAt,
    /// The file or device; nothing is written without one.
    pub dest: Option<PathBuf>,
    /// Compare what the destination holds, and write only what differs.
    pub in_place: bool,
    /// Overwrite an existing file.
    pub force: bool,
    /// Fuzzy points may be chosen.
    pub fuzzy: bool,
    /// The hash of a point that must be in the history.
    pub expect_head: Option<String>,
    /// Events as JSON lines.
    pub json: bool,
}

/// Runs `restore`, or `verify` if there is no destination.
pub fn run(home: &Home, options: &Options) -> Result<()> {
    let mut report = Report::new(options.json, false);
    let how = How { fuzzy: options.fuzzy, expect_head: options.expect_head.as_deref() };
    let chosen = chosen::choose(home, &options.what, how, &mut report)?;
    match &options.dest {
        Some(dest) => restore(&chosen, options, dest, &mut report),
        None => verify(&chosen, &mut report),
    }?;
    report.said()
}

fn plan(chosen: &Chosen, mode: fetch::Mode, local: LeafSet, keep_going: bool) -> fetch::Plan {
    let Chosen { point, checkpoint, .. } = *chosen;
    fetch::Plan { point, checkpoint, mode, local, keep_going }
}

fn run_plan(
    chosen: &Chosen,
    plan: fetch::Plan,
    target: Option<&dyn Target>,
    report: &mut Report,
) -> Result<Fetch> {
    let secrets: VaultSecrets = chosen.account.secrets.clone();
    let trust = Arc::clone(&chosen.trust);
    let opening = Opening { trust, secrets: Arc::new(secrets), tags: chosen.tags };
    let mut fetch = Fetch::new(plan, Arc::clone(&chosen.trust), Arc::clone(&chosen.identity))?;
    let size = chosen.point.point().size;
    let done = engine::run_fetch(&chosen.link, &mut fetch, &opening, target, &mut |p| {
        report.fetching(p, size);
    });
    report.clear();
    done.map(|()| fetch)
}

fn restore(chosen: &Chosen, options: &Options, path: &Path, report: &mut Report) -> Result<()> {
    let size = chosen.point.point().size;
    let dest_options = DestOptions { force: options.force, in_place: options.in_place };
    let dest = Dest::create(path, size, dest_options)?;
    let (mode, local) = match (options.in_place, dest.reads_as_zeros()) {
        (true, _) => (fetch::Mode::InPlace, dest.leaf_set()?),
        (false, true) => (fetch::Mode::Fresh, LeafSet::new(0)),
        (false, false) => (fetch::Mode::Overwrite, LeafSet::all(size)),
    };
    let fetch = run_plan(chosen, plan(chosen, mode, local, false), Some(&dest), report)?;
    dest.finish()?;
    let p = fetch.progress();
    let written = p.written * limits::BLOCK_SIZE as u64;
    report.event(json!({
        "event": "done", "dest": path.display().to_string(), "written_bytes": written,
        "same_bytes": p.same * limits::BLOCK_SIZE as u64, "received_bytes": p.received,
    }));
    report.line(&format!(
        "restored to {}: {} written, {} received",
        path.display(),
        text::size(written),
        text::size(p.received)
    ));
    Ok(())
}

fn verify(chosen: &Chosen, report: &mut Report) -> Result<()> {
    let plan = plan(chosen, fetch::Mode::Fresh, LeafSet::new(0), true);
    let fetch = run_plan(chosen, plan, None, report)?;
    let p = fetch.progress();
    let checked = p.written * limits::BLOCK_SIZE as u64;
    for fault in fetch.faults() {
        report.event(json!({ "event": "fault", "what": fault.to_string() }));
        report.line(&format!("BAD: {fault}"));
    }
    report.event(json!({ "event": "done", "checked_bytes": checked, "bad_chunks": p.bad }));
    if p.bad > 0 {
        let message =
            format!("{} chunks of point {} cannot be used", p.bad, chosen.point.point().seq);
        return Err(Failure::new(Class::Damaged, message)
            .hint(
                "`dormouse mirror SOURCE --once --all` sends them again, where the source still has \
                 them;\nif not, run `dormouse scrub STORE` on the server to find what is damaged, \
                 and bring the\ndamaged segment back from a copy of the store; other points may \
                 be whole",
            )
            .into());
    }
    report.line(&format!(
        "point {} holds: {} opened and checked under its signed root",
        chosen.point.point().seq,
        text::size(checked)
    ));
    Ok(())
}
