//! A directory whose writes or syncs fail.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use dormouse_format::InstanceId;
use dormouse_store::{Error, VaultStore};

use crate::hooked::{Hook, Hooked};
use crate::kit::*;

/// Counts down; at zero the operation fails, and so does each after it once more.
#[derive(Default)]
struct Fuse {
    writes: AtomicI64,
    syncs: AtomicI64,
}

impl Fuse {
    fn burn(counter: &AtomicI64, kind: io::ErrorKind) -> io::Result<()> {
        if counter.fetch_sub(1, Ordering::SeqCst) == 1 { Err(kind.into()) } else { Ok(()) }
    }
}

impl Hook for Fuse {
    fn write(&self) -> io::Result<()> {
        Self::burn(&self.writes, io::ErrorKind::StorageFull)
    }
    fn sync(&self) -> io::Result<()> {
        Self::burn(&self.syncs, io::ErrorKind::Other)
    }
    fn sync_dir(&self) -> io::Result<()> {
        Self::burn(&self.syncs, io::ErrorKind::Other)
    }
}

fn world() -> (Kit, VaultStore, Arc<Fuse>) {
    let kit = Kit::new(1 << 20, 1000);
    let fuse = Arc::new(Fuse::default());
    let dir = Hooked(kit.segments.clone(), Arc::clone(&fuse));
    let store = kit.create_on(Box::new(dir), Box::new(kit.index.clone()));
    (kit, store, fuse)
}

fn poisoned(kit: &Kit, store: &VaultStore) {
    let open = || store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1);
    assert!(matches!(store.put(&kit.chunk(0, 50), 1), Err(Error::Poisoned)));
    assert!(matches!(open(), Err(Error::Poisoned)));
    assert!(matches!(store.close(), Err(Error::Poisoned)));
    assert!(store.stats().poisoned);
    assert_eq!(
        store.chunk(&chunk_of(1), &dormouse_format::WriterId::ZERO, 0).unwrap(),
        Some(kit.chunk(0, 1)),
        "reads go on"
    );
}

#[test]
fn no_room_is_said_and_poisons() {
    for nth in 1..=2 {
        let (kit, store, fuse) = world();
        store.put(&kit.chunk(0, 1), 1).unwrap();
        fuse.writes.store(nth, Ordering::SeqCst);
        assert!(matches!(store.put(&kit.chunk(0, 2), 1), Err(Error::Full)));
        poisoned(&kit, &store);
        let (store, recovery) = kit.open();
        assert_eq!(recovery.torn.len(), nth as usize - 1, "half an entry was set aside");
        assert!(store.chunk(&chunk_of(1), &dormouse_format::WriterId::ZERO, 0).unwrap().is_some());
        store.put(&kit.chunk(0, 2), 1).unwrap();
    }
}

#[test]
fn an_opening_makes_the_last_segment_and_its_name_durable() {
    let (kit, store, fuse) = world();
    store.put(&kit.chunk(0, 1), 1).unwrap();
    drop(store);
    let open = |nth| {
        fuse.syncs.store(nth, Ordering::SeqCst);
        let dir = Box::new(Hooked(kit.segments.clone(), Arc::clone(&fuse)));
        VaultStore::open(dir, Box::new(kit.index.clone()), kit.vault, kit.options)
    };
    assert!(matches!(open(1), Err(Error::Io { .. })), "the file");
    assert!(matches!(open(2), Err(Error::Io { .. })), "the directory");
    open(3).unwrap();
}

#[test]
fn a_failed_sync_poisons_and_is_not_tried_again() {
    let (kit, store, fuse) = world();
    store.put(&kit.chunk(0, 1), 1).unwrap();
    fuse.syncs.store(1, Ordering::SeqCst);
    assert!(matches!(store.barrier(), Err(Error::Io { .. })));
    let after = fuse.syncs.load(Ordering::SeqCst);
    assert!(matches!(store.barrier(), Err(Error::Poisoned)));
    poisoned(&kit, &store);
    assert_eq!(fuse.syncs.load(Ordering::SeqCst), after, "no sync was tried again");
}

/// A sync fails somewhere in a commit: the point is not seen, nor acknowledged.
#[test]
fn a_point_whose_sync_failed_is_not_seen() {
    let (kit, store, fuse) = world();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut map = Map::new();
    checkpoint(&kit, &store, g, &mut map, 1 << 20, &[]);
    store.put(&kit.chunk(0, 1), 1).unwrap();
    let pending = store.begin(&VOLUME, g, dormouse_store::Base::Checkpoint, 1 << 20).unwrap();
    let size = 1 << 20;
    let plan = Plan { generation: g, size, checkpoint: None, hash: root(&map, size) };
    let point = kit.point(&store, &plan);
    fuse.syncs.store(1, Ordering::SeqCst);
    assert!(matches!(store.commit(pending, &point, 9), Err(Error::Io { .. })));
    assert_eq!(store.head(&VOLUME).unwrap().unwrap().point().seq, 1);
    poisoned(&kit, &store);
}

/// One commit is one sync, whatever was put before it and whatever its base.
#[test]
fn one_commit_is_one_sync() {
    let (kit, store, fuse) = world();
    let g = store.open_write(&VOLUME, kit.writer(0), InstanceId([1; 16]), false, 1).unwrap();
    let mut map = Map::new();
    let size = 300 << 20;
    let data = |seed: u64| [Change::Data { start: seed * 20_000, seed, count: 1 }];
    for seed in 1..=3 {
        let before = fuse.syncs.load(Ordering::SeqCst);
        match seed {
            1 => checkpoint(&kit, &store, g, &mut map, size, &data(seed)),
            _ => delta_point(&kit, &store, g, &mut map, size, &data(seed)),
        }
        assert_eq!(before - fuse.syncs.load(Ordering::SeqCst), 1, "point {seed}");
    }
}
