//! Questions to the server whose answers are proved before they are used:
//! certificates, volumes, points.
//!
//! Invariant: nothing leaves this file that is not signed by a writer whom the
//! vault's authority has certified, nor a head older than this machine has seen.

mod gaps;

use std::collections::HashMap;

use anyhow::Result;
use dormouse_format::message::Message;
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::Volume;
use dormouse_format::{Hash, Seq, VolumeId};
use dormouse_sync::history::{self, Points, Proof, Trust};
use dormouse_sync::live::Away;

use crate::connect::{ask, connect_asking, receive, receive_of, unexpected};
use crate::exit::{Class, Failure};
use crate::home::{Account, Anchor, Home};
use crate::link::Link;
use crate::out::note;
use crate::patience::Patience;

/// A volume whose record was verified.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its record.
    pub volume: Volume,
    /// Its newest point, verified.
    pub head: Option<StoredPoint>,
}

/// Which points a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// All of them.
    All,
    /// From the last one on that this machine saw: they prove that the head is fresh.
    Seen,
}

/// A link, and what the server showed on it.
///
/// What every command needs is asked for with the greeting, in one flight: certificates,
/// volumes, and points of those volumes that this machine has seen before.
#[derive(Debug)]
pub struct Session<'a> {
    home: &'a Home,
    /// The link.
    pub link: Link,
    /// The writers that the vault's authority has certified.
    pub trust: Trust,
    volumes: Vec<Listed>,
    /// What this machine had seen before it asked. Another process of it, which mirrors, may
    /// have seen more by the time of the answer.
    seen: HashMap<VolumeId, Option<Anchor>>,
    /// Answers about points, not verified yet, and from which point on they were asked for.
    ahead: HashMap<VolumeId, (Seq, Result<Message>)>,
}

