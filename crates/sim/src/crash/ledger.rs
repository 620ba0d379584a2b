//! What a server has promised, as heard on its links.
//!
//! Owns: points, generations and records that were acknowledged, and the one point in
//! doubt. Invariant: a promise counts from the instant at which the answer is given,
//! also while the server still works on the same message. Leaves to others: whether
//! the promises are kept.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use dormouse_crypt::record;
use dormouse_format::extents::{Content, Runs};
use dormouse_format::message::Message;
use dormouse_format::point::{SignedPoint, StoredPoint};
use dormouse_format::record::{Kind, split};
use dormouse_format::vault::{self, Signed};
use dormouse_format::{ChunkId, TimeNs};

use crate::source::Disk;
use crate::wire::Said;

/// A point that was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// As it was signed.
    pub signed: SignedPoint,
    /// What the server answered.
    pub receipt: Option<TimeNs>,
    /// All of it, once it was shown.
    pub stored: Option<StoredPoint>,
    /// What it must restore to.
    pub disk: Arc<Disk>,
    /// Chunks that its extents name.
    chunks: BTreeSet<ChunkId>,
}

/// Promises and doubts of a server.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The disk that the next point is of.
    pub next: Arc<Disk>,
    /// Acknowledged points, from the first on.
    pub points: Vec<Sent>,
    /// A point that was sent and not answered yet: it may be visible or not.
    pub doubt: Option<Sent>,
    /// The newest generation that was told.
    pub generation: u64,
    /// Small records in the order in which they were sent, and how many are promised.
    small: (Vec<(Kind, Vec<u8>)>, usize),
    /// The same of chunks.
    chunks: (Vec<ChunkId>, usize),
    /// All records that were sent of a chunk.
    records: HashMap<ChunkId, Vec<Vec<u8>>>,
    /// Chunks that the point under way names.
    naming: BTreeSet<ChunkId>,
    asked: Asked,
}

/// The last question, as far as its answer is a promise.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Asked {
    #[default]
    Other,
    /// All that was sent is durable when it is answered.
    Durable,
    Commit,
}

impl Ledger {
    /// Whether anything was promised.
    pub const fn has_promised(&self) -> bool {
        self.small.1 > 0
    }

    /// Small records that were promised.
    pub fn promised(&self) -> &[(Kind, Vec<u8>)] {
        &self.small.0[..self.small.1]
    }

    /// Whether this small record was ever sent.
    pub fn knows(&self, kind: Kind, bytes: &[u8]) -> bool {
        self.small.0.iter().any(|(k, b)| *k == kind && b == bytes)
    }

    /// Whether this record was sent as this chunk.
    pub fn is_of(&self, chunk: &ChunkId, record: &[u8]) -> bool {
        self.records.get(chunk).is_some_and(|all| all.iter().any(|r| r == record))
    }

    /// Chunks that were promised, or that the first `points` points name; the one in
    /// doubt counts last.
    pub fn needed(&self, points: usize) -> Vec<ChunkId> {
        let named = self.points.iter().chain(&self.doubt).take(points);
        let promised = self.chunks.0[..self.chunks.1].iter();
        let all: BTreeSet<_> = named.flat_map(|p| &p.chunks).chain(promised).copied().collect();
        all.into_iter().collect()
    }

    /// Hears what is said.
    pub fn hear(&mut self, said: Said<'_>) {
        match said {
            Said::Asked(message) => self.asked(message),
            Said::Answered(message) => self.answered(message),
        }
    }

    fn asked(&mut self, message: &Message) {
        self.asked = Asked::Other;
        match message {
            Message::Enrol { bundle, .. } => {
                bundle.iter().for_each(|record| self.put(record));
                self.asked = Asked::Durable;
            }
            Message::CreateVolume { body } => {
                let writer = vault::Volume::decode(body).unwrap().0.writer;
                self.put(&record::plain(Kind::Volume, writer, body));
                self.asked = Asked::Durable;
            }
            Message::Barrier => self.asked = Asked::Durable,
            Message::Put { record } => self.put(record),
            Message::Begin { .. } => self.naming.clear(),
            Message::Extents { runs } => {
                for run in Runs::new(runs) {
                    if let Content::Data { chunk, .. } = run.unwrap().content {
                        self.naming.insert(chunk);
                    }
                }
            }
            Message::Commit { point } => {
                let (disk, chunks) = (Arc::clone(&self.next), std::mem::take(&mut self.naming));
                let (receipt, stored) = (None, None);
                self.doubt = Some(Sent { signed: *point, receipt, stored, disk, chunks });
                self.asked = Asked::Commit;
            }
            _ => {}
        }
    }

    fn put(&mut self, record: &[u8]) {
        let (header, _) = split(record).unwrap();
        if header.kind == Kind::Chunk {
            self.chunks.0.push(header.id);
            self.records.entry(header.id).or_default().push(record.to_vec());
        } else {
            self.small.0.push((header.kind, record.to_vec()));
        }
    }

    fn answered(&mut self, message: &Message) {
        match message {
            Message::Error { .. } | Message::Missing { .. } => self.doubt = None,
            Message::Welcome { .. } | Message::Done | Message::Durable
                if self.asked == Asked::Durable =>
            {
                self.promise();
            }
            Message::Committed { receipt } => {
                let mut point = self.doubt.take().unwrap();
                point.receipt = Some(*receipt);
                self.points.push(point);
                self.promise();
            }
            Message::Opened { generation, head, checkpoint } => {
                self.generation = self.generation.max(*generation);
                head.iter().chain(checkpoint).for_each(|p| self.shown(p));
            }
            Message::Points { points } => points.iter().for_each(|p| self.shown(p)),
            _ => {}
        }
    }

    fn promise(&mut self) {
        self.small.1 = self.small.0.len();
        self.chunks.1 = self.chunks.0.len();
    }

    fn shown(&mut self, stored: &StoredPoint) {
        if let Some(point) = self.points.get_mut(stored.point().seq as usize - 1) {
            point.stored.get_or_insert(*stored);
        }
    }
}
