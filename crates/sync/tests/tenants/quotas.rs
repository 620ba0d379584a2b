//! At its quota a vault takes nothing new, by whatever message; what was begun ends; everything can
//! be read; nobody gets beyond the reserve.

use std::sync::Arc;

use dormouse_format::VolumeId;
use dormouse_format::message::{Base, Message, Refusal};
use dormouse_format::vault::Distrust;
use dormouse_sim::wire::Said;
use dormouse_sim::{Machine, World};
use dormouse_store::VaultStore;

use crate::{BARRIER, disk, refused, used};

fn store(world: &World, machine: &Machine) -> Arc<VaultStore> {
    world.registry.vaults.lock().unwrap()[&machine.vault].clone()
}

/// A world with a volume of one point.
fn copied(seed: u64) -> (World, Machine, VolumeId) {
    let mut world = World::new(seed);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    world.copy(&machine, volume, &disk(2, 60)).unwrap();
    (world, machine, volume)
}

#[track_caller]
fn is_full(answer: (Refusal, String), used: u64) {
    let (refusal, text) = answer;
    assert_eq!(refusal, Refusal::Full, "{text}");
    let kib = format!("{:.1} KiB", used as f64 / 1024.0);
    assert!(text.contains("quota") && text.contains(&format!("{kib} of {kib}")), "{text}");
}

#[test]
fn at_the_quota_nothing_new_is_taken_and_everything_is_read() {
    let (mut world, machine, volume) = copied(31);
    let store = store(&world, &machine);
    let spare = machine.second(&mut world.random);
    let full = used(&world);
    let (_, key) = machine.data_key(&mut world.random, world.now);
    let (_, body) = machine.volume(&mut world.random, "more", world.now);
    let distrust = Distrust {
        vault: machine.vault,
        chunk: dormouse_format::RecordId([3; 16]),
        maker: machine.writer(),
        key: dormouse_format::KeyId([4; 16]),
        by: machine.writer(),
    };
    let distrust = machine.signer.sign_body(&distrust);
    store.set_quota(Some(full));
    let cert = spare.cert(0, world.now);
    for message in [
        Message::Put { record: key.clone() },
        Message::Put { record: cert.clone() },
        Message::CreateVolume { body: body.clone() },
        Message::OpenWrite { volume, takeover: false },
        Message::Distrust { body: distrust.clone() },
    ] {
        let mut wire = world.hello(&machine).unwrap();
        wire.send(&message);
        is_full(refused(wire.ask(&BARRIER)), full);
        assert_eq!(used(&world), full, "{message:?}");
    }
    // A new machine is not let in half.
    let newcomer = machine.second(&mut world.random);
    is_full(refused(world.enrol(&newcomer, 0, &[])), full);
    assert_eq!(used(&world), full);
    // All of it can be read, and asked for.
    assert!(world.restore(&machine, volume, 1, None).unwrap().0 == disk(2, 60));
    let mut wire = world.hello(&machine).unwrap();
    let have = wire.ask(&Message::Have { check: false, ids: vec![] }).unwrap();
    assert_eq!(have, Message::HaveAnswer { have: vec![] });
    // With more room, each of them counts.
    store.set_quota(Some(full + (64 << 10)));
    let before = used(&world);
    for message in [
        Message::Put { record: key },
        Message::Put { record: cert },
        Message::CreateVolume { body },
        Message::Distrust { body: distrust },
    ] {
        let was = used(&world);
        let mut wire = world.hello(&machine).unwrap();
        wire.send(&message);
        wire.ask(&BARRIER).unwrap();
        assert!(used(&world) > was, "{message:?}");
    }
    assert!(used(&world) > before);
    store.set_quota(None);
    world.copy(&machine, volume, &disk(4, 60)).unwrap();
}

