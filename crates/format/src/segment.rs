//! A segment: header, entries, seal, tail.
//!
//! An entry is a record and a trailer that chains it to what lies before, so
//! that swapped, removed or foreign records show without any key. Layout:
//! docs/format.md, 'Segment'. The hashes are computed by `dormouse-crypt`.

use std::collections::BTreeSet;

use crate::codec::{Error, Reader, Result, Writer, invalid};
use crate::ids::{RecordId, TimeNs, VaultId, WriterId};
use crate::record::Kind;

/// First bytes of a segment.
pub const MAGIC: [u8; 8] = *b"DORMSEG1";
/// First bytes of the tail of a sealed segment.
pub const TAIL_MAGIC: [u8; 8] = *b"DORMEND1";
/// Version of the segments that are written. Those of version 1 hold no record of a kind
/// that came later; else both are alike.
pub const VERSION: u32 = 2;
/// Bytes of a segment's header.
pub const HEADER_LEN: usize = 128;
/// Bytes of the header that its check covers.
pub const CHECKED_LEN: usize = 112;
/// Bytes after each record.
pub const TRAILER_LEN: usize = 32;
/// Bytes after the seal's entry.
pub const TAIL_LEN: usize = 32;
/// Most records in a segment.
pub const RECORDS_MAX: usize = 65_536;
/// Bytes of an item in the seal's table.
const ITEM_LEN: usize = 28;
/// Most bytes of a seal's body.
pub const SEAL_BODY_MAX: usize = 8 + RECORDS_MAX * (ITEM_LEN + WriterId::LEN);

/// A segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Version of the segment, from 1.
    pub version: u32,
    /// The vault whose log this is.
    pub vault: VaultId,
    /// The segment's number; the first is 1.
    pub number: u64,
    /// When it was begun.
    pub created: TimeNs,
    /// The last chain value of the segment before; zero for the first.
    pub before: [u8; 16],
    /// Hash of the 112 bytes before it; also the first chain value.
    pub check: [u8; 16],
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut w = Writer::with_capacity(HEADER_LEN);
        w.bytes(&MAGIC).u32(self.version).reserved(4).bytes(&self.vault.0);
        w.u64(self.number).u64(self.created).bytes(&self.before).reserved(32);
        w.bytes(&self.check);
        let mut out = [0; HEADER_LEN];
        out.copy_from_slice(&w.0);
        out
    }

    /// Reads a header. Its check has still to be compared.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let mut r = Reader::new(bytes, "segment header");
        if r.array()? != MAGIC {
            return Err(invalid("segment header", "the first bytes are not those of a segment"));
        }
        let version = r.u32()?;
        if version == 0 {
            return Err(invalid("segment header", "no program writes version 0"));
        }
        if version > VERSION {
            return Err(Error::Version { what: "segment", found: version, known: VERSION });
        }
        r.reserved(4)?;
        let vault = VaultId(r.array()?);
        let number = r.u64()?;
        let created = r.u64()?;
        let before = r.array()?;
        r.reserved(32)?;
        let check = r.array()?;
        r.end()?;
        if !(1..=u64::from(u32::MAX)).contains(&number) {
            return Err(invalid("segment header", "no segment has this number"));
        }
        Ok(Self { version, vault, number, created, before, check })
    }
}

/// What follows each record in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes of this segment that were known to be durable when this was written.
    pub durable: u64,
    /// Hash of the chain value before, the record's header check, and `durable`.
    pub chain: [u8; 16],
    /// Hash of the segment's header check, the entry's offset, `durable` and `chain`: proves
    /// the trailer by itself, where the chain before it is lost. Nobody but the store
    /// knows the header check, so a client cannot plant one in a body.
    pub check: [u8; 8],
}

impl Trailer {
    /// The trailer's bytes.
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = [0; TRAILER_LEN];
        out[..8].copy_from_slice(&self.durable.to_le_bytes());
        out[8..24].copy_from_slice(&self.chain);
        out[24..].copy_from_slice(&self.check);
        out
    }

    /// Reads a trailer.
    pub fn decode(bytes: &[u8; TRAILER_LEN]) -> Result<Self> {
        let mut r = Reader::new(bytes, "entry trailer");
        Ok(Self { durable: r.u64()?, chain: r.array()?, check: r.array()? })
    }
}

/// One line of the table in a seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The record's id.
    pub id: RecordId,
    /// Where the record begins in the segment.
    pub offset: u32,
    /// Bytes of its body.
    pub body_len: u32,
    /// Its kind.
    pub kind: Kind,
    /// Blocks in the chunk.
    pub count: u8,
    /// Index of its writer in the seal's list.
    pub writer: u16,
}

/// The body of a seal: who wrote, and what lies where, in order of offset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seal {
    /// Writers of the records, each once.
    pub writers: Vec<WriterId>,
    /// The records, in order of offset; the seal itself is not listed.
    pub items: Vec<Item>,
}

