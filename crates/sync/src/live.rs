//! The five states of a volume that is followed: what is done next, and why.
//!
//! Owns: when the server is tried, when all is compared, when a pass begins, when a point is
//! forced by freezing, when a checkpoint is made, how a clean stop ends; and what is shown of
//! all that. No I/O, no clock: the program looks at the tracker and the network, tells what
//! it saw ([`Event`]), does what it is asked to ([`Action`]), and comes back at [`Live::wake`].
//!
//! Invariants: one job at a time. CATCHUP and LIVE only after a finished scan or the proof of
//! an unbroken watch. After another instance took the volume over, nothing is begun before
//! the user asks. Each job has one end; an event that ends no job that runs changes nothing.
//!
//! Leaves to others: the proof itself, bitmaps and freezing (`dormouse-track`), a scan, a pass
//! and a checkpoint ([`crate::copy`], [`crate::checkpoint`]), the loop (the program).

mod backoff;
mod decide;
mod events;
mod lag;
mod points;
mod reason;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

use dormouse_format::limits::BLOCK_SIZE;

use backoff::Backoff;
use lag::{Aged, Lags, Rate};
use points::{Approach, Checkpoints, Points};

pub use backoff::{RETRY_MAX, RETRY_MIN, ROUTE_MIN, Retry, STAYED};
pub use events::{Action, Event, Freeze, Head, Job, Made, Moment, Proof, Settings};
pub use lag::{LOOK_FRESH, RATE_ASSUMED};
pub use points::{
    CHECKPOINT_EVERY, CHECKPOINT_PATIENCE, CHECKPOINT_PAUSE, CONVERGE_MAX, DELTAS_SMALL,
    DELTAS_URGENT, FREEZE_PAUSE_MAX, FREEZE_PAUSE_MIN, MAP_BYTES_PER_BLOCK, REST_SMALL,
};
pub use reason::{Again, Away, Gap, State, Unfrozen};
pub use view::{PointSeen, View};

/// From the begin of one pass to that of the next: a write waits half of it on average, and
/// for its own pass, so that the data lag stays below a second.
pub const PASS_MIN: Duration = Duration::from_millis(250);
/// Blocks that are written all the time go that often, or at least as often as points are wanted: LIVE
/// promises a second.
pub const HOT_EVERY: Duration = Duration::from_secs(1);
/// A backlog that takes no longer makes CATCHUP to LIVE: the promise is a second.
pub const LIVE_WITHIN: Duration = Duration::from_secs(1);
/// A backlog that takes longer makes LIVE to CATCHUP. Well above the other, so that a burst
/// does not show as a change of state.
pub const CATCHUP_BEYOND: Duration = Duration::from_secs(3);
/// A clean stop takes no longer; service managers wait 90 s by default.
pub const STOP_MAX: Duration = Duration::from_secs(30);
/// A backlog that takes longer is left for the next start, so that the checkpoint still fits.
pub const STOP_PASS_MAX: Duration = Duration::from_secs(10);

/// Whether the marks are all that the server can lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Baseline {
    /// Nothing is proved yet.
    Unknown,
    /// All must be compared; `begun` if a scan has begun to, and the watch is unbroken since.
    Owed { gap: Gap, begun: bool },
    /// They are.
    Whole,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    job: Job,
    begun: Moment,
    cancelled: bool,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    since: Moment,
    /// A point was made on it.
    useful: bool,
}

#[derive(Debug, Clone, Copy)]
struct Stop {
    deadline: Moment,
    /// The last pass was begun, or is left out.
    passed: bool,
    checkpointed: bool,
}

/// A volume that is followed.
#[derive(Debug, Clone)]
pub struct Live {
    state: State,
    detail: String,
    baseline: Baseline,
    job: Option<Running>,
    /// Of the scan that runs: bytes done and left.
    progress: Option<(u64, u64)>,
    link: Option<Link>,
    retry: Retry,
    takeover: bool,
    probed: Option<Moment>,
    trouble: Backoff,
    not_before: Moment,
    last_pass: Option<Moment>,
    /// The last pass with hot blocks, and bytes of those that wait since.
    last_hot: Option<Moment>,
    waiting: u64,
    size: u64,
    lags: Lags,
    rate: Rate,
    points: Points,
    checkpoints: Checkpoints,
    head: Option<PointSeen>,
    consistent: Option<PointSeen>,
    stop: Option<Stop>,
    stopped: bool,
}

impl Live {
    /// Begins without a server. The first [`Event::Tick`] connects.
    pub fn new(settings: Settings) -> Self {
        let Settings { size, freeze, rest_max, seed } = settings;
        Self {
            state: State::NoConn(Away::Starting),
            detail: String::new(),
            baseline: Baseline::Unknown,
            job: None,
            progress: None,
            link: None,
            retry: Retry::new(seed),
            takeover: false,
            probed: None,
            trouble: Backoff::new(RETRY_MIN, RETRY_MAX, seed.rotate_left(32)),
            not_before: Moment::ZERO,
            last_pass: None,
            last_hot: None,
            waiting: 0,
            size,
            lags: Lags::default(),
            rate: Rate::default(),
            points: Points::new(freeze, rest_max, seed.rotate_left(16)),
            checkpoints: Checkpoints::default(),
            head: None,
            consistent: None,
            stop: None,
            stopped: false,
        }
    }

