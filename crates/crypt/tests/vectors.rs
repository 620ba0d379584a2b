//! Golden vectors: what version 1 of the format is, byte for byte.
//!
//! `testdata/vectors/` holds good structures, single values, and one file for each
//! defect. A plain run only compares. `DORMOUSE_WRITE_VECTORS=1 cargo test -p
//! dormouse-crypt --test vectors` makes the files anew; a change of any existing
//! file is a change of the format (docs/format.md, 'Version changes').
//!
//! What is computed is computed twice: by the crate, and here by hand from the
//! text of docs/format.md with nothing but BLAKE3, AES-256-GCM and Ed25519.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "vectors/defects.rs"]
mod defects;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dormouse_crypt::invite::{self, Binding};
use dormouse_crypt::seal::{DataKey, Opener, SealFor, Sealer};
use dormouse_crypt::{Identity, SigningKey, VaultSecrets, hash, keys, record};
use dormouse_format::codec::{Reader, Writer};
use dormouse_format::delta::{self, Prefix};
use dormouse_format::extents::{Content, ExtentsWriter, Runs};
use dormouse_format::geometry::Place;
use dormouse_format::limits::{BLOCK_SIZE, FRAME_MAX, SIGNED_BODY_MAX};
use dormouse_format::message::{Base, Deframer, Message, Refusal, VolumeItem};
use dormouse_format::point::{Grade, Point, SignedPoint, StoredPoint};
use dormouse_format::record::{Header, Kind};
use dormouse_format::segment::{self, Item, Seal, Tail, Trailer};
use dormouse_format::stale::Stale;
use dormouse_format::vault::{self, Signed};
use dormouse_format::*;

use defects::bad;

type Bytes = Vec<u8>;

// ---------------------------------------------------------------- files

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/vectors")
}

