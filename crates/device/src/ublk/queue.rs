//! The only queue of a ublk disk: takes requests, has them done, gives the results back.
//!
//! Owns: the ring, the buffers and the thread. Invariants: a tag has one request at a time, and
//! its buffer belongs to whoever does it; a request gets one result, from who did it or from
//! [`Ended::refuse`]; it is checked against the disk's size and the buffer before the disk sees it.
//! What may wait is done by other threads, so that the queue goes on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::abi::{self, Description, op};
use super::memory::{Buffers, Descriptions};
use crate::kernel::SECTOR;
use crate::kernel::pool::Lanes;
use crate::{BlockDevice, Result, Write, Zero};

/// What the wake-up has instead of a tag.
const WAKE: u64 = u64::MAX;
/// `POLLIN`.
const READABLE: u32 = 1;

/// What the threads share.
pub struct Shared {
    state: Mutex<State>,
    news: Condvar,
    /// Readable when there are results.
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    /// Tags whose request is being done elsewhere.
    busy: Vec<bool>,
    /// Results that the queue has not given back yet.
    done: Vec<(u16, i32)>,
    refusing: bool,
    ended: bool,
}

impl Shared {
    /// For a queue of so many tags.
    pub fn new(depth: u16) -> io::Result<Arc<Self>> {
        let state = State { busy: vec![false; usize::from(depth)], ..State::default() };
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { state: Mutex::new(state), news: Condvar::new(), wake }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails all that is under way and all that comes.
    pub fn refuse(&self) {
        let mut state = self.state();
        state.refusing = true;
        let busy = std::mem::take(&mut state.busy);
        state.busy = vec![false; busy.len()];
        let failed = busy.iter().enumerate().filter(|(_, busy)| **busy);
        let failed: Vec<_> = failed.map(|(tag, _)| (tag as u16, of(Errno::IO))).collect();
        state.done.extend(failed);
        drop(state);
        self.ring_bell();
    }

    /// Whether the queue has ended, within some time.
    pub fn ended(&self, within: Duration) -> bool {
        let waited = self.news.wait_timeout_while(self.state(), within, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn ring_bell(&self) {
        // It is full only if it has rung already.
        let _ = rustix::io::write(&self.wake, &1u64.to_le_bytes());
    }

    /// A request is done, if nobody has given it a result.
    fn finish(&self, tag: u16, result: i32) {
        let mut state = self.state();
        let Some(busy) = state.busy.get_mut(usize::from(tag)) else { return };
        if !std::mem::take(busy) {
            return;
        }
        state.done.push((tag, result));
        let first = state.done.len() == 1;
        drop(state);
        if first {
            self.ring_bell();
        }
    }
}

/// Says that the queue has ended, however it does.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.news.notify_all();
    }
}

/// What a queue is made of.
pub struct Setup {
    pub device: File,
    pub depth: u16,
    pub buffer_bytes: u32,
    pub disk: Arc<dyn BlockDevice>,
    pub shared: Arc<Shared>,
}

/// Starts the thread of a queue. It returns when the thread has asked for requests.
pub fn start(setup: Setup) -> io::Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("ublk".into()).spawn(move || {
        let _ending = Ending(Arc::clone(&setup.shared));
        run(setup, &tell);
    })?;
    told.recv().unwrap_or_else(|_| Err(io::Error::other("the queue's thread has ended")))
}

fn run(setup: Setup, tell: &Sender<io::Result<()>>) {
    match Queue::new(setup) {
        Ok(mut queue) => {
            let _ = tell.send(Ok(()));
            queue.run();
        }
        Err(error) => {
            let _ = tell.send(Err(error));
        }
    }
}

struct Queue {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: File,
    descriptions: Descriptions,
    buffers: Arc<Buffers>,
    disk: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
    lanes: Lanes,
    depth: u16,
    /// Tags that the kernel has taken back.
    gone: u16,
}

impl Queue {
    fn new(setup: Setup) -> io::Result<Self> {
        let Setup { device, depth, buffer_bytes, disk, shared } = setup;
        let entries = (u32::from(depth) + 1).next_power_of_two();
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(entries)?;
        let descriptions = Descriptions::map(&device, depth)?;
        let buffers = Arc::new(Buffers::new(depth, buffer_bytes as usize)?);
        let lanes = Lanes::new(usize::from(depth))?;
        let mut queue =
            Self { ring, device, descriptions, buffers, disk, shared, lanes, depth, gone: 0 };
        for tag in 0..depth {
            queue.push_tag(abi::FETCH_REQ, tag, 0)?;
        }
        queue.push_wake()?;
        queue.ring.submit()?;
        Ok(queue)
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        #[allow(unsafe_code, reason = "io_uring hands memory to the kernel")]
        // SAFETY: what an entry names lives as long as the queue: the device, the bell, and the
        // buffers, which are freed after the ring.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // There is room for every tag and the bell, each of which is there once.
        pushed.map_err(io::Error::other)
    }

    fn push_tag(&mut self, command: u32, tag: u16, result: i32) -> io::Result<()> {
        let bytes = abi::io(tag, result, self.buffers.address(tag));
        let fd = types::Fd(self.device.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, command).cmd(bytes).build();
        self.push(&entry.user_data(u64::from(tag)))
    }

