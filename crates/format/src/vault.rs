//! The small records that make a vault: authority, writers, keys, volumes.
//!
//! Each ends with a signature over all bytes before it; who signs is said at
//! each type. Layout: docs/format.md, 'Vault records'.

use crate::codec::{Reader, Result, Writer, invalid};
use crate::ids::{
    ChunkId, Hash, InstanceId, KeyId, PublicKey, RecordId, Seq, Signature, TimeNs, VaultId,
    VolumeId, WriterId,
};
use crate::limits::{NAME_MAX, RECIPIENT_MAX, SIGNED_BODY_MAX};

/// Whether `name` may name a volume or a client: 1 to 64 bytes out of letters,
/// digits, `.`, `_` and `-`, not beginning with `.` or `-`.
pub fn name_is_valid(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with(['.', '-'])
}

fn read_name(r: &mut Reader<'_>, what: &'static str) -> Result<String> {
    let name = r.text(NAME_MAX)?;
    if name_is_valid(&name) { Ok(name) } else { Err(invalid(what, "the name is not a valid name")) }
}

/// A body with a signature at its end.
pub trait Signed: Sized {
    /// Name of the structure in errors, and domain of the signature.
    const WHAT: &'static str;
    /// Writes all but the signature.
    fn write(&self, w: &mut Writer);
    /// Reads all but the signature.
    fn read(r: &mut Reader<'_>) -> Result<Self>;

    /// The bytes that the signature covers.
    fn signed_bytes(&self) -> Vec<u8> {
        let mut w = Writer::default();
        self.write(&mut w);
        w.done()
    }

    /// The body: all bytes, then the signature.
    fn encode(&self, signature: &Signature) -> Vec<u8> {
        let mut bytes = self.signed_bytes();
        bytes.extend_from_slice(&signature.0);
        bytes
    }

    /// Reads a body; the signature has still to be checked over the returned bytes.
    fn decode(body: &[u8]) -> Result<(Self, &[u8], Signature)> {
        let (signed, signature) = body
            .split_last_chunk::<{ Signature::LEN }>()
            .ok_or(crate::codec::Error::Short { what: Self::WHAT })?;
        let mut r = Reader::new(signed, Self::WHAT);
        let value = Self::read(&mut r)?;
        r.end()?;
        Ok((value, signed, Signature(*signature)))
    }
}

/// A vault, signed by its own authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vault {
    /// The authority's public key; the vault's id is its hash.
    pub authority: PublicKey,
    /// Whom data keys are wrapped to, as age writes it (`age1…`).
    pub recipient: String,
    /// When it was made.
    pub created: TimeNs,
}

impl Signed for Vault {
    const WHAT: &'static str = "vault";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.authority.0).u64(self.created).blob(self.recipient.as_bytes());
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let authority = PublicKey(r.array()?);
        let created = r.u64()?;
        Ok(Self { authority, recipient: r.text(RECIPIENT_MAX)?, created })
    }
}

/// A writer's certificate, signed by the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cert {
    /// The vault.
    pub vault: VaultId,
    /// The writer's signing key; the writer's id is its hash.
    pub key: PublicKey,
    /// Writers of the same group, other than 0, may share each other's chunks.
    pub trust_group: u32,
    /// When it was issued.
    pub issued: TimeNs,
    /// What people call the writer.
    pub name: String,
}

impl Signed for Cert {
    const WHAT: &'static str = "certificate";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.vault.0).bytes(&self.key.0).u32(self.trust_group).u64(self.issued);
        w.blob(self.name.as_bytes());
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            vault: VaultId(r.array()?),
            key: PublicKey(r.array()?),
            trust_group: r.u32()?,
            issued: r.u64()?,
            name: read_name(r, Self::WHAT)?,
        })
    }
}

/// Digest and map key of an epoch, wrapped to the identity, signed by the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultKeys {
    /// The vault.
    pub vault: VaultId,
    /// The epoch; the first is 1.
    pub epoch: u32,
    /// An age file that holds the digest key and the map key, 32 bytes each.
    pub wrapped: Vec<u8>,
}

