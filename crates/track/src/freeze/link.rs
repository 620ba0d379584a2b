//! The link between a daemon and its helper: a pair of sockets that keep message boundaries.
//!
//! Invariant: sending never blocks, and an end that is gone is told from one that is silent.
//! Both ends are the same program, so anything unreadable means that they are not: an error.
//! Leaves to others: what the messages mean.
//!
//! A message is 40 bytes, little-endian: kind (4), round (4), then four numbers of 8 bytes that
//! depend on the kind. The directories to freeze travel with `Freeze`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::FILE_SYSTEMS_MAX;

/// Both ends say it first; a daemon that outlived an upgrade of its program finds out here.
pub const VERSION: u64 = 1;

const MESSAGE_BYTES: usize = 40;

/// A message, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which freeze it belongs to; 0 before the first.
    pub round: u32,
    /// What it says.
    pub body: Body,
}

/// What a message says. A file system is named by its place in the list of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Helper: ready; which of its wishes were refused (`helper::WISHES`, by bit).
    Hello {
        /// [`VERSION`].
        version: u64,
        /// A bit for each wish that was refused.
        refused: u64,
    },
    /// Daemon: freeze the descriptors of this message, and thaw after `hold_max`.
    Freeze {
        /// How many descriptors there are: the kernel drops those that do not fit.
        count: usize,
        /// From receipt on.
        hold_max: Duration,
    },
    /// Daemon: thaw.
    Thaw,
    /// Helper: the freeze of this file system begins.
    Started {
        /// Which.
        index: usize,
    },
    /// Helper: all are frozen.
    Frozen {
        /// How long that took.
        freezing: Duration,
    },
    /// Helper: thawing begins now.
    Ending {
        /// Why.
        cause: Cause,
    },
    /// Helper: all are thawed, and their directories closed.
    Ended {
        /// All were frozen this long.
        held: Duration,
        /// Thawing took this long.
        thawing: Duration,
        /// The first one that did not thaw as it should, and the kernel's answer.
        fault: Option<(usize, Errno)>,
    },
}

/// Why a freeze ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The daemon asked for it, while all were frozen.
    Asked,
    /// The deadline passed; with the file system that was being frozen then.
    Late(usize),
    /// One could not be frozen.
    Refused(usize, Errno),
    /// The helper was told to end, or its daemon is gone.
    Stopped,
}

/// What a wait brought.
#[derive(Debug)]
pub enum Arrival {
    /// A message, with its descriptors.
    Message(Message, Vec<OwnedFd>),
    /// The other end is gone.
    Closed,
    /// Nothing in time.
    Silence,
}

/// Two ends that are closed when a program is started.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends at once or fails.
pub fn send(link: impl AsFd, message: Message, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let bytes = encode(message);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILE_SYSTEMS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(link, &[IoSlice::new(&bytes)], &mut control, flags).map(drop)
}

/// Waits for a message, until a moment or for ever.
pub fn receive(link: impl AsFd, until: Option<Instant>) -> Result<Arrival> {
    loop {
        let timeout = until.map(timeout_until);
        match poll(&mut [PollFd::new(&link, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => return Ok(Arrival::Silence),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        }
        match take(&link) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::CONNRESET) => return Ok(Arrival::Closed),
            result => return result,
        }
    }
}

/// For `poll`: never too short.
pub fn timeout_until(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    // A time beyond what the kernel takes is as good as none.
    Timespec {
        tv_sec: left.as_secs().min(1 << 40).cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    }
}

fn take(link: impl AsFd) -> Result<Arrival> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILE_SYSTEMS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(link, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    match got.bytes {
        0 => Ok(Arrival::Closed),
        MESSAGE_BYTES => {
            decode(&bytes).map(|message| Arrival::Message(message, fds)).ok_or(Errno::PROTO)
        }
        _ => Err(Errno::PROTO),
    }
}

