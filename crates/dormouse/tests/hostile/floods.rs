//! Clients that are known, and ask for too much: the server's memory is bounded, others are
//! served, and the log says why it ended them.

use std::io::Write;
use std::time::{Duration, Instant};

use dormouse::text::now_ns;
use dormouse_crypt::{Identity, record};
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Base, Message, Refusal};
use dormouse_format::record::Kind;
use dormouse_format::vault::{self, Volume};
use dormouse_format::{ChunkId, InstanceId, KeyId, RecordId, VolumeId, WriterId};

use crate::MIB;
use crate::clients::{logged, served};
use crate::common::program::{Numbers, Place, Serving, chunks};
use crate::liar::Wire;
use crate::memory;

/// What the server may have at most, whatever one client does on some connections.
const MEMORY: u64 = 160 << 20;

#[track_caller]
fn small(server: &Serving) {
    let peak = memory(server.child.id(), "VmHWM:").unwrap();
    assert!(peak < MEMORY, "the server had {} MiB", peak >> 20);
}

/// A copy and a restore by the real client, now.
#[track_caller]
fn others_are_served(place: &Place) {
    let began = Instant::now();
    let content = Numbers(11).noise(2 * MIB);
    std::fs::write(place.path("honest"), &content).unwrap();
    place.mirror("honest");
    place.restores("honest", &content);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[track_caller]
fn ends_with(wire: &mut Wire, refusal: Refusal) {
    loop {
        match wire.next().unwrap() {
            Some(Message::Error { refusal: found, text }) => {
                assert_eq!(found, refusal, "{text}");
                return;
            }
            Some(_) => {}
            None => panic!("no refusal"),
        }
    }
}

/// Frames that are sent again and again, and answers that nobody reads, until the server
/// takes no more. How much it took.
fn pour(wire: &mut Wire, frames: &[u8]) -> usize {
    wire.socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut poured = 0;
    while poured < 128 << 20 && wire.raw(frames).is_ok() {
        poured += frames.len();
    }
    poured
}

fn chunk_ids(place: &Place) -> Vec<ChunkId> {
    place.segments().iter().flat_map(|s| chunks(s)).map(|(_, h)| h.id).collect()
}

/// Asks for much, and reads nothing: the server waits a while, holds little, and ends it.
#[test]
fn who_does_not_read_is_held_back_and_ended() {
    let (place, server, account) = served(&["--patience", "4s"]);
    std::fs::write(place.path("big"), Numbers(1).noise(24 * MIB)).unwrap();
    place.mirror("big");
    let ids: Vec<_> = chunk_ids(&place).into_iter().cycle().take(1024).collect();
    let chunks = Message::GetChunks { writer: account.writer(), skip: 0, ids }.encode();
    let have = Message::Have { check: false, ids: vec![RecordId([9; 16]); 4096] }.encode();
    let certs = Message::GetSmall { kind: Kind::Cert, ids: Vec::new() }.encode();
    let points = Message::ListPoints { volume: VolumeId([0; 16]), from: 1, limit: u32::MAX };
    let mut wires = Vec::new();
    for (frames, most) in [
        (chunks.repeat(4), 32 << 20),
        // A short answer: it takes these as long as they come.
        (have, usize::MAX),
        (certs.repeat(1000), 32 << 20),
        (Message::ListVolumes.encode().repeat(5000), 32 << 20),
        (points.encode().repeat(500), 32 << 20),
        // Five bytes each, and in memory much more.
        (Message::Barrier.encode().repeat(10_000), 64 << 20),
    ] {
        let mut wire = Wire::welcome(&account, &server.address);
        let poured = pour(&mut wire, &frames);
        assert!(poured < most, "the server took {} MiB of questions", poured >> 20);
        wires.push(wire);
    }
    small(&server);
    others_are_served(&place);
    logged(&place, "the connection was cut");
    drop(wires);
    small(&server);
}

/// Data keys of 8 KiB under one id, and that id a thousand times in one question.
#[test]
fn many_keys_under_one_id_are_given_one_by_one() {
    let (place, server, account) = served(&[]);
    let mut wire = Wire::welcome(&account, &server.address);
    let key = KeyId([5; 16]);
    for created in 0..400 {
        let value = vault::DataKey {
            vault: account.vault,
            writer: account.writer(),
            key,
            created,
            wrapped: vec![7; 7000],
        };
        let body = account.signing.sign_body(&value);
        let record = record::plain(Kind::DataKey, account.writer(), &body);
        wire.send(&Message::Put { record }).unwrap();
    }
    assert_eq!(wire.ask(&Message::Barrier), Message::Durable);
    let ids = vec![RecordId(key.0); 1024];
    wire.send(&Message::GetSmall { kind: Kind::DataKey, ids }).unwrap();
    let mut records = 0;
    while let Some(Message::Record { .. }) = wire.next().unwrap() {
        records += 1;
    }
    assert_eq!(records, 400);
    small(&server);
    others_are_served(&place);
}

#[test]
fn frames_beyond_the_limit_after_authentication() {
    let (place, server, account) = served(&[]);
    for len in [u32::MAX, FRAME_MAX as u32 + 1, 0] {
        let mut wire = Wire::welcome(&account, &server.address);
        wire.raw(&[&len.to_le_bytes()[..], &[0x23]].concat()).unwrap();
        ends_with(&mut wire, Refusal::Protocol);
        // What was a rule before authentication is none after, and the other way round.
        let mut wire = Wire::welcome(&account, &server.address);
        wire.raw(&[&(FRAME_MAX as u32).to_le_bytes()[..], &[0x23]].concat()).unwrap();
        wire.socket.flush().unwrap();
    }
    logged(&place, "broke the protocol");
    small(&server);
    others_are_served(&place);
}

/// Each thing that a client may not put, in a connection of its own.
#[test]
fn what_a_client_may_not_put() {
    let (place, server, account) = served(&[]);
    std::fs::write(place.path("some"), Numbers(2).noise(MIB)).unwrap();
    place.mirror("some");
    let ask =
        Message::GetChunks { writer: account.writer(), skip: 0, ids: vec![chunk_ids(&place)[0]] };
    let mut wire = Wire::welcome(&account, &server.address);
    let Message::Record { record: chunk } = wire.ask(&ask) else { panic!("no chunk") };
    let (header, body) = dormouse_format::record::split(&chunk).unwrap();
    let other = WriterId([3; 16]);
    let foreign =
        record::assemble(dormouse_format::record::Header { writer: other, ..header }, body);
    let no_key =
        record::assemble(dormouse_format::record::Header { key: KeyId([8; 16]), ..header }, body);
    let mut broken = chunk.clone();
    *broken.last_mut().unwrap() ^= 1;
    let key = |signer: &dormouse_crypt::SigningKey, vault| {
        let value = vault::DataKey {
            vault,
            writer: signer.writer_id(),
            key: KeyId([1; 16]),
            created: 1,
            wrapped: Identity::generate().recipient().wrap(&[1; 32]).unwrap(),
        };
        record::plain(Kind::DataKey, signer.writer_id(), &signer.sign_body(&value))
    };
    let stranger = dormouse_crypt::SigningKey::from_seed([4; 32]).unwrap();
    let cert = dormouse::join::certificate(&stranger, account.vault, &stranger, "me", 0);
    for bad in [
        foreign,
        no_key,
        broken,
        key(&stranger, account.vault),
        key(&account.signing, dormouse_format::VaultId([1; 32])),
        cert,
        record::plain(Kind::Point, account.writer(), &[0; 336]),
        record::plain(Kind::Mark, account.writer(), &[]),
        Vec::new(),
        vec![0; 1 << 20],
    ] {
        let before = place.store();
        let mut wire = Wire::welcome(&account, &server.address);
        wire.send(&Message::Put { record: bad }).unwrap();
        ends_with(&mut wire, Refusal::BadRecord);
        assert!(before == place.store(), "the store was changed");
    }
    logged(&place, "refused:");
    others_are_served(&place);
}

/// Points that are begun and never ended, extents without end, of chunks that are not there.
#[test]
fn points_without_an_end() {
    let (place, server, account) = served(&[]);
    std::fs::write(place.path("some"), Numbers(2).noise(MIB)).unwrap();
    place.mirror("some");
    let mut wire = Wire::welcome(&account, &server.address);
    let Message::Volumes { items } = wire.ask(&Message::ListVolumes) else { panic!("volumes") };
    let volume = items[0].head.unwrap().point().volume;
    assert!(matches!(
        wire.ask(&Message::OpenWrite { volume, takeover: false }),
        Message::Opened { .. }
    ));
    let size = 1 << 60;
    for base in [Base::Checkpoint, Base::Head, Base::Delta] {
        let begin = Message::Begin { base, size }.encode();
        wire.raw(&begin.repeat(20_000)).unwrap();
        assert_eq!(wire.ask(&Message::Barrier), Message::Durable);
    }
    small(&server);
    // A million blocks, each of a chunk that nobody has.
    wire.send(&Message::Begin { base: Base::Checkpoint, size }).unwrap();
    let mut runs = dormouse_format::extents::ExtentsWriter::new();
    for block in 1..1_000_000u64 {
        let mut chunk = [0; 16];
        chunk[..8].copy_from_slice(&block.to_le_bytes());
        runs.data(block * 1000, RecordId(chunk), 0, &[dormouse_format::Tag([1; 16])]);
        if runs.len() > 200 << 10 {
            wire.send(&Message::Extents { runs: runs.take() }).unwrap();
        }
    }
    assert_eq!(wire.ask(&Message::Barrier), Message::Durable);
    small(&server);
    // Not ascending is refused.
    let mut runs = dormouse_format::extents::ExtentsWriter::new();
    runs.zero(1, 1);
    wire.send(&Message::Extents { runs: runs.take() }).unwrap();
    ends_with(&mut wire, Refusal::Conflict);
    others_are_served(&place);
    place.restores("some", &Numbers(2).noise(MIB));
}

#[test]
fn volumes_without_end() {
    let (place, server, account) = served(&[]);
    let mut wire = Wire::welcome(&account, &server.address);
    let mut made = 0;
    let refusal = loop {
        let mut id = [1; 16];
        id[..8].copy_from_slice(&u64::to_le_bytes(made));
        let volume = Volume {
            vault: account.vault,
            id: VolumeId(id),
            writer: account.writer(),
            created: now_ns(),
            name: format!("{made:064}"),
            origin: None,
        };
        match wire.ask(&Message::CreateVolume { body: account.signing.sign_body(&volume) }) {
            Message::Done => made += 1,
            Message::Error { refusal, .. } => break refusal,
            other => panic!("{other:?}"),
        }
        assert!(made <= 1024);
    };
    assert_eq!((made, refusal), (1024, Refusal::BadRecord));
    // As many as there may be still fit into an answer, and a client takes it.
    assert_eq!(place.run(&["volumes", "--json"]).ok().json().as_array().unwrap().len(), 1024);
    small(&server);
}

/// A client's own connections are bounded, and those of others are not touched.
#[test]
fn connections_of_one_client_are_bounded() {
    let (place, server, account) = served(&[]);
    place.join_server("other", "desk", &server);
    let wires: Vec<_> = (0..16).map(|_| Wire::welcome(&account, &server.address)).collect();
    let mut one_more = Wire::connect(&account, &server.address);
    one_more.send(&Message::Hello { instance: InstanceId([0; 16]) }).unwrap();
    ends_with(&mut one_more, Refusal::Stopping);
    place.run(&["points"]).fails(6, &["16 connections", "try again"]);
    place.run_in("other", &["points"]).ok();
    logged(&place, "16 connections to this server already");
    drop(wires);
    let began = Instant::now();
    while place.run(&["points"]).code != Some(0) {
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    small(&server);
}
