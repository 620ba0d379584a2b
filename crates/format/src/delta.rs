//! The body of a delta record: what one part of a point changed.
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
//! A point that changes the size has at least one part, if only one without runs, so
//! the deltas alone tell every size. The running hash covers size and runs (`crypt::hash::delta`). `attempt` and
//! `after` let recovery find the parts of the committed try without reading the
//! runs; a reader does not trust them, it computes the running hash.

use crate::codec::{Reader, Result, Writer, invalid};
use crate::ids::{Hash, Seq, VolumeId};
use crate::limits::VOLUME_SIZE_MAX;

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
pub fn short(hash: &Hash) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&hash.0[..8]);
    out
}

/// A delta record's body.
pub fn encode(prefix: &Prefix, runs: &[u8]) -> Vec<u8> {
    let mut w = Writer::with_capacity(PREFIX_LEN + runs.len());
    w.bytes(&prefix.volume.0).u64(prefix.seq).u64(prefix.size).u64(prefix.attempt);
    w.bytes(&prefix.after).bytes(runs);
    w.done()
}

/// Splits a delta record's body into prefix and runs.
pub fn decode(body: &[u8]) -> Result<(Prefix, &[u8])> {
    let mut r = Reader::new(body, "delta");
    let prefix = Prefix {
        volume: VolumeId(r.array()?),
        seq: r.u64()?,
        size: r.u64()?,
        attempt: r.u64()?,
        after: r.array()?,
    };
    if prefix.size > VOLUME_SIZE_MAX {
        return Err(invalid("delta", "the size is above the largest volume"));
    }
    Ok((prefix, r.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let prefix =
            Prefix { volume: VolumeId([1; 16]), seq: 2, size: 4, attempt: 5, after: [6; 8] };
        let body = encode(&prefix, &[9, 9]);
        assert_eq!(body.len(), PREFIX_LEN + 2);
        assert_eq!(decode(&body), Ok((prefix, &[9u8, 9][..])));
        assert!(decode(&body[..PREFIX_LEN - 1]).is_err());
    }
}
