//! Chunks are asked for, asked for again, opened and proved: what a restore and a reader share.
//!
//! Invariant: a chunk is opened with the key of its own writer, checked under that writer's
//! certificate. A record that does not hold hides no other of the same id. Leaves to others:
//! which chunks, how many at a time, and the order of answers ([`crate::fetch`], [`crate::read`]).

use std::collections::HashMap;
use std::sync::Arc;

use dormouse_crypt::seal::{DataKey, Opener};
use dormouse_crypt::{Identity, VaultSecrets, record};
use dormouse_format::limits::{BLOCK_SIZE, CHUNK_TRIES_MAX, SMALL_ANSWER_MAX};
use dormouse_format::message::Message;
use dormouse_format::record::{Kind, split};
use dormouse_format::seeded::seeded;
use dormouse_format::vault::{self, Signed};
use dormouse_format::{Block, ChunkId, KeyId, RecordId, Tag, VolumeId, WriterId};

use crate::error::{Error, Result};
use crate::history::Trust;
use crate::map::Entry;

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

impl Placement {
    /// Adds a block to the last of `placements`, or begins another one with it.
    pub(crate) fn add(placements: &mut Vec<Self>, block: Block, entry: &Entry) {
        if let Some(last) = placements.last_mut() {
            let n = last.tags.len();
            let index = usize::from(last.first) + n;
            if last.start + n as u64 == block && index == usize::from(entry.index) {
                last.tags.push(entry.tag);
                return;
            }
        }
        placements.push(Self { start: block, first: entry.index, tags: vec![entry.tag] });
    }
}

/// Writes bytes at a byte address.
pub type Write<'a, E> = &'a mut dyn FnMut(u64, &[u8]) -> core::result::Result<(), E>;

/// A chunk to open and to write.
#[derive(Debug)]
pub struct OpenJob {
    /// Which.
    pub(crate) id: ChunkId,
    /// Its record.
    pub record: Vec<u8>,
    /// The key that sealed it.
    pub key: Arc<DataKey>,
    /// Where its blocks go.
    pub placements: Vec<Placement>,
    /// Blocks that this job counts for.
    pub blocks: u64,
    /// How many other records of the chunk did not hold before this one.
    pub(crate) skip: u8,
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

/// A chunk that is wanted.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) id: ChunkId,
    pub(crate) placements: Vec<Placement>,
    pub(crate) blocks: u64,
    pub(crate) skip: u8,
    /// Why the record before did not hold.
    pub(crate) error: Option<Error>,
}

impl Want {
    /// A chunk that nothing is wanted of yet.
    pub(crate) const fn new(id: ChunkId) -> Self {
        Self { id, placements: Vec::new(), blocks: 0, skip: 0, error: None }
    }

    fn first(&self) -> Block {
        self.placements.first().map_or(0, |p| p.start)
    }

    /// The chunk cannot be had: what was wrong first counts most.
    pub(crate) fn fault(&self, why: &str) -> Error {
        let why = self.error.as_ref().map_or_else(|| why.to_owned(), Error::to_string);
        Error::Chunk { id: self.id, block: self.first(), why }
    }
}

/// A data key, and the writer that sealed with it.
pub(crate) type Maker = (KeyId, WriterId);

/// A question that is open.
#[derive(Debug)]
pub(crate) enum Asked {
    Chunk(Want),
    Key(Maker),
}

/// What comes of an answer.
#[derive(Debug)]
pub(crate) enum Next {
    /// One more question.
    Ask(Message, Asked),
    /// A chunk to open.
    Open(OpenJob),
    /// A chunk that cannot be had.
    Lost(Want, Error),
}

/// Gets chunks and the keys that open them.
pub(crate) struct Chunks {
    trust: Arc<Trust>,
    identity: Arc<Identity>,
    /// Whose records are preferred.
    writer: WriterId,
    /// By key and writer: another writer can put a copy of a wrapped key under its own name.
    keys: HashMap<Maker, Arc<DataKey>>,
    key_error: Option<Error>,
    key_records: u32,
    held: HashMap<Maker, Vec<(Want, Vec<u8>)>>,
}

impl Chunks {
    pub(crate) fn new(trust: Arc<Trust>, identity: Arc<Identity>, writer: WriterId) -> Self {
        let (keys, held) = (HashMap::new(), HashMap::new());
        Self { trust, identity, writer, keys, key_error: None, key_records: 0, held }
    }

