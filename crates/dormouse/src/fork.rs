//! `dormouse fork`: a new volume that begins as another is, or was.
//!
//! Invariant: the fork's first point has the origin's content under a root of its own, signed
//! here and compared by the server. Nothing is read or sent but what changed since the origin's
//! last checkpoint, so it takes no time, whatever the size. What was cut off goes on with the
//! same command.

use anyhow::Result;
use dormouse_crypt::{OsRandom, Random};
use dormouse_format::VolumeId;
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_format::vault::{Origin, Volume};
use dormouse_sync::checkpoint::{self, Checkpoint};
use dormouse_sync::history::hash_of;
use serde_json::json;
use std::sync::Arc;

use crate::connect::{ask, unexpected};
use crate::engine;
use crate::exit::{Class, Failure};
use crate::home::{Account, Anchor, Home};
use crate::link::Link;
use crate::remote::{Freshness, Session, Span};
use crate::report::Report;
use crate::when::{self, VolumeAt};
use crate::{text, volume_name};

/// Runs the command.
pub fn run(home: &Home, what: &VolumeAt, name: &str, fuzzy: bool, json: bool) -> Result<()> {
    let mut report = Report::new(json, false);
    make(home, what, name, fuzzy, &mut report)?;
    report.said()
}

/// Makes a fork.
pub fn make(
    home: &Home,
    what: &VolumeAt,
    name: &str,
    fuzzy: bool,
    report: &mut Report,
) -> Result<()> {
    volume_name::check(name)?;
    let _lock = home.lock_named(&format!("volume-{name}"))?;
    let account = home.account()?;
    let mut session = Session::open(home, &account, None, Span::All)?;
    let of = session.volume(&what.volume)?.volume.clone();
    let (points, fresh) = session.history(&of.id)?;
    if fresh == Freshness::Unproven {
        report.note(Freshness::UNPROVEN);
    }
    let point = points[when::resolve(&points, &what.when, text::now_ns(), fuzzy)?];
    let p = *point.point();
    let base = points.iter().find(|c| c.point().seq == p.checkpoint);
    let checkpoint = *base
        .ok_or(dormouse_sync::Error::Point { seq: p.seq, why: "its checkpoint is not there" })?;
    let hash = hash_of(&point.signed);
    let origin = Origin { tags: of.tags(), volume: of.id, seq: p.seq, hash };
    let (volume, new) = the_fork(&session, &account, name, origin)?;
    let link = session.link;
    let first = begin(&link, &account, &volume, new, (point, checkpoint))?;
    home.remember(&volume, &first)?;
    report.event(json!({
        "event": "done", "volume": name, "origin": of.name, "origin_point": p.seq,
        "size": p.size, "point": first.head.point.seq, "grade": p.grade.name(),
    }));
    let (at, size) = (text::time_local(point.receipt), text::size(p.size));
    let grade = p.grade.name();
    report.line(&format!(
        "'{name}' begins as '{}' at point {} of {at} ({grade}, {size})",
        of.name, p.seq
    ));
    Ok(())
}

/// Whether the fork was made before, with a point of its own: of this volume, or an error.
pub fn is_there(home: &Home, what: &VolumeAt, name: &str) -> Result<bool> {
    let account = home.account()?;
    let session = Session::open(home, &account, None, Span::Seen)?;
    let Some(there) = session.find(name) else { return Ok(false) };
    let of = session.volume(&what.volume)?.volume.id;
    match there.volume.origin {
        Some(origin) if origin.volume == of => Ok(there.head.is_some()),
        _ => Err(taken(name)),
    }
}

fn taken(name: &str) -> anyhow::Error {
    Failure::new(Class::InUse, format!("volume '{name}' is there already"))
        .hint("`dormouse volumes` lists all; choose another name")
        .into()
}

/// The fork's record; one that was made, and got no point yet, is taken up again.
fn the_fork(
    session: &Session<'_>,
    account: &Account,
    name: &str,
    origin: Origin,
) -> Result<(Volume, bool)> {
    match session.find(name) {
        None => {
            let volume = Volume {
                vault: account.vault,
                id: VolumeId(OsRandom.array()),
                writer: account.writer(),
                created: text::now_ns(),
                name: name.to_owned(),
                origin: Some(origin),
            };
            Ok((volume, true))
        }
        Some(there) if there.head.is_none() && there.volume.origin == Some(origin) => {
            Ok((there.volume.clone(), false))
        }
        Some(_) => Err(taken(name)),
    }
}

/// Makes the fork's first point.
fn begin(
    link: &Link,
    account: &Account,
    volume: &Volume,
    new: bool,
    (head, checkpoint): (StoredPoint, StoredPoint),
) -> Result<Anchor> {
    if new {
        let body = account.signing.sign_body(volume);
        match ask(link, Message::CreateVolume { body })? {
            Message::Done => {}
            _ => return unexpected("the creation of a volume"),
        }
    }
    let open = Message::OpenWrite { volume: volume.id, takeover: false };
    let Message::Opened { generation, head: None, .. } = ask(link, open)? else {
        return unexpected("the opening of a new volume");
    };
    let (grade, time) = (head.point().grade, text::now_ns());
    let plan =
        checkpoint::Plan { generation, head, checkpoint, grade, time, fork: Some(volume.id) };
    let signer = Arc::new(dormouse_crypt::SigningKey::from_seed(*account.signing.seed())?);
    let mut run = Checkpoint::new(plan, signer)?;
    let (point, _) = engine::run_checkpoint(link, &mut run, &mut || Ok(()))?;
    Ok(Anchor { head: point, vouched: true })
}
