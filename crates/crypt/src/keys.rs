//! Signing keys, and wrapping of data keys with age.

use std::io::{Read, Write};
use std::str::FromStr;

use dormouse_format::codec::invalid;
use dormouse_format::point::{Point, SignedPoint};
use dormouse_format::seeded::seeded;
use dormouse_format::vault::Signed;
use dormouse_format::{PublicKey, Signature, VaultId, WriterId};
use ring::signature::KeyPair;
use zeroize::Zeroizing;

use crate::{Error, Random, Result, hash};

/// Before every signature's input, so that ours cannot be taken for another program's.
const DOMAIN: &[u8] = b"dormouse signature v1\0";
/// What stands before the seed in the PKCS#8 form of an Ed25519 key (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// What stands before the key in the SubjectPublicKeyInfo of an Ed25519 key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// An Ed25519 key: of an authority, a writer, a transport or an invite.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: ring::signature::Ed25519KeyPair,
}

impl SigningKey {
    /// The key of this seed.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self> {
        let pair = ring::signature::Ed25519KeyPair::from_seed_unchecked(&seed)
            .map_err(|_| Error::Key { what: "signing key" })?;
        Ok(Self { seed: Zeroizing::new(seed), pair })
    }

    /// A fresh key.
    pub fn generate(random: &mut impl Random) -> Result<Self> {
        Self::from_seed(random.array())
    }

    /// The secret, to be kept.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        let mut out = [0; 32];
        out.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(out)
    }

    /// The id of the writer that signs with this key.
    pub fn writer_id(&self) -> WriterId {
        hash::writer_id(&self.public())
    }

    /// The secret as PKCS#8, as TLS libraries want it.
    pub fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&PKCS8_PREFIX[..], &self.seed[..]].concat())
    }

    /// Signs `bytes` in the domain `what`.
    pub fn sign(&self, what: &str, bytes: &[u8]) -> Signature {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(&input(what, bytes)).as_ref());
        Signature(out)
    }

    /// Signs a body of the vault's small records.
    pub fn sign_body<T: Signed>(&self, value: &T) -> Vec<u8> {
        value.encode(&self.sign(T::WHAT, &value.signed_bytes()))
    }

    /// Signs a point.
    pub fn sign_point(&self, point: Point) -> SignedPoint {
        SignedPoint { point, signature: self.sign("point", &point.encode()) }
    }
}

impl core::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}

fn input(what: &str, bytes: &[u8]) -> Vec<u8> {
    [DOMAIN, if seeded("domain-dropped") { b"" } else { what.as_bytes() }, b"\0", bytes].concat()
}

/// Checks a signature in the domain `what`.
pub fn verify(
    key: &PublicKey,
    what: &'static str,
    bytes: &[u8],
    signature: &Signature,
) -> Result<()> {
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &key.0)
        .verify(&input(what, bytes), &signature.0)
        .map_err(|_| Error::Signature { what })
}

/// Reads a small record's body and checks who signed it.
pub fn verify_body<T: Signed>(key: &PublicKey, body: &[u8]) -> Result<T> {
    let (value, signed, signature) = T::decode(body)?;
    verify(key, T::WHAT, signed, &signature)?;
    Ok(value)
}

/// Reads a vault's body: it is signed by the authority whose hash is the vault's id.
pub fn verify_vault(id: &VaultId, body: &[u8]) -> Result<dormouse_format::vault::Vault> {
    let (vault, signed, signature) = dormouse_format::vault::Vault::decode(body)?;
    if hash::vault_id(&vault.authority) != *id {
        return Err(Error::Key { what: "authority of another vault" });
    }
    verify(&vault.authority, dormouse_format::vault::Vault::WHAT, signed, &signature)?;
    Ok(vault)
}

/// Checks a point's signature.
pub fn verify_point(key: &PublicKey, signed: &SignedPoint) -> Result<()> {
    verify(key, "point", &signed.point.encode(), &signed.signature)
}

/// The SubjectPublicKeyInfo of an Ed25519 key, as raw public keys of TLS carry it.
pub fn to_spki(key: &PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], &key.0[..]].concat()
}

