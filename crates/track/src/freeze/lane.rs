//! One file system's thread: freezes when told, thaws when let go.
//!
//! Invariant: what a lane froze, it thaws when its order channel closes, whatever happened to the
//! one that held the other end; also when that was while the kernel was still freezing. So a
//! freeze that blocks delays no other file system. Leaves to others: order and time.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::io::Errno;

use super::kernel::{self, STACK_BYTES};

/// What a lane has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The file system is frozen.
    Frozen,
    /// It could not be frozen, and is as it was. The lane has ended.
    Refused(Errno),
    /// It was let go; with the error, if thawing failed. The lane has ended.
    Ended(Option<Errno>),
}

/// A way to tell the main loop of a step: a channel and something that wakes it.
#[derive(Clone)]
pub struct Report {
    /// Lane and step.
    pub steps: Sender<(usize, Step)>,
    /// The main loop polls the other end.
    pub wake: Arc<UnixStream>,
}

impl Report {
    fn tell(&self, index: usize, step: Step) {
        // Nobody listens any more when the helper ends; then there is nobody to wake.
        let _ = self.steps.send((index, step));
        let _ = (&*self.wake).write(&[1]);
    }
}

/// Holds a file system's thread. Dropping it lets the file system go.
pub struct Lane {
    orders: Sender<()>,
}

impl Lane {
    /// Starts the thread; freezes nothing yet.
    pub fn start(index: usize, fd: OwnedFd, report: Report) -> io::Result<Lane> {
        let (orders, inbox) = channel();
        let work = move || {
            let step = serve(&fd, &inbox, || report.tell(index, Step::Frozen));
            // The descriptor first: after the last step the file system can be unmounted.
            drop(fd);
            report.tell(index, step);
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(work)?;
        Ok(Lane { orders })
    }

    /// A lane without a thread, and the end where its orders arrive.
    #[cfg(test)]
    pub fn bare() -> (Lane, Receiver<()>) {
        let (orders, inbox) = channel();
        (Lane { orders }, inbox)
    }

    /// Orders the freeze.
    pub fn freeze(&self) {
        // The thread waits for this order, so it is there to take it.
        let _ = self.orders.send(());
    }
}

fn serve(fd: &OwnedFd, orders: &Receiver<()>, frozen: impl FnOnce()) -> Step {
    if orders.recv().is_err() {
        return Step::Ended(None);
    }
    if let Err(errno) = kernel::freeze(fd) {
        return Step::Refused(errno);
    }
    frozen();
    // No second order is ever given: this returns when the lane is let go.
    let _ = orders.recv();
    Step::Ended(kernel::thaw(fd).err())
}
