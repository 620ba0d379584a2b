//! One defect each: the bytes, who reads them, and the error that must come.

use super::*;

pub type Parse = fn(&[u8]) -> core::result::Result<(), String>;

pub struct Bad {
    pub name: &'static str,
    pub bytes: Bytes,
    pub parse: Parse,
    pub error: &'static str,
}

fn text<T, E: ToString>(result: core::result::Result<T, E>) -> core::result::Result<(), String> {
    result.map(drop).map_err(|e| e.to_string())
}

fn patched(bytes: &[u8], at: usize, with: &[u8]) -> Bytes {
    let mut out = bytes.to_vec();
    out[at..at + with.len()].copy_from_slice(with);
    out
}

fn group(parse: Parse, defects: Vec<(&'static str, Bytes, &'static str)>) -> Vec<Bad> {
    defects.into_iter().map(|(name, bytes, error)| Bad { name, bytes, parse, error }).collect()
}

fn bad_records() -> Vec<Bad> {
    let good = record::plain(Kind::Delta, WriterId([1; 16]), &[1, 2, 3]);
    let chunk = sealed(&block(1));
    let at = |i: usize, with: &[u8]| patched(&good, i, with);
    let id = hash::plain_id(4, &[1, 2, 3]).0;
    let (writer, key, nonce) = ([1; 16], [0; 16], [0; 12]);
    let plain = Raw { kind: 4, count: 0, epoch: 0, id, writer, key, nonce };
    assert_eq!(plain.record(&[1, 2, 3]), good, "by hand");
    let other_id = Raw { id: [9; 16], ..plain.clone() };
    let with_epoch = Raw { epoch: 1, ..plain };
    // One block: 4 of prefix, 4096, 16 of tag, and one byte more.
    let longer = patched(&chunk[..112], 8, &4117u32.to_le_bytes());
    let magic = "record header: the first bytes are not those of a record";
    let reserved = "record header: reserved bytes are not zero";
    let count = "record header: the count of blocks does not fit the kind";
    let key = "record header: the key id does not fit the kind";
    let nonce = "record header: a nonce stands where nothing is sealed";
    let long = "delta: 1048577 is more than the limit of 1048576";
    let too_long = "record header: the body is longer than its blocks can be";
    let epoch = "record header: the epoch does not fit the kind";
    let length = "record header: the body's length differs from what the header says";
    let check = "record header: the checksum does not hold";
    group(
        |b| text(record::check(b)),
        vec![
            ("record_bad_magic", at(0, b"DMR2"), magic),
            ("record_unknown_kind", at(4, &[15]), "record header: unknown kind"),
            ("record_reserved", at(6, &[1]), reserved),
            ("record_reserved_nonce", at(79, &[1]), reserved),
            ("record_count_plain", at(5, &[1]), count),
            ("record_count_zero", patched(&chunk, 5, &[0]), count),
            ("record_count_65", patched(&chunk, 5, &[65]), count),
            ("record_body_too_long", at(8, &0x10_0001u32.to_le_bytes()), long),
            ("record_chunk_too_long", longer, too_long),
            ("record_epoch_zero", patched(&chunk[..112], 12, &[0; 4]), epoch),
            ("record_plain_epoch", with_epoch.record(&[1, 2, 3]), epoch),
            ("record_key_plain", at(48, &[1]), key),
            ("record_key_missing", patched(&chunk[..112], 48, &[0; 16]), key),
            ("record_nonce_plain", at(64, &[1]), nonce),
            ("record_short", good[..111].to_vec(), "record header: ends too early"),
            ("record_body_short", good[..good.len() - 1].to_vec(), length),
            ("record_header_check", at(32, &[2]), check),
            ("record_body_check", at(112, &[9]), "delta: the checksum does not hold"),
            ("record_id", other_id.record(&[1, 2, 3]), "delta: the checksum does not hold"),
        ],
    )
}

