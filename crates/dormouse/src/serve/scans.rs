//! How many scans there are at a time.
//!
//! Owns: the tokens and the queue for them. Invariants: first come, first served; a scan that has
//! run for [`AGE`] while others wait lets the next one in beside it, up to [`AGED_MAX`] of these, so
//! a first copy that takes days keeps nobody out, and the memory of all scans stays bounded; a token
//! that is dropped goes to the next at once. Who follows a disk needs none.
//! Leaves to others: telling those who wait ([`super::connection`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

/// After this time a scan keeps nobody else out.
const AGE: Duration = Duration::from_secs(30);
/// Scans of that age beside those that have a token. Each may cost some MiB.
const AGED_MAX: usize = 64;

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// When each scan began; those that aged have none.
    running: HashMap<u64, Instant>,
    aged: usize,
    waiting: VecDeque<(u64, Sender<()>)>,
}

/// The scans of a server.
#[derive(Debug)]
pub(super) struct Scans {
    most: usize,
    state: Mutex<State>,
}

/// A scan that waits, or runs. Dropped, it is over.
#[derive(Debug)]
pub(super) struct Scan {
    scans: Arc<Scans>,
    id: u64,
    admitted: Receiver<()>,
}

impl Scans {
    /// So many at a time.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more wants to scan.
    pub(super) fn enter(self: &Arc<Self>, now: Instant) -> Scan {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let (admit, admitted) = bounded(1);
        state.waiting.push_back((id, admit));
        self.admit(&mut state, now);
        drop(state);
        Scan { scans: self.clone(), id, admitted }
    }

    /// Lets in as many as there are tokens for.
    fn admit(&self, state: &mut State, now: Instant) {
        while state.running.len() < self.most
            && let Some((id, admit)) = state.waiting.pop_front()
        {
            state.running.insert(id, now);
            // Its channel has room for one.
            let _ = admit.try_send(());
        }
    }

    /// Now and then: lets others in beside scans that are old.
    pub(super) fn age(&self, now: Instant) {
        let mut state = self.lock();
        while !state.waiting.is_empty() && state.aged < AGED_MAX {
            let old = |since: &Instant| now.saturating_duration_since(*since) >= AGE;
            let Some(id) = state.running.iter().find(|(_, t)| old(t)).map(|(id, _)| *id) else {
                return;
            };
            state.running.remove(&id);
            state.aged += 1;
            self.admit(&mut state, now);
        }
    }

    /// Scans that run, and that wait.
    pub(super) fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.running.len() + state.aged, state.waiting.len())
    }
}

impl Scan {
    /// Hears once that it may begin.
    pub(super) const fn admitted(&self) -> &Receiver<()> {
        &self.admitted
    }

    /// How many are before it.
    pub(super) fn ahead(&self) -> u32 {
        let state = self.scans.lock();
        let at = state.waiting.iter().position(|(id, _)| *id == self.id);
        at.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        let mut state = self.scans.lock();
        let before = state.waiting.len();
        state.waiting.retain(|(id, _)| *id != self.id);
        if state.waiting.len() == before && state.running.remove(&self.id).is_none() {
            state.aged -= 1;
        }
        self.scans.admit(&mut state, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(scan: &Scan) -> bool {
        scan.admitted().try_recv().is_ok()
    }

    #[test]
    fn first_come_first_served_and_who_goes_makes_room() {
        let (scans, now) = (Scans::new(2), Instant::now());
        let mut all: Vec<Option<Scan>> = (0..5).map(|_| Some(scans.enter(now))).collect();
        let granted =
            |all: &[Option<Scan>]| -> Vec<bool> { all.iter().flatten().map(may).collect() };
        assert_eq!(granted(&all), [true, true, false, false, false]);
        assert_eq!(all[4].as_ref().unwrap().ahead(), 2);
        all[3] = None;
        assert_eq!(all[4].as_ref().unwrap().ahead(), 1);
        all[0] = None;
        assert_eq!(granted(&all), [false, true, false]);
        all.clear();
        assert_eq!(scans.count(), (0, 0));
    }

    #[test]
    fn an_old_scan_keeps_nobody_out_but_not_without_end() {
        let (scans, now) = (Scans::new(1), Instant::now());
        let mut all: Vec<Scan> = (0..AGED_MAX + 10).map(|_| scans.enter(now)).collect();
        scans.age(now + AGE - Duration::from_millis(1));
        assert_eq!(scans.count().0, 1);
        for n in 1..=AGED_MAX + 5 {
            scans.age(now + AGE * u32::try_from(n).unwrap());
        }
        assert_eq!(scans.count(), (AGED_MAX + 1, 9));
        all.truncate(1);
        assert_eq!(scans.count(), (1, 0), "the oldest goes on");
        all.clear();
        assert_eq!(scans.count(), (0, 0));
        assert!(may(&scans.enter(now)));
    }
}
