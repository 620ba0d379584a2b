//! Honest servers, links that are cut, and small caches.

use std::sync::Arc;

use dormouse_format::VolumeId;
use dormouse_format::geometry::blocks;
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_sim::reading::{Content, Reading};
use dormouse_sim::wire::{Lied, Wire};
use dormouse_sim::{Disk, Lcg, Liar, Machine, World, noise};
use dormouse_sync::Error;
use dormouse_sync::read::{Limits, MAIN, Priority};

pub const SMALL: Limits = Limits { nodes: 0, leaves: 0, blocks: 100, ahead: 40, chunks: 10 };

/// A volume with a history, and what each of its points must be.
pub struct Past {
    pub world: World,
    pub machine: Machine,
    pub volume: VolumeId,
    pub models: Vec<Disk>,
    pub points: Vec<StoredPoint>,
}

impl Past {
    /// Copies, deltas, checkpoints, zeros and resizes, as `seed` says.
    pub fn new(seed: u64, steps: u64) -> Self {
        let mut world = World::new(seed);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut random = Lcg(seed * 31);
        let mut disk = Disk::new((150 << 20) + 4096 * seed);
        let end = blocks(disk.size);
        while disk.blocks.len() < 700 {
            let start = random.below(end);
            let moved = disk.blocks.values().next().cloned();
            for block in start..(start + 1 + random.below(40)).min(end) {
                match &moved {
                    // The same content in several places.
                    Some(content) if random.below(4) == 0 => disk.write(block, content.clone()),
                    _ => disk.write(block, noise(&mut random)),
                }
            }
        }
        world.copy(&machine, volume, &disk).unwrap();
        let mut models = vec![disk.clone()];
        for _ in 0..steps {
            let end = blocks(disk.size);
            let mut changed = Vec::new();
            let start = random.below(end);
            let zero = random.below(3) == 0;
            for block in start..(start + 1 + random.below(400)).min(end) {
                let content = if zero { vec![0; BLOCK_SIZE] } else { noise(&mut random) };
                disk.write(block, content);
                changed.push(block);
            }
            match random.below(5) {
                0 => {
                    let size = (40 + random.below(300)) << 20 | random.below(2) << 12;
                    let first = disk.size.min(size) / BLOCK_SIZE as u64;
                    disk.resize(size);
                    changed.push(first.saturating_sub(1));
                    changed.retain(|b| *b < blocks(size));
                    changed.sort_unstable();
                    changed.dedup();
                    world.copy_changes(&machine, volume, &disk, &changed).unwrap();
                }
                1 => {
                    world.copy_changes(&machine, volume, &disk, &changed).unwrap();
                    models.push(disk.clone());
                    world.checkpoint(&machine, volume).unwrap();
                }
                _ => drop(world.copy_changes(&machine, volume, &disk, &changed).unwrap()),
            }
            models.push(disk.clone());
        }
        let points = world.points(&machine, volume).unwrap();
        assert_eq!(points.len(), models.len());
        Self { world, machine, volume, models, points }
    }

    pub fn pair(&self, at: usize) -> [StoredPoint; 2] {
        let point = self.points[at];
        [point, self.points[point.point().checkpoint as usize - 1]]
    }

    pub fn reading(&mut self, at: usize, limits: Limits) -> Reading {
        let trust = self.world.trust(&self.machine).unwrap();
        Reading::new(&self.machine, trust, self.pair(at), limits, at as u64 + 5).unwrap()
    }

    pub fn link(&mut self) -> Wire {
        self.world.hello(&self.machine).unwrap()
    }
}

/// Goes on with an honest server.
pub fn turn(reading: &mut Reading, wire: &mut Wire) {
    let mut liar = Liar::default();
    reading.turn(&mut Lied { wire, liar: &mut liar }, usize::MAX).unwrap();
}

/// What a request got is all of its range, and the model's.
#[track_caller]
pub fn assert_got(reading: &Reading, id: u64, model: &Disk, range: core::ops::Range<u64>) {
    let got = &reading.got[&id];
    assert_eq!(got.done, Some(Ok(())), "request {id}");
    assert_right(reading, id, model);
    for block in range {
        assert!(got.blocks.contains_key(&block), "request {id}: block {block} is missing");
    }
}