/// The key in a SubjectPublicKeyInfo; `None` unless it is exactly an Ed25519 key.
pub fn from_spki(spki: &[u8]) -> Option<PublicKey> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(PublicKey(key.try_into().ok()?))
}

/// Whom data keys are wrapped to. Public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

impl Recipient {
    /// Wraps a secret: an age file that only the identity opens.
    pub fn wrap(&self, secret: &[u8]) -> Result<Vec<u8>> {
        let failed = || Error::Key { what: "recipient" };
        let recipient: &dyn age::Recipient = &self.0;
        let encryptor =
            age::Encryptor::with_recipients(std::iter::once(recipient)).map_err(|_| failed())?;
        let mut out = Vec::new();
        let mut writer = encryptor.wrap_output(&mut out).map_err(|_| failed())?;
        writer.write_all(secret).map_err(|_| failed())?;
        writer.finish().map_err(|_| failed())?;
        Ok(out)
    }
}

impl FromStr for Recipient {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|_| Error::Key { what: "recipient (age1…)" })
    }
}

impl core::fmt::Display for Recipient {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

/// The vault's identity: opens what is wrapped to the recipient. Can be kept offline.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl Identity {
    /// A fresh identity.
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// The secret as age writes it (`AGE-SECRET-KEY-1…`).
    pub fn to_secret(&self) -> Zeroizing<String> {
        use age::secrecy::ExposeSecret;
        Zeroizing::new(self.0.to_string().expose_secret().to_owned())
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// Opens a wrapped secret of exactly `N` bytes.
    pub fn unwrap<const N: usize>(
        &self,
        what: &'static str,
        wrapped: &[u8],
    ) -> Result<Zeroizing<[u8; N]>> {
        let failed = |_| Error::Unwrap { what };
        let decryptor = age::Decryptor::new(wrapped).map_err(failed)?;
        let identity: &dyn age::Identity = &self.0;
        let reader = decryptor.decrypt(std::iter::once(identity)).map_err(failed)?;
        let mut secret = Zeroizing::new(Vec::with_capacity(N + 1));
        reader.take(N as u64 + 1).read_to_end(&mut secret).map_err(|_| Error::Unwrap { what })?;
        let array: [u8; N] = secret
            .as_slice()
            .try_into()
            .map_err(|_| Error::Format(invalid("wrapped key", "wrong length")))?;
        Ok(Zeroizing::new(array))
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|_| Error::Key { what: "identity (AGE-SECRET-KEY-1…)" })
    }
}

impl core::fmt::Debug for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Identity({})", self.recipient())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OsRandom;

    #[test]
    fn a_signature_holds_only_in_its_domain() {
        let key = SigningKey::generate(&mut OsRandom).unwrap();
        let s = key.sign("point", b"x");
        assert_eq!(verify(&key.public(), "point", b"x", &s), Ok(()));
        assert!(verify(&key.public(), "volume", b"x", &s).is_err());
        assert!(verify(&key.public(), "point", b"y", &s).is_err());
    }

    #[test]
    fn wrapped_keys_open_with_their_identity_only() {
        let identity = Identity::generate();
        let wrapped = identity.recipient().wrap(&[7; 32]).unwrap();
        assert_eq!(*identity.unwrap::<32>("t", &wrapped).unwrap(), [7; 32]);
        assert!(identity.unwrap::<31>("t", &wrapped).is_err());
        assert!(identity.unwrap::<33>("t", &wrapped).is_err());
        assert!(Identity::generate().unwrap::<32>("t", &wrapped).is_err());
        let text = identity.to_secret();
        let back: Identity = text.parse().unwrap();
        assert_eq!(back.recipient(), identity.recipient());
    }

    #[test]
    fn spki_round_trip() {
        let key = SigningKey::from_seed([3; 32]).unwrap().public();
        assert_eq!(from_spki(&to_spki(&key)), Some(key));
        assert_eq!(from_spki(&to_spki(&key)[1..]), None);
    }
}