fn encode(message: Message) -> [u8; MESSAGE_BYTES] {
    let (kind, numbers) = match message.body {
        Body::Hello { version, refused } => (1, [version, refused, 0, 0]),
        Body::Freeze { count, hold_max } => (2, [nanos(hold_max), count as u64, 0, 0]),
        Body::Thaw => (3, [0; 4]),
        Body::Started { index } => (4, [index as u64, 0, 0, 0]),
        Body::Frozen { freezing } => (5, [nanos(freezing), 0, 0, 0]),
        Body::Ending { cause } => (6, encode_cause(cause)),
        Body::Ended { held, thawing, fault } => {
            let (index, errno) = fault.map_or((0, 0), |(index, errno)| (index, raw(errno)));
            (7, [nanos(held), nanos(thawing), index as u64, errno])
        }
    };
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[..4].copy_from_slice(&u32::to_le_bytes(kind));
    bytes[4..8].copy_from_slice(&message.round.to_le_bytes());
    for (place, number) in bytes[8..].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Option<Message> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let [a, b, c, d] = [number(8)?, number(16)?, number(24)?, number(32)?];
    let body = match half(0)? {
        1 => Body::Hello { version: a, refused: b },
        2 => Body::Freeze { count: usize::try_from(b).ok()?, hold_max: Duration::from_nanos(a) },
        3 => Body::Thaw,
        4 => Body::Started { index: index(a)? },
        5 => Body::Frozen { freezing: Duration::from_nanos(a) },
        6 => Body::Ending { cause: decode_cause(a, b, c)? },
        7 => Body::Ended {
            held: Duration::from_nanos(a),
            thawing: Duration::from_nanos(b),
            fault: if d == 0 { None } else { Some((index(c)?, errno(d)?)) },
        },
        _ => return None,
    };
    Some(Message { round: half(4)?, body })
}

fn encode_cause(cause: Cause) -> [u64; 4] {
    match cause {
        Cause::Asked => [1, 0, 0, 0],
        Cause::Late(index) => [2, index as u64, 0, 0],
        Cause::Refused(index, errno) => [3, index as u64, raw(errno), 0],
        Cause::Stopped => [4, 0, 0, 0],
    }
}

fn decode_cause(kind: u64, at: u64, code: u64) -> Option<Cause> {
    match kind {
        1 => Some(Cause::Asked),
        2 => Some(Cause::Late(index(at)?)),
        3 => Some(Cause::Refused(index(at)?, errno(code)?)),
        4 => Some(Cause::Stopped),
        _ => None,
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok().filter(|index| *index < FILE_SYSTEMS_MAX)
}

fn raw(errno: Errno) -> u64 {
    u64::from(errno.raw_os_error().unsigned_abs())
}

fn errno(number: u64) -> Option<Errno> {
    let code = i32::try_from(number).ok().filter(|code| (1..4096).contains(code))?;
    Some(Errno::from_raw_os_error(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODIES: [Body; 11] = [
        Body::Hello { version: VERSION, refused: 5 },
        Body::Freeze { count: 2, hold_max: Duration::from_millis(1500) },
        Body::Thaw,
        Body::Started { index: 63 },
        Body::Frozen { freezing: Duration::from_nanos(7) },
        Body::Ending { cause: Cause::Asked },
        Body::Ending { cause: Cause::Late(2) },
        Body::Ending { cause: Cause::Refused(3, Errno::BUSY) },
        Body::Ending { cause: Cause::Stopped },
        Body::Ended { held: Duration::from_secs(1), thawing: Duration::ZERO, fault: None },
        Body::Ended {
            held: Duration::ZERO,
            thawing: Duration::from_micros(2),
            fault: Some((0, Errno::INVAL)),
        },
    ];

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let (near, far) = pair().unwrap();
        for (round, body) in (1..).zip(BODIES) {
            let message = Message { round, body };
            send(&near, message, &[far.as_fd()]).unwrap();
            match receive(&far, Some(Instant::now())).unwrap() {
                Arrival::Message(got, fds) => assert_eq!((got, fds.len()), (message, 1)),
                other => panic!("{other:?} instead of {message:?}"),
            }
        }
    }

    #[test]
    fn unreadable_messages_are_refused() {
        let good = encode(Message { round: 1, body: Body::Started { index: 1 } });
        for (at, value) in [(0, 0), (0, 8), (8, 64), (15, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(decode(&bad), None, "byte {at} set to {value}");
        }
        let mut bad = encode(Message { round: 1, body: Body::Ending { cause: Cause::Asked } });
        bad[8] = 9;
        assert_eq!(decode(&bad), None, "an unknown cause");
    }

    #[test]
    fn silence_is_told_from_an_end_that_is_gone() {
        let (near, far) = pair().unwrap();
        assert!(matches!(receive(&near, Some(Instant::now())), Ok(Arrival::Silence)));
        drop(far);
        assert!(matches!(receive(&near, None), Ok(Arrival::Closed)));
        assert_eq!(send(&near, Message { round: 0, body: Body::Thaw }, &[]), Err(Errno::PIPE));
    }
}
