//! The job that compares all of a disk with what the server has.
//!
//! It goes in steps through the addresses. Each ends with a point, so that the copy has what was
//! compared, and with a note beside the marks of how far it has come: whoever is broken off goes on
//! there, as long as the watch does. The points before the last are fuzzy: they show progress, and
//! nobody restores them unasked.
//!
//! Invariant: when it ends well, the copy and the marked blocks together are the disk; at each step,
//! the same holds of what was compared. A block that cannot be read is marked, and stays in the copy as
//! the newest point has it: as zeros, if there was none. So a checkpoint of that point comes first,
//! where a scan builds on an older one; and always before a scan of several steps.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_format::limits::{BLOCK_SIZE, PAGE_BLOCKS};
use dormouse_format::point::Grade;
use dormouse_sync::copy;
use dormouse_sync::history::hash_of;
use dormouse_sync::live::Event;
use dormouse_track::dirty::Dirty;
use dormouse_track::sweep::Sweep;

use super::{Cut, Worker};
use crate::live::disk::Reading;
use crate::live::pilot::{Cancelled, Pilot, now};
use crate::live::stale::{Failed, Stale};
use crate::text;

/// Bytes of the disk that a page of the map covers.
const PAGE: u64 = PAGE_BLOCKS * BLOCK_SIZE as u64;
/// Pages of the first step: 256 MiB. A disk that is no larger is compared in one.
const STEP_MIN: u64 = 4;
/// So long a step takes, about: that much is read again, at most, when a scan is broken off.
const STEP_AIM: Duration = Duration::from_secs(30);

/// Blocks cannot be read, and what the newest point has of them is not in the last checkpoint.
#[derive(Debug, thiserror::Error)]
#[error("blocks cannot be read, and a checkpoint comes first")]
pub(super) struct Behind;

/// Where a scan stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Steps {
    /// The page at which this run of it began.
    from: u64,
    /// The pages of the next step.
    part: Range<u64>,
    /// Pages of the disk.
    end: u64,
    /// When the watch began that it goes by, unless that was in an earlier run.
    cut: Option<Duration>,
}

impl Steps {
    /// From a page on; `all` at once if need be.
    fn new(from: u64, size: u64, all: bool, cut: Option<Duration>) -> Self {
        let mut steps = Self { from, part: from..from, end: size.div_ceil(PAGE), cut };
        steps.take(if all { u64::MAX } else { STEP_MIN });
        steps
    }

    fn take(&mut self, pages: u64) {
        let (start, end) = (self.part.end, self.part.end.saturating_add(pages));
        self.part = start..if end >= self.end { copy::ALL.end } else { end };
    }

    const fn is_last(&self) -> bool {
        self.part.end == copy::ALL.end
    }

    /// The next one, after one that took so long.
    fn next(&mut self, took: Duration) {
        let pages = self.part.end - self.part.start;
        self.take(match took {
            _ if took > STEP_AIM * 2 => (pages / 2).max(STEP_MIN),
            _ if took < STEP_AIM / 2 => pages.saturating_mul(2),
            _ => pages,
        });
    }
}

