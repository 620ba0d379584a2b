//! Retention and deletion: what is set, what is due, and letting it go.
//!
//! Owns: the records of both, and the order in which points go. Invariants: nothing goes that
//! was not allowed to for a whole grace: a deletion waits for its time, and what a new setting
//! keeps less is kept until it is effective; a point that a fork begins with stays as long as the
//! fork; what goes is on record before anything of it is removed.
//! Leaves to others: who may ask, whether the clock is right, and the choice itself
//! ([`crate::retention`]).

use std::ops::RangeInclusive;

use dormouse_crypt::hash;
use dormouse_format::keeping::{Deletion, Retention, Step};
use dormouse_format::limits::{DELETIONS_MAX, POINTS_MAX};
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::{RecordId, Seq, TimeNs, VolumeId, WriterId};

use super::VaultStore;
use crate::error::{Error, Result};
use crate::locks::{lock, read, write};
use crate::retention::delete::{self, InTheWay};
use crate::retention::{self, Policy, Seen};
use crate::state::Volume;

/// How long a deletion can be undone, and an older policy holds beside a newer one: 7 days.
pub const GRACE: u64 = 7 * retention::policy::DAY;
/// Settings of one volume that are not effective yet, at most.
const SETTINGS_WAITING_MAX: usize = 16;

/// Who changes what is kept, and when.
#[derive(Debug, Clone, Copy)]
pub struct By<'a> {
    /// The client's name, or the operator.
    pub name: &'a str,
    /// How long it can be undone.
    pub grace: u64,
    /// The server's clock.
    pub now: TimeNs,
}

impl By<'_> {
    const fn effective(&self) -> TimeNs {
        self.now.saturating_add(self.grace)
    }
}

/// What goes of a volume, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// Points that are there.
    pub points: u64,
    /// How many of them go.
    pub gone: u64,
    /// They.
    pub ranges: Vec<RangeInclusive<Seq>>,
    /// Why more does not go, for people.
    pub notes: Vec<String>,
    /// The volume itself goes.
    pub volume: bool,
    /// Deletions that have happened by this.
    ended: Vec<(RecordId, Deletion)>,
}

impl VaultStore {
    /// What is set: of each volume and of the vault what holds, and the newest that will.
    pub fn retention(&self, now: TimeNs) -> Vec<Retention> {
        let state = read(&self.state);
        let live = state.volumes.values().filter(|v| !read(&v.history).dropped);
        let mut all = Vec::new();
        for volume in [&VolumeId::ZERO].into_iter().chain(live.map(|v| &v.value.id)) {
            let (own, settled) = state.keeping.own(volume, now);
            let holds = own.last().filter(|_| settled && own.len() > 1);
            all.extend(holds.into_iter().chain(own.first()).map(|r| (*r).clone()));
        }
        all
    }

    /// Sets how long points of a volume, or of all volumes without a word of their own, are
    /// kept; durable on return. None takes the word back.
    pub fn set_retention(
        &self,
        volume: Option<&VolumeId>,
        policy: Option<&Policy>,
        by: By<'_>,
    ) -> Result<()> {
        self.log.usable()?;
        let volume = volume.map_or(Ok(VolumeId::ZERO), |id| self.volume(id).map(|v| v.value.id))?;
        let _changing = lock(&self.creating);
        let at = {
            let state = read(&self.state);
            let (own, _) = state.keeping.own(&volume, by.now);
            if own.len() > SETTINGS_WAITING_MAX {
                return Err(Error::kept(
                    "it was changed too often in the last days; wait until the first of these \
                     changes is effective",
                ));
            }
            state.keeping.time(&volume, by.now)
        };
        let policy = policy.map(ToString::to_string).unwrap_or_default();
        let (effective, name) = (by.effective().max(at), by.name.to_owned());
        let body = Retention { volume, at, effective, by: name, policy }.encode();
        self.note_keeping(Kind::Retention, &body, by.now)
    }

