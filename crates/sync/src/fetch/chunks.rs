//! The second stage: chunks are asked for, opened and proved.
//!
//! Invariant: a chunk is opened with the key of its own writer, checked under that
//! writer's certificate. A record that does not hold hides no other of the same id.

use std::sync::Arc;

use dormouse_crypt::seal::{DataKey, Opener};
use dormouse_crypt::{VaultSecrets, record};
use dormouse_format::limits::{BLOCK_SIZE, CHUNK_TRIES_MAX, GET_MAX, SMALL_ANSWER_MAX};
use dormouse_format::message::Message;
use dormouse_format::record::{Kind, split};
use dormouse_format::seeded::seeded;
use dormouse_format::vault::{self, Signed};
use dormouse_format::{Block, ChunkId, KeyId, RecordId, Tag, VolumeId, WriterId};

use super::{Action, Fetch, Question};
use crate::error::{Error, Result};
use crate::history::Trust;

/// Blocks asked for and not yet written, at most (96 MiB).
const WINDOW: u64 = 24_576;
/// Chunks asked for and not yet written, at most. A chunk that one block is wanted of may
/// have 64, and the server says how long its record is: up to 257 KiB each, 1 GiB together.
const CHUNKS: usize = 4096;

/// Blocks of a chunk that go to consecutive addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The first block.
    pub start: Block,
    /// Its index in the chunk.
    pub first: u8,
    /// The tags that the blocks must have.
    pub tags: Vec<Tag>,
}

/// Writes bytes at a byte address.
pub type Write<'a, E> = &'a mut dyn FnMut(u64, &[u8]) -> core::result::Result<(), E>;

/// A chunk to open and to write.
#[derive(Debug)]
pub struct OpenJob {
    /// Its record.
    pub record: Vec<u8>,
    /// The key that sealed it.
    pub key: Arc<DataKey>,
    /// Where its blocks go.
    pub placements: Vec<Placement>,
    /// Blocks that this job counts for.
    pub blocks: u64,
    /// How many other records of the chunk did not hold before this one.
    skip: u8,
}

impl OpenJob {
    /// Opens the chunk, compares every tag, and gives the blocks to `write` (byte
    /// address, bytes). Nothing is written unless all of it holds.
    pub fn run<E>(
        &self,
        who: (&Trust, &VaultSecrets, &VolumeId),
        opener: &mut Opener,
        write: Write<'_, E>,
    ) -> Result<core::result::Result<(), E>> {
        let (trust, secrets, volume) = who;
        let (header, body) = split(&self.record)?;
        let (content, digests) = opener.open(trust.vault(), &self.key, secrets, &header, body)?;
        for p in &self.placements {
            for (i, tag) in p.tags.iter().enumerate() {
                let block = p.start + i as u64;
                let digest = digests.get(usize::from(p.first) + i);
                let same = digest.map(|d| secrets.tag(volume, block, d)) == Some(*tag);
                if !(same || digest.is_some() && seeded("tag-unchecked")) {
                    let why = "it holds another block than the map says".to_owned();
                    return Err(Error::Chunk { id: header.id, block, why });
                }
            }
        }
        for p in &self.placements {
            let at = usize::from(p.first) * BLOCK_SIZE;
            let bytes = &content[at..at + p.tags.len() * BLOCK_SIZE];
            if let Err(e) = write(p.start * BLOCK_SIZE as u64, bytes) {
                return Ok(Err(e));
            }
        }
        Ok(Ok(()))
    }
}

pub(super) struct Want {
    pub(super) id: ChunkId,
    pub(super) placements: Vec<Placement>,
    pub(super) blocks: u64,
    pub(super) skip: u8,
    /// Why the record before did not hold.
    pub(super) error: Option<Error>,
}

impl Want {
    /// The chunk cannot be had: what was wrong first counts most.
    pub(super) fn fault(self, why: &str) -> Error {
        let block = self.placements.first().map_or(0, |p| p.start);
        let why = self.error.map_or_else(|| why.to_owned(), |e| e.to_string());
        Error::Chunk { id: self.id, block, why }
    }
}

/// A data key, and the writer that sealed with it.
pub(super) type Maker = (KeyId, WriterId);

impl Fetch {
    /// Another record of the same chunk may hold: anybody who writes to the vault can
    /// put a bad one under any id.
    pub(super) fn broken(
        &mut self,
        job: OpenJob,
        error: Error,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        let (header, _) = split(&job.record)?;
        let want = Want {
            id: header.id,
            placements: job.placements,
            blocks: job.blocks,
            skip: job.skip + 1,
            error: Some(error),
        };
        self.again(want, actions)
    }

