//! Questions to the server whose answers are proved before they are used:
//! certificates, volumes, points.
//!
//! Invariant: nothing leaves this file that is not signed by a writer whom the
//! vault's authority has certified, nor a head older than this machine has seen.

use anyhow::Result;
use dormouse_format::message::Message;
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::Volume;
use dormouse_format::{Hash, Seq, VolumeId};
use dormouse_sync::history::{self, Trust};

use crate::connect::{ask, receive, unexpected};
use crate::exit::{Class, Failure};
use crate::files;
use crate::home::{Account, Home};
use crate::link::Link;

const PAGE: u32 = 2000;

/// A volume whose record was verified.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its record.
    pub volume: Volume,
    /// Its newest point, verified.
    pub head: Option<StoredPoint>,
}

/// The writers that the vault's authority has certified.
pub fn trust(link: &Link, account: &Account) -> Result<Trust> {
    let mut trust = Trust::new(account.authority);
    let mut answer = ask(link, Message::GetSmall { kind: Kind::Cert, ids: Vec::new() })?;
    loop {
        match answer {
            Message::Record { record } => trust.add_cert(&record)?,
            Message::Done => return Ok(trust),
            _ => return unexpected("a question for certificates"),
        }
        answer = receive(link, None)?;
    }
}

/// All volumes of the vault.
pub fn volumes(link: &Link, trust: &Trust) -> Result<Vec<Listed>> {
    let Message::Volumes { items } = ask(link, Message::ListVolumes)? else {
        return unexpected("a question for volumes");
    };
    let mut listed = Vec::with_capacity(items.len());
    for item in items {
        let volume = trust.volume(&item.volume)?;
        if let Some(head) = &item.head {
            trust.point(&volume.id, head)?;
        }
        listed.push(Listed { volume, head: item.head });
    }
    listed.sort_by(|a, b| a.volume.name.cmp(&b.volume.name));
    Ok(listed)
}

/// The volume of this name, if the server shows it. A volume that this machine has
/// seen before and that is gone now is an error.
pub fn find_volume(link: &Link, home: &Home, trust: &Trust, name: &str) -> Result<Option<Listed>> {
    let seen = known_volume(home, name)?;
    let found = volumes(link, trust)?.into_iter().find(|l| l.volume.name == name);
    let shown = found.as_ref().map(|l| l.volume.id);
    match (seen, shown) {
        (Some(seen), shown) if shown != Some(seen) => Err(Failure::new(
            Class::Damaged,
            format!("the server does not show volume '{name}' ({seen}) any more"),
        )
        .hint(
            "it may have been put back to an older state, or replaced: look at the server; to \
             give the old volume up, remove the file 'volumes/NAME' in the home",
        )
        .into()),
        _ => Ok(found),
    }
}

/// The volume of this name, which must be there.
pub fn volume(link: &Link, home: &Home, trust: &Trust, name: &str) -> Result<Listed> {
    find_volume(link, home, trust, name)?.ok_or_else(|| {
        Failure::new(Class::NotFound, format!("the server has no volume '{name}' of this vault"))
            .hint("`dormouse volumes` lists those that are there")
            .into()
    })
}

fn known_volume(home: &Home, name: &str) -> Result<Option<VolumeId>> {
    let text = files::read_text(&home.dir().join("volumes").join(name))?;
    Ok(text.and_then(|t| VolumeId::from_hex(t.trim())))
}

/// Remembers the head of a volume, so that a server that goes back is found out.
pub fn remember(home: &Home, volume: &Volume, head: &SignedPoint) -> Result<()> {
    let dir = home.dir().join("volumes");
    files::make_dir(&dir)?;
    if known_volume(home, &volume.name)? != Some(volume.id) {
        files::replace(&dir.join(&volume.name), volume.id.to_string().as_bytes(), 0o600)?;
    }
    home.save_head(&volume.id, head)
}

/// Points of a volume from `from` on, verified one by one and as a chain.
pub fn points(
    link: &Link,
    trust: &Trust,
    volume: &VolumeId,
    from: Seq,
) -> Result<Vec<StoredPoint>> {
    let mut all: Vec<StoredPoint> = Vec::new();
    loop {
        let from = all.last().map_or(from.max(1), |p| p.point().seq + 1);
        let question = Message::ListPoints { volume: *volume, from, limit: PAGE };
        let Message::Points { points } = ask(link, question)? else {
            return unexpected("a question for points");
        };
        let last = points.len() < PAGE as usize;
        let overlap = all.len().saturating_sub(1);
        all.extend(points);
        trust.chain(volume, &all[overlap..])?;
        if last {
            return Ok(all);
        }
    }
}

/// One point, verified.
pub fn point(link: &Link, trust: &Trust, volume: &VolumeId, seq: Seq) -> Result<StoredPoint> {
    let question = Message::ListPoints { volume: *volume, from: seq, limit: 1 };
    let Message::Points { points } = ask(link, question)? else {
        return unexpected("a question for a point");
    };
    match points.first() {
        Some(point) if point.point().seq == seq => {
            trust.point(volume, point)?;
            Ok(*point)
        }
        _ => Err(Failure::new(Class::NotFound, format!("the server has no point {seq}"))
            .hint("`dormouse points VOLUME` lists those that are there")
            .into()),
    }
}

/// Whether a head is as new as what this machine has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is, or goes on from it.
    Proved,
    /// This machine has seen nothing of the volume before.
    Unproven,
}

/// Compares the server's head with the last one that this machine saw, and with the
/// hash that the user expects.
pub fn check_fresh(
    link: &Link,
    home: &Home,
    trust: &Trust,
    volume: &VolumeId,
    head: Option<&StoredPoint>,
) -> Result<Freshness> {
    let Some(seen) = home.last_head(volume)? else { return Ok(Freshness::Unproven) };
    let head_seq = head.map_or(0, |h| h.point().seq);
    if head_seq < seen.point.seq {
        history::check_anchor(Some(&seen), head, None)?;
    }
    // Every point from the one that was seen to the head, each following the one before.
    let span = points(link, trust, volume, seen.point.seq)?;
    history::check_anchor(Some(&seen), head, span.first())?;
    let end = span.iter().find(|p| p.point().seq == head_seq).map(|p| p.signed);
    if end != head.map(|h| h.signed) {
        return Err(dormouse_sync::Error::Fork { seq: head_seq }.into());
    }
    Ok(Freshness::Proved)
}

/// Checks a hash that the user gave with `--expect-head`.
pub fn check_expected(points: &[StoredPoint], expected: &str) -> Result<()> {
    let hash = Hash::from_hex(expected).ok_or_else(|| {
        Failure::new(Class::Usage, format!("'{expected}' is not the hash of a point")).hint(
            "`dormouse points VOLUME --json` and every `mirror` show it: 64 hexadecimal digits",
        )
    })?;
    if points.iter().any(|p| history::hash_of(&p.signed) == hash) {
        return Ok(());
    }
    Err(Failure::new(
        Class::Damaged,
        "the expected point is not in the history that the server shows",
    )
    .hint("the server may have been put back to an older state")
    .into())
}
