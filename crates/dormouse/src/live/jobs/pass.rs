//! The job that sends what is marked, and what was discarded.

use std::time::Duration;

use anyhow::Result;
use dormouse_format::point::Grade;
use dormouse_sync::copy;
use dormouse_sync::live::Event;
use dormouse_track::marks::Room;
use dormouse_track::sweep;

use super::{BLOCKS_MAX, Cut, DELTA_PER_BLOCK, LEAVES_MAX, Worker, waiting};
use crate::live::disk::{Reading, leaf_set};
use crate::live::pilot::{Pilot, now};
use crate::live::stale::Failed;
use crate::text;

impl Worker {
    /// Takes the marks of a pass: what it carries.
    fn cut(&mut self, cut: Duration, deltas_max: u64, hot: bool) -> Result<sweep::Taken> {
        self.tracked.cut()?;
        let marks = self.tracked.marks()?;
        let blocks = BLOCKS_MAX.min(deltas_max / DELTA_PER_BLOCK);
        let room = Room { leaves: LEAVES_MAX, blocks };
        let left_out = self.tracked.left_out.blocks();
        let mut taken = self.sweep.take(&marks, cut, room, hot, left_out);
        taken.dirty.truncate(self.tracked.blocks());
        Ok(taken)
    }

    pub(super) fn pass(
        &mut self,
        pilot: &mut Pilot<'_>,
        deltas_max: u64,
        hot: bool,
    ) -> Result<Event> {
        let (cut, time) = (now(), text::now_ns());
        let sweep::Taken { mut dirty, whole, sent, next, .. } = self.cut(cut, deltas_max, hot)?;
        self.stale.leave_out(&mut dirty, self.tracked.blocks());
        self.tell_stale()?;
        let discarded = self.tracked.discarded_zeros();
        let (zeros, all_zeros) = self.tracked.left_out.zeros();
        let unread = discarded.runs.to_dirty();
        let not_read = self.tracked.left_out.blocks().or(&unread);
        let carried = dirty.or(&zeros).or(&unread);
        let (tracked, stale, failed) = (&self.tracked, &self.stale, Failed::default());
        let (read, sweep) = (&self.read, &self.sweep);
        let source = &tracked.source;
        let (only, left_out) = (Some(&carried), &tracked.left_out);
        let source = Reading { source, only, zeros: &not_read, read, failed: &failed };
        let plan = self.plan(copy::Mode::Changes, leaf_set(tracked.size(), &carried))?;
        // The server lacks what it is to have of these; but the point says so.
        let behind = stale.blocks().any(|block| !dirty.has(block));
        let mut finish = || {
            let all = whole
                && all_zeros
                && discarded.all
                && failed.is_empty()
                && left_out.holds()
                && tracked.is_awake()?;
            // First that no write is under way, then that none has left a mark.
            let still = all && tracked.all_is_marked() && tracked.discards_spare(&dirty)?;
            let marks = tracked.marks()?;
            let again = || marks.marked_again(&dirty) + marks.marked_again(&unread);
            let settled = still && again() == 0;
            Ok((if settled { Grade::Settled } else { Grade::Fuzzy }, time))
        };
        let outcome = self.run(plan, &source, &mut finish, &mut |_| {
            let bytes = stale.without(tracked.dirty()?);
            pilot.tell(Event::Dirty { bytes, waiting: waiting(tracked, sweep)? });
            pilot.during()
        })?;
        self.found_unread(pilot, &failed, &mut dirty);
        self.acknowledge(&outcome.point, &discarded.runs, &dirty)?;
        self.tracked.left_out.are_zero(&zeros);
        self.sweep = next;
        let sent = sent.filter(|_| !behind && failed.is_empty());
        let event = self.made(pilot, &outcome, Cut { at: cut, sent })?;
        Ok(discarded.weigh(event))
    }
}