    /// Whether points are forced from now on.
    pub const fn set_freeze(&mut self, freeze: Freeze) {
        self.points.freeze = freeze;
    }

    /// The state.
    pub const fn state(&self) -> State {
        self.state
    }

    /// The job that runs.
    pub fn job(&self) -> Option<Job> {
        self.job.map(|running| running.job)
    }

    /// Takes an event; what is to be done is appended to `actions`.
    pub fn step(&mut self, now: Moment, event: Event, actions: &mut Vec<Action>) {
        if self.stopped {
            return;
        }
        match event {
            Event::Tick => {}
            Event::RouteChanged => self.route_changed(now, actions),
            Event::Try { takeover } => self.asked(now, takeover),
            Event::Connected { proof, head, dirty } => self.connected(now, proof, head, dirty),
            Event::Lost { away, detail } => self.lost(now, away, detail),
            Event::Made(made) => self.made(now, &made),
            Event::Unfrozen { why, detail } => self.unfrozen(now, why, detail),
            Event::Checkpointed { seq } => self.checkpointed(now, seq),
            Event::Failed { detail } => self.failed(now, detail),
            Event::Dirty { bytes, waiting } => {
                self.waiting = waiting;
                self.looked(now, bytes);
            }
            Event::Progress { done, left } => self.progressed(done, left),
            Event::Gap(gap) => self.gap(gap, actions),
            Event::Resized { size } => self.resized(now, size),
            Event::StopAsked => self.stop_asked(now, actions),
        }
        self.decide(now, actions);
    }

    const fn whole(&self) -> bool {
        matches!(self.baseline, Baseline::Whole)
    }

    fn job_time(&self, now: Moment) -> Option<Duration> {
        self.job.map(|running| now.saturating_sub(running.begun))
    }

    fn route_changed(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.link.is_none() {
            self.retry.route(now, self.job.is_some());
        } else if self.probed.is_none_or(|probed| now >= probed + ROUTE_MIN) {
            self.probed = Some(now);
            actions.push(Action::Probe);
        }
    }

    fn asked(&mut self, now: Moment, takeover: bool) {
        if self.link.is_none() {
            self.takeover |= takeover;
            self.retry.asked(now);
        }
    }

    fn connected(&mut self, now: Moment, proof: Proof, head: Option<Head>, dirty: u64) {
        if self.end_of(|job| matches!(job, Job::Connect { .. })).is_none() {
            return;
        }
        self.link = Some(Link { since: now, useful: false });
        self.takeover = false;
        self.detail.clear();
        self.baseline = match (proof, head, self.baseline) {
            // A scan that was cut off is no gap in the watch.
            (Proof::Unbroken | Proof::Broken(Gap::Incomplete), _, owed @ Baseline::Owed { .. }) => {
                owed
            }
            (Proof::Broken(gap), _, _) => {
                self.lags.gap(gap.watched());
                Baseline::Owed { gap, begun: gap == Gap::Incomplete }
            }
            (Proof::Unbroken, Some(_), _) => Baseline::Whole,
            (Proof::Unbroken, None, _) => Baseline::Owed { gap: Gap::FirstCopy, begun: false },
        };
        if let Some(head) = head {
            self.seen(now, &head);
        }
        self.lags.look(now, dirty, self.whole());
        self.state = match self.baseline {
            Baseline::Owed { gap, .. } => State::Scanning(gap),
            _ if dirty == 0 => State::Live,
            _ => State::CatchUp,
        };
    }

    fn seen(&mut self, now: Moment, head: &Head) {
        self.head = Some(head.point);
        self.lags.changed |= !head.point.grade.consistent();
        // A point that is not consistent may have left something out.
        let point = head.consistent.map(|(_, age)| Aged::new(now, age));
        self.lags.seen(point.filter(|_| self.whole()), point);
        self.consistent = head.consistent.map(|(point, _)| point).or(self.consistent);
        self.checkpoints.connected(now, head.deltas, self.size);
    }

    fn lost(&mut self, now: Moment, away: Away, detail: String) {
        if self.link.is_none() && self.job.is_none() {
            return;
        }
        let good =
            self.link.is_some_and(|link| link.useful || now.saturating_sub(link.since) >= STAYED);
        self.retry.lost(now, away.again(), good);
        if away.taken() {
            self.baseline = Baseline::Owed { gap: Gap::TakenOver, begun: false };
            self.lags.gap(Gap::TakenOver.watched());
        }
        self.state = State::NoConn(away);
        self.detail = detail;
        self.job = None;
        self.progress = None;
        self.link = None;
        self.points.abandon();
    }