fn writing() -> bool {
    std::env::var("DORMOUSE_WRITE_VECTORS").is_ok_and(|v| v == "1")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

fn unhex(text: &str) -> Bytes {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
    assert!(digits.len().is_multiple_of(2), "an odd number of digits");
    digits.chunks_exact(2).map(|d| (d[0] << 4 | d[1]) as u8).collect()
}

fn text_of(name: &str) -> String {
    let path = dir().join(format!("{name}.txt"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The bytes of a vector: all lines that are no comments.
fn load(name: &str) -> Bytes {
    unhex(&text_of(name).lines().filter(|l| !l.starts_with('#')).collect::<String>())
}

fn save(name: &str, comment: &str, bytes: &[u8]) {
    let mut text = format!("# {comment}\n");
    bytes.chunks(32).for_each(|line| text += &format!("{}\n", hex(line)));
    std::fs::write(dir().join(format!("{name}.txt")), text).unwrap();
}

// ---------------------------------------------------------------- the fixed world

struct World {
    authority: SigningKey,
    writer: SigningKey,
    vault: VaultId,
    secrets: VaultSecrets,
    key: DataKey,
    identity: Identity,
    wrapped_keys: Bytes,
    wrapped_data: Bytes,
}

const VOLUME: VolumeId = VolumeId([0x88; 16]);
const DATA_KEY: [u8; 32] = [0x77; 32];
const DIGEST_KEY: [u8; 32] = [0x55; 32];
const MAP_KEY: [u8; 32] = [0x66; 32];
const TIME: TimeNs = 1_800_000_000_000_000_000;

fn signing(byte: u8) -> SigningKey {
    SigningKey::from_seed([byte; 32]).unwrap()
}

/// What is random, or may change with a library: it is made once, and read from then on.
fn made_once(name: &str, what: &str, make: impl FnOnce() -> Bytes) -> Bytes {
    if writing() && !dir().join(format!("{name}.txt")).exists() {
        std::fs::create_dir_all(dir()).unwrap();
        save(name, what, &make());
    }
    load(name)
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let what = "text of the age identity to which the keys are wrapped; for tests only";
        let identity =
            made_once("age_identity", what, || Identity::generate().to_secret().as_bytes().into());
        let identity: Identity = String::from_utf8(identity).unwrap().parse().unwrap();
        let to = identity.recipient();
        let secrets = VaultSecrets::new(1, DIGEST_KEY, MAP_KEY);
        let what = "age file to that identity: 32 bytes 55, 32 bytes 66";
        let wrapped_keys = made_once("age_vault_keys", what, || secrets.wrap(&to).unwrap());
        let what = "age file to that identity: 32 bytes 77";
        let wrapped_data = made_once("age_data_key", what, || to.wrap(&DATA_KEY).unwrap());
        let (authority, writer) = (signing(0x11), signing(0x22));
        let vault = hash::vault_id(&authority.public());
        let key = DataKey::new(DATA_KEY).unwrap();
        World { authority, writer, vault, secrets, key, identity, wrapped_keys, wrapped_data }
    })
}

/// Block n: the first 4096 bytes of BLAKE3's output for the 8 bytes of n.
fn block(n: u64) -> Bytes {
    let mut out = vec![0; BLOCK_SIZE];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn soft() -> Bytes {
    [[7; BLOCK_SIZE], [8; BLOCK_SIZE], [9; BLOCK_SIZE]].concat()
}

fn digests(content: &[u8]) -> Vec<Digest> {
    content.chunks_exact(BLOCK_SIZE).map(|b| world().secrets.digest(b)).collect()
}

fn sealed(content: &[u8]) -> Bytes {
    let w = world();
    let digests = digests(content);
    let who =
        SealFor { vault: &w.vault, writer: w.writer.writer_id(), key: &w.key, secrets: &w.secrets };
    let id = w.secrets.chunk_id(&digests);
    Sealer::new(3).unwrap().seal(who, id, &digests, content).unwrap()
}

fn open(bytes: &[u8]) -> core::result::Result<Bytes, String> {
    let w = world();
    let (header, body) = record::check(bytes).map_err(|e| e.to_string())?;
    let mut opener = Opener::new().unwrap();
    let opened = opener.open(&w.vault, &w.key, &w.secrets, &header, body);
    opened.map(|(content, _)| content.to_vec()).map_err(|e| e.to_string())
}

// ---------------------------------------------------------------- by hand

fn cut16(hash: &[u8; 32]) -> [u8; 16] {
    *hash.first_chunk().unwrap()
}

/// BLAKE3 of a label, padded with zeros to 16 bytes, and what follows it.
fn labelled(label: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut input = label.as_bytes().to_vec();
    input.resize(16, 0);
    parts.iter().for_each(|p| input.extend_from_slice(p));
    *blake3::hash(&input).as_bytes()
}

fn derive(context: &str, key: &[u8]) -> [u8; 32] {
    blake3::derive_key(context, key)
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    *blake3::keyed_hash(key, &parts.concat()).as_bytes()
}

/// A record from its fields, with both checks right whatever the fields are.
#[derive(Clone)]
struct Raw {
    kind: u8,
    count: u8,
    epoch: u32,
    id: [u8; 16],
    writer: [u8; 16],
    key: [u8; 16],
    nonce: [u8; 12],
}

impl Raw {
    fn bound(&self, body_len: usize) -> Bytes {
        let mut w = Writer::default();
        w.bytes(b"DMR1").u8(self.kind).u8(self.count).reserved(2);
        w.u32(body_len as u32).u32(self.epoch);
        w.bytes(&self.id).bytes(&self.writer).bytes(&self.key);
        w.done()
    }

    fn record(&self, body: &[u8]) -> Bytes {
        let mut out = self.bound(body.len());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&cut16(&labelled("dormouse body", &[body])));
        let check = cut16(&labelled("dormouse header", &[&out]));
        out.extend_from_slice(&check);
        out.extend_from_slice(body);
        out
    }
}

/// Seals a payload as docs/format.md says, with any id, epoch and count.
fn seal_by_hand(id: ChunkId, epoch: u32, count: u8, payload: &[u8]) -> Bytes {
    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let w = world();
    let writer = cut16(&labelled("dormouse writer", &[&w.writer.public().0]));
    let key = cut16(&derive("dormouse v1 data key id", &DATA_KEY));
    let mut raw = Raw { kind: 1, count, epoch, id: id.0, writer, key, nonce: [0; 12] };
    let bound = raw.bound(payload.len() + 16);
    let aad = [&b"dormouse seal v1"[..], &w.vault.0, &bound].concat();
    assert_eq!(aad.len(), 112);
    let nonce = keyed(&derive("dormouse v1 data nonce", &DATA_KEY), &[&aad, payload]);
    raw.nonce = *nonce.first_chunk().unwrap();
    let cipher = derive("dormouse v1 data cipher", &DATA_KEY);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &cipher).unwrap());
    let mut body = payload.to_vec();
    let nonce = Nonce::assume_unique_for_key(raw.nonce);
    cipher.seal_in_place_append_tag(nonce, Aad::from(&aad), &mut body).unwrap();
    raw.record(&body)
}

/// Signs as docs/format.md says.
fn sign_by_hand(seed: &[u8; 32], domain: &str, bytes: &[u8]) -> Bytes {
    let pair = ring::signature::Ed25519KeyPair::from_seed_unchecked(seed).unwrap();
    let input = [b"dormouse signature v1\0", domain.as_bytes(), b"\0", bytes].concat();
    pair.sign(&input).as_ref().to_vec()
}

// ---------------------------------------------------------------- structures

fn point(checkpoint: bool) -> Point {
    let w = world();
    let (seq, grade) = if checkpoint { (1, Grade::Settled) } else { (2, Grade::Fuzzy) };
    let prev = if checkpoint { Hash::ZERO } else { hash::point(&point(true).encode()) };
    let deltas = if checkpoint { Hash::ZERO } else { hash::delta(&root(), 5 << 20, &runs()) };
    Point {
        vault: w.vault,
        volume: VOLUME,
        writer: w.writer.writer_id(),
        seq,
        generation: 3,
        time: TIME,
        size: 5 << 20,
        grade,
        stale: false,
        checkpoint: 1,
        epoch: 1,
        prev,
        root: root(),
        deltas,
    }
}

