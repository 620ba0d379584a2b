//! A request is carried out, and its reply written.
//!
//! Owns: the layouts of replies. Invariant: whatever the device answers, there is one reply, whole,
//! and in the form that was agreed on. Leaves to others: in which thread, and when it is sent.

use super::buffer::Out;
use super::handshake::Chosen;
use super::protocol::{CHUNK_LEN, CHUNK_MAGIC, Code, PARTS_MAX, SIMPLE_LEN, SIMPLE_MAGIC, chunk};
use super::request::Op;
use crate::{BlockDevice, Error, Extent};

/// Bytes of one chunk of data: the buffer stays in the processor's cache, and the peer reads
/// while the next piece is made.
pub const PIECE: usize = 256 << 10;
/// Reads from here on are looked through for holes.
const SPARSE_MIN: u32 = 64 << 10;
/// Zeros worth a chunk of their own.
const HOLE_MIN: u64 = 4096;
/// Extents that are asked for at a time.
const EXTENTS: usize = 64;
/// Longest text of an error.
const TEXT_MAX: usize = 512;

/// Called between the chunks of a reply, when there is something to send.
pub type Between<'a, E> = &'a mut dyn FnMut(&mut Out) -> Result<(), E>;

/// A reply under way.
#[derive(Debug)]
pub struct Answer<'a> {
    /// What was agreed on.
    pub chosen: &'a Chosen,
    /// The request's name.
    pub cookie: u64,
}

