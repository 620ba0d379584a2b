//! What the store knows without reading: writers, small records, volumes, points.
//!
//! Owns: the meaning of the log's small records, in order. Invariant: the same
//! function takes in a record when it is written and when it is found at opening.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, RwLock};

use dormouse_crypt::hash;
use dormouse_format::delta::{self, Prefix};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::vault::{self, Cert, Distrust, Generation, Signed};
use dormouse_format::{
    ChunkId, Hash, InstanceId, KeyId, PublicKey, RecordId, Seq, VolumeId, WriterId,
};

use crate::error::{Error, Result};
use crate::locks::{read, write};
use crate::log::{RecordRef, Segments};

/// Stands for deltas that are damaged: no record lies in segment 0.
pub(crate) const LOST: RecordRef = RecordRef { segment: 0, offset: 0, body_len: 0 };

/// What is known of a volume's points.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) generation: u64,
    pub(crate) holder: Option<(WriterId, InstanceId)>,
    pub(crate) points: Vec<(Seq, RecordRef)>,
    pub(crate) head: Option<StoredPoint>,
    pub(crate) checkpoint: Option<StoredPoint>,
    /// Parts of delta points, in order.
    pub(crate) deltas: Vec<(Seq, RecordRef)>,
    /// Bytes of delta records since the checkpoint.
    pub(crate) delta_bytes: u64,
}

impl History {
    /// Adds a point that follows the head, with its deltas.
    pub(crate) fn add(&mut self, point: StoredPoint, at: RecordRef, parts: &[RecordRef]) {
        let p = point.point();
        self.points.push((p.seq, at));
        self.generation = self.generation.max(p.generation);
        if p.is_checkpoint() {
            self.checkpoint = Some(point);
            self.delta_bytes = 0;
        }
        self.delta_bytes += parts.iter().map(|r| r.record_len() as u64).sum::<u64>();
        self.deltas.extend(parts.iter().map(|part| (p.seq, *part)));
        self.head = Some(point);
    }

    /// The running hash after the head.
    pub(crate) fn running(&self) -> Hash {
        let Some(head) = &self.head else { return Hash::ZERO };
        let p = head.point();
        if p.is_checkpoint() { p.root } else { p.deltas }
    }

    pub(crate) fn seq(&self) -> Seq {
        self.head.as_ref().map_or(0, |h| h.point().seq)
    }

    /// What the next point must name as the one before it.
    pub(crate) fn prev(&self) -> Hash {
        self.head.as_ref().map_or(Hash::ZERO, |h| hash::point(&h.point().encode()))
    }

    pub(crate) fn find(&self, seq: Seq) -> Option<RecordRef> {
        let i = self.points.binary_search_by_key(&seq, |(s, _)| *s).ok()?;
        Some(self.points[i].1)
    }

    /// Deltas of the points after `from`, up to `to`.
    pub(crate) fn parts(&self, from: Seq, to: Seq) -> &[(Seq, RecordRef)] {
        let first = self.deltas.partition_point(|(s, _)| *s <= from);
        let end = self.deltas.partition_point(|(s, _)| *s <= to);
        &self.deltas[first..end]
    }
}

/// A volume.
pub(crate) struct Volume {
    pub(crate) value: vault::Volume,
    pub(crate) body: Vec<u8>,
    /// Held by who commits or takes over.
    pub(crate) writing: Mutex<()>,
    pub(crate) history: RwLock<History>,
}

/// Everything small.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) authority: Option<PublicKey>,
    pub(crate) certs: HashMap<WriterId, Cert>,
    known: HashSet<(Kind, RecordId)>,
    small: BTreeMap<Kind, Vec<(RecordId, RecordRef)>>,
    pub(crate) keys: HashMap<KeyId, Vec<(WriterId, RecordRef)>>,
    pub(crate) distrust: HashMap<(ChunkId, WriterId), Vec<KeyId>>,
    pub(crate) volumes: BTreeMap<VolumeId, Arc<Volume>>,
    pub(crate) names: HashMap<String, VolumeId>,
}

impl State {
    pub(crate) fn knows(&self, kind: Kind, id: &RecordId) -> bool {
        self.known.contains(&(kind, *id))
    }

    /// Where the records of a small kind lie.
    pub(crate) fn find(&self, kind: Kind, ids: &[RecordId]) -> Vec<RecordRef> {
        if kind == Kind::DataKey {
            let of = |id: &RecordId| self.keys.get(&KeyId(id.0)).into_iter().flatten();
            if ids.is_empty() {
                let mut all: Vec<_> = self.keys.values().flatten().map(|(_, at)| *at).collect();
                all.sort_unstable();
                return all;
            }
            let mut asked = HashSet::new();
            let once = ids.iter().filter(|id| asked.insert(**id));
            return once.flat_map(of).map(|(_, at)| *at).collect();
        }
        let all = self.small.get(&kind).into_iter().flatten();
        let wanted: HashSet<_> = ids.iter().collect();
        all.filter(|(id, _)| wanted.is_empty() || wanted.contains(id)).map(|(_, at)| *at).collect()
    }

    /// Whether both writers are in one trust group, or are one.
    pub(crate) fn trusts(&self, writer: &WriterId, maker: &WriterId) -> bool {
        let group = |w| self.certs.get(w).map_or(0, |c: &Cert| c.trust_group);
        writer == maker || (group(writer) != 0 && group(writer) == group(maker))
    }

    /// Whether the records of this chunk by this maker may be distrusted: then the
    /// key decides.
    pub(crate) fn distrusted(&self, chunk: &ChunkId, maker: &WriterId) -> Option<&[KeyId]> {
        self.distrust.get(&(*chunk, *maker)).map(Vec::as_slice)
    }

