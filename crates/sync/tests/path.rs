//! The whole path in memory: copy, copy again, list, restore each point.
#![allow(missing_docs, clippy::unwrap_used)]

use dormouse_crypt::digest::cuts;
use dormouse_crypt::record::check_header;
use dormouse_format::ChunkId;
use dormouse_format::limits::{BLOCK_SIZE, VOLUME_SIZE_MAX};
use dormouse_format::message::{Message, Refusal};
use dormouse_format::record::{HEADER_LEN, Header, Kind, MAGIC};
use dormouse_sim::registry::Memory;
use dormouse_sim::{Disk, Lcg, World, noise};
use dormouse_store::memory::MemDir;
use dormouse_store::{Dir, Error as StoreError, Options};
use dormouse_sync::Error;

fn filled(random: &mut Lcg, size: u64, blocks: u64) -> Disk {
    let mut disk = Disk::new(size);
    let end = size.div_ceil(BLOCK_SIZE as u64);
    while (disk.blocks.len() as u64) < blocks {
        let start = random.below(end);
        for block in start..(start + 1 + random.below(40)).min(end) {
            disk.write(block, noise(random));
        }
    }
    disk
}

fn change(random: &mut Lcg, disk: &mut Disk) -> Vec<u64> {
    let end = disk.size.div_ceil(BLOCK_SIZE as u64);
    let mut changed = std::collections::BTreeSet::new();
    for _ in 0..1 + random.below(20) {
        let start = random.below(end);
        let zero = random.below(4) == 0;
        for block in start..(start + 1 + random.below(20)).min(end) {
            let content = if zero { vec![0; BLOCK_SIZE] } else { noise(random) };
            disk.write(block, content);
            changed.insert(block);
        }
    }
    changed.into_iter().collect()
}

#[test]
fn every_point_comes_back_through_scans_deltas_checkpoints_and_resizes() {
    for seed in 1..=6 {
        let mut world = World::new(seed);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut random = Lcg(seed * 77);
        let mut disk = filled(&mut random, (200 << 20) + 4096 * seed, 900);
        let mut models = Vec::new();
        world.copy(&machine, volume, &disk).unwrap();
        models.push(disk.clone());
        for _ in 0..14 {
            match random.below(5) {
                0 | 1 => {
                    let changed = change(&mut random, &mut disk);
                    world.copy_changes(&machine, volume, &disk, &changed).unwrap();
                }
                2 => {
                    world.checkpoint(&machine, volume).unwrap();
                }
                3 => {
                    change(&mut random, &mut disk);
                    world.copy(&machine, volume, &disk).unwrap();
                }
                _ => {
                    let size = (60 + random.below(400)) << 20 | random.below(2) << 12;
                    let old = disk.size;
                    disk.resize(size);
                    let first = old.min(size) / BLOCK_SIZE as u64;
                    let tail = [first.saturating_sub(1)];
                    world.copy_changes(&machine, volume, &disk, &tail).unwrap();
                }
            }
            models.push(disk.clone());
        }
        world.assert_restores(&machine, volume, &models);
        // On a whole store a check finds the rest where the map has it.
        world.check(&machine, volume, &disk).unwrap();
        models.push(disk.clone());
        let again = world.check(&machine, volume, &disk).unwrap().progress;
        models.push(disk.clone());
        assert_eq!((again.changed, again.sent, again.known), (0, 0, again.chunks));
        assert!(again.chunks > 0);
        world.assert_restores(&machine, volume, &models);
        let last = models.len() as u64;
        for from in [0, models.len() / 2] {
            let old = &models[from];
            let (back, _) = world.restore(&machine, volume, last, Some(old)).unwrap();
            assert!(back == disk, "in place from point {}", from + 1);
        }
    }
}

