//! A second copy of a log: brought up to date at any moment, and healed from.

use dormouse_format::InstanceId;
use dormouse_store::collect::Rules;
use dormouse_store::memory::MemDir;
use dormouse_store::replica::{Followed, follow, heal, settle};
use dormouse_store::scrub::scrub;
use dormouse_store::{Dir, Error, VaultStore};

use crate::kit::*;
use crate::recovery::{change, last, small};

const SIZE: u64 = 200 << 20;

fn files(dir: &MemDir) -> Vec<(String, Vec<u8>)> {
    let mut names = dir.list().unwrap();
    names.sort();
    names.into_iter().map(|n| (n.clone(), dir.get(&n).unwrap())).collect()
}

fn is_prefix(copy: &MemDir, of: &MemDir) {
    for (name, bytes) in files(copy) {
        assert!(of.get(&name).unwrap().starts_with(&bytes), "{name}");
    }
}

/// What a copy is worth: how many points it shows.
fn points(kit: &Kit, copy: &MemDir) -> usize {
    let boxes = (Box::new(copy.snapshot()), Box::new(MemDir::new()));
    let (store, recovery) = VaultStore::open(boxes.0, boxes.1, kit.vault, kit.options).unwrap();
    assert!(recovery.torn.is_empty() && recovery.damaged.is_empty(), "{recovery:?}");
    store.points(&VOLUME, 1, 100).unwrap().len()
}

#[test]
fn a_copy_follows_a_store_that_is_written() {
    let kit = Kit::new(2500, 50);
    let (store, copy) = (kit.create(), MemDir::new());
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut map = Map::new();
    for i in 0..8 {
        checkpoint(&kit, &store, g, &mut map, SIZE, &change(i));
        let done = follow(&kit.segments, &copy, &kit.vault).unwrap();
        assert!(done.bytes > 0 && done.damaged.is_empty(), "{done:?}");
        is_prefix(&copy, &kit.segments);
        // All that was acknowledged is there.
        assert_eq!(points(&kit, &copy), i as usize + 1);
        // Nothing new, nothing done.
        let again = follow(&kit.segments, &copy, &kit.vault).unwrap();
        assert_eq!((again.copied, again.bytes), (0, 0));
    }
    assert!(copy.list().unwrap().len() > 2, "several segments");
    store.close().unwrap();
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    assert_eq!(files(&copy), files(&kit.segments));
    // It can take the place of the store, and then is a copy no more.
    let mut after = Kit::new(2500, 50);
    (after.segments, after.index) = (copy.clone(), MemDir::new());
    let (store, _) = after.open();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([2; 16]), true, 1).unwrap();
    checkpoint(&after, &store, g, &mut map, SIZE, &change(9));
    let error = follow(&kit.segments, &copy, &kit.vault).unwrap_err();
    assert!(matches!(&error, Error::NotAStore { .. }), "{error}");
}

/// What is not whole yet is not copied: the store may lose it.
#[test]
fn an_unfinished_end_is_not_copied() {
    let (kit, store, _) = small(1 << 20);
    store.close().unwrap();
    let name = last(&kit.segments);
    let whole = kit.segments.get(&name).unwrap();
    for more in [&b"DMR1"[..], &whole[128..300], &[0; 500]] {
        kit.segments.set(&name, [&whole[..], more].concat());
        let copy = MemDir::new();
        follow(&kit.segments, &copy, &kit.vault).unwrap();
        assert_eq!(copy.get(&name).unwrap(), whole);
    }
}

/// A copy that died at any byte goes on.
#[test]
fn a_copy_that_was_cut_short_goes_on() {
    let (kit, store, _) = small(2500);
    store.close().unwrap();
    let whole = files(&kit.segments);
    let ((name, bytes), before) = whole.split_last().map(|(l, b)| (l.clone(), b)).unwrap();
    assert!(before.len() > 1, "several segments");
    for cut in (0..bytes.len()).step_by(61) {
        for garbage in [&[][..], &[0; 40], &[0xA5; 200]] {
            let copy = MemDir::new();
            before.iter().for_each(|(name, bytes)| copy.set(name, bytes.clone()));
            copy.set(&name, [&bytes[..cut], garbage].concat());
            follow(&kit.segments, &copy, &kit.vault).unwrap();
            assert_eq!(files(&copy), whole, "cut at {cut}");
        }
    }
}

#[test]
fn a_copy_that_differs_is_refused_and_left_alone() {
    let (kit, store, _) = small(2500);
    store.close().unwrap();
    let copy = MemDir::new();
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    // The last segment is compared byte for byte; of the others, the ends.
    let name = last(&copy);
    let mut bytes = copy.get(&name).unwrap();
    bytes[300] ^= 1;
    copy.set(&name, bytes);
    let before = files(&copy);
    let error = follow(&kit.segments, &copy, &kit.vault).unwrap_err();
    assert!(error.to_string().contains("no copy of this log"), "{error}");
    assert_eq!(files(&copy), before);
    // A source that lacks a segment takes nothing away.
    let copy = MemDir::new();
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    let first = files(&kit.segments)[0].0.clone();
    kit.segments.remove(&first).unwrap();
    let error = follow(&kit.segments, &copy, &kit.vault).unwrap_err();
    assert!(error.to_string().contains("segments are missing"), "{error}");
    assert!(copy.get(&first).is_some());
}

