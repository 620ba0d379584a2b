//! Sequences of operations, and how they are played on a real server and client.
//!
//! Owns: what each operation does to the source disk and says on links. Invariant: the
//! same sequence and the same pass say the same, byte for byte. Leaves to others:
//! when the machine crashes ([`super::watch`]).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::message::{Base, Message, Refusal};
use dormouse_format::{Block, PublicKey, VolumeId, geometry};
use dormouse_store::Options;
use dormouse_sync::error::Error;
use dormouse_sync::server::{Client, Role};

use super::watch::Probe;
use crate::machine::{Machine, Pool};
use crate::random::Lcg;
use crate::source::Disk;
use crate::storage::{INDEX, Storage};
use crate::world::World;
use dormouse_crypt::Random as _;

/// What a sequence is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it does")]
pub enum Operation {
    Write,
    Overwrite,
    Zero,
    Commit,
    Resize,
    Reconnect,
    Takeover,
    Checkpoint,
    IndexLoss,
}

use Operation as O;

/// All operations and their names.
const OPERATIONS: [(Operation, &str); 9] = [
    (O::Write, "write"),
    (O::Overwrite, "overwrite"),
    (O::Zero, "zero"),
    (O::Commit, "commit"),
    (O::Resize, "resize"),
    (O::Reconnect, "reconnect"),
    (O::Takeover, "takeover"),
    (O::Checkpoint, "checkpoint"),
    (O::IndexLoss, "index-loss"),
];

/// The longest sequence.
const LENGTH_MAX: u32 = 3;

/// Operations in order; the empty sequence is the making of the vault, of its volume and
/// of its first two points, which the others begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence(pub Vec<Operation>);

impl Sequence {
    /// Every sequence of up to three operations, the empty one first.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self(Vec::new())];
        for length in 1..=LENGTH_MAX {
            for n in 0..9_usize.pow(length) {
                let digit = |i| OPERATIONS[n / 9_usize.pow(i) % 9].0;
                all.push(Self((0..length).rev().map(digit).collect()));
            }
        }
        all
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |o: &Operation| OPERATIONS.iter().find(|(p, _)| o == p).unwrap().1;
        let names: Vec<_> = self.0.iter().map(name).collect();
        f.write_str(if names.is_empty() { "setup" } else { "" })?;
        f.write_str(&names.join("+"))
    }
}

impl FromStr for Sequence {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "setup" {
            return Ok(Self(Vec::new()));
        }
        let one = |part: &str| {
            let found = OPERATIONS.iter().find(|(_, name)| *name == part).map(|(o, _)| *o);
            found.ok_or_else(|| format!("no operation is named '{part}'"))
        };
        text.split('+').map(one).collect::<Result<_, _>>().map(Self)
    }
}

/// The keys, the volume and the server's manner, fixed before anything is played.
pub struct Scene {
    /// Where data keys come from.
    pub pool: Arc<Pool>,
    /// How the store is run.
    pub options: Options,
    /// The machine that copies, and another one of its vault.
    pub machines: [Machine; 2],
    /// The volume, and the body of its record.
    pub volume: (VolumeId, Vec<u8>),
    /// The server's clients, once they have joined.
    pub clients: HashMap<PublicKey, Client>,
}

impl Scene {
    /// The scene of a seed. Segments and index are small, so that seals, new segments and
    /// merged runs fall into every sequence, each time elsewhere.
    pub fn new(pool: Arc<Pool>, random: &mut Lcg) -> Self {
        let first = Machine::new(random, Some(Arc::clone(&pool)));
        let second = first.second(random);
        let volume = first.volume(random, "disk", 1);
        let client = |m: &Machine| {
            let (name, vault, writer) = ("laptop".into(), m.vault, m.writer());
            (m.transport, Client { name, vault, writer, role: Role::Writer, revoked: false })
        };
        let clients = [client(&first), client(&second)].into();
        let segment_size = 1024 + random.below(8) * random.below(1100);
        let index_entries = 1 + random.below(6) as usize;
        let options = Options { segment_size, index_entries };
        Self { pool, options, machines: [first, second], volume, clients }
    }

    /// A world with these clients, on this disk.
    pub fn world(&self, storage: &Storage, seed: u64) -> World {
        let (place, pool) = (Box::new(storage.clone()), Arc::clone(&self.pool));
        let world = World::on(seed, place, self.options, Some(pool));
        world.registry.clients.lock().unwrap().clone_from(&self.clients);
        world
    }
}

