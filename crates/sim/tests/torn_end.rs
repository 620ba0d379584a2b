//! A torn end is cut off only when its copy is durable, and under its name.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use dormouse_sim::machine::Pool;
use dormouse_sim::registry::Place;
use dormouse_sim::storage::{Image, Op, SEGMENTS, Storage, Verdict, Watch};
use dormouse_sim::{Disk, Lcg, World, noise};
use dormouse_store::{Options, VaultStore};

/// A disk on which a copy was under way: its chunks are written, and not synced.
fn under_way() -> (Image, dormouse_format::VaultId, Options) {
    let storage = Storage::new(Image::default(), Box::new(()), 1);
    let options = Options { segment_size: 64 << 10, index_entries: 100 };
    let pool = Some(Arc::new(Pool::committed()));
    let mut world = World::on(5, Box::new(storage.clone()), options, pool);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let (mut random, mut disk) = (Lcg(2), Disk::new(1 << 20));
    (0..4).for_each(|block| disk.write(block, noise(&mut random)));
    world.copy(&machine, volume, &disk).unwrap();
    (10..20).for_each(|block| disk.write(block * 2, noise(&mut random)));
    world.cut_after = Some(12);
    world.copy(&machine, volume, &disk).unwrap_err();
    (storage.image(), machine.vault, options)
}

/// The machine goes down at this operation.
struct At(u64);

impl Watch for At {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        if op.index >= self.0 { Verdict::Crash } else { Verdict::Go }
    }
}

/// Whether these bytes lie where they lay, or in a file that was set aside.
fn holds(image: &Image, segment: &str, offset: usize, bytes: &[u8]) -> bool {
    let at_home = |content: &[u8]| content.get(offset..) == Some(bytes);
    let aside = format!("{segment}.torn-");
    image.content(SEGMENTS, segment).is_some_and(at_home)
        || image
            .names(SEGMENTS)
            .iter()
            .any(|name| name.starts_with(&aside) && image.content(SEGMENTS, name) == Some(bytes))
}

/// A machine goes down; while the store is opened it goes down again, at each operation.
#[test]
fn a_torn_end_is_never_lost() {
    let (image, vault, options) = under_way();
    assert!(image.has_pending());
    let (mut kept, mut crashes) = (0, 0);
    for seed in 0..40 {
        let crashed = Storage::new(image.clone(), Box::new(()), seed).restart().image();
        let open = |watch: Box<dyn Watch>| {
            let disk = Storage::new(crashed.clone(), watch, seed);
            let opened = VaultStore::open(disk.segments(), disk.index(), vault, options);
            (disk, opened.map(|(_, recovery)| recovery.torn))
        };
        let (disk, torn) = open(Box::new(()));
        let (torn, all) = (torn.unwrap(), disk.ops());
        for torn in &torn {
            let offset = torn.offset as usize;
            let lost = &crashed.content(SEGMENTS, &torn.segment).unwrap()[offset..];
            assert_eq!(lost.len() as u64, torn.bytes);
            assert_eq!(disk.image().content(SEGMENTS, &torn.kept_in), Some(lost));
            for at in 0..=all {
                let (disk, _) = open(Box::new(At(at)));
                for _ in 0..4 {
                    let after = Storage::new(disk.image(), Box::new(()), at ^ crashes).restart();
                    let found = holds(&after.image(), &torn.segment, offset, lost);
                    assert!(found, "seed {seed}, operation {at}: {torn:?}");
                    crashes += 1;
                }
            }
            kept += 1;
        }
    }
    assert!(kept > 10 && crashes > 500, "{kept} torn ends, {crashes} crashes");
}
