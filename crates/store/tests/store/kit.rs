//! A vault with two writers, made-up chunks, and a naive map.

use std::collections::BTreeMap;
use std::ops::Bound;

use dormouse_crypt::{SigningKey, hash, record};
use dormouse_format::delta;
use dormouse_format::extents::{Content, ExtentsWriter, Runs};
use dormouse_format::geometry::{Place, blocks, top_level};
use dormouse_format::point::{Grade, Point};
use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::vault::{Cert, DataKey, Vault, Volume};
use dormouse_format::{
    Block, ChunkId, Hash, KeyId, RecordId, Seq, Tag, VaultId, VolumeId, WriterId,
};
use dormouse_store::memory::MemDir;
use dormouse_store::{Base, Commit, Dir, Options, Recovery, Result, SignedPoint, VaultStore};

pub type Slot = (Tag, ChunkId, u8);
pub type Map = BTreeMap<Block, Slot>;

pub struct Kit {
    pub authority: SigningKey,
    pub writers: Vec<SigningKey>,
    pub vault: VaultId,
    pub segments: MemDir,
    pub index: MemDir,
    pub options: Options,
}

pub const VOLUME: VolumeId = VolumeId([7; 16]);

pub fn fill<const N: usize>(seed: u64) -> [u8; N] {
    let mut out = [0; N];
    for (i, part) in out.chunks_mut(16).enumerate() {
        let h = hash::plain_id(99, &[seed.to_le_bytes(), (i as u64).to_le_bytes()].concat());
        part.copy_from_slice(&h.0[..part.len()]);
    }
    out
}

pub fn chunk_of(seed: u64) -> ChunkId {
    RecordId(fill(seed))
}

/// A record that looks like a sealed chunk; the store cannot tell.
pub fn chunk(id: ChunkId, writer: WriterId, key: KeyId, count: u8, len: usize) -> Vec<u8> {
    let body = vec![id.0[0]; len];
    let mut header = Header {
        kind: Kind::Chunk,
        count,
        body_len: len as u32,
        epoch: 1,
        id,
        writer,
        key,
        nonce: [1; 12],
        body_check: hash::body_check(&body),
        check: [0; 16],
    };
    header.check = hash::header_check(&header.encode()[..96]);
    [&header.encode()[..], &body].concat()
}

impl Kit {
    pub fn new(segment_size: u64, index_entries: usize) -> Self {
        let authority = SigningKey::from_seed([1; 32]).unwrap();
        let writers = (2..5).map(|i| SigningKey::from_seed([i; 32]).unwrap()).collect();
        let vault = hash::vault_id(&authority.public());
        let (segments, index) = (MemDir::new(), MemDir::new());
        let options = Options { segment_size, index_entries };
        Self { authority, writers, vault, segments, index, options }
    }

    pub fn writer(&self, i: usize) -> WriterId {
        self.writers[i].writer_id()
    }

    pub fn key(&self, i: usize) -> KeyId {
        KeyId([100 + i as u8; 16])
    }

    pub fn chunk(&self, i: usize, seed: u64) -> Vec<u8> {
        chunk(chunk_of(seed), self.writer(i), self.key(i), 64, 40 + (seed % 50) as usize)
    }

    pub fn data_key(&self, i: usize) -> Vec<u8> {
        let (vault, writer, key) = (self.vault, self.writer(i), self.key(i));
        let value = DataKey { vault, writer, key, created: 1, wrapped: vec![1] };
        record::plain(Kind::DataKey, writer, &self.writers[i].sign_body(&value))
    }

    /// Vault, certificates (writers 0 and 1 in a group, 2 alone), data keys.
    pub fn bundle(&self) -> Vec<Vec<u8>> {
        let authority = self.authority.public();
        let value = Vault { authority, recipient: "age1x".into(), created: 1 };
        let body = self.authority.sign_body(&value);
        let mut out = vec![record::plain(Kind::Vault, WriterId::ZERO, &body)];
        for (i, w) in self.writers.iter().enumerate() {
            let (vault, key) = (self.vault, w.public());
            let trust_group = u32::from(i < 2);
            let cert = Cert { vault, key, trust_group, issued: 1, name: format!("w{i}") };
            let body = self.authority.sign_body(&cert);
            out.push(record::plain(Kind::Cert, WriterId::ZERO, &body));
            out.push(self.data_key(i));
        }
        out
    }

    pub fn volume_body(&self, id: VolumeId, name: &str) -> Vec<u8> {
        let (vault, writer) = (self.vault, self.writer(0));
        self.writers[0].sign_body(&Volume {
            vault,
            id,
            writer,
            created: 1,
            name: name.into(),
            origin: None,
        })
    }

