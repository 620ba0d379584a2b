//! What is kept: `retention`, `prune`, `delete`, `undelete`.
//!
//! Owns: the ways to who keeps the store (over a link, as an administrator; or on the store's own
//! machine, as who runs it), and what people see. Invariant: both ways ask the same engine the
//! same questions. Leaves to others: what goes (`dormouse_store`), and who may
//! (`dormouse_sync::server`).

pub mod clock;
pub mod local;
pub mod orders;
mod tell;

use std::path::PathBuf;

use anyhow::{Context, Result};
use dormouse_format::keeping::{Deletion, Retention};
use dormouse_format::limits::POINTS_MAX;
use dormouse_format::message::{Keep, Kept, Message};
use dormouse_format::point::StoredPoint;
use dormouse_format::{Seq, TimeNs, VolumeId};
use dormouse_store::retention::Policy;
use jiff::tz::TimeZone;

use crate::connect::{ask, unexpected};
use crate::exit::{Class, Failure, fail};
use crate::home::Home;
use crate::link::Link;
use crate::out::{note, say};
use crate::remote::{Session, Span};
use crate::text::{now_ns, time_local};
use crate::when::{self, Moment};
use local::Local;
pub use tell::what;

/// Where the store is.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Its directory, for who runs it; none: what this home has joined.
    pub store: Option<PathBuf>,
    /// How the vault's id begins, if a store has several.
    pub vault: Option<String>,
}

/// A way to a vault.
enum Keeper<'a> {
    Link(Box<Session<'a>>),
    Local(Local),
}

/// A volume's id and name.
type Named = (VolumeId, String);

impl<'a> Keeper<'a> {
    fn all(home: &'a Home, place: &Place) -> Result<Vec<Self>> {
        let vault = place.vault.as_deref();
        if let Some(store) = &place.store {
            return Ok(Local::all(store, vault)?.into_iter().map(Self::Local).collect());
        }
        let session = Session::open(home, &home.account()?, None, Span::Seen)?;
        Ok(vec![Self::Link(Box::new(session))])
    }

    fn ask(&self, question: Keep) -> Result<Message> {
        let answer = match self {
            Self::Link(session) => ask(&session.link, Message::Keep(question)),
            Self::Local(local) => local
                .ask(Message::Keep(question))
                .and_then(|answers| answers.into_iter().next().context("there was no answer")),
        };
        // A conflict with what stays is none with another writer.
        answer.map_err(|error| match error.downcast::<Failure>() {
            Ok(failure) if failure.class == Class::InUse && failure.hint.is_some() => {
                failure.hint("nothing was changed").into()
            }
            Ok(failure) => failure.into(),
            Err(error) => error,
        })
    }

    fn volumes(&self) -> Result<Vec<Named>> {
        let mut all: Vec<Named> = match self {
            Self::Link(session) => {
                let named = session.volumes().iter();
                named.map(|l| (l.volume.id, l.volume.name.clone())).collect()
            }
            Self::Local(local) => {
                let answers = local.ask(Message::ListVolumes)?;
                let Some(Message::Volumes { items }) = answers.into_iter().next() else {
                    return unexpected("a question for volumes");
                };
                // Whoever runs the store reads the names without keys.
                let name = |body: &[u8]| {
                    let (volume, ..) =
                        <dormouse_format::vault::Volume as dormouse_format::vault::Signed>::decode(
                            body,
                        )?;
                    Ok((volume.id, volume.name))
                };
                items.iter().map(|item| name(&item.volume)).collect::<Result<_>>()?
            }
        };
        all.sort_by(|a, b| a.1.cmp(&b.1));
        Ok(all)
    }

    fn points(&mut self, volume: &VolumeId) -> Result<Vec<StoredPoint>> {
        let local = match self {
            Self::Link(session) => return Ok(session.history(volume)?.0),
            Self::Local(local) => local,
        };
        let mut all: Vec<StoredPoint> = Vec::new();
        loop {
            let (volume, from) = (*volume, all.last().map_or(1, |p| p.point().seq + 1));
            let question = Message::ListPoints { volume, from, limit: POINTS_MAX as u32 };
            match local.ask(question)?.into_iter().next() {
                Some(Message::Points { points }) if points.is_empty() => return Ok(all),
                Some(Message::Points { points }) => all.extend(points),
                _ => return unexpected("a question for points"),
            }
        }
    }

    fn told(&self) -> Result<Told> {
        told(self.ask(Keep::GetRetention)?)
    }

