//! Forks: what their first point holds, what is refused, and that both survive reopening.

use dormouse_crypt::hash;
use dormouse_format::point::Point;
use dormouse_format::vault::{Origin, Volume};
use dormouse_format::{Hash, InstanceId, Seq, VolumeId};
use dormouse_store::{Base, Commit, Error, VaultStore};

use crate::kit::*;

const SIZE: u64 = 5 << 20;

fn origin(store: &VaultStore, seq: Seq) -> Origin {
    let point = store.point(&VOLUME, seq).unwrap();
    let hash = hash::point(&point.point().encode());
    Origin { tags: VOLUME, volume: VOLUME, seq, hash }
}

fn body(kit: &Kit, id: u8, origin: Origin) -> Vec<u8> {
    let volume = Volume {
        vault: kit.vault,
        id: VolumeId([id; 16]),
        writer: kit.writer(0),
        created: 1,
        name: format!("fork-{id}"),
        origin: Some(origin),
    };
    kit.writers[0].sign_body(&volume)
}

/// Makes a fork's first point, which must hold `map`.
fn fork(kit: &Kit, store: &VaultStore, id: u8, origin: Origin, map: &Map) {
    store.create_volume(&body(kit, id, origin), 1).unwrap();
    let volume = VolumeId([id; 16]);
    let generation = store.open_write(&volume, kit.writer(0), InstanceId([1; 16]), false, 1);
    let generation = generation.unwrap();
    let level = dormouse_format::geometry::top_level(SIZE);
    let point = |map: &Map| {
        kit.writers[0].sign_point(Point {
            volume,
            seq: 1,
            generation,
            checkpoint: 1,
            prev: Hash::ZERO,
            root: hash::content_root(&volume, SIZE, level, &top(map, SIZE)),
            deltas: Hash::ZERO,
            ..*store.point(&VOLUME, origin.seq).unwrap().point()
        })
    };
    let begin = || store.begin(&volume, generation, Base::Head, SIZE).unwrap();
    let mut other = map.clone();
    apply(&mut other, &[Change::Data { start: 900, count: 1, seed: 9 }], SIZE);
    let lie = store.commit(begin(), &point(&other), 5);
    assert!(matches!(lie, Err(Error::Conflict { .. })), "another content: {lie:?}");
    let done = store.commit(begin(), &point(map), 5).unwrap();
    assert!(matches!(done, Commit::Done(_)));
}

fn holds(store: &VaultStore, id: u8, map: &Map) {
    let runs = store.leaves(&VolumeId([id; 16]), 1, 0, u64::MAX, true).unwrap();
    assert_eq!(decode(&runs), *map, "fork {id}");
}

#[test]
fn a_fork_begins_with_any_point() {
    let kit = Kit::new(1 << 20, 1000);
    let store = kit.create();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let (mut map, mut maps) = (Map::new(), Vec::new());
    let data = |start, seed| Change::Data { start, count: 4, seed };
    checkpoint(&kit, &store, g, &mut map, SIZE, &[data(1, 1), data(300, 2)]);
    maps.push(map.clone());
    delta_point(&kit, &store, g, &mut map, SIZE, &[data(3, 3)]);
    maps.push(map.clone());
    delta_point(&kit, &store, g, &mut map, SIZE, &[Change::Zero { start: 2, count: 300 }]);
    maps.push(map.clone());
    checkpoint_of_head(&kit, &store, g, &map);
    maps.push(map.clone());
    delta_point(&kit, &store, g, &mut map, SIZE, &[data(7, 4)]);
    maps.push(map.clone());
    for (seq, map) in (1u8..).zip(&maps) {
        fork(&kit, &store, 100 + seq, origin(&store, seq.into()), map);
        holds(&store, 100 + seq, map);
    }
    store.close().unwrap();
    let (store, _) = kit.open();
    for (seq, map) in (1u8..).zip(&maps) {
        holds(&store, 100 + seq, map);
    }
}

fn checkpoint_of_head(kit: &Kit, store: &VaultStore, g: u64, map: &Map) {
    let pending = store.begin(&VOLUME, g, Base::Head, SIZE).unwrap();
    let plan = Plan { generation: g, size: SIZE, checkpoint: None, hash: root(map, SIZE) };
    let done = store.commit(pending, &kit.point(store, &plan), 5).unwrap();
    assert!(matches!(done, Commit::Done(_)));
}

#[test]
fn a_fork_of_what_is_not_there_is_refused() {
    let kit = Kit::new(1 << 20, 1000);
    let store = kit.create();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    checkpoint(&kit, &store, g, &mut Map::new(), SIZE, &[]);
    let good = origin(&store, 1);
    let create = |origin| store.create_volume(&body(&kit, 9, origin), 1);
    assert!(matches!(create(Origin { seq: 2, ..good }), Err(Error::NotFound { .. })));
    let elsewhere = Origin { volume: VolumeId([77; 16]), ..good };
    assert!(matches!(create(elsewhere), Err(Error::NotFound { .. })));
    assert!(matches!(create(Origin { hash: Hash([1; 32]), ..good }), Err(Error::BadRecord { .. })));
    let tags = Origin { tags: VolumeId([77; 16]), ..good };
    assert!(matches!(create(tags), Err(Error::BadRecord { .. })));
    create(good).unwrap();
}
