//! Layouts of `dormouse-format`: what decodes must encode to the same bytes, and what is
//! checked must fail when a byte is flipped.

use core::fmt::Debug;

use dormouse_crypt::{fuzzing, keys, record};
use dormouse_format::extents::{self, Content, ExtentsWriter, Runs};
use dormouse_format::point::{Grade, POINT_LEN, Point, SignedPoint, StoredPoint};
use dormouse_format::record::{HEADER_LEN, Header, Kind, split};
use dormouse_format::segment::{self, Seal, Tail, Trailer};
use dormouse_format::vault::{
    Cert, DataKey, Distrust, Generation, Signed, Vault, VaultKeys, Volume,
};
use dormouse_format::{
    Error, Hash, KeyId, Reader, RecordId, Signature, Tag, VaultId, VolumeId, WriterId, delta,
};

use crate::Target;
use crate::corpus::{behind, vectors};
use crate::input::Input;
use crate::world::{records, segments, world};

/// Header, trailer, table and tail of a segment.
pub const SEGMENT: Target = Target {
    name: "segment",
    what: "header, trailer, seal table and tail of a segment",
    run: segment,
    seeds: segment_seeds,
    len_max: 4096,
};

fn segment(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 4 {
        0 => {
            let Some(head) = bytes.first_chunk() else { return };
            match segment::Header::decode(head) {
                Ok(header) => {
                    assert_eq!(header.encode(), *head);
                    assert!(header.number > 0 && header.number >> 32 == 0, "number");
                }
                Err(Error::Version { found, known, .. }) => assert!(found > known),
                Err(_) => {}
            }
        }
        1 => {
            let Some(head) = bytes.first_chunk() else { return };
            assert_eq!(Trailer::decode(head).unwrap().encode(), *head);
        }
        2 => {
            let Some(head) = bytes.first_chunk() else { return };
            if let Some(tail) = Tail::decode(head) {
                assert_eq!(tail.encode(), *head);
            }
        }
        _ => {
            if let Ok(seal) = Seal::decode(bytes) {
                assert_eq!(seal.encode(), bytes);
                the_table_is_possible(&seal);
            }
        }
    }
}

/// A table lists what records can be, and each writer once.
fn the_table_is_possible(seal: &Seal) {
    let mut writers = seal.writers.clone();
    writers.sort_unstable();
    writers.dedup();
    assert_eq!(writers.len(), seal.writers.len(), "a writer twice");
    for item in &seal.items {
        assert_ne!(item.kind, Kind::Seal, "the seal itself");
        assert!(item.body_len as usize <= item.kind.body_max(), "a body longer than any");
        assert_eq!(item.kind == Kind::Chunk, (1..=64).contains(&item.count), "count");
    }
}

fn segment_seeds() -> Vec<Vec<u8>> {
    let mut out: Vec<_> = behind(0, vectors("segment_")).collect();
    out.extend(behind(3, vectors("seal_")));
    for (_, bytes) in segments(world().full()) {
        out.extend(behind(0, vec![bytes[..128].to_vec()]));
        let at = 128 + HEADER_LEN + split_len(&bytes[128..]);
        out.extend(behind(1, vec![bytes[at..at + 32].to_vec()]));
        out.extend(behind(2, vec![bytes[bytes.len() - 32..].to_vec()]));
    }
    let seals = records(world().full()).into_iter().filter(|r| r[4] == Kind::Seal as u8);
    out.extend(behind(3, seals.map(|r| r[HEADER_LEN..].to_vec()).collect()));
    out
}

fn split_len(bytes: &[u8]) -> usize {
    Header::decode(bytes.first_chunk().unwrap()).unwrap().body_len as usize
}

/// A record: its header, and its checks, also where they were made to hold.
pub const RECORD: Target = Target {
    name: "record",
    what: "a record's header and checks; raw, and with checks that hold",
    run: record,
    seeds: record_seeds,
    len_max: 4096,
};

fn record(data: &[u8]) {
    let mut input = Input::new(data);
    if input.flag() { record_repaired(&mut input) } else { record_raw(input.rest()) }
}

fn record_raw(bytes: &[u8]) {
    let Ok((header, body)) = split(bytes) else {
        assert!(record::check(bytes).is_err());
        return;
    };
    assert_eq!(header.encode(), bytes[..HEADER_LEN]);
    if record::check(bytes).is_ok() {
        flips_show(bytes, header.body_len as usize);
        assert_eq!(fuzzing::assemble(header, body), bytes);
    }
}

