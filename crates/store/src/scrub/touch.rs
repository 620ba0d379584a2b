//! Which volumes and points a damage touches.
//!
//! A point is touched by a damage that lies in its own record, in a delta or a
//! chunk that a delta since its checkpoint names, or in the map of its
//! checkpoint: a node, a page, or a chunk that a page names. A damaged chunk of
//! which a good copy lies elsewhere touches nothing. Where a delta names a damaged
//! chunk and a later one replaces those blocks, the later points are still listed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use dormouse_format::delta;
use dormouse_format::extents::{Content, Runs};
use dormouse_format::geometry::{Place, top_level};
use dormouse_format::limits::FANOUT;
use dormouse_format::point::StoredPoint;
use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_format::vault::{Signed, Volume};
use dormouse_format::{RecordId, Seq, VaultId, VolumeId};

use super::{Fault, Touch, raw_header, read_all};
use crate::dir::Dir;
use crate::error::Result;
use crate::log::walk::{self, Walk};
use crate::log::{RecordRef, numbers, read_range};
use crate::map::{Cache, Link, Reading, Source};

/// Numbers of faults.
type Faults = Rc<BTreeSet<usize>>;

/// What the second pass gathers.
#[derive(Default)]
struct Gathered {
    names: HashMap<VolumeId, String>,
    points: BTreeMap<(VolumeId, Seq), Option<StoredPoint>>,
    deltas: BTreeMap<(VolumeId, Seq), BTreeSet<usize>>,
    maps: HashMap<RecordId, Vec<RecordRef>>,
    /// Damaged records by id.
    faults: HashMap<RecordId, BTreeSet<usize>>,
    /// Damaged points.
    broken: BTreeMap<(VolumeId, Seq), usize>,
}

/// What each fault touches.
pub(super) fn touches(dir: &dyn Dir, vault: &VaultId, faults: &[Fault]) -> Vec<Vec<Touch>> {
    let mut gathered = Gathered::default();
    let good = gather(dir, vault, faults, &mut gathered);
    let gone = |i: &usize| faults[*i].id.is_some_and(|id| good.contains(&id));
    gathered.faults.retain(|id, _| !good.contains(id));
    gathered.deltas.values_mut().for_each(|set| set.retain(|i| !gone(i)));
    resolve(dir, &gathered, faults.len())
}

/// Good chunks and map records that have the id of a damaged one.
fn gather(
    dir: &dyn Dir,
    vault: &VaultId,
    faults: &[Fault],
    out: &mut Gathered,
) -> HashSet<RecordId> {
    for (i, fault) in faults.iter().enumerate() {
        if let Some(id) = fault.id {
            out.faults.entry(id).or_default().insert(i);
        }
    }
    let mut good = HashSet::new();
    for number in numbers(dir).unwrap_or_default() {
        let Ok(bytes) = read_all(dir, number) else { continue };
        let header = walk::header(&bytes, number, vault).ok().or_else(|| raw_header(&bytes));
        let Some(header) = header else { continue };
        let mut walk = Walk::new(&bytes, &header);
        loop {
            match walk.step() {
                Ok(None) => break,
                Ok(Some(entry)) => {
                    if out.faults.contains_key(&entry.header.id) {
                        good.insert(entry.header.id);
                    }
                    let body_len = entry.header.body_len;
                    let at = RecordRef { segment: number as u32, offset: entry.offset, body_len };
                    out.entry(entry.header.kind, entry.header.id, entry.body, at);
                    if entry.header.kind == Kind::Seal {
                        break;
                    }
                }
                Err(_) => {
                    let here = |f: &Fault| f.number == number && f.offset == walk.at as u64;
                    if let Some(i) = faults.iter().position(here) {
                        out.damaged(i, faults[i].kind, &bytes[walk.at..]);
                    }
                    if !walk.resume() {
                        break;
                    }
                }
            }
        }
    }
    good
}

impl Gathered {
    fn entry(&mut self, kind: Kind, id: RecordId, body: &[u8], at: RecordRef) {
        match kind {
            Kind::Volume => {
                if let Ok((value, ..)) = Volume::decode(body) {
                    self.names.insert(value.id, value.name);
                }
            }
            Kind::Point => {
                if let Ok(point) = StoredPoint::decode(body) {
                    let p = point.point();
                    self.points.insert((p.volume, p.seq), Some(point));
                }
            }
            Kind::Page | Kind::Node => self.maps.entry(id).or_default().push(at),
            Kind::Delta => {
                if let Ok((prefix, runs)) = delta::decode(body) {
                    let named = self.named(runs);
                    let all = self.deltas.entry((prefix.volume, prefix.seq)).or_default();
                    all.extend(named);
                }
            }
            _ => {}
        }
    }

