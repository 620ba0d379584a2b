//! The steps of writers: ask, put, extents, commit.
//!
//! Invariant: what was promised to a connection is there when it commits; who asked for no promise
//! may be refused, for what really is not there.

use std::collections::BTreeSet;
use std::sync::Arc;

use dormouse_crypt::hash;
use dormouse_format::geometry::top_level;
use dormouse_format::point::{Grade, Point as Signable};
use dormouse_format::{ChunkId, Hash, InstanceId, Seq};
use dormouse_store::{Base, Commit};

use super::{Session, Step, Stop, UnderWay, World};
use crate::histories::model::{Change, Map, Point, SIZE, applied, chunk_of, root, runs};

impl World {
    /// One step of one of at most two writers.
    pub(super) fn session(&mut self) -> Step {
        let i = self.random.below(2) as usize;
        if i >= self.sessions.len() {
            return self.begin();
        }
        if self.random.below(40) == 0 {
            self.tell(|| "a connection ends".into());
            self.sessions.swap_remove(i);
            return Ok(());
        }
        let mut session = self.sessions.swap_remove(i);
        let ended = match session.stage {
            0 => self.have(&mut session)?,
            1 => self.put(&mut session)?,
            2 => self.extents(&mut session)?,
            _ => self.commit(&mut session)?,
        };
        session.stage += 1;
        if !ended {
            self.sessions.push(session);
        }
        Ok(())
    }

    fn begin(&mut self) -> Step {
        let volume = self.random.below(self.volumes.len() as u64) as usize;
        if self.sessions.iter().any(|s| s.volume == volume) {
            return Ok(());
        }
        let v = &self.volumes[volume];
        let base = match (v.head(), self.random.below(4)) {
            (None, _) if v.origin.is_some() => Base::Head,
            (None, _) => Base::Checkpoint,
            (_, 0) => Base::Checkpoint,
            (_, 1) => Base::Head,
            _ => Base::Delta,
        };
        let id = v.id;
        let writer = self.random.below(2) as usize;
        let instance = InstanceId([1; 16]);
        let store = self.store();
        let opened = store.open_write(&id, self.writer(writer), instance, true, self.clock);
        let generation = self.went("opening a volume", opened)?;
        let pins = (self.random.below(8) > 0).then(|| store.pins());
        let (pending, parts, stage, rounds) = (None, Vec::new(), 0, self.rounds_begun);
        let changes = Change::some(&mut self.random);
        self.tell(|| format!("{id} is opened, {base:?}, {changes:?}"));
        let session = Session {
            volume,
            writer,
            generation,
            base,
            changes,
            pins,
            pending,
            parts,
            stage,
            rounds,
        };
        self.sessions.push(session);
        Ok(())
    }

    fn ids(session: &Session) -> Vec<u64> {
        let ids: BTreeSet<u64> = session.changes.iter().filter_map(Change::chunk).collect();
        ids.into_iter().collect()
    }

    /// Asks, and puts half of what is not there.
    fn have(&mut self, session: &mut Session) -> Step<bool> {
        session.rounds = self.rounds_begun;
        self.ask(session, 2)
    }

    /// Asks again, and puts the rest: with pins what was promised must still be there.
    fn put(&mut self, session: &mut Session) -> Step<bool> {
        if session.pins.is_none() {
            return Ok(false);
        }
        self.ask(session, 1)
    }

    fn ask(&mut self, session: &Session, share: usize) -> Step<bool> {
        let (store, writer) = (self.store(), self.writer(session.writer));
        let seeds = Self::ids(session);
        let ids: Vec<ChunkId> = seeds.iter().map(|seed| chunk_of(*seed)).collect();
        let pins = session.pins.as_ref();
        let have = self.went("have", store.have_pinned(&writer, &ids, false, pins))?;
        let missing = seeds.iter().zip(have).filter(|(_, have)| !have).map(|(seed, _)| *seed);
        for seed in missing.step_by(share).collect::<Vec<_>>() {
            let record = self.chunk(session.writer, seed);
            self.went("put", store.put_pinned(&record, self.clock, pins))?;
        }
        Ok(false)
    }

