//! Generic netlink, as much as the kernel's NBD client needs: a request, and its answer.
//!
//! Invariant: lengths in what comes back are checked before use; an answer is waited for a bounded
//! time. Leaves to others: which attributes there are.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Bytes of `struct nlmsghdr`, and of `struct genlmsghdr` after it.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// The type of a message that carries an error number; 0 acknowledges.
const ERROR: u16 = 2;
/// The family that knows the others' numbers.
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;

/// The flags in an attribute's type.
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// Longer than any request takes the kernel, short enough for who waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// Attributes, one after the other.
#[derive(Debug, Default, Clone)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// One more.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = (4 + value.len()) as u16;
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(&kind.to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_le_bytes())
    }

    /// A number.
    #[must_use]
    pub fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_le_bytes())
    }

    /// A text.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// As they are sent.
    #[cfg(test)]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Attributes in one.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// The value of the first attribute of a kind.
pub fn find(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?));
        let found = u16::from_le_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

/// A number in an attribute.
pub fn find_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_le_bytes(find(bytes, kind)?.get(..4)?.try_into().ok()?))
}

/// A socket to one family of messages.
#[derive(Debug)]
pub struct Family {
    socket: OwnedFd,
    number: u16,
}

impl Family {
    /// The family of this name. The kernel loads a module that has it.
    pub fn open(name: &str) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(GENERIC),
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(PATIENCE),
        )?;
        let control = Self { socket, number: CONTROL };
        let wanted = Attributes::default().text(CONTROL_FAMILY_NAME, name);
        let answer = control.ask(CONTROL_GET_FAMILY, 2, &wanted)?;
        let number = find(&answer, CONTROL_FAMILY_ID).and_then(|v| v.try_into().ok());
        let number = number.map(u16::from_le_bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { number, ..control })
    }

    /// Sends a command, and returns the attributes of the answer; none if it was acknowledged only.
    pub fn ask(&self, command: u8, version: u8, what: &Attributes) -> io::Result<Vec<u8>> {
        let message = message(self.number, command, version, what);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = Vec::new();
        let mut bytes = vec![0; 64 << 10];
        loop {
            let len = match rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::empty()) {
                Ok((_, len)) => len,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(e) => return Err(e.into()),
            };
            let came = bytes.get(..len).ok_or(io::ErrorKind::InvalidData)?;
            if read(came, &mut answer)? {
                return Ok(answer);
            }
        }
    }
}

fn message(family: u16, command: u8, version: u8, what: &Attributes) -> Vec<u8> {
    let len = HEADER + GENERIC_HEADER + what.0.len();
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    bytes.extend_from_slice(&family.to_le_bytes());
    bytes.extend_from_slice(&(REQUEST | ACK).to_le_bytes());
    // Number and port: one request at a time needs neither.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[command, version, 0, 0]);
    bytes.extend_from_slice(&what.0);
    bytes
}

/// Reads what came: attributes go to `answer`. True when the acknowledgement was there.
fn read(mut bytes: &[u8], answer: &mut Vec<u8>) -> io::Result<bool> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    while !bytes.is_empty() {
        let head: &[u8; HEADER] = bytes.first_chunk().ok_or_else(bad)?;
        let [a, b, c, d, kind_low, kind_high, ..] = *head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let body = bytes.get(HEADER..len).ok_or_else(bad)?;
        if u16::from_le_bytes([kind_low, kind_high]) == ERROR {
            let errno: &[u8; 4] = body.first_chunk().ok_or_else(bad)?;
            return match i32::from_le_bytes(*errno) {
                0 => Ok(true),
                n => Err(io::Error::from_raw_os_error(n.saturating_neg())),
            };
        }
        answer.extend_from_slice(body.get(GENERIC_HEADER..).ok_or_else(bad)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let inner = Attributes::default().u32(1, 7);
        let all = Attributes::default().text(2, "nbd").u64(3, 9).nested(4, &inner);
        assert_eq!(all.0.len() % 4, 0);
        assert_eq!(find(&all.0, 2), Some(&b"nbd\0"[..]));
        assert_eq!(find(&all.0, 3), Some(&9u64.to_le_bytes()[..]));
        assert_eq!(find_u32(find(&all.0, 4).unwrap(), 1), Some(7));
        assert_eq!(find(&all.0, 5), None);
        for cut in 0..all.0.len() {
            assert_eq!(find(&all.0[..cut], 9), None, "cut at {cut}");
        }
        assert_eq!(find(&[0, 0, 1, 0, 0, 0, 0, 0], 1), None, "a length of zero ends it");
    }

    #[test]
    fn answers_are_read_whole_or_refused() {
        let body = Attributes::default().u32(1, 7);
        let mut bytes = message(30, 1, 1, &body);
        let acknowledged = |errno: i32| {
            let mut ack = 36u32.to_le_bytes().to_vec();
            ack.extend_from_slice(&ERROR.to_le_bytes());
            ack.resize(HEADER, 0);
            ack.extend_from_slice(&(-errno).to_le_bytes());
            ack.resize(36, 0);
            ack
        };
        let mut answer = Vec::new();
        assert!(!read(&bytes, &mut answer).unwrap());
        assert_eq!(find_u32(&answer, 1), Some(7));
        bytes.extend(acknowledged(0));
        let mut answer = Vec::new();
        assert!(read(&bytes, &mut answer).unwrap());
        assert_eq!(find_u32(&answer, 1), Some(7));
        let error = read(&acknowledged(libc::EBUSY), &mut answer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        for cut in 1..28 {
            assert!(read(&bytes[..cut], &mut Vec::new()).is_err(), "cut at {cut}");
        }
        assert!(read(&[4, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut answer).is_err());
    }

    #[test]
    fn a_family_that_no_kernel_has_is_refused() {
        let Err(error) = Family::open("dormouse-none") else { panic!("it is there") };
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
    }
}
