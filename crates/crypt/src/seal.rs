//! Sealing chunks: compress, seal, and check what comes back.
//!
//! Invariant: a data key never seals two different inputs under one nonce: the
//! nonce is a keyed hash of associated data and payload, so equal nonces mean
//! equal records, but for a collision among at most 2^32 hashes of 96 bits.
//! A chunk is opened again before it leaves, and its digests compared.

use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_format::limits::{
    BLOCK_SIZE, CHUNK_BLOCKS_MAX, CHUNK_PAYLOAD_MAX, CHUNK_PREFIX, RECORDS_PER_KEY_MAX,
    SEAL_OVERHEAD,
};
use dormouse_format::record::{BOUND_LEN, Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::vault::{self, Signed};
use dormouse_format::{ChunkId, Digest, KeyId, PublicKey, TimeNs, VaultId, WriterId};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroizing;

use crate::{Error, Identity, Random, Recipient, Result, SigningKey, VaultSecrets};

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const AAD_LABEL: &[u8; 16] = b"dormouse seal v1";
const AAD_LEN: usize = 16 + VaultId::LEN + BOUND_LEN;

/// A data key: seals what one session of a writer sends.
pub struct DataKey {
    /// The key's id: a hash of the key, which commits to it.
    pub id: KeyId,
    secret: Zeroizing<[u8; 32]>,
    nonce_key: Zeroizing<[u8; 32]>,
    cipher: LessSafeKey,
    /// Records that this key has sealed, by all workers.
    sealed: AtomicU64,
}

impl DataKey {
    /// The key with this secret.
    pub fn new(secret: [u8; 32]) -> Result<Self> {
        let cipher_key = Zeroizing::new(blake3::derive_key("dormouse v1 data cipher", &secret));
        let unbound = UnboundKey::new(&AES_256_GCM, &cipher_key[..])
            .map_err(|_| Error::Key { what: "data key" })?;
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::derive_key("dormouse v1 data key id", &secret)[..16]);
        Ok(Self {
            id: KeyId(id),
            nonce_key: Zeroizing::new(blake3::derive_key("dormouse v1 data nonce", &secret)),
            secret: Zeroizing::new(secret),
            cipher: LessSafeKey::new(unbound),
            sealed: AtomicU64::new(0),
        })
    }

    /// A fresh key.
    pub fn generate(random: &mut impl Random) -> Result<Self> {
        Self::new(random.array())
    }

    /// The body of the record that keeps this key, wrapped and signed.
    pub fn wrap(
        &self,
        vault: VaultId,
        recipient: &Recipient,
        signer: &SigningKey,
        now: TimeNs,
    ) -> Result<Vec<u8>> {
        let value = vault::DataKey {
            vault,
            writer: signer.writer_id(),
            key: self.id,
            created: now,
            wrapped: recipient.wrap(&self.secret[..])?,
        };
        Ok(signer.sign_body(&value))
    }

    /// Opens a wrapped key: `signer` is its writer's certified key.
    pub fn unwrap(
        vault: &VaultId,
        body: &[u8],
        signer: &PublicKey,
        identity: &Identity,
    ) -> Result<Self> {
        let value: vault::DataKey = crate::keys::verify_body(signer, body)?;
        if value.vault != *vault {
            return Err(Error::Key { what: "data key of another vault" });
        }
        let key = Self::new(*identity.unwrap::<32>(vault::DataKey::WHAT, &value.wrapped)?)?;
        if key.id != value.key {
            return Err(Error::Unwrap { what: vault::DataKey::WHAT });
        }
        Ok(key)
    }

    fn nonce(&self, aad: &[u8; AAD_LEN], payload: &[u8]) -> [u8; 12] {
        let mut hasher = blake3::Hasher::new_keyed(&self.nonce_key);
        let payload = if seeded("nonce-without-payload") { &[] } else { payload };
        let hash = hasher.update(aad).update(payload).finalize();
        let mut nonce = [0; 12];
        if seeded("nonce-constant") {
            return nonce;
        }
        nonce.copy_from_slice(&hash.as_bytes()[..12]);
        nonce
    }
}

impl core::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

fn aad(vault: &VaultId, header: &Header) -> [u8; AAD_LEN] {
    let mut out = [0; AAD_LEN];
    out[..16].copy_from_slice(AAD_LABEL);
    out[16..48].copy_from_slice(if seeded("aad-without-vault") { &[0; 32] } else { &vault.0 });
    out[48..].copy_from_slice(&header.encode()[..BOUND_LEN]);
    if seeded("aad-without-writer") {
        out[80..96].fill(0);
    }
    out
}

