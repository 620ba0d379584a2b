//! Expiry and collection: what goes, what stays, and what is refused.

use std::collections::BTreeMap;

use dormouse_crypt::hash;
use dormouse_format::point::StoredPoint;
use dormouse_format::{Hash, InstanceId, Seq, VolumeId};
use dormouse_store::collect::{Round, Rules};
use dormouse_store::memory::MemDir;
use dormouse_store::{Base, Commit, Dir, Error, VaultStore, scrub};

use crate::kit::*;

/// All that is dead goes at once.
pub(crate) const ALL: Rules = Rules { grace_ns: 0, live_percent_max: 100 };
const NOW: u64 = 1000;

pub(crate) struct World {
    pub(crate) kit: Kit,
    pub(crate) store: VaultStore,
    generation: u64,
    map: Map,
    maps: BTreeMap<Seq, (Map, u64)>,
}

const SIZE: u64 = 80 << 20;

pub(crate) fn data(start: u64, seed: u64) -> Change {
    Change::Data { start, count: 4, seed }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(3000)
    }

    fn with(segment_size: u64) -> Self {
        let kit = Kit::new(segment_size, 8);
        let store = kit.create();
        let generation =
            store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
        Self { kit, store, generation, map: Map::new(), maps: BTreeMap::new() }
    }

    fn keep(&mut self) {
        let seq = self.store.head(&VOLUME).unwrap().unwrap().point().seq;
        self.maps.insert(seq, (self.map.clone(), SIZE));
    }

    /// On the last checkpoint's map.
    pub(crate) fn checkpoint(&mut self, changes: &[Change]) {
        let head = self.store.head(&VOLUME).unwrap();
        self.map = head.map_or_else(Map::new, |h| self.maps[&h.point().checkpoint].0.clone());
        checkpoint(&self.kit, &self.store, self.generation, &mut self.map, SIZE, changes);
        self.keep();
    }

    fn delta(&mut self, changes: &[Change]) {
        delta_point(&self.kit, &self.store, self.generation, &mut self.map, SIZE, changes);
        self.keep();
    }

    /// Three checkpoints, each with two points behind it; ten segments or so.
    pub(crate) fn history(&mut self) {
        for round in 0..3 {
            let seed = 100 * round;
            self.checkpoint(&(0..12).map(|i| data(i * 10, seed + i)).collect::<Vec<_>>());
            self.delta(&[data(1, seed + 20), data(20_000, seed + 21)]);
            self.delta(&[data(3, seed + 30)]);
        }
    }

    fn collect(&self, rules: &Rules) -> Round {
        self.store.collect(NOW, rules, &mut |_| true).unwrap()
    }

    fn reopen(&mut self) {
        self.store.close().unwrap();
        let (store, recovery) = self.kit.open();
        assert!(recovery.torn.is_empty() && recovery.damaged.is_empty(), "{recovery:?}");
        self.store = store;
    }

    fn has(&self, seed: u64) -> bool {
        self.store.have(&self.kit.writer(0), &[chunk_of(seed)], true).unwrap()[0]
    }

    fn seqs(&self) -> Vec<Seq> {
        let points = self.store.points(&VOLUME, 1, 100).unwrap();
        points.iter().map(|p| p.point().seq).collect()
    }

    /// Every point that is there reads back, with every chunk that it names.
    fn check(&self) {
        for point in self.store.points(&VOLUME, 1, 100).unwrap() {
            self.check_point(&point);
        }
        let mut findings = Vec::new();
        scrub::scrub(&self.kit.segments, self.kit.vault, false, &mut |f| findings.push(f)).unwrap();
        assert_eq!(findings, []);
    }

    fn check_point(&self, stored: &StoredPoint) {
        let p = stored.point();
        let (wanted, _) = &self.maps[&p.seq];
        let mut found = if p.is_checkpoint() {
            let mut found = Map::new();
            for page in 0..2 {
                let runs = self.store.leaves(&VOLUME, p.seq, page, u64::MAX, true).unwrap();
                found.extend(decode(&runs));
            }
            found
        } else {
            replay(&self.store, p, &self.maps)
        };
        assert_eq!(&found, wanted, "point {}", p.seq);
        found.retain(|_, (_, chunk, _)| {
            self.store.chunk(chunk, &self.kit.writer(0), 0).unwrap().is_none()
        });
        assert_eq!(found, Map::new(), "chunks of point {}", p.seq);
    }
}