fn stored(checkpoint: bool) -> StoredPoint {
    let signed = world().writer.sign_point(point(checkpoint));
    let record = RecordId([0xa1; 16]);
    let (top, top_record) =
        if checkpoint { (node_hash(), record) } else { (Hash::ZERO, RecordId::ZERO) };
    StoredPoint { signed, receipt: TIME + 5, top, top_record }
}

/// Leaf 3: its block 1 holds block(1), its block 2 block(2), the rest zeros.
fn tags() -> [Tag; 256] {
    let mut tags = [Tag::ZERO; 256];
    for n in [1, 2] {
        let digest = world().secrets.digest(&block(n));
        tags[n as usize] = world().secrets.tag(&VOLUME, 3 * 256 + n, &digest);
    }
    tags
}

fn leaf_hash() -> Hash {
    hash::leaf(3, &tags())
}

fn node_hash() -> Hash {
    let mut children = [Hash::ZERO; 64];
    children[3] = leaf_hash();
    hash::node(Place { level: 1, index: 0 }, &children)
}

fn root() -> Hash {
    hash::content_root(&VOLUME, 5 << 20, 1, &node_hash())
}

/// 5 zeros from block 3; blocks 300 and 301 from index 2 of a chunk.
fn runs() -> Bytes {
    let mut w = ExtentsWriter::new();
    w.zero(3, 5);
    w.data(300, RecordId([0xc1; 16]), 2, &[Tag([0xd1; 16]), Tag([0xd2; 16])]);
    w.take()
}

fn tag_runs() -> Bytes {
    let mut w = ExtentsWriter::new();
    w.tags(1000, &[Tag([0xd3; 16])]);
    w.take()
}

fn delta_body() -> Bytes {
    let after = delta::short(&hash::delta(&root(), 5 << 20, &runs()));
    let prefix = Prefix { volume: VOLUME, seq: 2, size: 5 << 20, attempt: 9, after };
    delta::encode(&prefix, &runs())
}

/// A map page's body by hand: blocks 300 and 301 of page 0.
fn page_body() -> Bytes {
    let mut w = ExtentsWriter::new();
    w.data(300, RecordId([0xc1; 16]), 2, &[Tag([0xd1; 16]), Tag([0xd2; 16])]);
    page_on(RecordId::ZERO, 0, &w.take())
}

/// A patch of that page by hand: block 300 is zero, 301 and 302 are from another chunk.
fn patch_body() -> Bytes {
    let mut w = ExtentsWriter::new();
    w.zero(300, 1);
    w.data(301, RecordId([0xc2; 16]), 0, &[Tag([0xd4; 16]), Tag([0xd5; 16])]);
    page_on(hash::plain_id(Kind::Page as u8, &page_body()), 1, &w.take())
}

fn page_on(base: RecordId, depth: u8, runs: &[u8]) -> Bytes {
    let mut w = Writer::default();
    w.u64(0).bytes(&base.0).u8(depth).reserved(7).bytes(runs);
    w.done()
}

fn page_again(bytes: &[u8]) -> Bytes {
    let mut r = Reader::new(bytes, "page");
    assert_eq!(r.u64().unwrap(), 0);
    let (base, depth) = (RecordId(r.array().unwrap()), r.u8().unwrap());
    r.reserved(7).unwrap();
    page_on(base, depth, &extents_again(r.rest()))
}

/// A map node's body by hand: node 3 of level 2 with children 0 and 5.
fn node_body() -> Bytes {
    let mut w = Writer::default();
    w.u8(2).reserved(7).u64(3).u64(1 | 1 << 5);
    w.bytes(&[0xe1; 32]).bytes(&[0xf1; 16]).bytes(&[0xe2; 32]).bytes(&[0xf2; 16]);
    w.done()
}

fn vault_value(authority: &SigningKey) -> vault::Vault {
    let recipient = world().identity.recipient().to_string();
    vault::Vault { authority: authority.public(), recipient, created: TIME }
}

fn vault_body() -> Bytes {
    let authority = &world().authority;
    authority.sign_body(&vault_value(authority))
}

fn cert(name: &str) -> vault::Cert {
    let (vault, key) = (world().vault, world().writer.public());
    vault::Cert { vault, key, trust_group: 4, issued: TIME, name: name.into() }
}

fn cert_body() -> Bytes {
    world().authority.sign_body(&cert("laptop"))
}

fn vault_keys(wrapped: Bytes) -> Bytes {
    let w = world();
    w.authority.sign_body(&vault::VaultKeys { vault: w.vault, epoch: 1, wrapped })
}

fn data_key() -> vault::DataKey {
    let w = world();
    let (writer, wrapped) = (w.writer.writer_id(), w.wrapped_data.clone());
    vault::DataKey { vault: w.vault, writer, key: w.key.id, created: TIME, wrapped }
}

fn volume_value() -> vault::Volume {
    let (vault, writer) = (world().vault, world().writer.writer_id());
    let name = "laptop-root".into();
    vault::Volume { vault, id: VOLUME, writer, created: TIME, name, origin: None }
}

fn volume_body() -> Bytes {
    world().writer.sign_body(&volume_value())
}

