//! The header of a record, the unit that is made once at the source and
//! lies unchanged on the wire and in a segment.
//!
//! Layout: docs/format.md, 'Record'. The checks are computed by `dormouse-crypt`.

use crate::codec::{Error, Reader, Result, Writer, invalid};
use crate::ids::{KeyId, RecordId, WriterId};
use crate::limits::SIGNED_BODY_MAX;
use crate::limits::{
    BLOCK_SIZE, CHUNK_BLOCKS_MAX, CHUNK_PAYLOAD_MAX, CHUNK_PREFIX, RECORD_BODY_MAX, SEAL_OVERHEAD,
};

const WHAT: &str = "record header";

/// First bytes of every record.
pub const MAGIC: [u8; 4] = *b"DMR1";
/// Bytes of a record's header.
pub const HEADER_LEN: usize = 112;
/// Bytes of the header that its own check covers.
pub const CHECKED_LEN: usize = 96;
/// Bytes of the header that a sealed body's associated data binds (all before the nonce).
pub const BOUND_LEN: usize = 64;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A sealed chunk.
    Chunk = 1,
    /// A page of the map: tags and hints of one 64 MiB range, or a patch of one.
    Page = 2,
    /// An inner node of the map, level 2 and above.
    Node = 3,
    /// Extents that a point adds to the points before it.
    Delta = 4,
    /// A point, signed by its writer, with the server's receipt time.
    Point = 5,
    /// A volume, signed by the writer that created it.
    Volume = 6,
    /// A vault: authority and recipient.
    Vault = 7,
    /// A writer's certificate, signed by the authority.
    Cert = 8,
    /// Digest and map key of an epoch, wrapped to the identity.
    VaultKeys = 9,
    /// A session's data key, wrapped to the recipient.
    DataKey = 10,
    /// A reader's word that a chunk's record is bad.
    Distrust = 11,
    /// The table that ends a sealed segment.
    Seal = 12,
    /// A note of the store that all before it is durable.
    Mark = 13,
    /// A volume's generation, raised by a takeover.
    Generation = 14,
    /// Blocks that the disk did not give, said by the writer.
    Stale = 20,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 15] = [
        Self::Chunk,
        Self::Page,
        Self::Node,
        Self::Delta,
        Self::Point,
        Self::Volume,
        Self::Vault,
        Self::Cert,
        Self::VaultKeys,
        Self::DataKey,
        Self::Distrust,
        Self::Seal,
        Self::Mark,
        Self::Generation,
        Self::Stale,
    ];

    /// The kind with this number.
    pub fn from_u8(v: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == v)
    }

    /// Whether the body is sealed.
    pub const fn sealed(self) -> bool {
        matches!(self, Self::Chunk)
    }

    /// Whether a client may put a record of this kind as it is.
    pub const fn from_client(self) -> bool {
        matches!(
            self,
            Self::Chunk
                | Self::DataKey
                | Self::Cert
                | Self::VaultKeys
                | Self::Distrust
                | Self::Stale
        )
    }

    /// Whether the store finds records of this kind by id.
    pub const fn indexed(self) -> bool {
        matches!(self, Self::Chunk | Self::Page | Self::Node)
    }

    /// Whether a record of this kind can have this count of blocks and a body this long.
    pub(crate) fn possible(self, count: u8, body_len: u32) -> Result<()> {
        let (len, blocks) = (body_len as usize, usize::from(count));
        if len > self.body_max() {
            let (value, limit) = (u64::from(body_len), self.body_max() as u64);
            return Err(Error::TooLarge { what: self.name(), value, limit });
        }
        let count_fits = match self {
            Self::Chunk => (1..=CHUNK_BLOCKS_MAX).contains(&blocks),
            _ => count == 0,
        };
        if !count_fits {
            return Err(invalid(WHAT, "the count of blocks does not fit the kind"));
        }
        if self == Self::Chunk && len > CHUNK_PREFIX + blocks * BLOCK_SIZE + SEAL_OVERHEAD {
            return Err(invalid(WHAT, "the body is longer than its blocks can be"));
        }
        Ok(())
    }

    /// Most bytes of a body of this kind.
    pub const fn body_max(self) -> usize {
        match self {
            Self::Chunk => CHUNK_PAYLOAD_MAX + SEAL_OVERHEAD,
            Self::Page | Self::Node | Self::Delta => RECORD_BODY_MAX,
            Self::Seal => crate::segment::SEAL_BODY_MAX,
            _ => SIGNED_BODY_MAX,
        }
    }

    /// The kind's name in messages to people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Page => "map page",
            Self::Node => "map node",
            Self::Delta => "delta",
            Self::Point => "point",
            Self::Volume => "volume",
            Self::Vault => "vault",
            Self::Cert => "certificate",
            Self::VaultKeys => "vault keys",
            Self::DataKey => "data key",
            Self::Distrust => "distrust",
            Self::Stale => "stale blocks",
            Self::Seal => "seal",
            Self::Mark => "mark",
            Self::Generation => "generation",
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// Blocks in the chunk, 1 to 64; 0 for other kinds.
    pub count: u8,
    /// Bytes of the body.
    pub body_len: u32,
    /// The key epoch; 0 for kinds that no vault key took part in.
    pub epoch: u32,
    /// Chunk: keyed hash of its digests. Others: hash of the body.
    pub id: RecordId,
    /// Who made it; zero if the server did.
    pub writer: WriterId,
    /// Which data key sealed the body; zero if it is not sealed.
    pub key: KeyId,
    /// The nonce of the seal; zero if it is not sealed.
    pub nonce: [u8; 12],
    /// Hash of the body.
    pub body_check: [u8; 16],
    /// Hash of the 96 bytes before it.
    pub check: [u8; 16],
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut w = Writer::with_capacity(HEADER_LEN);
        w.bytes(&MAGIC).u8(self.kind as u8).u8(self.count).reserved(2);
        w.u32(self.body_len).u32(self.epoch);
        w.bytes(&self.id.0).bytes(&self.writer.0).bytes(&self.key.0);
        w.bytes(&self.nonce).reserved(4).bytes(&self.body_check).bytes(&self.check);
        let mut out = [0; HEADER_LEN];
        out.copy_from_slice(&w.0);
        out
    }

    /// Reads a header. Its check has still to be compared.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let mut r = Reader::new(bytes, WHAT);
        if r.array()? != MAGIC {
            return Err(invalid(WHAT, "the first bytes are not those of a record"));
        }
        let kind = Kind::from_u8(r.u8()?).ok_or(invalid(WHAT, "unknown kind"))?;
        let count = r.u8()?;
        r.reserved(2)?;
        let body_len = r.u32()?;
        let epoch = r.u32()?;
        let id = RecordId(r.array()?);
        let writer = WriterId(r.array()?);
        let key = KeyId(r.array()?);
        let nonce = r.array()?;
        r.reserved(4)?;
        let body_check = r.array()?;
        let check = r.array()?;
        r.end()?;
        let header =
            Self { kind, count, body_len, epoch, id, writer, key, nonce, body_check, check };
        header.rules()?;
        Ok(header)
    }

    fn rules(&self) -> Result<()> {
        self.kind.possible(self.count, self.body_len)?;
        if (self.kind == Kind::Chunk) == (self.epoch == 0) {
            return Err(invalid(WHAT, "the epoch does not fit the kind"));
        }
        if self.kind.sealed() == self.key.is_zero() {
            return Err(invalid(WHAT, "the key id does not fit the kind"));
        }
        if !self.kind.sealed() && self.nonce != [0; 12] {
            return Err(invalid(WHAT, "a nonce stands where nothing is sealed"));
        }
        Ok(())
    }

    /// Bytes of the whole record.
    pub const fn record_len(&self) -> usize {
        HEADER_LEN + self.body_len as usize
    }
}

