//! A writer of the vault, and a server, that lie.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Disk, Lcg, World, noise, same};
use dormouse_crypt::record;
use dormouse_crypt::seal::{DataKey, SealFor, Sealer};
use dormouse_format::message::Message;
use dormouse_format::record::{Kind, split};
use dormouse_format::vault::{self, Signed};
use dormouse_format::{RecordId, limits::BLOCK_SIZE};
use dormouse_sync::Error;
use dormouse_sync::history::{check_anchor, hash_of};

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
        wire.send(world.now, &Message::Put { record: put });
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
            wire.send(world.now, &Message::Put { record });
        }
        assert_eq!(wire.ask(world.now, &Message::Barrier), Ok(Message::Durable));
        let (back, _) = world.restore(&victim, volume, 1, None).unwrap();
        assert!(same(&back, &model));
        // Also for a reader whose preferred records are the bad ones.
        let stored = world.points(&victim, volume)[0];
        assert_eq!(stored.point().writer, victim.signer.writer_id());
        let id = victim.secrets.chunk_id(&[victim.secrets.digest(&model.blocks[&0])]);
        let ask =
            |skip| Message::GetChunks { writer: liar.signer.writer_id(), skip, ids: vec![id] };
        let mut makers = Vec::new();
        for skip in 0..3 {
            match wire.ask(world.now, &ask(skip)).unwrap() {
                Message::Record { record } => makers.push(split(&record).unwrap().0.writer),
                other => assert_eq!(other, Message::Absent { id }),
            }
        }
        assert_eq!(makers, [liar.signer.writer_id(), victim.signer.writer_id()]);
    }
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
    let Ok(Message::Record { record: chunk }) = wire.ask(world.now, &ask) else { panic!("chunk") };
    let key = split(&chunk).unwrap().0.key;

    let liar = world.second(&victim, 0);
    let ask = Message::GetSmall { kind: Kind::DataKey, ids: vec![RecordId(key.0)] };
    let Ok(Message::Record { record: own }) = wire.ask(world.now, &ask) else { panic!("key") };
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
        wire.send(world.now, &Message::Put { record });
        assert_eq!(wire.ask(world.now, &Message::Barrier), Ok(Message::Durable));
    }
    let mut wire = world.hello(&victim).unwrap();
    let ask = Message::GetSmall { kind: Kind::DataKey, ids: vec![RecordId(key.0)] };
    assert!(matches!(wire.ask(world.now, &ask), Ok(Message::Record { .. })));
    let (back, _) = world.restore(&victim, volume, 1, None).unwrap();
    assert!(same(&back, &model));
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
    let points = world.points(&machine, volume);
    let seen = points[1].signed;
    assert_eq!(check_anchor(Some(&seen), points.last(), Some(&points[1])), Ok(()));
    let back = check_anchor(Some(&seen), Some(&points[0]), None);
    assert_eq!(back, Err(Error::Rollback { seen: 2, shown: 1 }));
    assert_eq!(check_anchor(Some(&seen), None, None), Err(Error::Rollback { seen: 2, shown: 0 }));
    let fork = check_anchor(Some(&seen), points.last(), Some(&points[2]));
    assert_eq!(fork, Err(Error::Fork { seq: 2 }));
    // A chain with a point left out, swapped, or of another volume does not hold.
    let trust = world.trust(&machine);
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
    let Ok(Message::Record { record: chunk }) = wire.ask(world.now, &ask) else { panic!("chunk") };
    let value = vault::Distrust {
        vault: machine.vault,
        chunk: id,
        maker: writer,
        key: split(&chunk).unwrap().0.key,
        by: writer,
    };
    let body = machine.signer.sign_body(&value);
    assert_eq!(wire.ask(world.now, &Message::Distrust { body }), Ok(Message::Done));
    // It is still given to readers, or a liar could hide good records by distrust.
    assert!(matches!(wire.ask(world.now, &ask), Ok(Message::Record { .. })));
    let other = world.volume(&machine, "other");
    let again = world.copy(&machine, other, &model).unwrap();
    assert_eq!(again.progress.sent, 1);
    let (back, _) = world.restore(&machine, volume, 1, None).unwrap();
    assert!(same(&back, &model));
}
