//! A writer of the vault, and a server, that lie.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::cell::Cell;
use std::rc::Rc;

use dormouse_crypt::seal::{DataKey, SealFor, Sealer};
use dormouse_crypt::{hash, record};
use dormouse_format::extents::{Content, ExtentsWriter, Runs};
use dormouse_format::limits::{BLOCK_SIZE, DELTAS_BYTES_MAX, PAGE_BLOCKS};
use dormouse_format::message::{Message, Refusal};
use dormouse_format::point::{Point, StoredPoint};
use dormouse_format::record::{CHECKED_LEN, Header, Kind, split};
use dormouse_format::vault::{self, Signed};
use dormouse_format::{ChunkId, Hash, RecordId, Tag, VolumeId, WriterId, delta};
use dormouse_sim::{Disk, Lcg, Liar, Machine, World, noise};
use dormouse_sync::Error;
use dormouse_sync::error::Result;
use dormouse_sync::fetch;
use dormouse_sync::history::{NewestKeys, Points, Trust, check_anchor, hash_of};
use dormouse_sync::overlay::Deltas;

fn disk(seed: u64, blocks: u64) -> Disk {
    let mut random = Lcg(seed);
    let mut disk = Disk::new(16 << 20);
    (0..blocks).for_each(|b| disk.write(b * 3, noise(&mut random)));
    disk
}

/// Another writer of the vault puts junk under the id of each chunk that the first one
/// sent, sealed rightly with its own key.
#[test]
fn junk_under_another_writers_chunk_id_does_not_stop_a_restore() {
    for group in [0, 5] {
        let mut world = World::new(11);
        let first = world.machine();
        let victim = world.second(&first, group);
        let volume = world.volume(&victim, "disk");
        let model = disk(3, 40);
        world.copy(&victim, volume, &model).unwrap();

        let liar = world.second(&first, group);
        let mut wire = world.hello(&liar).unwrap();
        let key = DataKey::generate(&mut world.random).unwrap();
        let recipient = liar.identity.recipient();
        let body = key.wrap(liar.vault, &recipient, &liar.signer, world.now).unwrap();
        let put = record::plain(Kind::DataKey, liar.signer.writer_id(), &body);
        wire.send(&Message::Put { record: put });
        let mut sealer = Sealer::new(1).unwrap();
        for content in model.blocks.values() {
            let id = liar.secrets.chunk_id(&[liar.secrets.digest(content)]);
            let junk = vec![0x55; BLOCK_SIZE];
            let who = SealFor {
                vault: &liar.vault,
                writer: liar.signer.writer_id(),
                key: &key,
                secrets: &liar.secrets,
            };
            let digests = [liar.secrets.digest(&junk)];
            let record = sealer.seal(who, id, &digests, &junk).unwrap();
            wire.send(&Message::Put { record });
        }
        assert_eq!(wire.ask(&Message::Barrier), Ok(Message::Durable));
        let (back, _) = world.restore(&victim, volume, 1, None).unwrap();
        assert!(back == model);
        // Also for a reader whose preferred records are the bad ones.
        let stored = world.points(&victim, volume).unwrap()[0];
        assert_eq!(stored.point().writer, victim.signer.writer_id());
        let id = victim.secrets.chunk_id(&[victim.secrets.digest(&model.blocks[&0])]);
        let ask =
            |skip| Message::GetChunks { writer: liar.signer.writer_id(), skip, ids: vec![id] };
        let mut makers = Vec::new();
        for skip in 0..3 {
            match wire.ask(&ask(skip)).unwrap() {
                Message::Record { record } => makers.push(split(&record).unwrap().0.writer),
                other => assert_eq!(other, Message::Absent { id }),
            }
        }
        assert_eq!(makers, [liar.signer.writer_id(), victim.signer.writer_id()]);
    }
}

