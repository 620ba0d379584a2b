//! What takes its time: passes, freezes, checkpoints; connecting and scans in files of their own.
//!
//! Invariant: after a job that failed with the server still there, the link is as it was before:
//! no answer is open. What a pass carried is forgotten when it is acknowledged, and not before.

mod begin;
mod pass;
mod probe;
mod scan;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::point::{Grade, SignedPoint};
use dormouse_format::{Seq, TimeNs};
use dormouse_sync::checkpoint::{self, Checkpoint};
use dormouse_sync::copy::{self, Copy, Outcome, Progress};
use dormouse_sync::history::hash_of;
use dormouse_sync::leaf::LeafSet;
use dormouse_sync::live::{Away, Event, Job, Made, PointSeen, Unfrozen};
use dormouse_track::dirty::Dirty;
use dormouse_track::runs::Runs;
use dormouse_track::sweep::Sweep;

use super::connecting::Opened;
use super::discards::Look;
use super::disk::{Change, Tracked, leaf_set};
use super::freezing::{self, Freezing, REST_SMALL, Taken};
use super::pilot::{Cancelled, Pilot};
use super::stale::{Failed, Stale};
use crate::daemon::config::MirrorConfig;
use crate::engine::{self, Leaves};
use crate::exit::away_of;
use crate::home::{Account, Anchor, Home};
use crate::log::{Entry, Level, Log};
use crate::pace::Pace;
use crate::{connect, text, unread, writing};

/// Bytes of leaves in flight: enough for a link of 80 MB/s and 100 ms.
const WINDOW: u64 = 8 << 20;
/// Leaves of one pass: what it keeps in memory about them is 40 bytes each.
const LEAVES_MAX: usize = 256 << 10;
/// Blocks of one pass: 64 MiB, a second or two. What a pass carries is forgotten when its point is
/// acknowledged; a link that breaks ever again must let some through.
const BLOCKS_MAX: u64 = 16 << 10;
/// What a dirty block takes in a delta, at most: tag, chunk, and its share of a run.
const DELTA_PER_BLOCK: u64 = 48;
/// Rounds of writing back and sending before a freeze.
const CONVERGE_MAX: u32 = 5;
/// How often the newest head is written to the home.
const REMEMBER_EVERY: Duration = Duration::from_secs(600);

/// Does the jobs of one mirror.
pub(super) struct Worker {
    home: Home,
    account: Arc<Account>,
    config: MirrorConfig,
    pace: Option<Arc<Pace>>,
    pub(super) tracked: Tracked,
    session: Option<Opened>,
    connected: bool,
    /// Bytes of deltas since the last checkpoint, if that is known.
    deltas: Option<u64>,
    newest: Option<SignedPoint>,
    remembered: Instant,
    read: AtomicU64,
    /// [`dormouse_track::marks::Marks::marked`] when dirty blocks were last counted.
    counted: Option<u64>,
    dirty: u64,
    waiting: u64,
    freezing: Freezing,
    stale: Stale,
    /// The right to write under which stale blocks were told, and how many times they had changed.
    told: Option<(u64, u64)>,
    sweep: Sweep,
    /// At what was discarded.
    look: Look,
    probe: probe::Probe,
    /// The point of which a checkpoint was tried last before a scan.
    uncheckpointed: Option<Seq>,
    /// Bytes that had crossed the present link when they were last counted.
    moved: u64,
}

impl Worker {
    pub(super) fn new(
        home: Home,
        account: Arc<Account>,
        config: MirrorConfig,
        pace: Option<Arc<Pace>>,
        tracked: Tracked,
    ) -> Self {
        Self {
            home,
            account,
            config,
            pace,
            tracked,
            session: None,
            connected: false,
            deltas: None,
            newest: None,
            remembered: Instant::now(),
            read: AtomicU64::new(0),
            counted: None,
            dirty: 0,
            waiting: 0,
            freezing: Freezing::default(),
            stale: Stale::default(),
            told: None,
            sweep: Sweep::default(),
            look: Look::default(),
            probe: probe::Probe::default(),
            uncheckpointed: None,
            moved: 0,
        }
    }

