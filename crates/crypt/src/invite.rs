//! Invites: a secret that the server can check and not use.
//!
//! The 128-bit secret seeds an Ed25519 key. The store keeps the hash of its
//! public half; the client shows the public half and signs the TLS exporter with
//! both transport keys. Who steals the store cannot enrol with what it holds.

use dormouse_format::{PublicKey, Signature};

use crate::{Random, Result, SigningKey, keys};

const DOMAIN: &str = "invite";
const RECOVER: &str = "recover";
const WRITER: &str = "writer joins";

/// Bytes of an invite's secret.
pub const SECRET_LEN: usize = 16;
/// Bytes taken from the TLS exporter.
pub const EXPORTER_LEN: usize = 32;
/// Label of the TLS exporter.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-dormouse-enrol";

/// A fresh secret.
pub fn secret(random: &mut impl Random) -> [u8; SECRET_LEN] {
    random.array()
}

/// The key that a secret stands for.
pub fn key(secret: &[u8; SECRET_LEN]) -> Result<SigningKey> {
    SigningKey::from_seed(blake3::derive_key("dormouse v1 invite", secret))
}

/// What the store keeps of an invite: the hash of the public key.
pub fn verifier(key: &PublicKey) -> [u8; 32] {
    blake3::derive_key("dormouse v1 invite verifier", &key.0)
}

/// What ties a proof to one connection.
#[derive(Debug, Clone, Copy)]
pub struct Binding {
    /// The TLS exporter's output.
    pub exporter: [u8; EXPORTER_LEN],
    /// The client's transport key.
    pub client: PublicKey,
    /// The server's transport key.
    pub server: PublicKey,
}

impl Binding {
    fn bytes(&self) -> Vec<u8> {
        [&self.exporter[..], &self.client.0, &self.server.0].concat()
    }

    /// Proof of an invite.
    pub fn prove_invite(&self, key: &SigningKey) -> Signature {
        key.sign(DOMAIN, &self.bytes())
    }

    /// Proof of the authority.
    pub fn prove_authority(&self, key: &SigningKey) -> Signature {
        key.sign(RECOVER, &self.bytes())
    }

    /// Proof of a writer's signing key.
    pub fn prove_writer(&self, key: &SigningKey) -> Signature {
        key.sign(WRITER, &self.bytes())
    }

    /// Checks the proof of an invite.
    pub fn check_invite(&self, key: &PublicKey, proof: &Signature) -> Result<()> {
        keys::verify(key, DOMAIN, &self.bytes(), proof)
    }

    /// Checks the proof of the authority.
    pub fn check_authority(&self, key: &PublicKey, proof: &Signature) -> Result<()> {
        keys::verify(key, RECOVER, &self.bytes(), proof)
    }

    /// Checks the proof of a writer.
    pub fn check_writer(&self, key: &PublicKey, proof: &Signature) -> Result<()> {
        keys::verify(key, WRITER, &self.bytes(), proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_one_connection_and_one_purpose() {
        let key = key(&[1; 16]).unwrap();
        let b =
            Binding { exporter: [2; 32], client: PublicKey([3; 32]), server: PublicKey([4; 32]) };
        let proof = b.prove_invite(&key);
        assert_eq!(b.check_invite(&key.public(), &proof), Ok(()));
        assert!(b.check_authority(&key.public(), &proof).is_err());
        assert!(b.check_writer(&key.public(), &proof).is_err());
        let other = Binding { exporter: [9; 32], ..b };
        assert!(other.check_invite(&key.public(), &proof).is_err());
        let other = Binding { client: PublicKey([9; 32]), ..b };
        assert!(other.check_invite(&key.public(), &proof).is_err());
    }
}