    /// Deletions that were asked for, and have not happened.
    pub fn deletions(&self) -> Vec<Deletion> {
        let state = read(&self.state);
        let pending = state.keeping.pending().map(|(_, deletion)| deletion);
        // One that was dropped just before a crash has ended.
        let live =
            |d: &&Deletion| state.volumes.get(&d.volume).is_some_and(|v| !read(&v.history).dropped);
        pending.filter(live).cloned().collect()
    }

    /// Asks for a deletion: of points, or of the volume. It happens after the grace; durable on
    /// return.
    pub fn delete(
        &self,
        volume: &VolumeId,
        points: Option<(Seq, Seq)>,
        by: By<'_>,
    ) -> Result<Deletion> {
        self.log.usable()?;
        let volume = self.volume(volume)?;
        let _changing = lock(&self.creating);
        self.may_go(&volume, points)?;
        if read(&self.state).keeping.pending().count() >= DELETIONS_MAX {
            return Err(Error::kept("as many deletions are under way as can be; wait for some"));
        }
        let deletion = Deletion {
            step: Step::Asked,
            of: RecordId::ZERO,
            volume: volume.value.id,
            points,
            at: by.now,
            effective: by.effective(),
            by: by.name.to_owned(),
        };
        self.note_keeping(Kind::Deletion, &deletion.encode(), by.now)?;
        Ok(deletion)
    }

    /// Takes back all deletions of a volume that have not happened; durable on return. How many.
    pub fn undelete(&self, volume: &VolumeId, by: By<'_>) -> Result<usize> {
        self.log.usable()?;
        let volume = self.volume(volume)?;
        let _changing = lock(&self.creating);
        let pending = self.pending_of(&volume.value.id);
        if pending.is_empty() {
            let what = format!("a deletion of {} that could be undone", volume.value.name);
            return Err(Error::NotFound { what });
        }
        for (of, deletion) in &pending {
            self.note_step(Step::Undone, *of, deletion, by)?;
        }
        Ok(pending.len())
    }

    /// Whether anything was set, or is to be deleted: else nothing can be due.
    pub fn keeps_less(&self) -> bool {
        let state = read(&self.state);
        state.keeping.is_set() || state.keeping.pending().next().is_some()
    }

    /// Records of bridges that begin at `from` or later and end at `to` or before.
    pub fn bridges(&self, volume: &VolumeId, from: Seq, to: Seq) -> Result<Vec<RecordId>> {
        let volume = self.volume(volume)?;
        Ok(read(&self.state).keeping.bridges(&volume.value.id, from, to))
    }

    /// Points of a volume that expired, in this range: at most so many ranges, that ascend and do
    /// not meet.
    pub fn expired(
        &self,
        volume: &VolumeId,
        within: RangeInclusive<Seq>,
        limit: usize,
    ) -> Result<Vec<(Seq, Seq)>> {
        let volume = self.volume(volume)?;
        let history = read(&volume.history);
        let mut ranges: Vec<(Seq, Seq)> = Vec::new();
        for gone in &history.gone {
            if gone.last < *within.start() || gone.first > *within.end() {
                continue;
            }
            let full = ranges.len() == limit;
            match ranges.last_mut() {
                Some((_, last)) if last.saturating_add(1) >= gone.first => *last = gone.last,
                _ if full => break,
                _ => ranges.push((gone.first, gone.last)),
            }
        }
        Ok(ranges)
    }

    /// What is due in a volume.
    pub fn due(&self, volume: &VolumeId, now: TimeNs) -> Result<Due> {
        let volume = self.volume(volume)?;
        self.due_in(&volume, now)
    }

    /// Lets go what is due in a volume; durable on return. The caller believes the clock.
    pub fn prune(&self, volume: &VolumeId, by: By<'_>) -> Result<Due> {
        self.log.usable()?;
        let volume = self.volume(volume)?;
        let due = self.due_in(&volume, by.now)?;
        // What must not go, since a fork was made meanwhile, is refused by these two.
        if due.volume {
            self.drop_volume(&volume.value.id, by.now)?;
        } else if !due.ranges.is_empty() {
            self.expire(&volume.value.id, &due.ranges, by.now)?;
        }
        for (of, deletion) in &due.ended {
            self.note_step(Step::Done, *of, deletion, by)?;
        }
        Ok(due)
    }