    /// Whether no chunk waits for its key.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// The question for chunks whose first record is wanted, or the one after `skip` others.
    pub(crate) const fn question(&self, skip: u8, ids: Vec<ChunkId>) -> Message {
        Message::GetChunks { writer: self.writer, skip, ids }
    }

    /// The question for a data key.
    pub(crate) fn key_question(maker: &Maker) -> Message {
        Message::GetSmall { kind: Kind::DataKey, ids: vec![RecordId(maker.0.0)] }
    }

    /// Whether these bytes are a record of the chunk that was asked for.
    pub(crate) fn check(want: &Want, bytes: &[u8]) -> Result<()> {
        let (header, _) = split(bytes)?;
        if header.id != want.id || header.kind != Kind::Chunk {
            return Err(Error::Protocol { what: "another chunk than the one asked for" });
        }
        Ok(())
    }

    /// Takes a record that was checked: opens it, or asks for its key first.
    pub(crate) fn record(
        &mut self,
        want: Want,
        bytes: Vec<u8>,
        next: &mut Vec<Next>,
    ) -> Result<()> {
        let (header, _) = split(&bytes)?;
        let maker = (header.key, header.writer);
        match self.keys.get(&maker) {
            Some(key) => next.push(Next::Open(open(want, bytes, key))),
            None => {
                let held = self.held.entry(maker).or_default();
                if held.is_empty() {
                    next.push(Next::Ask(Self::key_question(&maker), Asked::Key(maker)));
                }
                held.push((want, bytes));
            }
        }
        Ok(())
    }

    /// The server has no record of it, or no more.
    pub(crate) fn absent(want: Want) -> Next {
        let fault = want.fault("the server does not have it, or only damaged");
        Next::Lost(want, fault)
    }

    /// Another record of the same chunk may hold: anybody who writes to the vault can
    /// put a bad one under any id.
    pub(crate) fn broken(&self, job: OpenJob, error: Error) -> Next {
        let OpenJob { id, placements, blocks, skip, .. } = job;
        self.again(Want { id, placements, blocks, skip: skip + 1, error: Some(error) })
    }

    fn again(&self, want: Want) -> Next {
        if want.skip > CHUNK_TRIES_MAX {
            let fault = want.fault("no record of it holds");
            return Next::Lost(want, fault);
        }
        Next::Ask(self.question(want.skip, vec![want.id]), Asked::Chunk(want))
    }

    /// Takes a record that may hold the key.
    pub(crate) fn key(&mut self, maker: Maker, bytes: &[u8]) -> Result<()> {
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

    /// All records that may hold the key were taken.
    pub(crate) fn key_end(&mut self, maker: Maker, next: &mut Vec<Next>) -> Result<()> {
        self.key_records = 0;
        for (mut want, record) in self.held.remove(&maker).unwrap_or_default() {
            if self.keys.contains_key(&maker) {
                self.record(want, record, next)?;
            } else {
                want.skip += 1;
                let error = want.error.take();
                want.error = error.or_else(|| {
                    let why = "its data key is not there, or of an unknown writer".to_owned();
                    let lost = Error::Chunk { id: want.id, block: want.first(), why };
                    self.key_error.clone().or(Some(lost))
                });
                next.push(self.again(want));
            }
        }
        Ok(())
    }

    /// The answer about a key is none: what waits for it is lost.
    pub(crate) fn key_lost(&mut self, maker: &Maker) -> Vec<Want> {
        self.key_records = 0;
        let held = self.held.remove(maker).unwrap_or_default();
        held.into_iter().map(|(want, _)| want).collect()
    }

    /// Who is certified now.
    pub(crate) fn trust(&mut self, trust: Arc<Trust>) {
        self.trust = trust;
    }

    /// The question about a key is asked once more, from its beginning.
    pub(crate) const fn key_again(&mut self) {
        self.key_records = 0;
    }
}

fn open(want: Want, record: Vec<u8>, key: &Arc<DataKey>) -> OpenJob {
    let Want { id, placements, blocks, skip, .. } = want;
    OpenJob { id, record, key: Arc::clone(key), placements, blocks, skip }
}
