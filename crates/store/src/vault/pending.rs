//! A point being made: begin, extents, commit.
//!
//! Invariant: until its Point record is durable nothing of it is seen. A try that
//! ends otherwise leaves records that nothing refers to.

use std::collections::BTreeMap;

use dormouse_crypt::{hash, keys};
use dormouse_format::delta::{self, Prefix};
use dormouse_format::extents::{Content, Runs};
use dormouse_format::geometry::blocks;
use dormouse_format::limits::{
    CHUNK_BLOCKS_MAX, DELTAS_BYTES_MAX, EXTENTS_MAX, MISSING_MAX, VOLUME_SIZE_MAX,
};
use dormouse_format::message::Base;
use dormouse_format::point::{Point, SignedPoint, StoredPoint};
use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_format::seeded::seeded;
use dormouse_format::{Block, ChunkId, Hash, RecordId, Seq, TimeNs, VolumeId, WriterId};

use super::pins::Pins;
use super::terms::Room;
use super::{Commit, VaultStore};
use crate::error::{Error, Result};
use crate::locks::{lock, read, write};
use crate::log::RecordRef;
use crate::map::build::{Building, Sink, Site, tags_refused};
use crate::map::overlay::Overlay;
use crate::map::{Link, Tree};
use crate::state::Volume;
use crate::state::history::{History, LOST};

/// A point being made, by one connection.
#[derive(Debug)]
pub struct Pending {
    volume: VolumeId,
    generation: u64,
    writer: WriterId,
    size: u64,
    /// Hash of the head that it follows.
    prev: Hash,
    seq: Seq,
    missing: BTreeMap<ChunkId, u8>,
    seen: Option<(ChunkId, u8)>,
    work: Work,
    /// What it names stays until it is committed or dropped.
    pins: Pins,
}

#[derive(Debug)]
enum Work {
    Delta(Delta),
    Map { building: Box<Building>, end: Block },
}

#[derive(Debug)]
struct Delta {
    running: Hash,
    attempt: u64,
    parts: Vec<RecordRef>,
    bytes: u64,
}

/// Appends map records.
struct Append<'a> {
    store: &'a VaultStore,
    now: TimeNs,
}

impl Sink for Append<'_> {
    fn append(&self, kind: Kind, body: &[u8]) -> Result<RecordId> {
        self.store.room(Room::Ending, HEADER_LEN + body.len())?;
        self.store.append_plain(kind, WriterId::ZERO, body, self.now)?;
        Ok(hash::plain_id(kind as u8, body))
    }
}

fn fenced(history: &History, generation: u64) -> Result<WriterId> {
    match history.holder {
        Some((writer, _)) if history.generation == generation => Ok(writer),
        _ => Err(Error::Fenced),
    }
}

impl VaultStore {
    /// Begins a point that follows the head.
    pub fn begin(
        &self,
        volume: &VolumeId,
        generation: u64,
        base: Base,
        size: u64,
    ) -> Result<Pending> {
        self.log.usable()?;
        if size > VOLUME_SIZE_MAX {
            return Err(Error::conflict("the size is above the largest volume"));
        }
        let volume = self.volume(volume)?;
        let pins = self.pins();
        pins.begin(&self.log);
        let (writer, prev, seq, running, bytes, checkpoint) = {
            let h = read(&volume.history);
            let writer = fenced(&h, generation)?;
            (writer, h.prev(), h.seq() + 1, h.running(), h.delta_bytes, h.checkpoint)
        };
        let tree = checkpoint.as_ref().map_or(Tree::EMPTY, Tree::of);
        let work = match base {
            Base::Delta if checkpoint.is_none() => {
                return Err(Error::conflict("a volume's first point must be a checkpoint"));
            }
            Base::Delta => {
                let (attempt, parts) = (self.log.attempt(), Vec::new());
                let delta = Delta { running, attempt, parts, bytes };
                delta.fits(0)?;
                Work::Delta(delta)
            }
            Base::Checkpoint => Self::map(tree, Overlay::new(tree.size), size),
            Base::Head => match (&volume.value.origin, seq) {
                // A fork begins with the state that it is a fork of.
                (Some(origin), 1) => {
                    let of = self.volume(&origin.volume)?;
                    let point = *self.point(&origin.volume, origin.seq)?.point();
                    let tree = Tree::of(&self.point(&origin.volume, point.checkpoint)?);
                    let overlay = self.overlay(&of, &tree, point.checkpoint, origin.seq + 1)?;
                    Self::map(tree, overlay, size)
                }
                _ => {
                    let from = checkpoint.map_or(seq - 1, |c| c.point().seq);
                    Self::map(tree, self.overlay(&volume, &tree, from, seq)?, size)
                }
            },
        };
        let (volume, missing) = (volume.value.id, BTreeMap::new());
        let seen = None;
        Ok(Pending { volume, generation, writer, size, prev, seq, missing, seen, work, pins })
    }

