//! Lies about what a point holds: chunks, keys, maps. None of them brings a wrong byte.

use std::time::Duration;

use dormouse::home::Home;
use dormouse_crypt::seal::DataKey;
use dormouse_crypt::{hash, record};
use dormouse_format::limits::SEAL_OVERHEAD;
use dormouse_format::message::Message;
use dormouse_format::record::{BOUND_LEN, HEADER_LEN, Header, Kind, split};
use dormouse_format::{ChunkId, VaultId};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::common::program::Place;
use crate::liar::{Liar, Lie, Wire};
use crate::{Stage, bounded};

const WAY_OUT: &str = "dormouse scrub STORE";

fn chunks(mut f: impl FnMut(&mut Vec<u8>) + Send + 'static) -> Lie {
    Lie::answer(move |m| match m {
        Message::Record { record } if split(record).unwrap().0.kind == Kind::Chunk => f(record),
        _ => {}
    })
}

/// The first chunk's record, in place of each.
fn first_for_all(relabelled: bool) -> Lie {
    let mut first: Option<Vec<u8>> = None;
    chunks(move |record| {
        let id = split(record).unwrap().0.id;
        *record = first.get_or_insert_with(|| record.clone()).clone();
        if relabelled {
            let (mut header, body) = split(record).unwrap();
            header.id = id;
            *record = record::assemble(header, body);
        }
    })
}

#[test]
fn another_chunk_under_the_id_or_as_it_is() {
    let stage = Stage::new();
    stage.refused(|| first_for_all(false), 7, &["another chunk than the one asked for"]);
    stage.refused(|| first_for_all(true), 9, &["cannot be used", WAY_OUT]);
}

#[test]
fn a_chunk_with_a_flipped_bit_or_none_at_all() {
    let stage = Stage::new();
    let flipped = || {
        chunks(|record| {
            let (header, body) = split(record).unwrap();
            let mut body = body.to_vec();
            body[17] ^= 4;
            // The checksums are right: they keep nobody out who means it.
            *record = record::assemble(header, &body);
        })
    };
    stage.refused(flipped, 9, &["cannot be used", WAY_OUT]);
    let cut = || {
        chunks(|record| {
            let (mut header, body) = split(record).unwrap();
            header.body_len -= 1;
            *record = record::assemble(header, &body[..body.len() - 1]);
        })
    };
    stage.refused(cut, 9, &["cannot be used", WAY_OUT]);
    let none = || {
        Lie::say(|question, answers, wire| match question {
            Message::GetChunks { ids, .. } => {
                ids.iter().try_for_each(|id| wire.send(&Message::Absent { id: *id }))
            }
            _ => crate::liar::pass(&answers, wire),
        })
    };
    stage.refused(none, 9, &["does not have it", WAY_OUT]);
}

/// A chunk of another vault, as its writer sealed it, and its key with it.
#[test]
fn a_chunk_of_another_vault() {
    let stage = Stage::new();
    let other = Stage::new();
    let account = Home::locate(Some(other.place.path("home"))).unwrap().account().unwrap();
    let mut wire = Wire::welcome(&account, &other.liar.address);
    let segment = &other.place.segments()[0];
    let id = crate::common::program::chunks(segment)[0].1.id;
    let question = Message::GetChunks { writer: account.writer(), skip: 0, ids: vec![id] };
    let Message::Record { record: foreign } = wire.ask(&question) else { panic!("no chunk") };
    let key = split(&foreign).unwrap().0.key;
    let question =
        Message::GetSmall { kind: Kind::DataKey, ids: vec![dormouse_format::RecordId(key.0)] };
    let Message::Record { record: foreign_key } = wire.ask(&question) else { panic!("no key") };
    let lie = move || {
        let (foreign, foreign_key) = (foreign.clone(), foreign_key.clone());
        Lie::say(move |question, answers, wire| match question {
            Message::GetSmall { kind: Kind::DataKey, ids } if ids[0].0 == key.0 => {
                wire.send(&Message::Record { record: foreign_key.clone() })?;
                wire.send(&Message::Done)
            }
            _ => answers.iter().try_for_each(|m| match m {
                Message::Record { record } if split(record).unwrap().0.kind == Kind::Chunk => {
                    let (mut header, body) = split(&foreign).unwrap();
                    header.id = split(record).unwrap().0.id;
                    wire.send(&Message::Record { record: record::assemble(header, body) })
                }
                m => wire.send(m),
            }),
        })
    };
    stage.refused(lie, 9, &["cannot be used", WAY_OUT]);
}