/// Blocks that are written: at both ends of leaves and pages, and beside one another.
const PLACES: [Block; 14] =
    [0, 1, 2, 5, 254, 255, 256, 300, 301, 16_383, 16_384, 16_385, 20_000, 24_575];
/// Bytes of the volume at first: one page and a half.
const SIZE: u64 = 24_576 * BLOCK_SIZE as u64;

/// A block that compresses to little.
pub fn content(random: &mut Lcg) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    random.fill(&mut block[..64]);
    block
}

/// A player of one sequence.
pub struct Player<'a> {
    scene: &'a Scene,
    probe: Arc<Mutex<Probe>>,
    storage: Storage,
    world: World,
    disk: Disk,
    dirty: BTreeSet<Block>,
    resized: bool,
    random: Lcg,
}

type Step = Result<(), String>;

fn told(error: Error) -> String {
    format!("an operation failed without a fault: {error}")
}

impl<'a> Player<'a> {
    /// A player on an empty disk.
    pub fn new(scene: &'a Scene, probe: &Arc<Mutex<Probe>>, storage: Storage, random: Lcg) -> Self {
        let mut world = scene.world(&storage, random.0);
        let heard = Arc::clone(probe);
        world.ear = Some(Arc::new(move |said| heard.lock().unwrap().ledger.hear(said)));
        let (probe, disk, dirty) = (Arc::clone(probe), Disk::new(SIZE), BTreeSet::new());
        Self { scene, probe, storage, world, disk, dirty, resized: false, random }
    }

    /// Makes the vault, the volume, and a checkpoint with a delta point.
    pub fn set_up(&mut self) -> Step {
        let [first, second] = &self.scene.machines;
        let records = first.vault_records(self.world.now);
        self.world.enrol(first, 1, &records).map_err(told)?;
        self.world.enrol(second, 1, &[]).map_err(told)?;
        let mut wire = self.world.hello(first).map_err(told)?;
        let body = self.scene.volume.1.clone();
        wire.ask(&Message::CreateVolume { body }).map_err(told)?;
        for block in [0, 1, 255, 256, 16_384] {
            self.disk.write(block, content(&mut self.random));
        }
        self.scan(0)?;
        self.write(5);
        self.write(255);
        self.commit()
    }

    /// Plays the operations; at the end nothing is dirty.
    pub fn play(&mut self, sequence: &Sequence) -> Step {
        for operation in &sequence.0 {
            self.world.ends = self.random.below(2) == 0;
            self.operation(*operation)?;
        }
        if self.is_dirty() { self.commit() } else { Ok(()) }
    }

    fn operation(&mut self, operation: Operation) -> Step {
        match operation {
            Operation::Write => {
                let free = |b: &Block| !self.disk.blocks.contains_key(b);
                self.write_one(free_or_used(&self.places(), free));
            }
            Operation::Overwrite => {
                let used = |b: &Block| self.disk.blocks.contains_key(b);
                self.write_one(free_or_used(&self.places(), used));
            }
            Operation::Zero => {
                let used: Vec<_> = self.disk.blocks.keys().copied().collect();
                if let Some(block) = self.pick(&used) {
                    self.disk.zero(block, 1);
                    self.dirty.insert(block);
                }
            }
            Operation::Commit => return self.commit(),
            Operation::Resize => self.resize(),
            Operation::Reconnect => return self.reconnect(),
            Operation::Takeover => return self.take_over(),
            Operation::Checkpoint => return self.checkpoint(),
            Operation::IndexLoss => {
                self.world.registry.forget();
                self.storage.alter(|image| image.clear(INDEX));
                let vault = self.scene.machines[0].vault;
                self.world.registry.reopen(vault).map_err(|e| format!("no index: {e}"))?;
            }
        }
        Ok(())
    }

    fn places(&self) -> Vec<Block> {
        let end = geometry::blocks(self.disk.size);
        PLACES.iter().copied().filter(|b| *b < end).collect()
    }

    fn pick(&mut self, of: &[Block]) -> Option<Block> {
        let n = self.random.below(of.len().max(1) as u64) as usize;
        of.get(n).copied()
    }

    fn write_one(&mut self, of: Vec<Block>) {
        if let Some(block) = self.pick(&of) {
            self.write(block);
        }
    }

    fn write(&mut self, block: Block) {
        self.disk.write(block, content(&mut self.random));
        self.dirty.insert(block);
    }

    fn is_dirty(&self) -> bool {
        self.resized || !self.dirty.is_empty()
    }

