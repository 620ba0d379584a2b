//! The point that VOLUME@WHEN names, found on a session and proved.
//!
//! Invariant: what is here was verified: the point's signature, its place in the chain, and
//! that the server's head is no older than this machine knows. Leaves to others: what is done
//! with the point.

use std::sync::Arc;

use anyhow::Result;
use dormouse_crypt::Identity;
use dormouse_format::VolumeId;
use dormouse_format::point::StoredPoint;
use dormouse_sync::history::{Trust, hash_of};
use serde_json::json;

use crate::home::{Account, Home};
use crate::link::Link;
use crate::remote::{Freshness, Session, Span};
use crate::report::Report;
use crate::text;
use crate::unread;
use crate::when::{self, VolumeAt};

/// A point that can be fetched, and the means.
pub struct Chosen {
    /// The link on which it was found; nothing is open on it.
    pub link: Link,
    /// This machine's keys.
    pub account: Account,
    /// Certified writers.
    pub trust: Arc<Trust>,
    /// What opens data keys.
    pub identity: Arc<Identity>,
    /// The volume.
    pub volume: VolumeId,
    /// The volume in its tags; another one, if it is a fork.
    pub tags: VolumeId,
    /// The point.
    pub point: StoredPoint,
    /// The checkpoint that it builds on; itself if it is one.
    pub checkpoint: StoredPoint,
    /// All points up to it.
    pub history: Vec<StoredPoint>,
    /// Whether the history goes on from what this machine knows.
    pub fresh: Freshness,
}

/// How a point is chosen.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// Fuzzy points may be chosen.
    pub fuzzy: bool,
    /// The hash of a point that must be in the history.
    pub expect_head: Option<&'a str>,
}

/// Connects, proves the volume's history, and picks the point; says which.
pub fn choose(home: &Home, what: &VolumeAt, how: How<'_>, report: &mut Report) -> Result<Chosen> {
    let account = home.account()?;
    let identity = Arc::new(home.identity()?);
    let name = &what.volume;
    let mut session = Session::open(home, &account, Some(name), Span::All)?;
    let listed = session.volume(name)?.volume.clone();
    let (volume, tags) = (listed.id, listed.tags());
    let (mut points, fresh) = match how.expect_head {
        Some(hash) => session.history_with(&volume, hash)?,
        None => session.history(&volume)?,
    };
    let Session { link, trust, .. } = session;
    match (fresh, how.expect_head) {
        (Freshness::Proved, _) => {}
        (Freshness::Unproven, None) => report.note(Freshness::UNPROVEN),
        (Freshness::Unproven, Some(_)) => report.note(
            "freshness unproven: this machine knows a newer or another head of the volume, which \
             this history does not hold",
        ),
    }
    let at = when::resolve(&points, &what.when, text::now_ns(), how.fuzzy)?;
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
    unread::tell(&link, &trust, (&listed, &p), report)?;
    let trust = Arc::new(trust);
    points.truncate(at + 1);
    Ok(Chosen {
        link,
        account,
        trust,
        identity,
        volume,
        tags,
        point,
        checkpoint,
        history: points,
        fresh,
    })
}
