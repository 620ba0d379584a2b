//! Whole logs: opened, scrubbed, used and opened again.
//!
//! What must hold of any bytes: no panic; what was opened once opens again without losing
//! anything; what the store shows after opening is what the log had; where nothing was
//! damaged, scrub finds nothing.

use std::collections::HashSet;

use dormouse_format::geometry::{Place, top_level};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::Kind;
use dormouse_format::vault::{Distrust, Generation};
use dormouse_format::{Hash, InstanceId, RecordId, Signature, VolumeId, WriterId, delta};
use dormouse_store::fuzzing::{RawLog, node_body, page_body};
use dormouse_store::memory::MemDir;
use dormouse_store::scrub::{Finding, scrub};
use dormouse_store::{Base, Dir, Options, VaultStore};

use crate::Target;
use crate::input::Input;
use crate::targets::format::{fields_of_point, header};
use crate::world::{VOLUME, records, segment_name, segments, world};

/// The last segment as raw bytes.
pub const RAW: Target = Target {
    name: "store-raw",
    what: "a store whose last segment is the input: opened, scrubbed, used, opened again",
    run: raw,
    seeds: raw_seeds,
    len_max: 16 << 10,
};

/// A log whose records are the input.
pub const LOG: Target = Target {
    name: "store-log",
    what: "a log of any records, under checks that hold, then damaged: as store-raw",
    run: log,
    seeds: log_seeds,
    len_max: 2048,
};

fn options(small: bool) -> Options {
    let segment_size = if small { 1 << 10 } else { 1 << 20 };
    Options { segment_size, index_entries: 16 }
}

fn raw(data: &[u8]) {
    let mut input = Input::new(data);
    let before = segments(world().full());
    let at = input.below(before.len());
    let dir = MemDir::new();
    before[..at].iter().for_each(|(name, bytes)| dir.set(name, bytes.clone()));
    dir.set(&segment_name(at + 1), input.rest().to_vec());
    judge(&dir, false);
}

fn raw_seeds() -> Vec<Vec<u8>> {
    let all = segments(world().full());
    let whole = (0u8..).zip(&all).map(|(n, (_, bytes))| [&[n][..], bytes].concat());
    let mut out: Vec<_> = whole.collect();
    for seed in out.clone() {
        out.push(seed[..seed.len() - 32].to_vec());
        out.push(seed[..seed.len() / 2].to_vec());
    }
    out.extend(crate::corpus::behind(0, crate::corpus::vectors("segment")));
    out
}

fn findings(dir: &MemDir, live: bool) -> Option<Vec<Finding>> {
    let mut all = Vec::new();
    scrub(dir, world().vault, live, &mut |f| all.push(f)).ok()?;
    Some(all)
}

fn open(dir: &MemDir) -> dormouse_store::Result<(VaultStore, dormouse_store::Recovery)> {
    let segments: Box<dyn Dir> = Box::new(dir.clone());
    VaultStore::open(segments, Box::new(MemDir::new()), world().vault, options(false))
}

/// All points of a store that can be read.
fn points(store: &VaultStore) -> Vec<StoredPoint> {
    let ids = store.volumes().into_iter().map(|(v, ..)| v.id);
    ids.flat_map(|id| store.points(&id, 0, usize::MAX).unwrap_or_default()).collect()
}

/// What must hold of any log. `intact`: nothing in it was damaged.
fn judge(dir: &MemDir, intact: bool) {
    let found = findings(dir, false);
    findings(dir, true);
    if intact {
        assert_eq!(found.as_deref(), Some(&[][..]), "scrub finds a fault where there is none");
    }
    let there: HashSet<Vec<u8>> = points_in(dir);
    let Ok((store, recovery)) = open(dir) else { return };
    assert!(!intact || recovery.torn.is_empty(), "{recovery:?}");
    let shown = points(&store);
    assert!(shown.iter().all(|p| there.contains(&p.encode()[..])), "a point from nowhere");
    let last = segments(dir).last().map(|(name, _)| name.clone());
    for fault in findings(dir, false).expect("what opens can be scrubbed") {
        let known = recovery
            .damaged
            .iter()
            .any(|d| (&d.segment, d.offset) == (&fault.segment, fault.offset));
        let body = fault.kind.is_some_and(|k| k != Kind::Seal);
        assert!(known || !body || Some(&fault.segment) != last.as_ref(), "unseen: {fault:?}");
    }
    let (again, recovery) = open(&dir.snapshot()).expect("what opened once opens again");
    assert!(recovery.torn.is_empty(), "{recovery:?}");
    assert_eq!(points(&again), shown);
    drop(again);
    exercise(&store);
    let closed = store.close().is_ok();
    drop(store);
    if closed {
        let (after, recovery) = open(dir).expect("what was closed opens again");
        assert!(recovery.torn.is_empty(), "{recovery:?}");
        assert_eq!(points(&after), shown, "using the store changed its points");
    }
}

