//! Digests, chunk ids and tags: keyed hashes that never leave the client (digests)
//! or tell the server nothing (ids, tags).

use dormouse_format::limits::{BLOCK_SIZE, CUT_MASK, LEAF_BLOCKS};
use dormouse_format::seeded::seeded;
use dormouse_format::{Block, ChunkId, Digest, RecordId, Tag, VolumeId};
use zeroize::Zeroizing;

use crate::lanes::{LANES, Lanes};
use crate::{Identity, Random, Recipient, Result};

/// Digest and map key of one epoch.
#[derive(Clone)]
pub struct VaultSecrets {
    /// The epoch; the first is 1.
    pub epoch: u32,
    digest: Zeroizing<[u8; 32]>,
    map: Zeroizing<[u8; 32]>,
    tag_key: Zeroizing<[u8; 32]>,
    block_key: Zeroizing<[u8; 32]>,
    lanes: Lanes,
    chunk_key: Zeroizing<[u8; 32]>,
}

impl VaultSecrets {
    /// The secrets of these keys.
    pub fn new(epoch: u32, digest: [u8; 32], map: [u8; 32]) -> Self {
        let block_key = Zeroizing::new(blake3::derive_key("dormouse v1 block digest", &digest));
        Self {
            epoch,
            lanes: Lanes::new(&block_key),
            block_key,
            chunk_key: Zeroizing::new(blake3::derive_key("dormouse v1 chunk id", &digest)),
            tag_key: Zeroizing::new(blake3::derive_key("dormouse v1 tag", &map)),
            digest: Zeroizing::new(digest),
            map: Zeroizing::new(map),
        }
    }

    /// Fresh secrets of the first epoch.
    pub fn generate(random: &mut impl Random) -> Self {
        Self::new(1, random.array(), random.array())
    }

    /// Both keys, to be kept or wrapped.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 64]> {
        let mut out = Zeroizing::new([0; 64]);
        out[..32].copy_from_slice(&self.digest[..]);
        out[32..].copy_from_slice(&self.map[..]);
        out
    }

    /// The secrets of bytes that [`Self::to_bytes`] gave.
    pub fn from_bytes(epoch: u32, bytes: &[u8; 64]) -> Self {
        let mut digest = [0; 32];
        let mut map = [0; 32];
        digest.copy_from_slice(&bytes[..32]);
        map.copy_from_slice(&bytes[32..]);
        Self::new(epoch, digest, map)
    }

    /// Wraps both keys to the recipient.
    pub fn wrap(&self, recipient: &Recipient) -> Result<Vec<u8>> {
        recipient.wrap(&self.to_bytes()[..])
    }

    /// Opens wrapped keys.
    pub fn unwrap(epoch: u32, wrapped: &[u8], identity: &Identity) -> Result<Self> {
        Ok(Self::from_bytes(epoch, &*identity.unwrap::<64>("vault keys", wrapped)?))
    }

    /// Digest of one block; zero for the zero block.
    pub fn digest(&self, block: &[u8]) -> Digest {
        debug_assert_eq!(block.len(), BLOCK_SIZE);
        if is_zero(block) {
            return Digest::ZERO;
        }
        Digest(cut16(blake3::keyed_hash(&self.block_key, block).as_bytes()))
    }

    /// Digests of whole blocks, one after the other: the same as [`Self::digest`] of each,
    /// but several at a time. `out` is called with the index and the digest of each block.
    pub fn digests(&self, content: &[u8], out: &mut dyn FnMut(usize, Digest)) {
        let (blocks, rest) = content.as_chunks::<BLOCK_SIZE>();
        debug_assert!(rest.is_empty());
        let mut blocks = blocks.iter().enumerate().peekable();
        while let Some(&first) = blocks.peek() {
            let mut wait = [first; LANES];
            let mut n = 0;
            for (i, block) in blocks.by_ref() {
                if is_zero(block) {
                    out(i, Digest::ZERO);
                    continue;
                }
                wait[n] = (i, block);
                n += 1;
                if n == LANES {
                    break;
                }
            }
            let hashes = self.lanes.hash(&wait.map(|(_, block)| block)[..n]);
            for ((i, _), hash) in wait[..n].iter().zip(&hashes) {
                out(*i, Digest(cut16(hash)));
            }
        }
    }

    /// Id of the chunk with these digests.
    pub fn chunk_id(&self, digests: &[Digest]) -> ChunkId {
        let mut hasher = blake3::Hasher::new_keyed(&self.chunk_key);
        if !seeded("id-without-epoch") {
            hasher.update(&self.epoch.to_le_bytes());
        }
        for digest in digests {
            hasher.update(&digest.0);
        }
        RecordId(cut16(hasher.finalize().as_bytes()))
    }

    /// Tag of a block of a volume; zero for the zero block.
    pub fn tag(&self, volume: &VolumeId, block: Block, digest: &Digest) -> Tag {
        if digest.is_zero() {
            return Tag::ZERO;
        }
        let mut input = [0; 40];
        input[..16].copy_from_slice(&volume.0);
        let block = if seeded("tag-without-address") { 0 } else { block };
        input[16..24].copy_from_slice(&block.to_le_bytes());
        input[24..].copy_from_slice(&digest.0);
        Tag(cut16(blake3::keyed_hash(&self.tag_key, &input).as_bytes()))
    }
}