fn bad_chunks() -> Vec<Bad> {
    let (w, one) = (world(), block(1));
    let id = w.secrets.chunk_id(&digests(&one));
    let payload = [&[0, 1, 0, 0], &one[..]].concat();
    assert_eq!(seal_by_hand(id, 1, 1, &payload), sealed(&one), "by hand");
    let record = sealed(&one);
    let (writer, key) = (w.writer.writer_id().0, w.key.id.0);
    let nonce = *record[64..].first_chunk().unwrap();
    let raw = Raw { kind: 1, count: 1, epoch: 1, id: id.0, writer, key, nonce };
    let body = &record[112..];
    let altered = raw.record(&patched(body, 0, &[!body[0]]));
    let nonce = Raw { nonce: [9; 12], ..raw.clone() }.record(body);
    let writer = Raw { writer: [9; 16], ..raw }.record(body);
    let zeros = [&[0, 1, 0, 0][..], &[0; BLOCK_SIZE]].concat();
    let zero_id = w.secrets.chunk_id(&[Digest::ZERO]);
    let bomb = zstd::bulk::compress(&[7; 2 * BLOCK_SIZE], 3).unwrap();
    let bomb = made_once("chunk_bomb", "refused: the content is not what the id says", || {
        seal_by_hand(id, 1, 1, &[&[1, 1, 0, 0], &bomb[..]].concat())
    });
    let seal = "the seal does not hold";
    let content = "the content is not what the id says";
    let with = |at: usize, v: u8| seal_by_hand(id, 1, 1, &patched(&payload, at, &[v]));
    group(
        |b| match open(b) {
            Ok(_) => Ok(()),
            // Before the colon stands which chunk.
            Err(e) => Err(e.split_once(": ").map_or(e.clone(), |(_, why)| why.into())),
        },
        vec![
            ("chunk_altered", altered, seal),
            ("chunk_nonce", nonce, seal),
            ("chunk_writer", writer, seal),
            ("chunk_id", seal_by_hand(RecordId([9; 16]), 1, 1, &payload), content),
            ("chunk_epoch", seal_by_hand(id, 2, 1, &payload), content),
            ("chunk_zero_block", seal_by_hand(zero_id, 1, 1, &zeros), content),
            ("chunk_payload_kind", with(0, 2), content),
            ("chunk_payload_count", with(1, 2), content),
            ("chunk_payload_reserved", with(2, 1), content),
            ("chunk_payload_short", seal_by_hand(id, 1, 1, &payload[..4000]), content),
            ("chunk_payload_empty", seal_by_hand(id, 1, 1, &[]), content),
            ("chunk_bomb", bomb, content),
        ],
    )
}

fn bad_segments() -> Vec<Bad> {
    let good = segment_header().encode().to_vec();
    let at = |i: usize, with: &[u8]| patched(&good, i, with);
    let magic = "segment header: the first bytes are not those of a segment";
    let reserved = "segment header: reserved bytes are not zero";
    let newer = "segment: version 2, and this program knows up to 1";
    let mut all = group(
        |b| text(segment::Header::decode(b.try_into().unwrap())),
        vec![
            ("segment_bad_magic", at(7, b"2"), magic),
            ("segment_newer", at(8, &[2]), newer),
            ("segment_reserved", at(12, &[1]), reserved),
            ("segment_reserved_end", at(111, &[1]), reserved),
        ],
    );
    let tail = Tail { seal: 300, check: [1; 16] }.encode();
    all.extend(group(
        |b| text(Tail::decode(b.try_into().unwrap()).ok_or("no tail")),
        vec![("tail_bad_magic", patched(&tail, 0, b"d"), "no tail")],
    ));
    let (id, body_len, kind, count) = (RecordId([6; 16]), 5, Kind::Chunk, 1);
    let item = |offset, writer| Item { id, offset, body_len, kind, count, writer };
    let seal = |a, b| Seal { writers: vec![WriterId([1; 16])], items: vec![a, b] }.encode();
    let good = seal(item(128, 0), item(300, 0));
    assert!(Seal::decode(&good).is_ok());
    let (order, writer) = ("seal: the table is not in order", "seal: a writer is not in the list");
    let (counts, many) =
        ("seal: the counts do not fit the length", "seal: 65537 is more than the limit of 65536");
    all.extend(group(
        |b| text(Seal::decode(b)),
        vec![
            ("seal_writer", seal(item(128, 0), item(300, 1)), writer),
            ("seal_order", seal(item(300, 0), item(128, 0)), order),
            ("seal_twice", seal(item(128, 0), item(128, 0)), order),
            ("seal_counts", good[..good.len() - 1].to_vec(), counts),
            ("seal_unknown_kind", patched(&good, 48, &[15]), "seal: unknown kind"),
            ("seal_writers", patched(&good, 0, &65_537u32.to_le_bytes()), many),
        ],
    ));
    all
}

