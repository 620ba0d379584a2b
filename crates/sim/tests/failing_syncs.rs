//! A sync that fails loses on the medium what memory goes on showing. The process that
//! comes next must not build on it: after a crash all that it acknowledged is there.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use dormouse_sim::storage::{Image, Op, OpKind, Storage, Verdict, Watch};
use dormouse_sim::{Disk, Lcg, Machine, World, noise};
use dormouse_store::Options;

struct FailSync(Arc<AtomicI64>);

impl Watch for FailSync {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        let syncs = matches!(op.kind, OpKind::Sync | OpKind::SyncDir);
        if syncs && self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Verdict::Fail(ErrorKind::Other);
        }
        Verdict::Go
    }
}

const OPTIONS: Options = Options { segment_size: 14 << 10, index_entries: 16 };

/// The same machines and volumes on what is left of a disk.
fn again(world: &World, machine: &Machine, storage: &Storage) -> World {
    let next = World::on(9, Box::new(storage.clone()), OPTIONS, None);
    let (clients, invites) = world.registry.state();
    next.registry.set_state(clients, invites);
    let recovery = next.registry.reopen(machine.vault).unwrap();
    assert_eq!(recovery.damaged, []);
    World { now: world.now, ..next }
}

#[test]
fn what_is_acknowledged_after_a_failed_sync_survives_a_crash() {
    let (mut failures, mut nth) = (0, 0);
    loop {
        let fuse = Arc::new(AtomicI64::new(-1));
        let storage = Storage::new(Image::default(), Box::new(FailSync(fuse.clone())), nth as u64);
        let mut world = World::on(3, Box::new(storage.clone()), OPTIONS, None);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let (mut random, mut disk, mut models) = (Lcg(1), Disk::new(1 << 20), Vec::new());
        fuse.store(nth, Ordering::Relaxed);
        let mut step = |world: &mut World, disk: &mut Disk, models: &mut Vec<Disk>| {
            disk.write(random.below(200), noise(&mut random));
            let done = world.copy(&machine, volume, disk).is_ok();
            models.extend(done.then(|| disk.clone()));
            done
        };
        let failed = !(0..6).all(|_| step(&mut world, &mut disk, &mut models));
        fuse.store(-1, Ordering::Relaxed);
        let storage = storage.reopened();
        let mut world = again(&world, &machine, &storage);
        // The point whose sync failed was not acknowledged; it may be there all the same.
        let there = world.points(&machine, volume).unwrap().len();
        assert!((models.len()..=models.len() + 1).contains(&there), "sync {nth}");
        if there > models.len() {
            models.push(disk.clone());
        }
        assert!(step(&mut world, &mut disk, &mut models), "sync {nth}");
        for seed in 0..8 {
            let image = storage.image().crashed(&mut Lcg(seed));
            let left = Storage::new(image, Box::new(()), seed);
            let mut world = again(&world, &machine, &left);
            let points = world.points(&machine, volume).unwrap().len();
            assert_eq!(points, models.len(), "sync {nth}, crash {seed}");
            world.assert_restores(&machine, volume, &models);
        }
        if !failed {
            break;
        }
        (failures, nth) = (failures + 1, nth + 1);
    }
    assert!(failures > 15, "{failures}");
}
