//! Random histories against a naive map with history.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_crypt::hash;
use dormouse_format::geometry::{Place, blocks, top_level};
use dormouse_format::limits::PAGE_BLOCKS;
use dormouse_format::{Block, Hash, InstanceId, Seq};
use dormouse_store::memory::MemDir;
use dormouse_store::{Base, Commit, Error, StoredPoint, VaultStore, scrub};
use proptest::prelude::*;

use crate::kit::*;

#[derive(Debug, Clone)]
enum Op {
    Point { base: u8, size: u64, changes: Vec<Change>, cut: usize },
    Abort { base: u8, changes: Vec<Change> },
    Missing,
    Reopen,
    LoseIndex,
    NewInstance,
}

fn change() -> impl Strategy<Value = Change> {
    let page = prop::sample::select(vec![0u64, 0, 1, 1, 2, 63, 64, 65, 4096]);
    let within = prop::sample::select(vec![0u64, 1, 5, 254, 256, 300, 8000, PAGE_BLOCKS - 3]);
    (page, within, 1u8..9, 0u64..12, 0..4u8, 0u64..300_000).prop_map(|(p, w, n, seed, z, wide)| {
        let start = p * PAGE_BLOCKS + w;
        match z {
            0 => Change::Zero { start, count: u64::from(n) },
            1 => Change::Zero { start, count: wide + 1 },
            _ => Change::Data { start, count: n, seed },
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let page = PAGE_BLOCKS * 4096;
    let size = prop::sample::select(vec![
        0,
        5000,
        page,
        page + 4096 * 7,
        page * 3,
        page * 66,
        page * 64,
        page * 4097,
        page * 4097,
    ]);
    let changes = || prop::collection::vec(change(), 0..8);
    let point = (1u8..4, size, changes(), 0usize..8);
    prop_oneof![
        8 => point.prop_map(|(base, size, changes, cut)| Op::Point { base, size, changes, cut }),
        1 => (1u8..4, changes()).prop_map(|(base, changes)| Op::Abort { base, changes }),
        1 => Just(Op::Missing),
        1 => Just(Op::Reopen),
        1 => Just(Op::LoseIndex),
        1 => Just(Op::NewInstance),
    ]
}

struct World {
    kit: Kit,
    store: VaultStore,
    generation: u64,
    instance: u8,
    head: Map,
    /// Map and size at each point.
    maps: BTreeMap<Seq, (Map, u64)>,
    checkpoint: Seq,
    last_size: u64,
}

impl World {
    fn new() -> Self {
        let kit = Kit::new(6000, 20);
        let store = kit.create();
        let generation = open_write(&kit, &store, 1);
        let (head, maps) = (Map::new(), BTreeMap::new());
        Self { kit, store, generation, instance: 1, head, maps, checkpoint: 0, last_size: 1 << 40 }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Point { base, size, changes, cut } => self.point(base, size, changes, cut),
            Op::Abort { base, changes } => {
                let base = self.base(base);
                let changes = tidy(changes, self.last_size);
                put_chunks(&self.kit, &self.store, &changes);
                let mut p =
                    self.store.begin(&VOLUME, self.generation, base, self.last_size).unwrap();
                self.store.extents(&mut p, &runs(&changes), 1).unwrap();
            }
            Op::Missing => self.missing(),
            Op::Reopen => {
                self.store.close().unwrap();
                let (store, recovery) = self.kit.open();
                assert!(recovery.torn.is_empty() && recovery.damaged.is_empty());
                self.store = store;
                self.check_all();
            }
            Op::LoseIndex => {
                self.kit.index = MemDir::new();
                self.store = self.kit.open().0;
                self.check_all();
            }
            Op::NewInstance => {
                self.instance += 1;
                let old = self.generation;
                let (writer, other) = (self.kit.writer(0), InstanceId([self.instance; 16]));
                let open = |takeover| self.store.open_write(&VOLUME, writer, other, takeover, 1);
                assert!(matches!(open(false), Err(Error::Held { same: true, .. })));
                self.generation = open(true).unwrap();
                assert!(self.generation > old);
                let late = self.store.begin(&VOLUME, old, Base::Checkpoint, 1);
                assert!(matches!(late, Err(Error::Fenced)));
            }
        }
    }

    fn base(&self, base: u8) -> Base {
        match base {
            1 if self.checkpoint > 0 => Base::Delta,
            3 => Base::Head,
            _ => Base::Checkpoint,
        }
    }

    fn point(&mut self, base: u8, size: u64, changes: Vec<Change>, cut: usize) {
        let base = self.base(base);
        let changes = tidy(changes, size);
        put_chunks(&self.kit, &self.store, &changes);
        let mut map = match base {
            Base::Checkpoint => self.maps.get(&self.checkpoint).map(|m| m.0.clone()),
            _ => Some(self.head.clone()),
        }
        .unwrap_or_default();
        apply(&mut map, &changes, size);
        clear(&mut map, blocks(size), Block::MAX);
        let (a, b) = changes.split_at(cut.min(changes.len()));
        let mut parts = [a, b];
        if base == Base::Delta {
            parts.reverse();
        }
        let mut pending = self.store.begin(&VOLUME, self.generation, base, size).unwrap();
        let head = self.store.head(&VOLUME).unwrap();
        let mut running = head.map_or(Hash::ZERO, |h| {
            if h.point().is_checkpoint() { h.point().root } else { h.point().deltas }
        });
        for part in parts {
            let bytes = runs(part);
            self.store.extents(&mut pending, &bytes, 1).unwrap();
            running = hash::delta(&running, size, &bytes);
        }
        let root = root(&map, size);
        let old = head.map(|h| (h.point().checkpoint, h.point().root));
        let (checkpoint, hash) = if base == Base::Delta { (old, running) } else { (None, root) };
        let plan = Plan { generation: self.generation, size, checkpoint, hash };
        let point = self.kit.point(&self.store, &plan);
        let done = self.store.commit(pending, &point, 9).unwrap();
        let Commit::Done(stored) = done else { panic!("{done:?}") };
        assert_eq!(self.store.head(&VOLUME).unwrap(), Some(stored));
        let seq = stored.point().seq;
        if base != Base::Delta {
            self.checkpoint = seq;
        }
        (self.head, self.last_size) = (map.clone(), size);
        self.maps.insert(seq, (map, size));
        self.check(&stored);
        let older = self.store.point(&VOLUME, seq.div_ceil(2)).unwrap();
        self.check(&older);
    }

    fn missing(&mut self) {
        let change = [Change::Data { start: 0, count: 2, seed: 9999 }];
        let mut p = self.store.begin(&VOLUME, self.generation, Base::Checkpoint, 1 << 20).unwrap();
        self.store.extents(&mut p, &runs(&change), 1).unwrap();
        let (size, checkpoint) = (1 << 20, None);
        let plan = Plan { generation: self.generation, size, checkpoint, hash: Hash([1; 32]) };
        let point = self.kit.point(&self.store, &plan);
        let head = self.store.head(&VOLUME).unwrap();
        let done = self.store.commit(p, &point, 9).unwrap();
        assert_eq!(done, Commit::Missing(vec![chunk_of(9999)]));
        assert_eq!(self.store.head(&VOLUME).unwrap(), head);
    }

    /// Every point ever made reads back as the model has it.
    fn check_all(&self) {
        let points = self.store.points(&VOLUME, 1, 1000).unwrap();
        assert_eq!(points.len(), self.maps.len());
        points.iter().for_each(|p| self.check(p));
    }

    fn check(&self, stored: &StoredPoint) {
        {
            let p = *stored.point();
            let (map, size) = &self.maps[&p.seq];
            assert_eq!(p.size, *size);
            if !p.is_checkpoint() {
                assert_eq!(&replay(&self.store, &p, &self.maps), map, "point {}", p.seq);
                return;
            }
            assert_eq!(self.store.deltas(&VOLUME, p.seq).unwrap(), []);
            let mut pages: BTreeSet<u64> = map.keys().map(|b| b / PAGE_BLOCKS).collect();
            pages.extend([0, 1, 64, 4096]);
            let mut found = Map::new();
            for page in pages {
                let runs = self.store.leaves(&VOLUME, p.seq, page, u64::MAX, true).unwrap();
                found.extend(decode(&runs));
                let tags = self.store.leaves(&VOLUME, p.seq, page, 1 << 31 | 3, false).unwrap();
                for (block, (tag, ..)) in decode(&tags) {
                    assert_eq!(map[&block].0, tag);
                    assert!([0, 1, 31].contains(&(block / 256 % 64)));
                }
            }
            assert_eq!(&found, map, "checkpoint {}", p.seq);
            let place = Place { level: top_level(*size), index: 0 };
            let children = self.store.node(&VOLUME, p.seq, place).unwrap();
            assert_eq!(hash::node(place, &children), top(map, *size));
        }
    }
}

fn open_write(kit: &Kit, store: &VaultStore, instance: u8) -> u64 {
    store.open_write(&VOLUME, kit.writer(0), InstanceId([instance; 16]), false, 1).unwrap()
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(32), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn histories_are_as_the_model_has_them(ops in prop::collection::vec(op(), 1..24)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        let mut findings = Vec::new();
        world.check_all();
        world.store.close().unwrap();
        let summary = scrub::scrub(&world.kit.segments, world.kit.vault, false, &mut |f| {
            findings.push(f);
        });
        prop_assert_eq!(&findings, &[]);
        prop_assert!(summary.unwrap().records > 0);
    }
}