fn fork_body() -> Bytes {
    let origin = vault::Origin {
        tags: VOLUME,
        volume: VOLUME,
        seq: 7,
        hash: hash::point(&point(true).encode()),
    };
    let (id, name) = (VolumeId([0x5f; 16]), "laptop-try".into());
    let fork = vault::Volume { id, name, origin: Some(origin), ..volume_value() };
    world().writer.sign_body(&fork)
}

fn distrust_body() -> Bytes {
    let w = world();
    w.writer.sign_body(&vault::Distrust {
        vault: w.vault,
        chunk: RecordId([0xc1; 16]),
        maker: WriterId([0xb1; 16]),
        key: KeyId([0xe1; 16]),
        by: w.writer.writer_id(),
    })
}

fn stale_body() -> Bytes {
    let w = world();
    let (vault, writer, runs) = (w.vault, w.writer.writer_id(), vec![(7, 2), (1 << 33, 300)]);
    w.writer.sign_body(&Stale { vault, volume: VOLUME, writer, seq: 5, blocks: 400, runs })
}

fn generation_body() -> Bytes {
    let (writer, instance) = (world().writer.writer_id(), InstanceId([0xf1; 16]));
    vault::Generation { volume: VOLUME, generation: 3, writer, instance }.encode()
}

fn segment_header() -> segment::Header {
    let (vault, before, check) = (world().vault, [0xab; 16], [0; 16]);
    let mut header = segment::Header { vault, number: 7, created: TIME, before, check };
    header.check = hash::header_check(&header.encode()[..segment::CHECKED_LEN]);
    header
}

/// The records of the segment vector, in order.
fn segment_records() -> Vec<Bytes> {
    let w = world();
    let mine = |kind, body: &[u8]| record::plain(kind, w.writer.writer_id(), body);
    let servers = |kind, body: &[u8]| record::plain(kind, WriterId::ZERO, body);
    vec![
        servers(Kind::Vault, &vault_body()),
        mine(Kind::Cert, &cert_body()),
        mine(Kind::VaultKeys, &vault_keys(w.wrapped_keys.clone())),
        mine(Kind::DataKey, &w.writer.sign_body(&data_key())),
        mine(Kind::Volume, &volume_body()),
        servers(Kind::Generation, &generation_body()),
        sealed(&soft()),
        mine(Kind::Point, &stored(true).encode()),
        servers(Kind::Mark, &128u64.to_le_bytes()),
    ]
}

/// A whole sealed segment.
fn segment_bytes() -> Bytes {
    let mut out = segment_header().encode().to_vec();
    let first = segment_header().check;
    let mut chain = first;
    let mut seal = Seal::default();
    let mut entry = |out: &mut Bytes, record: &[u8], durable: u64| {
        let (header, _) = record::check(record).unwrap();
        chain = hash::chain(&chain, &header.check, durable);
        let check = hash::trailer_check(&first, out.len() as u64, durable, &chain);
        out.extend_from_slice(record);
        out.extend_from_slice(&Trailer { durable, chain, check }.encode());
        chain
    };
    let mut durable = 128;
    for (i, record) in segment_records().iter().enumerate() {
        let (header, offset) = (record::check(record).unwrap().0, out.len() as u32);
        // From the sixth entry on the store knew that the first five were durable.
        durable = if i == 5 { u64::from(offset) } else { durable };
        let writer = seal.writers.iter().position(|w| *w == header.writer).unwrap_or_else(|| {
            seal.writers.push(header.writer);
            seal.writers.len() - 1
        }) as u16;
        let Header { id, body_len, kind, count, .. } = header;
        seal.items.push(Item { id, offset, body_len, kind, count, writer });
        entry(&mut out, record, durable);
    }
    let at = out.len() as u64;
    let record = record::plain(Kind::Seal, WriterId::ZERO, &seal.encode());
    let last = entry(&mut out, &record, durable);
    out.extend_from_slice(&Tail { seal: at, check: hash::tail_check(at, &last) }.encode());
    out
}

struct Good {
    name: String,
    what: String,
    bytes: Bytes,
    again: fn(&[u8]) -> Bytes,
}

fn again<T: Signed>(bytes: &[u8]) -> Bytes {
    let (value, _, signature) = T::decode(bytes).unwrap();
    value.encode(&signature)
}

fn record_again(bytes: &[u8]) -> Bytes {
    let (header, body) = record::check(bytes).unwrap();
    [&header.encode()[..], body].concat()
}

fn extents_again(bytes: &[u8]) -> Bytes {
    let mut w = ExtentsWriter::new();
    for run in Runs::new(bytes) {
        let run = run.unwrap();
        match run.content {
            Content::Zero => w.zero(run.start, run.count),
            Content::Data { chunk, first, tags } => {
                w.data(run.start, chunk, first, &tags.iter().collect::<Vec<_>>());
            }
            Content::Tags(tags) => w.tags(run.start, &tags.iter().collect::<Vec<_>>()),
        }
    }
    w.take()
}

fn varints_again(bytes: &[u8]) -> Bytes {
    let (mut r, mut w) = (Reader::new(bytes, "varint"), Writer::default());
    while r.left() > 0 {
        w.varint(r.varint().unwrap());
    }
    w.done()
}