    fn due_in(&self, volume: &Volume, now: TimeNs) -> Result<Due> {
        let policies = self.policies(&volume.value.id, now);
        let pending = self.pending_of(&volume.value.id);
        let ripe = |d: &Deletion| d.effective <= now || seeded("deletion-early");
        let (ripe, waiting): (Vec<_>, Vec<_>) = pending.into_iter().partition(|(_, d)| ripe(d));
        let mut due = Due::default();
        if !waiting.is_empty() {
            due.notes.push(format!("{} deletions can still be undone", waiting.len()));
        }
        let keeps_all = match policies {
            Ok(ref policies) => {
                policies.is_empty() || policies.iter().any(Policy::keeps_everything)
            }
            Err(ref why) => {
                due.notes.push(why.clone());
                true
            }
        };
        if keeps_all && ripe.is_empty() {
            due.points = read(&volume.history).kept(0).count() as u64;
            return Ok(due);
        }
        let points = self.seen(&volume.value.id)?;
        let forks = self.forks_of(&volume.value.id);
        let pins: Vec<Seq> = forks.iter().map(|(seq, _)| *seq).collect();
        due.points = points.len() as u64;
        let mut kept = vec![keeps_all; points.len()];
        for policy in policies.unwrap_or_default().iter().filter(|_| !keeps_all) {
            let by_this = retention::keep(&points, policy, &pins, now);
            kept.iter_mut().zip(by_this).for_each(|(kept, this)| *kept |= this);
        }
        for (id, deletion) in ripe {
            due.take(&points, &mut kept, &forks, (id, deletion));
        }
        due.ranges = retention::gone(&points, &kept);
        due.gone = kept.iter().filter(|kept| !**kept).count() as u64;
        Ok(due)
    }

    /// All policies that keep what they keep; or why nothing expires.
    fn policies(
        &self,
        volume: &VolumeId,
        now: TimeNs,
    ) -> core::result::Result<Vec<Policy>, String> {
        let state = read(&self.state);
        let texts = state.keeping.policies(volume, now);
        let parsed = texts.iter().map(|r| {
            let told =
                |e| format!("the policy '{}' is not understood here, {e}; set it anew", r.policy);
            r.policy.parse::<Policy>().map_err(told)
        });
        parsed.collect()
    }

    fn pending_of(&self, volume: &VolumeId) -> Vec<(RecordId, Deletion)> {
        let state = read(&self.state);
        let pending = state.keeping.pending().filter(|(_, d)| d.volume == *volume);
        pending.map(|(id, d)| (*id, d.clone())).collect()
    }

    /// Points that live forks begin with, and the forks' names.
    fn forks_of(&self, volume: &VolumeId) -> Vec<(Seq, String)> {
        let state = read(&self.state);
        let live = state.volumes.values().filter(|v| !read(&v.history).dropped);
        let mut forks: Vec<_> = live
            .filter_map(|v| v.value.origin.as_ref().map(|o| (o, &v.value.name)))
            .filter(|(origin, _)| origin.volume == *volume)
            .map(|(origin, name)| (origin.seq, name.clone()))
            .collect();
        forks.sort();
        forks
    }

