//! Whose messages are worked on.
//!
//! Owns: the turns. Invariants: at most so many sessions work at a time, and at most half as many
//! of one vault, so there is one for somebody else within the time of a message; of those who wait
//! the vault goes first that has the fewest at work, then those that follow a disk before those
//! that scan, then who waits longest. So a client with any number of connections gets no more than
//! its vault's share. A turn is never held while its holder waits for its peer.
//! Leaves to others: what is done in a turn.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use dormouse_format::VaultId;

/// How long a turn lasts while others wait; the message that is worked on is ended first.
const SLICE: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct Waiting {
    id: u64,
    vault: VaultId,
    scans: bool,
    thread: Thread,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    working: HashMap<VaultId, usize>,
    all: usize,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    /// Those of them whose turn it is now.
    called: Vec<u64>,
}

/// The turns of a server.
#[derive(Debug)]
pub(super) struct Turns {
    most: usize,
    state: Mutex<State>,
}

/// A turn; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    vault: VaultId,
    since: Instant,
}

impl Turns {
    /// So many at a time, four at least.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(4), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub(super) fn take(&self, vault: VaultId, scans: bool) -> Turn<'_> {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let thread = std::thread::current();
        state.waiting.push(Waiting { id, vault, scans, thread });
        self.call(&mut state);
        // One is woken at a time: with hundreds that wait, waking all costs more than the work.
        while !state.called.contains(&id) {
            drop(state);
            std::thread::park();
            state = self.lock();
        }
        state.called.retain(|called| *called != id);
        drop(state);
        Turn { turns: self, vault, since: Instant::now() }
    }

    /// Gives turns to those whose turn it is.
    fn call(&self, state: &mut State) {
        while state.all < self.most {
            let working = |vault: &VaultId| state.working.get(vault).copied().unwrap_or(0);
            let key = |w: &Waiting| (working(&w.vault), w.scans, w.id);
            let free = state.waiting.iter().enumerate();
            let free = free.filter(|(_, w)| working(&w.vault) < self.most / 2);
            let Some((at, _)) = free.min_by_key(|(_, w)| key(w)) else { break };
            let next = state.waiting.remove(at);
            *state.working.entry(next.vault).or_default() += 1;
            state.all += 1;
            state.called.push(next.id);
            next.thread.unpark();
        }
    }

    fn give_back(&self, vault: &VaultId) {
        let mut state = self.lock();
        state.all -= 1;
        if let Some(n) = state.working.get_mut(vault) {
            *n -= 1;
            if *n == 0 {
                state.working.remove(vault);
            }
        }
        self.call(&mut state);
    }
}

impl Turn<'_> {
    /// Whether it is somebody else's turn.
    pub(super) fn is_over(&self) -> bool {
        self.since.elapsed() >= SLICE && !self.turns.lock().waiting.is_empty()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.give_back(&self.vault);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const A: VaultId = VaultId([1; 32]);
    const B: VaultId = VaultId([2; 32]);

    #[test]
    fn a_vault_gets_half_and_the_other_half_is_anothers() {
        let turns = Turns::new(4);
        let held = [turns.take(A, false), turns.take(A, false)];
        let reached = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _third = turns.take(A, false);
                reached.fetch_add(1, Ordering::SeqCst);
            });
            while turns.lock().waiting.is_empty() {
                std::thread::yield_now();
            }
            // It waits for its own; another vault does not.
            drop([turns.take(B, true), turns.take(B, true)]);
            assert_eq!(reached.load(Ordering::SeqCst), 0);
            drop(held);
        });
        assert_eq!(reached.load(Ordering::SeqCst), 1);
        let state = turns.lock();
        assert_eq!((state.all, state.waiting.len(), state.working.len()), (0, 0, 0));
    }

    #[test]
    fn who_has_least_goes_first_then_who_follows_a_disk() {
        let turns = Turns::new(4);
        let mut state = State::default();
        let come = |state: &mut State, vault, scans| {
            let thread = std::thread::current();
            state.waiting.push(Waiting { id: state.next, vault, scans, thread });
            state.next += 1;
        };
        let c = VaultId([3; 32]);
        for vault in [A, A, A, B, c] {
            come(&mut state, vault, true);
        }
        come(&mut state, c, false);
        turns.call(&mut state);
        // One of each, of c the one that follows; then the first that waits.
        assert_eq!(state.called, [5, 0, 3, 1]);
        assert_eq!(state.waiting.iter().map(|w| w.id).collect::<Vec<_>>(), [2, 4]);
    }
}
