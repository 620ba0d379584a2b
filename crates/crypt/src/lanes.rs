//! Keyed BLAKE3 of many blocks at once.
//!
//! Owns: the arrangement of several blocks in the lanes of one vector register. One block of
//! 4 KiB is only four of BLAKE3's chunks, and processors hash 8 or 16 at a time; taking the
//! same chunk of 16 blocks fills all lanes. Invariant: the result is that of
//! `blake3::keyed_hash` for each block, on every platform. The tree of a block is fixed:
//! four chunks, two parents, one root (section 2 of the BLAKE3 paper).
//!
//! It uses the crate's inner interface, which has no promise of stability: the version is
//! pinned, and a test compares with the outer one.

use blake3::IncrementCounter::No;
use blake3::platform::Platform;
use dormouse_format::limits::BLOCK_SIZE;
use zeroize::Zeroizing;

/// Blocks that are hashed together: the lanes of the widest registers.
pub(crate) const LANES: usize = 16;
const CHUNK: usize = 1024;
const CHUNKS: usize = BLOCK_SIZE / CHUNK;
const CV: usize = 32;

// Flags of BLAKE3's compression, table 3 of the paper.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED: u8 = 1 << 4;

/// A key, and how this processor hashes best.
#[derive(Clone)]
pub(crate) struct Lanes {
    platform: Platform,
    key: Zeroizing<[u32; 8]>,
}

impl Lanes {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let key = Zeroizing::new(blake3::platform::words_from_le_bytes_32(key));
        Self { platform: Platform::detect(), key }
    }

    /// Hashes up to [`LANES`] blocks; as many results have a meaning.
    pub(crate) fn hash(&self, blocks: &[&[u8; BLOCK_SIZE]]) -> [[u8; CV]; LANES] {
        let n = blocks.len().min(LANES);
        let mut hashes = [[0; CV]; LANES];
        if n == 0 {
            return hashes;
        }
        let mut out = [0; CV * LANES];
        let mut chunks = [[0; CV * CHUNKS]; LANES];
        for c in 0..CHUNKS {
            let mut inputs = [part::<CHUNK>(blocks[0], c); LANES];
            for (input, block) in inputs.iter_mut().zip(blocks) {
                *input = part::<CHUNK>(*block, c);
            }
            let counter = c as u64;
            self.many(&inputs[..n], counter, (KEYED, CHUNK_START, CHUNK_END), &mut out);
            for (chunk, cv) in chunks.iter_mut().zip(out.chunks_exact(CV)) {
                chunk[c * CV..][..CV].copy_from_slice(cv);
            }
        }
        let mut parents = [0; 2 * CV * LANES];
        let mut inputs = [part::<64>(&chunks[0], 0); 2 * LANES];
        for (i, input) in inputs.iter_mut().enumerate() {
            *input = part::<64>(&chunks[i / 2], i % 2);
        }
        self.many(&inputs[..2 * n], 0, (KEYED | PARENT, 0, 0), &mut parents);
        let mut inputs = [part::<64>(&parents, 0); LANES];
        for (i, input) in inputs.iter_mut().enumerate() {
            *input = part::<64>(&parents, i);
        }
        self.many(&inputs[..n], 0, (KEYED | PARENT | ROOT, 0, 0), &mut out);
        hashes.copy_from_slice(out.as_chunks().0);
        hashes
    }

    fn many<const N: usize>(
        &self,
        inputs: &[&[u8; N]],
        counter: u64,
        (flags, first, last): (u8, u8, u8),
        out: &mut [u8],
    ) {
        let out = &mut out[..inputs.len() * CV];
        self.platform.hash_many(inputs, &self.key, counter, No, flags, first, last, out);
    }
}

/// The `i`th part of `N` bytes.
fn part<const N: usize>(bytes: &[u8], i: usize) -> &[u8; N] {
    &bytes.as_chunks().0[i]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_give_what_blake3_gives() {
        let key = [9; 32];
        let lanes = Lanes::new(&key);
        let bytes: Vec<u8> = (0..LANES * BLOCK_SIZE).map(|i| (i * i / 7 + i) as u8).collect();
        let (all, _) = bytes.as_chunks::<BLOCK_SIZE>();
        for n in 0..=LANES {
            let blocks: Vec<_> = all[..n].iter().rev().collect();
            let got = lanes.hash(&blocks);
            for (block, got) in blocks.iter().zip(got) {
                assert_eq!(got, *blake3::keyed_hash(&key, &block[..]).as_bytes(), "{n} blocks");
            }
        }
    }
}