impl Signed for VaultKeys {
    const WHAT: &'static str = "vault keys";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.vault.0).u32(self.epoch).blob(&self.wrapped);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let vault = VaultId(r.array()?);
        let epoch = r.u32()?;
        if epoch == 0 {
            return Err(invalid(Self::WHAT, "epochs begin at 1"));
        }
        Ok(Self { vault, epoch, wrapped: r.blob(SIGNED_BODY_MAX)?.to_vec() })
    }
}

/// A session's data key, wrapped to the recipient, signed by the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataKey {
    /// The vault.
    pub vault: VaultId,
    /// The writer.
    pub writer: WriterId,
    /// The key's id, a hash of the key.
    pub key: KeyId,
    /// When it was made.
    pub created: TimeNs,
    /// An age file that holds the key, 32 bytes.
    pub wrapped: Vec<u8>,
}

impl Signed for DataKey {
    const WHAT: &'static str = "data key";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.vault.0).bytes(&self.writer.0).bytes(&self.key.0).u64(self.created);
        w.blob(&self.wrapped);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            vault: VaultId(r.array()?),
            writer: WriterId(r.array()?),
            key: KeyId(r.array()?),
            created: r.u64()?,
            wrapped: r.blob(SIGNED_BODY_MAX)?.to_vec(),
        })
    }
}

/// Where a fork comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The volume whose id is in the tags: the first of this line of forks.
    pub tags: VolumeId,
    /// The volume that was forked.
    pub volume: VolumeId,
    /// At which point.
    pub seq: Seq,
    /// The point's hash.
    pub hash: Hash,
}

/// A volume, signed by the writer that created it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The vault.
    pub vault: VaultId,
    /// The volume's id, random.
    pub id: VolumeId,
    /// Who created it.
    pub writer: WriterId,
    /// When.
    pub created: TimeNs,
    /// Its name, unique in the vault.
    pub name: String,
    /// What it begins with, if it is a fork.
    pub origin: Option<Origin>,
}

impl Volume {
    /// The id that its tags are computed with: a fork shares its origin's map.
    pub const fn tags(&self) -> VolumeId {
        match &self.origin {
            Some(origin) => origin.tags,
            None => self.id,
        }
    }
}

impl Signed for Volume {
    const WHAT: &'static str = "volume";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.vault.0).bytes(&self.id.0).bytes(&self.writer.0).u64(self.created);
        w.blob(self.name.as_bytes());
        if let Some(o) = &self.origin {
            w.bytes(&o.tags.0).bytes(&o.volume.0).u64(o.seq).bytes(&o.hash.0);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let mut volume = Self {
            vault: VaultId(r.array()?),
            id: VolumeId(r.array()?),
            writer: WriterId(r.array()?),
            created: r.u64()?,
            name: read_name(r, Self::WHAT)?,
            origin: None,
        };
        // The record of a volume that is no fork ends here.
        if !r.is_empty() {
            let (tags, of) = (VolumeId(r.array()?), VolumeId(r.array()?));
            let (seq, hash) = (r.u64()?, Hash(r.array()?));
            if seq == 0 || of == volume.id || tags == volume.id {
                return Err(invalid(Self::WHAT, "it cannot be a fork of that"));
            }
            volume.origin = Some(Origin { tags, volume: of, seq, hash });
        }
        Ok(volume)
    }
}

/// A reader's word that a chunk's record is bad, signed by that reader's writer key.
/// After it the server no longer answers 'have' for the record, and takes a fresh copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distrust {
    /// The vault.
    pub vault: VaultId,
    /// The chunk.
    pub chunk: ChunkId,
    /// Who made the bad record.
    pub maker: WriterId,
    /// Which data key sealed it.
    pub key: KeyId,
    /// Who says so.
    pub by: WriterId,
}

