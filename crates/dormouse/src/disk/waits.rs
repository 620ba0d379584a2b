//! Reads that wait for blocks.
//!
//! Invariant: a wait ends: with all of its blocks, with an error, at its deadline, or when the
//! disk is closed. Who opens a chunk gives its blocks to all who wait for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dormouse_format::Block;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_sync::read::RequestId;

use super::blocks::Missing;

/// Why blocks do not come.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// They do not hold, or the server may not or cannot give them.
    Lost(String),
    /// The disk is closed.
    Closed,
}

/// A read of a run of blocks.
pub(super) struct Wait {
    pub(super) id: RequestId,
    first: Block,
    count: usize,
    state: Mutex<State>,
    woken: Condvar,
}

struct State {
    /// What has come.
    bytes: Vec<u8>,
    /// Blocks that have not come.
    missing: Missing,
    left: usize,
    over: Option<Result<(), Fault>>,
}

impl Wait {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks that have come.
    fn give(&self, block: Block, bytes: &[u8]) {
        let end = block + (bytes.len() / BLOCK_SIZE) as u64;
        let (from, to) = (self.first.max(block), (self.first + self.count as u64).min(end));
        if from >= to {
            return;
        }
        let mut state = self.lock();
        let (at, skip) = ((from - self.first) as usize, (from - block) as usize * BLOCK_SIZE);
        let len = (to - from) as usize * BLOCK_SIZE;
        state.bytes[at * BLOCK_SIZE..][..len].copy_from_slice(&bytes[skip..][..len]);
        self.came(&mut state, at..at + (to - from) as usize);
    }

    /// Blocks that are zeros: the buffer was made of zeros.
    fn zero(&self, start: Block, count: u64) {
        let at = (start - self.first) as usize;
        self.came(&mut self.lock(), at..at + count as usize);
    }

    fn came(&self, state: &mut State, range: core::ops::Range<usize>) {
        for i in range {
            if state.missing.has(i) {
                state.missing.remove(i);
                state.left -= 1;
            }
        }
        if state.left == 0 {
            self.end(state, Ok(()));
        }
    }

    fn end(&self, state: &mut State, how: Result<(), Fault>) {
        if state.over.is_none() {
            state.over = Some(how);
            self.woken.notify_all();
        }
    }

    /// Waits for the end, and copies out what has come; what has not stays in `missing`, where
    /// block 0 is `skip` before this one. None at the deadline.
    pub(super) fn wait(
        &self,
        until: Option<Instant>,
        out: &mut [u8],
        missing: &mut Missing,
        skip: usize,
    ) -> Option<Result<(), Fault>> {
        let mut state = self.lock();
        while state.over.is_none() {
            state = match until {
                None => self.woken.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let woken = self.woken.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        for i in (0..self.count).filter(|i| !state.missing.has(*i)) {
            let bytes = &state.bytes[i * BLOCK_SIZE..][..BLOCK_SIZE];
            out[i * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(bytes);
            missing.remove(skip + i);
        }
        state.over.clone()
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Waits {
    open: Mutex<HashMap<RequestId, Arc<Wait>>>,
    closed: AtomicBool,
    next: AtomicU64,
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Arc<Wait>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a request.
    pub(super) fn number(&self) -> RequestId {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A wait for blocks; an error if the disk was closed.
    pub(super) fn add(&self, first: Block, count: usize) -> Result<Arc<Wait>, Fault> {
        let state = State {
            bytes: vec![0; count * BLOCK_SIZE],
            missing: Missing::all(count),
            left: count,
            over: None,
        };
        let (state, woken) = (Mutex::new(state), Condvar::new());
        let wait = Arc::new(Wait { id: self.number(), first, count, state, woken });
        let mut open = self.lock();
        // Under the lock: who closes looks for those that are open after it said so.
        if self.closed.load(Ordering::SeqCst) {
            return Err(Fault::Closed);
        }
        open.insert(wait.id, Arc::clone(&wait));
        Ok(wait)
    }

    pub(super) fn remove(&self, id: RequestId) {
        self.lock().remove(&id);
    }

    /// Blocks were opened.
    pub(super) fn give(&self, block: Block, bytes: &[u8]) {
        let end = block + (bytes.len() / BLOCK_SIZE) as u64;
        let open: Vec<_> = {
            let open = self.lock();
            let want = |w: &&Arc<Wait>| w.first < end && block < w.first + w.count as u64;
            open.values().filter(want).cloned().collect()
        };
        open.iter().for_each(|wait| wait.give(block, bytes));
    }

    pub(super) fn zero(&self, id: RequestId, start: Block, count: u64) {
        let wait = self.lock().get(&id).cloned();
        if let Some(wait) = wait {
            wait.zero(start, count);
        }
    }

    /// A request is over. What has not come is on this machine: the reader looks again.
    pub(super) fn done(&self, id: RequestId, how: Result<(), Fault>) {
        let wait = self.lock().get(&id).cloned();
        if let Some(wait) = wait {
            wait.end(&mut wait.lock(), how);
        }
    }

    /// Ends all of them; the requests that they are for.
    pub(super) fn fail(&self, fault: &Fault) -> Vec<RequestId> {
        if matches!(fault, Fault::Closed) {
            self.closed.store(true, Ordering::SeqCst);
        }
        let open: Vec<_> = self.lock().values().cloned().collect();
        for wait in &open {
            wait.end(&mut wait.lock(), Err(fault.clone()));
        }
        open.iter().map(|wait| wait.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_its_blocks_or_says_what_is_missing() {
        let waits = Waits::default();
        let wait = waits.add(10, 4).unwrap();
        let mut out = vec![9; 4 * BLOCK_SIZE];
        let mut missing = Missing::all(6);
        let soon = Some(Instant::now());
        assert!(wait.wait(soon, &mut out, &mut missing, 1).is_none());
        waits.give(8, &[7; 3 * BLOCK_SIZE]);
        waits.give(14, &[6; BLOCK_SIZE]);
        waits.zero(wait.id, 12, 1);
        waits.zero(wait.id, 12, 1);
        assert!(wait.wait(soon, &mut out, &mut missing, 1).is_none());
        waits.done(wait.id, Ok(()));
        assert!(matches!(wait.wait(None, &mut out, &mut missing, 1), Some(Ok(()))));
        assert_eq!((out[0], out[2 * BLOCK_SIZE], out[BLOCK_SIZE]), (7, 0, 9));
        let left: Vec<_> = (0..6).filter(|i| missing.has(*i)).collect();
        assert_eq!(left, [0, 2, 4, 5]);
        let other = waits.add(0, 1).unwrap();
        assert_eq!(waits.fail(&Fault::Closed).len(), 2);
        assert!(matches!(other.wait(None, &mut out, &mut missing, 0), Some(Err(Fault::Closed))));
        assert!(waits.add(0, 1).is_err());
    }
}
