//! Which points are to be believed: certificates, signatures, the chain of
//! points, and what this machine has seen before.

use std::collections::HashMap;

use dormouse_crypt::{Error as CryptError, hash, keys, record};
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::{Cert, Volume};
use dormouse_format::{Hash, PublicKey, VaultId, VolumeId, WriterId};

use crate::error::{Error, Result};

/// The writers that the vault's authority has certified.
#[derive(Debug, Clone)]
pub struct Trust {
    vault: VaultId,
    authority: PublicKey,
    writers: HashMap<WriterId, Cert>,
}

impl Trust {
    /// Trust in nothing but the authority.
    pub fn new(authority: PublicKey) -> Self {
        Self { vault: hash::vault_id(&authority), authority, writers: HashMap::new() }
    }

    /// The vault.
    pub const fn vault(&self) -> &VaultId {
        &self.vault
    }

    /// Adds a certificate's record, if the authority signed it.
    pub fn add_cert(&mut self, bytes: &[u8]) -> Result<()> {
        let (header, body) = record::check(bytes)?;
        if header.kind != Kind::Cert {
            return Err(Error::Protocol { what: "a record that is no certificate" });
        }
        let cert: Cert = keys::verify_body(&self.authority, body)?;
        if cert.vault != self.vault {
            return Err(CryptError::Key { what: "certificate of another vault" }.into());
        }
        // Of several certificates of one writer the one issued last counts.
        let known = self.writers.entry(hash::writer_id(&cert.key)).or_insert_with(|| cert.clone());
        if cert.issued >= known.issued {
            *known = cert;
        }
        Ok(())
    }

    /// A writer's certificate.
    pub fn writer(&self, id: &WriterId) -> Option<&Cert> {
        self.writers.get(id)
    }

    /// Reads a volume's body: a certified writer signed it.
    pub fn volume(&self, body: &[u8]) -> Result<Volume> {
        let value = <Volume as dormouse_format::vault::Signed>::decode(body)?.0;
        let cert = self
            .writer(&value.writer)
            .ok_or(CryptError::Key { what: "volume of an unknown writer" })?;
        let value: Volume = keys::verify_body(&cert.key, body)?;
        if value.vault != self.vault {
            return Err(CryptError::Key { what: "volume of another vault" }.into());
        }
        Ok(value)
    }

    /// Checks that a point is of this vault and volume, and signed by a certified writer.
    pub fn point(&self, volume: &VolumeId, stored: &StoredPoint) -> Result<()> {
        let p = stored.point();
        let bad = |why| Error::Point { seq: p.seq, why };
        if p.vault != self.vault || p.volume != *volume {
            return Err(bad("it is of another volume"));
        }
        let cert = self.writer(&p.writer).ok_or(bad("its writer is not certified"))?;
        keys::verify_point(&cert.key, &stored.signed).map_err(|_| bad("its signature is wrong"))
    }

    /// Checks a run of points: each as [`Self::point`], and each following the one before.
    pub fn chain(&self, volume: &VolumeId, points: &[StoredPoint]) -> Result<()> {
        for stored in points {
            self.point(volume, stored)?;
        }
        for pair in points.windows(2) {
            let (a, b) = (pair[0].point(), pair[1].point());
            if b.seq != a.seq + 1 || b.prev != hash_of(&pair[0].signed) {
                return Err(Error::Point { seq: b.seq, why: "it does not follow the one before" });
            }
        }
        if points.first().is_some_and(|p| p.point().seq == 1 && !p.point().prev.is_zero()) {
            return Err(Error::Point { seq: 1, why: "it does not begin the history" });
        }
        Ok(())
    }
}

/// A point's hash.
pub fn hash_of(signed: &SignedPoint) -> Hash {
    hash::point(&signed.point.encode())
}

/// Compares what the server shows with the last head that this machine saw.
/// `shown` is the server's point with the sequence number of `seen`, if it has one.
pub fn check_anchor(
    seen: Option<&SignedPoint>,
    head: Option<&StoredPoint>,
    shown: Option<&StoredPoint>,
) -> Result<()> {
    let Some(seen) = seen else { return Ok(()) };
    let head_seq = head.map_or(0, |h| h.point().seq);
    if head_seq < seen.point.seq {
        return Err(Error::Rollback { seen: seen.point.seq, shown: head_seq });
    }
    match shown {
        Some(shown) if hash_of(&shown.signed) == hash_of(seen) => Ok(()),
        _ => Err(Error::Fork { seq: seen.point.seq }),
    }
}