    fn resize(&mut self) {
        let sizes = [SIZE, SIZE / 2, SIZE + (40 << 20), 300 << 12, SIZE - BLOCK_SIZE as u64];
        let others: Vec<_> = sizes.into_iter().filter(|s| *s != self.disk.size).collect();
        let size = others[self.random.below(others.len() as u64) as usize];
        let old = self.disk.size;
        self.disk.resize(size);
        let (old, end) = (geometry::blocks(old), geometry::blocks(size));
        self.dirty.retain(|b| *b < end);
        // The old last block, the new one, and the grown range as far as it ever had data.
        self.dirty.extend([old.min(end) - 1, end - 1]);
        self.dirty.extend(PLACES.iter().filter(|b| (old..end).contains(*b)));
        self.resized = true;
    }

    /// Says which disk the next point is of.
    fn announce(&self, disk: &Disk) {
        self.probe.lock().unwrap().ledger.next = Arc::new(disk.clone());
    }

    fn commit(&mut self) -> Step {
        self.announce(&self.disk);
        let changed: Vec<_> = self.dirty.iter().copied().collect();
        let machine = &self.scene.machines[0];
        let volume = self.scene.volume.0;
        self.world.copy_changes(machine, volume, &self.disk, &changed).map_err(told)?;
        self.clean();
        Ok(())
    }

    fn clean(&mut self) {
        self.dirty.clear();
        self.resized = false;
    }

    fn scan(&mut self, machine: usize) -> Step {
        self.announce(&self.disk);
        let (machine, volume) = (&self.scene.machines[machine], self.scene.volume.0);
        self.world.copy(machine, volume, &self.disk).map_err(told)?;
        self.clean();
        Ok(())
    }

    fn checkpoint(&mut self) -> Step {
        if self.is_dirty() {
            return self.scan(0);
        }
        self.announce(&self.disk);
        let (machine, volume) = (&self.scene.machines[0], self.scene.volume.0);
        self.world.checkpoint(machine, volume).map(drop).map_err(told)
    }

    /// A copy whose link is cut, what arrived made durable by another link, and the copy
    /// once more.
    fn reconnect(&mut self) -> Step {
        if self.dirty.is_empty() {
            self.operation(Operation::Write)?;
        }
        self.announce(&self.disk);
        let (machine, volume) = (&self.scene.machines[0], self.scene.volume.0);
        let changed: Vec<_> = self.dirty.iter().copied().collect();
        self.world.cut_after = Some(2 + self.random.below(6));
        let cut = self.world.copy_changes(machine, volume, &self.disk, &changed);
        self.world.cut_after = None;
        match cut {
            Ok(_) | Err(Error::Protocol { what: "cut" }) => {}
            Err(error) => return Err(told(error)),
        }
        if self.random.below(2) == 0 {
            let mut wire = self.world.hello(machine).map_err(told)?;
            wire.ask(&Message::Barrier).map_err(told)?;
        }
        self.commit()
    }

    /// Another machine takes the volume over and copies; what the first one sends on its
    /// old link is refused; it takes the volume back.
    fn take_over(&mut self) -> Step {
        let [first, _] = &self.scene.machines;
        let volume = self.scene.volume.0;
        let mut old = self.world.hello(first).map_err(told)?;
        self.world.open(&mut old, volume).map_err(told)?;
        self.refused(1, Refusal::Held)?;
        self.world.takeover = true;
        self.write(255);
        let copied = self.scan(1);
        self.world.takeover = false;
        copied?;
        let (base, size) = (Base::Delta, self.disk.size);
        match old.ask(&Message::Begin { base, size }) {
            Err(Error::Refused { refusal: Refusal::Fenced, .. }) => {}
            other => return Err(format!("the old link was not fenced, but {other:?}")),
        }
        self.refused(0, Refusal::Held)?;
        self.world.takeover = true;
        self.write(1);
        let copied = if self.random.below(2) == 0 { self.scan(0) } else { self.commit() };
        self.world.takeover = false;
        copied
    }

    /// An opening of the volume by this machine is refused so.
    fn refused(&mut self, machine: usize, wanted: Refusal) -> Step {
        let machine = &self.scene.machines[machine];
        let mut wire = self.world.hello(machine).map_err(told)?;
        match self.world.open(&mut wire, self.scene.volume.0) {
            Err(Error::Refused { refusal, .. }) if refusal == wanted => Ok(()),
            other => Err(format!("not refused as {wanted:?}, but {other:?}")),
        }
    }
}

/// Those places that are fit, or all if none is.
fn free_or_used(places: &[Block], fit: impl Fn(&Block) -> bool) -> Vec<Block> {
    let some: Vec<_> = places.iter().copied().filter(fit).collect();
    if some.is_empty() { places.to_vec() } else { some }
}