/// What cannot be read is zero in a first copy, and stays as the last checkpoint has it later; the
/// root is right all the same, for the server computes it from what was sent.
#[test]
fn blocks_that_cannot_be_read_stay_as_they_were() {
    for seed in 1..=8 {
        let mut world = World::new(seed);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut random = Lcg(seed * 131);
        let mut disk = filled(&mut random, (90 << 20) + 4096 * seed, 3000);
        let end = disk.size / BLOCK_SIZE as u64;
        let mut models = Vec::new();
        for round in 0..5 {
            // Alone, in runs, and whole leaves.
            disk.unread.clear();
            for _ in 0..10 {
                let start = random.below(end);
                let count = [1, 5, 40, 600][random.below(4) as usize];
                disk.unread.extend(start..(start + count).min(end));
            }
            let before: Disk = models.last().cloned().unwrap_or_else(|| Disk::new(disk.size));
            let mut model = disk.clone();
            for block in std::mem::take(&mut model.unread) {
                match before.blocks.get(&block) {
                    Some(content) => drop(model.blocks.insert(block, content.clone())),
                    None => drop(model.blocks.remove(&block)),
                }
            }
            let done = match round {
                3 => world.check(&machine, volume, &disk),
                _ => world.copy(&machine, volume, &disk),
            };
            let changed = done.unwrap().progress.changed;
            let model_same = model == before;
            models.push(model);
            if round == 2 {
                // Nothing has changed but what can be read: nothing is sent.
                assert_eq!(world.copy(&machine, volume, &disk).unwrap().progress.changed, 0);
                models.push(models[models.len() - 1].clone());
            }
            assert!(changed > 0 || model_same, "a round in which nothing was sent");
            change(&mut random, &mut disk);
        }
        disk.unread.clear();
        world.copy(&machine, volume, &disk).unwrap();
        models.push(disk);
        world.assert_restores(&machine, volume, &models);
    }
}

/// A scan in parts: each point has what was compared so far, and of the rest what was there before;
/// the server computes the same roots. Blocks that cannot be read are in it, cuts, and a size that grows.
#[test]
fn a_scan_may_go_in_parts() {
    const PAGE: u64 = 64 << 20;
    let within = |block: u64, part: &core::ops::Range<u64>| {
        part.contains(&(block * BLOCK_SIZE as u64 / PAGE))
    };
    for seed in 1..=6 {
        let mut world = World::new(seed);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut random = Lcg(seed * 57);
        // 79 pages: a tree of three levels.
        let mut disk = filled(&mut random, 78 * PAGE + 4096 * seed, 900);
        let mut before = Disk::new(disk.size);
        let mut models: Vec<Disk> = Vec::new();
        for round in 0..4 {
            let mut from = 0;
            while from < 79 {
                let end = if seed == 1 { from + 9 } else { from + 1 + random.below(40) };
                let part = from..if end >= 79 { u64::MAX } else { end };
                disk.unread.clear();
                let start = from * PAGE / BLOCK_SIZE as u64 + random.below(300);
                disk.unread.extend(start..start + random.below(600));
                if random.below(3) == 0 {
                    world.cut_after = Some(1 + random.below(40));
                    if world.copy_part(&machine, volume, &disk, part.clone()).is_ok() {
                        models.push(Disk::default());
                    }
                    world.cut_after = None;
                }
                world.copy_part(&machine, volume, &disk, part.clone()).unwrap();
                let keeps = |block: &u64| !within(*block, &part) || disk.unread.contains(block);
                let mut model = Disk::new(disk.size);
                model.blocks.extend(before.blocks.clone().into_iter().filter(|(b, _)| keeps(b)));
                model.blocks.extend(disk.blocks.clone().into_iter().filter(|(b, _)| !keeps(b)));
                // One that was cut only when it was done had the same.
                models.iter_mut().filter(|m| m.size == 0).for_each(|m| *m = model.clone());
                models.push(model.clone());
                (before, from) = (model, end);
            }
            change(&mut random, &mut disk);
            if round == 1 {
                disk.size += 4096 * 9;
            }
        }
        world.assert_restores(&machine, volume, &models);
        // Nothing outside of a part is read or sent, and little is asked for.
        world.copy(&machine, volume, &disk).unwrap();
        let again = world.copy_part(&machine, volume, &disk, 5..6).unwrap().progress;
        assert_eq!((again.changed, again.sent), (0, 0));
        assert!(world.traffic.0 + world.traffic.1 < 16 << 10, "{:?}", world.traffic);
        // What has become smaller has to be compared as a whole.
        disk.resize(40 * PAGE);
        let refused = world.copy_part(&machine, volume, &disk, 5..6);
        assert!(matches!(refused, Err(Error::Protocol { .. })), "{refused:?}");
    }
}