/// A chunk under another's name would be taken for its own, and the good one never sent.
#[test]
fn a_chunk_under_another_writers_name_is_refused() {
    let mut world = World::new(35);
    let victim = world.machine();
    let volume = world.volume(&victim, "disk");
    let mut model = disk(9, 10);
    world.copy(&victim, volume, &model).unwrap();
    let id = |content: &[u8]| victim.secrets.chunk_id(&[victim.secrets.digest(content)]);
    let (writer, mut next) = (victim.signer.writer_id(), vec![1; BLOCK_SIZE]);
    next[7] = 7;
    let liar = world.second(&victim, 0);
    let mut wire = world.hello(&liar).unwrap();
    let ask = Message::GetChunks { writer, skip: 0, ids: vec![id(&model.blocks[&0])] };
    let Ok(Message::Record { record }) = wire.ask(&ask) else { panic!("chunk") };
    let (header, body) = split(&record).unwrap();
    let mut forged = Header { id: id(&next), ..header };
    forged.check = hash::header_check(&forged.encode()[..CHECKED_LEN]);
    let record = [&forged.encode()[..], body].concat();
    assert!(record::check(&record).is_ok());
    wire.send(&Message::Put { record });
    let refused = wire.ask(&Message::Barrier);
    let bad = matches!(&refused, Err(Error::Refused { refusal: Refusal::BadRecord, .. }));
    assert!(bad, "{refused:?}");
    model.write(1, next);
    assert_eq!(world.copy(&victim, volume, &model).unwrap().progress.sent, 1);
    assert!(world.restore(&victim, volume, 2, None).unwrap().0 == model);
}

/// Another writer puts a data key's record under the id of the first one's key.
#[test]
fn a_foreign_record_under_a_data_keys_id_is_passed_over() {
    let mut world = World::new(12);
    let victim = world.machine();
    let volume = world.volume(&victim, "disk");
    let model = disk(4, 20);
    world.copy(&victim, volume, &model).unwrap();
    let id = victim.secrets.chunk_id(&[victim.secrets.digest(&model.blocks[&0])]);
    let mut wire = world.hello(&victim).unwrap();
    let writer = victim.signer.writer_id();
    let ask = Message::GetChunks { writer, skip: 0, ids: vec![id] };
    let Ok(Message::Record { record: chunk }) = wire.ask(&ask) else { panic!("chunk") };
    let key = split(&chunk).unwrap().0.key;

    let liar = world.second(&victim, 0);
    let ask = Message::GetSmall { kind: Kind::DataKey, ids: vec![RecordId(key.0)] };
    let Ok(Message::Record { record: own }) = wire.ask(&ask) else { panic!("key") };
    let own = vault::DataKey::decode(split(&own).unwrap().1).unwrap().0.wrapped;
    for wrapped in [vec![1, 2, 3], liar.identity.recipient().wrap(&[9; 32]).unwrap(), own] {
        let value = vault::DataKey {
            vault: liar.vault,
            writer: liar.signer.writer_id(),
            key,
            created: 1,
            wrapped,
        };
        let body = value.encode(&liar.signer.sign(vault::DataKey::WHAT, &value.signed_bytes()));
        let record = record::plain(Kind::DataKey, liar.signer.writer_id(), &body);
        let mut wire = world.hello(&liar).unwrap();
        wire.send(&Message::Put { record });
        assert_eq!(wire.ask(&Message::Barrier), Ok(Message::Durable));
    }
    let mut wire = world.hello(&victim).unwrap();
    let ask = Message::GetSmall { kind: Kind::DataKey, ids: vec![RecordId(key.0)] };
    assert!(matches!(wire.ask(&ask), Ok(Message::Record { .. })));
    let (back, _) = world.restore(&victim, volume, 1, None).unwrap();
    assert!(back == model);
}