impl core::fmt::Debug for VaultSecrets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "VaultSecrets(epoch {})", self.epoch)
    }
}

/// What is computed of one leaf.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Digest of each block.
    pub digests: [Digest; LEAF_BLOCKS as usize],
    /// Tag of each block.
    pub tags: [Tag; LEAF_BLOCKS as usize],
    /// Hash of the leaf.
    pub hash: dormouse_format::Hash,
}

/// Whether a chunk ends after a block with this digest.
pub const fn cuts(digest: &Digest) -> bool {
    digest.0[0] & CUT_MASK == 0
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    let zero = |w: &[u8; 64]| w.iter().fold(0, |a, b| a | b) == 0;
    words.iter().all(zero) && rest.iter().all(|&b| b == 0)
}

fn cut16(hash: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash[..16]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_differ_by_volume_address_and_content() {
        let s = VaultSecrets::new(1, [1; 32], [2; 32]);
        let d = s.digest(&[5; BLOCK_SIZE]);
        let v = VolumeId([1; 16]);
        let tag = s.tag(&v, 1, &d);
        assert_ne!(tag, s.tag(&v, 2, &d));
        assert_ne!(tag, s.tag(&VolumeId([2; 16]), 1, &d));
        assert_ne!(tag, s.tag(&v, 1, &s.digest(&[6; BLOCK_SIZE])));
        assert_eq!(s.tag(&v, 1, &s.digest(&[0; BLOCK_SIZE])), Tag::ZERO);
    }

    #[test]
    fn secrets_survive_wrapping() {
        let identity = Identity::generate();
        let s = VaultSecrets::generate(&mut crate::OsRandom);
        let wrapped = s.wrap(&identity.recipient()).unwrap();
        let back = VaultSecrets::unwrap(1, &wrapped, &identity).unwrap();
        assert_eq!(*back.to_bytes(), *s.to_bytes());
    }

    #[test]
    fn many_digests_are_those_of_each() {
        let s = VaultSecrets::new(1, [1; 32], [2; 32]);
        for (n, zero) in [(0, 1), (1, 1), (3, 2), (17, 5), (64, 3), (33, 100)] {
            let mut content: Vec<u8> = (0..n * BLOCK_SIZE).map(|i| (i >> 3) as u8 | 1).collect();
            for block in content.chunks_exact_mut(BLOCK_SIZE).step_by(zero) {
                block.fill(0);
            }
            let mut got = vec![None; n];
            s.digests(&content, &mut |i, d| assert!(got[i].replace(d).is_none()));
            let each = content.chunks_exact(BLOCK_SIZE).map(|b| Some(s.digest(b)));
            assert_eq!(got, each.collect::<Vec<_>>());
        }
    }

    #[test]
    fn zero_test_sees_every_byte() {
        let mut b = vec![0; 4096 + 3];
        assert!(is_zero(&b));
        for i in 0..b.len() {
            b[i] = 1;
            assert!(!is_zero(&b), "byte {i}");
            b[i] = 0;
        }
    }
}
