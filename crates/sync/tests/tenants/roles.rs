//! A reader writes nothing, an admin appends nothing, and neither gets as far as to be told what is
//! wrong with what it sent.

use dormouse_format::message::{Base, Message, Refusal};
use dormouse_format::{RecordId, VolumeId};
use dormouse_sim::World;
use dormouse_sync::server::Role;

use crate::{disk, refused, used};

/// Every message that appends, with nothing right in it but its form.
fn writes(volume: VolumeId, point: dormouse_format::point::SignedPoint) -> Vec<Message> {
    vec![
        Message::CreateVolume { body: vec![0; 10] },
        Message::OpenWrite { volume, takeover: false },
        Message::OpenWrite { volume, takeover: true },
        Message::Have { check: false, ids: vec![RecordId([1; 16])] },
        Message::Have { check: true, ids: vec![] },
        Message::Put { record: vec![0; 200] },
        Message::Barrier,
        Message::Begin { base: Base::Delta, size: 4096 },
        Message::Extents { runs: vec![] },
        Message::Commit { point },
        Message::Distrust { body: vec![0; 10] },
    ]
}

#[test]
fn who_only_reads_appends_nothing_whatever_it_says() {
    let mut world = World::new(21);
    let writer = world.machine();
    let volume = world.volume(&writer, "disk");
    let model = disk(2, 20);
    world.copy(&writer, volume, &model).unwrap();
    let point = world.points(&writer, volume).unwrap()[0].signed;
    let other = world.second(&writer, 0);
    for role in [Role::Reader, Role::Admin] {
        world.registry.clients.lock().unwrap().get_mut(&other.transport).unwrap().role = role;
        let before = used(&world);
        for message in writes(volume, point) {
            let mut wire = world.hello(&other).unwrap();
            // Some are answered only if refused: a barrier behind them is not reached.
            let (refusal, text) = refused(wire.ask(&message));
            assert_eq!(refusal, Refusal::NotAuthorised, "{message:?}: {text}");
            let words = format!("this client is {} here, and may not append", role.name());
            assert!(text.contains(&words) && text.contains("dormouse grant"), "{text}");
            assert_eq!(wire.answer().unwrap_err(), dormouse_sync::Error::Protocol { what: "cut" });
        }
        assert_eq!(used(&world), before, "nothing was appended");
        // It reads all of it.
        assert!(world.restore(&other, volume, 1, None).unwrap().0 == model);
    }
    // And the writer of before goes on.
    let more = disk(3, 20);
    world.copy(&writer, volume, &more).unwrap();
    world.assert_restores(&writer, volume, &[model, more]);
}

#[test]
fn who_is_not_a_writer_makes_no_vault() {
    let mut world = World::new(22);
    let machine = dormouse_sim::Machine::new(&mut world.random, None);
    let secret = dormouse_crypt::invite::secret(&mut world.random);
    let key = dormouse_crypt::invite::key(&secret).unwrap();
    let verifier = dormouse_crypt::invite::verifier(&key.public());
    world.registry.invite_as(verifier, Role::Admin);
    let mut bundle = vec![machine.cert(0, world.now)];
    bundle.extend(machine.vault_records(world.now));
    let enrol = machine.enrol(&secret, &world.binding(machine.transport), bundle.clone());
    let (refusal, text) = refused(world.wire(machine.transport).ask(&enrol));
    assert_eq!(refusal, Refusal::NotFound);
    assert!(text.contains("admin") && text.contains("export-writer"), "{text}");
    assert!(world.registry.vaults.lock().unwrap().is_empty());
    // In a vault that is there it is what it was invited to be.
    let first = world.machine();
    let second = first.second(&mut world.random);
    let bundle = vec![second.cert(0, world.now)];
    let enrol = second.enrol(&secret, &world.binding(second.transport), bundle);
    world.wire(second.transport).ask(&enrol).unwrap();
    let role = world.registry.clients.lock().unwrap()[&second.transport].role;
    assert_eq!(role, Role::Admin);
}
