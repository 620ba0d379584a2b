//! What a crash leaves behind.

use dormouse_crypt::{hash, record};
use dormouse_format::InstanceId;
use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::segment::{TAIL_LEN, TRAILER_LEN};
use dormouse_store::memory::MemDir;
use dormouse_store::{Dir, Error, Recovery, Result, VaultStore};

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

/// A version counts only in a header whose check holds.
#[test]
fn a_newer_version_is_told_from_a_damaged_one() {
    let (kit, store, _) = small(1 << 20);
    drop(store);
    let name = last(&kit.segments);
    let mut bytes = kit.segments.get(&name).unwrap();
    bytes[8] = 3;
    kit.segments.set(&name, bytes.clone());
    match kit.try_open() {
        Err(Error::Damaged { segment, offset: 0, .. }) => assert_eq!(segment, name),
        other => panic!("{other:?}"),
    }
    let check = hash::header_check(&bytes[..112]);
    bytes[112..128].copy_from_slice(&check);
    kit.segments.set(&name, bytes);
    assert!(matches!(kit.try_open(), Err(Error::NewerVersion { found: 3, known: 2 })));
}

/// Where the entries of a whole segment begin, and what they are.
fn entries(bytes: &[u8]) -> Vec<(usize, usize, Kind)> {
    let (mut at, mut all) = (128, Vec::new());
    while let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk::<HEADER_LEN>()) {
        let Ok(header) = Header::decode(head) else { break };
        let len = header.record_len() + TRAILER_LEN;
        all.push((at, len, header.kind));
        at += len;
    }
    all
}

/// Records that change places between segments are named, whatever they are.
#[test]
fn exchanged_records_are_named() {
    let (kit, store, _) = small(2000);
    store.close().unwrap();
    let names: Vec<_> = kit.segments.list().unwrap();
    let whole: Vec<_> = names.iter().map(|n| kit.segments.get(n).unwrap()).collect();
    let mut tried = 0;
    for (a, b) in (0..names.len() - 1).flat_map(|a| (a + 1..names.len() - 1).map(move |b| (a, b))) {
        for (x, len, kind) in entries(&whole[a]) {
            let same = entries(&whole[b]).into_iter().find(|e| e.1 == len && e.2 != Kind::Seal);
            let Some((y, _, other)) = same.filter(|_| kind != Kind::Seal) else { continue };
            let bad = kit.segments.snapshot();
            let mut pair = (whole[a].clone(), whole[b].clone());
            pair.0[x..x + len].swap_with_slice(&mut pair.1[y..y + len]);
            bad.set(&names[a], pair.0);
            bad.set(&names[b], pair.1);
            let kit = Kit { segments: bad, index: MemDir::new(), ..Kit::new(2000, 50) };
            let places = [(&names[a], x as u64), (&names[b], y as u64)];
            tried += 1;
            match kit.try_open() {
                Err(Error::Damaged { segment, offset, .. }) => {
                    assert!(places.contains(&(&segment, offset)), "{segment} {offset}");
                }
                Ok((_, recovery)) => {
                    let read_later = [Kind::Chunk, Kind::Page, Kind::Node, Kind::Mark];
                    let quiet = recovery.damaged.is_empty() && recovery.torn.is_empty();
                    let both = read_later.contains(&kind) && read_later.contains(&other);
                    assert!(!quiet || both, "{kind:?} and {other:?}: {recovery:?}");
                }
                Err(e) => panic!("{kind:?} and {other:?}: no place in: {e}"),
            }
        }
    }
    assert!(tried > 5, "{tried}");
}

/// What is refused for one fault is not mended for another.
#[test]
fn a_store_that_is_refused_is_left_as_it_is() {
    let (kit, store, _) = small(2000);
    store.close().unwrap();
    let (first, last) = (kit.segments.list().unwrap()[0].clone(), last(&kit.segments));
    let mut bytes = kit.segments.get(&first).unwrap();
    let (at, ..) = *entries(&bytes).iter().find(|e| e.2 == Kind::Vault).unwrap();
    bytes[at + HEADER_LEN] ^= 1;
    kit.segments.set(&first, bytes);
    let mut torn = kit.segments.get(&last).unwrap();
    torn.extend([7; 50]);
    kit.segments.set(&last, torn.clone());
    match kit.try_open() {
        Err(Error::Damaged { segment, offset, .. }) => {
            assert_eq!((segment, offset), (first, at as u64));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(kit.segments.get(&last).unwrap(), torn);
    assert!(kit.segments.list().unwrap().iter().all(|n| !n.contains("torn")));
}

/// Any byte of what is on record as durable: opening refuses, or all points are there, or
/// the one that is not is told, and a later one is.
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
            Err(e) => panic!("byte {at}: {e}"),
            Ok((store, recovery)) => {
                let [fault] = &recovery.damaged[..] else { panic!("{at}: {recovery:?}") };
                assert!(fault.segment == name && fault.offset <= at as u64, "{at}: {fault:?}");
                assert!(recovery.torn.is_empty(), "{at}");
                let lost = at_kind(&whole, fault.offset as usize) == Kind::Point;
                assert_eq!(points(&store), steps.len() - usize::from(lost), "byte {at}");
                assert_eq!(store.head(&VOLUME).unwrap().unwrap().point().seq, 6, "byte {at}");
                assert_eq!(bad.get(&name).unwrap(), bytes, "nothing was changed");
            }
        }
    }
}

