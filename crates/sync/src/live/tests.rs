//! Tests of the five states: a table of every transition, random walks, and scenarios.

mod lags;
mod points;
mod retry;
mod scenes;
mod table;
mod walk;

use std::time::Duration;

use dormouse_format::point::Grade;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The machine, its clock, and what it asked for last.
#[derive(Clone)]
struct Bench {
    live: Live,
    now: Moment,
    seq: u64,
}

impl Bench {
    fn new() -> Self {
        Self::with(Freeze::Auto { every: MINUTE })
    }

    fn with(freeze: Freeze) -> Self {
        Self::of(Settings { size: 100 * GIB, freeze, rest_max: 64 * MIB, seed: 1 })
    }

    fn of(settings: Settings) -> Self {
        Self { live: Live::new(settings), now: SECOND, seq: 100 }
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.live.step(self.now, event, &mut actions);
        actions
    }

    /// Tells it this much later.
    fn after(&mut self, wait: Duration, event: Event) -> Vec<Action> {
        self.now += wait;
        self.tell(event)
    }

    /// Goes to where it wants to be told the time, and tells it; how long that was.
    fn sleep(&mut self) -> Duration {
        let before = self.now;
        self.now = self.now.max(self.live.wake().expect("it waits for something"));
        self.tell(Event::Tick);
        self.now - before
    }

    fn tick(&mut self) -> Vec<Action> {
        self.tell(Event::Tick)
    }

    fn job(&self) -> Option<Job> {
        self.live.job()
    }

    fn view(&self) -> View {
        self.live.view(self.now)
    }

    fn point(&mut self, grade: Grade) -> PointSeen {
        self.seq += 1;
        PointSeen { seq: self.seq, grade, time: self.seq }
    }

    fn head(&mut self, grade: Grade) -> Head {
        let point = self.point(grade);
        let consistent = grade.consistent().then_some((point, 2 * SECOND));
        Head { point, consistent, deltas: 0 }
    }

    fn connected(&mut self, dirty: u64) -> Event {
        let head = self.head(Grade::Settled);
        Event::Connected { proof: Proof::Unbroken, head: Some(head), dirty }
    }

    /// The end of a job that made a point: of the disk as it was when it began.
    fn made(&mut self, grade: Grade, bytes: u64, left: u64) -> Event {
        let point = self.point(grade);
        let cut = self.live.job.map_or(self.now, |running| running.begun);
        Event::Made(carried(point, cut, [bytes, bytes / 128, left]))
    }

    /// In LIVE, with nothing to do.
    fn live() -> Self {
        Self::new().into_live()
    }

    fn into_live(mut self) -> Self {
        self.tick();
        let event = self.connected(0);
        self.tell(event);
        assert_eq!((self.live.state(), self.job()), (State::Live, None));
        self
    }

    /// Ends the pass that runs, `took` after now.
    fn pass_ends(&mut self, took: Duration, grade: Grade, bytes: u64, left: u64) -> Vec<Action> {
        self.now += took;
        let event = self.made(grade, bytes, left);
        self.tell(event)
    }
}

/// A point of all that was marked at `cut`.
const fn carried(point: PointSeen, cut: Moment, [bytes, deltas, left]: [u64; 3]) -> Made {
    Made { point, cut, sent: Some(cut), bytes, deltas, left, waiting: 0, stale: 0 }
}

fn lost(away: Away) -> Event {
    Event::Lost { away, detail: String::new() }
}

fn failed() -> Event {
    Event::Failed { detail: "a cable fell out".into() }
}

fn unfrozen(why: Unfrozen) -> Event {
    Event::Unfrozen { why, detail: String::new() }
}

const fn dirty(bytes: u64) -> Event {
    Event::Dirty { bytes, waiting: 0 }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn is_pass(job: Option<Job>) -> bool {
    matches!(job, Some(Job::Pass { .. }))
}
