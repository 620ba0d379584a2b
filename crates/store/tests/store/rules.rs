//! What is refused, and what it says.

use dormouse_crypt::{hash, record};
use dormouse_format::record::Kind;
use dormouse_format::vault::Distrust;
use dormouse_format::{Hash, InstanceId, KeyId, RecordId, Signature};
use dormouse_store::{Base, Commit, Dir, Error, VaultStore};

use crate::kit::*;

fn world() -> (Kit, VaultStore, u64) {
    let kit = Kit::new(1 << 20, 1000);
    let store = kit.create();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    (kit, store, g)
}

const SIZE: u64 = 1 << 20;

fn plan(g: u64, map: &Map) -> Plan {
    Plan { generation: g, size: SIZE, checkpoint: None, hash: root(map, SIZE) }
}

#[test]
fn records_with_a_defect_are_refused() {
    let (kit, store, _) = world();
    let bad = |r: &[u8]| matches!(store.put(r, 1), Err(Error::BadRecord { .. }));
    let good = kit.chunk(0, 1);
    for i in 0..good.len() {
        let mut flipped = good.clone();
        flipped[i] ^= 4;
        assert!(bad(&flipped), "byte {i}");
    }
    assert!(bad(&chunk(chunk_of(1), kit.writer(0), KeyId([9; 16]), 1, 9)), "no data key");
    assert!(bad(&chunk(chunk_of(1), kit.writer(0), kit.key(1), 1, 9)), "another's data key");
    assert!(bad(&record::plain(Kind::Point, kit.writer(0), &[1])), "a point is not put");
    for r in kit.bundle() {
        let (header, body) = record::check(&r).unwrap();
        let mut body = body.to_vec();
        *body.last_mut().unwrap() ^= 1;
        assert!(bad(&record::plain(header.kind, header.writer, &body)), "{:?}", header.kind);
    }
    let before = store.stats().records;
    store.put(&good, 1).unwrap();
    store.put(&good, 1).unwrap();
    kit.bundle().iter().for_each(|r| store.put(r, 1).unwrap());
    assert_eq!(store.stats().records, before + 1, "what is there is not written again");
    assert_eq!(store.chunk(&chunk_of(1), &dormouse_format::WriterId::ZERO, 0).unwrap(), Some(good));
    assert_eq!(store.chunk(&chunk_of(2), &dormouse_format::WriterId::ZERO, 0).unwrap(), None);
}

#[test]
fn small_records_come_back() {
    let (kit, store, _) = world();
    let check = |store: &VaultStore| {
        assert_eq!(store.small(Kind::Cert, &[]).unwrap().len(), 3);
        assert_eq!(store.small(Kind::Vault, &[]).unwrap(), [kit.bundle()[0].clone()]);
        assert_eq!(store.small(Kind::Volume, &[]).unwrap().len(), 1);
        let key = RecordId(kit.key(1).0);
        assert_eq!(store.small(Kind::DataKey, &[key]).unwrap(), [kit.data_key(1)]);
        assert_eq!(store.small(Kind::DataKey, &[]).unwrap().len(), 3);
        assert!(store.small(Kind::DataKey, &[RecordId([9; 16])]).unwrap().is_empty());
    };
    check(&store);
    store.close().unwrap();
    check(&kit.open().0);
}

