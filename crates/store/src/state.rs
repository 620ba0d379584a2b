//! What the store knows without reading: writers, small records, volumes, points.
//!
//! Owns: the meaning of the log's small records. Invariant: the same function takes in a
//! record when it is written and when it is found at opening; of two copies of one the
//! later place counts. Points of a volume are in [`history`]; how they are put in order at
//! opening, where a collection may have moved any of them, in [`replay`].

pub(crate) mod history;
pub(crate) mod keeping;
pub(crate) mod replay;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, RwLock};

use dormouse_crypt::hash;
use dormouse_format::keeping::Bridge;
use dormouse_format::point::StoredPoint;
use dormouse_format::record::{Header, Kind};
use dormouse_format::vault::{self, Cert, Distrust, Signed};
use dormouse_format::{ChunkId, KeyId, PublicKey, RecordId, VolumeId, WriterId};

use crate::error::{Error, Result};
use crate::locks::read;
use crate::log::RecordRef;
use history::History;
use keeping::Keeping;

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
    /// Where each small record lies.
    small: BTreeMap<(Kind, RecordId), RecordRef>,
    pub(crate) keys: HashMap<KeyId, Vec<(WriterId, RecordId)>>,
    pub(crate) distrust: HashMap<(ChunkId, WriterId), Vec<KeyId>>,
    pub(crate) volumes: BTreeMap<VolumeId, Arc<Volume>>,
    pub(crate) names: HashMap<String, VolumeId>,
    pub(crate) keeping: Keeping,
}

impl State {
    pub(crate) fn knows(&self, kind: Kind, id: &RecordId) -> bool {
        self.small.contains_key(&(kind, *id))
    }

    /// Where the records of a small kind lie, each once, in the order of the log.
    pub(crate) fn find(&self, kind: Kind, ids: &[RecordId]) -> Vec<RecordRef> {
        let place = |id: &RecordId| self.small.get(&(kind, *id)).copied();
        let mut places: Vec<_> = match (kind, ids) {
            (_, []) => self.of_kind(kind).map(|(_, at)| at).collect(),
            // Data keys are asked for by the id of the key.
            (Kind::DataKey, _) => {
                let of = |id: &RecordId| self.keys.get(&KeyId(id.0)).into_iter().flatten();
                ids.iter().flat_map(of).filter_map(|(_, id)| place(id)).collect()
            }
            _ => ids.iter().filter_map(place).collect(),
        };
        places.sort_unstable();
        places.dedup();
        places
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (RecordId, RecordRef)> {
        let all = (kind, RecordId::ZERO)..=(kind, RecordId([0xff; RecordId::LEN]));
        self.small.range(all).map(|((_, id), at)| (*id, *at))
    }

    /// All small records: what they are, and where they lie.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&(Kind, RecordId), &RecordRef)> {
        self.small.iter()
    }

    /// A small record lies here now.
    pub(crate) fn place(&mut self, kind: Kind, id: RecordId, at: RecordRef) {
        self.small.insert((kind, id), at);
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

    /// Takes in a small record. What it does to points of volumes is not done here: notes of
    /// what expired and generations are only kept.
    pub(crate) fn apply(&mut self, header: &Header, body: &[u8], at: RecordRef) -> Result<()> {
        let new = !self.knows(header.kind, &header.id);
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
                if new {
                    self.keys.entry(value.key).or_default().push((value.writer, header.id));
                }
            }
            Kind::Distrust => {
                let value = Distrust::decode(body)?.0;
                if new {
                    let all = self.distrust.entry((value.chunk, value.maker)).or_default();
                    all.push(value.key);
                }
            }
            Kind::Volume => self.add_volume(body)?,
            Kind::Bridge => self.keeping.bridge(header.id, body)?,
            Kind::Retention => self.keeping.set(body)?,
            Kind::Deletion => self.keeping.step(header.id, body)?,
            Kind::VaultKeys | Kind::Expired | Kind::Retired | Kind::Stale => {}
            _ => return Ok(()),
        }
        self.place(header.kind, header.id, at);
        Ok(())
    }

    /// Gives each name to the volume that has it: those that were dropped have none.
    pub(crate) fn give_names(&mut self) {
        let named = self.volumes.values().filter(|v| !read(&v.history).dropped);
        self.names = named.map(|v| (v.value.name.clone(), v.value.id)).collect();
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

    /// That a bridge leads from the newest checkpoint to a point that may come next.
    pub(crate) fn check_bridge(&self, bridge: &Bridge) -> Result<()> {
        let volume = self.volumes.get(&bridge.volume);
        let volume = volume.ok_or(Error::conflict("the bridge is of a volume that is not here"))?;
        let history = read(&volume.history);
        let fits = |c: &StoredPoint| {
            let p = c.point();
            let hash = hash::point(&p.encode());
            (p.seq, hash, p.root) == (bridge.from, bridge.from_hash, bridge.from_root)
        };
        if history.checkpoint.as_ref().is_some_and(fits) && bridge.to > history.seq() {
            return Ok(());
        }
        Err(Error::conflict("the bridge does not lead on from the newest checkpoint"))
    }
}

/// A volume by id.
pub(crate) fn volume(state: &RwLock<State>, id: &VolumeId) -> Result<Arc<Volume>> {
    let found = read(state).volumes.get(id).cloned();
    let found = found.filter(|volume| !read(&volume.history).dropped);
    found.ok_or_else(|| Error::NotFound { what: format!("volume {id}") })
}
