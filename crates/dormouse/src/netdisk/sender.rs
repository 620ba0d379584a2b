//! The thread that sends what was written: cut after cut, each ended by a point.
//!
//! Invariant: a cut is forgotten only after its point was acknowledged and what lies below shows
//! it. A link that broke is made anew, and the same cut, with what came since, is sent again.
//! When somebody else has written to the volume, nothing is sent any more, and writes fail.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dormouse_device::write_log::{Cut, WriteLog};
use dormouse_format::limits::{BLOCK_SIZE, DELTAS_BYTES_MAX, LEAF_BLOCKS};
use dormouse_format::point::{Grade, SignedPoint};
use dormouse_format::vault::Volume;
use dormouse_sync::copy::Mode;
use dormouse_sync::leaf::{Claim, LeafData, LeafSet};
use dormouse_sync::live::{Again, Away, DELTAS_SMALL};

use super::{Below, Durability, Kept, Options, base_of, log_dir};
use crate::engine::Leaves;
use crate::exit::away_of;
use crate::home::{Account, Anchor, Home};
use crate::leaves::{Runs, read_runs};
use crate::out::note;
use crate::writing::{How, Writing};

/// Between two tries to reach the server: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A checkpoint at least this often, if points were made since.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);
/// Niceness of sending when no flush waits for it: who writes goes first, as with a kernel's own
/// write-back. When the processors are busy it still has a tenth of them.
const NICE: i32 = 10;
/// The newest head is written to the home this often.
const REMEMBER_EVERY: Duration = Duration::from_secs(600);

/// How it stands with sending, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The newest point.
    pub point: u64,
    /// Points that were made since the disk was opened.
    pub points: u64,
    /// Why nothing is sent now, if nothing is.
    pub away: Option<String>,
    /// Why nothing will be sent any more.
    pub ended: Option<String>,
}

/// What the disk and its sender tell each other.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    /// The sender has something to do.
    work: Condvar,
    /// Something was sent, or nothing will be.
    news: Condvar,
}

#[derive(Debug)]
struct State {
    /// A flush waits until entries below this number are sent.
    wanted: u64,
    sent: u64,
    /// When to stop at the latest.
    stop: Option<Instant>,
    seen: Seen,
}