#[test]
fn have_follows_trust_groups_and_distrust() {
    let (kit, store, _) = world();
    store.put(&kit.chunk(0, 5), 1).unwrap();
    let have = |store: &VaultStore, w: usize| {
        store.have(&kit.writer(w), &[chunk_of(5)], false).unwrap()[0]
    };
    assert!(have(&store, 0) && have(&store, 1) && !have(&store, 2));
    let value = Distrust {
        vault: kit.vault,
        chunk: chunk_of(5),
        maker: kit.writer(0),
        key: kit.key(0),
        by: kit.writer(1),
    };
    let body = kit.writers[1].sign_body(&value);
    store.put(&record::plain(Kind::Distrust, kit.writer(1), &body), 1).unwrap();
    let store = {
        store.close().unwrap();
        kit.open().0
    };
    assert!(!have(&store, 0) && !have(&store, 1));
    // Readers still get it: distrust by anybody must not hide a good record.
    assert!(store.chunk(&chunk_of(5), &kit.writer(0), 0).unwrap().is_some());
    // A fresh copy, sealed with another key, is taken and answered.
    store.put(&kit.chunk(1, 5), 1).unwrap();
    assert!(have(&store, 0) && have(&store, 1));
    assert_eq!(store.chunk(&chunk_of(5), &kit.writer(1), 0).unwrap(), Some(kit.chunk(1, 5)));
}

#[test]
fn a_damaged_chunk_is_not_there_when_it_is_checked() {
    let (kit, store, _) = world();
    (5..7).for_each(|s| store.put(&kit.chunk(0, s), 1).unwrap());
    let name = crate::recovery::last(&kit.segments);
    let mut bytes = kit.segments.get(&name).unwrap();
    let at = bytes.windows(16).position(|w| w == chunk_of(5).0).unwrap();
    bytes[at + 110] ^= 1;
    kit.segments.open(&name).unwrap().write_at(&bytes, 0).unwrap();
    let ids = [chunk_of(5), chunk_of(6), chunk_of(7)];
    let have = |check| store.have(&kit.writer(1), &ids, check).unwrap();
    assert_eq!((have(false), have(true)), (vec![true, true, false], vec![false, true, false]));
    assert!(matches!(store.chunk(&ids[0], &kit.writer(0), 0), Err(Error::Damaged { .. })));
    // Put again it is stored once more, and once only.
    let before = store.stats().records;
    for _ in 0..2 {
        (5..7).for_each(|s| store.put(&kit.chunk(0, s), 1).unwrap());
    }
    assert_eq!(store.stats().records, before + 1);
    assert_eq!(have(true), [true, true, false]);
    assert_eq!(store.chunk(&ids[0], &kit.writer(0), 0).unwrap(), Some(kit.chunk(0, 5)));
}

#[test]
fn names_are_given_once() {
    let (kit, store, _) = world();
    let body = kit.volume_body(VOLUME, "disk");
    store.create_volume(&body, 1).unwrap();
    let other = kit.volume_body(dormouse_format::VolumeId([8; 16]), "disk");
    assert!(
        matches!(store.create_volume(&other, 1), Err(Error::Exists { name }) if name == "disk")
    );
    let mut forged = kit.volume_body(dormouse_format::VolumeId([8; 16]), "other");
    *forged.last_mut().unwrap() ^= 1;
    assert!(matches!(store.create_volume(&forged, 1), Err(Error::BadRecord { .. })));
    assert_eq!(store.volumes().len(), 1);
}

#[test]
fn one_writer_holds_a_volume() {
    let (kit, store, g) = world();
    let open = |w: usize, i: u8, takeover| {
        store.open_write(&VOLUME, kit.writer(w), InstanceId([i; 16]), takeover, 1)
    };
    assert_eq!(open(0, 1, false).unwrap(), g + 1, "also a new connection of the same instance");
    let g = g + 1;
    let held = open(1, 1, false);
    assert!(matches!(held, Err(Error::Held { by, same: false, .. }) if by == kit.writer(0)));
    let mut late = store.begin(&VOLUME, g, Base::Checkpoint, SIZE).unwrap();
    let point = kit.point(&store, &plan(g, &Map::new()));
    // A machine that was cloned: it does not take the volume by itself.
    assert!(matches!(open(0, 2, false), Err(Error::Held { same: true, .. })));
    assert_eq!(open(0, 2, true).unwrap(), g + 1);
    assert!(matches!(open(0, 1, false), Err(Error::Held { same: true, .. })), "nor back");
    let change = [Change::Zero { start: 0, count: 1 }];
    assert!(matches!(store.extents(&mut late, &runs(&change), 1), Err(Error::Fenced)));
    assert!(matches!(store.commit(late, &point, 1), Err(Error::Fenced)));
    assert_eq!(open(1, 1, true).unwrap(), g + 2);
    store.close().unwrap();
    let (store, _) = kit.open();
    let back = store.open_write(&VOLUME, kit.writer(1), InstanceId([1; 16]), false, 1);
    assert_eq!(back.unwrap(), g + 3, "the holder is remembered");
}

