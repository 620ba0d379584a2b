//! From the greeting until a disk is chosen, as a state machine.
//!
//! Pure: bytes in, bytes out; only questions about contexts reach a device. Invariants: what was
//! agreed on before TLS is forgotten when TLS begins; while TLS is required nothing about disks
//! is told; the number and length of options is bounded. Leaves to others: the time, and how
//! much is sent ([`super::connection`]).

use std::sync::Arc;

use super::context::Context;
use super::options::{Asked, Broken, Queries, Raw, Refused, label, name, put_reply, shown};
use super::protocol::{
    CONTEXTS_MAX, MAGIC, OPTION_MAGIC, OPTIONS_MAX, PAYLOAD_MAX, Reader, greeting, info, option,
    reply,
};
use super::{Export, Exports};

/// What is said about TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// There is none.
    Absent,
    /// Nothing before it.
    Required,
    /// It has begun.
    Begun,
}

/// What a peer has chosen.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The disk.
    pub export: Arc<Export>,
    /// Reads are answered in chunks.
    pub structured: bool,
    /// What may be asked about ranges.
    pub contexts: Vec<Context>,
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// The next option.
    More,
    /// TLS, then options again.
    StartTls,
    /// Requests.
    Begin(Chosen),
    /// The end; the peer wants it.
    End,
}

/// One connection until it has a disk.
#[derive(Debug)]
pub struct Handshake {
    exports: Exports,
    tls: Tls,
    /// The peer's flags, when they have come.
    flags: Option<u16>,
    options: usize,
    structured: bool,
    /// Contexts, and the disk that they were chosen for.
    contexts: Option<(String, Vec<Context>)>,
}

/// What the server says first.
pub fn hello() -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&(greeting::FIXED_NEWSTYLE | greeting::NO_ZEROES).to_be_bytes());
    out
}

impl Handshake {
    /// Just connected.
    pub const fn new(exports: Exports, tls: Tls) -> Self {
        Self { exports, tls, flags: None, options: 0, structured: false, contexts: None }
    }

    /// TLS has begun.
    pub fn secured(&mut self) {
        self.tls = Tls::Begun;
        self.structured = false;
        self.contexts = None;
    }