    fn extents(&mut self, session: &mut Session) -> Step<bool> {
        let store = self.store();
        let volume = &self.volumes[session.volume];
        let begun = store.begin(&volume.id, session.generation, session.base, SIZE);
        let mut pending = self.went("begin", begun)?;
        let cut = self.random.below(session.changes.len() as u64 + 1) as usize;
        let (first, second) = session.changes.split_at(cut);
        let mut running = volume.head().map_or(Hash::ZERO, |(_, p)| p.running);
        for part in [first, second] {
            let bytes = runs(part);
            running = hash::delta(&running, SIZE, &bytes);
            self.went("extents", store.extents(&mut pending, &bytes, self.clock))?;
            session.parts.push((bytes, running));
        }
        session.pending = Some(pending);
        // A try that is given up leaves parts behind.
        if self.random.below(10) == 0 {
            session.parts.clear();
            session.pending = None;
            session.stage -= 1;
        }
        Ok(false)
    }

    fn commit(&mut self, session: &mut Session) -> Step<bool> {
        let store = self.store();
        let Some(pending) = session.pending.take() else { return Ok(true) };
        let volume = &self.volumes[session.volume];
        let head = volume.head();
        let seq = head.map_or(1, |(seq, _)| seq + 1);
        let empty = Arc::new(Map::new());
        let origin = volume.origin.as_ref().map(|o| &o.2);
        let before = match (session.base, head) {
            (_, None) => origin.unwrap_or(&empty),
            (Base::Checkpoint, Some((_, p))) => &volume.points[&p.base].map,
            (_, Some((_, p))) => &p.map,
        };
        let map = Arc::new(applied(before, &session.changes));
        let is_delta = session.base == Base::Delta;
        let own = root(&volume.id, &map);
        let of = head.filter(|_| is_delta).map(|(_, p)| (p.base, p.root));
        let (base, root) = of.unwrap_or((seq, own));
        let parts = if is_delta { std::mem::take(&mut session.parts) } else { Vec::new() };
        let running = parts.last().map_or(root, |(_, running)| *running);
        let prev = head.map_or(Hash::ZERO, |(_, p)| p.hash);
        let signed = self.writers[session.writer].sign_point(Signable {
            vault: self.vault,
            volume: volume.id,
            writer: self.writer(session.writer),
            seq,
            generation: session.generation,
            time: seq,
            size: SIZE,
            grade: Grade::Settled,
            stale: false,
            checkpoint: base,
            epoch: 1,
            prev,
            root,
            deltas: if is_delta { running } else { Hash::ZERO },
        });
        let hash = hash::point(&signed.point.encode());
        let point = Point { map, base, root, running, hash, parts, expired: None };
        debug_assert_eq!(top_level(SIZE), 2);
        let (at, name) = (session.volume, volume.name.clone());
        self.under_way = UnderWay::Commit {
            volume: at,
            seq,
            signed: Box::new(signed),
            point: Box::new(point.clone()),
        };
        let done = self.went("commit", store.commit(pending, &signed, self.clock))?;
        self.under_way = UnderWay::Nothing;
        match done {
            Commit::Done(_) => {
                self.tell(|| format!("{name}@{seq} is there"));
                self.figures.points += 1;
                self.figures.over_rounds += u64::from(session.rounds < self.rounds_begun);
                self.volumes[at].points.insert(seq, point);
                if let Some(pins) = &session.pins {
                    pins.release();
                }
            }
            Commit::Missing(ids) => self.missing(session, &name, seq, &ids)?,
        }
        Ok(true)
    }

    /// Only who asked without a promise may be refused, and for what really is not there.
    fn missing(&mut self, session: &Session, name: &str, seq: Seq, ids: &[ChunkId]) -> Step {
        self.tell(|| format!("{name}@{seq} is refused: {ids:?}"));
        if session.pins.is_some() {
            let why = format!("{name}@{seq} lacks {} chunks that were promised", ids.len());
            return Err(Stop::Wrong(why));
        }
        self.figures.refused += 1;
        let named: BTreeSet<ChunkId> = Self::ids(session).into_iter().map(chunk_of).collect();
        let store = self.store();
        let have = store.have(&self.writer(session.writer), ids, true);
        let have = self.went("have", have)?;
        if ids.is_empty() || have.iter().any(|h| *h) || ids.iter().any(|id| !named.contains(id)) {
            return Err(Stop::Wrong(format!("{name}@{seq} is refused for the wrong chunks")));
        }
        Ok(())
    }
}
