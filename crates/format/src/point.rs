//! A point: one recoverable state of a volume.
//!
//! The first 216 bytes are signed by the writer; the server adds its receipt
//! time and where it keeps the map. Layout: docs/format.md, 'Point'.

use crate::codec::{Reader, Result, Writer, invalid};
use crate::ids::{Hash, RecordId, Seq, Signature, TimeNs, VaultId, VolumeId, WriterId};
use crate::limits::VOLUME_SIZE_MAX;

const WHAT: &str = "point";
const MAGIC: [u8; 4] = *b"DMPT";
const VERSION: u8 = 1;
const FLAG_CHECKPOINT: u8 = 1;
const FLAG_STALE: u8 = 1 << 1;

/// Bytes that the signature covers.
pub const SIGNED_LEN: usize = 216;
/// Bytes of a signed point.
pub const POINT_LEN: usize = SIGNED_LEN + Signature::LEN;
/// Bytes of a point as the store keeps it.
pub const STORED_LEN: usize = POINT_LEN + 8 + 32 + RecordId::LEN;

/// How good the state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Grade {
    /// Progress only: parts may be of different instants.
    Fuzzy = 1,
    /// Equal to the disk at one instant, proved.
    Settled = 2,
    /// File systems were frozen while the last blocks were read.
    Frozen = 3,
    /// A prefix of the write order.
    Ordered = 4,
}

impl Grade {
    /// The grade with this number.
    pub const fn from_u8(v: u8) -> Option<Self> {
        match v {
            1 => Some(Self::Fuzzy),
            2 => Some(Self::Settled),
            3 => Some(Self::Frozen),
            4 => Some(Self::Ordered),
            _ => None,
        }
    }

    /// The name that people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fuzzy => "fuzzy",
            Self::Settled => "settled",
            Self::Frozen => "frozen",
            Self::Ordered => "ordered",
        }
    }

    /// Whether a restore may choose it unasked.
    pub const fn consistent(self) -> bool {
        !matches!(self, Self::Fuzzy)
    }
}

/// What the writer signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// The writer.
    pub writer: WriterId,
    /// Sequence number in the volume.
    pub seq: Seq,
    /// The volume's generation, raised by each takeover.
    pub generation: u64,
    /// The writer's clock.
    pub time: TimeNs,
    /// Size of the volume in bytes.
    pub size: u64,
    /// How good it is.
    pub grade: Grade,
    /// Whether there are blocks that the disk did not give: a record names them
    /// ([`crate::stale`]). The grade is of the others.
    pub stale: bool,
    /// Sequence number of the checkpoint that it builds on; its own if it is one.
    pub checkpoint: Seq,
    /// Epoch of the digest and map keys.
    pub epoch: u32,
    /// Hash of the point before; zero for the first.
    pub prev: Hash,
    /// Content root of the checkpoint.
    pub root: Hash,
    /// Running hash of the deltas since the checkpoint; zero for a checkpoint.
    pub deltas: Hash,
}

impl Point {
    /// Whether the signature covers the content root of this very state.
    pub const fn is_checkpoint(&self) -> bool {
        self.checkpoint == self.seq
    }

    /// The bytes that are signed and hashed.
    pub fn encode(&self) -> [u8; SIGNED_LEN] {
        let mut w = Writer::with_capacity(SIGNED_LEN);
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(self.is_checkpoint(), FLAG_CHECKPOINT) | flag(self.stale, FLAG_STALE);
        w.bytes(&MAGIC).u8(VERSION).u8(self.grade as u8).u8(flags).reserved(1);
        w.u64(self.seq).u64(self.generation).u64(self.time).u64(self.size);
        w.u64(self.checkpoint).u32(self.epoch).reserved(4);
        w.bytes(&self.vault.0).bytes(&self.volume.0).bytes(&self.writer.0);
        w.bytes(&self.prev.0).bytes(&self.root.0).bytes(&self.deltas.0);
        let mut out = [0; SIGNED_LEN];
        out.copy_from_slice(&w.0);
        out
    }

    /// Reads the signed bytes. The signature has still to be checked.
    pub fn decode(bytes: &[u8; SIGNED_LEN]) -> Result<Self> {
        let mut r = Reader::new(bytes, WHAT);
        if r.array()? != MAGIC {
            return Err(invalid(WHAT, "the first bytes are not those of a point"));
        }
        if r.u8()? != VERSION {
            return Err(invalid(WHAT, "unknown version"));
        }
        let grade = Grade::from_u8(r.u8()?).ok_or(invalid(WHAT, "unknown grade"))?;
        let flags = r.u8()?;
        r.reserved(1)?;
        let (seq, generation, time, size) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let checkpoint = r.u64()?;
        let epoch = r.u32()?;
        r.reserved(4)?;
        let point = Self {
            vault: VaultId(r.array()?),
            volume: VolumeId(r.array()?),
            writer: WriterId(r.array()?),
            seq,
            generation,
            time,
            size,
            grade,
            stale: flags & FLAG_STALE != 0,
            checkpoint,
            epoch,
            prev: Hash(r.array()?),
            root: Hash(r.array()?),
            deltas: Hash(r.array()?),
        };
        r.end()?;
        point.rules(flags)?;
        Ok(point)
    }