    fn made(&mut self, now: Moment, made: &Made) {
        let makes_points = |job| matches!(job, Job::Scan { .. } | Job::Pass { .. } | Job::Freeze);
        let Some(ended) = self.end_of(makes_points) else { return };
        let scan = matches!(ended.job, Job::Scan { .. });
        let consistent = made.point.grade.consistent();
        self.head = Some(made.point);
        self.consistent = if consistent { self.head } else { self.consistent };
        if let Some(link) = &mut self.link {
            link.useful = true;
        }
        if scan {
            self.checkpoints.made(now);
        } else {
            self.checkpoints.added(now, made.deltas, self.size);
            self.rate.add(made.bytes, now.saturating_sub(ended.begun));
        }
        let overtaken = ended.cancelled && !self.whole();
        let sent = made.sent.filter(|_| !overtaken);
        self.lags.acknowledged(now, made.cut, sent, consistent, !overtaken);
        if overtaken {
            return;
        }
        self.detail.clear();
        self.trouble.reset();
        if scan {
            self.baseline = Baseline::Whole;
            self.state = State::CatchUp;
        }
        self.lags.stale = made.stale;
        self.waiting = made.waiting;
        self.lags.look(now, made.left, true);
        self.points.point(now, &self.lags, consistent, ended.job == Job::Freeze);
        if self.checkpoints.urgent() {
            self.points.abandon();
        }
        self.follow();
    }

    fn unfrozen(&mut self, now: Moment, why: Unfrozen, detail: String) {
        if self.end_of(|job| job == Job::Freeze).is_some() {
            self.points.failed(now, why, detail);
        }
    }

    fn checkpointed(&mut self, now: Moment, seq: dormouse_format::Seq) {
        if self.end_of(|job| job == Job::Checkpoint).is_some() {
            let newest = self.head == self.consistent;
            self.head = self.head.map(|head| PointSeen { seq, ..head });
            self.consistent = if newest { self.head } else { self.consistent };
            self.checkpoints.made(now);
        }
    }

    fn failed(&mut self, now: Moment, detail: String) {
        if matches!(self.job(), Some(Job::Connect { .. })) {
            return self.lost(now, Away::Failed, detail);
        }
        let Some(ended) = self.end_of(|_| true) else { return };
        if ended.cancelled {
            return;
        }
        match ended.job {
            Job::Freeze => self.points.failed(now, Unfrozen::Failed, detail),
            Job::Checkpoint => {
                self.checkpoints.failed(now);
                self.detail = detail;
            }
            Job::Connect { .. } | Job::Scan { .. } | Job::Pass { .. } => {
                self.points.abandon();
                self.not_before = now + self.trouble.next();
                self.detail = detail;
            }
        }
    }

    fn looked(&mut self, now: Moment, bytes: u64) {
        self.lags.look(now, bytes, self.whole());
        self.follow();
    }

    /// CATCHUP or LIVE, by what the backlog takes.
    fn follow(&mut self) {
        let takes = self.rate.time_for(self.lags.dirty.saturating_sub(self.waiting));
        if self.state == State::Live && takes > CATCHUP_BEYOND {
            self.state = State::CatchUp;
        } else if self.state == State::CatchUp && self.job.is_none() && takes <= LIVE_WITHIN {
            self.state = State::Live;
        }
    }

    fn progressed(&mut self, done: u64, left: u64) {
        if matches!(self.job(), Some(Job::Scan { .. })) {
            self.progress = Some((done, left));
        }
    }

    fn gap(&mut self, gap: Gap, actions: &mut Vec<Action>) {
        self.baseline = Baseline::Owed { gap, begun: false };
        self.lags.gap(gap.watched());
        self.points.abandon();
        if self.link.is_none() {
            return;
        }
        self.cancel(actions);
        self.state = if self.job.is_some() { State::Rescan(gap) } else { State::Scanning(gap) };
    }

    /// The next look shows the blocks that this has changed; one of them at least.
    fn resized(&mut self, now: Moment, size: u64) {
        self.size = size;
        self.looked(now, self.lags.dirty.max(BLOCK_SIZE as u64));
    }

    fn stop_asked(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.stop.is_some() {
            return self.end(actions);
        }
        let hopeless = self.rate.time_for(self.lags.dirty) > STOP_PASS_MAX;
        self.stop = Some(Stop { deadline: now + STOP_MAX, passed: hopeless, checkpointed: false });
        self.points.abandon();
        match self.job() {
            Some(Job::Scan { .. }) => self.cancel(actions),
            Some(Job::Pass { .. }) if hopeless => self.cancel(actions),
            _ => {}
        }
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        self.state = State::NoConn(Away::Ended);
        self.job = None;
        self.link = None;
        self.stopped = true;
        actions.push(Action::Stopped);
    }

    fn cancel(&mut self, actions: &mut Vec<Action>) {
        if let Some(running) = self.job.as_mut().filter(|running| !running.cancelled) {
            running.cancelled = true;
            actions.push(Action::Cancel);
        }
    }

    /// The job that runs, which has ended, if it is such a one.
    fn end_of(&mut self, such: impl Fn(Job) -> bool) -> Option<Running> {
        let ended = self.job.take_if(|running| such(running.job))?;
        self.progress = None;
        if let State::Rescan(gap) = self.state {
            self.state = State::Scanning(gap);
        }
        Some(ended)
    }
}
