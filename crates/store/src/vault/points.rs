//! Volumes, their points, and who may write them.

use std::sync::Arc;

use dormouse_crypt::{hash, keys};
use dormouse_format::limits::{SIGNED_BODY_MAX, VOLUMES_MAX};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::vault::{self, Generation, Signed};
use dormouse_format::{InstanceId, PublicKey, Seq, TimeNs, VolumeId, WriterId};

use super::VaultStore;
use super::terms::Room;
use crate::error::{Error, Result};
use crate::locks::{lock, read, write};
use crate::log::RecordRef;
use crate::state::{self, Volume};

impl VaultStore {
    pub(super) fn volume(&self, id: &VolumeId) -> Result<Arc<Volume>> {
        state::volume(&self.state, id)
    }

    pub(super) fn writer_key(&self, writer: &WriterId) -> Result<PublicKey> {
        let key = read(&self.state).certs.get(writer).map(|c| c.key);
        key.ok_or_else(|| Error::bad(format!("writer {writer} has no certificate here")))
    }

    /// All volumes, with the bodies of their records and their newest points.
    pub fn volumes(&self) -> Vec<(vault::Volume, Vec<u8>, Option<StoredPoint>)> {
        let volumes = self.volume_list();
        volumes.iter().map(|v| (v.value.clone(), v.body.clone(), read(&v.history).head)).collect()
    }

    /// Creates a volume; durable on return. The same body again is no error.
    pub fn create_volume(&self, body: &[u8], now: TimeNs) -> Result<()> {
        self.log.usable()?;
        if body.len() > SIGNED_BODY_MAX {
            return Err(Error::bad("the volume's record is too long"));
        }
        let value = vault::Volume::decode(body)?.0;
        let key = self.writer_key(&value.writer)?;
        keys::verify_body::<vault::Volume>(&key, body).map_err(|e| Error::bad(e.to_string()))?;
        if value.vault != self.vault {
            return Err(Error::bad("the volume is of another vault"));
        }
        let _creating = lock(&self.creating);
        if let Some(origin) = &value.origin {
            self.check_origin(origin)?;
        }
        {
            let state = read(&self.state);
            if let Some(there) = state.volumes.get(&value.id) {
                let same = there.body == body;
                return if same { Ok(()) } else { Err(Error::Exists { name: value.name }) };
            }
            if state.names.len() >= VOLUMES_MAX {
                return Err(Error::bad("the vault has as many volumes as it can"));
            }
            if state.names.contains_key(&value.name) {
                return Err(Error::Exists { name: value.name });
            }
        }
        self.room(Room::New, HEADER_LEN + body.len())?;
        let record = dormouse_crypt::record::plain(Kind::Volume, value.writer, body);
        let (at, end) = self.append(&record, now)?;
        self.log.sync_to(end)?;
        let (header, body) = dormouse_format::record::split(&record)?;
        write(&self.state).apply(&header, body, at)
    }

    /// That a fork's origin is here, as the fork's record says.
    fn check_origin(&self, origin: &vault::Origin) -> Result<()> {
        let point = self.point(&origin.volume, origin.seq)?;
        if hash::point(&point.signed.point.encode()) != origin.hash {
            return Err(Error::bad("the point that it is a fork of is another one here"));
        }
        if self.volume(&origin.volume)?.value.tags() != origin.tags {
            return Err(Error::bad("its tags are not those of what it is a fork of"));
        }
        Ok(())
    }

    pub(crate) fn point_at(&self, at: &RecordRef) -> Result<StoredPoint> {
        let record = self.read(at)?;
        StoredPoint::decode(&record[HEADER_LEN..]).map_err(|e| at.damaged(e.to_string()))
    }

    /// Points from `from` on, at most `limit`, ascending.
    pub fn points(&self, volume: &VolumeId, from: Seq, limit: usize) -> Result<Vec<StoredPoint>> {
        let volume = self.volume(volume)?;
        self.settled(|| {
            let history = read(&volume.history);
            let refs: Vec<_> = history.kept(from).take(limit).map(|p| p.at).collect();
            drop(history);
            refs.iter().map(|at| self.point_at(at)).collect()
        })
    }

    /// One point.
    pub fn point(&self, volume: &VolumeId, seq: Seq) -> Result<StoredPoint> {
        let volume = self.volume(volume)?;
        let name = &volume.value.name;
        self.settled(|| {
            let history = read(&volume.history);
            let expired = if history.expired_at(seq).is_some() { " (it has expired)" } else { "" };
            let absent = || Error::NotFound { what: format!("point {name}@{seq}{expired}") };
            let at = history.find(seq).ok_or_else(absent)?;
            drop(history);
            self.point_at(&at)
        })
    }

    /// The newest point.
    pub fn head(&self, volume: &VolumeId) -> Result<Option<StoredPoint>> {
        Ok(read(&self.volume(volume)?.history).head)
    }

    /// Who holds the right to write a volume, if somebody does.
    pub fn holder(&self, volume: &VolumeId) -> Option<WriterId> {
        let volume = self.volume(volume).ok()?;
        let holder = read(&volume.history).holder;
        holder.map(|(writer, _)| writer)
    }

    /// Takes the right to write a volume and returns the generation. A new instance
    /// of the writer that holds it takes over; another writer must say `takeover`.
    /// What is in flight is settled first.
    pub fn open_write(
        &self,
        volume: &VolumeId,
        writer: WriterId,
        instance: InstanceId,
        takeover: bool,
        now: TimeNs,
    ) -> Result<u64> {
        self.log.usable()?;
        self.writer_key(&writer)?;
        let volume = self.volume(volume)?;
        let _writing = lock(&volume.writing);
        let (held, holder) = {
            let history = read(&volume.history);
            (history.generation, history.holder)
        };
        match holder {
            Some((by, of)) if (by, of) != (writer, instance) && !takeover => {
                let (volume, same) = (volume.value.name.clone(), by == writer);
                return Err(Error::Held { volume, by, same });
            }
            _ => {}
        }
        self.room(Room::New, HEADER_LEN)?;
        let same = holder == Some((writer, instance)) && seeded("generation-kept");
        let Some(generation) = held.checked_add(u64::from(!same)) else {
            return Err(Error::conflict(
                "the volume's generation is at its limit, which no history reaches: the log was \
                 tampered with; copy to a new volume",
            ));
        };
        let value = Generation { volume: volume.value.id, generation, writer, instance };
        let body = value.encode();
        let (at, end) = self.append_plain(Kind::Generation, WriterId::ZERO, &body, now)?;
        if !seeded("generation-unsynced") {
            self.log.sync_to(end)?;
        }
        let mut history = write(&volume.history);
        history.raise(&value, at);
        Ok(generation)
    }
}