#[test]
fn each_wrong_point_is_a_conflict() {
    let (kit, store, g) = world();
    let begin = || store.begin(&VOLUME, g, Base::Checkpoint, SIZE).unwrap();
    let good = kit.point(&store, &plan(g, &Map::new()));
    let bad = |f: &dyn Fn(&mut dormouse_format::point::Point)| {
        let mut p = good.point;
        f(&mut p);
        let signed = kit.writers[0].sign_point(p);
        assert!(matches!(store.commit(begin(), &signed, 1), Err(Error::Conflict { .. })), "{p:?}");
    };
    bad(&|p| (p.seq, p.checkpoint, p.prev) = (2, 2, Hash([1; 32])));
    bad(&|p| p.size += 1);
    bad(&|p| p.root = Hash([1; 32]));
    bad(&|p| p.generation += 1);
    bad(&|p| p.writer = kit.writer(1));
    bad(&|p| p.vault.0[0] ^= 1);
    bad(&|p| p.volume.0[0] ^= 1);
    let mut forged = good;
    forged.signature = Signature([3; 64]);
    assert!(matches!(store.commit(begin(), &forged, 1), Err(Error::BadRecord { .. })));
    assert!(matches!(store.begin(&VOLUME, g, Base::Delta, 1), Err(Error::Conflict { .. })));
    assert_eq!(store.head(&VOLUME).unwrap(), None);
    assert!(matches!(store.commit(begin(), &good, 7), Ok(Commit::Done(p)) if p.receipt == 7));
    // Time never goes back within a volume.
    let point = kit.point(&store, &plan(g, &Map::new()));
    assert!(matches!(store.commit(begin(), &point, 3), Ok(Commit::Done(p)) if p.receipt == 7));
}

#[test]
fn extents_that_cannot_be_are_refused() {
    let (kit, store, g) = world();
    store.put(&kit.chunk(0, 1), 1).unwrap();
    let mut p = store.begin(&VOLUME, g, Base::Checkpoint, SIZE).unwrap();
    let change = |start| runs(&[Change::Data { start, count: 2, seed: 1 }]);
    assert!(matches!(store.extents(&mut p, &change(255), 1), Err(Error::BadRecord { .. })));
    store.extents(&mut p, &change(9), 1).unwrap();
    assert!(matches!(store.extents(&mut p, &change(10), 1), Err(Error::Conflict { .. })));
    let mut w = dormouse_format::extents::ExtentsWriter::new();
    w.tags(100, &[dormouse_format::Tag([1; 16])]);
    assert!(matches!(store.extents(&mut p, &w.take(), 1), Err(Error::BadRecord { .. })));
    assert!(matches!(store.extents(&mut p, &[7], 1), Err(Error::BadRecord { .. })));
}

#[test]
fn a_chunk_with_too_few_blocks_is_missing() {
    let (kit, store, g) = world();
    store.put(&chunk(chunk_of(1), kit.writer(0), kit.key(0), 4, 9), 1).unwrap();
    for (count, missing) in [(1, false), (2, true)] {
        let change = [Change::Data { start: 0, count, seed: 1 }];
        let mut map = Map::new();
        apply(&mut map, &change, SIZE);
        let mut p = store.begin(&VOLUME, g, Base::Checkpoint, SIZE).unwrap();
        store.extents(&mut p, &runs(&change), 1).unwrap();
        let done = store.commit(p, &kit.point(&store, &plan(g, &map)), 1).unwrap();
        assert_eq!(matches!(done, Commit::Missing(ids) if ids == [chunk_of(1)]), missing);
    }
}

