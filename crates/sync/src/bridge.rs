//! Bridges: how a history is followed over points that expired.
//!
//! Owns: what a writer signs at each checkpoint, and what a reader takes for a proof.
//! Invariant: a gap is led over only by bridges that certified writers of the vault signed, one
//! following the other from a checkpoint that the reader has, or has seen, to one that it has.
//! What that proves, and what it does not: docs/format.md, 'Bridges'.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_crypt::{Error as CryptError, SigningKey, keys, record};
use dormouse_format::keeping::Bridge;
use dormouse_format::limits::SMALL_ANSWER_MAX;
use dormouse_format::message::Message;
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::vault::Signed;
use dormouse_format::{Hash, Seq, VolumeId};

use crate::error::{Error, Result};
use crate::history::{Trust, hash_of};

/// The record of a bridge from the last checkpoint to `to`, a checkpoint that is about to be
/// committed. It goes right before the commit, so that one sync makes both durable; if the
/// commit fails, it leads to a point that nobody has, and harms nothing.
pub(crate) fn put(
    signer: &SigningKey,
    from: Option<&StoredPoint>,
    to: &SignedPoint,
) -> Option<Message> {
    let (from, to) = (from?, (to.point.is_checkpoint()).then_some(to)?);
    let p = from.point();
    if !p.is_checkpoint() || p.volume != to.point.volume || p.seq >= to.point.seq {
        return None;
    }
    let bridge = Bridge {
        vault: p.vault,
        volume: p.volume,
        writer: signer.writer_id(),
        from: p.seq,
        from_hash: hash_of(&from.signed),
        from_root: p.root,
        to: to.point.seq,
        to_hash: hash_of(to),
    };
    let body = signer.sign_body(&bridge);
    Some(Message::Put { record: record::plain(Kind::Bridge, bridge.writer, &body) })
}

/// Where a way over bridges begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At this very checkpoint.
    At(Seq, Hash),
    /// At a checkpoint with this number and content root: of a point on it, which signs both,
    /// no more is known.
    On(Seq, Hash),
}

impl Start {
    /// The checkpoint of a point.
    pub fn of(signed: &SignedPoint) -> Self {
        let p = &signed.point;
        if p.is_checkpoint() {
            Self::At(p.seq, hash_of(signed))
        } else {
            Self::On(p.checkpoint, p.root)
        }
    }

    /// The checkpoint's number.
    pub const fn seq(self) -> Seq {
        match self {
            Self::At(seq, _) | Self::On(seq, _) => seq,
        }
    }

    fn fits(self, bridge: &Bridge) -> bool {
        match self {
            Self::At(seq, hash) => (bridge.from, bridge.from_hash) == (seq, hash),
            Self::On(seq, root) => (bridge.from, bridge.from_root) == (seq, root),
        }
    }
}

/// Bridges that a server showed, as far as they hold.
#[derive(Debug)]
pub struct Bridges<'a> {
    trust: &'a Trust,
    volume: VolumeId,
    /// By where they begin.
    held: BTreeMap<Seq, Vec<Bridge>>,
    offered: u32,
}

impl<'a> Bridges<'a> {
    /// None yet.
    pub const fn new(trust: &'a Trust, volume: VolumeId) -> Self {
        Self { trust, volume, held: BTreeMap::new(), offered: 0 }
    }

    /// Takes what a server gives as a bridge. What does not hold is left out: it takes nothing
    /// away from the others. An answer without end is an error.
    pub fn offer(&mut self, bytes: &[u8]) -> Result<()> {
        self.offered += 1;
        if self.offered > SMALL_ANSWER_MAX {
            return Err(Error::Protocol { what: "an answer of bridges without end" });
        }
        if let Ok(bridge) = self.check(bytes) {
            self.held.entry(bridge.from).or_default().push(bridge);
        }
        Ok(())
    }

    fn check(&self, bytes: &[u8]) -> Result<Bridge> {
        let (header, body) = record::check(bytes)?;
        if header.kind != Kind::Bridge {
            return Err(Error::Protocol { what: "a record that is no bridge" });
        }
        let claimed = Bridge::decode(body)?.0;
        let cert = self.trust.writer(&claimed.writer);
        let cert = cert.ok_or(CryptError::Key { what: "bridge of an unknown writer" })?;
        if !seeded("bridge-unsigned") {
            keys::verify_body::<Bridge>(&cert.key, body)?;
        }
        if claimed.vault != *self.trust.vault() || claimed.volume != self.volume {
            return Err(CryptError::Key { what: "bridge of another volume" }.into());
        }
        Ok(claimed)
    }

    /// Whether they lead from there to this checkpoint.
    pub fn lead(&self, start: Start, to: &SignedPoint) -> bool {
        let goal = (to.point.seq, hash_of(to));
        // Bridges lead forward, so one walk in ascending order sees all that can be reached.
        let mut reached: BTreeSet<(Seq, Hash)> = BTreeSet::new();
        for (from, bridges) in self.held.range(start.seq()..goal.0) {
            for b in bridges {
                if start.fits(b) || reached.contains(&(*from, b.from_hash)) {
                    reached.insert((b.to, b.to_hash));
                }
            }
        }
        reached.contains(&goal)
    }

    /// Whether writers of this volume made bridges already at this checkpoint, or before: then
    /// one that is missing there is no sign of an old program.
    pub fn had_begun(&self, at: Seq) -> bool {
        self.held.range(..=at).next().is_some()
    }
}
