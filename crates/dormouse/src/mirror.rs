//! `dormouse mirror SOURCE --once`: one copy of a file or device, ended by a point.
//!
//! Owns: the order of the steps, and what is told to people and scripts.
//! Invariant: the grade is what was proved about the source; a head that the server
//! has acknowledged is remembered before the command ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, TryRecvError};
use dormouse_crypt::seal::DataKey;
use dormouse_crypt::{OsRandom, Random, record};
use dormouse_format::message::Message;
use dormouse_format::point::{Grade, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::Volume;
use dormouse_format::{VolumeId, limits};
use dormouse_sync::copy::{self, Copy, Outcome};
use dormouse_sync::history::hash_of;
use dormouse_track::device::Disk;
use serde_json::json;

use crate::connect::send;
use crate::engine::{self, Sealing};
use crate::exit::{Class, Failure};
use crate::home::{Account, Anchor, Home};
use crate::link::Link;
use crate::remote::{Listed, Session, Span};
use crate::report::Report;
use crate::source::Source;
use crate::{kit, text, volume_name, which_disk};

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file or device.
    pub source: PathBuf,
    /// The volume's name; by default the source's.
    pub volume: Option<String>,
    /// Ask for every chunk, and send again what is damaged.
    pub all: bool,
    /// Take the volume over from another writer or installation.
    pub takeover: bool,
    /// Another disk than the one in the volume is meant.
    pub same_disk: bool,
    /// The zstd level.
    pub level: i32,
    /// Events as JSON lines.
    pub json: bool,
    /// Nothing but errors.
    pub quiet: bool,
    /// Ends the copy when it is closed.
    pub stop: Option<Receiver<()>>,
}

/// A copy that was made.
#[derive(Debug)]
pub struct Copied {
    /// What it did, and its point.
    pub outcome: Outcome,
    /// Why the point is only fuzzy, if it is.
    pub why_fuzzy: Option<String>,
}

/// How often a copy begins anew because the head moved under it.
const TRIES: usize = 3;

/// A volume about to be written, and its newest point, which was proved fresh.
pub(crate) struct Found {
    pub(crate) volume: Volume,
    pub(crate) head: Option<StoredPoint>,
    pub(crate) checkpoint: Option<StoredPoint>,
    /// It is not on the server yet.
    pub(crate) new: bool,
}

/// Runs the command.
pub fn run(home: &Home, options: &Options) -> Result<()> {
    let mut report = Report::new(options.json, options.quiet);
    if let Some(reminder) = kit::kit_reminder(home) {
        report.note(&reminder);
    }
    let Copied { outcome, why_fuzzy } = copy(home, options, &mut report)?;
    if let Some(why) = why_fuzzy {
        let name = name_of(options);
        let seq = outcome.point.point.seq;
        let message = format!("point {seq} of '{name}' is only fuzzy: {why}");
        return Err(Failure::new(Class::Fuzzy, message)
            .hint(
                "it is not listed by default and no restore chooses it unasked; copy a snapshot, or \
                 an unmounted device, to get a settled point",
            )
            .into());
    }
    report.said()
}

fn name_of(options: &Options) -> String {
    options.volume.clone().unwrap_or_else(|| volume_name::of_source(&options.source))
}

/// Copies once.
pub fn copy(home: &Home, options: &Options, report: &mut Report) -> Result<Copied> {
    let account = home.account()?;
    let name = name_of(options);
    volume_name::check(&name)?;
    let _lock = home.lock_named(&format!("volume-{name}"))?;
    let source = Source::open(&options.source)?;
    // Of a file nothing is known but its content, which may be another each time.
    let disk = Disk::of(&options.source).ok().map(|disk| which_disk::of_source(&disk, &source));
    let known = home.known_volume(&name)?.map(|id| home.known_disk(&id)).transpose()?.flatten();
    if let (Some(disk), Some(known), false) = (&disk, &known, options.same_disk) {
        which_disk::must_be(&name, known, disk, &options.source)?;
    }
    let mut tries = 0;
    let (link, volume, outcome) = loop {
        tries += 1;
        match copy_once(home, &account, &name, &source, options, report) {
            Err(e) if tries < TRIES && e.downcast_ref() == Some(&dormouse_sync::Error::Moved) => {}
            done => break done?,
        }
    };
    home.remember(&volume, &Anchor { head: outcome.point, vouched: true }).with_context(|| {
        let seq = outcome.point.point.seq;
        format!("point {seq} of '{name}' is whole on the server, and cannot be remembered here")
    })?;
    if let Some(disk) = &disk {
        home.remember_disk(&volume.id, disk)?;
    }
    tell(report, &link, &name, &options.source, &outcome);
    let fuzzy = outcome.point.point.grade == Grade::Fuzzy;
    Ok(Copied { outcome, why_fuzzy: fuzzy.then(|| source.why_fuzzy()) })
}

