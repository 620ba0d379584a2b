//! A round without threads: what it orders and tells after each step.

use std::sync::mpsc::{Receiver, TryRecvError};

use super::*;

const HOLD_MAX: Duration = Duration::from_secs(1);

/// A round of bare lanes, and what it has told so far.
struct Stand {
    round: Round,
    inboxes: Vec<Receiver<()>>,
    told: Vec<Body>,
    start: Instant,
}

impl Stand {
    fn new(lanes: usize) -> Stand {
        let (lanes, inboxes) = (0..lanes).map(|_| Lane::bare()).unzip();
        let (mut told, start) = (Vec::new(), Instant::now());
        let round = Round::begin(lanes, HOLD_MAX, start, &mut |body| told.push(body));
        Stand { round, inboxes, told, start }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn step(&mut self, millis: u64, index: usize, step: Step) {
        let now = self.at(millis);
        self.round.step(index, step, now, &mut |body| self.told.push(body));
    }

    fn tick(&mut self, millis: u64) {
        let now = self.at(millis);
        self.round.tick(now, &mut |body| self.told.push(body));
    }

    fn stop(&mut self, millis: u64, cause: Cause) {
        let now = self.at(millis);
        self.round.stop(cause, now, &mut |body| self.told.push(body));
    }

    /// For each lane: `f` a freeze was ordered since the last look, `-` nothing, `x` let go.
    fn orders(&self) -> String {
        let order = |inbox: &Receiver<()>| match inbox.try_recv() {
            Ok(()) => 'f',
            Err(TryRecvError::Empty) => '-',
            Err(TryRecvError::Disconnected) => 'x',
        };
        self.inboxes.iter().map(order).collect()
    }

    fn told(&mut self) -> Vec<Body> {
        std::mem::take(&mut self.told)
    }
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn ended(held: u64, thawing: u64) -> Body {
    Body::Ended { held: millis(held), thawing: millis(thawing), fault: None }
}

#[test]
fn freezes_one_after_the_other_and_tells_each_before() {
    let mut stand = Stand::new(2);
    assert_eq!((stand.orders().as_str(), stand.told()), ("f-", vec![Body::Started { index: 0 }]));
    stand.step(10, 0, Step::Frozen);
    assert_eq!((stand.orders().as_str(), stand.told()), ("-f", vec![Body::Started { index: 1 }]));
    assert!(stand.round.is_freezing());
    stand.step(30, 1, Step::Frozen);
    assert!(!stand.round.is_freezing());
    assert_eq!(stand.told(), [Body::Frozen { freezing: millis(30) }]);
    stand.stop(130, Cause::Asked);
    assert_eq!(stand.orders(), "xx");
    assert_eq!(stand.told(), [Body::Ending { cause: Cause::Asked }]);
    stand.step(140, 1, Step::Ended(None));
    assert!(!stand.round.is_over() && stand.told().is_empty());
    stand.step(150, 0, Step::Ended(None));
    assert!(stand.round.is_over());
    assert_eq!(stand.told(), [ended(100, 20)]);
}

#[test]
fn nothing_to_freeze_is_frozen_at_once() {
    let mut stand = Stand::new(0);
    assert_eq!(stand.told(), [Body::Frozen { freezing: Duration::ZERO }]);
    stand.stop(5, Cause::Asked);
    assert_eq!(stand.told(), [Body::Ending { cause: Cause::Asked }, ended(5, 0)]);
}

#[test]
fn a_refusal_lets_the_others_go() {
    let mut stand = Stand::new(3);
    stand.step(1, 0, Step::Frozen);
    stand.told();
    stand.step(2, 1, Step::Refused(Errno::BUSY));
    assert_eq!(stand.orders(), "ffx", "the third was never ordered");
    assert_eq!(stand.orders(), "xxx");
    assert_eq!(stand.told(), [Body::Ending { cause: Cause::Refused(1, Errno::BUSY) }]);
    stand.step(3, 0, Step::Ended(None));
    stand.step(4, 2, Step::Ended(None));
    assert_eq!(stand.told(), [ended(0, 2)]);
}

#[test]
fn the_deadline_lets_go_also_what_is_still_freezing() {
    let mut stand = Stand::new(2);
    stand.step(1, 0, Step::Frozen);
    stand.tick(999);
    assert_eq!(stand.orders(), "ff");
    stand.told();
    stand.tick(1000);
    assert!(!stand.round.is_freezing());
    assert_eq!(stand.orders(), "xx");
    assert_eq!(stand.told(), [Body::Ending { cause: Cause::Late(1) }]);
    // The kernel comes back from freezing: that does not make it frozen.
    stand.step(1500, 1, Step::Frozen);
    assert!(stand.told().is_empty());
    stand.step(1501, 0, Step::Ended(None));
    stand.step(1502, 1, Step::Ended(None));
    assert_eq!(stand.told(), [ended(0, 502)]);
}

#[test]
fn only_the_first_cause_is_told_and_the_end_only_once() {
    let mut stand = Stand::new(1);
    stand.step(1, 0, Step::Frozen);
    stand.told();
    stand.tick(1000);
    stand.stop(1001, Cause::Asked);
    stand.stop(1001, Cause::Stopped);
    assert_eq!(stand.told(), [Body::Ending { cause: Cause::Late(0) }]);
    stand.step(1002, 0, Step::Ended(None));
    stand.tick(1003);
    stand.stop(1004, Cause::Stopped);
    assert_eq!(stand.told(), [ended(999, 2)]);
    assert_eq!(stand.round.deadline(), None);
}

#[test]
fn the_first_that_does_not_thaw_is_named() {
    let mut stand = Stand::new(2);
    stand.step(1, 0, Step::Frozen);
    stand.step(2, 1, Step::Frozen);
    stand.stop(3, Cause::Asked);
    stand.told();
    stand.step(4, 1, Step::Ended(Some(Errno::INVAL)));
    stand.step(5, 0, Step::Ended(Some(Errno::IO)));
    let fault = Some((1, Errno::INVAL));
    assert_eq!(stand.told(), [Body::Ended { held: millis(1), thawing: millis(2), fault }]);
}