#[test]
fn unchanged_costs_nothing_and_moved_content_is_not_sent() {
    let mut world = World::new(1);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(5);
    let mut disk = Disk::new(1 << 30);
    for block in 1000..6000 {
        disk.write(block, noise(&mut random));
    }
    let first = world.copy(&machine, volume, &disk).unwrap();
    assert_eq!(first.progress.changed, 5000);
    assert!(first.progress.sent_bytes > 5000 * 4096);
    let again = world.copy(&machine, volume, &disk).unwrap();
    assert_eq!((again.progress.changed, again.progress.sent), (0, 0));
    assert!(world.traffic.0 + world.traffic.1 < (1 << 30) / 10_000, "{:?}", world.traffic);
    let moved: Vec<_> = (2000..5000).map(|b| disk.blocks[&b].clone()).collect();
    for (i, content) in moved.into_iter().enumerate() {
        disk.write(100_003 + i as u64, content);
    }
    let dup = world.copy(&machine, volume, &disk).unwrap();
    assert_eq!(dup.progress.changed, 3000);
    assert!(dup.progress.sent <= 2, "only the first and the last chunk: {:?}", dup.progress);
    let (back, _) = world.restore(&machine, volume, 3, None).unwrap();
    assert!(back == disk);
}

#[test]
fn in_place_fetches_only_what_differs() {
    let mut world = World::new(3);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(9);
    let mut disk = filled(&mut random, 64 << 20, 3000);
    let old = disk.clone();
    world.copy(&machine, volume, &disk).unwrap();
    disk.write(7, noise(&mut random));
    world.copy(&machine, volume, &disk).unwrap();
    let (back, progress) = world.restore(&machine, volume, 2, Some(&old)).unwrap();
    assert!(back == disk);
    assert_eq!((progress.written, progress.chunks), (1, 1));
}

#[test]
fn a_link_cut_at_any_message_leaves_the_last_point_whole() {
    let mut random = Lcg(4);
    let mut disk = filled(&mut random, 32 << 20, 1500);
    let mut world = World::new(8);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    world.copy(&machine, volume, &disk).unwrap();
    let mut models = vec![disk.clone()];
    change(&mut random, &mut disk);
    let mut cut = 1;
    loop {
        world.cut_after = Some(cut);
        let result = world.copy(&machine, volume, &disk);
        world.cut_after = None;
        let heads = world.points(&machine, volume).unwrap().len();
        if result.is_ok() {
            models.push(disk.clone());
            assert_eq!(heads, models.len());
            break;
        }
        assert_eq!(heads, models.len(), "cut after {cut} messages");
        cut += 1;
    }
    assert!(cut > 5);
    world.assert_restores(&machine, volume, &models);
}

#[test]
fn what_was_put_before_a_cut_is_not_sent_again() {
    let mut random = Lcg(4);
    let disk = filled(&mut random, 64 << 20, 4000);
    let mut world = World::new(8);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    world.cut_after = Some(120);
    assert!(world.copy(&machine, volume, &disk).is_err());
    let before = world.registry.vaults.lock().unwrap()[&machine.vault].stats();
    world.cut_after = None;
    let rest = world.copy(&machine, volume, &disk).unwrap();
    assert!(rest.progress.known > 50, "{:?}", rest.progress);
    assert_eq!(rest.progress.sent + rest.progress.known, rest.progress.chunks);
    assert!(before.records > 0);
}

