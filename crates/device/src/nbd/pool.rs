//! Threads for requests that may take long: made when they are needed, so many at most.
//!
//! Invariants: a job that was taken is carried out; the queue is bounded by what connections may
//! have under way ([`Budget`]).

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Stack of a thread.
const STACK: usize = 512 << 10;

/// Something to do.
pub type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.state();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

/// The threads.
pub struct Pool {
    shared: Arc<Shared>,
    most: usize,
}

impl Pool {
    /// At most so many threads.
    pub fn new(most: usize) -> Self {
        let shared = Shared { state: Mutex::default(), wake: Condvar::new() };
        Self { shared: Arc::new(shared), most: most.max(1) }
    }

    /// Has a job done. It fails only where no thread can be made at all.
    pub fn run(&self, job: Job) -> io::Result<()> {
        let mut state = self.shared.state();
        if state.idle <= state.queue.len() && state.threads.len() < self.most {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("nbd-work".into())
                .stack_size(STACK)
                .spawn(move || shared.work());
            match thread {
                Ok(thread) => state.threads.push(thread),
                Err(error) if state.threads.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        state.queue.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// No more jobs: the threads end when the queue is empty.
    pub fn close(&self) {
        self.shared.state().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

/// Memory that all connections together hold for requests under way.
#[derive(Debug)]
pub struct Budget {
    most: usize,
    held: AtomicUsize,
}

impl Budget {
    /// So many bytes.
    pub const fn new(most: usize) -> Self {
        Self { most, held: AtomicUsize::new(0) }
    }

    /// Takes bytes, if there are so many left, or in any case if told so.
    pub fn take(self: &Arc<Self>, bytes: usize, in_any_case: bool) -> Option<Held> {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let held = Held { budget: Arc::clone(self), bytes };
        (in_any_case || before + bytes <= self.most).then_some(held)
    }
}

/// A part of a budget; given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn jobs_run_side_by_side_and_all_of_them() {
        let pool = Pool::new(3);
        let (tell, told) = mpsc::channel();
        let gate = Arc::new(std::sync::Barrier::new(3));
        for _ in 0..30 {
            let (tell, gate) = (tell.clone(), Arc::clone(&gate));
            // Three must run at a time for any of them to end.
            let job = move || {
                gate.wait();
                tell.send(std::thread::current().id()).unwrap();
            };
            pool.run(Box::new(job)).unwrap();
        }
        pool.close();
        let threads: std::collections::HashSet<_> =
            (0..30).map(|_| told.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        assert_eq!(threads.len(), 3);
    }

    #[test]
    fn a_budget_is_kept_and_given_back() {
        let budget = Arc::new(Budget::new(10));
        let first = budget.take(8, false).unwrap();
        assert!(budget.take(3, false).is_none());
        let second = budget.take(2, false).unwrap();
        let third = budget.take(100, true).unwrap();
        drop((first, second, third));
        assert!(budget.take(10, false).is_some());
    }
}
