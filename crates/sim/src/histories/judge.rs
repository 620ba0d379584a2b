//! Whether the store holds what it must, and nothing else.
//!
//! Reads the files by itself: from the text of docs/format.md and the decoders of records, not
//! by the store's own walk, index or marks.

use std::collections::{BTreeSet, HashMap, HashSet};

use dormouse_crypt::record;
use dormouse_format::delta;
use dormouse_format::extents::{Content, Runs};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::{HEADER_LEN, Header, Kind};
use dormouse_format::segment;
use dormouse_format::{ChunkId, RecordId, Seq, VaultId, VolumeId, WriterId};
use dormouse_store::fuzzing;
use dormouse_store::{VaultStore, scrub};

use super::model::{Map, Point, Volume};
use crate::registry::Place;
use crate::storage::{Image, SEGMENTS, Storage};

/// What is wrong, if anything is.
pub type Verdict = Result<(), String>;

/// Turns an error into words.
pub fn said<T, E: ToString>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {}", e.to_string()))
}

/// The listed points are those that are kept.
pub fn listed(store: &VaultStore, volume: &Volume) -> Verdict {
    let points = said("listing points", store.points(&volume.id, 0, 10_000))?;
    let seqs: Vec<Seq> = points.iter().map(|p| p.point().seq).collect();
    let wanted: Vec<Seq> = volume.kept().map(|(seq, _)| seq).collect();
    if seqs == wanted {
        return Ok(());
    }
    Err(format!("volume {} lists {seqs:?}, and has {wanted:?}", volume.name))
}

/// A point shows what it must, and every chunk that it names can be read.
pub fn whole(store: &VaultStore, volume: &Volume, seq: Seq, writer: &WriterId) -> Verdict {
    let what = || format!("point {}@{seq}", volume.name);
    let wanted = &volume.points[&seq];
    let stored = said(&what(), store.point(&volume.id, seq))?;
    let base = said(&what(), store.point(&volume.id, stored.point().checkpoint))?;
    let mut found = Map::new();
    for page in 0..2 {
        let runs = store.leaves(&volume.id, base.point().seq, page, u64::MAX, true);
        lay(&mut found, &said(&what(), runs)?)?;
    }
    let mut parts = Vec::new();
    said(&what(), store.each_delta(&volume.id, seq, &mut |record| parts.push(record)))?;
    for record in parts {
        let (_, runs) = said(&what(), delta::decode(&record[HEADER_LEN..]))?;
        lay(&mut found, runs)?;
    }
    if found != *wanted.map {
        return Err(format!("{} shows something else", what()));
    }
    let chunks: BTreeSet<ChunkId> = found.values().map(|slot| slot.1).collect();
    for chunk in chunks {
        readable(store, &chunk, writer).map_err(|e| format!("{}: {e}", what()))?;
    }
    Ok(())
}

fn lay(map: &mut Map, runs: &[u8]) -> Verdict {
    for run in Runs::new(runs) {
        let run = said("runs", run)?;
        match run.content {
            Content::Data { chunk, first, tags } => {
                for (i, tag) in tags.iter().enumerate() {
                    map.insert(run.start + i as u64, (tag, chunk, first + i as u8));
                }
            }
            Content::Zero => map.retain(|block, _| !(run.start..run.end()).contains(block)),
            Content::Tags(_) => return Err("tags without chunks".into()),
        }
    }
    Ok(())
}

/// A chunk is there and holds.
pub fn readable(store: &VaultStore, chunk: &ChunkId, writer: &WriterId) -> Verdict {
    match store.chunk(chunk, writer, 0) {
        Ok(Some(record)) => {
            let (header, _) = said("chunk", record::check(&record))?;
            if header.id == *chunk { Ok(()) } else { Err(format!("another chunk than {chunk}")) }
        }
        Ok(None) => Err(format!("chunk {chunk} is not there")),
        Err(e) => Err(format!("chunk {chunk}: {e}")),
    }
}

/// A scrub finds nothing.
pub fn clean(storage: &Storage, vault: VaultId) -> Verdict {
    let mut first = None;
    let dir = storage.segments();
    let done = scrub::scrub(&*dir, vault, false, &mut |finding| {
        first.get_or_insert(format!("scrub: {finding:?}"));
    });
    said("scrub", done)?;
    first.map_or(Ok(()), Err)
}

/// A record of the log.
struct Found {
    header: Header,
    body: Vec<u8>,
    place: (String, usize),
}

/// Every record that lies in a segment.
fn records(image: &Image) -> Result<Vec<Found>, String> {
    let mut out = Vec::new();
    for name in image.names(SEGMENTS).into_iter().filter(|name| name.ends_with(".seg")) {
        let bytes = image.content(SEGMENTS, &name).unwrap_or_default();
        let mut at = segment::HEADER_LEN;
        while bytes.len() > at + segment::TAIL_LEN {
            let head = bytes[at..].first_chunk().ok_or("a record ends too early")?;
            let header = said(&name, record::check_header(head))?;
            let end = at + header.record_len();
            let body = bytes.get(at + HEADER_LEN..end).ok_or("a record ends too early")?.to_vec();
            out.push(Found { header, body, place: (name.clone(), at) });
            at = end + segment::TRAILER_LEN;
        }
    }
    Ok(out)
}