fn signed_point_again(bytes: &[u8]) -> Bytes {
    SignedPoint::read(&mut Reader::new(bytes, "point")).unwrap().encode().to_vec()
}

fn good() -> Vec<Good> {
    let w = world();
    let mut all = Vec::new();
    let mut add = |name: &str, what: &str, bytes: Bytes, again: fn(&[u8]) -> Bytes| {
        all.push(Good { name: name.into(), what: what.into(), bytes, again });
    };
    let raw = sealed(&block(1));
    add("record_chunk_raw", "a sealed chunk of one block, not compressed", raw, record_again);
    let mut varints = Writer::default();
    for v in [0, 1, 127, 128, 300, 1 << 48, u64::MAX] {
        varints.varint(v);
    }
    add("varints", "0, 1, 127, 128, 300, 2^48, 2^64 - 1", varints.done(), varints_again);
    let plain = record::plain(Kind::Delta, w.writer.writer_id(), &delta_body());
    add("record_plain", "a delta, as a record", plain, record_again);
    add("extents", "5 zeros from 3; 300 and 301 from a chunk", runs(), extents_again);
    add("extents_tags", "one tag without a hint, at block 1000", tag_runs(), extents_again);
    add("delta", "the body of a delta", delta_body(), |b| {
        let (prefix, runs) = delta::decode(b).unwrap();
        delta::encode(&prefix, runs)
    });
    add("page", "the body of a map page: blocks 300 and 301", page_body(), page_again);
    let what = "the body of a patch of that page: block 300 zero, 301 and 302 of another chunk";
    add("page_patch", what, patch_body(), page_again);
    add("node", "the body of a map node: level 2, node 3, children 0 and 5", node_body(), |b| {
        assert_eq!(b, node_body());
        b.to_vec()
    });
    let signed = stored(true).signed.encode().to_vec();
    add("point_checkpoint", "a checkpoint, signed", signed, signed_point_again);
    let signed = stored(false).signed.encode().to_vec();
    add("point_delta", "the point after it, signed", signed, signed_point_again);
    let stale = w.writer.sign_point(Point { stale: true, ..point(false) }).encode().to_vec();
    add("point_stale", "the same, with stale blocks", stale, signed_point_again);
    add(
        "stored_point",
        "the checkpoint as the store keeps it",
        stored(true).encode().into(),
        |b| StoredPoint::decode(b).unwrap().encode().to_vec(),
    );
    add("vault", "a vault's body", vault_body(), again::<vault::Vault>);
    add("cert", "a certificate's body", cert_body(), again::<vault::Cert>);
    let body = vault_keys(w.wrapped_keys.clone());
    add("vault_keys", "a vault keys' body", body, again::<vault::VaultKeys>);
    let body = w.writer.sign_body(&data_key());
    add("data_key", "a data key's body", body, again::<vault::DataKey>);
    add("volume", "a volume's body", volume_body(), again::<vault::Volume>);
    add("volume_fork", "the body of a volume that is a fork", fork_body(), again::<vault::Volume>);
    add("distrust", "a distrust's body", distrust_body(), again::<vault::Distrust>);
    add("stale", "the body of a record of stale blocks", stale_body(), again::<Stale>);
    add("generation", "a generation's body", generation_body(), |b| {
        vault::Generation::decode(b).unwrap().encode()
    });
    add("segment_header", "a segment's header", segment_header().encode().into(), |b| {
        segment::Header::decode(b.try_into().unwrap()).unwrap().encode().to_vec()
    });
    for (name, message) in messages() {
        let what = format!("the frame of '{name}'");
        add(&format!("message_{name}"), &what, message.encode(), |b| {
            Message::decode(&b[4..]).unwrap().encode()
        });
    }
    all
}