#[test]
fn a_server_that_goes_back_or_forks_is_found_out() {
    let mut world = World::new(13);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut model = disk(5, 10);
    for i in 0..3 {
        model.write(i, vec![i as u8 + 1; BLOCK_SIZE]);
        world.copy(&machine, volume, &model).unwrap();
    }
    let points = world.points(&machine, volume).unwrap();
    let seen = points[1].signed;
    assert_eq!(check_anchor(Some(&seen), points.last(), Some(&points[1])), Ok(()));
    let back = check_anchor(Some(&seen), Some(&points[0]), None);
    assert_eq!(back, Err(Error::Rollback { seen: 2, shown: 1 }));
    assert_eq!(check_anchor(Some(&seen), None, None), Err(Error::Rollback { seen: 2, shown: 0 }));
    let fork = check_anchor(Some(&seen), points.last(), Some(&points[2]));
    assert_eq!(fork, Err(Error::Fork { seq: 2 }));
    // A chain with a point left out, swapped, or of another volume does not hold.
    let trust = world.trust(&machine).unwrap();
    assert!(trust.chain(&volume, &points).is_ok());
    assert!(trust.chain(&volume, &[points[0], points[2]]).is_err());
    assert!(trust.chain(&volume, &[points[1], points[0]]).is_err());
    let other = world.volume(&machine, "other");
    assert!(trust.chain(&other, &points).is_err());
    let mut forged = points[2];
    forged.signed.point.size += 4096;
    assert!(trust.point(&volume, &forged).is_err());
    assert_ne!(hash_of(&forged.signed), hash_of(&points[2].signed));
}

/// Bits of a Distrust: after it the server takes a fresh copy beside the bad one.
#[test]
fn a_distrusted_chunk_is_sent_again() {
    let mut world = World::new(14);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let model = disk(6, 20);
    let first = world.copy(&machine, volume, &model).unwrap();
    assert_eq!(first.progress.sent, 20);
    let id = machine.secrets.chunk_id(&[machine.secrets.digest(&model.blocks[&3])]);
    let writer = machine.signer.writer_id();
    let mut wire = world.hello(&machine).unwrap();
    let ask = Message::GetChunks { writer, skip: 0, ids: vec![id] };
    let Ok(Message::Record { record: chunk }) = wire.ask(&ask) else { panic!("chunk") };
    let value = vault::Distrust {
        vault: machine.vault,
        chunk: id,
        maker: writer,
        key: split(&chunk).unwrap().0.key,
        by: writer,
    };
    let body = machine.signer.sign_body(&value);
    assert_eq!(wire.ask(&Message::Distrust { body }), Ok(Message::Done));
    // It is still given to readers, or a liar could hide good records by distrust.
    assert!(matches!(wire.ask(&ask), Ok(Message::Record { .. })));
    let other = world.volume(&machine, "other");
    let again = world.copy(&machine, other, &model).unwrap();
    assert_eq!(again.progress.sent, 1);
    let (back, _) = world.restore(&machine, volume, 1, None).unwrap();
    assert!(back == model);
}

/// A volume of four pages with four points: a checkpoint, two deltas that change the same
/// leaves, and a checkpoint of their sum.
struct Past {
    world: World,
    machine: Machine,
    volume: VolumeId,
    models: Vec<Disk>,
    points: Vec<StoredPoint>,
}

impl Past {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut random = Lcg(seed);
        let mut model = Disk::new(4 * PAGE_BLOCKS * BLOCK_SIZE as u64);
        (0..40).for_each(|b| model.write(b, noise(&mut random)));
        (0..20).for_each(|b| model.write(2 * PAGE_BLOCKS + b, noise(&mut random)));
        world.copy(&machine, volume, &model).unwrap();
        let mut models = vec![model.clone()];
        for changed in [[3, 4, 5], [5, 6, 2 * PAGE_BLOCKS + 3]] {
            changed.iter().for_each(|b| model.write(*b, noise(&mut random)));
            world.copy_changes(&machine, volume, &model, &changed).unwrap();
            models.push(model.clone());
        }
        world.checkpoint(&machine, volume).unwrap();
        models.push(model);
        let points = world.points(&machine, volume).unwrap();
        assert_eq!(points[3].point().checkpoint, 4);
        world.assert_restores(&machine, volume, &models);
        Self { world, machine, volume, models, points }
    }

    /// Restores a point from a liar into an empty disk. Whatever comes of it, each block
    /// that was written is the point's.
    fn lied(&mut self, seq: u64, liar: Liar) -> Result<()> {
        let point = self.points[seq as usize - 1];
        let checkpoint = self.points[point.point().checkpoint as usize - 1];
        self.lied_at([point, checkpoint], liar)
    }

    fn lied_at(&mut self, pair: [StoredPoint; 2], liar: Liar) -> Result<()> {
        let model = &self.models[pair[0].point().seq as usize - 1];
        let mut disk = Disk::default();
        self.world.liar = liar;
        let mode = fetch::Mode::Fresh;
        let done = self.world.restore_to(&self.machine, self.volume, pair, mode, &mut disk);
        self.world.liar = Liar::default();
        for (block, content) in &disk.blocks {
            assert!(model.blocks.get(block) == Some(content), "block {block}: {done:?}");
        }
        assert!(done.is_err() || disk == *model, "blocks are missing, and it says done");
        done.map(drop)
    }
}