    fn push_wake(&mut self) -> io::Result<()> {
        let fd = types::Fd(self.shared.wake.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, READABLE).build().user_data(WAKE);
        self.push(&entry.into())
    }

    /// Until the kernel has taken back every tag.
    fn run(&mut self) {
        let mut came = Vec::new();
        while self.gone < self.depth {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The ring itself fails: the process would serve nothing any more.
                Err(_) => return,
            }
            came.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            for (what, result) in came.drain(..) {
                if self.came(what, result).is_err() {
                    return;
                }
            }
        }
    }

    fn came(&mut self, what: u64, result: i32) -> io::Result<()> {
        if what == WAKE {
            return self.give_back();
        }
        let tag = what as u16;
        if result != 0 {
            // The disk is being stopped.
            self.gone += 1;
            return Ok(());
        }
        match self.begin(tag) {
            Some(result) => self.push_tag(abi::COMMIT_AND_FETCH_REQ, tag, result),
            None => Ok(()),
        }
    }

    /// Gives the kernel the results that other threads have.
    fn give_back(&mut self) -> io::Result<()> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut count);
        let done = std::mem::take(&mut self.shared.state().done);
        for (tag, result) in done {
            self.push_tag(abi::COMMIT_AND_FETCH_REQ, tag, result)?;
        }
        self.push_wake()
    }

    /// Does a request, or has it done. The result, if it is there already.
    fn begin(&mut self, tag: u16) -> Option<i32> {
        let request = self.descriptions.of(tag);
        let Some((at, len)) = range(&request, self.disk.geometry().size) else {
            return Some(of(Errno::INVAL));
        };
        let moves_bytes = matches!(request.op, op::READ | op::WRITE);
        if self.shared.state().refusing || (moves_bytes && len > self.buffers.each() as u64) {
            return Some(of(Errno::IO));
        }
        let job = Job { request, at, len, tag, buffers: Arc::clone(&self.buffers) };
        if request.op == op::READ && self.disk.ready(at, len) {
            return Some(job.result(&*self.disk));
        }
        self.shared.state().busy[usize::from(tag)] = true;
        let lane = if request.op == op::READ { &self.lanes.reads } else { &self.lanes.writes };
        let (disk, shared) = (Arc::clone(&self.disk), Arc::clone(&self.shared));
        lane.run(move || {
            // Also after a panic.
            let mut end = Finish { shared: &shared, tag, result: of(Errno::IO) };
            end.result = job.result(&*disk);
        });
        None
    }
}

/// The bytes that are meant, if they lie within the disk. A flush means none, whatever it says.
fn range(request: &Description, size: u64) -> Option<(u64, u64)> {
    if request.op == op::FLUSH {
        return Some((0, 0));
    }
    let (at, len) = (request.first.checked_mul(SECTOR)?, u64::from(request.sectors) * SECTOR);
    (at.checked_add(len)? <= size).then_some((at, len))
}

struct Finish<'a> {
    shared: &'a Shared,
    tag: u16,
    result: i32,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.shared.finish(self.tag, self.result);
    }
}

/// A request and where its bytes are.
struct Job {
    request: Description,
    at: u64,
    len: u64,
    tag: u16,
    buffers: Arc<Buffers>,
}

impl Job {
    /// Does it: how many bytes were moved, or an error's number.
    fn result(&self, disk: &dyn BlockDevice) -> i32 {
        match self.run(disk) {
            Ok(moved) => moved,
            Err(e) => of(e.errno()),
        }
    }

    fn run(&self, disk: &dyn BlockDevice) -> Result<i32> {
        let (at, len) = (self.at, self.len);
        let fua = self.request.flags & op::FUA != 0;
        match self.request.op {
            op::FLUSH => disk.flush().map(|()| 0),
            op::READ | op::WRITE if len == 0 => Ok(0),
            op::READ => {
                let mut bytes = self.buffers.of(self.tag, len as usize);
                disk.read(at, &mut bytes).map(|()| len as i32)
            }
            op::WRITE => {
                let bytes = self.buffers.of(self.tag, len as usize);
                disk.write(at, &bytes, Write { fua }).map(|()| len as i32)
            }
            op::DISCARD => disk.trim(at, len).map(|()| 0),
            op::WRITE_ZEROES => {
                let keep = self.request.flags & op::NO_UNMAP != 0;
                disk.zero(at, len, Zero { fua, keep, fast: false }).map(|()| 0)
            }
            _ => Err(crate::Error::Unsupported("this request")),
        }
    }
}

/// An error's number as the kernel takes it.
const fn of(errno: Errno) -> i32 {
    -errno.raw_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_the_disk_is_refused() {
        let of = |op, first, sectors| range(&Description { op, flags: 0, sectors, first }, 4096);
        assert_eq!(of(op::READ, 0, 8), Some((0, 4096)));
        assert_eq!(of(op::WRITE, 7, 1), Some((3584, 512)));
        assert_eq!(of(op::READ, 1, 8), None);
        assert_eq!(of(op::DISCARD, u64::MAX / 512, u32::MAX), None);
        assert_eq!(of(op::READ, u64::MAX, 0), None);
        assert_eq!(of(op::FLUSH, u64::MAX, 0), Some((0, 0)));
    }
}