fn bad_points() -> Vec<Bad> {
    let (first, second) = (stored(true).encode(), stored(false).encode());
    let at = |i: usize, with: &[u8]| patched(&first, i, with);
    let then = |i: usize, with: &[u8]| patched(&second, i, with);
    let magic = "point: the first bytes are not those of a point";
    let flags = "point: the flags do not fit the sequence numbers";
    let reserved = "point: reserved bytes are not zero";
    let seqs = "point: the sequence numbers are not possible";
    let deltas = "point: the hash of deltas does not fit a checkpoint";
    let prev = "point: only the first point has none before it";
    let size = "point: the size is above the largest volume";
    let mut all = group(
        |b| text(StoredPoint::decode(b)),
        vec![
            ("point_bad_magic", at(0, b"X"), magic),
            ("point_bad_version", at(4, &[2]), "point: unknown version"),
            ("point_bad_grade", at(5, &[5]), "point: unknown grade"),
            ("point_bad_flags", at(6, &[5]), flags),
            ("point_flag_missing", at(6, &[0]), flags),
            ("point_reserved", at(7, &[1]), reserved),
            ("point_reserved_epoch", at(52, &[1]), reserved),
            ("point_seq_zero", at(8, &[0]), seqs),
            ("point_checkpoint_zero", then(40, &[0]), seqs),
            ("point_checkpoint_later", then(40, &[3]), seqs),
            ("point_checkpoint_deltas", at(184, &[1; 32]), deltas),
            ("point_no_deltas", then(184, &[0; 32]), deltas),
            ("point_first_prev", at(120, &[1; 32]), prev),
            ("point_no_prev", then(120, &[0; 32]), prev),
            ("point_epoch_zero", at(48, &[0; 4]), "point: epochs begin at 1"),
            ("point_size", at(32, &((1u64 << 60) + 1).to_le_bytes()), size),
            ("point_short", first[..335].to_vec(), "point: ends too early"),
            ("point_long", [&first[..], &[0]].concat(), "point: 1 bytes too many"),
        ],
    );
    all.extend(group(
        |b| {
            let stored = StoredPoint::decode(b).unwrap();
            text(keys::verify_point(&world().writer.public(), &stored.signed))
        },
        vec![
            ("point_altered", at(24, &[1]), "point: the signature does not hold"),
            ("point_signature", at(216, &[1]), "point: the signature does not hold"),
        ],
    ));
    all
}

