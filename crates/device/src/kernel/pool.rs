//! Threads that do what may have to wait, so that who takes the kernel's requests need not.
//!
//! Invariant: so many threads, and so many jobs that wait for one; who brings more waits. A job
//! that panics ends neither its thread nor the others.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Stack of a thread: a disk's layers are few.
const STACK: usize = 512 << 10;

/// Threads for what reads, and for what does not.
const READERS: usize = 32;
const WRITERS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// Threads for a disk: reads that wait for a network do not hold up writes.
#[derive(Debug)]
pub struct Lanes {
    /// For what reads.
    pub reads: Pool,
    /// For what writes, flushes, trims.
    pub writes: Pool,
}

impl Lanes {
    /// With room for so many jobs that wait.
    pub fn new(waiting: usize) -> io::Result<Self> {
        let reads = Pool::new("disk-read", READERS, waiting)?;
        Ok(Self { reads, writes: Pool::new("disk-write", WRITERS, waiting)? })
    }
}

/// Some threads and a queue. Threads end when it is dropped and they have nothing left to do; they
/// are not waited for.
#[derive(Debug)]
pub struct Pool {
    jobs: SyncSender<Job>,
}

impl Pool {
    /// With so many threads, and room for so many jobs that wait.
    pub fn new(name: &str, threads: usize, waiting: usize) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(waiting);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK);
            thread.spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Has a job done; waits for room.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads hold the other end for as long as this one is there.
        let _ = self.jobs.send(Box::new(job));
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn a_job_that_waits_or_panics_holds_up_no_other() {
        let pool = Pool::new("test", 2, 4).unwrap();
        let (go, wait) = channel::<()>();
        let (done, finished) = channel();
        let first = done.clone();
        pool.run(move || {
            wait.recv().unwrap();
            first.send(1).unwrap();
        });
        pool.run(|| panic!("on purpose"));
        for n in 2..5 {
            let done = done.clone();
            pool.run(move || done.send(n).unwrap());
        }
        let soon = Duration::from_secs(10);
        let mut others: Vec<i32> = (0..3).map(|_| finished.recv_timeout(soon).unwrap()).collect();
        others.sort_unstable();
        assert_eq!(others, [2, 3, 4]);
        go.send(()).unwrap();
        assert_eq!(finished.recv_timeout(soon).unwrap(), 1);
    }
}
