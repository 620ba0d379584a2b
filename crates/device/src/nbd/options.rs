//! Options: what a peer says before it has a disk, and the replies.
//!
//! Pure. Invariant: no length is believed before it is compared with a limit.

use super::protocol::{
    NAME_MAX, OPTION_LEN, OPTION_MAGIC, OPTION_MAX, OPTION_REPLY_MAGIC, QUERIES_MAX, Reader,
    option, reply,
};

/// Letters of a name that are told.
const SHOWN_MAX: usize = 80;

/// What ends a connection: the peer does not keep to the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Something else stands where a magic number belongs.
    #[error("what it sent is not NBD (wrong magic number)")]
    Magic,
    /// Flags that are not known.
    #[error("it wants features that nobody knows ({0:#x})")]
    ClientFlags(u32),
    /// An option of more than [`OPTION_MAX`] bytes.
    #[error("an option of {0} bytes; {OPTION_MAX} are allowed")]
    OptionTooLong(u32),
    /// Too many options.
    #[error("too many options, and no disk chosen")]
    TooManyOptions,
    /// The old way to choose allows no other answer.
    #[error("it asked for '{0}', which is not here")]
    NoSuchExport(String),
    /// It speaks before TLS has begun, or without.
    #[error("TLS is required, and it does not begin it")]
    TlsRequired,
    /// What was not encrypted must not be taken for what is.
    #[error("bytes came before TLS had begun")]
    BeforeTls,
    /// A write longer than was agreed on.
    #[error("a write of {0} bytes")]
    WriteTooLong(u32),
}

/// One option, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a> {
    /// Which.
    pub kind: u32,
    /// Its data.
    pub data: &'a [u8],
}

impl<'a> Raw<'a> {
    /// The first option of these bytes, if all of it is there.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<Self>, Broken> {
        let mut head = Reader(bytes);
        let Some(magic) = head.u64() else { return Ok(None) };
        if magic != OPTION_MAGIC {
            return Err(Broken::Magic);
        }
        let (Some(kind), Some(len)) = (head.u32(), head.u32()) else { return Ok(None) };
        if len as usize > OPTION_MAX {
            return Err(Broken::OptionTooLong(len));
        }
        Ok(head.bytes(len as usize).map(|data| Self { kind, data }))
    }

    /// Bytes of it, with its head.
    pub const fn len(&self) -> usize {
        OPTION_LEN + self.data.len()
    }

    /// Never: an option has a head.
    pub const fn is_empty(&self) -> bool {
        false
    }
}

/// Why an option is refused: the kind of reply, and a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub u32, pub String);

impl Refused {
    /// It is not well formed, or not allowed now.
    pub fn invalid(text: &str) -> Self {
        Self(reply::INVALID, text.to_owned())
    }
}

/// A peer's name as it may stand in a text, in a reply or a log: short, and of one line.
pub fn shown(name: &str) -> String {
    name.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

/// A name in UTF-8, of bounded length.
pub fn name(bytes: &[u8]) -> Result<&str, Refused> {
    if bytes.len() > NAME_MAX {
        return Err(Refused(reply::TOO_BIG, format!("a name has at most {NAME_MAX} bytes")));
    }
    core::str::from_utf8(bytes).map_err(|_| Refused::invalid("a name must be UTF-8"))
}

/// The data of INFO and GO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The disk.
    pub name: &'a str,
    /// What the peer wants to be told about it.
    pub wanted: Vec<u16>,
}

impl<'a> Asked<'a> {
    /// Reads it.
    pub fn decode(data: &'a [u8]) -> Result<Self, Refused> {
        let short = || Refused::invalid("the option is cut short");
        let mut rest = Reader(data);
        let name = name(rest.string().ok_or_else(short)?)?;
        let count = usize::from(rest.u16().ok_or_else(short)?);
        if rest.0.len() != count * 2 {
            return Err(Refused::invalid("the option's length does not fit its content"));
        }
        Ok(Self { name, wanted: core::iter::from_fn(|| rest.u16()).collect() })
    }
}

/// The data of the two options about contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queries<'a> {
    /// The disk.
    pub name: &'a str,
    /// Which contexts.
    pub queries: Vec<&'a str>,
}

impl<'a> Queries<'a> {
    /// Reads it.
    pub fn decode(data: &'a [u8]) -> Result<Self, Refused> {
        let short = || Refused::invalid("the option is cut short");
        let mut rest = Reader(data);
        let export = name(rest.string().ok_or_else(short)?)?;
        let count = rest.u32().ok_or_else(short)?;
        if count as usize > QUERIES_MAX {
            return Err(Refused(reply::TOO_BIG, format!("at most {QUERIES_MAX} queries")));
        }
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(name(rest.string().ok_or_else(short)?)?);
        }
        if !rest.0.is_empty() {
            return Err(Refused::invalid("the option's length does not fit its content"));
        }
        Ok(Self { name: export, queries })
    }
}

/// Appends a reply to an option; `parts` one after the other are its data.
pub fn put_reply(out: &mut Vec<u8>, to: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&to.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    // Names, and texts of this program: far below the limit.
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|p| out.extend_from_slice(p));
}

/// An option's name, for people.
pub const fn label(kind: u32) -> &'static str {
    match kind {
        option::EXPORT_NAME => "EXPORT_NAME",
        option::ABORT => "ABORT",
        option::LIST => "LIST",
        option::STARTTLS => "STARTTLS",
        option::INFO => "INFO",
        option::GO => "GO",
        option::STRUCTURED_REPLY => "STRUCTURED_REPLY",
        option::LIST_META_CONTEXT => "LIST_META_CONTEXT",
        option::SET_META_CONTEXT => "SET_META_CONTEXT",
        _ => "this option",
    }
}