/// What a request got is the model's.
#[track_caller]
pub fn assert_right(reading: &Reading, id: u64, model: &Disk) {
    for (block, content) in &reading.got[&id].blocks {
        let right: Content = model.blocks.get(block).cloned();
        assert!(*content == right, "request {id}: block {block} is another one");
    }
}

#[test]
fn every_point_reads_as_a_plain_array() {
    for seed in 1..=3 {
        let mut past = Past::new(seed, 8);
        let mut random = Lcg(seed + 1000);
        for at in 0..past.points.len() {
            let limits = if at % 2 == 0 { SMALL } else { Limits::default() };
            let mut reading = past.reading(at, limits);
            reading.keeps = at % 3 == 0;
            let mut wire = past.link();
            let model = past.models[at].clone();
            let end = blocks(model.size);
            for _ in 0..6 {
                let mut open = Vec::new();
                for _ in 0..1 + random.below(12) {
                    let start = random.below(end);
                    let long = if random.below(6) == 0 { 3000 } else { 40 };
                    let range = start..(start + 1 + random.below(long)).min(end);
                    let priority =
                        if random.below(3) == 0 { Priority::Ahead } else { Priority::Demand };
                    open.push((reading.read(range.clone(), priority), range));
                }
                turn(&mut reading, &mut wire);
                for (id, range) in open {
                    assert_got(&reading, id, &model, range);
                }
            }
            assert_eq!((reading.reader.requests(), reading.reader.asked().1), (0, 0));
            let id = reading.read(0..end, Priority::Demand);
            turn(&mut reading, &mut wire);
            assert_got(&reading, id, &model, 0..end);
        }
    }
}

/// At every message that is sent, once.
#[test]
fn a_link_that_is_lost_at_any_question_costs_nothing_but_time() {
    let mut past = Past::new(9, 5);
    let at = past.points.iter().rposition(|p| !p.point().is_checkpoint()).unwrap();
    let model = past.models[at].clone();
    let end = blocks(model.size);
    let mut cuts = 0;
    let mut whole = false;
    while !whole {
        let limits = if cuts % 2 == 0 { SMALL } else { Limits::default() };
        let mut reading = past.reading(at, limits);
        let mut random = Lcg(4);
        let ranges: Vec<_> =
            (0..6).map(|_| random.below(end)).map(|start| start..(start + 600).min(end)).collect();
        let ids: Vec<_> =
            ranges.iter().map(|r| reading.read(r.clone(), Priority::Demand)).collect();
        let mut wire = past.link();
        wire.cut_after = Some(wire.messages + cuts);
        turn(&mut reading, &mut wire);
        whole = ids.iter().all(|id| reading.got[id].done.is_some());
        // The rest on one more link, that is cut too, and on a third one.
        for more in [1, u64::MAX] {
            wire = past.link();
            wire.cut_after = wire.messages.checked_add(more);
            reading.restart(&past.points[at]).unwrap();
            turn(&mut reading, &mut wire);
        }
        for (id, range) in ids.iter().zip(ranges) {
            assert_got(&reading, *id, &model, range);
        }
        assert_eq!(reading.reader.asked().1, 0);
        cuts += 1;
    }
    assert!(cuts > 6, "{cuts}");
}

#[test]
fn a_new_link_has_to_show_the_same_point() {
    let mut past = Past::new(10, 3);
    let mut reading = past.reading(2, Limits::default());
    for (i, point) in past.points.iter().enumerate() {
        let restarted = reading.restart(point);
        let seq = past.points[2].point().seq;
        assert_eq!(restarted, if i == 2 { Ok(()) } else { Err(Error::Fork { seq }) });
    }
}