fn header_at(bytes: &[u8], at: usize) -> Header {
    record::check_header(bytes[at..].first_chunk().unwrap()).unwrap()
}

fn at_kind(bytes: &[u8], at: usize) -> Kind {
    header_at(bytes, at).kind
}

/// Where the record of a chunk begins.
fn place_of(bytes: &[u8], seed: u64) -> usize {
    bytes.windows(16).position(|w| w == chunk_of(seed).0).unwrap() - 16
}

/// Opens a log whose last segment has these bytes.
fn open_with(from: &Kit, name: &str, bytes: &[u8]) -> (Kit, Result<(VaultStore, Recovery)>) {
    let segments = from.segments.snapshot();
    segments.set(name, bytes.to_vec());
    let kit = Kit { segments, index: MemDir::new(), ..Kit::new(1 << 20, 50) };
    let opened = kit.try_open();
    (kit, opened)
}

/// In the last segment as in a sealed one: that chunk is lost, and nothing else.
#[test]
fn a_damaged_chunk_in_the_last_segment_is_kept() {
    let (kit, store, steps) = small(1 << 20);
    store.close().unwrap();
    let name = last(&kit.segments);
    let mut bytes = kit.segments.get(&name).unwrap();
    let places = [100, 103].map(|seed| place_of(&bytes, seed));
    places.iter().for_each(|at| bytes[at + HEADER_LEN] ^= 1);
    let (kit, opened) = open_with(&kit, &name, &bytes);
    let (store, recovery) = opened.unwrap();
    let found: Vec<_> = recovery.damaged.iter().map(|f| f.offset as usize).collect();
    assert_eq!((found, recovery.torn.len()), (places.to_vec(), 0));
    assert_eq!(points(&store), steps.len());
    let get = |store: &VaultStore, seed| store.chunk(&chunk_of(seed), &kit.writer(0), 0);
    for seed in [100, 103] {
        assert!(matches!(get(&store, seed), Err(Error::Damaged { .. })));
    }
    assert_eq!(get(&store, 101).unwrap(), Some(kit.chunk(0, 101)));
    // Sent again it is there, beside the damaged one, also after another opening.
    store.put(&kit.chunk(0, 100), 1).unwrap();
    store.close().unwrap();
    let (store, recovery) = kit.open();
    assert_eq!((recovery.damaged.len(), recovery.torn.len()), (2, 0));
    assert_eq!(get(&store, 100).unwrap(), Some(kit.chunk(0, 100)));
    assert!(matches!(get(&store, 103), Err(Error::Damaged { .. })));
}

/// Cut at every length: a damaged body is kept only while what is left says that it was
/// durable, and what is found once is found again.
#[test]
fn a_damaged_body_that_nothing_proves_durable_is_a_torn_end() {
    let (kit, store, steps) = small(1 << 20);
    store.close().unwrap();
    let name = last(&kit.segments);
    let mut whole = kit.segments.get(&name).unwrap();
    let at = place_of(&whole, 103);
    whole[at + HEADER_LEN + 3] ^= 1;
    let end = at + HEADER_LEN + header_at(&whole, at).body_len as usize + TRAILER_LEN;
    // The first entry after the sync that ended point 4 says that all before it is durable.
    let sync = steps.iter().find(|(_, len, _)| *len as usize > at).unwrap().1 as usize;
    let next = header_at(&whole, sync);
    let proof = sync + HEADER_LEN + next.body_len as usize + TRAILER_LEN;
    for cut in at..whole.len() {
        let (kit, opened) = open_with(&kit, &name, &whole[..cut]);
        let (store, recovery) = opened.unwrap();
        let kept = cut >= proof;
        assert_eq!(recovery.damaged.len(), usize::from(kept), "cut at {cut}");
        let torn_at = recovery.torn.first().map(|t| t.offset as usize);
        assert!(kept || torn_at == (cut > at).then_some(at), "cut at {cut}: {torn_at:?}");
        assert!(!kept || torn_at.is_none_or(|torn| torn >= end), "cut at {cut}: {torn_at:?}");
        let seen = points(&store);
        assert!(seen >= if kept { 4 } else { 3 }, "cut at {cut}");
        let (again, recovery) = kit.open();
        assert_eq!((points(&again), recovery.torn.len()), (seen, 0), "cut at {cut}");
        assert_eq!(recovery.damaged.len(), usize::from(kept), "cut at {cut}");
    }
}