    pub fn boxes(&self) -> (Box<dyn Dir>, Box<dyn Dir>) {
        (Box::new(self.segments.clone()), Box::new(self.index.clone()))
    }

    pub fn create(&self) -> VaultStore {
        let (segments, index) = self.boxes();
        self.create_on(segments, index)
    }

    pub fn create_on(&self, segments: Box<dyn Dir>, index: Box<dyn Dir>) -> VaultStore {
        let store = VaultStore::create(segments, index, self.vault, 1, self.options).unwrap();
        self.bundle().iter().for_each(|r| store.put(r, 1).unwrap());
        store.create_volume(&self.volume_body(VOLUME, "disk"), 1).unwrap();
        store
    }

    pub fn try_open(&self) -> Result<(VaultStore, Recovery)> {
        let (segments, index) = self.boxes();
        VaultStore::open(segments, index, self.vault, self.options)
    }

    pub fn open(&self) -> (VaultStore, Recovery) {
        self.try_open().unwrap()
    }

    /// A signed point that follows the head.
    pub fn point(&self, store: &VaultStore, plan: &Plan) -> SignedPoint {
        let head = store.head(&VOLUME).unwrap();
        let seq = head.map_or(1, |h| h.point().seq + 1);
        let (checkpoint, root, deltas) = match plan.checkpoint {
            None => (seq, plan.hash, Hash::ZERO),
            Some((c, root)) => (c, root, plan.hash),
        };
        self.writers[0].sign_point(Point {
            vault: self.vault,
            volume: VOLUME,
            writer: self.writer(0),
            seq,
            generation: plan.generation,
            time: seq,
            size: plan.size,
            grade: Grade::Settled,
            stale: false,
            checkpoint,
            epoch: 1,
            prev: head.map_or(Hash::ZERO, |h| hash::point(&h.point().encode())),
            root,
            deltas,
        })
    }
}

/// What a point says beyond what follows from the head.
pub struct Plan {
    pub generation: u64,
    pub size: u64,
    /// For a delta point: the checkpoint and its root.
    pub checkpoint: Option<(Seq, Hash)>,
    /// Content root, or running hash.
    pub hash: Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Data { start: Block, count: u8, seed: u64 },
    Zero { start: Block, count: u64 },
}

impl Change {
    pub fn span(&self) -> (Block, Block) {
        match *self {
            Self::Data { start, count, .. } => (start, start + u64::from(count)),
            Self::Zero { start, count } => (start, start + count),
        }
    }

    fn tags(&self) -> Vec<Tag> {
        let Self::Data { start, count, seed } = *self else { return Vec::new() };
        (0..u64::from(count)).map(|i| Tag(fill((start + i) << 8 | seed))).collect()
    }
}

/// Sorted, without overlaps, data within the size.
pub fn tidy(mut changes: Vec<Change>, size: u64) -> Vec<Change> {
    changes.sort_by_key(Change::span);
    let mut end = 0;
    changes.retain(|c| {
        let (from, to) = c.span();
        let fits = from >= end && (to <= blocks(size) || matches!(c, Change::Zero { .. }));
        end = if fits { to } else { end };
        fits
    });
    changes
}

pub fn runs(changes: &[Change]) -> Vec<u8> {
    let mut w = ExtentsWriter::new();
    for c in changes {
        match *c {
            Change::Zero { start, count } => w.zero(start, count),
            Change::Data { start, seed, .. } => w.data(start, chunk_of(seed), 3, &c.tags()),
        }
    }
    w.take()
}

pub fn clear(map: &mut Map, from: Block, to: Block) {
    let range = (Bound::Included(from), Bound::Excluded(to.max(from + 1)));
    if from < to {
        let keys: Vec<_> = map.range(range).map(|(k, _)| *k).collect();
        keys.iter().for_each(|k| {
            map.remove(k);
        });
    }
}

pub fn apply(map: &mut Map, changes: &[Change], size: u64) {
    clear(map, blocks(size), Block::MAX);
    for c in changes {
        let (from, to) = c.span();
        clear(map, from, to);
        if let Change::Data { start, seed, .. } = *c {
            for (i, tag) in c.tags().into_iter().enumerate() {
                map.insert(start + i as u64, (tag, chunk_of(seed), 3 + i as u8));
            }
        }
    }
}

