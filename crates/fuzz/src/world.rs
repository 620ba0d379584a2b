//! A small vault that is the same in every run: its keys, its records, and stores made of them.
//!
//! Nothing here is random: an input that names a record, a chain value or a signature means
//! the same tomorrow. What age would wrap with fresh randomness stands as fixed bytes: neither
//! store nor server opens it.

use std::sync::OnceLock;

use dormouse_crypt::seal::{DataKey, SealFor, Sealer};
use dormouse_crypt::{SigningKey, VaultSecrets, hash, record};
use dormouse_format::extents::ExtentsWriter;
use dormouse_format::geometry::top_level;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::message::Base;
use dormouse_format::point::{Grade, Point};
use dormouse_format::record::Kind;
use dormouse_format::vault::{self, Cert, Vault, VaultKeys, Volume};
use dormouse_format::{ChunkId, Hash, InstanceId, Tag, VaultId, VolumeId, WriterId};
use dormouse_store::fuzzing::MapPage;
use dormouse_store::memory::MemDir;
use dormouse_store::{Commit, Options, VaultStore};

/// The volume that is there.
pub const VOLUME: VolumeId = VolumeId([7; 16]);

/// Name of a segment's file.
pub fn segment_name(number: usize) -> String {
    format!("{number:016}.seg")
}

/// A chunk of the vault.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Its id.
    pub id: ChunkId,
    /// Its record.
    pub record: Vec<u8>,
    /// How many blocks it has.
    pub count: u8,
}

/// The vault.
#[derive(Debug)]
pub struct World {
    /// Its authority.
    pub authority: SigningKey,
    /// Two writers: the first holds the volume; both trust each other.
    pub writers: [SigningKey; 2],
    /// Its id.
    pub vault: VaultId,
    /// Digest and map key.
    pub secrets: VaultSecrets,
    /// The first writer's data key.
    pub key: DataKey,
    /// Chunks of the first writer: of 1, 3 and 64 blocks.
    pub chunks: Vec<Chunk>,
    /// Vault, certificates, vault keys, data key: what comes first in a log.
    pub bundle: Vec<Vec<u8>>,
    /// The volume's body.
    pub volume: Vec<u8>,
}

/// The vault, made once.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::new)
}

/// A block that is not zero.
pub fn block(seed: u8) -> Vec<u8> {
    (0..BLOCK_SIZE).map(|i| seed ^ (i / 64) as u8 | 1).collect()
}

impl World {
    fn new() -> Self {
        let authority = SigningKey::from_seed([1; 32]).unwrap();
        let writers = [2, 3].map(|seed| SigningKey::from_seed([seed; 32]).unwrap());
        let vault = hash::vault_id(&authority.public());
        let secrets = VaultSecrets::new(1, [4; 32], [5; 32]);
        let key = DataKey::new([6; 32]).unwrap();
        let mut world = Self {
            authority,
            writers,
            vault,
            secrets,
            key,
            chunks: Vec::new(),
            bundle: Vec::new(),
            volume: Vec::new(),
        };
        world.bundle = world.bundle();
        world.volume = world.writers[0].sign_body(&world.volume_named(VOLUME, "disk"));
        world.chunks = [1, 3, 64].into_iter().map(|n| world.chunk(n)).collect();
        world
    }

    fn chunk(&self, count: u8) -> Chunk {
        let content: Vec<u8> = (0..count).flat_map(block).collect();
        let digests: Vec<_> =
            content.chunks_exact(BLOCK_SIZE).map(|b| self.secrets.digest(b)).collect();
        let id = self.secrets.chunk_id(&digests);
        let who = SealFor {
            vault: &self.vault,
            writer: self.writers[0].writer_id(),
            key: &self.key,
            secrets: &self.secrets,
        };
        let record = Sealer::new(1).unwrap().seal(who, id, &digests, &content).unwrap();
        Chunk { id, record, count }
    }

    /// A volume of the first writer.
    pub fn volume_named(&self, id: VolumeId, name: &str) -> Volume {
        let writer = self.writers[0].writer_id();
        Volume { vault: self.vault, id, writer, created: 1, name: name.to_owned(), origin: None }
    }

    /// A writer's data key's record.
    pub fn data_key(&self, writer: usize) -> Vec<u8> {
        let signer = &self.writers[writer];
        let value = vault::DataKey {
            vault: self.vault,
            writer: signer.writer_id(),
            key: self.key.id,
            created: 1,
            wrapped: vec![1; 40],
        };
        record::plain(Kind::DataKey, value.writer, &signer.sign_body(&value))
    }

    fn bundle(&self) -> Vec<Vec<u8>> {
        let plain = |kind, body: &[u8]| record::plain(kind, WriterId::ZERO, body);
        let value =
            Vault { authority: self.authority.public(), recipient: "age1x".into(), created: 1 };
        let mut out = vec![plain(Kind::Vault, &self.authority.sign_body(&value))];
        for (writer, name) in self.writers.iter().zip(["one", "two"]) {
            let cert = Cert {
                vault: self.vault,
                key: writer.public(),
                trust_group: 1,
                issued: 1,
                name: name.to_owned(),
            };
            out.push(plain(Kind::Cert, &self.authority.sign_body(&cert)));
        }
        let keys = VaultKeys { vault: self.vault, epoch: 1, wrapped: vec![2; 40] };
        out.push(plain(Kind::VaultKeys, &self.authority.sign_body(&keys)));
        out.push(self.data_key(0));
        out
    }