    fn map(tree: Tree, overlay: Overlay, size: u64) -> Work {
        Work::Map { building: Box::new(Building::new(tree, overlay, size)), end: 0 }
    }

    /// All deltas between a checkpoint and point `seq`, over the checkpoint's map.
    fn overlay(&self, volume: &Volume, tree: &Tree, checkpoint: Seq, seq: Seq) -> Result<Overlay> {
        self.settled(|| {
            let mut overlay = Overlay::new(tree.size);
            let parts = read(&volume.history).parts(checkpoint, seq - 1).to_vec();
            for (_, at) in parts {
                if at == LOST {
                    let why = "deltas since the last checkpoint are damaged; make a checkpoint of a \
                               full scan";
                    return Err(Error::conflict(why));
                }
                let record = self.read(&at)?;
                let (prefix, runs) = delta::decode(&record[HEADER_LEN..])?;
                // Without a part a point has the size of the one before it.
                overlay.resize(prefix.size);
                overlay.add(runs)?;
            }
            Ok(overlay)
        })
    }

    /// Adds a part of the point's changes. For a checkpoint all parts ascend. For a
    /// delta point each part counts in the running hash, an empty one too.
    pub fn extents(&self, pending: &mut Pending, runs: &[u8], now: TimeNs) -> Result<()> {
        self.log.usable()?;
        fenced(&read(&self.volume(&pending.volume)?.history), pending.generation)?;
        if runs.len() > EXTENTS_MAX {
            return Err(Error::bad("the part of extents is too long"));
        }
        self.check_runs(pending, runs)?;
        match &mut pending.work {
            Work::Delta(d) => {
                d.fits(runs.len())?;
                let (seq, size) = (pending.seq, pending.size);
                let after = hash::delta(&d.running, size, runs);
                let (volume, attempt) = (pending.volume, d.attempt);
                let prefix = Prefix { volume, seq, size, attempt, after: delta::short(&after) };
                let body = delta::encode(&prefix, runs);
                self.room(Room::Ending, HEADER_LEN + body.len())?;
                let (at, _) = self.append_plain(Kind::Delta, pending.writer, &body, now)?;
                d.bytes += at.record_len() as u64;
                d.running = after;
                d.parts.push(at);
            }
            Work::Map { building, end } => {
                let sink = Append { store: self, now };
                let site = Site { reading: self.reading(), sink: &sink };
                for run in Runs::new(runs) {
                    let run = run?;
                    if run.start < *end {
                        return Err(Error::conflict("the parts of a checkpoint must ascend"));
                    }
                    *end = run.end();
                    building.run(site, &run)?;
                }
            }
        }
        Ok(())
    }

    /// Checks every run, and that the chunks are there; missing ones are noted.
    fn check_runs(&self, pending: &mut Pending, runs: &[u8]) -> Result<()> {
        let limit = blocks(pending.size);
        for run in Runs::new(runs) {
            let run = run.map_err(|e| Error::bad(e.to_string()))?;
            let (chunk, needed) = match run.content {
                Content::Zero => continue,
                Content::Tags(_) => return Err(tags_refused()),
                Content::Data { chunk, first, .. } => (chunk, first + run.count as u8),
            };
            if run.end() > limit {
                return Err(Error::bad("extents lie beyond the end of the volume"));
            }
            debug_assert!(usize::from(needed) <= CHUNK_BLOCKS_MAX);
            if pending.seen.is_some_and(|(c, n)| c == chunk && n >= needed) {
                continue;
            }
            pending.seen = Some((chunk, needed));
            let full = pending.missing.len() >= MISSING_MAX;
            if !full && !self.has(&pending.writer, &chunk, needed, Some(&pending.pins))? {
                let noted = pending.missing.entry(chunk).or_default();
                *noted = needed.max(*noted);
            }
        }
        Ok(())
    }