/// A damaged body does not end the following: it is copied as it is, and told.
#[test]
fn a_damaged_record_is_told_and_the_rest_is_copied() {
    let (kit, store, _) = small(2500);
    store.close().unwrap();
    let name = files(&kit.segments)[1].0.clone();
    let mut bytes = kit.segments.get(&name).unwrap();
    bytes[128 + 112 + 2] ^= 1;
    kit.segments.set(&name, bytes);
    let copy = MemDir::new();
    let done = follow(&kit.segments, &copy, &kit.vault).unwrap();
    assert_eq!(done.damaged.len(), 1, "{done:?}");
    assert_eq!((&*done.damaged[0].segment, done.damaged[0].offset), (&*name, 128));
    assert_eq!(files(&copy), files(&kit.segments));
    let Followed { damaged, .. } = follow(&kit.segments, &copy, &kit.vault).unwrap();
    assert!(damaged.is_empty(), "told once");
}

fn findings(kit: &Kit, dir: &MemDir) -> u64 {
    scrub(dir, kit.vault, false, &mut |_| ()).unwrap().findings
}

/// Every byte of every segment but what no check knows of: damaged, and healed.
#[test]
fn any_damage_is_healed_and_kept() {
    let (kit, store, _) = small(2500);
    store.close().unwrap();
    let whole = files(&kit.segments);
    let copy = MemDir::new();
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    for (name, bytes) in &whole {
        for at in (0..bytes.len()).step_by(97) {
            let own = kit.segments.snapshot();
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            own.set(name, damaged.clone());
            if findings(&kit, &own) == 0 {
                continue;
            }
            let healing = heal(&own, &copy, &kit.vault).unwrap();
            assert!(healing.left.is_empty(), "{name} {at}: {healing:?}");
            assert_eq!(healing.healed.len(), 1, "{name} {at}: {healing:?}");
            let kept = healing.healed[0].kept_in.clone().unwrap();
            assert_eq!(own.get(&kept).unwrap(), damaged);
            own.remove(&kept).unwrap();
            assert_eq!(files(&own), whole, "{name} {at}");
        }
        let own = kit.segments.snapshot();
        own.remove(name).unwrap();
        let healing = heal(&own, &copy, &kit.vault).unwrap();
        assert_eq!(healing.healed.len(), 1, "{healing:?}");
        assert_eq!(healing.healed[0].kept_in, None);
        assert_eq!(files(&own), whole, "{name} was missing");
    }
    let own = kit.segments.snapshot();
    assert_eq!(heal(&own, &copy, &kit.vault).unwrap(), Default::default(), "nothing to heal");
}

/// What the store has beyond its copy stays, whole; what only the store had, and is damaged,
/// is left as it is and told.
#[test]
fn what_the_copy_does_not_have_is_never_lost() {
    let (kit, store, _) = small(1 << 20);
    store.close().unwrap();
    let copy = MemDir::new();
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    let name = last(&copy);
    let copied = copy.get(&name).unwrap().len();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut map = Map::new();
    [0, 3].iter().for_each(|i| apply(&mut map, &change(*i), SIZE));
    checkpoint(&kit, &store, g, &mut map, SIZE, &change(7));
    store.close().unwrap();
    let whole = kit.segments.get(&name).unwrap();
    assert!(whole.len() > copied + 500);
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let own = kit.segments.snapshot();
        own.set(&name, bytes);
        own
    };
    let own = flipped(128 + 112 + 5);
    let healing = heal(&own, &copy, &kit.vault).unwrap();
    assert_eq!((healing.healed.len(), healing.left.len()), (1, 0), "{healing:?}");
    assert_eq!(own.get(&name).unwrap(), whole);

    let own = flipped(copied + 112 + 5);
    let before = files(&own);
    let healing = heal(&own, &copy, &kit.vault).unwrap();
    assert_eq!((healing.healed.len(), healing.left.len()), (0, 1), "{healing:?}");
    assert_eq!(files(&own), before);
}

/// Only what was there is put back: bytes of another history are not.
#[test]
fn a_log_of_another_history_heals_nothing() {
    let (kit, store, _) = small(2500);
    store.close().unwrap();
    let other = {
        let kit = Kit::new(2500, 50);
        let store = kit.create();
        let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([9; 16]), false, 7).unwrap();
        let mut map = Map::new();
        (20..28).for_each(|i| checkpoint(&kit, &store, g, &mut map, SIZE, &change(i)));
        store.close().unwrap();
        kit.segments
    };
    let differing =
        files(&kit.segments).into_iter().filter(|(n, b)| other.get(n).as_ref() != Some(b));
    let differing: Vec<_> = differing.collect();
    assert!(differing.len() > 1, "they part early");
    for (name, mut bytes) in differing {
        let own = kit.segments.snapshot();
        bytes[128 + 112 + 2] ^= 1;
        own.set(&name, bytes);
        let before = files(&own);
        let healing = heal(&own, &other, &kit.vault).unwrap();
        assert!(healing.healed.is_empty() && !healing.left.is_empty(), "{name}: {healing:?}");
        assert_eq!(files(&own), before);
        // Nor is what is missing, if anything of this history follows it.
        own.remove(&name).unwrap();
        if name < last(&own) {
            let before = files(&own);
            heal(&own, &other, &kit.vault).unwrap();
            assert_eq!(files(&own), before, "{name}");
        }
    }
}

