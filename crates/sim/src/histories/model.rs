//! What must be there: volumes, their points, and what each point shows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dormouse_crypt::hash;
use dormouse_format::extents::ExtentsWriter;
use dormouse_format::geometry::{Place, top_level};
use dormouse_format::{Block, ChunkId, Hash, RecordId, Seq, Tag, VolumeId};

use crate::random::Lcg;

/// Bytes of every volume: two pages.
pub const SIZE: u64 = 128 << 20;
/// Blocks that are written: at both ends of leaves and pages, and beside one another.
const PLACES: [Block; 14] =
    [0, 1, 2, 5, 254, 255, 256, 300, 8000, 16_383, 16_384, 16_390, 20_000, 32_000];
/// Different chunks that there are: few, so that content is shared.
const SEEDS: u64 = 40;

/// What a block holds: tag, chunk, index in it.
pub type Slot = (Tag, ChunkId, u8);
/// The blocks of a volume that are not zero.
pub type Map = BTreeMap<Block, Slot>;

/// A change of some blocks.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    start: Block,
    count: u8,
    /// Which chunk; `None`: zeros.
    seed: Option<u64>,
}

/// 16 bytes that stand for a number.
fn fill(what: u8, n: u64) -> [u8; 16] {
    hash::plain_id(what, &n.to_le_bytes()).0
}

/// The chunk of this number.
pub fn chunk_of(seed: u64) -> ChunkId {
    RecordId(fill(200, seed))
}

impl Change {
    /// Some changes, in order and apart.
    pub fn some(random: &mut Lcg) -> Vec<Self> {
        let mut out = Vec::new();
        for (i, start) in PLACES.iter().enumerate() {
            if random.below(4) > 0 {
                continue;
            }
            let room = PLACES.get(i + 1).map_or(8, |next| next - start).min(4);
            let count = 1 + random.below(room) as u8;
            let seed = (random.below(6) > 0).then(|| random.below(SEEDS));
            out.push(Self { start: *start, count, seed });
        }
        out
    }

    fn slots(&self) -> impl Iterator<Item = (Block, Option<Slot>)> {
        let Self { start, count, seed } = *self;
        (0..u64::from(count)).map(move |i| {
            let block = start + i;
            let slot = |seed| (Tag(fill(201, block << 8 | seed)), chunk_of(seed), i as u8);
            (block, seed.map(slot))
        })
    }

    /// The chunk that it names.
    pub fn chunk(&self) -> Option<u64> {
        self.seed
    }
}

/// The map after these changes.
pub fn applied(map: &Map, changes: &[Change]) -> Map {
    let mut out = map.clone();
    for (block, slot) in changes.iter().flat_map(Change::slots) {
        match slot {
            Some(slot) => drop(out.insert(block, slot)),
            None => drop(out.remove(&block)),
        }
    }
    out
}

/// The changes as extents.
pub fn runs(changes: &[Change]) -> Vec<u8> {
    let mut w = ExtentsWriter::new();
    for change in changes {
        let tags: Vec<Tag> = change.slots().filter_map(|(_, s)| s).map(|s| s.0).collect();
        match change.seed {
            Some(seed) => w.data(change.start, chunk_of(seed), 0, &tags),
            None => w.zero(change.start, change.count.into()),
        }
    }
    w.take()
}

/// The content root of a map.
pub fn root(volume: &VolumeId, map: &Map) -> Hash {
    let mut leaves: BTreeMap<u64, [Tag; 256]> = BTreeMap::new();
    for (block, slot) in map {
        leaves.entry(block / 256).or_insert([Tag::ZERO; 256])[(block % 256) as usize] = slot.0;
    }
    let mut level: BTreeMap<u64, Hash> =
        leaves.iter().map(|(index, tags)| (*index, hash::leaf(*index, tags))).collect();
    for l in 1..=top_level(SIZE) {
        let mut above: BTreeMap<u64, [Hash; 64]> = BTreeMap::new();
        for (index, h) in &level {
            above.entry(index / 64).or_insert([Hash::ZERO; 64])[(index % 64) as usize] = *h;
        }
        let node = |(index, c): (&u64, &[Hash; 64])| {
            (*index, hash::node(Place { level: l, index: *index }, c))
        };
        level = above.iter().map(node).collect();
    }
    let top = level.get(&0).copied().unwrap_or(Hash::ZERO);
    hash::content_root(volume, SIZE, top_level(SIZE), &top)
}

/// A point.
#[derive(Debug, Clone)]
pub struct Point {
    /// What it shows.
    pub map: Arc<Map>,
    /// The checkpoint that it builds on.
    pub base: Seq,
    /// The checkpoint's root.
    pub root: Hash,
    /// The running hash after it.
    pub running: Hash,
    /// Its own hash.
    pub hash: Hash,
    /// Parts of its extents, if it is no checkpoint, and the running hash after each.
    pub parts: Vec<(Vec<u8>, Hash)>,
    /// When it expired.
    pub expired: Option<u64>,
}

/// A volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// The id in its tags' stead: that of the first of its line.
    pub tags: VolumeId,
    /// What it begins with, if it is a fork: of which volume, which point, what that shows.
    pub origin: Option<(VolumeId, Seq, Arc<Map>)>,
    /// All points that were ever acknowledged.
    pub points: BTreeMap<Seq, Point>,
}

impl Volume {
    /// The newest point.
    pub fn head(&self) -> Option<(Seq, &Point)> {
        self.points.last_key_value().map(|(seq, point)| (*seq, point))
    }

    /// Points that did not expire.
    pub fn kept(&self) -> impl Iterator<Item = (Seq, &Point)> {
        self.points.iter().filter(|(_, p)| p.expired.is_none()).map(|(seq, p)| (*seq, p))
    }

    /// Points of which the records must be there: kept ones, and those from a kept one's
    /// checkpoint up to it.
    pub fn needed(&self) -> BTreeSet<Seq> {
        let spans = self.kept().map(|(seq, point)| point.base..=seq);
        spans.flatten().filter(|seq| self.points.contains_key(seq)).collect()
    }

    /// Some points that may expire, as ranges.
    pub fn expirable(&self, random: &mut Lcg, forked: &BTreeSet<Seq>) -> Vec<Seq> {
        let Some((head, newest)) = self.head() else { return Vec::new() };
        let share = 1 + random.below(4);
        let mut goes: BTreeSet<Seq> = self.kept().map(|(seq, _)| seq).collect();
        goes.retain(|seq| *seq != head && random.below(4) < share);
        goes.remove(&newest.base);
        forked.iter().for_each(|seq| {
            goes.remove(seq);
        });
        // Nor a checkpoint on which a point builds that stays.
        for (seq, point) in self.kept().collect::<Vec<_>>().into_iter().rev() {
            if !goes.contains(&seq) {
                goes.remove(&point.base);
            }
        }
        goes.into_iter().collect()
    }
}
