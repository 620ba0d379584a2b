//! A file system of one file: the disk. Its requests come from `/dev/fuse`.
//!
//! Invariant: each request gets one answer, from the thread that did it or from
//! [`Session::refuse`], whoever is first; a request is checked against the disk's size before the
//! disk sees it. What may wait for a network is done by other threads than those that take
//! requests, reads apart from writes: so a read that is there already, and a write, goes on while
//! the server is away.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::wire::{self, Ask};
use crate::kernel::pool::Lanes;
use crate::{BlockDevice, Error, Result, Write, Zero};

/// Threads that take requests.
const TAKERS: usize = 2;

const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 0x10;

thread_local! {
    /// Where a thread reads to.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is served, by how many threads ever.
pub struct Session {
    fuse: OwnedFd,
    disk: Arc<dyn BlockDevice>,
    /// The file's name.
    name: Vec<u8>,
    lanes: Lanes,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests without an answer.
    waiting: HashSet<u64>,
    /// How often the file is open.
    open: usize,
    /// It was open, and is not any more; or the kernel has let go of the file system.
    ended: bool,
    refusing: bool,
}

impl Session {
    /// Serves what is mounted with this descriptor of `/dev/fuse`.
    pub fn start(fuse: OwnedFd, disk: Arc<dyn BlockDevice>, name: &str) -> io::Result<Arc<Self>> {
        let session = Arc::new(Self {
            fuse,
            disk,
            name: name.as_bytes().to_vec(),
            lanes: Lanes::new(usize::from(wire::BACKGROUND))?,
            state: Mutex::default(),
            news: Condvar::new(),
        });
        for _ in 0..TAKERS {
            let session = Arc::clone(&session);
            std::thread::Builder::new().name("fuse".into()).spawn(move || session.take())?;
        }
        Ok(session)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails all that waits and all that comes.
    pub fn refuse(&self) {
        let mut state = self.state();
        state.refusing = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for unique in waiting {
            self.send(unique, Err(Errno::IO));
        }
    }

    /// Whether nobody has the file open any more, within some time.
    pub fn ended(&self, within: Duration) -> bool {
        let waited = self.news.wait_timeout_while(self.state(), within, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn end(&self) {
        self.state().ended = true;
        self.news.notify_all();
    }

    /// Takes requests until the file system is gone.
    fn take(self: &Arc<Self>) {
        let mut bytes = vec![0; wire::MAX_IO as usize + 4096];
        loop {
            match rustix::io::read(&self.fuse, &mut bytes) {
                Ok(len) => {
                    if let Some(request) = bytes.get(..len).and_then(wire::request) {
                        self.serve(&request);
                    }
                }
                // One that was taken back.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                // ENODEV: it was unmounted.
                Err(_) => return self.end(),
            }
        }
    }

    fn serve(self: &Arc<Self>, request: &wire::Request<'_>) {
        let unique = request.unique;
        if request.ask == Ask::Silent {
            return;
        }
        let refusing = {
            let mut state = self.state();
            if !state.refusing {
                state.waiting.insert(unique);
            }
            state.refusing
        };
        let disk = || self.disk.geometry();
        let answer = match request.ask {
            Ask::Release => {
                self.released();
                Ok(Vec::new())
            }
            _ if refusing => return self.send(unique, Err(Errno::IO)),
            Ask::Init { minor, .. } if minor < 31 => Err(Errno::PROTO),
            Ask::Init { readahead, offers, .. } => Ok(wire::init(readahead, offers)),
            Ask::Lookup { name } if request.node == wire::ROOT && name == self.name => {
                Ok(wire::entry(&disk()))
            }
            Ask::Lookup { .. } => Err(Errno::NOENT),
            Ask::GetAttr => Ok(wire::attr(request.node, &disk())),
            Ask::StatFs => Ok(wire::statfs(&disk())),
            Ask::Open if request.node == wire::DISK => {
                self.state().open += 1;
                Ok(wire::open())
            }
            Ask::Read { at, len } => return self.read(unique, at, len),
            Ask::Write { at, bytes } => return self.write(unique, at, bytes.to_vec()),
            Ask::Fsync => return self.later(unique, |disk| disk.flush().map(|()| Vec::new())),
            Ask::Allocate { at, len, mode } => return self.allocate(unique, at, len, mode),
            Ask::Nothing => Ok(Vec::new()),
            Ask::Malformed => Err(Errno::INVAL),
            Ask::Silent | Ask::Open | Ask::Unknown => Err(Errno::NOSYS),
        };
        self.answer(unique, answer.as_deref().map_err(|e| *e));
    }

    fn released(&self) {
        let mut state = self.state();
        state.open = state.open.saturating_sub(1);
        state.ended |= state.open == 0;
        drop(state);
        self.news.notify_all();
    }

    /// How many of these bytes lie within the disk.
    fn within(&self, at: u64, len: u64) -> u64 {
        len.min(self.disk.geometry().size.saturating_sub(at))
    }

    fn read(self: &Arc<Self>, unique: u64, at: u64, len: u32) {
        let len = self.within(at, u64::from(len.min(wire::MAX_IO)));
        if len == 0 {
            return self.answer(unique, Ok(&[]));
        }
        if self.disk.ready(at, len) {
            return self.read_now(unique, at, len as usize);
        }
        let session = Arc::clone(self);
        self.lanes.reads.run(move || {
            let _open = Unanswered(&session, unique);
            session.read_now(unique, at, len as usize);
        });
    }

    fn read_now(&self, unique: u64, at: u64, len: usize) {
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let out = &mut buffer[..len];
            match self.disk.read(at, out) {
                Ok(()) => self.answer(unique, Ok(out)),
                Err(e) => self.answer(unique, Err(e.errno())),
            }
        });
    }

    fn write(self: &Arc<Self>, unique: u64, at: u64, bytes: Vec<u8>) {
        let len = bytes.len() as u64;
        self.changing(unique, at, len, move |disk| {
            disk.write(at, &bytes, Write::default())?;
            Ok(wire::written(len as u32))
        });
    }

    /// A hole is zeros here, not a trim: the loop device asks for one also when zeros are to be
    /// written.
    fn allocate(self: &Arc<Self>, unique: u64, at: u64, len: u64, mode: u32) {
        let keep = match mode & !KEEP_SIZE {
            PUNCH_HOLE => false,
            ZERO_RANGE => true,
            _ => return self.answer(unique, Err(Errno::OPNOTSUPP)),
        };
        let how = Zero { keep, ..Zero::default() };
        self.changing(unique, at, len, move |disk| disk.zero(at, len, how).map(|()| Vec::new()));
    }

    fn changing(
        self: &Arc<Self>,
        unique: u64,
        at: u64,
        len: u64,
        change: impl FnOnce(&dyn BlockDevice) -> Result<Vec<u8>> + Send + 'static,
    ) {
        if self.within(at, len) != len {
            return self.answer(unique, Err(Errno::NOSPC));
        }
        if len == 0 {
            return self.answer(unique, Ok(&wire::written(0)));
        }
        self.later(unique, change);
    }

    fn later(
        self: &Arc<Self>,
        unique: u64,
        work: impl FnOnce(&dyn BlockDevice) -> Result<Vec<u8>> + Send + 'static,
    ) {
        let session = Arc::clone(self);
        self.lanes.writes.run(move || {
            let _open = Unanswered(&session, unique);
            let done = work(&*session.disk);
            session.answer(unique, done.as_deref().map_err(Error::errno));
        });
    }

    /// Answers, if nobody has.
    fn answer(&self, unique: u64, answer: std::result::Result<&[u8], Errno>) {
        if self.state().waiting.remove(&unique) {
            self.send(unique, answer);
        }
    }

    /// What the kernel does not want to hear any more it refuses, and that is all.
    fn send(&self, unique: u64, answer: std::result::Result<&[u8], Errno>) {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (errno.raw_os_error(), &[] as &[u8]),
        };
        let header = wire::header(unique, error, body.len());
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        while let Err(Errno::INTR) = rustix::io::writev(&self.fuse, &parts) {}
    }
}

/// A request that gets an error if nothing else was said, such as after a panic.
struct Unanswered<'a>(&'a Session, u64);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.answer(self.1, Err(Errno::IO));
    }
}