#[test]
fn a_chunk_that_many_want_comes_once_and_zeros_cost_nothing() {
    let mut world = World::new(5);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(6);
    let mut model = Disk::new(1 << 40);
    let content: Vec<Arc<[u8]>> = (0..64).map(|_| Arc::from(noise(&mut random))).collect();
    // The same 64 blocks in a hundred places, a leaf apart from each other.
    for place in 0..100 {
        for (i, block) in content.iter().enumerate() {
            model.write(place * LEAF_BLOCKS + i as u64, block.clone());
        }
    }
    let sent = world.copy(&machine, volume, &model).unwrap().progress.sent;
    let points = world.points(&machine, volume).unwrap();
    let mut past = Past { world, machine, volume, models: vec![model.clone()], points };
    let mut reading = past.reading(0, Limits::default());
    let asked = Arc::new(std::sync::Mutex::new((0, 0)));
    let mut wire = past.link();
    let heard = asked.clone();
    wire.ear = Some(Arc::new(move |said| match said {
        dormouse_sim::wire::Said::Asked(Message::GetChunks { ids, .. }) => {
            heard.lock().unwrap().0 += ids.len() as u64;
        }
        dormouse_sim::wire::Said::Asked(_) => heard.lock().unwrap().1 += 1,
        dormouse_sim::wire::Said::Answered(_) => {}
    }));
    let end = blocks(model.size);
    let far = [end / 2, end - 700, 200 * LEAF_BLOCKS];
    let zeros: Vec<_> =
        far.iter().map(|b| (reading.read(*b..b + 700, Priority::Demand), *b..b + 700)).collect();
    turn(&mut reading, &mut wire);
    let nodes = asked.lock().unwrap().1;
    assert_eq!(asked.lock().unwrap().0, 0);
    // The top, and the nodes on the way to the page that is zero.
    assert!(nodes <= 4, "{nodes} questions for zeros");
    let ids: Vec<_> = (0..100)
        .map(|p| p * LEAF_BLOCKS..p * LEAF_BLOCKS + 64)
        .map(|range| (reading.read(range.clone(), Priority::Demand), range))
        .collect();
    turn(&mut reading, &mut wire);
    for (id, range) in ids.into_iter().chain(zeros) {
        assert_got(&reading, id, &model, range);
    }
    assert_eq!(asked.lock().unwrap().0, sent, "each chunk once");
}

#[test]
fn what_this_machine_has_is_not_fetched_also_for_another_point() {
    let mut past = Past::new(11, 6);
    let last = past.points.len() - 1;
    let mut reading = past.reading(last, Limits::default());
    reading.keeps = true;
    let mut wire = past.link();
    let end = blocks(past.models[last].size);
    let first = reading.read(0..end, Priority::Ahead);
    turn(&mut reading, &mut wire);
    assert_got(&reading, first, &past.models[last], 0..end);
    let opened = reading.opened;
    let again = reading.read(0..end, Priority::Demand);
    turn(&mut reading, &mut wire);
    assert_got(&reading, again, &past.models[last], 0..end);
    assert_eq!(reading.opened, opened, "all of it is here");
    let local = reading.local;
    let model = past.models[last - 1].clone();
    let mut older = past.reading(last - 1, Limits::default());
    older.local = local;
    let end = blocks(model.size);
    let id = older.read(0..end, Priority::Demand);
    turn(&mut older, &mut wire);
    assert_got(&older, id, &model, 0..end);
    assert!(older.opened < opened / 3, "{} of {opened}", older.opened);
}

/// Allocation and changes of all of a volume, joined.
fn joined(
    past: &mut Past,
    reading: &mut Reading,
    with: Option<usize>,
    end: u64,
    most: usize,
) -> Vec<bool> {
    let mut wire = past.link();
    reading.restart(&past.points[past_at(past, reading)]).unwrap();
    let mut all = Vec::new();
    while (all.len() as u64) < end {
        let id = reading.survey(with, all.len() as u64..end, most);
        turn(reading, &mut wire);
        let parts = reading.parts.remove(&id).unwrap().unwrap();
        assert!(!parts.is_empty() && parts.len() <= most && parts.iter().all(|p| p.0 > 0));
        all.extend(parts.iter().flat_map(|(n, what)| core::iter::repeat_n(*what, *n as usize)));
    }
    assert_eq!(all.len() as u64, end);
    all
}

fn past_at(past: &Past, reading: &Reading) -> usize {
    let size = reading.reader.size();
    past.points.iter().position(|p| p.point().size == size && reading.reader.reads(p)).unwrap()
}