    /// Does a job to its end. An error if the mirror cannot go on at all.
    pub(super) fn work(&mut self, pilot: &mut Pilot<'_>, job: Job) -> Result<Event> {
        let done = self.end_probe().and_then(|()| match job {
            Job::Connect { takeover } => self.connect(pilot, takeover),
            Job::Scan { resume } => self.scan(pilot, resume),
            Job::Pass { deltas_max, hot } => self.pass(pilot, deltas_max, hot),
            Job::Freeze => self.freeze(pilot),
            Job::Checkpoint => self.checkpoint(pilot),
        });
        let event = match done {
            Ok(event) => event,
            Err(error) => self.failed(pilot, &error),
        };
        pilot.teller.counters.bytes_read = self.read.load(Ordering::Relaxed);
        pilot.teller.swap = self.tracked.left_out.note();
        pilot.teller.discarded = self.tracked.discarded.to_look_at();
        if let Some(session) = &self.session {
            let moved = session.link.moved();
            pilot.teller.counters.bytes_on_link += moved - self.moved.min(moved);
            self.moved = moved;
        }
        self.counted = None;
        Ok(event)
    }

    /// What an error of a job means.
    fn failed(&mut self, pilot: &Pilot<'_>, error: &anyhow::Error) -> Event {
        if let Ok(marks) = self.tracked.marks() {
            marks.carry_back();
        }
        let detail = format!("{error:#}");
        if error.is::<Cancelled>() && self.session.is_some() {
            return Event::Failed { detail };
        }
        // The link is in the middle of something: the next begins anew. What was put stays put.
        self.session = None;
        let away = away_of(error).unwrap_or(Away::Failed);
        pilot.teller.warn(&detail);
        Event::Lost { away, detail }
    }

    /// Looks at the marks between jobs.
    pub(super) fn look(&mut self, pilot: &mut Pilot<'_>) -> Result<()> {
        if let Some(change) = self.tracked.change()? {
            self.changed(pilot, change);
        }
        if self.tracked.look_at_swap(false)? {
            self.counted = None;
        }
        pilot.teller.swap = self.tracked.left_out.note();
        let marked = self.tracked.marks()?.marked();
        if self.counted != Some(marked) {
            self.counted = Some(marked);
            self.dirty = self.tracked.dirty()?;
            self.waiting = waiting(&self.tracked, &self.sweep)?;
        }
        if self.stale.without(self.dirty) <= self.waiting
            && self.session.is_some()
            && self.tracked.is_whole()
        {
            self.look.go_on(&mut self.tracked, &self.read)?;
        }
        pilot.teller.discarded = self.tracked.discarded.to_look_at();
        let bytes = self.stale.without(self.dirty);
        pilot.tell(Event::Dirty { bytes, waiting: self.waiting });
        let ended = self.session.as_ref().and_then(|s| s.link.tx.ended());
        let lost = match (self.probe(), ended) {
            (Err(error), _) => Some(error),
            (Ok(()), ended) => ended.map(|ended| connect::link_failure(&ended).into()),
        };
        if let Some(error) = lost {
            let event = self.failed(pilot, &error);
            pilot.tell(event);
        }
        if self.remembered.elapsed() >= REMEMBER_EVERY {
            self.remember()?;
        }
        Ok(())
    }

    fn changed(&mut self, pilot: &mut Pilot<'_>, change: Change) {
        match change {
            Change::Gap(gap) => pilot.tell(Event::Gap(gap)),
            Change::Size(size) => {
                self.sweep = Sweep::default();
                pilot.tell(Event::Resized { size });
            }
        }
    }

    /// A clean end.
    pub(super) fn end(mut self, log: &Log) -> Result<()> {
        self.remember()?;
        // Nothing is lost without it, but time.
        let said = match self.tracked.close(&self.home, &self.config) {
            Ok(said) => said,
            Err(error) => Some(format!("after a reboot all will be compared: {error:#}")),
        };
        said.iter().for_each(|text| log.event(&Entry::new(Level::Notice, text)));
        Ok(())
    }

    /// Writes the newest head to the home.
    fn remember(&mut self) -> Result<()> {
        self.remembered = Instant::now();
        let Some((session, head)) = self.session.as_ref().zip(self.newest.take()) else {
            return Ok(());
        };
        self.home.remember(&session.volume, &Anchor { head, vouched: true })?;
        self.remember_disk()
    }

    /// Writes to the home by what the disk is known, if that has changed.
    fn remember_disk(&self) -> Result<()> {
        let Some(session) = &self.session else { return Ok(()) };
        self.home.remember_disk(&session.volume.id, &self.tracked.id())
    }

    fn session(&self) -> Result<&Opened> {
        self.session.as_ref().context("there is no link")
    }