#[test]
fn an_older_connection_is_fenced() {
    let mut world = World::new(2);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut old = world.hello(&machine).unwrap();
    world.open(&mut old, volume).unwrap();
    let mut random = Lcg(1);
    let disk = filled(&mut random, 8 << 20, 50);
    world.copy(&machine, volume, &disk).unwrap();
    old.send(&Message::Begin { base: dormouse_format::message::Base::Checkpoint, size: 1 << 20 });
    old.send(&Message::Extents { runs: vec![0, 0, 1] });
    let refused = old.answer();
    assert!(matches!(refused, Err(Error::Refused { refusal: Refusal::Fenced, .. })), "{refused:?}");
}

#[test]
fn a_copy_that_begins_before_its_opening_is_answered_ends_if_the_head_moved() {
    let mut world = World::new(9);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let empty = Disk::new(1 << 20);
    world.copy_ahead(&machine, volume, &empty, None).unwrap();
    let mut random = Lcg(3);
    let disk = filled(&mut random, 8 << 20, 50);
    let first = world.points(&machine, volume).unwrap()[0];
    world.copy_ahead(&machine, volume, &disk, Some(first)).unwrap();
    for stale in [None, Some(first)] {
        let moved = world.copy_ahead(&machine, volume, &empty, stale);
        assert_eq!(moved.unwrap_err(), Error::Moved);
    }
    assert_eq!(world.points(&machine, volume).unwrap().len(), 2);
    world.assert_restores(&machine, volume, &[empty, disk]);
}

#[test]
fn what_is_sealed_before_the_answer_is_put_only_if_it_is_wanted() {
    for seed in 0..8 {
        let mut world = World::new(seed);
        let machine = world.machine();
        let mut random = Lcg(seed + 100);
        let there = filled(&mut random, 6 << 20, 700);
        let volume = world.volume(&machine, "there");
        let first = world.copy_ahead(&machine, volume, &there, None).unwrap().progress;
        assert_eq!((first.known, first.sent), (first.chunks - first.sent, first.sent));
        // The same content, and more behind it, as the first copy of another volume.
        let mut both = there.clone();
        both.size += 6 << 20;
        let more = filled(&mut random, 6 << 20, 700);
        both.blocks
            .extend(more.blocks.iter().map(|(b, data)| (b + (6 << 20) / 4096, data.clone())));
        let volume = world.volume(&machine, "both");
        let second = world.copy_ahead(&machine, volume, &both, None).unwrap().progress;
        assert!(second.known > 0 && second.sent > 0, "{first:?} {second:?}");
        world.assert_restores(&machine, volume, &[both]);
    }
}

#[test]
fn a_volume_of_the_largest_size_costs_what_it_holds() {
    let mut world = World::new(11);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(12);
    let mut disk = Disk::new(VOLUME_SIZE_MAX);
    let last = VOLUME_SIZE_MAX / BLOCK_SIZE as u64 - 1;
    for block in [0, 1 << 28, (1 << 40) + 7, last] {
        disk.write(block, noise(&mut random));
    }
    world.copy(&machine, volume, &disk).unwrap();
    let first = disk.clone();
    disk.write(last, vec![0; BLOCK_SIZE]);
    disk.write(last - 300, noise(&mut random));
    let second = world.copy(&machine, volume, &disk).unwrap().progress;
    // The last leaf is a hole now: that counts as all of its blocks.
    assert_eq!((second.changed, second.sent), (257, 1));
    world.assert_restores(&machine, volume, &[first, disk]);
}