/// What the log has retired goes from the copy too, and from nowhere else.
#[test]
fn retired_segments_go_when_the_copy_knows_why() {
    let kit = Kit::new(2500, 50);
    let (store, copy) = (kit.create(), MemDir::new());
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut map = Map::new();
    (0..8).for_each(|i| checkpoint(&kit, &store, g, &mut map, SIZE, &rewritten(i)));
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    let many = copy.list().unwrap().len();
    store.expire(&VOLUME, &[1..=6], 1000).unwrap();
    let rules = Rules { grace_ns: 0, live_percent_max: 100 };
    let round = store.collect(1000, &rules, &mut |_| true).unwrap();
    assert!(round.retired > 2, "{round:?}");
    store.close().unwrap();
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    assert!(copy.list().unwrap().len() < many);
    // One whose making was cut short here, before the log retired it.
    let mut all = (1..30).map(|n: u64| format!("{n:016}.seg"));
    let gone = all.find(|name| kit.segments.get(name).is_none()).unwrap();
    for half in [vec![], vec![7; 50], vec![7; 500]] {
        copy.set(&gone, half);
        follow(&kit.segments, &copy, &kit.vault).unwrap();
    }
    // A copy that is begun now is the same.
    let late = MemDir::new();
    follow(&kit.segments, &late, &kit.vault).unwrap();
    for copy in [&copy, &late] {
        assert_eq!(files(copy), files(&kit.segments));
        assert_eq!((findings(&kit, copy), points(&kit, copy)), (0, 2));
    }
    for (name, bytes) in files(&kit.segments) {
        let own = kit.segments.snapshot();
        own.remove(&name).unwrap();
        // What was lost is not taken for retired: the copy keeps it, and brings it back.
        if name < last(&kit.segments) {
            let error = follow(&own, &copy, &kit.vault).unwrap_err();
            assert!(error.to_string().contains("missing"), "{name}: {error}");
            assert!(copy.get(&name).is_some());
        }
        heal(&own, &copy, &kit.vault).unwrap();
        assert_eq!(own.get(&name), Some(bytes));
        assert_eq!(files(&own), files(&kit.segments), "and nothing that was retired");
    }
}

/// The same blocks each time: what they were before is needed by nobody.
fn rewritten(round: u64) -> Vec<Change> {
    (0..12).map(|i| Change::Data { start: i * 10, count: 4, seed: 100 * round + i }).collect()
}

/// A run that was cut short brings a copy behind a gap, or half a segment: without its source the
/// copy is what the run before had brought.
#[test]
fn a_copy_whose_last_run_was_cut_short_is_whole_without_its_source() {
    let kit = Kit::new(2500, 50);
    let (store, copy) = (kit.create(), MemDir::new());
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut map = Map::new();
    for i in 0..4 {
        checkpoint(&kit, &store, g, &mut map, SIZE, &change(i));
    }
    follow(&kit.segments, &copy, &kit.vault).unwrap();
    let (before, last) = (points(&kit, &copy), last(&copy));
    assert_eq!(settle(&copy, &kit.vault).unwrap(), [""; 0], "nothing was cut short");
    for i in 4..9 {
        checkpoint(&kit, &store, g, &mut map, SIZE, &change(i));
    }
    store.close().unwrap();
    let mut behind = kit.segments.list().unwrap();
    behind.retain(|name| *name > last);
    behind.sort();
    assert!(behind.len() > 2, "{behind:?}");
    let whole = |copy: &MemDir, name: &str| copy.set(name, kit.segments.get(name).unwrap());
    // One that would follow another, which is not there yet; and half a header.
    for cut in [&[1_usize][..], &[1, 2], &[]] {
        let copy = copy.snapshot();
        whole(&copy, &last);
        cut.iter().for_each(|at| whole(&copy, &behind[*at]));
        if cut.is_empty() {
            let mut torn = kit.segments.get(&behind[0]).unwrap();
            torn[60] ^= 1;
            copy.set(&behind[0], torn);
        }
        let refused = VaultStore::open(
            Box::new(copy.snapshot()),
            Box::new(MemDir::new()),
            kit.vault,
            kit.options,
        );
        assert!(refused.is_err(), "{cut:?}: nothing was in the way");
        let aside = settle(&copy, &kit.vault).unwrap();
        assert_eq!(aside.len(), cut.len().max(1), "{aside:?}");
        assert!(points(&kit, &copy) >= before, "{cut:?}");
        // And the next run brings all.
        follow(&kit.segments, &copy, &kit.vault).unwrap();
        assert_eq!(points(&kit, &copy), 9, "{cut:?}");
    }
}
