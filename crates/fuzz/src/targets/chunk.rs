//! Opening a chunk whose seal holds: what is inside is anything.

use dormouse_crypt::fuzzing::seal_payload;
use dormouse_crypt::record;
use dormouse_crypt::seal::Opener;
use dormouse_format::limits::{BLOCK_SIZE, CHUNK_BLOCKS_MAX, CHUNK_PAYLOAD_MAX};
use dormouse_format::record::{Header, Kind};
use dormouse_format::{ChunkId, RecordId};

use crate::Target;
use crate::corpus::{behind, vectors};
use crate::input::Input;
use crate::world::{block, world};

/// Chunks.
pub const CHUNK: Target = Target {
    name: "chunk",
    what: "a sealed chunk; raw, and sealed around any payload, bombs too",
    run: chunk,
    seeds: chunk_seeds,
    len_max: 8192,
};

fn chunk(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => open_raw(input.rest()),
        1 => honest(&mut input),
        2 => {
            let (count, epoch) = (input.u8(), u32::from(input.u8()));
            let id = id_of(usize::from(count));
            open_sealed(id, count, epoch, input.rest());
        }
        _ => bomb(&mut input),
    }
}

fn open_raw(bytes: &[u8]) {
    let w = world();
    let Ok((header, body)) = record::check(bytes) else { return };
    // The world's own chunks open; whatever else opens has the id of its content.
    opens(&header, body);
    let mut header = header;
    header.key = w.key.id;
    opens(&header, body);
}

/// Opens; what opens is what its header says.
fn opens(header: &Header, body: &[u8]) -> Option<Vec<u8>> {
    let w = world();
    let mut opener = Opener::new().unwrap();
    let (content, digests) = opener.open(&w.vault, &w.key, &w.secrets, header, body).ok()?;
    assert_eq!(content.len(), usize::from(header.count) * BLOCK_SIZE);
    assert_eq!(digests.len(), usize::from(header.count));
    for (block, digest) in content.chunks_exact(BLOCK_SIZE).zip(&digests) {
        assert_eq!(w.secrets.digest(block), *digest);
    }
    assert_eq!(w.secrets.chunk_id(&digests), header.id);
    Some(content.to_vec())
}

fn open_sealed(id: ChunkId, count: u8, epoch: u32, payload: &[u8]) -> Option<Vec<u8>> {
    let w = world();
    let header = Header {
        kind: Kind::Chunk,
        count,
        body_len: 0,
        epoch,
        id,
        writer: w.writers[0].writer_id(),
        key: w.key.id,
        nonce: [0; 12],
        body_check: [0; 16],
        check: [0; 16],
    };
    let bytes = seal_payload(&w.vault, &w.key, header, payload).unwrap();
    let (header, body) = record::check(&bytes).ok()?;
    opens(&header, body)
}

/// The id of the chunk that [`content`] makes.
fn id_of(count: usize) -> ChunkId {
    if count == 0 || count > CHUNK_BLOCKS_MAX {
        return RecordId([9; 16]);
    }
    let digests: Vec<_> =
        content(count).chunks_exact(BLOCK_SIZE).map(|b| world().secrets.digest(b)).collect();
    world().secrets.chunk_id(&digests)
}

fn content(count: usize) -> Vec<u8> {
    (0..count as u8).flat_map(block).collect()
}

/// The right content, packed in one of two ways, and altered or not.
fn honest(input: &mut Input<'_>) {
    let count = 1 + input.below(CHUNK_BLOCKS_MAX);
    let (zstd, level, alter) = (input.flag(), i32::from(input.u8() % 6), input.u16());
    let content = content(count);
    let packed = match zstd {
        true => zstd::bulk::compress(&content, level).unwrap(),
        false => content.clone(),
    };
    let mut payload = [&[u8::from(zstd), count as u8, 0, 0][..], &packed].concat();
    let at = usize::from(alter) % payload.len();
    let mask = input.u8();
    payload[at] ^= mask;
    payload.truncate(payload.len() - usize::from(input.u8()).min(payload.len()));
    if payload.len() > CHUNK_PAYLOAD_MAX {
        return;
    }
    let whole = mask == 0 && payload.len() == packed.len() + 4;
    let opened = open_sealed(id_of(count), count as u8, 1, &payload);
    match opened {
        Some(found) => assert_eq!(found, content),
        None => assert!(!whole, "an honest chunk does not open"),
    }
}

/// A frame that unpacks to much more than it may.
fn bomb(input: &mut Input<'_>) {
    let (count, times) = (input.u8(), usize::from(input.u16()));
    let seed = input.bytes(64);
    let mut frame = zstd::bulk::compress(&seed.repeat(times), 1).unwrap();
    let tail = input.rest();
    frame.extend_from_slice(tail);
    let payload = [&[1, count, 0, 0][..], &frame].concat();
    if payload.len() <= CHUNK_PAYLOAD_MAX {
        let opened = open_sealed(id_of(usize::from(count)), count, 1, &payload);
        let fits = seed.len() * times == usize::from(count) * BLOCK_SIZE;
        assert!(opened.is_none() || fits || !tail.is_empty());
    }
}

fn chunk_seeds() -> Vec<Vec<u8>> {
    let mut out: Vec<_> = behind(0, vectors("record_chunk")).collect();
    out.extend(behind(0, world().chunks.iter().map(|c| c.record.clone()).collect()));
    out.retain(|s| s.len() < 8192);
    for (count, zstd) in [(0, 0), (0, 1), (2, 1), (63, 1), (63, 0)] {
        out.push(vec![1, count, zstd, 1]);
        out.push(vec![1, count, zstd, 1, 9, 0, 1]);
    }
    out.push([&[2, 1, 1, 0, 1, 0, 0][..], &block(0)].concat());
    out.push([&[2, 1, 1, 1, 1, 0, 0][..], &zstd::bulk::compress(&block(0), 3).unwrap()].concat());
    out.push(vec![3, 1, 255, 255, 7]);
    out.push(vec![3, 64, 1, 0, 7, 8, 9]);
    out
}