    fn plan(&self, mode: copy::Mode, leaves: LeafSet) -> Result<copy::Plan> {
        let session = self.session()?;
        Ok(copy::Plan {
            vault: self.account.vault,
            volume: session.volume.id,
            generation: copy::Generation::Given(session.generation),
            head: session.head,
            checkpoint: session.checkpoint,
            size: self.tracked.size(),
            leaves,
            mode,
            part: copy::ALL,
            stale: self.stale.len() > 0,
            window: WINDOW,
        })
    }

    /// Runs a copy; a cancelled one leaves a link that can be used.
    fn run(
        &self,
        plan: copy::Plan,
        source: &dyn Leaves,
        finish: &mut dyn FnMut() -> Result<(Grade, TimeNs)>,
        show: &mut dyn FnMut(&Progress) -> Result<()>,
    ) -> Result<Outcome> {
        let session = self.session()?;
        let sealing = &session.sealing;
        let (secrets, signer) = (Arc::clone(&sealing.secrets), Arc::clone(&sealing.signer));
        let mut copy = Copy::new(plan, secrets, signer)?;
        let done = engine::run_copy(&session.link, &mut copy, sealing, source, finish, show);
        if done.as_ref().is_err_and(|e| e.is::<Cancelled>() || e.is::<scan::Behind>()) {
            for _ in 0..copy.asked().1 {
                connect::receive(&session.link)?;
            }
        }
        done
    }

    /// Goes on from this point, which is durable.
    fn take_for_head(&mut self, signed: SignedPoint, receipt: TimeNs) -> Result<()> {
        self.newest = Some(signed);
        let session = self.session.as_mut().context("there is no link")?;
        let stored = writing::as_stored(&session.link, signed, receipt)?;
        if signed.point.is_checkpoint() {
            session.checkpoint = Some(stored);
        }
        session.head = Some(stored);
        Ok(())
    }

    /// The point is durable and on record.
    fn made(&mut self, pilot: &mut Pilot<'_>, outcome: &Outcome, cut: Cut) -> Result<Event> {
        let signed = outcome.point;
        self.take_for_head(signed, outcome.receipt)?;
        let point = seen(&signed);
        pilot.teller.count(&point);
        pilot.teller.counters.bytes_sent += outcome.progress.sent_bytes;
        let deltas = outcome.progress.extent_bytes;
        if !signed.point.is_checkpoint() {
            self.deltas = self.deltas.map(|sum| sum + deltas);
        }
        Ok(Event::Made(Made {
            point,
            cut: cut.at,
            sent: cut.sent,
            bytes: outcome.progress.changed * BLOCK_SIZE as u64,
            deltas: if signed.point.is_checkpoint() { 0 } else { deltas },
            left: self.stale.without(self.tracked.dirty()?),
            waiting: waiting(&self.tracked, &self.sweep)?,
            stale: self.stale.len(),
        }))
    }

    /// Names the blocks that the disk does not give, for the points from the next one on, if they are
    /// others than those that were named.
    fn tell_stale(&mut self) -> Result<()> {
        let session = self.session()?;
        let told = Some((session.generation, self.stale.changes()));
        if self.stale.len() == 0 || self.told == told {
            return Ok(());
        }
        let seq = session.head.map_or(1, |head| head.point().seq + 1);
        let of = (self.account.vault, session.volume.id);
        let record = unread::record(&session.sealing.signer, of, seq, self.stale.blocks());
        connect::send(&session.link, record)?;
        self.told = told;
        Ok(())
    }

    /// Of what was to be read, this could not be: it is no part of `dirty` any more.
    fn found_unread(&mut self, pilot: &mut Pilot<'_>, failed: &Failed, dirty: &mut Dirty) {
        let (new, lines) = self.stale.found(failed, dirty);
        pilot.teller.counters.read_errors += new;
        lines.iter().for_each(|line| pilot.teller.warn(line));
    }

    /// First on record, then forgotten: who dies in between sends some blocks twice.
    fn acknowledge(&mut self, point: &SignedPoint, zeros: &Runs, dirty: &Dirty) -> Result<()> {
        self.tracked.acknowledged(hash_of(point).0, point.point.seq)?;
        self.tracked.has_sent(zeros, dirty)?;
        let marks = self.tracked.marks()?;
        marks.forget(dirty);
        marks.carry_back();
        Ok(())
    }