    fn again(&mut self, want: Want, actions: &mut Vec<Action>) -> Result<()> {
        if want.skip > CHUNK_TRIES_MAX {
            self.settled(want.blocks);
            return self.fault(want.fault("no record of it holds"));
        }
        let (writer, skip, ids) = (self.plan.point.point().writer, want.skip, vec![want.id]);
        actions.push(Action::Send(Message::GetChunks { writer, skip, ids }));
        self.questions.push_back(Question::Chunk(want));
        Ok(())
    }

    pub(super) fn fault(&mut self, e: Error) -> Result<()> {
        self.progress.bad += 1;
        if !self.plan.keep_going {
            return Err(e);
        }
        if self.faults.len() < 10_000 {
            self.faults.push(e);
        }
        Ok(())
    }

    pub(super) fn ask_chunks(&mut self, actions: &mut Vec<Action>) {
        let mut ids = Vec::new();
        while ids.len() < GET_MAX && self.under_way < WINDOW && self.chunks < CHUNKS {
            let Some(want) = self.want.pop_front() else { break };
            ids.push(want.id);
            self.chunks += 1;
            self.under_way += want.blocks;
            self.questions.push_back(Question::Chunk(want));
        }
        if !ids.is_empty() {
            let writer = self.plan.point.point().writer;
            actions.push(Action::Send(Message::GetChunks { writer, skip: 0, ids }));
        }
    }

    pub(super) fn chunk(
        &mut self,
        want: Want,
        bytes: Vec<u8>,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        let (header, _) = split(&bytes)?;
        if header.id != want.id || header.kind != Kind::Chunk {
            return Err(Error::Protocol { what: "another chunk than the one asked for" });
        }
        self.progress.chunks += 1;
        self.progress.received += bytes.len() as u64;
        self.opened(want, bytes, actions)
    }

    /// Opens a record, or asks for its key first.
    fn opened(&mut self, want: Want, bytes: Vec<u8>, actions: &mut Vec<Action>) -> Result<()> {
        let (header, _) = split(&bytes)?;
        let maker = (header.key, header.writer);
        match self.keys.get(&maker) {
            Some(key) => actions.push(open(want, bytes, key)),
            None => {
                let held = self.held.entry(maker).or_default();
                if held.is_empty() {
                    self.questions.push_back(Question::Key(maker));
                    let ids = vec![RecordId(header.key.0)];
                    actions.push(Action::Send(Message::GetSmall { kind: Kind::DataKey, ids }));
                }
                held.push((want, bytes));
            }
        }
        Ok(())
    }

    pub(super) fn key(&mut self, maker: Maker, bytes: &[u8]) -> Result<()> {
        self.key_records += 1;
        if self.key_records > SMALL_ANSWER_MAX {
            return Err(Error::Protocol { what: "an answer of data keys without end" });
        }
        // Anybody who writes to the vault can put a key's record under this id. One that
        // does not hold is passed over.
        match self.key_of(maker, bytes) {
            Ok(Some(key)) => {
                self.keys.insert(maker, Arc::new(key));
            }
            Ok(None) => {}
            Err(e) => self.key_error = Some(e),
        }
        Ok(())
    }

    /// The key in a data key's record, if it is this maker's.
    fn key_of(&self, maker: Maker, bytes: &[u8]) -> Result<Option<DataKey>> {
        let (header, body) = record::check(bytes)?;
        if header.kind != Kind::DataKey {
            return Err(Error::Protocol { what: "a record that is no data key" });
        }
        let writer = vault::DataKey::decode(body)?.0.writer;
        if writer != maker.1 {
            return Ok(None);
        }
        let Some(cert) = self.trust.writer(&writer) else { return Ok(None) };
        let key = DataKey::unwrap(self.trust.vault(), body, &cert.key, &self.identity)?;
        Ok((key.id == maker.0).then_some(key))
    }

    pub(super) fn key_end(&mut self, maker: Maker, actions: &mut Vec<Action>) -> Result<()> {
        self.key_records = 0;
        let held = self.held.remove(&maker).unwrap_or_default();
        for (mut want, record) in held {
            if self.keys.contains_key(&maker) {
                self.opened(want, record, actions)?;
            } else {
                want.skip += 1;
                want.error = want.error.or_else(|| {
                    let why = "its data key is not there, or of an unknown writer".to_owned();
                    let block = want.placements.first().map_or(0, |p| p.start);
                    self.key_error.clone().or(Some(Error::Chunk { id: want.id, block, why }))
                });
                self.again(want, actions)?;
            }
        }
        Ok(())
    }
}

fn open(want: Want, record: Vec<u8>, key: &Arc<DataKey>) -> Action {
    let Want { placements, blocks, skip, .. } = want;
    Action::Open(OpenJob { record, key: Arc::clone(key), placements, blocks, skip })
}
