//! `dormouse mirror SOURCE --once`: one copy of a file or device, ended by a point.
//!
//! Owns: the order of the steps, and what is told to people and scripts.
//! Invariant: the grade is what was proved about the source; a head that the server
//! has acknowledged is remembered before the command ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use dormouse_crypt::seal::DataKey;
use dormouse_crypt::{OsRandom, Random, record};
use dormouse_format::message::Message;
use dormouse_format::point::{Grade, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::{Volume, name_is_valid};
use dormouse_format::{VolumeId, limits};
use dormouse_sync::copy::{self, Copy, Outcome};
use dormouse_sync::history::hash_of;
use serde_json::json;

use crate::connect::{ask, connect, send, unexpected};
use crate::engine::{self, Sealing};
use crate::exit::{Class, Failure};
use crate::home::{Account, Home};
use crate::link::Link;
use crate::report::Report;
use crate::source::Source;
use crate::{kit, remote, text, volume_name};

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
    /// The zstd level.
    pub level: i32,
    /// Events as JSON lines.
    pub json: bool,
    /// Nothing but errors.
    pub quiet: bool,
}

/// The right to write, and what there is.
struct Opened {
    generation: u64,
    head: Option<StoredPoint>,
    checkpoint: Option<StoredPoint>,
}

/// Runs the command.
pub fn run(home: &Home, options: &Options) -> Result<()> {
    let account = home.account()?;
    let name = options.volume.clone().unwrap_or_else(|| volume_name::of_source(&options.source));
    if !name_is_valid(&name) {
        return Err(Failure::new(Class::Usage, format!("'{name}' cannot name a volume"))
            .hint("use 1 to 64 letters, digits, '.', '_' and '-'")
            .into());
    }
    let _lock = home.lock_named(&format!("volume-{name}"))?;
    let source = Source::open(&options.source)?;
    let mut report = Report::new(options.json, options.quiet);
    if let Some(reminder) = kit::kit_reminder(home) {
        report.note(&reminder);
    }
    let link = connect(&account)?;
    let (volume, outcome) = copy_once(home, &account, &link, &name, &source, options, &mut report)?;
    remote::remember(home, &volume, &outcome.point).with_context(|| {
        let seq = outcome.point.point.seq;
        format!("point {seq} of '{name}' is whole on the server, and cannot be remembered here")
    })?;
    tell(&mut report, &link, &name, &options.source, &outcome);
    if outcome.point.point.grade == Grade::Fuzzy {
        let message = format!(
            "point {} of '{name}' is only fuzzy: {}",
            outcome.point.point.seq,
            source.why_fuzzy()
        );
        return Err(Failure::new(Class::Fuzzy, message)
            .hint(
                "it is not listed by default and no restore chooses it unasked; copy a snapshot, or \
                 an unmounted device, to get a settled point",
            )
            .into());
    }
    Ok(())
}

fn copy_once(
    home: &Home,
    account: &Account,
    link: &Link,
    name: &str,
    source: &Source,
    options: &Options,
    report: &mut Report,
) -> Result<(Volume, Outcome)> {
    let trust = remote::trust(link, account)?;
    let volume = match remote::find_volume(link, home, &trust, name)? {
        Some(listed) => {
            // Before anything is written there.
            remote::check_fresh(link, home, &trust, &listed.volume.id, listed.head.as_ref())?;
            listed.volume
        }
        None => create_volume(link, account, name)?,
    };
    let opened = open_write(link, volume.id, options.takeover)?;
    for stored in opened.head.iter().chain(&opened.checkpoint) {
        trust.point(&volume.id, stored)?;
    }
    remote::check_fresh(link, home, &trust, &volume.id, opened.head.as_ref())?;
    if source.size() > limits::VOLUME_SIZE_MAX {
        return Err(Failure::new(Class::Place, "the source is larger than a volume can be").into());
    }
    report.event(json!({
        "event": "start", "volume": name, "source": options.source.display().to_string(),
        "size": source.size(), "after_point": opened.head.map(|h| h.point().seq),
    }));
    let sealing = sealing(account, volume.id, options.level)?;
    put_key(link, account, &sealing)?;
    let leaves = source.leaf_set()?;
    let total = leaves.count();
    let plan = copy::Plan {
        vault: account.vault,
        volume: volume.id,
        generation: opened.generation,
        head: opened.head,
        checkpoint: opened.checkpoint,
        size: source.size(),
        leaves,
        mode: if options.all { copy::Mode::Check } else { copy::Mode::Scan },
    };
    let mut copy = Copy::new(plan, Arc::clone(&sealing.secrets), Arc::clone(&sealing.signer))?;
    let mut finish = || Ok((source.grade()?, text::now_ns()));
    let outcome = engine::run_copy(link, &mut copy, &sealing, source, &mut finish, &mut |p| {
        report.copying(p, total);
    });
    report.clear();
    Ok((volume, outcome?))
}

/// Creates a volume in the account's vault.
pub fn create_volume(link: &Link, account: &Account, name: &str) -> Result<Volume> {
    let volume = Volume {
        vault: account.vault,
        id: VolumeId(OsRandom.array()),
        writer: account.writer(),
        created: text::now_ns(),
        name: name.to_owned(),
    };
    let body = account.signing.sign_body(&volume);
    match ask(link, Message::CreateVolume { body })? {
        Message::Done => Ok(volume),
        _ => unexpected("the creation of a volume"),
    }
}

fn open_write(link: &Link, volume: VolumeId, takeover: bool) -> Result<Opened> {
    match ask(link, Message::OpenWrite { volume, takeover })? {
        Message::Opened { generation, head, checkpoint } => {
            let checkpoint = checkpoint.or(head);
            Ok(Opened { generation, head, checkpoint })
        }
        _ => unexpected("the opening of a volume"),
    }
}

fn sealing(account: &Account, volume: VolumeId, level: i32) -> Result<Sealing> {
    Ok(Sealing {
        vault: account.vault,
        volume,
        signer: Arc::new(dormouse_crypt::SigningKey::from_seed(*account.signing.seed())?),
        secrets: Arc::new(account.secrets.clone()),
        key: Arc::new(DataKey::generate(&mut OsRandom)?),
        level,
    })
}

/// Puts the session's data key, wrapped to the recipient, before anything it seals.
fn put_key(link: &Link, account: &Account, sealing: &Sealing) -> Result<()> {
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
