//! What an administrator has said of keeping, and which points may go by that.
//!
//! Owns: settings and deletions as the server has answered them, and a plain reading of the
//! rules in docs/format.md. Knows nothing of how the store chooses. Invariant: a point may go
//! only while somebody lets go what is due, and only one that was due at that moment.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_format::keeping::Deletion;
use dormouse_format::message::{Keep, Message};
use dormouse_format::point::StoredPoint;
use dormouse_format::{Seq, TimeNs, VolumeId};

const HOUR: u64 = 3_600_000_000_000;
/// A day, in nanoseconds.
pub const DAY: u64 = 24 * HOUR;

/// A policy: its text, and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// As it is sent.
    pub text: &'static str,
    all: u64,
    hourly: u64,
    daily: u64,
    floor: u64,
}

/// The policies that administrators choose from.
pub const RULES: [Rule; 5] = [
    Rule { text: "all:24h", all: DAY, hourly: 0, daily: 0, floor: DAY },
    Rule {
        text: "all:1h,hourly:2d,daily:9d",
        all: HOUR,
        hourly: 2 * DAY,
        daily: 9 * DAY,
        floor: DAY,
    },
    Rule { text: "daily:5d,floor:36h", all: 0, hourly: 0, daily: 5 * DAY, floor: 36 * HOUR },
    Rule {
        text: "hourly:6h,floor:2h,short-floor",
        all: 0,
        hourly: 6 * HOUR,
        daily: 0,
        floor: 2 * HOUR,
    },
    Rule { text: "all:4d,daily:6d", all: 4 * DAY, hourly: 0, daily: 6 * DAY, floor: DAY },
];

impl Rule {
    /// The points that it keeps, of all that there are.
    fn keeps(&self, points: &[StoredPoint], now: TimeNs) -> BTreeSet<Seq> {
        let age = |p: &StoredPoint| now.saturating_sub(p.receipt);
        let young = |p: &&StoredPoint| age(p) < self.all.max(self.floor);
        let mut kept: BTreeSet<Seq> = points.iter().filter(young).map(|p| p.point().seq).collect();
        for (limit, span) in [(self.hourly, HOUR), (self.daily, DAY)] {
            let of_class = |p: &&StoredPoint| {
                age(p) < limit && p.point().is_checkpoint() && p.point().grade.consistent()
            };
            // The last of a span takes the place of those before.
            let spans = points.iter().filter(of_class).map(|p| (p.receipt / span, p.point().seq));
            kept.extend(spans.collect::<BTreeMap<_, _>>().into_values());
        }
        let consistent = points.iter().rfind(|p| p.point().grade.consistent());
        kept.extend(points.last().into_iter().chain(consistent).map(|p| p.point().seq));
        // Each with all that it is read with.
        let needs = points.iter().filter(|p| kept.contains(&p.point().seq));
        needs.flat_map(|p| p.point().checkpoint..=p.point().seq).collect()
    }
}

#[derive(Debug, Clone, Copy)]
struct Setting {
    /// When it was set: times ascend, whatever the clock does.
    at: TimeNs,
    effective: TimeNs,
    rule: Rule,
    sure: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    points: (Seq, Seq),
    effective: TimeNs,
    sure: bool,
}

#[derive(Debug, Default)]
struct Volume {
    settings: Vec<Setting>,
    deletions: Vec<Asked>,
    /// What may go now.
    due: BTreeSet<Seq>,
    /// What has gone.
    gone: BTreeSet<Seq>,
}

impl Volume {
    /// The policies that hold: the newest that is effective, and all behind it; none: all stays.
    fn hold(&self, now: TimeNs) -> Option<&[Setting]> {
        let at = self.settings.iter().rposition(|s| s.effective <= now)?;
        Some(&self.settings[at..])
    }
}

/// What is kept of all volumes.
#[derive(Debug, Default)]
pub struct Kept {
    volumes: BTreeMap<VolumeId, Volume>,
}

/// The server's answer to an order, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It has done it.
    Done,
    /// It went down over it: it may be done, or not.
    Doubt,
}

impl Kept {
    fn volume(&mut self, id: VolumeId) -> &mut Volume {
        self.volumes.entry(id).or_default()
    }