impl Signed for Distrust {
    const WHAT: &'static str = "distrust";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.vault.0).bytes(&self.chunk.0).bytes(&self.maker.0);
        w.bytes(&self.key.0).bytes(&self.by.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            vault: VaultId(r.array()?),
            chunk: RecordId(r.array()?),
            maker: WriterId(r.array()?),
            key: KeyId(r.array()?),
            by: WriterId(r.array()?),
        })
    }
}

/// A volume's generation: who may write it now. Made by the server, not signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// The volume.
    pub volume: VolumeId,
    /// Raised each time another instance or writer takes the volume over.
    pub generation: u64,
    /// Who holds it.
    pub writer: WriterId,
    /// Which instance of that writer.
    pub instance: InstanceId,
}

impl Generation {
    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.bytes(&self.volume.0).u64(self.generation);
        w.bytes(&self.writer.0).bytes(&self.instance.0);
        w.done()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body, "generation");
        let value = Self {
            volume: VolumeId(r.array()?),
            generation: r.u64()?,
            writer: WriterId(r.array()?),
            instance: InstanceId(r.array()?),
        };
        r.end()?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "laptop-root", "sda1.img", "9"] {
            assert!(name_is_valid(good), "{good}");
        }
        for bad in ["", ".x", "-x", "a/b", "a@b", "ä", &"x".repeat(65)] {
            assert!(!name_is_valid(bad), "{bad}");
        }
    }

    fn round_trip<T: Signed + PartialEq + core::fmt::Debug>(value: T) {
        let body = value.encode(&Signature([9; 64]));
        let (back, signed, signature) = T::decode(&body).unwrap();
        assert_eq!(back, value);
        assert_eq!(signed, &body[..body.len() - 64]);
        assert_eq!(signature, Signature([9; 64]));
        for cut in 0..body.len() {
            assert!(T::decode(&body[..cut]).is_err(), "{} cut at {cut}", T::WHAT);
        }
        let mut long = body;
        long.insert(0, 0);
        assert!(T::decode(&long).map(|(v, ..)| v != value).unwrap_or(true));
    }

    #[test]
    fn round_trips() {
        let vault = VaultId([1; 32]);
        let writer = WriterId([2; 16]);
        round_trip(Vault { authority: PublicKey([3; 32]), recipient: "age1x".into(), created: 4 });
        round_trip(Cert {
            vault,
            key: PublicKey([5; 32]),
            trust_group: 6,
            issued: 7,
            name: "w".into(),
        });
        round_trip(VaultKeys { vault, epoch: 1, wrapped: vec![1, 2, 3] });
        round_trip(DataKey { vault, writer, key: KeyId([8; 16]), created: 9, wrapped: vec![4, 5] });
        let (id, name) = (VolumeId([10; 16]), "v".to_owned());
        let volume = Volume { vault, id, writer, created: 11, name, origin: None };
        assert_eq!(volume.tags(), id);
        round_trip(volume.clone());
        let (tags, of) = (VolumeId([21; 16]), VolumeId([22; 16]));
        let origin = Origin { tags, volume: of, seq: 23, hash: Hash([24; 32]) };
        let fork = Volume { origin: Some(origin), ..volume };
        assert_eq!(fork.tags(), tags);
        let body = fork.encode(&Signature([9; 64]));
        assert_eq!(Volume::decode(&body).unwrap().0, fork);
        assert!(
            Volume::decode(&body[1..]).is_err() && Volume::decode(&body[..body.len() - 1]).is_err()
        );
        let itself = Volume { origin: Some(Origin { volume: id, ..origin }), ..fork };
        assert!(Volume::decode(&itself.encode(&Signature([0; 64]))).is_err());
        round_trip(Distrust {
            vault,
            chunk: RecordId([12; 16]),
            maker: writer,
            key: KeyId([13; 16]),
            by: writer,
        });
        let g = Generation {
            volume: VolumeId([1; 16]),
            generation: 2,
            writer,
            instance: InstanceId([3; 16]),
        };
        assert_eq!(Generation::decode(&g.encode()), Ok(g));
    }
}