fn messages() -> Vec<(&'static str, Message)> {
    let vault = world().vault;
    let (volume, seq, place) = (VOLUME, 1, Place { level: 2, index: 3 });
    let ids = vec![RecordId([2; 16]), RecordId([3; 16])];
    let name = String::from("laptop");
    let (head, checkpoint) = (Some(stored(false)), Some(stored(true)));
    let item = VolumeItem { volume: volume_body(), head: checkpoint };
    let enrol = Message::Enrol {
        proof_key: PublicKey([5; 32]),
        proof: Signature([6; 64]),
        name: name.clone(),
        bundle: vec![vec![1], vec![2, 3]],
        writer_proof: Signature([7; 64]),
    };
    let (proof, cert) = (Signature([9; 64]), vec![1, 2]);
    let recover = Message::Recover { vault, proof, name: name.clone(), cert };
    vec![
        ("hello", Message::Hello { instance: InstanceId([4; 16]) }),
        ("enrol", enrol),
        ("recover", recover),
        ("list_volumes", Message::ListVolumes),
        ("list_points", Message::ListPoints { volume, from: 1, limit: 2 }),
        ("get_small", Message::GetSmall { kind: Kind::Cert, ids: vec![] }),
        ("get_chunks", Message::GetChunks { writer: WriterId([5; 16]), skip: 1, ids: ids.clone() }),
        ("get_node", Message::GetNode { volume, seq, place }),
        ("get_leaves", Message::GetLeaves { volume, seq, page: 2, mask: 3, hints: true }),
        ("get_deltas", Message::GetDeltas { volume, seq: 9 }),
        ("create_volume", Message::CreateVolume { body: volume_body() }),
        ("open_write", Message::OpenWrite { volume, takeover: true }),
        ("have", Message::Have { check: true, ids: ids.clone() }),
        ("put", Message::Put { record: vec![1, 2, 3] }),
        ("barrier", Message::Barrier),
        ("begin", Message::Begin { base: Base::Head, size: 5 << 20 }),
        ("extents", Message::Extents { runs: runs() }),
        ("commit", Message::Commit { point: stored(true).signed }),
        ("distrust", Message::Distrust { body: distrust_body() }),
        ("welcome", Message::Welcome { vault, name, time: TIME }),
        ("error", Message::Error { refusal: Refusal::Held, text: "held".into() }),
        ("done", Message::Done),
        ("volumes", Message::Volumes { items: vec![item] }),
        ("points", Message::Points { points: vec![stored(true), stored(false)] }),
        ("record", Message::Record { record: vec![1] }),
        ("absent", Message::Absent { id: ids[0] }),
        ("node", Message::Node { mask: 5, hashes: vec![Hash([1; 32]), Hash([2; 32])] }),
        ("leaves", Message::Leaves { runs: tag_runs() }),
        ("opened", Message::Opened { generation: 3, head, checkpoint }),
        ("have_answer", Message::HaveAnswer { have: vec![true, false, true] }),
        ("durable", Message::Durable),
        ("committed", Message::Committed { receipt: TIME }),
        ("missing", Message::Missing { ids }),
    ]
}

// ---------------------------------------------------------------- values