/// One flipped bit, somewhere that the input decides, is always found.
fn flips_show(bytes: &[u8], seed: usize) {
    for at in [seed.wrapping_mul(31) % bytes.len(), bytes.len() - 1, seed % HEADER_LEN] {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1 << (seed % 8);
        assert!(record::check(&bad).is_err(), "byte {at}");
    }
}

/// A header out of the input, whether or not it keeps the rules.
pub(crate) fn header(input: &mut Input<'_>) -> Header {
    let kind = Kind::ALL[input.below(Kind::ALL.len())];
    let chunk = kind == Kind::Chunk;
    let (odd, count) = (input.u8(), input.u8());
    let right = |bit: u8| odd >> bit & 1 == 0;
    let when = |yes: bool, bytes: [u8; 16]| if yes { bytes } else { [0; 16] };
    Header {
        kind,
        count: if right(0) && !chunk { 0 } else { count },
        body_len: 0,
        epoch: if right(1) { u32::from(chunk) } else { input.u32() },
        id: RecordId(input.array()),
        writer: WriterId(when(!right(2), input.array())),
        key: KeyId(when(chunk == right(3), [count | 1; 16])),
        nonce: if chunk == right(4) { [count; 12] } else { [0; 12] },
        body_check: [0; 16],
        check: [0; 16],
    }
}

fn record_repaired(input: &mut Input<'_>) {
    let mut header = header(input);
    let own_id = input.flag();
    let body = input.rest();
    if own_id {
        header.id = dormouse_crypt::hash::plain_id(header.kind as u8, body);
    }
    let bytes = fuzzing::assemble(header, body);
    let decoded = split(&bytes).is_ok();
    let checked = record::check(&bytes);
    assert_eq!(checked.is_ok(), decoded && (own_id || header.kind == Kind::Chunk));
    if let Ok((found, found_body)) = checked {
        assert_eq!((found.encode(), found_body), (*bytes.first_chunk().unwrap(), body));
        flips_show(&bytes, body.len());
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    let mut out: Vec<_> = behind(0, vectors("record_")).collect();
    out.extend(behind(0, records(world().full())).filter(|r| r.len() < 4096));
    for kind in 0..14 {
        out.push([&[1, kind, 0, 3][..], &[9; 32], &[1, 5, 5, 5]].concat());
        out.push([&[1, kind, 0x1f, 65][..], &[9; 36], &[0, 5]].concat());
    }
    out
}

/// Runs of extents.
pub const EXTENTS: Target = Target {
    name: "extents",
    what: "runs of extents: each has one encoding",
    run: extents,
    seeds: || {
        // Numbers that are not in their shortest form: a gap, a count.
        let longer = [vec![0, 0x80, 0, 1], vec![0, 0, 0x81, 0], vec![0, 1, 0x80, 0x80, 0]];
        vectors("extents").into_iter().chain(vectors("varint")).chain(longer).collect()
    },
    len_max: 4096,
};

/// Each run is written again as it was.
pub(crate) fn extents(bytes: &[u8]) {
    let Ok(end) = extents::check(bytes) else { return };
    let mut out = ExtentsWriter::new();
    let mut last = 0;
    for run in Runs::new(bytes) {
        let run = run.unwrap();
        assert!(run.start >= last && run.end() > run.start && run.end() <= 1 << 48);
        last = run.end();
        match run.content {
            Content::Zero => out.zero(run.start, run.count),
            Content::Data { chunk, first, tags } => {
                let tags: Vec<Tag> = tags.iter().collect();
                assert!(tags.len() as u64 == run.count && usize::from(first) + tags.len() <= 64);
                out.data(run.start, chunk, first, &tags);
            }
            Content::Tags(tags) => {
                let tags: Vec<Tag> = tags.iter().collect();
                assert_eq!(tags.len() as u64, run.count);
                out.tags(run.start, &tags);
            }
        }
    }
    assert_eq!((last, out.take()), (end, bytes.to_vec()));
}

/// The body of a delta.
pub const DELTA: Target = Target {
    name: "delta",
    what: "a delta's body and its runs",
    run: |bytes| {
        if let Ok((prefix, runs)) = delta::decode(bytes) {
            assert_eq!(delta::encode(&prefix, runs), bytes);
            extents(runs);
        }
    },
    seeds: || {
        let all = records(world().full()).into_iter().filter(|r| r[4] == Kind::Delta as u8);
        vectors("delta").into_iter().chain(all.map(|r| r[HEADER_LEN..].to_vec())).collect()
    },
    len_max: 2048,
};

/// A point: signed, stored, and built out of fields.
pub const POINT: Target = Target {
    name: "point",
    what: "a point, signed and stored; raw, and out of fields with a signature that holds",
    run: point,
    seeds: || {
        let mut out: Vec<_> = behind(0, vectors("point_")).collect();
        out.extend(behind(1, vectors("stored_point")));
        out.push([&[2][..], &[1; 60]].concat());
        out.push([&[2, 2, 1, 1, 1, 1, 0, 1, 0, 1][..], &[0; 4]].concat());
        out
    },
    len_max: 400,
};

fn point(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 3 {
        0 => {
            let mut reader = Reader::new(bytes, "point");
            if let Ok(point) = SignedPoint::read(&mut reader) {
                assert_eq!(point.encode(), bytes[..POINT_LEN]);
            }
        }
        1 => {
            if let Ok(point) = StoredPoint::decode(bytes) {
                assert_eq!(point.encode(), bytes);
            }
        }
        _ => point_of_fields(&mut Input::new(bytes)),
    }
}

/// A point out of the input; most fields are near what the rules allow.
pub(crate) fn fields_of_point(input: &mut Input<'_>) -> Point {
    let zero_or = |input: &mut Input<'_>| match input.u8() {
        0 => Hash::ZERO,
        n => Hash([n; 32]),
    };
    Point {
        grade: Grade::from_u8(1 + input.u8() % 4).unwrap(),
        stale: false,
        seq: input.number(),
        checkpoint: input.number(),
        generation: input.number(),
        epoch: input.number() as u32,
        prev: zero_or(input),
        root: zero_or(input),
        deltas: zero_or(input),
        size: input.number(),
        time: input.number(),
        vault: world().vault,
        volume: VolumeId([input.u8(); 16]),
        writer: WriterId([input.u8(); 16]),
    }
}

