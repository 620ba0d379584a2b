//! A volume's points, page by page, and what leads over those that expired.
//!
//! Invariant: what [`Points::done`] gives is a history that certified writers signed: each point
//! follows the one before by its hash; or those between have expired, the server says so, and
//! bridges lead from the checkpoint before to the point behind, which is a checkpoint. Gaps
//! without a bridge count only where no bridge had been made yet, and are told of.

use dormouse_format::limits::POINTS_MAX;
use dormouse_format::message::{Keep, Message};
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::seeded::seeded;
use dormouse_format::{Seq, VolumeId};

use super::{Trust, follows};
use crate::bridge::{Bridges, Start};
use crate::error::{Error, Result};

/// Points asked for in one question.
const PAGE: usize = 2000;
const _: () = assert!(PAGE <= POINTS_MAX);

const LEFT_OUT: &str = "the server leaves it out, and shows others";
const NO_FOLLOWER: &str = "it does not follow the one before";
const UNBRIDGED: &str = "points before it are said to have expired, and no writer's word leads \
                         over them";

/// Points that are not shown.
#[derive(Debug, Clone, Copy)]
struct Gap {
    first: Seq,
    last: Seq,
    /// The checkpoint before it; none at the beginning of what is shown.
    start: Option<Start>,
    /// The point behind it.
    behind: SignedPoint,
}

/// What led over the gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// Gaps that nothing leads over, made before writers signed bridges: both sides are signed,
    /// and nothing proves that one comes from the other.
    pub unbridged: Vec<(Seq, Seq)>,
    /// The head that was seen before has expired.
    pub seen: Option<SeenGone>,
}

/// A head that was seen before, and has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenGone {
    /// It.
    pub seq: Seq,
    /// The checkpoint from which on bridges lead: itself, or the one that it was built on. What
    /// lay between the two is proved no more. None: nothing leads.
    pub from: Option<Seq>,
}

/// A volume's points from one on, each proved when it comes.
#[derive(Debug)]
pub struct Points<'a> {
    trust: &'a Trust,
    volume: VolumeId,
    from: Seq,
    /// The point that the next page begins with, if there is one.
    next: Seq,
    /// The head that was seen before.
    seen: Option<SignedPoint>,
    all: Vec<StoredPoint>,
    gaps: Vec<Gap>,
    proved: bool,
}

impl<'a> Points<'a> {
    /// Points from `from` on.
    pub const fn from(trust: &'a Trust, volume: VolumeId, from: Seq) -> Self {
        let (seen, proved) = (None, false);
        Self { trust, volume, from, next: from, seen, all: Vec::new(), gaps: Vec::new(), proved }
    }

    /// They must lead on from this one, too, if it has expired. Said before any page comes.
    #[must_use]
    pub const fn after(mut self, seen: Option<SignedPoint>) -> Self {
        self.seen = seen;
        self
    }

    /// The question for a page that begins with the point `from`.
    pub const fn question(volume: VolumeId, from: Seq) -> Message {
        Message::ListPoints { volume, from, limit: PAGE as u32 }
    }

    /// The question for the next page.
    pub const fn next(&self) -> Message {
        Self::question(self.volume, self.next)
    }

    /// Takes the answer; true if it was the last.
    pub fn add(&mut self, page: &[StoredPoint]) -> Result<bool> {
        if page.len() > PAGE {
            return Err(Error::Protocol { what: "more points than were asked for" });
        }
        page.iter().try_for_each(|stored| self.take(stored))?;
        let last = page.len() < PAGE;
        if last {
            self.look_for_seen();
        }
        Ok(last)
    }

    fn take(&mut self, stored: &StoredPoint) -> Result<()> {
        self.trust.point(&self.volume, stored)?;
        let p = stored.point();
        if p.seq < self.next {
            let first = Error::Point { seq: self.next, why: LEFT_OUT };
            let later = Error::Point { seq: p.seq, why: NO_FOLLOWER };
            return Err(if self.all.is_empty() { first } else { later });
        }
        if p.seq > self.next {
            // What expires ends before a checkpoint.
            if !p.is_checkpoint() {
                return Err(Error::Point { seq: self.next, why: LEFT_OUT });
            }
            let start = self.all.last().map(|before| self.start(before));
            let (first, last) = (self.next, p.seq - 1);
            self.gaps.push(Gap { first, last, start, behind: stored.signed });
        } else if self.all.last().is_some_and(|before| !follows(before, stored)) {
            return Err(Error::Point { seq: p.seq, why: NO_FOLLOWER });
        }
        self.next = p.seq.saturating_add(1);
        self.all.push(*stored);
        Ok(())
    }

