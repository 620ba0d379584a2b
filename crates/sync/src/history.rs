//! Which points are to be believed: certificates, signatures, the chain of
//! points, and what this machine has seen before.

mod points;

use std::collections::HashMap;

use dormouse_crypt::{Error as CryptError, hash, keys, record};
use dormouse_format::limits::SMALL_ANSWER_MAX;
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::vault::{Cert, VaultKeys, Volume};
use dormouse_format::{Hash, PublicKey, VaultId, VolumeId, WriterId};

use crate::error::{Error, Result};
pub use points::{Points, Proof, SeenGone};

/// The writers that the vault's authority has certified.
#[derive(Debug, Clone)]
pub struct Trust {
    vault: VaultId,
    authority: PublicKey,
    writers: HashMap<WriterId, Cert>,
    /// Certificates taken or left out by [`Self::offer_cert`].
    offered: u32,
    left_out: bool,
}

impl Trust {
    /// Trust in nothing but the authority.
    pub fn new(authority: PublicKey) -> Self {
        Self {
            vault: hash::vault_id(&authority),
            authority,
            writers: HashMap::new(),
            offered: 0,
            left_out: false,
        }
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

    /// Takes what a server gives as a certificate. What does not hold is left out: it
    /// takes nothing away from the others. An answer without end is an error.
    pub fn offer_cert(&mut self, bytes: &[u8]) -> Result<()> {
        self.offered += 1;
        if self.offered > SMALL_ANSWER_MAX {
            return Err(Error::Protocol { what: "an answer of certificates without end" });
        }
        self.left_out |= self.add_cert(bytes).is_err();
        Ok(())
    }

    /// Why a writer is not believed.
    const fn unknown(&self) -> &'static str {
        if self.left_out {
            "its writer is not certified, and a certificate that the server gave does not hold"
        } else {
            "its writer is not certified"
        }
    }

    /// A writer's certificate.
    pub fn writer(&self, id: &WriterId) -> Option<&Cert> {
        self.writers.get(id)
    }

    /// Reads a volume's body: a certified writer signed it.
    pub fn volume(&self, body: &[u8]) -> Result<Volume> {
        let value = <Volume as dormouse_format::vault::Signed>::decode(body)?.0;
        let what = if self.left_out {
            "volume of an unknown writer (a certificate that the server gave does not hold)"
        } else {
            "volume of an unknown writer"
        };
        let cert = self.writer(&value.writer).ok_or(CryptError::Key { what })?;
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
        let cert = self.writer(&p.writer).ok_or(bad(self.unknown()))?;
        let held = keys::verify_point(&cert.key, &stored.signed);
        let held = if seeded("signature-unchecked") { Ok(()) } else { held };
        held.map_err(|_| bad("its signature is wrong"))
    }

    /// Checks a run of points: each as [`Self::point`], and each following the one before.
    pub fn chain(&self, volume: &VolumeId, points: &[StoredPoint]) -> Result<()> {
        for stored in points {
            self.point(volume, stored)?;
        }
        for pair in points.windows(2) {
            let (a, b) = (pair[0].point(), pair[1].point());
            if b.seq != a.seq + 1 || !follows(&pair[0], &pair[1]) {
                return Err(Error::Point { seq: b.seq, why: "it does not follow the one before" });
            }
        }
        if points.first().is_some_and(|p| p.point().seq == 1 && !p.point().prev.is_zero()) {
            return Err(Error::Point { seq: 1, why: "it does not begin the history" });
        }
        Ok(())
    }
}

/// The newest vault keys that the authority signed, of those that a server gives.
#[derive(Debug)]
pub struct NewestKeys {
    authority: PublicKey,
    offered: u32,
    newest: Option<VaultKeys>,
    left_out: Option<Error>,
}

impl NewestKeys {
    /// None yet.
    pub const fn new(authority: PublicKey) -> Self {
        Self { authority, offered: 0, newest: None, left_out: None }
    }

    /// Takes what a server gives as vault keys. What does not hold is left out. An answer
    /// without end is an error.
    pub fn offer(&mut self, bytes: &[u8]) -> Result<()> {
        self.offered += 1;
        if self.offered > SMALL_ANSWER_MAX {
            return Err(Error::Protocol { what: "an answer of vault keys without end" });
        }
        match self.held(bytes) {
            Ok(keys) if self.newest.as_ref().is_none_or(|n| n.epoch < keys.epoch) => {
                self.newest = Some(keys);
            }
            Ok(_) => {}
            Err(e) => self.left_out = Some(e),
        }
        Ok(())
    }

    fn held(&self, bytes: &[u8]) -> Result<VaultKeys> {
        let (header, body) = record::check(bytes)?;
        if header.kind != Kind::VaultKeys {
            return Err(Error::Protocol { what: "a record that is no vault keys" });
        }
        let keys: VaultKeys = keys::verify_body(&self.authority, body)?;
        if keys.vault != hash::vault_id(&self.authority) {
            return Err(CryptError::Key { what: "vault keys of another vault" }.into());
        }
        Ok(keys)
    }

    /// The newest; if there is none, why the last that came does not hold.
    pub fn done(self) -> core::result::Result<VaultKeys, Option<Error>> {
        self.newest.ok_or(self.left_out)
    }
}

/// Whether a point names another as the one before it.
fn follows(before: &StoredPoint, point: &StoredPoint) -> bool {
    point.point().prev == hash_of(&before.signed) || seeded("prev-unchecked")
}

/// A point's hash.
pub fn hash_of(signed: &SignedPoint) -> Hash {
    hash::point(&signed.point.encode())
}

/// That a point builds on this checkpoint, or is it.
pub(crate) fn builds_on(point: &StoredPoint, checkpoint: &StoredPoint) -> Result<()> {
    let (p, c) = (point.point(), checkpoint.point());
    let same = if p.is_checkpoint() {
        p == c
    } else {
        c.is_checkpoint() && (p.volume, p.checkpoint, p.root) == (c.volume, c.seq, c.root)
    };
    let why = "it builds on another checkpoint";
    if same || seeded("builds-on-any") { Ok(()) } else { Err(Error::Point { seq: p.seq, why }) }
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
        Some(_) if seeded("anchor-by-number") => Ok(()),
        Some(shown) if hash_of(&shown.signed) == hash_of(seen) => Ok(()),
        _ => Err(Error::Fork { seq: seen.point.seq }),
    }
}
