//! The store that is damaged: small, made by the real code, with everything in it.
//!
//! Two writers, two volumes, checkpoints and deltas, pages, nodes, a resize, a
//! takeover, a distrust, sealed segments, index runs (merged ones too), and a last
//! segment. How it ended decides what of that is on record as durable: see [`End`].
//! Invariant: it is the same for the same seed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::message::Message;
use dormouse_format::point::SignedPoint;
use dormouse_format::record::{HEADER_LEN, Header};
use dormouse_format::segment::{self, TAIL_LEN, TRAILER_LEN};
use dormouse_format::vault::Distrust;
use dormouse_format::{KeyId, PublicKey, RecordId, VolumeId};
use dormouse_store::memory::MemDir;
use dormouse_store::{Dir, Options};
use dormouse_sync::copy::{Mode, Outcome};
use dormouse_sync::server::Client;

use crate::machine::{Machine, Pool};
use crate::registry::Memory;
use crate::source::Disk;
use crate::world::{World, opened};

/// Small segments and small runs, so that there are several of each.
pub const OPTIONS: Options = Options { segment_size: 3700, index_entries: 4 };
const LARGE: u64 = 70 << 20;

/// A volume of the sample.
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// What each of its points must be.
    pub models: Vec<Disk>,
    /// The last head that its client was told of.
    pub seen: SignedPoint,
}

/// Which directory a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The segments.
    Segments,
    /// The index.
    Index,
}

/// A file of the sample.
pub type Name = (Place, String);

/// How the server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was killed behind the last commit: nothing after that says it was durable.
    Killed,
    /// It was closed: a mark says so of all before the mark.
    Closed,
}

/// A small real store.
pub struct Sample {
    /// A machine that can restore all.
    pub machine: Machine,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Its files.
    pub files: BTreeMap<Name, Vec<u8>>,
    /// Every earlier version of each file, oldest first, and of files that are gone.
    pub versions: BTreeMap<Name, Vec<Vec<u8>>>,
    clients: HashMap<PublicKey, Client>,
    pool: Arc<Pool>,
}

/// Where an entry of a segment lies, record and trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins.
    pub at: usize,
    /// Its bytes.
    pub len: usize,
}

fn block(n: u8) -> Vec<u8> {
    (0..BLOCK_SIZE).map(|i| n.wrapping_mul(31).wrapping_add((i / 512) as u8) | 1).collect()
}

struct Maker {
    world: World,
    memory: Memory,
    versions: BTreeMap<Name, Vec<Vec<u8>>>,
}

impl Maker {
    /// Notes how all files are now.
    fn note(&mut self) {
        for (name, bytes) in files(&self.memory) {
            let versions = self.versions.entry(name).or_default();
            if versions.last() != Some(&bytes) {
                versions.push(bytes);
            }
        }
    }

    /// As when the server ends.
    fn close(&mut self, machine: &Machine) {
        let vault = Arc::clone(&self.world.registry.vaults.lock().unwrap()[&machine.vault]);
        vault.close().unwrap();
        self.note();
    }

    fn copied(&mut self, done: dormouse_sync::error::Result<Outcome>) -> SignedPoint {
        self.note();
        done.unwrap().point
    }

    /// Takes the volume over and copies to it.
    fn take_over(&mut self, machine: &Machine, volume: VolumeId, disk: &Disk) -> SignedPoint {
        let mut wire = self.world.hello(machine).unwrap();
        let answer = wire.ask(&Message::OpenWrite { volume, takeover: true }).unwrap();
        let plan = disk.plan(machine, volume, opened(answer).unwrap(), Mode::Scan, None);
        let done = self.world.run_copy(machine, &mut wire, plan, disk, None);
        self.copied(done)
    }
}

fn files(memory: &Memory) -> BTreeMap<Name, Vec<u8>> {
    let of = |place: Place, dir: &MemDir| {
        let names = dir.list().unwrap();
        names.into_iter().map(|n| ((place, n.clone()), dir.get(&n).unwrap())).collect::<Vec<_>>()
    };
    let segments = of(Place::Segments, &memory.segments);
    segments.into_iter().chain(of(Place::Index, &memory.index)).collect()
}