    /// The server has taken an order, by its clock.
    pub fn ordered(&mut self, order: &Keep, now: TimeNs, told: Told) {
        let sure = told == Told::Done;
        match order {
            Keep::SetRetention { volume, policy, grace } => {
                let rule = RULES.into_iter().find(|rule| rule.text == policy);
                let settings = &mut self.volume(*volume).settings;
                let at = settings.last().map_or(now, |last| now.max(last.at + 1));
                let effective = (now + grace).max(at);
                settings.extend(rule.map(|rule| Setting { at, effective, rule, sure }));
            }
            Keep::Delete { volume, points: Some(points), grace } => {
                let (points, effective) = (*points, now + grace);
                self.volume(*volume).deletions.push(Asked { points, effective, sure });
            }
            Keep::Undelete { volume } if sure => self.volume(*volume).deletions.clear(),
            Keep::Undelete { volume } => {
                self.volume(*volume).deletions.iter_mut().for_each(|asked| asked.sure = false);
            }
            _ => {}
        }
    }

    /// What was in doubt is what the server that came back has.
    pub fn settled(&mut self, policies: &[(VolumeId, String, TimeNs)], pending: &[Deletion]) {
        for (id, volume) in &mut self.volumes {
            let set = |s: &Setting| {
                // Set after a jump back of the clock, one is effective later than that says.
                let is = |(of, text, at): &(VolumeId, String, TimeNs)| {
                    (of, text.as_str()) == (id, s.rule.text) && *at >= s.effective
                };
                s.sure || policies.iter().any(is)
            };
            volume.settings.retain(set);
            volume.settings.iter_mut().for_each(|s| s.sure = true);
            let asked = |a: &Asked| {
                let is = |d: &Deletion| {
                    (d.volume, d.points, d.effective) == (*id, Some(a.points), a.effective)
                };
                a.sure || pending.iter().any(is)
            };
            volume.deletions.retain(asked);
            volume.deletions.iter_mut().for_each(|a| a.sure = true);
        }
    }

    /// Somebody is about to let go what is due of these points, which are all.
    pub fn prunes(&mut self, id: VolumeId, points: &[StoredPoint], now: TimeNs) {
        let volume = self.volume(id);
        let stay = match volume.hold(now) {
            None => points.iter().map(|p| p.point().seq).collect(),
            Some(rules) => rules.iter().flat_map(|s| s.rule.keeps(points, now)).collect(),
        };
        let stay: BTreeSet<Seq> = stay;
        let ripe = |seq: &Seq| {
            let names = |a: &&Asked| (a.points.0..=a.points.1).contains(seq);
            volume.deletions.iter().filter(names).any(|a| a.effective <= now)
        };
        let all = points.iter().map(|p| p.point().seq);
        let due: Vec<Seq> = all.filter(|seq| !stay.contains(seq) || ripe(seq)).collect();
        // What went before, while the disk did not tell what there is, is still to be seen.
        volume.due.extend(due);
    }

    /// A point that no policy keeps, though some hold.
    pub fn overdue(&self, id: &VolumeId, points: &[StoredPoint], now: TimeNs) -> Option<Seq> {
        let rules = self.volumes.get(id)?.hold(now)?;
        let stay: BTreeSet<Seq> = rules.iter().flat_map(|s| s.rule.keeps(points, now)).collect();
        points.iter().map(|p| p.point().seq).find(|seq| !stay.contains(seq))
    }

    /// Those of `due` that the store does not have any more; from now on nothing is due.
    /// The first that has gone and was not to, or has come back.
    pub fn looked(
        &mut self,
        id: VolumeId,
        known: impl Iterator<Item = Seq>,
        there: &BTreeSet<Seq>,
    ) -> Result<u64, String> {
        let volume = self.volume(id);
        if let Some(back) = volume.gone.intersection(there).next() {
            return Err(format!("point {back} had gone, and is there again"));
        }
        let due = std::mem::take(&mut volume.due);
        let before = volume.gone.len();
        for seq in known.filter(|seq| !there.contains(seq)) {
            if !due.contains(&seq) && !volume.gone.contains(&seq) {
                return Err(format!("point {seq} was there; it is gone, and was not to go"));
            }
            volume.gone.insert(seq);
        }
        let asked = |a: &Asked| (a.points.0..=a.points.1).any(|seq| there.contains(&seq));
        volume.deletions.retain(asked);
        Ok((volume.gone.len() - before) as u64)
    }

    /// Whether these points have all gone, or may just have.
    pub fn went(&self, id: &VolumeId, mut seqs: impl Iterator<Item = Seq>) -> bool {
        let volume = self.volumes.get(id);
        seqs.all(|seq| volume.is_some_and(|v| v.gone.contains(&seq) || v.due.contains(&seq)))
    }
}

/// Whether this lets points go that are due.
pub fn lets_go(message: &Message) -> Option<VolumeId> {
    match message {
        Message::Keep(Keep::Prune { volume, apply: true, .. }) => Some(*volume),
        _ => None,
    }
}
