//! Records as clients put and get them: chunks, and the small signed ones.

use std::collections::HashMap;

use dormouse_crypt::{hash, keys, record};
use dormouse_format::record::{Header, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::stale::Stale;
use dormouse_format::vault::{Cert, DataKey, Distrust, Signed, VaultKeys};
use dormouse_format::{ChunkId, PublicKey, RecordId, TimeNs, WriterId};

use super::VaultStore;
use crate::error::{Error, Result};
use crate::index::Entry;
use crate::locks::{read, write};
use crate::log::RecordRef;

/// Certificates in one vault at most; the index numbers writers with 16 bits.
const WRITERS_MAX: usize = 60_000;

impl VaultStore {
    /// Takes a record in, checked wholly. Of the small kinds vault, certificate,
    /// vault keys, data key and distrust the signature is checked too, so the vault
    /// comes first, then certificates; a chunk needs its writer's certificate and
    /// that writer's data key. What is there already is not written again.
    pub fn put(&self, record: &[u8], now: TimeNs) -> Result<()> {
        self.log.usable()?;
        let (header, body) = record::check(record).map_err(|e| Error::bad(e.to_string()))?;
        if header.kind == Kind::Chunk {
            return self.put_chunk(&header, record, now);
        }
        if read(&self.state).knows(header.kind, &header.id) {
            return Ok(());
        }
        self.check_small(&header, body)?;
        let (at, _) = self.append(record, now)?;
        write(&self.state).apply(&header, body, at)
    }

    fn put_chunk(&self, header: &Header, record: &[u8], now: TimeNs) -> Result<()> {
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
        let mut there = Vec::new();
        self.find(&header.id, &mut |e| {
            if e.kind == Kind::Chunk && e.writer == header.writer && self.is_trusted(e) {
                there.push(*e);
            }
            false
        })?;
        // Rare: a client asks before it puts. A damaged record is none.
        if there.iter().any(|e| self.is_whole(e)) {
            return Ok(());
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
    fn is_trusted(&self, entry: &Entry) -> bool {
        let state = read(&self.state);
        let Some(keys) = state.distrusted(&entry.id, &entry.writer) else { return true };
        let keys = keys.to_vec();
        drop(state);
        self.log.segments.header(&entry.at).is_ok_and(|h| !keys.contains(&h.key))
    }

    /// Whether the record that an index entry names can be read and holds.
    fn is_whole(&self, entry: &Entry) -> bool {
        let found = self.log.segments.record(&entry.at);
        found.is_ok_and(|(h, _)| (h.kind, h.id, h.writer) == (entry.kind, entry.id, entry.writer))
    }

    /// Whether `writer` may refer to this record, for `blocks` blocks of it.
    fn grants(&self, writer: &WriterId, blocks: u8, entry: &Entry) -> bool {
        entry.kind == Kind::Chunk
            && entry.count + u8::from(seeded("have-bound")) >= blocks
            && read(&self.state).trusts(writer, &entry.writer)
            && (self.is_trusted(entry) || seeded("have-distrusted"))
    }

    /// Whether `writer` may refer to at least `blocks` blocks of this chunk.
    pub(super) fn has(&self, writer: &WriterId, id: &ChunkId, blocks: u8) -> Result<bool> {
        let mut granted = false;
        self.find(id, &mut |e| {
            granted = self.grants(writer, blocks, e);
            granted
        })?;
        Ok(granted)
    }

    /// Which of these chunks `writer` need not send: its own, and those of writers
    /// in its trust group; never distrusted ones. With `check` each record is read,
    /// and one that does not hold is as good as none.
    pub fn have(&self, writer: &WriterId, ids: &[ChunkId], check: bool) -> Result<Vec<bool>> {
        let has = |id| if check { self.has_whole(writer, id) } else { self.has(writer, id, 1) };
        ids.iter().map(has).collect()
    }

    /// As [`Self::has`], for a record that was read and holds.
    fn has_whole(&self, writer: &WriterId, id: &ChunkId) -> Result<bool> {
        let mut granted = Vec::new();
        self.find(id, &mut |e| {
            if self.grants(writer, 1, e) {
                granted.push(*e);
            }
            false
        })?;
        Ok(granted.iter().any(|e| self.is_whole(e)))
    }

    /// A chunk's record for a point of `writer`, `skip` of them passed over; damaged ones
    /// are left out. Of several records of the id each maker's best comes first: that of
    /// `writer`, then those of its trust group, then others (a volume that was taken over
    /// refers to them); then each maker's next one. A distrusted record comes after the
    /// maker's others, but is given: anybody who writes can distrust, and must not hide
    /// a good record by it. If all are damaged, the error says where.
    pub fn chunk(&self, id: &ChunkId, writer: &WriterId, skip: u8) -> Result<Option<Vec<u8>>> {
        let mut found = Vec::new();
        self.find(id, &mut |e| {
            if e.kind == Kind::Chunk {
                found.push((!self.is_trusted(e), *e));
            }
            false
        })?;
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
        self.places(kind, ids).iter().map(|at| self.read(at)).collect()
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