    /// A tag that stands for a block of the map; no matter which.
    pub fn tag(&self, seed: u8) -> Tag {
        Tag([seed | 1; 16])
    }

    /// The content root of a volume of which only the first page is not zero.
    pub fn root(&self, size: u64, page: &MapPage) -> Hash {
        let level = top_level(size);
        let mut top = page.hash(0);
        for level in 2..=level {
            let mut children = [Hash::ZERO; 64];
            children[0] = top;
            let place = dormouse_format::geometry::Place { level, index: 0 };
            top = hash::node(place, &children);
        }
        hash::content_root(&VOLUME, size, level, &top)
    }

    /// A point of the first writer; `last` is the one before it.
    pub fn point(&self, last: Option<&Point>, size: u64, root: Hash) -> Point {
        let seq = last.map_or(1, |p| p.seq + 1);
        Point {
            vault: self.vault,
            volume: VOLUME,
            writer: self.writers[0].writer_id(),
            seq,
            generation: last.map_or(1, |p| p.generation),
            time: seq,
            size,
            grade: Grade::Settled,
            stale: false,
            checkpoint: seq,
            epoch: 1,
            prev: last.map_or(Hash::ZERO, |p| hash::point(&p.encode())),
            root,
            deltas: Hash::ZERO,
        }
    }

    /// Segments of a store with a volume and no point.
    pub fn empty(&self) -> &'static MemDir {
        static EMPTY: OnceLock<MemDir> = OnceLock::new();
        EMPTY.get_or_init(|| {
            let (dir, store) = self.create(Options::default());
            store.close().unwrap();
            dir
        })
    }

    /// Segments of a store with a checkpoint, a delta point, and small segments.
    pub fn full(&self) -> &'static MemDir {
        static FULL: OnceLock<MemDir> = OnceLock::new();
        FULL.get_or_init(|| {
            let options = Options { segment_size: 3 << 10, index_entries: 16 };
            let (dir, store) = self.create(options);
            self.commit_two(&store);
            store.close().unwrap();
            dir
        })
    }

    fn create(&self, options: Options) -> (MemDir, VaultStore) {
        let dir = MemDir::new();
        let (segments, index) = (Box::new(dir.clone()), Box::new(MemDir::new()));
        let store = VaultStore::create(segments, index, self.vault, 1, options).unwrap();
        self.bundle.iter().for_each(|r| store.put(r, 1).unwrap());
        store.create_volume(&self.volume, 1).unwrap();
        self.chunks.iter().for_each(|c| store.put(&c.record, 1).unwrap());
        (dir, store)
    }

    fn commit_two(&self, store: &VaultStore) {
        let writer = self.writers[0].writer_id();
        let g = store.open_write(&VOLUME, writer, InstanceId([1; 16]), false, 2).unwrap();
        let size = 200 * BLOCK_SIZE as u64;
        let runs = self.runs(10, 1);
        let mut page = MapPage::zero();
        page.apply(0, &runs).unwrap();
        let first = self.point(None, size, self.root(size, &page));
        let mut pending = store.begin(&VOLUME, g, Base::Checkpoint, size).unwrap();
        store.extents(&mut pending, &runs, 3).unwrap();
        let done = store.commit(pending, &self.writers[0].sign_point(first), 3).unwrap();
        assert!(matches!(done, Commit::Done(_)), "{done:?}");
        let runs = self.runs(100, 0);
        let mut pending = store.begin(&VOLUME, g, Base::Delta, size).unwrap();
        store.extents(&mut pending, &runs, 4).unwrap();
        let deltas = hash::delta(&first.root, size, &runs);
        let second =
            Point { checkpoint: first.seq, deltas, ..self.point(Some(&first), size, first.root) };
        let done = store.commit(pending, &self.writers[0].sign_point(second), 4).unwrap();
        assert!(matches!(done, Commit::Done(_)), "{done:?}");
    }

    /// Runs that give a chunk to blocks from `start` on.
    pub fn runs(&self, start: u64, chunk: usize) -> Vec<u8> {
        let chunk = &self.chunks[chunk];
        let tags: Vec<Tag> = (0..chunk.count).map(|i| self.tag(i)).collect();
        let mut out = ExtentsWriter::new();
        out.data(start, chunk.id, 0, &tags);
        out.take()
    }
}

/// The files of a directory that are segments, by name.
pub fn segments(dir: &MemDir) -> Vec<(String, Vec<u8>)> {
    (1..)
        .map(|n| (segment_name(n), dir.get(&segment_name(n))))
        .map_while(|(n, b)| Some((n, b?)))
        .collect()
}

/// All records of a log, in order.
pub fn records(dir: &MemDir) -> Vec<Vec<u8>> {
    use dormouse_format::record::{HEADER_LEN, Header};
    use dormouse_format::segment;
    let mut out = Vec::new();
    for (_, bytes) in segments(dir) {
        let mut at = segment::HEADER_LEN;
        while let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk::<HEADER_LEN>()) {
            let Ok(header) = Header::decode(head) else { break };
            out.push(bytes[at..at + header.record_len()].to_vec());
            at += header.record_len() + segment::TRAILER_LEN;
        }
    }
    out
}
