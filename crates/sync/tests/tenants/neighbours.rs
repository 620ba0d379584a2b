//! A client asks with everything that it could know of another vault on the same server. What is
//! there of the other and what is nowhere get the same answer, in code and text, and cost the same
//! reads; the other vault is not read at all.

use std::sync::Arc;

use dormouse_format::extents::{Content, Runs};
use dormouse_format::geometry::Place;
use dormouse_format::message::{Message, Refusal};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::Kind;
use dormouse_format::vault::{Distrust, Origin, Volume};
use dormouse_format::{ChunkId, KeyId, RecordId, VolumeId, WriterId};
use dormouse_sim::registry::Registered;
use dormouse_sim::{Machine, World};
use dormouse_store::Options;
use dormouse_sync::history::hash_of;

use crate::counted::Counted;
use crate::{BARRIER, disk, refused};

/// One vault: where it lies, its machine, and what is in it.
struct House {
    place: Counted,
    machine: Machine,
    volume: VolumeId,
    /// The body of the volume's record.
    body: Vec<u8>,
    point: StoredPoint,
    chunks: Vec<ChunkId>,
    /// A chunk's record, and its data key's.
    records: [Vec<u8>; 2],
}

/// Two vaults on one server, and a world in which their machines talk to it.
fn neighbours() -> (World, House, House) {
    let registry = Arc::new(Registered::new(Box::new(Counted::default()), Options::default()));
    let mut houses = [41, 42].map(|seed| {
        let place = Counted::default();
        let mut world = World::on(seed, Box::new(place.clone()), Options::default(), None);
        let house = house(&mut world, place);
        let (clients, _) = world.registry.state();
        registry.clients.lock().unwrap().extend(clients);
        registry.vaults.lock().unwrap().extend(world.registry.vaults.lock().unwrap().clone());
        Some(house)
    });
    let world = World::of(registry, dormouse_sim::Lcg(43), 1 << 40, None);
    (world, houses[0].take().unwrap(), houses[1].take().unwrap())
}

fn house(world: &mut World, place: Counted) -> House {
    let machine = world.machine();
    let (volume, body) = machine.volume(&mut world.random, "disk", world.now);
    let mut wire = world.hello(&machine).unwrap();
    wire.ask(&Message::CreateVolume { body: body.clone() }).unwrap();
    // The same content in both.
    world.copy(&machine, volume, &disk(2, 40)).unwrap();
    let point = world.points(&machine, volume).unwrap()[0];
    let mut wire = world.hello(&machine).unwrap();
    let leaves = Message::GetLeaves { volume, seq: 1, page: 0, mask: 1, hints: true };
    let Ok(Message::Leaves { runs }) = wire.ask(&leaves) else { panic!("leaves") };
    let chunk = |run: dormouse_format::extents::Run<'_>| match run.content {
        Content::Data { chunk, .. } => Some(chunk),
        _ => None,
    };
    let chunks: Vec<_> = Runs::new(&runs).filter_map(|r| chunk(r.unwrap())).collect();
    let ask = Message::GetChunks { writer: machine.writer(), skip: 0, ids: vec![chunks[0]] };
    let Ok(Message::Record { record }) = wire.ask(&ask) else { panic!("chunk") };
    let key = dormouse_format::record::split(&record).unwrap().0.key;
    let ask = Message::GetSmall { kind: Kind::DataKey, ids: vec![RecordId(key.0)] };
    let Ok(Message::Record { record: data_key }) = wire.ask(&ask) else { panic!("key") };
    House { place, machine, volume, body, point, chunks, records: [record, data_key] }
}

/// Everything that the server says to these messages, with every id of `names` taken out.
fn said(world: &mut World, me: &Machine, messages: &[Message], names: &[String]) -> String {
    let mut wire = world.hello(me).unwrap();
    let mut all = String::new();
    for message in messages {
        wire.send(message);
    }
    loop {
        match wire.answer() {
            Err(dormouse_sync::Error::Protocol { .. }) => break,
            answer => all += &format!("{answer:?}\n"),
        }
    }
    names.iter().fold(all, |all, name| all.replace(name, "ID"))
}

fn reading(volume: VolumeId, writer: WriterId, chunk: ChunkId, key: KeyId) -> Vec<Message> {
    let mut all = vec![
        Message::ListPoints { volume, from: 1, limit: 100 },
        Message::GetNode { volume, seq: 1, place: Place { level: 1, index: 0 } },
        Message::GetLeaves { volume, seq: 1, page: 0, mask: 1, hints: true },
        Message::GetDeltas { volume, seq: 1 },
        Message::GetChunks { writer, skip: 0, ids: vec![chunk; 3] },
        Message::Have { check: false, ids: vec![chunk] },
        Message::Have { check: true, ids: vec![chunk] },
        Message::GetSmall { kind: Kind::DataKey, ids: vec![RecordId(key.0)] },
    ];
    for kind in [Kind::Vault, Kind::Cert, Kind::VaultKeys, Kind::Volume] {
        all.push(Message::GetSmall { kind, ids: vec![chunk] });
    }
    all
}

