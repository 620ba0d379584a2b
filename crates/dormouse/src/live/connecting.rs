//! Reaching the server: in a thread of its own, because names, routes and servers take their time.
//!
//! Invariant: what comes back was proved fresh, and the volume is open for writing.

use std::sync::Arc;

use anyhow::Result;
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_format::vault::Volume;

use crate::connect::{ask, unexpected};
use crate::daemon::config::MirrorConfig;
use crate::engine::Sealing;
use crate::home::{Account, Home};
use crate::link::Link;
use crate::mirror::{self, Found};
use crate::pace::Pace;
use crate::remote::{Session, Span};
use crate::writing;

/// Points that are looked through for the newest consistent one.
const LOOK_BACK: u64 = 200;

/// A volume that is open for writing.
pub(super) struct Opened {
    pub(super) link: Link,
    pub(super) volume: Volume,
    pub(super) generation: u64,
    pub(super) head: Option<StoredPoint>,
    pub(super) checkpoint: Option<StoredPoint>,
    /// The newest one that is not fuzzy, as far as was looked.
    pub(super) consistent: Option<StoredPoint>,
    pub(super) sealing: Sealing,
}

/// Connects, finds the volume or makes it, and opens it for writing.
pub(super) fn open(
    home: &Home,
    account: &Account,
    config: &MirrorConfig,
    takeover: bool,
    pace: Option<Arc<Pace>>,
) -> Result<Opened> {
    let mut session = Session::open(home, account, Some(&config.volume), Span::Seen)?;
    let Found { volume, head, checkpoint, new } =
        mirror::find(&mut session, account, &config.volume)?;
    let link = session.link;
    if new {
        writing::create_volume(&link, account, &volume)?;
    }
    let generation = writing::open_write(&link, &volume, head.as_ref(), takeover)?;
    let consistent = newest_consistent(&link, &volume, head.as_ref())?;
    let mut sealing = mirror::sealing(account, volume.tags(), config.level)?;
    sealing.pace = pace;
    mirror::put_key(&link, account, &sealing)?;
    Ok(Opened { link, volume, generation, head, checkpoint, consistent, sealing })
}

/// For what is shown only: these points are not verified here.
fn newest_consistent(
    link: &Link,
    volume: &Volume,
    head: Option<&StoredPoint>,
) -> Result<Option<StoredPoint>> {
    let Some(head) = head else { return Ok(None) };
    if head.point().grade.consistent() {
        return Ok(Some(*head));
    }
    let from = head.point().seq.saturating_sub(LOOK_BACK).max(1);
    let limit = LOOK_BACK as u32;
    match ask(link, Message::ListPoints { volume: volume.id, from, limit })? {
        Message::Points { points } => {
            Ok(points.into_iter().rev().find(|p| p.point().grade.consistent()))
        }
        _ => unexpected("a question for points"),
    }
}
