//! Small servers of a daemon: for status over a Unix socket, for metrics over TCP.
//!
//! Owns: accepting, and the bounds. Invariant: a peer costs one thread and one small buffer, for
//! a time that does not depend on what it does; there are so many at most, and who comes then is
//! closed. Leaves to others: what is asked and answered.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::log::Log;

/// How long a peer may take to ask, and then to take each answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Peers at a time.
pub const PEERS_MAX: usize = 16;
/// Stack of a peer's thread.
const STACK: usize = 256 << 10;
/// After an accept that failed, such as for want of file descriptors.
const REST: Duration = Duration::from_millis(100);

/// What can be listened on.
pub trait Listener: AsFd + Send + 'static {
    /// A connection of it.
    type Stream: Read + Write + AsFd + Send + 'static;
    /// The next connection, whose reads and writes do not block.
    fn next(&self) -> io::Result<Self::Stream>;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    fn next(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// A server that listens until it is dropped.
#[derive(Debug)]
pub struct Doorway {
    stopping: Stopping,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// Whether a server stops.
#[derive(Debug, Clone, Default)]
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// It does.
    pub fn now(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Doorway {
    /// Answers each peer in a thread of its own.
    pub fn open<L: Listener>(
        listener: L,
        name: &str,
        log: &Log,
        answer: impl Fn(L::Stream, &Stopping) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        let stopping = Stopping::default();
        let accepting = Accepting {
            name: name.to_owned(),
            answer: Arc::new(answer),
            peers: Arc::new(AtomicUsize::new(0)),
            stopping: stopping.clone(),
            log: log.clone(),
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || accepting.run(&listener, &woken))?;
        Ok(Self { stopping, wake, thread: Some(thread) })
    }
}

impl Drop for Doorway {
    /// Peers that are there see it themselves, within their time.
    fn drop(&mut self) {
        self.stopping.0.store(true, Ordering::Relaxed);
        let _ = (&self.wake).write_all(b"x");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is done with a peer.
type Answer<S> = Arc<dyn Fn(S, &Stopping) -> io::Result<()> + Send + Sync>;

struct Accepting<S> {
    name: String,
    answer: Answer<S>,
    peers: Arc<AtomicUsize>,
    stopping: Stopping,
    log: Log,
}

impl<S: Send + 'static> Accepting<S> {
    fn run<L: Listener<Stream = S>>(&self, listener: &L, woken: &UnixStream) {
        let mut failing = false;
        while !self.stopping.now() {
            let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
            if poll(&mut fds, None).is_err() || !fds[1].revents().is_empty() {
                continue;
            }
            let done = match listener.next() {
                // Who comes when all places are taken is closed.
                Ok(_) if self.peers.load(Ordering::Relaxed) >= PEERS_MAX => Ok(()),
                Ok(stream) => self.admit(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = &done {
                if !failing {
                    self.log.line(&format!("{}: accepting: {error}", self.name));
                }
                std::thread::sleep(REST);
            }
            failing = done.is_err();
        }
    }

    fn admit(&self, stream: S) -> io::Result<()> {
        let place = Place::take(&self.peers);
        let (answer, stopping) = (Arc::clone(&self.answer), self.stopping.clone());
        std::thread::Builder::new().name(self.name.clone()).stack_size(STACK).spawn(move || {
            let _place = place;
            // A peer that goes away, or is too slow, has only itself to tell.
            let _ = answer(stream, &stopping);
        })?;
        Ok(())
    }
}

/// One of the places; given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(peers: &Arc<AtomicUsize>) -> Self {
        peers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(peers))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until a stream can be read or written; an error when the time is over.
fn ready(stream: impl AsFd, what: PollFlags, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&stream, what)], left.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads until `whole` holds of all that was read, so many bytes at most. The bytes until then;
/// fewer only if the peer has closed its end, or sent more.
pub fn read_until<S: Read + AsFd>(
    stream: &mut S,
    max: usize,
    whole: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut part = [0; 1024];
    while !whole(&bytes) && bytes.len() < max {
        ready(&*stream, PollFlags::IN, until)?;
        let most = part.len().min(max - bytes.len());
        match stream.read(&mut part[..most]) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&part[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}

/// Writes everything, or fails when the time is over.
pub fn write_all<S: Write + AsFd>(stream: &mut S, mut bytes: &[u8]) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        ready(&*stream, PollFlags::OUT, until)?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A door whose peers say a line and get it back.
    fn echo() -> (Doorway, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |mut stream: TcpStream, _: &Stopping| {
            let line = read_until(&mut stream, 100, |b| b.contains(&b'\n'))?;
            write_all(&mut stream, &line)
        };
        (Doorway::open(listener, "echo", &Log::silent(), answer).unwrap(), address)
    }

    fn said(stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }

    #[test]
    fn idle_and_dripping_peers_have_their_place_for_a_bounded_time() {
        let (door, address) = echo();
        let began = Instant::now();
        let mut idle: Vec<TcpStream> =
            (1..PEERS_MAX).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut dripping = TcpStream::connect(address).unwrap();
        let mut drip = dripping.try_clone().unwrap();
        std::thread::spawn(move || {
            while drip.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        // All places are taken.
        let mut late = TcpStream::connect(address).unwrap();
        assert!(said(&mut late).is_empty());
        assert!(began.elapsed() < PATIENCE / 2, "it was closed at once");
        assert!(said(&mut dripping).is_empty());
        assert!(idle.iter_mut().all(|peer| said(peer).is_empty()));
        let took = began.elapsed();
        assert!(took >= PATIENCE / 2 && took < PATIENCE * 2, "{took:?}");
        // Then there are places again.
        let mut peer = TcpStream::connect(address).unwrap();
        peer.write_all(b"a line\n").unwrap();
        assert_eq!(said(&mut peer), b"a line\n");
        drop(door);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let (_door, address) = echo();
        let mut peer = TcpStream::connect(address).unwrap();
        peer.write_all(&[b'x'; 100]).unwrap();
        assert_eq!(said(&mut peer).len(), 100);
    }
}