fn copy_once(
    home: &Home,
    account: &Account,
    name: &str,
    source: &Source,
    options: &Options,
    report: &mut Report,
) -> Result<(Link, Volume, Outcome)> {
    if source.size() > limits::VOLUME_SIZE_MAX {
        return Err(Failure::new(Class::Place, "the source is larger than a volume can be").into());
    }
    let mut session = Session::open(home, account, Some(name), Span::Seen)?;
    let Found { volume, head, checkpoint, new } = find(&mut session, account, name)?;
    let link = session.link;
    report.event(json!({
        "event": "start", "volume": name, "source": options.source.display().to_string(),
        "size": source.size(), "after_point": head.map(|h| h.point().seq),
    }));
    let sealing = sealing(account, volume.tags(), options.level)?;
    // In one flight with the copy's first questions. What is refused here ends the
    // connection, so nothing behind it takes effect.
    if new {
        send(&link, Message::CreateVolume { body: account.signing.sign_body(&volume) })?;
    }
    send(&link, Message::OpenWrite { volume: volume.id, takeover: options.takeover })?;
    put_key(&link, account, &sealing)?;
    let leaves = source.leaf_set()?;
    let total = leaves.count();
    let plan = copy::Plan {
        vault: account.vault,
        volume: volume.id,
        generation: copy::Generation::Asked { created: new },
        head,
        checkpoint,
        size: source.size(),
        leaves,
        mode: if options.all { copy::Mode::Check } else { copy::Mode::Scan },
        part: copy::ALL,
        stale: false,
        window: copy::WINDOW,
    };
    let mut copy = Copy::new(plan, Arc::clone(&sealing.secrets), Arc::clone(&sealing.signer))?;
    let mut finish = || Ok((source.grade()?, text::now_ns()));
    let outcome = engine::run_copy(&link, &mut copy, &sealing, source, &mut finish, &mut |p| {
        report.copying(p, total);
        let stop = options.stop.as_ref().map(Receiver::try_recv);
        anyhow::ensure!(stop != Some(Err(TryRecvError::Disconnected)), "told to stop");
        Ok(())
    });
    report.clear();
    outcome.map(|outcome| (link, volume, outcome))
}

/// The volume of this name as the server shows it, proved fresh before anything is
/// written there; or a new one, not created yet.
pub(crate) fn find(session: &mut Session<'_>, account: &Account, name: &str) -> Result<Found> {
    let Some(Listed { volume, head }) = session.find(name).cloned() else {
        let volume = new_volume(account, name);
        return Ok(Found { volume, head: None, checkpoint: None, new: true });
    };
    session.check_fresh(&volume.id, head.as_ref())?;
    let checkpoint = head.map(|head| session.checkpoint(&volume.id, &head)).transpose()?;
    Ok(Found { volume, head, checkpoint, new: false })
}

fn new_volume(account: &Account, name: &str) -> Volume {
    Volume {
        vault: account.vault,
        id: VolumeId(OsRandom.array()),
        writer: account.writer(),
        created: text::now_ns(),
        name: name.to_owned(),
        origin: None,
    }
}

pub(crate) fn sealing(account: &Account, tags: VolumeId, level: i32) -> Result<Sealing> {
    Ok(Sealing {
        vault: account.vault,
        tags,
        signer: Arc::new(dormouse_crypt::SigningKey::from_seed(*account.signing.seed())?),
        secrets: Arc::new(account.secrets.clone()),
        key: Arc::new(DataKey::generate(&mut OsRandom)?),
        level,
        pace: None,
    })
}

/// Puts the session's data key, wrapped to the recipient, before anything it seals.
pub(crate) fn put_key(link: &Link, account: &Account, sealing: &Sealing) -> Result<()> {
    let now = text::now_ns();
    let body = sealing.key.wrap(account.vault, &account.recipient, &sealing.signer, now)?;
    let record = record::plain(Kind::DataKey, account.writer(), &body);
    send(link, Message::Put { record })
}

fn tell(report: &mut Report, link: &Link, name: &str, source: &Path, outcome: &Outcome) {
    let (p, at) = (&outcome.progress, &outcome.point.point);
    let changed = p.changed * limits::BLOCK_SIZE as u64;
    report.event(json!({
        "event": "done", "volume": name, "source": source.display().to_string(),
        "point": at.seq, "grade": at.grade.name(), "size": at.size,
        "time": text::time_utc(outcome.receipt), "hash": hash_of(&outcome.point).to_string(),
        "read_bytes": p.read, "changed_bytes": changed,
        "chunks": p.chunks, "chunks_known": p.known, "chunks_sent": p.sent,
        "sent_bytes": p.sent_bytes, "link_sent_bytes": link.tx.sent_bytes(),
    }));
    report.line(&format!(
        "{name}: point {} ({}), {} read, {} changed, {} sent ({} of {} chunks were there already)",
        at.seq,
        at.grade.name(),
        text::size(p.read),
        text::size(changed),
        text::size(p.sent_bytes),
        p.known,
        p.chunks
    ));
}
