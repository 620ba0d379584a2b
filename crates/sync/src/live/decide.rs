//! What is begun next, and when to look again.
//!
//! Invariant: [`Live::wake`] is the moment at which [`Live::step`] would begin something, if
//! nothing else happens; both go by the same moments.

use super::*;

impl Live {
    /// When to come back with [`Event::Tick`], if nothing else happens.
    pub fn wake(&self) -> Option<Moment> {
        let deadline = self.stop.map(|stop| stop.deadline);
        if self.stopped {
            None
        } else if self.job.is_some() {
            deadline
        } else {
            earliest([self.next().map(|(at, _)| at), deadline])
        }
    }

    pub(super) fn decide(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.stopped {
            return;
        }
        if let Some(stop) = self.stop {
            let idle = self.job.is_none();
            let nothing_to_save = match self.state {
                State::NoConn(_) => true,
                State::Scanning(_) | State::Rescan(_) => idle,
                State::CatchUp | State::Live => idle && self.last_job(&stop).is_none(),
            };
            if now >= stop.deadline || nothing_to_save {
                return self.end(actions);
            }
        }
        if self.job.is_some() {
            return;
        }
        if let Some((_, mut job)) = self.next().filter(|(at, _)| now >= *at) {
            if let Job::Pass { hot, .. } = &mut job {
                *hot = self.takes_hot(now);
            }
            self.begin(now, job);
            actions.push(Action::Begin(job));
        }
    }

    fn begin(&mut self, now: Moment, job: Job) {
        match job {
            Job::Connect { .. } => self.retry.begin(now),
            Job::Scan { .. } => {
                if let Baseline::Owed { begun, .. } = &mut self.baseline {
                    *begun = true;
                }
            }
            Job::Pass { hot, .. } => {
                self.last_pass = Some(now);
                self.last_hot = if hot { Some(now) } else { self.last_hot };
                let frozen_at = self.points.freeze_at(&self.lags);
                let wanted = self.stop.is_none() && frozen_at.is_some_and(|at| now >= at);
                if wanted && self.points.approach == Approach::None {
                    self.points.begin();
                }
            }
            Job::Freeze | Job::Checkpoint => {}
        }
        if let Some(stop) = &mut self.stop {
            stop.passed |= matches!(job, Job::Pass { .. });
            stop.checkpointed |= job == Job::Checkpoint;
        }
        self.job = Some(Running { job, begun: now, cancelled: false });
    }

    /// What comes next, and when, with nothing running.
    fn next(&self) -> Option<(Moment, Job)> {
        match (self.state, &self.stop) {
            (State::NoConn(_), _) => {
                let job = Job::Connect { takeover: self.takeover };
                self.retry.next().map(|at| (at, job))
            }
            (State::Scanning(_) | State::Rescan(_), _) => {
                let resume = matches!(self.baseline, Baseline::Owed { begun: true, .. });
                Some((self.not_before, Job::Scan { resume }))
            }
            (State::CatchUp | State::Live, Some(stop)) => {
                self.last_job(stop).map(|job| (Moment::ZERO, job))
            }
            (State::CatchUp | State::Live, None) => self.next_of_following(),
        }
    }

    /// What a clean stop still does.
    fn last_job(&self, stop: &Stop) -> Option<Job> {
        if !stop.passed && (self.lags.dirty > 0 || self.lags.changed) {
            Some(self.pass())
        } else if !stop.checkpointed && self.checkpoints.deltas > 0 {
            Some(Job::Checkpoint)
        } else {
            None
        }
    }

    /// The first of what is wanted; of what is wanted at the same time, a checkpoint.
    fn next_of_following(&self) -> Option<(Moment, Job)> {
        match self.points.approach {
            Approach::Ready => return Some((self.not_before, Job::Freeze)),
            Approach::Passes { .. } => return Some((self.not_before, self.pass())),
            Approach::None => {}
        }
        let consistent = self.head.is_some_and(|head| head.grade.consistent());
        let checkpoint = self.checkpoints.at(consistent).map(|at| at.max(self.not_before));
        let pass = earliest([self.pass_at(), self.points.freeze_at(&self.lags)])
            .map(|at| at.max(self.not_before));
        match (checkpoint, pass) {
            (Some(at), pass) if pass.is_none_or(|pass| at <= pass) => Some((at, Job::Checkpoint)),
            (_, pass) => pass.map(|at| (at, self.pass())),
        }
    }

    fn pass_at(&self) -> Option<Moment> {
        let spaced = self.last_pass.map_or(Moment::ZERO, |begun| begun + PASS_MIN);
        if self.lags.dirty > self.waiting {
            Some(spaced)
        } else if self.lags.dirty > 0 {
            Some(spaced.max(self.hot_at()))
        } else {
            self.points.settle_at(&self.lags).map(|at| at.max(spaced))
        }
    }

    const fn pass(&self) -> Job {
        Job::Pass { deltas_max: self.checkpoints.room(), hot: false }
    }

    /// When blocks that are written all the time are due.
    fn hot_at(&self) -> Moment {
        let every = match self.points.freeze {
            Freeze::Auto { every } => every.min(HOT_EVERY),
            Freeze::Never => HOT_EVERY,
        };
        self.last_hot.map_or(Moment::ZERO, |last| last + every)
    }

    /// Whether a pass that begins now takes them. Before a freeze only if they are so many that they
    /// must be sent first: the freeze takes them anyway.
    fn takes_hot(&self, now: Moment) -> bool {
        let freezes = || self.points.freeze_at(&self.lags).is_some_and(|at| now >= at);
        match self.points.approach {
            _ if self.stop.is_some() => true,
            Approach::Passes { .. } => true,
            _ => now >= self.hot_at() && !freezes(),
        }
    }
}

fn earliest<const N: usize>(moments: [Option<Moment>; N]) -> Option<Moment> {
    moments.into_iter().flatten().min()
}