fn point_of_fields(input: &mut Input<'_>) {
    let point = fields_of_point(input);
    let Ok(back) = Point::decode(&point.encode()) else { return };
    assert_eq!(back, point);
    let key = &world().writers[0];
    let signed = key.sign_point(point);
    assert_eq!(keys::verify_point(&key.public(), &signed), Ok(()));
    let other = SignedPoint { point: Point { time: point.time ^ 1, ..point }, ..signed };
    assert!(keys::verify_point(&key.public(), &other).is_err());
}

/// Bodies of the small records.
pub const VAULT: Target = Target {
    name: "vault-records",
    what: "vault, certificate, vault keys, data key, volume, distrust, generation",
    run: vault,
    seeds: vault_seeds,
    len_max: 8300,
};

fn vault(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 7 {
        0 => signed::<Vault>(*what, bytes),
        1 => signed::<Cert>(*what, bytes),
        2 => signed::<VaultKeys>(*what, bytes),
        3 => signed::<DataKey>(*what, bytes),
        4 => signed::<Volume>(*what, bytes),
        5 => signed::<Distrust>(*what, bytes),
        _ => {
            if let Ok(value) = Generation::decode(bytes) {
                assert_eq!(value.encode(), bytes);
            }
        }
    }
}

/// Raw, or (`what` from 128 on) with a signature that holds.
fn signed<T: Signed + Debug>(what: u8, bytes: &[u8]) {
    if what < 128 {
        if let Ok((value, signed, signature)) = T::decode(bytes) {
            assert_eq!(value.encode(&signature), bytes);
            assert_eq!(signed.len() + Signature::LEN, bytes.len());
        }
        return;
    }
    let key = &world().authority;
    let body = [bytes, &key.sign(T::WHAT, bytes).0].concat();
    match keys::verify_body::<T>(&key.public(), &body) {
        Ok(value) => assert_eq!(value.signed_bytes(), bytes),
        Err(error) => assert!(matches!(error, dormouse_crypt::Error::Format(_)), "{error}"),
    }
    let mut bad = body;
    let at = usize::from(what) * 7 % bad.len();
    bad[at] ^= 1;
    assert!(keys::verify_body::<T>(&key.public(), &bad).is_err());
    assert!(keys::verify_vault(&VaultId([what; 32]), &bad).is_err());
}

fn vault_seeds() -> Vec<Vec<u8>> {
    let names = ["vault", "cert", "vault_keys", "data_key", "volume", "distrust", "generation"];
    let mut out = Vec::new();
    for (n, name) in (0u8..).zip(names) {
        let found = vectors(name).into_iter().filter(|v| v.len() < 8200);
        out.extend(behind(n, found.collect()));
    }
    out.extend(behind(2, vectors("vaultkeys_")));
    let signed: Vec<Vec<u8>> = out.clone();
    for mut seed in signed.into_iter().filter(|s| s.len() > 65 && s[0] < 6) {
        seed.truncate(seed.len() - Signature::LEN);
        seed[0] += 133; // 133 is 7 × 19: the same kind, from 128 on.
        out.push(seed);
    }
    out
}
