//! What must be, and who judges.
//!
//! Owns: which states were signed, what was acknowledged, what was seen. Knows
//! nothing of how the store or the protocol work: it sees what leaves them.
//!
//! The rules:
//! - P1: a point that was acknowledged is in every list from then on.
//! - P2: every visible point was signed by a client for a whole state.
//! - P4: what a restore returns as good equals that state bit for bit.
//! - History never changes: what was visible once stays, byte for byte.
//! - A generation is given once, and they ascend.
//! - No key seals two messages under one nonce.
//! - What is kept: only what was due goes, when somebody lets it go ([`Kept`]); it stays away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use dormouse_crypt::hash;
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::record::split;
use dormouse_format::{Hash, KeyId, Seq, VolumeId};
use dormouse_sync::history::hash_of;

use super::kept::Kept;
use crate::source::Disk;

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// What comes of a judgement.
pub type Judged = Result<(), Violation>;

fn broken(text: String) -> Judged {
    Err(Violation(text))
}

#[derive(Debug, Default)]
struct Volume {
    /// All points that were ever visible.
    visible: BTreeMap<Seq, StoredPoint>,
    /// Those that were visible last.
    now: Vec<StoredPoint>,
    /// What a client was told of as durable.
    acknowledged: BTreeMap<Seq, SignedPoint>,
    /// What was acknowledged and lost to rot, before another client, which had not seen it,
    /// went on from the point before.
    replaced: Vec<SignedPoint>,
    generation: u64,
}

/// The model.
#[derive(Debug, Default)]
pub struct Model {
    signed: HashMap<Hash, (VolumeId, Arc<Disk>)>,
    volumes: BTreeMap<VolumeId, Volume>,
    nonces: HashMap<(KeyId, [u8; 12]), [u8; 16]>,
    rot: bool,
    /// What may go.
    pub kept: Kept,
    /// Points that have gone.
    pub gone: u64,
}

impl Model {
    /// Nothing was signed yet. With `rot` points may be lost, if it is said.
    pub fn new(rot: bool) -> Self {
        Self { rot, ..Self::default() }
    }

    /// A client has signed a point that stands for this state.
    pub fn signs(&mut self, point: &SignedPoint, state: Arc<Disk>) {
        self.signed.insert(hash_of(point), (point.point.volume, state));
    }

    /// A client was told that a point is durable.
    ///
    /// Rot at the end of the last segment looks like a torn write: what it hits is lost with
    /// the point in it, and a client that never saw that point goes on without it. The one
    /// that saw it must not: [`told`](Self::told).
    pub fn acknowledged(&mut self, point: &SignedPoint) -> Judged {
        let volume = self.volumes.entry(point.point.volume).or_default();
        let seq = point.point.seq;
        let visible = volume.visible.get(&seq).map(|v| v.signed);
        let before = volume.acknowledged.insert(seq, *point);
        if visible.or(before).is_some_and(|other| other != *point) {
            if self.rot {
                let lost = volume.acknowledged.split_off(&(seq + 1)).into_values();
                volume.replaced.extend(before.filter(|b| b != point).into_iter().chain(lost));
                volume.visible.split_off(&seq);
                return Ok(());
            }
            return broken(format!("point {seq} was acknowledged, and is another one"));
        }
        Ok(())
    }

    /// A client that remembers this point is told that another is durable: a later one.
    pub fn told(remembered: Option<&SignedPoint>, point: &SignedPoint) -> Judged {
        match remembered {
            Some(known) if known != point && known.point.seq >= point.point.seq => broken(format!(
                "a client that knew point {} has made another point {}",
                known.point.seq, point.point.seq
            )),
            _ => Ok(()),
        }
    }

    /// A client was given the right to write.
    pub fn generation(&mut self, volume: VolumeId, generation: u64) -> Judged {
        let volume = self.volumes.entry(volume).or_default();
        // A generation that nothing later proves durable may be lost to rot.
        if generation <= volume.generation && !self.rot {
            return broken(format!(
                "generation {generation} was given after {}",
                volume.generation
            ));
        }
        volume.generation = generation;
        Ok(())
    }

