//! What would be gained, told before anything goes: as much as is dead when it is gone.

use dormouse_format::record::HEADER_LEN;
use dormouse_store::collect::gain::Gain;
use dormouse_store::retention::Policy;
use dormouse_store::{By, Dir, Error, VaultStore};

use crate::collect::{ALL, World, data};
use crate::kit::*;

const NOW: u64 = 10_000_000_000;

fn by() -> By<'static> {
    By { name: "x", grace: 0, now: NOW }
}

/// Keeps the newest point, and what it needs.
fn newest_only(store: &VaultStore) {
    let policy: Policy = "all:1s,floor:1s,short-floor".parse().unwrap();
    store.set_retention(Some(&VOLUME), Some(&policy), by()).unwrap();
}

fn gain(world: &World) -> Gain {
    world.store.gain(&[VOLUME], NOW, &mut |_| true).unwrap()
}

fn dead(world: &World) -> u64 {
    world.store.plan_collection(NOW, &ALL, &mut |_| true).unwrap().dead_bytes
}

/// Bytes of the records of these chunks.
fn chunks(seeds: impl IntoIterator<Item = u64>) -> u64 {
    seeds.into_iter().map(|seed| (HEADER_LEN as u64) + 40 + seed % 50).sum()
}

#[test]
fn what_is_told_is_what_is_dead_afterwards() {
    let mut world = World::new();
    world.history();
    // A newer point refers to two chunks of the first: they stay.
    let seeds = (0..10).map(|n| if n < 2 { n } else { 300 + n });
    world.checkpoint(&seeds.enumerate().map(|(i, s)| data(i as u64 * 10, s)).collect::<Vec<_>>());
    assert_eq!(gain(&world), Gain::default(), "nothing is set");
    newest_only(&world.store);
    let (before, told) = (dead(&world), gain(&world));
    assert_eq!(told.points, 9);
    let gone = [0, 1, 2].into_iter().flat_map(|round| {
        let own = (0..12).filter(move |n| round > 0 || *n > 1).chain([20, 21, 30]);
        own.map(move |n| 100 * round + n)
    });
    let known = chunks(gone);
    assert!(told.bytes > known && told.bytes < known + 30_000, "{told:?}, {known} of chunks");
    assert_eq!(dead(&world), before, "nothing was changed");
    world.store.prune(&VOLUME, by()).unwrap();
    assert_eq!(dead(&world) - before, told.bytes);
    assert_eq!(gain(&world), Gain::default());
}

#[test]
fn what_would_take_too_long_is_said() {
    let mut world = World::new();
    world.history();
    newest_only(&world.store);
    let mut left = 3;
    let mut pace = |_| {
        left -= 1;
        left > 0
    };
    assert!(matches!(world.store.gain(&[VOLUME], NOW, &mut pace), Err(Error::Stopped)));
    let left = world.kit.index.list().unwrap();
    assert!(left.iter().all(|name| !name.ends_with(".refs")), "{left:?}");
}
