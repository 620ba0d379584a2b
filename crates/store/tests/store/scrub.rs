//! Scrub finds every damage, and says what it touches.

use dormouse_format::record::Kind;
use dormouse_store::Dir;
use dormouse_store::scrub::{Finding, scrub};

use crate::kit::*;
use crate::recovery::{last, small};

fn findings(dir: &dyn Dir, kit: &Kit, live: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    scrub(dir, kit.vault, live, &mut |f| found.push(f)).unwrap();
    found
}

#[test]
fn every_flipped_byte_of_a_sealed_segment_is_found() {
    let (kit, store, _) = small(3000);
    store.close().unwrap();
    assert_eq!(findings(&kit.segments, &kit, false), []);
    for name in kit.segments.list().unwrap().iter().rev().skip(1).take(3) {
        let whole = kit.segments.get(name).unwrap();
        for at in (0..whole.len()).filter(|at| !(8..12).contains(at)) {
            let dir = kit.segments.snapshot();
            let mut bad = whole.clone();
            bad[at] ^= 0x20;
            dir.set(name, bad);
            let found = findings(&dir, &kit, true);
            assert!(found.iter().any(|f| f.segment == *name), "{name} byte {at}: {found:?}");
        }
    }
}

#[test]
fn a_torn_end_is_a_fault_only_when_nobody_writes() {
    let (kit, store, _) = small(1 << 20);
    store.close().unwrap();
    let name = last(&kit.segments);
    let mut bytes = kit.segments.get(&name).unwrap();
    bytes.truncate(bytes.len() - 10);
    kit.segments.set(&name, bytes);
    assert_eq!(findings(&kit.segments, &kit, true), []);
    assert_eq!(findings(&kit.segments, &kit, false).len(), 1);
}

#[test]
fn a_damage_names_its_points() {
    let (kit, store, _) = small(1 << 20);
    store.close().unwrap();
    // Point i + 1 is made of change(i), whose chunk is 100 + i; 1 and 4 are checkpoints,
    // 4 stands on the map of 1.
    for (seed, seqs) in
        [(100, vec![1, 2, 3, 4, 5, 6]), (101, vec![2, 3]), (103, vec![4, 5, 6]), (105, vec![6])]
    {
        let dir = kit.segments.snapshot();
        let name = last(&dir);
        let mut bytes = dir.get(&name).unwrap();
        let at = bytes.windows(16).position(|w| w == chunk_of(seed).0).unwrap();
        bytes[at + 110] ^= 1;
        dir.set(&name, bytes);
        let found = findings(&dir, &kit, false);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].kind, found[0].id), (Some(Kind::Chunk), Some(chunk_of(seed))));
        assert_eq!(found[0].touches.len(), 1);
        assert_eq!(found[0].touches[0].volume, "disk");
        assert_eq!(found[0].touches[0].seqs, seqs, "chunk {seed}");
    }
}