    /// Where a way from this point, the newest so far, begins: at its checkpoint, by hash if
    /// that was shown.
    fn start(&self, before: &StoredPoint) -> Start {
        let checkpoint = self.all.iter().rfind(|p| p.point().is_checkpoint());
        match checkpoint {
            Some(c) if c.point().seq == before.point().checkpoint => Start::of(&c.signed),
            _ => Start::of(&before.signed),
        }
    }

    /// If the head that was seen is not among the points, they must lead on from it.
    fn look_for_seen(&mut self) {
        let Some(seen) = self.seen.filter(|s| self.find(s.point.seq).is_none()) else { return };
        let seq = seen.point.seq;
        // Without a newer point the server went back, which is said elsewhere.
        if let Some(behind) = self.all.iter().find(|p| p.point().seq > seq) {
            let (start, behind) = (Some(Start::of(&seen)), behind.signed);
            self.gaps.push(Gap { first: seq, last: seq, start, behind });
        }
    }

    fn find(&self, seq: Seq) -> Option<&StoredPoint> {
        let at = self.all.binary_search_by_key(&seq, |p| p.point().seq).ok()?;
        self.all.get(at)
    }

    /// What is to be asked about points that were not shown, if there are such: from and to of
    /// [`Keep::GetGaps`], and the question for bridges.
    pub fn missing(&self) -> Option<((Seq, Seq), Message)> {
        let first = self.gaps.iter().map(|g| g.first).min()?;
        let last = self.gaps.iter().map(|g| g.last).max()?;
        let starts = self.gaps.iter().filter_map(|g| g.start);
        let from = starts.map(Start::seq).min().unwrap_or(first);
        let to = self.gaps.iter().map(|g| g.behind.point.seq).max()?;
        let bridges = Keep::GetBridges { volume: self.volume, from, to };
        Some(((first, last), Message::Keep(bridges)))
    }

    /// Takes what the server says about them.
    pub fn prove(&mut self, expired: &[(Seq, Seq)], bridges: &Bridges<'_>) -> Result<Proof> {
        let mut proof = Proof::default();
        for gap in &self.gaps {
            let covers = |(first, last): &(Seq, Seq)| *first <= gap.first && gap.last <= *last;
            if !expired.iter().any(covers) && !seeded("gap-unsaid") {
                return Err(Error::Point { seq: gap.first, why: LEFT_OUT });
            }
            let Some(start) = gap.start else { continue };
            let leads = bridges.lead(start, &gap.behind) || seeded("gap-unbridged");
            if !leads && bridges.had_begun(start.seq()) {
                return Err(Error::Point { seq: gap.behind.point.seq, why: UNBRIDGED });
            }
            let of_seen = self.seen.filter(|s| (gap.first, gap.last) == (s.point.seq, s.point.seq));
            match of_seen {
                Some(seen) if self.find(seen.point.seq).is_none() => {
                    let from = leads.then_some(start.seq());
                    proof.seen = Some(SeenGone { seq: seen.point.seq, from });
                }
                _ if leads => {}
                _ => proof.unbridged.push((gap.first, gap.last)),
            }
        }
        self.proved = true;
        Ok(proof)
    }

    /// All of them; `head`, which the server showed before, is among them.
    pub fn done(self, head: Option<&StoredPoint>) -> Result<Vec<StoredPoint>> {
        if let Some(gap) = self.gaps.first().filter(|_| !self.proved) {
            return Err(Error::Point { seq: gap.first, why: LEFT_OUT });
        }
        if let Some(head) = head {
            let seq = head.point().seq;
            let shown = self.find(seq).map(|s| s.signed);
            if seq >= self.from && shown != Some(head.signed) {
                return Err(Error::Fork { seq });
            }
        }
        Ok(self.all)
    }
}