    fn seen(&self, volume: &VolumeId) -> Result<Vec<Seen>> {
        let mut all: Vec<Seen> = Vec::new();
        loop {
            let from = all.last().map_or(1, |p| p.seq + 1);
            let page = self.points(volume, from, POINTS_MAX)?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page.iter().map(Seen::of));
        }
    }

    /// That a deletion may be asked for.
    fn may_go(&self, volume: &Volume, points: Option<(Seq, Seq)>) -> Result<()> {
        let forks = self.forks_of(&volume.value.id);
        let Some((first, last)) = points else {
            return match forks.first() {
                None => Ok(()),
                Some((_, fork)) => Err(Error::kept(format!(
                    "volume {} cannot be deleted: '{fork}' is a fork of it; delete that first",
                    volume.value.name
                ))),
            };
        };
        let seen = self.seen(&volume.value.id)?;
        let pins: Vec<Seq> = forks.iter().map(|(seq, _)| *seq).collect();
        let why = match delete::check(&seen, first, last, &pins) {
            Ok(()) => return Ok(()),
            Err(InTheWay::Nothing) => {
                let what = format!("a point of {} from {first} to {last}", volume.value.name);
                return Err(Error::NotFound { what });
            }
            Err(in_the_way) => told(in_the_way, &forks, last),
        };
        Err(Error::kept(why))
    }

    fn note_step(&self, step: Step, of: RecordId, asked: &Deletion, by: By<'_>) -> Result<()> {
        let name = by.name.to_owned();
        let value = Deletion { step, of, at: by.now, by: name, ..asked.clone() };
        self.note_keeping(Kind::Deletion, &value.encode(), by.now)
    }

    /// Appends a record about keeping, makes it durable, and takes it in.
    fn note_keeping(&self, kind: Kind, body: &[u8], now: TimeNs) -> Result<()> {
        let record = dormouse_crypt::record::plain(kind, WriterId::ZERO, body);
        let (at, end) = self.append(&record, now)?;
        self.log.sync_to(end)?;
        let (header, body) = dormouse_format::record::split(&record)?;
        debug_assert_eq!(header.id, hash::plain_id(kind as u8, body));
        write(&self.state).apply(&header, body, at)
    }
}

/// Why points cannot be deleted.
fn told(in_the_way: InTheWay, forks: &[(Seq, String)], last: Seq) -> String {
    match in_the_way {
        InTheWay::Nothing => "there are no such points".into(),
        InTheWay::Newest { checkpoint, newest } => format!(
            "the newest point, {newest}, is built on checkpoint {checkpoint} and all behind it: \
             only what is older than {checkpoint} can be deleted"
        ),
        InTheWay::Needed { first, last: to } => format!(
            "points up to {to} are built on what would go: name {first}..{to}, or a range that \
             ends before its checkpoint; {last} is in the middle"
        ),
        InTheWay::Fork { seq } => {
            let name = forks.iter().find(|(of, _)| *of == seq).map_or("", |(_, name)| name);
            format!("the fork '{name}' begins with point {seq}: delete the fork first")
        }
    }
}

impl Due {
    /// Deletions that were asked for, and are carried out by this.
    pub fn carried_out(&self) -> impl Iterator<Item = &Deletion> {
        self.ended.iter().map(|(_, deletion)| deletion)
    }

    /// Takes a deletion whose time has come.
    fn take(
        &mut self,
        points: &[Seen],
        kept: &mut [bool],
        forks: &[(Seq, String)],
        (id, deletion): (RecordId, Deletion),
    ) {
        let pins: Vec<Seq> = forks.iter().map(|(seq, _)| *seq).collect();
        match deletion.points {
            None if forks.is_empty() => {
                kept.fill(false);
                self.volume = true;
            }
            None => {
                let name = &forks[0].1;
                self.notes.push(format!("it is not deleted yet: '{name}' is a fork of it"));
                return;
            }
            Some((first, last)) => match delete::check(points, first, last, &pins) {
                Err(InTheWay::Nothing) => {}
                Err(why) => {
                    let why = told(why, forks, last);
                    self.notes.push(format!("points {first} to {last} are not deleted yet: {why}"));
                    return;
                }
                Ok(()) => {
                    let named =
                        points.iter().zip(kept).filter(|(p, _)| (first..=last).contains(&p.seq));
                    named.for_each(|(_, kept)| *kept = false);
                }
            },
        }
        self.ended.push((id, deletion));
    }
}
