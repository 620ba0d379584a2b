//! Keys, digests, sealing and signing of Dormouse.
//!
//! Owns: every use of a cipher, a hash or a signature, and the uniqueness
//! argument of each key and nonce (docs/format.md, 'Keys and nonces').
//! Invariant: nothing is returned as opened unless its seal, its digests and
//! its id all hold. Randomness comes in as an argument ([`Random`]), except in
//! age, which draws its own for each wrapping.
//! Leaves to others: where bytes lie, and who may do what.
#![forbid(unsafe_code)]

pub mod digest;
#[doc(hidden)]
pub mod fuzzing;
pub mod hash;
pub mod invite;
pub mod keys;
mod lanes;
pub mod record;
pub mod seal;
pub mod sum;

pub use digest::VaultSecrets;
pub use keys::{Identity, Recipient, SigningKey};

/// A source of unpredictable bytes.
pub trait Random {
    /// Fills `out`.
    fn fill(&mut self, out: &mut [u8]);

    /// A fresh array.
    fn array<const N: usize>(&mut self) -> [u8; N]
    where
        Self: Sized,
    {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}

/// The operating system's randomness.
#[derive(Debug, Default, Clone, Copy)]
pub struct OsRandom;

impl Random for OsRandom {
    #[expect(clippy::expect_used, reason = "without randomness nothing may go on")]
    fn fill(&mut self, out: &mut [u8]) {
        use ring::rand::SecureRandom;
        ring::rand::SystemRandom::new().fill(out).expect("the system gives random bytes");
    }
}

/// Why something cannot be opened, checked or made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not of our format.
    #[error(transparent)]
    Format(#[from] dormouse_format::Error),
    /// A checksum does not hold: the bytes were damaged on disk or on the way.
    #[error("{what}: the checksum does not hold")]
    Checksum {
        /// What was checked.
        what: &'static str,
    },
    /// A signature does not hold.
    #[error("{what}: the signature does not hold")]
    Signature {
        /// What was signed.
        what: &'static str,
    },
    /// The seal does not hold: wrong key, or altered bytes.
    #[error("chunk {id}: the seal does not hold")]
    Seal {
        /// The chunk.
        id: dormouse_format::ChunkId,
    },
    /// The opened content is not what its id says.
    #[error("chunk {id}: the content is not what the id says")]
    Content {
        /// The chunk.
        id: dormouse_format::ChunkId,
    },
    /// The compressor returned something that does not open to the same content.
    #[error("a chunk did not survive compression; memory or processor may be faulty")]
    Faulty,
    /// A wrapped key cannot be opened with this identity.
    #[error("{what}: this identity does not open it")]
    Unwrap {
        /// What was wrapped.
        what: &'static str,
    },
    /// A key is not of the form that it must have.
    #[error("{what}: not a valid key")]
    Key {
        /// Which key.
        what: &'static str,
    },
}

/// Result of this crate.
pub type Result<T> = core::result::Result<T, Error>;