impl<'a> Session<'a> {
    /// Connects. With a name, points are asked for of that volume alone.
    ///
    /// A volume that this machine has seen before and that is gone now is an error.
    pub fn open(home: &'a Home, account: &Account, name: Option<&str>, span: Span) -> Result<Self> {
        let known = known_volumes(home, name)?;
        let mut asked = Vec::new();
        let mut seen = HashMap::new();
        for (_, id) in &known {
            let anchor = home.anchor(id)?;
            seen.insert(*id, anchor);
            match (span, anchor) {
                (Span::All, _) => asked.push((*id, 1)),
                (Span::Seen, Some(seen)) => asked.push((*id, seen.head.point.seq)),
                (Span::Seen, None) => {}
            }
        }
        let mut questions =
            vec![Message::GetSmall { kind: Kind::Cert, ids: Vec::new() }, Message::ListVolumes];
        questions.extend(asked.iter().map(|(id, from)| Points::question(*id, *from)));
        let link = connect_asking(account, questions)?;
        let trust = trust(&link, account)?;
        let volumes = volumes(&link, &trust)?;
        // An error among these counts only if the volume is there.
        let ahead = asked.into_iter().map(|(id, from)| (id, (from, receive(&link)))).collect();
        let session = Self { home, link, trust, volumes, seen, ahead };
        for (name, id) in known {
            if session.find(&name).is_none_or(|l| l.volume.id != id) {
                return Err(Failure::new(
                    Class::Damaged,
                    format!("the server does not show volume '{name}' ({id}) any more"),
                )
                .hint(
                    "it may have been put back to an older state, or replaced: look at the \
                     server; to give the old volume up, remove the file 'volumes/NAME' in the home, then \
                     `dormouse status --accept-state`",
                )
                .away(Away::LostHistory)
                .into());
            }
        }
        Ok(session)
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> &[Listed] {
        &self.volumes
    }

    /// The volume of this name, if there is one.
    pub fn find(&self, name: &str) -> Option<&Listed> {
        self.volumes.iter().find(|l| l.volume.name == name)
    }

    /// The volume of this name, which must be there.
    pub fn volume(&self, name: &str) -> Result<&Listed> {
        self.find(name).ok_or_else(|| {
            let message = format!("the server has no volume '{name}' of this vault");
            Failure::new(Class::NotFound, message)
                .hint("`dormouse volumes` lists those that are there")
                .into()
        })
    }

    /// The head that is the least to be shown.
    fn anchor(&self, volume: &VolumeId) -> Result<Option<Anchor>> {
        self.seen.get(volume).map_or_else(|| self.home.anchor(volume), |seen| Ok(*seen))
    }

    /// Points of a volume from `from` on, verified one by one and as a chain that begins
    /// there and holds the head that was shown before. Where some have expired, what is left
    /// leads on from before them, and from `seen`.
    fn points_from(
        &mut self,
        volume: &VolumeId,
        from: Seq,
        seen: Option<SignedPoint>,
    ) -> Result<(Vec<StoredPoint>, Proof)> {
        let mut all = Points::from(&self.trust, *volume, from).after(seen);
        let mut answer = match self.ahead.remove(volume) {
            Some((asked, answer)) if asked == from => answer?,
            _ => ask(&self.link, all.next())?,
        };
        loop {
            let Message::Points { points } = answer else {
                return unexpected("a question for points");
            };
            if all.add(&points)? {
                break;
            }
            answer = ask(&self.link, all.next())?;
        }
        let proof = gaps::prove(&self.link, &self.trust, *volume, &mut all)?;
        let listed = self.volumes.iter().find(|l| l.volume.id == *volume);
        gaps::tell(listed.map_or("", |l| &l.volume.name), &proof);
        Ok((all.done(listed.and_then(|l| l.head.as_ref()))?, proof))
    }

    /// All points of a volume, verified, and whether they go on from what this machine knows.
    pub fn history(&mut self, volume: &VolumeId) -> Result<(Vec<StoredPoint>, Freshness)> {
        let anchor = self.anchor(volume)?;
        let (points, proof) = self.points_from(volume, 1, anchor.map(|a| a.head))?;
        if let Some(anchor) = anchor.as_ref().filter(|_| proof.seen.is_none()) {
            let from = points.partition_point(|p| p.point().seq < anchor.head.point.seq);
            self.goes_on(anchor, &points[from..], points.last())?;
        }
        let vouched = anchor.is_some_and(|a| a.vouched);
        self.saw(volume, anchor, points.last(), vouched);
        Ok((points, Freshness::of(vouched)))
    }

    /// All points of a volume, verified, among them the one with the hash that the user gave.
    /// It is taken also if this machine knows of a newer or another head, but then it is not
    /// fresh, and what this machine knows stays: that is given up by hand only.
    pub fn history_with(
        &mut self,
        volume: &VolumeId,
        hash: &str,
    ) -> Result<(Vec<StoredPoint>, Freshness)> {
        let (points, _) = self.points_from(volume, 1, None)?;
        check_expected(&points, hash)?;
        let anchor = self.anchor(volume)?;
        let holds = |a: Anchor| points.iter().any(|p| p.signed == a.head);
        if !anchor.is_none_or(holds) {
            return Ok((points, Freshness::Unproven));
        }
        if anchor.is_none_or(|anchor| !anchor.vouched) {
            self.saw(volume, None, points.last(), true);
        }
        Ok((points, Freshness::Proved))
    }

    /// Compares the server's head with the last one that this machine knows.
    pub fn check_fresh(
        &mut self,
        volume: &VolumeId,
        head: Option<&StoredPoint>,
    ) -> Result<Freshness> {
        let anchor = self.anchor(volume)?;
        if let Some(anchor) = &anchor {
            // What is older needs no more questions.
            let older = head.is_none_or(|h| h.point().seq < anchor.head.point.seq);
            let from = anchor.head.point.seq;
            let (span, proof) = match older {
                true => (Vec::new(), Proof::default()),
                false => self.points_from(volume, from, Some(anchor.head))?,
            };
            if proof.seen.is_none() {
                self.goes_on(anchor, &span, head)?;
            }
        }
        let vouched = anchor.is_some_and(|a| a.vouched);
        self.saw(volume, anchor, head, vouched);
        Ok(Freshness::of(vouched))
    }

    /// Remembers the head that was proved to go on from `anchor`, if it is a newer one.
    fn saw(
        &self,
        volume: &VolumeId,
        anchor: Option<Anchor>,
        head: Option<&StoredPoint>,
        vouched: bool,
    ) {
        let listed = self.volumes.iter().find(|l| l.volume.id == *volume);
        let newer =
            |head: &&StoredPoint| anchor.is_none_or(|a| head.point().seq > a.head.point.seq);
        if let Some((listed, head)) = listed.zip(head.filter(newer))
            && let Err(error) =
                self.home.remember(&listed.volume, &Anchor { head: head.signed, vouched })
        {
            note!("what the server showed cannot be remembered here: {error:#}");
        }
    }

    /// [`goes_on`], with the way out.
    fn goes_on(
        &self,
        anchor: &Anchor,
        span: &[StoredPoint],
        head: Option<&StoredPoint>,
    ) -> Result<()> {
        let Err(error) = goes_on(&anchor.head, span, head) else { return Ok(()) };
        let volume = &anchor.head.point.volume;
        let known = self.home.anchor_path(volume, anchor.vouched);
        let mut hint =
            "the server's store may have been put back to an older state: look there first."
                .to_owned();
        if let Some(head) = head {
            hint += &format!(
                "\nTo take back what it still has: restore or verify with\n  --expect-head {}",
                history::hash_of(&head.signed)
            );
        }
        hint += &format!(
            "\nTo go on from there with new copies, remove {}\n  and run `dormouse status --accept-state`",
            known.display()
        );
        Err(Failure::new(Class::Damaged, error.to_string())
            .hint(hint)
            .away(Away::LostHistory)
            .into())
    }

    /// The checkpoint that a verified point builds on, verified.
    pub fn checkpoint(&self, volume: &VolumeId, point: &StoredPoint) -> Result<StoredPoint> {
        if point.point().is_checkpoint() {
            return Ok(*point);
        }
        let seq = point.point().checkpoint;
        let question = Message::ListPoints { volume: *volume, from: seq, limit: 1 };
        let Message::Points { points } = ask(&self.link, question)? else {
            return unexpected("a question for a point");
        };
        let found = points.first().filter(|p| p.point().seq == seq);
        let found = *found.ok_or(dormouse_sync::Error::Point {
            seq,
            why: "a later one builds on it, and it is not there",
        })?;
        self.trust.point(volume, &found)?;
        Ok(found)
    }
}

/// The writers that the vault's authority has certified, from the answers that come now.
fn trust(link: &Link, account: &Account) -> Result<Trust> {
    let mut trust = Trust::new(account.authority);
    let patience = Patience::new(link);
    loop {
        match receive_of(link, &patience)? {
            Message::Record { record } => trust.offer_cert(&record)?,
            Message::Done => return Ok(trust),
            _ => return unexpected("a question for certificates"),
        }
    }
}

/// All volumes of the vault, from the answer that comes now.
fn volumes(link: &Link, trust: &Trust) -> Result<Vec<Listed>> {
    let Message::Volumes { items } = receive(link)? else {
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

/// Names and ids of volumes that this machine has seen: of one, or of all.
fn known_volumes(home: &Home, name: Option<&str>) -> Result<Vec<(String, VolumeId)>> {
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => home.known_volumes()?,
    };
    let mut known = Vec::with_capacity(names.len());
    for name in names {
        if let Some(id) = home.known_volume(&name)? {
            known.push((name, id));
        }
    }
    Ok(known)
}

/// Whether a head is as new as what this machine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is, or goes on from it.
    Proved,
    /// This machine has made no point of the volume, and was told of none: what the server
    /// showed it first may have been old already.
    Unproven,
}

impl Freshness {
    const fn of(vouched: bool) -> Self {
        if vouched { Self::Proved } else { Self::Unproven }
    }

    /// What is said of it to people.
    pub const UNPROVEN: &str = "freshness unproven: this machine has made no point of this volume, \
                                so a server that has hidden its newest points since before this \
                                machine first asked is not noticed (--expect-head HASH makes it sure)";
}

/// That `span`, which begins with the point that this machine saw last, leads to `head`.
/// Its points were verified as a chain.
fn goes_on(
    seen: &SignedPoint,
    span: &[StoredPoint],
    head: Option<&StoredPoint>,
) -> dormouse_sync::error::Result<()> {
    history::check_anchor(Some(seen), head, span.first())?;
    let head_seq = head.map_or(0, |h| h.point().seq);
    let end = span.iter().find(|p| p.point().seq == head_seq).map(|p| p.signed);
    if end != head.map(|h| h.signed) {
        return Err(dormouse_sync::Error::Fork { seq: head_seq });
    }
    Ok(())
}

/// Checks a hash that the user gave with `--expect-head`.
fn check_expected(points: &[StoredPoint], expected: &str) -> Result<()> {
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
    .hint("the server's store may have been put back to an older state: look there first")
    .into())
}