#[test]
fn what_is_anothers_and_what_is_nowhere_look_alike() {
    let (mut world, me, other) = neighbours();
    let of = dormouse_format::record::split(&other.records[0]).unwrap().0.key;
    let theirs = reading(other.volume, other.machine.writer(), other.chunks[0], of);
    let (volume, chunk) = (VolumeId([0x5a; 16]), RecordId([0x5b; 16]));
    let nowhere = reading(volume, WriterId([0x5c; 16]), chunk, KeyId([0x5d; 16]));
    for (theirs, nowhere) in theirs.into_iter().zip(nowhere) {
        me.place.taken();
        other.place.taken();
        let names = |volume: VolumeId, chunk: ChunkId| vec![volume.to_string(), chunk.to_string()];
        let names_of = names(other.volume, other.chunks[0]);
        let a = said(&mut world, &me.machine, std::slice::from_ref(&theirs), &names_of);
        let reads = me.place.taken();
        let b = said(&mut world, &me.machine, &[nowhere], &names(volume, chunk));
        assert_eq!(a, b, "{theirs:?}");
        assert_eq!(me.place.taken(), reads, "reads for {theirs:?}");
        assert_eq!(other.place.taken(), 0, "the neighbour's vault was read for {theirs:?}");
        assert!(!a.is_empty(), "{theirs:?}");
    }
}

#[test]
fn lists_and_chunks_are_ones_own() {
    let (mut world, me, other) = neighbours();
    let mut wire = world.hello(&me.machine).unwrap();
    let Ok(Message::Volumes { items }) = wire.ask(&Message::ListVolumes) else { panic!("list") };
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].volume, me.body);
    for kind in [Kind::Vault, Kind::Cert, Kind::VaultKeys] {
        let all = said(&mut world, &me.machine, &[Message::GetSmall { kind, ids: vec![] }], &[]);
        assert_eq!(all.lines().count(), 2, "{kind:?}: one, and the end: {all}");
    }
    // The same content has other ids, and nothing of the other's is there.
    assert!(me.chunks.iter().all(|id| !other.chunks.contains(id)));
    let mut wire = world.hello(&me.machine).unwrap();
    let own = Message::Have { check: false, ids: me.chunks.clone() };
    assert_eq!(wire.ask(&own), Ok(Message::HaveAnswer { have: vec![true; me.chunks.len()] }));
    let theirs = Message::Have { check: true, ids: other.chunks.clone() };
    let none = vec![false; other.chunks.len()];
    assert_eq!(wire.ask(&theirs), Ok(Message::HaveAnswer { have: none }));
}

/// Whatever is brought from the other vault is refused, and nothing is written.
#[test]
fn nothing_of_anothers_gets_in() {
    let (mut world, me, other) = neighbours();
    let distrust = Distrust {
        vault: other.machine.vault,
        chunk: other.chunks[0],
        maker: other.machine.writer(),
        key: KeyId([1; 16]),
        by: other.machine.writer(),
    };
    let origin = Origin {
        tags: other.volume,
        volume: other.volume,
        seq: 1,
        hash: hash_of(&other.point.signed),
    };
    let fork = Volume {
        vault: me.machine.vault,
        id: VolumeId([7; 16]),
        writer: me.machine.writer(),
        created: 1,
        name: "fork".into(),
        origin: Some(origin),
    };
    let fork = Message::CreateVolume { body: me.machine.signer.sign_body(&fork) };
    let (vault_of, keys_of) = {
        let [vault, keys] = other.machine.vault_records(1);
        (vault, keys)
    };
    let size = 16 << 20;
    let cases: Vec<(Vec<Message>, Refusal)> = vec![
        (vec![Message::Put { record: other.records[0].clone() }], Refusal::BadRecord),
        (vec![Message::Put { record: other.records[1].clone() }], Refusal::BadRecord),
        (vec![Message::Put { record: other.machine.cert(0, 1) }], Refusal::BadRecord),
        (vec![Message::Put { record: vault_of }], Refusal::BadRecord),
        (vec![Message::Put { record: keys_of }], Refusal::BadRecord),
        (vec![Message::CreateVolume { body: other.body.clone() }], Refusal::BadRecord),
        (vec![fork], Refusal::NotFound),
        (vec![Message::OpenWrite { volume: other.volume, takeover: true }], Refusal::NotFound),
        (
            vec![Message::Distrust { body: other.machine.signer.sign_body(&distrust) }],
            Refusal::BadRecord,
        ),
        (
            vec![
                Message::OpenWrite { volume: me.volume, takeover: false },
                Message::Begin { base: dormouse_format::message::Base::Delta, size },
                Message::Commit { point: other.point.signed },
            ],
            Refusal::Conflict,
        ),
    ];
    for (messages, expected) in cases {
        let segments = |house: &House| {
            use dormouse_sim::registry::Place;
            let dir = house.place.segments();
            let names = dir.list().unwrap();
            names.iter().map(|n| dir.open(n).unwrap().len().unwrap()).collect::<Vec<_>>()
        };
        let theirs = segments(&other);
        let shown = format!("{:?}", messages.last());
        let mut wire = world.hello(&me.machine).unwrap();
        for message in &messages {
            wire.send(message);
        }
        wire.send(&BARRIER);
        let answer = loop {
            match wire.answer() {
                Ok(Message::Opened { .. }) => {}
                answer => break answer,
            }
        };
        assert_eq!(refused(answer).0, expected, "{shown}");
        assert_eq!(segments(&other), theirs, "{shown}");
    }
    assert_eq!(world.points(&other.machine, other.volume).unwrap(), [other.point]);
}

/// A key that is nobody's, and one of another vault, cannot be told apart by who asks for a vault.
#[test]
fn a_vault_that_is_there_and_one_that_is_not_look_alike_to_a_stranger() {
    let (mut world, me, other) = neighbours();
    let mut answers = Vec::new();
    let nowhere = Machine::new(&mut world.random, None);
    for of in [&other.machine, &nowhere] {
        let key = dormouse_format::PublicKey([9; 32]);
        let binding = world.binding(key);
        let message = Message::Recover {
            vault: of.vault,
            proof: binding.prove_authority(&me.machine.authority),
            name: "me".into(),
            cert: me.machine.cert(0, 1),
        };
        answers.push(refused(world.wire(key).ask(&message)));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, Refusal::NotAuthorised);
}
