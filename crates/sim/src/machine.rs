//! The keys of simulated machines, and what they put on record of them.
//!
//! Two sources: fresh ones, and a committed pool. Wrapping with age draws on the
//! system's randomness, in amounts that differ; a run that must be the same for the
//! same seed takes data keys that were wrapped once, from the pool.

use std::str::FromStr;
use std::sync::Arc;

use dormouse_crypt::invite::{self, Binding};
use dormouse_crypt::seal::DataKey;
use dormouse_crypt::{Identity, Random, SigningKey, VaultSecrets, hash, record};
use dormouse_format::message::Message;
use dormouse_format::record::Kind;
use dormouse_format::vault::{self, Cert, Vault, VaultKeys, Volume};
use dormouse_format::{InstanceId, PublicKey, TimeNs, VaultId, VolumeId, WriterId};

use crate::random::Lcg;

/// Data keys in the pool.
const POOL: usize = 64;

/// Identity, vault secrets and data keys that were wrapped once.
#[derive(Debug)]
pub struct Pool {
    identity: Arc<Identity>,
    secrets: Arc<VaultSecrets>,
    wrapped_secrets: Vec<u8>,
    /// Secret and wrapped form.
    keys: Vec<([u8; 32], Vec<u8>)>,
}

impl Pool {
    /// The committed pool.
    pub fn committed() -> Self {
        Self::read(include_str!("../keys.txt")).unwrap()
    }

    fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let identity = Arc::new(Identity::from_str(lines.next()?).ok()?);
        let secrets = VaultSecrets::from_bytes(1, &unhex(lines.next()?)?.try_into().ok()?);
        let wrapped_secrets = unhex(lines.next()?)?;
        let key = |line: &str| {
            let (secret, wrapped) = line.split_once(' ')?;
            Some((unhex(secret)?.try_into().ok()?, unhex(wrapped)?))
        };
        let keys: Option<Vec<_>> = lines.map(key).collect();
        Some(Self { identity, secrets: Arc::new(secrets), wrapped_secrets, keys: keys? })
    }

    /// The text of a fresh pool, as [`Self::committed`] reads it.
    pub fn make(random: &mut impl Random) -> String {
        let identity = Identity::generate();
        let recipient = identity.recipient();
        let secrets = VaultSecrets::generate(random);
        let mut out = format!("{}\n", &*identity.to_secret());
        out += &format!("{}\n", hex(&*secrets.to_bytes()));
        out += &format!("{}\n", hex(&secrets.wrap(&recipient).unwrap()));
        for _ in 0..POOL {
            let secret: [u8; 32] = random.array();
            out += &format!("{} {}\n", hex(&secret), hex(&recipient.wrap(&secret).unwrap()));
        }
        out
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let byte = |i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// The keys of one machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its key for connections.
    pub transport: PublicKey,
    /// Its writer's key.
    pub signer: Arc<SigningKey>,
    /// Digest and map key of its vault.
    pub secrets: Arc<VaultSecrets>,
    /// The vault's identity.
    pub identity: Arc<Identity>,
    /// The vault's authority.
    pub authority: Arc<SigningKey>,
    /// The vault.
    pub vault: VaultId,
    /// Which of several runs of this machine it is.
    pub instance: u8,
    pool: Option<Arc<Pool>>,
}

impl Machine {
    /// A machine with a new vault.
    pub fn new(random: &mut Lcg, pool: Option<Arc<Pool>>) -> Self {
        let authority = Arc::new(SigningKey::generate(random).unwrap());
        let (identity, secrets) = match &pool {
            Some(pool) => (Arc::clone(&pool.identity), Arc::clone(&pool.secrets)),
            None => (Identity::generate().into(), VaultSecrets::generate(random).into()),
        };
        let vault = hash::vault_id(&authority.public());
        let transport = PublicKey(random.array());
        let signer = Arc::new(SigningKey::generate(random).unwrap());
        Self { transport, signer, secrets, identity, authority, vault, instance: 1, pool }
    }