fn ask(f: impl FnMut(&mut Message) + 'static) -> Liar {
    Liar { ask: Some(Box::new(f)), answer: None }
}

fn answer(f: impl FnMut(&mut Message) + 'static) -> Liar {
    Liar { ask: None, answer: Some(Box::new(f)) }
}

/// Questions about the map from this level down are answered from another checkpoint.
fn older(level: u8, old: u64) -> Liar {
    ask(move |message| match message {
        Message::GetNode { seq, place, .. } if place.level <= level => *seq = old,
        Message::GetLeaves { seq, .. } => *seq = old,
        _ => {}
    })
}

/// Writes runs again with chunk, index and tags altered.
fn altered(runs: &[u8], mut f: impl FnMut(&mut ChunkId, &mut u8, &mut [Tag])) -> Vec<u8> {
    let mut out = ExtentsWriter::new();
    for run in Runs::new(runs) {
        let run = run.unwrap();
        match run.content {
            Content::Zero => out.zero(run.start, run.count),
            Content::Tags(tags) => {
                let mut tags: Vec<Tag> = tags.iter().collect();
                let (mut chunk, mut first) = (RecordId::ZERO, 0);
                f(&mut chunk, &mut first, &mut tags);
                out.tags(run.start, &tags);
            }
            Content::Data { mut chunk, mut first, tags } => {
                let mut tags: Vec<Tag> = tags.iter().collect();
                f(&mut chunk, &mut first, &mut tags);
                out.data(run.start, chunk, first, &tags);
            }
        }
    }
    out.take()
}

fn other_tag(_: &mut ChunkId, _: &mut u8, tags: &mut [Tag]) {
    tags[0].0[0] ^= 0x80;
}

const TOP: &str = "the top node is not under the signed root";
const NODE: &str = "a node's hash";
const LEAF: &str = "a leaf's hash";
const RUNNING: &str = "the running hash of its deltas";

/// The whole of an older map, or from one level on down, under a newer point.
#[test]
fn an_older_map_is_not_taken_for_a_newer_one() {
    let mut past = Past::new(21);
    let mut old = past.points[3];
    old.top = past.points[0].top;
    let wrong = |what| Err(Error::Map { seq: 4, what });
    assert_eq!(past.lied_at([old, old], older(8, 1)), wrong(TOP));
    assert_eq!(past.lied(4, older(2, 1)), wrong(NODE));
    assert_eq!(past.lied(4, older(1, 1)), wrong(NODE));
    assert_eq!(past.lied(4, older(0, 1)), wrong(LEAF));
    assert_eq!(past.lied(4, Liar::default()), Ok(()));
}

#[test]
fn a_node_of_another_place_or_volume_is_refused() {
    let mut past = Past::new(22);
    let other = past.world.volume(&past.machine, "other");
    past.world.copy(&past.machine, other, &past.models[3]).unwrap();
    let wrong = Err(Error::Map { seq: 4, what: NODE });
    for level in 1..=2 {
        let lie = ask(move |message| match message {
            Message::GetNode { volume, seq, place } if place.level == level => {
                (*volume, *seq) = (other, 1);
            }
            _ => {}
        });
        assert_eq!(past.lied(4, lie), wrong);
    }
    let lie = ask(|message| match message {
        Message::GetNode { place, .. } if place.level == 1 => place.index = 2 - place.index,
        _ => {}
    });
    assert_eq!(past.lied(4, lie), wrong);
    let lie = answer(|message| {
        if let Message::Node { mask, hashes } = message {
            (*mask, *hashes) = (0, Vec::new());
        }
    });
    assert_eq!(past.lied(4, lie), wrong);
}

