//! Randomness from a seed.

use dormouse_crypt::Random;
use dormouse_format::limits::BLOCK_SIZE;

/// A linear congruential generator: not for secrets, the same everywhere.
#[derive(Debug, Clone)]
pub struct Lcg(pub u64);

impl Random for Lcg {
    fn fill(&mut self, out: &mut [u8]) {
        for b in out {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *b = (self.0 >> 40) as u8;
        }
    }
}

impl Lcg {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        u64::from_le_bytes(self.array()) % n
    }
}

/// A block of noise.
pub fn noise(random: &mut Lcg) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    random.fill(&mut block);
    block
}
