//! What the log says about keeping: retention, deletions, bridges.
//!
//! Invariant: it comes to the same in whatever order the records are read, since collection
//! writes old ones again behind newer ones: retention goes by its times, a deletion is named by
//! its id, bridges are a set.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dormouse_format::keeping::{Bridge, Deletion, Retention, Step};
use dormouse_format::seeded::seeded;
use dormouse_format::vault::Signed;
use dormouse_format::{RecordId, Seq, TimeNs, VolumeId};

use crate::error::Result;

/// A bridge. Ordered by where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Leads {
    to: Seq,
    from: Seq,
    id: RecordId,
}

/// Everything about keeping.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    /// By volume; zero stands for the vault's default.
    retention: HashMap<VolumeId, BTreeMap<(TimeNs, String), Retention>>,
    /// Deletions that were asked for.
    asked: BTreeMap<RecordId, Deletion>,
    /// Those that were undone, or have happened.
    ended: BTreeSet<RecordId>,
    bridges: HashMap<VolumeId, BTreeSet<Leads>>,
}

impl Keeping {
    /// Takes in what was set.
    pub(crate) fn set(&mut self, body: &[u8]) -> Result<()> {
        let value = Retention::decode(body)?;
        let key = (value.at, value.policy.clone());
        self.retention.entry(value.volume).or_default().insert(key, value);
        Ok(())
    }

    /// Takes in a step of a deletion.
    pub(crate) fn step(&mut self, id: RecordId, body: &[u8]) -> Result<()> {
        let value = Deletion::decode(body)?;
        if value.step == Step::Asked {
            self.asked.insert(id, value);
        } else if value.step == Step::Done || !seeded("deletion-not-undone") {
            self.ended.insert(value.of);
        }
        Ok(())
    }

    /// Takes in a bridge.
    pub(crate) fn bridge(&mut self, id: RecordId, body: &[u8]) -> Result<()> {
        let Bridge { volume, from, to, .. } = Bridge::decode(body)?.0;
        self.bridges.entry(volume).or_default().insert(Leads { to, from, id });
        Ok(())
    }

    /// What counts of what was set for this volume alone, or for the zero volume as the default:
    /// the newest that is effective, and all that will be. And whether there is such a one, so
    /// that what held before counts no more.
    pub(crate) fn own(&self, volume: &VolumeId, now: TimeNs) -> (Vec<&Retention>, bool) {
        let mut own = Vec::new();
        for setting in self.retention.get(volume).into_iter().flat_map(|all| all.values()).rev() {
            own.push(setting);
            if setting.effective <= now || seeded("policy-at-once") {
                return (own, true);
            }
        }
        (own, false)
    }

    /// All policies that keep what they keep of a volume now; none: everything is kept.
    pub(crate) fn policies(&self, volume: &VolumeId, now: TimeNs) -> Vec<&Retention> {
        let mut all = Vec::new();
        for of in [volume, &VolumeId::ZERO] {
            let (own, settled) = self.own(of, now);
            let falls_through = !settled || own.iter().any(|r| r.policy.is_empty());
            all.extend(own.into_iter().filter(|r| !r.policy.is_empty()));
            if !falls_through {
                return all;
            }
        }
        Vec::new()
    }

    /// A time for the next setting of it, after all before.
    pub(crate) fn time(&self, volume: &VolumeId, now: TimeNs) -> TimeNs {
        let last = self.retention.get(volume).and_then(|all| all.keys().next_back());
        last.map_or(now, |(at, _)| now.max(at.saturating_add(1)))
    }

    /// Deletions that are asked for and have not ended.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&RecordId, &Deletion)> {
        self.asked.iter().filter(|(id, _)| !self.ended.contains(id))
    }

    /// Whether any policy was ever set.
    pub(crate) fn is_set(&self) -> bool {
        !self.retention.is_empty()
    }

    /// Bridges of a volume that begin at `from` or later and end at `to` or before, in the order
    /// of where they lead.
    pub(crate) fn bridges(&self, volume: &VolumeId, from: Seq, to: Seq) -> Vec<RecordId> {
        let all = self.bridges.get(volume).into_iter().flatten();
        let fits = all.skip_while(|b| b.to <= from).take_while(|b| b.to <= to);
        fits.filter(|b| b.from >= from).map(|b| b.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);

    fn said(volume: VolumeId, at: TimeNs, effective: TimeNs, policy: &str) -> Vec<u8> {
        let (by, policy) = ("a".to_owned(), policy.to_owned());
        Retention { volume, at, effective, by, policy }.encode()
    }

    fn deletion(step: Step, of: RecordId) -> Vec<u8> {
        let by = "a".to_owned();
        Deletion { step, of, volume: VOLUME, points: None, at: 1, effective: 2, by }.encode()
    }

    fn policies(keeping: &Keeping, now: TimeNs) -> Vec<&str> {
        keeping.policies(&VOLUME, now).iter().map(|r| r.policy.as_str()).collect()
    }

    #[test]
    fn the_order_of_records_says_nothing() {
        let (one, two) = (RecordId([1; 16]), RecordId([2; 16]));
        let apply = |order: &[usize]| {
            let mut keeping = Keeping::default();
            for n in order {
                match n {
                    0 => keeping.set(&said(VOLUME, 5, 5, "all:1d")).unwrap(),
                    1 => keeping.set(&said(VOLUME, 6, 9, "all:2d")).unwrap(),
                    2 => keeping.set(&said(VOLUME, 7, 7, "all:3d")).unwrap(),
                    3 => keeping.step(one, &deletion(Step::Asked, RecordId::ZERO)).unwrap(),
                    _ => keeping.step(two, &deletion(Step::Undone, one)).unwrap(),
                }
            }
            assert_eq!(keeping.pending().count(), 0, "{order:?}");
            assert_eq!(policies(&keeping, 8), ["all:3d"], "{order:?}");
            assert_eq!((keeping.time(&VOLUME, 3), keeping.time(&VOLUME, 30)), (8, 30));
        };
        for order in
            [[0, 1, 2, 3, 4, 4], [4, 4, 3, 2, 1, 0], [4, 2, 0, 3, 1, 4], [2, 1, 3, 4, 0, 4]]
        {
            apply(&order);
        }
    }

    /// Until a setting is effective, what held before keeps what it keeps.
    #[test]
    fn what_was_set_before_holds_on_for_a_while() {
        let mut keeping = Keeping::default();
        assert_eq!(policies(&keeping, 1), [""; 0]);
        keeping.set(&said(VolumeId::ZERO, 10, 20, "all:9d")).unwrap();
        assert_eq!(policies(&keeping, 19), [""; 0], "nothing was set before: all is kept");
        assert_eq!(policies(&keeping, 20), ["all:9d"]);
        keeping.set(&said(VOLUME, 30, 40, "all:1d")).unwrap();
        assert_eq!(policies(&keeping, 39), ["all:1d", "all:9d"]);
        assert_eq!(policies(&keeping, 40), ["all:1d"]);
        keeping.set(&said(VOLUME, 41, 50, "all:2d")).unwrap();
        keeping.set(&said(VOLUME, 42, 51, "")).unwrap();
        assert_eq!(policies(&keeping, 49), ["all:2d", "all:1d", "all:9d"]);
        assert_eq!(policies(&keeping, 50), ["all:2d", "all:9d"]);
        assert_eq!(policies(&keeping, 51), ["all:9d"]);
        keeping.set(&said(VolumeId::ZERO, 60, 70, "")).unwrap();
        assert_eq!(policies(&keeping, 60), [""; 0]);
    }
}