#[test]
fn an_altered_or_missing_leaf_is_refused() {
    let mut past = Past::new(23);
    let wrong = Err(Error::Map { seq: 4, what: LEAF });
    let lie = answer(|message| {
        if let Message::Leaves { runs } = message {
            *runs = altered(runs, other_tag);
        }
    });
    assert_eq!(past.lied(4, lie), wrong);
    let lie = answer(|message| {
        if let Message::Leaves { runs } = message {
            runs.clear();
        }
    });
    assert_eq!(past.lied(4, lie), wrong);
}

/// Hints are under no hash: the blocks that they lead to are proved by their tags.
#[test]
fn wrong_hints_lead_to_no_wrong_block() {
    let mut past = Past::new(24);
    for seq in [1, 4] {
        let mut last = None;
        let lie = answer(move |message| {
            if let Message::Leaves { runs } = message {
                *runs = altered(runs, |chunk, _, _| {
                    let own = *chunk;
                    *chunk = last.unwrap_or(own);
                    last = Some(own);
                });
            }
        });
        assert!(matches!(past.lied(seq, lie), Err(Error::Chunk { .. })), "chunk, {seq}");
        let lie = answer(|message| {
            if let Message::Leaves { runs } = message {
                *runs = altered(runs, |_, first, tags| match first {
                    0 if tags.len() < 64 => *first = 1,
                    0 => tags[0].0[0] ^= 1,
                    _ => *first -= 1,
                });
            }
        });
        assert!(matches!(past.lied(seq, lie), Err(Error::Chunk { .. })), "index, {seq}");
    }
    let mut first: Option<Vec<u8>> = None;
    let lie = answer(move |message| {
        let Message::Record { record } = message else { return };
        if split(record).unwrap().0.kind == Kind::Chunk {
            record.clone_from(first.get_or_insert_with(|| record.clone()));
        }
    });
    let what = "another chunk than the one asked for";
    assert_eq!(past.lied(1, lie), Err(Error::Protocol { what }));
}

/// A delta's record with an altered tag, and all its checks made right.
fn other_delta(bytes: &[u8]) -> Vec<u8> {
    let (header, body) = split(bytes).unwrap();
    let (prefix, runs) = delta::decode(body).unwrap();
    record::plain(header.kind, header.writer, &delta::encode(&prefix, &altered(runs, other_tag)))
}

/// Three lies about the deltas between a checkpoint and a point.
fn delta_lies() -> [Liar; 3] {
    let mut seen = 0;
    [
        ask(|message| {
            if let Message::GetDeltas { seq, .. } = message {
                *seq -= 1;
            }
        }),
        answer(|message| match message {
            Message::Record { record } if split(record).unwrap().0.kind == Kind::Delta => {
                *record = other_delta(record);
            }
            _ => {}
        }),
        answer(move |message| match message {
            Message::Record { record } if split(record).unwrap().0.kind == Kind::Delta => {
                seen += 1;
                if seen == 1 {
                    *message = Message::Done;
                }
            }
            _ => {}
        }),
    ]
}

#[test]
fn altered_or_missing_deltas_are_refused() {
    let mut past = Past::new(25);
    for lie in delta_lies() {
        assert_eq!(past.lied(3, lie), Err(Error::Map { seq: 3, what: RUNNING }));
    }
    assert_eq!(past.lied(3, Liar::default()), Ok(()));
}