/// Splits a record into its header and body, checking that the lengths agree.
pub fn split(record: &[u8]) -> Result<(Header, &[u8])> {
    let (head, body) =
        record.split_first_chunk::<HEADER_LEN>().ok_or(Error::Short { what: WHAT })?;
    let header = Header::decode(head)?;
    if body.len() != header.body_len as usize {
        return Err(invalid(WHAT, "the body's length differs from what the header says"));
    }
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Chunk,
            count: 3,
            body_len: 77,
            epoch: 1,
            id: RecordId([1; 16]),
            writer: WriterId([2; 16]),
            key: KeyId([3; 16]),
            nonce: [4; 12],
            body_check: [5; 16],
            check: [6; 16],
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
    }

    #[test]
    fn each_defect_is_refused() {
        let bad = |f: fn(&mut Header)| {
            let mut h = header();
            f(&mut h);
            Header::decode(&h.encode())
        };
        assert!(bad(|h| h.count = 0).is_err());
        assert!(bad(|h| h.count = 65).is_err());
        assert!(bad(|h| h.body_len = 1 << 24).is_err());
        assert!(bad(|h| h.key = KeyId::ZERO).is_err());
        assert!(bad(|h| h.kind = Kind::Point).is_err());
        for at in [0, 4, 6, 76] {
            let mut bytes = header().encode();
            bytes[at] ^= 0x80;
            assert!(Header::decode(&bytes).is_err(), "byte {at}");
        }
    }
}