/// Bodies of points anywhere in the files.
fn points_in(dir: &MemDir) -> HashSet<Vec<u8>> {
    let len = dormouse_format::point::STORED_LEN;
    let mut out = HashSet::new();
    for (_, bytes) in segments(dir) {
        let starts = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"DMPT"));
        out.extend(starts.filter_map(|at| Some(bytes.get(at..at + len)?.to_vec())));
    }
    out
}

/// Asks a store for everything, and writes to it.
pub fn exercise(store: &VaultStore) {
    let w = world();
    for kind in [Kind::Vault, Kind::Cert, Kind::VaultKeys, Kind::DataKey, Kind::Volume] {
        let _ = store.small(kind, &[]);
    }
    let ids: Vec<RecordId> = w.chunks.iter().map(|c| c.id).chain([RecordId([9; 16])]).collect();
    for writer in &w.writers {
        let writer = writer.writer_id();
        let _ = store.have(&writer, &ids, false);
        let _ = store.have(&writer, &ids, true);
        for id in &ids {
            let _ = store.chunk(id, &writer, 0);
        }
    }
    for (volume, _, head) in store.volumes() {
        for point in store.points(&volume.id, 0, 50).unwrap_or_default() {
            maps(store, &volume.id, &point);
        }
        let writer = w.writers[0].writer_id();
        let opened = store.open_write(&volume.id, writer, InstanceId([3; 16]), true, 9);
        let Ok(generation) = opened else { continue };
        let size = head.map_or(1 << 20, |h| h.point().size);
        for base in [Base::Delta, Base::Checkpoint, Base::Head] {
            if let Ok(mut pending) = store.begin(&volume.id, generation, base, size) {
                let _ = store.extents(&mut pending, &w.runs(3, 1), 9);
            }
        }
    }
    let _ = store.put(&w.chunks[0].record, 9);
    let _ = store.barrier();
    store.stats();
}

fn maps(store: &VaultStore, volume: &VolumeId, point: &StoredPoint) {
    let p = point.point();
    for level in 0..=top_level(p.size) + 1 {
        let _ = store.node(volume, p.seq, Place { level, index: 0 });
    }
    for page in [0, 1, (1 << 44) - 1] {
        let _ = store.leaves(volume, p.seq, page, u64::MAX, true);
    }
    for at in store.deltas(volume, p.seq).unwrap_or_default() {
        let _ = store.read(&at);
    }
}

fn log(data: &[u8]) {
    let mut input = Input::new(data);
    let dir = MemDir::new();
    let (small, honest) = (input.flag(), input.u8());
    let segments: Box<dyn Dir> = Box::new(dir.clone());
    let size = options(small).segment_size;
    let log = RawLog::create(segments, Box::new(MemDir::new()), world().vault, size).unwrap();
    let known = records(world().full());
    let known: Vec<_> = known.into_iter().filter(|r| r[4] != Kind::Seal as u8).collect();
    known.iter().take(usize::from(honest)).for_each(|r| {
        log.append(r, 1).unwrap();
    });
    let mut rules_kept = true;
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 14 {
            13 => break,
            op => rules_kept &= append(&log, op, &mut input, &known),
        }
    }
    drop(log);
    let damaged = damage(&dir, &mut input);
    judge(&dir, rules_kept && !damaged);
}