impl Answer<'_> {
    /// Carries a request out. An error is one of `between`: the device's are in the reply.
    pub fn perform<E>(
        &self,
        op: Op,
        payload: &[u8],
        out: &mut Out,
        between: Between<'_, E>,
    ) -> Result<(), E> {
        let device = &*self.chosen.export.device;
        let done = match op {
            Op::Nothing => Ok(()),
            Op::Read { at, len, whole } if self.chosen.structured => {
                return self.chunks(at, len, whole, out, between);
            }
            Op::Read { at, len, .. } => {
                self.simple_read(at, len, out);
                return Ok(());
            }
            Op::Status { at, len, one } => {
                self.status(at, len, one, out);
                return Ok(());
            }
            Op::Write { at, how } => device.write(at, payload, how),
            Op::Zero { at, len, how } => device.zero(at, len.into(), how),
            Op::Trim { at, len, fua } => {
                device.trim(at, len.into()).and_then(|()| if fua { device.flush() } else { Ok(()) })
            }
            Op::Cache { at, len } => device.prefetch(at, len.into()),
            Op::Flush => device.flush(),
        };
        match done {
            Ok(()) => self.ok(matches!(op, Op::Nothing), out),
            Err(error) => self.device_error(&error, None, out),
        }
        Ok(())
    }

    fn simple(&self, code: u32, out: &mut Out) {
        out.put(&SIMPLE_MAGIC.to_be_bytes());
        out.put(&code.to_be_bytes());
        out.put(&self.cookie.to_be_bytes());
    }

    fn head(&self, flags: u16, kind: u16, len: usize) -> [u8; CHUNK_LEN] {
        let mut head = [0; CHUNK_LEN];
        head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        // Payloads are bounded far below.
        head[16..].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        head
    }

    /// Done. A read of nothing is answered as reads are.
    fn ok(&self, maybe_read: bool, out: &mut Out) {
        if maybe_read && self.chosen.structured {
            out.put(&self.head(chunk::DONE, chunk::NONE, 0));
        } else {
            self.simple(0, out);
        }
    }

    /// A write is done.
    pub fn written(&self, out: &mut Out) {
        self.ok(false, out);
    }

    /// It failed, at a byte if that is known.
    pub fn error(&self, code: Code, text: &str, at: Option<u64>, out: &mut Out) {
        if !self.chosen.structured {
            return self.simple(code as u32, out);
        }
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text.as_bytes()[..end];
        let kind = if at.is_some() { chunk::ERROR_OFFSET } else { chunk::ERROR };
        let tail = if at.is_some() { 8 } else { 0 };
        out.put(&self.head(chunk::DONE, kind, 6 + text.len() + tail));
        out.put(&(code as u32).to_be_bytes());
        out.put(&(text.len() as u16).to_be_bytes());
        out.put(text);
        if let Some(at) = at {
            out.put(&at.to_be_bytes());
        }
    }

    fn device_error(&self, error: &Error, at: Option<u64>, out: &mut Out) {
        self.error(error.into(), &error.to_string(), at, out);
    }

    fn simple_read(&self, at: u64, len: u32, out: &mut Out) {
        let start = out.len();
        self.simple(0, out);
        if let Err(error) = self.chosen.export.device.read(at, out.space(len as usize)) {
            out.cut(start);
            self.simple(Code::from(&error) as u32, out);
        }
        debug_assert!(out.len() >= start + SIMPLE_LEN);
    }

    /// A read in chunks: holes as such, data in pieces, unless one piece is wanted.
    fn chunks<E>(
        &self,
        at: u64,
        len: u32,
        whole: bool,
        out: &mut Out,
        between: Between<'_, E>,
    ) -> Result<(), E> {
        let end = at + u64::from(len);
        let mut from = at;
        for (run, zero) in self.runs(at, len, whole) {
            let until = from + run;
            if zero {
                let done = if until == end { chunk::DONE } else { 0 };
                out.put(&self.head(done, chunk::OFFSET_HOLE, 12));
                out.put(&from.to_be_bytes());
                out.put(&(run as u32).to_be_bytes());
                from = until;
            }
            while from < until {
                let piece = if whole { run } else { run.min(PIECE as u64).min(until - from) };
                let done = if from + piece == end { chunk::DONE } else { 0 };
                if !self.piece(from, piece as usize, done, out) {
                    return Ok(());
                }
                from += piece;
                if from < end && out.len() >= PIECE {
                    between(out)?;
                }
            }
        }
        Ok(())
    }

    /// One piece of data, or the error that ends the reply.
    fn piece(&self, at: u64, len: usize, done: u16, out: &mut Out) -> bool {
        let start = out.len();
        out.put(&self.head(done, chunk::OFFSET_DATA, len + 8));
        out.put(&at.to_be_bytes());
        let read = self.chosen.export.device.read(at, out.space(len));
        if let Err(error) = &read {
            out.cut(start);
            self.device_error(error, Some(at), out);
        }
        read.is_ok()
    }

    /// Lengths of runs of data and of zeros, which together are the range.
    fn runs(&self, at: u64, len: u32, whole: bool) -> Vec<(u64, bool)> {
        let all = u64::from(len);
        let device = &self.chosen.export.device;
        // What cannot be told about is read.
        let extents = match whole || len < SPARSE_MIN {
            true => Vec::new(),
            false => device.extents(at, all, EXTENTS).unwrap_or_default(),
        };
        let (mut runs, mut left): (Vec<(u64, bool)>, u64) = (Vec::new(), all);
        let rest = Extent { len: u64::MAX, hole: false, zero: false };
        for extent in extents.iter().take(EXTENTS).chain([&rest]) {
            let len = extent.len.min(left);
            left -= len;
            let zero = extent.zero && len >= HOLE_MIN;
            match runs.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.1 == zero => last.0 += len,
                _ => runs.push((len, zero)),
            }
        }
        runs
    }

    fn status(&self, at: u64, len: u32, one: bool, out: &mut Out) {
        let start = out.len();
        let most = if one { 1 } else { PARTS_MAX };
        let contexts = &self.chosen.contexts;
        for (n, context) in contexts.iter().enumerate() {
            let parts = match context.parts(&*self.chosen.export.device, at, len, most) {
                Ok(parts) => parts,
                Err(error) => {
                    out.cut(start);
                    return self.device_error(&error, None, out);
                }
            };
            let done = if n + 1 == contexts.len() { chunk::DONE } else { 0 };
            out.put(&self.head(done, chunk::BLOCK_STATUS, 4 + parts.len() * 8));
            out.put(&context.id.to_be_bytes());
            for part in parts {
                out.put(&part.len.to_be_bytes());
                out.put(&part.bits.to_be_bytes());
            }
        }
    }
}
