//! Fast sums of blocks that were proved once, and are kept where they may be altered.
//!
//! NH, the hash of UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway, CRYPTO 1999), over 32-bit words,
//! twice with a shifted key (the paper's Toeplitz construction). Whatever two blocks one takes, a key
//! drawn at random gives both the same sum with a chance of 2^-64 at most. That holds against whoever
//! does not see the sums: **a sum must not leave the memory of the process that made it**, and its key
//! dies with that process. It is no digest: a block that comes from elsewhere is checked by its tag.

use dormouse_format::limits::BLOCK_SIZE;
use zeroize::Zeroizing;

use crate::Random;

/// Words of a block.
const WORDS: usize = BLOCK_SIZE / 8;
/// The key of the second sum begins so many words later.
const SHIFT: usize = 2;
/// Sums that are computed side by side.
const LANES: usize = 4;

/// Sum of a block; [`Sum::NONE`] stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum([u64; 2]);

impl Sum {
    /// Not computed. (A sum that is this by chance is computed again.)
    pub const NONE: Self = Self([0; 2]);
}

/// The key of a process.
pub struct Sums {
    key: Zeroizing<Vec<u64>>,
}

impl Sums {
    /// A fresh key.
    pub fn new(random: &mut impl Random) -> Self {
        let mut key = Zeroizing::new(vec![0; WORDS + SHIFT]);
        for word in key.iter_mut() {
            *word = u64::from_le_bytes(random.array());
        }
        Self { key }
    }

    /// The sum of a block.
    pub fn of(&self, block: &[u8; BLOCK_SIZE]) -> Sum {
        let (mut first, mut second) = ([0u64; LANES], [0u64; LANES]);
        let (words, _) = block.as_chunks::<8>();
        let (words, _) = words.as_chunks::<LANES>();
        let (keys, shifted) = (&self.key[..WORDS], &self.key[SHIFT..]);
        let keys = keys.as_chunks::<LANES>().0.iter().zip(shifted.as_chunks::<LANES>().0);
        for (words, (key, shifted)) in words.iter().zip(keys) {
            for lane in 0..LANES {
                let word = u64::from_le_bytes(words[lane]);
                first[lane] = first[lane].wrapping_add(product(word, key[lane]));
                second[lane] = second[lane].wrapping_add(product(word, shifted[lane]));
            }
        }
        let all = |lanes: [u64; LANES]| lanes.into_iter().fold(0, u64::wrapping_add);
        Sum([all(first), all(second)])
    }
}

/// Both halves of a word, each with its key, multiplied.
const fn product(word: u64, key: u64) -> u64 {
    let low = (word as u32).wrapping_add(key as u32);
    let high = ((word >> 32) as u32).wrapping_add((key >> 32) as u32);
    low as u64 * high as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OsRandom;

    /// As the paper writes it, in plain arithmetic.
    fn plain(key: &[u64], block: &[u8; BLOCK_SIZE]) -> u64 {
        let half = |word: u64, i: u32| (word >> (32 * i)) & 0xffff_ffff;
        let (words, _) = block.as_chunks::<8>();
        let sum = words.iter().zip(key).fold(0u128, |sum, (word, key)| {
            let word = u64::from_le_bytes(*word);
            let part = |i| u128::from((half(word, i) + half(*key, i)) % (1 << 32));
            (sum + part(0) * part(1)) % (1 << 64)
        });
        sum as u64
    }

    #[test]
    fn it_is_nh_twice() {
        let sums = Sums::new(&mut OsRandom);
        let mut block = [0; BLOCK_SIZE];
        for round in 0..50 {
            OsRandom.fill(&mut block);
            if round == 0 {
                block.fill(0xff);
            }
            let expected = [plain(&sums.key[..], &block), plain(&sums.key[SHIFT..], &block)];
            assert_eq!(sums.of(&block), Sum(expected));
        }
    }

    #[test]
    fn every_bit_counts_and_so_does_the_key() {
        let sums = Sums::new(&mut OsRandom);
        let mut block = [0; BLOCK_SIZE];
        OsRandom.fill(&mut block);
        let sum = sums.of(&block);
        for bit in 0..BLOCK_SIZE * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sums.of(&block), sum, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(sums.of(&block), sum);
        assert_ne!(Sums::new(&mut OsRandom).of(&block), sum);
    }

    #[test]
    fn the_halves_differ() {
        let sums = Sums::new(&mut OsRandom);
        let Sum([first, second]) = sums.of(&[7; BLOCK_SIZE]);
        assert_ne!(first, second);
    }
}