#[test]
fn holes_and_changes_are_those_of_the_models() {
    for seed in 1..=2 {
        let mut past = Past::new(seed + 40, 6);
        let mut random = Lcg(seed);
        for at in 0..past.points.len() {
            let limits = if at % 2 == 0 { SMALL } else { Limits::default() };
            let mut reading = past.reading(at, limits);
            let model = past.models[at].clone();
            let end = blocks(model.size);
            let most = 1 + random.below(20) as usize;
            let holes = joined(&mut past, &mut reading, None, end, most);
            for (block, zero) in holes.iter().enumerate() {
                let leaf = block as u64 / LEAF_BLOCKS;
                let range = leaf * LEAF_BLOCKS..(leaf + 1) * LEAF_BLOCKS;
                let empty = model.blocks.range(range).next().is_none();
                assert!(!zero || empty, "block {block} of point {} is no hole", at + 1);
                // A delta may have made zero what data a leaf had, without saying so of all of it.
                let told = past.points[at].point().is_checkpoint();
                assert!(*zero || !empty || !told, "block {block} of point {} is one", at + 1);
            }
            let other = random.below(past.points.len() as u64) as usize;
            let [point, checkpoint] = past.pair(other);
            let view = reading.add_view(point, checkpoint).unwrap();
            assert_ne!(view, MAIN);
            let changed = joined(&mut past, &mut reading, Some(view), end, most);
            assert_eq!(reading.ready[&view], Ok(()));
            let old = &past.models[other];
            for (block, changed) in changed.iter().enumerate() {
                let block = block as u64;
                let same =
                    block < blocks(old.size) && model.blocks.get(&block) == old.blocks.get(&block);
                assert_eq!(*changed, !same, "block {block}, {} since {}", at + 1, other + 1);
            }
        }
    }
}

