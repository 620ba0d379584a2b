//! A part of a segment, as it lies in the bucket.
//!
//! Owns: the 112 bytes before a part's bytes. Invariant: a part names vault, segment, place,
//! number and generation, and holds only if all of it does. The size of an object alone tells
//! what kind of part it is, so that a listing is enough to know a vault: whatever ends a
//! writer's chain is shorter than any part with bytes.

use bytes::Bytes;
use dormouse_crypt::hash;
use dormouse_format::VaultId;
use dormouse_format::codec::{Reader, Writer};

use crate::error::{Error, Result};
use crate::names::Name;

const MAGIC: [u8; 8] = *b"DORMPRT1";
const VERSION: u32 = 1;
const CHECKED: usize = 96;
/// Bytes in which a part says what it is.
pub(crate) const HEAD: usize = CHECKED + 16;
/// Bytes before those of a part.
pub(crate) const DATA_AT: u64 = 128;
/// Bytes of a segment in one part at most; a segment that came at once is one part.
pub(crate) const PART_MAX: u64 = 65 << 20;

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of the segment, from where the part before ends.
    Data,
    /// A server began here; what an earlier one would have put here is refused.
    Fence,
    /// The segment is whole; the next one follows.
    Close,
    /// What lies from the offset on was not whole, and does not count.
    Cut,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Fence => 1,
            Self::Close => 2,
            Self::Cut => 3,
        }
    }

    /// Bytes between head and data, all zero.
    const fn padding(self) -> usize {
        match self {
            Self::Data => DATA_AT as usize - HEAD,
            other => other.number() as usize,
        }
    }

    /// The kind of an object with this size, and the bytes of the segment in it.
    pub(crate) fn of_size(size: u64) -> Option<(Self, u64)> {
        let short = |kind: &Self| size == (HEAD + kind.padding()) as u64;
        if let Some(kind) = [Self::Fence, Self::Close, Self::Cut].into_iter().find(short) {
            return Some((kind, 0));
        }
        let len = size.checked_sub(DATA_AT).filter(|len| (1..=PART_MAX).contains(len))?;
        Some((Self::Data, len))
    }
}

/// What a part says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) kind: Kind,
    pub(crate) vault: VaultId,
    pub(crate) segment: u64,
    pub(crate) number: u32,
    /// Where in the segment it begins.
    pub(crate) offset: u64,
    /// Generation of the lease under which it was put.
    pub(crate) generation: u64,
}

impl Part {
    /// The name of its object.
    pub(crate) fn name(&self) -> String {
        Name::Part(self.segment, self.number).of(&self.vault)
    }

    /// The object.
    pub(crate) fn encode(&self, data: &[u8]) -> Bytes {
        let mut out = Writer::with_capacity(DATA_AT as usize + data.len());
        out.bytes(&MAGIC).u32(VERSION).u8(self.kind.number()).reserved(3);
        out.bytes(&self.vault.0).u64(self.segment).u64(self.offset);
        out.u32(self.number).u32(data.len() as u32).u64(self.generation);
        out.bytes(&hash::body_check(data));
        let check = hash::header_check(&out.0[..CHECKED]);
        out.bytes(&check).reserved(self.kind.padding()).bytes(data);
        out.done().into()
    }

    /// Takes an object apart, and checks that it is the part of this vault with this name.
    pub(crate) fn decode<'a>(
        object: &'a [u8],
        vault: &VaultId,
        segment: u64,
        number: u32,
    ) -> Result<(Self, &'a [u8])> {
        let (part, len, check) = Self::head(object, vault, segment, number)?;
        let bad = |why: &str| Error::damaged(part.name(), why);
        let (padding, data) =
            object[HEAD..].split_at_checked(part.kind.padding()).ok_or_else(|| bad("it is cut"))?;
        if padding.iter().any(|b| *b != 0) || data.len() as u64 != u64::from(len) {
            return Err(bad("its length is not what it says"));
        }
        if (part.kind == Kind::Data) == data.is_empty() || hash::body_check(data) != check {
            return Err(bad("its bytes are damaged"));
        }
        Ok((part, data))
    }

    /// What the first bytes of an object say: the part, its length and its check.
    pub(crate) fn head(
        object: &[u8],
        vault: &VaultId,
        segment: u64,
        number: u32,
    ) -> Result<(Self, u32, [u8; 16])> {
        let name = || Name::Part(segment, number).of(vault);
        let bad = |why: &str| Error::damaged(name(), why);
        let head = object.get(..HEAD).ok_or_else(|| bad("it is too short for a part"))?;
        if hash::header_check(&head[..CHECKED]) != head[CHECKED..] || head[..8] != MAGIC {
            return Err(bad("the check of its head does not hold"));
        }
        let short = |e: dormouse_format::Error| Error::damaged(name(), e.to_string());
        let mut read = Reader::new(&head[8..], "part");
        let version = read.u32().map_err(short)?;
        if version > VERSION {
            return Err(Error::Newer { object: name(), found: version, known: VERSION });
        }
        let kind = read.u8().map_err(short)?;
        read.reserved(3).map_err(short)?;
        let found = VaultId(read.array().map_err(short)?);
        let (place, offset) = (read.u64().map_err(short)?, read.u64().map_err(short)?);
        let (part, len) = (read.u32().map_err(short)?, read.u32().map_err(short)?);
        let generation = read.u64().map_err(short)?;
        let check = read.array().map_err(short)?;
        if (found, place, part) != (*vault, segment, number) {
            return Err(bad("it is another part than its name says"));
        }
        let known = [Kind::Data, Kind::Fence, Kind::Close, Kind::Cut];
        let kind = known.into_iter().find(|k| k.number() == kind);
        let kind = kind.ok_or_else(|| bad("it is of an unknown kind"))?;
        Ok((Self { kind, vault: *vault, segment, number, offset, generation }, len, check))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([3; 32]);

    fn part(kind: Kind) -> Part {
        Part { kind, vault: VAULT, segment: 9, number: 4, offset: 1000, generation: 2 }
    }

    #[test]
    fn parts_are_read_back_and_known_by_size() {
        for (kind, data) in
            [(Kind::Data, &b"x"[..]), (Kind::Fence, b""), (Kind::Close, b""), (Kind::Cut, b"")]
        {
            let object = part(kind).encode(data);
            assert_eq!(Part::decode(&object, &VAULT, 9, 4).unwrap(), (part(kind), data));
            assert_eq!(Kind::of_size(object.len() as u64), Some((kind, data.len() as u64)));
        }
        assert_eq!(Kind::of_size(0), None);
        assert_eq!(Kind::of_size(DATA_AT), None);
        assert_eq!(Kind::of_size(DATA_AT + PART_MAX + 1), None);
    }

    #[test]
    fn every_byte_counts() {
        let object = part(Kind::Data).encode(b"some bytes of a segment");
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 0x20;
            assert!(Part::decode(&bad, &VAULT, 9, 4).is_err(), "byte {at}");
            assert!(Part::decode(&object[..at], &VAULT, 9, 4).is_err(), "cut at {at}");
        }
        assert!(Part::decode(&object, &VAULT, 9, 5).is_err());
        assert!(Part::decode(&object, &VAULT, 8, 4).is_err());
        assert!(Part::decode(&object, &VaultId([4; 32]), 9, 4).is_err());
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut object = part(Kind::Fence).encode(b"").to_vec();
        object[8] = 2;
        let check = hash::header_check(&object[..CHECKED]);
        object[CHECKED..HEAD].copy_from_slice(&check);
        let error = Part::decode(&object, &VAULT, 9, 4).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 2, .. }), "{error}");
    }
}