/// Appends a record; `false` if its header breaks a rule, so that no writer could have made it.
fn append(log: &RawLog, op: u8, input: &mut Input<'_>, known: &[Vec<u8>]) -> bool {
    let w = world();
    let one = w.writers[0].writer_id();
    let plain = |kind, writer, body: &[u8]| log.plain(kind, writer, body).is_ok();
    match op {
        0 => log.sync().is_ok(),
        1 | 2 => log.append(&known[input.below(known.len())], 1).is_ok(),
        3 => {
            let chunk = &w.chunks[input.below(2)];
            log.append(&chunk.record, 1).is_ok()
        }
        4 => {
            let kinds = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14];
            let kind = Kind::from_u8(kinds[input.below(kinds.len())]).unwrap();
            plain(kind, one, input.blob())
        }
        5 => {
            let mut header = header(input);
            // A seal in the middle is what only the log itself writes.
            if header.kind == Kind::Seal {
                header.kind = Kind::Mark;
            }
            let body = input.blob();
            let whole = dormouse_crypt::fuzzing::assemble(header, body);
            let kept = dormouse_crypt::record::check(&whole).is_ok();
            log.append_any(&header, body, 1).is_ok() && kept
        }
        6 => {
            let writer = w.writers[input.below(2)].writer_id();
            let (volume, generation) = (volume(input), input.number());
            let value = Generation { volume, generation, writer, instance: InstanceId([1; 16]) };
            plain(Kind::Generation, WriterId::ZERO, &value.encode())
        }
        7 => plain(Kind::Point, one, &point(input, known).encode()),
        8 => {
            let prefix = delta::Prefix {
                volume: volume(input),
                seq: input.number(),
                size: input.number(),
                attempt: input.number(),
                after: [input.u8(); 8],
            };
            plain(Kind::Delta, one, &delta::encode(&prefix, input.blob()))
        }
        9 => {
            let base = RecordId([input.u8(); 16]);
            let (index, depth) = (input.number(), input.u8());
            plain(Kind::Page, WriterId::ZERO, &page_body(index, base, depth, input.blob()))
        }
        10 => {
            let place = Place { level: input.u8(), index: input.number() };
            let mut children = [(Hash::ZERO, RecordId::ZERO); 64];
            for _ in 0..input.below(4) {
                children[input.below(64)] = (Hash([input.u8(); 32]), RecordId([input.u8(); 16]));
            }
            plain(Kind::Node, WriterId::ZERO, &node_body(place, &children))
        }
        11 => {
            let chunk = w.chunks[input.below(3)].id;
            let key = w.key.id;
            let value = Distrust { vault: w.vault, chunk, maker: one, key, by: one };
            plain(Kind::Distrust, one, &w.writers[0].sign_body(&value))
        }
        _ => {
            let name = ["disk", "a", "b", "é"][input.below(4)];
            let value = w.volume_named(volume(input), name);
            plain(Kind::Volume, one, &w.writers[0].sign_body(&value))
        }
    }
}

fn volume(input: &mut Input<'_>) -> VolumeId {
    match input.u8() {
        n @ 0..16 => VolumeId([n; 16]),
        _ => VOLUME,
    }
}

/// A point: one of those that are known with a field altered, or out of fields.
fn point(input: &mut Input<'_>, known: &[Vec<u8>]) -> StoredPoint {
    let all = known.iter().filter(|r| r[4] == Kind::Point as u8);
    let all: Vec<StoredPoint> = all.map(|r| StoredPoint::decode(&r[112..]).unwrap()).collect();
    let mut stored = all[input.below(all.len())];
    let point = &mut stored.signed.point;
    match input.u8() % 8 {
        0 => *point = fields_of_point(input),
        1 => point.seq = input.number(),
        2 => point.generation = input.number(),
        3 => point.size = input.number(),
        4 => stored.top_record = RecordId([input.u8(); 16]),
        5 => stored.receipt = input.number(),
        6 => {
            // The next one, as it should be.
            let last = all.last().unwrap().point();
            *point = world().point(Some(last), input.number(), last.root);
        }
        _ => {}
    }
    stored.signed.signature = Signature([1; 64]);
    stored
}

/// Damages files; whether it did.
fn damage(dir: &MemDir, input: &mut Input<'_>) -> bool {
    let before = segments(dir);
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        let all = segments(dir);
        let Some((name, bytes)) = all.get(input.below(all.len())) else { break };
        let mut bytes = bytes.clone();
        let at = usize::from(input.u16()) % bytes.len().max(1);
        match input.u8() % 6 {
            0 if !bytes.is_empty() => bytes[at] ^= input.u8(),
            1 => bytes.truncate(at),
            2 => bytes.truncate(bytes.len() - (at % 200).min(bytes.len())),
            3 => bytes[at..].iter_mut().take(64).for_each(|b| *b = 0),
            4 => bytes.extend_from_slice(input.blob()),
            _ => {
                let (other, content) = &all[input.below(all.len())];
                dir.set(other, bytes.clone());
                bytes.clone_from(content);
            }
        }
        dir.set(name, bytes);
    }
    before != segments(dir)
}

fn log_seeds() -> Vec<Vec<u8>> {
    let mut out = vec![
        vec![0, 255],
        vec![1, 255],
        vec![1, 4],
        vec![0, 9, 0, 1, 3, 6, 200, 5, 0, 7, 0, 6, 9, 0],
        vec![0, 255, 6, 200, 254, 0, 13, 0, 0, 1, 0, 1],
        vec![0, 255, 0, 13, 0, 40, 3, 0, 1],
        vec![1, 255, 0, 13, 1, 40, 1, 1, 0, 20, 0, 5, 1],
        vec![1, 255, 0, 13, 1, 40, 1, 5, 2],
        vec![0, 255, 13, 0, 10, 0, 2],
    ];
    for op in 0..13 {
        out.push([&[0, 9, op][..], &[3; 40]].concat());
        out.push([&[1, 255, op][..], &[0; 12], &[op, 1, 13, 0, 200, 2, 0, 8]].concat());
    }
    out
}