    /// Another machine of the same vault.
    pub fn second(&self, random: &mut Lcg) -> Self {
        let transport = PublicKey(random.array());
        let signer = Arc::new(SigningKey::generate(random).unwrap());
        Self { transport, signer, ..self.clone() }
    }

    /// The same machine as another instance.
    pub fn as_instance(&self, instance: u8) -> Self {
        Self { instance, ..self.clone() }
    }

    /// Its writer.
    pub fn writer(&self) -> WriterId {
        self.signer.writer_id()
    }

    /// Its instance.
    pub const fn instance(&self) -> InstanceId {
        InstanceId([self.instance; 16])
    }

    /// The vault's own records.
    pub fn vault_records(&self, now: TimeNs) -> [Vec<u8>; 2] {
        let recipient = self.identity.recipient();
        let authority = self.authority.public();
        let vault = Vault { authority, recipient: recipient.to_string(), created: now };
        let wrapped = match &self.pool {
            Some(pool) => pool.wrapped_secrets.clone(),
            None => self.secrets.wrap(&recipient).unwrap(),
        };
        let keys = VaultKeys { vault: self.vault, epoch: 1, wrapped };
        [
            record::plain(Kind::Vault, WriterId::ZERO, &self.authority.sign_body(&vault)),
            record::plain(Kind::VaultKeys, WriterId::ZERO, &self.authority.sign_body(&keys)),
        ]
    }

    /// The certificate of its writer.
    pub fn cert(&self, group: u32, now: TimeNs) -> Vec<u8> {
        let (vault, key) = (self.vault, self.signer.public());
        let cert = Cert { vault, key, trust_group: group, issued: now, name: "writer".into() };
        record::plain(Kind::Cert, WriterId::ZERO, &self.authority.sign_body(&cert))
    }

    /// How it joins with this invite's secret.
    pub fn enrol(&self, secret: &[u8; 16], binding: &Binding, bundle: Vec<Vec<u8>>) -> Message {
        let key = invite::key(secret).unwrap();
        Message::Enrol {
            proof_key: key.public(),
            proof: binding.prove_invite(&key),
            name: "laptop".into(),
            bundle,
            writer_proof: binding.prove_writer(&self.signer),
        }
    }

    /// A volume of its own: id and signed body.
    pub fn volume(&self, random: &mut Lcg, name: &str, now: TimeNs) -> (VolumeId, Vec<u8>) {
        let id = VolumeId(random.array());
        let (vault, writer, name) = (self.vault, self.writer(), name.into());
        let volume = Volume { vault, id, writer, created: now, name, origin: None };
        (id, self.signer.sign_body(&volume))
    }

    /// A data key, and the record that keeps it.
    pub fn data_key(&self, random: &mut Lcg, now: TimeNs) -> (DataKey, Vec<u8>) {
        let writer = self.writer();
        let (key, body) = match &self.pool {
            Some(pool) => {
                let (secret, wrapped) = &pool.keys[random.below(POOL as u64) as usize];
                let key = DataKey::new(*secret).unwrap();
                let (vault, wrapped) = (self.vault, wrapped.clone());
                let value = vault::DataKey { vault, writer, key: key.id, created: now, wrapped };
                let body = self.signer.sign_body(&value);
                (key, body)
            }
            None => {
                let key = DataKey::generate(random).unwrap();
                let recipient = self.identity.recipient();
                let body = key.wrap(self.vault, &recipient, &self.signer, now).unwrap();
                (key, body)
            }
        };
        (key, record::plain(Kind::DataKey, writer, &body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_pool_opens() {
        let pool = Pool::committed();
        assert_eq!(pool.keys.len(), POOL);
        let opened = pool.identity.unwrap::<64>("t", &pool.wrapped_secrets).unwrap();
        assert_eq!(opened[..], pool.secrets.to_bytes()[..]);
        for (secret, wrapped) in &pool.keys {
            assert_eq!(*pool.identity.unwrap::<32>("t", wrapped).unwrap(), *secret);
        }
    }
}