impl Sample {
    /// Makes it.
    pub fn new(seed: u64, end: End) -> Self {
        let pool = Arc::new(Pool::committed());
        let memory = Memory::default();
        let place = Box::new(memory.clone());
        let world = World::on(seed, place, OPTIONS, Some(Arc::clone(&pool)));
        let mut m = Maker { world, memory, versions: BTreeMap::new() };
        let a = m.world.machine();
        let b = m.world.second(&a, 0);
        let v = m.world.volume(&a, "v");
        m.note();
        let (mut models, mut disk) = (Vec::new(), Disk::new(LARGE));
        for (at, n) in [(0, 1), (1, 2), (300, 3), (17_000, 4)] {
            disk.write(at, block(n));
        }
        let copy = m.world.copy(&a, v, &disk);
        m.copied(copy);
        models.push(disk.clone());
        disk.write(5, block(5));
        disk.zero(1, 1);
        let copy = m.world.copy_changes(&a, v, &disk, &[1, 5]);
        m.copied(copy);
        models.push(disk.clone());
        m.world.checkpoint(&a, v).unwrap();
        m.note();
        models.push(disk.clone());
        Self::distrust(&mut m, &a);
        m.close(&a);
        disk.resize(LARGE + 12_288);
        disk.write(17_921, block(7));
        let copy = m.world.copy(&a, v, &disk);
        m.copied(copy);
        models.push(disk.clone());
        disk.write(300, block(8));
        let seen = m.take_over(&b, v, &disk);
        models.push(disk.clone());
        let first = Volume { id: v, models, seen };

        let w = m.world.volume(&b, "w");
        let mut disk = Disk::new(5 << 20);
        let mut models = Vec::new();
        let mut seen = None;
        for round in 0..2_u8 {
            (0..3).for_each(|i| disk.write(u64::from(i) * 256, block(20 + 3 * round + i)));
            let copy = m.world.copy(&b, w, &disk);
            seen = Some(m.copied(copy));
            models.push(disk.clone());
        }
        disk.write(9, block(40));
        let copy = m.world.copy_changes(&b, w, &disk, &[9]);
        seen = Some(m.copied(copy)).or(seen);
        models.push(disk);
        if end == End::Closed {
            m.close(&a);
        }
        let second = Volume { id: w, models, seen: seen.unwrap() };

        let clients = m.world.registry.clients.lock().unwrap().clone();
        let files = files(&m.memory);
        let mut versions = m.versions;
        for (name, all) in &mut versions {
            all.retain(|old| files.get(name) != Some(old));
        }
        let volumes = vec![first, second];
        Self { machine: a, volumes, files, versions, clients, pool }
    }

    /// Has a machine distrust a chunk that nothing refers to.
    fn distrust(m: &mut Maker, machine: &Machine) {
        let (vault, by) = (machine.vault, machine.writer());
        let chunk = RecordId([7; 16]);
        let value = Distrust { vault, chunk, maker: by, key: KeyId([9; 16]), by };
        let body = machine.signer.sign_body(&value);
        let mut wire = m.world.hello(machine).unwrap();
        wire.ask(&Message::Distrust { body }).unwrap();
        m.note();
    }

    /// A server on these files, whose vault is not opened yet.
    pub fn world(&self, files: &BTreeMap<Name, Vec<u8>>) -> (World, Memory) {
        let memory = Memory::default();
        for ((place, name), bytes) in files {
            let dir = match place {
                Place::Segments => &memory.segments,
                Place::Index => &memory.index,
            };
            dir.set(name, bytes.clone());
        }
        let pool = Some(Arc::clone(&self.pool));
        let mut world = World::on(1, Box::new(memory.clone()), OPTIONS, pool);
        world.now = 1 << 50;
        *world.registry.clients.lock().unwrap() = self.clients.clone();
        (world, memory)
    }

    /// Files of one place, by name.
    pub fn names(&self, place: Place) -> Vec<&Name> {
        self.files.keys().filter(|(p, _)| *p == place).collect()
    }

    /// The last segment.
    pub fn last(&self) -> &Name {
        self.names(Place::Segments).pop().unwrap()
    }

    /// What is in it, by kind of record and in words.
    pub fn content(&self) -> BTreeSet<&'static str> {
        let segments = self.names(Place::Segments).into_iter();
        let kinds = segments.flat_map(|name| {
            let bytes = &self.files[name];
            entries(bytes).into_iter().map(|e| header(bytes, e.at).unwrap().kind.name())
        });
        kinds.collect()
    }
}

fn header(bytes: &[u8], at: usize) -> Option<Header> {
    Header::decode(bytes.get(at..)?.first_chunk::<HEADER_LEN>()?).ok()
}

/// The entries of a whole segment.
pub fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut all = Vec::new();
    let mut at = segment::HEADER_LEN;
    while let Some(header) = header(bytes, at) {
        let len = header.record_len() + TRAILER_LEN;
        all.push(Entry { at, len });
        at += len;
    }
    debug_assert!(at == bytes.len() || at + TAIL_LEN == bytes.len());
    all
}
