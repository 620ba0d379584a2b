//! `dormouse restore` and `dormouse verify`: a point comes back, or is proved to.
//!
//! Invariant: every block that is written was authenticated, opened, and found
//! under the signed root of the point that the command names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use dormouse_crypt::{Identity, VaultSecrets};
use dormouse_format::point::StoredPoint;
use dormouse_format::{VolumeId, limits};
use dormouse_sync::fetch::{self, Fetch};
use dormouse_sync::history::{Trust, hash_of};
use dormouse_sync::leaf::LeafSet;
use serde_json::json;

use crate::dest::{Dest, DestOptions};
use crate::engine::{self, Opening, Target};
use crate::exit::{Class, Failure};
use crate::home::{Account, Home};
use crate::link::Link;
use crate::remote::{Freshness, Session, Span};
use crate::report::Report;
use crate::text;
use crate::when::{self, VolumeAt};

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

/// A point to be fetched, and the means.
struct Chosen {
    link: Link,
    account: Account,
    trust: Arc<Trust>,
    identity: Arc<Identity>,
    /// The volume in the tags.
    tags: VolumeId,
    point: StoredPoint,
    checkpoint: StoredPoint,
}

/// Runs `restore`, or `verify` if there is no destination.
pub fn run(home: &Home, options: &Options) -> Result<()> {
    let mut report = Report::new(options.json, false);
    let chosen = choose(home, options, &mut report)?;
    match &options.dest {
        Some(dest) => restore(&chosen, options, dest, &mut report),
        None => verify(&chosen, &mut report),
    }?;
    report.said()
}

fn choose(home: &Home, options: &Options, report: &mut Report) -> Result<Chosen> {
    let account = home.account()?;
    let identity = Arc::new(home.identity()?);
    let name = &options.what.volume;
    let mut session = Session::open(home, &account, Some(name), Span::All)?;
    let (volume, tags) = {
        let volume = &session.volume(name)?.volume;
        (volume.id, volume.tags())
    };
    let (points, fresh) = match &options.expect_head {
        Some(hash) => session.history_with(&volume, hash)?,
        None => session.history(&volume)?,
    };
    let Session { link, trust, .. } = session;
    match (fresh, &options.expect_head) {
        (Freshness::Proved, _) => {}
        (Freshness::Unproven, None) => report.note(Freshness::UNPROVEN),
        (Freshness::Unproven, Some(_)) => report.note(
            "freshness unproven: this machine knows a newer or another head of the volume, which \
             this history does not hold",
        ),
    }
    let at = when::resolve(&points, &options.what.when, text::now_ns(), options.fuzzy)?;
    let point = points[at];
    let p = *point.point();
    let base = points.iter().find(|c| c.point().seq == p.checkpoint);
    let checkpoint = *base
        .ok_or(dormouse_sync::Error::Point { seq: p.seq, why: "its checkpoint is not there" })?;
    report.note(&format!(
        "{name}: point {} of {} ({}, {})",
        p.seq,
        text::time_local(point.receipt),
        p.grade.name(),
        text::size(p.size)
    ));
    report.event(json!({
        "event": "chosen", "volume": name, "point": p.seq, "time": text::time_utc(point.receipt),
        "grade": p.grade.name(), "size": p.size, "hash": hash_of(&point.signed).to_string(),
        "fresh": fresh == Freshness::Proved,
    }));
    Ok(Chosen { link, account, trust: Arc::new(trust), identity, tags, point, checkpoint })
}

impl Chosen {
    fn plan(&self, mode: fetch::Mode, local: LeafSet, keep_going: bool) -> fetch::Plan {
        fetch::Plan { point: self.point, checkpoint: self.checkpoint, mode, local, keep_going }
    }

    fn run(
        &self,
        plan: fetch::Plan,
        target: Option<&dyn Target>,
        report: &mut Report,
    ) -> Result<Fetch> {
        let secrets: VaultSecrets = self.account.secrets.clone();
        let opening =
            Opening { trust: Arc::clone(&self.trust), secrets: Arc::new(secrets), tags: self.tags };
        let mut fetch = Fetch::new(plan, Arc::clone(&self.trust), Arc::clone(&self.identity))?;
        let size = self.point.point().size;
        let done = engine::run_fetch(&self.link, &mut fetch, &opening, target, &mut |p| {
            report.fetching(p, size);
        });
        report.clear();
        done.map(|()| fetch)
    }
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
    let fetch = chosen.run(chosen.plan(mode, local, false), Some(&dest), report)?;
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
    let fetch = chosen.run(chosen.plan(fetch::Mode::Fresh, LeafSet::new(0), true), None, report)?;
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