#[test]
fn a_delta_and_its_checkpoint_cost_what_changed_of_a_large_volume() {
    const CHANGED: u64 = 3000;
    let mut world = World::new(21);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(22);
    let mut disk = Disk::new(1 << 40);
    let end = (1 << 40) / BLOCK_SIZE as u64;
    for _ in 0..500 {
        let block = random.below(end);
        disk.write(block, noise(&mut random));
    }
    world.copy(&machine, volume, &disk).unwrap();
    let first = disk.clone();
    let mut changed: Vec<u64> = (0..CHANGED).map(|_| random.below(end)).collect();
    changed.sort_unstable();
    changed.dedup();
    let scratch = noise(&mut random);
    for (i, block) in changed.iter().enumerate() {
        // A quarter moves what is there already.
        let content = if i % 4 == 0 { scratch.clone() } else { noise(&mut random) };
        disk.write(*block, content);
    }
    world.copy_changes(&machine, volume, &disk, &changed).unwrap();
    let (sent, received) = world.traffic;
    let n = changed.len() as u64;
    // A block of noise, its record's header, tag, id and place: nothing for the volume's size.
    assert!(sent < n * 3 / 4 * (BLOCK_SIZE as u64 + 256) + n * 64, "{sent} for {n} blocks");
    assert!(received < n + 4096, "{received} for {n} blocks");
    let second = disk.clone();
    world.checkpoint(&machine, volume).unwrap();
    let (sent, received) = world.traffic;
    // The touched leaves come back, once, and the nodes above them; the root goes up.
    assert!(sent < n * 64 + 4096, "{sent} for {n} leaves");
    assert!(received < n * 3000, "{received} for {n} leaves");
    world.assert_restores(&machine, volume, &[first, second, disk]);
}

#[test]
fn another_writer_cannot_write_here_nor_use_untrusted_chunks() {
    let mut world = World::new(2);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(1);
    let disk = filled(&mut random, 8 << 20, 500);
    let first = world.copy(&machine, volume, &disk).unwrap();
    let stranger = world.second(&machine, 0);
    let refused = world.copy(&stranger, volume, &disk);
    assert!(matches!(refused, Err(Error::Refused { refusal: Refusal::Held, .. })), "{refused:?}");
    let own = world.volume(&stranger, "other");
    let again = world.copy(&stranger, own, &disk).unwrap();
    assert_eq!(again.progress.sent, first.progress.sent, "nothing is shared without trust");
    let (a, b) = (world.second(&machine, 7), world.second(&machine, 7));
    let (va, vb) = (world.volume(&a, "a"), world.volume(&b, "b"));
    assert_eq!(world.copy(&a, va, &disk).unwrap().progress.sent, first.progress.sent);
    assert_eq!(world.copy(&b, vb, &disk).unwrap().progress.sent, 0, "one trust group");
    world.assert_restores(&b, vb, &[disk]);
}

/// Where the records lie that these bytes hold.
fn records(bytes: &[u8]) -> Vec<(usize, Header)> {
    let header = |at: usize| {
        let head = bytes[at..].first_chunk::<HEADER_LEN>()?;
        (head[..4] == MAGIC).then(|| check_header(head).ok()).flatten()
    };
    (0..bytes.len()).filter_map(|at| Some((at, header(at)?))).collect()
}

/// Flips a byte in the body of each record of this chunk.
fn damage(dir: &MemDir, chunk: ChunkId) -> usize {
    let mut flipped = 0;
    for name in dir.list().unwrap() {
        let mut bytes = dir.get(&name).unwrap();
        for (at, header) in records(&bytes) {
            if header.kind == Kind::Chunk && header.id == chunk {
                bytes[at + HEADER_LEN + 9] ^= 1;
                flipped += 1;
            }
        }
        dir.open(&name).unwrap().write_at(&bytes, 0).unwrap();
    }
    flipped
}