/// Seals chunks with one data key; one for each worker thread.
pub struct Sealer {
    zstd: zstd::bulk::Compressor<'static>,
    unzstd: zstd::bulk::Decompressor<'static>,
    /// A buffer for the largest payload, and how much of it is used: never cleared,
    /// because clearing it for each chunk costs as much as sealing.
    payload: Vec<u8>,
    used: usize,
    check: Vec<u8>,
}

impl core::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Sealer")
    }
}

/// Whose chunks are sealed.
#[derive(Debug, Clone, Copy)]
pub struct SealFor<'a> {
    /// The vault.
    pub vault: &'a VaultId,
    /// The writer.
    pub writer: WriterId,
    /// The session's key.
    pub key: &'a DataKey,
    /// Digest and map key.
    pub secrets: &'a VaultSecrets,
}

impl Sealer {
    /// A sealer that compresses at this zstd level.
    pub fn new(level: i32) -> Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(level).map_err(|_| Error::Faulty)?,
            unzstd: zstd::bulk::Decompressor::new().map_err(|_| Error::Faulty)?,
            payload: vec![0; CHUNK_PAYLOAD_MAX + SEAL_OVERHEAD],
            used: 0,
            check: vec![0; CHUNK_BLOCKS_MAX * BLOCK_SIZE],
        })
    }

    /// Seals the chunk of these blocks. `content` holds them in order, all non-zero.
    pub fn seal(
        &mut self,
        who: SealFor<'_>,
        id: ChunkId,
        digests: &[Digest],
        content: &[u8],
    ) -> Result<Vec<u8>> {
        debug_assert_eq!(content.len(), digests.len() * BLOCK_SIZE);
        let sealed = who.key.sealed.fetch_add(1, Ordering::Relaxed);
        if sealed >= RECORDS_PER_KEY_MAX && !seeded("key-without-end") {
            return Err(Error::Key { what: "data key that has sealed 2^32 records" });
        }
        self.compress(content, digests.len())?;
        self.check_payload(who.secrets, digests)?;
        let header = Header {
            kind: Kind::Chunk,
            count: digests.len() as u8,
            body_len: 0,
            epoch: who.secrets.epoch,
            id,
            writer: who.writer,
            key: who.key.id,
            nonce: [0; 12],
            body_check: [0; 16],
            check: [0; 16],
        };
        enclose(who.vault, who.key, header, &mut self.payload[..self.used + SEAL_OVERHEAD])
    }

    fn compress(&mut self, content: &[u8], count: usize) -> Result<()> {
        let prefix = |kind| [kind, count as u8, 0, 0];
        // Room for less than the content: what does not shrink is kept as it is.
        let room = CHUNK_PREFIX + content.len() - content.len() / 32;
        let packed = self.zstd.compress_to_buffer(content, &mut self.payload[CHUNK_PREFIX..room]);
        let (kind, len) = match packed {
            Ok(len) => (ZSTD, len),
            Err(_) => {
                self.payload[CHUNK_PREFIX..CHUNK_PREFIX + content.len()].copy_from_slice(content);
                (RAW, content.len())
            }
        };
        self.payload[..CHUNK_PREFIX].copy_from_slice(&prefix(kind));
        self.used = CHUNK_PREFIX + len;
        Ok(())
    }

    /// Opens the payload again and compares its digests: what leaves is what was read.
    fn check_payload(&mut self, secrets: &VaultSecrets, digests: &[Digest]) -> Result<()> {
        let payload = &self.payload[..self.used];
        let check = unpack(&mut self.unzstd, payload, digests.len(), &mut self.check)?;
        let mut same = check.len() == digests.len() * BLOCK_SIZE;
        secrets.digests(check, &mut |i, digest| same &= digests.get(i) == Some(&digest));
        if same || seeded("sealed-unopened") { Ok(()) } else { Err(Error::Faulty) }
    }
}

/// Seals the payload in front of the last [`SEAL_OVERHEAD`] bytes of `body`, which take the
/// tag; the whole record.
pub(crate) fn enclose(
    vault: &VaultId,
    key: &DataKey,
    mut header: Header,
    body: &mut [u8],
) -> Result<Vec<u8>> {
    header.body_len = body.len() as u32;
    let aad = aad(vault, &header);
    let (payload, tag) = body.split_last_chunk_mut::<SEAL_OVERHEAD>().ok_or(Error::Faulty)?;
    header.nonce = key.nonce(&aad, payload);
    let nonce = Nonce::assume_unique_for_key(header.nonce);
    let sealed = key.cipher.seal_in_place_separate_tag(nonce, Aad::from(&aad), payload);
    tag.copy_from_slice(sealed.map_err(|_| Error::Faulty)?.as_ref());
    Ok(crate::record::assemble(header, body))
}

