//! Records as clients put and get them: chunks, and the small signed ones.

use std::collections::{HashMap, HashSet};

use dormouse_crypt::{hash, keys, record};
use dormouse_format::keeping::Bridge;
use dormouse_format::record::{Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::stale::Stale;
use dormouse_format::vault::{Cert, DataKey, Distrust, Signed, VaultKeys};
use dormouse_format::{ChunkId, PublicKey, RecordId, TimeNs, WriterId};

use super::VaultStore;
use super::pins::Pins;
use super::terms::Room;
use crate::error::{Error, Result};
use crate::index::Entry;
use crate::locks::{read, write};
use crate::log::RecordRef;

/// Certificates in one vault at most; the index numbers writers with 16 bits.
const WRITERS_MAX: usize = 60_000;

impl VaultStore {
    /// Takes a record in, checked wholly. Of the small kinds vault, certificate,
    /// vault keys, data key, distrust and bridge the signature is checked too, so the vault
    /// comes first, then certificates; a chunk needs its writer's certificate and
    /// that writer's data key. What is there already is not written again.
    pub fn put(&self, record: &[u8], now: TimeNs) -> Result<()> {
        self.put_pinned(record, now, None)
    }

    /// As [`Self::put`]; what is written, or was there, stays until `pins` is released.
    pub fn put_pinned(&self, record: &[u8], now: TimeNs, pins: Option<&Pins>) -> Result<()> {
        self.log.usable()?;
        let (header, body) = record::check(record).map_err(|e| Error::bad(e.to_string()))?;
        if header.kind == Kind::Chunk {
            return self.put_chunk(&header, record, now, pins);
        }
        if read(&self.state).knows(header.kind, &header.id) {
            return Ok(());
        }
        self.check_small(&header, body)?;
        // These go with a point whose content is here already.
        let room = match header.kind {
            Kind::Bridge | Kind::Stale => Room::Ending,
            _ => Room::New,
        };
        self.room(room, record.len())?;
        let (at, _) = self.append(record, now)?;
        write(&self.state).apply(&header, body, at)
    }

    fn put_chunk(
        &self,
        header: &Header,
        record: &[u8],
        now: TimeNs,
        pins: Option<&Pins>,
    ) -> Result<()> {
        {
            let state = read(&self.state);
            if !state.certs.contains_key(&header.writer) {
                return Err(Error::bad("the chunk's writer has no certificate here"));
            }
            let mut makers = state.keys.get(&header.key).into_iter().flatten();
            if !makers.any(|(writer, _)| *writer == header.writer) {
                return Err(Error::bad("the chunk's data key is not here; put it first"));
            }
        }
        // Rare: a client asks before it puts. A damaged record is none.
        let mine = |e: &Entry| e.kind == Kind::Chunk && e.writer == header.writer;
        let fits = |e: &Entry| Ok(mine(e) && self.is_trusted(e)?);
        if self.settled(|| self.find_pinned(&header.id, true, pins, &fits))? {
            return Ok(());
        }
        self.room(Room::New, record.len())?;
        if let Some(pins) = pins {
            pins.begin(&self.log);
        }
        self.append(record, now).map(drop)
    }

    fn check_small(&self, header: &Header, body: &[u8]) -> Result<()> {
        let bad = |e: dormouse_crypt::Error| Error::bad(e.to_string());
        let state = read(&self.state);
        let authority = || state.authority.ok_or(Error::bad("the vault's own record comes first"));
        let writer = |id: &WriterId| -> Result<PublicKey> {
            let cert = state.certs.get(id);
            Ok(cert.ok_or(Error::bad("the writer has no certificate here"))?.key)
        };
        let vault = match header.kind {
            Kind::Vault => return keys::verify_vault(&self.vault, body).map(drop).map_err(bad),
            Kind::Cert => {
                let cert: Cert = keys::verify_body(&authority()?, body).map_err(bad)?;
                let known = state.certs.contains_key(&hash::writer_id(&cert.key));
                if !known && state.certs.len() >= WRITERS_MAX {
                    return Err(Error::bad("the vault has as many writers as it can"));
                }
                cert.vault
            }
            Kind::VaultKeys => {
                let value: VaultKeys = keys::verify_body(&authority()?, body).map_err(bad)?;
                value.vault
            }
            Kind::DataKey => {
                let by = DataKey::decode(body)?.0.writer;
                let value: DataKey = keys::verify_body(&writer(&by)?, body).map_err(bad)?;
                if value.writer != header.writer {
                    return Err(Error::bad("the data key is of another writer than its record"));
                }
                value.vault
            }
            Kind::Distrust => {
                let by = Distrust::decode(body)?.0.by;
                let value: Distrust = keys::verify_body(&writer(&by)?, body).map_err(bad)?;
                value.vault
            }
            Kind::Bridge => {
                let by = Bridge::decode(body)?.0.writer;
                let value: Bridge = keys::verify_body(&writer(&by)?, body).map_err(bad)?;
                state.check_bridge(&value)?;
                value.vault
            }
            Kind::Stale => {
                let by = Stale::decode(body)?.0.writer;
                let value: Stale = keys::verify_body(&writer(&by)?, body).map_err(bad)?;
                value.vault
            }
            kind => return Err(Error::bad(format!("a {} is not put as a record", kind.name()))),
        };
        if vault == self.vault { Ok(()) } else { Err(Error::bad("it is of another vault")) }
    }

    /// Whether no reader has called this record bad.
    fn is_trusted(&self, entry: &Entry) -> Result<bool> {
        let state = read(&self.state);
        let Some(keys) = state.distrusted(&entry.id, &entry.writer) else { return Ok(true) };
        let keys = keys.to_vec();
        drop(state);
        match self.log.segments.header(&entry.at) {
            Err(Error::Moved) => Err(Error::Moved),
            found => Ok(found.is_ok_and(|h| !keys.contains(&h.key))),
        }
    }

    /// Whether the record that an index entry names can be read and holds.
    pub(super) fn is_whole(&self, entry: &Entry) -> Result<bool> {
        let same = |h: &Header| (h.kind, h.id, h.writer) == (entry.kind, entry.id, entry.writer);
        match self.log.segments.record(&entry.at) {
            Err(Error::Moved) => Err(Error::Moved),
            found => Ok(found.is_ok_and(|(h, _)| same(&h))),
        }
    }

    /// Whether `writer` may refer to this record, for `blocks` blocks of it.
    fn grants(&self, writer: &WriterId, blocks: u8, entry: &Entry) -> Result<bool> {
        let fits = entry.kind == Kind::Chunk
            && entry.count + u8::from(seeded("have-bound")) >= blocks
            && read(&self.state).trusts(writer, &entry.writer)
            && (self.relies_on(&entry.writer) || entry.writer == *writer);
        Ok(fits && (self.is_trusted(entry)? || seeded("have-distrusted")))
    }

    /// Whether `writer` may refer to at least `blocks` blocks of this chunk. If so, it stays
    /// until `pins` is released.
    pub(super) fn has(
        &self,
        writer: &WriterId,
        id: &ChunkId,
        blocks: u8,
        pins: Option<&Pins>,
    ) -> Result<bool> {
        let grants = |e: &Entry| self.grants(writer, blocks, e);
        self.settled(|| self.find_pinned(id, false, pins, &grants))
    }

    /// Which of these chunks `writer` need not send: its own, and those of writers
    /// in its trust group; never distrusted ones. With `check` each record is read,
    /// and one that does not hold is as good as none.
    pub fn have(&self, writer: &WriterId, ids: &[ChunkId], check: bool) -> Result<Vec<bool>> {
        self.have_pinned(writer, ids, check, None)
    }

    /// As [`Self::have`]; what is there stays until `pins` is released.
    pub fn have_pinned(
        &self,
        writer: &WriterId,
        ids: &[ChunkId],
        check: bool,
        pins: Option<&Pins>,
    ) -> Result<Vec<bool>> {
        let grants = |e: &Entry| self.grants(writer, 1, e);
        let has = |id| self.settled(|| self.find_pinned(id, check, pins, &grants));
        ids.iter().map(has).collect()
    }

    /// A chunk's record for a point of `writer`, `skip` of them passed over; damaged ones
    /// are left out. Of several records of the id each maker's best comes first: that of
    /// `writer`, then those of its trust group, then others (a volume that was taken over
    /// refers to them); then each maker's next one. A distrusted record comes after the
    /// maker's others, but is given: anybody who writes can distrust, and must not hide
    /// a good record by it. If all are damaged, the error says where.
    pub fn chunk(&self, id: &ChunkId, writer: &WriterId, skip: u8) -> Result<Option<Vec<u8>>> {
        self.settled(|| self.chunk_here(id, writer, skip))
    }

    fn chunk_here(&self, id: &ChunkId, writer: &WriterId, skip: u8) -> Result<Option<Vec<u8>>> {
        let mut entries = Vec::new();
        self.find(id, &mut |e| {
            entries.extend((e.kind == Kind::Chunk).then_some(*e));
            false
        })?;
        let judged = entries.into_iter().map(|e| Ok((!self.is_trusted(&e)?, e)));
        let mut found = judged.collect::<Result<Vec<_>>>()?;
        found.sort_by_key(|(distrusted, _)| *distrusted);
        let mut of_maker: HashMap<WriterId, usize> = HashMap::new();
        let mut ranked: Vec<_> = found
            .into_iter()
            .map(|(_, entry)| {
                let nth = of_maker.entry(entry.writer).or_insert(0);
                *nth += 1;
                let trusted = read(&self.state).trusts(writer, &entry.writer);
                ((*nth, entry.writer != *writer, !trusted), entry)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut failed = None;
        for (_, entry) in ranked.iter().skip(usize::from(skip)) {
            match self.log.segments.record(&entry.at) {
                Ok((header, record)) if header.id == *id && header.kind == Kind::Chunk => {
                    return Ok(Some(record));
                }
                Ok(_) => {
                    let e = entry.at.damaged("another record lies where this chunk should");
                    failed.get_or_insert(e);
                }
                Err(Error::Moved) => return Err(Error::Moved),
                Err(e) => {
                    failed.get_or_insert(e);
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Whole records of a small kind: those with these ids (for data keys: key ids),
    /// or all if none is given. What is not there is left out.
    pub fn small(&self, kind: Kind, ids: &[RecordId]) -> Result<Vec<Vec<u8>>> {
        self.settled(|| self.places(kind, ids).iter().map(|at| self.read(at)).collect())
    }

    /// Calls `out` with each of these records: not all of them are in memory at once.
    pub fn each_small(
        &self,
        kind: Kind,
        ids: &[RecordId],
        out: &mut dyn FnMut(Vec<u8>),
    ) -> Result<()> {
        let mut done = HashSet::new();
        self.settled(|| {
            for at in self.places(kind, ids) {
                let (header, record) = self.log.segments.record(&at)?;
                if done.insert(header.id) {
                    out(record);
                }
            }
            Ok(())
        })
    }

    /// Where these records are, each once: a writer can put any number of data keys under
    /// one id, so they are read one by one.
    pub fn places(&self, kind: Kind, ids: &[RecordId]) -> Vec<RecordRef> {
        read(&self.state).find(kind, ids)
    }

    /// The record at this place, checked.
    pub fn read(&self, at: &RecordRef) -> Result<Vec<u8>> {
        Ok(self.log.segments.record(at)?.1)
    }
}
