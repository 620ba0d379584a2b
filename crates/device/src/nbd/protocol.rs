//! The numbers of the NBD protocol, its fixed layouts, and the limits set on what a peer says.
//!
//! All integers are big-endian. Names follow the protocol's document, without its prefixes.

/// `NBDMAGIC`: begins the greeting.
pub const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// `IHAVEOPT`: goes on with the greeting, and begins each option.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Begins each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request without its payload.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_LEN: usize = 16;
/// Bytes of a chunk without its payload.
pub const CHUNK_LEN: usize = 20;
/// Bytes of an option before its data.
pub const OPTION_LEN: usize = 16;

/// Most bytes of one read or write.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// Most bytes of a name or description: the protocol's own limit for strings.
pub const NAME_MAX: usize = 4096;
/// Most bytes of an option's data.
pub const OPTION_MAX: usize = 64 << 10;
/// Most options before a disk is chosen.
pub const OPTIONS_MAX: usize = 256;
/// Most queries in one option about contexts.
pub const QUERIES_MAX: usize = 128;
/// Most contexts that one connection chooses.
pub const CONTEXTS_MAX: usize = 16;
/// Most parts in one answer about a context.
pub const PARTS_MAX: usize = 4096;

/// Flags of the greeting, alike on both sides.
pub mod greeting {
    /// Options are answered one by one.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 bytes of zeros after the old way to choose.
    pub const NO_ZEROES: u16 = 2;
}

/// Options.
pub mod option {
    /// Choose a disk, the old way.
    pub const EXPORT_NAME: u32 = 1;
    /// Good-bye.
    pub const ABORT: u32 = 2;
    /// Name all disks.
    pub const LIST: u32 = 3;
    /// Go on under TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe a disk.
    pub const INFO: u32 = 6;
    /// Describe and choose it.
    pub const GO: u32 = 7;
    /// Reads are answered in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// A disk.
    pub const SERVER: u32 = 2;
    /// Something about a disk.
    pub const INFO: u32 = 3;
    /// A context.
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    /// Not known here.
    pub const UNSUP: u32 = ERROR | 1;
    /// Not allowed.
    pub const POLICY: u32 = ERROR | 2;
    /// Not well formed, or not now.
    pub const INVALID: u32 = ERROR | 3;
    /// First under TLS.
    pub const TLS_REQD: u32 = ERROR | 5;
    /// No such disk.
    pub const UNKNOWN: u32 = ERROR | 6;
    /// Too much.
    pub const TOO_BIG: u32 = ERROR | 9;
}

/// What is told about a disk.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Its name.
    pub const NAME: u16 = 1;
    /// Its description.
    pub const DESCRIPTION: u16 = 2;
    /// Least, best and greatest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Flags of a disk.
pub mod flags {
    /// There are flags.
    pub const HAS_FLAGS: u16 = 1;
    /// No writes.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flush is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Writes may be durable when answered.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Trim is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Write zeroes is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// A read may ask to be answered in one chunk.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush covers all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Cache is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Write zeroes may be told to fail if it is slow.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Good-bye.
    pub const DISC: u16 = 2;
    /// Make durable.
    pub const FLUSH: u16 = 3;
    /// Not needed any more.
    pub const TRIM: u16 = 4;
    /// Read ahead.
    pub const CACHE: u16 = 5;
    /// Make zero.
    pub const WRITE_ZEROES: u16 = 6;
    /// Tell what is known of a range.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod how {
    /// Durable when answered.
    pub const FUA: u16 = 1;
    /// Zeros without a hole.
    pub const NO_HOLE: u16 = 2;
    /// One chunk.
    pub const DF: u16 = 4;
    /// One part.
    pub const REQ_ONE: u16 = 8;
    /// Fail if slow.
    pub const FAST_ZERO: u16 = 16;
}

/// Kinds of chunks.
pub mod chunk {
    /// Flag: the last of its reply.
    pub const DONE: u16 = 1;
    /// Nothing more.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Parts of a context.
    pub const BLOCK_STATUS: u16 = 5;
    /// It failed.
    pub const ERROR: u16 = (1 << 15) | 1;
    /// It failed at an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;
}

/// Error numbers, which are the same on every system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// Not permitted.
    Perm = 1,
    /// Failed.
    Io = 5,
    /// No memory.
    NoMem = 12,
    /// Not a valid request.
    Inval = 22,
    /// No room, or beyond the end.
    NoSpc = 28,
    /// Too much at once.
    Overflow = 75,
    /// Not supported.
    NotSup = 95,
    /// Going away.
    Shutdown = 108,
}

impl From<&crate::Error> for Code {
    fn from(error: &crate::Error) -> Self {
        use rustix::io::Errno;
        match error.errno() {
            Errno::PERM | Errno::ROFS => Self::Perm,
            Errno::NOMEM => Self::NoMem,
            Errno::INVAL => Self::Inval,
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Self::NoSpc,
            Errno::OVERFLOW => Self::Overflow,
            Errno::OPNOTSUPP => Self::NotSup,
            Errno::SHUTDOWN => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

/// Takes integers off the front of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// So many bytes, if they are there.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Bytes with their length, as four bytes, before them.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).ok()?)
    }
}