impl Seal {
    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(8 + self.items.len() * ITEM_LEN);
        w.u32(self.writers.len() as u32).u32(self.items.len() as u32);
        for writer in &self.writers {
            w.bytes(&writer.0);
        }
        for item in &self.items {
            w.bytes(&item.id.0).u32(item.offset).u32(item.body_len);
            w.u8(item.kind as u8).u8(item.count).u16(item.writer);
        }
        w.done()
    }

    /// Reads a seal's body.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes, "seal");
        let writers = r.count(RECORDS_MAX, WriterId::LEN)?;
        let items = r.u32()? as usize;
        if items > RECORDS_MAX || items * ITEM_LEN + writers * WriterId::LEN != r.left() {
            return Err(invalid("seal", "the counts do not fit the length"));
        }
        let writers = (0..writers).map(|_| r.array().map(WriterId)).collect::<Result<Vec<_>>>()?;
        if writers.iter().collect::<BTreeSet<_>>().len() != writers.len() {
            return Err(invalid("seal", "a writer stands twice in the list"));
        }
        let items =
            (0..items).map(|_| Self::item(&mut r, writers.len())).collect::<Result<Vec<_>>>()?;
        r.end()?;
        if !items.is_sorted_by(|a, b| a.offset < b.offset) {
            return Err(invalid("seal", "the table is not in order"));
        }
        Ok(Self { writers, items })
    }

    fn item(r: &mut Reader<'_>, writers: usize) -> Result<Item> {
        let id = RecordId(r.array()?);
        let offset = r.u32()?;
        let body_len = r.u32()?;
        let kind = Kind::from_u8(r.u8()?).ok_or(invalid("seal", "unknown kind"))?;
        let count = r.u8()?;
        let writer = r.u16()?;
        if kind == Kind::Seal {
            return Err(invalid("seal", "it lists itself"));
        }
        // What no record can be would be asked for by this length when it is read.
        kind.possible(count, body_len)?;
        if usize::from(writer) >= writers {
            return Err(invalid("seal", "a writer is not in the list"));
        }
        Ok(Item { id, offset, body_len, kind, count, writer })
    }
}

/// The last bytes of a sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Where the seal's entry begins.
    pub seal: u64,
    /// Hash of the 16 bytes before it and of the chain value of the seal's entry.
    pub check: [u8; 16],
}

impl Tail {
    /// The tail's bytes.
    pub fn encode(&self) -> [u8; TAIL_LEN] {
        let mut out = [0; TAIL_LEN];
        out[..8].copy_from_slice(&TAIL_MAGIC);
        out[8..16].copy_from_slice(&self.seal.to_le_bytes());
        out[16..].copy_from_slice(&self.check);
        out
    }

    /// Reads a tail; `None` if these bytes are none.
    pub fn decode(bytes: &[u8; TAIL_LEN]) -> Option<Self> {
        let mut r = Reader::new(bytes, "segment tail");
        if r.array().ok()? != TAIL_MAGIC {
            return None;
        }
        Some(Self { seal: r.u64().ok()?, check: r.array().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let h = Header {
            version: 1,
            vault: VaultId([1; 32]),
            number: 7,
            created: 8,
            before: [2; 16],
            check: [3; 16],
        };
        assert_eq!(Header::decode(&h.encode()), Ok(h));
        let second = Header { version: 2, ..h };
        assert_eq!(Header::decode(&second.encode()), Ok(second));
        let mut newer = h.encode();
        newer[8] = 3;
        assert!(matches!(Header::decode(&newer), Err(Error::Version { found: 3, .. })));
        let mut zero = h.encode();
        zero[8] = 0;
        assert!(matches!(Header::decode(&zero), Err(Error::Invalid { .. })), "not a newer one");
        for number in [0, 1 << 32] {
            assert!(Header::decode(&Header { number, ..h }.encode()).is_err(), "{number}");
        }
        let t = Trailer { durable: 9, chain: [4; 16], check: [5; 8] };
        assert_eq!(Trailer::decode(&t.encode()), Ok(t));
        let t = Tail { seal: 10, check: [5; 16] };
        assert_eq!(Tail::decode(&t.encode()), Some(t));
        let item = Item {
            id: RecordId([6; 16]),
            offset: 128,
            body_len: 5,
            kind: Kind::Chunk,
            count: 1,
            writer: 0,
        };
        let seal = Seal { writers: vec![WriterId([1; 16])], items: vec![item] };
        assert_eq!(Seal::decode(&seal.encode()), Ok(seal.clone()));
        let mut bad = seal.clone();
        bad.items[0].writer = 1;
        assert!(Seal::decode(&bad.encode()).is_err());
        let bad = |change: fn(&mut Seal)| {
            let mut bad = seal.clone();
            change(&mut bad);
            Seal::decode(&bad.encode())
        };
        assert!(bad(|s| s.items.push(s.items[0])).is_err(), "not in order");
        assert!(bad(|s| s.writers.push(s.writers[0])).is_err(), "a writer twice");
        assert!(bad(|s| s.items[0].kind = Kind::Seal).is_err(), "the seal itself");
        assert!(bad(|s| s.items[0].count = 65).is_err(), "blocks");
        assert!(bad(|s| s.items[0].body_len = u32::MAX).is_err(), "longer than any record");
    }
}