/// What no later record proves durable looks like a torn end when it is damaged. A link
/// that ends leaves a record that proves it.
#[test]
fn a_link_that_ends_puts_on_record_what_is_durable() {
    for ended in [false, true] {
        let place = Memory::default();
        let mut world = World::on(22, Box::new(place.clone()), Options::default(), None);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut wire = world.hello(&machine).unwrap();
        world.open(&mut wire, volume).unwrap();
        if ended {
            wire.end();
        }
        let name = place.segments.list().unwrap().pop().unwrap();
        let mut bytes = place.segments.get(&name).unwrap();
        let told = records(&bytes).into_iter().rfind(|(_, h)| h.kind == Kind::Generation);
        bytes[told.unwrap().0 + 20] ^= 1;
        place.segments.set(&name, bytes);
        world.registry.forget();
        match world.registry.reopen(machine.vault) {
            Ok(recovery) => assert_eq!((ended, recovery.torn.len()), (false, 1)),
            Err(e) => assert!(ended && matches!(e, StoreError::Damaged { .. }), "{e}"),
        }
    }
}

#[test]
fn a_check_sends_again_what_is_damaged() {
    let place = Memory::default();
    let mut world = World::on(21, Box::new(place.clone()), Options::default(), None);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(8);
    let mut disk = Disk::new(64 << 20);
    // Every second block is zero: one block, one chunk.
    (0..40).for_each(|b| disk.write(b * 2, noise(&mut random)));
    // And one chunk of three blocks, the first of which is overwritten later.
    let ends = |disk: &Disk, b: u64| cuts(&machine.secrets.digest(&disk.blocks[&b]));
    for block in 5000..5003 {
        loop {
            disk.write(block, noise(&mut random));
            if ends(&disk, block) == (block == 5002) {
                break;
            }
        }
    }
    let digest = |disk: &Disk, b: u64| machine.secrets.digest(&disk.blocks[&b]);
    let three: Vec<_> = (5000..5003).map(|b| digest(&disk, b)).collect();
    let three = machine.secrets.chunk_id(&three);
    let one = machine.secrets.chunk_id(&[digest(&disk, 14)]);
    let mut models = vec![disk.clone()];
    assert_eq!(world.copy(&machine, volume, &disk).unwrap().progress.sent, 41);
    disk.write(5000, noise(&mut random));
    models.push(disk.clone());
    assert_eq!(world.copy(&machine, volume, &disk).unwrap().progress.sent, 1);

    assert_eq!(damage(&place.segments, one), 1);
    for seq in 1..=2 {
        let failed = world.restore(&machine, volume, seq, None).err();
        assert!(matches!(failed, Some(Error::Chunk { .. })), "{failed:?}");
    }
    // A scan compares tags alone.
    assert_eq!(world.copy(&machine, volume, &disk).unwrap().progress.sent, 0);
    models.push(disk.clone());
    let checked = world.check(&machine, volume, &disk).unwrap().progress;
    models.push(disk.clone());
    assert_eq!((checked.changed, checked.chunks, checked.sent), (0, 42, 1));
    world.assert_restores(&machine, volume, &models);
    assert_eq!(world.check(&machine, volume, &disk).unwrap().progress.sent, 0);
    models.push(disk.clone());

    // Of a chunk that was overwritten in part, what is left is sent.
    assert_eq!(damage(&place.segments, three), 1);
    let failed = world.restore(&machine, volume, 5, None).err();
    assert!(matches!(failed, Some(Error::Chunk { .. })), "{failed:?}");
    let checked = world.check(&machine, volume, &disk).unwrap().progress;
    assert_eq!((checked.changed, checked.chunks, checked.sent), (0, 42, 1));
    let (back, _) = world.restore(&machine, volume, 6, None).unwrap();
    assert!(back == disk);
    assert_eq!(world.check(&machine, volume, &disk).unwrap().progress.sent, 0);
    // The overwritten block is nowhere else.
    assert!(matches!(world.restore(&machine, volume, 1, None), Err(Error::Chunk { .. })));
}