    /// Ends a point: durable and visible on return, or nothing is.
    pub fn commit(&self, pending: Pending, point: &SignedPoint, now: TimeNs) -> Result<Commit> {
        self.log.usable()?;
        let volume = self.volume(&pending.volume)?;
        let _writing = lock(&volume.writing);
        self.check_point(&volume, &pending, point)?;
        let mut missing = Vec::new();
        for (chunk, needed) in &pending.missing {
            if !self.has(&pending.writer, chunk, *needed, Some(&pending.pins))? {
                missing.push(*chunk);
            }
        }
        if !missing.is_empty() && !seeded("missing-unchecked") {
            return Ok(Commit::Missing(missing));
        }
        let (top, parts) = self.finish(&volume, pending.work, &point.point, now)?;
        let last = read(&volume.history).head.map_or(0, |h| h.receipt);
        let receipt = if seeded("receipt-goes-back") { now } else { now.max(last) };
        let (top, top_record) = (top.hash, top.record);
        let stored = StoredPoint { signed: *point, receipt, top, top_record };
        let (writer, body) = (point.point.writer, stored.encode());
        self.room(Room::Ending, HEADER_LEN + body.len())?;
        let (at, end) = self.append_plain(Kind::Point, writer, &body, now)?;
        let early = seeded("visible-before-durable");
        if early {
            write(&volume.history).add(stored, at, &parts);
        }
        if !seeded("commit-unsynced") {
            self.log.sync_to(end)?;
        }
        if !early {
            write(&volume.history).add(stored, at, &parts);
        }
        Ok(Commit::Done(stored))
    }

    /// All that can be checked without the map.
    fn check_point(&self, volume: &Volume, pending: &Pending, signed: &SignedPoint) -> Result<()> {
        let p = &signed.point;
        Point::decode(&p.encode()).map_err(|e| Error::bad(e.to_string()))?;
        let history = read(&volume.history);
        let raised = seeded("fence-open").then_some(history.generation);
        let holder = fenced(&history, raised.unwrap_or(pending.generation))?;
        let conflict = |why: &str| Err(Error::conflict(why));
        if p.vault != self.vault || p.volume != pending.volume {
            return conflict("it is of another vault or volume");
        }
        if p.writer != holder || p.generation != pending.generation {
            return conflict("it is of another writer or generation than the one that holds");
        }
        if pending.prev != history.prev() || p.seq != pending.seq || p.prev != pending.prev {
            return conflict("it does not follow the newest point");
        }
        if p.size != pending.size {
            return conflict("its size is not the one that it was begun with");
        }
        let map = matches!(pending.work, Work::Map { .. });
        if map != p.is_checkpoint() {
            return conflict("a checkpoint was begun as a delta, or the other way round");
        }
        drop(history);
        if seeded("point-unsigned") {
            return Ok(());
        }
        keys::verify_point(&self.writer_key(&p.writer)?, signed)
            .map_err(|e| Error::bad(e.to_string()))
    }

    /// Ends the work; the top of the map, or the parts of the deltas.
    fn finish(
        &self,
        volume: &Volume,
        work: Work,
        p: &Point,
        now: TimeNs,
    ) -> Result<(Link, Vec<RecordRef>)> {
        match work {
            Work::Delta(d) => {
                let checkpoint = read(&volume.history).checkpoint;
                let of = checkpoint.map(|c| (c.point().seq, c.point().root));
                if of != Some((p.checkpoint, p.root)) {
                    return Err(Error::conflict("it names another checkpoint than the newest"));
                }
                let size = read(&volume.history).head.map(|h| h.point().size);
                if d.parts.is_empty() && size != Some(p.size) && !seeded("resize-without-part") {
                    // Readers learn sizes from the deltas: without one, blocks that a
                    // shrink took away would come back when the volume grows again.
                    let why = "a delta point that changes the size needs a part of extents, if \
                               only an empty one";
                    return Err(Error::conflict(why));
                }
                if p.deltas != d.running {
                    return Err(Error::conflict("its hash of deltas is not that of the extents"));
                }
                Ok((Link::ZERO, d.parts))
            }
            Work::Map { building, .. } => {
                let sink = Append { store: self, now };
                let site = Site { reading: self.reading(), sink: &sink };
                let tree = building.finish(site)?;
                let root = hash::content_root(&p.volume, p.size, tree.level, &tree.top.hash);
                if root != p.root && !seeded("root-unchecked") {
                    let why = "its content root is not that of the map here; scan again";
                    return Err(Error::conflict(why));
                }
                Ok((tree.top, Vec::new()))
            }
        }
    }
}

impl Delta {
    /// Whether as many bytes of runs more may lie between checkpoint and head.
    fn fits(&self, more: usize) -> Result<()> {
        let more = (HEADER_LEN + delta::PREFIX_LEN + more) as u64;
        if self.bytes + more > DELTAS_BYTES_MAX {
            return Err(Error::conflict(
                "checkpoint first: the deltas since the last are at their limit",
            ));
        }
        Ok(())
    }
}
