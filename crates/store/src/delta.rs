//! The body of a Delta record: one part of what a point adds to those before it.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 16 | volume |
//! | 16 | 8 | seq: the point's sequence number |
//! | 24 | 8 | size: the point's size in bytes |
//! | 32 | 8 | attempt: which try at this point the part belongs to |
//! | 40 | 8 | after: first 8 bytes of the running hash after this part |
//! | 48 | … | runs, as in 'Extents', without tags-only runs |
//!
//! A point that changes the size has at least one part, if only one without runs,
//! so the deltas alone tell every size. The running hash covers size and runs (`crypt::hash::delta`). `attempt` and
//! `after` let recovery find the parts of the committed try without reading the
//! runs; a reader does not trust them, it computes the running hash.

use dormouse_format::codec::{Reader, Result, Writer};
use dormouse_format::{Hash, Seq, VolumeId};

/// Bytes before the runs.
pub const PREFIX_LEN: usize = 48;

/// What stands before the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The volume.
    pub volume: VolumeId,
    /// The point.
    pub seq: Seq,
    /// Its size.
    pub size: u64,
    /// Which try.
    pub attempt: u64,
    /// First bytes of the running hash after this part.
    pub after: [u8; 8],
}

/// The first bytes of a running hash.
pub(crate) fn short(hash: &Hash) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&hash.0[..8]);
    out
}

/// A Delta record's body.
pub(crate) fn encode(prefix: &Prefix, runs: &[u8]) -> Vec<u8> {
    let mut w = Writer::with_capacity(PREFIX_LEN + runs.len());
    w.bytes(&prefix.volume.0).u64(prefix.seq).u64(prefix.size).u64(prefix.attempt);
    w.bytes(&prefix.after).bytes(runs);
    w.done()
}

/// Splits a Delta record's body into prefix and runs.
pub fn decode(body: &[u8]) -> Result<(Prefix, &[u8])> {
    let mut r = Reader::new(body, "delta");
    let prefix = Prefix {
        volume: VolumeId(r.array()?),
        seq: r.u64()?,
        size: r.u64()?,
        attempt: r.u64()?,
        after: r.array()?,
    };
    Ok((prefix, r.rest()))
}
