//! The job that compares all of a disk with what the server has.
//!
//! Invariant: when it ends well, the copy and the marked blocks together are the disk. A block that
//! cannot be read is marked, and stays in the copy as the newest point has it: as zeros, if there
//! was none. So a checkpoint of that point comes first, where a scan builds on an older one.

use anyhow::Result;
use dormouse_format::point::Grade;
use dormouse_sync::copy;
use dormouse_sync::history::hash_of;
use dormouse_sync::live::Event;
use dormouse_track::dirty::Dirty;
use dormouse_track::sweep::Sweep;

use super::{Cut, Worker};
use crate::live::disk::Reading;
use crate::live::pilot::{Pilot, now};
use crate::live::stale::{Failed, Stale};
use crate::text;

/// Blocks cannot be read, and what the newest point has of them is not in the last checkpoint.
#[derive(Debug, thiserror::Error)]
#[error("blocks cannot be read, and a checkpoint comes first")]
pub(super) struct Behind;

impl Worker {
    pub(super) fn scan(&mut self, pilot: &mut Pilot<'_>) -> Result<Event> {
        pilot.teller.counters.scans += 1;
        match self.compare(pilot) {
            Err(error) if error.is::<Behind>() => {
                self.checkpoint(pilot)?;
                self.compare(pilot)
            }
            done => done,
        }
    }

    fn compare(&mut self, pilot: &mut Pilot<'_>) -> Result<Event> {
        let session = self.session()?;
        let (volume, generation) = (session.volume.id, session.generation);
        let behind = session.head.is_some_and(|head| !head.point().is_checkpoint());
        self.tracked.begin_scan(&volume, generation)?;
        self.stale = Stale::default();
        self.sweep = Sweep::default();
        let (cut, time) = (now(), text::now_ns());
        let leaves = self.tracked.source.leaf_set()?;
        let total = leaves.count();
        let plan = self.plan(copy::Mode::Scan, leaves)?;
        let (tracked, failed) = (&self.tracked, Failed::default());
        let source = &tracked.source;
        let zeros = tracked.left_out.blocks();
        let source = Reading { source, only: None, zeros, read: &self.read, failed: &failed };
        let mut finish = || {
            anyhow::ensure!(!behind || failed.is_empty(), Behind);
            let marks = tracked.marks()?;
            failed.blocks().into_iter().for_each(|block| marks.mark(block, 1));
            let still = tracked.nothing_under_way() && tracked.dirty()? == 0;
            let settled = still && tracked.left_out.holds() && tracked.is_awake()?;
            Ok((if settled { Grade::Settled } else { Grade::Fuzzy }, time))
        };
        let outcome = self.run(plan, &source, &mut finish, &mut |p| {
            let leaf = (tracked.size() / total.max(1)).max(1);
            let left = total.saturating_sub(p.leaves) * leaf;
            pilot.teller.queued = p.queued;
            pilot.tell(Event::Progress { done: p.leaves * leaf, left });
            pilot.tell(Event::Dirty { bytes: tracked.dirty()?, waiting: 0 });
            anyhow::ensure!(!behind || failed.is_empty(), Behind);
            pilot.during()
        })?;
        let point = outcome.point;
        self.tracked.end_scan(hash_of(&point).0, point.point.seq)?;
        self.found_unread(pilot, &failed, &mut Dirty::default());
        self.newest = Some(point);
        self.remember()?;
        self.deltas = Some(0);
        let sent = failed.is_empty().then_some(cut);
        self.made(pilot, &outcome, Cut { at: cut, sent })
    }
}