impl Shared {
    pub(super) fn new(writing: &Writing) -> Self {
        let point = writing.head.map_or(0, |head| head.point().seq);
        let seen = Seen { point, ..Seen::default() };
        let state = State { wanted: 0, sent: 0, stop: None, seen };
        Self { state: Mutex::new(state), work: Condvar::new(), news: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seen(&self) -> Seen {
        self.state().seen.clone()
    }

    /// Waits until entries below `seq` are at the server.
    pub(super) fn sent(&self, seq: u64, wait: Option<Duration>) -> dormouse_device::Result<()> {
        let until = wait.map(|wait| Instant::now() + wait);
        let mut state = self.state();
        state.wanted = state.wanted.max(seq);
        self.work.notify_all();
        while state.sent < seq {
            if let Some(why) = &state.seen.ended {
                return Err(std::io::Error::other(why.clone()).into());
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                let why = state.seen.away.clone().unwrap_or_else(|| "the server is slow".into());
                return Err(dormouse_device::Error::TimedOut(why));
            }
            let woken = self.news.wait_timeout(state, left.unwrap_or(Duration::from_secs(3600)));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    pub(super) fn stop(&self, wait: Duration) {
        self.state().stop = Some(Instant::now() + wait);
        self.work.notify_all();
    }
}

/// The thread's own.
pub(super) struct Sender {
    home: Home,
    account: Arc<Account>,
    name: String,
    options: Options,
    writing: Option<Writing>,
    log: Arc<WriteLog>,
    below: Arc<dyn Below>,
    shared: Arc<Shared>,
    /// What must still hold when the volume is opened again.
    kept: Kept,
    volume: Volume,
    /// The newest point that was made here and is not in the home.
    newest: Option<SignedPoint>,
    /// Bytes of deltas since the last checkpoint; `None` if that is not known.
    deltas: Option<u64>,
    checkpointed: Instant,
    remembered: Instant,
}

impl Sender {
    pub(super) fn new(
        (home, account, name): (Home, Arc<Account>, String),
        options: Options,
        writing: Writing,
        (log, below, shared): (Arc<WriteLog>, Arc<dyn Below>, Arc<Shared>),
    ) -> Self {
        let base = base_of(&writing);
        let is_checkpoint = writing.head.is_some_and(|head| head.point().is_checkpoint());
        Self {
            home,
            account,
            name,
            options,
            // A link may break while a point is under way.
            kept: Kept { base, generation: base.generation, after_cut: true },
            volume: writing.volume.clone(),
            newest: None,
            deltas: is_checkpoint.then_some(0),
            writing: Some(writing),
            log,
            below,
            shared,
            checkpointed: Instant::now(),
            remembered: Instant::now(),
        }
    }

    /// Sends until it is told to stop, and what is left then.
    pub(super) fn run(mut self) {
        if self.options.durability == Durability::Local {
            // Of this thread and those that it starts. It only goes slower for others without it.
            let _ = rustix::process::setpriority_process(None, NICE);
        }
        let mut pause = RETRY.0;
        while self.wait_for_work() {
            match self.work() {
                Ok(()) => pause = RETRY.0,
                Err(error) => {
                    // The link may be in the middle of something.
                    self.writing = None;
                    if !self.told(&error) {
                        break;
                    }
                    self.sleep(pause);
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
        self.finish();
    }

    /// Whether it may be tried again after this error.
    fn told(&self, error: &anyhow::Error) -> bool {
        let away = away_of(error).unwrap_or(Away::Failed);
        let text = format!("{error:#}");
        let mut state = self.shared.state();
        if state.seen.away.as_deref() != Some(&text) {
            note!("{}: nothing is sent: {text}", self.name);
        }
        state.seen.away = Some(text.clone());
        let ended = away.again() == Again::Asked || error.is::<WrittenElsewhere>();
        if ended {
            state.seen.ended = Some(text);
            drop(state);
            self.log.end("the volume is not this machine's to write any more");
        }
        self.shared.news.notify_all();
        !ended
    }

    fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.shared.state();
        while state.stop.is_none_or(|stop| stop > Instant::now()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let left = state
                .stop
                .map_or(left, |stop| left.min(stop.saturating_duration_since(Instant::now())));
            let woken = self.shared.work.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until there is something to send, and for the time of the next point; `false` when
    /// it is over.
    fn wait_for_work(&self) -> bool {
        let due = Instant::now() + self.options.point_every;
        loop {
            let pending = self.log.pending();
            let half_full = self.log.is_half_full();
            let state = self.shared.state();
            let now = Instant::now();
            if let Some(stop) = state.stop {
                return pending && now < stop;
            }
            let waited_for = state.wanted > state.sent;
            if pending && (waited_for || half_full || now >= due) {
                return true;
            }
            let wait = match due.saturating_duration_since(now) {
                Duration::ZERO => self.options.point_every.max(Duration::from_millis(20)),
                left => left,
            };
            // A full log tells nobody: it is looked at again soon.
            drop(self.shared.work.wait_timeout(state, wait.min(Duration::from_millis(200))));
        }
    }

    fn work(&mut self) -> Result<()> {
        let mut writing = match self.writing.take() {
            Some(writing) => writing,
            None => self.connect()?,
        };
        // A full log is half of what the store takes between checkpoints, at most.
        if self.deltas.is_none_or(|deltas| deltas > DELTAS_BYTES_MAX / 3) {
            self.checkpoint(&mut writing)?;
        }
        let Some(cut) = self.log.cut()? else {
            self.writing = Some(writing);
            return Ok(());
        };
        self.send(&mut writing, cut)?;
        let late = self.checkpointed.elapsed() >= CHECKPOINT_EVERY;
        if self.deltas.is_some_and(|deltas| deltas > DELTAS_SMALL || late && deltas > 0) {
            self.checkpoint(&mut writing)?;
        }
        if self.remembered.elapsed() >= REMEMBER_EVERY {
            self.remember()?;
        }
        self.writing = Some(writing);
        Ok(())
    }

    fn send(&mut self, writing: &mut Writing, cut: Cut) -> Result<()> {
        let mut leaves = LeafSet::new(cut.size);
        let bytes = |block: u64| block.saturating_mul(BLOCK_SIZE as u64).min(cut.size);
        cut.runs().for_each(|(start, end, _)| leaves.add_bytes(bytes(start), bytes(end)));
        let source = CutLeaves { cut: &cut, below: &*self.below };
        let mut show = || self.may_go_on();
        let what = (cut.size, leaves);
        let log = &self.log;
        let (outcome, extents) = std::thread::scope(|scope| {
            // What is at the server must be here too, or an older log would be sent over it.
            let mut flush = Some(scope.spawn(|| log.flush()));
            let mut ready = || match flush.take().map(ScopedJoinHandle::join) {
                Some(Ok(flushed)) => Ok(flushed?),
                _ => anyhow::bail!("the thread that makes the write log durable has ended"),
            };
            let grade = (Grade::Ordered, &mut ready as _);
            writing.copy(Mode::Changes, what, &source, grade, &mut show)
        })?;
        let (seq, base) = (cut.seq, base_of(writing));
        self.kept.base = base;
        // First below, then out of the log: a block is always in one of them.
        self.below.apply(cut.size, &extents)?;
        self.log.forget(cut, base)?;
        self.newest = Some(outcome.point);
        self.deltas = self.deltas.map(|sum| sum + outcome.progress.extent_bytes);
        let mut state = self.shared.state();
        state.sent = state.sent.max(seq);
        state.seen.point = outcome.point.point.seq;
        state.seen.points += 1;
        state.seen.away = None;
        drop(state);
        self.shared.news.notify_all();
        Ok(())
    }

    fn may_go_on(&self) -> Result<()> {
        let stop = self.shared.state().stop;
        ensure!(stop.is_none_or(|stop| Instant::now() < stop), "the disk is being closed");
        Ok(())
    }

    fn checkpoint(&mut self, writing: &mut Writing) -> Result<()> {
        // So that the log is known to build on the head, and the checkpoint to repeat it.
        self.log.flush()?;
        // It is short, and ends the link if it is broken off: it is not.
        let stored = writing.make_checkpoint(&mut || Ok(()))?;
        self.below.rebase(&stored)?;
        self.kept.base = base_of(writing);
        self.log.builds_on(self.kept.base)?;
        self.newest = Some(stored.signed);
        self.deltas = Some(0);
        self.checkpointed = Instant::now();
        let mut state = self.shared.state();
        state.seen.point = stored.point().seq;
        state.seen.points += 1;
        Ok(())
    }

    /// Opens the volume again, if nobody else has written to it.
    fn connect(&mut self) -> Result<Writing> {
        // So that the server must show it, or one that goes on from it.
        self.remember()?;
        let how = How { level: self.options.level, takeover: false, new: false };
        let writing = Writing::open(&self.home, &self.account, &self.name, how)?;
        let id = writing.volume.id.0;
        let dir = log_dir(&self.home, &self.name);
        let head = writing.head.ok_or(dormouse_sync::Error::Moved)?;
        self.kept
            .check(&self.name, &id, &head, self.account.writer(), &dir)
            .map_err(|e| e.context(WrittenElsewhere))?;
        let base = base_of(&writing);
        self.log.rebase(base)?;
        // A point may have been made that this side was not told of: its extents are not laid
        // over what is below, but they are of blocks that are in the log still.
        self.deltas = self.deltas.filter(|_| base.seq == self.kept.base.seq);
        self.kept = Kept { base, generation: base.generation, after_cut: true };
        Ok(writing)
    }

    /// Writes the newest head to the home.
    fn remember(&mut self) -> Result<()> {
        self.remembered = Instant::now();
        if let Some(head) = self.newest {
            self.home.remember(&self.volume, &Anchor { head, vouched: true })?;
            self.newest = None;
        }
        Ok(())
    }

    /// The end: a checkpoint, if points were made since the last, and the head on record.
    fn finish(&mut self) {
        if let Some(mut writing) = self.writing.take()
            && self.newest.is_some()
            && self.deltas != Some(0)
            && self.may_go_on().is_ok()
            && let Err(error) = self.checkpoint(&mut writing)
        {
            note!("{}: no checkpoint at the end: {error:#}", self.name);
        }
        if let Err(error) = self.remember() {
            note!("{}: {error:#}", self.name);
        }
    }
}

impl Drop for Sender {
    /// However it ends, nobody waits for it any more.
    fn drop(&mut self) {
        self.shared.state().seen.ended.get_or_insert_with(|| "the disk was closed".into());
        self.shared.news.notify_all();
        self.log.end("nothing is sent any more");
    }
}

/// Somebody else has written to the volume.
#[derive(Debug, thiserror::Error)]
#[error("the volume was written elsewhere")]
struct WrittenElsewhere;

/// A cut as leaves; blocks that are read are offered to what lies below.
struct CutLeaves<'a> {
    cut: &'a Cut,
    below: &'a dyn Below,
}

impl Leaves for CutLeaves<'_> {
    fn read_leaf(&self, index: u64, claim: Claim) -> Result<LeafData> {
        let base = index * LEAF_BLOCKS;
        let end = (base + LEAF_BLOCKS).min(self.cut.size.div_ceil(BLOCK_SIZE as u64));
        let mut runs = Runs::new();
        self.cut.held(base, end, &mut |from, to| {
            let (first, count) = ((from - base) as u16, (to - from) as u16);
            match runs.last_mut() {
                Some((start, len)) if *start + *len == first => *len += count,
                _ => runs.push((first, count)),
            }
        });
        read_runs(claim, runs, |run, out| {
            let block = base + u64::from(run.0);
            self.cut.read(block, out)?;
            self.below.offer(block, out);
            Ok(vec![run])
        })
    }
}