#[test]
fn commits_from_many_threads_are_all_there() {
    let (kit, store, _) = world();
    let ids: Vec<_> = (0..4u8).map(|i| dormouse_format::VolumeId([50 + i; 16])).collect();
    for (i, id) in ids.iter().enumerate() {
        store.create_volume(&kit.volume_body(*id, &format!("v{i}")), 1).unwrap();
    }
    std::thread::scope(|s| {
        for id in &ids {
            let (kit, store) = (&kit, &store);
            s.spawn(move || commits(kit, store, *id));
        }
    });
    store.close().unwrap();
    let (store, _) = kit.open();
    for id in ids {
        assert_eq!(store.points(&id, 1, 100).unwrap().len(), 20);
    }
}

fn commits(kit: &Kit, store: &VaultStore, id: dormouse_format::VolumeId) {
    let g = store.open_write(&id, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut prev = Hash::ZERO;
    for seq in 1..=20 {
        store.put(&kit.chunk(0, u64::from(id.0[0]) * 100 + seq), 1).unwrap();
        let mut point = kit.point(store, &plan(g, &Map::new())).point;
        point.root = hash::content_root(&id, SIZE, 1, &Hash::ZERO);
        (point.volume, point.seq, point.checkpoint, point.prev) = (id, seq, seq, prev);
        prev = hash::point(&point.encode());
        let p = store.begin(&id, g, Base::Checkpoint, SIZE).unwrap();
        let done = store.commit(p, &kit.writers[0].sign_point(point), seq).unwrap();
        assert!(matches!(done, Commit::Done(_)));
    }
}

#[test]
fn a_delta_point_that_resizes_has_a_part() {
    let (kit, store, g) = world();
    let mut map = Map::new();
    checkpoint(&kit, &store, g, &mut map, SIZE, &[]);
    let root = store.head(&VOLUME).unwrap().unwrap().point().root;
    for (size, fits) in [(SIZE / 2, false), (SIZE, true)] {
        let plan = Plan { generation: g, size, checkpoint: Some((1, root)), hash: root };
        let pending = store.begin(&VOLUME, g, Base::Delta, size).unwrap();
        let done = store.commit(pending, &kit.point(&store, &plan), 1);
        assert_eq!(matches!(done, Ok(Commit::Done(_))), fits, "{done:?}");
        assert_eq!(matches!(done, Err(Error::Conflict { .. })), !fits);
    }
}

/// A dense page that changes a little again and again is kept as patches, and every
/// state of it reads back, also without any cache.
#[test]
fn pages_are_patched_and_made_full_again() {
    let kit = Kit::new(64 << 20, 1000);
    let store = kit.create();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let (size, mut map) = (64 << 20, Map::new());
    let dense: Vec<_> =
        (0..1000).map(|i| Change::Data { start: i * 16, count: 12, seed: i % 7 }).collect();
    checkpoint(&kit, &store, g, &mut map, size, &dense);
    let full = store.stats().bytes;
    let mut maps = vec![map.clone()];
    for i in 0..20u64 {
        let data = Change::Data { start: i * 160 + 3, count: 4, seed: 50 + i % 3 };
        let change = [data, Change::Zero { start: 8000 + i * 20, count: 9 }];
        checkpoint(&kit, &store, g, &mut map, size, &change);
        maps.push(map.clone());
    }
    // Twenty full pages would be some 4 MB; two and the patches are a tenth.
    assert!(store.stats().bytes - full < 700_000, "{} {full}", store.stats().bytes);
    store.close().unwrap();
    let (store, _) = kit.open();
    for (seq, map) in (1..).zip(&maps) {
        let runs = store.leaves(&VOLUME, seq, 0, u64::MAX, true).unwrap();
        assert_eq!(&decode(&runs), map, "checkpoint {seq}");
    }
}
