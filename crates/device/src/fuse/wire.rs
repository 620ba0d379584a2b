//! The bytes of FUSE: what the kernel asks, and what it is told (linux/fuse.h, version 7.31).
//!
//! Invariant: no length or offset of a message is believed before it is checked; a message that
//! cannot be understood has a number at least, so that it gets an answer. Pure.

use crate::Geometry;

/// Bytes before each request.
pub const IN_HEADER: usize = 40;
/// Bytes before each answer.
pub const OUT_HEADER: usize = 16;
/// Bytes of a write before its data, without the header.
const WRITE_IN: usize = 40;
/// The version that is spoken here.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// The most bytes of one read or write.
pub const MAX_IO: u32 = 1 << 20;
/// Requests that the kernel has under way at most.
pub const BACKGROUND: u16 = 128;

const ASYNC_READ: u32 = 1;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
/// What is wanted of what the kernel offers.
const WANTED: u32 = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES;

/// The kernel is not to keep what it has read: what is on top of the disk does.
const OPEN_DIRECT: u32 = 1;
const OPEN_NO_FLUSH: u32 = 1 << 5;
const OPEN_PARALLEL_WRITES: u32 = 1 << 6;

/// The number of the only directory.
pub const ROOT: u64 = 1;
/// The number of the only file.
pub const DISK: u64 = 2;

/// A request; `unique` names it in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    pub unique: u64,
    pub node: u64,
    pub ask: Ask<'a>,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    Init {
        minor: u32,
        readahead: u32,
        offers: u32,
    },
    Lookup {
        name: &'a [u8],
    },
    GetAttr,
    Open,
    Read {
        at: u64,
        len: u32,
    },
    Write {
        at: u64,
        bytes: &'a [u8],
    },
    Fsync,
    Allocate {
        at: u64,
        len: u64,
        mode: u32,
    },
    StatFs,
    /// The last who had the file open has closed it.
    Release,
    /// Nobody waits for an answer.
    Silent,
    /// Nothing is to be done.
    Nothing,
    /// Not done here.
    Unknown,
    /// Not as the protocol has it.
    Malformed,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Reads one message. None if it has not even a number.
pub fn request(bytes: &[u8]) -> Option<Request<'_>> {
    let (len, operation) = (u32_at(bytes, 0)?, u32_at(bytes, 4)?);
    let (unique, node) = (u64_at(bytes, 8)?, u64_at(bytes, 16)?);
    let body = bytes.get(IN_HEADER..)?;
    let whole = len as usize == bytes.len();
    let ask = whole.then(|| ask(operation, body)).flatten().unwrap_or(Ask::Malformed);
    Some(Request { unique, node, ask })
}

fn ask(operation: u32, body: &[u8]) -> Option<Ask<'_>> {
    Some(match operation {
        1 => Ask::Lookup { name: body.strip_suffix(b"\0")? },
        // FORGET, INTERRUPT, BATCH_FORGET.
        2 | 36 | 42 => Ask::Silent,
        3 => Ask::GetAttr,
        14 => Ask::Open,
        15 => Ask::Read { at: u64_at(body, 8)?, len: u32_at(body, 16)? },
        16 => {
            let (at, len) = (u64_at(body, 8)?, u32_at(body, 16)?);
            let bytes = body.get(WRITE_IN..).filter(|bytes| bytes.len() == len as usize)?;
            Ask::Write { at, bytes }
        }
        17 => Ask::StatFs,
        18 => Ask::Release,
        20 => Ask::Fsync,
        // FLUSH, DESTROY: a close, and the end.
        25 | 38 => Ask::Nothing,
        26 => {
            let (major, minor) = (u32_at(body, 0)?, u32_at(body, 4)?);
            if major < MAJOR {
                return None;
            }
            let offers = u32_at(body, 12).unwrap_or(0);
            Ask::Init { minor, readahead: u32_at(body, 8).unwrap_or(0), offers }
        }
        43 => {
            let (at, len) = (u64_at(body, 8)?, u64_at(body, 16)?);
            Ask::Allocate { at, len, mode: u32_at(body, 24)? }
        }
        _ => Ask::Unknown,
    })
}

/// The header of an answer; `error` is 0 or an error's number.
pub fn header(unique: u64, error: i32, body: usize) -> [u8; OUT_HEADER] {
    let mut out = [0; OUT_HEADER];
    out[..4].copy_from_slice(&((OUT_HEADER + body) as u32).to_le_bytes());
    out[4..8].copy_from_slice(&(-error).to_le_bytes());
    out[8..].copy_from_slice(&unique.to_le_bytes());
    out
}

/// Numbers one after the other.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u16(mut self, n: u16) -> Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }
    fn u32(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }
    fn u64(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }
    fn zeros(mut self, n: usize) -> Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }
}

/// The answer to `Init`.
pub fn init(readahead: u32, offers: u32) -> Vec<u8> {
    let pages = (MAX_IO / 4096) as u16;
    let body = Body::default().u32(MAJOR).u32(MINOR).u32(readahead).u32(offers & WANTED);
    body.u16(BACKGROUND).u16(BACKGROUND * 3 / 4).u32(MAX_IO).u32(1).u16(pages).zeros(34).0
}