#[test]
fn what_only_expired_points_name_goes_and_the_rest_stays() {
    let mut w = World::new();
    w.history();
    assert_eq!(w.collect(&ALL).retired, 0, "nothing is dead");
    assert_eq!(w.store.expire(&VOLUME, &[1..=3, 5..=5, 8..=8], NOW).unwrap(), 5);
    assert_eq!(w.seqs(), [4, 6, 7, 9]);
    let plan = w.store.plan_collection(NOW, &ALL, &mut |_| true).unwrap();
    let files = w.kit.segments.list().unwrap().len();
    let before = w.store.stats();
    let done = w.collect(&ALL);
    assert!(done.retired > 3 && done.retired_bytes > done.copied_bytes, "{done:?}");
    assert_eq!((plan.retired, plan.dead_bytes), (done.retired, done.dead_bytes));
    assert!(w.kit.segments.list().unwrap().len() < files);
    let after = w.store.stats();
    assert!(after.bytes < before.bytes && after.segments < before.segments);
    assert_eq!(after.points, 4);
    // Only the first checkpoint and its points named these.
    assert!([0, 5, 20, 21, 30].iter().all(|seed| !w.has(*seed)));
    assert!([100, 120, 130, 200, 211, 220, 221, 230].iter().all(|seed| w.has(*seed)));
    w.check();
    for _ in 0..2 {
        w.reopen();
        assert_eq!((w.seqs(), w.store.stats().points), (vec![4, 6, 7, 9], 4));
        w.check();
        assert_eq!(w.collect(&ALL).dead_bytes, 0, "nothing is left");
        w.kit.index = MemDir::new();
    }
    // It goes on as before.
    w.delta(&[data(500, 40)]);
    w.checkpoint(&[data(700, 41)]);
    w.reopen();
    w.check();
    let stats = w.store.stats();
    assert_eq!(stats.bytes, w.kit.segments.list().unwrap().iter().map(|n| len(&w, n)).sum::<u64>());
}

fn len(w: &World, name: &str) -> u64 {
    w.kit.segments.get(name).unwrap().len() as u64
}

#[test]
fn the_grace_counts_from_expiry_and_from_receipt() {
    let mut w = World::new();
    w.history();
    w.store.expire(&VOLUME, &[1..=3], NOW).unwrap();
    let collect = |w: &World, now: u64, grace: u64| {
        let rules = Rules { grace_ns: grace, live_percent_max: 100 };
        w.store.collect(now, &rules, &mut |_| true).unwrap()
    };
    assert_eq!(collect(&w, NOW + 49, 50).retired, 0, "expired too lately");
    assert!(w.has(5) && w.seqs() == [4, 5, 6, 7, 8, 9]);
    // An orphan, received later.
    w.store.put(&w.kit.chunk(0, 999), NOW + 40).unwrap();
    let fill: Vec<_> = (300..330).map(|seed| w.kit.chunk(0, seed)).collect();
    fill.iter().for_each(|chunk| w.store.put(chunk, NOW + 60).unwrap());
    assert!(collect(&w, NOW + 51, 50).retired > 0);
    assert!(!w.has(5) && w.has(999));
    collect(&w, NOW + 300, 50);
    assert!(!w.has(999) && !w.has(310));
    // A clock that went back does no harm.
    w.store.expire(&VOLUME, &[4..=6], NOW + 300).unwrap();
    let round = collect(&w, 10, 5);
    assert_eq!((round.retired, round.dead_bytes), (0, 0));
    assert!(w.has(100));
    w.reopen();
    w.check();
}

#[test]
fn little_dead_is_left_where_it_is() {
    let mut w = World::new();
    w.history();
    w.store.expire(&VOLUME, &[8..=8], NOW).unwrap();
    let none = Rules { grace_ns: 0, live_percent_max: 0 };
    assert_eq!(w.collect(&none).retired, 0);
    let stopped = w.store.collect(NOW, &ALL, &mut |_| false);
    assert!(matches!(stopped, Err(Error::Stopped)));
    w.check();
}