/// The quota is used up in the middle of a copy: what was put stays, and no point comes of it; the
/// last one is whole.
#[test]
fn a_copy_that_does_not_fit_leaves_the_last_point_as_it_was() {
    let (mut world, machine, volume) = copied(32);
    let store = store(&world, &machine);
    let quota = used(&world) + (100 << 10);
    store.set_quota(Some(quota));
    let (refusal, text) = refused(world.copy(&machine, volume, &disk(5, 200)).map(drop));
    assert_eq!(refusal, Refusal::Full, "{text}");
    // The chunk that did not fit is the last word: no more than one record is beyond.
    assert!(used(&world) <= quota, "{} of {quota}", used(&world));
    assert!(world.points(&machine, volume).unwrap().len() == 1);
    assert!(world.restore(&machine, volume, 1, None).unwrap().0 == disk(2, 60));
    // A larger quota, and it goes on: what was put is not sent again.
    store.set_quota(None);
    let before = used(&world);
    world.copy(&machine, volume, &disk(5, 200)).unwrap();
    assert!(used(&world) - before < 800 << 10);
    assert!(world.restore(&machine, volume, 2, None).unwrap().0 == disk(5, 200));
}

/// Chunks are in when the quota is used up: their map and their point still come in.
#[test]
fn what_was_sent_becomes_a_point() {
    let (mut world, machine, volume) = copied(33);
    let store = store(&world, &machine);
    let at_quota = store.clone();
    world.ear = Some(Arc::new(move |said| {
        if let Said::Asked(Message::Extents { .. }) = said {
            at_quota.set_quota(Some(at_quota.stats().bytes));
        }
    }));
    // All extents of so small a disk come together, behind its chunks.
    world.copy(&machine, volume, &disk(6, 60)).unwrap();
    world.ear = None;
    let (used, quota) = store.quota();
    assert!(used > quota.unwrap(), "map and point went beyond: {used} of {quota:?}");
    assert!(world.restore(&machine, volume, 2, None).unwrap().0 == disk(6, 60));
}

/// Points without data, without end: they are small, and end at the reserve.
#[test]
fn small_records_do_not_get_beyond_the_reserve() {
    const RESERVE: u64 = 1 << 20;
    let (mut world, machine, volume) = copied(34);
    let store = store(&world, &machine);
    let mut wire = world.hello(&machine).unwrap();
    world.open(&mut wire, volume).unwrap();
    let quota = used(&world);
    store.set_quota(Some(quota));
    let begin = Message::Begin { base: Base::Delta, size: 16 << 20 };
    let mut parts = 0_u64;
    let answer = loop {
        wire.send(&begin);
        for _ in 0..50 {
            wire.send(&Message::Extents { runs: vec![] });
        }
        parts += 50;
        // Answered, because nothing else is.
        let answer = wire.ask(&Message::ListPoints { volume, from: 1, limit: 1 });
        if answer.is_err() || parts > 100_000 {
            break answer;
        }
    };
    let (refusal, text) = refused(answer);
    assert_eq!(refusal, Refusal::Full, "{text}");
    let used = used(&world);
    assert!(used <= quota + RESERVE && used > quota + RESERVE / 2, "{used} of {quota}");
    assert!(world.restore(&machine, volume, 1, None).unwrap().0 == disk(2, 60));
}

#[test]
fn nobody_builds_on_what_a_distrusted_writer_sent() {
    let mut world = World::new(35);
    let first = world.machine();
    let second = world.second(&first, 0);
    let friend = world.second(&first, 5);
    let liar = world.second(&first, 5);
    let volume = world.volume(&liar, "disk");
    let model = disk(7, 30);
    world.copy(&liar, volume, &model).unwrap();
    let store = store(&world, &first);
    let own = world.volume(&friend, "own");
    let sent = world.copy(&friend, own, &model).unwrap().progress.sent;
    assert_eq!(sent, 0, "a friend's chunks are used");
    store.set_distrusted([liar.writer()].into());
    let again = world.volume(&friend, "again");
    let sent = world.copy(&friend, again, &model).unwrap().progress.sent;
    assert!(sent > 0, "they are sent again");
    // What is there is still read.
    assert!(world.restore(&second, volume, 1, None).unwrap().0 == model);
    assert!(world.restore(&friend, again, 1, None).unwrap().0 == model);
}
