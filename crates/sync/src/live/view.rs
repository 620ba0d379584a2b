//! What `dormouse status` shows of a volume that is followed.

use std::time::Duration;

use dormouse_format::point::Grade;
use dormouse_format::{Seq, TimeNs};

use super::reason::{State, Unfrozen};
use super::{Freeze, Job, Live, Moment};

/// A point, as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointSeen {
    /// Its number.
    pub seq: Seq,
    /// Its grade.
    pub grade: Grade,
    /// The writer's clock.
    pub time: TimeNs,
}

/// All that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The state, with its reason: [`State::name`], [`State::reason`].
    pub state: State,
    /// What was said about the reason, where something was.
    pub detail: String,
    /// What runs.
    pub job: Option<Job>,
    /// A clean stop is under way, or done.
    pub stopping: bool,
    /// Age of the oldest write that the server does not have, at most; unknown before a
    /// first comparison.
    pub data_lag: Option<Duration>,
    /// Age of the newest consistent point, 0 while the disk is as it shows; none without one.
    pub point_lag: Option<Duration>,
    /// Bytes to compare or to send.
    pub backlog: u64,
    /// Bytes a second, while something was sent lately.
    pub rate: Option<u64>,
    /// How long the backlog takes at this rate.
    pub eta: Option<Duration>,
    /// The newest point.
    pub point: Option<PointSeen>,
    /// The newest consistent point that this side knows of.
    pub consistent: Option<PointSeen>,
    /// Blocks that cannot be read, and are old in the copy.
    pub stale: u64,
    /// Why the last freeze failed, and what was said about it.
    pub unfrozen: Option<(Unfrozen, String)>,
    /// Whether points are forced by freezing.
    pub freeze: Freeze,
    /// Until the server is tried again; none if it is there, or the user has to ask.
    pub next_try: Option<Duration>,
}

impl Live {
    /// What is shown. The lags are as exact as the last look at the tracker.
    pub fn view(&self, now: Moment) -> View {
        let whole = self.whole();
        let scan = match (self.state, self.progress) {
            (State::Scanning(_), Some(progress)) => Some(progress),
            _ => None,
        };
        let (backlog, rate) = match scan {
            Some((done, left)) => {
                let rate = self.job_time(now).and_then(|time| per_second(done, time));
                (left.saturating_add(self.lags.dirty), rate)
            }
            None => (self.lags.dirty, self.rate.measured()),
        };
        let connected = !matches!(self.state, State::NoConn(_));
        let waits = !connected && self.job.is_none() && !self.stopped;
        View {
            state: self.state,
            detail: self.detail.clone(),
            job: self.job.as_ref().map(|running| running.job),
            stopping: self.stop.is_some(),
            data_lag: self.lags.data(now, whole),
            point_lag: self.lags.point(now, whole),
            backlog,
            rate,
            eta: rate.filter(|_| connected).and_then(|rate| time_for(backlog, rate)),
            point: self.head,
            consistent: self.consistent,
            stale: self.lags.stale,
            unfrozen: self.points.unfrozen.clone(),
            freeze: self.points.freeze,
            next_try: self.retry.next().filter(|_| waits).map(|at| at.saturating_sub(now)),
        }
    }
}

fn per_second(bytes: u64, time: Duration) -> Option<u64> {
    let rate = (u128::from(bytes) * 1_000_000_000).checked_div(time.as_nanos())?;
    u64::try_from(rate).ok()
}

fn time_for(bytes: u64, rate: u64) -> Option<Duration> {
    let nanos = (u128::from(bytes) * 1_000_000_000).checked_div(u128::from(rate))?;
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}