#[test]
fn what_is_needed_does_not_expire() {
    let mut w = World::new();
    w.history();
    let refused = |w: &World, ranges: &[_], why: &str| {
        let e = w.store.expire(&VOLUME, ranges, NOW).unwrap_err();
        assert!(matches!(e, Error::Conflict { .. }) && e.to_string().contains(why), "{e}");
        assert_eq!(w.seqs().len(), 9);
    };
    refused(&w, &[5..=9], "disk@9 cannot expire: it is the newest");
    refused(&w, &[1..=2], "disk@1 cannot expire: point 3 builds on it");
    let fork = fork(&w, 5, "try");
    refused(&w, &[1..=6], "disk@5 cannot expire: volume try, a fork of it, has no point yet");
    let e = w.store.drop_volume(&VOLUME, NOW).unwrap_err();
    assert!(e.to_string().contains("volume try, a fork of it"), "{e}");
    // The fork's first point stands on what its origin had.
    commit_fork(&w, &fork);
    assert_eq!(w.store.expire(&VOLUME, &[1..=6], NOW).unwrap(), 6);
    let e = w.store.point(&VOLUME, 5).unwrap_err();
    assert!(e.to_string().contains("point disk@5 (it has expired)"), "{e}");
    assert!(w.store.deltas(&VOLUME, 5).is_err() && w.store.leaves(&VOLUME, 4, 0, 1, true).is_err());
    assert!(w.collect(&ALL).retired > 0);
    assert!(w.has(100) && w.has(120) && !w.has(5), "the fork's, and no more");
    for _ in 0..2 {
        let mut found = Map::new();
        for page in 0..2 {
            found.extend(decode(&w.store.leaves(&fork, 1, page, u64::MAX, true).unwrap()));
        }
        assert_eq!(found, w.maps[&5].0);
        w.reopen();
    }
    // And without its origin.
    w.store.drop_volume(&VOLUME, NOW).unwrap();
    w.collect(&ALL);
    assert!(w.has(120) && !w.has(200));
    w.reopen();
    assert_eq!(w.store.volumes().len(), 1);
    assert!(matches!(w.store.head(&VOLUME), Err(Error::NotFound { .. })));
    assert_eq!(decode(&w.store.leaves(&fork, 1, 1, u64::MAX, true).unwrap()).len(), 4);
    w.store.create_volume(&w.kit.volume_body(VolumeId([9; 16]), "disk"), NOW).unwrap();
}

fn fork(w: &World, seq: Seq, name: &str) -> VolumeId {
    let id = VolumeId([8; 16]);
    let hash = hash::point(&w.store.point(&VOLUME, seq).unwrap().point().encode());
    let origin = dormouse_format::vault::Origin { tags: VOLUME, volume: VOLUME, seq, hash };
    let (vault, writer) = (w.kit.vault, w.kit.writer(0));
    let (name, origin) = (name.into(), Some(origin));
    let value = dormouse_format::vault::Volume { vault, id, writer, created: 1, name, origin };
    w.store.create_volume(&w.kit.writers[0].sign_body(&value), 1).unwrap();
    id
}

fn commit_fork(w: &World, fork: &VolumeId) {
    let instance = InstanceId([1; 16]);
    let g = w.store.open_write(fork, w.kit.writer(0), instance, false, 1).unwrap();
    let pending = w.store.begin(fork, g, Base::Head, SIZE).unwrap();
    let map = &w.maps[&5].0;
    let level = dormouse_format::geometry::top_level(SIZE);
    let root = hash::content_root(fork, SIZE, level, &top(map, SIZE));
    let plan = Plan { generation: g, size: SIZE, checkpoint: None, hash: root };
    let mut point = w.kit.point(&w.store, &plan).point;
    (point.volume, point.seq, point.checkpoint, point.prev) = (*fork, 1, 1, Hash::ZERO);
    let done = w.store.commit(pending, &w.kit.writers[0].sign_point(point), 5).unwrap();
    assert!(matches!(done, Commit::Done(_)), "{done:?}");
}