fn bad_extents() -> Vec<Bad> {
    let zeros = |runs: &[(u64, u64)]| {
        let mut w = Writer::default();
        for (gap, count) in runs {
            w.u8(0).varint(*gap).varint(*count);
        }
        w.done()
    };
    let mut beyond = ExtentsWriter::new();
    beyond.data(0, RecordId([7; 16]), 63, &[Tag([1; 16]), Tag([2; 16])]);
    let mut zero = ExtentsWriter::new();
    zero.data(0, RecordId([7; 16]), 0, &[Tag::ZERO]);
    let mut nowhere = ExtentsWriter::new();
    nowhere.data(0, RecordId::ZERO, 0, &[Tag([1; 16])]);
    let mut many = ExtentsWriter::new();
    many.tags(0, &[Tag([1; 16]); 257]);
    let start = "extents: a run starts beyond the largest volume";
    let end = "extents: a run is empty or ends beyond the largest volume";
    let chunk = "extents: a run reaches beyond its chunk";
    let tag = "extents: a data run holds the tag of the zero block";
    let mut all = group(
        |b| text(extents::check(b)),
        vec![
            ("extents_unknown_kind", vec![3, 0, 1], "extents: unknown kind of run"),
            ("extents_empty_run", zeros(&[(0, 0)]), end),
            ("extents_start", zeros(&[(1 << 48, 1)]), start),
            ("extents_end", zeros(&[((1 << 48) - 1, 2)]), end),
            ("extents_overlap", zeros(&[(5, 5), (u64::MAX, 1)]), start),
            ("extents_beyond_chunk", beyond.take(), chunk),
            ("extents_chunk_zero", nowhere.take(), "extents: a data run names no chunk"),
            ("extents_zero_tag", zero.take(), tag),
            ("extents_tags_257", many.take(), "extents: 257 is more than the limit of 256"),
            ("extents_short", runs()[..runs().len() - 1].to_vec(), "extents: ends too early"),
        ],
    );
    let long = "varint: a number is not in its shortest form";
    let wide = "varint: a number does not fit 64 bits";
    all.extend(group(
        |b| text(Reader::new(b, "varint").varint()),
        vec![
            ("varint_long", vec![0x80, 0], long),
            ("varint_long_end", [&[0xff; 9][..], &[0x81, 0]].concat(), wide),
            ("varint_overflow", [&[0xff; 9][..], &[2]].concat(), wide),
            ("varint_endless", vec![0xff; 11], wide),
            ("varint_short", vec![0xff; 3], "varint: ends too early"),
        ],
    ));
    let size = "delta: the size is above the largest volume";
    all.extend(group(
        |b| text(delta::decode(b)),
        vec![
            ("delta_short", delta_body()[..47].to_vec(), "delta: ends too early"),
            ("delta_size", patched(&delta_body(), 24, &u64::MAX.to_le_bytes()), size),
        ],
    ));
    all
}

fn bad_certs() -> Vec<Bad> {
    let w = world();
    let cert_of = |name: &str| w.authority.sign_body(&cert(name));
    let long = [&cert("laptop").signed_bytes()[..], &[0; 65]].concat();
    let name = "certificate: the name is not a valid name";
    let signature = "certificate: the signature does not hold";
    group(
        |b| text(keys::verify_body::<vault::Cert>(&world().authority.public(), b)),
        vec![
            ("cert_name", cert_of("-x"), name),
            ("cert_name_empty", cert_of(""), name),
            (
                "cert_name_65",
                cert_of(&"x".repeat(65)),
                "certificate: 65 is more than the limit of 64",
            ),
            ("cert_long", long, "certificate: 1 bytes too many"),
            ("cert_short", cert_body()[..63].to_vec(), "certificate: ends too early"),
            ("cert_altered", patched(&cert_body(), 64, &[5]), signature),
            ("cert_signer", w.writer.sign_body(&cert("laptop")), signature),
        ],
    )
}

fn bad_bodies() -> Vec<Bad> {
    let w = world();
    let utf8 = patched(&volume_body(), 76, &[0xff]);
    let mut all = group(
        |b| text(vault::Volume::decode(b)),
        vec![("volume_name_utf8", utf8, "volume: text is not UTF-8")],
    );
    let stranger = vault_value(&w.writer);
    let long = vault::Vault { recipient: "x".repeat(4097), ..vault_value(&w.authority) };
    let other = "authority of another vault: not a valid key";
    let limit = "vault: 4097 is more than the limit of 4096";
    all.extend(group(
        |b| text(keys::verify_vault(&world().vault, b)),
        vec![
            ("vault_authority", w.writer.sign_body(&stranger), other),
            ("vault_recipient_4097", w.authority.sign_body(&long), limit),
        ],
    ));
    let limit = "vault keys: 8193 is more than the limit of 8192";
    let no_epoch = vault::VaultKeys { vault: w.vault, epoch: 0, wrapped: w.wrapped_keys.clone() };
    all.extend(group(
        |b| text(vault::VaultKeys::decode(b)),
        vec![
            ("vault_keys_8193", vault_keys(vec![0; SIGNED_BODY_MAX + 1]), limit),
            (
                "vaultkeys_epoch_zero",
                w.authority.sign_body(&no_epoch),
                "vault keys: epochs begin at 1",
            ),
        ],
    ));
    let vault = vault::DataKey { vault: VaultId([9; 32]), ..data_key() };
    let id = vault::DataKey { key: KeyId([9; 16]), ..data_key() };
    let length = vault::DataKey { wrapped: w.wrapped_keys.clone(), ..data_key() };
    let other = "data key of another vault: not a valid key";
    let signature = "data key: the signature does not hold";
    let opens = "data key: this identity does not open it";
    all.extend(group(
        |b| {
            let w = world();
            text(DataKey::unwrap(&w.vault, b, &w.writer.public(), &w.identity))
        },
        vec![
            ("data_key_vault", w.writer.sign_body(&vault), other),
            ("data_key_signer", w.authority.sign_body(&data_key()), signature),
            ("data_key_id", w.writer.sign_body(&id), opens),
            ("data_key_length", w.writer.sign_body(&length), "wrapped key: wrong length"),
        ],
    ));
    let long = [&generation_body()[..], &[0]].concat();
    all.extend(group(
        |b| text(vault::Generation::decode(b)),
        vec![("generation_long", long, "generation: 1 bytes too many")],
    ));
    all
}

