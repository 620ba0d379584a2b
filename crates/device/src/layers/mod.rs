//! Layers: each wraps a disk and is one.
//!
//! [`overlay`] keeps what is written apart from the disk below. The others are for trying things
//! out: [`delay`], [`fault`], [`log`] and [`check_writes`]; [`spec`] makes them from a text, and
//! each of those is a [`Gate`] before a disk ([`Gated`]).

pub mod check_writes;
pub mod delay;
pub mod fault;
pub mod log;
pub mod overlay;
pub mod spec;

use std::sync::Arc;

use crate::{BlockDevice, Changes, Extent, Geometry, Result, Write, Zero};

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`BlockDevice::read`].
    Read,
    /// [`BlockDevice::write`].
    Write,
    /// [`BlockDevice::zero`].
    Zero,
    /// [`BlockDevice::trim`].
    Trim,
    /// [`BlockDevice::flush`].
    Flush,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Zero, Self::Trim, Self::Flush];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Trim => "trim",
            Self::Flush => "flush",
        }
    }
}

/// A request, as layers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its kind.
    pub kind: Kind,
    /// The first byte; zero for a flush.
    pub at: u64,
    /// Bytes; zero for a flush.
    pub len: u64,
    /// Durable when it returns.
    pub fua: bool,
}

/// What stands before a disk.
pub trait Gate: Send + Sync {
    /// Lets a request through, by calling `go`, or not.
    fn pass(&self, request: &Request, go: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Whether it waits.
    fn waits(&self) -> bool {
        false
    }
}

/// A disk behind a gate.
pub struct Gated<G> {
    lower: Arc<dyn BlockDevice>,
    gate: G,
}

impl<G> Gated<G> {
    /// Puts a gate before a disk.
    pub fn new(lower: Arc<dyn BlockDevice>, gate: G) -> Self {
        Self { lower, gate }
    }

    /// The gate.
    pub const fn gate(&self) -> &G {
        &self.gate
    }
}

impl<G> core::fmt::Debug for Gated<G> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Gated")
    }
}

impl<G: Gate> BlockDevice for Gated<G> {
    fn geometry(&self) -> Geometry {
        self.lower.geometry()
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let request = Request { kind: Kind::Read, at, len: out.len() as u64, fua: false };
        self.gate.pass(&request, &mut || self.lower.read(at, out))
    }

    fn ready(&self, at: u64, len: u64) -> bool {
        !self.gate.waits() && self.lower.ready(at, len)
    }

    fn write_ready(&self, at: u64, len: u64) -> bool {
        !self.gate.waits() && self.lower.write_ready(at, len)
    }

    fn writes_in_turn(&self) -> bool {
        self.lower.writes_in_turn()
    }

    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        self.lower.prefetch(at, len)
    }

    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        let request = Request { kind: Kind::Write, at, len: bytes.len() as u64, fua: how.fua };
        self.gate.pass(&request, &mut || self.lower.write(at, bytes, how))
    }

    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        let request = Request { kind: Kind::Zero, at, len, fua: how.fua };
        self.gate.pass(&request, &mut || self.lower.zero(at, len, how))
    }

    fn trim(&self, at: u64, len: u64) -> Result<()> {
        let request = Request { kind: Kind::Trim, at, len, fua: false };
        self.gate.pass(&request, &mut || self.lower.trim(at, len))
    }

    fn flush(&self) -> Result<()> {
        let request = Request { kind: Kind::Flush, at: 0, len: 0, fua: false };
        self.gate.pass(&request, &mut || self.lower.flush())
    }

    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        self.lower.extents(at, len, most)
    }

    fn changes_since(&self, point: &str) -> Result<Arc<dyn Changes>> {
        self.lower.changes_since(point)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.lower.resize(size)
    }
}