/// Extents that name a chunk of which nobody but this connection knows.
fn commit_with(w: &mut World, seed: u64) -> Commit {
    let change = [data(900, seed)];
    apply(&mut w.map, &change, SIZE);
    let mut pending = w.store.begin(&VOLUME, w.generation, Base::Head, SIZE).unwrap();
    w.store.extents(&mut pending, &runs(&change), NOW).unwrap();
    let (checkpoint, hash) = (None, root(&w.map, SIZE));
    let plan = Plan { generation: w.generation, size: SIZE, checkpoint, hash };
    let point = w.kit.point(&w.store, &plan);
    w.store.commit(pending, &point, NOW).unwrap()
}

#[test]
fn a_have_is_honoured_or_the_commit_names_what_is_missing() {
    let mut w = World::new();
    w.history();
    w.store.expire(&VOLUME, &[1..=3], NOW).unwrap();
    let pins = w.store.pins();
    let writer = w.kit.writer(0);
    let have = w.store.have_pinned(&writer, &[chunk_of(5), chunk_of(777)], false, Some(&pins));
    assert_eq!(have.unwrap(), [true, false]);
    w.store.put_pinned(&w.kit.chunk(0, 777), NOW, Some(&pins)).unwrap();
    w.collect(&ALL);
    w.collect(&ALL);
    assert!(w.has(5) && !w.has(6), "what was promised stays, and only that");
    assert!(w.has(777), "what was put and is not committed");
    assert!(matches!(commit_with(&mut w, 5), Commit::Done(_)));
    pins.release();
    w.collect(&ALL);
    assert!(w.has(5) && !w.has(777));
    assert_eq!(commit_with(&mut w, 777), Commit::Missing(vec![chunk_of(777)]));

    // What a pending point names stays as well.
    w.store.put(&w.kit.chunk(0, 778), NOW).unwrap();
    let mut pending = w.store.begin(&VOLUME, w.generation, Base::Head, SIZE).unwrap();
    w.store.extents(&mut pending, &runs(&[data(2000, 778)]), NOW).unwrap();
    w.collect(&ALL);
    assert!(w.has(778));
    drop(pending);
    w.collect(&ALL);
    assert!(!w.has(778));
    w.reopen();
}

#[test]
fn a_gap_that_nothing_explains_is_damage() {
    let mut w = World::new();
    w.history();
    w.store.expire(&VOLUME, &[1..=3], NOW).unwrap();
    w.collect(&ALL);
    w.store.close().unwrap();
    let names = w.kit.segments.list().unwrap();
    let here = w.kit.segments.snapshot();
    assert_eq!(w.kit.open().1.damaged, []);
    for name in &names[..names.len() - 1] {
        w.kit.segments = here.snapshot();
        w.kit.segments.remove(name).unwrap();
        let e = w.kit.try_open().map(|_| ()).unwrap_err();
        assert!(e.to_string().contains("segments are missing from here on"), "{name}: {e}");
        let mut found = Vec::new();
        scrub::scrub(&w.kit.segments, w.kit.vault, false, &mut |f| found.push(f.why)).unwrap();
        assert!(found.iter().any(|why| why.contains("missing")), "{name}: {found:?}");
    }
    // Another file under the number of a retired segment.
    w.kit.segments = here.snapshot();
    let first = here.get(&names[0]).unwrap();
    w.kit.segments.set("0000000000000001.seg", first);
    assert!(w.kit.try_open().is_err());
}

#[test]
fn a_crash_before_the_files_are_removed_is_made_good() {
    let mut w = World::new();
    w.history();
    let before = w.kit.segments.snapshot();
    w.store.expire(&VOLUME, &[1..=3], NOW).unwrap();
    let done = w.collect(&ALL);
    w.store.close().unwrap();
    let after = w.kit.segments.list().unwrap();
    for name in before.list().unwrap().iter().filter(|name| !after.contains(name)) {
        w.kit.segments.set(name, before.get(name).unwrap());
    }
    assert_eq!(w.kit.segments.list().unwrap().len() as u64, after.len() as u64 + done.retired);
    let (store, recovery) = w.kit.open();
    assert_eq!(recovery.segments, after.len() as u64);
    w.store = store;
    assert_eq!(w.kit.segments.list().unwrap(), after);
    assert!(!w.has(5) && w.has(100));
    w.check();
    w.reopen();
    w.check();
}

