//! Requests: what a peer asks of the disk that it has chosen.
//!
//! Pure. Invariant: what [`Request::check`] lets pass lies within the disk, is not empty, and has
//! only flags that its command knows.

use super::options::Broken;
use super::protocol::{Code, PAYLOAD_MAX, REQUEST_LEN, REQUEST_MAGIC, Reader, command, how};
use crate::{Geometry, Write, Zero};

/// A request as it came, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What the peer calls it.
    pub cookie: u64,
    /// Flags.
    pub flags: u16,
    /// The command.
    pub kind: u16,
    /// The first byte.
    pub at: u64,
    /// Bytes.
    pub len: u32,
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Reads are answered in chunks.
    pub structured: bool,
    /// Contexts were chosen.
    pub contexts: bool,
}

/// A request that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Nothing to do: an empty range.
    Nothing,
    /// Read; in one chunk if so told.
    Read {
        /// The first byte.
        at: u64,
        /// Bytes.
        len: u32,
        /// Not in pieces.
        whole: bool,
    },
    /// Write the payload.
    Write {
        /// The first byte.
        at: u64,
        /// Its promises.
        how: Write,
    },
    /// Make zero.
    Zero {
        /// The first byte.
        at: u64,
        /// Bytes.
        len: u32,
        /// In which way.
        how: Zero,
    },
    /// Not needed any more.
    Trim {
        /// The first byte.
        at: u64,
        /// Bytes.
        len: u32,
        /// Then flush.
        fua: bool,
    },
    /// Read ahead.
    Cache {
        /// The first byte.
        at: u64,
        /// Bytes.
        len: u32,
    },
    /// Make durable.
    Flush,
    /// Tell about a range.
    Status {
        /// The first byte.
        at: u64,
        /// Bytes.
        len: u32,
        /// One part only.
        one: bool,
    },
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub Code, pub &'static str);

impl Request {
    /// Reads it.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Self, Broken> {
        let mut rest = Reader(bytes);
        // There are as many bytes as are taken.
        let decoded = (|| {
            let (magic, flags, kind) = (rest.u32()?, rest.u16()?, rest.u16()?);
            let (cookie, at, len) = (rest.u64()?, rest.u64()?, rest.u32()?);
            Some((magic, Self { cookie, flags, kind, at, len }))
        })();
        let request = match decoded {
            Some((REQUEST_MAGIC, request)) => request,
            _ => return Err(Broken::Magic),
        };
        if request.kind == command::WRITE && request.len > PAYLOAD_MAX {
            return Err(Broken::WriteTooLong(request.len));
        }
        Ok(request)
    }

    /// Bytes that follow it.
    pub const fn payload(&self) -> usize {
        if self.kind == command::WRITE { self.len as usize } else { 0 }
    }

    /// Whether it is the last of its connection.
    pub const fn is_end(&self) -> bool {
        self.kind == command::DISC
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Flags that the command knows.
    const fn known(&self) -> Option<u16> {
        // A flag that promises more than a command can need is harmless.
        Some(match self.kind {
            command::READ => how::FUA | how::DF,
            command::WRITE | command::TRIM | command::CACHE | command::FLUSH => how::FUA,
            command::WRITE_ZEROES => how::FUA | how::NO_HOLE | how::FAST_ZERO,
            command::BLOCK_STATUS => how::FUA | how::REQ_ONE,
            _ => return None,
        })
    }

    /// Whether, and how, it may be carried out on a disk like this.
    pub fn check(&self, disk: &Geometry, agreed: Agreed) -> Result<Op, Refused> {
        let invalid = |text| Err(Refused(Code::Inval, text));
        let Some(known) = self.known() else { return invalid("the command is not known") };
        if self.flags & !known != 0 {
            return invalid("the command has flags that it does not know");
        }
        if self.kind == command::FLUSH {
            // The protocol wants both to be zero.
            let whole = self.at == 0 && self.len == 0;
            return if whole { Ok(Op::Flush) } else { invalid("a flush has no range") };
        }
        let writes = matches!(self.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && disk.read_only {
            return Err(Refused(Code::Perm, "the disk is read-only"));
        }
        let end = self.at.checked_add(u64::from(self.len));
        if end.is_none_or(|end| end > disk.size) {
            let full = matches!(self.kind, command::WRITE | command::WRITE_ZEROES);
            let code = if full { Code::NoSpc } else { Code::Inval };
            return Err(Refused(code, "the range does not lie within the disk"));
        }
        self.op(agreed)
    }

    /// Its meaning; range and flags are in order.
    fn op(&self, agreed: Agreed) -> Result<Op, Refused> {
        let (at, len, fua) = (self.at, self.len, self.has(how::FUA));
        let invalid = |text| Err(Refused(Code::Inval, text));
        if self.kind == command::BLOCK_STATUS {
            return match () {
                () if !agreed.contexts => invalid("no context was chosen"),
                () if len == 0 => invalid("nothing is asked about"),
                () => Ok(Op::Status { at, len, one: self.has(how::REQ_ONE) }),
            };
        }
        if self.kind == command::READ {
            if self.has(how::DF) && !agreed.structured {
                return invalid("structured replies were not agreed on");
            }
            if len > PAYLOAD_MAX {
                return Err(Refused(Code::Overflow, "more bytes than one read may ask for"));
            }
        }
        if len == 0 {
            return Ok(Op::Nothing);
        }
        Ok(match self.kind {
            command::READ => Op::Read { at, len, whole: self.has(how::DF) },
            command::WRITE => Op::Write { at, how: Write { fua } },
            command::TRIM => Op::Trim { at, len, fua },
            command::CACHE => Op::Cache { at, len },
            _ => {
                let (keep, fast) = (self.has(how::NO_HOLE), self.has(how::FAST_ZERO));
                Op::Zero { at, len, how: Zero { fua, keep, fast } }
            }
        })
    }
}