    fn prefix(&self, several: bool) -> String {
        match self {
            Self::Local(local) if several => format!("{}/", &local.vault().to_string()[..12]),
            _ => String::new(),
        }
    }
}

/// What is set in a vault.
#[derive(Debug, Default)]
pub struct Told {
    /// Policies: what holds, and what will.
    pub settings: Vec<Retention>,
    /// Deletions that have not happened.
    pub deletions: Vec<Deletion>,
    /// Why nothing expires; empty if nothing is wrong.
    pub doubt: String,
}

impl Told {
    /// When this volume, or this point of it, is deleted, if it is to be.
    pub fn deletion(&self, volume: &VolumeId, seq: Option<Seq>) -> Option<TimeNs> {
        let holds = |d: &&Deletion| {
            d.volume == *volume
                && match (d.points, seq) {
                    (None, _) => true,
                    (Some((first, last)), Some(seq)) => (first..=last).contains(&seq),
                    (Some(_), None) => false,
                }
        };
        self.deletions.iter().filter(holds).map(|d| d.effective).min()
    }
}

fn told(answer: Message) -> Result<Told> {
    match answer {
        Message::Kept(Kept::Retention { settings, deletions, doubt }) => {
            Ok(Told { settings, deletions, doubt })
        }
        _ => unexpected("a question for retention"),
    }
}

/// What is set, over a link.
pub fn told_by(link: &Link) -> Result<Told> {
    told(ask(link, Message::Keep(Keep::GetRetention))?)
}

/// The vault that has the volume, and the volume.
fn find<'a>(keepers: Vec<Keeper<'a>>, name: &str) -> Result<(Keeper<'a>, VolumeId)> {
    let mut found = None;
    for keeper in keepers {
        let Some((id, _)) = keeper.volumes()?.into_iter().find(|(_, n)| n == name) else {
            continue;
        };
        if found.replace((keeper, id)).is_some() {
            return fail(
                Class::Usage,
                format!("several vaults have a volume '{name}'"),
                "say which: --vault, with the first digits of its id",
            );
        }
    }
    found.ok_or_else(|| {
        Failure::new(Class::NotFound, format!("there is no volume '{name}'"))
            .hint("`dormouse volumes` lists those that are there")
            .into()
    })
}

/// Of `retention`.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The volume; none: all, or the default.
    pub volume: Option<String>,
    /// The default is meant.
    pub default: bool,
    /// What is set; none: it is shown.
    pub policy: Option<String>,
    /// How long what held before holds on.
    pub grace: String,
}

/// `dormouse retention`.
pub fn retention(home: &Home, place: &Place, setting: &Setting, json: bool) -> Result<()> {
    let keepers = Keeper::all(home, place)?;
    let Some(text) = &setting.policy else {
        return tell::settings(&keepers, setting.volume.as_deref(), json);
    };
    let policy = read_policy(text)?;
    let grace = when::duration_ns(&setting.grace)?;
    let (keepers, volume) = match &setting.volume {
        Some(name) => {
            let (keeper, id) = find(keepers, name)?;
            (vec![keeper], id)
        }
        None => (keepers, VolumeId::ZERO),
    };
    for keeper in &keepers {
        let policy = policy.as_ref().map(ToString::to_string).unwrap_or_default();
        let done = keeper.ask(Keep::SetRetention { volume, policy, grace })?;
        expect_done(&done)?;
    }
    let what = setting.volume.as_deref().unwrap_or("the default");
    let kept = policy.map_or_else(|| "none".to_owned(), |p| p.to_string());
    let until = time_local(now_ns().saturating_add(grace));
    say!("{what}: {kept}\nuntil {until} what was set before keeps what it keeps, too")
}

fn read_policy(text: &str) -> Result<Option<Policy>> {
    if text == "none" {
        return Ok(None);
    }
    let policy = text.parse().map_err(|e| {
        Failure::new(Class::Usage, format!("'{text}' is no retention policy: {e}"))
            .hint("such as all:24h,hourly:7d,daily:30d,weekly:1y; or none")
    })?;
    Ok(Some(policy))
}

fn expect_done(answer: &Message) -> Result<()> {
    match answer {
        Message::Done => Ok(()),
        _ => unexpected("an order about what is kept"),
    }
}