    fn rules(&self, flags: u8) -> Result<()> {
        if self.seq == 0 || self.checkpoint == 0 || self.checkpoint > self.seq {
            return Err(invalid(WHAT, "the sequence numbers are not possible"));
        }
        if flags & !FLAG_STALE != u8::from(self.is_checkpoint()) {
            return Err(invalid(WHAT, "the flags do not fit the sequence numbers"));
        }
        if self.is_checkpoint() != self.deltas.is_zero() {
            return Err(invalid(WHAT, "the hash of deltas does not fit a checkpoint"));
        }
        if (self.seq == 1) != self.prev.is_zero() {
            return Err(invalid(WHAT, "only the first point has none before it"));
        }
        if self.epoch == 0 {
            return Err(invalid(WHAT, "epochs begin at 1"));
        }
        if self.size > VOLUME_SIZE_MAX {
            return Err(invalid(WHAT, "the size is above the largest volume"));
        }
        Ok(())
    }
}

/// A point with its writer's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedPoint {
    /// What is signed.
    pub point: Point,
    /// Ed25519, by the writer.
    pub signature: Signature,
}

impl SignedPoint {
    /// The point's bytes and the signature.
    pub fn encode(&self) -> [u8; POINT_LEN] {
        let mut out = [0; POINT_LEN];
        out[..SIGNED_LEN].copy_from_slice(&self.point.encode());
        out[SIGNED_LEN..].copy_from_slice(&self.signature.0);
        out
    }

    /// Reads a signed point.
    pub fn read(r: &mut Reader<'_>) -> Result<Self> {
        let point = Point::decode(&r.array()?)?;
        Ok(Self { point, signature: Signature(r.array()?) })
    }
}

/// A point as the store keeps it: the body of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPoint {
    /// What the writer sent.
    pub signed: SignedPoint,
    /// When the server received it, by its own clock, never going back within a volume.
    pub receipt: TimeNs,
    /// Hash of the map's top node, so that the store can walk it; zero if all is zero
    /// or if this is no checkpoint.
    pub top: Hash,
    /// Record of the map's top node; zero likewise.
    pub top_record: RecordId,
}

impl StoredPoint {
    /// The body's bytes.
    pub fn encode(&self) -> [u8; STORED_LEN] {
        let mut w = Writer::with_capacity(STORED_LEN);
        w.bytes(&self.signed.encode()).u64(self.receipt);
        w.bytes(&self.top.0).bytes(&self.top_record.0);
        let mut out = [0; STORED_LEN];
        out.copy_from_slice(&w.0);
        out
    }

    /// Reads a stored point off the front of `r`.
    pub fn read(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            signed: SignedPoint::read(r)?,
            receipt: r.u64()?,
            top: Hash(r.array()?),
            top_record: RecordId(r.array()?),
        })
    }

    /// Reads a record's body.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes, WHAT);
        let point = Self::read(&mut r)?;
        r.end()?;
        Ok(point)
    }

    /// The signed part.
    pub const fn point(&self) -> &Point {
        &self.signed.point
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn stored() -> StoredPoint {
        let point = Point {
            vault: VaultId([1; 32]),
            volume: VolumeId([2; 16]),
            writer: WriterId([3; 16]),
            seq: 2,
            generation: 1,
            time: 4,
            size: 5,
            grade: Grade::Settled,
            stale: true,
            checkpoint: 2,
            epoch: 1,
            prev: Hash([6; 32]),
            root: Hash([7; 32]),
            deltas: Hash::ZERO,
        };
        let signed = SignedPoint { point, signature: Signature([8; 64]) };
        StoredPoint { signed, receipt: 9, top: Hash([10; 32]), top_record: RecordId([11; 16]) }
    }

    #[test]
    fn round_trip() {
        let p = stored();
        assert_eq!(StoredPoint::decode(&p.encode()), Ok(p));
    }

    #[test]
    fn each_defect_is_refused() {
        let bad = |f: fn(&mut Point)| {
            let mut p = stored().signed.point;
            f(&mut p);
            Point::decode(&p.encode())
        };
        assert!(bad(|p| p.seq = 0).is_err());
        assert!(bad(|p| p.checkpoint = 3).is_err());
        assert!(bad(|p| p.deltas = Hash([1; 32])).is_err());
        assert!(bad(|p| p.prev = Hash::ZERO).is_err());
        assert!(bad(|p| p.size = u64::MAX).is_err());
        for at in [0, 4, 5, 6, 7, 52] {
            let mut bytes = stored().signed.point.encode();
            bytes[at] ^= 0x40;
            assert!(Point::decode(&bytes).is_err(), "byte {at}");
        }
    }
}