    fn freeze(&mut self, pilot: &mut Pilot<'_>) -> Result<Event> {
        let before = self.config.hook_before.clone();
        if let Some(Err(error)) = before.as_ref().map(freezing::run_hook) {
            let detail = format!("{error:#}");
            return Ok(unfrozen(pilot, Unfrozen::Failed, detail));
        }
        let taken = self.take_frozen(pilot);
        if let Some(Err(error)) = self.config.hook_after.as_ref().map(freezing::run_hook) {
            pilot.teller.warn(&format!("{error:#}"));
        }
        let taken = match taken? {
            Ok(taken) => taken,
            Err((why, detail)) => {
                self.tracked.marks()?.carry_back();
                return Ok(unfrozen(pilot, why, detail));
            }
        };
        let event = self.send_frozen(pilot, &taken);
        self.freezing.give_back(taken);
        event
    }

    fn send_frozen(&mut self, pilot: &mut Pilot<'_>, taken: &Taken) -> Result<Event> {
        self.tell_stale()?;
        let plan = self.plan(copy::Mode::Changes, leaf_set(self.tracked.size(), &taken.dirty))?;
        let (tracked, sweep) = (&self.tracked, &self.sweep);
        let earned = (Taken::GRADE, taken.time);
        let outcome = self.run(plan, taken, &mut || Ok(earned), &mut |_| {
            let bytes = tracked.dirty()?;
            pilot.tell(Event::Dirty { bytes, waiting: waiting(tracked, sweep)? });
            pilot.during()
        })?;
        self.acknowledge(&outcome.point, &Runs::default(), &taken.dirty)?;
        pilot.teller.frozen(outcome.point.point.seq, &taken.said);
        self.made(pilot, &outcome, Cut::all(taken.cut))
    }

    /// Writes back and sends most of it first, so that little is left while all wait.
    fn take_frozen(
        &mut self,
        pilot: &mut Pilot<'_>,
    ) -> Result<std::result::Result<Taken, freezing::Refusal>> {
        let all = match freezing::file_systems(&self.tracked)? {
            Ok(all) => all,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for _ in 0..CONVERGE_MAX {
            let quick = freezing::write_back(&all)?;
            let little = self.tracked.dirty()? <= REST_SMALL;
            if quick && little {
                break;
            }
            if !little {
                self.pass(pilot, u64::MAX, true)?;
            }
        }
        self.freezing.take(&mut self.tracked, &self.stale, &all)
    }

    fn checkpoint(&mut self, pilot: &mut Pilot<'_>) -> Result<Event> {
        let session = self.session()?;
        let (head, checkpoint) = (session.head, session.checkpoint);
        let plan = checkpoint::Plan {
            generation: session.generation,
            head: head.context("there is no point yet")?,
            checkpoint: checkpoint.context("there is no checkpoint yet")?,
            grade: head.map_or(Grade::Fuzzy, |h| h.point().grade),
            // It is the same state.
            time: head.map_or_else(text::now_ns, |h| h.point().time),
            fork: None,
        };
        let mut run = Checkpoint::new(plan, Arc::clone(&session.sealing.signer))?;
        // It is short, and ends a link if it is broken off: it is not.
        let mut show = || {
            let _ = pilot.during();
            Ok(())
        };
        let (point, receipt) = engine::run_checkpoint(&session.link, &mut run, &mut show)?;
        self.tracked.acknowledged(hash_of(&point).0, point.point.seq)?;
        self.take_for_head(point, receipt)?;
        self.deltas = Some(0);
        Ok(Event::Checkpointed { seq: point.point.seq })
    }
}

/// What a point was made of.
struct Cut {
    at: Duration,
    /// Every write before is on the server.
    sent: Option<Duration>,
}

impl Cut {
    /// Of all that was marked.
    const fn all(at: Duration) -> Self {
        Self { at, sent: Some(at) }
    }
}

/// Bytes of marked blocks that wait for their turn.
fn waiting(tracked: &Tracked, sweep: &Sweep) -> Result<u64> {
    Ok(sweep.waiting(&tracked.marks()?) * BLOCK_SIZE as u64)
}

/// There is no frozen point.
fn unfrozen(pilot: &mut Pilot<'_>, why: Unfrozen, detail: String) -> Event {
    pilot.teller.counters.freezes_failed += 1;
    Event::Unfrozen { why, detail }
}

const fn seen(point: &SignedPoint) -> PointSeen {
    PointSeen { seq: point.point.seq, grade: point.point.grade, time: point.point.time }
}