/// A writer that is lied to about what is there makes no point of it.
#[test]
fn no_point_is_made_of_a_lie() {
    let mut past = Past::new(26);
    let mut model = past.models[3].clone();
    model.write(7, vec![7; BLOCK_SIZE]);
    for (lie, what) in [(older(2, 1), NODE), (older(1, 1), NODE), (older(0, 1), LEAF)] {
        past.world.liar = lie;
        let done = past.world.copy(&past.machine, past.volume, &model);
        assert_eq!(done.map(drop), Err(Error::Map { seq: 4, what }));
    }
    past.world.liar = Liar::default();
    past.world.copy_changes(&past.machine, past.volume, &model, &[7]).unwrap();
    for (lie, what) in [(older(2, 1), NODE), (older(1, 1), NODE), (older(0, 1), LEAF)] {
        past.world.liar = lie;
        let done = past.world.checkpoint(&past.machine, past.volume);
        assert_eq!(done.map(drop), Err(Error::Map { seq: 4, what }));
    }
    for lie in delta_lies().into_iter().skip(1) {
        past.world.liar = lie;
        let done = past.world.checkpoint(&past.machine, past.volume);
        assert_eq!(done.map(drop), Err(Error::Map { seq: 5, what: RUNNING }));
    }
    past.world.liar = Liar::default();
    past.models.push(model.clone());
    assert_eq!(past.world.points(&past.machine, past.volume).unwrap().len(), 5);
    past.world.checkpoint(&past.machine, past.volume).unwrap();
    past.models.push(model);
    past.world.assert_restores(&past.machine, past.volume, &past.models);
}

/// An answer about fewer chunks than were asked for, or about more, ends the copy.
#[test]
fn an_answer_about_another_number_of_chunks_is_refused() {
    let mut world = World::new(34);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    for more in [false, true] {
        world.liar = answer(move |message| {
            if let Message::HaveAnswer { have } = message {
                have.resize(if more { have.len() + 1 } else { have.len() - 1 }, true);
            }
        });
        let done = world.copy(&machine, volume, &disk(8, 20)).map(drop);
        let what = "an answer about another number of chunks";
        assert_eq!(done, Err(Error::Protocol { what }));
    }
}

/// A checkpoint is restored from its own map, whatever it is given with it.
#[test]
fn a_point_with_anothers_checkpoint_is_refused() {
    let mut world = World::new(31);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut disk = disk(5, 10);
    world.copy(&machine, volume, &disk).unwrap();
    disk.write(1, noise(&mut Lcg(1)));
    world.copy(&machine, volume, &disk).unwrap();
    disk.write(2, noise(&mut Lcg(2)));
    world.copy_changes(&machine, volume, &disk, &[2]).unwrap();
    let points = world.points(&machine, volume).unwrap();
    for (point, checkpoint) in [(0, 1), (1, 0), (2, 0), (2, 2), (0, 2)] {
        let mut to = Disk::default();
        let both = [points[point], points[checkpoint]];
        let done = world.restore_to(&machine, volume, both, fetch::Mode::Fresh, &mut to);
        assert!(matches!(done, Err(Error::Point { .. })), "{point} on {checkpoint}: {done:?}");
        assert!(to.blocks.is_empty());
    }
}

/// Points that the writer did sign, in an order that it did not make.
#[test]
fn points_of_two_histories_make_no_chain() {
    let mut past = Past::new(27);
    let trust = past.world.trust(&past.machine).unwrap();
    let Past { machine, volume, points, .. } = &past;
    let signed = |stored: &StoredPoint, prev, time| {
        let point = Point { prev, time, ..*stored.point() };
        StoredPoint { signed: machine.signer.sign_point(point), ..*stored }
    };
    let follows = |seq| Err(Error::Point { seq, why: "it does not follow the one before" });
    let second = points[1].point();
    let beside = signed(&points[1], second.prev, second.time + 1);
    assert_eq!(trust.chain(volume, &[points[0], beside]), Ok(()));
    assert_eq!(trust.chain(volume, &[points[0], beside, points[2]]), follows(3));
    for prev in [Hash::ZERO, Hash([1; 32]), hash_of(&points[1].signed)] {
        let loose = signed(&points[1], prev, second.time);
        assert_eq!(trust.point(volume, &loose), Ok(()));
        assert_eq!(trust.chain(volume, &[points[0], loose]), follows(2));
    }
}