    /// Takes one message off the front of what came. How many bytes it had, and what comes
    /// next; nothing if it is not whole yet.
    pub fn step(
        &mut self,
        came: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Step)>, Broken> {
        if self.flags.is_none() {
            let Some(flags) = Reader(came).u32() else { return Ok(None) };
            let known = u32::from(greeting::FIXED_NEWSTYLE | greeting::NO_ZEROES);
            if flags & !known != 0 {
                return Err(Broken::ClientFlags(flags));
            }
            self.flags = Some(flags as u16);
            return Ok(Some((4, Step::More)));
        }
        let Some(raw) = Raw::decode(came)? else { return Ok(None) };
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(Broken::TooManyOptions);
        }
        let step = self.answer(&raw, came.len() > raw.len(), out)?;
        Ok(Some((raw.len(), step)))
    }

    fn answer(&mut self, raw: &Raw<'_>, more: bool, out: &mut Vec<u8>) -> Result<Step, Broken> {
        let kind = raw.kind;
        if self.tls == Tls::Required && !matches!(kind, option::ABORT | option::STARTTLS) {
            if kind == option::EXPORT_NAME {
                return Err(Broken::TlsRequired);
            }
            put_reply(out, kind, reply::TLS_REQD, &[b"first STARTTLS"]);
            return Ok(Step::More);
        }
        let done = match kind {
            option::EXPORT_NAME => return self.old_way(raw.data, out),
            option::ABORT => Ok(Step::End),
            option::STARTTLS if more && self.tls == Tls::Required => return Err(Broken::BeforeTls),
            option::STARTTLS => self.start_tls(raw.data),
            option::LIST => self.list(raw.data, out),
            option::INFO | option::GO => self.describe(raw, out),
            option::STRUCTURED_REPLY if raw.data.is_empty() => {
                self.structured = true;
                Ok(Step::More)
            }
            option::STRUCTURED_REPLY => Err(Refused::invalid("this option has no data")),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(raw, out),
            _ => Err(Refused(reply::UNSUP, "the option is not known here".into())),
        };
        match done {
            Ok(step) => {
                put_reply(out, kind, reply::ACK, &[]);
                Ok(step)
            }
            Err(Refused(error, text)) => {
                put_reply(out, kind, error, &[format!("{}: {text}", label(kind)).as_bytes()]);
                Ok(Step::More)
            }
        }
    }

    fn start_tls(&self, data: &[u8]) -> Result<Step, Refused> {
        match self.tls {
            _ if !data.is_empty() => Err(Refused::invalid("this option has no data")),
            Tls::Required => Ok(Step::StartTls),
            Tls::Begun => Err(Refused::invalid("TLS has begun already")),
            Tls::Absent => Err(Refused(reply::POLICY, "there is no TLS here".into())),
        }
    }

    fn find(&self, name: &str) -> Result<&Arc<Export>, Refused> {
        let none = || Refused(reply::UNKNOWN, format!("there is no disk '{}' here", shown(name)));
        self.exports.find(name).ok_or_else(none)
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) -> Result<Step, Refused> {
        if !data.is_empty() {
            return Err(Refused::invalid("this option has no data"));
        }
        for export in self.exports.all() {
            let (name, text) = (export.name.as_bytes(), export.description.as_bytes());
            put_reply(out, option::LIST, reply::SERVER, &[&length(name), name, text]);
        }
        Ok(Step::More)
    }

    fn describe(&mut self, raw: &Raw<'_>, out: &mut Vec<u8>) -> Result<Step, Refused> {
        let asked = Asked::decode(raw.data)?;
        let export = Arc::clone(self.find(asked.name)?);
        let mut tell = |what: u16, parts: &[&[u8]]| {
            let what = what.to_be_bytes();
            put_reply(out, raw.kind, reply::INFO, &[&[&what[..]], parts].concat());
        };
        let disk = export.device.geometry();
        let flags = export.flags(self.structured).to_be_bytes();
        tell(info::EXPORT, &[&disk.size.to_be_bytes(), &flags]);
        for wanted in [info::NAME, info::DESCRIPTION] {
            let text = if wanted == info::NAME { &export.name } else { &export.description };
            if asked.wanted.contains(&wanted) && !text.is_empty() {
                tell(wanted, &[text.as_bytes()]);
            }
        }
        let sizes = [1, disk.block.clamp(512, PAYLOAD_MAX), PAYLOAD_MAX].map(u32::to_be_bytes);
        tell(info::BLOCK_SIZE, &[&sizes.concat()]);
        if raw.kind == option::INFO {
            return Ok(Step::More);
        }
        Ok(self.begin(export, asked.name))
    }

    /// Contexts hold for the disk that they were chosen for.
    fn begin(&mut self, export: Arc<Export>, name: &str) -> Step {
        let contexts = self.contexts.take().filter(|(of, _)| of == name);
        let contexts = contexts.map_or_else(Vec::new, |(_, chosen)| chosen);
        Step::Begin(Chosen { export, structured: self.structured, contexts })
    }

    fn contexts(&mut self, raw: &Raw<'_>, out: &mut Vec<u8>) -> Result<Step, Refused> {
        let set = raw.kind == option::SET_META_CONTEXT;
        if set {
            // What was chosen before is void, also when this is refused.
            self.contexts = None;
        }
        if !self.structured {
            return Err(Refused::invalid("structured replies were not agreed on"));
        }
        let asked = Queries::decode(raw.data)?;
        let device = &self.find(asked.name)?.device;
        let mut tell = |id: u32, name: &str| {
            let parts: [&[u8]; 2] = [&id.to_be_bytes(), name.as_bytes()];
            put_reply(out, raw.kind, reply::META_CONTEXT, &parts);
        };
        if !set {
            let mut names: Vec<String> = match asked.queries.as_slice() {
                [] => Context::list(device, None),
                all => all.iter().flat_map(|q| Context::list(device, Some(q))).collect(),
            };
            names.dedup();
            names.iter().for_each(|name| tell(0, name));
            return Ok(Step::More);
        }
        let mut chosen: Vec<Context> = Vec::new();
        for query in asked.queries {
            let known = chosen.iter().any(|c| c.name == query);
            if known || chosen.len() == CONTEXTS_MAX {
                continue;
            }
            // One that cannot be had is left out, as the protocol wants it.
            if let Ok(Some(found)) = Context::find(device, query, chosen.len() as u32 + 1) {
                tell(found.id, &found.name);
                chosen.push(found);
            }
        }
        self.contexts = Some((asked.name.to_owned(), chosen));
        Ok(Step::More)
    }

    /// The old way to choose: no reply but the disk itself.
    fn old_way(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<Step, Broken> {
        let none = || Broken::NoSuchExport(shown(&String::from_utf8_lossy(data)));
        let name = name(data).map_err(|_| none())?;
        let export = Arc::clone(self.exports.find(name).ok_or_else(none)?);
        out.extend_from_slice(&export.device.geometry().size.to_be_bytes());
        out.extend_from_slice(&export.flags(self.structured).to_be_bytes());
        if self.flags.is_some_and(|f| f & greeting::NO_ZEROES == 0) {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(self.begin(export, name))
    }
}

/// A text's length as it stands before it; names are bounded.
fn length(text: &[u8]) -> [u8; 4] {
    u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes()
}