fn bad_messages() -> Vec<Bad> {
    let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
    let place = Place { level: 1, index: 0 };
    let node = Message::GetNode { volume: VOLUME, seq: 1, place }.encode();
    let begin = Message::Begin { base: Base::Delta, size: 1 }.encode();
    let have = Message::HaveAnswer { have: vec![true; 3] }.encode();
    let open = Message::OpenWrite { volume: VOLUME, takeover: false }.encode();
    let kind = Message::GetSmall { kind: Kind::Cert, ids: vec![] }.encode();
    let refusal = Message::Error { refusal: Refusal::Held, text: String::new() }.encode();
    let child = Message::Node { mask: 1, hashes: vec![Hash::ZERO] }.encode();
    let many = [&[0x13][..], &[5; 16], &[1], &1025u32.to_le_bytes(), &[0; 1025 * 16]].concat();
    let many = frame(&many);
    let asked = Message::Have { check: false, ids: vec![] }.encode();
    let checked = [&[0x22, 1][..], &1025u32.to_le_bytes(), &[0; 1025 * 16]].concat();
    let too_long = (FRAME_MAX as u32 + 1).to_le_bytes().to_vec();
    let no_place = "message: no such place in a map";
    let limit = "frame: 1052673 is more than the limit of 1052672";
    group(
        |b| {
            let mut d = Deframer::new(FRAME_MAX);
            d.push(b);
            text(d.next_message())
        },
        vec![
            ("frame_empty", vec![0; 4], "frame: 0 is more than the limit of 1052672"),
            ("frame_too_long", too_long, limit),
            ("message_unknown_type", frame(&[0x7f]), "message: unknown type"),
            ("message_unknown_answer", frame(&[0xff]), "message: unknown type"),
            ("message_long", frame(&[0x10, 0]), "message: 1 bytes too many"),
            ("message_short", frame(&[0x01; 16]), "message: ends too early"),
            ("message_flag", patched(&open, 21, &[2]), "message: a flag is neither 0 nor 1"),
            ("message_kind", patched(&kind, 5, &[0]), "message: unknown kind"),
            ("message_base", patched(&begin, 5, &[4]), "message: unknown base of a point"),
            ("message_refusal", patched(&refusal, 5, &[99]), "message: unknown refusal"),
            ("message_level_0", patched(&node, 29, &[0]), no_place),
            ("message_level_9", patched(&node, 29, &[9]), no_place),
            ("message_index", patched(&node, 30, &[0xff; 8]), no_place),
            ("message_bits", patched(&have, 9, &[0x0f]), "message: bits beyond the count are set"),
            ("message_zero_child", child, "message: a child that is named is zero"),
            ("message_ids_1025", many, "message: 1025 is more than the limit of 1024"),
            ("message_have_flag", patched(&asked, 5, &[2]), "message: a flag is neither 0 nor 1"),
            (
                "message_have_checked_1025",
                frame(&checked),
                "message: 1025 is more than the limit of 1024",
            ),
        ],
    )
}

pub fn bad() -> Vec<Bad> {
    let mut all = bad_records();
    all.extend(bad_chunks());
    all.extend(bad_segments());
    all.extend(bad_points());
    all.extend(bad_extents());
    all.extend(bad_certs());
    all.extend(bad_bodies());
    all.extend(bad_messages());
    all
}