/// Of `prune`.
#[derive(Debug, Clone, Copy)]
pub struct Pruning<'a> {
    /// The volume; none: all.
    pub volume: Option<&'a str>,
    /// It is only said what would go.
    pub dry_run: bool,
    /// The server's clock is right.
    pub clock_is_right: bool,
}

/// `dormouse prune`.
pub fn prune(home: &Home, place: &Place, how: Pruning<'_>, json: bool) -> Result<()> {
    let keepers = Keeper::all(home, place)?;
    let several = keepers.len() > 1;
    let (mut rows, mut gains) = (Vec::new(), Vec::new());
    for keeper in &keepers {
        let (first, mut one) = (rows.len(), None);
        let named = keeper.volumes()?.into_iter();
        for (volume, name) in named.filter(|(_, n)| how.volume.is_none_or(|name| name == n)) {
            one = how.volume.map(|_| volume);
            let (apply, clock_is_right) = (!how.dry_run, how.clock_is_right);
            let answer = keeper.ask(Keep::Prune { volume, apply, clock_is_right })?;
            let Message::Kept(Kept::Pruned { points, gone, ranges, note }) = answer else {
                return unexpected("a question for what expires");
            };
            let name = keeper.prefix(several) + &name;
            rows.push(tell::Pruned { name, points, gone, ranges, note, gain: None });
        }
        if how.dry_run && rows[first..].iter().any(|row| row.gone > 0) {
            let gain = tell::Gain::of(keeper, one.unwrap_or(VolumeId::ZERO), several);
            rows[first..].iter_mut().for_each(|row| row.gain = gain.bytes);
            gains.push(gain);
        }
    }
    if rows.is_empty()
        && let Some(name) = how.volume
    {
        find(keepers, name)?;
    }
    tell::pruned(&rows, &gains, how.dry_run, json)
}

/// `dormouse delete VOLUME[@WHEN..WHEN]`.
pub fn delete(home: &Home, place: &Place, what: &str, grace: &str) -> Result<()> {
    let (name, range) = when::split_range(what)?;
    let grace = when::duration_ns(grace)?;
    let (mut keeper, volume) = find(Keeper::all(home, place)?, &name)?;
    let points = match &range {
        None => None,
        Some((from, to)) => Some(pick(&keeper.points(&volume)?, from, to)?),
    };
    expect_done(&keeper.ask(Keep::Delete { volume, points, grace })?)?;
    let what = match points {
        None => format!("volume '{name}', with its whole history,"),
        Some((first, last)) if first == last => format!("point {first} of '{name}'"),
        Some((first, last)) => format!("points {first} to {last} of '{name}'"),
    };
    let at = time_local(now_ns().saturating_add(grace));
    say!("{what} will be deleted at {at}")?;
    note!("until then `dormouse undelete {name}` takes it back");
    Ok(())
}

/// The points that a range means: numbers, or times of receipt.
fn pick(points: &[StoredPoint], from: &str, to: &str) -> Result<(Seq, Seq)> {
    let (now, zone) = (now_ns(), TimeZone::system());
    // A day begins at its beginning here, and ends at its end.
    let from =
        if from.len() == 10 && from.contains('-') { format!("{from}T00:00") } else { from.into() };
    let bound = |text: &str| when::parse(Some(text), now, &zone);
    let after = |p: &StoredPoint, bound: Moment| match bound {
        Moment::Seq(seq) => p.point().seq >= seq,
        Moment::NotAfter(time) => p.receipt >= time,
        Moment::Latest => false,
    };
    let before = |p: &StoredPoint, bound: Moment| match bound {
        Moment::Seq(seq) => p.point().seq <= seq,
        Moment::NotAfter(time) => p.receipt <= time,
        Moment::Latest => true,
    };
    let (low, high) = (bound(&from)?, bound(to)?);
    let mut named =
        points.iter().filter(|p| after(p, low) && before(p, high)).map(|p| p.point().seq);
    let first = named.next();
    let Some(first) = first else {
        return fail(
            Class::NotFound,
            format!("there is no point from {from} to {to}"),
            "`dormouse points VOLUME` shows all",
        );
    };
    Ok((first, named.next_back().unwrap_or(first)))
}

/// `dormouse undelete VOLUME`.
pub fn undelete(home: &Home, place: &Place, name: &str) -> Result<()> {
    let (keeper, volume) = find(Keeper::all(home, place)?, name)?;
    expect_done(&keeper.ask(Keep::Undelete { volume })?)?;
    say!("nothing of '{name}' will be deleted")
}

#[cfg(test)]
mod tests;