/// The owner lays changes of its own over the map, and commits them.
#[test]
fn what_the_owner_lays_over_is_read_before_and_after_it_is_committed() {
    let mut past = Past::new(60, 4);
    let last = past.points.len() - 1;
    past.world.checkpoint(&past.machine, past.volume).unwrap();
    past.models.push(past.models[last].clone());
    past.points = past.world.points(&past.machine, past.volume).unwrap();
    let last = last + 1;
    let mut reading = past.reading(last, SMALL);
    let mut wire = past.link();
    let mut model = past.models[last].clone();
    let end = blocks(model.size);
    let id = reading.read(0..end, Priority::Demand);
    turn(&mut reading, &mut wire);
    assert_got(&reading, id, &model, 0..end);
    // A delta and a checkpoint that somebody else makes of the same changes.
    let mut random = Lcg(3);
    let changed: Vec<u64> = (0..300).chain(PAGE_BLOCKS..PAGE_BLOCKS + 20).collect();
    for block in &changed {
        let zero = random.below(3) == 0;
        model.write(*block, if zero { vec![0; BLOCK_SIZE] } else { noise(&mut random) });
    }
    past.world.copy_changes(&past.machine, past.volume, &model, &changed).unwrap();
    let mut link = past.link();
    let seq = last as u64 + 2;
    link.send(&Message::GetDeltas { volume: past.volume, seq });
    let mut laid = Vec::new();
    while let Message::Record { record } = link.answer().unwrap() {
        let (_, body) = dormouse_crypt::record::check(&record).unwrap();
        let (prefix, runs) = dormouse_format::delta::decode(body).unwrap();
        laid.push((prefix.size, runs.to_vec()));
    }
    for (size, runs) in &laid {
        reading.reader.apply(*size, runs).unwrap();
    }
    let check = |reading: &mut Reading, past: &mut Past, what: &str| {
        let mut wire = past.link();
        reading.restart(&past.points[last]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let id = reading.read(0..end, Priority::Demand);
        turn(reading, &mut wire);
        assert_got(reading, id, &model, 0..end);
    };
    check(&mut reading, &mut past, "laid over");
    let checkpoint = past.world.checkpoint(&past.machine, past.volume).unwrap();
    reading.reader.rebase(checkpoint, &[]).unwrap();
    assert!(reading.restart(&past.points[last]).is_err(), "the point is another one now");
    let mut wire = past.link();
    reading.restart(&checkpoint).unwrap();
    let opened = reading.opened;
    let id = reading.read(0..end, Priority::Demand);
    turn(&mut reading, &mut wire);
    assert_got(&reading, id, &model, 0..end);
    assert!(reading.opened > opened);
    // And what is laid over after that.
    let mut runs = dormouse_format::extents::ExtentsWriter::new();
    runs.zero(5, 1000);
    reading.reader.rebase(checkpoint, &[(model.size, runs.take())]).unwrap();
    (5..1005).for_each(|b| model.write(b, vec![0; BLOCK_SIZE]));
    let id = reading.read(0..end, Priority::Demand);
    turn(&mut reading, &mut wire);
    assert_got(&reading, id, &model, 0..end);
}

/// However much is asked for, what is under way is bounded; who waits comes first.
#[test]
fn what_is_under_way_is_bounded() {
    let mut past = Past::new(70, 2);
    let mut reading = past.reading(2, SMALL);
    let end = blocks(past.models[2].size);
    let open = Arc::new(std::sync::Mutex::new((0i64, 0i64)));
    let mut wire = past.link();
    let heard = open.clone();
    wire.ear = Some(Arc::new(move |said| {
        let mut open = heard.lock().unwrap();
        match said {
            dormouse_sim::wire::Said::Asked(Message::GetChunks { ids, .. }) => {
                open.0 += ids.len() as i64;
                open.1 = open.1.max(open.0);
            }
            dormouse_sim::wire::Said::Answered(Message::Record { record })
                if record[4] == dormouse_format::record::Kind::Chunk as u8 =>
            {
                open.0 -= 1;
            }
            _ => {}
        }
    }));
    let ahead = reading.read(0..end, Priority::Ahead);
    let demand = reading.read(0..end, Priority::Demand);
    turn(&mut reading, &mut wire);
    assert_got(&reading, demand, &past.models[2], 0..end);
    assert_got(&reading, ahead, &past.models[2], 0..end);
    assert!(open.lock().unwrap().1 <= SMALL.chunks as i64);
    // A request that nobody waits for leaves nothing behind.
    let id = reading.read(0..end, Priority::Demand);
    reading.reader.cancel(id);
    turn(&mut reading, &mut wire);
    assert_eq!((reading.reader.requests(), reading.got[&id].done.clone()), (0, None));
}

/// More nodes than are kept.
#[test]
fn a_large_volume_reads_with_a_few_nodes_and_leaves() {
    let mut world = World::new(80);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(81);
    let mut model = Disk::new(1 << 42);
    let end = blocks(model.size);
    (0..400).for_each(|_| model.write(random.below(end), noise(&mut random)));
    world.copy(&machine, volume, &model).unwrap();
    let written: Vec<u64> = model.blocks.keys().copied().collect();
    for block in written.iter().step_by(7) {
        model.write(*block, noise(&mut random));
    }
    let changed: Vec<u64> = written.iter().copied().step_by(7).collect();
    world.copy_changes(&machine, volume, &model, &changed).unwrap();
    let points = world.points(&machine, volume).unwrap();
    let mut past = Past { world, machine, volume, models: vec![], points };
    let mut reading = past.reading(1, SMALL);
    let [first, _] = past.pair(0);
    let view = reading.add_view(first, first).unwrap();
    let mut wire = past.link();
    for round in 0..3 {
        let ids: Vec<_> = (0..300)
            .map(|_| {
                let block = written[random.below(400) as usize];
                let start = block.saturating_sub(random.below(300));
                start..(block + 1 + random.below(300)).min(end)
            })
            .map(|range| (reading.read(range.clone(), Priority::Demand), range))
            .collect();
        turn(&mut reading, &mut wire);
        for (id, range) in ids {
            assert_got(&reading, id, &model, range);
        }
        let mut at = 0;
        let mut found = Vec::new();
        while at < end {
            let id = reading.survey(Some(view), at..end, 5 + round);
            turn(&mut reading, &mut wire);
            for (n, is) in reading.parts.remove(&id).unwrap().unwrap() {
                found.extend((at..at + n).filter(|_| is));
                at += n;
            }
        }
        assert_eq!(found, changed);
    }
}