/// Takes a name, the crate's value, and the value by hand.
type Add<'a> = &'a mut dyn FnMut(&'static str, &[u8], &[u8]);

fn values() -> Vec<(&'static str, Bytes, Bytes)> {
    let mut all = Vec::new();
    let mut add = |name, crates: &[u8], by_hand: &[u8]| {
        all.push((name, crates.to_vec(), by_hand.to_vec()));
    };
    contents(&mut add);
    identities(&mut add);
    signatures(&mut add);
    checks(&mut add);
    all
}

fn contents(add: Add<'_>) {
    let secrets = &world().secrets;
    let (d1, d2) = (secrets.digest(&block(1)), secrets.digest(&block(2)));
    let block_key = derive("dormouse v1 block digest", &DIGEST_KEY);
    add("digest_1", &d1.0, &cut16(&keyed(&block_key, &[&block(1)])));
    add("digest_2", &d2.0, &cut16(&keyed(&block_key, &[&block(2)])));
    add("digest_of_zeros", &secrets.digest(&[0; BLOCK_SIZE]).0, &[0; 16]);
    let chunk_key = derive("dormouse v1 chunk id", &DIGEST_KEY);
    let by_hand = keyed(&chunk_key, &[&1u32.to_le_bytes(), &d1.0, &d2.0]);
    add("chunk_id_1_2", &secrets.chunk_id(&[d1, d2]).0, &cut16(&by_hand));
    let tag_key = derive("dormouse v1 tag", &MAP_KEY);
    let by_hand = keyed(&tag_key, &[&VOLUME.0, &769u64.to_le_bytes(), &d1.0]);
    add("tag_769_1", &secrets.tag(&VOLUME, 769, &d1).0, &cut16(&by_hand));
    let place = |level: u64, index: u64| [level.to_le_bytes(), index.to_le_bytes()].concat();
    let mut input = vec![0; 4096];
    tags().iter().enumerate().for_each(|(i, t)| input[i * 16..][..16].copy_from_slice(&t.0));
    let leaf = labelled("dormouse map v1", &[&place(0, 3), &input]);
    add("leaf_3", &leaf_hash().0, &leaf);
    add("leaf_of_zeros", &hash::leaf(3, &[Tag::ZERO; 256]).0, &[0; 32]);
    let mut input = vec![0; 2048];
    input[96..128].copy_from_slice(&leaf);
    let node = labelled("dormouse map v1", &[&place(1, 0), &input]);
    add("node_1_0", &node_hash().0, &node);
    let size = (5u64 << 20).to_le_bytes();
    add("content_root", &root().0, &labelled("dormouse root v1", &[&VOLUME.0, &size, &[1], &node]));
    let inner = *blake3::hash(&runs()).as_bytes();
    let by_hand = labelled("dormouse delta", &[&root().0, &size, &inner]);
    add("running_hash", &hash::delta(&root(), 5 << 20, &runs()).0, &by_hand);
    let signed = point(true).encode();
    add("point_hash", &hash::point(&signed).0, &labelled("dormouse point", &[&signed]));
}

fn identities(add: Add<'_>) {
    let w = world();
    let (authority, writer) = (w.authority.public(), w.writer.public());
    add("vault_id", &w.vault.0, &labelled("dormouse vault", &[&authority.0]));
    let by_hand = cut16(&labelled("dormouse writer", &[&writer.0]));
    add("writer_id", &w.writer.writer_id().0, &by_hand);
    add("fingerprint", &hash::fingerprint(&writer), &labelled("dormouse peer", &[&writer.0]));
    add("data_key_id", &w.key.id.0, &cut16(&derive("dormouse v1 data key id", &DATA_KEY)));
    let key = invite::key(&[0x99; 16]).unwrap();
    add("invite_seed", key.seed(), &derive("dormouse v1 invite", &[0x99; 16]));
    let by_hand = derive("dormouse v1 invite verifier", &key.public().0);
    add("invite_verifier", &invite::verifier(&key.public()), &by_hand);
}

fn signatures(add: Add<'_>) {
    let w = world();
    let (authority, writer) = ([0x11; 32], [0x22; 32]);
    let bodies: [(&str, &[u8; 32], &str, Bytes); 8] = [
        ("vault_signature", &authority, "vault", vault_body()),
        ("cert_signature", &authority, "certificate", cert_body()),
        ("vault_keys_signature", &authority, "vault keys", vault_keys(w.wrapped_keys.clone())),
        ("data_key_signature", &writer, "data key", w.writer.sign_body(&data_key())),
        ("volume_signature", &writer, "volume", volume_body()),
        ("volume_fork_signature", &writer, "volume", fork_body()),
        ("distrust_signature", &writer, "distrust", distrust_body()),
        ("stale_signature", &writer, "stale blocks", stale_body()),
    ];
    for (name, seed, domain, body) in bodies {
        let (signed, signature) = body.split_at(body.len() - 64);
        add(name, signature, &sign_by_hand(seed, domain, signed));
    }
    let signature = w.writer.sign_point(point(true)).signature.0;
    add("point_signature", &signature, &sign_by_hand(&writer, "point", &point(true).encode()));
    let (client, server) = (signing(0x33).public(), signing(0x44).public());
    let binding = Binding { exporter: [0xaa; 32], client, server };
    let input = [&[0xaa; 32][..], &client.0, &server.0].concat();
    let key = invite::key(&[0x99; 16]).unwrap();
    let by_hand = sign_by_hand(key.seed(), "invite", &input);
    add("proof_invite", &binding.prove_invite(&key).0, &by_hand);
    let by_hand = sign_by_hand(&authority, "recover", &input);
    add("proof_authority", &binding.prove_authority(&w.authority).0, &by_hand);
    let by_hand = sign_by_hand(&writer, "writer joins", &input);
    add("proof_writer", &binding.prove_writer(&w.writer).0, &by_hand);
}

fn checks(add: Add<'_>) {
    let body = delta_body();
    add("body_check", &hash::body_check(&body), &cut16(&labelled("dormouse body", &[&body])));
    let by_hand = cut16(&labelled("dormouse plain", &[&[4], &body]));
    add("plain_id", &hash::plain_id(4, &body).0, &by_hand);
    let record = record::plain(Kind::Delta, WriterId::ZERO, &body);
    let by_hand = cut16(&labelled("dormouse header", &[&record[..96]]));
    add("record_check", &record[96..112], &by_hand);
    let header = segment_header().encode();
    let by_hand = cut16(&labelled("dormouse header", &[&header[..112]]));
    add("segment_check", &segment_header().check, &by_hand);
    let at = 300u64.to_le_bytes();
    let by_hand = cut16(&labelled("dormouse chain", &[&[1; 16], &[2; 16], &at]));
    add("chain", &hash::chain(&[1; 16], &[2; 16], 300), &by_hand);
    let by_hand = labelled("dormouse trailer", &[&[1; 16], &at, &256u64.to_le_bytes(), &[2; 16]]);
    add("trailer_check", &hash::trailer_check(&[1; 16], 300, 256, &[2; 16]), &by_hand[..8]);
    let by_hand = cut16(&labelled("dormouse tail", &[b"DORMEND1", &at, &[1; 16]]));
    add("tail_check", &hash::tail_check(300, &[1; 16]), &by_hand);
}

fn stored_values() -> BTreeMap<String, Bytes> {
    let text = text_of("values");
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|l| l.split_once(" = ").unwrap()).map(|(n, v)| (n.into(), unhex(v))).collect()
}

const VALUES: &str = "\
# Computed values. Seeds of keys: authority 11, writer 22, client's transport 33, server's
# transport 44, each 32 times. Digest key 55, map key 66, data key 77, each 32 times; epoch 1;
# volume's id 88 16 times; invite's secret 99 16 times; TLS exporter aa 32 times. Block n is the
# first 4096 bytes of BLAKE3's output for n as u64. See crates/crypt/tests/vectors.rs.
";

// ---------------------------------------------------------------- tests

const CHUNK_ZSTD: &str = "record_chunk_zstd";
const SEGMENT: &str = "segment";

/// Makes the files, if that was asked for; once, before any test looks at them.
fn ready() {
    static READY: OnceLock<()> = OnceLock::new();
    READY.get_or_init(|| {
        if !writing() {
            return;
        }
        let what = "a sealed, compressed chunk: blocks of 7, 8 and 9";
        made_once(CHUNK_ZSTD, what, || sealed(&soft()));
        let what = "a whole sealed segment: nine records, the seal, the tail";
        made_once(SEGMENT, what, segment_bytes);
        good().iter().for_each(|v| save(&v.name, &v.what, &v.bytes));
        bad().iter().for_each(|v| save(v.name, &format!("refused: {}", v.error), &v.bytes));
        let mut text = VALUES.to_owned();
        for (name, value, _) in values() {
            text += &format!("{name} = {}\n", hex(&value));
        }
        std::fs::write(dir().join("values.txt"), text).unwrap();
    });
}

