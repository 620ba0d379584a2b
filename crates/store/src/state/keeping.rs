//! What the log says about keeping: retention, deletions, bridges.
//!
//! Invariant: it comes to the same in whatever order the records are read, since collection
//! writes old ones again behind newer ones: of retention the greatest time counts, a deletion is
//! named by its id, bridges are a set.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dormouse_format::keeping::{Bridge, Deletion, Retention, Step};
use dormouse_format::vault::Signed;
use dormouse_format::{RecordId, Seq, TimeNs, VolumeId};

use crate::error::Result;
use crate::log::RecordRef;

/// A bridge, and where it lies. Ordered by where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leads {
    pub(crate) to: Seq,
    pub(crate) from: Seq,
    pub(crate) at: RecordRef,
}

/// Everything about keeping.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    /// By volume; zero stands for the vault's default.
    retention: HashMap<VolumeId, Retention>,
    /// Deletions that were asked for.
    asked: BTreeMap<RecordId, Deletion>,
    /// Those that were undone, or have happened.
    ended: HashMap<RecordId, Step>,
    bridges: HashMap<VolumeId, BTreeSet<Leads>>,
    /// Volumes that are gone.
    deleted: BTreeSet<VolumeId>,
}

impl Keeping {
    /// Takes in what was set.
    pub(crate) fn set(&mut self, body: &[u8]) -> Result<()> {
        let value = Retention::decode(body)?;
        let known = self.retention.get(&value.volume);
        // Two of one time are never made; if they were, it must not depend on the order.
        if known.is_none_or(|old| (old.at, &old.policy) < (value.at, &value.policy)) {
            self.retention.insert(value.volume, value);
        }
        Ok(())
    }

    /// Takes in a step of a deletion; the volume that it takes away, if it does.
    pub(crate) fn step(&mut self, id: RecordId, body: &[u8]) -> Result<Option<VolumeId>> {
        let value = Deletion::decode(body)?;
        if value.step == Step::Asked {
            self.asked.insert(id, value);
            return Ok(None);
        }
        self.ended.insert(value.of, value.step);
        let gone = value.step == Step::Done && value.points.is_none();
        Ok((gone && self.deleted.insert(value.volume)).then_some(value.volume))
    }

    /// Takes in a bridge.
    pub(crate) fn bridge(&mut self, body: &[u8], at: RecordRef) -> Result<()> {
        let Bridge { volume, from, to, .. } = Bridge::decode(body)?.0;
        self.bridges.entry(volume).or_default().insert(Leads { to, from, at });
        Ok(())
    }

    /// What was set for this volume alone; for the zero volume: the default.
    pub(crate) fn own(&self, volume: &VolumeId) -> Option<&Retention> {
        self.retention.get(volume)
    }

    /// What holds for a volume: its own, or the default; with a text, or not at all.
    pub(crate) fn of(&self, volume: &VolumeId) -> Option<&Retention> {
        let said = |id: &VolumeId| self.retention.get(id).filter(|r| !r.policy.is_empty());
        said(volume).or_else(|| said(&VolumeId::ZERO))
    }

    /// A time for the next setting of it, after all before.
    pub(crate) fn time(&self, volume: &VolumeId, now: TimeNs) -> TimeNs {
        self.retention.get(volume).map_or(now, |r| now.max(r.at.saturating_add(1)))
    }

    /// Deletions that are asked for and have not ended.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&RecordId, &Deletion)> {
        self.asked.iter().filter(|(id, _)| !self.ended.contains_key(id))
    }

    pub(crate) fn is_deleted(&self, volume: &VolumeId) -> bool {
        self.deleted.contains(volume)
    }

    pub(crate) fn deleted(&self) -> usize {
        self.deleted.len()
    }

    /// Bridges of a volume that begin at `from` or later and end at `to` or before, in the order
    /// of where they lead.
    pub(crate) fn bridges(&self, volume: &VolumeId, from: Seq, to: Seq) -> Vec<RecordRef> {
        let all = self.bridges.get(volume).into_iter().flatten();
        let fits = all.skip_while(|b| b.to <= from).take_while(|b| b.to <= to);
        fits.filter(|b| b.from >= from).map(|b| b.at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(at: TimeNs, policy: &str) -> Vec<u8> {
        let (by, policy) = ("a".to_owned(), policy.to_owned());
        Retention { volume: VolumeId([1; 16]), at, by, policy }.encode()
    }

    fn deletion(step: Step, of: RecordId) -> Vec<u8> {
        let (volume, by) = (VolumeId([1; 16]), "a".to_owned());
        Deletion { step, of, volume, points: None, at: 1, effective: 2, by }.encode()
    }

    #[test]
    fn the_order_of_records_says_nothing() {
        let (one, two) = (RecordId([1; 16]), RecordId([2; 16]));
        let apply = |order: &[usize]| {
            let mut keeping = Keeping::default();
            let mut gone = None;
            for n in order {
                match n {
                    0 => keeping.set(&said(5, "all:1d")).unwrap(),
                    1 => keeping.set(&said(6, "all:2d")).unwrap(),
                    2 => keeping.set(&said(6, "all:3d")).unwrap(),
                    3 => {
                        let told = keeping.step(one, &deletion(Step::Asked, RecordId::ZERO));
                        assert_eq!(told.unwrap(), None);
                    }
                    _ => gone = gone.or(keeping.step(two, &deletion(Step::Done, one)).unwrap()),
                }
            }
            assert_eq!(gone, Some(VolumeId([1; 16])), "told once that the volume is gone");
            let policy = keeping.of(&VolumeId([1; 16])).unwrap().policy.clone();
            (policy, keeping.pending().count(), keeping.is_deleted(&VolumeId([1; 16])))
        };
        let want = ("all:3d".to_owned(), 0, true);
        for order in [[0, 1, 2, 3, 4, 4], [4, 4, 3, 2, 1, 0], [4, 2, 0, 3, 1, 4], [2, 1, 3, 4, 0, 4]]
        {
            assert_eq!(apply(&order), want, "{order:?}");
        }
    }

    #[test]
    fn an_empty_policy_is_none() {
        let mut keeping = Keeping::default();
        let volume = VolumeId([1; 16]);
        let default = Retention {
            volume: VolumeId::ZERO,
            at: 1,
            by: "a".into(),
            policy: "all:9d".into(),
        };
        keeping.set(&default.encode()).unwrap();
        keeping.set(&said(5, "all:1d")).unwrap();
        assert_eq!(keeping.of(&volume).unwrap().policy, "all:1d");
        assert_eq!((keeping.time(&volume, 3), keeping.time(&volume, 30)), (6, 30));
        keeping.set(&said(6, "")).unwrap();
        assert_eq!(keeping.of(&volume).unwrap().policy, "all:9d");
    }
}