/// Hash of the top node, the slow and plain way.
pub fn top(map: &Map, size: u64) -> Hash {
    let mut level: BTreeMap<u64, Hash> = BTreeMap::new();
    let mut leaves: BTreeMap<u64, [Tag; 256]> = BTreeMap::new();
    for (block, slot) in map {
        leaves.entry(block / 256).or_insert([Tag::ZERO; 256])[(block % 256) as usize] = slot.0;
    }
    for (index, tags) in &leaves {
        level.insert(*index, hash::leaf(*index, tags));
    }
    for l in 1..=top_level(size) {
        let mut above: BTreeMap<u64, [Hash; 64]> = BTreeMap::new();
        for (index, h) in &level {
            above.entry(index / 64).or_insert([Hash::ZERO; 64])[(index % 64) as usize] = *h;
        }
        let node = |(index, c): (&u64, &[Hash; 64])| {
            (*index, hash::node(Place { level: l, index: *index }, c))
        };
        level = above.iter().map(node).collect();
    }
    level.get(&0).copied().unwrap_or(Hash::ZERO)
}

pub fn root(map: &Map, size: u64) -> Hash {
    hash::content_root(&VOLUME, size, top_level(size), &top(map, size))
}

/// The blocks that runs name.
pub fn decode(bytes: &[u8]) -> Map {
    let mut map = Map::new();
    for run in Runs::new(bytes) {
        let run = run.unwrap();
        match run.content {
            Content::Data { chunk, first, tags } => {
                for (i, tag) in tags.iter().enumerate() {
                    map.insert(run.start + i as u64, (tag, chunk, first + i as u8));
                }
            }
            Content::Tags(tags) => {
                for (i, tag) in tags.iter().enumerate() {
                    map.insert(run.start + i as u64, (tag, ChunkId::ZERO, 0));
                }
            }
            Content::Zero => panic!("zeros are not named"),
        }
    }
    map
}

/// Puts the chunks that are not there yet.
pub fn put_chunks(kit: &Kit, store: &VaultStore, changes: &[Change]) {
    for c in changes {
        if let Change::Data { seed, .. } = c
            && !store.have(&kit.writer(0), &[chunk_of(*seed)], false).unwrap()[0]
        {
            store.put(&kit.chunk(0, *seed), 1).unwrap();
        }
    }
}

/// A checkpoint with these changes on the last one's map.
pub fn checkpoint(kit: &Kit, store: &VaultStore, g: u64, map: &mut Map, size: u64, c: &[Change]) {
    put_chunks(kit, store, c);
    apply(map, c, size);
    let mut pending = store.begin(&VOLUME, g, Base::Checkpoint, size).unwrap();
    store.extents(&mut pending, &runs(c), 1).unwrap();
    let plan = Plan { generation: g, size, checkpoint: None, hash: root(map, size) };
    let done = store.commit(pending, &kit.point(store, &plan), 5).unwrap();
    assert!(matches!(done, Commit::Done(_)), "{done:?}");
}

/// A delta point with these changes.
pub fn delta_point(kit: &Kit, store: &VaultStore, g: u64, map: &mut Map, size: u64, c: &[Change]) {
    put_chunks(kit, store, c);
    apply(map, c, size);
    let head = *store.head(&VOLUME).unwrap().unwrap().point();
    let before = if head.is_checkpoint() { head.root } else { head.deltas };
    let mut pending = store.begin(&VOLUME, g, Base::Delta, size).unwrap();
    store.extents(&mut pending, &runs(c), 1).unwrap();
    let hash = hash::delta(&before, size, &runs(c));
    let plan = Plan { generation: g, size, checkpoint: Some((head.checkpoint, head.root)), hash };
    let done = store.commit(pending, &kit.point(store, &plan), 5).unwrap();
    assert!(matches!(done, Commit::Done(_)), "{done:?}");
}

/// Replays the deltas of a point on its checkpoint's map and checks their hash.
pub fn replay(store: &VaultStore, point: &Point, maps: &BTreeMap<Seq, (Map, u64)>) -> Map {
    let mut map = maps[&point.checkpoint].0.clone();
    let mut running = point.root;
    for at in store.deltas(&VOLUME, point.seq).unwrap() {
        let record = store.read(&at).unwrap();
        let (prefix, runs) = delta::decode(&record[HEADER_LEN..]).unwrap();
        running = hash::delta(&running, prefix.size, runs);
        clear(&mut map, blocks(prefix.size), Block::MAX);
        for run in Runs::new(runs) {
            let run = run.unwrap();
            clear(&mut map, run.start, run.end());
            if let Content::Data { chunk, first, tags } = run.content {
                for (i, tag) in tags.iter().enumerate() {
                    map.insert(run.start + i as u64, (tag, chunk, first + i as u8));
                }
            }
        }
    }
    assert!(point.is_checkpoint() || running == point.deltas, "running hash");
    map
}