/// However few blocks are wanted of each, the chunks that a server may send are bounded.
#[test]
fn chunks_under_way_are_bounded() {
    let mut world = World::new(32);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(32);
    let mut model = Disk::new(PAGE_BLOCKS * BLOCK_SIZE as u64);
    (0..6000).for_each(|b| model.write(b * 2, noise(&mut random)));
    world.copy(&machine, volume, &model).unwrap();
    let open = Rc::new(Cell::new((0, 0)));
    let (asked, answered) = (open.clone(), open.clone());
    world.liar.ask = Some(Box::new(move |message| {
        if let Message::GetChunks { ids, .. } = message {
            let now = asked.get().0 + ids.len();
            asked.set((now, asked.get().1.max(now)));
        }
    }));
    world.liar.answer = Some(Box::new(move |message| match message {
        Message::Record { record } if split(record).unwrap().0.kind == Kind::Chunk => {
            answered.set((answered.get().0 - 1, answered.get().1));
        }
        _ => {}
    }));
    let (back, _) = world.restore(&machine, volume, 1, None).unwrap();
    assert!(back == model);
    assert_eq!(open.get(), (0, 4096));
}

/// Deltas are proved at their end only: before that they are bounded.
#[test]
fn deltas_without_end_are_refused() {
    let past = Past::new(28);
    let mut runs = ExtentsWriter::new();
    (0..240).for_each(|i| runs.data(i * 64, RecordId([1; 16]), 0, &[Tag([1; 16]); 64]));
    let size = past.models[0].size;
    let prefix = delta::Prefix { volume: past.volume, seq: 2, size, attempt: 1, after: [0; 8] };
    let body = delta::encode(&prefix, &runs.take());
    let record = record::plain(Kind::Delta, WriterId::ZERO, &body);
    let mut deltas = Deltas::after(&past.points[0]);
    for _ in 0..DELTAS_BYTES_MAX / record.len() as u64 {
        deltas.add(&record).unwrap();
    }
    let what = "more deltas than a store keeps";
    assert_eq!(deltas.add(&record), Err(Error::Protocol { what }));
}

#[test]
fn points_that_are_left_out_are_missed() {
    let mut past = Past::new(29);
    let trust = past.world.trust(&past.machine).unwrap();
    let Past { machine, volume, points, .. } = &past;
    let left_out = |seq| {
        let why = "the server leaves it out, and shows others";
        Err(Error::Point { seq, why })
    };
    let pages = |from| Points::from(&trust, *volume, from);
    let shown = |from, page: &[StoredPoint]| {
        let mut pages = pages(from);
        pages.add(page)?;
        pages.done(points.last()).map(drop)
    };
    for from in 1..=4 {
        let mut right = pages(from);
        assert_eq!(right.add(&points[from as usize - 1..]), Ok(true));
        assert_eq!(right.done(points.last()).unwrap(), points[from as usize - 1..]);
        for first in (0..4).filter(|first| *first != from as usize - 1) {
            assert_eq!(shown(from, &points[first..]), left_out(from));
        }
    }
    // The newest, all, or one in the middle; or the head is another one than was shown.
    let mut older = pages(1);
    assert_eq!(older.add(&points[..3]), Ok(true));
    assert_eq!(older.done(points.last()), Err(Error::Fork { seq: 4 }));
    let mut none = pages(1);
    assert_eq!(none.add(&[]), Ok(true));
    assert_eq!(none.done(points.last()), Err(Error::Fork { seq: 4 }));
    assert_eq!(shown(1, &[points[0], points[2], points[3]]), left_out(2));
    let mut head = points[3];
    head.signed = machine.signer.sign_point(Point { time: 1, ..*head.point() });
    let mut other = pages(1);
    assert_eq!(other.add(points), Ok(true));
    assert_eq!(other.done(Some(&head)), Err(Error::Fork { seq: 4 }));

    // More than a page.
    let mut long = points.clone();
    while long.len() < 2005 {
        let last = long[long.len() - 1];
        let seq = last.point().seq + 1;
        let next = Point { seq, prev: hash_of(&last.signed), ..*last.point() };
        long.push(StoredPoint { signed: machine.signer.sign_point(next), ..last });
    }
    let mut all = pages(1);
    assert_eq!(all.add(&long[..2000]), Ok(false));
    assert_eq!(all.next(), Message::ListPoints { volume: *volume, from: 2001, limit: 2000 });
    assert_eq!(all.add(&long[2001..]).map(drop), left_out(2001));
    assert_eq!(all.add(&long[2000..]), Ok(true));
    assert!(all.done(long.last()).unwrap() == long);
    let what = "more points than were asked for";
    assert_eq!(pages(1).add(&long[..2001]), Err(Error::Protocol { what }));
}