/// What a node is like: `fuse_attr`.
fn attributes(body: Body, node: u64, disk: &Geometry) -> Body {
    let (kind, rights) = if node == ROOT {
        (0o040_000, 0o500)
    } else {
        (0o100_000, if disk.read_only { 0o400 } else { 0o600 })
    };
    let size = if node == ROOT { 0 } else { disk.size };
    let body = body.u64(node).u64(size).u64(size.div_ceil(512)).zeros(3 * 8 + 3 * 4);
    body.u32(kind | rights).u32(1).zeros(3 * 4).u32(disk.block).u32(0)
}

/// The answer to `Lookup`: known for ever.
pub fn entry(disk: &Geometry) -> Vec<u8> {
    let body = Body::default().u64(DISK).u64(0).u64(u64::from(u32::MAX)).u64(0).zeros(8);
    attributes(body, DISK, disk).0
}

/// The answer to `GetAttr`: asked anew each time, since the size may change.
pub fn attr(node: u64, disk: &Geometry) -> Vec<u8> {
    attributes(Body::default().zeros(16), node, disk).0
}

/// The answer to `Open`.
pub fn open() -> Vec<u8> {
    Body::default().u64(0).u32(OPEN_DIRECT | OPEN_NO_FLUSH | OPEN_PARALLEL_WRITES).u32(0).0
}

/// The answer to `Write`.
pub fn written(len: u32) -> Vec<u8> {
    Body::default().u32(len).u32(0).0
}

/// The answer to `StatFs`: the unit tells the loop device what can be discarded.
pub fn statfs(disk: &Geometry) -> Vec<u8> {
    let unit = disk.block.max(512);
    let body = Body::default().u64(disk.size / u64::from(unit)).zeros(4 * 8);
    body.u32(unit).u32(255).u32(unit).zeros(4 + 6 * 4).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(operation: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((IN_HEADER + body.len()) as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&operation.to_le_bytes());
        bytes.extend_from_slice(&77u64.to_le_bytes());
        bytes.extend_from_slice(&DISK.to_le_bytes());
        bytes.resize(IN_HEADER, 0);
        bytes.extend_from_slice(body);
        bytes
    }

    fn asked(operation: u32, body: &[u8]) -> Ask<'static> {
        let bytes: &'static [u8] = message(operation, body).leak();
        let request = request(bytes).unwrap();
        assert_eq!((request.unique, request.node), (77, DISK));
        request.ask
    }

    /// `fuse_read_in` and `fuse_write_in`.
    fn io(at: u64, len: u32, data: &[u8]) -> Vec<u8> {
        let body = Body::default().u64(0).u64(at).u32(len).zeros(20);
        [body.0.as_slice(), data].concat()
    }

    #[test]
    fn requests_are_read() {
        assert_eq!(asked(1, b"disk\0"), Ask::Lookup { name: b"disk" });
        assert_eq!(asked(15, &io(4096, 512, b"")), Ask::Read { at: 4096, len: 512 });
        assert_eq!(asked(16, &io(9, 3, b"abc")), Ask::Write { at: 9, bytes: b"abc" });
        let body = Body::default().u64(0).u64(5).u64(6).u32(3).u32(0).0;
        assert_eq!(asked(43, &body), Ask::Allocate { at: 5, len: 6, mode: 3 });
        let body = Body::default().u32(7).u32(45).u32(1 << 17).u32(!0).zeros(48).0;
        let init = Ask::Init { minor: 45, readahead: 1 << 17, offers: !0 };
        assert_eq!(asked(26, &body), init);
        assert_eq!(asked(9, b"x"), Ask::Unknown);
    }

    #[test]
    fn lengths_that_lie_are_malformed_and_keep_their_number() {
        assert_eq!(asked(16, &io(9, 4, b"abc")), Ask::Malformed);
        assert_eq!(asked(16, &io(9, u32::MAX, b"abc")), Ask::Malformed);
        assert_eq!(asked(1, b"disk"), Ask::Malformed);
        let old = Body::default().u32(6).u32(9).0;
        assert_eq!(asked(26, &old), Ask::Malformed);
        let whole = message(15, &io(0, 512, b""));
        for cut in 0..whole.len() {
            let got = request(&whole[..cut]);
            let malformed = got.is_none_or(|r| r.ask == Ask::Malformed && r.unique == 77);
            assert!(malformed, "cut at {cut}: {got:?}");
            assert_eq!(got.is_some(), cut >= IN_HEADER);
        }
    }

    #[test]
    fn answers_have_the_sizes_of_the_protocol() {
        let disk = Geometry { size: 1 << 30, block: 4096, read_only: true };
        assert_eq!(init(1 << 17, !0).len(), 64);
        assert_eq!(entry(&disk).len(), 128);
        let attr = attr(DISK, &disk);
        assert_eq!(attr.len(), 104);
        assert_eq!(u64_at(&attr, 24), Some(1 << 30));
        assert_eq!(u32_at(&attr, 16 + 60), Some(0o100_400));
        assert_eq!(open().len(), 16);
        assert_eq!(statfs(&disk).len(), 80);
        assert_eq!(written(5).len(), 8);
        assert_eq!(header(3, 5, 0), [16, 0, 0, 0, 251, 255, 255, 255, 3, 0, 0, 0, 0, 0, 0, 0]);
    }
}