/// Unpacks a payload of `count` blocks; `buffer` holds the largest chunk.
fn unpack<'a>(
    unzstd: &mut zstd::bulk::Decompressor<'_>,
    payload: &'a [u8],
    count: usize,
    buffer: &'a mut [u8],
) -> Result<&'a [u8]> {
    let len = count * BLOCK_SIZE;
    let (prefix, packed) = payload.split_first_chunk::<CHUNK_PREFIX>().ok_or(Error::Faulty)?;
    if prefix[1..] != [count as u8, 0, 0] {
        return Err(Error::Faulty);
    }
    match prefix[0] {
        RAW if packed.len() == len => Ok(packed),
        ZSTD => {
            let room = if seeded("unpack-longer") { buffer.len() } else { len };
            let out = buffer.get_mut(..room).ok_or(Error::Faulty)?;
            let n = unzstd.decompress_to_buffer(packed, out).map_err(|_| Error::Faulty)?;
            if n >= len { Ok(&buffer[..len]) } else { Err(Error::Faulty) }
        }
        _ => Err(Error::Faulty),
    }
}

/// Opens chunks; one for each worker thread.
pub struct Opener {
    unzstd: zstd::bulk::Decompressor<'static>,
    sealed: Vec<u8>,
    content: Vec<u8>,
}

impl core::fmt::Debug for Opener {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Opener")
    }
}

impl Opener {
    /// An opener.
    pub fn new() -> Result<Self> {
        Ok(Self {
            unzstd: zstd::bulk::Decompressor::new().map_err(|_| Error::Faulty)?,
            sealed: Vec::with_capacity(CHUNK_PAYLOAD_MAX + SEAL_OVERHEAD),
            content: vec![0; CHUNK_BLOCKS_MAX * BLOCK_SIZE],
        })
    }