#[test]
fn an_older_map_for_a_newer_point() {
    let stage = Stage::new();
    for from in 0..=3 {
        let older = move || {
            Lie::ask(move |m| match m {
                Message::GetNode { seq, place, .. } if place.level <= from => *seq = 1,
                Message::GetLeaves { seq, .. } => *seq = 1,
                _ => {}
            })
        };
        stage.refused(older, 9, &["not what its writer signed", WAY_OUT]);
    }
}

#[test]
fn a_node_of_another_volume_or_place() {
    let stage = Stage::new();
    let account = Home::locate(Some(stage.place.path("home"))).unwrap().account().unwrap();
    let mut wire = Wire::welcome(&account, &stage.liar.address);
    let Message::Volumes { items } = wire.ask(&Message::ListVolumes) else { panic!("volumes") };
    let heads: Vec<_> = items.iter().map(|i| *i.head.unwrap().point()).collect();
    let other = heads.iter().find(|p| p.seq == 1).unwrap().volume;
    let of_other = move || {
        Lie::ask(move |m| {
            if let Message::GetNode { volume, seq, place } = m
                && place.level == 1
            {
                (*volume, *seq, place.index) = (other, 1, 0);
            }
        })
    };
    stage.refused(of_other, 9, &["not what its writer signed", WAY_OUT]);
    let elsewhere = || {
        Lie::ask(|m| match m {
            Message::GetNode { place, .. } if place.level == 1 => place.index = 1 - place.index,
            _ => {}
        })
    };
    stage.refused(elsewhere, 9, &["not what its writer signed", WAY_OUT]);
    let leaves = || {
        Lie::ask(|m| {
            if let Message::GetLeaves { page, .. } = m {
                *page = 1 - *page;
            }
        })
    };
    stage.refused(leaves, 9, &["not what its writer signed", WAY_OUT]);
}

/// A writer of the vault, together with the server: a chunk that is sealed rightly, and
/// unpacks to 1 GiB.
#[test]
fn a_chunk_that_unpacks_to_gigabytes() {
    let stage = Stage::new();
    let home = Home::locate(Some(stage.place.path("home"))).unwrap();
    let account = home.account().unwrap();
    let secret = [9; 32];
    let key = DataKey::new(secret).unwrap();
    let body = key.wrap(account.vault, &account.recipient, &account.signing, 1).unwrap();
    let put = Message::Put { record: record::plain(Kind::DataKey, account.writer(), &body) };
    let mut wire = Wire::welcome(&account, &stage.liar.address);
    wire.send(&put).unwrap();
    assert_eq!(wire.ask(&Message::Barrier), Message::Durable);

    let packed = packed_zeros(1 << 30);
    assert!(packed.len() < 60 << 10, "{} bytes", packed.len());
    let vault = account.vault;
    let bomb = move || {
        let packed = packed.clone();
        let mut made = None;
        let key_id = DataKey::new(secret).unwrap().id;
        chunks(move |record| {
            let mut header = split(record).unwrap().0;
            // A smaller one may not even be as long as the bomb is packed.
            if header.count < 16 {
                return;
            }
            header.key = key_id;
            let made =
                made.get_or_insert_with(|| (header.id, seal(&vault, &secret, header, &packed)));
            if made.0 == header.id {
                *record = made.1.clone();
            }
        })
    };
    stage.refused(&bomb, 9, &["cannot be used", WAY_OUT]);
    stage.liar.lie(bomb());
    let (said, peak) = bounded(stage.place.start(&["verify", "v"]), Duration::from_secs(20));
    said_bad(&said.out);
    assert!(peak < 192 << 20, "{} MiB", peak >> 20);
}

fn said_bad(out: &str) {
    assert!(out.contains("BAD: chunk"), "{out}");
}