    /// A damaged entry: what its bytes seem to say of where it belongs.
    fn damaged(&mut self, fault: usize, kind: Option<Kind>, bytes: &[u8]) {
        let body = bytes.get(HEADER_LEN..).unwrap_or_default();
        match kind {
            Some(Kind::Point) => {
                let len = dormouse_format::point::STORED_LEN;
                let point = body.get(..len).and_then(|b| StoredPoint::decode(b).ok());
                if let Some(point) = point {
                    let key = (point.point().volume, point.point().seq);
                    self.points.entry(key).or_insert(Some(point));
                    self.broken.insert(key, fault);
                }
            }
            Some(Kind::Delta) => {
                if let Ok((prefix, _)) = delta::decode(body) {
                    self.deltas.entry((prefix.volume, prefix.seq)).or_default().insert(fault);
                }
            }
            _ => {}
        }
    }

    /// Faults of the chunks that these runs name.
    fn named(&self, runs: &[u8]) -> BTreeSet<usize> {
        let mut out = BTreeSet::new();
        for run in Runs::new(runs).flatten() {
            if let Content::Data { chunk, .. } = run.content {
                out.extend(self.faults.get(&chunk).into_iter().flatten());
            }
        }
        out
    }
}

/// Reads map records by the table that the pass made.
struct Table<'a> {
    dir: &'a dyn Dir,
    maps: &'a HashMap<RecordId, Vec<RecordRef>>,
}

impl Source for Table<'_> {
    fn fetch(&self, kind: Kind, id: &RecordId) -> Result<(RecordRef, Vec<u8>)> {
        let at = self.maps.get(id).and_then(|refs| refs.last()).copied();
        let at = at.ok_or_else(|| crate::Error::NotFound { what: kind.name().to_owned() })?;
        let file = self
            .dir
            .open(&crate::log::name(at.segment()))
            .map_err(|e| crate::Error::io("opening a segment", e))?;
        Ok((at, read_range(&*file, at.segment(), at.offset(), at.record_len())?))
    }
}

struct Walker<'a> {
    reading: Reading<'a>,
    gathered: &'a Gathered,
    seen: HashMap<RecordId, Faults>,
}

impl Walker<'_> {
    /// Faults in the map below a node.
    fn below(&mut self, place: Place, link: &Link) -> Faults {
        if let Some(known) = self.seen.get(&link.record) {
            return Rc::clone(known);
        }
        let mut all = BTreeSet::new();
        if let Some(own) = self.gathered.faults.get(&link.record) {
            all.extend(own);
        } else if place.level == 1 {
            self.page(place.index, link, &mut all);
        } else if let Ok(children) = self.reading.children(place, link) {
            for slot in (0..FANOUT).filter(|s| !children[*s as usize].is_zero()) {
                all.extend(self.below(place.child(slot), &children[slot as usize]).iter());
            }
        }
        let all = Rc::new(all);
        self.seen.insert(link.record, Rc::clone(&all));
        all
    }

    fn page(&self, index: u64, link: &Link, all: &mut BTreeSet<usize>) {
        match self.reading.page(index, link) {
            Ok(loaded) => {
                for (id, faults) in &self.gathered.faults {
                    if loaded.page.names(|chunk| chunk == id) {
                        all.extend(faults);
                    }
                }
            }
            // One of the records that the page stands on is damaged.
            Err(_) => {
                let mut next = link.record;
                for _ in 0..=crate::map::page::DEPTH_MAX {
                    all.extend(self.gathered.faults.get(&next).into_iter().flatten());
                    let Ok((_, record)) = self.reading.source.fetch(Kind::Page, &next) else {
                        break;
                    };
                    let body = crate::map::page::Body::decode(&record[HEADER_LEN..]);
                    let Ok(body) = body else { break };
                    next = body.base;
                }
            }
        }
    }
}

fn resolve(dir: &dyn Dir, gathered: &Gathered, faults: usize) -> Vec<Vec<Touch>> {
    let table = Table { dir, maps: &gathered.maps };
    let cache = Cache::default();
    let reading = Reading { source: &table, cache: &cache };
    let mut walker = Walker { reading, gathered, seen: HashMap::new() };
    let mut touched = vec![BTreeMap::<VolumeId, Vec<Seq>>::new(); faults];
    // Faults of the checkpoint, and of the deltas since: keys go volume by volume.
    let mut since: (VolumeId, BTreeSet<usize>) = (VolumeId::ZERO, BTreeSet::new());
    for ((volume, seq), point) in &gathered.points {
        if since.0 != *volume {
            since = (*volume, BTreeSet::new());
        }
        let Some(point) = point else { continue };
        if point.point().is_checkpoint() {
            since.1.clear();
            let top = Link { hash: point.top, record: point.top_record };
            if !top.is_zero() {
                let place = Place { level: top_level(point.point().size), index: 0 };
                since.1.extend(walker.below(place, &top).iter());
            }
        }
        since.1.extend(gathered.deltas.get(&(*volume, *seq)).into_iter().flatten());
        let own = gathered.broken.get(&(*volume, *seq));
        for fault in since.1.iter().chain(own) {
            touched[*fault].entry(*volume).or_default().push(*seq);
        }
    }
    let named = |(volume, mut seqs): (VolumeId, Vec<Seq>)| {
        seqs.dedup();
        let name = gathered.names.get(&volume).cloned();
        Touch { volume: name.unwrap_or_else(|| volume.to_string()), seqs }
    };
    touched.into_iter().map(|t| t.into_iter().map(named).collect()).collect()
}
