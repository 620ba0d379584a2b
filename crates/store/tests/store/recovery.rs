//! What a crash leaves behind.

use dormouse_format::InstanceId;
use dormouse_store::memory::MemDir;
use dormouse_store::{Dir, Error, VaultStore};

use crate::kit::*;

const SIZE: u64 = 200 << 20;

pub fn change(i: u64) -> [Change; 2] {
    let data = Change::Data { start: i * 3, count: 2, seed: 100 + i };
    [data, Change::Data { start: 20_000 + i, count: 1, seed: 200 + i }]
}

/// A store with checkpoints and deltas; how long the newest segment was, and how
/// many points there were, after each commit.
pub fn small(segment_size: u64) -> (Kit, VaultStore, Vec<(String, u64, usize)>) {
    let kit = Kit::new(segment_size, 50);
    let store = kit.create();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut map = Map::new();
    let mut steps = Vec::new();
    for i in 0..6 {
        match i % 3 {
            0 => checkpoint(&kit, &store, g, &mut map, SIZE, &change(i)),
            _ => delta_point(&kit, &store, g, &mut map, SIZE, &change(i)),
        }
        if i % 3 == 2 {
            // The next checkpoint stands on the last one's map.
            map.clear();
            (0..i).step_by(3).for_each(|c| apply(&mut map, &change(c), SIZE));
        }
        let name = last(&kit.segments);
        let len = kit.segments.get(&name).unwrap().len() as u64;
        steps.push((name, len, i as usize + 1));
    }
    (kit, store, steps)
}

pub fn last(dir: &MemDir) -> String {
    dir.list().unwrap().into_iter().filter(|n| n.ends_with(".seg")).max().unwrap()
}

fn points(store: &VaultStore) -> usize {
    store.volumes().first().map_or(0, |_| store.points(&VOLUME, 1, 100).unwrap().len())
}

/// Cut at every length: what was complete by then is there, the rest is set aside
/// and not destroyed, and the store goes on.
#[test]
fn a_torn_end_of_any_length_is_set_aside() {
    for size in [1 << 20, 9000] {
        let (kit, store, steps) = small(size);
        store.close().unwrap();
        let name = last(&kit.segments);
        let whole = kit.segments.get(&name).unwrap();
        for cut in 0..whole.len() {
            let torn = kit.segments.snapshot();
            torn.set(&name, whole[..cut].to_vec());
            let kit = Kit { segments: torn.clone(), index: MemDir::new(), ..Kit::new(size, 50) };
            let opened = kit.try_open();
            let Ok((store, recovery)) = opened else {
                assert!(cut < 128 && size > 9000, "{cut}: {opened:?}");
                continue;
            };
            let expected = steps.iter().filter(|(n, len, _)| *n != name || *len <= cut as u64);
            assert!(points(&store) >= expected.count(), "cut at {cut}");
            let mut kept = torn.get(&name).unwrap_or_default();
            for t in &recovery.torn {
                kept.truncate(t.offset as usize);
                kept.extend(torn.get(&t.kept_in).unwrap());
            }
            assert!(kept.starts_with(&whole[..cut]), "cut at {cut}");
            if cut % 16 == 0 && store.volumes().len() == 1 {
                let bundle = kit.bundle();
                bundle.iter().for_each(|r| store.put(r, 1).unwrap());
                store.put(&kit.chunk(0, 77), 1).unwrap();
                store.close().unwrap();
                let (store, recovery) = kit.open();
                assert!(recovery.torn.is_empty());
                assert!(
                    store
                        .chunk(&chunk_of(77), &dormouse_format::WriterId::ZERO, 0)
                        .unwrap()
                        .is_some()
                );
            }
        }
    }
}

/// Any byte of what is on record as durable: opening refuses, or all points are there.
#[test]
fn damage_never_takes_an_acknowledged_point_silently() {
    let (kit, store, steps) = small(1 << 20);
    store.close().unwrap();
    let name = last(&kit.segments);
    let whole = kit.segments.get(&name).unwrap();
    let durable = steps.last().unwrap().1 as usize;
    for at in 0..durable {
        let bad = kit.segments.snapshot();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bad.set(&name, bytes.clone());
        let kit = Kit { segments: bad.clone(), index: MemDir::new(), ..Kit::new(1 << 20, 50) };
        match kit.try_open() {
            Err(Error::Damaged { segment, offset, .. }) => {
                assert!(segment == name && offset <= at as u64, "{at}");
                assert_eq!(bad.get(&name).unwrap(), bytes, "nothing was changed");
            }
            Err(Error::NewerVersion { .. }) => assert!((8..12).contains(&at)),
            Err(e) => panic!("byte {at}: {e}"),
            Ok((store, _)) => assert_eq!(points(&store), steps.len(), "byte {at}"),
        }
    }
}

#[test]
fn missing_and_foreign_segments_are_named() {
    let (kit, store, _) = small(3000);
    store.close().unwrap();
    let names: Vec<_> = kit.segments.list().unwrap();
    assert!(names.len() > 3);
    for name in &names[..names.len() - 1] {
        let dir = kit.segments.snapshot();
        dir.remove(name).unwrap();
        let kit = Kit { segments: dir, ..Kit::new(3000, 50) };
        let e = kit.try_open().err().unwrap();
        assert!(matches!(&e, Error::Damaged { segment, .. } if segment == name), "{e}");
    }
    let dir = kit.segments.snapshot();
    dir.set(&names[1], kit.segments.get(&names[2]).unwrap());
    let swapped = Kit { segments: dir, ..Kit::new(3000, 50) };
    assert!(matches!(swapped.try_open(), Err(Error::Damaged { .. })));
    let other = Kit { vault: dormouse_format::VaultId([9; 32]), ..Kit::new(3000, 50) };
    let other = Kit { segments: kit.segments.clone(), ..other };
    assert!(matches!(other.try_open(), Err(Error::Damaged { .. })));
    let empty = Kit::new(3000, 50);
    assert!(matches!(empty.try_open(), Err(Error::NotAStore { .. })));
}

#[test]
fn a_store_on_disk_comes_back() {
    use dormouse_store::disk::DiskDir;
    let path = std::env::temp_dir().join(format!("dormouse-store-{}", std::process::id()));
    let dir = |s: &str| Box::new(DiskDir::create_or_open(&path.join(s)).unwrap());
    let kit = Kit::new(4000, 50);
    let store = kit.create_on(dir("segments"), dir("index"));
    (0..200).for_each(|s| store.put(&kit.chunk(0, s), 1).unwrap());
    store.close().unwrap();
    drop(store);
    let open = |segments, index| VaultStore::open(segments, index, kit.vault, kit.options).unwrap();
    let (store, _) = open(dir("segments"), dir("index"));
    assert_eq!(
        store.chunk(&chunk_of(199), &dormouse_format::WriterId::ZERO, 0).unwrap(),
        Some(kit.chunk(0, 199))
    );
    drop(store);
    let read_only = |s: &str| Box::new(DiskDir::open(&path.join(s)).unwrap());
    let (store, recovery) = open(read_only("segments"), Box::new(*dir("index")));
    assert!(
        recovery.read_only
            && store.chunk(&chunk_of(1), &dormouse_format::WriterId::ZERO, 0).unwrap().is_some()
    );
    assert!(matches!(store.put(&kit.chunk(0, 999), 1), Err(Error::Poisoned)));
    std::fs::remove_dir_all(path).unwrap();
}