#[test]
fn a_segment_that_holds_damaged_records_that_are_live_stays() {
    let mut w = World::new();
    w.history();
    w.store.expire(&VOLUME, &[1..=3], NOW).unwrap();
    let at = w.kit.segments.list().unwrap().into_iter().find_map(|name| {
        let bytes = w.kit.segments.get(&name).unwrap();
        let found = bytes.windows(16).position(|id| id == chunk_of(104).0)?;
        // The id is at byte 16 of a record's header; the body begins at byte 112.
        Some((name, found + 96))
    });
    let (name, at) = at.unwrap();
    let file = w.kit.segments.open(&name).unwrap();
    file.write_at(&[0x5a], at as u64).unwrap();
    let round = w.collect(&ALL);
    assert_eq!(round.damaged.iter().map(|f| &f.segment).collect::<Vec<_>>(), [&name]);
    assert!(round.retired > 0 && w.kit.segments.get(&name).is_some());
    assert!(w.has(105));
}

#[test]
fn readers_that_are_late_find_what_was_moved() {
    let mut w = World::new();
    let orphans = |w: &World, from: u64| {
        (from..from + 20).for_each(|seed| w.store.put(&w.kit.chunk(0, seed), 1).unwrap());
    };
    w.checkpoint(&[data(0, 1)]);
    for i in 0..5 {
        orphans(&w, 500 + 20 * i);
        w.delta(&[data(10 * i, 10 + i)]);
    }
    let places = w.store.deltas(&VOLUME, 6).unwrap();
    let mut records = Vec::new();
    w.store.each_delta(&VOLUME, 6, &mut |record| records.push(record)).unwrap();
    // In the middle of another reader's walk.
    let mut between = Vec::new();
    let mut look = |record: Vec<u8>| {
        if between.is_empty() {
            assert!(w.collect(&ALL).retired > 0);
        }
        between.push(record);
    };
    w.store.each_delta(&VOLUME, 6, &mut look).unwrap();
    assert_eq!(between, records);
    let moved = |at| matches!(w.store.read(at), Err(Error::Moved));
    assert!(places.len() == 5 && places.iter().any(moved));
    let mut again = Vec::new();
    w.store.each_delta(&VOLUME, 6, &mut |record| again.push(record)).unwrap();
    assert_eq!(again, records);
}

/// The log as a program of version 1 left it.
fn as_version_1(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[8] = 1;
    let check = hash::header_check(&out[..112]);
    out[112..128].copy_from_slice(&check);
    let (mut chain, mut at) = (check, 128);
    while at < out.len() {
        let header =
            dormouse_crypt::record::check_header(out[at..].first_chunk().unwrap()).unwrap();
        let end = at + header.record_len();
        let durable = u64::from_le_bytes(*out[end..].first_chunk().unwrap());
        chain = hash::chain(&chain, &header.check, durable);
        let own = hash::trailer_check(&check, at as u64, durable, &chain);
        out[end + 8..end + 24].copy_from_slice(&chain);
        out[end + 24..end + 32].copy_from_slice(&own);
        at = end + 32;
    }
    out
}

#[test]
fn a_log_of_version_1_goes_on_in_a_segment_of_version_2() {
    let mut w = World::with(1 << 20);
    w.history();
    w.store.close().unwrap();
    let first = "0000000000000001.seg";
    let names = w.kit.segments.list().unwrap();
    let last = names.last().unwrap().clone();
    assert_eq!(names.len(), 1, "one segment");
    assert_eq!(last, first);
    let old = as_version_1(&w.kit.segments.get(first).unwrap());
    w.kit.segments.set(first, old.clone());
    w.kit.index = MemDir::new();
    w.store = w.kit.open().0;
    w.check();
    w.store.expire(&VOLUME, &[1..=3], NOW).unwrap();
    w.store.close().unwrap();
    let first = w.kit.segments.get(first).unwrap();
    assert_eq!((&first[..old.len()], first[8]), (&old[..], 1));
    assert_eq!(w.kit.segments.get("0000000000000002.seg").unwrap()[8], 2);
    w.reopen();
    assert_eq!(w.seqs(), [4, 5, 6, 7, 8, 9]);
    w.check();
}
