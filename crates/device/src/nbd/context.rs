//! Contexts: what a peer may ask about a range of a disk.
//!
//! Owns: their names, `base:allocation` and `dormouse:changed=POINT`, and the answers about
//! ranges. Invariant: an answer covers from one byte to the range that was asked about, whatever
//! the device says.

use std::sync::Arc;

use crate::{BlockDevice, Changes, Error, Result};

/// The protocol's own context: holes and zeros.
pub const ALLOCATION: &str = "base:allocation";
/// What changed since a point, whose name follows.
pub const CHANGED: &str = "dormouse:changed=";

const HOLE: u32 = 1;
const ZERO: u32 = 2;
const CHANGED_BIT: u32 = 1;

/// A context that a peer has chosen.
#[derive(Clone)]
pub struct Context {
    /// How the peer's requests and our answers call it.
    pub id: u32,
    /// Its full name.
    pub name: String,
    what: What,
}

#[derive(Clone)]
enum What {
    Allocation,
    Changed(Arc<dyn Changes>),
}

impl core::fmt::Debug for Context {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Context({}, {})", self.id, self.name)
    }
}

/// A part of a range: bytes, and what holds of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Bytes.
    pub len: u32,
    /// Bits that depend on the context.
    pub bits: u32,
}

impl Context {
    /// The context of exactly this name, if there is one: an error says why there is none.
    pub fn find(device: &dyn BlockDevice, name: &str, id: u32) -> Result<Option<Self>> {
        let what = if name == ALLOCATION {
            What::Allocation
        } else if let Some(point) = name.strip_prefix(CHANGED) {
            What::Changed(device.changes_since(point)?)
        } else {
            return Ok(None);
        };
        Ok(Some(Self { id, name: name.to_owned(), what }))
    }

    /// Full names that a query for a list means: a whole name space, or one.
    pub fn list(device: &dyn BlockDevice, query: Option<&str>) -> Vec<String> {
        match query {
            None | Some("base:" | ALLOCATION) => vec![ALLOCATION.to_owned()],
            Some(name) => match Self::find(device, name, 0) {
                Ok(Some(found)) => vec![found.name],
                Ok(None) | Err(_) => Vec::new(),
            },
        }
    }

    /// What holds from byte `at` on: parts that together have at most `len` bytes, at least one
    /// and at most `most` of them, no two neighbours alike.
    pub fn parts(
        &self,
        device: &dyn BlockDevice,
        at: u64,
        len: u32,
        most: usize,
    ) -> Result<Vec<Part>> {
        let range = u64::from(len);
        let all: Vec<(u64, u32)> = match &self.what {
            What::Allocation => {
                let found = device.extents(at, range, most)?;
                let bits = |hole, zero| (HOLE * u32::from(hole)) | (ZERO * u32::from(zero));
                found.iter().map(|e| (e.len, bits(e.hole, e.zero))).collect()
            }
            What::Changed(changes) => {
                let found = changes.parts(at, range, most)?;
                found.iter().map(|c| (c.len, CHANGED_BIT * u32::from(c.changed))).collect()
            }
        };
        let mut left = len;
        let mut parts: Vec<Part> = Vec::new();
        for (part, bits) in all.into_iter().take(most) {
            let part = u32::try_from(part).unwrap_or(u32::MAX).min(left);
            left -= part;
            match parts.last_mut() {
                _ if part == 0 => {}
                Some(last) if last.bits == bits => last.len += part,
                _ => parts.push(Part { len: part, bits }),
            }
        }
        if parts.is_empty() {
            return Err(Error::Damaged(format!("nothing is told about byte {at}")));
        }
        Ok(parts)
    }
}