    /// Opens a chunk's record: its content and its digests.
    /// The id that the caller asked for must be compared with the header's by the caller.
    pub fn open(
        &mut self,
        vault: &VaultId,
        key: &DataKey,
        secrets: &VaultSecrets,
        header: &Header,
        body: &[u8],
    ) -> Result<(&[u8], Vec<Digest>)> {
        let broken = Error::Seal { id: header.id };
        let content = Error::Content { id: header.id };
        if header.kind != Kind::Chunk || header.key != key.id {
            return Err(broken);
        }
        let (packed, tag) =
            body.split_last_chunk::<SEAL_OVERHEAD>().ok_or_else(|| broken.clone())?;
        self.sealed.clear();
        self.sealed.extend_from_slice(packed);
        let nonce = Nonce::assume_unique_for_key(header.nonce);
        let payload = key
            .cipher
            .open_in_place_separate_tag(
                nonce,
                Aad::from(&aad(vault, header)),
                Tag::from(*tag),
                &mut self.sealed,
                0..,
            )
            .map_err(|_| broken)?;
        let count = usize::from(header.count);
        let out = unpack(&mut self.unzstd, payload, count, &mut self.content)
            .map_err(|_| content.clone())?;
        let mut digests = vec![Digest::ZERO; count];
        secrets.digests(out, &mut |i, digest| digests[i] = digest);
        if header.epoch != secrets.epoch
            || digests.iter().any(Digest::is_zero)
            || (secrets.chunk_id(&digests) != header.id && !seeded("content-unchecked"))
        {
            return Err(content);
        }
        Ok((out, digests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OsRandom, record};

    struct World {
        vault: VaultId,
        signer: SigningKey,
        key: DataKey,
        secrets: VaultSecrets,
    }

    fn world() -> World {
        World {
            vault: VaultId([1; 32]),
            signer: SigningKey::from_seed([2; 32]).unwrap(),
            key: DataKey::new([3; 32]).unwrap(),
            secrets: VaultSecrets::new(1, [4; 32], [5; 32]),
        }
    }

    fn seal(w: &World, content: &[u8]) -> Vec<u8> {
        let digests: Vec<_> =
            content.chunks_exact(BLOCK_SIZE).map(|b| w.secrets.digest(b)).collect();
        try_seal(w, &digests, content).unwrap()
    }

    fn try_seal(w: &World, digests: &[Digest], content: &[u8]) -> Result<Vec<u8>> {
        let who = SealFor {
            vault: &w.vault,
            writer: w.signer.writer_id(),
            key: &w.key,
            secrets: &w.secrets,
        };
        Sealer::new(1)?.seal(who, w.secrets.chunk_id(digests), digests, content)
    }

    fn open(w: &World, bytes: &[u8]) -> Result<Vec<u8>> {
        let (header, body) = record::check(bytes)?;
        let mut opener = Opener::new()?;
        Ok(opener.open(&w.vault, &w.key, &w.secrets, &header, body)?.0.to_vec())
    }

    #[test]
    fn compressible_and_random_content_come_back() {
        let w = world();
        let soft: Vec<u8> = (0..BLOCK_SIZE * 5).map(|i| (i / 100) as u8 | 1).collect();
        let mut hard = vec![0; BLOCK_SIZE * 64];
        OsRandom.fill(&mut hard);
        for content in [soft, hard, vec![7; BLOCK_SIZE]] {
            let record = seal(&w, &content);
            assert!(record.len() <= content.len() + 132);
            assert_eq!(open(&w, &record), Ok(content));
        }
    }

    #[test]
    fn sealing_the_same_twice_gives_the_same_bytes() {
        let w = world();
        assert_eq!(seal(&w, &[7; BLOCK_SIZE]), seal(&w, &[7; BLOCK_SIZE]));
        let a = record::check(&seal(&w, &[7; BLOCK_SIZE])).unwrap().0.nonce;
        let b = record::check(&seal(&w, &[8; BLOCK_SIZE])).unwrap().0.nonce;
        assert_ne!(a, b);
    }

    /// As when memory fails between reading and sealing.
    #[test]
    fn content_that_is_not_that_of_its_digests_does_not_leave() {
        let w = world();
        let digests = [7, 8].map(|byte| w.secrets.digest(&[byte; BLOCK_SIZE]));
        let mut content = [[7; BLOCK_SIZE], [8; BLOCK_SIZE]].concat();
        assert!(try_seal(&w, &digests, &content).is_ok());
        for at in [0, BLOCK_SIZE, 2 * BLOCK_SIZE - 1] {
            content[at] ^= 1;
            assert_eq!(try_seal(&w, &digests, &content), Err(Error::Faulty), "byte {at}");
            content[at] ^= 1;
        }
    }

    /// The first blocks may be right: what opens to more is not a chunk.
    #[test]
    fn a_payload_that_opens_to_another_length_is_refused() {
        let mut sealer = Sealer::new(1).unwrap();
        sealer.compress(&[7; 3 * BLOCK_SIZE], 3).unwrap();
        let mut payload = sealer.payload[..sealer.used].to_vec();
        let mut buffer = vec![0; CHUNK_BLOCKS_MAX * BLOCK_SIZE];
        for count in [1, 2, 3, 4, 64] {
            payload[1] = count as u8;
            let opened = unpack(&mut sealer.unzstd, &payload, count, &mut buffer);
            assert_eq!(opened.is_ok(), count == 3, "{count} blocks");
        }
    }

    #[test]
    fn a_data_key_seals_no_more_than_it_may() {
        let w = world();
        let digests = [w.secrets.digest(&[7; BLOCK_SIZE])];
        w.key.sealed.store(RECORDS_PER_KEY_MAX - 1, Ordering::Relaxed);
        assert!(try_seal(&w, &digests, &[7; BLOCK_SIZE]).is_ok());
        for _ in 0..2 {
            let refused = try_seal(&w, &digests, &[7; BLOCK_SIZE]);
            assert!(matches!(refused, Err(Error::Key { .. })), "{refused:?}");
        }
    }

    /// A liar who can make checksums, and changes one byte that the seal binds.
    #[test]
    fn every_bound_byte_shows_under_right_checksums() {
        let w = world();
        let good = seal(&w, &[7; BLOCK_SIZE]);
        let (header, body) = record::check(&good).unwrap();
        let forged: Vec<Header> = vec![
            Header { epoch: 2, ..header },
            Header { id: dormouse_format::RecordId([9; 16]), ..header },
            Header { writer: WriterId([9; 16]), ..header },
            Header { count: 2, ..header },
            Header { nonce: [9; 12], ..header },
            Header { key: KeyId([9; 16]), ..header },
        ];
        for bad in forged {
            assert!(open(&w, &record::assemble(bad, body)).is_err(), "{bad:?}");
        }
        for i in 0..body.len() {
            let mut body = body.to_vec();
            body[i] ^= 1;
            assert!(open(&w, &record::assemble(header, &body)).is_err(), "body {i}");
        }
        let other = World { vault: VaultId([8; 32]), ..world() };
        assert!(open(&other, &good).is_err(), "another vault");
    }

    #[test]
    fn a_data_key_survives_wrapping_and_is_bound_to_its_writer() {
        let w = world();
        let identity = Identity::generate();
        let body = w.key.wrap(w.vault, &identity.recipient(), &w.signer, 9).unwrap();
        let public = w.signer.public();
        let key = DataKey::unwrap(&w.vault, &body, &public, &identity).unwrap();
        assert_eq!(key.id, w.key.id);
        let other = SigningKey::from_seed([9; 32]).unwrap().public();
        assert!(DataKey::unwrap(&w.vault, &body, &other, &identity).is_err());
        assert!(DataKey::unwrap(&VaultId([9; 32]), &body, &public, &identity).is_err());
    }
}