/// The record that proves a damaged chunk durable lies beyond a hole, and would be cut
/// off with it: the next opening would cut off the chunk and the point after it.
#[test]
fn a_proof_beyond_a_torn_end_is_not_enough() {
    let (kit, store, _) = small(1 << 20);
    store.close().unwrap();
    let name = last(&kit.segments);
    let durable = kit.segments.get(&name).unwrap().len();
    let store = kit.open().0;
    store.put(&kit.chunk(0, 900), 1).unwrap();
    store.barrier().unwrap();
    (901..903).for_each(|s| store.put(&kit.chunk(0, s), 1).unwrap());
    drop(store);
    let mut bytes = kit.segments.get(&name).unwrap();
    let [first, hole] = [900, 901].map(|seed| place_of(&bytes, seed));
    assert_eq!(first, durable);
    bytes[first + HEADER_LEN] ^= 1;
    assert_eq!(open_with(&kit, &name, &bytes).1.unwrap().1.damaged.len(), 1);
    bytes[hole..hole + HEADER_LEN].fill(0);
    let (kit, opened) = open_with(&kit, &name, &bytes);
    let offset = first as u64;
    assert!(matches!(opened, Err(Error::Damaged { offset: o, .. }) if o == offset));
    assert_eq!(kit.segments.get(&name).unwrap(), bytes, "nothing was changed");
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

/// Two records of one length change places: each is whole, and so is each trailer. Only
/// the chain tells.
#[test]
fn records_that_changed_places_are_damage() {
    let kit = Kit::new(1 << 20, 50);
    let store = kit.create();
    [1, 2, 51].iter().for_each(|seed| store.put(&kit.chunk(0, *seed), 1).unwrap());
    store.close().unwrap();
    let name = last(&kit.segments);
    let mut bytes = kit.segments.get(&name).unwrap();
    let [a, b] = [1, 51].map(|seed| place_of(&bytes, seed));
    let len = header_at(&bytes, a).record_len();
    assert_eq!(len, header_at(&bytes, b).record_len());
    let (before, after) = bytes.split_at_mut(b);
    before[a..a + len].swap_with_slice(&mut after[..len]);
    let (_, opened) = open_with(&kit, &name, &bytes);
    let Err(Error::Damaged { offset, why, .. }) = opened else { panic!("it opens") };
    assert!(offset == a as u64 && why.contains("chain"), "{offset}: {why}");
}

/// What ends a sealed segment says where its table lies: no other bytes are taken for it.
#[test]
fn every_flipped_byte_of_a_segments_end_is_refused() {
    let (kit, store, _) = small(3000);
    store.close().unwrap();
    let name = &kit.segments.list().unwrap()[1];
    let whole = kit.segments.get(name).unwrap();
    for at in whole.len() - TAIL_LEN..whole.len() {
        for mask in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            let (_, opened) = open_with(&kit, name, &bytes);
            let refused = matches!(&opened, Err(Error::Damaged { segment, .. }) if segment == name);
            assert!(refused, "byte {at}, mask {mask:#x}");
        }
    }
}

/// The same vault's log, begun at another time: each segment is whole, but none of them
/// belongs between the others.
#[test]
fn a_segment_of_another_log_of_the_vault_is_named() {
    let log = |now| {
        let kit = Kit::new(2000, 50);
        let (segments, index) = kit.boxes();
        let store = VaultStore::create(segments, index, kit.vault, now, kit.options).unwrap();
        kit.bundle().iter().for_each(|record| store.put(record, 1).unwrap());
        (0..30).for_each(|seed| store.put(&kit.chunk(0, seed), 1).unwrap());
        store.close().unwrap();
        kit
    };
    let (kit, other) = (log(1), log(2));
    let names = kit.segments.list().unwrap();
    assert!(names.len() > 3 && names == other.segments.list().unwrap());
    for (i, name) in names.iter().enumerate() {
        let segments = kit.segments.snapshot();
        segments.set(name, other.segments.get(name).unwrap());
        let e = Kit { segments, ..Kit::new(2000, 50) }.try_open().err().unwrap();
        // The first one follows nothing: what follows it does not.
        let at = &names[i.max(1)];
        assert!(matches!(&e, Error::Damaged { segment, .. } if segment == at), "{name}: {e}");
    }
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
