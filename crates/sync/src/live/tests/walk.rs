//! Random walks: a driver that may do anything which a driver may do, and a model that knows
//! each write and what the server has.

use std::collections::BTreeSet;

use dormouse_sim::Lcg;

use super::table;
use super::*;

const SEEDS: u64 = 3_000;

/// Who was told what, and what is true.
struct World {
    bench: Bench,
    random: Lcg,
    /// The job that was begun, when, and whether it was cancelled.
    job: Option<(Job, Moment)>,
    /// When something was written, as far as no consistent point has it.
    writes: Vec<Moment>,
    sent: Moment,
    pointed: Option<Moment>,
    /// A look showed so much at that moment.
    looked: Option<(Moment, bool)>,
    link: bool,
    /// CATCHUP and LIVE are earned.
    earned: bool,
    /// A gap came up while the scan ran.
    overtaken: bool,
    fenced: bool,
    tried: Option<Moment>,
    stop: Option<(Moment, u32)>,
    stopped: bool,
    visited: BTreeSet<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Lcg(seed);
        let every = Duration::from_secs(1 + random.below(60));
        let freeze = if random.below(4) == 0 { Freeze::Never } else { Freeze::Auto { every } };
        let settings = Settings { size: GIB, freeze, rest_max: 64 * MIB, seed };
        Self {
            bench: Bench::of(settings),
            random,
            job: None,
            writes: Vec::new(),
            sent: Moment::ZERO,
            pointed: None,
            looked: None,
            link: false,
            earned: false,
            overtaken: false,
            fenced: false,
            tried: None,
            stop: None,
            stopped: false,
            visited: BTreeSet::new(),
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.below(n)
    }

    fn unsent(&self) -> Option<Moment> {
        self.writes.iter().copied().find(|at| *at >= self.sent)
    }

    fn unpointed(&self) -> Option<Moment> {
        let cut = self.pointed?;
        self.writes.iter().copied().find(|at| *at >= cut)
    }

    /// Bytes that are marked.
    fn marked(&mut self) -> u64 {
        let unsent = self.writes.iter().filter(|at| **at >= self.sent).count() as u64;
        match (unsent, self.below(8)) {
            (0, _) => 0,
            (n, 0) => n * 500 * MIB,
            (n, _) => n * 4096,
        }
    }

    fn tell(&mut self, event: Event) {
        let bench = &mut self.bench;
        let actions = bench.tell(event);
        assert!(!self.stopped || actions.is_empty(), "{actions:?} after the end");
        for action in actions {
            self.obey(action);
        }
        self.visited.insert(table::name(&self.bench.live));
        let late = self.stop.is_some_and(|(asked, _)| self.bench.now >= asked + STOP_MAX);
        assert!(!late || self.stopped, "a stop takes longer than it may");
        assert_eq!(self.bench.job(), self.job.map(|(job, _)| job), "both know what runs");
        let following = matches!(self.bench.live.state(), State::CatchUp | State::Live);
        assert!(!following || self.earned, "{:?} is not earned", self.bench.live.state());
        if self.job.is_none() && !self.stopped {
            let wake = self.bench.live.wake();
            assert!(wake.is_none_or(|at| at > self.bench.now), "it would have begun something");
        }
    }

    fn obey(&mut self, action: Action) {
        let now = self.bench.now;
        match action {
            Action::Begin(job) => {
                assert!(self.job.is_none(), "{job:?} is begun while {:?} runs", self.job);
                assert!(!self.fenced, "{job:?} is begun after a takeover");
                let connects = matches!(job, Job::Connect { .. });
                assert_eq!(connects, !self.link, "{job:?}");
                if connects {
                    let early = self.tried.is_some_and(|tried| now < tried + ROUTE_MIN);
                    assert!(!early, "two tries within a second");
                    self.tried = Some(now);
                }
                if let Some((_, jobs)) = &mut self.stop {
                    *jobs += 1;
                    assert!(*jobs <= 2, "a stop begins a pass and a checkpoint, no more");
                }
                self.overtaken = false;
                self.job = Some((job, now));
            }
            Action::Cancel => assert!(self.job.is_some(), "nothing runs"),
            Action::Probe => assert!(self.link, "there is no link"),
            Action::Stopped => {
                assert!(self.stop.is_some());
                self.stopped = true;
                self.job = None;
            }
        }
    }

    /// One thing happens.
    fn go_on(&mut self) {
        let step = [0, 1, 20, 300, 2_000, 90_000][self.below(6) as usize];
        self.bench.now += Duration::from_nanos(1) + ms(self.random.below(step + 1));
        match self.below(40) {
            0..=9 => {
                if self.below(3) > 0 {
                    self.writes.push(self.bench.now);
                }
            }
            10..=15 => {
                let bytes = self.marked();
                self.looked = Some((self.bench.now, bytes == 0));
                self.tell(dirty(bytes));
            }
            16..=17 => self.tell(Event::Tick),
            18 => self.tell(Event::RouteChanged),
            19 if self.below(4) == 0 => self.lose(),
            20 if self.stop.is_some() || self.below(20) == 0 => self.gap(),
            21 if self.below(20) == 0 => self.tell(Event::Resized { size: GIB }),
            22 if self.below(10) == 0 => {
                self.fenced = false;
                self.tell(Event::Try { takeover: true });
            }
            23 if self.below(100) == 0 => self.ask_to_stop(),
            24 => self.tell(Event::Progress { done: 1, left: 1 }),
            25..=37 => self.end_job(),
            _ => self.wake(),
        }
        self.check_lags();
    }

