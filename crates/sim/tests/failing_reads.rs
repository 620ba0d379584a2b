//! A read that fails while a store is opened is no damage: the store does not open,
//! or opens as if nothing had been.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use dormouse_sim::storage::{Image, Op, OpKind, Storage, Verdict, Watch};
use dormouse_sim::{Disk, Lcg, World, noise};
use dormouse_store::{Error, Options};

struct FailRead(Arc<AtomicI64>);

impl Watch for FailRead {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        let reads = matches!(op.kind, OpKind::Read | OpKind::Open | OpKind::Len | OpKind::List);
        if reads && self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Verdict::Fail(ErrorKind::Other);
        }
        Verdict::Go
    }
}

#[test]
fn a_read_that_fails_at_opening_is_no_damage() {
    let fuse = Arc::new(AtomicI64::new(-1));
    let storage = Storage::new(Image::default(), Box::new(FailRead(fuse.clone())), 1);
    let options = Options { segment_size: 16 << 10, index_entries: 16 };
    let mut world = World::on(3, Box::new(storage.clone()), options, None);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let (mut random, mut disk, mut models) = (Lcg(1), Disk::new(1 << 20), Vec::new());
    for n in 0..8 {
        disk.write(n * 7, noise(&mut random));
        match n % 4 {
            0 => world.copy(&machine, volume, &disk).unwrap(),
            _ => world.copy_changes(&machine, volume, &disk, &[n * 7]).unwrap(),
        };
        models.push(disk.clone());
    }
    let (mut failed, mut opened) = (0, 0);
    loop {
        world.registry.forget();
        fuse.store(failed + opened, Ordering::Relaxed);
        let outcome = world.registry.reopen(machine.vault);
        let all_read = fuse.swap(-1, Ordering::Relaxed) >= 0;
        match outcome {
            Err(Error::Io { .. }) => failed += 1,
            Err(other) => panic!("read {}: {other}", failed + opened),
            Ok(recovery) => {
                assert_eq!(recovery.damaged, [], "read {}", failed + opened);
                assert_eq!(world.points(&machine, volume).unwrap().len(), models.len());
                opened += 1;
            }
        }
        if all_read {
            break;
        }
    }
    assert!(failed > 20, "{failed} reads failed, {opened} were of the index");
    world.assert_restores(&machine, volume, &models);
}