/// A certificate that does not hold takes nothing away from those that do.
#[test]
fn bad_certificates_are_left_out() {
    let past = Past::new(30);
    let good = past.machine.cert(0, past.world.now);
    let stranger = World::new(99).machine();
    let foreign = stranger.cert(0, past.world.now);
    let mut damaged = good.clone();
    damaged[150] ^= 1;
    let (header, body) = split(&good).unwrap();
    let mut unsigned = body.to_vec();
    *unsigned.last_mut().unwrap() ^= 1;
    let unsigned = record::plain(Kind::Cert, header.writer, &unsigned);
    let kind = record::plain(Kind::Volume, header.writer, body);
    let bad = [Vec::new(), foreign, damaged, unsigned, kind];
    let (volume, point) = (past.volume, past.points[0]);
    let authority = past.machine.authority.public();
    let mut trust = Trust::new(authority);
    for record in &bad {
        assert!(trust.add_cert(record).is_err());
        assert_eq!(trust.offer_cert(record), Ok(()));
    }
    assert!(trust.writer(&stranger.signer.writer_id()).is_none());
    let why = "its writer is not certified, and a certificate that the server gave does not hold";
    assert_eq!(trust.point(&volume, &point), Err(Error::Point { seq: 1, why }));
    assert_eq!(trust.offer_cert(&good), Ok(()));
    assert_eq!(trust.point(&volume, &point), Ok(()));
    let why = "its writer is not certified";
    let empty = Trust::new(authority);
    assert_eq!(empty.point(&volume, &point), Err(Error::Point { seq: 1, why }));
}

/// So with vault keys: the newest that holds counts.
#[test]
fn bad_vault_keys_are_left_out() {
    let mut world = World::new(33);
    let machine = world.machine();
    let stranger = World::new(98).machine();
    let keys = |epoch| vault::VaultKeys { vault: machine.vault, epoch, wrapped: vec![1; 100] };
    let put = |kind, body: Vec<u8>| record::plain(kind, WriterId::ZERO, &body);
    let good = |epoch| put(Kind::VaultKeys, machine.authority.sign_body(&keys(epoch)));
    let other = vault::VaultKeys { vault: stranger.vault, ..keys(7) };
    let mut damaged = good(8);
    damaged[130] ^= 1;
    let bad = [
        Vec::new(),
        damaged,
        put(Kind::VaultKeys, stranger.authority.sign_body(&keys(9))),
        put(Kind::VaultKeys, machine.authority.sign_body(&other)),
        put(Kind::Cert, machine.authority.sign_body(&keys(9))),
    ];
    let newest = || NewestKeys::new(machine.authority.public());
    assert_eq!(newest().done(), Err(None));
    for record in &bad {
        let mut only = newest();
        only.offer(record).unwrap();
        assert!(matches!(only.done(), Err(Some(_))));
    }
    let mut all = newest();
    for record in [&good(1), &bad[0], &good(3), &bad[1], &bad[2], &bad[3], &bad[4], &good(2)] {
        all.offer(record).unwrap();
    }
    assert_eq!(all.done(), Ok(keys(3)));
}

/// A data key's record that does not hold leaves the chunk unread, and says which.
#[test]
fn a_bad_data_keys_record_is_left_out() {
    let mut past = Past::new(31);
    let mut bytes = |alter: fn(&mut Vec<u8>)| {
        let lie = answer(move |message| match message {
            Message::Record { record } if split(record).unwrap().0.kind == Kind::DataKey => {
                alter(record);
            }
            _ => {}
        });
        let done = past.lied(1, lie);
        assert!(matches!(done, Err(Error::Chunk { .. })), "{done:?}");
    };
    bytes(|record| record.truncate(20));
    bytes(|record| record[130] ^= 1);
    bytes(|record| *record = record::plain(Kind::DataKey, WriterId::ZERO, &[1, 2, 3]));
    bytes(|record| *record = record::plain(Kind::Cert, WriterId::ZERO, &[1, 2, 3]));
}
