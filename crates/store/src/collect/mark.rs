//! Marks: the ids of all chunks, pages and nodes that are still referred to.
//!
//! Roots are the points that are kept, and those that expired less than the grace ago; of
//! forks their own, for these refer to all that they share. A record of the map counts once,
//! however many points share it. Damage in the map of a point that is kept ends the round, for
//! what lies below is not known; of expired points there may be only parts left.

use std::collections::HashSet;

use dormouse_format::delta;
use dormouse_format::extents::{Content, Runs};
use dormouse_format::geometry::Place;
use dormouse_format::limits::FANOUT;
use dormouse_format::record::HEADER_LEN;
use dormouse_format::seeded::seeded;
use dormouse_format::{RecordId, Seq, TimeNs, VolumeId};

use super::refs::Refs;
use super::{Pace, go_on};
use crate::error::{Error, Result};
use crate::locks::read;
use crate::log::RecordRef;
use crate::map::{Cache, Link, Reading, Tree};
use crate::state::Volume;
use crate::state::history::{LOST, PointRef};
use crate::vault::VaultStore;

/// Everything that is referred to.
pub(super) fn marks<'a>(store: &'a VaultStore, since: TimeNs, pace: Pace<'_>) -> Result<Refs<'a>> {
    let mut marker = Marker::new(store, None);
    let volumes: Vec<_> = read(&store.state).volumes.values().cloned().collect();
    let forgotten = |v: &Volume| v.value.origin.is_some() && seeded("fork-roots-forgotten");
    // First what is kept: a node that was seen is not looked at again.
    for volume in volumes.iter().filter(|v| !forgotten(v)) {
        let needed = read(&volume.history).needed(TimeNs::MAX);
        needed.iter().try_for_each(|point| marker.point(volume, point, pace))?;
    }
    for volume in volumes.iter().filter(|v| !forgotten(v)) {
        let needed = read(&volume.history).needed(since);
        for point in needed {
            match marker.point(volume, &point, pace) {
                Err(Error::Damaged { .. } | Error::Format(_)) => {}
                done => done?,
            }
        }
    }
    Ok(marker.refs.finish())
}

/// Walks through maps and deltas, and marks what it finds.
pub(super) struct Marker<'a> {
    store: &'a VaultStore,
    cache: Cache,
    pub(super) refs: Refs<'a>,
    seen: HashSet<RecordId>,
    points: HashSet<(VolumeId, Seq)>,
}

impl<'a> Marker<'a> {
    /// Nothing is marked. Marks are of this class, if there are classes.
    pub(super) fn new(store: &'a VaultStore, class: Option<u64>) -> Self {
        let mut refs = Refs::new(store.log.index.dir());
        refs.class = class;
        let (seen, points) = Default::default();
        Self { store, cache: Cache::small(), refs, seen, points }
    }

    const fn reading(&self) -> Reading<'_> {
        Reading { source: self.store, cache: &self.cache }
    }

    /// Marks what a point refers to.
    pub(super) fn point(
        &mut self,
        volume: &Volume,
        point: &PointRef,
        pace: Pace<'_>,
    ) -> Result<()> {
        let PointRef { seq, at, checkpoint } = *point;
        if !self.points.insert((volume.value.id, seq)) {
            return Ok(());
        }
        if checkpoint {
            let tree = Tree::of(&self.store.point_at(&at)?);
            return self.node(Place { level: tree.level, index: 0 }, &tree.top, pace);
        }
        let parts = read(&volume.history).parts(seq - 1, seq).to_vec();
        for (_, part) in parts {
            if part == LOST {
                let name = &volume.value.name;
                let why =
                    format!("deltas of {name}@{seq} are damaged: what they name is not known");
                return Err(at.damaged(why));
            }
            self.delta(&part, pace)?;
        }
        Ok(())
    }

    fn node(&mut self, place: Place, link: &Link, pace: Pace<'_>) -> Result<()> {
        if link.is_zero() || !self.seen.insert(link.record) {
            return Ok(());
        }
        self.refs.add(&link.record)?;
        if place.level == 1 {
            return self.page(place.index, link, pace);
        }
        let children = self.reading().children(place, link)?;
        go_on(pace, 48 * FANOUT)?;
        for slot in 0..FANOUT {
            self.node(place.child(slot), &children[slot as usize], pace)?;
        }
        Ok(())
    }

    fn page(&mut self, index: u64, link: &Link, pace: Pace<'_>) -> Result<()> {
        let loaded = self.reading().page(index, link)?;
        go_on(pace, (loaded.full_len + loaded.patch_len) as u64)?;
        for base in loaded.bases.iter().filter(|_| !seeded("page-base-forgotten")) {
            self.refs.add(base)?;
        }
        let mut failed = None;
        loaded.page.names(|chunk| {
            failed = self.refs.add(chunk).err();
            failed.is_some()
        });
        failed.map_or(Ok(()), Err)
    }

    fn delta(&mut self, at: &RecordRef, pace: Pace<'_>) -> Result<()> {
        let record = self.store.read(at)?;
        go_on(pace, record.len() as u64)?;
        let (_, runs) = delta::decode(&record[HEADER_LEN..])?;
        for run in Runs::new(runs) {
            if let Content::Data { chunk, .. } = run?.content {
                self.refs.add(&chunk)?;
            }
        }
        Ok(())
    }
}
