//! A connected socket, plain or under TLS.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

/// What a Unix socket may hold: more than the system's choice, so that a long reply needs fewer
/// turns of both sides.
const SEND_BUFFER: usize = 1 << 20;
/// When a silent TCP peer is asked whether it is still there, how often, and how many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until then.
    Until(Instant),
    /// For ever.
    Forever,
}

/// What bytes come from and go to.
pub trait Stream: Send {
    /// Takes what is there, at most so much; nothing is the end. If there is none it waits, and
    /// fails with [`ErrorKind::WouldBlock`], or [`ErrorKind::TimedOut`] if it has waited.
    fn receive(&mut self, out: &mut [u8], wait: Wait) -> io::Result<usize>;

    /// Sends everything.
    fn send_all(&mut self, bytes: &[u8], wait: Wait) -> io::Result<()>;

    /// The socket, to be waited for; only after [`Stream::receive`] found nothing.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Says good-bye, where there is a way to.
    fn close(&mut self) {}
}

/// How a connection goes on under TLS.
pub trait StartTls: Send + Sync {
    /// Shakes hands, within the time.
    fn start(&self, socket: Socket, until: Instant) -> io::Result<Box<dyn Stream>>;
}

/// A connected socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// With the settings that suit: those that a kind of socket does not have are left out.
    pub fn new(fd: OwnedFd) -> Self {
        let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        let (idle, interval, count) = KEEPALIVE;
        let _ = sockopt::set_socket_keepalive(&fd, true);
        let _ = sockopt::set_tcp_keepidle(&fd, idle);
        let _ = sockopt::set_tcp_keepintvl(&fd, interval);
        let _ = sockopt::set_tcp_keepcnt(&fd, count);
        Self(fd)
    }

    fn wait(&self, what: PollFlags, wait: Wait) -> io::Result<()> {
        let left = match wait {
            Wait::No => return Err(ErrorKind::WouldBlock.into()),
            Wait::Forever => None,
            Wait::Until(until) => Some(until.saturating_duration_since(Instant::now())),
        };
        if left.is_some_and(|l| l.is_zero()) {
            return Err(ErrorKind::TimedOut.into());
        }
        let left = left.and_then(|l| Timespec::try_from(l).ok());
        match poll(&mut [PollFd::new(&self.0, what)], left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stream for Socket {
    fn receive(&mut self, out: &mut [u8], wait: Wait) -> io::Result<usize> {
        let flags = if wait == Wait::Forever { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        loop {
            match recv(&self.0, &mut *out, flags) {
                Ok((n, _)) => return Ok(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, wait)?,
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn send_all(&mut self, mut bytes: &[u8], wait: Wait) -> io::Result<()> {
        let dont = if wait == Wait::Forever { SendFlags::empty() } else { SendFlags::DONTWAIT };
        while !bytes.is_empty() {
            match send(&self.0, bytes, SendFlags::NOSIGNAL | dont) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, wait)?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