    fn wake(&mut self) {
        if let Some(at) = self.bench.live.wake() {
            self.bench.now = self.bench.now.max(at);
            self.tell(Event::Tick);
        }
    }

    fn lose(&mut self) {
        let away = Away::ALL[self.below(Away::ALL.len() as u64) as usize];
        let (job, link) = (self.job.take(), std::mem::take(&mut self.link));
        let real = job.is_some() || link;
        // After the user asked to go on, one try is allowed; a late word of the end changes
        // nothing.
        self.fenced = if real { away.again() == Again::Asked } else { self.fenced };
        self.earned &= !(real && away.taken());
        self.tell(lost(away));
    }

    fn gap(&mut self) {
        self.earned = false;
        self.overtaken = true;
        let gap = Gap::ALL[self.below(Gap::ALL.len() as u64) as usize];
        self.tell(Event::Gap(gap));
    }

    fn ask_to_stop(&mut self) {
        self.stop = self.stop.or(Some((self.bench.now, 0)));
        self.tell(Event::StopAsked);
    }

    fn end_job(&mut self) {
        let Some((job, begun)) = self.job else {
            // An end that ends nothing.
            return self.tell(failed());
        };
        let fails = self.below(6) == 0;
        match job {
            Job::Connect { .. } if fails => self.lose(),
            Job::Connect { .. } => self.connect(),
            _ if fails && job == Job::Freeze => {
                self.job = None;
                let why = Unfrozen::ALL[self.below(5) as usize];
                self.tell(unfrozen(why));
            }
            _ if fails => {
                self.job = None;
                self.tell(failed());
            }
            Job::Checkpoint => {
                self.job = None;
                self.tell(Event::Checkpointed { seq: 1 });
            }
            Job::Scan { .. } | Job::Pass { .. } | Job::Freeze => self.make(job, begun),
        }
    }

    fn connect(&mut self) {
        (self.job, self.link) = (None, true);
        let dirty = self.marked();
        let owed = matches!(self.bench.live.baseline, Baseline::Owed { .. });
        let proved = self.pointed.is_some() && self.below(8) > 0;
        let (proof, head) = if proved {
            let mut head = self.bench.head(Grade::Settled);
            let pointed = self.pointed.unwrap_or_default();
            head.consistent = Some((head.point, self.bench.now - pointed));
            (Proof::Unbroken, Some(head))
        } else {
            (Proof::Broken(Gap::TrackerGone), None)
        };
        self.earned = proved && !owed;
        self.looked = Some((self.bench.now, dirty == 0));
        self.tell(Event::Connected { proof, head, dirty });
    }

    fn make(&mut self, job: Job, begun: Moment) {
        self.job = None;
        let scan = matches!(job, Job::Scan { .. });
        self.earned |= scan && !self.overtaken;
        let grade = match (job, self.below(3)) {
            (Job::Freeze, 0..=1) => Grade::Frozen,
            (_, 0) => Grade::Settled,
            _ => Grade::Fuzzy,
        };
        // More may have been marked than it carries: then what it tells is of an earlier moment,
        // or nothing.
        let sent = match (grade.consistent() || scan, self.below(4)) {
            (false, 0) => None,
            (false, 1) => Some(begun.saturating_sub(ms(self.below(5_000)))),
            _ => Some(begun),
        };
        self.sent = self.sent.max(sent.unwrap_or_default());
        if grade.consistent() {
            self.pointed = Some(begun);
        }
        let until = self.pointed.unwrap_or_default().min(self.sent);
        self.writes.retain(|at| *at >= until);
        let (left, bytes) = (self.marked(), self.below(8 * MIB));
        let waiting = if left > 0 { self.below(left + 1) } else { 0 };
        let point = self.bench.point(grade);
        let deltas = if scan { 0 } else { self.below(4 * MIB) };
        self.looked = Some((self.bench.now, left == 0));
        let made = carried(point, begun, [bytes, deltas, left]);
        self.tell(Event::Made(Made { sent, waiting, ..made }));
    }

    fn check_lags(&self) {
        if self.stopped {
            return;
        }
        let (view, now) = (self.bench.view(), self.bench.now);
        if view.data_lag == Some(Duration::ZERO) || view.point_lag == Some(Duration::ZERO) {
            let instant = self.sent == now || self.pointed == Some(now);
            let fresh = self.looked.is_some_and(|(at, clean)| clean && now <= at + LOOK_FRESH);
            assert!(instant || fresh, "a lag of 0, and no look that says so: {view:?}");
        }
        let Some((looked, _)) = self.looked.filter(|_| self.earned) else {
            return;
        };
        let known = |write: &Moment| *write <= looked;
        if let Some(write) = self.unsent().filter(known).filter(|at| *at < looked) {
            assert!(view.data_lag.is_none_or(|lag| lag >= now - write), "{view:?} {write:?}");
        }
        if let Some(write) = self.unpointed().filter(known).filter(|at| *at < looked) {
            assert!(view.point_lag.is_some_and(|lag| lag >= now - write), "{view:?} {write:?}");
        }
    }
}

#[test]
fn whatever_happens_it_stays_within_the_rules_and_stops_when_asked() {
    let mut visited = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..seed {
            world.go_on();
        }
        world.ask_to_stop();
        while !world.stopped {
            world.go_on();
        }
        world.go_on();
        visited.append(&mut world.visited);
    }
    let known = table::names();
    let unknown: Vec<_> = visited.difference(&known).collect();
    assert!(unknown.is_empty(), "situations that the table lacks: {unknown:?}");
    let missed: Vec<_> = known.difference(&visited).collect();
    assert!(missed.is_empty(), "situations that no walk came to: {missed:?}");
}