/// Where each record of the log lies: segment, first byte, end.
pub fn places(image: &Image) -> Result<Vec<(String, usize, usize)>, String> {
    let of = |found: Found| {
        let (name, at) = found.place;
        (name, at, at + found.header.record_len())
    };
    Ok(records(image)?.into_iter().map(of).collect())
}

/// What the volumes need, found out from their points' records.
struct Needed<'a> {
    maps: HashMap<RecordId, &'a Found>,
    ids: HashSet<RecordId>,
}

impl Needed<'_> {
    fn below(&mut self, level: u8, id: &RecordId) -> Verdict {
        if id.is_zero() || !self.ids.insert(*id) {
            return Ok(());
        }
        let found = self.maps.get(id).ok_or_else(|| format!("map record {id} is not there"))?;
        if level > 1 {
            let (_, children) = said("node", fuzzing::node(&found.body))?;
            return children.iter().try_for_each(|(_, child)| self.below(level - 1, child));
        }
        let (_, base, ..) = said("page", fuzzing::page(&found.body))?;
        if base.is_zero() { Ok(()) } else { self.below(1, &base) }
    }
}

/// Nothing lies in the log that no kept point needs, and nothing twice.
pub fn spare(image: &Image, volumes: &[Volume]) -> Verdict {
    let all = records(image)?;
    let by_id: HashMap<VolumeId, &Volume> = volumes.iter().map(|v| (v.id, v)).collect();
    let needed_seqs: HashMap<VolumeId, BTreeSet<Seq>> =
        volumes.iter().map(|v| (v.id, v.needed())).collect();
    let is_needed = |volume: &VolumeId, seq: Seq| {
        needed_seqs.get(volume).is_some_and(|seqs| seqs.contains(&seq))
    };
    let maps = all.iter().filter(|f| matches!(f.header.kind, Kind::Page | Kind::Node));
    let maps = maps.map(|f| (f.header.id, f)).collect();
    let mut needed = Needed { maps, ids: HashSet::new() };
    let mut chunks: HashSet<ChunkId> = HashSet::new();
    let mut seen = HashMap::new();
    let wrong = |found: &Found, why: &str| {
        let (name, at) = &found.place;
        Err(format!("{name}, byte {at}: a {} {why}", found.header.kind.name()))
    };
    for found in &all {
        let body = &found.body;
        let known = match found.header.kind {
            Kind::Point => {
                let stored = said("point", StoredPoint::decode(body))?;
                let p = stored.point();
                if is_needed(&p.volume, p.seq) && p.is_checkpoint() {
                    let level = dormouse_format::geometry::top_level(p.size);
                    needed.below(level, &stored.top_record)?;
                }
                is_needed(&p.volume, p.seq)
            }
            Kind::Delta => {
                let (prefix, runs) = said("delta", delta::decode(body))?;
                let of = |p: &Point| p.parts.iter().any(|(_, h)| delta::short(h) == prefix.after);
                let volume = by_id.get(&prefix.volume);
                let point = volume.and_then(|v| v.points.get(&prefix.seq));
                let is = is_needed(&prefix.volume, prefix.seq) && point.is_some_and(of);
                for run in Runs::new(runs).flatten().filter(|_| is) {
                    if let Content::Data { chunk, .. } = run.content {
                        chunks.insert(chunk);
                    }
                }
                is
            }
            _ => true,
        };
        if !known {
            return wrong(found, "that no kept point needs is still there");
        }
        let unique = !matches!(found.header.kind, Kind::Seal | Kind::Mark);
        // Of a delta another try may be alike in all but its number.
        let key = match found.header.kind {
            Kind::Delta => {
                body[..16].iter().chain(&body[16..32]).chain(&body[40..48]).copied().collect()
            }
            _ => found.header.check.to_vec(),
        };
        if let Some((name, at)) = seen.insert((found.header.kind, key), &found.place)
            && unique
        {
            return wrong(found, &format!("lies there twice: also in {name}, byte {at}"));
        }
    }
    for volume in volumes {
        for (_, point) in volume.kept() {
            chunks.extend(point.map.values().map(|slot| slot.1));
        }
        for seq in volume.needed() {
            let point = &volume.points[&seq];
            if point.base == seq {
                chunks.extend(point.map.values().map(|slot| slot.1));
            }
        }
    }
    for found in &all {
        let there = match found.header.kind {
            Kind::Chunk => chunks.contains(&found.header.id),
            Kind::Page | Kind::Node => needed.ids.contains(&found.header.id),
            _ => true,
        };
        if !there {
            return wrong(found, "that nothing refers to is still there");
        }
    }
    Ok(())
}