impl Worker {
    pub(super) fn scan(&mut self, pilot: &mut Pilot<'_>, resume: bool) -> Result<Event> {
        pilot.teller.counters.scans += 1;
        let from = if resume { self.tracked.scanned()? } else { 0 };
        if from == 0 && self.tracked.size() > STEP_MIN * PAGE {
            self.checkpoint_first(pilot)?;
        }
        let mut steps = if from == 0 { self.begin()? } else { self.go_on(pilot, from)? };
        loop {
            let began = Instant::now();
            match self.step(pilot, &steps) {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => steps.next(began.elapsed()),
                Err(error) if error.is::<Behind>() => {
                    self.checkpoint(pilot)?;
                    steps = self.begin()?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if let Some(change) = self.tracked.change()? {
                self.changed(pilot, change);
                pilot.show(true);
                return Err(Cancelled.into());
            }
        }
    }

    /// A scan of several steps goes on from the newest point. If no checkpoint of that can be made, it
    /// takes one step, and builds on the last checkpoint: so a damaged delta ends with it.
    fn checkpoint_first(&mut self, pilot: &mut Pilot<'_>) -> Result<()> {
        let newest = self.session()?.head.filter(|head| !head.point().is_checkpoint());
        let Some(newest) = newest.map(|head| head.point().seq) else { return Ok(()) };
        if self.uncheckpointed.replace(newest) != Some(newest) {
            self.checkpoint(pilot)?;
        }
        Ok(())
    }

    /// Whether it may go in steps: the checkpoint on which it builds is what the newest point shows,
    /// and no larger than the disk is now.
    fn in_steps(&self) -> Result<bool> {
        let session = self.session()?;
        let newest = session.head.is_none_or(|head| head.point().is_checkpoint());
        let size = session.checkpoint.map_or(0, |checkpoint| checkpoint.point().size);
        Ok(newest && size <= self.tracked.size())
    }

    /// From the beginning of the disk: the marks begin anew.
    fn begin(&mut self) -> Result<Steps> {
        let session = self.session()?;
        let (volume, generation, head) = (session.volume.id, session.generation, session.head);
        self.tracked.begin_scan(&volume, generation, head.as_ref())?;
        self.stale = Stale::default();
        self.sweep = Sweep::default();
        Ok(Steps::new(0, self.tracked.size(), !self.in_steps()?, Some(now())))
    }

    /// From where an earlier run has come to.
    fn go_on(&self, pilot: &Pilot<'_>, from: u64) -> Result<Steps> {
        let (at, size) = (text::size(from * PAGE), text::size(self.tracked.size()));
        pilot.teller.notice(&format!("the comparison goes on at {at} of {size}"));
        Ok(Steps::new(from, self.tracked.size(), !self.in_steps()?, None))
    }

    /// Compares a part; the end of the job, if it is the last.
    fn step(&mut self, pilot: &mut Pilot<'_>, steps: &Steps) -> Result<Option<Event>> {
        self.tell_stale()?;
        let (began, time) = (now(), text::now_ns());
        let behind = self.session()?.head.is_some_and(|head| !head.point().is_checkpoint());
        let leaves = self.tracked.source.leaf_set()?;
        let part = steps.part.clone();
        let plan = copy::Plan { part, ..self.plan(copy::Mode::Scan, leaves)? };
        let (tracked, failed) = (&self.tracked, Failed::default());
        let source = &tracked.source;
        let zeros = tracked.left_out.blocks();
        let source = Reading { source, only: None, zeros, read: &self.read, failed: &failed };
        let mut finish = || {
            anyhow::ensure!(!behind || failed.is_empty(), Behind);
            let marks = tracked.marks()?;
            failed.blocks().into_iter().for_each(|block| marks.mark(block, 1));
            let still = steps.is_last() && tracked.all_is_marked() && tracked.dirty()? == 0;
            let settled = still && tracked.left_out.holds() && tracked.is_awake()?;
            Ok((if settled { Grade::Settled } else { Grade::Fuzzy }, time))
        };
        let outcome = self.run(plan, &source, &mut finish, &mut |p| {
            pilot.teller.counters.bytes_read = self.read.load(Ordering::Relaxed);
            pilot.teller.queued = p.queued;
            pilot.tell(progress(steps, p, tracked.size()));
            pilot.tell(Event::Dirty { bytes: tracked.dirty()?, waiting: 0 });
            anyhow::ensure!(!behind || failed.is_empty(), Behind);
            pilot.during()
        })?;
        self.found_unread(pilot, &failed, &mut Dirty::default());
        self.stepped(pilot, steps, &outcome, began)
    }

    fn stepped(
        &mut self,
        pilot: &mut Pilot<'_>,
        steps: &Steps,
        outcome: &copy::Outcome,
        began: Duration,
    ) -> Result<Option<Event>> {
        let point = outcome.point;
        let (head, seq) = (hash_of(&point).0, point.point.seq);
        if !steps.is_last() {
            self.tracked.has_scanned(steps.part.end, head, seq)?;
            // Whoever comes back finds the watch by the volume.
            if self.home.known_volume(&self.config.volume)?.is_none() {
                self.newest = Some(point);
                self.remember()?;
            }
            self.made(pilot, outcome, Cut { at: began, sent: None })?;
            return Ok(None);
        }
        self.tracked.end_scan(head, seq)?;
        self.newest = Some(point);
        self.remember()?;
        self.deltas = Some(0);
        // Nothing was marked since an earlier run began: then it may as well have begun now.
        let settled = point.point.grade.consistent();
        let cut = steps.cut.or(settled.then_some(began));
        let sent = cut.filter(|_| self.stale.len() == 0);
        let event = self.made(pilot, outcome, Cut { at: cut.unwrap_or(began), sent })?;
        Ok(Some(event))
    }
}

/// How far this run has come.
fn progress(steps: &Steps, done: &copy::Progress, size: u64) -> Event {
    let leaf = PAGE / dormouse_format::limits::FANOUT;
    let at = steps.part.start * PAGE + done.leaves * leaf;
    Event::Progress { done: at - steps.from * PAGE, left: size.saturating_sub(at) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_go_through_all_of_a_disk_and_grow_with_its_speed() {
        let mut steps = Steps::new(0, 100 * PAGE + 1, false, None);
        let mut parts = vec![steps.part.clone()];
        let times = [1, 1, 20, 61, 1, 1, 1].map(Duration::from_secs);
        for took in times {
            if steps.is_last() {
                break;
            }
            steps.next(took);
            parts.push(steps.part.clone());
        }
        assert_eq!(parts, [0..4, 4..12, 12..28, 28..44, 44..52, 52..68, 68..100, 100..u64::MAX]);
        // Small disks, large ones that cannot go in steps, and what is left of one.
        assert_eq!(Steps::new(0, STEP_MIN * PAGE, false, None).part, copy::ALL);
        assert_eq!(Steps::new(0, 100 * PAGE, true, None).part, copy::ALL);
        assert_eq!(Steps::new(98, 100 * PAGE, false, None).part, 98..u64::MAX);
        assert_eq!(Steps::new(100, 100 * PAGE, false, None).part, 100..u64::MAX);
    }
}