/// zstd of so many zeros, made in pieces.
fn packed_zeros(len: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 19).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), len), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// Seals a payload by hand, as docs/format.md says, for the header's id and key.
fn seal(vault: &VaultId, secret: &[u8; 32], header: Header, packed: &[u8]) -> Vec<u8> {
    let mut sealed = [&[1, header.count, 0, 0], packed].concat();
    let mut header =
        Header { body_len: (sealed.len() + SEAL_OVERHEAD) as u32, nonce: [7; 12], ..header };
    let key = blake3::derive_key("dormouse v1 data cipher", secret);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let aad = [&b"dormouse seal v1"[..], &vault.0, &header.encode()[..BOUND_LEN]].concat();
    let nonce = Nonce::assume_unique_for_key(header.nonce);
    cipher.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).unwrap();
    header.body_check = [0; 16];
    record::assemble(header, &sealed)
}

/// The lie is found by what is opened, not by chance: the same way of sealing with an honest
/// payload comes back.
#[test]
fn what_is_sealed_by_hand_opens() {
    let secret = [3; 32];
    let key = DataKey::new(secret).unwrap();
    let secrets = dormouse_crypt::VaultSecrets::generate(&mut dormouse_crypt::OsRandom);
    let content = [5; 4096];
    let id: ChunkId = secrets.chunk_id(&[secrets.digest(&content)]);
    let packed = zstd::bulk::compress(&content, 3).unwrap();
    let vault = hash::vault_id(&dormouse_format::PublicKey([1; 32]));
    let header = Header {
        kind: Kind::Chunk,
        count: 1,
        body_len: 0,
        epoch: secrets.epoch,
        id,
        writer: dormouse_format::WriterId::ZERO,
        key: key.id,
        nonce: [0; 12],
        body_check: [0; 16],
        check: [0; 16],
    };
    let record = seal(&vault, &secret, header, &packed);
    let (header, body) = (split(&record).unwrap().0, &record[HEADER_LEN..]);
    let mut opener = dormouse_crypt::seal::Opener::new().unwrap();
    assert_eq!(opener.open(&vault, &key, &secrets, &header, body).unwrap().0, content);
}

/// Certificates and keys of another vault, in place of this one's or beside them.
#[test]
fn certificates_and_vault_keys_of_another_vault() {
    let stage = Stage::new();
    let other = Place::new();
    let theirs = Liar::start(&other.path("store"));
    let invite = ["invite", &other.name("store"), "x", "--url", &theirs.address];
    let invite = other.run(&invite).ok();
    other.run(&["join", invite.out.trim()]).ok();
    let account = Home::locate(Some(other.path("home"))).unwrap().account().unwrap();
    let mut wire = Wire::welcome(&account, &theirs.address);
    let mut small = |kind| {
        let record = wire.ask(&Message::GetSmall { kind, ids: Vec::new() });
        assert_eq!(wire.next().unwrap(), Some(Message::Done));
        record
    };
    let (cert, keys) = (small(Kind::Cert), small(Kind::VaultKeys));
    let own = |kind: Kind, instead: Message| {
        move || {
            let instead = instead.clone();
            Lie::say(move |question, answers, wire| match question {
                Message::GetSmall { kind: asked, .. } if *asked == kind => {
                    wire.send(&instead)?;
                    wire.send(&Message::Done)
                }
                _ => crate::liar::pass(&answers, wire),
            })
        }
    };
    let words = ["unknown writer", "certificate that the server gave does not hold"];
    stage.all_refused("home", own(Kind::Cert, cert), 9, &words);
    stage.liar.lie(own(Kind::VaultKeys, keys)());
    let kit = ["join", "--kit", &stage.place.name("kit")];
    stage.place.run_in("new", &kit).fails(9, &["no keys of this vault", WAY_OUT]);
    assert!(!stage.place.path("new/client.toml").exists());
}

/// A server that takes this machine for another's.
#[test]
fn a_welcome_to_another_vault() {
    let stage = Stage::new();
    let other = || {
        Lie::answer(|m| {
            if let Message::Welcome { vault, .. } = m {
                vault.0[0] ^= 1;
            }
        })
    };
    let words = ["a client of another vault", "Join it again with a new invite"];
    stage.all_refused("home", other, 5, &words);
    stage.liar.lie(other());
    let kit = stage.place.name("kit");
    stage.place.run_in("new", &["join", "--kit", &kit]).fails(7, &["broke the protocol"]);
    let invite = ["invite", &stage.place.name("store"), "desk", "--url", &stage.liar.address];
    let invite = stage.place.run(&invite).ok();
    let join = ["join", invite.out.trim()];
    stage.place.run_in("new", &join).fails(7, &["broke the protocol", "the invite"]);
    assert!(!stage.place.path("new/client.toml").exists());
}