    /// Takes in a small record that is not a point.
    pub(crate) fn apply(&mut self, header: &Header, body: &[u8], at: RecordRef) -> Result<()> {
        match header.kind {
            Kind::Vault => self.authority = Some(vault::Vault::decode(body)?.0.authority),
            Kind::Cert => {
                let cert = Cert::decode(body)?.0;
                let writer = hash::writer_id(&cert.key);
                if self.certs.get(&writer).is_none_or(|old| old.issued <= cert.issued) {
                    self.certs.insert(writer, cert);
                }
            }
            Kind::DataKey => {
                let value = vault::DataKey::decode(body)?.0;
                if self.known.insert((header.kind, header.id)) {
                    self.keys.entry(value.key).or_default().push((value.writer, at));
                }
                return Ok(());
            }
            Kind::Distrust => {
                let value = Distrust::decode(body)?.0;
                self.distrust.entry((value.chunk, value.maker)).or_default().push(value.key);
            }
            Kind::Volume => self.add_volume(body)?,
            Kind::Generation => return self.raise(&Generation::decode(body)?),
            Kind::VaultKeys | Kind::Stale => {}
            _ => return Ok(()),
        }
        if self.known.insert((header.kind, header.id)) {
            self.small.entry(header.kind).or_default().push((header.id, at));
        }
        Ok(())
    }

    fn add_volume(&mut self, body: &[u8]) -> Result<()> {
        let value = vault::Volume::decode(body)?.0;
        let (id, name) = (value.id, value.name.clone());
        let (writing, history) = (Mutex::default(), RwLock::default());
        let volume = Volume { value, body: body.to_vec(), writing, history };
        self.names.entry(name).or_insert(id);
        self.volumes.entry(id).or_insert_with(|| Arc::new(volume));
        Ok(())
    }

    fn raise(&self, value: &Generation) -> Result<()> {
        let volume = self.volumes.get(&value.volume);
        let volume = volume.ok_or(Error::NotFound { what: format!("volume {}", value.volume) })?;
        let mut history = write(&volume.history);
        if value.generation > history.generation {
            history.generation = value.generation;
        }
        if value.generation == history.generation {
            history.holder = Some((value.writer, value.instance));
        }
        Ok(())
    }
}

/// Ties deltas to points while the log is read at opening.
#[derive(Default)]
pub(crate) struct Replay {
    waiting: HashMap<VolumeId, Vec<(Prefix, RecordRef)>>,
    /// Delta records that could not be read.
    pub(crate) damaged_deltas: bool,
    /// Point records that could not be read, less the gaps seen since.
    pub(crate) missing_points: u64,
}

impl Replay {
    pub(crate) fn delta(&mut self, prefix: Prefix, at: RecordRef) {
        self.waiting.entry(prefix.volume).or_default().push((prefix, at));
    }

    pub(crate) fn point(
        &mut self,
        segments: &Segments,
        state: &State,
        body: &[u8],
        at: RecordRef,
    ) -> Result<()> {
        let point = StoredPoint::decode(body)?;
        let p = *point.point();
        let volume = state.volumes.get(&p.volume);
        let volume = volume.ok_or_else(|| at.damaged("a point of a volume that is not there"))?;
        let mut history = write(&volume.history);
        let gap = p.seq.saturating_sub(history.seq() + 1);
        let follows = p.seq > history.seq() && (gap > 0 || p.prev == history.prev());
        if !follows || gap > self.missing_points {
            return Err(at.damaged("the point does not follow the one before it"));
        }
        self.missing_points -= gap;
        let mut waiting = self.waiting.remove(&p.volume).unwrap_or_default();
        waiting.retain(|(prefix, _)| prefix.seq == p.seq);
        let parts = if p.is_checkpoint() {
            Vec::new()
        } else if gap > 0 {
            vec![LOST]
        } else if p.deltas == history.running() {
            Vec::new()
        } else {
            let before = history.running();
            let parts = self.committed(segments, &waiting, &before, &p.deltas)?;
            parts.unwrap_or_else(|| vec![LOST])
        };
        history.add(point, at, &parts);
        Ok(())
    }

    /// The parts of the last try whose running hash fits.
    fn committed(
        &self,
        segments: &Segments,
        waiting: &[(Prefix, RecordRef)],
        before: &Hash,
        after: &Hash,
    ) -> Result<Option<Vec<RecordRef>>> {
        let fits = |(p, _): &&(Prefix, RecordRef)| p.after == delta::short(after);
        let Some((last, _)) = waiting.iter().rev().find(fits) else { return Ok(None) };
        let all = seeded("deltas-of-all-tries");
        let of = waiting.iter().filter(|(p, _)| all || p.attempt == last.attempt);
        let parts: Vec<_> = of.map(|(_, at)| *at).collect();
        // Only where a record was lost can a part be missing in the middle.
        if self.damaged_deltas {
            let mut running = *before;
            for at in &parts {
                let record = match segments.record(at) {
                    Ok((_, record)) => record,
                    Err(e @ Error::Io { .. }) => return Err(e),
                    Err(_) => return Ok(None),
                };
                let Ok((prefix, runs)) = delta::decode(&record[HEADER_LEN..]) else {
                    return Ok(None);
                };
                running = hash::delta(&running, prefix.size, runs);
            }
            if running != *after {
                return Ok(None);
            }
        }
        Ok(Some(parts))
    }
}

/// A volume by id.
pub(crate) fn volume(state: &RwLock<State>, id: &VolumeId) -> Result<Arc<Volume>> {
    let found = read(state).volumes.get(id).cloned();
    found.ok_or_else(|| Error::NotFound { what: format!("volume {id}") })
}