    /// These are all points of a volume, as the store has them now.
    pub fn visible(&mut self, id: VolumeId, points: &[StoredPoint]) -> Judged {
        let there: BTreeMap<Seq, &StoredPoint> =
            points.iter().map(|p| (p.point().seq, p)).collect();
        let seqs: BTreeSet<Seq> = there.keys().copied().collect();
        let volume = self.volumes.entry(id).or_default();
        let known: BTreeSet<Seq> =
            volume.visible.keys().chain(volume.acknowledged.keys()).copied().collect();
        self.gone += self.kept.looked(id, known.into_iter(), &seqs).map_err(Violation)?;
        for (seq, signed) in &volume.acknowledged {
            if there.get(seq).is_some_and(|p| p.signed != *signed) {
                return broken(format!("point {seq} was acknowledged, and is another one"));
            }
        }
        volume.now = points.to_vec();
        self.shown(id, points)
    }

    /// These were all points of a volume a while ago.
    pub fn shown(&mut self, id: VolumeId, points: &[StoredPoint]) -> Judged {
        let volume = self.volumes.entry(id).or_default();
        let (mut next, mut prev) = (1, Hash::ZERO);
        let mut receipt = 0;
        for point in points {
            let p = point.point();
            let skipped = p.seq > next && self.kept.went(&id, next..p.seq);
            if !skipped && (p.seq != next || p.prev != prev) {
                if self.rot {
                    // A damaged point leaves a gap, which no client takes for a history.
                    return Ok(());
                }
                return broken(format!("point {} does not follow the one before", p.seq));
            }
            if point.receipt < receipt {
                return broken(format!("point {} was received before the one before it", p.seq));
            }
            (next, prev, receipt) = (p.seq + 1, hash::point(&p.encode()), point.receipt);
            match volume.visible.get(&p.seq) {
                Some(there) if there != point => {
                    return broken(format!("point {} has changed", p.seq));
                }
                Some(_) => {}
                None if !self.signed.contains_key(&prev) => {
                    return broken(format!("point {} was signed by nobody", p.seq));
                }
                None => drop(volume.visible.insert(p.seq, *point)),
            }
        }
        Ok(())
    }

    /// How many points of a volume were acknowledged that are not among these.
    pub fn lost(&self, id: &VolumeId, points: &[StoredPoint]) -> u64 {
        let volume = self.volumes.get(id);
        let all = volume.into_iter().flat_map(|v| v.acknowledged.values().chain(&v.replaced));
        let lost = |signed: &&SignedPoint| {
            let seq = signed.point.seq;
            points.iter().all(|p| p.signed != **signed) && !self.kept.went(id, seq..=seq)
        };
        all.filter(lost).count() as u64
    }

    /// The points of a volume that were visible last.
    pub fn points(&self, volume: &VolumeId) -> &[StoredPoint] {
        self.volumes.get(volume).map_or(&[], |v| &v.now)
    }

    /// A restore has returned this as good.
    pub fn restored(&self, point: &StoredPoint, disk: &Disk) -> Judged {
        match self.state(&point.signed) {
            Some(state) if **state == *disk => Ok(()),
            Some(state) => {
                let seq = point.point().seq;
                let sizes = format!("{} bytes for {}", disk.size, state.size);
                let all = disk.blocks.keys().chain(state.blocks.keys());
                let wrong = all.filter(|b| disk.blocks.get(b) != state.blocks.get(b));
                let blocks: std::collections::BTreeSet<_> = wrong.collect();
                broken(format!("point {seq} came back wrong: {sizes}, wrong blocks {blocks:?}"))
            }
            None => broken(format!("point {} was signed by nobody", point.point().seq)),
        }
    }

    /// The state that a point stands for.
    pub fn state(&self, point: &SignedPoint) -> Option<&Arc<Disk>> {
        self.signed.get(&hash_of(point)).map(|(_, disk)| disk)
    }

    /// A client has sealed this record.
    pub fn sealed(&mut self, record: &[u8]) -> Judged {
        let Ok((header, _)) = split(record) else {
            return broken("what was sealed is no record".into());
        };
        let before = self.nonces.insert((header.key, header.nonce), header.check);
        match before {
            Some(check) if check != header.check => {
                broken(format!("key {} has sealed two messages under one nonce", header.key))
            }
            _ => Ok(()),
        }
    }
}