#[test]
fn good_vectors_are_made_and_read_as_written() {
    ready();
    for v in good() {
        let written = load(&v.name);
        assert!(written == v.bytes, "{}: what is made now differs", v.name);
        assert!((v.again)(&written) == written, "{}: does not encode as it was read", v.name);
    }
}

#[test]
fn values_are_as_written_and_as_computed_by_hand() {
    ready();
    let written = stored_values();
    let values = values();
    assert_eq!(values.len(), written.len());
    for (name, value, by_hand) in values {
        assert_eq!(hex(&value), hex(&by_hand), "{name}: docs/format.md says something else");
        assert_eq!(hex(&value), hex(&written[name]), "{name}");
    }
}

#[test]
fn every_defect_is_refused_for_its_own_reason() {
    ready();
    for v in bad() {
        let written = load(v.name);
        assert!(written == v.bytes, "{}: what is made now differs", v.name);
        assert_eq!((v.parse)(&written), Err(v.error.to_owned()), "{}", v.name);
        assert!(text_of(v.name).contains(v.error), "{}: its comment", v.name);
    }
}

#[test]
fn sealed_chunks_open_in_their_vault_only() {
    ready();
    assert_eq!(open(&load("record_chunk_raw")), Ok(block(1)));
    assert_eq!(open(&load(CHUNK_ZSTD)), Ok(soft()));
    let bytes = load(CHUNK_ZSTD);
    let (header, body) = record::check(&bytes).unwrap();
    let (w, other, mut opener) = (world(), VaultId([9; 32]), Opener::new().unwrap());
    assert!(opener.open(&other, &w.key, &w.secrets, &header, body).is_err());
}

#[test]
fn wrapped_keys_open() {
    ready();
    let w = world();
    let (body, public) = (load("data_key"), w.writer.public());
    assert_eq!(DataKey::unwrap(&w.vault, &body, &public, &w.identity).unwrap().id, w.key.id);
    let body = load("vault_keys");
    let keys: vault::VaultKeys = keys::verify_body(&w.authority.public(), &body).unwrap();
    let secrets = VaultSecrets::unwrap(keys.epoch, &keys.wrapped, &w.identity).unwrap();
    assert_eq!(*secrets.to_bytes(), *w.secrets.to_bytes());
}

/// Walks the segment by the text of docs/format.md.
#[test]
fn a_whole_segment_holds() {
    ready();
    let bytes = load(SEGMENT);
    let (end, tail) = bytes.split_last_chunk::<32>().unwrap();
    let tail = Tail::decode(tail).unwrap();
    let head = segment::Header::decode(bytes.first_chunk().unwrap()).unwrap();
    assert_eq!(hash::header_check(&bytes[..112]), head.check);
    let (mut at, mut chain, mut listed) = (128, head.check, Vec::new());
    while at < end.len() {
        let header = record::check_header(end[at..].first_chunk().unwrap()).unwrap();
        let next = at + header.record_len();
        let (_, body) = record::check(&end[at..next]).unwrap();
        let trailer = Trailer::decode(end[next..].first_chunk().unwrap()).unwrap();
        chain = hash::chain(&chain, &header.check, trailer.durable);
        assert_eq!(trailer.chain, chain, "at {at}");
        let check = hash::trailer_check(&head.check, at as u64, trailer.durable, &chain);
        assert_eq!(trailer.check, check, "at {at}");
        assert!(trailer.durable <= at as u64);
        if header.kind == Kind::Seal {
            assert_eq!((tail.seal, next + 32), (at as u64, end.len()));
            let seal = Seal::decode(body).unwrap();
            assert_eq!(seal.encode(), body);
            let table: Vec<_> = seal.items.iter().map(|i| (i.offset as usize, i.kind)).collect();
            assert_eq!(table, listed);
        }
        listed.push((at, header.kind));
        at = next + 32;
    }
    assert_eq!(hash::tail_check(tail.seal, &chain), tail.check);
    assert_eq!(listed.len(), 10);
}

#[test]
fn no_file_is_left_over_and_no_name_is_used_twice() {
    ready();
    let mut names: Vec<String> = good().into_iter().map(|v| v.name).collect();
    names.extend(bad().into_iter().map(|v| v.name.to_owned()));
    let fixed = ["values", "age_identity", "age_vault_keys", "age_data_key", CHUNK_ZSTD, SEGMENT];
    names.extend(fixed.map(String::from));
    let known: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(known.len(), names.len(), "a name is used twice");
    let there = std::fs::read_dir(dir()).unwrap().map(|e| e.unwrap().file_name());
    let there: BTreeSet<_> =
        there.map(|n| n.into_string().unwrap().trim_end_matches(".txt").to_owned()).collect();
    assert_eq!(there, known);
}
